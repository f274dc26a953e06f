"""The examples run as they stand: as scripts, without a network, in minutes made seconds."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OFFLINE = """
import atexit, os, sys
from tests import conftest

@atexit.register
def tell():
    if conftest._blocked:
        print(conftest._blocked[0], file=sys.stderr, flush=True)
        os._exit(99)
"""
"""Read by the interpreter when it starts: the guard of the tests, and an exit code for errors that were swallowed."""
EXAMPLES = {
    "llm_rerank.py": ([], ["1. ferry", "1 calls, 1 paid, answers: {'ok': 1}", "Again: 1 calls, 0 paid"], []),
    "custom_reward.py": ([], ["2 steps, ", "What was the bell of Lowen Quay cast from? -> "], []),
    "rag_pipeline.py": (["--questions", "2"], ["F1 of 2 questions: "], []),
    "train_from_feedback.py": (
        ["--questions", "2", "--test-questions", "2", "--out", "out"],
        ["step 1 of 1 ", "dev reward ", "F1@1|set:demo-test|retriever:bm25|"],
        ["out/model/model.safetensors", "out/report.html", "out/metrics.jsonl", "runs/reads.sqlite"],
    ),
}
"""Name -> smallest arguments, how lines of its output begin, files that it leaves."""


def test_every_example_is_run() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


def test_the_first_snippet_of_the_strategies_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the model of the example, which turns four passages round."""
    code, served = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "strategies.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "llm_rerank.py"))["tiny_model"](Path("my-llm"), 4)
    exec(code, {})
    assert capsys.readouterr().out == "('3', '2', '1', '0') Counter({'ok': 1})\n"
    exec(served, {})  # nothing is asked yet


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_as_a_script(tmp_path: Path, name: str) -> None:
    arguments, beginnings, files = EXAMPLES[name]
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(OFFLINE, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{guard}:{ROOT}"}
    command = [sys.executable, ROOT / "examples" / name, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [words for words in beginnings if not any(line.startswith(words) for line in lines)] == []
    assert [file for file in files if not (tmp_path / file).is_file()] == []
