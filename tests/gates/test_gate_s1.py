"""Gates S1 and S2: a constant load is served without a failure and without growing; six times as much as the server can
do is refused at once, and what it accepts it answers in time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.gates.mutants import Mutant
from tests.gates.sizes import tries
from tests.load_kit import (
    STUBS,
    body_of,
    closed_loop,
    drive,
    lag,
    metric,
    open_loop,
    p99,
    post,
    quantile,
    resident,
    statuses,
    stub_server,
)

pytestmark = [pytest.mark.gates, pytest.mark.timeout(1200)]

THIS = "tests/gates/test_gate_s1.py"
ENGINE = "rankwright/engine.py"
LOAD = f"{THIS}::test_constant_load[whole]"
MUTANTS = [
    Mutant(
        "S2",
        f"{THIS}::test_overload",
        ENGINE,
        "full = self._waiting + len(job.places) > settings.max_waiting",
        "full = False",
    ),
    Mutant("S1", LOAD, ENGINE, "            self._live.discard(job)\n", "            pass\n"),
]
DOCUMENTS = 20
DOCUMENT_SECONDS = 0.001
WAITING = 400
REQUESTS = {"whole": tries(2_400, 200), "halves": tries(12_000, 100)}
"""Ten minutes in full numbers, for the kind that has more in it."""


def raw(i: int) -> bytes:
    return post(body_of(f"question{i % 7}", DOCUMENTS))


@pytest.mark.parametrize("kind", STUBS)
def test_constant_load(tmp_path: Path, kind: str) -> None:
    """20 requests a second, 40 % of what the server can do: no failure, p99 at most five times that of an idle server,
    memory at most 5 % more than after the first tenth."""
    count = REQUESTS[kind]

    async def load(port: int) -> None:
        idle = await closed_loop(port, raw(0), 1, 3)
        early = await open_loop(port, raw, 20, count // 10)
        before = resident(server)
        async with lag() as late:
            answers = await open_loop(port, raw, 20, count)
        after = resident(server)
        print(
            f"S1, {kind}: {statuses(early + answers)}, idle p99 {p99(idle):.3f} s, loaded {p99(answers):.3f} s, "
            f"lag {quantile(late):.3f} s, memory {after / before:.3f}"
        )
        assert set(statuses(early + answers)) == {200}
        assert p99(answers) <= 5 * p99(idle) + 2 * quantile(late)
        assert after <= 1.05 * before
        assert await queue_is_empty(port)

    with stub_server(tmp_path, "--seconds", str(DOCUMENT_SECONDS), *STUBS[kind]) as server:
        drive(load(server.port))


async def queue_is_empty(port: int) -> bool:
    return [await metric(port, f"rankwright_queue_{what}") for what in ("documents", "requests")] == [0, 0]


def test_overload(tmp_path: Path) -> None:
    """Six times the capacity: 200, 429 or 503 for everybody, refusals within 50 ms, accepted ones within 1.3 times what
    the full queue takes, nine tenths of the capacity done meanwhile, and calm again within five seconds."""

    async def load(port: int) -> None:
        calm = await closed_loop(port, raw(0), 1, 2)
        full = await closed_loop(port, raw(0), 12, 3)
        capacity = len(full) / 3
        seconds = tries(60, 10)
        async with lag() as late:
            answers = await open_loop(port, raw, 6 * capacity, int(6 * capacity * seconds))
        found, noise = statuses(answers), quantile(late)
        bound = WAITING / DOCUMENTS / capacity
        print(
            f"S2: {found}, capacity {capacity:.1f}/s, refused p99 {p99(answers, 429):.4f} s, accepted p99 "
            f"{p99(answers):.3f} s for a queue of {bound:.3f} s, goodput {found[200] / seconds / capacity:.3f}, "
            f"lag {noise:.4f} s"
        )
        assert set(found) <= {200, 429, 503}
        assert found[429] > found[200] > 0
        assert p99(answers, 429) <= 0.050 + 2 * noise
        assert p99(answers) <= 1.3 * bound + 2 * noise
        assert found[200] / seconds >= 0.9 * capacity
        assert all(int(a.headers["retry-after"]) >= 1 for a in answers if a.status == 429)
        await asyncio.sleep(2)
        async with lag() as late:
            after = await closed_loop(port, raw(0), 1, 2)
        assert set(statuses(after)) == {200}
        assert p99(after) <= 2 * p99(calm) + 2 * quantile(late)

    options = ("--seconds", str(DOCUMENT_SECONDS), "--max-waiting", str(WAITING))
    with stub_server(tmp_path, *options) as server:
        drive(load(server.port))
