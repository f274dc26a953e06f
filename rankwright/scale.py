"""The scale of scores that leave the house: raw logits become numbers between 0 and 1, here and nowhere else.

A raw score may be any number; only differences between the documents of one query mean something in every model. The
APIs show `sigmoid(score / temperature)`, which keeps the order, and a temperature fitted on labelled pairs of questions
not trained on (`rankwright calibrate`) makes it as near to a probability of relevance as one factor can (temperature
scaling: Guo et al., "On Calibration of Modern Neural Networks", 2017, https://arxiv.org/abs/1706.04599).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from rankwright.errors import ConfigurationError


def relevance(scores: Iterable[float], temperature: float = 1.0) -> tuple[float, ...]:
    """sigmoid(score / temperature) of each score, in order.

    Scores far from 0 come out as 0.0 or 1.0 and may tie there: sort by the raw scores, never by these.

    Args:
        scores: raw logits.
        temperature: of the model (`Scorer.temperature`); 1 where none was fitted.

    Raises:
        ConfigurationError: the temperature is not a positive number.

    >>> relevance([0.0, 1000.0, -1000.0])
    (0.5, 1.0, 0.0)
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigurationError(
            f"Temperature is {temperature}; wanted a positive number. Run rankwright calibrate again."
        )
    return tuple(_sigmoid(score / temperature) for score in scores)


def _sigmoid(x: float) -> float:
    """By the exponential that cannot overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    small = math.exp(x)
    return small / (1.0 + small)
