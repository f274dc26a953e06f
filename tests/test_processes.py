"""Training in two real processes (torchrun, gloo) beside training in one: the same questions, reads and weights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rankwright
from rankwright import processes
from rankwright.cli.app import run as run_command
from rankwright.cli.common import console
from rankwright.errors import ModelError, TrainingError
from tests.cli_kit import make_model, rows, write_rows
from tests.process_run import CASES
from tests.test_cli_costs import endpoint

ROOT = Path(__file__).parents[1]
PROCESSES = 2
SAME = ["window", "question", "inner epochs", "accumulation", "critic", "one left", "supervised"]


def started(folder: Path, count: int) -> Path:
    """All cases in so many processes."""
    folder.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    command = [sys.executable, *launcher, str(ROOT / "tests" / "process_run.py"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Processes -> folder of what they left."""
    folder = tmp_path_factory.mktemp("processes")
    return {count: started(folder / str(count), count) for count in (1, PROCESSES)}


def left(runs: dict[int, Path], case: str, count: int) -> list[dict[str, Any]]:
    """By each process."""
    return [torch.load(runs[count] / case / f"left-{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.mark.parametrize("case", SAME)
def test_two_processes_come_to_the_weights_of_one(runs: dict[int, Path], case: str) -> None:
    """After 20 steps within 1e-6, with the same reads, made by the first process alone."""
    (alone,) = left(runs, case, 1)
    first, second = left(runs, case, PROCESSES)
    assert alone["result"][0] == 20
    assert first["result"] == second["result"] == pytest.approx(alone["result"], abs=1e-6)
    assert first["calls"] == alone["calls"]
    assert second["calls"] == 0
    assert len(alone["gradients"]) == 20
    for one, of_first, of_second in zip(*(run["gradients"] for run in (alone, first, second)), strict=True):
        assert torch.equal(of_first, of_second), "gradients are not synchronised"
        assert one.norm() > 1e-6
        assert torch.allclose(one, of_first, atol=1e-5, rtol=1e-4)
    for name, wanted in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        assert (first["weights"][name] - wanted).abs().max() <= 1e-6, name
    of_one, of_two = (
        [json.loads(line) for line in (folder / case / "run" / "metrics.jsonl").read_text().splitlines()]
        for folder in runs.values()
    )
    for one, two in zip(of_one, of_two, strict=True):  # each line is written once, and is of all questions
        shares = [row.pop("clipped_share", 0.0) for row in (one, two)]  # of steps, of which processes have unlike many
        assert shares[1] == pytest.approx(shares[0], abs=0.05)
        assert two == pytest.approx(one, abs=1e-4, nan_ok=True)


FREE = ("attention.self.key.bias", "classifier.bias")
"""Weights whose true gradient is 0: what is added to all keys, or to all scores of a question, changes no softmax."""


def test_with_adams_own_epsilon_only_weights_without_a_gradient_differ(runs: dict[int, Path]) -> None:
    """It makes whole steps of rounding errors; all other weights are within 1e-6."""
    (alone,), (first, _) = left(runs, "default epsilon", 1), left(runs, "default epsilon", PROCESSES)
    assert len(alone["gradients"]) == 20
    sizes = [weight.numel() for weight in alone["weights"].values()]
    largest = torch.stack(alone["gradients"]).abs().amax(0).split(sizes)
    for (name, wanted), gradient in zip(alone["weights"].items(), largest, strict=True):
        if name.endswith(FREE):
            assert gradient.max() <= 1e-7, name
        else:
            assert (first["weights"][name] - wanted).abs().max() <= 1e-6, name


def test_an_error_of_the_first_process_ends_all_of_them(runs: dict[int, Path]) -> None:
    assert all("Reader 'toy' failed on" in run["error"] for run in left(runs, "broken reader", PROCESSES))


def test_what_ends_the_first_process_too_is_told_by_it_alone(runs: dict[int, Path]) -> None:
    def ended(count: int, rank: int) -> list[Any]:
        return json.loads((runs[count] / f"each-{rank}.json").read_text())

    assert ended(1, 0) == [0, ["by 0", False], 0]
    assert ended(2, 0) == [0, ["by 0", False], 0]
    assert ended(2, 1) == [1, ["by 0", True], ["by 1", False]]


@pytest.fixture
def doors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve questions with candidates, and a model."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "q.jsonl", rows())
    make_model(tmp_path / "tiny")
    return tmp_path


SETTINGS = ["--data", "q.jsonl", "--model", "tiny"] + [
    f"--set={one}"
    for one in (
        "data.retriever=given",
        "data.dev_share=0.25",
        "data.test_share=0.25",
        "loop.eval_steps=2",
        "loop.batch_size=4",
        "loop.epochs=3",
        "loop.trainer={adam_epsilon: 0.001}",
    )
]
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node")


def launched(
    *arguments: str, count: int = PROCESSES, launcher: Sequence[str] = TORCHRUN
) -> subprocess.CompletedProcess[str]:
    """`rankwright train` on these questions under a launcher."""
    several = [*launcher, str(count), "-m"] if count > 1 else []
    command = [sys.executable, "-m", *several, "rankwright.cli", "train", *SETTINGS]
    # A home of its own: accelerate takes defaults from there.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HOME": str(Path.cwd() / "home")}
    return subprocess.run(
        [*command, *arguments, "--output", "json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_command_trains_in_several_processes_as_in_one(doors: Path) -> None:
    """The same reads, paid once, one line of results, the same weights; a limit stops all of them and --resume goes
    on."""
    results, prompts = [], []
    for count, name in ((1, "one"), (PROCESSES, "two")):
        with endpoint() as (address, server):
            asked = ["--name", name, "--reader", address, "--reader-model", "m", "--cache", f"{name}.sqlite"]
            if count > 1:
                stopped = launched(*asked, "--max-reader-calls", "70", count=count)
                assert stopped.stdout == ""
                assert stopped.stderr.count("--max-reader-calls; ") == 1, stopped.stderr[-3000:]
                asked.append("--resume")
            done = launched(*asked, count=count)
            assert done.stderr.count("The trained model ") == 1, done.stderr[-3000:]
            results.append(json.loads(done.stdout))
            assert ("; 2 processes" in done.stderr) == (count == 2)
            environment = json.loads((doors / "runs" / name / "environment.json").read_text("utf-8"))
            assert environment["processes"] == count
            prompts.append(sorted(server.prompts))
    one, two = results
    assert [p for p in prompts[0] if "this run" not in p] == [p for p in prompts[1] if "this run" not in p]
    for key in ("f1_reference", "f1_trained", "reader_calls", "steps", "best_step"):
        assert two[key] == pytest.approx(one[key], abs=1e-6), key
    weights = [load_file(doors / "runs" / name / "model" / "model.safetensors") for name in ("one", "two")]
    assert all((weights[0][name] - weights[1][name]).abs().max() <= 1e-6 for name in weights[0])


def test_what_the_first_process_refuses_is_said_once(doors: Path) -> None:
    (doors / "q.jsonl").write_text("{", encoding="utf-8")
    refused = launched("--name", "bad", "--reader", "none", "--method", "supervised")
    assert refused.returncode != 0
    assert refused.stderr.count("rankwright: ") == 1, refused.stderr[-3000:]
    assert "q.jsonl" in refused.stderr


@pytest.mark.parametrize("verb", ["diagnose", "eval"])
def test_a_verb_that_shares_nothing_is_refused_in_several(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each process would pay for all of it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_command([verb, "first-stage"] if verb == "eval" else [verb, "--data", "q.jsonl"]) == 2
    told = capsys.readouterr().err
    assert f"rankwright {verb} was started in 2 processes" in told
    assert "or unset WORLD_SIZE where there is none" in told


def test_the_doctor_looks_at_a_machine_whatever_a_launcher_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_command(["doctor"]) == 0


@pytest.mark.parametrize("variables", [{"RANK": "1"}, {"RANK": "", "WORLD_SIZE": "1"}, {"LOCAL_RANK": "3"}])
def test_a_number_that_an_earlier_launcher_left_silences_nothing(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"{rankwright.__version__}\n"


@pytest.mark.parametrize(
    "variables", [{"LOCAL_RANK": "3"}, {"WORLD_SIZE": "1", "RANK": "1", "LOCAL_RANK": "1"}, {"LOCAL_RANK": ""}], ids=str
)
def test_a_local_rank_that_an_earlier_launcher_left_stops_no_training(
    variables: dict[str, str], doors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run_command(["train", *SETTINGS, "--name", "alone", "--reader", "none", "--method", "supervised"]) in (0, 8)


@pytest.mark.parametrize(
    "variables",
    [{"WORLD_SIZE": ""}, {"WORLD_SIZE": "0"}, {"WORLD_SIZE": "two"}, {"WORLD_SIZE": "2", "RANK": "-1"}],
    ids=str,
)
def test_a_launcher_that_says_no_number_is_named(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run_command(["--version"]) == 2
    name, value = list(variables.items())[-1]
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"rankwright: Environment variable {name} is {value!r}; wanted a whole number from ")


def test_several_processes_without_their_launcher_are_named(
    doors: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_command(["train", *SETTINGS, "--name", "two", "--reader", "none", "--method", "supervised"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "WORLD_SIZE is '2', but not set: RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; wanted" in told
    assert not (doors / "two").exists()


def test_a_process_that_waits_for_nobody_says_so() -> None:
    """With all that a launcher sets it would wait for days."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "from rankwright import processes as p; p.TOLD_AFTER = 0.1; p.meet('cpu')"
    launcher = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    environment = {**os.environ, **launcher, "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        told = next((line for line in waiting.stderr if line.startswith("Waiting")), "")
        waiting.kill()
    assert told.strip() == (
        f"Waiting for all 2 processes of WORLD_SIZE at 127.0.0.1:{port}. Where no launcher started them, unset "
        "WORLD_SIZE."
    )


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ModelError("Model 'm' is not there."), 5, ["rankwright: process 1: Model 'm' is not there."]),
        (MemoryError("full"), 6, ["rankwright: process 1: Unexpected MemoryError: full. Please report it"]),
        (KeyboardInterrupt(), 130, []),  # Ctrl-C reaches all of them
    ],
)
def test_another_process_than_the_first_tells_what_ended_it_alone(
    error: BaseException,
    code: int,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ended(_: object) -> None:
        raise error

    monkeypatch.setattr(console, "quiet", False)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("rankwright.cli.app.write_out", ended)
    assert run_command(["--version"]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rankwright: ")]
    assert [line[: len(start)] for line, start in zip(lines, told, strict=True)] == told


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--set", "rrpo.samples=0"], ""),
        (["--resume", "--overwrite"], ""),
        (["--reward-option", "nope=1"], ""),
        (["--config", "nowhere.yaml"], "rankwright: process 1: Config file nowhere.yaml cannot be read"),
    ],
)
def test_settings_are_refused_by_the_first_process_alone_but_for_files(
    more: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which may be missing on one machine."""
    monkeypatch.setattr(console, "quiet", False)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run_command(["train", "--data", "q.jsonl", "--name", "a", *more]) == (4 if told else 2)
    said = capsys.readouterr().err
    assert said.startswith(told) if told else not said


def test_alone_nothing_is_shared() -> None:
    scores = torch.randn(3, 4, requires_grad=True)
    assert processes.count() == 1
    assert processes.share_of([1, 2, 3]) == [1, 2, 3]
    assert torch.equal(processes.gathered(scores, 3), scores)
    assert processes.weighted_mean({"kl": 2.0}, 1.0) == {"kl": 2.0}
    with pytest.raises(TrainingError, match="as it is"):
        processes.from_first(lambda: (_ for _ in ()).throw(TrainingError("as it is")))


def test_every_case_is_run() -> None:
    assert set(CASES) == {*SAME, "default epsilon", "broken reader"}
