"""The verbs as functions."""

from __future__ import annotations

from pathlib import Path

import pytest

import rankwright
from rankwright.errors import ConfigurationError
from rankwright.evaluation import FirstStage, GoldFirst
from rankwright.types import Document, Example, Query
from tests.cli_kit import make_model

CORPUS = [Document("k", "Kelp grows in cold water.", "Kelp"), Document("c", "Crabs walk sideways.", "Crabs")]


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


def test_eval_compares_models() -> None:
    question = Example(Query("q", "kelp"), tuple(reversed(CORPUS)), (), {"k": 1})
    models = {"first-stage": FirstStage(), "gold-first": GoldFirst([question])}
    scores = rankwright.eval(models, [question], reader=None, top_k=1, depth=2).scores
    assert [scores[name]["RR@10"].mean for name in models] == [0.5, 1.0]
