"""Scores become rankings, whatever computed them: the base of all rerankers that score. It needs no torch, so that a
server, a page or an integration can hold a reranker without it."""

from __future__ import annotations

import contextlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from rankwright.errors import ModelError
from rankwright.types import Document, Query, Ranking, RerankRequest, Scored, as_documents, as_query

log = logging.getLogger(__name__)

DEFAULT_TEMPLATE = "{title}: {text}"
COUNTS = ("pairs_seen", "pairs_cut", "first_cut")
"""What a Scorer has counted so far, by attribute."""


def render(template: str, document: Document) -> str:
    """Text that stands for a document; a document without a title is its bare text.

    >>> render("{title}: {text}", Document("1", "It rains.", "Weather"))
    'Weather: It rains.'
    >>> render("{title}: {text}", Document("1", "It rains."))
    'It rains.'
    """
    if not document.title:
        return document.text
    # Not str.format: braces inside a passage or title are text.
    return re.sub(r"\{(title|text)\}", lambda field: getattr(document, field[1]), template)


class Scorer(ABC):
    """A Reranker that gives each document a score of its own; a subclass says which (`score_batch`)."""

    pairs_seen = 0
    pairs_cut = 0
    first_cut = ""
    """The first pair that was cut, for a message: its tokens and ids."""
    warns_of_cut = True
    """Whether a warning is logged when pairs were cut for the first time; a program that says so by itself sets it to
    False."""
    against_cuts = (
        'Split the passages, or open the model with a larger max_length or, where it is a cross-encoder, windows="max".'
    )
    """What the warning advises."""
    temperature = 1.0
    """What raw scores are divided by where they are shown between 0 and 1 (`rankwright.scale.relevance`); 1 where
    `rankwright calibrate` has fitted none."""
    threshold: float | None = None
    """The least value on that scale at which a document is best called relevant; None where none was fitted."""

    @property
    @abstractmethod
    def name(self) -> str:
        """How it was asked for, as it belongs in a signature."""

    @property
    @abstractmethod
    def max_length(self) -> int:
        """Tokens that are read at once: of query and document, or of a whole prompt."""

    @property
    def reach(self) -> float:
        """Tokens of query and document behind which nothing is read: `max_length`, or infinity where long documents
        are read in windows."""
        return self.max_length

    @abstractmethod
    def score_batch(self, requests: Sequence[RerankRequest]) -> list[Scored]:
        """One Scored per request, in order; a request without documents has an empty one.

        What is not finite comes back as it is: `checked` names it.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, max_length={self.max_length})"

    @property
    def share_cut(self) -> float:
        """Share of pairs of query and document that were cut to fit into max_length in all scoring so far."""
        return self.pairs_cut / self.pairs_seen if self.pairs_seen else 0.0

    def rerank_batch(self, requests: Sequence[RerankRequest]) -> list[Ranking]:
        """One Ranking per request, best first, equal scores in input order. The first time that pairs are cut, a
        warning is logged with the share of them.

        Raises:
            ModelError: a score is not finite.
        """
        found = list(zip(requests, self.score_batch(requests), strict=True))
        for request, scored in found:
            self._count(request, scored)
        self._warn_of_cut()
        return [ranked(request, checked(self.name, request, scored)) for request, scored in found]

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """What is scored inside, such as probes that nobody asked for, leaves the counts as they are."""
        before = {name: getattr(self, name) for name in COUNTS}
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def rerank(self, query: str | Query, documents: Sequence[str | Document], top_k: int | None = None) -> Ranking:
        """Orders strings or Documents for one query.

        Args:
            query: the question.
            documents: passages; plain strings get the ids "0", "1", ... by position.
            top_k: keep only the best; None keeps all.
        """
        return self.rerank_batch([RerankRequest(as_query(query), as_documents(documents))])[0].best(top_k)

    def _count(self, request: RerankRequest, scored: Scored) -> None:
        """Takes note of what was cut; nothing to do where scoring itself counts."""
        self.pairs_seen += len(scored.cut)
        self.pairs_cut += sum(scored.cut)
        if any(scored.cut) and not self.first_cut:
            document = request.documents[scored.cut.index(True)]
            self.first_cut = (
                f"over {self.max_length} tokens with passage '{document.doc_id}' for question "
                f"'{request.query.query_id}'"
            )

    def _warn_of_cut(self) -> None:
        """Says once that pairs were cut: a score does not tell."""
        if self.pairs_cut and self.warns_of_cut:
            self.warns_of_cut = False
            log.warning(
                "%.1f %% of the pairs that '%s' has scored are longer than its %d tokens (the first: %s); what lies "
                "beyond is not read. %s",
                100 * self.share_cut,
                self.name,
                self.max_length,
                self.first_cut,
                self.against_cuts,
            )


def checked(name: str, request: RerankRequest, scored: Scored) -> Scored:
    """What it is given, if every score is finite.

    Raises:
        ModelError: one is not.
    """
    for document, score in zip(request.documents, scored.scores, strict=True):
        if score - score != 0:  # NaN or infinite
            raise ModelError(
                f"Model '{name}' scored document '{document.doc_id}' of query '{request.query.query_id}' {score}; "
                "wanted a finite number. The weights are damaged or training diverged: use an earlier checkpoint."
            )
    return scored


def ranked(request: RerankRequest, scored: Scored) -> Ranking:
    """The documents of a request by falling score, equal scores in input order."""
    documents, scores = request.documents, scored.scores
    order = sorted(range(len(documents)), key=lambda i: -scores[i])
    return Ranking(request.query.query_id, tuple(documents[i].doc_id for i in order), tuple(scores[i] for i in order))
