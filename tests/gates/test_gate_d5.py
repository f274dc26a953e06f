"""Gate D5: under a SQLite in which WAL with several writers can corrupt the file, the cache is never in WAL."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from rankwright.errors import StorageError
from rankwright.llms.cache import ReadStore
from tests.gates.mutants import Mutant
from tests.kill_harness import Job
from tests.kill_jobs import SQLITE_WITHOUT_THE_FAULT, in_wal_mode, store_with_version

pytestmark = [pytest.mark.gates, pytest.mark.timeout(300)]

BEFORE_THE_MEND = [(3, 37, 0), (3, 40, 1), (3, 50, 4), (3, 51, 2)]
WRITERS, BATCHES = 4, 10

GATE, CACHE = "tests/gates/test_gate_d5.py", "rankwright/llms/cache.py"
MUTANTS = [
    Mutant(
        "D5",
        GATE,
        CACHE,
        'mode = connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0]',
        'connection.execute("PRAGMA journal_mode = WAL")\n            mode = "delete"',
    ),
    Mutant("D5", GATE, CACHE, '"PRAGMA journal_mode = DELETE"', "\"SELECT 'delete'\""),
]


@pytest.fixture(params=BEFORE_THE_MEND, ids=lambda version: ".".join(map(str, version)))
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """A version that SQLite gives itself here."""
    assert request.param < SQLITE_WITHOUT_THE_FAULT
    monkeypatch.setattr(sqlite3, "sqlite_version_info", request.param)
    monkeypatch.setattr(sqlite3, "sqlite_version", ".".join(map(str, request.param)))
    return request.param


def make_wal_file(path: Path) -> sqlite3.Connection:
    """A file in WAL, as another program leaves it or holds it."""
    connection = sqlite3.connect(path, isolation_level=None)
    assert connection.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    return connection


def test_several_writers_leave_no_wal(tmp_path: Path, version: tuple[int, int, int]) -> None:
    path = tmp_path / "reads.sqlite"
    jobs = [Job(store_with_version, path, version, f"writer {writer}", BATCHES) for writer in range(WRITERS)]
    for job in jobs:
        job.end()
        assert job.words("mode") == [(False, False)] * BATCHES
    with ReadStore(path) as store:
        assert len(store) == WRITERS * BATCHES


@pytest.mark.usefixtures("version")
def test_a_file_in_wal_is_brought_back(tmp_path: Path) -> None:
    path = tmp_path / "reads.sqlite"
    with ReadStore(path) as store:
        store.put_many({"key": {"text": "kept"}})
    make_wal_file(path).close()
    assert in_wal_mode(path)
    with ReadStore(path) as store:
        assert store.get_many(["key"]) == {"key": {"text": "kept"}}
    assert not in_wal_mode(path)


@pytest.mark.usefixtures("version")
def test_a_file_that_another_program_holds_in_wal_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "reads.sqlite"
    ReadStore(path).close()
    monkeypatch.setattr("rankwright.llms.cache.BUSY_SECONDS", 0.1)
    holder = make_wal_file(path)
    try:
        holder.execute("SELECT COUNT(*) FROM answers").fetchall()
        with pytest.raises(StorageError, match=r"Read cache .*reads\.sqlite' "):
            ReadStore(path)
    finally:
        holder.close()
