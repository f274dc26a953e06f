"""Rewards of one completion about the documents of its prompt: REARANK, Rank-R1, ReasonRank, GroupRank, ProRank, MM-R5.

Each class is one paper's formula with the paper's numbers as defaults. What a paper leaves open is an option that says
"ours". Every reward is computed among the documents of the prompt: a prompt that holds nothing relevant earns 0 on
each term of relevance, whatever is written. The page: docs/ranking-rewards.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from rankwright.errors import ConfigurationError
from rankwright.metrics.orders import average_overlap, averaged_over_ties, cube_rank, dcg, jensen_shannon, ndcg, recall
from rankwright.rewards.judged import check_judged, check_single, choice_of, grades_of, order_of, scores_of
from rankwright.rewards.ladders import LADDERS, Ladder, is_whole
from rankwright.rewards.words import answer_of, is_order, numbers_in
from rankwright.types import Outcome, Permutation, RewardValue


class _OfOneCompletion:
    """A reward that prices each completion by itself."""

    name: ClassVar[str]

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        check_judged(outcomes, self.name)
        return [self._price(outcome) for outcome in outcomes]

    def _price(self, outcome: Outcome) -> RewardValue:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Rearank(_OfOneCompletion):
    """0.8 relative nDCG@10 + 0.1 both tags there + 0.1 the answer has the form [a] > [b] (REARANK, Zhang et al., EMNLP
    2025, arXiv 2505.20046, section 3.3).

    The relative term is (DCG - DCG of the prompt's order) / (DCG of the best order - DCG of the prompt's order), with
    linear gains: 1 for the best order, 0 for the prompt's own, negative without a floor for a worse one.
    """

    rank_weight: float = 0.8
    tags_weight: float = 0.1
    form_weight: float = 0.1
    cutoff: int = 10
    """Ranks that count."""
    settled: Literal["ndcg", "ndcg-1"] = "ndcg"
    """The relative term where the prompt's order is the best already, and its denominator 0; ours. ndcg: measured from
    zero instead of from the prompt's order, so that the best order earns 1 there too. ndcg-1: what TFRank's code, which
    uses the same data, pays there."""
    clip: float | None = None
    """Largest size of the relative term; none in the paper, 5 in TFRank's code."""
    ladder: Ladder = LADDERS["rearank"]

    name = "rearank"

    def __post_init__(self) -> None:
        _require_cutoff(self.name, self.cutoff)
        _require_choice(self.name, "settled", self.settled, ("ndcg", "ndcg-1"))
        if self.clip is not None and not self.clip > 0:
            raise ConfigurationError(f"Option clip of reward '{self.name}' is {self.clip}; wanted a number above 0.")

    def _price(self, outcome: Outcome) -> RewardValue:
        grades = grades_of(outcome)
        fault = self.ladder.fault_of(outcome)
        answer = answer_of(outcome.completion, self.ladder.tags)
        parts = {
            "rank": fault.pays if fault else self._relative(grades, order_of(outcome, self.name)),
            "tags": float(self.ladder.has_tags(outcome.completion)),
            "form": float(answer is not None and is_order(answer)),
        }
        return _weighted(parts, {"rank": self.rank_weight, "tags": self.tags_weight, "form": self.form_weight}, fault)

    def _relative(self, grades: Sequence[int], order: Sequence[int]) -> float:
        best = sorted(grades, reverse=True)
        found, ideal = dcg([grades[i] for i in order], self.cutoff), dcg(best, self.cutoff)
        if list(grades[: self.cutoff]) != best[: self.cutoff]:
            initial = dcg(grades, self.cutoff)
            relative = (found - initial) / (ideal - initial)
        elif ideal:
            relative = found / ideal - (1.0 if self.settled == "ndcg-1" else 0.0)
        else:
            relative = 0.0
        return relative if self.clip is None else min(max(relative, -self.clip), self.clip)


@dataclass(frozen=True, kw_only=True)
class RankR1(_OfOneCompletion):
    """1 for the label of the most relevant document in the agreed form, else 0 (Rank-R1, Zhuang et al., arXiv
    2503.06034; train_grpo.py of ielab/llm-rankers).

    The authors' prompts hold one relevant document. Where ours hold several, any of the highest grade is right.
    """

    ladder: Ladder = LADDERS["rank-r1"]

    name = "rank-r1"

    def _price(self, outcome: Outcome) -> RewardValue:
        grades = grades_of(outcome)
        fault = self.ladder.fault_of(outcome)
        if fault:
            return _faulty(fault.pays)
        grade = grades[choice_of(outcome, self.name)]
        return _weighted({"match": float(grade >= 1 and grade == max(grades))}, {"match": 1.0})


@dataclass(frozen=True, kw_only=True)
class ReasonRank(_OfOneCompletion):
    """nDCG@10 + 0.2 recall@10 + 0.1 RBO, -1 without the blocks, 0 without a whole order (ReasonRank, Liu et al., arXiv
    2508.07050, eq. 2 to 4; reward_score/ranking.py of the authors' code).

    nDCG and recall take labels as relevant or not. RBO compares with the gold order; in the authors' code its p is 1,
    which is average overlap over all depths (the paper leaves p open).
    """

    recall_weight: float = 0.2
    overlap_weight: float = 0.1
    cutoff: int = 10
    """Ranks that count for nDCG and recall."""
    relevant_from: int = 1
    """Lowest grade that counts as relevant."""
    gold: Mapping[str, Sequence[str]] | None = None
    """query_id -> doc_ids in a teacher's order, as the authors have it; by default the `order` of the question's data.
    Ours: a document that is not in it comes after those that are, by descending grade, equal grades in the prompt's
    order."""
    ladder: Ladder = LADDERS["reasonrank"]

    name = "reasonrank"

    def __post_init__(self) -> None:
        _require_cutoff(self.name, self.cutoff)
        _require_grade(self.name, self.relevant_from)

    def _price(self, outcome: Outcome) -> RewardValue:
        grades = grades_of(outcome)
        fault = self.ladder.fault_of(outcome)
        if fault:
            return _faulty(fault.pays)
        order = order_of(outcome, self.name)
        hits = [float(grades[i] >= self.relevant_from) for i in order]
        parts = {
            "ndcg": ndcg(hits, sorted(hits, reverse=True), self.cutoff),
            "recall": recall(hits, self.cutoff),
            "overlap": average_overlap(order, self._gold_order(outcome, grades)),
        }
        return _weighted(parts, {"ndcg": 1.0, "recall": self.recall_weight, "overlap": self.overlap_weight})

    def _gold_order(self, outcome: Outcome, grades: Sequence[int]) -> list[int]:
        taught = (self.gold or {}).get(outcome.example.query.query_id, outcome.example.order)
        rank_of = {doc_id: rank for rank, doc_id in enumerate(taught)}
        ranks = [rank_of.get(document.doc_id, len(rank_of)) for document in outcome.context.documents]
        return sorted(range(len(grades)), key=lambda i: (ranks[i], -grades[i]))


@dataclass(frozen=True, kw_only=True)
class GroupRank(_OfOneCompletion):
    """nDCG@10 + 0.2 recall@10 + 0.1 (1 - JS) of scores for a group of documents, -0.5 without the tags, -0.1 without
    readable scores (GroupRank, Sun et al., arXiv 2511.11653 in its later version, eq. 4 to 6).

    JS is the Jensen-Shannon divergence between the scores and the grades, each made a distribution over the group. How,
    with which logarithm, and which documents are relevant for recall, the paper does not say.
    """

    recall_weight: float = 0.2
    distribution_weight: float = 0.1
    cutoff: int = 10
    """Ranks that count for nDCG and recall."""
    relevant_from: int = 1
    """Lowest grade that counts as relevant for recall; ours. nDCG has the grades as gains."""
    distribution: Literal["sum", "softmax"] = "sum"
    """How scores and grades become distributions; ours. sum: each by the sum (below 0 counts as 0; all 0: uniform), so
    that scores to 10 can match grades to 3. softmax: of the numbers as they are."""
    log_base: float = 2.0
    """Of the divergence; ours. With 2 it is at most 1."""
    ties: Literal["mean", "prompt"] = "mean"
    """What equal scores are worth; ours. mean: the expectation over all orders of them, so that none is paid for luck.
    prompt: the order of the prompt."""
    ladder: Ladder = LADDERS["grouprank"]

    name = "grouprank"

    def __post_init__(self) -> None:
        _require_cutoff(self.name, self.cutoff)
        _require_grade(self.name, self.relevant_from)
        _require_choice(self.name, "distribution", self.distribution, ("sum", "softmax"))
        _require_choice(self.name, "ties", self.ties, ("mean", "prompt"))
        if not self.log_base > 1:
            raise ConfigurationError(f"Option log_base of reward '{self.name}' is {self.log_base}; wanted above 1.")

    def _price(self, outcome: Outcome) -> RewardValue:
        grades = grades_of(outcome)
        fault = self.ladder.fault_of(outcome)
        if fault:
            return _faulty(fault.pays)
        scores = scores_of(outcome, self.name)
        hits = [float(grade >= self.relevant_from) for grade in grades]
        divergence = jensen_shannon(self._shares(scores), self._shares(grades), self.log_base)
        parts = {
            "ndcg": ndcg(self._ranked(scores, grades), sorted(grades, reverse=True), self.cutoff),
            "recall": recall(self._ranked(scores, hits), self.cutoff),
            "likeness": 1 - divergence,
        }
        return _weighted(parts, {"ndcg": 1.0, "recall": self.recall_weight, "likeness": self.distribution_weight})

    def _ranked(self, scores: Sequence[float], gains: Sequence[float]) -> list[float]:
        if self.ties == "mean":
            return averaged_over_ties(scores, gains)
        return [gains[i] for i in sorted(range(len(scores)), key=lambda i: -scores[i])]

    def _shares(self, numbers: Sequence[float]) -> list[float]:
        if self.distribution == "softmax":
            weights = [math.exp(number - max(numbers)) for number in numbers]
        else:
            weights = [max(number, 0.0) for number in numbers]
        total = math.fsum(weights)
        return [weight / total for weight in weights] if total else [1 / len(weights)] * len(weights)


@dataclass(frozen=True, kw_only=True)
class ProRank(_OfOneCompletion):
    """Correct 0 or 1 for one document, and that it is a 0 or 1 at all (stage 1, the prompt warm-up, of ProRank, Li et
    al., arXiv 2506.03487).

    That format and correctness are rewarded is the paper's; both weights are ours. Stage 2 learns scores from labels
    and has no reward.
    """

    form_weight: float = 0.5
    match_weight: float = 0.5
    relevant_from: int = 1
    """Lowest grade that is a 1; ours."""
    stage: Literal[1] = 1
    ladder: Ladder = LADDERS["prorank"]

    name = "prorank"

    def __post_init__(self) -> None:
        _require_grade(self.name, self.relevant_from)
        if self.stage != 1:
            raise ConfigurationError(
                f"Reward '{self.name}' was asked for stage {self.stage}; stage 1 alone has a reward. Stage 2 learns "
                "scores from labels: train it with --method sft or supervised."
            )

    def _price(self, outcome: Outcome) -> RewardValue:
        check_single(outcome, self.name)
        fault = self.ladder.fault_of(outcome)
        if fault:
            return _faulty(fault.pays)
        relevant = grades_of(outcome)[0] >= self.relevant_from
        (score,) = scores_of(outcome, self.name)
        parts = {"form": float(score in (0, 1)), "match": float(score == relevant)}
        return _weighted(parts, {"form": self.form_weight, "match": self.match_weight})


@dataclass(frozen=True, kw_only=True)
class MMR5(_OfOneCompletion):
    """Cube-rank of a list that may be incomplete, plus its format (MM-R5, arXiv 2506.12364, section 3.3).

    Result: sum over ranks j with a relevant document of 1 / j^3, by the same sum for all K relevant ones at the top.
    Format: tags there x (N - |ids written - N|) / N x share of ids from 1 to N. Both have weight 1. The format falls
    below 0 for a list longer than 2 N; the result does not look at the tags, only at the answer.
    """

    relevant_from: int = 1
    """Lowest grade that counts as relevant."""
    deduplicate: bool = True
    """Repeated ids count once, as the paper says; the authors' code counts them all, so that the result can exceed
    1."""
    ladder: Ladder = LADDERS["mm-r5"]

    name = "mm-r5"

    def __post_init__(self) -> None:
        _require_grade(self.name, self.relevant_from)

    def _price(self, outcome: Outcome) -> RewardValue:
        hits = [grade >= self.relevant_from for grade in grades_of(outcome)]
        written = self._written(outcome)
        fault = self.ladder.fault_of(outcome)
        parts = {
            "result": cube_rank([0 < number <= len(hits) and hits[number - 1] for number in written], sum(hits)),
            "format": fault.pays if fault else _list_format(written, len(hits)),
        }
        return _weighted(parts, {"result": 1.0, "format": 1.0}, fault)

    def _written(self, outcome: Outcome) -> list[int]:
        """Ids from 1 as they stand in the answer, valid or not."""
        if isinstance(outcome.judgement, Permutation) and is_whole(outcome.judgement):
            return [position + 1 for position in order_of(outcome, self.name)]
        numbers = numbers_in(answer_of(outcome.completion, self.ladder.tags) or "")
        return list(dict.fromkeys(numbers)) if self.deduplicate else numbers


def _list_format(written: Sequence[int], count: int) -> float:
    """R_len x R_range of MM-R5; 0 for an empty list."""
    if not written or not count:
        return 0.0
    return (count - abs(len(written) - count)) / count * sum(0 < number <= count for number in written) / len(written)


def _weighted(parts: Mapping[str, float], weights: Mapping[str, float], fault: object = None) -> RewardValue:
    value = math.fsum(weights[name] * part for name, part in parts.items())
    return RewardValue(value, {**parts, "well_formed": float(not fault)})


def _faulty(pays: float) -> RewardValue:
    return RewardValue(pays, {"well_formed": 0.0})


def _require_cutoff(reward: str, cutoff: int) -> None:
    if cutoff < 1:
        raise ConfigurationError(f"Option cutoff of reward '{reward}' is {cutoff}; wanted at least 1.")


def _require_grade(reward: str, grade: int) -> None:
    if grade < 1:
        raise ConfigurationError(
            f"Option relevant_from of reward '{reward}' is {grade}; wanted at least 1, since 0 is what no label means."
        )


def _require_choice(reward: str, option: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigurationError(f"Option {option} of reward '{reward}' is {value!r}; use one of {', '.join(known)}.")
