"""Gates S5 and S6: what clients do who leave, and models that fail, costs nobody else anything."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.gates.mutants import Mutant
from tests.gates.sizes import tries
from tests.load_kit import (
    Answer,
    Line,
    body_of,
    drive,
    get,
    metric,
    open_files,
    post,
    process_of,
    statuses,
    stub_server,
    until,
)

pytestmark = [pytest.mark.gates, pytest.mark.timeout(600)]

THIS = "tests/gates/test_gate_s5.py"
APP, ENGINE = "rankwright/server/app.py", "rankwright/engine.py"
LEAVING = f"{THIS}::test_clients_that_leave_are_not_worked_for"
MUTANTS = [
    Mutant("S5", LEAVING, APP, "            left.cancel()\n            reply.cancel()", "            left.cancel()"),
    Mutant("S6", f"{THIS}::test_a_failing_model", ENGINE, 'self._trouble = "the model failed, and is tried"', "pass"),
    Mutant("S6", f"{THIS}::test_a_dying_thread", ENGINE, "lost=not self._closed)", "lost=False)"),
    Mutant("S7", f"{THIS}::test_a_hanging_model", ENGINE, "if busy > self.settings.patience:", "if False:"),
]


def batches(folder: Path) -> list[float]:
    """When the batches of the stub began."""
    return [float(line.split()[0]) for line in (folder / "ledger").read_text().splitlines()]


async def leave(port: int, raw: bytes, gone: asyncio.Event) -> None:
    """A client that sends a request and leaves before it is answered."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(raw)
    await writer.drain()
    await gone.wait()
    writer.transport.abort()


def test_clients_that_leave_are_not_worked_for(tmp_path: Path) -> None:
    """200 clients leave in the middle: at most two more batches begin, the queue is empty within a second, and no
    connection, request or thread is left."""
    clients = 200

    async def load(port: int) -> None:
        await Line(port).send(post(body_of("first", 1)))
        before = open_files(server)
        gone = asyncio.Event()
        tasks = [asyncio.create_task(leave(port, post(body_of(f"q{i}", 8)), gone)) for i in range(clients)]

        async def all_wait() -> bool:
            return await metric(port, "rankwright_queue_requests") > clients - 20

        await until(all_wait, 20)
        gone.set()
        await asyncio.gather(*tasks)
        left_at = time.monotonic()

        async def queue_is_empty() -> bool:
            return await metric(port, "rankwright_queue_documents") == 0

        seconds = await until(queue_is_empty, 5)
        further = [begun for begun in batches(tmp_path) if begun > left_at]
        print(f"S5: the queue was empty after {seconds:.3f} s; {len(further)} more batches")
        assert seconds <= 1.0
        assert len(further) <= 2
        answered = await metric(port, 'rankwright_requests_total{code="200",route="/v1/rerank"}')
        left = await metric(port, 'rankwright_requests_total{code="499",route="/v1/rerank"}')
        assert answered + left == clients + 1

        async def descriptors_are_back() -> bool:
            return open_files(server) <= before + 1

        await until(descriptors_are_back, 5)
        assert (await Line(port).send(post(body_of("after", 3)))).status == 200

    # 1,600 documents of 20 ms are 32 s of work, of which a batch of eight is 0.16 s.
    with stub_server(tmp_path, "--seconds", "0.02", "--batch-documents", "8", "--timeout", "60") as server:
        drive(load(server.port))


async def answers_within(port: int, count: int, seconds: float) -> list[Answer]:
    """So many requests at once; an AssertionError where one is not answered in time."""
    lines = [Line(port) for _ in range(count)]
    asked = [line.send(post(body_of(f"q{i}", 5))) for i, line in enumerate(lines)]
    answers = await asyncio.wait_for(asyncio.gather(*asked), seconds)
    return answers


async def is_ready(port: int) -> int:
    line = Line(port)
    answer = await line.send(get("/ready"))
    line.close()
    return answer.status


def test_a_failing_model(tmp_path: Path) -> None:
    """The model raises on everything, again and again: who waits is answered within a second, /ready says no within
    one, and once the model is well the server is, within ten. No request hangs."""

    async def load(port: int) -> None:
        async def not_ready() -> bool:
            return await is_ready(port) == 503

        async def ready() -> bool:
            return await is_ready(port) == 200

        for _ in range(tries(20, 4)):
            (tmp_path / "mode").write_text("raise")
            answers = await answers_within(port, 5, 2.0)
            assert set(statuses(answers)) <= {500, 503}
            assert max(answer.seconds for answer in answers) <= 1.0
            await until(not_ready, 1.0)
            refused = await answers_within(port, 1, 1.0)
            assert refused[0].status == 503
            assert "retry-after" in refused[0].headers
            (tmp_path / "mode").write_text("well")
            await until(ready, 10.0)
            assert set(statuses(await answers_within(port, 5, 5.0))) == {200}

    with stub_server(tmp_path) as server:
        drive(load(server.port))


@pytest.mark.parametrize("mode", ["die", "raise"])
def test_a_dying_thread(tmp_path: Path, mode: str) -> None:
    """The scoring thread dies, or fails for good: who waits is answered within a second, and the process ends by itself
    within ten, with a code that is not 0."""

    async def load(port: int) -> None:
        (tmp_path / "mode").write_text(mode)
        answers = await answers_within(port, 5, 2.0)
        assert set(statuses(answers)) <= {500, 503}

    with stub_server(tmp_path) as server:
        drive(load(server.port))
        begun = time.monotonic()
        code = process_of(server).wait(15)
        assert time.monotonic() - begun <= 10
        assert code == 6


def test_a_hanging_model(tmp_path: Path) -> None:
    """S7: the model hangs: /ready says no within five seconds while /live says yes, who waits gets 504 at the deadline,
    and the process gives up in the end, with a code that is not 0."""

    async def load(port: int) -> None:
        async def not_ready() -> bool:
            return await is_ready(port) == 503

        (tmp_path / "mode").write_text("hang 600")
        asked = asyncio.create_task(answers_within(port, 3, 10.0))
        await until(not_ready, 5.0)
        line = Line(port)
        assert (await line.send(get("/live"))).status == 200
        line.close()
        answers = await asked
        assert set(statuses(answers)) == {504}
        assert max(answer.seconds for answer in answers) <= 6.0 + 1.0

    with stub_server(tmp_path, "--timeout", "6", "--give-up", "8", "--drain", "1") as server:
        drive(load(server.port))
        assert process_of(server).wait(20) == 6
