"""What a rollout shows besides its reward, for the log and its alarms: no reader call is made for any of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from rankwright.maths.order import input_order
from rankwright.maths.policy_gradient import exact_kl
from rankwright.metrics.answer import CLOSED_ANSWERS, contains_answer, normalise
from rankwright.types import Example

BARE = 2
"""A passage of at most so many times an answer's words that holds the answer is hardly more than the answer."""


def leak_share(examples: Sequence[Example]) -> float:
    """Share of questions that give an accepted answer away: it stands in the question, or a candidate is hardly more
    than it. Yes and no do not count."""
    return sum(map(_leaks, examples)) / len(examples)


def _leaks(example: Example) -> bool:
    answers = [answer for answer in example.answers if normalise(answer) not in CLOSED_ANSWERS]
    if not answers:
        return False
    return contains_answer(example.query.text, answers) or any(
        len(document.text.split()) <= BARE * len(answer.split()) and contains_answer(document.text, [answer])
        for document in example.candidates
        for answer in answers  # each by its own length: a short name may have a long alias
    )


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
