from __future__ import annotations

import doctest
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.maths import rank_returns as module
from rankwright.maths.rank_returns import rank_advantages, rank_returns
from rankwright.metrics.orders import dcg

few = settings(max_examples=40, deadline=None)
gains = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=20)


def test_doctests() -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert result.failed == 0


@given(gains, st.sampled_from([1.5, 2.0, 10.0]))
@few
def test_returns_by_formula(rel: list[float], decay: float) -> None:
    count = len(rel)
    wanted = {
        "dcg": [math.fsum(rel[j - 1] / math.log2(j + 1) for j in range(k, count + 1)) for k in range(1, count + 1)],
        "exponential": [math.fsum(rel[j] / decay ** (j - k) for j in range(k, count)) for k in range(count)],
        "own": rel,
    }
    for form, returns in wanted.items():
        found = rank_returns(torch.tensor([[rel]], dtype=torch.float64), form=form, decay=decay)  # pyright: ignore[reportArgumentType]
        assert found.flatten().tolist() == pytest.approx(returns)


@given(gains)
@few
def test_the_first_ranks_return_is_the_lists_dcg(rel: list[float]) -> None:
    found = rank_returns(torch.tensor([[rel]], dtype=torch.float64), form="dcg")
    assert found[0, 0, 0].item() == pytest.approx(dcg(rel, len(rel)))


@given(gains, st.sampled_from(["dcg", "exponential", "own"]), st.integers(0, 19))
@few
def test_no_rank_is_paid_for_what_stands_above_it(rel: list[float], form: module.ReturnForm, place: int) -> None:
    place %= len(rel)
    other = [1 - gain for gain in rel[:place]] + rel[place:]
    one, two = (rank_returns(torch.tensor([[g]]), form=form)[..., place:] for g in (rel, other))
    assert torch.equal(one, two)


def test_own_is_exponential_with_an_endless_decay() -> None:
    rel = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]])
    assert torch.equal(rank_returns(rel, form="exponential", decay=math.inf), rank_returns(rel))


def test_returns_leave_their_input_alone() -> None:
    rel = torch.tensor([[[1.0, 1.0]]])
    for form in ("dcg", "exponential", "own"):
        rank_returns(rel, form=form).add_(1)
    assert rel.eq(1).all()


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=3, max_size=3), min_size=2, max_size=8))
@few
def test_advantages_by_formula(returns_SK: list[list[float]]) -> None:
    found = rank_advantages(torch.tensor([returns_SK], dtype=torch.float64))
    for k in range(3):
        column = [row[k] for row in returns_SK]
        mean, deviation = statistics.mean(column), statistics.stdev(column)
        wanted = [(value - mean) / (deviation + 1e-4) for value in column]
        assert found[0, :, k].tolist() == pytest.approx(wanted, abs=1e-9)


def test_ranks_and_prompts_are_compared_apart() -> None:
    """What prompt 0 or rank 0 earns moves no advantage of prompt 1 or rank 1."""
    returns = torch.tensor([[[9.0, 1.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    changed = returns.clone()
    changed[0] *= 5
    changed[:, :, 0] = 0
    assert torch.equal(rank_advantages(changed)[1, :, 1], rank_advantages(returns)[1, :, 1])


def test_a_list_without_reward_gets_nothing_and_moves_no_other() -> None:
    lists = torch.tensor([[[1.0], [0.0], [math.nan]]])
    found = rank_advantages(lists).flatten().tolist()
    assert found[:2] == rank_advantages(lists[:, :2]).flatten().tolist()
    assert found[2] == 0
    assert rank_advantages(lists[:, 1:]).flatten().tolist() == [0, 0]
    assert rank_advantages(lists[:, 2:]).flatten().tolist() == [0]


def test_wrong_forms_shapes_and_decays_are_named() -> None:
    with pytest.raises(ValueError, match="'linear'"):
        rank_returns(torch.zeros(1, 1, 1), form="linear")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="above 1"):
        rank_returns(torch.zeros(1, 1, 1), form="exponential", decay=1.0)
    with pytest.raises(ValueError, match="axes"):
        rank_returns(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="axes"):
        rank_advantages(torch.zeros(1, 1))
