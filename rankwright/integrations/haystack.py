"""A reranker in Haystack: a ranker component.

    pipeline.add_component("ranker", RankwrightRanker("runs/mine/model", top_k=5))
    pipeline.connect("retriever.documents", "ranker.documents")

A document keeps its id and meta, and its score becomes that of the reranker. Documents come back as copies; of those
with the same id the one with the highest score is ranked, as by Haystack's own rankers.

Haystack opens a saved pipeline's components only from modules that it is told to trust:
`Pipeline.load(file, allowed_modules=["rankwright.integrations.haystack"])`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rankwright.integrations.opened import (
    Hit,
    Model,
    Opened,
    Passage,
    Scale,
    check_kind,
    check_options,
    missing,
    title_of,
)

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError as error:
    raise missing("Haystack", "haystack", error) from error


@component
class RankwrightRanker:
    """Orders retrieved documents by a reranker and keeps the best.

    Args:
        model: a folder, a hub name, "reference", or an opened reranker. A name is opened by `warm_up`.
        top_k: documents to keep; None keeps all.
        scale_score: presses scores between 0 and 1 (`rankwright.scale.relevance`); by default they are logits.
        score_threshold: drops documents with a lower score, of the same scale.
        title_field: the field of meta that holds a document's title; by default the content alone is read.
        load: further arguments of rankwright.load, for a model by name: backend, device, max_length.

    Raises:
        ConfigurationError: an argument is wrong, or a component with an opened reranker is to be written down.
        ResourceNotFoundError: no model is found under the name.
        ModelError: what is found is not a reranker.
    """

    def __init__(
        self,
        model: Model,
        top_k: int | None = None,
        scale_score: bool = False,
        score_threshold: float | None = None,
        title_field: str | None = None,
        load: dict[str, Any] | None = None,
    ) -> None:
        check_options(top_k, _scale(scale_score))
        self.top_k = top_k
        self.scale_score = scale_score
        self.score_threshold = score_threshold
        self.title_field = title_field
        self._opened = Opened(model, load or {})

    def warm_up(self) -> None:
        """Opens the model. A pipeline calls it before it runs; alone, the first `run` does."""
        _ = self._opened.reranker

    def to_dict(self) -> dict[str, Any]:
        """The component as Haystack writes it into a pipeline's file."""
        return default_to_dict(
            self,
            model=self._opened.named("a component"),
            top_k=self.top_k,
            scale_score=self.scale_score,
            score_threshold=self.score_threshold,
            title_field=self.title_field,
            load=self._opened.settings,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RankwrightRanker:
        """The component of such a file."""
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, list[Document]]:
        """The best documents as copies, best first.

        Args:
            query: the question.
            documents: what a retriever found.
            top_k: in place of the component's own, as are the next two.
            scale_score: sigmoid or logits.
            score_threshold: the lowest score that stays.
        """
        own = distinct(documents)
        top_k, scale, threshold = self._options(top_k, scale_score, score_threshold)
        hits = self._opened.rank(query, self._passages(own), top_k=top_k, scale=scale, threshold=threshold)
        return {"documents": _scored(own, hits)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, list[Document]]:
        """The same, in another thread."""
        own = distinct(documents)
        top_k, scale, threshold = self._options(top_k, scale_score, score_threshold)
        passages = self._passages(own)
        hits = await self._opened.rank_async(query, passages, top_k=top_k, scale=scale, threshold=threshold)
        return {"documents": _scored(own, hits)}

    def _options(
        self, top_k: int | None, scale_score: bool | None, threshold: float | None
    ) -> tuple[int | None, Scale, float | None]:
        """Those of a call, or the component's own."""
        return (
            self.top_k if top_k is None else top_k,
            _scale(self.scale_score if scale_score is None else scale_score),
            self.score_threshold if threshold is None else threshold,
        )

    def _passages(self, documents: Sequence[Document]) -> list[Passage]:
        return [Passage(d.content or "", title_of(d.meta, self.title_field)) for d in documents]


def distinct(documents: Sequence[Document]) -> list[Document]:
    """Every id once, where it came first, with the highest score that it came with."""
    check_kind(documents, Document, "Document(content=...)")
    best: dict[str, Document] = {}
    for document in documents:
        known = best.get(document.id)
        if known is None or _first_stage(document) > _first_stage(known):
            best[document.id] = document
    return list(best.values())


def _first_stage(document: Document) -> float:
    return float("-inf") if document.score is None else document.score


def _scale(scale_score: bool) -> Scale:
    return "sigmoid" if scale_score else "raw"


def _scored(documents: Sequence[Document], hits: Sequence[Hit]) -> list[Document]:
    return [replace(documents[hit.position], score=hit.score) for hit in hits]
