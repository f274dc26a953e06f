"""The demo's path with the real embedded models, on fewer questions: what a run leaves behind, and that it is
honest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rankwright
from rankwright.cli.build import Splits
from rankwright.cli.run import RunOutcome, run_training, verdict_line
from rankwright.cli.settings import RunSettings, load_settings
from rankwright.cli.train import DEMO_RECIPE, demo_splits
from rankwright.training import TrainResult, train


def small(settings: RunSettings, train: int, dev: int, test: int, *, shuffle: bool = False) -> Splits:
    splits = demo_splits(settings, shuffle_answers=shuffle)
    return replace(splits, train=splits.train[:train], dev=splits.dev[:dev], test=splits.test[:test])


def spoiled(policy: torch.nn.Module, *args: Any, **kwargs: Any) -> TrainResult:
    """Trains, then turns the ranking round: what comes out is worse than what went in."""
    result = train(policy, *args, **kwargs)
    with torch.no_grad():
        policy.get_submodule("model.classifier").get_parameter("weight").neg_()
    return result


@pytest.fixture(scope="module")
def worse(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunOutcome]:
    """A run that ends with a spoiled model."""
    here = tmp_path_factory.mktemp("worse")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr("rankwright.training.train", spoiled)
        settings = load_settings(DEMO_RECIPE, ["loop.epochs=1", "loop.eval_steps=2"], {})
        outcome = run_training(settings, "spoiled", splits=small(settings, 16, 8, 100))
    return here, outcome


def test_a_run_folder_holds_what_it_promises(worse: tuple[Path, RunOutcome]) -> None:
    here, outcome = worse
    folder = here / outcome.folder
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
    wanted = ["metric", "n", "seed", "f1_reference", "f1_trained", "delta", "ci_low", "ci_high", "p_value", "verdict"]
    assert [key for key in [*wanted, "reader_calls", "cache_hits", "seconds"] if key not in result] == []
    assert result["n"] == 100
    assert result["reader_calls"] > 0
    assert result["delta"] == pytest.approx(result["f1_trained"] - result["f1_reference"])
    assert "Before and after" in (folder / "model" / "README.md").read_text()
    assert "spoiled" in (folder / "report.html").read_text()


def test_a_model_worse_than_its_reference_is_called_so(worse: tuple[Path, RunOutcome]) -> None:
    _, outcome = worse
    assert outcome.result["verdict"] == "worse"
    assert outcome.exit_code == 8
    assert "WORSE" in verdict_line(outcome.result)


def test_the_saved_model_opens_elsewhere_with_equal_scores(worse: tuple[Path, RunOutcome]) -> None:
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    here, outcome = worse
    folder = str(here / outcome.folder / "model")
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


def test_shuffled_answers_teach_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every question's answers exchanged for another's, no gain may be shown (benchmarks/results/demo.md has five
    seeds)."""
    monkeypatch.chdir(tmp_path)
    settings = load_settings(DEMO_RECIPE, ["loop.epochs=1", "loop.eval_steps=8"], {})
    outcome = run_training(settings, "shuffled", splits=small(settings, 64, 16, 80, shuffle=True))
    assert outcome.result["verdict"] != "better"
