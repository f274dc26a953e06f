"""Gate T5: numbers that are none, planted in rewards, log-probabilities, gradients and activations, never reach a
weight; each such step is left out and counted, and the fifth in a row ends the run.

A reward that is none is a failed read: its samples teach nothing and the step is made with the others. So it has the
limit of failed reads, by their share (`rrpo.max_failed_reads`), and no count of steps; that ends the run no later.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from rankwright.algorithms import RRPO, RRPOConfig, Supervised, rrpo
from rankwright.algorithms.config import TrainConfig
from rankwright.errors import RewardError, TrainingError
from rankwright.rewards import answer_reward
from rankwright.training import train
from rankwright.types import Outcome, RewardValue
from tests.gates.mutants import Mutant
from tests.gates.sizes import FULL, tries
from tests.planted import tiny_policy
from tests.process_run import questions
from tests.toy import ToyReader
from tests.training_kit import rows_of

pytestmark = [pytest.mark.gates, pytest.mark.timeout(900)]

PLANTS = tries(100, 20)
STEPS = PLANTS * 2
NUMBERS = (math.nan, math.inf, -math.inf)
PLACES = ("reward", "log-probability", "gradient", "activation")
TRAINERS: dict[str, RRPOConfig | None] = {
    "window": RRPOConfig(max_failed_reads=1.0, train_k=2, samples=3),
    "question": RRPOConfig(max_failed_reads=1.0, train_k=2, scale="question", kl="sampled"),
    "critic": RRPOConfig(max_failed_reads=1.0, train_k=2, samples=3, baseline="critic", advantage="gae"),
    "supervised": None,
}
Planned = dict[int, tuple[str, float]]
"""Step, counted from 1 -> where and which number."""


def planned(name: str) -> Planned:
    """At random steps, five never in a row: every place and number in turn."""
    places = PLACES[2:] if TRAINERS[name] is None else PLACES
    kinds = itertools.cycle(itertools.product(places, NUMBERS))
    draw = random.Random(name)
    while True:
        steps = sorted(draw.sample(range(1, STEPS + 1), PLANTS))
        if all(late - early > 4 for early, late in zip(steps, steps[4:], strict=False)):
            return dict(zip(steps, kinds, strict=False))


class Planter(TrainerCallback):
    """Plants by plan, and looks at gradients and weights by itself."""

    name = "f1"

    def __init__(self, plan: Planned, every: int) -> None:
        self.plan, self.every = plan, every
        self.place, self.number = "", 0.0
        self.policy, self.inner = tiny_policy(0), answer_reward("f1")
        self.weights: list[Tensor] = [self._weights()]
        self.broken: list[bool] = []
        """Of each step, whether its gradient is no number."""
        layer = self.policy.model.bert.encoder.layer[0]
        layer.register_forward_hook(self._activation)
        self.policy.model.classifier.weight.register_hook(self._gradient)

    def _weights(self) -> Tensor:
        return torch.cat([weight.detach().flatten() for weight in self.policy.parameters()])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.place, self.number = self.plan.get(state.global_step + 1, ("", 0.0))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the loop's own look."""
        self.broken.append(all(weight.grad is None for weight in self.policy.parameters()))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights.append(self._weights())

    def _activation(self, module: Any, given: Any, output: Any) -> Any:
        if self.place != "activation":
            return output
        planted = (output[0] if isinstance(output, tuple) else output).clone()
        planted[-1, 0, 0] = self.number
        return (planted, *output[1:]) if isinstance(output, tuple) else planted

    def _gradient(self, slope: Tensor) -> Tensor:
        return slope.index_fill(1, torch.tensor([3]), self.number) if self.place == "gradient" else slope

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        """The reward; one of `every` is planted."""
        values = self.inner(outcomes)
        if self.place == "reward":
            values[:: self.every] = [RewardValue(self.number)] * len(values[:: self.every])
        return values

    def logprobs(self, scores_QD: Tensor, actions_QSK: Tensor) -> Tensor:
        """The policy's, of which one is planted, in the loss alone."""
        found = self.plain(scores_QD, actions_QSK)
        if self.place != "log-probability" or not scores_QD.requires_grad:
            return found
        there = torch.zeros_like(found, dtype=torch.bool)
        there[0, 0, 0] = True
        return torch.where(there, found * self.number, found)

    plain = staticmethod(rrpo.step_logprobs)


def run(
    folder: Path,
    name: str,
    plan: Planned,
    monkeypatch: pytest.MonkeyPatch,
    steps: int = STEPS,
    config: RRPOConfig | None = None,
    every: int = 3,
) -> tuple[Planter, TrainingError | RewardError | None]:
    planter, config = Planter(plan, every), config or TRAINERS[name]
    monkeypatch.setattr(rrpo, "step_logprobs", planter.logprobs)
    algorithm = RRPO(config, ToyReader(), planter, seed=1) if config else Supervised()
    trainer = {"max_steps": steps, "warmup_steps": 0, "lr_scheduler_type": "constant"}
    loop = TrainConfig(batch_size=3, learning_rate=1e-4, eval_steps=1000, trainer=trainer)
    reference = copy.deepcopy(tiny_policy(0))
    # A number planted among the documents of a question that teaches nothing would reach no loss.
    teaching = [
        question for question in questions(28) if any(d.doc_id in question.relevance for d in question.candidates)
    ]
    try:
        train(planter.policy, reference, algorithm, teaching, loop, folder, callbacks=[planter])
    except (TrainingError, RewardError) as error:
        return planter, error
    return planter, None


@pytest.mark.parametrize("name", TRAINERS)
def test_no_number_that_is_none_reaches_a_weight(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A planted activation, gradient or NaN costs its step; a planted reward counts as a failed read and costs none;
    an infinite log-probability may be clipped away, and then its step is as good as another."""
    plan = planned(name)
    planter, error = run(tmp_path, name, plan, monkeypatch)
    assert error is None
    assert len(planter.weights) == STEPS + 1
    assert all(torch.isfinite(weights).all() for weights in planter.weights)
    rows = [row for row in rows_of(tmp_path) if "loss" in row]
    skipped = {row["step"] for row in rows if row["skipped_steps"]}
    sure = {s for s, (place, x) in plan.items() if place != "reward" and (place != "log-probability" or x != x)}
    maybe = {s for s, (place, x) in plan.items() if place == "log-probability" and x == x}
    assert sure <= skipped <= sure | maybe
    for row, (before, after) in zip(rows, itertools.pairwise(planter.weights), strict=True):
        assert torch.equal(before, after) == planter.broken[row["step"] - 1]
        assert planter.broken[row["step"] - 1] or row["step"] not in skipped
    planted_rewards = {s for s, (place, _) in plan.items() if place == "reward"}
    assert {row["step"] for row in rows if row.get("failed_reads")} == planted_rewards
    assert sum(not broken for broken in planter.broken) > STEPS // 3
    if FULL:
        clipped = len(maybe - skipped)
        with capsys.disabled():
            print(f"\nT5 {name}: {len(plan)} planted, {len(skipped)} steps left out, {clipped} clipped away")


@pytest.mark.parametrize("place", PLACES[1:])
@pytest.mark.parametrize("count", [4, 5])
def test_the_fifth_in_a_row_ends_the_run(
    tmp_path: Path, place: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {3 + i: (place, math.nan) for i in range(count)}
    planter, error = run(tmp_path, "window", plan, monkeypatch, steps=10)
    assert (error is not None) == (count == 5)
    if error:
        assert "the last of 5 in a row" in str(error)
    assert len(planter.weights) == 1 + (6 if error else 10)
    assert all(torch.isfinite(weights).all() for weights in planter.weights)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("every", [1, 3], ids=["all", "one of three"])
def test_planted_rewards_end_the_run_by_the_limit_of_failed_reads(
    tmp_path: Path, every: int, number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the default limit: not at the first such step, since the last 300 answers count, and before the fifth."""
    begin, config = 15, RRPOConfig(train_k=2, samples=3)
    plan = {begin + i: ("reward", number) for i in range(5)}
    planter, error = run(tmp_path, "window", plan, monkeypatch, 30, config, every)
    assert isinstance(error, RewardError)
    assert re.search(r"gave no value for \d+ of 300 recent answers; at most 10% may lack one", str(error))
    assert 1 <= len(planter.weights) - begin < 5
    assert all(torch.isfinite(weights).all() for weights in planter.weights)


def test_steps_without_any_reward_move_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all reads may fail, five of them in a row end nothing: the run goes on with the rewards that follow."""
    plan = {3 + i: ("reward", number) for i, number in enumerate((*NUMBERS, math.nan, math.inf))}
    planter, error = run(tmp_path, "window", plan, monkeypatch, steps=10, every=1)
    assert error is None
    moved = [not torch.equal(*pair) for pair in itertools.pairwise(planter.weights)]
    assert moved == [step not in plan for step in range(1, 11)]
    assert {row["step"] for row in rows_of(tmp_path) if row.get("failed_reads")} == plan.keys()


GATE = "tests/gates/test_gate_t5.py"
MUTANTS = [
    Mutant(
        gate="T5",
        tests=GATE,
        file="rankwright/training.py",
        old='self._broken = "" if torch.isfinite(norm) else f"Gradient norm is {norm.item()}"',
        new='self._broken = ""',
    ),
    Mutant(
        gate="T5",
        tests=GATE,
        file="rankwright/training.py",
        old="        self._skipped_in_a_row = self._skipped_in_a_row + 1 if self._broken else 0\n",
        new="        self._skipped_in_a_row += bool(self._broken)\n",
    ),
    Mutant(
        gate="T5",
        tests=GATE,
        file="rankwright/reading.py",
        old="return value if value is not None and math.isfinite(value) else None",
        new="return value",
    ),
    Mutant(
        gate="T5",
        tests=f"{GATE}::test_planted_rewards_end_the_run_by_the_limit_of_failed_reads",
        file="rankwright/algorithms/rrpo.py",
        old="if (answers := len(self.valued)) >= MINIMUM_READS:",
        new="if (answers := len(self.valued)) < 0:",
    ),
    Mutant(
        gate="T5",
        tests=f"{GATE}::test_steps_without_any_reward_move_no_weight",
        file="rankwright/training.py",
        old="        self._taught = self._taught or rollout.teaches\n",
        new="        self._taught = True\n",
    ),
]
