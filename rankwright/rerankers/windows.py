"""Passages that are longer than a model reads, scored whole: in overlapping windows, each as a passage of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol, get_args

from rankwright.errors import ConfigurationError
from rankwright.rerankers.ranking import Scorer, render
from rankwright.types import Document, Query, RerankRequest, Scored

Windows = Literal["max", "mean"]
WINDOWS: tuple[Windows, ...] = get_args(Windows)
OVERLAP = 0.25
"""Of a window's tokens, that stand in the one before too: a sentence on the seam is read whole in one of them."""
SPARE = 4
"""Tokens that a window leaves free: words that were cut out may come apart differently than inside their text."""


class Spanning(Protocol):
    """What windows need to know of a Scorer's tokenizer."""

    @property
    def template(self) -> str:
        """Joins title and text."""
        ...

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Where the tokens of each text begin and end, in characters, without special tokens."""
        ...


def tells_spans(scorer: Scorer) -> bool:
    """Whether a Scorer says where its tokens stand (`Spanning`); slow tokenizers and prompts do not."""
    fast = getattr(getattr(scorer, "tokenizer", None), "is_fast", True)
    return fast and hasattr(scorer, "spans") and hasattr(scorer, "template")


def shortened(scorer: Spanning, documents: Sequence[Document], most: int) -> list[Document]:
    """The documents, each with the beginning of its text that makes at most so many tokens together with its title."""
    found = list(documents)
    # A token is a byte at least, so most documents need no tokenizer.
    long = [i for i, d in enumerate(documents) if len(render(scorer.template, d).encode()) > most]
    if not long:
        return found
    wholes, texts, titles = (
        scorer.spans([show(documents[i]) for i in long])
        for show in (
            lambda d: render(scorer.template, d),
            lambda d: d.text,
            lambda d: render(scorer.template, replace(d, text="")),
        )
    )
    for i, whole, text, title in zip(long, wholes, texts, titles, strict=True):
        kept = text[: max(0, most - len(title))]
        if len(whole) > most and len(kept) < len(text):
            found[i] = replace(documents[i], text=documents[i].text[: kept[-1][1] if kept else 0])
    return found


class WindowedScorer(Scorer):
    """A Scorer whose long documents are read in windows; the score of a document is the best or mean one of them.

    Each window carries the document's title. What is still cut, because question and title leave no room, is counted
    as before.

    Args:
        inner: scores the windows; it knows its tokens (`spans`).
        how: "max" or "mean".

    Raises:
        ConfigurationError: another word, or a Scorer that does not tell where tokens stand.
    """

    against_cuts = "Shorten questions and titles: they leave no room for a window."

    def __init__(self, inner: Scorer, how: Windows) -> None:
        if how not in WINDOWS:
            raise ConfigurationError(f"Windows are '{how}'; wanted {' or '.join(WINDOWS)}, or None to cut.")
        if not tells_spans(inner):
            raise ConfigurationError(
                f"Reranker '{inner.name}' does not tell where its tokens stand, so that its passages cannot be divided "
                "into windows; wanted a cross-encoder with a fast tokenizer. Leave windows out."
            )
        self.inner = inner
        self._spanning: Spanning = inner  # pyright: ignore[reportAttributeAccessIssue]
        self.how: Windows = how
        self._specials: int | None = None

    @property
    def name(self) -> str:
        """The inner one's, and how windows are joined."""
        return f"{self.inner.name}|windows-{self.how}"

    @property
    def max_length(self) -> int:
        """Tokens of one window and the question together."""
        return self.inner.max_length

    @property
    def reach(self) -> float:
        """All tokens of a document are read."""
        return math.inf

    @property
    def template(self) -> str:
        """Joins title and text."""
        return self._spanning.template

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Where the tokens of each text begin and end, as the inner one tells."""
        return self._spanning.spans(texts)

    def score_batch(self, requests: Sequence[RerankRequest]) -> list[Scored]:
        """One Scored per request; `tokens` are those of all windows."""
        parts = [[self._windows(request, document) for document in request.documents] for request in requests]
        flat = [
            replace(request, documents=tuple(window for windows in part for window in windows))
            for request, part in zip(requests, parts, strict=True)
        ]
        found = self.inner.score_batch(flat)
        return [self._joined(scored, [len(w) for w in part]) for scored, part in zip(found, parts, strict=True)]

    def _joined(self, scored: Scored, counts: Sequence[int]) -> Scored:
        scores, tokens, cut = [], [], []
        at = 0
        for count in counts:
            own = slice(at, at + count)
            values = scored.scores[own]
            # Not max(): NaN must stay visible.
            scores.append(sum(values) / count if self.how == "mean" or sum(values) != sum(values) else max(values))
            tokens.append(sum(scored.tokens[own]))
            cut.append(any(scored.cut[own]))
            at += count
        return Scored(tuple(scores), tuple(tokens), tuple(cut))

    def _windows(self, request: RerankRequest, document: Document) -> list[Document]:
        """The document itself where it fits, else documents that hold a part of its text each."""
        inner = self._spanning
        whole, bare = render(inner.template, document), render(inner.template, replace(document, text=""))
        asked, full = (len(spans) for spans in inner.spans([request.query.text, whole]))
        if asked + full + self._overhead() <= self.max_length:
            return [document]
        spans, title = inner.spans([document.text, bare])
        size = self.max_length - asked - len(title) - self._overhead() - SPARE
        if size < 1:
            return [document]  # the question or the title alone is too long: it is cut, and counted
        step = max(1, size - int(size * OVERLAP))
        starts = [0]
        while starts[-1] + size < len(spans):
            starts.append(starts[-1] + step)
        texts = [document.text[spans[at][0] : spans[min(at + size, len(spans)) - 1][1]] for at in starts]
        return [replace(document, doc_id=f"{document.doc_id}\x00{n}", text=text) for n, text in enumerate(texts)]

    def _overhead(self) -> int:
        """Special tokens of a pair."""
        if self._specials is None:
            empty = RerankRequest(Query("0", ""), (Document("0", ""),))
            self._specials = self.inner.score_batch([empty])[0].tokens[0]
        return self._specials
