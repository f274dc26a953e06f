"""The reader's answer quality as the reward of a generated ranking: what RRPO pays the rankings of a scoring model, for
a model that writes its ranking. No relevance labels are needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rankwright.errors import ConfigurationError, ReaderError
from rankwright.rewards.judged import check_judged, order_of
from rankwright.rewards.ladders import LADDERS, Ladder
from rankwright.types import Context, Outcome, Reader, ReadResult, Reward, RewardValue


@dataclass(frozen=True, kw_only=True)
class ReaderReward:
    """What an answer reward pays the reader's answer from the first `depth` documents of the order that was written.

    All contexts of a call go to the reader in one batch, equal ones once. A read or reward that fails has no value. The
    answer reward is given all rollouts of a question together, with the documents that were read as context. The reward
    is ours: it carries the idea of RRPO (Wu et al., ACL 2026, arXiv 2604.02091) over to rankings that are written.
    """

    reader: Reader
    reward: Reward
    """Prices answers, for example answer_reward("f1")."""
    depth: int = 3
    """Documents read, or all where there are fewer; 3 was RRPO's best."""
    anchored: bool = False
    """Pay what the answer is worth above the answer from the first documents of the prompt's own order, as RRPO's
    baseline does. Where GRPO compares rollouts of one prompt, the difference cancels, except against malformed ones."""
    ladder: Ladder = LADDERS["reader"]

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ConfigurationError(f"Option depth of reward 'reader' is {self.depth}; wanted at least 1 document.")

    @property
    def name(self) -> str:
        """With what decides it, as it belongs in a signature."""
        return f"reader({self.reward.name}@{self.depth}{',anchored' if self.anchored else ''})"

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        check_judged(outcomes, self.name)
        faults = [self.ladder.fault_of(outcome) for outcome in outcomes]
        whole = [outcome for outcome, fault in zip(outcomes, faults, strict=True) if fault is None]
        written = [self._first(outcome, order_of(outcome, self.name)) for outcome in whole]
        initial = [self._first(outcome, range(len(outcome.context.documents))) for outcome in whole]
        results = self._read([*written, *(initial if self.anchored else ())])
        paid = self._priced(whole, written, results)
        if self.anchored:
            paid = [_above(one, two) for one, two in zip(paid, self._anchors(whole, initial, results), strict=True)]
        values = iter(paid)
        return [RewardValue(fault.pays, {"well_formed": 0.0}) if fault else next(values) for fault in faults]

    def _first(self, outcome: Outcome, order: Sequence[int]) -> Context:
        documents = outcome.context.documents
        return Context(outcome.context.query, tuple(documents[i] for i in order[: self.depth]))

    def _read(self, contexts: Sequence[Context]) -> dict[Context, ReadResult]:
        distinct = list(dict.fromkeys(contexts))
        results = self.reader.answer(distinct) if distinct else []
        if len(results) != len(distinct):
            raise ReaderError(
                f"Reader {self.reader.name} gave {len(results)} results for {len(distinct)} contexts; wanted one for "
                "each. Return ReadFailed for a context that has no answer."
            )
        return dict(zip(distinct, results, strict=True))

    def _priced(
        self, outcomes: Sequence[Outcome], contexts: Sequence[Context], results: dict[Context, ReadResult]
    ) -> list[RewardValue]:
        readings = [
            replace(outcome, context=context, result=results[context], position=len(context.documents))
            for outcome, context in zip(outcomes, contexts, strict=True)
        ]
        values = self.reward(readings) if readings else []
        return [RewardValue(_finite(value.value), {**value.parts, "well_formed": 1.0}) for value in values]

    def _anchors(
        self, outcomes: Sequence[Outcome], contexts: Sequence[Context], results: dict[Context, ReadResult]
    ) -> list[float | None]:
        """What the prompt's own order earns, for each outcome; rollouts of one prompt share it."""
        keys = [(outcome.group_id, context) for outcome, context in zip(outcomes, contexts, strict=True)]
        first: dict[tuple[str, Context], Outcome] = {}
        for key, outcome in zip(keys, outcomes, strict=True):
            first.setdefault(key, outcome)
        values = self._priced(list(first.values()), [context for _, context in first], results)
        value_of = {key: value.value for key, value in zip(first, values, strict=True)}
        return [value_of[key] for key in keys]


def _above(paid: RewardValue, anchor: float | None) -> RewardValue:
    if paid.value is None or anchor is None:
        return RewardValue(None, paid.parts)
    return RewardValue(paid.value - anchor, {**paid.parts, "anchor": anchor})


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
