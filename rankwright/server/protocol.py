"""HTTP below the routes: bounds on what uvicorn's parser takes without one. A body of a million chunks, ten thousand
headers, or a client that never ends its header would else cost time and memory before any route sees them."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from rankwright.server.problems import Problem

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32_768
"""Of the address and all headers together."""
MAX_CHUNKS = 16_384
MAX_DROPPED = 64 * 2**20
"""Bytes of a body that are read and dropped after its answer, so that the client sees the answer."""
HEADER_SECONDS = 10.0


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    _timer: asyncio.TimerHandle | None = None
    _header_bytes = _chunks = _dropped = 0
    _refusal = Problem(400, "This is not a valid HTTP request.")

    def connection_made(self, transport: Any) -> None:
        """Starts the clock of the first header."""
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops it."""
        self._stop_clock()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._header_bytes = self._chunks = self._dropped = 0
        self._start_clock()

    def on_url(self, url: bytes) -> None:
        """A piece of the address."""
        self._count_header(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._count_header(len(name) + len(value))
        if len(self.headers) >= MAX_HEADERS:
            self._refuse(Problem(431, f"The request has more than {MAX_HEADERS} headers; send fewer."))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The header is whole."""
        self._stop_clock()
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """A chunk of a body without a length begins."""
        self._chunks += 1
        if self._chunks > MAX_CHUNKS:
            self._refuse(Problem(413, f"The body has more than {MAX_CHUNKS} chunks; send it in larger ones."))

    def on_body(self, body: bytes) -> None:
        """A piece of a body; what comes after the answer is dropped, up to a point."""
        if self.cycle.response_complete:
            self._dropped += len(body)
            if self._dropped > MAX_DROPPED:
                self.transport.close()
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """What is refused here is refused in the contract's form, and the connection is closed."""
        if self.transport.is_closing():
            return
        content = to_json(self._refusal.body(secrets.token_hex(8)))
        head = [
            STATUS_LINE[self._refusal.status],
            b"content-type: application/json\r\nconnection: close\r\ncontent-length: ",
            str(len(content)).encode(),
            b"\r\n\r\n",
        ]
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            self.transport.write(b"".join(head) + content)
        self.transport.close()

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(Problem(431, f"The headers have more than {MAX_HEADER_BYTES} bytes; send fewer."))

    def _refuse(self, problem: Problem) -> None:
        """Ends parsing: the parser passes the exception on as a fault of the request."""
        self._refusal = problem
        raise ValueError(problem.message)

    def _start_clock(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()
