from __future__ import annotations

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright import batching, maths
from rankwright.batching import token_batches
from rankwright.maths import check_shapes, ranking_losses
from rankwright.maths.ranking_losses import softmax_loss, weighted_ranknet_loss

INF = math.inf
few = settings(max_examples=40, deadline=None)


def by_formula(scores: list[float], labels: list[float]) -> float:
    """-sum of y / sum(y) log softmax(s), in float64."""
    total = math.log(math.fsum(math.exp(score) for score in scores))
    return -math.fsum(y / math.fsum(labels) * (s - total) for s, y in zip(scores, labels, strict=True))


def test_doctests() -> None:
    for module in (ranking_losses, batching):
        result = doctest.testmod(module)
        assert result.attempted
        assert result.failed == 0


@given(st.lists(st.tuples(st.floats(-6, 6), st.integers(0, 3)), min_size=1, max_size=6), st.integers(0, 3))
@few
def test_softmax_loss_by_formula(rows: list[tuple[float, int]], padding: int) -> None:
    scores, labels = [s for s, _ in rows], [float(y) for _, y in rows]
    found = softmax_loss(torch.tensor([scores + [-INF] * padding]), torch.tensor([labels + [0.0] * padding]))
    assert found.item() == pytest.approx(by_formula(scores, labels) if any(labels) else 0.0, abs=1e-5)


def test_the_mean_is_over_queries_with_a_relevant_document() -> None:
    scores = [[0.5, 1.0, -INF], [3.0, 2.0, 1.0], [0.0, 0.0, 0.0]]
    loss = softmax_loss(torch.tensor(scores), torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))
    wanted = (by_formula([0.5, 1.0], [0, 2]) + by_formula([0.0, 0.0, 0.0], [1, 1, 0])) / 2
    assert loss.item() == pytest.approx(wanted, abs=1e-6)


def test_without_labels_loss_and_gradient_are_zero() -> None:
    scores = torch.tensor([[1.0, -2.0, -INF]], requires_grad=True)
    loss = softmax_loss(scores, torch.zeros(1, 3))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert scores.grad.eq(0).all()


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_the_gradient_is_softmax_minus_target_and_zero_on_padding(size: float) -> None:
    scores = torch.tensor([[size, -size, 0.0, -INF]], requires_grad=True)
    softmax_loss(scores, torch.tensor([[0.0, 1.0, 1.0, 0.0]])).backward()
    wanted = torch.softmax(scores.detach(), -1) - torch.tensor([[0.0, 0.5, 0.5, 0.0]])
    assert scores.grad is not None
    assert torch.allclose(scores.grad, wanted, atol=1e-6)
    assert scores.grad[0, 3] == 0


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=5), st.randoms(use_true_random=False))
@few
def test_order_and_shift_change_nothing(scores: list[float], random) -> None:
    labels = [float(i % 2) for i in range(len(scores))]
    order = random.sample(range(len(scores)), len(scores))
    one = softmax_loss(torch.tensor([scores]), torch.tensor([labels]))
    two = softmax_loss(torch.tensor([[scores[i] + 2.5 for i in order]]), torch.tensor([[labels[i] for i in order]]))
    assert one.item() == pytest.approx(two.item(), abs=1e-5)


def test_check_shapes_names_tensor_axis_and_sizes() -> None:
    scores_QD, labels_QD = torch.zeros(2, 3), torch.zeros(2, 4)  # noqa: F841
    check_shapes(scores_QD="Q D")
    with pytest.raises(ValueError, match="labels_QD has 4 on axis D; wanted 3"):
        check_shapes(scores_QD="Q D", labels_QD="Q D")
    with pytest.raises(ValueError, match=r"scores_QD has shape \(2, 3\); wanted axes \(Q S D\)"):
        check_shapes(scores_QD="Q S D")
    assert maths.check_shapes is check_shapes


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 100))
@few
def test_token_batches_hold_every_item_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = list(token_batches(lengths, budget))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget


@given(st.lists(st.floats(-6, 6), min_size=1, max_size=6), st.integers(0, 3))
@few
def test_weighted_ranknet_by_formula(scores: list[float], padding: int) -> None:
    """Places from 1, best first; padding takes no part."""
    places = range(len(scores))
    losses = [
        math.log1p(math.exp(scores[j] - scores[i])) / ((i + 1) + (j + 1)) for i in places for j in places if i < j
    ]
    mask = torch.tensor([[True] * len(scores) + [False] * padding])
    found = weighted_ranknet_loss(torch.tensor([scores + [5.0] * padding]), mask)
    assert found.item() == pytest.approx(math.fsum(losses) / len(losses) if losses else 0.0, abs=1e-5)


def test_weighted_ranknet_pulls_the_best_up_most() -> None:
    scores = torch.zeros(1, 4, requires_grad=True)
    weighted_ranknet_loss(scores, torch.ones(1, 4, dtype=torch.bool)).backward()
    assert scores.grad is not None
    (slopes,) = scores.grad.tolist()
    assert slopes[0] < slopes[1] < 0 < slopes[3]
