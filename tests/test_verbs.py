"""The verbs as functions."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import rankwright
from rankwright.cli.app import app
from rankwright.errors import ConfigurationError, ResumeError
from rankwright.evaluation import FirstStage, GoldFirst
from rankwright.types import Document, Example, Query
from tests.cli_kit import make_model, rows, write_rows

CORPUS = [Document("k", "Kelp grows in cold water.", "Kelp"), Document("c", "Crabs walk sideways.", "Crabs")]


def test_every_verb_of_the_command_line_is_a_function_of_that_name() -> None:
    import rankwright.reporting  # a module of a verb's name would take the verb's place when it is imported

    assert rankwright.reporting
    command: Any = get_command(app)
    verbs = set(command.commands) - {"prompts"}  # rankwright.prompts is the package with its functions
    assert verbs >= {"demo", "train", "eval", "rerank", "retrieve", "validate", "report", "push", "cache"}
    assert all(inspect.isfunction(getattr(rankwright, verb)) for verb in verbs)


def test_rerank_keeps_the_best(tmp_path: Path) -> None:
    model = str(make_model(tmp_path / "model"))
    whole = rankwright.load(model).rerank("kelp", CORPUS)
    found = rankwright.rerank("kelp", CORPUS, model=model, top_k=1)
    assert (found.doc_ids, found.scores) == (whole.doc_ids[:1], whole.scores[:1])


def test_retrieve_finds_by_words() -> None:
    assert [[d.doc_id for d in found] for found in rankwright.retrieve(["kelp", "crabs"], CORPUS, 1)] == [["k"], ["c"]]


def test_cache_opens_the_store_and_doctor_looks_at_it(tmp_path: Path) -> None:
    path = tmp_path / "reads.sqlite"
    with rankwright.cache(path) as store:
        assert len(store) == 0
    assert all(check.ok for check in rankwright.doctor(path) if check.required)


def test_push_names_a_bad_repository(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="OWNER/NAME"):
        rankwright.push(make_model(tmp_path / "model"), "no name")


def test_train_makes_a_run_and_report_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "q.jsonl", rows())
    make_model(tmp_path / "tiny")
    settings = {
        "method": "supervised",
        "data": {"train": "q.jsonl", "retriever": "given", "dev_share": 0.25, "test_share": 0.25},
        "model": {"name": "tiny"},
        "reader": {"reader": "none"},
        "loop": {"epochs": 1.0, "batch_size": 3},
    }
    result = rankwright.train("mine", settings)
    assert result == json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())
    assert (result["verdict"], result["steps"], result["n"]) == ("not shown", 2, 3)
    of_run, of_model = (rankwright.load(place).rerank("door", ["a", "b"]) for place in ("runs/mine", "runs/mine/model"))
    assert of_run == of_model
    page = Path("runs/mine/report.html")
    page.unlink()
    assert rankwright.report("runs/mine") == page
    assert "Run mine" in page.read_text()
    with pytest.raises(ConfigurationError, match="already holds a run"):
        rankwright.train("mine", settings)
    with pytest.raises(ResumeError, match="Setting seed is 1"):
        rankwright.train("mine", {**settings, "seed": 1}, resume=True)
    with pytest.raises(ConfigurationError, match=r"loop\.epoch"):
        rankwright.train("other", {**settings, "loop": {"epoch": 1.0}})


def test_eval_compares_models() -> None:
    question = Example(Query("q", "kelp"), tuple(reversed(CORPUS)), (), {"k": 1})
    models = {"first-stage": FirstStage(), "gold-first": GoldFirst([question])}
    scores = rankwright.eval(models, [question], reader=None, top_k=1, depth=2).scores
    assert [scores[name]["RR@10"].mean for name in models] == [0.5, 1.0]
