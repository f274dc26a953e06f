"""Plackett-Luce against its definition: plain loops in float64, complete enumeration, and sampled frequencies."""

from __future__ import annotations

import doctest
import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.maths import plackett_luce
from rankwright.maths.plackett_luce import (
    entropy,
    greedy_rankings,
    gumbel_noise,
    sample_rankings,
    step_logprobs,
    step_mask,
)

INF = math.inf
scores_of_four = st.lists(st.floats(-8, 8), min_size=4, max_size=4)
few = settings(max_examples=25, deadline=None)


def quotient(scores: list[float], ranking: tuple[int, ...]) -> list[float]:
    """The paper's p_c / (1 - sum of p over those already chosen), in float64."""
    weights = [math.exp(score) for score in scores]
    p = [weight / math.fsum(weights) for weight in weights]
    return [p[c] / math.fsum([1.0, *(-p[d] for d in ranking[:t])]) for t, c in enumerate(ranking)]


def test_doctests() -> None:
    result = doctest.testmod(plackett_luce)
    assert result.attempted >= 4
    assert result.failed == 0


@given(scores_of_four, st.sampled_from([0, 1, 3]))
@few
def test_probabilities_of_all_rankings_sum_to_one(scores: list[float], padding: int) -> None:
    rankings = list(itertools.permutations(range(4)))
    logprobs = step_logprobs(torch.tensor([[*scores, *[-INF] * padding]]), torch.tensor([rankings]))
    assert logprobs.shape == (1, math.factorial(4), 4)
    assert logprobs.double().sum(-1).exp().sum().item() == pytest.approx(1, abs=1e-5)


@given(scores_of_four)
@few
def test_probabilities_of_all_prefixes_sum_to_one(scores: list[float]) -> None:
    prefixes = list(itertools.permutations(range(4), 2))
    total = step_logprobs(torch.tensor([scores]), torch.tensor([prefixes])).double().sum(-1).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-5)


@given(st.lists(st.floats(-4, 4), min_size=2, max_size=6), st.randoms(use_true_random=False))
@few
def test_step_probabilities_are_the_quotient_of_the_paper(scores: list[float], random) -> None:
    ranking = tuple(random.sample(range(len(scores)), len(scores)))
    found = step_logprobs(torch.tensor([scores], dtype=torch.float64), torch.tensor([[ranking]])).exp()[0, 0].tolist()
    assert found == pytest.approx(quotient(scores, ranking), rel=2e-5)


def test_the_last_document_is_certain_where_the_quotient_cancels() -> None:
    """With p = (1, e^-60, e^-80) the quotient is 0 / 0 in float64; the masked log-softmax is not."""
    logprobs = step_logprobs(torch.tensor([[60.0, 0.0, -20.0]]), torch.tensor([[[0, 1, 2]]]))[0, 0]
    assert logprobs[2].item() == 0
    assert logprobs[1].item() == pytest.approx(-math.log1p(math.exp(-20)), abs=1e-7)


def test_padding_changes_nothing() -> None:
    scores = torch.tensor([[0.3, -1.0, 2.0]])
    padded = torch.nn.functional.pad(scores, (0, 4), value=-INF)
    actions = torch.tensor([[[2, 0, 1], [1, 2, 0]]])
    assert torch.equal(step_logprobs(scores, actions), step_logprobs(padded, actions))
    assert torch.equal(step_mask(scores, 5), step_mask(padded, 5))
    assert torch.equal(greedy_rankings(scores, 3), greedy_rankings(padded, 3))
    assert torch.allclose(entropy(scores), entropy(padded))
    noise = gumbel_noise(0, 0, ["q"], 6, [3])
    wide = torch.nn.functional.pad(noise, (0, 4), value=50.0)  # noise on padding must not matter, however large
    assert torch.equal(sample_rankings(scores, noise, 3), sample_rankings(padded, wide, 3))


@given(scores_of_four, st.permutations(range(4)))
@few
def test_renumbering_the_documents_renumbers_the_result(scores: list[float], order: list[int]) -> None:
    actions = torch.tensor([[[0, 1, 2], [3, 1, 0]]])
    place = {old: new for new, old in enumerate(order)}
    renamed = torch.tensor([[[place[a] for a in ranking] for ranking in actions[0].tolist()]])
    one = step_logprobs(torch.tensor([scores]), actions)
    two = step_logprobs(torch.tensor([[scores[i] for i in order]]), renamed)
    assert torch.allclose(one, two, atol=1e-5)


def test_a_constant_added_to_all_scores_changes_nothing() -> None:
    scores, actions = torch.tensor([[0.5, 1.5, -2.0]]), torch.tensor([[[1, 2, 0]]])
    assert torch.allclose(step_logprobs(scores, actions), step_logprobs(scores + 7, actions), atol=1e-6)
    assert torch.allclose(entropy(scores), entropy(scores + 7), atol=1e-6)


def test_the_gradient_is_chosen_minus_softmax_of_the_remaining() -> None:
    scores = torch.tensor([[0.2, -0.4, 1.0]], requires_grad=True)
    step_logprobs(scores, torch.tensor([[[2, 0]]])).sum().backward()
    first = torch.softmax(scores.detach()[0], 0)
    second = torch.softmax(scores.detach()[0, :2], 0)
    wanted = torch.tensor([0.0, 0.0, 1.0]) - first
    wanted += torch.tensor([1 - second[0], -second[1], 0.0])
    assert scores.grad is not None
    assert torch.allclose(scores.grad[0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    "row",
    [
        [1e4, -1e4, 0.0],
        [-1e4, -1e4, -1e4],
        [1e4, -INF, -INF],
        [0.0, -INF, -INF],
        [1e4, 1e4, -INF],
    ],
)
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_extreme_scores_padding_and_surplus_steps_keep_gradients_finite(row: list[float], steps: int) -> None:
    scores = torch.tensor([row, [0.1, 0.2, 0.3]], requires_grad=True)
    actions = sample_rankings(scores, gumbel_noise(0, 0, ["a", "b"], 4, [3, 3]), steps)
    logprobs = step_logprobs(scores, actions)
    (logprobs.sum() + entropy(scores).sum()).backward()
    assert torch.isfinite(logprobs).all()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[torch.isneginf(scores)].eq(0).all()


def test_more_steps_than_documents() -> None:
    scores = torch.tensor([[1.0, 2.0], [5.0, -INF]])
    assert step_mask(scores, 4).tolist() == [[True, True, False, False], [True, False, False, False]]
    assert greedy_rankings(scores, 4).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]
    actions = sample_rankings(scores, gumbel_noise(1, 2, ["a", "b"], 3, [2, 1]), 4)
    assert actions.shape == (2, 3, 4)
    assert {tuple(r[:2]) for r in actions[0].tolist()} <= {(0, 1), (1, 0)}
    assert actions[0, :, 2:].eq(0).all()
    assert actions[1].eq(0).all()
    logprobs = step_logprobs(scores, actions)
    assert logprobs[0, :, 2:].eq(0).all()
    assert logprobs[1].eq(0).all()  # one document: certain, then surplus steps


def test_a_nan_score_is_not_taken_for_padding() -> None:
    """A diverged policy must show in the loss instead of looking like a query without documents."""
    scores = torch.full((1, 3), torch.nan)
    assert step_mask(scores, 2).all()
    assert torch.isnan(step_logprobs(scores, torch.tensor([[[0, 1]]]))).any()


def test_greedy_ties_keep_input_order() -> None:
    scores = torch.tensor([[2.0, 1.0] * 40])
    assert greedy_rankings(scores, 80)[0].tolist() == [*range(0, 80, 2), *range(1, 80, 2)]


def test_entropy_by_definition() -> None:
    scores = torch.tensor([[0.0, math.log(3.0), -INF], [2.0, 2.0, 2.0], [9.0, -INF, -INF]])
    wanted = [-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), math.log(3), 0.0]
    assert entropy(scores).tolist() == pytest.approx(wanted, abs=1e-6)


def test_sampled_frequencies_are_plackett_luce() -> None:
    """Chi-square over the 24 rankings of 4 documents; 49.7 is the 0.999 quantile at 23 degrees of freedom."""
    scores, draws = torch.tensor([[0.0, 0.7, -0.5, 1.2]]), 20_000
    noise = torch.cat([gumbel_noise(11, step, ["q"], draws // 10, [4]) for step in range(10)], dim=1)
    counts = Counter(tuple(ranking) for ranking in sample_rankings(scores, noise, 4)[0].tolist())
    assert counts.total() == draws
    statistic = 0.0
    for ranking in itertools.permutations(range(4)):
        wanted = draws * math.prod(quotient(scores[0].tolist(), ranking))
        statistic += (counts[ranking] - wanted) ** 2 / wanted
    assert statistic < 49.7


@pytest.mark.parametrize("shared", [1, 2])
def test_rankings_that_share_a_prefix_are_each_drawn_from_the_distribution(shared: int) -> None:
    """All 24 rankings of four documents, those of every second sample too, come as often as they should."""
    scores, draws = torch.tensor([[1.0, 0.5, 0.0, -1.0]]), 40_000
    noise = gumbel_noise(5, 0, ["q"], draws, [4])
    actions = sample_rankings(scores, noise, 4, shared)[0]
    assert torch.equal(actions[::2, :shared], actions[1::2, :shared])
    assert not torch.equal(actions[::2], actions[1::2])
    for half in (actions[::2], actions[1::2]):
        for ranking in itertools.permutations(range(4)):
            wanted = step_logprobs(scores, torch.tensor([[ranking]])).sum().exp().item()
            found = (half == torch.tensor(ranking)).all(-1).double().mean().item()
            assert abs(found - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / len(half))


def test_noise_has_the_moments_of_gumbel() -> None:
    noise = gumbel_noise(0, 0, ["q"], 200, [200])
    assert noise.mean().item() == pytest.approx(0.5772, abs=5 * math.pi / math.sqrt(6 * 40_000))
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.05)


def test_noise_is_keyed_by_seed_step_and_query() -> None:
    keys = [(seed, step, query) for seed in (0, 1) for step in (0, 1) for query in ("a", "b", "1|a")]
    rows = [gumbel_noise(seed, step, [query], 2, [3]) for seed, step, query in keys]
    assert all(torch.equal(row, gumbel_noise(*key[:2], [key[2]], 2, [3])) for row, key in zip(rows, keys, strict=True))
    assert len({tuple(row.flatten().tolist()) for row in rows}) == len(keys)


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_noise_does_not_depend_on_the_batch(samples: int) -> None:
    """Neither the other queries, nor their order, nor the length of their lists, nor the number of samples."""
    alone = gumbel_noise(3, 9, ["q"], samples, [4])
    batch = gumbel_noise(3, 9, ["x", "q", "y"], samples, [7, 4, 2])
    turned = gumbel_noise(3, 9, ["y", "q"], samples, [2, 4])
    more = gumbel_noise(3, 9, ["q"], samples + 3, [4])
    assert torch.equal(batch[1, :, :4], alone[0])
    assert torch.equal(turned[1], alone[0])
    assert torch.equal(more[0, :samples], alone[0])
    assert batch[1, :, 4:].eq(0).all()


def test_sampled_rankings_do_not_depend_on_the_batch() -> None:
    short, long = [0.3, 0.1, -0.2], [0.0, 0.5, 1.0, 0.2, -0.3, 0.4]
    alone = sample_rankings(torch.tensor([short]), gumbel_noise(0, 1, ["s"], 8, [3]), 3)
    scores = torch.tensor([long, [*short, -INF, -INF, -INF]])
    together = sample_rankings(scores, gumbel_noise(0, 1, ["l", "s"], 8, [6, 3]), 3)
    assert torch.equal(together[1], alone[0])


def test_wrong_axes_are_named() -> None:
    with pytest.raises(ValueError, match=r"scores_QD has shape \(3,\); wanted axes \(Q D\)"):
        step_mask(torch.zeros(3), 2)
    with pytest.raises(ValueError, match="noise_QSD has 2 on axis Q; wanted 1"):
        sample_rankings(torch.zeros(1, 3), torch.zeros(2, 4, 3), 2)
