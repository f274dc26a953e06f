"""Reading orders of candidates: what was chosen -> contexts -> answers -> rewards. Training and `diagnose` read so."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rankwright.errors import ReaderError, RewardError
from rankwright.metrics.answer import f1, sub_em
from rankwright.types import Answer, Context, Example, Outcome, Reader, Reward

MINIMUM_READS = 50
"""Fewer reads say little about the share that fails."""
MAX_FAILED_READS = 0.01
"""Above this share a report is refused, unless more is allowed: its means are over those that could be read. Training
has a limit of its own, `rrpo.max_failed_reads`, since it leaves out what needs a failed read; the comparison at its end
is a report."""


@dataclass(frozen=True)
class Readings:
    """Rewards of all prefixes that were asked for, each distinct one read once."""

    rewards: dict[tuple[str, tuple[int, ...]], float | None]
    """(query_id, candidate positions in reading order) -> reward; None where the read or the reward failed."""
    paid: int
    """Reader calls made."""
    hits: int
    """Answers that came from the cache."""
    asked: tuple[bool, ...]
    """Of each reading that no cache answered: whether the reader did."""
    valued: tuple[bool, ...]
    """Of each answer: whether it has a reward."""
    holdout: tuple[float | None, ...]
    """The hold-out metric of each, in the order of `rewards`."""

    def __add__(self, others: Readings) -> Readings:
        """Both, where no prefix was asked for twice."""
        return Readings(
            {**self.rewards, **others.rewards},
            self.paid + others.paid,
            self.hits + others.hits,
            self.asked + others.asked,
            self.valued + others.valued,
            self.holdout + others.holdout,
        )

    @property
    def failed(self) -> int:
        """Readings without a reward."""
        return sum(value is None for value in self.rewards.values())

    @property
    def agreement(self) -> float:
        """Correlation of reward and hold-out metric over all readings."""
        return agreement(list(self.rewards.values()), self.holdout)


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
    answered = [isinstance(result, Answer) for result in results]
    uncached = [not known or result.paid for known, result in zip(answered, results, strict=True)]
    return Readings(
        dict(zip(distinct, values, strict=True)),
        paid=sum(result.paid for result in results),
        hits=len(results) - sum(uncached),
        asked=tuple(known for known, new in zip(answered, uncached, strict=True) if new),
        valued=tuple(value is not None for value, known in zip(values, answered, strict=True) if known),
        holdout=tuple(holdout(outcome) for outcome in outcomes),
    )


def priced(outcomes: Sequence[Outcome], reward: Reward) -> list[float | None]:
    """The reward of each outcome; None where there is none, and where it is no finite number."""
    return [finite(value.value) for value in reward(outcomes)] if outcomes else []


def finite(value: float | None) -> float | None:
    """The value, where it is a finite number."""
    return value if value is not None and math.isfinite(value) else None


def holdout_metric(reward: Reward) -> Callable[[Outcome], float | None]:
    """A measure of answers that training does not climb: F1 against the accepted answers, or sub-EM where F1 is the
    reward. None where the read failed or no answer is accepted."""
    metric = sub_em if reward.name == "f1" else f1

    def measure(outcome: Outcome) -> float | None:
        if not isinstance(outcome.result, Answer) or not outcome.example.answers:
            return None
        return metric(outcome.result.text, outcome.example.answers)

    return measure


def agreement(rewards: Sequence[float | None], holdout: Sequence[float | None]) -> float:
    """Correlation (Pearson's) of reward and hold-out metric over readings that have both; NaN where one of them is
    the same for all.

    >>> round(agreement([0.0, 1.0, None, 0.5], [1.0, 0.0, 1.0, 0.5]), 6)
    -1.0
    """
    pairs = [(one, two) for one, two in zip(rewards, holdout, strict=True) if one is not None and two is not None]
    if len(pairs) < 2:
        return float("nan")
    columns = np.array(pairs).T
    if not np.isfinite(columns).all() or (np.ptp(columns, axis=1) < 1e-9).any():
        return float("nan")
    return float(np.corrcoef(columns)[0, 1])


def check_failed_reads(
    reader: Reader, failed: int, reads: int, allowed: float, kind: str, go_on: str = "go on with --resume"
) -> None:
    """Stops the run where a larger share than allowed failed; `kind` tells the user which reads were counted, `go_on`
    what to do when the reader is mended.

    Raises:
        ReaderError: too many failed.
    """
    if failed > allowed * reads:
        raise ReaderError(
            f"Reader '{reader.name}' failed on {failed} of {reads} {kind}; at most {allowed:.0%} may fail. Mend the "
            f"reader and {go_on}: all answers are kept."
        )


def check_missing_rewards(reward: Reward, missing: int, answers: int, allowed: float) -> None:
    """Stops the run where a larger share of the recent answers than allowed got no reward, for which no reader is to
    blame.

    Raises:
        RewardError: too many have none.
    """
    if missing > allowed * answers:
        raise RewardError(
            f"Reward '{reward.name}' gave no value for {missing} of {answers} recent answers; at most {allowed:.0%} "
            "may lack one. Mend the reward and go on with --resume: all answers are kept."
        )
