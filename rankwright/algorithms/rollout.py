"""Reading the prefixes of rankings: actions -> contexts -> answers -> rewards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
    values = reward(outcomes) if outcomes else []
    uncached = [isinstance(result, ReadFailed) or result.paid for result in results]
    return Readings(
        {key: value.value for key, value in zip(distinct, values, strict=True)},
        paid=sum(result.paid for result in results),
        hits=len(results) - sum(uncached),
        failed=sum(value.value is None for value in values),
        asked=tuple(value.value is not None for value, new in zip(values, uncached, strict=True) if new),
    )


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
