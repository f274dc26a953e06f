"""Rewards of rankings that a language model wrote, by name.

from rankwright.rewards.ranking import ranking_reward
reward = ranking_reward("reasonrank", recall_weight=0.3)
reward = ranking_reward("rearank", tags=())  # a prompt that asks for no tags
reward = ranking_reward("reader", reader=reader, reward=answer_reward("f1"))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rankwright.errors import ConfigurationError
from rankwright.rewards.pools import ERank, RetroStar
from rankwright.rewards.reader import ReaderReward
from rankwright.rewards.windows import MMR5, GroupRank, ProRank, RankR1, Rearank, ReasonRank
from rankwright.types import Reward

RANKING_REWARDS: Mapping[str, type[Any]] = {
    "rearank": Rearank,
    "rank-r1": RankR1,
    "reasonrank": ReasonRank,
    "grouprank": GroupRank,
    "erank": ERank,
    "retro-star": RetroStar,
    "prorank": ProRank,
    "mm-r5": MMR5,
    "reader": ReaderReward,
}
"""Name of a reward -> its class; the fields of the class are its options."""


def ranking_reward(name: str, **options: Any) -> Reward:
    """The reward of a paper (or `reader`, ours) with its numbers, or with other options.

    Args:
        name: one of RANKING_REWARDS, with - or _.
        options: fields of the class; besides, `tags` replaces the tags of its ladder.

    Raises:
        ConfigurationError: no such reward or option, a value out of range, or the reader or its reward is missing.
    """
    known = name.strip().lower().replace("_", "-")
    if known not in RANKING_REWARDS:
        raise ConfigurationError(f"Ranking reward '{name}' is unknown; use one of {', '.join(RANKING_REWARDS)}.")
    kind = RANKING_REWARDS[known]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = next((option for option in options if option not in {*fields, "tags"}), None)
    if unknown is not None:
        raise ConfigurationError(
            f"Option '{unknown}' of ranking reward '{known}' is unknown; use one of {', '.join((*fields, 'tags'))}."
        )
    missing = [option for option in fields if fields[option].default is dataclasses.MISSING and option not in options]
    if missing:
        raise ConfigurationError(
            f"Ranking reward '{known}' was given no {' and no '.join(missing)}; give the objects as options."
        )
    if "tags" in options:
        tags = options.pop("tags")
        ladder = options.get("ladder", fields["ladder"].default)
        options["ladder"] = dataclasses.replace(ladder, tags=tags if isinstance(tags, str) else tuple(tags))
    return kind(**options)
