"""What the data recipes yield on the sets at hand: `python -m benchmarks.data_recipes` writes results/data-recipes.md.

Procedure and counts of recipes that only draw are those of the real labels. Teachers are simulated
(tests/simulated_llm.py), no language model is asked. Each set is kept below results/kept as it is done, so the page can
be made in several sittings; all of it takes two minutes. Needs trec_dl19, nfcorpus and scifact in RANKWRIGHT_DATA, else
in ../shared/data.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.embedded.sets import ROOT, scifact_corpus, scifact_test, scifact_training
from benchmarks.kept import WORK, digests, measured
from rankwright.data import load_examples
from rankwright.data.drawing import DrawnSets, Prepared
from rankwright.metrics.orders import ndcg
from rankwright.retrieval import BM25, with_candidates
from rankwright.strategies import Pointwise, Sliding
from rankwright.teaching import FusedLabels, SelfConsistent, Teacher, consistency, fused_labels, prepare
from rankwright.types import Document, Example, Query, RerankRequest
from tests.simulated_llm import SimulatedJudge

PAGE = Path(__file__).parent / "results" / "data-recipes.md"
FOLDER = WORK / "data-recipes"
PACKAGE = Path(__file__).parents[1] / "rankwright"
CODE = [PACKAGE / "data" / "drawing.py", PACKAGE / "teaching.py", PACKAGE / "retrieval.py"]
SEEDS = range(3)
DEPTH = 100
FILTERS: Mapping[str, dict[str, Any]] = {
    "initial, by all labels (default)": {},
    "initial, by the set": {"ideal": "set"},
    "best, by all labels": {"measured": "best"},
    "none": {"measured": "none"},
    "initial, by all labels, shuffled": {"order": "shuffled"},
}
NOISE = (0.5, 1.0, 2.0)
STEADY = (0.0, 0.5)


# --- sets -----------------------------------------------------------------------------------------------------------


def trec_dl19() -> list[Example]:
    folder = ROOT / "trec_dl19"
    return list(load_examples(folder / "bm25_top100.json", "rank_llm", qrels=folder / "qrels.txt").examples)


def nfcorpus(split: str) -> list[Example]:
    dataset = load_examples(ROOT / "nfcorpus" / "nfcorpus.zip", "beir", qrels=split)
    return with_candidates(dataset.examples, BM25(dataset.corpus), DEPTH)


def scifact(corpus: Sequence[Document], questions: Sequence[tuple[str, str, Mapping[str, int]]]) -> list[Example]:
    examples = [Example(Query(query_id, text), (), (), relevance) for query_id, text, relevance in questions]
    return with_candidates(examples, BM25(corpus), DEPTH)


def scifact_train() -> list[Example]:
    corpus, claims = scifact_training()
    return scifact(corpus, [(f"c{i}", text, dict.fromkeys(sorted(ids), 1)) for i, (text, ids) in enumerate(claims)])


SETS: Mapping[str, Callable[[], list[Example]]] = {
    "trec_dl19 (grades 0 to 3)": trec_dl19,
    "nfcorpus train (grades 1 and 2)": lambda: nfcorpus("train"),
    "nfcorpus test (grades 1 and 2)": lambda: nfcorpus("test"),
    "scifact train (relevant or not)": scifact_train,
    "scifact test (relevant or not)": lambda: scifact(scifact_corpus(), scifact_test()),
}


# --- recipes that draw ----------------------------------------------------------------------------------------------


def drawn(name: str) -> dict[str, Any]:
    """Counts of one set, as JSON values."""
    examples = SETS[name]()
    rearank = {
        label: [counts(DrawnSets(seed=seed, **settings).prepare(examples)) for seed in SEEDS]
        for label, settings in FILTERS.items()
    }
    rank_r1 = {recipe: counts(prepare(recipe, examples)) for recipe in ("rank-r1", "rank-r1-v0.2")}
    return {"questions": len(examples), "rearank": rearank, "rank-r1": rank_r1}


def counts(prepared: Prepared) -> dict[str, Any]:
    """Rows, how they are spread over questions, what was left out, and how good the sets are as they stand."""
    per_question: dict[str, int] = {}
    for row in prepared.rows:
        source = str(row.metadata["query_id"])
        per_question[source] = per_question.get(source, 0) + 1
    values = [initial_ndcg(row.example) for row in prepared.rows]
    return {
        "rows": len(prepared.rows),
        "questions": len(per_question),
        "spread": [
            min(per_question.values()),
            float(np.median(list(per_question.values()))),
            max(per_question.values()),
        ],
        "left_out": dict(prepared.left_out),
        "initial": float(np.mean(values)),
        "settled": float(np.mean([value == 1.0 for value in values])),
        "relevant": float(np.mean([sum(g >= 1 for g in row.example.relevance.values()) for row in prepared.rows])),
        "size": float(np.mean([len(row.example.candidates) for row in prepared.rows])),
    }


def initial_ndcg(example: Example) -> float:
    """nDCG@10 of a set as it stands, by its own best order."""
    return consistency([d.doc_id for d in example.candidates], grades_of(example))


def grades_of(example: Example) -> dict[str, int]:
    return {d.doc_id: max(0, example.relevance.get(d.doc_id, 0)) for d in example.candidates}


# --- recipes with teachers ------------------------------------------------------------------------------------------


def teacher(examples: Sequence[Example], kind: Any, noise: float, steady: float, seed: int) -> Teacher:
    grades = {example.query.query_id: example.relevance for example in examples}
    judge = SimulatedJudge(grades, kind, noise=noise, steady=steady, seed=seed)
    return Teacher(judge, Pointwise() if kind == "scores" else Sliding(window=50, stride=25))


def filtered(noise: float, steady: float) -> dict[str, float]:
    """ReasonRank's filter: how much stays, and true nDCG@10 of orders that stay and that go. Means over seeds."""
    examples = trec_dl19()
    truth = {example.query.query_id: example for example in examples}
    found: dict[str, list[float]] = {"kept": [], "gone": []}
    for seed in SEEDS:
        everything = SelfConsistent(relevant_from=2.0, least=0.0).prepare(
            examples,
            teacher(examples, "permutation", noise, steady, seed),
            teacher(examples, "scores", noise, steady, seed),
        )
        for row in everything.rows:
            source = truth[row.example.query.query_id]
            agreement = row.metadata["consistency"]
            assert isinstance(agreement, float)
            grades = {d.doc_id: source.relevance.get(d.doc_id, 0) for d in row.example.candidates}
            if any(grades.values()):
                found["kept" if agreement >= SelfConsistent.least else "gone"].append(
                    consistency(row.example.order, grades)
                )
    return {name: float(np.mean(values)) if values else float("nan") for name, values in found.items()} | {
        "share": len(found["kept"]) / sum(map(len, found.values()))
    }


def fused(noise: float, steady: float) -> dict[str, float]:
    """True nDCG@10 of GroupRank's long lists by points, by the teacher's order and by fused labels; the teachers err
    independently of each other, as two models do. Means over questions and seeds."""
    examples, values = trec_dl19(), {name: list[float]() for name in ("points", "order", "fused")}
    for seed in SEEDS:
        long = [FusedLabels(seed=seed).long_list(example) for example in examples]
        requests = [RerankRequest(example.query, example.candidates) for example in long]
        orders = teacher(examples, "permutation", noise, steady, seed).orders(requests)
        points = teacher(examples, "scores", noise, steady, seed + 100).points(requests)
        for example, order, scores in zip(long, orders, points, strict=True):
            assert not isinstance(order, str)
            labels = fused_labels(order, scores)
            for name, by in (("points", scores), ("fused", labels)):
                values[name].append(true_ndcg(example, sorted(order, key=lambda doc_id, by=by: -by[doc_id])))
            values["order"].append(true_ndcg(example, order))
    return {name: float(np.mean(found)) for name, found in values.items()}


def true_ndcg(example: Example, order: Sequence[str]) -> float:
    grades = grades_of(example)
    return ndcg([grades[doc_id] for doc_id in order], sorted(grades.values(), reverse=True), 10)


# --- the page -------------------------------------------------------------------------------------------------------


def kept(part: str, measure: Callable[[], Any]) -> Any:
    """A part of the page, from an earlier sitting if it was done in one."""
    name = "".join(letter if letter.isalnum() else "-" for letter in part)
    return measured(FOLDER / name, {"part": part, "seeds": len(SEEDS), "code": digests(CODE)}, measure)


def rearank_table(found: Mapping[str, Any]) -> Iterator[str]:
    columns = ("set", "filter", "sets, seeds 0 to 2", "of all draws", "questions", "a question, least, median, most")
    columns += ("initial nDCG@10", "already best", "relevant of 20")
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for name, values in found.items():
        for label, runs in values["rearank"].items():
            rows = [run["rows"] for run in runs]
            least, median, most = runs[0]["spread"]
            first = runs[0]
            yield (
                f"| {name} | {label} | {', '.join(f'{count:,}' for count in rows)} "
                f"| {np.mean(rows) / (50 * values['questions']):.1%} | {first['questions']} of {values['questions']} "
                f"| {least}, {median:g}, {most} | {first['initial']:.3f} | {first['settled']:.1%} "
                f"| {first['relevant']:.1f} |"
            )


def left_out_table(found: Mapping[str, Any]) -> Iterator[str]:
    reasons = list(dict.fromkeys(r for v in found.values() for r in v["rearank"][next(iter(FILTERS))][0]["left_out"]))
    yield "| set | " + " | ".join(reasons) + " |"
    yield "|---|" + "---|" * len(reasons)
    for name, values in found.items():
        left = values["rearank"][next(iter(FILTERS))][0]["left_out"]
        yield f"| {name} | " + " | ".join(f"{left.get(reason, 0):,}" for reason in reasons) + " |"


def rank_r1_table(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| set | recipe | rows | of questions | passages, mean | left out |"
    yield "|---|---|---|---|---|---|"
    for name, values in found.items():
        for recipe, run in values["rank-r1"].items():
            left = ", ".join(f"{times} {what}" for what, times in run["left_out"].items()) or "none"
            yield f"| {name} | {recipe} | {run['rows']:,} | {values['questions']:,} | {run['size']:.1f} | {left} |"


def teacher_tables() -> Iterator[str]:
    pairs = [(noise, steady) for steady in STEADY for noise in NOISE]
    yield "| noise | of it the same in both | kept | nDCG@10 of kept orders | of dropped orders |"
    yield "|---|---|---|---|---|"
    for noise, steady in pairs:
        row = kept(f"reasonrank {noise:g} {steady:g}", lambda noise=noise, steady=steady: filtered(noise, steady))
        gone = f"{row['gone']:.3f}" if row["gone"] == row["gone"] else "-"
        yield f"| {noise:g} | {steady:g} | {row['share']:.1%} | {row['kept']:.3f} | {gone} |"
    yield ""
    yield "GroupRank: nDCG@10 of long lists of 50, by each teacher and fused."
    yield ""
    yield "| noise | of it the same in every prompt | points | order | fused |"
    yield "|---|---|---|---|---|"
    for noise, steady in pairs:
        row = kept(f"grouprank {noise:g} {steady:g}", lambda noise=noise, steady=steady: fused(noise, steady))
        yield f"| {noise:g} | {steady:g} | {row['points']:.3f} | {row['order']:.3f} | {row['fused']:.3f} |"


def page() -> str:
    """The results page."""
    found = {name: kept(name, lambda name=name: drawn(name)) for name in SETS}
    return "\n".join(
        [
            "# Data recipes: what they yield",
            "",
            "`python -m benchmarks.data_recipes`. BM25's first 100 passages of each question (k1 0.9, b 0.4; those of",
            "trec_dl19 as published), real labels, seeds 0 to 2. What a recipe does:",
            "[docs/data-recipes.md](../../docs/data-recipes.md). trec_dl19 and the test sets are for evaluation: they",
            "stand here to show the procedure, nothing is trained on them.",
            "",
            "## REARANK: 50 draws of 20 out of 100",
            "",
            "The filter drops sets whose nDCG@10 is below 0.1: of the order as it stands (initial) or of the best one,",
            "divided by the best order of all labelled passages or of the set. Sets without a relevant passage always",
            "go. Initial nDCG@10 and `already best` (nothing is left to gain, which is no signal for a reward that",
            "measures the gain) are by the set's own best order, seed 0.",
            "",
            *rearank_table(found),
            "",
            "Left out with the default filter, seed 0:",
            "",
            *left_out_table(found),
            "",
            "REARANK's own numbers: 179 questions, 50 draws each, about 12,000 sets kept. These do not agree with each",
            "other: 179 x 50 is 8,950.",
            "",
            "## Rank-R1: one relevant passage among others",
            "",
            "Relevant passages that BM25 missed are not looked up here.",
            "",
            *rank_r1_table(found),
            "",
            "## Simulated teachers on trec_dl19",
            "",
            "A teacher sees a passage's grade (0 to 3) plus a normal deviate times the noise. ReasonRank: order and",
            "points of one teacher, 20 passages, relevant from 2 points, orders with nDCG@10 of 0.4 or more against",
            "these labels stay. A part of the noise's variance may belong to the passage and be the same in both; the",
            "filter cannot see that part. nDCG@10 is against the real grades, among the 20.",
            "",
            *teacher_tables(),
            "",
            "GroupRank's own numbers (BRIGHT): points 36.3, order 38.6, fused 39.8.",
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.exit()
