"""Reading orders of candidates: what was chosen -> contexts -> answers -> rewards. Training and `diagnose` read so."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankwright.errors import ReaderError, RewardError
from rankwright.metrics.answer import f1, sub_em
from rankwright.types import Answer, Context, Example, Outcome, Reader, ReadResult, Reward

MINIMUM_READS = 50
"""Fewer reads say little about the share that fails."""
MAX_FAILED_READS = 0.01
"""Above this share a report is refused, unless more is allowed: its means are over those that could be read. Training
has a limit of its own, `rrpo.max_failed_reads`, since it leaves out what needs a failed read; the comparison at its end
is a report."""
MEND_REWARD = "Mend what it asks and go on with --resume; where its own file changes, begin anew with --overwrite"
"""What to do about a reward without values: the file of a user's function is among what a run does not change."""


Prefix = tuple[str, tuple[int, ...]]
"""A query_id and candidate positions in reading order."""


@dataclass(frozen=True)
class Readings:
    """Rewards of all prefixes that were asked for, each distinct one read once."""

    outcomes: Mapping[Prefix, Outcome]
    """What the reader made of each, in the order in which they were read."""
    rewards: Mapping[Prefix, float | None]
    """None where the read or the reward failed; in that order, too."""
    holdout: tuple[float | None, ...]
    """The hold-out metric of each, likewise."""

    @property
    def paid(self) -> int:
        """Reader calls made."""
        return sum(result.paid for result in self._results)

    @property
    def hits(self) -> int:
        """Answers that came from the cache."""
        return len(self._results) - len(self.asked)

    @property
    def asked(self) -> tuple[bool, ...]:
        """Of each reading that no cache answered: whether the reader did."""
        answered = ((isinstance(result, Answer), result.paid) for result in self._results)
        return tuple(known for known, paid in answered if paid or not known)

    @property
    def valued(self) -> tuple[bool, ...]:
        """Of each answer: whether it has a reward."""
        pairs = zip(self._results, self.rewards.values(), strict=True)
        return tuple(value is not None for result, value in pairs if isinstance(result, Answer))

    @property
    def failed(self) -> int:
        """Readings without a reward."""
        return sum(value is None for value in self.rewards.values())

    @property
    def agreement(self) -> float:
        """Correlation of reward and hold-out metric over all readings."""
        return agreement(list(self.rewards.values()), self.holdout)

    @property
    def _results(self) -> list[ReadResult]:
        return [outcome.result for outcome in self.outcomes.values()]


NOTHING_READ = Readings({}, {}, ())


def read_prefixes(
    prefixes: Iterable[tuple[Example, tuple[int, ...]]], reader: Reader, reward: Reward, before: Readings = NOTHING_READ
) -> Readings:
    """Asks the reader about each distinct prefix and prices the answers.

    Args:
        prefixes: example and the candidate positions read, in order; the empty prefix is a reading without documents.
        reader: asked once, with all contexts together.
        reward: is given all readings of a question together.
        before: earlier readings, to which the new ones are added; none of them is read again. Those of a question that
            is read further are priced again, since a reward may compare what it is given of a question.
    """
    wanted = {(example.query.query_id, chosen): example for example, chosen in prefixes}
    distinct = {key: example for key, example in wanted.items() if key not in before.outcomes}
    contexts = [
        Context(example.query, tuple(example.candidates[i] for i in chosen))
        for (_, chosen), example in distinct.items()
    ]
    results = reader.answer(contexts) if contexts else []
    new = {
        key: Outcome(example, context, result, len(context.documents), key[0])
        for (key, example), context, result in zip(distinct.items(), contexts, results, strict=True)
    }
    outcomes, further = {**before.outcomes, **new}, {query_id for query_id, _ in new}
    together = {key: outcome for key, outcome in outcomes.items() if key[0] in further}
    values = dict(zip(together, priced(list(together.values()), reward), strict=True))
    holdout = holdout_metric(reward)
    return Readings(outcomes, {**before.rewards, **values}, before.holdout + tuple(map(holdout, new.values())))


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


def check_missing_rewards(
    reward: Reward, missing: int, answers: int, allowed: float, kind: str, go_on: str = MEND_REWARD
) -> None:
    """Stops the run where a larger share of the answers than allowed got no reward, for which no reader is to blame;
    `kind` tells the user which answers were counted, `go_on` what to do.

    Raises:
        RewardError: too many have none.
    """
    if missing > allowed * answers:
        raise RewardError(
            f"Reward '{reward.name}' gave no value for {missing} of {answers} {kind}; at most {allowed:.0%} may lack "
            f"one. {go_on}: all answers are kept."
        )
