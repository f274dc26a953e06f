"""A reranker in LlamaIndex: the postprocessor, called by LlamaIndex's own query engine."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index_instrumentation import root_dispatcher
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.event_handlers import BaseEventHandler

import rankwright
from rankwright.errors import ConfigurationError, ResourceNotFoundError
from rankwright.integrations.llama_index import RankwrightReranker
from tests.integration_kit import Held, Written, sigmoid, while_held
from tests.tiny_bert import save_cross_encoder


def _nodes() -> list[NodeWithScore]:
    """The first node stands there twice, as from two retrievers."""
    rain = TextNode(id_="a", text="rain 1", metadata={"file": "x.pdf", "page": None})
    river = TextNode(id_="ü/雨 ", text="river 3", metadata={"title": "River"}, excluded_embed_metadata_keys=["title"])
    moon = TextNode(id_="c", text="moon -2")
    return [NodeWithScore(node=n, score=s) for n, s in ((rain, 0.9), (river, 0.8), (rain, 0.7), (moon, None))]


def _seen(nodes: list[NodeWithScore]) -> list[tuple[str, float | None, dict[str, Any]]]:
    return [(n.node_id, n.score, n.metadata) for n in nodes]


class Found(BaseRetriever):
    """Always finds the same nodes."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return _nodes()


def test_nodes_come_back_best_first_with_id_metadata_and_score() -> None:
    nodes = _nodes()
    reranker = RankwrightReranker(Written(), metadata_mode=MetadataMode.NONE)
    found = reranker.postprocess_nodes(nodes, query_str="q")
    assert _seen(found) == [
        ("ü/雨 ", 3.0, {"title": "River"}),
        ("a", 1.0, {"file": "x.pdf", "page": None}),
        ("a", 1.0, {"file": "x.pdf", "page": None}),
        ("c", -2.0, {}),
    ]
    assert nodes == _nodes()
    assert reranker.postprocess_nodes([], query_str="q") == []


def test_the_score_of_before_may_stay_in_the_metadata_of_copies() -> None:
    nodes = _nodes()
    fields = {"metadata_mode": "none", "keep_retrieval_score": True, "top_n": 2, "scale": "sigmoid"}
    found = RankwrightReranker(Written(), **fields).postprocess_nodes(nodes, query_str="q")
    assert _seen(found) == [
        ("ü/雨 ", sigmoid(3.0), {"title": "River", "retrieval_score": 0.8}),
        ("a", sigmoid(1.0), {"file": "x.pdf", "page": None, "retrieval_score": 0.9}),
    ]
    assert nodes == _nodes()


@pytest.mark.parametrize(
    ("fields", "read"),
    [
        ({}, ("", "file: x.pdf\npage: None\n\nrain 1")),
        ({"metadata_mode": "none"}, ("", "rain 1")),
        ({"title_field": "file"}, ("x.pdf", "rain 1")),
        ({"title_field": "page"}, ("", "rain 1")),
    ],
)
def test_what_is_read_of_a_node(fields: dict[str, Any], read: tuple[str, str]) -> None:
    written = Written()
    RankwrightReranker(written, **fields).postprocess_nodes(_nodes()[:1], query_str="q")
    assert written.read == [("q", *read)]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_query_engine_answers_from_the_best_nodes(asynchronous: bool) -> None:
    reranker = RankwrightReranker(Written(), top_n=2, metadata_mode=MetadataMode.NONE)
    engine = RetrieverQueryEngine.from_args(Found(), llm=MockLLM(), node_postprocessors=[reranker])
    response = asyncio.run(engine.aquery("where?")) if asynchronous else engine.query("where?")
    assert [n.node_id for n in response.source_nodes] == ["ü/雨 ", "a"]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("scale", "threshold"), [("raw", 1.0), ("sigmoid", sigmoid(1.0))])
def test_nodes_below_the_threshold_are_dropped(scale: Any, threshold: float, asynchronous: bool) -> None:
    reranker = RankwrightReranker(Written(), scale=scale, score_threshold=threshold, metadata_mode=MetadataMode.NONE)
    if asynchronous:
        found = asyncio.run(reranker.apostprocess_nodes(_nodes(), query_str="q"))
    else:
        found = reranker.postprocess_nodes(_nodes(), query_str="q")
    assert [n.node_id for n in found] == ["ü/雨 ", "a", "a"]


def test_the_event_loop_goes_on_while_nodes_are_ranked() -> None:
    held = Held()
    reranker = RankwrightReranker(held, top_n=1, metadata_mode=MetadataMode.NONE)

    async def program() -> list[NodeWithScore]:
        return await while_held(held, reranker.apostprocess_nodes(_nodes(), query_str="q"))

    assert [n.node_id for n in asyncio.run(program())] == ["ü/雨 "]


class Kept(BaseEventHandler):
    """Keeps every event."""

    events: list[BaseEvent] = []  # noqa: RUF012 (pydantic copies it for every instance)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.events.append(event)


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    root_dispatcher.add_event_handler(handler)
    yield handler
    root_dispatcher.event_handlers.remove(handler)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_both_kinds_of_events_tell_of_a_ranking(kept: Kept, asynchronous: bool) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    reranker = RankwrightReranker(Written(), metadata_mode=MetadataMode.NONE)
    reranker.callback_manager = CallbackManager([debug])
    if asynchronous:
        found = asyncio.run(reranker.apostprocess_nodes(_nodes(), query_str="q"))
    else:
        found = reranker.postprocess_nodes(_nodes(), query_str="q")
    start, end = kept.events
    assert isinstance(start, ReRankStartEvent)
    assert (start.query, start.nodes, start.top_n, start.model_name) == ("q", _nodes(), 4, "written")
    assert isinstance(end, ReRankEndEvent)
    assert end.nodes == found
    ((before, after),) = debug.get_event_pairs(CBEventType.RERANKING)
    assert before.payload is not None
    assert after.payload is not None
    assert before.payload[EventPayload.QUERY_STR] == "q"
    assert after.payload[EventPayload.NODES] == found


def test_a_model_by_name_is_written_down_and_opened_again(tmp_path: Path) -> None:
    folder = save_cross_encoder(tmp_path / "model")
    texts = [n.get_content() for n in _nodes()]
    expected = rankwright.load(folder, max_length=8).rerank("rain", texts)
    reranker = RankwrightReranker(folder, load={"max_length": 8}, metadata_mode=MetadataMode.NONE, top_n=3)
    again = RankwrightReranker.from_json(reranker.to_json())
    pickled = pickle.loads(pickle.dumps(reranker))
    for each in (reranker, again, pickled):
        assert each.to_dict() == reranker.to_dict() | {"class_name": "RankwrightReranker", "model": str(folder)}
        found = each.postprocess_nodes(_nodes(), query_str="rain")
        assert [n.score for n in found] == list(expected.scores[:3])
    assert len(pickle.dumps(reranker)) < 2000


def test_an_opened_reranker_is_pickled_but_not_written_down() -> None:
    reranker = RankwrightReranker(Written(), metadata_mode=MetadataMode.NONE)
    pickled = pickle.loads(pickle.dumps(reranker))
    assert [n.score for n in pickled.postprocess_nodes(_nodes(), query_str="q")] == [3.0, 1.0, 1.0, -2.0]
    with pytest.raises(ConfigurationError, match="Reranker 'written' was given open to a node postprocessor"):
        reranker.to_json()


def test_wrong_fields_and_a_missing_query_are_named() -> None:
    with pytest.raises(ResourceNotFoundError, match="no/such/folder"):
        RankwrightReranker("no/such/folder")
    with pytest.raises(ConfigurationError, match="Number of passages to keep is 0"):
        RankwrightReranker(Written(), top_n=0)
    with pytest.raises(ConfigurationError, match="Document at position 0 is a value of type TextNode"):
        RankwrightReranker(Written()).postprocess_nodes([TextNode(text="rain")], query_str="q")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="Query of the nodes is None"):
        RankwrightReranker(Written()).postprocess_nodes(_nodes())
