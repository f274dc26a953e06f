"""Gate T2: killed inside saving 200 times, training always finds its newest complete checkpoint, loses no more than one
save interval and ends as if nothing had happened, without anybody's help."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rankwright.checkpoints import newest_checkpoint, step_of
from tests.gates.mutants import Mutant
from tests.gates.sizes import tries
from tests.kill_harness import ENTERED, LEFT, PATIENCE, Job, Point
from tests.kill_jobs import TOY_EVERY, TOY_STEPS, train_toy

pytestmark = [pytest.mark.gates, pytest.mark.timeout(1800)]

KILLS = tries(full=200, quick=25)
SAVING = "rankwright.training:FeedbackTrainer._save_checkpoint"
FILE_CALLS = frozenset({"open", "mkdir", "write", "fsync", "replace", "rename", "unlink", "rmdir", "close"})
WAYS = ("at a call", "at a file", "by the clock")
"""Of killing."""
IN_A_CHECKPOINT = {
    "algorithm.json",
    "model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
}

GATE, TRAINING = "tests/gates/test_gate_t2.py", "rankwright/training.py"
MUTANTS = [
    Mutant(
        "T2",
        GATE,
        "rankwright/checkpoints.py",
        '(*later, *folder.glob(".checkpoint-*.partial"))',
        "later",
    ),
    Mutant(
        "T2",
        GATE,
        "rankwright/checkpoints.py",
        "for path in reversed(sorted_checkpoints(folder)):",
        "for path in sorted_checkpoints(folder):",
    ),
    Mutant("T2", GATE, TRAINING, 'aside = self.folder / f".{name}.partial"', "aside = self.folder"),
]


@dataclass(frozen=True)
class Usual:
    """The run that nobody kills."""

    result: Any
    metrics: bytes
    seconds: float
    """Of one saving."""
    calls: int
    """Inside the first two savings. Sessions that die in one of their first two make many kills of one run, and about
    every second of them gets on by one."""
    file_calls: int


def run_whole(folder: Path, point: Point) -> Job:
    """A run that ends."""
    job = Job(train_toy, folder, points=[point])
    assert not job.end()
    return job


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Usual:
    folder = tmp_path_factory.mktemp("usual")
    plain = run_whole(folder / "plain", Point(SAVING, None))
    counted = run_whole(folder / "all", Point(SAVING))
    of_files = run_whole(folder / "files", Point(SAVING, calls=FILE_CALLS))
    times = {kind: [word[2] for word in plain.said if word[0] == kind] for kind in (ENTERED, LEFT)}
    lengths = [left - entered for entered, left in zip(times[ENTERED], times[LEFT], strict=True)]
    assert len(lengths) == TOY_STEPS // TOY_EVERY
    assert plain.words("result") == counted.words("result") == of_files.words("result")
    return Usual(
        plain.words("result")[0],
        (folder / "plain" / "metrics.jsonl").read_bytes(),
        max(lengths),
        counted.words(LEFT)[1],
        of_files.words(LEFT)[1],
    )


def is_saving(job: Job) -> bool:
    """Whether it had begun to save and not ended when it last spoke."""
    return len(job.words(ENTERED)) > len(job.words(LEFT))


def killed(folder: Path, how: str, draw: random.Random, usual: Usual) -> Job:
    """One session of a run, which is killed unless it ends before the moment that was drawn."""
    if how == "at a call":
        return Job(train_toy, folder, points=[Point(SAVING, draw.randint(1, usual.calls))])
    if how == "at a file":
        return Job(train_toy, folder, points=[Point(SAVING, draw.randint(1, usual.file_calls), FILE_CALLS)])
    job = Job(train_toy, folder, points=[Point(SAVING, None)])
    for _ in range(draw.randint(1, 2)):
        job.listen(PATIENCE, until=lambda word: word[0] == ENTERED)
    time.sleep(draw.uniform(0, usual.seconds))
    job.kill()
    return job


def test_a_run_killed_inside_saving_goes_on(tmp_path: Path, usual: Usual, capsys: pytest.CaptureFixture[str]) -> None:
    draw, kills, runs = random.Random(2), Counter[str](), 0
    worst = missed = 0
    while kills.total() < KILLS:
        folder, said = tmp_path / f"run-{runs}", []
        while True:
            how = draw.choice(WAYS)
            job = killed(folder, how, draw, usual)
            was_killed = job.end()
            said += job.said
            if not was_killed:
                break
            kills[how] += is_saving(job)
            missed += not is_saving(job)
            worst = max(worst, loss_of(folder, said))
        assert job.words("result") == [usual.result]
        assert (folder / "metrics.jsonl").read_bytes() == usual.metrics
        runs += 1
    assert worst > 0, "no kill cost anything"
    assert min(kills[how] for how in WAYS) > KILLS // 10
    with capsys.disabled():
        print(
            f"\nT2: {kills.total()} kills inside saving in {runs} runs ({dict(kills)}), {missed} beside it, "
            f"at most {worst} steps lost"
        )


def loss_of(folder: Path, said: list[Any]) -> int:
    """Steps that have to be made again. The checkpoint to go on from is whole, and none newer was acknowledged."""
    done = [word[1] for word in said if word[0] == "step"]
    saved = [word[1] for word in said if word[0] == "saved"]
    newest = newest_checkpoint(folder)
    start = 0
    if newest is not None:
        check_manifest(newest)
        start = step_of(newest)
    assert start >= max(saved, default=0)
    lost = done[-1] - start if done else 0
    assert lost <= TOY_EVERY
    return lost


def check_manifest(checkpoint: Path) -> None:
    """By a reading of its own."""
    manifest = json.loads((checkpoint / "manifest.json").read_text("utf-8"))
    assert manifest.keys() >= IN_A_CHECKPOINT
    found = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != "manifest.json"}
    assert {
        name: {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()} for name, raw in found.items()
    } == manifest
