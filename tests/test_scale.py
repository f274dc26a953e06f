"""From raw scores to the scale of the APIs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwright.errors import ConfigurationError
from rankwright.scale import relevance


@given(st.lists(st.floats(-50, 50), max_size=20), st.floats(0.1, 10))
def test_relevance_is_the_sigmoid_of_score_over_temperature_and_keeps_the_order(
    scores: list[float], temperature: float
) -> None:
    found = relevance(scores, temperature)
    assert found == pytest.approx([1 / (1 + math.exp(-s / temperature)) for s in scores], abs=1e-12)
    ordered = [found[i] for i in sorted(range(len(scores)), key=lambda i: scores[i])]
    assert ordered == sorted(ordered)


def test_scores_without_bounds_neither_overflow_nor_leave_the_scale() -> None:
    assert relevance([1e308, -1e308, 0.0], 0.5) == (1.0, 0.0, 0.5)
    assert relevance([2.0]) == relevance([1.0], 0.5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_is_no_positive_number_is_refused(temperature: float) -> None:
    with pytest.raises(ConfigurationError, match="positive number"):
        relevance([1.0], temperature)
