"""Files whose rows are independent of each other: reading them under the bad-row policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from rankwright.data.fields import Row, object_of, shown
from rankwright.data.files import (
    AnyPath,
    array_rows,
    decoded,
    file_problem,
    first_line,
    is_json_array,
    lines_of,
    parsed_object,
)
from rankwright.data.intake import Intake
from rankwright.data.problems import RowError
from rankwright.types import Example


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A format in which every row is one question."""

    parse: Callable[[Row], Example]
    """Raises RowError."""
    fields: frozenset[str]
    """Every field that is read or known to be without use here; any other one is reported."""
    candidate_fields: tuple[str, ...] = ()
    """Where the candidate list stands, if the format has one."""
    nested: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Fields that hold an object or a list of them, with the fields of those."""


def json_rows(path: AnyPath, intake: Intake) -> Iterator[tuple[int, Row]]:
    """(line, row) of JSON lines or of one JSON array of objects; broken lines go the way of the intake."""
    source = array_rows(path) if is_json_array(path) else lines_of(path)
    good = bad = 0
    for line, found in source:
        row: Row | None = None
        with intake.row(path, line):
            row = parsed_object(decoded(found)) if isinstance(found, bytes) else object_of(found, "row")
        if row is not None:
            good += 1
            yield line, row
        else:
            bad += 1
    if bad > 1 and not good:  # said once, not once for every line
        raise file_problem(
            path,
            f"this is no JSON Lines file: none of its {bad} rows is a JSON object, the first is "
            f"{shown(first_line(path).decode(errors='replace'))}",
            "one JSON object per line, or one JSON array of objects",
            "Convert it, or name the format that it has.",
        )


def text_rows(path: AnyPath, intake: Intake) -> Iterator[tuple[int, str]]:
    """(line, text) of every line that is not blank."""
    for line, raw in lines_of(path):
        text: str | None = None
        with intake.row(path, line):
            text = decoded(raw)
        if text is not None:
            yield line, text


def take_rows(path: AnyPath, row_format: RowFormat, intake: Intake) -> None:
    """Give every question of the file to the intake."""
    for line, row in json_rows(path, intake):
        with intake.row(path, line):
            intake.note_fields(path, line, row, row_format.fields, row_format.nested)
            example = row_format.parse(row)
            if intake.corpus is None:
                refuse_empty_candidates(row, row_format, example)
            intake.add(example, line)


def refuse_empty_candidates(row: Row, row_format: RowFormat, example: Example) -> None:
    """Raises RowError: a list that is there and empty is a retrieval that failed; a file without lists was never
    retrieved for."""
    named = [name for name in row_format.candidate_fields if name in row]
    if named and not example.candidates:
        raise RowError(
            f"candidate list '{named[0]}' of query '{example.query.query_id}' is empty",
            "at least one passage",
            "Add passages, or give the corpus to retrieve them from (--corpus FILE).",
        )
