"""What an answer or a written ranking is worth: rewards from accepted answers, from relevance labels, or from the
user's own function.

from rankwright.rewards import resolve_reward
reward = resolve_reward("f1")
reward = resolve_reward("my_rewards:cites_a_year")
reward = ranking_reward("rearank")
"""

from __future__ import annotations

from rankwright.errors import ConfigurationError
from rankwright.rewards.answer import ANSWER_METRICS, answer_reward
from rankwright.rewards.function import completion_reward, function_reward
from rankwright.rewards.ranking import RANKING_REWARDS, ranking_reward
from rankwright.types import Reward

__all__ = [
    "ANSWER_METRICS",
    "RANKING_REWARDS",
    "answer_reward",
    "completion_reward",
    "function_reward",
    "needs_reader",
    "ranking_reward",
    "resolve_reward",
]


def needs_reader(name_or_spec: str) -> bool:
    """Whether a reward is that of a reader's answer and of nothing else: an answer metric in any spelling."""
    return _known(name_or_spec) in ANSWER_METRICS


def _known(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def resolve_reward(name_or_spec: str) -> Reward:
    """The reward that a command line or config names: an answer metric in any spelling, or `package.module:function`.

    Raises:
        ConfigurationError: the text is neither.
    """
    if ":" in name_or_spec:
        return function_reward(name_or_spec)
    name = _known(name_or_spec)
    if name in ANSWER_METRICS:
        return answer_reward(name)
    raise ConfigurationError(
        f"Reward '{name_or_spec}' is unknown; use one of {', '.join(ANSWER_METRICS)}, "
        "or name a function as package.module:function."
    )
