"""Gate: `accelerate launch` starts processes that train as one does (tests/test_processes.py has torchrun)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rankwright.cli.app import run
from tests.cli_kit import make_model, rows, write_rows
from tests.gates.mutants import Mutant
from tests.test_cli_costs import endpoint
from tests.test_processes import SETTINGS, launched

pytestmark = [pytest.mark.gates, pytest.mark.timeout(300)]

ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0", "--num_processes")
"""--multi_gpu is what makes it start several processes, on the CPU too; --cpu starts one, unless by MPI."""
LABELS = ("--reader", "none", "--method", "supervised")
ANSWERS = ("--reader-model", "m", "--method", "rrpo")
MUTANTS = [
    Mutant(
        "launch",
        "tests/gates/test_gate_launch.py",
        "rankwright/processes.py",
        "    if started() > 1:\n        if missing",
        "    if started() > 2:\n        if missing",
    )
]


@pytest.mark.parametrize("learning", [LABELS, ANSWERS], ids=["labels", "answers"])
def test_accelerate_launches_two_processes_that_train_as_one(
    learning: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same steps, reads and weights, told once."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "q.jsonl", rows())
    make_model(tmp_path / "tiny")
    found, asked = [], []
    for name in ("two", "one"):
        with endpoint() as (address, server):
            arguments = ["--name", name, *learning, "--cache", f"{name}.sqlite"]
            arguments += ["--reader", address] if learning is ANSWERS else []
            if name == "two":
                done = launched(*arguments, launcher=ACCELERATE)
                assert done.stderr.count("The trained model ") == 1, done.stderr[-3000:]
                found.append(json.loads(done.stdout))
            else:
                assert run(["train", *SETTINGS, *arguments, "--output", "json"]) in (0, 8)
                found.append(json.loads(capsys.readouterr().out))
            asked.append(sorted(prompt for prompt in server.prompts if "this run" not in prompt))
    two, one = found
    of_the_address = ("signature",) if learning is LABELS else ()
    for key in ("steps", "best_step", "reader_calls", *of_the_address):
        assert two[key] == one[key], key
    assert asked[0] == asked[1]
    assert bool(asked[0]) == (learning is ANSWERS)
    weights = [load_file(tmp_path / "runs" / name / "model" / "model.safetensors") for name in ("one", "two")]
    assert all((weights[0][name] - weights[1][name]).abs().max() <= 1e-6 for name in weights[0])
