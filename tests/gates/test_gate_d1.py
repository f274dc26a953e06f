"""Gate D1: of the rows that four writers acknowledged, all are there after a thousand SIGKILLs, each with its value."""

from __future__ import annotations

import random
import sqlite3
from collections import defaultdict
from pathlib import Path

import pytest

from rankwright.llms.cache import ReadStore
from tests.gates.mutants import Mutant
from tests.gates.sizes import tries
from tests.kill_harness import Job
from tests.kill_jobs import keys_of, store_rows, value_of

pytestmark = [pytest.mark.gates, pytest.mark.timeout(1200)]

WRITERS = 4
KILLS = tries(full=1000, quick=60)
LONGEST_LIFE = 0.3

GATE, CACHE = "tests/gates/test_gate_d1.py", "rankwright/llms/cache.py"
MUTANTS = [
    Mutant(
        "D1",
        GATE,
        CACHE,
        "        connection = sqlite3.connect(self.path, timeout",
        '        Path(f"{self.path}-journal").unlink(missing_ok=True)\n'
        "        connection = sqlite3.connect(self.path, timeout",
    ),
    Mutant("D1", GATE, CACHE, '    connection.execute("BEGIN IMMEDIATE")\n    try:', "    try:"),
    Mutant("D1", GATE, CACHE, "[(key, text, _checksum(key, text))", "[(key, text, key)"),
]


def test_no_acknowledged_row_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, path = random.Random(1), tmp_path / "reads.sqlite"
    acknowledged: list[str] = []
    begun = kills = 0
    jobs: list[Job] = []
    while kills < KILLS or jobs:
        while len(jobs) < WRITERS and begun < KILLS:
            jobs.append(Job(store_rows, path, f"writer {begun}"))
            begun += 1
        job = jobs.pop(draw.randrange(len(jobs)))
        job.kill_after(draw.uniform(0, LONGEST_LIFE))
        kills += job.end()
        acknowledged += job.said
    assert kills == KILLS
    check(path, acknowledged)
    with capsys.disabled():
        print(f"\nD1: {kills} kills over {WRITERS} writers, {len(acknowledged)} acknowledged batches, 0 lost")


def check(path: Path, acknowledged: list[str]) -> None:
    """Nothing is missing, nothing is damaged, and of what was not acknowledged there is all of a batch or nothing."""
    assert len(acknowledged) > KILLS, "the writers hardly came to write"
    assert not list(path.parent.glob("*.damaged-*"))
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        keys = [key for (key,) in connection.execute("SELECT key FROM answers")]
    connection.close()
    with ReadStore(path) as store:
        found = store.get_many(keys)
        assert store.damaged == 0
    assert found == {key: value_of(key) for key in keys}
    batches: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        batches[key.rsplit(" ", 1)[0]].append(key)
    assert batches.keys() >= set(acknowledged)
    assert all(sorted(rows) == sorted(keys_of(batch)) for batch, rows in batches.items())
