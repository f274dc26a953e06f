"""Loaders and BM25 against figures measured elsewhere on the same files (nDCG@10, see the data's README)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import ir_measures
import pytest
from ir_measures import nDCG

from rankwright.data import describe, load_examples, read_trec_run
from rankwright.retrieval import BM25, with_candidates
from rankwright.types import Document, Example, Ranking, ScoredDoc


def ndcg_at_10(examples: Iterable[Example], run: Sequence[ScoredDoc]) -> float:
    labels = {example.query.query_id: dict(example.relevance) for example in examples}
    return float(ir_measures.calc_aggregate([nDCG @ 10], labels, run)[nDCG @ 10])


def run_of(examples: Iterable[Example]) -> list[ScoredDoc]:
    """The candidates in their order, as a run."""
    return [row for example in examples for row in _ranking(example.query.query_id, example.candidates).scored_docs()]


def best_first(example: Example) -> list[Document]:
    return sorted(example.candidates, key=lambda document: -example.relevance.get(document.doc_id, 0))


def _ranking(query_id: str, documents: Sequence[Document]) -> Ranking:
    return Ranking(query_id, tuple(document.doc_id for document in documents), (0.0,) * len(documents))


def test_hotpotqa_with_bm25_over_the_pooled_passages(data_root: Path) -> None:
    sets = [load_examples(data_root / "hotpotqa" / f"{part}.jsonl", "hotpotqa") for part in ("train", "dev")]
    corpus = {document.doc_id: document for dataset in sets for document in dataset.corpus}
    examples = with_candidates([e for dataset in sets for e in dataset.examples], BM25(corpus.values()), 100)
    assert (len(examples), len(corpus)) == (600, 5913)
    assert ndcg_at_10(examples, run_of(examples)) == pytest.approx(0.761, abs=0.001)
    perfect = [row for e in examples for row in _ranking(e.query.query_id, best_first(e)).scored_docs()]
    assert ndcg_at_10(examples, perfect) == pytest.approx(0.975, abs=0.001)
    found = [
        all(doc_id in {d.doc_id for d in e.candidates[:20]} for doc_id, grade in e.relevance.items() if grade > 0)
        for e in examples
    ]
    assert sum(found) / len(found) == pytest.approx(0.84, abs=0.005)


def test_dl19_first_stage_through_rank_llm_and_through_trec(data_root: Path, tmp_path: Path) -> None:
    folder = data_root / "trec_dl19"
    given = load_examples(folder / "bm25_top100.json", "rank_llm", qrels=folder / "qrels.txt")
    assert (len(given.examples), {len(example.candidates) for example in given.examples}) == (43, {100})
    assert ndcg_at_10(given.examples, run_of(given.examples)) == pytest.approx(0.5058, abs=0.00005)
    perfect = [row for e in given.examples for row in _ranking(e.query.query_id, best_first(e)).scored_docs()]
    assert ndcg_at_10(given.examples, perfect) == pytest.approx(0.8922, abs=0.00005)

    corpus = tmp_path / "passages.jsonl"
    rows = [{"doc_id": d.doc_id, "text": d.text} for d in given.corpus]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    through_trec = load_examples(folder / "bm25.run", "trec", qrels=folder / "qrels.txt", corpus=corpus)
    by_id = {example.query.query_id: example for example in given.examples}
    assert {example.query.query_id: example for example in through_trec.examples} == by_id


def test_dl19_runs_of_peers(data_root: Path) -> None:
    folder = data_root / "trec_dl19"
    labelled = load_examples(folder / "bm25_top100.json", "rank_llm", qrels=folder / "qrels.txt").examples

    def score(path: Path) -> float:
        return ndcg_at_10(labelled, [row for ranking in read_trec_run(path) for row in ranking.scored_docs()])

    assert score(folder / "peer_runs" / "rankvicuna-7b.run") == pytest.approx(0.6682, abs=0.00005)
    rankgpt = [score(path) for path in sorted((folder / "peer_runs").glob("rankgpt-3.5-*.run"))]
    assert sum(rankgpt) / len(rankgpt) == pytest.approx(0.6834, abs=0.00005)


# format, file, questions, passages (None: not stated by the README)
SETS = [
    ("2wiki", "2wikimultihopqa/train.json", 500, 3112),
    ("musique", "musique/train.json", 100, None),
    ("dpr", "nq_open/nq-open-oracle.jsonl.gz", 2655, 2600),
    ("squad", "xquad_en/xquad.en.json", 1190, 240),
    ("beir", "nfcorpus/nfcorpus.zip", 323, 3633),
]


@pytest.mark.parametrize(("format", "file", "questions", "passages"), SETS)
def test_real_files_load_without_a_bad_row(
    data_root: Path, format: str, file: str, questions: int, passages: int | None
) -> None:
    dataset = load_examples(data_root / file, format, need_answers=format != "beir")
    report = describe(dataset)
    assert (report.questions, report.skipped, report.warnings) == (questions, 0, ())
    assert passages is None or report.passages == passages
    assert report.with_labels == questions
    assert report.labels_outside_corpus == 0
    if format in ("dpr", "squad"):  # the gold passage is given, so nearly every answer can be found
        assert report.answerable_share is not None
        assert report.answerable_share > 0.98
