"""RRPO over small worlds: what is read, where rewards land, and which way the gradient points."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from rankwright.algorithms import RRPO, RRPOConfig, Supervised
from rankwright.algorithms.rrpo import Rollout
from rankwright.errors import ConfigurationError, ReaderError, RewardError, TrainingError
from rankwright.maths.plackett_luce import step_logprobs
from rankwright.maths.policy_gradient import exact_kl, sampled_kl
from rankwright.rewards import answer_reward
from rankwright.training import requests_of
from rankwright.types import Answer, Context, Document, Example, Outcome, Query, ReadFailed, ReadResult, RewardValue
from tests.toy import ToyPolicy, ToyReader, examples

INF = math.inf
Ids = tuple[str, ...]


class EchoReader:
    """Answers with the ids that it was given, and remembers what it was asked."""

    name = "echo"

    def __init__(self, fails: Callable[[Ids], bool] = lambda ids: False, paid: bool = True) -> None:
        self.fails = fails
        self.paid = paid
        self.asked: list[tuple[str, Ids]] = []

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        results: list[ReadResult] = []
        for context in contexts:
            ids = tuple(document.doc_id for document in context.documents)
            self.asked.append((context.query.query_id, ids))
            results.append(ReadFailed("planned") if self.fails(ids) else Answer(" ".join(ids), self.paid))
        return results


class Price:
    """Pays an answer by the ids in it, in order."""

    name = "price"

    def __init__(self, of: Callable[[Ids], float | None]) -> None:
        self.of = of

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        return [RewardValue(None if isinstance(o.result, ReadFailed) else self.price(o)) for o in outcomes]

    def price(self, outcome: Outcome) -> float | None:
        assert isinstance(outcome.result, Answer)
        ids = tuple(outcome.result.text.split())
        assert outcome.position == len(ids)
        return self.of(ids)


class PriceByQuestion(Price):
    """Pays by question and ids."""

    def __init__(self, of: Callable[[str, Ids], float | None]) -> None:
        self.by_question = of

    def price(self, outcome: Outcome) -> float | None:
        assert isinstance(outcome.result, Answer)
        return self.by_question(outcome.example.query.query_id, tuple(outcome.result.text.split()))


def number(ids: Ids) -> float:
    """A price that tells all prefixes apart: digits after the point."""
    return float("0." + "".join(ids)) if ids else 0.0


def questions(*lengths: int) -> list[Example]:
    """Question i has lengths[i] candidates with the ids 1, 2, ..."""
    return [
        Example(Query(f"q{i}", f"question {i}?"), tuple(Document(str(d + 1), f"passage {d}") for d in range(length)))
        for i, length in enumerate(lengths)
    ]


def scores_for(rows: Sequence[Example], seed: int = 0) -> Tensor:
    """scores_QD, -inf on padding."""
    generator = torch.Generator().manual_seed(seed)
    width = max(len(row.candidates) for row in rows)
    scores = torch.randn(len(rows), width, generator=generator)
    for q, row in enumerate(rows):
        scores[q, len(row.candidates) :] = -INF
    return scores


def ids_of(actions: Sequence[int], steps: int) -> Ids:
    return tuple(str(a + 1) for a in actions[:steps])


def greedy_ids(row: Tensor, steps: int) -> Ids:
    order = sorted(range(len(row)), key=lambda d: -row[d].item())
    return ids_of(order, steps)


def prefixes(rollout: Rollout, rows: Sequence[Example], reference: Tensor, k: int) -> set[tuple[str, Ids]]:
    """What a rollout needs read, by definition."""
    wanted: set[tuple[str, Ids]] = set()
    for q, row in enumerate(rows):
        steps = min(k, len(row.candidates))
        rankings = [*rollout.actions_QSK[q].tolist()]
        wanted |= {(row.query.query_id, ids_of(ranking, t)) for ranking in rankings for t in range(1, steps + 1)}
        wanted |= {(row.query.query_id, greedy_ids(reference[q], t)) for t in range(1, steps + 1)}
        wanted.add((row.query.query_id, ()))
    return wanted


# --- what is read


@pytest.mark.parametrize("lengths", [(5, 5), (5, 1, 2), (1,), (3, 9)])
def test_each_distinct_prefix_is_read_once(lengths: tuple[int, ...]) -> None:
    rows, config, reader = questions(*lengths), RRPOConfig(samples=6, train_k=3), EchoReader()
    scores, reference = scores_for(rows), scores_for(rows, seed=1)
    algorithm = RRPO(config, reader, Price(number))
    rollout = algorithm.collect(scores, reference, rows, 0)
    assert len(reader.asked) == len(set(reader.asked))
    assert set(reader.asked) == prefixes(rollout, rows, reference, 3)
    assert rollout.metrics["reader_calls"] == len(reader.asked)
    assert len(reader.asked) <= sum(algorithm.reads_per_question(length) for length in lengths)
    assert all(len(set(ids)) == len(ids) for _, ids in reader.asked)


@pytest.mark.parametrize(("candidates", "samples", "most"), [(40, 3, (3 + 1) * 2 + 1), (3, 64, 3 + 3 * 2 + 1)])
def test_reads_per_question_is_reached_but_never_exceeded(candidates: int, samples: int, most: int) -> None:
    rows, config = questions(candidates), RRPOConfig(samples=samples, train_k=2)
    algorithm = RRPO(config, EchoReader(), Price(number))
    flat = torch.zeros(1, candidates)
    calls = [algorithm.collect(flat, flat, rows, step).metrics["reader_calls"] for step in range(20)]
    assert max(calls) == algorithm.reads_per_question(candidates) == most


def test_answers_of_a_cache_are_hits_and_cost_nothing() -> None:
    rows = questions(4)
    reader = EchoReader(paid=False)
    metrics = RRPO(RRPOConfig(), reader, Price(number)).collect(scores_for(rows), scores_for(rows), rows, 0).metrics
    assert (metrics["reader_calls"], metrics["cache_hits"]) == (0, len(reader.asked))


def test_a_read_for_which_nothing_was_sent_is_no_call() -> None:
    class TooLong(EchoReader):
        def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
            return [ReadFailed("prompt too long", paid=False) for _ in contexts]

    rows = questions(4)
    algorithm = RRPO(RRPOConfig(max_failed_reads=1.0), TooLong(), Price(number))
    metrics = algorithm.collect(scores_for(rows), scores_for(rows), rows, 0).metrics
    assert (metrics["reader_calls"], metrics["cache_hits"]) == (0, 0)
    assert metrics["failed_reads"] > 0


def test_sampled_rankings_depend_on_seed_and_rollout_but_not_on_the_batch() -> None:
    """Question 0 has fewer candidates than question 1, so alone its scores have another width."""
    rows = questions(4, 9)
    scores, reference = scores_for(rows), scores_for(rows, seed=1)

    def actions(seed: int, step: int, keep: slice, width: int) -> Tensor:
        algorithm = RRPO(RRPOConfig(samples=8), EchoReader(), Price(number), seed=seed)
        return algorithm.collect(scores[keep, :width], reference[keep, :width], rows[keep], step).actions_QSK

    both = actions(0, 0, slice(0, 2), 9)
    assert torch.equal(actions(0, 0, slice(0, 1), 4)[0], both[0])
    assert torch.equal(actions(0, 0, slice(1, 2), 9)[0], both[1])
    assert not torch.equal(actions(0, 1, slice(0, 2), 9), both)
    assert not torch.equal(actions(1, 0, slice(0, 2), 9), both)


def test_noise_by_question_samples_the_same_rankings_again_and_reads_nothing_new() -> None:
    """As long as the policy is the same; another seed or question has other noise."""
    rows, reader = questions(9, 9), EchoReader()
    scores = scores_for(rows)
    algorithm = RRPO(RRPOConfig(samples=8, noise="question"), reader, Price(number))
    first = algorithm.collect(scores, scores, rows, 0)
    asked = set(reader.asked)
    later = algorithm.collect(scores, scores, rows, 7)
    assert torch.equal(first.actions_QSK, later.actions_QSK)
    assert set(reader.asked) == asked
    assert not torch.equal(first.actions_QSK[0], first.actions_QSK[1])
    moved = algorithm.collect(
        scores + 0.05 * torch.randn(2, 9, generator=torch.Generator().manual_seed(0)), scores, rows, 8
    )
    same = (moved.actions_QSK == first.actions_QSK).double().mean()
    assert 0.7 < same < 1, "a policy that moved a little samples mostly the same"


@pytest.mark.parametrize(("samples", "shared"), [(4, 1), (4, 2), (5, 2), (2, 1)])
def test_samples_that_share_their_first_documents_need_fewer_reads(samples: int, shared: int) -> None:
    rows, reader = questions(40, 2, 1), EchoReader()
    scores = scores_for(rows)
    algorithm = RRPO(RRPOConfig(samples=samples, shared_steps=shared), reader, Price(number))
    rollout = algorithm.collect(torch.where(torch.isfinite(scores), 0.0, scores), scores, rows, 0)
    for q, row in enumerate(rows):
        steps = min(3, len(row.candidates))
        rankings = [ids_of(r, steps) for r in rollout.actions_QSK[q].tolist()]
        assert all(len(set(ranking)) == steps for ranking in rankings)
        for one, two in zip(rankings[::2], rankings[1::2], strict=False):
            assert one[:shared] == two[:shared]
    per_question = [sum(query_id == f"q{q}" for query_id, _ in reader.asked) for q in range(3)]
    assert all(
        n <= algorithm.reads_per_question(len(row.candidates)) for n, row in zip(per_question, rows, strict=True)
    )
    pairs = samples - samples // 2
    assert algorithm.reads_per_question(40) == shared * (pairs + 1) + (3 - shared) * (samples + 1) + 1


def test_where_the_first_samples_earn_the_same_the_others_are_not_read() -> None:
    rows, scores = questions(9, 9, 2), scores_for(questions(9, 9, 2))
    flat = torch.where(torch.isfinite(scores), 0.0, scores)

    def price(query_id: str, ids: Ids) -> float:
        return 0.5 if query_id != "q1" else number(ids)

    collected = {}
    for first in (0, 2):
        reader = EchoReader()
        algorithm = RRPO(RRPOConfig(samples=6, read_first=first), reader, PriceByQuestion(price))
        rollout = algorithm.collect(flat, scores, rows, 0)
        asked = [[ids for query_id, ids in reader.asked if query_id == row.query.query_id] for row in rows]
        collected[first] = rollout, asked
        assert rollout.metrics["reader_calls"] == len(reader.asked) == len(set(reader.asked))
    (whole, all_asked), (spared, asked) = collected[0], collected[2]
    assert torch.equal(spared.actions_QSK, whole.actions_QSK)
    assert torch.equal(spared.advantages_QSA, whole.advantages_QSA), "they would have earned the same"
    rankings = [ids_of(ranking, 3) for ranking in whole.actions_QSK[0, :2].tolist()] + [greedy_ids(scores[0], 3)]
    assert set(asked[0]) == {ranking[:t] for ranking in rankings for t in range(4)}
    assert len(asked[0]) < len(all_asked[0])
    assert set(asked[1]) == set(all_asked[1])
    assert whole.metrics["spared_share"] == 0 < spared.metrics["spared_share"] <= 2 * 4 / 18


class Place:
    """Pays an answer the share of its question's answers that `number` prices lower."""

    name = "place"

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        self.calls.append([o.group_id for o in outcomes])
        prices = [(o.group_id, number(tuple(d.doc_id for d in o.context.documents))) for o in outcomes]
        of = {query_id: [price for q, price in prices if q == query_id] for query_id, _ in prices}
        return [RewardValue(sum(other < price for other in of[q]) / len(of[q])) for q, price in prices]


def test_a_reward_that_compares_is_given_both_rounds_of_a_question_together() -> None:
    """One candidate leaves nothing to compare, so that its question is spared and priced once."""
    rows, scores = questions(9, 1, 9), scores_for(questions(9, 1, 9))
    flat = torch.where(torch.isfinite(scores), 0.0, scores)
    found = {}
    for first in (0, 2):
        reward = Place()
        config = RRPOConfig(samples=6, read_first=first, baseline="group")
        found[first] = RRPO(config, EchoReader(), reward).collect(flat, scores, rows, 0), reward.calls
    (whole, _), (in_rounds, calls) = found[0], found[2]
    assert in_rounds.metrics["spared_share"] == whole.metrics["spared_share"] == 0
    assert torch.equal(in_rounds.advantages_QSA, whole.advantages_QSA)
    assert in_rounds.metrics["reader_calls"] == whole.metrics["reader_calls"]
    assert [set(call) for call in calls] == [{"q0", "q1", "q2"}, {"q0", "q2"}]


def test_without_the_read_of_no_document_the_gradient_is_the_same() -> None:
    rows, found = questions(9, 2), []
    scores, reference = scores_for(rows), scores_for(rows, seed=1)
    for closed_book in (True, False):
        reader = EchoReader()
        algorithm = RRPO(RRPOConfig(read_closed_book=closed_book), reader, Price(number))
        rollout = algorithm.collect(scores, reference, rows, 0)
        assert any(ids == () for _, ids in reader.asked) == closed_book
        assert math.isnan(rollout.metrics["no_document_reward"]) != closed_book
        found.append((rollout.advantages_QSA, len(reader.asked), algorithm.reads_per_question(9)))
    (whole, asked, bound), (spared, fewer, lower) = found
    assert torch.equal(whole, spared)
    assert (asked - fewer, bound - lower) == (2, 1)
    with pytest.raises(ConfigurationError, match=r"read_closed_book is False with rrpo\.drop_closed_book True"):
        RRPOConfig(read_closed_book=False, drop_closed_book=True)


@pytest.mark.parametrize("odd", ["reference", "first", "failed"])
def test_all_samples_are_read_where_one_of_the_first_or_the_reference_differs(odd: str) -> None:
    rows, scores = questions(9), scores_for(questions(9))
    flat = torch.zeros_like(scores)
    algorithm = RRPO(RRPOConfig(samples=4), EchoReader(), Price(lambda ids: 0.5))
    sampled = algorithm.collect(flat, scores, rows, 0).actions_QSK[0].tolist()
    ranking = greedy_ids(scores[0], 3) if odd == "reference" else ids_of(sampled[0], 3)
    reader = EchoReader(fails=lambda ids: odd == "failed" and ids == ranking)
    algorithm = RRPO(RRPOConfig(samples=4, read_first=2), reader, Price(lambda ids: 0.6 if ids == ranking else 0.5))
    rollout = algorithm.collect(flat, scores, rows, 0)
    assert set(reader.asked) == prefixes(rollout, rows, scores, 3)
    assert rollout.metrics["spared_share"] == 0


# --- where rewards land


def anchored(rewards: Sequence[float], values: Sequence[float]) -> list[float]:
    return [sum(r - v for r, v in zip(rewards[t:], values[t:], strict=True)) for t in range(len(rewards))]


@pytest.mark.parametrize("lengths", [(5, 5), (1, 4, 2)])
def test_rewards_and_reference_values_are_those_of_the_prefixes(lengths: tuple[int, ...]) -> None:
    rows = questions(*lengths)
    scores, reference = scores_for(rows), scores_for(rows, seed=1)
    rollout = RRPO(RRPOConfig(samples=3, train_k=3), EchoReader(), Price(number)).collect(scores, reference, rows, 0)
    raw: list[float] = []
    for q, row in enumerate(rows):
        steps = min(3, len(row.candidates))
        values = [number(greedy_ids(reference[q], t)) for t in range(1, steps + 1)]
        for ranking in rollout.actions_QSK[q].tolist():
            raw += anchored([number(ids_of(ranking, t)) for t in range(1, steps + 1)], values)
    mean = sum(raw) / len(raw)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in raw) / len(raw))
    found = rollout.advantages_QSA[rollout.valid_QSA].tolist()
    assert found == pytest.approx([(a - mean) / (deviation + 1e-6) for a in raw], abs=1e-4)
    assert rollout.metrics["advantage"] == pytest.approx(mean)
    assert torch.equal(rollout.valid_QSA, rollout.taken_QK[:, None, :].expand_as(rollout.valid_QSA))
    assert rollout.taken_QK.sum(-1).tolist() == [min(3, length) for length in lengths]
    assert rollout.advantages_QSA[~rollout.valid_QSA].eq(0).all()


def test_scaled_by_the_question_a_rare_reward_weighs_as_much_as_a_common_one() -> None:
    """Document 1 is worth 1: likely in the first question, rare in the second, absent in the third."""
    absent = tuple(Document(f"{d}x", "") for d in range(4))
    rows = [*questions(4, 4), Example(Query("q2", "question 2?"), absent)]
    scores = torch.tensor([[2.0, 0, 0, 0], [0, 1.0, 1.0, 1.0], [0, 0, 0, 0]])
    price = Price(lambda ids: float(bool(ids) and ids[0] == "1"))
    config = RRPOConfig(samples=32, train_k=1, scale="question")
    rollout = RRPO(config, EchoReader(), price).collect(scores, scores, rows, 0)
    chosen = rollout.actions_QSK[..., 0] == 0
    share = chosen.double().mean(-1)
    assert 0 < share[1] < 0.5 < share[0] < 1
    for q in (0, 1):
        hit, miss = rollout.advantages_QSA[q, chosen[q]], rollout.advantages_QSA[q, ~chosen[q]]
        assert torch.allclose(hit, (1 / share[q] - 1).float())
        assert miss.eq(-1).all()
    assert rollout.advantages_QSA[2].eq(0).all()


def test_scaled_by_the_question_a_failed_read_masks_what_needs_it_and_a_failed_baseline_nothing() -> None:
    """The reference's first document cannot be read, nor can any prefix that ends with document 2."""
    rows, scores, reference = questions(5), scores_for(questions(5)), torch.tensor([[0.0, 0.0, 0.0, 0.0, 9.0]])
    reader = EchoReader(lambda ids: bool(ids) and ids[-1] in ("2", "5"))
    config = RRPOConfig(samples=12, train_k=3, scale="question")
    rollout = RRPO(config, reader, Price(number)).collect(scores, reference, rows, 0)
    for ranking, valid in zip(rollout.actions_QSK[0].tolist(), rollout.valid_QSA[0].tolist(), strict=True):
        broken = [a in (1, 4) for a in ranking]
        assert valid == [not any(broken[t:]) for t in range(3)]
    assert rollout.valid_QSA.any()
    assert torch.isfinite(rollout.advantages_QSA).all()
    assert rollout.metrics["masked_steps"] == (~rollout.valid_QSA).sum()


def test_a_rollout_in_which_nothing_was_earned_teaches_nothing() -> None:
    rows, flat = questions(4), torch.zeros(1, 4)
    for scale in ("window", "question"):
        algorithm = RRPO(RRPOConfig(scale=scale), EchoReader(), Price(lambda ids: 0.0))
        assert not algorithm.collect(flat, flat, rows, 0).teaches


def test_scaled_by_the_question_a_reward_below_zero_is_refused() -> None:
    rows, flat = questions(4), torch.zeros(1, 4)
    algorithm = RRPO(RRPOConfig(scale="question"), EchoReader(), Price(lambda ids: number(ids) - 0.5))
    with pytest.raises(ConfigurationError, match=r"Reward 'price' gave -0\..*use another rrpo.scale"):
        algorithm.collect(flat, flat, rows, 0)


@pytest.mark.parametrize("scale", ["window", "question"])
def test_questions_that_say_nothing_about_the_ranking_can_be_left_out(scale: Literal["window", "question"]) -> None:
    """Question 0 is known without documents, 1 earns the same whatever comes first, in 2 one document is worth it; the
    reading of question 3 without documents failed."""
    rows = [Example(Query(f"q{i}", f"question {i}?"), questions(3)[0].candidates) for i in range(4)]
    scores = torch.zeros(4, 3)

    def worth(query_id: str, ids: Ids) -> float | None:
        if query_id == "q1":
            return 0.5 if ids else 0.0
        if not ids:
            return {"q0": 1.0, "q2": 0.5, "q3": None}[query_id]
        return float(ids[0] == "1")

    def taught(*, drop: bool = False, skip: bool = False) -> tuple[list[bool], float]:
        config = RRPOConfig(samples=24, train_k=1, scale=scale, drop_closed_book=drop, skip_unanimous=skip)
        rollout = RRPO(config, EchoReader(), PriceByQuestion(worth)).collect(scores, scores, rows, 0)
        assert rollout.advantages_QSA[~rollout.valid_QSA].eq(0).all()
        return rollout.valid_QSA.any(-1).any(-1).tolist(), rollout.metrics["dropped_share"]

    assert taught() == ([True, True, True, True], 0.0)
    assert taught(drop=True) == ([False, True, True, True], 0.25)
    assert taught(skip=True) == ([True, False, True, True], 0.25)
    assert taught(drop=True, skip=True) == ([False, False, True, True], 0.5)


def test_a_question_that_earns_nothing_without_documents_is_not_known_by_heart() -> None:
    """Nor do its samples earn anything, but the reference does."""
    (row,), flat = questions(6), torch.zeros(1, 6)
    reference = torch.arange(6.0)[None].flip(1)
    best = greedy_ids(reference[0], 3)
    config = RRPOConfig(drop_closed_book=True, scale="none", baseline="reference")
    rollout = RRPO(config, EchoReader(), Price(lambda ids: float(ids == best))).collect(flat, reference, [row], 0)
    assert rollout.metrics["reward"] == 0
    assert rollout.metrics["dropped_share"] == 0
    assert (rollout.advantages_QSA[..., -1] == -1).all()


def test_metrics_of_a_hand_made_rollout() -> None:
    """Document 1 is worth 1 where it comes first, the question without documents 0.25; the second question is flat."""
    rows = questions(3, 3)
    scores = torch.tensor([[60.0, 0.0, -60.0], [0.0, 1.0, 2.0]])
    reference = torch.tensor([[0.0, 60.0, 30.0], [0.0, 1.0, 2.0]])

    def price(ids: Ids) -> float:
        return 0.25 if not ids else float(ids[0] == "1")

    algorithm = RRPO(RRPOConfig(samples=2, train_k=2), EchoReader(), Price(price))
    rollout = algorithm.collect(scores[:1], reference[:1], rows[:1], 0)
    assert rollout.actions_QSK.tolist() == [[[0, 1], [0, 1]]]
    metrics = rollout.metrics
    assert (metrics["reward"], metrics["reference_reward"], metrics["no_document_reward"]) == (1.0, 0.0, 0.25)
    assert metrics["advantage"] == pytest.approx((2 + 1) / 2)  # 2 left to gain at the first step, 1 at the second
    assert metrics["zero_variance_share"] == 1.0
    assert (metrics["failed_reads"], metrics["masked_steps"]) == (0, 0)
    assert metrics["reader_calls"] == 2 + 2 + 1


def test_a_question_where_samples_differ_has_variance() -> None:
    rows = questions(4)
    flat = torch.zeros(1, 4)
    algorithm = RRPO(RRPOConfig(samples=16, train_k=1), EchoReader(), Price(number))
    assert algorithm.collect(flat, flat, rows, 0).metrics["zero_variance_share"] == 0.0


# --- failed reads


@pytest.mark.parametrize("by_reward", [False, True])
def test_failed_reads_mask_the_steps_that_need_them_and_are_counted(by_reward: bool) -> None:
    """Reading fails where document 2 comes last: by the reader, or by a reward without a value. Never a reward of 0."""
    rows, k = questions(5), 3
    scores, reference = scores_for(rows), torch.tensor([[9.0, 0.0, 7.0, 8.0, 6.0]])

    def fails(ids: Ids) -> bool:
        return bool(ids) and ids[-1] == "2"

    if by_reward:
        reader, reward = EchoReader(), Price(lambda ids: None if fails(ids) else number(ids))
    else:
        reader, reward = EchoReader(fails), Price(number)
    algorithm = RRPO(RRPOConfig(samples=12, train_k=k), reader, reward)
    rollout = algorithm.collect(scores, reference, rows, 0)
    masked = 0
    for ranking, valid in zip(rollout.actions_QSK[0].tolist(), rollout.valid_QSA[0].tolist(), strict=True):
        broken = [fails(ids_of(ranking, t)) for t in range(1, k + 1)]
        wanted = [not any(broken[t:]) for t in range(k)]
        assert valid == wanted
        masked += k - sum(wanted)
    assert 0 < masked < 12 * k
    assert rollout.metrics["masked_steps"] == masked
    assert rollout.metrics["failed_reads"] == sum(fails(ids) for _, ids in reader.asked)
    assert rollout.metrics["reader_calls"] == len(reader.asked)
    assert torch.isfinite(rollout.advantages_QSA).all()
    assert rollout.advantages_QSA[~rollout.valid_QSA].eq(0).all()


def test_when_everything_fails_the_loss_is_only_the_divergence() -> None:
    rows = questions(4)
    scores = scores_for(rows).requires_grad_()
    algorithm = RRPO(RRPOConfig(beta=0.5), EchoReader(lambda ids: True), Price(number))
    rollout = algorithm.collect(scores.detach(), scores_for(rows, 1), rows, 0)
    loss, metrics = algorithm.loss(scores, rollout)
    assert loss.item() == pytest.approx(0.5 * metrics["kl"])
    assert math.isnan(rollout.metrics["reward"])
    assert math.isnan(rollout.metrics["zero_variance_share"])


def test_a_question_whose_reads_failed_is_not_one_whose_samples_earned_the_same() -> None:
    rows = questions(4, 4)
    scores = torch.zeros(2, 4)
    price = PriceByQuestion(lambda query_id, ids: None if query_id == rows[1].query.query_id else number(ids))
    config = RRPOConfig(samples=16, train_k=1, max_failed_reads=1)
    assert RRPO(config, EchoReader(), price).collect(scores, scores, rows, 0).metrics["zero_variance_share"] == 0.0


def test_a_rollout_without_a_valid_step_teaches_nothing() -> None:
    rows = questions(4)
    for fails, teaches in ((True, False), (False, True)):
        algorithm = RRPO(RRPOConfig(), EchoReader(lambda ids, fails=fails: fails), Price(number))
        assert algorithm.collect(scores_for(rows), scores_for(rows, 1), rows, 0).teaches is teaches


def test_too_many_failed_reads_stop_the_run_after_fifty_reads() -> None:
    rows = questions(4, 4, 4)
    algorithm = RRPO(RRPOConfig(max_failed_reads=0.2), EchoReader(lambda ids: True), Price(number))
    scores = scores_for(rows)
    survived: list[int] = []

    def spend() -> None:
        for step in range(20):
            algorithm.collect(scores, scores, rows, step)
            survived.append(len(algorithm.recent))

    wanted = r"Reader 'echo' failed on \d+ of \d+ recent reads; at most 20% may fail.*--resume"
    with pytest.raises(ReaderError, match=wanted):
        spend()
    assert survived
    assert max(survived) < 50 <= len(algorithm.recent)


def test_a_reader_that_breaks_after_thousands_of_good_reads_is_noticed_as_fast() -> None:
    rows, broken = questions(9, 9, 9), False
    reader = EchoReader(lambda ids: broken)
    algorithm = RRPO(RRPOConfig(max_failed_reads=0.2), reader, Price(number))
    scores = scores_for(rows)
    for step in range(100):
        algorithm.collect(scores, scores, rows, step)
    before, broken = len(reader.asked), True
    assert before > 2000

    def spend() -> None:
        for step in range(100):
            algorithm.collect(scores, scores, rows, step)

    with pytest.raises(ReaderError, match="of 300 recent reads"):
        spend()
    assert 60 < len(reader.asked) - before < 60 + sum(algorithm.reads_per_question(len(row.candidates)) for row in rows)


def test_answers_of_a_cache_do_not_hide_failures() -> None:
    """All prefixes of length 1 and 0 come from the cache; all paid reads fail."""

    class Half(EchoReader):
        def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
            return [
                ReadFailed("planned")
                if len(c.documents) == 2
                else Answer(" ".join(d.doc_id for d in c.documents), False)
                for c in contexts
            ]

    rows = questions(*[6] * 8)
    algorithm = RRPO(RRPOConfig(train_k=2, max_failed_reads=0.9), Half(), Price(lambda ids: 1.0))
    flat = torch.zeros(8, 6)

    def spend() -> None:
        for step in range(10):
            algorithm.collect(flat, flat, rows, step)

    with pytest.raises(ReaderError, match=r"failed on (\d+) of \1 recent reads"):
        spend()
    cached = RRPO(RRPOConfig(max_failed_reads=0.0), EchoReader(paid=False), Price(lambda ids: 1.0))
    cached.collect(scores_for(rows), scores_for(rows), rows, 0)
    assert not cached.recent


@pytest.mark.parametrize("paid", [True, False])
def test_a_reward_without_values_stops_the_run_and_the_reader_is_not_blamed(paid: bool) -> None:
    """Also where all answers come from the cache, of which no read counts."""
    rows = questions(*[6] * 8)
    algorithm = RRPO(RRPOConfig(max_failed_reads=0.5), EchoReader(paid=paid), Price(lambda ids: None))
    wanted = r"^Reward 'price' gave no value for (\d+) of \1 recent answers; at most 50%.* file changes, .*--overwrite"
    with pytest.raises(RewardError, match=wanted):
        algorithm.collect(scores_for(rows), scores_for(rows), rows, 0)
    half = RRPO(RRPOConfig(max_failed_reads=0.5), EchoReader(), Price(lambda ids: 1.0 if len(ids) < 3 else None))
    half.collect(scores_for(rows), scores_for(rows), rows, 0)


@pytest.mark.parametrize(("fail_every", "stops"), [(5, False), (4, True)])
def test_failures_up_to_the_threshold_are_allowed(fail_every: int, stops: bool) -> None:
    rows = examples(10)
    algorithm = RRPO(RRPOConfig(max_failed_reads=0.2), ToyReader(fail_every), answer_reward("f1"))
    scores = torch.zeros(10, 10)
    if stops:
        with pytest.raises(ReaderError, match="may fail"):
            algorithm.collect(scores, scores, rows, 0)
    else:
        assert algorithm.collect(scores, scores, rows, 0).metrics["failed_reads"] > 0


# --- loss


def collected(config: RRPOConfig, seed: int = 0) -> tuple[RRPO, Tensor, Tensor, Rollout]:
    rows = questions(5, 3, 4)
    scores, reference = scores_for(rows), scores_for(rows, seed=1)
    algorithm = RRPO(config, EchoReader(), Price(number), seed=seed)
    return algorithm, scores.requires_grad_(), reference, algorithm.collect(scores.detach(), reference, rows, 0)


def finite_grad(scores: Tensor) -> Tensor:
    assert scores.grad is not None
    return scores.grad


def test_on_policy_the_ratio_is_one_and_the_gradient_that_of_reinforce() -> None:
    algorithm, scores, _, rollout = collected(RRPOConfig(beta=0.0))
    assert torch.equal(step_logprobs(scores.detach(), rollout.actions_QSK), rollout.behaviour_logprobs_QSK)
    loss, metrics = algorithm.loss(scores, rollout)
    loss.backward()
    assert metrics["clipped_share"] == 0
    per_ranking = rollout.advantages_QSA.sum(-1) / rollout.taken_QK.sum(-1)[:, None]
    assert loss.item() == pytest.approx(-per_ranking.mean().item(), abs=1e-6)
    twin = scores.detach().clone().requires_grad_()
    weights = rollout.advantages_QSA / rollout.taken_QK.sum(-1)[:, None, None] / rollout.actions_QSK[..., 0].numel()
    (-(weights * step_logprobs(twin, rollout.actions_QSK)).sum()).backward()
    assert torch.allclose(finite_grad(scores), finite_grad(twin), atol=1e-6)
    assert finite_grad(scores)[torch.isneginf(scores.detach())].eq(0).all()


def test_the_reference_anchor_takes_the_ratio_against_the_reference() -> None:
    behaviour, scores, reference, rollout = collected(RRPOConfig(beta=0.0))
    anchored_to_reference = RRPO(RRPOConfig(beta=0.0, ratio_anchor="reference"), EchoReader(), Price(number))
    loss, metrics = anchored_to_reference.loss(scores, rollout)
    assert loss.item() != pytest.approx(behaviour.loss(scores, rollout)[0].item(), abs=1e-3)
    assert metrics["clipped_share"] > 0
    policy, anchor = (step_logprobs(s.detach(), rollout.actions_QSK) for s in (scores, reference))
    total = 0.0
    for q, s in [(q, s) for q in range(3) for s in range(4)]:
        steps = int(rollout.taken_QK[q].sum())
        for t in range(steps):
            a, rho = rollout.advantages_QSA[q, s, t].item(), math.exp((policy - anchor)[q, s, t].item())
            total += min(rho * a, min(max(rho, 0.8), 1.2) * a) / steps / 12
    assert loss.item() == pytest.approx(-total, rel=1e-4)


def test_a_step_down_the_loss_makes_a_better_ranking_likelier() -> None:
    """One question, two rankings: the better one gains log-probability, the worse one loses."""
    rows, scores = questions(4), torch.zeros(1, 4)
    algorithm = RRPO(RRPOConfig(samples=2, train_k=2, beta=0.0), EchoReader(), Price(number))
    rollout = algorithm.collect(scores, scores, rows, 1)
    totals = rollout.advantages_QSA[0].sum(-1)
    better, worse = int(totals.argmax()), int(totals.argmin())
    assert totals[better] > 0 > totals[worse]
    leaf = scores.clone().requires_grad_()
    algorithm.loss(leaf, rollout)[0].backward()
    moved = scores - 0.01 * finite_grad(leaf)
    change = (step_logprobs(moved, rollout.actions_QSK) - rollout.behaviour_logprobs_QSK).sum(-1)[0]
    assert change[better] > 0 > change[worse]


def test_the_document_that_the_reader_needs_is_pushed_up() -> None:
    policy, rows = ToyPolicy(), examples(8)
    algorithm = RRPO(RRPOConfig(beta=0.0), ToyReader(), answer_reward("f1"), seed=3)
    scores = policy(requests_of(rows))
    rollout = algorithm.collect(scores, scores.detach(), rows, 0)
    algorithm.loss(scores, rollout)[0].backward()
    assert policy.scores.grad is not None
    assert int(policy.scores.grad.argmin()) == 7
    assert policy.scores.grad[7] < 0


@pytest.mark.parametrize("kl", ["exact", "sampled"])
def test_the_divergence_is_weighted_by_beta(kl) -> None:
    algorithm, scores, reference, rollout = collected(RRPOConfig(beta=0.3, kl=kl))
    loss, metrics = algorithm.loss(scores, rollout)
    free = RRPO(RRPOConfig(beta=0.0, kl=kl), EchoReader(), Price(number)).loss(scores, rollout)[0]
    if kl == "exact":
        wanted = exact_kl(scores, reference).mean()
    else:
        policy, anchor = (step_logprobs(s, rollout.actions_QSK) for s in (scores, reference))
        wanted = sampled_kl(policy, anchor, rollout.taken_QK[:, None, :].expand_as(policy)).mean()
    assert metrics["kl"] == pytest.approx(wanted.item())
    assert metrics["kl"] > 0
    assert (loss - free).item() == pytest.approx(0.3 * metrics["kl"], abs=1e-6)


def test_temperature_divides_all_scores() -> None:
    rows = questions(5, 3)
    scores, reference = scores_for(rows), scores_for(rows, seed=1)

    def run(temperature: float, factor: float) -> tuple[Rollout, Tensor, dict[str, float]]:
        config = RRPOConfig(temperature=temperature, ratio_anchor="reference", beta=0.1)
        algorithm = RRPO(config, EchoReader(), Price(number))
        rollout = algorithm.collect(scores * factor, reference * factor, rows, 0)
        return rollout, *algorithm.loss(scores * factor, rollout)

    (cold, loss_1, metrics_1), (warm, loss_2, metrics_2), (plain, loss_3, _) = run(1, 1), run(2, 2), run(2, 1)
    assert torch.equal(cold.actions_QSK, warm.actions_QSK)
    assert loss_1.item() == pytest.approx(loss_2.item(), abs=1e-6)
    assert metrics_1 == pytest.approx(metrics_2, abs=1e-6)
    assert not torch.equal(cold.behaviour_logprobs_QSK, plain.behaviour_logprobs_QSK)
    assert loss_3.item() != pytest.approx(loss_1.item(), abs=1e-4)


def test_entropy_and_score_spread_are_of_the_policy_without_padding() -> None:
    algorithm, scores, _, rollout = collected(RRPOConfig())
    _, metrics = algorithm.loss(scores, rollout)
    rows = [row[~torch.isneginf(row)].detach().double() for row in scores]
    entropies = [-(torch.softmax(row, 0) * torch.log_softmax(row, 0)).sum().item() for row in rows]
    assert metrics["entropy"] == pytest.approx(sum(entropies) / 3, abs=1e-5)
    assert metrics["score_spread"] == pytest.approx(sum(row.std(correction=0).item() for row in rows) / 3, abs=1e-5)


def test_a_diverged_policy_gives_a_loss_that_is_not_finite() -> None:
    """So that the loop stops; NaN scores must not pass as a question without documents."""
    rows, algorithm = questions(3), RRPO(RRPOConfig(kl="sampled", beta=0.0), EchoReader(), Price(number))
    scores = torch.full((1, 3), torch.nan)
    rollout = algorithm.collect(scores, torch.zeros(1, 3), rows, 0)
    assert torch.isnan(algorithm.loss(scores, rollout)[0])


def test_the_window_goes_through_a_checkpoint() -> None:
    one, scores, reference, _ = collected(RRPOConfig(window=7))
    state = json.loads(json.dumps(one.state()))
    two = RRPO(RRPOConfig(window=7), EchoReader(), Price(number))
    two.restore(state)
    rows = questions(5, 3, 4)
    results = [a.collect(scores.detach(), reference, rows, 5).advantages_QSA for a in (one, two)]
    assert torch.equal(*results)
    assert len(state["window"]) == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_k", 0),
        ("samples", 0),
        ("noise", "fixed"),
        ("shared_steps", 3),
        ("read_first", 4),
        ("action", "step"),
        ("baseline", "mean"),
        ("advantage", "td"),
        ("scale", "batch"),
        ("ratio_anchor", "self"),
        ("inner_epochs", 0),
        ("gamma", 1.1),
        ("lam", -0.1),
        ("clip", 0.0),
        ("kl", "none"),
        ("beta", -1.0),
        ("window", 1),
        ("temperature", 0.0),
        ("max_failed_reads", 2.0),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"Setting rrpo\.{name} is {value!r}; wanted "):
        RRPOConfig(**{name: value})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("arm", "least"),
    [
        ({}, 2),
        ({"baseline": "none"}, 2),
        ({"baseline": "group"}, 3),
        ({"baseline": "leave_one_out"}, 3),
        ({"scale": "question"}, 3),
        ({"scale": "deviation", "baseline": "reference"}, 3),
    ],
    ids=str,
)
def test_samples_that_share_steps_need_others_to_differ_from(arm: dict[str, Any], least: int) -> None:
    """Two samples compared with each other would earn no advantage at all where they are the same."""
    assert RRPOConfig(samples=least, shared_steps=1, **arm).shared_steps == 1
    with pytest.raises(ConfigurationError, match=rf"shared_steps is 1 .*wanted {least} samples or more"):
        RRPOConfig(samples=least - 1, shared_steps=1, **arm)


# --- rivals: another baseline, another action


@pytest.mark.parametrize("samples", [3, 4, 6])
@pytest.mark.parametrize("baseline", ["group", "leave_one_out"])
@pytest.mark.parametrize("scale", ["none", "window"])
def test_samples_that_all_earned_the_same_teach_exactly_nothing(
    baseline: Literal["group", "leave_one_out"], scale: Literal["none", "window"], samples: int
) -> None:
    """Not the rounding of a mean: it would let KL and weight decay move the weights."""
    rows = questions(9, 9)
    for price in (0.1, 0.4, 0.7, 1 / 3, 2 / 3):
        config = RRPOConfig(samples=samples, baseline=baseline, scale=scale)
        algorithm = RRPO(config, EchoReader(), Price(lambda ids, price=price: price))
        rollout = algorithm.collect(scores_for(rows), scores_for(rows), rows, 0)
        assert not rollout.teaches


BASELINES: dict[str, dict[str, Any]] = {
    "reference": {"baseline": "reference"},
    "group": {"baseline": "group"},
    "leave_one_out": {"baseline": "leave_one_out"},
    "none": {"baseline": "none"},
    "GRPO": {"scale": "deviation"},
    "critic": {"baseline": "critic", "advantage": "gae"},
}


@pytest.mark.parametrize("action", ["document", "ranking"])
@pytest.mark.parametrize("arm", [arm for arm in BASELINES if arm != "critic"])
def test_advantages_of_every_baseline_equal_the_formula(arm: str, action: Literal["document", "ranking"]) -> None:
    """Read off the rewards of what was sampled, question by question."""
    rows = questions(5, 2, 1)
    scores, reference = scores_for(rows), scores_for(rows, seed=1)
    config = RRPOConfig(**{"scale": "none", "action": action, **BASELINES[arm]})
    rollout = RRPO(config, EchoReader(), Price(number)).collect(scores, reference, rows, 0)
    assert rollout.valid_QSA.shape[-1] == (3 if action == "document" else 1)
    for q, row in enumerate(rows):
        steps = min(3, len(row.candidates))
        lengths = range(1, steps + 1) if action == "document" else [steps]
        earned = [[number(ids_of(r, t)) for t in lengths] for r in rollout.actions_QSK[q].tolist()]
        for s, found in enumerate(rollout.advantages_QSA[q].tolist()):
            deltas = []
            for a, t in enumerate(lengths):
                group = [sample[a] for sample in earned]
                others = group[:s] + group[s + 1 :]
                mean = sum(group) / len(group)
                deviation = math.sqrt(sum((r - mean) ** 2 for r in group) / len(group))
                value = {
                    "reference": number(greedy_ids(reference[q], t)),
                    "leave_one_out": sum(others) / len(others),
                    "none": 0.0,
                }.get(arm, mean)
                unit = (1 / deviation if deviation > 1e-9 else 0.0) if arm == "GRPO" else 1.0
                deltas.append((group[s] - value) * unit)
            wanted = [sum(deltas[a:]) for a in range(len(deltas))]
            assert found[: len(wanted)] == pytest.approx(wanted, abs=1e-5)
            assert found[len(wanted) :] == [0.0] * (len(found) - len(wanted))


def test_a_whole_ranking_as_one_action_is_read_once_and_has_one_ratio() -> None:
    rows, reader = questions(6, 2), EchoReader()
    scores, reference = scores_for(rows), scores_for(rows, seed=1)
    config = RRPOConfig(action="ranking", ratio_anchor="reference", beta=0.0, samples=5, clip=0.3)
    algorithm = RRPO(config, reader, Price(number))
    rollout = algorithm.collect(scores, reference, rows, 0)
    assert {len(ids) for query_id, ids in reader.asked if query_id == "q0"} == {0, 3}
    assert {len(ids) for query_id, ids in reader.asked if query_id == "q1"} == {0, 2}
    assert len(reader.asked) <= sum(algorithm.reads_per_question(length) for length in (6, 2))
    assert algorithm.reads_per_question(6) == 5 + 1 + 1
    assert algorithm.reads_per_question(2) == 2 + 1
    loss, _ = algorithm.loss(scores.requires_grad_(), rollout)
    joint, anchor = (step_logprobs(x.detach(), rollout.actions_QSK).sum(-1) for x in (scores, reference))
    total = 0.0
    for q, s in [(q, s) for q in range(2) for s in range(5)]:
        a, rho = rollout.advantages_QSA[q, s, 0].item(), math.exp((joint - anchor)[q, s].item())
        total += min(rho * a, min(max(rho, 0.7), 1.3) * a) / 10
    assert loss.item() == pytest.approx(-total, rel=1e-4)


def test_a_failed_read_of_one_sample_leaves_the_others_their_baseline() -> None:
    """Of the group's mean it is left out; its own action is masked."""
    rows, flat = questions(4), torch.zeros(1, 4)
    fails = EchoReader(fails=lambda ids: ids == ("2",))
    for baseline in ("group", "leave_one_out", "none"):
        config = RRPOConfig(train_k=1, samples=24, baseline=baseline, scale="none")
        rollout = RRPO(config, fails, Price(number)).collect(flat, flat, rows, 0)
        failed = rollout.actions_QSK[..., 0] == 1
        assert 0 < failed.sum() < 24
        assert torch.equal(rollout.valid_QSA[..., 0], ~failed)
        assert rollout.advantages_QSA[..., 0][failed].eq(0).all()
        if baseline == "group":
            assert rollout.advantages_QSA.sum().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("action", ["document", "ranking"])
@pytest.mark.parametrize("arm", BASELINES)
def test_every_rival_finds_the_document_that_the_reader_needs(arm: str, action: Literal["document", "ranking"]) -> None:
    """All of them climb; which climbs better is for real data to say."""
    policy, start, rows = ToyPolicy(), ToyPolicy(), examples(8)
    config = RRPOConfig(action=action, samples=8, **BASELINES[arm])
    algorithm = RRPO(config, ToyReader(), answer_reward("f1"))
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    for step in range(30):
        scores = policy(requests_of(rows))
        rollout = algorithm.collect(scores, start(requests_of(rows)), rows, step)
        optimizer.zero_grad()
        algorithm.loss(scores, rollout)[0].backward()
        optimizer.step()
    assert int(policy.scores.argmax()) == 7, policy.scores


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"baseline": "critic"}, "rrpo.baseline is 'critic' with rrpo.advantage 'anchored'; wanted gae"),
        ({"samples": 1, "baseline": "group"}, "rrpo.samples is 1 with rrpo.baseline group"),
        ({"samples": 1, "baseline": "leave_one_out"}, "wanted 2 or more"),
        ({"samples": 1, "scale": "question"}, "wanted 2 or more"),
        ({"samples": 1, "scale": "deviation", "baseline": "none"}, "wanted 2 or more"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        RRPOConfig(**given)


# --- labels


def test_supervised_looks_up_labels_and_ignores_padding() -> None:
    documents = tuple(Document(i, i) for i in "abc")
    rows = [
        Example(Query("q0", "?"), documents, relevance={"c": 2, "a": 1, "z": 3}),
        Example(Query("q1", "?"), documents[:2], relevance={"b": -1}),
    ]
    scores = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, -INF]], requires_grad=True)
    algorithm = Supervised()
    batch = algorithm.collect(scores.detach(), scores.detach(), rows, 0)
    assert batch.labels_QD.tolist() == [[1, 0, 2], [0, 0, 0]]
    assert batch.metrics["without_relevant_share"] == 0.5
    loss, metrics = algorithm.loss(scores, batch)
    loss.backward()
    log_p = torch.log_softmax(torch.tensor([0.0, 1.0, 2.0]), 0)
    assert loss.item() == pytest.approx(-(log_p[0] / 3 + log_p[2] * 2 / 3).item())
    assert torch.isfinite(finite_grad(scores)).all()
    assert math.isfinite(metrics["entropy"])
    assert algorithm.reads_per_question(10) == 0
    assert algorithm.state() == {}
    assert batch.teaches
    assert not algorithm.collect(scores.detach()[1:], scores.detach()[1:], rows[1:], 0).teaches


def test_supervised_needs_a_relevant_candidate(caplog: pytest.LogCaptureFixture) -> None:
    labelled, plain = examples(1)[0], questions(3)[0]
    unfound = Example(plain.query, plain.candidates, relevance={"z": 1, "1": 0})
    with pytest.raises(TrainingError, match=r"None of the 2 training questions .*\(1 have labels\).*--method rrpo"):
        Supervised().check([plain, unfound])
    Supervised().check([labelled])
    assert not caplog.records
    Supervised().check([labelled, plain, unfound, labelled])
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 4 training questions (50%) have no relevant candidate and teach nothing; raise --depth or label more "
        "passages."
    ]
