"""What a rollout shows besides its reward, for the log and its alarms: no reader call is made for any of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rankwright.maths.order import input_order
from rankwright.maths.policy_gradient import exact_kl
from rankwright.metrics.answer import contains_answer, f1, normalise, sub_em
from rankwright.types import Answer, Example, Outcome, Reward

CLOSED = frozenset({"yes", "no"})
"""Answers that stand in many texts without giving anything away."""
BARE = 2
"""A passage of at most so many times an answer's words that holds the answer is hardly more than the answer."""


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
    columns = torch.tensor(pairs, dtype=torch.float64).T
    if not torch.isfinite(columns).all() or (columns.amax(1) - columns.amin(1) < 1e-9).any():
        return float("nan")
    return torch.corrcoef(columns)[0, 1].item()


def leak_share(examples: Sequence[Example]) -> float:
    """Share of questions that give an accepted answer away: it stands in the question, or a candidate is hardly more
    than it. Yes and no do not count."""
    return sum(map(_leaks, examples)) / len(examples)


def _leaks(example: Example) -> bool:
    answers = [answer for answer in example.answers if normalise(answer) not in CLOSED]
    if not answers:
        return False
    words = BARE * max(len(answer.split()) for answer in answers)
    texts = [example.query.text, *(d.text for d in example.candidates if len(d.text.split()) <= words)]
    return any(contains_answer(text, answers) for text in texts)


def policy_metrics(scores_QD: Tensor, reference_scores_QD: Tensor) -> Mapping[str, float]:
    """How far the policy is from its reference, the same for all settings; how far both follow the order of the
    candidates; and the ties of the policy.

    Args:
        scores_QD: the policy's scores, -inf on padding.
        reference_scores_QD: the frozen reference's.
    """
    correlation_Q, tied_Q = input_order(scores_QD)
    return {
        "exact_kl": exact_kl(scores_QD, reference_scores_QD).mean().item(),
        "tied_share": tied_Q.nanmean().item(),
        "position_correlation": correlation_Q.nanmean().item(),
        "reference_position_correlation": input_order(reference_scores_QD)[0].nanmean().item(),
    }
