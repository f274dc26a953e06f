"""What can be wrong with a row: the value that the user sees and the error that carries it inside the loaders."""

from __future__ import annotations

from dataclasses import dataclass

from rankwright.errors import DataError

SKIP = "on_bad_row='skip' (--on-bad-row skip)"
"""How rows are left out, in Python and on the command line, in every message that advises it."""
OR_SKIP = f", or leave bad rows out with {SKIP}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong (or noteworthy) in a file of the user."""

    file: str
    line: int
    """1-based; 0 where the whole file is meant."""
    found: str
    """A clause with subject and value found."""
    wanted: str
    next_step: str
    """A sentence that says what to do."""

    def __str__(self) -> str:
        place = f"{self.file}, line {self.line}" if self.line else self.file
        return f"{place}: {self.found}; wanted {self.wanted}. {self.next_step}"


class RowError(DataError):
    """A row is malformed. Row parsers raise it without a place; the loader that knows file and line adds them."""

    def __init__(self, found: str, wanted: str, next_step: str) -> None:
        super().__init__(f"{found}; wanted {wanted}. {next_step}")
        self.found = found
        self.wanted = wanted
        self.next_step = next_step

    def at(self, file: object, line: int) -> Problem:
        """The same as a Problem with its place."""
        return Problem(str(file), line, self.found, self.wanted, self.next_step)
