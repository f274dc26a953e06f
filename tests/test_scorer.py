"""What every reranker that scores has of its base, seen on a small class without torch."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence

import pytest

from rankwright.errors import ModelError
from rankwright.rerankers.ranking import Scorer
from rankwright.types import Document, Query, Reranker, RerankRequest, Scored


class Lengths(Scorer):
    """Scores a document by its letters; more than eight are cut."""

    @property
    def name(self) -> str:
        return "lengths"

    @property
    def max_length(self) -> int:
        return 8

    def score_batch(self, requests: Sequence[RerankRequest]) -> list[Scored]:
        return [self._scored([len(document.text) for document in request.documents]) for request in requests]

    def _scored(self, lengths: Sequence[int]) -> Scored:
        scores = tuple(math.nan if n == 0 else float(min(n, 8)) for n in lengths)
        return Scored(scores, tuple(min(n, 8) for n in lengths), tuple(n > 8 for n in lengths))


def test_a_scorer_is_printed_in_one_line() -> None:
    assert repr(Lengths()) == "Lengths('lengths', max_length=8)"


def test_scores_become_a_ranking_and_equal_ones_keep_their_order() -> None:
    ranking = Lengths().rerank("q", ["ab", "abcdefghij", "a", "ab", "abcdefgh"])
    assert (ranking.doc_ids, ranking.scores) == (("1", "4", "0", "3", "2"), (8.0, 8.0, 2.0, 2.0, 1.0))
    assert Lengths().rerank("q", ["ab", "abc"], top_k=1).doc_ids == ("1",)
    assert isinstance(Lengths(), Reranker)


def test_cuts_are_counted_for_each_object_alone() -> None:
    scorer, other = Lengths(), Lengths()
    requests = [RerankRequest(Query(q, "q"), (Document("s", "a"), Document("l", "a" * 9))) for q in ("x", "y")]
    scorer.rerank_batch(requests)
    assert (scorer.pairs_seen, scorer.pairs_cut, scorer.share_cut) == (4, 2, 0.5)
    assert scorer.first_cut == "over 8 tokens with passage 'l' for question 'x'"
    assert (other.pairs_seen, other.share_cut, other.first_cut) == (0, 0.0, "")


def test_cuts_are_told_once_with_their_share(caplog: pytest.LogCaptureFixture) -> None:
    scorer, silent = Lengths(), Lengths()
    silent.warns_of_cut = False
    for one in (scorer, silent):
        one.rerank("q", ["a"])
        assert caplog.messages == []
    for _ in range(2):
        scorer.rerank("q", ["a", "a" * 9, "a"])
        silent.rerank("q", ["a" * 9])
    (message,) = caplog.messages
    assert message == (
        "25.0 % of the pairs that 'lengths' has scored are longer than its 8 tokens (the first: over 8 tokens with "
        "passage '1' for question '0'); what lies beyond is not read. Split the passages, or open the model with a "
        'larger max_length or, where it is a cross-encoder, windows="max".'
    )
    assert silent.pairs_cut == 2


def test_what_is_scored_uncounted_leaves_no_trace() -> None:
    scorer = Lengths()
    scorer.warns_of_cut = False
    scorer.rerank("q", ["a", "a" * 9])
    before = vars(scorer).copy()
    with scorer.uncounted():
        scorer.rerank("q", ["a" * 10])
        assert scorer.pairs_seen == 3
    with pytest.raises(ModelError), scorer.uncounted():
        scorer.rerank("q", [""])
    assert vars(scorer) == before


def test_a_score_that_is_not_finite_is_named() -> None:
    with pytest.raises(ModelError, match="Model 'lengths' scored document '1' of query '0' nan; wanted a finite"):
        Lengths().rerank("q", ["a", "", "b"])


def test_no_torch_is_needed() -> None:
    program = "import sys, tests.test_scorer as t; t.Lengths().rerank('q', ['a']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
