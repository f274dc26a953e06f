"""The runs of analysis.md and their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.ranking_language.language import PerfectReader
from rankwright.algorithms.config import TrainConfig
from rankwright.algorithms.generating import GRPOConfig
from rankwright.algorithms.grpo import order_of
from rankwright.metrics.orders import ndcg
from rankwright.rewards import answer_reward, ranking_reward
from rankwright.rewards.judged import grades_of
from rankwright.rewards.ladders import LADDERS, Rung
from rankwright.types import Outcome, Reward, RewardValue

SEEDS = (0, 1, 2)
LONG, MIDDLE, SHORT, RANDOM = "warm-up", "second-lesson", "first-lesson", ""
"""What a run starts from: windows of 6 to 8 were taught to the end, or half of the way, or those of 1 and 2, or
nothing."""
STEPS = 120
POINTWISE_WINDOW = 6
"""Documents of a question that are judged in training, one by one."""


@dataclass(frozen=True)
class Row:
    """One row of analysis.md."""

    name: str
    reward: str
    """Empty for SFT."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the reward; `unreadable` is what its ladder pays for an answer that cannot be read."""
    kind: str = "listwise"
    start: str = LONG
    seeds: tuple[int, ...] = (0,)
    grpo: GRPOConfig = field(default_factory=lambda: _grpo(36))
    loop: TrainConfig = field(default_factory=lambda: _loop(8, 1e-4, STEPS))

    @property
    def metric(self) -> str:
        """What is compared before and after: nDCG@10, or of a choice the share of right ones."""
        return "best_first" if self.kind == "setwise" else "ndcg"


def _grpo(longest: int, rollouts: int = 8) -> GRPOConfig:
    return GRPOConfig(
        rollouts=rollouts,
        max_completion_length=longest,
        beta=0.001,
        completions_per_pass=128,
        completions_at_once=384,
    )


def _loop(questions: int, rate: float, steps: int) -> TrainConfig:
    return TrainConfig(
        batch_size=questions,
        learning_rate=rate,
        eval_steps=30,
        trainer={"max_steps": steps, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5},
    )


def _lesson(steps: int, every: int, schedule: str = "constant_with_warmup") -> TrainConfig:
    return TrainConfig(
        batch_size=64,
        learning_rate=1e-3,
        eval_steps=every,
        trainer={"max_steps": steps, "lr_scheduler_type": schedule, "warmup_steps": 30},
    )


LESSONS = {
    SHORT: Row(SHORT, "", kind="integer", start=RANDOM, seeds=SEEDS, loop=_lesson(600, 300)),
    MIDDLE: Row(MIDDLE, "", start=SHORT, seeds=SEEDS, loop=_lesson(450, 150)),
    LONG: Row(LONG, "", start=MIDDLE, seeds=SEEDS, loop=_lesson(450, 150, "cosine")),
}
ALONE = _loop(8, 3e-4, STEPS)
"""Of pointwise forms."""
BASE = Row("rearank", "rearank", {"unreadable": -1.0}, seeds=SEEDS)
PLAIN = replace(BASE, options={})
"""Other rewards as the product has them."""
SCORED = replace(
    PLAIN, reward="erank", options={"relevant_from": 2}, kind="integer", start=SHORT, grpo=_grpo(8), loop=ALONE
)
ROWS = {
    row.name: row
    for row in (
        BASE,
        replace(PLAIN, name="rank-r1", reward="rank-r1", kind="setwise"),
        replace(PLAIN, name="reader", reward="reader"),
        *(
            replace(one, seeds=(0,))
            for one in (
                replace(PLAIN, name="sft-only", reward="", loop=_loop(64, 3e-4, STEPS)),
                replace(PLAIN, name="first", reward="", kind="single-token", loop=_loop(64, 3e-4, STEPS)),
                replace(BASE, name="rl-only", start=RANDOM),
                replace(PLAIN, name="reasonrank", reward="reasonrank"),
                replace(PLAIN, name="grouprank", reward="grouprank", kind="groupwise", grpo=_grpo(46)),
                replace(SCORED, name="erank"),
                replace(SCORED, name="erank-ties", options={**SCORED.options, "ties": "against"}),
                replace(PLAIN, name="prorank", reward="prorank", kind="binary", start=SHORT, grpo=_grpo(2), loop=ALONE),
                replace(PLAIN, name="rearank-default"),
                replace(PLAIN, name="ndcg", reward="ndcg"),
                replace(PLAIN, name="difference", reward="difference"),
                replace(BASE, name="group-4", grpo=_grpo(36, 4), loop=_loop(16, 1e-4, STEPS)),
                replace(BASE, name="group-16", grpo=_grpo(36, 16), loop=_loop(4, 1e-4, STEPS)),
            )
        ),
    )
}


@dataclass(frozen=True)
class PlainNDCG:
    """Raw nDCG@10 of the window, or what it is above that of the order as given; malformed ones earn what no
    order is below, 0 and -1. Ablations."""

    name: str

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        return [RewardValue(self._one(outcome)) for outcome in outcomes]

    def _one(self, outcome: Outcome) -> float:
        assert outcome.judgement is not None
        if outcome.judgement.outcome == "malformed":
            return 0.0 if self.name == "ndcg" else -1.0
        given = grades_of(outcome)
        best = sorted(given, reverse=True)
        value = ndcg([given[i] for i in order_of(outcome.judgement, len(given))], best, 10)
        return value - (ndcg(given, best, 10) if self.name == "difference" else 0.0)


def reward_of(row: Row) -> Reward:
    """The reward of a row."""
    options = dict(row.options)
    if row.reward in ("ndcg", "difference"):
        return PlainNDCG(row.reward)
    if row.reward == "reader":
        return ranking_reward("reader", reader=PerfectReader(), reward=answer_reward("f1"), depth=1)
    if "unreadable" in options:
        price = Rung("judgement", options.pop("unreadable"), "ours", "below most orders, so that none does not pay")
        options["ladder"] = replace(LADDERS[row.reward], rungs=(price,))
    return ranking_reward(row.reward, **options)
