"""Gate D2: 64 processes open a cache that is not there yet, all at once, and none of them finds it locked."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from rankwright.llms.cache import ReadStore
from tests.gates.mutants import Mutant
from tests.gates.sizes import tries
from tests.kill_harness import PATIENCE, Job
from tests.kill_jobs import open_at_once, value_of

pytestmark = [pytest.mark.gates, pytest.mark.timeout(600)]

PROCESSES = 64
ROUNDS = tries(full=20, quick=3)

GATE, CACHE = "tests/gates/test_gate_d2.py", "rankwright/llms/cache.py"
MUTANTS = [
    Mutant("D2", GATE, CACHE, "timeout=BUSY_SECONDS", "timeout=0.01"),
    Mutant(
        "D2", GATE, CACHE, "        _in_transaction(connection, create_if_empty)", "        create_if_empty(connection)"
    ),
]


@pytest.mark.parametrize("number", range(ROUNDS))
def test_no_process_finds_a_fresh_cache_locked(tmp_path: Path, number: int) -> None:
    path = tmp_path / "new" / "reads.sqlite"
    barrier = tmp_path / "barrier"
    with barrier.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        jobs = [Job(open_at_once, path, barrier, f"process {process}") for process in range(PROCESSES)]
        for job in jobs:
            assert job.listen(PATIENCE, until=lambda word: word == ("ready", True))
        assert not path.exists()
    for job in jobs:
        assert not job.end()
        assert job.words("found") == [True]
    with ReadStore(path) as store:
        wanted = {f"process {process}": value_of(f"process {process}") for process in range(PROCESSES)}
        assert store.get_many(wanted) == wanted
    assert [file.name for file in path.parent.iterdir()] == [path.name]
