"""Gate T3: a run does the steps that were asked for, each once, however often it breaks off; and one that is resumed
when all is done says so."""

from __future__ import annotations

import copy
import logging
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from rankwright.algorithms import RRPO, RRPOConfig, Supervised
from rankwright.algorithms.config import TrainConfig
from rankwright.checkpoints import newest_checkpoint, step_of
from rankwright.rewards import answer_reward
from rankwright.training import TrainResult, label_scorer, train
from tests.gates.mutants import Mutant
from tests.gates.sizes import tries
from tests.toy import ToyPolicy, ToyReader, examples
from tests.training_kit import StoppedError, rows_of, stop_at

pytestmark = [pytest.mark.gates, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Case:
    """What is asked for, and after how many steps it breaks off."""

    questions: int
    batch: int
    accumulation: int
    epochs: float
    max_steps: int
    every: int
    inner: int
    labels: bool
    dev: bool
    breaks: tuple[float, ...]
    """Places as shares of the run."""

    @property
    def steps(self) -> int:
        """By counting batches one after the other."""
        epoch, left = 0, self.questions
        while left > 0:
            left -= self.batch * self.accumulation
            whole = left >= 0
            epoch += self.inner if whole or self.inner == 1 else 0
        wanted = self.max_steps if self.max_steps > 0 else math.ceil(round(self.epochs * epoch, 9))
        while wanted % self.inner:
            wanted += 1
        return wanted


def case(number: int) -> Case:
    """Random settings; every fifth run ends with an epoch, and every third breaks off at an end of one."""
    draw = random.Random(number)
    inner, labels = draw.choice([1, 1, 2, 3]), draw.random() < 0.3
    batch, accumulation = draw.randint(1, 4), draw.choice([1, 1, 2])
    return Case(
        questions=draw.randint(batch * accumulation, 14),
        batch=batch,
        accumulation=accumulation,
        epochs=float(draw.randint(1, 3)) if number % 5 == 0 else draw.choice([0.3, 0.5, 1.0, 1.5, 2.0, 2.25, 3.0]),
        max_steps=draw.choice([-1, -1, -1, 1, 5, 11]),
        every=draw.choice([1, 2, 3, 5, 100]),
        inner=1 if labels else inner,
        labels=labels,
        dev=draw.random() < 0.5,
        breaks=(1 / 3, 2 / 3, 1.0) if number % 3 == 0 else tuple(sorted(draw.random() for _ in range(3))),
    )


class Counter(TrainerCallback):
    """The number of each step done."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(state.global_step)


def session(folder: Path, case: Case, *, resume: bool, stop: int | None = None) -> tuple[list[int], TrainResult | None]:
    """The steps that it did, and the result of one that came to the end."""
    config = TrainConfig(
        epochs=case.epochs,
        batch_size=case.batch,
        accumulation=case.accumulation,
        learning_rate=0.01,
        eval_steps=case.every,
        patience=0,
        trainer={} if case.max_steps < 0 else {"max_steps": case.max_steps},
    )
    rrpo = RRPOConfig(inner_epochs=case.inner, samples=2, train_k=1)
    algorithm = Supervised() if case.labels else RRPO(rrpo, ToyReader(), answer_reward("f1"))
    policy, counter = ToyPolicy(), Counter()
    callbacks = [counter, *([] if stop is None else [stop_at(stop)])]
    dev = label_scorer(examples(2)) if case.dev else None
    rows = examples(case.questions)
    try:
        result = train(
            policy, copy.deepcopy(policy), algorithm, rows, config, folder, score_dev=dev, resume=resume,
            callbacks=callbacks,
        )  # fmt: skip
    except StoppedError:
        return counter.steps, None
    return counter.steps, result


def start_of(folder: Path) -> int:
    saved = newest_checkpoint(folder)
    return step_of(saved) if saved else 0


@pytest.mark.parametrize("number", range(tries(50, 10)))
def test_steps_done_are_the_steps_asked_for(tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture) -> None:
    asked = case(number)
    every = math.ceil(asked.every / asked.inner) * asked.inner
    done = 0
    for i, share in enumerate(asked.breaks):
        stop = max(done, round(share * asked.steps))
        steps, _ = session(tmp_path, asked, resume=i > 0, stop=stop)
        assert steps == list(range(done + 1, stop + 1))
        done = start_of(tmp_path)
        assert done == (stop if stop == asked.steps else stop // every * every)
    steps, result = session(tmp_path, asked, resume=True)
    assert steps == list(range(done + 1, asked.steps + 1))
    assert result is not None
    assert result.steps == asked.steps
    assert [row["step"] for row in rows_of(tmp_path) if "loss" in row] == [
        step for step in range(1, asked.steps + 1) if step % asked.inner == 0
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "rankwright"):
        steps, again = session(tmp_path, asked, resume=True)
    assert steps == []
    assert again is not None
    assert (again.steps, again.best_step) == (result.steps, result.best_step)
    told = [record.getMessage() for record in caplog.records if "nothing is left to train" in record.getMessage()]
    assert len(told) == 1
    assert f"{asked.steps} of {asked.steps} steps" in told[0]


def test_the_cases_are_of_all_kinds() -> None:
    """With inner epochs, ends of epochs inside the run, runs without a checkpoint before the last step, ..."""
    cases = [case(number) for number in range(50)]
    assert {c.inner for c in cases} == {1, 2, 3}
    assert {c.labels for c in cases} == {c.dev for c in cases} == {True, False}
    assert any(c.every > c.steps for c in cases)
    assert any(c.max_steps > 0 for c in cases)
    assert all(c.steps > 0 for c in cases)
    assert max(c.steps for c in cases) > 20


GATE = "tests/gates/test_gate_t3.py"
MUTANTS = [
    Mutant(
        gate="T3",
        tests=GATE,
        file="rankwright/training.py",
        old="    wanted = max_steps if max_steps > 0 else math.ceil(config.epochs * per_epoch)\n",
        new="    wanted = max_steps if max_steps > 0 else int(config.epochs * per_epoch)\n",
    ),
    Mutant(
        gate="T3",
        tests=GATE,
        file="rankwright/training.py",
        old="    every = _whole_rollouts(config.eval_steps, inner_epochs)\n    _check",
        new="    every = config.eval_steps  # may lie inside a rollout\n    _check",
    ),
    Mutant(
        gate="T3",
        tests=GATE,
        file="rankwright/training.py",
        old="            self._say_that_all_is_done()\n",
        new="            pass  # as if it had trained\n",
    ),
]
