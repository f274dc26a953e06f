"""Rewards that compare all completions about a question: of several documents, each in a prompt of its own, each with
several rollouts. ERank and Retro*. Outcomes of one question share their `group_id`.

A sampler that shuffles prompts, or a process that sees only its own, would show a part of the question, and every rank
in it would be wrong without a sign. What can be seen of that is an IncompleteQuestionError.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rankwright.errors import ConfigurationError, DataError, IncompleteQuestionError
from rankwright.rewards.judged import check_judged, check_single, grades_of, scores_of
from rankwright.rewards.ladders import LADDERS, Ladder
from rankwright.types import Outcome, RewardValue


@dataclass(frozen=True, slots=True)
class _Rollout:
    """One completion of a question's pool."""

    outcome: Outcome
    positive: bool
    score: float | None
    """None where malformed; `penalty` holds what is paid then."""
    penalty: float

    @property
    def doc_id(self) -> str:
        return self.outcome.context.documents[0].doc_id

    @property
    def query_id(self) -> str:
        return self.outcome.example.query.query_id


@dataclass(frozen=True, kw_only=True)
class ERank:
    """Reward out of the joint ranking of all rollouts of a question's documents (ERank, Cai et al., AAAI 2026, arXiv
    2509.00520, section 3.3 and appendix I).

    All scores are sorted together, equal ones have the smallest of their ranks. A positive document's rollout earns the
    reciprocal of its rank; a negative's rollout above a positive is punished; below, it is held to a reference score by
    the squared error. The numbers of the punishments and of the scale could not be read in the paper and are ours; they
    keep malformed < negative above a positive <= negative far from its reference <= 0 < positive.
    """

    positive: Literal["reciprocal", "ndcg"] = "reciprocal"
    """What a positive's rollout of rank r earns. reciprocal: 1 / r (the paper's r_RR). ndcg: 1 / log2(r + 1) by the sum
    of that over the best ranks of all rollouts of positives (the paper's r_nDCG)."""
    above: Literal["worst", "best"] = "worst"
    """Of which rollout of a positive a negative must stay below: of the worst (any of them, as the paper's words say),
    or of the best; the equation could not be read. Equal scores are not above."""
    ties: Literal["shared", "against"] = "shared"
    """Equal scores of positives and negatives. shared: they have the smallest of their ranks (the paper), so a model
    that writes one number for all passages earns the most there is. against: the negatives stand first (ours)."""
    inversion: float = -0.5
    """Paid to a negative's rollout above that; ours."""
    reference: Mapping[tuple[str, str], float] | None = None
    """(query_id, doc_id) -> score of the supervised model that training began with. Without it the error is 0."""
    error_weight: float = 0.5
    """Of the squared error; ours."""
    scale: float = 10.0
    """Largest score: the error is that of score / scale; ours."""
    relevant_from: int = 1
    """Lowest grade of a positive document."""
    documents: int | None = None
    """Documents that a question must come with, or all its candidates where it has fewer. None: not checked."""
    rollouts: int | None = None
    """Rollouts that each of them must come with. None: as many for all."""
    ladder: Ladder = LADDERS["erank"]

    name = "erank"

    def __post_init__(self) -> None:
        _require_counts(self)
        known = {"positive": ("reciprocal", "ndcg"), "above": ("worst", "best"), "ties": ("shared", "against")}
        for option, allowed in known.items():
            if getattr(self, option) not in allowed:
                raise ConfigurationError(
                    f"Option {option} of reward '{self.name}' is {getattr(self, option)!r}; use {' or '.join(allowed)}."
                )
        if not self.scale > 0:
            raise ConfigurationError(f"Option scale of reward '{self.name}' is {self.scale}; wanted above 0.")

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        values = [RewardValue(None)] * len(outcomes)
        for pool in _pools(outcomes, self):
            ascending = sorted(rollout.score for rollout in pool.values() if rollout.score is not None)
            before = self._negatives(pool)
            rank_of = {
                index: 1
                + len(ascending)
                - bisect_right(ascending, rollout.score)
                + rollout.positive * before[rollout.score]
                for index, rollout in pool.items()
                if rollout.score is not None
            }
            positives = [rank for index, rank in rank_of.items() if pool[index].positive]
            limit = (max if self.above == "worst" else min)(positives, default=0)
            ideal = self._ideal(sum(rollout.positive for rollout in pool.values()))
            for index, rollout in pool.items():
                values[index] = self._price(rollout, rank_of.get(index), limit, ideal)
        return values

    def _negatives(self, pool: Mapping[int, _Rollout]) -> Counter[float | None]:
        """Score -> negatives' rollouts that stand before positives of the same score."""
        return Counter(one.score for one in pool.values() if self.ties == "against" and not one.positive)

    def _ideal(self, positives: int) -> float:
        return math.fsum(1 / math.log2(rank + 1) for rank in range(1, positives + 1))

    def _price(self, rollout: _Rollout, rank: int | None, limit: int, ideal: float) -> RewardValue:
        if rank is None or rollout.score is None:
            return RewardValue(rollout.penalty, {"well_formed": 0.0})
        if rollout.positive:
            value = 1 / rank if self.positive == "reciprocal" else 1 / math.log2(rank + 1) / ideal
            return RewardValue(value, {"positive": value, "well_formed": 1.0})
        if rank < limit:
            return RewardValue(self.inversion, {"inverted": 1.0, "well_formed": 1.0})
        error = self._squared_error(rollout, rollout.score)
        # 0.0 - x: a weight times no error would be -0.0
        return RewardValue(0.0 - self.error_weight * error, {"inverted": 0.0, "error": error, "well_formed": 1.0})

    def check_reference(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Whether there is a reference score for all documents that will be rewarded.

        Args:
            pairs: (query_id, doc_id) of each.

        Raises:
            DataError: for some there is none.
        """
        missing = [pair for pair in pairs if self.reference is not None and pair not in self.reference]
        if missing:
            query_id, doc_id = missing[0]
            raise DataError(
                f"Reward '{self.name}' has no reference score for {len(missing)} documents, for example '{doc_id}' of "
                f"question '{query_id}'; wanted one for every document of a prompt. Score them with the supervised "
                "model."
            )

    def _squared_error(self, rollout: _Rollout, score: float) -> float:
        if self.reference is None:
            return 0.0
        wanted = self.reference.get((rollout.query_id, rollout.doc_id))
        if wanted is None:
            raise DataError(
                f"Reward '{self.name}' has no reference score for document '{rollout.doc_id}' of question "
                f"'{rollout.query_id}'; wanted one for every document of a prompt. Score it with the supervised model."
            )
        return ((score - wanted) / self.scale) ** 2


@dataclass(frozen=True, kw_only=True)
class RetroStar:
    """alpha x intra-document reward + (1 - alpha) x inter-document reward (Retro*, Lan et al., ICLR 2026, arXiv
    2509.24869, eq. 1 and 2; alpha and tau from its appendix C).

    Intra: of a document's rollouts the one closest to their mean score earns 1, the furthest -1, the others 0; all 0
    where the furthest is not further than tau from the mean. Inter: a positive's rollout earns the share of the
    negatives' rollouts that it beats, a negative's the share of the positives' rollouts that beat it; equal scores beat
    neither.

    Ours: equally close (or far) rollouts all earn it, and nothing where all are equally far; a question may have more
    than the paper's one positive and one negative; malformed rollouts count neither in the mean nor in a share.
    """

    alpha: float = 0.75
    tau: float = 20.0
    """On the scale of the scores, which go to 100 in the paper."""
    relevant_from: int = 1
    """Lowest grade of a positive document."""
    documents: int | None = None
    """As in ERank; 2 in the paper."""
    rollouts: int | None = None
    """As in ERank; 8 in the paper."""
    ladder: Ladder = LADDERS["retro-star"]

    name = "retro-star"

    def __post_init__(self) -> None:
        _require_counts(self)
        if not 0 <= self.alpha <= 1 or not self.tau >= 0:
            raise ConfigurationError(
                f"Reward '{self.name}' was given alpha={self.alpha} and tau={self.tau}; wanted alpha from 0 to 1 and "
                "tau of at least 0."
            )

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        values = [RewardValue(None)] * len(outcomes)
        for pool in _pools(outcomes, self):
            _require_both_kinds(pool, self.name)
            of_kind = {
                kind: sorted(r.score for r in pool.values() if r.score is not None and r.positive is kind)
                for kind in (True, False)
            }
            of_document: dict[str, list[float]] = {}
            for rollout in pool.values():
                if rollout.score is not None:
                    of_document.setdefault(rollout.doc_id, []).append(rollout.score)
            for index, rollout in pool.items():
                values[index] = self._price(rollout, of_document.get(rollout.doc_id, []), of_kind[not rollout.positive])
        return values

    def _price(self, rollout: _Rollout, same: Sequence[float], others: Sequence[float]) -> RewardValue:
        if rollout.score is None:
            return RewardValue(rollout.penalty, {"well_formed": 0.0})
        intra = float(_closeness(rollout.score, same, self.tau))
        beaten = bisect_left(others, rollout.score)
        beating = len(others) - bisect_right(others, rollout.score)
        inter = (beaten if rollout.positive else beating) / len(others) if others else 0.0
        value = self.alpha * intra + (1 - self.alpha) * inter
        return RewardValue(value, {"intra": intra, "inter": inter, "well_formed": 1.0})


def _closeness(score: float, scores: Sequence[float], tau: float) -> int:
    """1 for a score closest to the mean, -1 for one furthest from it, else 0."""
    # Times the count, distances of whole numbers are whole: equal ones are equal, whatever the mean.
    total, count = math.fsum(scores), len(scores)
    distances = [abs(count * one - total) for one in scores]
    if max(distances) <= tau * count:
        return 0
    distance = abs(count * score - total)
    return (distance == min(distances)) - (distance == max(distances))


def _pools(outcomes: Sequence[Outcome], reward: ERank | RetroStar) -> list[dict[int, _Rollout]]:
    """The rollouts of each question, by their place among the outcomes."""
    name, ladder = reward.name, reward.ladder
    check_judged(outcomes, name)
    pools: dict[str, dict[int, _Rollout]] = {}
    for index, outcome in enumerate(outcomes):
        check_single(outcome, name)
        rung = ladder.fault_of(outcome)
        score = None if rung else scores_of(outcome, name)[0]
        positive = grades_of(outcome)[0] >= reward.relevant_from
        rollout = _Rollout(outcome, positive, score, rung.pays if rung else 0.0)
        pools.setdefault(outcome.group_id, {})[index] = rollout
    for pool in pools.values():
        _require_complete(pool, name, reward.documents, reward.rollouts)
    return list(pools.values())


def _require_complete(pool: Mapping[int, _Rollout], name: str, documents: int | None, rollouts: int | None) -> None:
    found = Counter(rollout.doc_id for rollout in pool.values())
    example = next(iter(pool.values())).outcome.example
    query_id = example.query.query_id
    if documents is not None:
        wanted = min(documents, len(example.candidates) or documents)
        if len(found) != wanted:
            raise _incomplete(name, query_id, f"{len(found)} documents", f"{wanted}")
    wanted = rollouts or max(found.values())
    odd = next((doc_id for doc_id, count in found.items() if count != wanted), None)
    if odd is not None:
        raise _incomplete(name, query_id, f"{found[odd]} rollouts of document '{odd}'", f"{wanted}")


def _require_both_kinds(pool: Mapping[int, _Rollout], name: str) -> None:
    positives = {rollout.doc_id for rollout in pool.values() if rollout.positive}
    negatives = {rollout.doc_id for rollout in pool.values() if not rollout.positive}
    if not positives or not negatives:
        query_id = next(iter(pool.values())).query_id
        found = f"{len(positives)} relevant documents and {len(negatives)} others"
        raise _incomplete(name, query_id, found, "at least one of each")


def _incomplete(name: str, query_id: str, found: str, wanted: str) -> IncompleteQuestionError:
    return IncompleteQuestionError(
        f"Reward '{name}' was given {found} of question '{query_id}'; wanted {wanted}, since it ranks all rollouts "
        "of a question together. Keep a question's prompts in one batch, and gather the batches of all processes first."
    )


def _require_counts(reward: ERank | RetroStar) -> None:
    counts = {"documents": reward.documents, "rollouts": reward.rollouts, "relevant_from": reward.relevant_from}
    wrong = next((option for option, value in counts.items() if value is not None and value < 1), None)
    if wrong is not None:
        raise ConfigurationError(f"Option {wrong} of reward '{reward.name}' is {counts[wrong]}; wanted at least 1.")
