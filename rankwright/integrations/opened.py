"""What all integrations share: a reranker given by name or opened, and its scores from any thread or event loop."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, get_args
from weakref import WeakKeyDictionary

from rankwright.errors import ConfigurationError, MissingDependencyError
from rankwright.rerankers import load
from rankwright.scale import relevance
from rankwright.types import Document, Query, Ranking, Reranker, RerankRequest

T = TypeVar("T")

Model = str | Path | Reranker
"""A folder, a hub name, "reference", or a reranker that is open."""
Scale = Literal["raw", "sigmoid"]
"""Scores as the model gives them (logits), or pressed between 0 and 1 as by the server: sigmoid(score / temperature),
with the temperature of `rankwright calibrate` where there is one. The order is the same."""
PAIRS_AT_ONCE = 4096
"""Pairs of query and passage that are given to a reranker in one call, unless one query has more."""


class Passage(NamedTuple):
    """What a reranker reads of a library's document."""

    text: str
    title: str = ""


class Hit(NamedTuple):
    """A passage in a ranking."""

    position: int
    """In the list that was ranked, from 0. Not an id: libraries allow the same id twice."""
    score: float


def missing(library: str, extra: str, error: ImportError) -> MissingDependencyError:
    """The error for a library that cannot be imported."""
    return MissingDependencyError(
        f'{library} cannot be imported ({error}); run pip install "rankwright[{extra}]".', name=error.name
    )


class Opened:
    """A reranker, opened when it is first needed, and how it was asked for. Safe for threads, event loops, pickling.

    A reranker scores one call at a time: tokenizers are not safe for several threads, and a model uses all processors
    anyway. Asynchronous calls wait in a thread of the reranker's own, so that they neither hold the event loop nor fill
    the threads that a program has for everything else; a call that is cancelled while it waits is never made.

    Args:
        model: a folder, a hub name, "reference", or an opened reranker.
        settings: further arguments of `rankwright.load`, for a model by name.
    """

    def __init__(self, model: Model, settings: Mapping[str, Any]) -> None:
        by_name = isinstance(model, str | Path)
        if not by_name and not isinstance(model, Reranker):
            raise ConfigurationError(
                f"Model is a value of type {type(model).__name__}; wanted a folder, a hub name or a reranker. "
                'Give for example "runs/mine/model", or what rankwright.load returns.'
            )
        self.model = str(model) if by_name else model
        self.settings = dict(settings)
        self._reranker = None if by_name else model

    @property
    def reranker(self) -> Reranker:
        """The open reranker.

        Raises:
            ResourceNotFoundError: nothing is found under its name.
            ModelError: what is found is not a reranker.
        """
        if self._reranker is None:
            with _OPENING:
                if self._reranker is None:  # another thread may have been quicker
                    self._reranker = load(str(self.model), **self.settings)
        return self._reranker

    @property
    def name(self) -> str:
        """As it was asked for, or as an opened reranker calls itself."""
        return self.model if isinstance(self.model, str) else self.model.name

    def named(self, what: str) -> str:
        """The name, for a file from which it will be opened again.

        Raises:
            ConfigurationError: the reranker was given open, so that a file cannot say where it came from.
        """
        if isinstance(self.model, str):
            return self.model
        raise ConfigurationError(
            f"Reranker '{self.model.name}' was given open to {what}; a file can only hold a name. "
            "Save the reranker and give its folder."
        )

    def rank(
        self,
        query: str,
        passages: Sequence[Passage],
        *,
        top_k: int | None,
        scale: Scale,
        threshold: float | None = None,
    ) -> list[Hit]:
        """The passages of one query, best first, equal scores in the order given."""
        return self.rank_all([(query, passages)], top_k=top_k, scale=scale, threshold=threshold)[0]

    async def rank_async(
        self,
        query: str,
        passages: Sequence[Passage],
        *,
        top_k: int | None,
        scale: Scale,
        threshold: float | None = None,
    ) -> list[Hit]:
        """The same, in another thread."""
        return (await self.rank_all_async([(query, passages)], top_k=top_k, scale=scale, threshold=threshold))[0]

    def rank_all(
        self,
        asked: Sequence[tuple[str, Sequence[Passage]]],
        *,
        top_k: int | None,
        scale: Scale,
        threshold: float | None = None,
    ) -> list[list[Hit]]:
        """One list per query, in order, without passages whose score on the scale is below the threshold.

        Raises:
            ConfigurationError: a query or a text is not a string; top_k or scale is none.
            ModelError: the reranker cannot be opened, or its score is not finite.
        """
        check_options(top_k, scale)
        requests = [_request(str(number), *one) for number, one in enumerate(asked)]
        if not any(request.documents for request in requests):
            return [[] for _ in requests]
        reranker = self.reranker
        with _turns(reranker).lock:
            rankings = reranker.rerank_batch(requests)
        temperature = getattr(reranker, "temperature", None) or 1.0
        every = [_hits(ranking, top_k, scale, temperature) for ranking in rankings]
        return [[hit for hit in hits if threshold is None or hit.score >= threshold] for hits in every]

    async def rank_all_async(
        self,
        asked: Sequence[tuple[str, Sequence[Passage]]],
        *,
        top_k: int | None,
        scale: Scale,
        threshold: float | None = None,
    ) -> list[list[Hit]]:
        """The same, in another thread."""
        ranked = partial(self.rank_all, asked, top_k=top_k, scale=scale, threshold=threshold)
        if not any(passages for _, passages in asked):
            return ranked()
        loop = asyncio.get_running_loop()
        # Opening may take long as well; until then there is no thread of the reranker's own.
        reranker = self._reranker
        if reranker is None:
            reranker = await loop.run_in_executor(None, lambda: self.reranker)
        context = contextvars.copy_context()
        return await loop.run_in_executor(_turns(reranker).thread, context.run, ranked)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open reranker where its name can open it again."""
        return {**self.__dict__, "_reranker": None if isinstance(self.model, str) else self._reranker}


def parts(asked: Iterable[tuple[str, list[T]]]) -> Iterator[list[tuple[str, list[T]]]]:
    """Whole queries, as many at once as make one call of a reranker."""
    part: list[tuple[str, list[T]]] = []
    pairs = 0
    for query, rows in asked:
        if part and pairs + len(rows) > PAIRS_AT_ONCE:
            yield part
            part, pairs = [], 0
        part.append((query, rows))
        pairs += len(rows)
    if part:
        yield part


class Keeping(Protocol):
    """What the classes for LangChain and LlamaIndex say alike of the passages that are kept."""

    top_n: int | None
    scale: Scale
    score_threshold: float | None


def options(kept: Keeping) -> dict[str, Any]:
    """The same as arguments of `Opened.rank`."""
    return {"top_k": kept.top_n, "scale": kept.scale, "threshold": kept.score_threshold}


def check_options(top_k: int | None, scale: Scale) -> None:
    """Raises ConfigurationError where one of them cannot be."""
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise ConfigurationError(
            f"Number of passages to keep is {top_k!r}; wanted a whole number from 1, or None to keep all."
        )
    if scale not in get_args(Scale):
        raise ConfigurationError(f"Scale of scores is {scale!r}; wanted 'raw' (logits) or 'sigmoid' (0 to 1).")


def check_kind(documents: Sequence[Any], kind: type, instead: str) -> None:
    """Raises ConfigurationError where one of a library's documents is something else, and says what to give instead."""
    for position, document in enumerate(documents):
        if not isinstance(document, kind):
            raise ConfigurationError(
                f"Document at position {position} is a value of type {type(document).__name__}; wanted a "
                f"{kind.__name__} of the library. Give {instead}."
            )


def title_of(fields: Mapping[str, Any] | None, title_field: str | None) -> str:
    """The title that a library's document has in its metadata; empty where there is none."""
    value = (fields or {}).get(title_field) if title_field else None
    return "" if value is None else str(value)


def readable(text: str) -> str:
    """The text, with a replacement character for every half of a character: what comes out of a PDF may hold some, and
    tokenizers take no string that does.

    >>> readable("rain \\ud83c") == "rain \\ufffd", readable("\\ud83c\\udf27") == "\\U0001f327"
    (True, True)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _request(query_id: str, query: str, passages: Sequence[Passage]) -> RerankRequest:
    """Positions are the ids: libraries allow the same id twice."""
    if not isinstance(query, str):
        raise ConfigurationError(f"Query is a value of type {type(query).__name__}; wanted a string. Give its text.")
    for position, passage in enumerate(passages):
        if not isinstance(passage.text, str):
            raise ConfigurationError(
                f"Document at position {position} has a text of type {type(passage.text).__name__}; wanted a string. "
                "Leave documents without text out, or give them one."
            )
    documents = tuple(Document(str(i), readable(text), readable(title)) for i, (text, title) in enumerate(passages))
    return RerankRequest(Query(query_id, readable(query)), documents)


def _hits(ranking: Ranking, top_k: int | None, scale: Scale, temperature: float) -> list[Hit]:
    best = ranking.best(top_k)
    scores = relevance(best.scores, temperature) if scale == "sigmoid" else best.scores
    return [Hit(int(doc_id), score) for doc_id, score in zip(best.doc_ids, scores, strict=True)]


# --- one call at a time ------------------------------------------------------------------------------------------


class _Turns:
    """Who may call a reranker now, and the thread in which asynchronous callers wait."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread = ThreadPoolExecutor(1, "rankwright")  # starts its thread with the first call


_OPENING = threading.Lock()
_FINDING = threading.Lock()
_TURNS: WeakKeyDictionary[Reranker, _Turns] = WeakKeyDictionary()


def _turns(reranker: Reranker) -> _Turns:
    """Those of a reranker: it may be in several integrations at once."""
    with _FINDING:
        if reranker not in _TURNS:
            _TURNS[reranker] = _Turns()
        return _TURNS[reranker]


def _forget() -> None:
    """A forked process has none of the threads, and nobody to open the locks."""
    global _OPENING, _FINDING
    _OPENING, _FINDING = threading.Lock(), threading.Lock()
    _TURNS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
