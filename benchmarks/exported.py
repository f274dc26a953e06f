"""What int8 costs in ranking and saves in time: the reference, exported, on four public sets.

    python -m benchmarks.exported [--share 1.0]

BM25's candidates are scored by the fp32 and the int8 form of one export, question by question in turn, in one thread;
time is that of the processor. Needs trec_dl19, hotpotqa, nfcorpus and scifact in RANKWRIGHT_DATA, else in
../shared/data, and the extras embedded and export.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import rankwright
from benchmarks.embedded.sets import ROOT, scifact_corpus, scifact_test
from benchmarks.kept import processor_words
from rankwright.data import load_examples
from rankwright.metrics.labels import labels_of
from rankwright.rerankers.exporting import Parity, compare
from rankwright.rerankers.onnx import OnnxReranker
from rankwright.retrieval import BM25, with_candidates
from rankwright.types import Example, Query, RerankRequest

PAGE = Path(__file__).parent / "results" / "exported.md"


def trec_dl19() -> list[Example]:
    folder = ROOT / "trec_dl19"
    return list(load_examples(folder / "bm25_top100.json", "rank_llm", qrels=folder / "qrels.txt").examples)


def hotpotqa() -> list[Example]:
    return list(load_examples(ROOT / "hotpotqa" / "dev.jsonl", "hotpotqa").examples)


def nfcorpus() -> list[Example]:
    dataset = load_examples(ROOT / "nfcorpus" / "nfcorpus.zip", "beir", qrels="test")
    return with_candidates(dataset.examples, BM25(dataset.corpus), 100)


def scifact() -> list[Example]:
    examples = [Example(Query(query_id, text), (), (), relevance) for query_id, text, relevance in scifact_test()]
    return with_candidates(examples, BM25(scifact_corpus()), 100)


SETS: Mapping[str, tuple[Callable[[], list[Example]], int, int]] = {
    "trec_dl19": (trec_dl19, 43, 100),
    "hotpotqa dev": (hotpotqa, 300, 10),
    "nfcorpus test": (nfcorpus, 100, 50),
    "scifact test": (scifact, 100, 50),
}
"""Name -> examples, how many of them, and of their candidates."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="Of the questions and of the candidates, each.")
    share = parser.parse_args().share
    rows = []
    with tempfile.TemporaryDirectory(prefix="exported-") as place:
        folder = Path(place) / "export"
        rankwright.export("reference", folder)
        forms = {form: OnnxReranker.from_folder(folder, form=form, threads=1) for form in ("fp32", "int8")}
        for name, (load, questions, depth) in SETS.items():
            examples = load()[: max(2, round(questions * share))]
            rows.append(_row(name, forms, examples, max(10, round(depth * share))))
            print(rows[-1], flush=True)
    PAGE.write_text(_page(rows, share), encoding="utf-8")


def _row(name: str, forms: Mapping[str, OnnxReranker], examples: list[Example], depth: int) -> str:
    requests = [RerankRequest(e.query, e.candidates[:depth]) for e in examples]
    relevance = {e.query.query_id: labels_of(e) for e in examples}
    scores: dict[str, list[tuple[float, ...]]] = {form: [] for form in forms}
    seconds = dict.fromkeys(forms, 0.0)
    for request in requests:
        for form, scorer in forms.items():
            begun = time.process_time()
            scores[form].append(scorer.score_batch([request])[0].scores)
            seconds[form] += time.process_time() - begun
    found: Parity = compare(requests, relevance, scores["fp32"], scores["int8"])
    each = {form: 1000 * total / found.pairs for form, total in seconds.items()}
    before, after = found.ndcg_before or 0.0, found.ndcg_after or 0.0
    return (
        f"| {name} | {found.questions} | {found.pairs} | {found.rank_correlation:.4f} | {found.largest_error:.2f} of "
        f"{found.spread:.2f} | {before:.4f} | {after:.4f} | {after - before:+.4f} | {each['fp32']:.1f} | "
        f"{each['int8']:.1f} | {each['fp32'] / each['int8']:.2f}x |"
    )


def _page(rows: list[str], share: float) -> str:
    return "\n".join(
        [
            "# int8 against fp32, exported",
            "",
            "```",
            f"python -m benchmarks.exported --share {share:g}",
            "```",
            "",
            f"The embedded reference on {processor_words()}, one thread; milliseconds are of processor time and a",
            "pair, the two forms question by question in turn. Rank",
            "correlation is Spearman's, averaged over the questions; error is the largest absolute difference of a raw "
            "score, beside their standard",
            "deviation. What was tried beside it: [docs/experiments.md](../../docs/experiments.md).",
            "",
            "| set | questions | pairs | rank correlation | largest error | nDCG@10 fp32 | int8 | change | fp32 ms | "
            "int8 ms | faster |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
