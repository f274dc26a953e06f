"""A judge that knows the labels, with as much noise, nonsense and failure as a test wants; a GeneratingPolicy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from typing import Literal

from rankwright.types import CALL_FAILED, Choice, Judged, Judgement, Permutation, RerankRequest, Scores

Kind = Literal["permutation", "choice", "scores"]

PROMPT_WORDS = 120
"""Of a prompt without query and documents."""
TOKENS_PER_WORD = 1.3
WRITTEN: Mapping[Kind, tuple[int, int]] = {"permutation": (0, 4), "choice": (3, 0), "scores": (0, 6)}
"""Tokens of an answer without reasoning: those of its frame, and those of each document, as in "[12] > "."""


class SimulatedJudge:
    """Sees a document's grade plus `noise` times a normal deviate, drawn anew for every prompt and document.

    What it says depends on the window alone (query, documents, their order) and on the seed.

    Args:
        grades: query_id -> doc_id -> grade; a document without one has 0. Equal ones keep the order of the prompt.
        kind: what it answers with.
        steady: share of the noise's variance that a document has in every prompt alike.
        malformed, failed: share of windows that are answered with nonsense, or not at all.
    """

    def __init__(
        self,
        grades: Mapping[str, Mapping[str, float]],
        kind: Kind,
        *,
        noise: float = 0.0,
        steady: float = 0.0,
        malformed: float = 0.0,
        failed: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.grades = grades
        self.kind: Kind = kind
        self.noise = noise
        self.steady = steady
        self.malformed = malformed
        self.failed = failed
        self.seed = seed
        self.rounds: list[list[RerankRequest]] = []
        """The windows of every call of `judge`."""

    @property
    def name(self) -> str:
        return f"simulated({self.kind},noise={self.noise},seed={self.seed})"

    @property
    def windows(self) -> list[RerankRequest]:
        """All windows so far."""
        return [window for windows in self.rounds for window in windows]

    def calls_of(self, query_id: str) -> int:
        return Counter(window.query.query_id for window in self.windows)[query_id]

    def judge(self, windows: Sequence[RerankRequest]) -> list[Judged]:
        self.rounds.append(list(windows))
        return [Judged(self._judgement(window), prompt_tokens(window), self._written(window)) for window in windows]

    def _written(self, window: RerankRequest) -> int:
        frame, each = WRITTEN[self.kind]
        return frame + each * len(window.documents)

    def _judgement(self, window: RerankRequest) -> Judgement:
        query_id, count = window.query.query_id, len(window.documents)
        chance = Random(repr((self.seed, query_id, [document.doc_id for document in window.documents])))
        dice = chance.random()
        if dice < self.failed:
            return nonsense(self.kind, count, f"{CALL_FAILED}timeout")
        if dice < self.failed + self.malformed:
            return nonsense(self.kind, count, "no identifier")
        known = self.grades.get(query_id, {})
        seen = [known.get(d.doc_id, 0) + self.noise * self._error(query_id, d.doc_id, chance) for d in window.documents]
        order = sorted(range(count), key=lambda i: -seen[i])
        if self.kind == "permutation":
            return Permutation(tuple(order))
        return Choice(order[0]) if self.kind == "choice" else Scores(tuple(seen))

    def _error(self, query_id: str, doc_id: str, chance: Random) -> float:
        """A normal deviate, in part the same in every prompt."""
        error = math.sqrt(1.0 - self.steady) * chance.gauss(0.0, 1.0)
        if self.steady:
            error += math.sqrt(self.steady) * Random(repr((self.seed, query_id, doc_id))).gauss(0.0, 1.0)
        return error


def nonsense(kind: Kind, count: int, reason: str) -> Judgement:
    """What a parser makes of an answer that it cannot read."""
    if kind == "permutation":
        return Permutation(tuple(range(count)), "malformed", (reason,))
    return Choice(None, "malformed", (reason,)) if kind == "choice" else Scores((None,) * count, "malformed", (reason,))


def prompt_tokens(window: RerankRequest) -> int:
    """An estimate: 1.3 tokens a word of a frame of 120 words, of the query twice and of every document, and 4 tokens
    for each document's identifier."""
    words = PROMPT_WORDS + 2 * len(window.query.text.split())
    words += sum(len(document.title.split()) + len(document.text.split()) for document in window.documents)
    return round(TOKENS_PER_WORD * words) + 4 * len(window.documents)
