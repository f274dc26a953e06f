"""Gate: `accelerate launch` starts processes that train as one does (tests/test_processes.py has torchrun)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rankwright.cli.app import run
from tests.cli_kit import make_model, rows, write_rows
from tests.gates.mutants import Mutant
from tests.test_processes import SETTINGS, launched

pytestmark = [pytest.mark.gates, pytest.mark.timeout(300)]

ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0", "--num_processes")
"""--multi_gpu is what makes it start several processes, on the CPU too; --cpu starts one, unless by MPI."""
LABELS = ("--reader", "none", "--method", "supervised")
MUTANTS = [
    Mutant(
        "launch",
        "tests/gates/test_gate_launch.py",
        "rankwright/processes.py",
        "if started() > 1 and not _have_met():",
        "if started() > 2 and not _have_met():",
    )
]


def test_accelerate_launches_two_processes_that_train_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same steps and weights, told once."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "q.jsonl", rows())
    make_model(tmp_path / "tiny")
    done = launched("--name", "two", *LABELS, launcher=ACCELERATE)
    assert done.stderr.count("The trained model ") == 1, done.stderr[-3000:]
    two = json.loads(done.stdout)
    assert run(["train", "--name", "one", *SETTINGS, *LABELS, "--output", "json"]) in (0, 8)
    one = json.loads(capsys.readouterr().out)
    assert (two["steps"], two["best_step"], two["signature"]) == (one["steps"], one["best_step"], one["signature"])
    weights = [load_file(tmp_path / "runs" / name / "model" / "model.safetensors") for name in ("one", "two")]
    assert all((weights[0][name] - weights[1][name]).abs().max() <= 1e-6 for name in weights[0])
