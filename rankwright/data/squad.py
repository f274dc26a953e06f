"""SQuAD v1.1 and v2: one JSON object {"data": [{title, paragraphs: [{context, qas: [...]}]}]}.

Also without that envelope, as an array or JSON lines: of articles, or of flat rows as on Hugging Face, {id, title,
context, question, answers: {text: [...]}}, where an empty list of texts marks an unanswerable question.

The paragraph of a question is its one candidate and labelled 1. Questions marked `is_impossible` are a named problem.
Article titles are Wikipedia page keys: percent escapes and underscores become the plain title.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
            _take_article(path, line, row, "article", {}, intake)
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


def _take_envelope(path: AnyPath, intake: Intake) -> None:
    envelope, lines = parsed_file(path)
    if not isinstance(envelope, dict) or not isinstance(envelope.get("data"), list):
        raise file_problem(
            path,
            f"a JSON {type(envelope).__name__} without the list 'data'",
            _SHAPES,
            "Check that the format (--format) is squad.",
        )
    intake.note_fields(path, 0, envelope, _ENVELOPE_FIELDS)
    for number, article in enumerate(envelope["data"], start=1):
        _take_article(path, lines.get(id(article), 0), article, f"article {number}", lines, intake)


def _take_article(
    path: AnyPath, line: int, article: object, place: str, lines: Mapping[int, int], intake: Intake
) -> None:
    """Give the questions of an article to the intake. `lines` is that of parsed_file, and empty for an article that is
    a row: all in it then stands in the line of the row."""
    for at, paragraph, value in _questions(path, line, article, place, lines, intake):
        with intake.row(path, at):
            question = object_of(value, "question")
            intake.note_fields(path, at, question, _QUESTION_FIELDS, _ANSWER_FIELDS)
            intake.add(parse_question(question, paragraph), at)


def _questions(
    path: AnyPath, line: int, value: object, place: str, lines: Mapping[int, int], intake: Intake
) -> list[tuple[int, Document, object]]:
    """The questions of one article, each with its line and its paragraph; an article or paragraph that is bad goes the
    way of the intake, under its place in the file."""
    paragraphs: Sequence[object] = ()
    title = ""
    with intake.row(path, line), _named(place):
        article = object_of(value, "an article")
        intake.note_fields(path, line, article, _ARTICLE_FIELDS)
        title, paragraphs = _title(article), list_field(article, "paragraphs")
    found: list[tuple[int, Document, object]] = []
    for number, entry in enumerate(paragraphs, start=1):
        at = lines.get(id(entry), line)
        with intake.row(path, at), _named(f"{place}, paragraph {number}"):
            paragraph = object_of(entry, "a paragraph")
            intake.note_fields(path, at, paragraph, _PARAGRAPH_FIELDS)
            candidate = document(title, text_field(paragraph, "context"))
            questions = list_field(paragraph, "qas")
            found += [(lines.get(id(question), at), candidate, question) for question in questions]
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
