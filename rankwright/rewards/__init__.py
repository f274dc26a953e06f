"""What an answer is worth: rewards from accepted answers, or from the user's own function.

from rankwright.rewards import resolve_reward
reward = resolve_reward("f1")
reward = resolve_reward("my_rewards:cites_a_year")
"""

from __future__ import annotations

from rankwright.errors import ConfigurationError
from rankwright.rewards.answer import ANSWER_METRICS, answer_reward
from rankwright.rewards.function import function_reward
from rankwright.types import Reward

__all__ = ["ANSWER_METRICS", "answer_reward", "function_reward", "needs_reader", "resolve_reward"]


def needs_reader(name_or_spec: str) -> bool:
    """Whether a reward looks at a reader's answer: an answer metric, or a user's function, which may."""
    return ":" in name_or_spec or _known(name_or_spec) in ANSWER_METRICS


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
