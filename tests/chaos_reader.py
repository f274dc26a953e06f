"""A real OpenAI-compatible server on loopback that misbehaves as told, and writes down every request it saw.

    with ChaosReader({"q1": ["429-seconds", "ok"], "q2": ["html"] * 9}) as server:
        HTTPLLM("m", server.base_url).complete(...)
    assert [seen.fault for seen in server.ledger] == ...

A question without a script, and one whose script is used up, is answered with "answer to QUESTION".

    with reader_apart({"q1": ["hang"]}) as address:     # in a process of its own

    ChaosReader(tokens=lambda question: [{"yes": -0.1, "no": -2.3}])

answers requests for log probabilities with these tokens, the first of each position being the one written; without
`tokens` it drops them without a word, as some servers do. It is a stub; the real one is
tests/gates/test_llama_server.py.

It speaks both dialects, /v1/chat/completions and /v1/completions.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True)
class Seen:
    """One request as it came in."""

    question: str
    fault: str
    path: str
    authorization: str
    body: dict[str, Any]
    at: float
    """When, by the clock `time.monotonic`."""


Tokens = Callable[[str], Sequence[Mapping[str, float]]]
"""Question -> for each token of the answer, itself and others with their log probabilities."""


class ChaosReader:
    """Runs in its own thread between `with` and the end of the block."""

    def __init__(
        self,
        script: Mapping[str, Sequence[str]] | None = None,
        *,
        seconds: float = 0.0,
        redirect_to: str = "",
        tokens: Tokens | None = None,
    ):
        self._tokens = tokens
        self.script(script or {})
        self._seconds = seconds
        self.redirect_to = redirect_to
        self.ledger: list[Seen] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.hanging = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> ChaosReader:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def script(self, faults: Mapping[str, Sequence[str]]) -> None:
        """What it does from now on, for scripts that can only be written when its address is known."""
        self._script = {question: list(found) for question, found in faults.items()}

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def count(self, fault: str = "ok") -> Counter[str]:
        """How often each question met this fault."""
        return Counter(seen.question for seen in self.ledger if seen.fault == fault)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._answer(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            seen = self._seen(await reader.readuntil(b"\r\n\r\n"), reader)
            await self._misbehave(await seen, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left first: deadlines and Ctrl-C do that
        finally:
            self.in_flight -= 1
            writer.close()

    async def _seen(self, head: bytes, reader: asyncio.StreamReader) -> Seen:
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        question = body["messages"][-1]["content"] if "messages" in body else body["prompt"].split("\n\n")[-1]
        faults = self._script.get(question, [])
        seen = Seen(
            question,
            faults.pop(0) if faults else "ok",
            first.split()[1],
            headers.get("authorization", ""),
            body,
            time.monotonic(),
        )
        self.ledger.append(seen)
        return seen

    async def _misbehave(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self._seconds)
        fault = FAULTS.get(seen.fault) or LOGPROB_FAULTS[seen.fault]
        if seen.fault == "ok" and self._tokens and seen.body.get("logprobs") is not None:
            fault = with_logprobs(self._tokens(seen.question), seen.body)
        await fault(self, seen, writer)


@contextmanager
def reader_apart(script: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The address of one in a process of its own, which takes no time from its client's; nobody sees its ledger."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_apart, args=(script, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours.recv()
    finally:
        ours.close()
        process.join(20)


def _serve_apart(script: Mapping[str, Sequence[str]], mouth: Connection) -> None:
    """Until the other end is closed."""
    with ChaosReader(script) as server, suppress(EOFError):
        mouth.send(server.base_url)
        mouth.recv()


Fault = Callable[[ChaosReader, Seen, asyncio.StreamWriter], Awaitable[None]]


def completion(question: str, **changes: Any) -> dict[str, Any]:
    """A good body, with some of its choice or message changed."""
    message = {"role": "assistant", "content": f"answer to {question}"}
    message.update({name: changes[name] for name in ("content", "refusal") if name in changes})
    choice = {"index": 0, "message": message, "finish_reason": changes.get("finish_reason", "stop")}
    choice |= {name: changes[name] for name in changes if name == "logprobs"}
    usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}


def answered(seen: Seen, **changes: Any) -> dict[str, Any]:
    """A good body in the dialect of the request, with some of its choice or message changed."""
    body = completion(seen.question, **changes)
    return body if seen.path.endswith("/chat/completions") else as_text_completion(body)


def as_text_completion(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body of the chat dialect in that of completions, which knows no refusals."""
    (choice,) = body["choices"]
    changed = {name: value for name, value in choice.items() if name != "message"}
    return {**body, "object": "text_completion", "choices": [{**changed, "text": choice["message"]["content"]}]}


def http(status: int, body: bytes, headers: Mapping[str, str] | None = None, length: int | None = None) -> bytes:
    """The bytes of a response."""
    lines = [f"HTTP/1.1 {status} Chaos", f"content-length: {len(body) if length is None else length}"]
    lines += ["content-type: application/json", "connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def reply(status: int, body: Any, **headers: str) -> Fault:
    """A fault that is a whole response; `{question}` in a completion is filled in by `good`."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def fault(server: ChaosReader, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(http(status, raw, {name.replace("_", "-"): value for name, value in headers.items()}))

    return fault


def good(**changes: Any) -> Fault:
    """A completion, changed."""

    async def fault(server: ChaosReader, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(http(200, json.dumps(answered(seen, **changes)).encode()))

    return fault


def said(tokens: Mapping[str, float], top: int) -> dict[str, Any]:
    """One position of OpenAI's `logprobs.content`; the first token is the one written."""
    entries = [{"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in tokens.items()]
    return {**entries[0], "top_logprobs": sorted(entries, key=lambda entry: -entry["logprob"])[:top]}


def said_in_columns(tokens: Sequence[Mapping[str, float]], top: int) -> dict[str, Any]:
    """All positions in the form of completions, where the token written is among its alternatives."""
    written = [next(iter(position)) for position in tokens]
    likeliest = [sorted(position, key=lambda token: -position[token])[:top] for position in tokens]
    rows = list(zip(written, tokens, likeliest, strict=True))
    return {
        "tokens": written,
        "token_logprobs": [position[token] for token, position, _ in rows],
        "top_logprobs": [{name: position[name] for name in (*best, token)} for token, position, best in rows],
        "text_offset": [0] * len(tokens),
    }


def with_logprobs(tokens: Sequence[Mapping[str, float]], body: Mapping[str, Any]) -> Fault:
    """A completion that says these tokens, cut where the request's tokens end."""
    kept = tokens[: body.get("max_tokens")]
    text = "".join(next(iter(position)) for position in kept)
    ending = "stop" if len(kept) == len(tokens) and len(kept) < body.get("max_tokens", 99) else "length"
    if "prompt" in body:
        return good(content=text, finish_reason=ending, logprobs=said_in_columns(kept, body["logprobs"]))
    content = [said(position, body.get("top_logprobs", 0)) for position in kept]
    return good(content=text, finish_reason=ending, logprobs={"content": content})


def error(code: str = "", kind: str = "server_error", message: str = "something went wrong") -> dict[str, Any]:
    """An error body as OpenAI writes it."""
    return {"error": {"message": message, "type": kind, "code": code or None}}


DATE_AHEAD = 1.5
"""Seconds to the date of 429-date, of which whole ones are named: half a second is left at the least, so that whoever
does not wait comes too early."""


async def retry_date(server: ChaosReader, seen: Seen, writer: asyncio.StreamWriter) -> None:
    writer.write(http(429, b"{}", {"retry-after": formatdate(time.time() + DATE_AHEAD, usegmt=True)}))


async def hang(server: ChaosReader, seen: Seen, writer: asyncio.StreamWriter) -> None:
    server.hanging.set()
    await asyncio.sleep(3600)


async def drip(server: ChaosReader, seen: Seen, writer: asyncio.StreamWriter) -> None:
    writer.write(http(200, b"", length=100_000))
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


async def slow_headers(server: ChaosReader, seen: Seen, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 Chaos\r\n")
    while True:
        writer.write(b"x-wait: a little\r\n")
        await writer.drain()
        await asyncio.sleep(0.2)  # a client reads at most some 100 kB of headers


def chunked(body: bytes) -> bytes:
    """The bytes of a 200 whose body comes in chunks; the caller has put their sizes in."""
    head = b"HTTP/1.1 200 Chaos\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return head + b"transfer-encoding: chunked\r\n\r\n" + body


async def duplicate_chunk(server: ChaosReader, seen: Seen, writer: asyncio.StreamWriter) -> None:
    body = json.dumps(answered(seen)).encode()
    first, last = (b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:40], body[40:]))
    writer.write(chunked(first + first + last + b"0\r\n\r\n"))


async def bad_chunk(server: ChaosReader, seen: Seen, writer: asyncio.StreamWriter) -> None:
    writer.write(chunked(b"many\r\n{}\r\n0\r\n\r\n"))


async def cut_body(server: ChaosReader, seen: Seen, writer: asyncio.StreamWriter) -> None:
    body = json.dumps(answered(seen)).encode()
    writer.write(http(200, body[: len(body) // 2], length=len(body)))


async def close(server: ChaosReader, seen: Seen, writer: asyncio.StreamWriter) -> None:
    writer.close()


def reset(first: bytes) -> Fault:
    """Sends some bytes, then a TCP reset."""

    async def fault(server: ChaosReader, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await writer.drain()
        await asyncio.sleep(0.01)
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return fault


async def twice(server: ChaosReader, seen: Seen, writer: asyncio.StreamWriter) -> None:
    writer.write(http(200, json.dumps(answered(seen)).encode() * 2))


async def redirect(server: ChaosReader, seen: Seen, writer: asyncio.StreamWriter) -> None:
    writer.write(http(307, b"", {"location": server.redirect_to}))


FAULTS: dict[str, Fault] = {
    "ok": good(),
    # pauses
    "429-seconds": reply(429, error(), retry_after="0.02"),
    "429-ms": reply(429, error(), retry_after_ms="15"),
    "429-date": retry_date,
    "429-past": reply(429, error(), retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
    "429-huge": reply(429, error(), retry_after="86400"),
    "429-nan": reply(429, error(), retry_after="nan"),
    "429-plain": reply(429, b""),
    # statuses
    "400": reply(400, error("invalid_value", "invalid_request_error", "too many tokens")),
    "too-long": reply(400, error("context_length_exceeded", "invalid_request_error", "at most 4096 tokens")),
    "401": reply(401, error("invalid_api_key", "auth", "Incorrect API key provided: sk-chaos-secret.")),
    "402": reply(402, error()),
    "403": reply(403, {"detail": "not for you"}),
    "404": reply(404, error("model_not_found")),
    "408": reply(408, b"slow"),
    "409": reply(409, error()),
    "413": reply(413, b"<html>too large</html>"),
    "422": reply(422, {"detail": [{"msg": "bad"}]}),
    "quota": reply(429, error("insufficient_quota", "insufficient_quota")),
    "500": reply(500, error()),
    "502": reply(502, b"<html><h1>Bad gateway</h1></html>"),
    "503": reply(503, b""),
    "504": reply(504, b"\xff\xfe"),
    "529": reply(529, error("overloaded")),
    "redirect": redirect,
    # transport
    "hang": hang,
    "drip": drip,
    "slow-headers": slow_headers,
    "closed": close,
    "reset-before": reset(b""),
    "reset-in-body": reset(http(200, b'{"choices', length=500)),
    "cut-body": cut_body,
    "bad-chunk": bad_chunk,
    "not-http": reset(b"220 mail.example ESMTP\r\n\r\n"),
    # bodies with 200
    "html": reply(200, b"<html><body>Login</body></html>"),
    "empty-body": reply(200, b""),
    "not-utf8": reply(200, b'{"choices": "\xff\xfe"}'),
    "deep": reply(200, b"[" * 100_000),
    "twice": twice,
    "duplicate-chunk": duplicate_chunk,
    "bad-gzip": reply(200, b"these bytes are not compressed", content_encoding="gzip"),
    "list": reply(200, [completion("q")]),
    "number": reply(200, 7),
    "error-200": reply(200, error()),
    "no-choices": reply(200, {"id": "x"}),
    "null-choices": reply(200, {"choices": None}),
    "choices-text": reply(200, {"choices": "paris"}),
    "choices-numbers": reply(200, {"choices": [1]}),
    "no-message": reply(200, {"choices": [{"text": "paris"}]}),
    "content-list": good(content=[{"type": "text", "text": "paris"}]),
    "content-null": good(content=None),
    "content-empty": good(content=""),
    "content-blank": good(content=" \n"),
    "length": good(finish_reason="length"),
    "filter": good(finish_reason="content_filter", content=""),
    "refusal": good(refusal="I cannot help with that."),
}


def _with(**changes: Any) -> dict[str, Any]:
    """Log probabilities of one token, changed at their first entry."""
    return {"content": [{**said({"yes": -0.1, "no": -2.3}, 2), **changes}]}


DROPPED_LOGPROBS: dict[str, Any] = {
    "logprobs-null": None,
    "logprobs-empty": {},
    "logprobs-no-content": {"content": None},
    "logprobs-empty-content": {"content": []},
    "logprobs-no-top": _with(top_logprobs=[]),
    "logprobs-null-top": _with(top_logprobs=None),
}
"""What servers say that do not give log probabilities, or not those of the alternatives."""
BAD_LOGPROBS: dict[str, Any] = {
    "logprobs-text": "yes",
    "logprobs-number": 7,
    "logprobs-list": [-0.1],
    "logprobs-content-text": {"content": "yes"},
    "logprobs-content-numbers": {"content": [1] * 50_000},
    "logprobs-no-token": {"content": [{"logprob": -0.1}]},
    "logprobs-token-number": _with(token=4),
    "logprobs-string": _with(logprob="-0.1"),
    "logprobs-none": _with(logprob=None),
    "logprobs-true": _with(logprob=True),
    "logprobs-nan": _with(logprob=float("nan")),
    "logprobs-infinite": _with(logprob=float("inf")),
    "logprobs-positive": _with(logprob=3.5),
    "logprobs-huge": _with(logprob=10**400),
    "logprobs-top-text": _with(top_logprobs="yes"),
    "logprobs-top-numbers": _with(top_logprobs=[0.1] * 50_000),
    "logprobs-top-nan": _with(top_logprobs=[{"token": "yes", "logprob": float("nan")}]),
}
LOGPROB_FAULTS = {name: good(logprobs=value) for name, value in (DROPPED_LOGPROBS | BAD_LOGPROBS).items()}
LOGPROB_FAULTS["logprobs-refused"] = reply(400, error("", "invalid_request_error", "logprobs are not supported"))
"""Only for requests that ask for log probabilities; to others they are good answers."""
