"""How a command ends that is interrupted, or whose output nobody takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import BinaryIO

import pytest

from rankwright.cli import app, main
from rankwright.cli.app import run
from tests.cli_kit import MAIN, ROOT, make_model, one_line, rows, run_process, write_rows

RERANK = ["rerank", "a b", "b c", "--model", "first-stage"]
INTERRUPTIBLE = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {MAIN}"
"""A shell that runs the tests in the background has its children ignore Ctrl-C."""


def reranked_into(output: BinaryIO, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A reranking with this standard output."""
    return run_into(output, cwd, *RERANK, *arguments)


def run_into(output: BinaryIO, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command with this standard output."""
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTIBLE, "rerank", "--model", "first-stage"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        assert job.stdin is not None
        assert job.stdout is not None
        assert job.stderr is not None
        job.stdin.write('{"query": "a b", "documents": ["b c"]}\n')
        job.stdin.flush()
        assert "b c" in job.stdout.readline()
        time.sleep(0.2)
        assert job.poll() is None  # it waits for more
        job.send_signal(signal.SIGINT)
        said = job.stderr.read()
        assert "Interrupted. What was read and saved is kept" in said
        assert "with --out the same command goes on, and scores the batch in work again." in said
        assert job.wait(20) == 130


def test_the_command_keeps_libraries_warnings_of_their_future_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn() -> int:
        for line, module in enumerate(("transformers.training_args", "my_reward", "torchless")):
            warnings.warn_explicit(module, FutureWarning, "file.py", line, module)
        return 0

    monkeypatch.setattr(app, "run", warn)
    for options, wanted in (
        ([], ["my_reward", "torchless"]),
        (["default"], ["transformers.training_args", "my_reward", "torchless"]),
    ):
        monkeypatch.setattr(sys, "warnoptions", options)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            with pytest.raises(SystemExit):
                main()
        assert [str(warning.message) for warning in heard] == wanted


def test_a_pipe_that_closes_early_is_no_fault(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as gone:
        done = reranked_into(gone, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("output", [[], ["--output", "json"]], ids=["text", "json"])
def test_a_comparison_is_saved_whoever_stops_listening(tmp_path: Path, output: list[str]) -> None:
    """And ends with its own code."""
    data = write_rows(tmp_path / "q.jsonl", rows())
    model = make_model(tmp_path / "flat", flat=True)
    arguments = ["eval", str(model), "gold-first", "--data", str(data), "--retriever", "given", "--reader", "none"]
    files = ["--baseline", "gold-first", "--save", "saved.json"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as gone:
        done = run_into(gone, tmp_path, *arguments, *files, *output)
    assert done.returncode == 8, done.stderr
    assert (tmp_path / "saved.json").exists()


def test_json_goes_through_any_encoding(tmp_path: Path) -> None:
    arguments = ["rerank", "Wo?", "Zürich", "--model", str(make_model(tmp_path / "tiny")), "--output", "json"]
    done = run_process(*arguments, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, one_line(done.stdout)["results"][0]["text"]) == (0, "Zürich"), done.stderr


def test_a_foreign_name_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {**rows()[0], "candidates": [{"doc_id": "\x1b[31mX", "text": text} for text in ("one", "two")]}
    data = write_rows(tmp_path / "q.jsonl", [row])
    assert run(["eval", "first-stage", "--data", str(data), "--retriever", "given", "--reader", "none"]) == 5
    said = capsys.readouterr()
    assert "[31mX" in said.err
    assert "\x1b" not in said.err + said.out


@pytest.mark.parametrize("output", [[], ["--output", "json"]], ids=["text", "json"])
def test_a_full_disk_behind_standard_output_is_named(tmp_path: Path, output: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = reranked_into(full, tmp_path, *output)
    assert done.returncode == 6
    assert done.stderr.startswith("rankwright: Results cannot be written to standard output (No space left on device)")
    assert "Traceback" not in done.stderr


def test_a_question_that_nobody_can_answer_is_a_no(tmp_path: Path) -> None:
    write_rows(tmp_path / "q.jsonl", rows())
    made = run_process(
        "eval", "first-stage", "--data", "q.jsonl", "--retriever", "given", "--cache", "r.sqlite", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    done = run_process("cache", "clear", "--cache", "r.sqlite", cwd=tmp_path)
    assert (done.returncode, "Nothing was done" in done.stderr, "Traceback" in done.stderr) == (2, True, False)
