"""The demo's path with the real embedded models, on fewer questions: what a run leaves behind, and that it is
honest."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rankwright
from rankwright.checkpoints import remove_after
from rankwright.cli.build import Splits
from rankwright.cli.settings import RunSettings
from rankwright.cli.train import demo_splits
from rankwright.training import TrainResult, train
from tests.cli_kit import one_line, run_process


def small(settings: RunSettings, train: int, dev: int, test: int) -> Splits:
    splits = demo_splits(settings)
    return replace(splits, train=splits.train[:train], dev=splits.dev[:dev], test=splits.test[:test])


def spoiled(policy: torch.nn.Module, *args: Any, **kwargs: Any) -> TrainResult:
    """Trains, then turns the ranking round: what comes out is worse than what went in."""
    result = train(policy, *args, **kwargs)
    with torch.no_grad():
        policy.get_submodule("model.classifier").get_parameter("weight").neg_()
    return result


Worse = tuple[Path, subprocess.CompletedProcess[str]]

IN_SMALL = """
import rankwright.cli.train, rankwright.training
from rankwright.cli import main
from tests.test_demo_run import small, spoiled
rankwright.training.train = spoiled
rankwright.cli.train.demo_splits = lambda settings, **how: small(settings, 16, 8, 40)
main()
"""


@pytest.fixture(scope="module")
def worse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worse]:
    """The folder and the end of a run whose model was spoiled."""
    here = tmp_path_factory.mktemp("worse")
    settings = ["--set", "loop.epochs=1", "--set", "loop.eval_steps=2"]
    done = run_process("demo", "--name", "upside-down", *settings, "--output", "json", cwd=here, code=IN_SMALL)
    folder = here / "runs" / "upside-down"
    yield folder, done
    remove_after(folder)


def test_a_run_folder_holds_what_it_promises(worse: Worse) -> None:
    folder, done = worse
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "evaluation.json",
        "report.html",
        "result.json",
        "model",
    } <= names
    result = json.loads((folder / "result.json").read_text())
    assert one_line(done.stdout) == result
    wanted = ["metric", "n", "seed", "f1_reference", "f1_trained", "delta", "ci_low", "ci_high", "p_value", "verdict"]
    assert [key for key in [*wanted, "reader_calls", "cache_hits", "seconds"] if key not in result] == []
    assert result["n"] == 40
    assert result["reader_calls"] > 0
    assert result["delta"] == pytest.approx(result["f1_trained"] - result["f1_reference"])
    assert "Before and after" in (folder / "model" / "README.md").read_text()


def test_a_model_worse_than_its_reference_is_called_so(worse: Worse) -> None:
    """By the last line, by the exit code, in result.json, in the card and in the report."""
    folder, done = worse
    assert done.returncode == 8, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("The trained model is WORSE than its reference: do not use it: F1")
    assert json.loads((folder / "result.json").read_text())["verdict"] == "worse"
    assert "WORSE than its reference" in (folder / "model" / "README.md").read_text()
    assert "This is no success" in (folder / "report.html").read_text()


def test_the_saved_model_opens_elsewhere_with_equal_scores(worse: Worse) -> None:
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = str(worse[0] / "model")
    query = "Who established the Priory of Saint Orrel?"
    texts = ["The Priory of Saint Orrel stands on Little Hollin.", "Herring are salted at Gullhaven.", "prior " * 400]
    ours = rankwright.load(folder).rerank(query, texts)
    ours_by_id = dict(zip(ours.doc_ids, ours.scores, strict=True))
    mine = [ours_by_id[str(i)] for i in range(len(texts))]
    theirs = CrossEncoder(folder).predict([(query, text) for text in texts]).tolist()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer([query] * len(texts), texts, padding=True, truncation=True, return_tensors="pt")
    plain = AutoModelForSequenceClassification.from_pretrained(folder)(**batch).logits[:, 0].tolist()
    assert mine == pytest.approx(theirs, abs=1e-5)
    assert mine == pytest.approx(plain, abs=1e-5)
