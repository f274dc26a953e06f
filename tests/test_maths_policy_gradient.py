"""Advantages, clipped objective and divergences against plain float64 loops and closed forms."""

from __future__ import annotations

import doctest
import itertools
import json
import math
import random
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankwright.maths import policy_gradient
from rankwright.maths.plackett_luce import step_logprobs
from rankwright.maths.policy_gradient import (
    AdvantageForm,
    AdvantageWindow,
    clipped_surrogate,
    exact_kl,
    generalised_advantages,
    group_baseline,
    group_unit,
    leave_one_out_baseline,
    sampled_kl,
)

NAN, INF = math.nan, math.inf
FORMS: tuple[AdvantageForm, ...] = get_args(AdvantageForm)
few = settings(max_examples=40, deadline=None)


def delta(form: str, gamma: float, r: list[float], v: list[float], t: int, steps: int) -> float:
    """delta_t by the formula of the form; a term with factor 0 is not read."""
    if form == "gae":
        following = gamma * v[t + 1] if gamma and t + 1 < steps else 0.0
        return r[t] + following - v[t]
    if form == "anchored":
        return r[t] - v[t]
    return r[t] - v[t] - ((r[t - 1] - v[t - 1]) if t else 0.0)


def advantage(form: str, gamma: float, lam: float, r: list[float], v: list[float], t: int, steps: int) -> float:
    """A_t = sum over j >= t of (gamma lam)^(j - t) delta_j; NaN where a needed read failed."""
    factors = [(gamma * lam) ** (j - t) for j in range(t, steps)]
    terms = [f * delta(form, gamma, r, v, t + i, steps) for i, f in enumerate(factors) if f]
    return math.fsum(terms)


@st.composite
def cases(draw: st.DrawFn):
    questions, samples, width = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    reward = st.one_of(st.floats(0, 1), st.just(NAN))
    rewards = [[[draw(reward) for _ in range(width)] for _ in range(samples)] for _ in range(questions)]
    values = [[draw(reward) for _ in range(width)] for _ in range(questions)]
    steps = [draw(st.integers(0, width)) for _ in range(questions)]
    factor = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.05, 0.95))
    return rewards, values, steps, draw(factor), draw(factor)


@pytest.mark.parametrize("form", FORMS)
@given(cases())
@few
def test_advantages_equal_the_formula(form: AdvantageForm, case) -> None:
    """Every step, with failed reads and short lists; a failed read invalidates exactly the steps that need it."""
    rewards, values, steps, gamma, lam = case
    taken = torch.tensor([[t < count for t in range(len(values[0]))] for count in steps])
    found, valid = generalised_advantages(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(values, dtype=torch.float64)[:, None],
        taken,
        form=form,
        gamma=gamma,
        lam=lam,
    )
    for q, s, t in itertools.product(*(range(size) for size in found.shape)):
        wanted = advantage(form, gamma, lam, rewards[q][s], values[q], t, steps[q]) if t < steps[q] else NAN
        assert valid[q, s, t].item() == math.isfinite(wanted)
        assert found[q, s, t].item() == pytest.approx(wanted if math.isfinite(wanted) else 0.0, abs=1e-12)


def test_a_worked_example() -> None:
    """Rewards 0, 1, 1 against a reference at 0, 0, 1: the second choice is the one that helped."""
    rewards, values = torch.tensor([[[0.0, 1.0, 1.0]]]), torch.tensor([[[0.0, 0.0, 1.0]]])
    taken = torch.ones(1, 3, dtype=torch.bool)
    wanted = {"gae": [2.0, 2.0, 0.0], "anchored": [1.0, 1.0, 0.0], "marginal": [0.0, 0.0, -1.0]}
    for form in FORMS:
        assert generalised_advantages(rewards, values, taken, form=form)[0].tolist() == [[wanted[form]]]


@pytest.mark.parametrize(
    ("failed", "form", "gamma", "lam", "valid"),
    [
        (2, "anchored", 1.0, 1.0, [False, False, False, True]),
        (2, "anchored", 1.0, 0.0, [True, True, False, True]),
        (2, "marginal", 1.0, 0.0, [True, True, False, False]),
        (2, "gae", 1.0, 0.0, [True, True, False, True]),
    ],
)
def test_a_failed_reward_read_invalidates_the_steps_that_need_it(
    failed: int, form: AdvantageForm, gamma: float, lam: float, valid: list[bool]
) -> None:
    rewards = torch.full((1, 2, 4), 0.5)
    rewards[0, 0, failed] = NAN
    taken = torch.ones(1, 4, dtype=torch.bool)
    _, found = generalised_advantages(rewards, torch.zeros(1, 1, 4), taken, form=form, gamma=gamma, lam=lam)
    assert found.tolist() == [[valid, [True] * 4]]


@pytest.mark.parametrize(("gamma", "valid"), [(1.0, [True, False, False, True]), (0.0, [True, True, False, True])])
def test_a_failed_reference_read_reaches_the_step_before_only_through_gamma(gamma: float, valid: list[bool]) -> None:
    values = torch.tensor([[[0.1, 0.2, NAN, 0.3]]])
    taken = torch.ones(1, 4, dtype=torch.bool)
    advantages, found = generalised_advantages(torch.ones(1, 1, 4), values, taken, form="gae", gamma=gamma, lam=0.0)
    assert found.tolist() == [[valid]]
    assert advantages[~found].eq(0).all()


def test_the_mean_anchored_advantage_has_the_sign_of_policy_minus_reference() -> None:
    """A random policy against a good reference is worse on average, a good one against a poor reference is better."""
    generator = torch.Generator().manual_seed(0)
    poor = torch.rand(50, 8, 3, generator=generator, dtype=torch.float64) * 0.4
    good = poor + 0.5
    taken = torch.ones(50, 3, dtype=torch.bool)
    for form in ("anchored", "marginal"):
        worse, _ = generalised_advantages(poor, good.mean(1, keepdim=True), taken, form=form)
        better, _ = generalised_advantages(good, poor.mean(1, keepdim=True), taken, form=form)
        assert worse.mean() < 0 < better.mean()


def test_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="Advantage form is 'td'; wanted gae, anchored or marginal"):
        generalised_advantages(
            torch.zeros(1, 1, 1),
            torch.zeros(1, 1, 1),
            torch.ones(1, 1, dtype=torch.bool),
            form="td",  # pyright: ignore[reportArgumentType]
        )


# --- window


def everywhere(values: list[float]) -> tuple[Tensor, Tensor]:
    tensor = torch.tensor([[values]], dtype=torch.float64)
    return tensor, torch.ones_like(tensor, dtype=torch.bool)


def test_window_standardises_by_its_own_mean_and_deviation() -> None:
    window = AdvantageWindow(size=4, epsilon=0.0)
    first = window.standardise(*everywhere([1.0, 3.0]))
    assert first.flatten().tolist() == pytest.approx([-1.0, 1.0])
    second = window.standardise(*everywhere([5.0, 7.0, 9.0]))  # the window is now 3, 5, 7, 9
    deviation = math.sqrt(5.0)
    assert second.flatten().tolist() == pytest.approx([(v - 6) / deviation for v in (5, 7, 9)])
    assert window.state() == [3.0, 5.0, 7.0, 9.0]


def test_a_constant_window_gives_zero() -> None:
    window = AdvantageWindow()
    for _ in range(3):
        assert window.standardise(*everywhere([0.1] * 100)).abs().max() < 1e-6


def test_only_valid_advantages_enter_the_window() -> None:
    window = AdvantageWindow()
    advantages = torch.tensor([[[2.0, 100.0, 4.0]]])
    result = window.standardise(advantages, torch.tensor([[[True, False, True]]]))
    assert window.state() == [2.0, 4.0]
    assert result.flatten().tolist() == pytest.approx([-1.0, 0.0, 1.0], abs=1e-5)
    nothing = AdvantageWindow()
    assert nothing.standardise(advantages, torch.zeros(1, 1, 3, dtype=torch.bool)).eq(0).all()
    assert nothing.state() == []


def test_window_survives_a_checkpoint_and_keeps_its_size() -> None:
    rng = random.Random(1)
    one, two = AdvantageWindow(size=10), AdvantageWindow(size=10)
    one.standardise(*everywhere([rng.gauss(0, 1) for _ in range(37)]))
    two.standardise(*everywhere([99.0]))
    two.restore(json.loads(json.dumps(one.state())))
    more = everywhere([rng.gauss(0, 1) for _ in range(3)])
    assert torch.equal(one.standardise(*more), two.standardise(*more))
    assert one.state() == two.state()
    assert len(one.state()) == 10


# --- baselines and units out of a question's own samples


def relative_to_mean(rewards_QSK: Tensor) -> tuple[Tensor, Tensor]:
    unit = group_unit(rewards_QSK, "mean")
    return rewards_QSK * unit, group_baseline(rewards_QSK) * unit


def test_rewards_relative_to_their_mean_climb_the_log_of_the_expected_reward() -> None:
    """Samples in exact proportion to the policy give the very gradient of log E[r]."""
    scores = torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.25, 0.0]], dtype=torch.float64).log().requires_grad_()
    rewards_QD = torch.tensor([[0.2, 1.0, 0.0], [1.0, 0.5, 0.0]], dtype=torch.float64)
    actions = torch.tensor([[0, 0, 1, 2], [0, 0, 0, 1]])
    rewards = rewards_QD.gather(1, actions)[..., None]
    advantages, valid = generalised_advantages(*relative_to_mean(rewards), torch.ones(2, 1, dtype=torch.bool))
    logprobs = scores.log_softmax(-1).gather(1, actions)[..., None]
    gain, _ = clipped_surrogate(logprobs, logprobs.detach(), advantages, valid, epsilon=0.2)
    (found,) = torch.autograd.grad(gain, scores)
    (wanted,) = torch.autograd.grad((scores.softmax(-1) * rewards_QD).sum(-1).log().mean(), scores)
    assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(("samples", "least"), [(2, 0.5), (4, 0.7), (32, 0.95)])
def test_relative_to_their_mean_real_samples_point_up_the_log_of_the_expected_reward(
    samples: int, least: float
) -> None:
    """Drawn samples and a right answer that the policy holds for unlikely: on average the estimate points where
    log E[r] rises, the better the more samples there are, and no advantage exceeds S - 1."""
    scores = torch.tensor([0.05, 0.15, 0.3, 0.5], dtype=torch.float64).log()
    rewards_D = torch.tensor([1.0, 0.1, 0.0, 0.0], dtype=torch.float64)
    draws = 4000
    generator = torch.Generator().manual_seed(3)
    actions = torch.multinomial(scores.exp().expand(draws, -1), samples, replacement=True, generator=generator)
    relative, baseline = relative_to_mean(rewards_D[actions][..., None])
    advantages = (relative - baseline)[..., 0]
    assert advantages.max() <= samples - 1 + 1e-9
    one_hot = torch.nn.functional.one_hot(actions, 4).double()
    estimate = (advantages[..., None] * (one_hot - scores.exp())).mean((0, 1))
    leaf = scores.clone().requires_grad_()
    (wanted,) = torch.autograd.grad((leaf.softmax(-1) * rewards_D).sum().log(), leaf)
    assert torch.cosine_similarity(estimate, wanted, dim=0) > least


def test_a_failed_read_does_not_count_in_the_mean_and_nothing_earned_gives_zero() -> None:
    rewards = torch.tensor([[[1.0], [NAN], [0.5]], [[0.0], [0.0], [0.0]], [[NAN], [NAN], [NAN]]])
    relative, baseline = relative_to_mean(rewards)
    assert relative[0].flatten().nan_to_num(-1).tolist() == pytest.approx([4 / 3, -1, 2 / 3])
    assert baseline.flatten().tolist()[:2] == [1.0, 0.0]
    assert relative[1].eq(0).all()
    assert relative[2].isnan().all()


rewards_of_a_question = st.lists(st.one_of(st.floats(0, 1), st.just(NAN)), min_size=1, max_size=8)


@given(st.lists(rewards_of_a_question, min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_baselines_and_units_equal_the_formulas(rows: list[list[float]]) -> None:
    """Each question alone: baselines over what was read, GRPO's deviation, 0 where a question shows no difference."""
    for row in rows:
        rewards = torch.tensor(row, dtype=torch.float64)[None, :, None]
        known = [r for r in row if not math.isnan(r)]
        mean, others = group_baseline(rewards).item(), leave_one_out_baseline(rewards).flatten().tolist()
        if not known:
            assert math.isnan(mean)
            assert all(map(math.isnan, others))
            continue
        assert mean == pytest.approx(math.fsum(known) / len(known), abs=1e-12)
        for i, found in enumerate(others):
            rest = [r for j, r in enumerate(row) if j != i and not math.isnan(r)]
            assert found == pytest.approx(math.fsum(rest) / len(rest), abs=1e-12) if rest else math.isnan(found)
        deviation = math.sqrt(math.fsum((r - mean) ** 2 for r in known) / len(known))
        unit = group_unit(rewards, "deviation").item()
        assert unit == (pytest.approx(1 / deviation, rel=1e-6) if deviation > 1e-9 else 0.0)
        assert group_unit(rewards, "mean").item() == (pytest.approx(1 / mean) if mean else 0.0)


def test_questions_do_not_see_each_other() -> None:
    rewards = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for made in (group_baseline, leave_one_out_baseline, lambda r: group_unit(r, "deviation")):
        assert torch.equal(made(rewards)[2:3], made(rewards[2:3]))


def test_the_mean_of_the_others_is_unbiased_and_that_of_all_shrinks_the_gradient() -> None:
    """Over all pairs of samples, weighted by their probability: leave one out gives the gradient of E[r] itself, the
    group's mean (S - 1) / S of it."""
    scores = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    rewards_D = torch.tensor([1.0, 0.4, 0.0], dtype=torch.float64)
    p = scores.exp()
    pairs = torch.tensor(list(itertools.product(range(3), repeat=2)))
    weight = p[pairs].prod(-1)
    rewards = rewards_D[pairs][..., None]
    toward = torch.nn.functional.one_hot(pairs, 3).double() - p

    def gradient(values: Tensor) -> Tensor:
        return (weight[:, None, None] * (rewards - values) * toward).sum(0).mean(0)

    wanted = p * (rewards_D - p @ rewards_D)
    assert torch.allclose(gradient(leave_one_out_baseline(rewards)), wanted)
    assert torch.allclose(gradient(group_baseline(rewards)), wanted / 2)


# --- objective


def test_clipped_surrogate_by_formula() -> None:
    ratios, advantages, eps = [1.5, 1.5, 0.5, 0.5, 1.1, 0.9], [2.0, -2.0, 2.0, -2.0, 3.0, -3.0], 0.2
    parts = [1.2 * 2, 1.5 * -2, 0.5 * 2, 0.8 * -2, 1.1 * 3, 0.9 * -3]
    logprobs = torch.tensor([[[math.log(ratio) for ratio in ratios]]], dtype=torch.float64)
    valid = torch.ones_like(logprobs, dtype=torch.bool)
    gain, share = clipped_surrogate(
        logprobs, torch.zeros_like(logprobs), torch.tensor([[advantages]], dtype=torch.float64), valid, epsilon=eps
    )
    assert gain.item() == pytest.approx(sum(parts) / 6)
    assert share.item() == pytest.approx(4 / 6)


def test_each_ranking_averages_its_valid_steps_and_counts_once() -> None:
    logprobs = torch.zeros(1, 3, 2, requires_grad=True)
    advantages = torch.tensor([[[4.0, 2.0], [5.0, 100.0], [100.0, 100.0]]])
    valid = torch.tensor([[[True, True], [True, False], [False, False]]])
    gain, share = clipped_surrogate(logprobs, torch.zeros(1, 3, 2), advantages, valid, epsilon=0.2)
    gain.backward()
    assert gain.item() == pytest.approx(((4 + 2) / 2 + 5 / 1 + 0) / 3)
    assert share.item() == 0
    wanted = torch.tensor([[[4 / 2 / 3, 2 / 2 / 3], [5 / 3, 0.0], [0.0, 0.0]]])
    assert torch.allclose(logprobs.grad, wanted)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("ratio", "sign", "moves"), [(1.5, 1, False), (0.5, -1, False), (1.5, -1, True), (0.5, 1, True)]
)
def test_clipping_stops_the_gradient_only_in_the_direction_already_gone(ratio: float, sign: int, moves: bool) -> None:
    logprobs = torch.tensor([[[math.log(ratio)]]], requires_grad=True)
    valid = torch.ones(1, 1, 1, dtype=torch.bool)
    gain, _ = clipped_surrogate(logprobs, torch.zeros(1, 1, 1), torch.full((1, 1, 1), float(sign)), valid, epsilon=0.2)
    gain.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(ratio * sign if moves else 0.0)


@pytest.mark.parametrize("difference", [1e4, -1e4])
@pytest.mark.parametrize("size", [2.0, -2.0, 0.0])
def test_an_extreme_ratio_keeps_value_and_gradient_finite(difference: float, size: float) -> None:
    logprobs = torch.full((1, 1, 1), difference, requires_grad=True)
    valid = torch.ones(1, 1, 1, dtype=torch.bool)
    gain, share = clipped_surrogate(logprobs, torch.zeros(1, 1, 1), torch.full((1, 1, 1), size), valid, epsilon=0.2)
    gain.backward()
    assert torch.isfinite(gain)
    assert torch.isfinite(logprobs.grad).all()  # pyright: ignore[reportArgumentType]
    assert share.item() == 1


# --- divergences


@given(st.lists(st.tuples(st.floats(-6, 6), st.floats(-6, 6)), min_size=1, max_size=6), st.integers(0, 2))
@few
def test_exact_kl_equals_the_sum_by_definition(pairs: list[tuple[float, float]], padding: int) -> None:
    scores, reference = [a for a, _ in pairs], [b for _, b in pairs]

    def softmax(row: list[float]) -> list[float]:
        total = math.fsum(math.exp(x) for x in row)
        return [math.exp(x) / total for x in row]

    wanted = math.fsum(p * math.log(p / q) for p, q in zip(softmax(scores), softmax(reference), strict=True))
    pad = [-INF] * padding
    found = exact_kl(torch.tensor([[*scores, *pad]]), torch.tensor([[*reference, *pad]]))
    assert found.item() == pytest.approx(wanted, abs=1e-5)
    shifted = exact_kl(torch.tensor([[x + 3 for x in scores] + pad]), torch.tensor([[x - 5 for x in reference] + pad]))
    assert shifted.item() == pytest.approx(wanted, abs=1e-5)
    assert exact_kl(torch.tensor([scores]), torch.tensor([scores])).item() == 0


@pytest.mark.parametrize("row", [[1e4, -1e4, 0.0], [1e4, -INF, -INF], [0.0, 1.0, -INF]])
def test_exact_kl_keeps_gradients_finite(row: list[float]) -> None:
    scores = torch.tensor([row], requires_grad=True)
    reference = torch.tensor([[-INF if math.isinf(x) else 0.5 * i for i, x in enumerate(row)]])
    kl = exact_kl(scores, reference)
    kl.sum().backward()
    assert torch.isfinite(kl).all()
    assert torch.isfinite(scores.grad).all()  # pyright: ignore[reportArgumentType]


def test_the_gradient_of_exact_kl_pulls_towards_the_reference() -> None:
    scores = torch.tensor([[2.0, 0.0, -INF]], requires_grad=True)
    exact_kl(scores, torch.tensor([[0.0, 0.0, -INF]])).sum().backward()
    p = torch.softmax(torch.tensor([2.0, 0.0]), 0)
    kl = (p * (2 * p).log()).sum()
    wanted = p * ((2 * p).log() - kl)
    assert torch.allclose(scores.grad[0, :2], wanted, atol=1e-6)  # pyright: ignore[reportOptionalSubscript]
    assert scores.grad[0, 2] == 0  # pyright: ignore[reportOptionalSubscript]


def test_sampled_kl_is_right_on_average() -> None:
    """Weighted by their probabilities, the estimates of all rankings of 3 documents give the exact KL of two steps."""
    scores, reference = torch.tensor([[0.4, -0.3, 1.1]]), torch.tensor([[0.0, 0.5, 0.2]])
    rankings = torch.tensor([[list(r) for r in itertools.permutations(range(3), 2)]])
    policy, anchor = step_logprobs(scores, rankings).double(), step_logprobs(reference, rankings).double()
    taken = torch.ones(1, 1, 2, dtype=torch.bool)
    expected = 0.0
    for s in range(rankings.shape[1]):
        estimate = sampled_kl(policy[:, s : s + 1], anchor[:, s : s + 1], taken)
        assert estimate.item() >= 0
        expected += policy[0, s].sum().exp().item() * estimate.item()
    # KL of whole prefixes = sum of the steps' KLs, each weighted by the probability to get there (chain rule).
    exact = (policy.sum(-1).exp() * (policy.sum(-1) - anchor.sum(-1))).sum().item()
    assert expected == pytest.approx(exact / 2, abs=1e-6)  # the estimate is the mean over the two steps


def test_sampled_kl_by_formula_leaves_out_steps_not_taken() -> None:
    policy, anchor = torch.tensor([[[-1.0, -2.0, 0.0]]]), torch.tensor([[[-1.5, -1.0, -9.0]]])
    taken = torch.tensor([[[True, True, False]]])
    wanted = ((math.exp(-0.5) + 0.5 - 1) + (math.exp(1.0) - 1.0 - 1)) / 2
    assert sampled_kl(policy, anchor, taken).item() == pytest.approx(wanted)
    assert sampled_kl(policy, policy, taken).item() == 0
    assert sampled_kl(policy, anchor, torch.zeros_like(taken)).item() == 0


def test_doctests() -> None:
    assert doctest.testmod(policy_gradient).failed == 0
