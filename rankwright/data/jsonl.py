"""Our own format: one question per line.

    {"query_id": "q1", "question": "...", "answers": ["..."],
     "candidates": [{"doc_id": "d1", "title": "...", "text": "..."}], "relevance": {"d1": 1}}

Only `question` is required. A row without query_id is named by a hash of its question, a candidate without doc_id by a
hash of its title and text; a candidate may be a plain string.
"""

from __future__ import annotations

import json
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
    grade_of,
    id_field,
    list_field,
    object_of,
    passage,
    text_field,
)
from rankwright.data.files import write_lines
from rankwright.data.rows import RowFormat
from rankwright.types import Document, Example, Query


def parse_row(row: Row) -> Example:
    """One line of our own format."""
    question = text_field(row, "question")
    query_id = id_field(row, "query_id", "_id", "id") or content_id("", question)
    relevance = object_of(row.get("relevance") or {}, "field 'relevance'")
    return Example(
        query=Query(query_id, question),
        candidates=distinct(_candidate(value) for value in list_field(row, "candidates")),
        answers=answers_field(row, "answers", "answer"),
        relevance={doc_id: grade_of(grade, f"relevance of '{doc_id}'") for doc_id, grade in relevance.items()},
    )


FORMAT = RowFormat(
    parse_row,
    frozenset({"query_id", "_id", "id", "question", "answers", "answer", "candidates", "relevance", "metadata"}),
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
    write_lines(path, (json.dumps(_row(e, notes.get(e.query.query_id)), ensure_ascii=False) for e in examples))


def _candidate(value: object) -> Document:
    if isinstance(value, str):
        return document("", checked_text(value, "candidates"))
    return passage(object_of(value, "candidate"))


def _row(example: Example, metadata: Mapping[str, object] | None) -> dict[str, object]:
    row: dict[str, object] = {
        "query_id": example.query.query_id,
        "question": example.query.text,
        "answers": list(example.answers),
    }
    if example.candidates:
        row["candidates"] = [{"doc_id": d.doc_id, "title": d.title, "text": d.text} for d in example.candidates]
    if example.relevance:
        row["relevance"] = dict(example.relevance)
    if metadata:
        row["metadata"] = dict(metadata)
    return row
