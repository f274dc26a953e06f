"""A server in the test's own process: an engine over a stub, and a client without a port."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.testclient import TestClient

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
