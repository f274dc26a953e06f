from __future__ import annotations

from math import log2

import pytest

from rankwright.errors import ConfigurationError, DataError
from rankwright.metrics.ranking import queries_without_relevant, ranking_metrics
from rankwright.types import Ranking


def ranking(query_id: str, *doc_ids: str) -> Ranking:
    return Ranking(query_id, doc_ids, tuple(0.0 for _ in doc_ids))


LABELS = {"q": {"a": 1, "c": 2, "missing": 1}, "none": {"a": 0}}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Order b, c, a: gains 0, 2, 1; the ideal order has gains 2, 1, 1.
        ("nDCG@10", (2 / log2(3) + 1 / log2(4)) / (2 / log2(2) + 1 / log2(3) + 1 / log2(4))),
        ("nDCG@2", (2 / log2(3)) / (2 / log2(2) + 1 / log2(3))),
        ("RR@10", 1 / 2),
        ("RR@1", 0.0),
        ("recall@2", 1 / 3),
        ("recall@20", 2 / 3),
        ("AP", (1 / 2 + 2 / 3) / 3),
        ("AP@2", (1 / 2) / 3),
    ],
)
def test_values(name: str, expected: float) -> None:
    assert ranking_metrics([ranking("q", "b", "c", "a")], LABELS, [name]) == {name: {"q": pytest.approx(expected)}}


def test_equal_scores_keep_our_order() -> None:
    first = ranking_metrics([ranking("q", "a", "x", "y", "z")], {"q": {"a": 1}}, ["RR@10"])
    last = ranking_metrics([ranking("q", "z", "y", "x", "a")], {"q": {"a": 1}}, ["RR@10"])
    assert (first["RR@10"]["q"], last["RR@10"]["q"]) == (1.0, 1 / 4)


def test_queries_without_a_relevant_document_have_no_value() -> None:
    values = ranking_metrics([ranking("none", "a"), ranking("unlabelled", "a"), ranking("q", "a")], LABELS, ["RR@10"])
    assert values == {"RR@10": {"q": 1.0}}
    assert queries_without_relevant(["none", "q", "unlabelled"], LABELS) == ["none", "unlabelled"]
    assert ranking_metrics([ranking("none", "a")], LABELS, ["AP"]) == {"AP": {}}


def test_an_empty_ranking_found_nothing() -> None:
    assert ranking_metrics([ranking("q"), ranking("p", "a")], {"q": {"a": 1}, "p": {"a": 1}}, ["AP"]) == {
        "AP": {"q": 0.0, "p": 1.0}
    }


@pytest.mark.parametrize("name", ["nDCG", "recall", "RR", "ndcg@10", "P@5", "nDCG@0", "nDCG@10 "])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="unknown"):
        ranking_metrics([ranking("q", "a")], LABELS, [name])


def test_repeated_queries_and_documents_are_refused() -> None:
    with pytest.raises(DataError, match="two rankings"):
        ranking_metrics([ranking("q", "a"), ranking("q", "c")], LABELS, ["AP"])
    with pytest.raises(DataError, match="3 documents, of which 2 differ"):
        ranking_metrics([ranking("q", "a", "c", "a")], LABELS, ["AP"])
