"""What the tests of the integrations share: a reranker whose scores stand in the texts, and one that waits."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from rankwright.rerankers.ranking import Scorer
from rankwright.types import RerankRequest, Scored

T = TypeVar("T")
PATIENCE = 20.0
"""Seconds after which a test that hangs fails."""


def sigmoid(x: float) -> float:
    """By its formula."""
    return 1 / (1 + math.exp(-x))


class Written(Scorer):
    """The score of a passage is its last word: "rain -2" scores -2. Keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[RerankRequest]] = []

    @property
    def name(self) -> str:
        return "written"

    @property
    def max_length(self) -> int:
        return 8

    def score_batch(self, requests: Sequence[RerankRequest]) -> list[Scored]:
        self.asked.append(list(requests))
        return [self._scored(request) for request in requests]

    def _scored(self, request: RerankRequest) -> Scored:
        words = [document.text.split() for document in request.documents]
        counts = [len(of_one) for of_one in words]
        scores = tuple(float(of_one[-1]) if of_one else -100.0 for of_one in words)
        return Scored(scores, tuple(min(n, 8) for n in counts), tuple(n > 8 for n in counts))

    @property
    def read(self) -> list[tuple[str, str, str]]:
        """Query, title and text of every pair that was asked for."""
        return [(r.query.text, d.title, d.text) for requests in self.asked for r in requests for d in r.documents]


class Held(Written):
    """Tells when a call has begun, and goes on when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.let_go = threading.Event()

    def score_batch(self, requests: Sequence[RerankRequest]) -> list[Scored]:
        self.begun.set()
        assert self.let_go.wait(PATIENCE), "nobody let the call go: the event loop was held"
        return super().score_batch(requests)


async def while_held(held: Held, call: Awaitable[T]) -> T:
    """The result of an awaitable that scores with `held`, if the event loop goes on while it is scoring."""
    task = asyncio.ensure_future(call)
    while not held.begun.is_set() and not task.done():
        await asyncio.sleep(0.001)
    held.let_go.set()
    return await task
