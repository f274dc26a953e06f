"""The prefixes of rankings, and their rewards as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankwright.reading import Readings
from rankwright.types import Example


def prefixes_of(
    examples: Sequence[Example], actions_QSK: Tensor, taken_QK: Tensor
) -> list[tuple[Example, tuple[int, ...]]]:
    """Every prefix of every ranking, t = 1..K, of the steps that exist."""
    result = []
    for example, rankings, taken in zip(examples, actions_QSK.tolist(), taken_QK.sum(-1).tolist(), strict=True):
        result += [(example, tuple(ranking[:t])) for ranking in rankings for t in range(1, taken + 1)]
    return result


def rewards_tensor(examples: Sequence[Example], actions_QSK: Tensor, taken_QK: Tensor, readings: Readings) -> Tensor:
    """rewards_QSK in float64: NaN where the read failed, 0 on steps that do not exist."""
    rewards = torch.zeros(actions_QSK.shape, dtype=torch.float64)
    for q, example in enumerate(examples):
        steps = int(taken_QK[q].sum())
        for s, ranking in enumerate(actions_QSK[q].tolist()):
            for t in range(steps):
                value = readings.rewards[example.query.query_id, tuple(ranking[: t + 1])]
                rewards[q, s, t] = torch.nan if value is None else value
    return rewards
