"""Gate T1: a run that breaks off at any step and is resumed is, to the last bit, the run that was never broken."""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from rankwright.algorithms import RRPO, RRPOConfig, Supervised
from rankwright.algorithms.config import TrainConfig
from rankwright.checkpoints import newest_checkpoint, sorted_checkpoints, step_of
from rankwright.rerankers.cross_encoder import CrossEncoderReranker
from rankwright.rewards import answer_reward
from rankwright.training import TrainResult, dev_scorer, label_scorer, train
from tests.gates.mutants import Mutant
from tests.gates.sizes import FULL, tries
from tests.planted import tiny_policy
from tests.process_run import questions
from tests.toy import ToyReader
from tests.training_kit import StoppedError, assert_same_run, same, stop_at, wide_cross_encoder

pytestmark = [pytest.mark.gates, pytest.mark.timeout(900)]

STEPS = 12
QUESTIONS = 14
"""Blocks of 4: three and a half, so that an epoch's last step is smaller; with inner epochs the half is left out."""


@dataclass(frozen=True)
class Trainer:
    """One of the trainers."""

    rrpo: RRPOConfig | None
    """None learns from labels."""
    epochs: int = 3
    epoch_ends: tuple[int, ...] = (4, 8)
    wide: bool = False
    """A policy so wide that sums differ in their last bits from batch to batch; those of a tiny one hardly ever do."""
    accumulation: int = 1


TRAINERS = {
    "window": Trainer(RRPOConfig(beta=0.1), wide=True),
    "question": Trainer(RRPOConfig(scale="question", train_k=2, beta=0.1), accumulation=2),
    "critic": Trainer(RRPOConfig(baseline="critic", advantage="gae", train_k=2)),
    "inner epochs": Trainer(RRPOConfig(inner_epochs=2, beta=0.1, kl="sampled"), epochs=2, epoch_ends=(6,)),
    "supervised": Trainer(None),
}

Break = tuple[int, int]
"""(steps between two checkpoints, steps after which the run breaks off)."""


def breaks(trainer: Trainer) -> list[Break]:
    """Before and after the first step, at the ends of epochs, in their middle, before and after the last step, on a
    checkpoint and beside it; then any others."""
    end = trainer.epoch_ends[-1]
    planned = [(1, 1), (3, 2), (1, end), (3, end - 1), (3, STEPS - 1), (1, STEPS)]
    planned += [(1, 0), (5, STEPS), *((every, end) for every in (3, 5)), *((1, end) for end in trainer.epoch_ends)]
    others = [(every, step) for every in (1, 3, 5) for step in range(STEPS + 1)]
    random.Random(0).shuffle(others)
    return list(dict.fromkeys(planned + others))[: tries(30, 6)]


class Ran(TrainerCallback):
    """One session, or a whole run: what came out, and which questions each step saw in which order."""

    policy: CrossEncoderReranker
    result: TrainResult

    def __init__(self, base: CrossEncoderReranker) -> None:
        self.policy = copy.deepcopy(base)
        self.steps: list[list[str]] = [[]]
        self.policy.register_forward_pre_hook(self._note)

    def _note(self, policy: CrossEncoderReranker, args: tuple[Any, ...]) -> None:
        if policy.training:
            self.steps[-1] += [request.query.query_id for request in args[0]]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append([])


@cache
def base_of(wide: bool) -> CrossEncoderReranker:
    return wide_cross_encoder() if wide else tiny_policy(0)


def run(
    folder: Path, trainer: Trainer, every: int, *, resume: bool = False, callbacks: Sequence[TrainerCallback] = ()
) -> Ran:
    """A session that ends; one that is broken off leaves the questions of its steps with the error."""
    ran, reward = Ran(base_of(trainer.wide)), answer_reward("f1")
    dev = questions(3)
    config = TrainConfig(
        epochs=trainer.epochs,
        batch_size=4 // trainer.accumulation,
        accumulation=trainer.accumulation,
        learning_rate=1e-3,
        eval_steps=every,
        patience=0,
    )
    algorithm = RRPO(trainer.rrpo, ToyReader(), reward, seed=1) if trainer.rrpo else Supervised()
    try:
        ran.result = train(
            ran.policy,
            copy.deepcopy(base_of(trainer.wide)),
            algorithm,
            questions(QUESTIONS),
            config,
            folder,
            seed=1,
            score_dev=dev_scorer(dev, ToyReader(), reward, 1) if trainer.rrpo else label_scorer(dev),
            resume=resume,
            callbacks=[ran, *callbacks],
        )
    except StoppedError as error:
        error.args = (ran.steps,)
        raise
    return ran


def untimed(result: TrainResult) -> TrainResult:
    return replace(result, seconds=0.0, seconds_by_part={})


def state_of(folder: Path) -> dict[str, Any]:
    """What the last checkpoint holds of the loop: steps, epoch, log, best step."""
    return json.loads((sorted_checkpoints(folder)[-1] / "trainer_state.json").read_text("utf-8"))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", TRAINERS)
def test_a_resumed_run_is_bit_equal_wherever_it_broke_off(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights, optimizer, schedule, random states, order of the questions, logs and result."""
    trainer, whole = TRAINERS[name], {}
    planned = breaks(trainer)
    for every, step in planned:
        unbroken, folder = tmp_path / f"whole-{every}", tmp_path / f"{every}-{step}"
        if every not in whole:
            whole[every] = run(unbroken, trainer, every)
            assert whole[every].result.steps == STEPS
        with pytest.raises(StoppedError) as stopped:
            run(folder, trainer, every, callbacks=[stop_at(step)])
        saved = newest_checkpoint(folder)
        start = step_of(saved) if saved else 0
        resumed = run(folder, trainer, every, resume=True)
        where = f"{name}, saved every {every}, broken off after {step}"
        assert same(dict(resumed.policy.state_dict()), dict(whole[every].policy.state_dict())), where
        assert_same_run(unbroken, folder)
        assert state_of(folder) == state_of(unbroken), where
        assert untimed(resumed.result) == untimed(whole[every].result), where
        assert stopped.value.args[0][:start] + resumed.steps == whole[every].steps, where
    if FULL:
        with capsys.disabled():
            print(f"\nT1 {name}: {len(planned)} of {len(planned)} broken runs resumed bit-equal")


def test_the_runs_are_of_different_settings_where_they_should_be(tmp_path: Path) -> None:
    """Or equality would say nothing: epochs have orders of their own, and weights move."""
    ran = run(tmp_path, TRAINERS["question"], 5)
    epochs = [tuple(itertools.chain(*ran.steps[i : i + 4])) for i in (0, 4, 8)]
    assert len(set(epochs)) == 3
    assert all(sorted(epoch) == sorted(f"q{i}" for i in range(QUESTIONS)) for epoch in epochs)
    trained = load_file(sorted_checkpoints(tmp_path)[-1] / "model.safetensors")  # the policy has the best on dev
    assert not torch.equal(trained["model.classifier.weight"], base_of(False).model.classifier.weight)


GATE = "tests/gates/test_gate_t1.py"
MUTANTS = [
    Mutant(
        gate="T1",
        tests=GATE,
        file="rankwright/training.py",
        old='        self.algorithm.restore(state["algorithm"])\n',
        new="        # nothing of the algorithm is put back\n",
    ),
    Mutant(
        gate="T1",
        tests=GATE,
        file="rankwright/training.py",
        old="        self.trainer.sampler.epoch = int(state.epoch or 0)\n",
        new="        self.trainer.sampler.epoch += bool(state.epoch)  # counts the epochs of a session\n",
    ),
]
