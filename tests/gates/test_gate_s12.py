"""Gates S12 and S15: bodies that are meant to harm cost no memory, no time, and nobody else anything."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.gates.mutants import Mutant
from tests.gates.sizes import tries
from tests.hostile_bodies import HOSTILE, HOSTILE_SCORE, HOSTILE_TEI
from tests.load_kit import (
    KEY,
    Answer,
    Line,
    body_of,
    closed_loop,
    drive,
    lag,
    p99,
    post,
    quantile,
    read_answer,
    resident,
    statuses,
    stub_server,
)

pytestmark = [pytest.mark.gates, pytest.mark.timeout(900)]

THIS = "tests/gates/test_gate_s12.py"
BODY, PROTOCOL, DIALECTS = "rankwright/server/body.py", "rankwright/server/protocol.py", "rankwright/server/dialects.py"
MIB = 2**20
MUTANTS = [
    Mutant(
        "S12",
        f"{THIS}::test_hostile_requests_cost_nothing",
        BODY,
        "            raise _too_large(limit)\n    return raw",
        "            pass\n    return raw",
    ),
    Mutant(
        "S12", f"{THIS}::test_hostile_requests_cost_nothing", PROTOCOL, "if self._chunks > MAX_CHUNKS:", "if False:"
    ),
    Mutant(
        "S15",
        f"{THIS}::test_hostile_bodies_are_refused_at_once",
        BODY,
        "catch_duplicate_keys=True",
        "catch_duplicate_keys=False",
    ),
    Mutant("S15", f"{THIS}::test_hostile_bodies_are_refused_at_once", BODY, "    _check(value)\n", ""),
    Mutant(
        "S15",
        f"{THIS}::test_hostile_bodies_are_refused_at_once",
        DIALECTS,
        "if len(ones) not in (1, len(others)):",
        "if False:",
    ),
    Mutant(
        "S15",
        f"{THIS}::test_hostile_bodies_are_refused_at_once",
        DIALECTS,
        "        _check_query(query, query_name, settings)\n",
        "        pass\n",
    ),
]
HEAD = f"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"


def million_chunks() -> bytes:
    return f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode() + b"1\r\n \r\n" * 1_000_000 + b"0\r\n\r\n"


def large() -> bytes:
    return f"{HEAD}Content-Length: {64 * MIB}\r\n\r\n".encode() + b" " * (64 * MIB)


def large_in_chunks() -> bytes:
    chunk = f"{MIB:x}\r\n".encode() + b" " * MIB + b"\r\n"
    return f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk * 64 + b"0\r\n\r\n"


def bomb() -> bytes:
    packed = gzip.compress(b"\0" * (64 * MIB)) * 16  # members that unpack to a gibibyte
    return f"{HEAD}Content-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode() + packed


def many_headers() -> bytes:
    more = "".join(f"X-Header-{i}: {i}\r\n" for i in range(10_000))
    return f"{HEAD}{more}Content-Length: 2\r\n\r\n{{}}".encode()


def long_header() -> bytes:
    return f"{HEAD}X-Long: {'x' * MIB}\r\nContent-Length: 2\r\n\r\n{{}}".encode()


KINDS: dict[str, tuple[Callable[[], bytes], set[int]]] = {
    "a million chunks": (million_chunks, {413}),
    "64 MiB": (large, {413}),
    "64 MiB in chunks": (large_in_chunks, {413}),
    "a gzip bomb": (bomb, {415}),
    "10,000 headers": (many_headers, {431}),
    "a long header": (long_header, {431}),
}


async def pour(port: int, raw: bytes) -> Answer:
    """Sends as much as is taken, reading all the while; what comes back, and how soon."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begun = time.monotonic()

    async def write() -> None:
        with suppress(OSError):
            for start in range(0, len(raw), 2**18):
                writer.write(raw[start : start + 2**18])
                await writer.drain()

    writing = asyncio.create_task(write())
    try:
        answer = await asyncio.wait_for(read_answer(reader), 30)
    except (OSError, asyncio.IncompleteReadError):
        answer = Answer(0, 0.0)
    answer.seconds = time.monotonic() - begun
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    writer.transport.abort()
    return answer


def test_hostile_requests_cost_nothing(tmp_path: Path) -> None:
    """Each is refused within a second, memory grows by at most 8 MiB after the first of each kind, and neighbours wait
    at most twice as long. One pause excuses nothing: the lag that is allowed for is a quantile of many."""
    raws = {name: (make(), wanted) for name, (make, wanted) in KINDS.items()}
    count = tries(102, 18)

    async def load(port: int) -> None:
        normal = post(body_of("question", 5))
        for raw, _ in raws.values():
            await pour(port, raw)
        calm = await closed_loop(port, normal, 2, 3)
        before = resident(server)
        slowest = dict.fromkeys(raws, 0.0)
        async with lag() as late:
            neighbours = asyncio.create_task(closed_loop(port, normal, 2, 0.2 * count))
            for name in itertools.islice(itertools.cycle(raws), count):
                raw, wanted = raws[name]
                answer = await pour(port, raw)
                assert answer.status in wanted, name
                slowest[name] = max(slowest[name], answer.seconds)
                await asyncio.sleep(0.05)
            found = await neighbours
        grown, noise = (resident(server) - before) / MIB, quantile(late)
        print(
            f"S12: {count} requests, {grown:.1f} MiB more, slowest {max(slowest.values()):.3f} s, neighbours' p99 "
            f"{p99(found):.4f} s, calm {p99(calm):.4f} s, lag {noise:.4f} s"
        )
        assert not {name: seconds for name, seconds in slowest.items() if seconds > 1.0 + 2 * noise}
        assert grown <= 8
        assert set(statuses(found)) == {200}
        assert p99(found) <= 2 * p99(calm) + 2 * noise

    with stub_server(tmp_path, "--seconds", "0.001") as server:
        drive(load(server.port))


BODIES = (
    (HOSTILE, ("/v1/rerank", "/rerank", "/v2/rerank")),
    (HOSTILE_TEI, ("/rerank",) * 3),
    (HOSTILE_SCORE, ("/score",) * 3),
)


def test_hostile_bodies_are_refused_at_once(tmp_path: Path) -> None:
    """S15: the right status for each, within 100 ms, on a connection that goes on. Each is sent three times and the
    fastest answer counts: other work on the machine only adds."""

    async def load(port: int) -> None:
        line = Line(port)
        assert (await line.send(post(body_of("question", 5)))).status == 200
        slow: dict[str, float] = {}
        async with lag() as late:
            for bodies, paths in BODIES:
                for name, (status, body) in bodies.items():
                    answers = [await line.send(post(body, path)) for path in paths]
                    assert [answer.status for answer in answers] == [status] * len(paths), f"{name}, {paths[0]}"
                    slow[f"{name}, {paths[0]}"] = min(answer.seconds for answer in answers)
        worst = max(slow, key=lambda name: slow[name])
        print(f"S15: {len(slow)} bodies, slowest '{worst}' {slow[worst]:.3f} s, lag {quantile(late):.4f} s")
        assert slow[worst] <= 0.100 + 2 * quantile(late)

    with stub_server(tmp_path) as server:
        drive(load(server.port))
