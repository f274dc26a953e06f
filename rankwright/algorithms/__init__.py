"""How a policy learns: `collect` turns scores into a rollout without gradient, `loss` turns scores and rollout into a
loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankwright.algorithms.config import RRPOConfig

if TYPE_CHECKING:
    from rankwright.algorithms.rrpo import RRPO
    from rankwright.algorithms.supervised import Supervised


def __getattr__(name: str) -> type:
    if name == "RRPO":
        from rankwright.algorithms.rrpo import RRPO

        return RRPO
    if name == "Supervised":
        from rankwright.algorithms.supervised import Supervised

        return Supervised
    raise AttributeError(f"module 'rankwright.algorithms' has no attribute '{name}'")


__all__ = ["RRPO", "RRPOConfig", "Supervised"]
