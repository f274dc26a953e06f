"""Our own format: one question per line.

    {"query_id": "q1", "question": "...", "answers": ["..."],
     "candidates": [{"doc_id": "d1", "title": "...", "text": "...", "score": 7.5}], "relevance": {"d1": 1},
     "order": ["d1"], "thoughts": "[1] names the keeper."}

Only `question` is required; `answer`, a text or a list, is read as `answers`. A row without query_id is named by a hash
of its question, a candidate without doc_id by a hash of its title and text; a candidate may be a plain string. `score`
is the first stage's, `order` and `thoughts` a teacher's.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from rankwright.data.fields import (
    CANDIDATE_FIELDS,
    Row,
    answers_field,
    checked_text,
    content_id,
    distinct,
    document,
    finite_number,
    grade_of,
    id_field,
    identifier,
    list_field,
    object_of,
    optional_text,
    passage,
    shown,
    text_field,
)
from rankwright.data.files import write_lines
from rankwright.data.problems import OR_SKIP, RowError
from rankwright.data.rows import RowFormat
from rankwright.types import Document, Example, Query


def parse_row(row: Row) -> Example:
    """One line of our own format."""
    question = text_field(row, "question")
    query_id = id_field(row, "query_id", "_id", "id") or content_id("", question)
    relevance = object_of(row.get("relevance") or {}, "field 'relevance'")
    candidates = [_candidate(value) for value in list_field(row, "candidates")]
    return Example(
        query=Query(query_id, question),
        candidates=distinct(document for document, _ in candidates),
        answers=answers_field(row, "answers", "answer"),
        relevance={doc_id: grade_of(grade, f"relevance of '{doc_id}'") for doc_id, grade in relevance.items()},
        # the same passage twice is kept once, with its first score
        first_stage={document.doc_id: score for document, score in reversed(candidates) if score is not None},
        order=_order(row),
        thoughts=optional_text(row, "thoughts"),
    )


FORMAT = RowFormat(
    parse_row,
    frozenset(
        {
            *("query_id", "_id", "id", "question", "answers", "answer", "candidates", "relevance", "order", "thoughts"),
            "metadata",
        }
    ),
    ("candidates",),
    {"candidates": CANDIDATE_FIELDS},
)


def write_jsonl(
    path: str | Path, examples: Iterable[Example], metadata: Mapping[str, Mapping[str, object]] | None = None
) -> None:
    """Write examples in our own format, gzip where the name ends in .gz; `load_examples(path, "jsonl")` reads them.

    `metadata`, by query_id, goes into the rows for people; it is not read back. Raises StorageError where the file
    cannot be written; an older file then stays as it was.
    """
    notes = metadata or {}
    write_lines(path, (json.dumps(row_of(e, notes.get(e.query.query_id)), ensure_ascii=False) for e in examples))


def _candidate(value: object) -> tuple[Document, float | None]:
    """A passage, and the score that the first stage gave it."""
    if isinstance(value, str):
        return document("", checked_text(value, "candidates")), None
    row = object_of(value, "candidate")
    found, score = passage(row), row.get("score")
    return found, None if score is None else finite_number(score, f"field 'score' of candidate '{found.doc_id}'")


def _order(row: Row) -> tuple[str, ...]:
    order = tuple(identifier(doc_id, "order") for doc_id in list_field(row, "order"))
    if len(set(order)) < len(order):
        twice, times = Counter(order).most_common(1)[0]
        raise RowError(
            f"doc_id {shown(twice)} stands {times} times in field 'order'",
            "every doc_id once",
            f"Correct the row{OR_SKIP}.",
        )
    return order


def row_of(example: Example, metadata: Mapping[str, object] | None = None) -> dict[str, object]:
    """An example as a row of this format."""
    row: dict[str, object] = {
        "query_id": example.query.query_id,
        "question": example.query.text,
        "answers": list(example.answers),
    }
    if example.candidates:
        row["candidates"] = [_written(d, example.first_stage.get(d.doc_id)) for d in example.candidates]
    if example.relevance:
        row["relevance"] = dict(example.relevance)
    if example.order:
        row["order"] = list(example.order)
    if example.thoughts:
        row["thoughts"] = example.thoughts
    if metadata:
        row["metadata"] = dict(metadata)
    return row


def _written(candidate: Document, score: float | None) -> dict[str, object]:
    row: dict[str, object] = {"doc_id": candidate.doc_id, "title": candidate.title, "text": candidate.text}
    return (
        {**row, "score": score} if score is not None and math.isfinite(score) else row
    )  # else nobody can read it back
