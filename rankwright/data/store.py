"""Passages and questions by their ids in one SQLite file, for a corpus that does not fit into memory.

The file is named by the contents of what it was made from, is whole as soon as it bears its name, and is only read from
then on: several processes on one machine share it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from rankwright.data import jsonl
from rankwright.data.corpus import passages_of
from rankwright.data.files import AnyPath
from rankwright.data.intake import Intake
from rankwright.data.problems import OR_SKIP, RowError
from rankwright.data.trec import topics_of
from rankwright.errors import StorageError
from rankwright.types import Document, Example

_TABLES = """
CREATE TABLE passages (doc_id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE topics (query_id TEXT NOT NULL UNIQUE, row TEXT NOT NULL);
"""
_IDS_AT_ONCE = 500
"""Below the smallest limit of variables in a statement, 999."""
_CACHE_PAGES = "PRAGMA cache_size = -65536"
"""64 MiB: what the table of ids needs while it grows, whatever the size of the corpus."""


def file_digest(path: AnyPath) -> str:
    """Of the content of a file; of a member of a zip archive, of the archive and its name."""
    if isinstance(path, zipfile.Path):
        return f"{file_digest(Path(str(path.root.filename)))}/{path.at}"
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror}. Check the disk and the permissions.") from error


class PassageStore:
    """Read access to a store that `made_store` made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)

    def documents(self, doc_ids: Sequence[str]) -> dict[str, Document]:
        """Those that are in the corpus, by doc_id."""
        found: dict[str, Document] = {}
        for chunk in _chunks(doc_ids, _IDS_AT_ONCE):
            marks = ", ".join("?" * len(chunk))
            rows = self._rows.execute(f"SELECT doc_id, text, title FROM passages WHERE doc_id IN ({marks})", chunk)
            found |= {row[0]: Document(*row) for row in rows}
        return found

    def topic(self, query_id: str) -> Example | None:
        """The question; None where no topic has this id."""
        row = self._rows.execute("SELECT row FROM topics WHERE query_id = ?", (query_id,)).fetchone()
        return None if row is None else jsonl.parse_row(json.loads(row[0]))

    @property
    def topics(self) -> int:
        """How many there are."""
        return self._rows.execute("SELECT count(*) FROM topics").fetchone()[0]

    def close(self) -> None:
        """Ends the access; the file stays."""
        self._rows.close()


def made_store(folder: Path, corpus: AnyPath, topics: AnyPath, digests: Iterable[str], intake: Intake) -> PassageStore:
    """The store of a corpus and its topics in this folder, made where it is not there yet.

    Bad rows, among them ids that stand twice, go the way of the intake.

    Raises:
        StorageError: it cannot be written.
    """
    key = hashlib.blake2b("\n".join(digests).encode(), digest_size=8).hexdigest()
    path = folder / f"passages-{key}.sqlite"
    if not path.exists():
        draft = folder / f".{path.name}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _written(draft) as rows:
                _take_passages(rows, corpus, intake)
                _take_topics(rows, topics, intake)
            draft.replace(path)
        except (OSError, sqlite3.Error) as error:
            raise StorageError(
                f"The passage store '{path}' cannot be written ({error}); wanted room for a copy of the corpus. Free "
                "space, or name another folder (--store FOLDER)."
            ) from error
        finally:
            draft.unlink(missing_ok=True)
    return PassageStore(path)


@contextmanager
def _written(draft: Path) -> Iterator[sqlite3.Connection]:
    """One transaction without a journal: a draft that breaks off is thrown away."""
    draft.unlink(missing_ok=True)
    rows = sqlite3.connect(draft, isolation_level=None)
    try:
        for pragma in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", _CACHE_PAGES):
            rows.execute(pragma)
        rows.executescript(_TABLES)
        rows.execute("BEGIN")
        yield rows
        rows.execute("COMMIT")
    finally:
        rows.close()


def _take_passages(rows: sqlite3.Connection, corpus: AnyPath, intake: Intake) -> None:
    for line, found in passages_of(corpus, intake):
        with intake.row(corpus, line):
            _insert(rows, "passages (doc_id, title, text)", (found.doc_id, found.title, found.text), "doc_id")


def _take_topics(rows: sqlite3.Connection, topics: AnyPath, intake: Intake) -> None:
    for line, parse in topics_of(topics, intake):
        with intake.row(topics, line):
            example = parse()
            row = json.dumps(jsonl.row_of(example))
            _insert(rows, "topics (query_id, row)", (example.query.query_id, row), "query_id")


def _insert(rows: sqlite3.Connection, into: str, values: Sequence[str], what: str) -> None:
    marks = ", ".join("?" * len(values))
    if not rows.execute(f"INSERT OR IGNORE INTO {into} VALUES ({marks})", values).rowcount:
        raise RowError(
            f"{what} '{values[0]}' stands twice",
            f"every {what} once",
            f"Remove or rename one{OR_SKIP}.",
        )


class SeenIds:
    """Which ids came so far, outside of memory: a file without a name, which goes with its user."""

    def __init__(self) -> None:
        self._rows = sqlite3.connect("", isolation_level=None)
        self._rows.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, line INTEGER NOT NULL) WITHOUT ROWID")
        self._rows.execute("BEGIN")

    def before(self, found: str, line: int) -> int | None:
        """The line where the id stood before; None where this is the first time."""
        if self._rows.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (found, line)).rowcount:
            return None
        return self._rows.execute("SELECT line FROM seen WHERE id = ?", (found,)).fetchone()[0]

    def close(self) -> None:
        """Forgets all."""
        self._rows.close()


def _chunks(items: Sequence[str], size: int) -> Iterator[list[str]]:
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk
