"""Training in several processes (torchrun, accelerate launch): each scores a share of the questions; what costs money
or decides something is done by the first one alone and told to the others.

With one process every function here is what it would be without this module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from rankwright.errors import RankwrightError, TrainingError

T = TypeVar("T")


def count() -> int:
    """Processes that train together; those that have not met yet do not count."""
    return distributed.get_world_size() if _have_met() else 1


def rank() -> int:
    """Number of this process, from 0; before they have met, as the launcher says."""
    return distributed.get_rank() if _have_met() else int(os.environ.get("RANK", "0"))


def _have_met() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def share_of(rows: Sequence[T]) -> list[T]:
    """Every n-th row, beginning with that of this process."""
    return list(rows[rank() :: count()]) if count() > 1 else list(rows)


def from_first(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, in all of them; an error made for users is raised in all of them, too.

    Raises:
        RankwrightError: `work` raised it.
        TrainingError: `work` ended otherwise in the first process, which has the traceback.
    """
    if count() == 1:
        return work()
    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            told[0] = work()
        except RankwrightError as error:
            told[1] = error
        except BaseException as error:
            told[1] = TrainingError(f"The first process ended with {type(error).__name__}: {error}. See its traceback.")
            distributed.broadcast_object_list(told, src=0)
            raise
    distributed.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return told[0]


def gathered(shares: Tensor, questions: int) -> Tensor:
    """Scores of all questions in their order, without gradient; of several processes, on the CPU.

    Args:
        shares: scores_QD of this process's share, -inf on padding.
        questions: of all processes together.
    """
    if count() == 1:
        return shares.detach()
    parts: list[Any] = [None] * count()
    distributed.all_gather_object(parts, shares.detach().cpu())
    scores_QD = torch.full((questions, max(part.shape[1] for part in parts)), -torch.inf, dtype=shares.dtype)
    for number, part in enumerate(parts):
        rows = range(number, questions, count())
        scores_QD[rows, : part.shape[1]] = part[: len(rows)]
    return scores_QD


def weighted_mean(values: Mapping[str, float], weight: float) -> dict[str, float]:
    """Mean of each value over the processes; all of them have the same names.

    Args:
        values: of this process.
        weight: questions that they are of.
    """
    if count() == 1:
        return dict(values)
    parts: list[Any] = [None] * count()
    distributed.all_gather_object(parts, (dict(values), weight))
    total = sum(part_weight for _, part_weight in parts)
    return {name: sum(part[name] * w for part, w in parts if w) / total for name in values}
