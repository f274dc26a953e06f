"""Reading the prefixes of rankings: actions -> contexts -> answers -> rewards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwright.algorithms.guards import agreement, holdout_metric
from rankwright.errors import ReaderError
from rankwright.types import Context, Example, Outcome, Reader, ReadFailed, Reward

MINIMUM_READS = 50
"""Fewer reads say little about the share that fails."""


@dataclass(frozen=True)
class Readings:
    """Rewards of all prefixes that were asked for, each distinct one read once."""

    rewards: dict[tuple[str, tuple[int, ...]], float | None]
    """(query_id, candidate positions in reading order) -> reward; None where the read or the reward failed."""
    paid: int
    """Reader calls made."""
    hits: int
    """Answers that came from the cache."""
    failed: int
    """Readings without a reward."""
    asked: tuple[bool, ...]
    """Of each reading that no cache answered: whether it has a reward."""
    agreement: float
    """Correlation of reward and hold-out metric over all readings."""


def read_prefixes(prefixes: Iterable[tuple[Example, tuple[int, ...]]], reader: Reader, reward: Reward) -> Readings:
    """Asks the reader about each distinct prefix and prices the answers.

    Args:
        prefixes: example and the candidate positions read, in order; the empty prefix is a reading without documents.
        reader: asked once, with all contexts together.
        reward: is given all readings of a question together.
    """
    distinct = {(example.query.query_id, chosen): example for example, chosen in prefixes}
    contexts = [
        Context(example.query, tuple(example.candidates[i] for i in chosen))
        for (_, chosen), example in distinct.items()
    ]
    results = reader.answer(contexts) if contexts else []
    outcomes = [
        Outcome(example, context, result, len(chosen), query_id)
        for ((query_id, chosen), example), context, result in zip(distinct.items(), contexts, results, strict=True)
    ]
    values = priced(outcomes, reward)
    holdout = holdout_metric(reward)
    uncached = [isinstance(result, ReadFailed) or result.paid for result in results]
    return Readings(
        dict(zip(distinct, values, strict=True)),
        paid=sum(result.paid for result in results),
        hits=len(results) - sum(uncached),
        failed=sum(value is None for value in values),
        asked=tuple(value is not None for value, new in zip(values, uncached, strict=True) if new),
        agreement=agreement(values, [holdout(outcome) for outcome in outcomes]),
    )


def priced(outcomes: Sequence[Outcome], reward: Reward) -> list[float | None]:
    """The reward of each outcome; None where there is none, and where it is no finite number."""
    values = [value.value for value in reward(outcomes)] if outcomes else []
    return [value if value is not None and math.isfinite(value) else None for value in values]


def check_failed_reads(reader: Reader, failed: int, reads: int, allowed: float, kind: str) -> None:
    """Stops the run where a larger share than allowed failed; `kind` tells the user which reads were counted.

    Raises:
        ReaderError: too many failed.
    """
    if failed > allowed * reads:
        raise ReaderError(
            f"Reader '{reader.name}' failed on {failed} of {reads} {kind}; at most {allowed:.0%} may fail. Mend the "
            "reader and go on with --resume: all answers are kept."
        )


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
