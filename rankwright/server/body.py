"""Bodies of requests: bounded while they are read, and parsed by rules that leave nothing to guess."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import jiter
from starlette.requests import ClientDisconnect, Request

from rankwright.server.problems import Problem
from rankwright.server.settings import ServerSettings

MAX_NESTING = 64
MAX_CONTAINERS = 16_384
"""Brackets and braces above which a body is refused: lists of lists take much more memory than they take bytes."""


async def read_json(request: Request, settings: ServerSettings) -> dict[str, Any]:
    """The object that the body of a request is.

    Raises:
        Problem: the body is too large, encoded, too slow, or no JSON object.
        ClientDisconnect: the client left.
    """
    try:
        async with asyncio.timeout(settings.timeout):
            raw = await _read(request, settings.max_body)
    except TimeoutError:
        raise Problem(
            408, f"The body did not come within {settings.timeout:g} seconds; send it at once.", headers=_CLOSE
        ) from None
    return parsed(raw)


_CLOSE = {"Connection": "close"}


async def _read(request: Request, limit: int) -> bytearray:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Problem(415, "The body is compressed (Content-Encoding); wanted it as it is. Send plain JSON.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        raise _too_large(limit)
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > limit:
            raise _too_large(limit)
    return raw


def _too_large(limit: int) -> Problem:
    return Problem(
        413, f"The body has more than {limit} bytes, the limit of this server; send fewer or shorter documents."
    )


async def client_left(request: Request) -> None:
    """Ends when the client of a request, whose body was read, leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def parsed(raw: bytes | bytearray) -> dict[str, Any]:
    """The object in a body.

    Raises:
        Problem: it is no JSON (NaN and numbers beyond a float are none), has a name twice, is nested deeper than 64, or
            is no object.
    """
    data = bytes(raw)
    if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS and _containers(data) > MAX_CONTAINERS:
        raise Problem(400, f"The body has more than {MAX_CONTAINERS} lists and objects; wanted a rerank request.")
    try:
        value = jiter.from_json(data, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise Problem(400, f"The body is not valid JSON ({_place(str(error))}); wanted one JSON object.") from None
    _check(value)
    if not isinstance(value, dict):
        raise Problem(400, 'The body is not a JSON object; wanted one, for example {"query": ..., "documents": [...]}.')
    return value


def _containers(data: bytes) -> int:
    """Lists and objects outside of strings; a guess from above where strings do not end."""
    outside = data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    return sum(part.count(b"[") + part.count(b"{") for part in outside)


def _place(message: str) -> str:
    """The parser's words without those of the body: it repeats names that come twice."""
    what, _, where = message.rpartition(" at line ")
    what = "a name stands twice in one object" if what.startswith("Detected duplicate key") else what
    return f"{what} at line {where}" if where and what else "it cannot be read"


def _check(value: Any) -> None:
    """Depth, and numbers that became infinite; without recursion."""
    level: list[Any] = [value]
    for _ in range(MAX_NESTING + 1):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner.extend(one.values())
            elif isinstance(one, list):
                inner.extend(one)
            elif isinstance(one, float) and not math.isfinite(one):
                raise Problem(400, "The body has a number that is too large; wanted finite numbers.")
        level = [one for one in inner if isinstance(one, dict | list | float)]
        if not level:
            return
    raise Problem(400, f"The body is nested deeper than {MAX_NESTING}; wanted a rerank request.")


__all__ = ["ClientDisconnect", "client_left", "parsed", "read_json"]
