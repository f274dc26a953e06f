"""A server in the test's own process: an engine over a stub, and a client without a port."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from starlette.testclient import TestClient
from starlette.types import ASGIApp

from rankwright.engine import Engine, EngineSettings
from rankwright.rerankers.ranking import Scorer
from rankwright.server.app import create_app
from rankwright.server.settings import ServerSettings
from tests.stub_scorer import StubScorer

KEY = "key-of-the-tests"


@contextmanager
def started(scorer: Scorer | None = None, settings: EngineSettings | None = None) -> Iterator[Engine]:
    """An engine that is ready, over a stub that takes no time."""
    engine = Engine(lambda: {"stub": scorer or StubScorer()}, settings)
    engine.start()
    assert engine.opened(10)
    try:
        yield engine
    finally:
        engine.close(5)


@contextmanager
def client(
    scorer: Scorer | None = None, engine_settings: EngineSettings | None = None, **settings: Any
) -> Iterator[TestClient]:
    """A client with the key, addressed as a browser on this machine would."""
    with started(scorer, engine_settings) as engine:
        app = create_app(engine, ServerSettings(**{"keys": (KEY,), **settings}))
        headers = {"Authorization": f"Bearer {KEY}"}
        # No `with`: the application has no lifespan of its own.
        yield TestClient(app, base_url="http://localhost:8000", headers=headers, raise_server_exceptions=False)


def rerank(path: str = "/v1/rerank", **fields: Any) -> tuple[str, dict[str, Any]]:
    """Path and body of a request that is well, with other fields where they are given."""
    return path, {"query": "red door", "documents": ["red door", "a wall", "door"], **fields}


def posted(client: TestClient, path: str, body: Mapping[str, Any] | bytes, **headers: str) -> Any:
    """The response."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(path, content=content, headers=headers)


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    """Waits; an AssertionError where it does not become true in time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


async def asked_of(app: ASGIApp, path: str, body: Mapping[str, Any], leaves: asyncio.Event | None = None) -> int:
    """The status of an answer; 0 where the client left before there was one. In the test's own event loop, so that
    several can be asked at once."""
    sent, status = False, 0
    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {KEY}".encode())]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    scope |= {"http_version": "1.1", "scheme": "http", "server": ("localhost", 80)}

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await (leaves or asyncio.Event()).wait()
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": json.dumps(body).encode()}

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    return status
