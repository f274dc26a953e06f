"""Load on a real server process: a small HTTP client over raw connections, open and closed loops, and what the machine
itself adds to every time that is measured here.

Other work disturbs times. `lag` says how late this process' own event loop was meanwhile; bounds add it twice, for a
request and for its answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tests.served import Served

KEY = "key-of-the-gates"
ROOT = Path(__file__).resolve().parent.parent
STUBS = {"whole": (), "halves": ("--halves",)}
"""Kinds of stub, and the options of its server: asked once, or with a half that tokenises in a thread of its own."""


def stub_server(folder: Path, *options: str, key: str = KEY, **environment: str) -> Served:
    """The stub's server (tests/stub_scorer.py) as a process; its mode and ledger lie in the folder."""
    folder.mkdir(parents=True, exist_ok=True)

    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "tests.stub_scorer", str(folder), "--port", str(port), *options]

    more = {"PYTHONPATH": str(ROOT), "RANKWRIGHT_API_KEY": key, **environment}
    return Served(command, folder, "/ready", more)


def process_of(server: Served) -> Any:
    """The running process."""
    assert server._process is not None
    return server._process


def resident(server: Served) -> int:
    """Bytes of memory that the process holds."""
    fields = Path(f"/proc/{process_of(server).pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(server: Served) -> int:
    """How many descriptors it has open."""
    return len(os.listdir(f"/proc/{process_of(server).pid}/fd"))  # noqa: PTH208 - names only


def threads(server: Served) -> int:
    """How many threads it has."""
    return len(os.listdir(f"/proc/{process_of(server).pid}/task"))  # noqa: PTH208 - names only


def body_of(query: str, count: int, words: int = 3) -> bytes:
    """A request of so many documents."""
    documents = [f"{query} {i} " + "word " * words for i in range(count)]
    return json.dumps({"query": query, "documents": documents, "return_documents": False}).encode()


@dataclass
class Answer:
    """What came back; status 0 where the connection failed."""

    status: int
    seconds: float
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        return json.loads(self.body)


class Line:
    """One connection, kept open until `drive` ends at the latest."""

    every: ClassVar[list[Line]] = []

    def __init__(self, port: int) -> None:
        self._port = port
        self.every.append(self)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, raw: bytes) -> Answer:
        """Sends a whole request and reads its answer."""
        begun = time.monotonic()
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(raw)
            answer = await read_answer(reader)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            self.close()
            return Answer(0, time.monotonic() - begun)
        if answer.headers.get("connection") == "close":
            self.close()
        answer.seconds = time.monotonic() - begun
        return answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


T = TypeVar("T")


def drive(work: Coroutine[Any, Any, T]) -> T:
    """Runs a test's work and closes its connections."""

    async def driven() -> T:
        try:
            return await work
        finally:
            for line in Line.every:
                line.close()
            Line.every.clear()
            await asyncio.sleep(0.02)  # what was closed is gone in the loop's next turn

    return asyncio.run(driven())


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Status, headers and body of a response with a length."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Answer(int(head[0].split()[1]), 0.0, body, headers)


def post(body: bytes, path: str = "/v1/rerank", key: str = KEY, *more: str) -> bytes:
    """The bytes of a request."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {key}", *more]
    lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def get(path: str, key: str = KEY) -> bytes:
    """The bytes of a request without a body."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n".encode()


class Pool:
    """As many connections as are needed at once."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[Line] = []

    async def send(self, raw: bytes) -> Answer:
        line = self._free.pop() if self._free else Line(self._port)
        answer = await line.send(raw)
        self._free.append(line)
        return answer

    def close(self) -> None:
        for line in self._free:
            line.close()


async def open_loop(port: int, raw: Callable[[int], bytes], rate: float, count: int) -> list[Answer]:
    """Requests at a constant rate, whether or not earlier ones were answered."""
    pool, begun = Pool(port), time.monotonic()
    tasks: list[asyncio.Task[Answer]] = []
    for i in range(count):
        await asyncio.sleep(max(0.0, begun + i / rate - time.monotonic()))
        tasks.append(asyncio.create_task(pool.send(raw(i))))
    answers = await asyncio.gather(*tasks)
    pool.close()
    return answers


async def closed_loop(port: int, raw: bytes, clients: int, seconds: float) -> list[Answer]:
    """So many clients, each asking again when it was answered."""
    end = time.monotonic() + seconds

    async def ask() -> list[Answer]:
        line, answers = Line(port), []
        while time.monotonic() < end:
            answers.append(await line.send(raw))
        line.close()
        return answers

    return [answer for answers in await asyncio.gather(*[ask() for _ in range(clients)]) for answer in answers]


def quantile(seconds: Iterable[float], share: float = 0.99) -> float:
    """The smallest value that is not below this share of all."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def p99(answers: Sequence[Answer], status: int = 200) -> float:
    """Of those with the status."""
    return quantile([answer.seconds for answer in answers if answer.status == status])


def statuses(answers: Sequence[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)


@asynccontextmanager
async def lag() -> AsyncIterator[list[float]]:
    """Collects how late this process' event loop wakes up: what the machine adds to any time measured in it."""
    late: list[float] = [0.0]

    async def watch() -> None:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.005)
            late.append(time.monotonic() - begun - 0.005)

    task = asyncio.create_task(watch())
    try:
        yield late
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(true: Callable[[], Awaitable[bool]], seconds: float) -> float:
    """Seconds until it is true; an AssertionError where it does not become so in time."""
    begun = time.monotonic()
    while not await true():
        assert time.monotonic() < begun + seconds, f"not within {seconds} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - begun


async def metric(port: int, name: str) -> float:
    """A value of /metrics; 0 where it is not there yet."""
    line = Line(port)
    answer = await line.send(get("/metrics"))
    line.close()
    for row in answer.body.decode().splitlines():
        if row.startswith(f"{name} "):
            return float(row.rsplit(" ", 1)[1])
    return 0.0
