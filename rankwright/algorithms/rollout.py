"""The prefixes of rankings, and their rewards as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankwright.reading import Readings
from rankwright.types import Example


def prefix_lengths(taken_QK: Tensor, whole: bool) -> Tensor:
    """After how many documents the reader answers: lengths_QA for the A actions of a ranking, 0 where there is none.

    Args:
        taken_QK: steps that exist.
        whole: one action, answered after the last document (A = 1), or one a document (A = K).
    """
    steps_QK = taken_QK.cumsum(-1) * taken_QK
    return steps_QK.amax(-1, keepdim=True) if whole else steps_QK


def prefixes_of(
    examples: Sequence[Example], actions_QSK: Tensor, lengths_QA: Tensor
) -> list[tuple[Example, tuple[int, ...]]]:
    """Every prefix of every ranking that is read."""
    result = []
    for example, rankings, lengths in zip(examples, actions_QSK.tolist(), lengths_QA.tolist(), strict=True):
        result += [(example, tuple(ranking[:t])) for ranking in rankings for t in lengths if t]
    return result


def rewards_tensor(examples: Sequence[Example], actions_QSK: Tensor, lengths_QA: Tensor, readings: Readings) -> Tensor:
    """rewards_QSA in float64: NaN where the read failed, 0 for actions that do not exist."""
    rewards = torch.zeros(*actions_QSK.shape[:2], lengths_QA.shape[-1], dtype=torch.float64)
    for q, (example, lengths) in enumerate(zip(examples, lengths_QA.tolist(), strict=True)):
        for s, ranking in enumerate(actions_QSK[q].tolist()):
            for a, length in enumerate(lengths):
                if length:
                    value = readings.rewards[example.query.query_id, tuple(ranking[:length])]
                    rewards[q, s, a] = torch.nan if value is None else value
    return rewards
