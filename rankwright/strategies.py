"""How a language model that judges a few documents at once ranks a long list, and the scheduler that asks it.

    reranker = LLMReranker(policy, Sliding(window=20, stride=10))
    ranking = reranker.rerank("how long does a flea live?", documents)
    print(reranker.report)

A strategy is a generator for one query: it yields windows that do not depend on each other, is sent a judgement of
each, and ends with a Ranking. `run_strategies` runs one strategy for many queries in lockstep, so that a round asks for
the windows of all of them at once. What happens to one query never depends on which others are beside it.

    Sliding      windows from the end of the list to its beginning; needs permutations
    TopK         a knock-out with windows: few rounds, whatever the length; needs permutations
    HeapSort     a heap whose nodes have many children; needs choices or permutations
    BubbleSort   the best of each window moves up; needs choices or permutations
    Pointwise    every document alone; needs scores
    Groupwise    shuffled groups, scores averaged over repeats; needs scores
    Fused        any of them, mixed with the scores of the first stage

A window that could not be read changes nothing: its documents keep their order, the root of a heap stays, and a
document without any score stands behind all others. The report counts it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from random import Random
from typing import Any, Literal, Protocol, TypeVar

from rankwright.errors import ConfigurationError, DataError, ModelError, ReaderError
from rankwright.reading import MINIMUM_READS
from rankwright.types import (
    CALL_FAILED,
    Choice,
    Document,
    GeneratingPolicy,
    Judged,
    Judgement,
    Permutation,
    Query,
    Ranking,
    RerankRequest,
    Scores,
    as_documents,
    as_query,
)

T = TypeVar("T")
Asking = Generator[list[RerankRequest], list[Judgement], T]
"""Yields windows that do not depend on each other, is sent one judgement each, in order, and ends with a T."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much there is."""

_PROMPTS = {Permutation: "listwise", Choice: "setwise", Scores: "pointwise or groupwise"}
"""The kind of prompt that makes a judgement."""


class Strategy(Protocol):
    """How the documents of one query are put before a judge."""

    @property
    def name(self) -> str:
        """Kind and all settings, as they belong in a signature."""
        ...

    def rank(self, request: RerankRequest) -> Asking[Ranking]:
        """Windows out, judgements in, at the end a ranking of all documents of the request."""
        ...


# --- the scheduler -----------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class CallCounts:
    """What calls of a language model came to, in sums."""

    paid: int = 0
    """Calls that no cache answered."""
    input_tokens: int = 0
    """Of all calls whose tokens are known, those that a cache answered too."""
    output_tokens: int = 0
    without_tokens: int = 0
    """Calls whose tokens are not known."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """ok, repaired, malformed -> calls; a failed call is malformed."""
    repairs: Counter[str] = field(default_factory=Counter)
    """What was mended, or why nothing could be read -> calls."""
    failures: Counter[str] = field(default_factory=Counter)
    """Reason -> calls that came to nothing."""

    def count(self, judged: Judged) -> None:
        """Take in one call."""
        judgement = judged.judgement
        self.paid += judged.paid
        self.without_tokens += judged.input_tokens is None or judged.output_tokens is None
        self.input_tokens += judged.input_tokens or 0
        self.output_tokens += judged.output_tokens or 0
        self.outcomes[judgement.outcome] += 1
        failed = [repair.removeprefix(CALL_FAILED) for repair in judgement.repairs if repair.startswith(CALL_FAILED)]
        (self.failures if failed else self.repairs).update(failed or judgement.repairs)


@dataclass
class StrategyReport(CallCounts):
    """What rankings took. Reports add up."""

    calls_per_query: list[int] = field(default_factory=list)
    """Windows judged for each query, in order."""
    depth_per_query: list[int] = field(default_factory=list)
    """Rounds of each query that had to wait for the one before: its sequential depth."""

    @property
    def calls(self) -> int:
        """Windows judged in all."""
        return sum(self.calls_per_query)

    @property
    def max_depth(self) -> int:
        """Longest chain of calls that wait for each other."""
        return max(self.depth_per_query, default=0)

    @property
    def mean_depth(self) -> float:
        """Mean over queries; 0 for none."""
        return sum(self.depth_per_query) / max(1, len(self.depth_per_query))

    def __add__(self, other: StrategyReport) -> StrategyReport:
        return StrategyReport(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        counters = ("outcomes", "repairs", "failures")
        return {
            "queries": len(self.calls_per_query),
            "calls": self.calls,
            "sequential_depth": {"max": self.max_depth, "mean": self.mean_depth},
            **{name: value for name, value in vars(self).items() if name not in counters},
            **{name: dict(getattr(self, name)) for name in counters},
        }


def run_strategies(
    strategy: Strategy,
    policy: GeneratingPolicy,
    requests: Sequence[RerankRequest],
    *,
    max_failed: float = 0.05,
    on_progress: Progress | None = None,
) -> tuple[list[Ranking], StrategyReport]:
    """One ranking per request, in order, and what they took.

    In each round the policy is asked for the windows of all queries that have not ended, in one call of `judge`.

    Args:
        max_failed: largest share of failed calls (not of unreadable answers). It is looked at after the last round, and
            from the fiftieth call on after each.

    Raises:
        ConfigurationError: the policy's prompt does not give what the strategy needs, or a window does not fit into it.
        DataError: fusion with a first stage whose scores are not known; no call was made then.
        ModelError: the policy gives judgements that do not belong to the windows.
        ReaderError: too many calls failed. Nothing is lost where a cache stands around the model.
    """
    report = StrategyReport([0] * len(requests), [0] * len(requests))
    ended: list[int] = []
    rounds = _together([_noted(strategy.rank(request), i, report, ended) for i, request in enumerate(requests)])
    answers: Any = None  # what a generator is first sent
    while True:
        try:
            windows = rounds.send(answers)
        except StopIteration as end:
            _check_failures(policy, report, max_failed, least=1)
            return end.value, report
        finally:
            if on_progress is not None:
                on_progress(f"rank by {strategy.name}", len(ended), len(requests))
        judged = policy.judge(windows)
        if len(judged) != len(windows):
            raise ModelError(
                f"Model '{policy.name}' gave {len(judged)} judgements for {len(windows)} windows; one each."
            )
        for one in judged:
            report.count(one)
        _check_failures(policy, report, max_failed, least=MINIMUM_READS)
        answers = [one.judgement for one in judged]


def _noted(steps: Asking[T], query: int, report: StrategyReport, ended: list[int]) -> Asking[T]:
    """The same steps, their calls and rounds written down for a query."""
    answers: Any = None
    while True:
        try:
            windows = steps.send(answers)
        except StopIteration as end:
            ended.append(query)
            return end.value
        report.calls_per_query[query] += len(windows)
        report.depth_per_query[query] += 1
        answers = yield windows


def _together(parts: Sequence[Asking[T]]) -> Asking[list[T]]:
    """Runs generators beside each other: what they ask for in one round is asked at once."""
    results: dict[int, T] = {}
    asked: dict[int, list[RerankRequest]] = {}

    def go_on(part: int, answers: Any) -> None:
        try:
            asked[part] = parts[part].send(answers)
        except StopIteration as end:
            asked.pop(part, None)
            results[part] = end.value

    for part in range(len(parts)):
        go_on(part, None)
    while asked:
        answers = iter((yield [window for windows in asked.values() for window in windows]))
        for part, windows in list(asked.items()):
            go_on(part, list(islice(answers, len(windows))))
    return [results[part] for part in range(len(parts))]


_NEXT_STEPS = {"length": "Raise max_tokens (--set sampling.max_tokens=N), within which these answers did not end,"}
"""Reason of failed calls -> what helps."""


def _check_failures(policy: GeneratingPolicy, report: StrategyReport, max_failed: float, least: int) -> None:
    calls = report.outcomes.total()
    if calls < least or report.failures.total() <= max_failed * calls:
        return
    reason, times = report.failures.most_common(1)[0]
    raise ReaderError(
        f"Model '{policy.name}' failed on {report.failures.total()} of {calls} calls, most often with '{reason}' "
        f"({times} times); at most {max_failed:.0%} may fail. "
        f"{_NEXT_STEPS.get(reason, 'Correct the cause')} and run again: answers in the cache are kept."
    )


class LLMReranker:
    """A Reranker out of a language model with a prompt, and a strategy.

    Args:
        policy: judges windows.
        strategy: chooses them.
        max_failed, on_progress: see `run_strategies`.
    """

    def __init__(
        self,
        policy: GeneratingPolicy,
        strategy: Strategy,
        *,
        max_failed: float = 0.05,
        on_progress: Progress | None = None,
    ) -> None:
        self.policy = policy
        self.strategy = strategy
        self.max_failed = max_failed
        self.on_progress = on_progress
        self.report = StrategyReport()
        """Of the last batch."""

    @property
    def name(self) -> str:
        """Model, prompt and sampling, then the strategy with its numbers."""
        return f"{self.policy.name} {self.strategy.name}"

    def rerank_batch(self, requests: Sequence[RerankRequest]) -> list[Ranking]:
        """One ranking per request, in order; see `run_strategies`."""
        rankings, self.report = run_strategies(
            self.strategy, self.policy, requests, max_failed=self.max_failed, on_progress=self.on_progress
        )
        return rankings

    def rerank(self, query: str | Query, documents: Sequence[str | Document], top_k: int | None = None) -> Ranking:
        """The ranking of one query, cut after `top_k` documents."""
        return self.rerank_batch([RerankRequest(as_query(query), as_documents(documents))])[0].best(top_k)


# --- what a window's judgement says -------------------------------------------------------------------------------
#
# Documents are named by their place in the request from here on, so that smaller means earlier in the first stage.


def _window(request: RerankRequest, places: Sequence[int]) -> RerankRequest:
    return RerankRequest(request.query, tuple(request.documents[place] for place in places))


def _order(judgement: Judgement, places: Sequence[int]) -> list[int]:
    """The places, best first."""
    if not isinstance(judgement, Permutation):
        raise _other_kind(judgement, Permutation)
    if sorted(judgement.order) != list(range(len(places))):
        raise ModelError(
            f"A judgement orders {len(judgement.order)} documents as {judgement.order} where {len(places)} were shown; "
            "wanted each of them once. The parser of the prompt is at fault."
        )
    return [places[i] for i in judgement.order]


def _chosen(judgement: Judgement, places: Sequence[int]) -> int | None:
    """The best place; None where the answer could not be read."""
    if isinstance(judgement, Permutation):
        return None if judgement.outcome == "malformed" else _order(judgement, places)[0]
    if not isinstance(judgement, Choice):
        raise _other_kind(judgement, Choice)
    if judgement.position is None or 0 <= judgement.position < len(places):
        return None if judgement.position is None else places[judgement.position]
    raise ModelError(
        f"A judgement chose the document at position {judgement.position} where {len(places)} were shown; wanted one "
        "of them, from 0. The parser of the prompt is at fault."
    )


def _scores(judgement: Judgement, places: Sequence[int]) -> list[tuple[int, float]]:
    """(place, score) of those that could be read."""
    if not isinstance(judgement, Scores):
        raise _other_kind(judgement, Scores)
    if len(judgement.values) != len(places):
        raise ModelError(
            f"A judgement has {len(judgement.values)} scores where {len(places)} documents were shown; wanted one "
            "each. The parser of the prompt is at fault."
        )
    read = [(place, value) for place, value in zip(places, judgement.values, strict=True) if value is not None]
    unusable = next((value for _, value in read if not math.isfinite(value)), None)
    if unusable is not None:
        raise ModelError(f"A judgement has the score {unusable}; scores must be finite. Try fp32 weights.")
    return read


def _other_kind(found: Judgement, wanted: type[Permutation | Choice | Scores]) -> ConfigurationError:
    return ConfigurationError(
        f"The strategy was given {type(found).__name__}, which a {_PROMPTS[type(found)]} prompt makes; it needs "
        f"{wanted.__name__}. Take a {_PROMPTS[wanted]} prompt, or another strategy."
    )


def _by_place(request: RerankRequest, order: Sequence[int]) -> Ranking:
    """A ranking that came from comparisons: its scores are n - 1, ..., 0."""
    doc_ids = tuple(request.documents[place].doc_id for place in order)
    return Ranking(request.query.query_id, doc_ids, tuple(float(len(order) - 1 - i) for i in range(len(order))))


def _by_score(request: RerankRequest, values: Sequence[float | None]) -> Ranking:
    """Highest score first, equal ones in the order of the first stage, as are those without a score, behind all others.

    These carry the next smaller floats below the lowest score: the column falls, and its scale stays what it was.
    """
    read = {place: value for place, value in enumerate(values) if value is not None}
    if not read:
        return _by_place(request, range(len(values)))
    order = sorted(read, key=lambda place: (-read[place], place))
    scores = [read[place] for place in order]
    for place in (place for place, value in enumerate(values) if value is None):
        order.append(place)
        scores.append(math.nextafter(scores[-1], -math.inf))
    return Ranking(request.query.query_id, tuple(request.documents[p].doc_id for p in order), tuple(scores))


# --- strategies ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    """What all strategies share: a name out of their settings, and a check of whole numbers."""

    @property
    def name(self) -> str:
        """Kind and all settings, as they belong in a signature."""
        settings = ",".join(f"{setting.name}={getattr(self, setting.name)}" for setting in fields(self))
        return type(self).__name__.lower() + (f"({settings})" if settings else "")

    def _wanted(self, setting: str, right: bool, wanted: str) -> None:
        if not right:
            raise ConfigurationError(f"Strategy '{self.name}' has {setting} {getattr(self, setting)}; wanted {wanted}.")


def windows(count: int, window: int, stride: int) -> list[tuple[int, int]]:
    """(start, end) of the windows over a list, from its end to its beginning.

    There are ceil((count - window) / stride) + 1 of them, or one where the list is not longer than the window. The last
    one is shorter where the lengths do not fit: it ends where the one before it began to overlap.

    >>> windows(50, 20, 10)
    [(30, 50), (20, 40), (10, 30), (0, 20)]
    >>> windows(25, 20, 10), windows(7, 20, 10)
    ([(5, 25), (0, 15)], [(0, 7)])
    """
    starts = range(max(count - window, 0), -stride, -stride)
    return [(max(start, 0), min(start + window, count)) for start in starts]


@dataclass(frozen=True)
class Sliding(_Settings):
    """Sorts a window at the end of the list, moves up by `stride`, and so to the beginning.

    What is best in one window takes part in the next, so a judge that never errs brings the best `window - stride`
    documents to the top in one pass. Any length will do. Calls and depth: `passes` times
    ceil((n - window) / stride) + 1; 9 for 100 documents.

    Source: Sun et al., "Is ChatGPT Good at Search?", 2023, https://arxiv.org/abs/2304.09542; REARANK, ReasonRank,
    RankZephyr and FIRST (single-token prompt) rank so, with 20 and 10.
    """

    window: int = 20
    stride: int = 10
    passes: int = 1

    def __post_init__(self) -> None:
        self._wanted("window", self.window >= 2, "2 or more")
        self._wanted("stride", 1 <= self.stride < self.window, f"1 to {self.window - 1}: windows must overlap")
        self._wanted("passes", self.passes >= 1, "1 or more")

    def rank(self, request: RerankRequest) -> Asking[Ranking]:
        """See Strategy."""
        order = list(range(len(request.documents)))
        for _ in range(self.passes if len(order) > 1 else 0):
            for start, end in windows(len(order), self.window, self.stride):
                (judgement,) = yield [_window(request, order[start:end])]
                order[start:end] = _order(judgement, order[start:end])
        return _by_place(request, order)


@dataclass(frozen=True)
class TopK(_Settings):
    """A knock-out with windows: in every round the documents at the end of the list are dealt to full windows, which
    are judged all at once, and all but the first `top_k` of each window are out. The last window orders the result.

    The documents that are left keep the order of the first stage, and the first `waiting` of them sit out while there
    are enough others to fill a window: a document that the first stage trusts has fewer chances to be lost, as in the
    sliding window. 0 gives the fewest rounds; with as many as there are documents, this is the sliding window with
    stride `window - top_k`.

    For a judge that never errs the first `top_k` are exactly right, for every length. Calls: ceil((n - window) /
    (window - top_k)) + 1, as many as that sliding window has, over as many documents. Rounds grow with the logarithm of
    n: 5 for 100 documents where the sliding window has 9, and 9 for 1,000 where it has 99 (4 and 7 without waiting).
    Behind the first: who fell in a later round, then who had the better place in its window.

    Ours. Parry et al., "Top-Down Partitioning for Efficient List-Wise Ranking", 2024, https://arxiv.org/abs/2405.14589,
    compare all windows with one pivot instead; their rounds and calls depend on the pivot, so on the first stage.
    """

    top_k: int = 10
    window: int = 20
    waiting: int = 20

    def __post_init__(self) -> None:
        self._wanted("window", self.window >= 2, "2 or more")
        self._wanted("top_k", 1 <= self.top_k < self.window, f"1 to {self.window - 1}: each window must drop some")
        self._wanted("waiting", self.waiting >= 0, "0 or more")

    def rank(self, request: RerankRequest) -> Asking[Ranking]:
        """See Strategy."""
        left, out = list(range(len(request.documents))), []
        while len(left) > self.window:
            hands = max(1, (len(left) - self.waiting) // self.window)
            byes, playing = left[: -hands * self.window], left[-hands * self.window :]
            dealt = [playing[hand::hands] for hand in range(hands)]
            judgements = yield [_window(request, hand) for hand in dealt]
            orders = [_order(judgement, hand) for judgement, hand in zip(judgements, dealt, strict=True)]
            left = byes + sorted(place for order in orders for place in order[: self.top_k])
            out = [order[i] for i in range(self.top_k, self.window) for order in orders] + out
        if len(left) > 1:
            (judgement,) = yield [_window(request, left)]
            left = _order(judgement, left)
        return _by_place(request, left + out)


@dataclass(frozen=True)
class _Setwise(_Settings):
    """What the sorts by choice share: how the best of a few documents is found."""

    children: int = 19
    top_k: int = 10
    votes: int = 1
    shuffle: bool = False
    seed: int = 0
    unread: Literal["root", "first-stage"] = "root"

    def __post_init__(self) -> None:
        for setting in ("children", "top_k", "votes"):
            self._wanted(setting, getattr(self, setting) >= 1, "1 or more")
        self._wanted("unread", self.unread in ("root", "first-stage"), "'root' or 'first-stage'")

    def _best(self, request: RerankRequest, places: Sequence[int]) -> Asking[int]:
        """The place that most votes chose, the earlier one in the first stage of equals; as `unread` says where no vote
        could be read."""
        shown = [self._shown(request.query, places, vote) for vote in range(self.votes)]
        judgements = yield [_window(request, order) for order in shown]
        choices = [_chosen(judgement, order) for judgement, order in zip(judgements, shown, strict=True)]
        votes = Counter(choice for choice in choices if choice is not None)
        if not votes:
            return places[0] if self.unread == "root" else min(places)
        return min(votes, key=lambda place: (-votes[place], place))

    def _shown(self, query: Query, places: Sequence[int], vote: int) -> list[int]:
        """The order in the prompt: as given for the first vote, unless `shuffle`. A shuffle depends on seed, query,
        vote and documents alone, so neither other queries nor the order of the calls change it."""
        if vote == 0 and not self.shuffle:
            return list(places)
        return Random(repr((self.seed, query.query_id, vote, list(places)))).sample(list(places), len(places))


@dataclass(frozen=True)
class HeapSort(_Setwise):
    """A heap whose nodes have `children` children: the root of all is the best, and is taken out `top_k` times.

    A judge that never errs finds the first `top_k` in order; all others follow in the order of the first stage. Nodes
    of one level are judged at once while the heap is built, all else waits. Mean calls for 100 documents in random
    order and top_k 10: 23.4 with 19 children, 31.4 with 9, 81.7 with 3.

    Args:
        children: one less than the documents of a prompt.
        votes: prompts per comparison, each in another order; the majority decides.
        shuffle: shuffle the documents of every prompt (the first vote's too), as Rank-R1 does.
        unread: what is best where no vote could be read: `root`, the document that the others are compared with, as in
            the papers' code; while the best are taken out that is a leaf which has just been put there, so a poor one
            can come to the top. `first-stage` (ours): the one that was earliest in the first stage.

    Source: Zhuang et al., "A Setwise Approach for Effective and Highly Efficient Zero-shot Ranking with Large Language
    Models", 2024, https://arxiv.org/abs/2310.09497; Rank-R1 ranks so, with 19 children.
    """

    def rank(self, request: RerankRequest) -> Asking[Ranking]:
        """See Strategy."""
        heap = list(range(len(request.documents)))
        for level in reversed(_levels(len(heap), self.children)):
            yield from _together([self._sink(request, heap, node) for node in level])
        best: list[int] = []
        while heap and len(best) < self.top_k:
            best.append(heap[0])
            heap[0] = heap[-1]
            heap.pop()
            if len(best) < self.top_k:
                yield from self._sink(request, heap, 0)
        taken = set(best)
        return _by_place(request, best + [place for place in range(len(request.documents)) if place not in taken])

    def _sink(self, request: RerankRequest, heap: list[int], node: int) -> Asking[None]:
        """Lets a document down until none of its children is better."""
        while (first := self.children * node + 1) < len(heap):
            family = [node, *range(first, min(first + self.children, len(heap)))]
            places = [heap[member] for member in family]
            best = yield from self._best(request, places)
            better = family[places.index(best)]
            if better == node:
                return
            heap[node], heap[better] = heap[better], heap[node]
            node = better


def _levels(count: int, children: int) -> list[range]:
    """Nodes of a heap by level, from the root.

    >>> _levels(12, 3)
    [range(0, 1), range(1, 4), range(4, 12)]
    """
    levels, start, size = [], 0, 1
    while start < count:
        levels.append(range(start, min(start + size, count)))
        start, size = start + size, size * children
    return levels


@dataclass(frozen=True)
class BubbleSort(_Setwise):
    """The best of a window at the end of the list moves to its first place, where the next window ends; `top_k` times.

    A judge that never errs finds the first `top_k` in order; all others follow in the order of the first stage. The
    n-th time has at most ceil((documents - n - children) / children) + 1 calls; documents that were compared before are
    not compared again. Every call waits for the one before.

    Args and source: as for HeapSort.
    """

    def rank(self, request: RerankRequest) -> Asking[Ranking]:
        """See Strategy."""
        order = list(range(len(request.documents)))
        known: dict[tuple[int, ...], int] = {}
        for done in range(min(self.top_k, len(order) - 1)):
            for start, end in windows(len(order) - done, self.children + 1, self.children):
                family = order[done + start : done + end]
                key = tuple(sorted(family))
                if len(family) > 1 and key not in known:
                    known[key] = yield from self._best(request, family)
                best = done + start + family.index(known.get(key, family[0]))
                order[done + start], order[best] = order[best], order[done + start]
        return _by_place(request, order[: self.top_k] + sorted(order[self.top_k :]))


@dataclass(frozen=True)
class Pointwise(_Settings):
    """Every document alone, all at once: n calls, depth 1. Scores are those of the judge."""

    def rank(self, request: RerankRequest) -> Asking[Ranking]:
        """See Strategy."""
        ranking = yield from _scored(request, [[place] for place in range(len(request.documents))])
        return ranking


@dataclass(frozen=True)
class Groupwise(_Settings):
    """Shuffled groups, all at once: `repeats` times ceil((n - group) / interval) + 1 calls, depth 1.

    The score of a document is the mean over the groups whose answer could be read. Shuffles depend on seed, query and
    repeat alone.

    Args:
        interval: where the next group begins; less than `group` makes them overlap. 0 is `group`.

    Source: GroupRank, 2025, https://arxiv.org/abs/2511.11653. There an unreadable group scores 0 for all its documents;
    here it scores nothing.
    """

    group: int = 20
    repeats: int = 1
    interval: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self._wanted("group", self.group >= 1, "1 or more")
        self._wanted("repeats", self.repeats >= 1, "1 or more")
        self._wanted("interval", 0 <= self.interval <= self.group, f"0 to {self.group}: every document needs a group")

    def rank(self, request: RerankRequest) -> Asking[Ranking]:
        """See Strategy."""
        count, groups = len(request.documents), []
        for repeat in range(self.repeats if count else 0):
            order = Random(repr((self.seed, request.query.query_id, repeat))).sample(range(count), count)
            groups += [order[start:end] for start, end in windows(count, self.group, self.interval or self.group)]
        ranking = yield from _scored(request, groups)
        return ranking


def _scored(request: RerankRequest, groups: Sequence[Sequence[int]]) -> Asking[Ranking]:
    """Asks about all groups at once, and ranks by the mean score of each document."""
    judgements = (yield [_window(request, group) for group in groups]) if groups else []
    found: list[list[float]] = [[] for _ in request.documents]
    for judgement, group in zip(judgements, groups, strict=True):
        for place, value in _scores(judgement, group):
            found[place].append(value)
    return _by_score(request, [math.fsum(values) / len(values) if values else None for values in found])


@dataclass(frozen=True)
class Fused:
    """(1 - weight) times the strategy's scores and `weight` times those of the first stage, each rescaled inside the
    query; equal sums keep the order of the strategy.

    A strategy that compares (all but Pointwise and Groupwise) has no scores but places, n - 1 to 0; these are mixed
    then. A document without a score counts as the one that was scored lowest.

    Args:
        weight: share of the first stage, from 0 to 1. Published: 0.1 (Rank-R1, min-max), 0.2 (ERank, z-score),
            0.4 (GroupRank).
        scale: `min-max` to 0 ... 1, or `z-score` to mean 0 and deviation 1; scores that are all the same become 0.
    """

    strategy: Strategy
    weight: float
    scale: Literal["min-max", "z-score"] = "min-max"

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0:
            raise ConfigurationError(f"Fusion has weight {self.weight} for the first stage; wanted 0 to 1.")
        if self.scale not in ("min-max", "z-score"):
            raise ConfigurationError(f"Fusion has scale '{self.scale}'; wanted 'min-max' or 'z-score'.")

    @property
    def name(self) -> str:
        """The strategy's, then scale and weight."""
        return f"{self.strategy.name}+first-stage({self.scale},weight={self.weight})"

    def rank(self, request: RerankRequest) -> Asking[Ranking]:
        """See Strategy.

        Raises:
            DataError: a document has no finite score of the first stage.
        """
        check_first_stage(request)
        ranking = yield from self.strategy.rank(request)
        own = _rescaled(ranking.scores, self.scale)
        first = _rescaled([request.first_stage[doc_id] for doc_id in ranking.doc_ids], self.scale)
        mixed = [(1.0 - self.weight) * a + self.weight * b for a, b in zip(own, first, strict=True)]
        order = sorted(range(len(mixed)), key=lambda i: (-mixed[i], i))
        return Ranking(ranking.query_id, tuple(ranking.doc_ids[i] for i in order), tuple(mixed[i] for i in order))


def largest_window(strategy: Strategy) -> int:
    """Documents of the largest prompt that one of our strategies makes of a list long enough; 1 for others.

    >>> largest_window(Fused(HeapSort(children=9), 0.1)), largest_window(Sliding()), largest_window(Pointwise())
    (10, 20, 1)
    """
    if isinstance(strategy, Fused):
        return largest_window(strategy.strategy)
    sizes = {"window": 0, "group": 0, "children": 1}  # a node is judged with its children
    return next((getattr(strategy, name) + more for name, more in sizes.items() if hasattr(strategy, name)), 1)


def check_first_stage(request: RerankRequest) -> None:
    """Raises DataError where a document has no finite score of the first stage."""
    unknown = [d.doc_id for d in request.documents if not math.isfinite(request.first_stage.get(d.doc_id, math.nan))]
    if unknown:
        raise DataError(
            f"Query '{request.query.query_id}' has no finite first-stage score for {len(unknown)} of "
            f"{len(request.documents)} documents, for example '{unknown[0]}'; fusion needs all. "
            "Take a TREC run, a rank_llm file with scores or what retrieve writes, or leave fusion out."
        )


_SAME = 1e-12
"""Scores that differ by less than this share of the largest are the same: rescaling would blow up the steps behind the
lowest score, which stand for no score at all."""


def _rescaled(scores: Sequence[float], scale: str) -> list[float]:
    """
    >>> _rescaled([3.0, 1.0, 2.0], "min-max")
    [1.0, 0.0, 0.5]
    >>> _rescaled([3.0, 1.0], "z-score")
    [1.0, -1.0]
    >>> _rescaled([0.5, math.nextafter(0.5, 0)], "min-max")  # the second has no score, see _by_score
    [0.0, 0.0]
    """
    if not scores:
        return []
    if max(scores) - min(scores) <= _SAME * max(map(abs, scores)):
        return [0.0] * len(scores)
    mean = math.fsum(scores) / len(scores)
    if scale == "min-max":
        centre, unit = min(scores), max(scores) - min(scores)
    else:
        centre, unit = mean, math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    return [(score - centre) / unit if unit > 0.0 else 0.0 for score in scores]
