"""Scorers in two halves: pairs of texts become tokens, tokens become scores. Any thread may do the first half, while
another one scores; and both rerankers without padding share what stands around the second."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Never

import numpy as np

from rankwright.errors import ConfigurationError
from rankwright.rerankers.ranking import Scorer, render
from rankwright.types import RerankRequest, Scored

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Pair:
    """What a model reads of a question and a passage."""

    ids_T: np.ndarray
    types_T: np.ndarray
    """Segment of each token."""
    cut: bool
    """Whether the texts are longer."""


class TokenScorer(Scorer):
    """A Scorer over a tokenizer of the tokenizers library; a subclass computes the scores (`score_tokens`).

    Args:
        tokenizer: belongs to this reranker from now on.
        template: joins title and text.
        max_length: tokens of query and document together.
        side: from which end texts are cut, "right" or "left".
    """

    def __init__(self, tokenizer: Tokenizer, template: str, max_length: int, side: str) -> None:
        self._template = template
        self._max_length = max_length
        self._tokenizer = tokenizer
        self._uncut: Tokenizer | None = None
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length, strategy="longest_first", direction=side)

    def __getstate__(self) -> Never:
        """Raises ConfigurationError: threads, sessions and weights laid out for a processor stay in their process."""
        raise ConfigurationError(
            f"Reranker '{self.name}' was to be pickled or copied, and its backend computes by what stays in its "
            'process; wanted a name, which is opened again. Give its folder or name with load={"backend": ...}.'
        )

    @property
    def template(self) -> str:
        """Joins title and text."""
        return self._template

    @property
    def max_length(self) -> int:
        """Tokens of query and document together."""
        return self._max_length

    @abstractmethod
    def score_tokens(self, pairs: Sequence[Pair]) -> list[float]:
        """Raw logits of pairs that differ, in order."""

    def tokenise(self, requests: Sequence[RerankRequest]) -> list[Pair]:
        """The pairs of all requests in order. Any thread may call it, at any time."""
        texts = [(r.query.text, render(self.template, document)) for r in requests for document in r.documents]
        once = list(dict.fromkeys(texts))
        encodings = self._tokenizer.encode_batch_fast(once) if once else []
        pair_of = {
            text: Pair(np.array(e.ids, np.int32), np.array(e.type_ids, np.int32), bool(e.overflowing))
            for text, e in zip(once, encodings, strict=True)
        }
        return [pair_of[text] for text in texts]

    def score_pairs(self, pairs: Sequence[Pair]) -> list[float]:
        """Raw logits in order; tokens that come twice are scored once, so that their scores are equal."""
        keys = [(pair.ids_T.tobytes(), pair.types_T.tobytes()) for pair in pairs]
        once = dict(zip(keys, pairs, strict=True))
        scores = dict(zip(once, self.score_tokens(list(once.values())), strict=True))
        return [scores[key] for key in keys]

    def score_batch(self, requests: Sequence[RerankRequest]) -> list[Scored]:
        """One Scored per request, in order."""
        pairs = self.tokenise(requests)
        rows = zip(self.score_pairs(pairs), pairs, strict=True)
        return [_scored(list(islice(rows, len(request.documents)))) for request in requests]

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Where the tokens of each text begin and end, in characters, without special tokens. Any thread may ask."""
        if self._uncut is None:  # a copy, because how a tokenizer cuts is a state of it
            uncut = type(self._tokenizer).from_str(self._tokenizer.to_str())
            uncut.no_truncation()
            self._uncut = uncut
        return [encoding.offsets for encoding in self._uncut.encode_batch(list(texts), add_special_tokens=False)]


def _scored(rows: Sequence[tuple[float, Pair]]) -> Scored:
    """Scores with their pairs, as a Scorer gives them."""
    return Scored(
        tuple(score for score, _ in rows),
        tuple(len(pair.ids_T) for _, pair in rows),
        tuple(pair.cut for _, pair in rows),
    )
