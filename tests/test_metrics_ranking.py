from __future__ import annotations

from math import log2
from pathlib import Path

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


@pytest.mark.parametrize(
    "ids", [("", " "), ("a\x00b", "a\x00c"), ("\ud800", "\udfff"), ("a\tb", "a\nb"), ("é", "e\u0301")]
)
def test_ids_may_be_any_text(ids: tuple[str, str]) -> None:
    first, second = ids
    rankings = [ranking(first, first, second), ranking(second, first, second)]
    relevance = {first: {first: 1}, second: {second: 1}}
    assert ranking_metrics(rankings, relevance, ["RR@10"]) == {"RR@10": {first: 1.0, second: 1 / 2}}


@pytest.mark.parametrize("name", ["nDCG", "recall", "RR", "ndcg@10", "P@5", "nDCG@0", "nDCG@10 "])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="unknown"):
        ranking_metrics([ranking("q", "a")], LABELS, [name])


def test_repeated_queries_and_documents_are_refused() -> None:
    with pytest.raises(DataError, match="two rankings"):
        ranking_metrics([ranking("q", "a"), ranking("q", "c")], LABELS, ["AP"])
    with pytest.raises(DataError, match="3 documents, of which 2 differ"):
        ranking_metrics([ranking("q", "a", "c", "a")], LABELS, ["AP"])


@pytest.mark.parametrize(("run", "expected"), [("bm25.run", 0.5058), ("peer_runs/rankvicuna-7b.run", 0.6682)])
def test_published_runs_have_their_published_value(data_root: Path, run: str, expected: float) -> None:
    relevance: dict[str, dict[str, int]] = {}
    for line in (data_root / "trec_dl19" / "qrels.txt").read_text().splitlines():
        query_id, _, doc_id, grade = line.split()
        relevance.setdefault(query_id, {})[doc_id] = int(grade)
    ranked: dict[str, list[str]] = {}
    for line in (data_root / "trec_dl19" / run).read_text().splitlines():
        query_id, _, doc_id, *_ = line.split()
        ranked.setdefault(query_id, []).append(doc_id)
    rankings = [ranking(query_id, *doc_ids) for query_id, doc_ids in ranked.items()]
    values = ranking_metrics(rankings, relevance, ["nDCG@10"])["nDCG@10"].values()
    assert sum(values) / len(values) == pytest.approx(expected, abs=5e-5)
