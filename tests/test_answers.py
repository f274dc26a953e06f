"""Questions to a reader whose clients leave, or who is too slow: what becomes of them at /answer, and when a server
ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from rankwright.engine import Engine
from rankwright.errors import ReaderError, TooManyPassagesError
from rankwright.server.answers import ServedReader
from rankwright.server.app import create_app
from rankwright.server.settings import ServerSettings
from rankwright.types import Answer, Context, Reader, ReadResult
from tests.load_kit import post, process_of, stub_server
from tests.server_kit import KEY, asked_of, posted
from tests.stub_scorer import StubScorer


class SlowReader:
    """Reads until it is let go; knows what it was asked, and how much of it at once."""

    name = "slow"

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked: list[str] = []
        self.now = self.most = 0
        self._lock = threading.Lock()

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        with self._lock:
            self.asked.append(contexts[0].query.text)
            self.now += 1
            self.most = max(self.most, self.now)
        self.go.wait(30)
        with self._lock:
            self.now -= 1
        return [Answer("done")]


class Desk:
    """A server over a slow reader, in the test's own event loop."""

    def __init__(self, at_once: int, timeout: float) -> None:
        self.reader = SlowReader()
        self.app = app_over(self.reader, at_once, timeout)

    @property
    def reading(self) -> int:
        return self.app.state.answers.reading

    def ask(self, question: str, leaves: asyncio.Event | None = None) -> asyncio.Task[int]:
        body = {"query": question, "documents": ["a wall"]}
        return asyncio.create_task(asked_of(self.app, "/answer", body, leaves))

    async def free(self) -> None:
        """Lets the reader go, and waits until it has nothing left to read."""
        self.reader.go.set()
        await until(lambda: self.reading == 0)


def app_over(reader: Reader, at_once: int, timeout: float = 30.0) -> FastAPI:
    engine = Engine(lambda: {"stub": StubScorer()})  # never started: nothing is scored here
    settings = ServerSettings(keys=(KEY,), timeout=timeout)
    return create_app(engine, settings, reader=ServedReader(reader, at_once=at_once))


async def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


@asynccontextmanager
async def desk(at_once: int, timeout: float = 20.0) -> AsyncIterator[Desk]:
    at = Desk(at_once, timeout)
    try:
        yield at
    finally:
        await at.free()


def test_a_reader_never_reads_more_at_once_than_it_may_though_nobody_waits_for_it_any_more() -> None:
    async def asked() -> None:
        async with desk(at_once=2, timeout=1.0) as at:
            first = [at.ask(f"first {i}") for i in range(4)]
            assert await asyncio.gather(*first) == [504] * 4
            assert at.reading == 2  # it goes on, and nothing can stop it
            assert await at.ask("second") == 504  # no place was free
            assert sorted(at.reader.asked) == ["first 0", "first 1"]  # what waited was called off
            await at.free()
            assert await at.ask("third") == 200
            assert (at.reader.asked[2:], at.reader.most) == (["third"], 2)

    asyncio.run(asked())


def test_clients_that_leave_are_not_asked_for_and_their_place_is_free_when_the_reader_is_done() -> None:
    async def asked() -> None:
        async with desk(at_once=1) as at:
            leaves = asyncio.Event()
            first = at.ask("first", leaves)
            await until(lambda: at.reader.asked == ["first"])
            second = at.ask("second", leaves)
            leaves.set()
            assert await asyncio.gather(first, second) == [0, 0]
            third = at.ask("third")
            await asyncio.sleep(0.05)
            assert (third.done(), at.reader.asked) == (False, ["first"])
            at.reader.go.set()
            assert await third == 200
            assert (at.reader.asked, at.reader.most) == (["first", "third"], 1)

    asyncio.run(asked())


def test_a_place_that_nobody_waits_for_counts_where_more_is_asked_than_may_wait() -> None:
    async def asked() -> None:
        async with desk(at_once=1) as at:
            leaves = asyncio.Event()
            first = at.ask("first", leaves)
            await until(lambda: at.reader.asked == ["first"])
            leaves.set()
            assert await first == 0
            more = [at.ask("more") for _ in range(3)]
            await until(lambda: sum(task.done() for task in more) == 2)
            at.reader.go.set()
            assert sorted(await asyncio.gather(*more)) == [200, 429, 429]

    asyncio.run(asked())


class FailingReader:
    name = "fails"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status"), [(ReaderError("The key secret-4711 was refused."), 502), (KeyError("secret-4711"), 500)]
)
def test_a_reader_that_raises_gives_its_place_back_and_only_the_log_says_why(
    error: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    app = app_over(FailingReader(error), at_once=1)
    with TestClient(app, "http://localhost", raise_server_exceptions=False, headers=headers) as at:  # one event loop
        answers = [posted(at, "/answer", {"query": "why?", "documents": ["a wall"]}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [status] * 3
    assert not [answer.text for answer in answers if "secret-4711" in answer.text]
    assert "secret-4711" in caplog.text
    assert app.state.answers.reading == 0


def test_more_passages_than_the_reader_reads_are_a_fault_of_the_request() -> None:
    app = app_over(FailingReader(TooManyPassagesError("31 passages; wanted at most 30.")), at_once=1)
    with TestClient(app, "http://localhost", headers={"Authorization": f"Bearer {KEY}"}) as at:
        answers = [posted(at, "/answer", {"query": "why?", "documents": ["a wall"]}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [422] * 3
    assert answers[0].json()["error"]["message"] == "31 passages; wanted at most 30."


def test_a_place_is_free_again_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> NoReturn:
        raise RuntimeError("can't start new thread")

    headers = {"Authorization": f"Bearer {KEY}"}
    app = app_over(SlowReader(), at_once=1)
    with TestClient(app, "http://localhost", raise_server_exceptions=False, headers=headers) as at:
        monkeypatch.setattr("rankwright.server.answers._in_thread", none_left)
        answers = [posted(at, "/answer", {"query": "why?", "documents": ["a wall"]}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [500] * 3
    assert app.state.answers.reading == 0


def test_a_server_ends_in_its_time_though_its_reader_hangs(tmp_path: Path) -> None:
    with stub_server(tmp_path, "--reader", "--drain", "1") as server:
        (tmp_path / "mode").write_text("hang 60")
        with socket.create_connection(("127.0.0.1", server.port), 30) as client:
            client.sendall(post(b'{"query": "why?", "documents": ["a wall"]}', "/answer"))
            time.sleep(0.5)  # the reader has it by then; a question that came too late would be refused as quickly
            process_of(server).send_signal(signal.SIGTERM)
            begun = time.monotonic()
            assert b" 503 " in client.recv(65_536)
            assert process_of(server).wait(30) == 0
            assert time.monotonic() - begun < 20  # a second for its last requests, and what a busy machine adds
