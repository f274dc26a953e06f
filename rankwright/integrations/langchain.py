"""A reranker in LangChain: a document compressor for retrievers, and a runnable for chains.

    compressor = RankwrightReranker("runs/mine/model", top_n=5)
    ContextualCompressionRetriever(base_compressor=compressor, base_retriever=retriever)
    {"query": RunnablePassthrough(), "documents": retriever} | compressor.as_runnable()

A document keeps its id and metadata, and its score stands in `metadata["relevance_score"]`. Documents come back as
copies; two with the same id or text are two documents, as everywhere in LangChain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    title_of,
)

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.runnables import Runnable, RunnableLambda
    from pydantic import ConfigDict, Field, PrivateAttr
except ImportError as error:
    raise missing("LangChain", "langchain", error) from error

SCORE = "relevance_score"
"""The field of metadata in which LangChain's rerankers put a score."""


class RankwrightReranker(BaseDocumentCompressor):
    """Orders retrieved documents by a reranker and keeps the best.

    Raises:
        ConfigurationError: a field is wrong, or what is to be ranked are not Documents.
        ResourceNotFoundError: no model is found under the name.
        ModelError: what is found is not a reranker.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: Any = Field(frozen=True)
    """A folder, a hub name, "reference", or an opened reranker."""
    top_n: int | None = None
    """Documents to keep; None keeps all."""
    scale: Scale = "raw"
    """"raw" for the model's logits, "sigmoid" for numbers between 0 and 1."""
    title_field: str | None = None
    """The field of metadata that holds a document's title; by default the text alone is read."""
    load: dict[str, Any] = Field(default_factory=dict, frozen=True)
    """Further arguments of rankwright.load, for a model by name: backend, device, max_length."""
    _opened: Opened = PrivateAttr()

    # Not model_post_init: pydantic makes ValidationErrors of the errors of that.
    def __init__(
        self,
        model: Model,
        *,
        top_n: int | None = None,
        scale: Scale = "raw",
        title_field: str | None = None,
        load: dict[str, Any] | None = None,
    ) -> None:
        check_options(top_n, scale)
        super().__init__(
            **{"model": model, "top_n": top_n, "scale": scale, "title_field": title_field, "load": load or {}}
        )
        self._opened = Opened(model, self.load)
        _ = self._opened.reranker  # a wrong name is told here, not with the first question

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The best documents as copies, best first."""
        documents = list(documents)
        hits = self._opened.rank(query, self._passages(documents), top_k=self.top_n, scale=self.scale)
        return [_scored(documents[hit.position], hit) for hit in hits]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The same, in another thread."""
        documents = list(documents)
        hits = await self._opened.rank_async(query, self._passages(documents), top_k=self.top_n, scale=self.scale)
        return [_scored(documents[hit.position], hit) for hit in hits]

    def as_runnable(self) -> Runnable[Mapping[str, Any], list[Document]]:
        """A step of a chain: from {"query": ..., "documents": [...]} to the best documents."""

        def run(given: Mapping[str, Any]) -> list[Document]:
            query, documents = _parts(given)
            return self.compress_documents(documents, query)

        async def arun(given: Mapping[str, Any]) -> list[Document]:
            query, documents = _parts(given)
            return await self.acompress_documents(documents, query)

        return RunnableLambda(run, afunc=arun, name="rankwright")

    def _passages(self, documents: Sequence[Document]) -> list[Passage]:
        check_kind(documents, Document, "Document(page_content=...)")
        return [Passage(d.page_content, title_of(d.metadata, self.title_field)) for d in documents]


def _scored(document: Document, hit: Hit) -> Document:
    return document.model_copy(update={"metadata": {**document.metadata, SCORE: hit.score}})


def _parts(given: Mapping[str, Any]) -> tuple[str, Sequence[Document]]:
    if not isinstance(given, Mapping) or not {"query", "documents"} <= given.keys():
        found = sorted(map(str, given)) if isinstance(given, Mapping) else f"a value of type {type(given).__name__}"
        raise ConfigurationError(
            f"Input of the reranker is {found}; wanted a mapping with 'query' and 'documents'. Put before it: "
            '{"query": RunnablePassthrough(), "documents": retriever}.'
        )
    return given["query"], given["documents"]
