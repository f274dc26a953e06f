"""Settings of the algorithms; imports no torch, so that the command line can show them quickly."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from rankwright.errors import ConfigurationError


@dataclass(frozen=True)
class RRPOConfig:
    """Settings of RRPO. The paper (arXiv 2604.02091) names k_train = 3; where it leaves a value open, the default is
    ours: docs/rrpo.md gives the reason of each and links to what was measured."""

    train_k: int = 3
    """Steps of a sampled ranking; the reader answers after each. Paper: 3 was best of 1, 3, 5."""
    samples: int = 4
    """Sampled rankings per question. Ours."""
    advantage: Literal["gae", "anchored", "marginal"] = "anchored"
    """How rewards and baseline make advantages. The paper prints gae; the default is ours."""
    scale: Literal["window", "question"] = "window"
    """What advantages are measured by: recent advantages of all questions, as in the paper, or the mean reward of the
    question's own samples, which is then the baseline too (MaxRL, arXiv 2602.02710): questions that are solved do not
    take most of the update. Ours."""
    ratio_anchor: Literal["behaviour", "reference"] = "behaviour"
    """Denominator of the probability ratio. The paper prints reference; the default is ours."""
    inner_epochs: int = 1
    """Updates per rollout. With ratio_anchor behaviour and 1 the ratio is 1 and the clip idle."""
    gamma: float = 1.0
    """Discount of later positions. Not given by the paper."""
    lam: float = 1.0
    """GAE's lambda. Not given by the paper."""
    clip: float = 0.2
    """Clip range epsilon of the ratio. Not given by the paper; 0.2 is PPO's."""
    kl: Literal["exact", "sampled"] = "exact"
    """KL of the first step's softmax over all candidates, or the low-variance estimate on sampled steps."""
    beta: float = 0.02
    """Weight of the KL to the reference. Not given by the paper."""
    window: int = 512
    """Recent advantages that standardise the new ones with scale window. The paper has a sliding window; its size is
    not given."""
    drop_closed_book: bool = False
    """Gives no advantage to questions that the reader answers as well without any document as with the best sample:
    their rewards say nothing about the ranking."""
    skip_unanimous: bool = False
    """Gives no advantage to questions whose samples all earned the same at every position; with scale window they
    would still be moved by their distance to the reference."""
    temperature: float = 1.0
    """Divides the scores before sampling and in all probabilities. Ours."""
    max_failed_reads: float = 0.1
    """The run stops when a larger share of the last 300 reads failed (after at least 50; answers of the cache do not
    count)."""

    def __post_init__(self) -> None:
        wanted = {
            "train_k": self.train_k >= 1,
            "samples": self.samples >= 1,
            "advantage": self.advantage in ("gae", "anchored", "marginal"),
            "scale": self.scale in ("window", "question"),
            "ratio_anchor": self.ratio_anchor in ("behaviour", "reference"),
            "inner_epochs": self.inner_epochs >= 1,
            "gamma": 0 <= self.gamma <= 1,
            "lam": 0 <= self.lam <= 1,
            "clip": 0 < self.clip < math.inf,
            "kl": self.kl in ("exact", "sampled"),
            "beta": 0 <= self.beta < math.inf,
            "window": self.window >= 2,
            "drop_closed_book": self.drop_closed_book in (True, False),
            "skip_unanimous": self.skip_unanimous in (True, False),
            "temperature": 0 < self.temperature < math.inf,
            "max_failed_reads": 0 <= self.max_failed_reads <= 1,
        }
        for field in fields(self):
            if not wanted[field.name]:
                raise ConfigurationError(
                    f"RRPO setting {field.name} is {getattr(self, field.name)!r}, which is out of range. "
                    "See docs/rrpo.md for what it takes."
                )
