"""What every verb promises: help with examples, light starts, errors in one line."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from rankwright.cli.app import app, run
from tests.cli_kit import run_process

VERBS = [
    "demo",
    "diagnose",
    "train",
    "eval",
    "compare",
    "rerank",
    "export",
    "calibrate",
    "serve",
    "prompts",
    "retrieve",
    "validate",
    "prepare",
    "report",
    "push",
    "cache",
    "doctor",
]
ALL_COMMANDS = [
    *([verb] for verb in VERBS),
    ["cache", "info"],
    ["cache", "runs"],
    ["cache", "clear"],
    *(["prompts", name] for name in ("list", "show", "render")),
]


def test_the_verbs_are_those_of_the_documents() -> None:
    groups = [str(group.name) for group in app.registered_groups]
    commands = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
    assert sorted([*commands, *groups]) == sorted(VERBS)


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=" ".join)
def test_help_shows_at_least_two_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--help"]) == 0
    text = capsys.readouterr().out
    examples = re.findall(rf"^\W*(?:cat \S+ \| |HF_TOKEN=\S+ )?rankwright {' '.join(command)}\b", text, re.MULTILINE)
    assert len(examples) >= 2, text


@pytest.mark.parametrize("command", [[], *ALL_COMMANDS, ["cache"], ["prompts"]], ids=" ".join)
def test_examples_of_help_can_be_pasted_from_a_narrow_terminal(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that the terminal breaks, or that goes on without a backslash, would run as two commands."""
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*command, "--help"]) == 0
    _, _, examples = capsys.readouterr().out.partition("\n Examples")
    lines = [line.rstrip() for line in examples.splitlines()]
    for line, following in itertools.pairwise(lines):
        if line.startswith("  ") and following:
            begins = re.match(r"  (\S+=\S+ )?(rankwright|curl|cat) ", following)
            assert line.endswith(" \\") or begins, f"{line!r} goes on in {following!r}"


LIGHT = (
    "import sys; from rankwright.cli.app import run; code = run(sys.argv[1:]); "
    "print([name for name in ('torch', 'transformers') if name in sys.modules]); sys.exit(code)"
)


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "--help"], ["--version"]], ids=" ".join)
def test_help_loads_no_deep_learning_library(arguments: list[str], tmp_path: Path) -> None:
    done = run_process(*arguments, cwd=tmp_path, code=LIGHT)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]"), done.stderr


WITHOUT_TORCH = """
import json, sys

class NoTorch:  # None in sys.modules would do for us, but scipy looks there for a module
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, NoTorch())
from rankwright.cli.app import run
for arguments in json.loads(sys.argv[1]):
    print(f"exit code {run(arguments)}")
"""


def test_only_models_need_torch(tmp_path: Path) -> None:
    data = tmp_path / "x.jsonl"
    data.write_text('{"question": "a b?", "answers": ["cd"], "candidates": ["ab cd", "ef"]}\n', "utf-8")
    (tmp_path / "config.json").write_text("{}", "utf-8")  # a folder without one is refused before torch is missed
    commands = [
        ["validate", str(data)],
        ["retrieve", "--data", str(data), "--out", "x.run"],
        ["eval", "first-stage", "--data", str(data), "--reader", "none", "--report", "x.html"],
        ["rerank", "a", "b", "--model", "first-stage"],
        ["rerank", "a", "b", "--model", str(tmp_path)],
    ]
    done = run_process(json.dumps(commands), cwd=tmp_path, code=WITHOUT_TORCH)
    assert re.findall(r"exit code (\d+)", done.stdout) == ["0", "0", "0", "0", "3"], done.stderr
    assert 'pip install "rankwright[train,embedded]"' in done.stderr


def test_an_unknown_verb_or_option_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate"]) == 2
    assert run(["validate", "x", "--frmat", "jsonl"]) == 2
    assert "--format" in capsys.readouterr().err  # the nearest known option is named


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [("--depth", "x", "integer"), ("--questions", "0", "1"), ("--retriever", "foo", "bm25")],
)
def test_a_wrong_value_is_named_with_its_option_and_what_is_wanted(
    option: str, value: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["diagnose", "--data", "q.jsonl", option, value]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert value in last
    assert wanted in last
    assert option in last


def test_the_time_left_follows_the_pace_since_the_work_was_first_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from rankwright.cli import common

    now = 0.0
    monkeypatch.setattr(common.time, "monotonic", lambda: now)
    left = common._TimeLeft()
    assert left.of("training", 50, 100) == ""  # a resumed run: no pace yet
    now = 10.0
    assert left.of("training", 60, 100) == ", 40 s left"
    now = 40.0
    assert left.of("training", 61, 100) == ", 2 min left"
    assert left.of("training", 100, 100) == ""
    assert left.of("rerank", 0, 5) == ""  # other work has a pace of its own
    assert left.of("rerank", 5, 5) == ""
    now = 1000.0
    assert left.of("rerank", 0, 5) == ""  # and so have the next questions of a file
    now = 1010.0
    assert left.of("rerank", 1, 5) == ", 40 s left"
