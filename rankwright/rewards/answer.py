"""Rewards that compare the reader's answer with the accepted answers of the question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rankwright.errors import ConfigurationError, DataError
from rankwright.metrics import answer as metrics
from rankwright.types import Outcome, ReadFailed, Reward, RewardValue

ANSWER_METRICS: Mapping[str, Callable[..., float]] = {
    "f1": metrics.f1,
    "em": metrics.exact_match,
    "sub_em": metrics.sub_em,
    "rouge_l": metrics.rouge_l,
}
"""Name of a reward -> the metric behind it."""


def answer_reward(name: str, *, yes_no_guard: bool = False) -> Reward:
    """The reward that pays an answer its `f1`, `em`, `sub_em` or `rouge_l` against the accepted answers, 0 to 1.

    A failed read has no value. `yes_no_guard` is the option of the metric; exact match has no use for it.

    Raises:
        ConfigurationError: no such metric.
        MissingDependencyError: `rouge_l` without rouge-score, said here instead of in the middle of a run.
    """
    if name not in ANSWER_METRICS:
        raise ConfigurationError(f"Answer reward '{name}' is unknown; use one of {', '.join(ANSWER_METRICS)}.")
    if name == "em" and yes_no_guard:
        raise ConfigurationError("Answer reward 'em' was given yes_no_guard; drop it, equal answers need no guard.")
    if name == "rouge_l":
        metrics.rouge_l("", [""])
    return _AnswerReward(name, yes_no_guard)


@dataclass(frozen=True)
class _AnswerReward:
    name: str
    yes_no_guard: bool

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        return [self._price(outcome) for outcome in outcomes]

    def _price(self, outcome: Outcome) -> RewardValue:
        query = outcome.example.query
        if not outcome.example.answers:
            raise DataError(
                f"Question '{query.query_id}' has no accepted answer; the reward '{self.name}' needs at least one. "
                "Add answers to the row or leave the row out."
            )
        if isinstance(outcome.result, ReadFailed):
            return RewardValue(None)
        options = {"yes_no_guard": True} if self.yes_no_guard else {}
        value = ANSWER_METRICS[self.name](outcome.result.text, outcome.example.answers, **options)
        return RewardValue(value, {self.name: value})
