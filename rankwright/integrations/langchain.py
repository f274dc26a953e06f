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
    options,
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
_Asked = tuple[list[Document], tuple[str, list[Passage]]]
"""Documents of one input, and the question with what the reranker reads of them."""


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
    score_threshold: float | None = None
    """Drops documents with a lower score, of the same scale."""
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
        score_threshold: float | None = None,
        title_field: str | None = None,
        load: dict[str, Any] | None = None,
    ) -> None:
        check_options(top_n, scale)
        super().__init__(
            **{
                "model": model,
                "top_n": top_n,
                "scale": scale,
                "score_threshold": score_threshold,
                "title_field": title_field,
                "load": load or {},
            }
        )
        self._opened = Opened(model, self.load)
        _ = self._opened.reranker  # a wrong name is told here, not with the first question

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The best documents as copies, best first."""
        documents = list(documents)
        hits = self._opened.rank(query, self._passages(documents), **options(self))
        return [_scored(documents[hit.position], hit) for hit in hits]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The same, in another thread."""
        documents = list(documents)
        hits = await self._opened.rank_async(query, self._passages(documents), **options(self))
        return [_scored(documents[hit.position], hit) for hit in hits]

    def as_runnable(self) -> Runnable[Mapping[str, Any], list[Document]]:
        """A step of a chain: from {"query": ..., "documents": [...]} to the best documents. `batch` and `abatch` give
        the questions of all inputs to the reranker at once."""
        return _Step(self)

    def _compress_all(self, given: Sequence[Mapping[str, Any]]) -> list[Exception | list[Document]]:
        """One result per input of `as_runnable`, in order; an input that is none has its error in its place."""
        asked = [self._asked(one) for one in given]
        sound = [pair for pair in asked if not isinstance(pair, Exception)]
        hits = self._opened.rank_all([question for _, question in sound], **options(self))
        return _joined(asked, hits)

    async def _acompress_all(self, given: Sequence[Mapping[str, Any]]) -> list[Exception | list[Document]]:
        """The same, in another thread."""
        asked = [self._asked(one) for one in given]
        sound = [pair for pair in asked if not isinstance(pair, Exception)]
        questions = [question for _, question in sound]
        return _joined(asked, await self._opened.rank_all_async(questions, **options(self)))

    def _asked(self, given: Mapping[str, Any]) -> _Asked | Exception:
        try:
            query, found = _parts(given)
            documents = list(found)
            return documents, (query, self._passages(documents))
        except ConfigurationError as error:
            return error

    def _passages(self, documents: Sequence[Document]) -> list[Passage]:
        check_kind(documents, Document, "Document(page_content=...)")
        return [Passage(d.page_content, title_of(d.metadata, self.title_field)) for d in documents]


class _Step(RunnableLambda[Mapping[str, Any], list[Document]]):
    """A reranker as a runnable. LangChain's own batches call a runnable once for every input."""

    def __init__(self, reranker: RankwrightReranker) -> None:
        self._reranker = reranker

        def run(given: Mapping[str, Any]) -> list[Document]:
            query, documents = _parts(given)
            return reranker.compress_documents(documents, query)

        async def arun(given: Mapping[str, Any]) -> list[Document]:
            query, documents = _parts(given)
            return await reranker.acompress_documents(documents, query)

        super().__init__(run, afunc=arun, name="rankwright")

    def batch(
        self, inputs: list[Mapping[str, Any]], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[list[Document]]:
        """One result per input, in order, of one call of the reranker."""
        every = self._reranker._compress_all
        return self._batch_with_config(every, inputs, config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self, inputs: list[Mapping[str, Any]], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[list[Document]]:
        """The same, in another thread."""
        every = self._reranker._acompress_all
        return await self._abatch_with_config(every, inputs, config, return_exceptions=return_exceptions, **kwargs)


def _joined(asked: Sequence[_Asked | Exception], hits: Sequence[Sequence[Hit]]) -> list[Exception | list[Document]]:
    rest = iter(hits)
    return [
        one if isinstance(one, Exception) else [_scored(one[0][hit.position], hit) for hit in next(rest)]
        for one in asked
    ]


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
