"""Verb `train` on a small model: what a resume takes, and how a run ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankwright.cli.app import run
from rankwright.cli.build import load_splits
from rankwright.cli.run import HOW_FAST, _deciding
from rankwright.cli.settings import settings_from
from rankwright.data import load_examples
from rankwright.rerankers import load
from tests.cli_kit import make_model, rows, write_rows

HERE = {"data.retriever": "given", "data.dev_share": "0.25", "data.test_share": "0.25", "loop.eval_steps": "2"}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A training from labels, without any reader: six questions, three steps."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "q.jsonl", rows())
    make_model(tmp_path / "tiny")
    named = [text for name, value in HERE.items() for text in ("--set", f"{name}={value}")]
    command = ["train", "--name", "a", "--data", "q.jsonl", "--model", "tiny", "--method", "supervised"]
    return [*command, "--reader", "none", "--epochs", "1", "--set", "loop.batch_size=2", *named]


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def broken(command: list[str]) -> Path:
    """The folder of a run that was interrupted before its first checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rankwright.algorithms.Supervised.loss", interrupted)
        assert run(command) == 130
    folder = Path("runs/a")
    assert not list(folder.glob("checkpoint-*"))
    return folder


def test_without_a_checkpoint_a_resume_compares_settings_too(
    broken: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (broken / "config.json").read_bytes()
    assert run([*command, "--resume", "--learning-rate", "0.1"]) == 2
    found = capsys.readouterr().err
    assert f"Setting loop.learning_rate is 0.1, but the run in {broken} began with 2e-05." in found
    assert (broken / "config.json").read_bytes() == before
    assert run([*command, "--resume", "--set", "reader.concurrency=2"]) == 0  # only how fast answers come
    result = json.loads((broken / "result.json").read_text())
    assert result["steps"] == 3
    stored = json.loads((broken / "config.json").read_text())
    assert (stored["run_id"], stored["reader"]["concurrency"]) == (json.loads(before)["run_id"], 2)


def test_after_a_checkpoint_a_resume_compares_settings_too(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == 0
    assert list(Path("runs/a").glob("checkpoint-*"))
    assert run([*command, "--resume", "--seed", "7"]) == 2
    assert "Setting seed is 7, but the run in runs/a began with 0." in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace("run_id", "runid"),
        lambda text: '{"run_id": "a-1"}',
        lambda text: '{"run_id": "a-1", "reader": "embedded"}',
    ],
    ids=["torn", "a list", "no run_id", "no settings", "no reader settings"],
)
def test_a_damaged_config_is_named(
    broken: Path, command: list[str], capsys: pytest.CaptureFixture[str], damage: Callable[[str], str]
) -> None:
    config = broken / "config.json"
    config.write_text(damage(config.read_text()))
    assert run([*command, "--resume"]) == 2
    found = capsys.readouterr().err
    assert f"File {config} is damaged" in found
    assert "--overwrite" in found


def test_what_decides_a_run_is_all_but_how_fast_answers_come(command: list[str]) -> None:
    tree: dict[str, Any] = {"data": {"train": "q.jsonl", "retriever": "given"}, "model": {"name": "tiny"}}
    settings, model = settings_from(tree), load("tiny")
    splits = load_splits(settings)
    before = _deciding(settings, splits, None, model)
    speed = {"cache": "x", "concurrency": 2, "requests_per_minute": 9, "tokens_per_minute": 9, "api_key_env": "X"}
    speed |= {"price_input": 1, "price_output": 1, "deadline": 9, "attempt_timeout": 9, "max_retries": 1}
    assert set(speed) == set(HOW_FAST)
    assert _deciding(settings_from({**tree, "reader": speed}), splits, None, model) == before

    def differs(now: dict[str, Any]) -> list[str]:
        return [name for name in now if now[name] != before[name]]

    assert differs(_deciding(settings_from({**tree, "seed": 1}), splits, None, model)) == ["run"]
    other = load_examples("q.jsonl", "jsonl").examples
    assert differs(_deciding(settings, replace(splits, train=list(other)), None, model)) == ["training questions"]
    assert differs(_deciding(settings, replace(splits, dev=splits.dev[1:]), None, model)) == ["dev questions"]
    model.get_submodule("model.classifier").get_parameter("weight").data.neg_()
    assert differs(_deciding(settings, splits, None, model)) == ["starting weights"]
