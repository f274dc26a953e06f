"""What malformed completions are paid, reward by reward: tables, not code, so that they can be compared and replaced.

A ladder is read from the top: the first rung whose fault a completion has is what it is paid, and who has none of the
faults is paid by the reward's formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from rankwright.errors import ConfigurationError
from rankwright.rewards.words import has_pairs, in_sequence
from rankwright.types import Choice, Judgement, Outcome, Scores

Fault = Literal["tags", "judgement"]
"""tags: those of the ladder are not there. judgement: the strict parser found no whole judgement in the agreed form."""

TagRule = Literal["pairs", "sequence"]
"""pairs: each opens and closes. sequence: their blocks stand one behind the other, with nothing but blanks between."""
_TAG_RULES: Mapping[str, Callable[[str, tuple[str, ...]], bool]] = {"pairs": has_pairs, "sequence": in_sequence}


@dataclass(frozen=True, slots=True)
class Rung:
    """What one fault costs."""

    fault: Fault
    pays: float
    """Paid in place of the reward, or of the term that `where` names."""
    source: Literal["paper", "code", "ours"]
    """Who says so."""
    where: str
    """The place in the source; for ours the reason."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """The rungs of one reward, the worst fault first."""

    rungs: tuple[Rung, ...]
    tags: tuple[str, ...] = ()
    """Wanted in a completion, in order; the last one holds the answer. Empty: none are looked for."""
    rule: TagRule = "pairs"

    def __post_init__(self) -> None:
        if isinstance(self.tags, str) or not all(isinstance(tag, str) and tag.isidentifier() for tag in self.tags):
            raise ConfigurationError(
                f"Tags of a ranking reward are {self.tags!r}; wanted a list of names such as ('think', 'answer')."
            )

    def has_tags(self, completion: str) -> bool:
        """Whether the wanted tags are there."""
        return _TAG_RULES[self.rule](completion, self.tags)

    def fault_of(self, outcome: Outcome) -> Rung | None:
        """The first rung whose fault the outcome has."""
        return next((rung for rung in self.rungs if self._has(rung.fault, outcome)), None)

    def _has(self, fault: Fault, outcome: Outcome) -> bool:
        return not self.has_tags(outcome.completion) if fault == "tags" else not is_whole(outcome.judgement)


def is_whole(judgement: Judgement | None) -> bool:
    """Whether a completion said all that was asked, in the agreed form. What had to be repaired did not."""
    if judgement is None or judgement.outcome != "ok":
        return False
    if isinstance(judgement, Choice):
        return judgement.position is not None
    if isinstance(judgement, Scores):
        return all(value is not None and math.isfinite(value) for value in judgement.values)
    return True


THINK_AND_ANSWER = ("think", "answer")

LADDERS: Mapping[str, Ladder] = {
    "rearank": Ladder(
        (Rung("judgement", 0.0, "ours", "the rank term alone: as the prompt's own order; the paper is silent"),),
        THINK_AND_ANSWER,
    ),
    "rank-r1": Ladder(
        (
            Rung("tags", 0.0, "code", "train_grpo.py: format and match are one"),
            Rung("judgement", 0.0, "code", "train_grpo.py: the answer must equal the label"),
        ),
        THINK_AND_ANSWER,
        "sequence",
    ),
    "reasonrank": Ladder(
        (
            Rung("tags", -1.0, "code", "reward_score/ranking.py: think block, then answer block"),
            Rung("judgement", 0.0, "code", "reward_score/ranking.py: ids (all, distinct) as many as documents"),
        ),
        THINK_AND_ANSWER,
        "sequence",
    ),
    "grouprank": Ladder(
        (
            Rung("tags", -0.5, "paper", "section 4.1"),
            Rung("judgement", -0.1, "paper", "section 4.1: tags right, JSON not"),
        ),
        ("reason", "answer"),
    ),
    "erank": Ladder((Rung("judgement", -1.0, "ours", "a significant penalty, section 3.3; its number is lost"),)),
    "retro-star": Ladder((Rung("judgement", -1.0, "ours", "the paper is silent; below all that its formula pays"),)),
    "prorank": Ladder((Rung("judgement", 0.0, "ours", "neither 0 nor 1: neither term is earned"),)),
    "mm-r5": Ladder((Rung("tags", 0.0, "paper", "the format term alone: R_valid, section 3.3"),), THINK_AND_ANSWER),
    "reader": Ladder((Rung("judgement", -1.0, "ours", "below every answer, and at most every difference of answers"),)),
}
"""Name of a reward -> its ladder."""
