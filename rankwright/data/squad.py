"""SQuAD v1.1 and v2: one JSON object {"data": [{title, paragraphs: [{context, qas: [...]}]}]}.

Also without that envelope, as an array or JSON lines: of articles, or of flat rows as on Hugging Face, {id, title,
context, question, answers: {text: [...]}}, where an empty list of texts marks an unanswerable question.

The paragraph of a question is its one candidate and labelled 1. Questions marked `is_impossible` are a named problem.
Article titles are Wikipedia page keys: percent escapes and underscores become the plain title.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import unquote

from rankwright.data.fields import (
    Row,
    answers_field,
    document,
    flag_field,
    list_field,
    object_of,
    optional_text,
    required_id,
    text_field,
    unanswerable,
)
from rankwright.data.files import (
    AnyPath,
    decoded,
    file_problem,
    first_line,
    is_json_array,
    parsed_file,
    parsed_object,
)
from rankwright.data.intake import Intake
from rankwright.data.problems import RowError
from rankwright.data.rows import json_rows
from rankwright.types import Document, Example, Query

_QUESTION_FIELDS = frozenset({"id", "question", "answers", "is_impossible", "plausible_answers"})
_FLAT_FIELDS = frozenset({"id", "title", "context", "question", "answers"})
_ENVELOPE_FIELDS = frozenset({"version", "data"})
_ARTICLE_FIELDS = frozenset({"title", "paragraphs"})
_PARAGRAPH_FIELDS = frozenset({"context", "qas"})
_ANSWER_FIELDS = {"answers": frozenset({"text", "answer_start"})}
_SHAPES = 'SQuAD\'s {"data": [{"title", "paragraphs"}]}, articles {"title", "paragraphs"} or flat rows {"context", ...}'
_ID_KEY = re.compile(r'"id"\s*:')


def parse_question(question: Row, paragraph: Document) -> Example:
    """One entry of `qas`. Raises RowError, also where it is unanswerable."""
    query_id = required_id(question, "id")
    if flag_field(question, "is_impossible"):
        raise unanswerable(query_id)
    texts = [object_of(value, "answer").get("text") for value in list_field(question, "answers")]
    return Example(
        query=Query(query_id, text_field(question, "question")),
        candidates=(paragraph,),
        answers=answers_field({"answers": texts}, "answers"),
        relevance={paragraph.doc_id: 1},
    )


def parse_flat(row: Row) -> Example:
    """One question with its paragraph in one row. Raises RowError, also where it is unanswerable."""
    answers = row.get("answers")
    if isinstance(answers, dict):
        texts = list_field(answers, "text")
        if not texts:
            raise unanswerable(required_id(row, "id"))
        answers = [{"text": text} for text in texts]
    return parse_question({**row, "answers": answers}, document(_title(row), text_field(row, "context")))


def take_questions(path: AnyPath, intake: Intake) -> None:
    """Give every question of a SQuAD file to the intake. Raises DataError where an envelope is not SQuAD's."""
    if _has_envelope(path):
        _take_envelope(path, intake)
        return
    for line, row in json_rows(path, intake):
        if "paragraphs" in row:
            _take_article(path, line, row, intake)
            continue
        with intake.row(path, line):
            intake.note_fields(path, line, row, _FLAT_FIELDS, _ANSWER_FIELDS)
            intake.add(parse_flat(row), line)


def _has_envelope(path: AnyPath) -> bool:
    """False for an array, and for JSON lines, which a whole article or flat row in the first line gives away."""
    if is_json_array(path):
        return False
    try:
        row = parsed_object(decoded(first_line(path)))
    except RowError:  # an object over several lines, or damage that the envelope's reader names
        return True
    return "data" in row or not {"paragraphs", "context"} & row.keys()


def _take_article(path: AnyPath, line: int, article: Row, intake: Intake) -> None:
    for paragraph, question in _questions(path, line, article, "article", intake):
        _take_question(path, line, question, paragraph, intake)


def _take_envelope(path: AnyPath, intake: Intake) -> None:
    envelope, text = parsed_file(path)
    if not isinstance(envelope, dict) or not isinstance(envelope.get("data"), list):
        raise file_problem(
            path,
            f"a JSON {type(envelope).__name__} without the list 'data'",
            _SHAPES,
            "Check that the format (--format) is squad.",
        )
    intake.note_fields(path, 0, envelope, _ENVELOPE_FIELDS)
    questions: list[tuple[Document, object]] = []
    for number, article in enumerate(envelope["data"], start=1):
        questions += _questions(path, 0, article, f"article {number}", intake)
    for (paragraph, question), line in zip(questions, _lines_of(text, len(questions)), strict=True):
        _take_question(path, line, question, paragraph, intake)


def _take_question(path: AnyPath, line: int, value: object, paragraph: Document, intake: Intake) -> None:
    with intake.row(path, line):
        question = object_of(value, "question")
        intake.note_fields(path, line, question, _QUESTION_FIELDS, _ANSWER_FIELDS)
        intake.add(parse_question(question, paragraph), line)


def _questions(path: AnyPath, line: int, value: object, place: str, intake: Intake) -> list[tuple[Document, object]]:
    """The questions of one article, each with its paragraph; an article or paragraph that is bad goes the way of the
    intake, under its place in the file."""
    paragraphs: Sequence[object] = ()
    title = ""
    with intake.row(path, line), _named(place):
        article = object_of(value, "an article")
        intake.note_fields(path, line, article, _ARTICLE_FIELDS)
        title, paragraphs = _title(article), list_field(article, "paragraphs")
    found: list[tuple[Document, object]] = []
    for number, entry in enumerate(paragraphs, start=1):
        with intake.row(path, line), _named(f"{place}, paragraph {number}"):
            paragraph = object_of(entry, "a paragraph")
            intake.note_fields(path, line, paragraph, _PARAGRAPH_FIELDS)
            candidate = document(title, text_field(paragraph, "context"))
            found += [(candidate, question) for question in list_field(paragraph, "qas")]
    return found


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Says of a RowError where in its row or file it is."""
    try:
        yield
    except RowError as error:
        raise RowError(f"{place}: {error.found}", error.wanted, error.next_step) from None


def _title(row: Row) -> str:
    return unquote(optional_text(row, "title")).replace("_", " ")


def _lines_of(text: str, count: int) -> list[int]:
    """The line of every question, found by the keys "id" in order; all 0 where other objects have that key too."""
    lines, line, counted = [], 1, 0
    for key in _ID_KEY.finditer(text):
        line += text.count("\n", counted, key.start())
        counted = key.start()
        lines.append(line)
    return lines if len(lines) == count else [0] * count
