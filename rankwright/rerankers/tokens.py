"""Pairs of texts become tokens: when they are scored, or before, while other pairs are being scored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from rankwright.rerankers.ranking import render
from rankwright.types import RerankRequest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Pair = tuple[str, str]
MOST_AHEAD = 1024
"""Encodings that are kept for pairs to come; the oldest go first: their request may have been cancelled."""


def pairs_of(requests: Iterable[RerankRequest], template: str) -> list[Pair]:
    """The two texts of every pair, in order."""
    return [(r.query.text, render(template, document)) for r in requests for document in r.documents]


class PairTokens:
    """Encodings of pairs, each given out once.

    Args:
        tokenizer: of the tokenizers library, set to cut and not to pad. Two threads may use it at once.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ready: dict[Pair, Any] = {}
        self._lock = Lock()

    def prepare(self, pairs: Sequence[Pair]) -> None:
        """Encodes pairs that `take` will be asked for."""
        with self._lock:
            new = [pair for pair in dict.fromkeys(pairs) if pair not in self._ready]
        found = self._encoded(new)
        with self._lock:
            self._ready.update(zip(new, found, strict=True))
            for pair in list(self._ready)[: max(0, len(self._ready) - MOST_AHEAD)]:
                del self._ready[pair]

    def take(self, pairs: Sequence[Pair]) -> list[Any]:
        """Encodings of different pairs, in order; those that were not prepared are encoded now, in one call."""
        with self._lock:
            found = {pair: self._ready.pop(pair) for pair in pairs if pair in self._ready}
        new = [pair for pair in pairs if pair not in found]
        found.update(zip(new, self._encoded(new), strict=True))
        return [found[pair] for pair in pairs]

    def _encoded(self, pairs: Sequence[Pair]) -> list[Any]:
        return self._tokenizer.encode_batch_fast(list(pairs)) if pairs else []
