"""The demo's path learns from answers, and from the questions' own answers alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.demo import build
from rankwright.checkpoints import remove_after
from rankwright.cli.app import run
from rankwright.cli.build import Splits
from rankwright.cli.settings import RunSettings
from rankwright.cli.train import demo_splits, with_exchanged_answers
from tests.cli_kit import one_line


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder, so that what both runs read is read once."""
    folder = tmp_path_factory.mktemp("demo")
    yield folder
    for run_folder in (folder / "runs").iterdir():
        remove_after(run_folder)


@pytest.mark.parametrize(("options", "verdicts"), [([], {"better"}), (["--shuffle-answers"], {"not shown", "worse"})])
def test_only_the_questions_own_answers_teach(
    options: list[str],
    verdicts: set[str],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The questions of two clusters are learned by heart and asked again with their own answers. Learned with the
    answers exchanged among them, which stand in candidates too, the reward rises as well, and nothing may be gained.
    (benchmarks/results/demo.md has five seeds of both on questions that training never saw.)"""
    monkeypatch.chdir(here)
    cluster_of = {row["question"]: row["cluster"] for row in build.read_rows("questions")}

    def in_small(settings: RunSettings, *, shuffle_answers: bool) -> Splits:
        splits = demo_splits(settings)
        clusters = sorted({cluster_of[example.query.text] for example in splits.train})[:2]
        asked = [example for example in splits.train if cluster_of[example.query.text] in clusters]
        learned = with_exchanged_answers(asked, settings.seed) if shuffle_answers else asked
        return replace(splits, train=learned, dev=learned, test=asked)

    monkeypatch.setattr("rankwright.cli.train.demo_splits", in_small)
    name = "exchanged" if options else "own"
    settings = ["--set", "loop.epochs=2", "--set", "loop.eval_steps=8", "--set", "data.depth=6"]
    code = run(["demo", *options, "--name", name, *settings, "--output", "json"])
    result = one_line(capsys.readouterr().out)
    assert result["best_step"] > 0, "nothing was learned, so nothing was tested"
    assert result["dev_best"] > result["dev_before"]
    assert result["verdict"] in verdicts
    assert code == (8 if result["verdict"] == "worse" else 0)
