"""A reranker in LangChain: the compressor and the runnable, called by LangChain itself."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from pydantic import ValidationError

import rankwright
from rankwright.errors import ConfigurationError, ResourceNotFoundError
from rankwright.integrations.langchain import SCORE, RankwrightReranker
from tests.integration_kit import Held, Written, sigmoid, while_held
from tests.tiny_bert import save_cross_encoder

DOCUMENTS = [
    Document("rain 1", id="a", metadata={"source": "x.pdf", "page": None}),
    Document("river 3", id="ü/雨 ", metadata={"title": "River", "tags": ["wet"]}),
    Document("rain 1", id="a", metadata={"source": "y.pdf"}),
    Document("moon -2"),
]
"""Two with the same id and text, as a retriever over overlapping sources gives them."""


class Found(BaseRetriever):
    """Always finds DOCUMENTS."""

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return DOCUMENTS


def _seen(documents: Any) -> list[tuple[str | None, str, Any]]:
    return [(d.id, d.page_content, d.metadata) for d in documents]


def test_documents_come_back_best_first_with_id_metadata_and_score() -> None:
    before = pickle.dumps(DOCUMENTS)
    found = RankwrightReranker(Written()).compress_documents(DOCUMENTS, "q")
    assert _seen(found) == [
        ("ü/雨 ", "river 3", {"title": "River", "tags": ["wet"], SCORE: 3.0}),
        ("a", "rain 1", {"source": "x.pdf", "page": None, SCORE: 1.0}),
        ("a", "rain 1", {"source": "y.pdf", SCORE: 1.0}),
        (None, "moon -2", {SCORE: -2.0}),
    ]
    assert pickle.dumps(DOCUMENTS) == before
    assert RankwrightReranker(Written()).compress_documents([], "q") == []


def test_options_hold_for_the_next_call() -> None:
    written = Written()
    reranker = RankwrightReranker(written, top_n=1, scale="sigmoid", title_field="title")
    (best,) = reranker.compress_documents(tuple(DOCUMENTS), "q")
    assert best.metadata[SCORE] == sigmoid(3.0)
    assert written.read[:2] == [("q", "", "rain 1"), ("q", "River", "river 3")]
    reranker.top_n, reranker.scale, reranker.title_field = 2, "raw", None
    assert [d.metadata[SCORE] for d in reranker.compress_documents(DOCUMENTS, "q")] == [3.0, 1.0]
    assert {title for _, title, _ in written.read[4:]} == {""}
    with pytest.raises(ValidationError, match="frozen"):
        reranker.model = "reference"


@pytest.mark.parametrize(("scale", "threshold"), [("raw", 1.0), ("sigmoid", sigmoid(1.0))])
def test_documents_below_the_threshold_are_dropped(scale: Any, threshold: float) -> None:
    reranker = RankwrightReranker(Written(), scale=scale, score_threshold=threshold)
    given: Any = {"query": "q", "documents": DOCUMENTS}
    step = reranker.as_runnable()
    (several,), (awaited,) = step.batch([given]), asyncio.run(step.abatch([given]))
    for found in (step.invoke(given), asyncio.run(step.ainvoke(given)), several, awaited):
        assert [d.page_content for d in found] == ["river 3", "rain 1", "rain 1"]
    reranker.score_threshold = 100
    assert reranker.compress_documents(DOCUMENTS, "q") == []


def test_a_chain_ends_in_the_best_documents() -> None:
    written = Written()
    reranker = RankwrightReranker(written, top_n=1).as_runnable()
    best = RunnableLambda(lambda documents: documents[0].id)  # pyright: ignore[reportIndexIssue]
    chain = {"query": RunnablePassthrough(), "documents": Found()} | reranker | best
    assert chain.invoke("where?") == "ü/雨 "
    assert chain.batch(["where?", "when?", "who?"]) == ["ü/雨 "] * 3
    assert asyncio.run(chain.ainvoke("where?")) == "ü/雨 "
    assert {query for query, _, _ in written.read} == {"where?", "when?", "who?"}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_batch_is_one_call_of_the_reranker(asynchronous: bool) -> None:
    """Also behind other steps; an input that is none costs nobody else an answer."""
    written = Written()
    step = RankwrightReranker(written, top_n=1).as_runnable()
    chain = RunnablePassthrough() | step
    given: list[Any] = [{"query": f"q{n}", "documents": DOCUMENTS[n:]} for n in range(3)]

    def batched(inputs: list[Any], **options: Any) -> list[Any]:
        return asyncio.run(chain.abatch(inputs, **options)) if asynchronous else chain.batch(inputs, **options)

    assert [d[0].metadata[SCORE] for d in batched(given)] == [3.0, 3.0, 1.0]
    assert [[request.query.text for request in call] for call in written.asked] == [["q0", "q1", "q2"]]
    first, bad, last = batched([given[0], {"query": "q"}, given[2]], return_exceptions=True)
    assert (first[0].id, last[0].id) == ("ü/雨 ", "a")
    assert isinstance(bad, ConfigurationError)
    with pytest.raises(ConfigurationError, match="wanted a mapping with 'query' and 'documents'"):
        batched([given[0], {"query": "q"}])
    assert batched([]) == []


def test_a_compression_retriever_finds_the_best_documents() -> None:
    retriever = ContextualCompressionRetriever(
        base_compressor=DocumentCompressorPipeline(transformers=[RankwrightReranker(Written(), top_n=2)]),
        base_retriever=Found(),
    )
    assert [d.id for d in retriever.invoke("where?")] == ["ü/雨 ", "a"]
    assert [d.metadata[SCORE] for d in asyncio.run(retriever.ainvoke("where?"))] == [3.0, 1.0]


@pytest.mark.parametrize("way", ["compressor", "runnable"])
def test_the_event_loop_goes_on_while_documents_are_ranked(way: str) -> None:
    held = Held()
    reranker = RankwrightReranker(held, top_n=1)

    async def program() -> list[Document]:
        if way == "compressor":
            return await while_held(held, reranker.acompress_documents(DOCUMENTS, "q"))
        given = {"query": "q", "documents": DOCUMENTS}
        return await while_held(held, reranker.as_runnable().ainvoke(given))

    assert _seen(asyncio.run(program())) == [("ü/雨 ", "river 3", {"title": "River", "tags": ["wet"], SCORE: 3.0})]


def test_a_model_by_name_gives_its_raw_scores_and_is_pickled_as_its_name(tmp_path: Path) -> None:
    folder = save_cross_encoder(tmp_path / "model")
    expected = rankwright.load(folder, max_length=8).rerank("rain", [d.page_content for d in DOCUMENTS])
    reranker = RankwrightReranker(str(folder), load={"max_length": 8})
    copied = pickle.loads(pickle.dumps(reranker))
    for each in (reranker, copied):
        found = each.compress_documents(DOCUMENTS, "rain")
        assert [d.metadata[SCORE] for d in found] == list(expected.scores)
        assert [DOCUMENTS[int(i)].page_content for i in expected.doc_ids] == [d.page_content for d in found]
    assert len(pickle.dumps(reranker)) < 2000


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model": "no/such/folder"}, ResourceNotFoundError, "no/such/folder"),
        ({"model": Written(), "top_n": 0}, ConfigurationError, "Number of passages to keep is 0"),
        ({"model": Written(), "scale": "softmax"}, ConfigurationError, "wanted 'raw' .logits. or 'sigmoid'"),
        ({"model": Written(), "title_field": 7}, ValidationError, "valid string"),
        ({"model": Written(), "topn": 3}, TypeError, "topn"),
        ({"model": 7}, ConfigurationError, "Model is a value of type int"),
    ],
)
def test_wrong_fields_are_told_at_once(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RankwrightReranker(**fields)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"query": "q", "documents": [{"page_content": "rain"}]}, "Document at position 0 is a value of type dict"),
        ({"query": {"question": "q"}, "documents": DOCUMENTS}, "Query is a value of type dict; wanted a string"),
        ({"question": "q", "context": DOCUMENTS}, r"Input of the reranker is \['context', 'question'\]"),
        ("q", "Input of the reranker is a value of type str; wanted a mapping with 'query' and 'documents'"),
    ],
)
def test_wrong_input_is_named(given: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RankwrightReranker(Written()).as_runnable().invoke(given)
