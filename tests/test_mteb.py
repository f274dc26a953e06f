"""A reranker in MTEB: a real evaluation of a small task that lies here."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mteb
import pytest
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.models_protocols import CrossEncoderProtocol
from sentence_transformers import CrossEncoder
from torch.utils.data import DataLoader

import rankwright
from rankwright.errors import ConfigurationError, ResourceNotFoundError
from rankwright.integrations import opened
from rankwright.integrations.mteb import RankwrightReranker
from tests.integration_kit import Written
from tests.tiny_bert import save_cross_encoder

QUERIES = {"q1": "rain?", "q2": "moon?", "q3": "rain?"}
"""Two with the same text."""
CORPUS = {"d1": ("Wet", "rain 1"), "d2": ("Flow", "river 3"), "d3": ("Sky", "moon -2"), "d4": ("Sky", "moon 7")}
TOP_RANKED = {"q1": ["d1", "d2", "d3"], "q2": ["d3", "d1"], "q3": ["d4", "d1"]}
RELEVANT = {"q1": {"d2": 1}, "q2": {"d3": 1}, "q3": {"d4": 1}}


class Weather(AbsTaskRetrieval):
    """Three queries with candidates."""

    titles = True
    metadata = TaskMetadata(
        name="Weather",
        description="Three queries about the weather.",
        type="Reranking",
        main_score="mrr_at_10",
        dataset={"path": "nowhere", "revision": "1"},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
    )

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        corpus = [{"id": i, "title": title if self.titles else "", "text": text} for i, (title, text) in CORPUS.items()]
        split = {
            "queries": Dataset.from_list([{"id": i, "text": text} for i, text in QUERIES.items()]),
            "corpus": Dataset.from_list(corpus),
            "relevant_docs": RELEVANT,
            "top_ranked": TOP_RANKED,
        }
        self.dataset = {"default": {"test": split}}  # pyright: ignore[reportAttributeAccessIssue]
        self.data_loaded = True


class Plain(Weather):
    """Without titles, so that a CrossEncoder reads the same texts."""

    titles = False
    metadata = Weather.metadata.model_copy(update={"name": "Plain"})


def _evaluate(model: Any, task: AbsTaskRetrieval, **options: Any) -> Mapping[str, Any]:
    result = mteb.evaluate(model, task, show_progress_bar=False, **{"cache": None, **options})
    return result.task_results[0].scores["test"][0]


def test_an_evaluation_measures_the_ranking() -> None:
    written = Written()
    reranker = RankwrightReranker(written)
    assert isinstance(reranker, CrossEncoderProtocol)
    scores = _evaluate(reranker, Weather())
    # river, rain, moon for q1; rain, moon for q2; moon, rain for q3
    assert scores["mrr_at_10"] == pytest.approx((1 / 1 + 1 / 2 + 1 / 1) / 3, abs=1e-4)
    expected = [(QUERIES[q], *CORPUS[d]) for q, found in TOP_RANKED.items() for d in found]
    assert written.read == expected


def _loader(texts: list[str], batch_size: int = 1) -> DataLoader[Any]:
    rows: Any = [{"text": text} for text in texts]
    return DataLoader(rows, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_scores_come_in_the_order_of_pairs_whatever_the_batches(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "PAIRS_AT_ONCE", 2)
    pairs = [("a", "x 1"), ("a", "x 3"), ("a", "x 2"), ("b", "x 1"), ("a", "x 5")]
    written = Written()
    queries = _loader([query for query, _ in pairs], batch_size)
    texts = _loader([text for _, text in pairs], batch_size)
    where: dict[str, Any] = {"task_metadata": Weather.metadata, "hf_split": "test", "hf_subset": "default"}
    found = RankwrightReranker(written).predict(queries, texts, **where)
    assert list(found) == [1.0, 3.0, 2.0, 1.0, 5.0]
    assert [[len(r.documents) for r in requests] for requests in written.asked] == [[3], [1, 1]]
    assert list(RankwrightReranker(written).predict(_loader([]), _loader([]), **where)) == []


def _model(folder: Path, seed: int = 0) -> Path:
    rankwright.load(save_cross_encoder(folder, seed=seed)).save(folder)
    return folder


def _predictions(folder: Path) -> dict[str, dict[str, float]]:
    import json

    (file,) = folder.glob("*.json")
    return json.loads(file.read_text(encoding="utf-8"))["default"]["test"]


def test_it_predicts_what_a_cross_encoder_of_the_same_folder_does(tmp_path: Path) -> None:
    folder = _model(tmp_path / "model")
    ours = _evaluate(RankwrightReranker(folder), Plain(), prediction_folder=tmp_path / "ours")
    theirs = _evaluate(CrossEncoder(str(folder)), Plain(), prediction_folder=tmp_path / "theirs")
    assert ours["mrr_at_10"] == theirs["mrr_at_10"]
    expected = _predictions(tmp_path / "theirs")
    for query, found in _predictions(tmp_path / "ours").items():
        assert found == pytest.approx(expected[query], abs=1e-5)


def _calls(folder: Path, cache: mteb.ResultCache, **load: Any) -> int:
    """How often the model was asked in an evaluation that may use kept results."""
    reranker = RankwrightReranker(folder, load=load)
    asked: list[Sequence[Any]] = []
    inner = reranker._opened.reranker.rerank_batch
    reranker._opened.reranker.rerank_batch = lambda requests: asked.append(requests) or inner(requests)
    _evaluate(reranker, Plain(), cache=cache)
    return len(asked)


def test_kept_results_are_those_of_the_same_files(tmp_path: Path) -> None:
    cache = mteb.ResultCache(tmp_path / "cache")
    folder = _model(tmp_path / "model")
    assert _calls(folder, cache) == 1
    assert _calls(folder, cache) == 0
    (folder / "README.md").write_text("A card.", encoding="utf-8")
    assert _calls(folder, cache) == 0
    assert _calls(folder, cache, max_length=8) == 1
    assert _calls(folder, cache, max_length=8) == 0
    shutil.rmtree(folder)
    assert _calls(_model(folder, seed=1), cache) == 1  # trained again


def test_names_and_revisions(tmp_path: Path) -> None:
    folder = _model(tmp_path / "mine" / "model")
    meta = RankwrightReranker(folder, load={"max_length": 16}).mteb_model_meta
    assert (meta.name, meta.max_tokens, meta.model_type) == ("rankwright/mine-model", 16, ["cross-encoder"])
    assert meta.experiment_kwargs == {"max_length": 16}
    of_run = RankwrightReranker(tmp_path / "mine").mteb_model_meta
    assert (of_run.name, of_run.revision) == (meta.name, meta.revision)
    moved = folder.rename(tmp_path / "mine" / "moved")
    assert RankwrightReranker(moved).mteb_model_meta.revision == meta.revision
    first, second = (RankwrightReranker(Written()).mteb_model_meta for _ in range(2))
    assert first.name == second.name == "rankwright/written"
    assert first.revision != second.revision
    chosen = RankwrightReranker(Written(), "7", name="me/mine").mteb_model_meta
    assert (chosen.name, chosen.revision) == ("me/mine", "7")


def test_wrong_models_are_named() -> None:
    with pytest.raises(ResourceNotFoundError, match="no/such/folder"):
        RankwrightReranker("no/such/folder")
    with pytest.raises(ConfigurationError, match="Model is a value of type int"):
        RankwrightReranker(7)  # pyright: ignore[reportArgumentType]
