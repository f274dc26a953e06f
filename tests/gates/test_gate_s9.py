"""Gate S9: a server that is told to end answers what it admitted, refuses the rest, and ends."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from tests.gates.mutants import Mutant
from tests.gates.sizes import tries
from tests.load_kit import STUBS, Line, body_of, drive, metric, post, process_of, statuses, stub_server, until

pytestmark = [pytest.mark.gates, pytest.mark.timeout(900)]

THIS = "tests/gates/test_gate_s9.py"
RUN = "rankwright/server/run.py"
CAP = "timeout_graceful_shutdown=max(1, round(settings.drain))"
ADMITTED = f"{THIS}::test_admitted_requests_are_answered[whole]"
MUTANTS = [
    Mutant("S9", ADMITTED, RUN, CAP, "timeout_graceful_shutdown=0"),
    Mutant("S9", ADMITTED, RUN, "self._captured_signals.clear()", "pass"),
    Mutant(
        "S9",
        f"{THIS}::test_stuck_requests_and_idle_connections_do_not_keep_it",
        RUN,
        CAP,
        "timeout_graceful_shutdown=None",
    ),
]
CLIENTS = 50


@pytest.mark.parametrize("kind", STUBS)
def test_admitted_requests_are_answered(tmp_path: Path, kind: str) -> None:
    """SIGTERM with fifty in flight, none of them scored: all are answered with 200, a new connection is refused, and
    the process ends with 0 within ten seconds of the signal."""

    async def load(port: int, mode: Path) -> float:
        mode.write_text("hold")
        lines = [Line(port) for _ in range(CLIENTS)]
        asked = [asyncio.create_task(line.send(post(body_of(f"q{i}", 20)))) for i, line in enumerate(lines)]

        async def all_wait() -> bool:
            return await metric(port, "rankwright_queue_requests") == CLIENTS

        await until(all_wait, 20)
        signalled = time.monotonic()
        process_of(server).send_signal(signal.SIGTERM)
        mode.write_text("well")
        await asyncio.sleep(0.4)
        late = await Line(port).send(post(body_of("late", 1)))
        assert late.status in (0, 503)
        assert statuses(await asyncio.gather(*asked)) == {200: CLIENTS}
        return signalled

    for number in range(tries(20, 2)):
        folder = tmp_path / str(number)
        with stub_server(folder, "--seconds", "0.004", *STUBS[kind]) as server:
            signalled = drive(load(server.port, folder / "mode"))
            code = process_of(server).wait(15)
            seconds = time.monotonic() - signalled
            print(f"S9, {kind}: ended with {code}, {seconds:.2f} s after the signal")
            assert code == 0, server.logs[-1].read_text()
            assert seconds <= 10


def test_stuck_requests_and_idle_connections_do_not_keep_it(tmp_path: Path) -> None:
    """A hundred idle connections and five requests on a model that hangs: the process ends at its hard cap."""
    drain = 3

    async def load(port: int) -> None:
        idle = [Line(port) for _ in range(100)]
        await asyncio.gather(*[line.send(post(b"{}")) for line in idle])
        (tmp_path / "mode").write_text("hang 600")
        stuck = [asyncio.create_task(Line(port).send(post(body_of(f"q{i}", 2)))) for i in range(5)]

        async def all_wait() -> bool:
            return await metric(port, "rankwright_queue_requests") == 5

        await until(all_wait, 20)
        begun = time.monotonic()
        process_of(server).send_signal(signal.SIGTERM)
        answers = await asyncio.gather(*stuck)
        assert set(statuses(answers)) <= {503, 504}
        process_of(server).wait(drain + 6)
        assert time.monotonic() - begun <= drain + 4

    with stub_server(tmp_path, "--drain", str(drain)) as server:
        drive(load(server.port))
