"""Gates S5 and S6: what clients do who leave, and models that fail, costs nobody else anything."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.gates.mutants import Mutant
from tests.gates.sizes import tries
from tests.load_kit import (
    STUBS,
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
    threads,
    until,
)

pytestmark = [pytest.mark.gates, pytest.mark.timeout(600)]

THIS = "tests/gates/test_gate_s5.py"
APP, ENGINE = "rankwright/server/app.py", "rankwright/engine.py"
LEAVING = f"{THIS}::test_clients_that_leave_are_not_worked_for[whole]"
WHOLE, HALVES = (f"{THIS}::test_a_failing_model[{kind}]" for kind in STUBS)
FORGOTTEN = "        job.future.add_done_callback(lambda _: self._forget(job))\n"
TIMED = "        threading.Timer(job.deadline - now, self._expire).start()\n"
CAUGHT = "except Exception:  # no score comes of it"
WRONG_NUMBER = """\
    if [len(scored.scores) for scored in found] != [len(places) for _, _, places, _ in asked]:
        raise ScorerError(f"Model '{scorer.name}' gave another number of scores than it was given documents.")
    return [
        _Row(job, place, score, tokens, cut or place in short)
        for scored, (_, short, places, job) in zip(found, asked, strict=True)
        for place, score, tokens, cut in zip(places, scored.scores, scored.tokens, scored.cut, strict=True)
    ]
"""
ANY_NUMBER = WRONG_NUMBER[WRONG_NUMBER.index("    return") :].replace("strict=True", "strict=False")
MUTANTS = [
    Mutant("S5", LEAVING, APP, "            left.cancel()\n            reply.cancel()", "            left.cancel()"),
    # A timer for every request, which stays when its client has left.
    Mutant("S5", LEAVING, ENGINE, FORGOTTEN, TIMED + FORGOTTEN),
    Mutant("S6", WHOLE, ENGINE, 'self._trouble = "the model failed, and is tried"', "pass"),
    Mutant("S6", WHOLE, ENGINE, 'self._trouble = "the engine failed, and is tried"', "pass"),
    Mutant("S6", WHOLE, ENGINE, "self._mend(list(self.scorers))", 'self._trouble = ""'),
    Mutant("S6", WHOLE, ENGINE, WRONG_NUMBER, ANY_NUMBER),
    Mutant("S6", HALVES, ENGINE, CAUGHT, CAUGHT.replace("Exception", "KeyError")),
    Mutant("S6", f"{THIS}::test_a_dying_thread", ENGINE, "lost=not self._closed.is_set())", "lost=False)"),
    Mutant("S7", f"{THIS}::test_a_hanging_model", ENGINE, "if busy > self.settings.patience:", "if False:"),
    Mutant("S7", f"{THIS}::test_a_hanging_model", ENGINE, ', ("tokenising", self._tokenising_since)):', ",):"),
]
FAULTS = {
    "whole": ("raise", "short", "raise in batching"),
    "halves": ("raise in tokenising", "raise", "short", "raise in batching"),
}
"""The mode of the stub in tests/stub_scorer.py."""


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


@pytest.mark.parametrize("kind", STUBS)
def test_clients_that_leave_are_not_worked_for(tmp_path: Path, kind: str) -> None:
    """200 clients leave in the middle: at most two more batches begin, the queue is empty within a second, and no
    connection, request or thread is left."""
    clients = 200

    async def load(port: int) -> None:
        await Line(port).send(post(body_of("first", 1)))
        files, before = open_files(server), threads(server)
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

        async def nothing_is_left() -> bool:
            return open_files(server) <= files + 1 and threads(server) <= before

        await until(nothing_is_left, 5)
        assert (await Line(port).send(post(body_of("after", 3)))).status == 200

    # 1,600 documents of 20 ms are 32 s of work, of which a batch of eight is 0.16 s.
    options = ("--seconds", "0.02", "--batch-documents", "8", "--timeout", "60", *STUBS[kind])
    with stub_server(tmp_path, *options) as server:
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


@pytest.mark.parametrize("kind", STUBS)
def test_a_failing_model(tmp_path: Path, kind: str) -> None:
    """Tokenising, the model, what is made of its scores, and the engine's own batching fail on everything, again and
    again: who waits is answered within a second, /ready says no within one, and once all is well the server is, within
    ten. No request hangs."""

    async def load(port: int) -> None:
        async def not_ready() -> bool:
            return await is_ready(port) == 503

        async def ready() -> bool:
            return await is_ready(port) == 200

        async def fail(fault: str) -> None:
            (tmp_path / "mode").write_text(fault)
            answers = await answers_within(port, 5, 2.0)
            assert set(statuses(answers)) <= {500, 503}, fault
            assert max(answer.seconds for answer in answers) <= 1.0, fault
            await until(not_ready, 1.0)
            refused = await answers_within(port, 1, 1.0)
            assert refused[0].status == 503
            assert "retry-after" in refused[0].headers
            (tmp_path / "mode").write_text("well")
            await until(ready, 10.0)
            assert set(statuses(await answers_within(port, 5, 5.0))) == {200}, fault

        for _ in range(tries(20, 2)):
            for fault in FAULTS[kind]:
                await fail(fault)

    with stub_server(tmp_path, *STUBS[kind]) as server:
        drive(load(server.port))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("whole", "die"), ("whole", "raise"), ("whole", "raise in batching"), ("halves", "die in tokenising")],
)
def test_a_dying_thread(tmp_path: Path, kind: str, mode: str) -> None:
    """A thread of the engine dies, or fails for good: who waits is answered within a second, and the process ends by
    itself within ten, with a code that is not 0."""

    async def load(port: int) -> None:
        (tmp_path / "mode").write_text(mode)
        answers = await answers_within(port, 5, 2.0)
        assert set(statuses(answers)) <= {500, 503}
        assert max(answer.seconds for answer in answers) <= 1.0

    with stub_server(tmp_path, *STUBS[kind]) as server:
        begun = time.monotonic()
        drive(load(server.port))
        code = process_of(server).wait(15)
        seconds = time.monotonic() - begun
        print(f"S6, {mode}: ended with {code} after {seconds:.2f} s")
        assert seconds <= 10
        assert code == 6


@pytest.mark.parametrize(("kind", "mode"), [("whole", "hang 600"), ("halves", "hang 600 in tokenising")])
def test_a_hanging_model(tmp_path: Path, kind: str, mode: str) -> None:
    """S7: a half of the model hangs: /ready says no within five seconds while /live says yes, who waits gets 504 at the
    deadline, and the process gives up in the end, with a code that is not 0."""

    async def load(port: int) -> None:
        async def not_ready() -> bool:
            return await is_ready(port) == 503

        (tmp_path / "mode").write_text(mode)
        asked = asyncio.create_task(answers_within(port, 3, 10.0))
        await until(not_ready, 5.0)
        line = Line(port)
        assert (await line.send(get("/live"))).status == 200
        line.close()
        answers = await asked
        assert set(statuses(answers)) == {504}
        assert max(answer.seconds for answer in answers) <= 6.0 + 1.0

    with stub_server(tmp_path, "--timeout", "6", "--give-up", "8", "--drain", "1", *STUBS[kind]) as server:
        drive(load(server.port))
        assert process_of(server).wait(20) == 6
