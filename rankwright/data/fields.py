"""Typed access to the fields of a JSON row, and the identity of passages. Pure; failures are RowErrors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rankwright.data.problems import OR_SKIP, SKIP, RowError
from rankwright.types import Document

Row = Mapping[str, Any]

ID_FIELDS = ("doc_id", "_id", "id", "docid")
PASSAGE_FIELDS = frozenset({*ID_FIELDS, "title", "text", "contents"})
CANDIDATE_FIELDS = PASSAGE_FIELDS | {"score", "metadata"}
"""Those of a passage that someone has ranked."""
_SHOWN_CHARACTERS = 60
_FIX_ROW = f"Correct the row{OR_SKIP}."
FIX_FORMAT = "Check that the format (--format) is the one of this file, or correct the row."


def shown(value: object) -> str:
    """A value as it stands in a message: its repr, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def content_id(title: str, text: str) -> str:
    """The id of a passage whose source has none: 16 hexadecimal digits that depend on title and text alone."""
    return hashlib.blake2b(f"{title}\0{text}".encode(), digest_size=8).hexdigest()


def has_content_id(document: Document) -> bool:
    """True where the doc_id was made by content_id, so that equal ids mean equal passages."""
    return document.doc_id == content_id(document.title, document.text)


def checked_text(value: object, name: str) -> str:
    """The value if it is a string that UTF-8 can hold; tokenizers and files refuse any other."""
    if not isinstance(value, str):
        raise RowError(f"field '{name}' is {shown(value)} ({type(value).__name__})", "a string", _FIX_ROW)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            f"field '{name}' holds half of a surrogate pair, {value[error.start]!r}, at character {error.start}",
            "text that UTF-8 can hold",
            "Write the file again from its source as UTF-8.",
        ) from None
    return value


def text_field(row: Row, *names: str) -> str:
    """The first of the named fields that is present; it must hold more than white space."""
    for name in names:
        if name in row:
            text = checked_text(row[name], name)
            if not text.strip():
                raise RowError(f"field '{name}' is empty", "text", _FIX_ROW)
            return text
    wanted = "field " + " or ".join(f"'{name}'" for name in names)
    raise RowError(f"no such field in {shown(sorted(row))}", wanted, FIX_FORMAT)


def optional_text(row: Row, name: str) -> str:
    """The field, or the empty string where it is absent or null."""
    value = row.get(name)
    return "" if value is None else checked_text(value, name)


def identifier(value: object, name: str) -> str:
    """Ids are strings or whole numbers; both become strings. White space would break the columns of a TREC run."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = checked_text(value, name)
    if not text or text.split() != [text]:
        raise RowError(f"field '{name}' is {shown(value)}", "an id without white space", _FIX_ROW)
    return text


def id_field(row: Row, *names: str) -> str | None:
    """The first of the named fields that is present and not null, as an id; None where there is none."""
    for name in names:
        if row.get(name) is not None:
            return identifier(row[name], name)
    return None


def required_id(row: Row, *names: str) -> str:
    """Like id_field, for formats whose rows always carry an id."""
    value = id_field(row, *names)
    if value is None:
        wanted = "an id in field " + " or ".join(f"'{name}'" for name in names)
        raise RowError(f"no id in fields {shown(sorted(row))}", wanted, FIX_FORMAT)
    return value


def list_field(row: Row, name: str) -> Sequence[Any]:
    """The field as a list; empty where it is absent or null."""
    value = row.get(name)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RowError(f"field '{name}' is {shown(value)} ({type(value).__name__})", "a list", FIX_FORMAT)
    return value


def object_of(value: object, name: str) -> Row:
    """The value if it is a JSON object."""
    if not isinstance(value, dict):
        raise RowError(f"{name} is {shown(value)} ({type(value).__name__})", "a JSON object", FIX_FORMAT)
    return value


def flag_field(row: Row, *names: str) -> bool | None:
    """The first of the named fields that is present, as true or false (0 and 1 count); None where there is none."""
    for name in names:
        if row.get(name) is not None:
            value = row[name]
            if value not in (True, False):
                raise RowError(f"field '{name}' is {shown(value)}", "true or false", _FIX_ROW)
            return bool(value)
    return None


def grade_of(value: object, name: str) -> int:
    """A relevance grade: a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise RowError(f"{name} is {shown(value)}", "a whole number as relevance grade", _FIX_ROW)
    return value


def finite_number(value: object, name: str) -> float:
    """A number that can be added and compared: not NaN, not infinite, within the range of a float."""
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:  # JSON's whole numbers have any length
        number = math.nan
    if not math.isfinite(number):
        raise RowError(f"{name} is {shown(value)}", "a finite number", _FIX_ROW)
    return number


def answers_field(row: Row, *names: str) -> tuple[str, ...]:
    """All accepted answers of the named fields, each a string or a list; blank and repeated ones are dropped."""
    answers: list[str] = []
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        answers += [checked_text(answer, name) for answer in values]
    return tuple(dict.fromkeys(answer for answer in answers if answer.strip()))


def split_contents(contents: str) -> tuple[str, str]:
    """Title and text of FlashRAG's `contents`: `"title"`, a line break, text. Any other content is all text."""
    first, line_break, rest = contents.partition("\n")
    if line_break and len(first) > 1 and first[0] == first[-1] == '"':
        return first[1:-1], rest
    return "", contents


def document(title: str, text: str, doc_id: str | None = None) -> Document:
    """A passage; without an id of its source it gets its content_id. Title and text must not both be blank."""
    if not text.strip() and not title.strip():
        raise RowError(
            f"passage {shown(doc_id) if doc_id is not None else 'without id'} has neither title nor text",
            "a passage with text",
            _FIX_ROW,
        )
    return Document(content_id(title, text) if doc_id is None else doc_id, text, title)


def passage(row: Row) -> Document:
    """A passage in one of the usual spellings: doc_id|_id|id|docid (optional), title, and text or contents."""
    doc_id = id_field(row, *ID_FIELDS)
    title = optional_text(row, "title")
    if "text" in row:
        return document(title, optional_text(row, "text"), doc_id)
    if "contents" not in row:
        raise RowError(f"a passage with fields {shown(sorted(row))}", "field 'text' or 'contents'", FIX_FORMAT)
    own_title, text = split_contents(checked_text(row["contents"], "contents"))
    return document(title or own_title, text, doc_id)


def distinct(documents: Iterable[Document]) -> tuple[Document, ...]:
    """The candidates of one question. The same passage twice is kept once, unless the source itself repeats an id."""
    seen: dict[str, Document] = {}
    for candidate in documents:
        if candidate.doc_id in seen and not has_content_id(candidate):
            raise RowError(
                f"doc_id '{candidate.doc_id}' stands twice in one candidate list", "every passage once", _FIX_ROW
            )
        seen.setdefault(candidate.doc_id, candidate)
    return tuple(seen.values())


def unanswerable(query_id: str) -> RowError:
    """The named problem of a question that its source marks as having no answer."""
    return RowError(
        f"question '{query_id}' is marked unanswerable",
        "questions with an answer",
        f"Such rows are left out with {SKIP}.",
    )
