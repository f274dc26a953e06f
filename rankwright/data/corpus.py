"""Corpus files: JSON lines (BEIR, FlashRAG, Pyserini or our own) or `doc_id TAB text` (MS MARCO)."""

from __future__ import annotations

from collections.abc import Iterator

from rankwright.data.fields import PASSAGE_FIELDS, document, identifier, passage, shown
from rankwright.data.files import AnyPath, file_problem, first_line
from rankwright.data.intake import Intake
from rankwright.data.problems import OR_SKIP, RowError
from rankwright.data.rows import json_rows, text_rows
from rankwright.types import Document

_KNOWN_FIELDS = PASSAGE_FIELDS | {"metadata"}


def read_corpus(path: AnyPath, intake: Intake) -> dict[str, Document]:
    """All passages by doc_id, in the order of the file.

    JSON rows hold doc_id|_id|id|docid (a content hash where absent), title (optional), and text or contents.
    Bad rows (among them a doc_id that stands twice) go the way of the intake. Raises DataError where nothing is left.
    """
    documents: dict[str, Document] = {}
    for line, found in passages_of(path, intake):
        with intake.row(path, line):
            _take(documents, found)
    if not documents:
        raise file_problem(path, "no usable passage", "a corpus of at least one", "Check the format of the corpus.")
    return documents


def passages_of(path: AnyPath, intake: Intake) -> Iterator[tuple[int, Document]]:
    """(line, passage) of every good row, as the file is read."""
    if first_line(path).lstrip()[:1] in (b"{", b"["):
        for line, row in json_rows(path, intake):
            found: Document | None = None
            with intake.row(path, line):
                intake.note_fields(path, line, row, _KNOWN_FIELDS)
                found = passage(row)
            if found is not None:
                yield line, found
        return
    for line, text in text_rows(path, intake):
        found = None
        with intake.row(path, line):
            found = _tab_passage(text)
        if found is not None:
            yield line, found


def _take(documents: dict[str, Document], found: Document) -> None:
    if found.doc_id in documents:
        raise RowError(
            f"doc_id '{found.doc_id}' stands twice in the corpus",
            "every doc_id once",
            f"Remove or rename one{OR_SKIP}.",
        )
    documents[found.doc_id] = found


def _tab_passage(line: str) -> Document:
    doc_id, tab, text = line.partition("\t")
    if not tab or "\t" in text:
        raise RowError(
            f"{shown(line)} has {line.count(chr(9)) + 1} column(s)",
            "JSON lines, or two columns: doc_id TAB text",
            "Write the corpus as JSON lines with doc_id, title and text.",
        )
    return document("", text, identifier(doc_id, "doc_id"))
