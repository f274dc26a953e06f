"""A reranker in LlamaIndex: a node postprocessor.

    reranker = RankwrightReranker("runs/mine/model", top_n=5)
    index.as_query_engine(similarity_top_k=50, node_postprocessors=[reranker])

A node keeps its id and metadata, and its score becomes that of the reranker. What comes back are new NodeWithScores;
two with the same node are two, as in LlamaIndex's own postprocessors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rankwright.errors import ConfigurationError
from rankwright.integrations.opened import (
    Hit,
    Model,
    Opened,
    Passage,
    Scale,
    check_kind,
    check_options,
    missing,
    options,
    title_of,
)

try:
    from llama_index.core.bridge.pydantic import Field, PrivateAttr, field_serializer
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
    from llama_index_instrumentation import get_dispatcher
except ImportError as error:
    raise missing("LlamaIndex", "llama-index", error) from error

dispatcher = get_dispatcher(__name__)


class RankwrightReranker(BaseNodePostprocessor):
    """Orders retrieved nodes by a reranker and keeps the best.

    Raises:
        ConfigurationError: a field is wrong, there is no query, or an opened reranker is to be written down.
        ResourceNotFoundError: no model is found under the name.
        ModelError: what is found is not a reranker.
    """

    model: Any = Field(frozen=True)
    """A folder, a hub name, "reference", or an opened reranker."""
    top_n: int | None = None
    """Nodes to keep; None keeps all."""
    scale: Scale = "raw"
    """"raw" for the model's logits, "sigmoid" for numbers between 0 and 1."""
    score_threshold: float | None = None
    """Drops nodes with a lower score, of the same scale."""
    metadata_mode: MetadataMode = MetadataMode.EMBED
    """Which metadata is read with the text: as for the embedding, which is what LlamaIndex's rerankers do, or none."""
    title_field: str | None = None
    """The field of metadata that holds a node's title, which then is the only one that is read."""
    keep_retrieval_score: bool = False
    """Puts the score of before into the metadata, as `retrieval_score`."""
    load: dict[str, Any] = Field(default_factory=dict, frozen=True)
    """Further arguments of rankwright.load, for a model by name: backend, device, max_length."""
    _opened: Opened = PrivateAttr()

    # Not model_post_init: pydantic makes ValidationErrors of the errors of that.
    def __init__(
        self,
        model: Model,
        top_n: int | None = None,
        scale: Scale = "raw",
        score_threshold: float | None = None,
        metadata_mode: MetadataMode = MetadataMode.EMBED,
        title_field: str | None = None,
        keep_retrieval_score: bool = False,
        load: dict[str, Any] | None = None,
        **inherited: Any,
    ) -> None:
        check_options(top_n, scale)
        super().__init__(
            **inherited,
            **{
                "model": model,
                "top_n": top_n,
                "scale": scale,
                "score_threshold": score_threshold,
                "metadata_mode": metadata_mode,
                "title_field": title_field,
                "keep_retrieval_score": keep_retrieval_score,
                "load": load or {},
            },
        )
        self._opened = Opened(model, self.load)
        _ = self._opened.reranker  # a wrong name is told here, not with the first question

    @field_serializer("model")
    def _name_of_model(self, model: Any) -> str:
        return self._opened.named("a node postprocessor")

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """All fields but the callback manager, as LlamaIndex writes them down."""
        self._opened.named("a node postprocessor")  # pydantic would make another error of its
        return super().to_dict(**kwargs)

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex writes it down."""
        return "RankwrightReranker"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _text(query_bundle)
        if not nodes:
            return []
        passages = self._passages(nodes)
        with self._told(nodes, query) as best:
            hits = self._opened.rank(query, passages, **options(self))
            best += [self._scored(nodes[hit.position], hit) for hit in hits]
        return best

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _text(query_bundle)
        if not nodes:
            return []
        passages = self._passages(nodes)
        with self._told(nodes, query) as best:
            hits = await self._opened.rank_async(query, passages, **options(self))
            best += [self._scored(nodes[hit.position], hit) for hit in hits]
        return best

    @contextmanager
    def _told(self, nodes: list[NodeWithScore], query: str) -> Iterator[list[NodeWithScore]]:
        """LlamaIndex's events around a ranking, of both kinds; the block fills the list."""
        best: list[NodeWithScore] = []
        name, top_n = self._opened.name, len(nodes) if self.top_n is None else self.top_n
        dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=top_n, model_name=name))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: name,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            yield best
            event.on_end(payload={EventPayload.NODES: best})
        dispatcher.event(ReRankEndEvent(nodes=best))

    def _passages(self, nodes: list[NodeWithScore]) -> list[Passage]:
        check_kind(nodes, NodeWithScore, "NodeWithScore(node=...)")
        mode = MetadataMode.NONE if self.title_field else self.metadata_mode
        return [Passage(n.node.get_content(mode), title_of(n.node.metadata, self.title_field)) for n in nodes]

    def _scored(self, node: NodeWithScore, hit: Hit) -> NodeWithScore:
        inner = node.node
        if self.keep_retrieval_score:
            inner = inner.model_copy(update={"metadata": {**inner.metadata, "retrieval_score": node.score}})
        return node.model_copy(update={"node": inner, "score": hit.score})


def _text(query_bundle: QueryBundle | None) -> str:
    if query_bundle is None:
        raise ConfigurationError(
            "Query of the nodes is None; wanted one to rank them for. Give query_str or query_bundle."
        )
    return query_bundle.query_str
