"""A reranker in Haystack: the component, run by Haystack's own pipelines."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.core.errors import DeserializationError
from haystack.document_stores.in_memory import InMemoryDocumentStore

import rankwright
from rankwright.errors import ConfigurationError, ResourceNotFoundError
from rankwright.integrations.haystack import RankwrightRanker
from tests.integration_kit import Held, Written, sigmoid, while_held
from tests.tiny_bert import save_cross_encoder

DOCUMENTS = [
    Document(id="a", content="rain 1", meta={"source": "x.pdf", "page": None}, score=0.2),
    Document(id="ü/雨 ", content="river 3", meta={"title": "River", "tags": ["wet"]}, score=0.9),
    Document(id="a", content="rain 2", meta={"source": "y.pdf"}, score=0.7),
    Document(id="a", content="rain 9", meta={"source": "z.pdf"}),
    Document(id="c", content="moon -2", embedding=[1.0]),
]
MODULE = "rankwright.integrations.haystack"


def _seen(documents: list[Document]) -> list[tuple[str, str | None, Any, float | None]]:
    return [(d.id, d.content, d.meta, d.score) for d in documents]


def test_documents_come_back_best_first_each_id_once_with_meta_and_score() -> None:
    before = pickle.dumps(DOCUMENTS)
    found = RankwrightRanker(Written()).run("q", DOCUMENTS)["documents"]
    assert _seen(found) == [
        ("ü/雨 ", "river 3", {"title": "River", "tags": ["wet"]}, 3.0),
        ("a", "rain 2", {"source": "y.pdf"}, 2.0),
        ("c", "moon -2", {}, -2.0),
    ]
    assert found[2].embedding == [1.0]
    assert pickle.dumps(DOCUMENTS) == before
    assert RankwrightRanker(Written()).run("q", []) == {"documents": []}


@pytest.mark.parametrize(
    ("own", "of_call", "scores"),
    [
        ({}, {}, [3.0, 2.0, -2.0]),
        ({"top_k": 2}, {}, [3.0, 2.0]),
        ({"top_k": 2}, {"top_k": 1}, [3.0]),
        ({"score_threshold": 0.0}, {}, [3.0, 2.0]),
        ({"score_threshold": 0.0}, {"score_threshold": 2.5}, [3.0]),
        ({"scale_score": True}, {}, [sigmoid(3.0), sigmoid(2.0), sigmoid(-2.0)]),
        ({"scale_score": True}, {"scale_score": False}, [3.0, 2.0, -2.0]),
        ({"scale_score": True, "score_threshold": 0.5}, {}, [sigmoid(3.0), sigmoid(2.0)]),
    ],
)
def test_a_call_may_have_options_of_its_own(own: Any, of_call: Any, scores: list[float]) -> None:
    ranker = RankwrightRanker(Written(), **own)
    assert [d.score for d in ranker.run("q", DOCUMENTS, **of_call)["documents"]] == scores
    assert [d.score for d in asyncio.run(ranker.run_async("q", DOCUMENTS, **of_call))["documents"]] == scores


def test_what_is_read_of_a_document() -> None:
    written = Written()
    RankwrightRanker(written, title_field="title").run("q", [DOCUMENTS[1], Document(id="e", content=None)])
    assert written.read == [("q", "River", "river 3"), ("q", "", "")]


def _pipeline(ranker: RankwrightRanker) -> Pipeline:
    store = InMemoryDocumentStore()
    store.write_documents([DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[4]])
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store))
    pipeline.add_component("ranker", ranker)
    pipeline.connect("retriever.documents", "ranker.documents")
    return pipeline


WHERE = {"retriever": {"query": "rain river moon"}, "ranker": {"query": "where?"}}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_pipeline_ends_in_the_best_documents(asynchronous: bool) -> None:
    written = Written()
    pipeline = _pipeline(RankwrightRanker(written, top_k=2))
    found = asyncio.run(pipeline.run_async(WHERE)) if asynchronous else pipeline.run(WHERE)
    assert [d.id for d in found["ranker"]["documents"]] == ["ü/雨 ", "a"]
    assert {query for query, _, _ in written.read} == {"where?"}


def test_the_event_loop_goes_on_while_documents_are_ranked() -> None:
    held = Held()

    async def program() -> dict[str, list[Document]]:
        return await while_held(held, RankwrightRanker(held, top_k=1).run_async("q", DOCUMENTS))

    assert [d.id for d in asyncio.run(program())["documents"]] == ["ü/雨 "]


def test_a_saved_pipeline_opens_the_model_again_where_the_module_is_trusted(tmp_path: Path) -> None:
    folder = save_cross_encoder(tmp_path / "model")
    ranker = RankwrightRanker(folder, top_k=2, scale_score=True, title_field="title", load={"max_length": 16})
    file = tmp_path / "pipeline.yaml"
    file.write_text(_pipeline(ranker).dumps(), encoding="utf-8")
    with pytest.raises(DeserializationError, match="allow"), file.open(encoding="utf-8") as text:
        Pipeline.load(text)
    with file.open(encoding="utf-8") as text:
        again = Pipeline.load(text, allowed_modules=[MODULE])
    component = again.get_component("ranker")
    assert isinstance(component, RankwrightRanker)
    assert component.to_dict() == ranker.to_dict()
    assert ranker.to_dict()["type"] == f"{MODULE}.RankwrightRanker"
    assert component.run("q", DOCUMENTS) == ranker.run("q", DOCUMENTS)


def test_a_model_by_name_is_opened_by_warm_up_and_gives_its_raw_scores(tmp_path: Path) -> None:
    ranker = RankwrightRanker(str(tmp_path / "model"))
    with pytest.raises(ResourceNotFoundError, match="does not exist"):
        ranker.warm_up()
    folder = save_cross_encoder(tmp_path / "model")
    texts = ["rain 1", "river 3", "moon -2"]
    expected = rankwright.load(folder).rerank("rain", texts)
    ranker.warm_up()
    found = ranker.run("rain", [DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[4]])["documents"]
    assert [d.score for d in found] == list(expected.scores)
    assert [d.content for d in found] == [texts[int(i)] for i in expected.doc_ids]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ConfigurationError, match="Number of passages to keep is 0"):
        RankwrightRanker(Written(), top_k=0)
    with pytest.raises(ConfigurationError, match="Number of passages to keep is -1"):
        RankwrightRanker(Written()).run("q", DOCUMENTS, top_k=-1)
    with pytest.raises(ConfigurationError, match="Document at position 0 is a value of type dict"):
        RankwrightRanker(Written()).run("q", [{"content": "rain"}])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="Model is a value of type NoneType"):
        RankwrightRanker(None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="Reranker 'written' was given open to a component"):
        RankwrightRanker(Written()).to_dict()
