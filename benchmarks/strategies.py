"""What each strategy reaches and takes on TREC DL 2019: `python -m benchmarks.strategies` writes results/strategies.md.

The judge is simulated (tests/simulated_llm.py): it knows the labels, with more or less noise. Nothing is kept between
runs, because all of it takes two minutes of one processor and depends on seeds alone. Needs trec_dl19 in
RANKWRIGHT_DATA, else in ../shared/data.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.embedded.sets import ROOT
from rankwright.data import load_examples, read_trec_run
from rankwright.metrics.ranking import ranking_metrics
from rankwright.metrics.significance import bootstrap_interval, paired_permutation_test
from rankwright.strategies import (
    Asking,
    BubbleSort,
    Fused,
    Groupwise,
    HeapSort,
    Pointwise,
    Sliding,
    Strategy,
    StrategyReport,
    TopK,
    run_strategies,
)
from rankwright.types import Judgement, Permutation, Ranking, RerankRequest
from tests.simulated_llm import PROMPT_WORDS, TOKENS_PER_WORD, WRITTEN, Kind, SimulatedJudge

PAGE = Path(__file__).parent / "results" / "strategies.md"
FOLDER = ROOT / "trec_dl19"
METRIC = "nDCG@10"
NOISE = (0.25, 0.5, 1.0, 2.0)
SEEDS = range(5)
STEADY = 0.5
MALFORMED = 0.1
REFERENCE = {"first stage": 0.5058, "rankvicuna-7b": 0.6682, "rankgpt-3.5, mean of five": 0.6834, "best order": 0.8922}


@dataclass(frozen=True)
class Pivot:
    """A rival for TopK, in our words: the first window's document at place top_k is compared with all others, in
    windows of its own; what stands above it is ranked anew. After Parry et al., "Top-Down Partitioning for Efficient
    List-Wise Ranking", 2024, https://arxiv.org/abs/2405.14589, without their budget."""

    top_k: int = 10
    window: int = 20

    @property
    def name(self) -> str:
        return f"pivot(top_k={self.top_k},window={self.window})"

    def rank(self, request: RerankRequest) -> Asking[Ranking]:
        order = yield from self._partitioned(request, list(range(len(request.documents))))
        doc_ids = tuple(request.documents[place].doc_id for place in order)
        return Ranking(request.query.query_id, doc_ids, tuple(float(-i) for i in range(len(order))))

    def _partitioned(self, request: RerankRequest, places: list[int]) -> Asking[list[int]]:
        first = places[: self.window]
        (judgement,) = yield [_window(request, first)]
        first = _ordered(judgement, first)
        if len(places) <= self.window:
            return first
        above, pivot, below = first[: self.top_k - 1], first[self.top_k - 1], first[self.top_k :]
        size = self.window - 1
        others = [[pivot, *places[start : start + size]] for start in range(self.window, len(places), size)]
        judgements = yield [_window(request, places) for places in others]
        for judgement, shown in zip(judgements, others, strict=True):
            order = _ordered(judgement, shown)
            above += order[: order.index(pivot)]
            below += order[order.index(pivot) + 1 :]
        if len(above) >= self.top_k:
            above = yield from self._partitioned(request, above)
        return [*above, pivot, *below]


def _window(request: RerankRequest, places: Sequence[int]) -> RerankRequest:
    return RerankRequest(request.query, tuple(request.documents[place] for place in places))


def _ordered(judgement: Judgement, places: Sequence[int]) -> list[int]:
    assert isinstance(judgement, Permutation)
    return [places[i] for i in judgement.order]


STRATEGIES: Mapping[str, tuple[Strategy, Kind]] = {
    "sliding, 20 by 10": (Sliding(), "permutation"),
    "sliding, 20 by 10, two passes": (Sliding(passes=2), "permutation"),
    "sliding, 10 by 5": (Sliding(window=10, stride=5), "permutation"),
    "topk, window 20": (TopK(), "permutation"),
    "topk, window 20, none waiting": (TopK(waiting=0), "permutation"),
    "pivot, window 20 (rival)": (Pivot(), "permutation"),
    "heapsort, 19 children": (HeapSort(), "choice"),
    "heapsort, 19 children, three votes": (HeapSort(votes=3), "choice"),
    "heapsort, 9 children": (HeapSort(children=9), "choice"),
    "heapsort, 3 children": (HeapSort(children=3), "choice"),
    "bubblesort, 19 children": (BubbleSort(), "choice"),
    "pointwise": (Pointwise(), "scores"),
    "groupwise, 20": (Groupwise(), "scores"),
    "groupwise, 20, four repeats": (Groupwise(repeats=4), "scores"),
    "groupwise, 20, fused 0.2 (z-score)": (Fused(Groupwise(), 0.2, "z-score"), "scores"),
    "sliding, 20 by 10, fused 0.2 (z-score)": (Fused(Sliding(), 0.2, "z-score"), "permutation"),
}
PLACES = {"sliding, 10 by 5": 5, "pointwise": 100, "groupwise, 20": 100, "groupwise, 20, four repeats": 100}
"""Places that a strategy puts right for a judge that never errs, where they are not ten."""
COMPARED = (
    ("topk, window 20", "sliding, 20 by 10"),
    ("topk, window 20, none waiting", "sliding, 20 by 10"),
    ("topk, window 20", "pivot, window 20 (rival)"),
)
EXACT = [name for name in STRATEGIES if "fused" not in name]
UNREAD = {
    **{name: STRATEGIES[name] for name in EXACT},
    "heapsort, 19 children, unread first-stage": (HeapSort(unread="first-stage"), "choice"),
}


@dataclass(frozen=True)
class World:
    """The questions with BM25's first hundred, and their labels."""

    requests: list[RerankRequest]
    relevance: dict[str, Mapping[str, int]]

    def values(self, rankings: Sequence[Ranking]) -> dict[str, float]:
        """query_id -> nDCG@10."""
        return ranking_metrics(rankings, self.relevance, [METRIC])[METRIC]

    def mean(self, rankings: Sequence[Ranking]) -> float:
        return float(np.mean(list(self.values(rankings).values())))

    def is_best(self, ranking: Ranking, places: int) -> bool:
        """Whether the grades of the first places are the best that the candidates allow."""
        grades = [self.relevance[ranking.query_id].get(doc_id, 0) for doc_id in ranking.doc_ids]
        return grades[:places] == sorted(grades, reverse=True)[:places]

    def ordered(self, request: RerankRequest, best_first: bool) -> Ranking:
        """The candidates in the order of the first stage, or of the labels."""
        grades = self.relevance[request.query.query_id] if best_first else {}
        documents = sorted(request.documents, key=lambda document: -grades.get(document.doc_id, 0))
        return Ranking(request.query.query_id, tuple(d.doc_id for d in documents), (0.0,) * len(documents))

    def shuffled(self) -> list[RerankRequest]:
        """The same candidates in an order that says nothing."""
        return [
            replace(r, documents=tuple(Random(r.query.query_id).sample(r.documents, len(r.documents))))
            for r in self.requests
        ]


def world() -> World:
    examples = load_examples(FOLDER / "bm25_top100.json", "rank_llm", qrels=FOLDER / "qrels.txt").examples
    requests = [RerankRequest(example.query, example.candidates, example.first_stage) for example in examples]
    return World(requests, {example.query.query_id: example.relevance for example in examples})


def asked(
    here: World, strategy: Strategy, kind: Kind, requests: Sequence[RerankRequest] | None = None, **options: float
) -> tuple[list[Ranking], StrategyReport]:
    """Rankings by a simulated judge, and what they took."""
    judge = SimulatedJudge(here.relevance, kind, **options)  # pyright: ignore[reportArgumentType]
    return run_strategies(strategy, judge, here.requests if requests is None else requests)


def judged(*args: Any, **options: Any) -> tuple[dict[str, float], StrategyReport]:
    """The same with nDCG@10 by query for the rankings."""
    rankings, report = asked(*args, **options)
    return args[0].values(rankings), report


# --- the page ------------------------------------------------------------------------------------------------------


def figures(here: World) -> Iterator[str]:
    """The published runs beside the figures that were measured elsewhere."""
    runs = {path.stem: here.mean(read_trec_run(path)) for path in sorted((FOLDER / "peer_runs").glob("*.run"))}
    five = [value for name, value in runs.items() if name.startswith("rankgpt-3.5-")]
    found = {
        "first stage": here.mean([here.ordered(request, False) for request in here.requests]),
        "rankvicuna-7b": runs["rankvicuna-7b"],
        "rankgpt-3.5, mean of five": float(np.mean(five)),
        "best order": here.mean([here.ordered(request, True) for request in here.requests]),
    }
    yield "| run | nDCG@10 | reference | equal to four digits |"
    yield "|---|---|---|---|"
    for name, value in found.items():
        equal = "yes" if f"{value:.4f}" == f"{REFERENCE[name]:.4f}" else "no"
        yield f"| {name} | {value:.4f} | {REFERENCE[name]:.4f} | {equal} |"
    yield ""
    yield f"The five runs of rankgpt-3.5: {', '.join(f'{value:.4f}' for value in five)}."


def knowing(here: World) -> Iterator[str]:
    """A judge that never errs, on BM25's order and on none."""
    left = "strategy | exact places | reached | nDCG@10 | calls | depth | input tokens | output tokens"
    yield f"| {left} | shuffled: nDCG@10 | calls | depth |"
    yield "|---" * 11 + "|"
    shuffled = here.shuffled()
    for name in EXACT:
        strategy, kind = STRATEGIES[name]
        rankings, report = asked(here, strategy, kind)
        values = here.values(rankings)
        others, other = judged(here, strategy, kind, shuffled)
        exact = PLACES.get(name, 10)
        reached = sum(here.is_best(ranking, exact) for ranking in rankings)
        yield (
            f"| {name} | {exact} | {reached} of {len(rankings)} | {_mean(values):.4f} | "
            f"{_spread(report.calls_per_query)} | {_spread(report.depth_per_query)} | "
            f"{report.input_tokens / len(values):,.0f} | {report.output_tokens / len(values):,.0f} | "
            f"{_mean(others):.4f} | {_spread(other.calls_per_query)} | {_spread(other.depth_per_query)} |"
        )


def noisy(here: World, steady: float) -> Iterator[str]:
    """nDCG@10 with noise, its deviation over seeds; then TopK against its rivals, question by question."""
    found = {
        (name, noise): [judged(here, *STRATEGIES[name], noise=noise, steady=steady, seed=seed) for seed in SEEDS]
        for name in STRATEGIES
        for noise in NOISE
    }
    yield "| strategy | calls | depth | " + " | ".join(f"noise {noise:g}" for noise in NOISE) + " |"
    yield "|---|---|---|" + "---|" * len(NOISE)
    for name in STRATEGIES:
        reports = [report for noise in NOISE for _, report in found[name, noise]]
        cells = [_over_seeds([values for values, _ in found[name, noise]]) for noise in NOISE]
        calls = np.mean([report.calls / len(here.requests) for report in reports])
        depth = np.mean([report.mean_depth for report in reports])
        yield f"| {name} | {calls:.1f} | {depth:.1f} | " + " | ".join(cells) + " |"
    yield ""
    for ours, rival in COMPARED:
        yield f"`{ours}` minus `{rival}`, means over seeds by question, 95 % bootstrap interval, permutation test:"
        for noise in NOISE:
            pairs = zip(found[ours, noise], found[rival, noise], strict=True)
            gains = np.mean([[a[query_id] - b[query_id] for query_id in a] for (a, _), (b, _) in pairs], axis=0)
            low, high = bootstrap_interval(gains, seed=0, resamples=10_000)
            p = paired_permutation_test(gains, seed=0, permutations=10_000)
            yield f"- noise {noise:g}: {gains.mean():+.4f} [{low:+.4f}, {high:+.4f}], p {p:.3f}"
        yield ""


def unread(here: World) -> Iterator[str]:
    """A judge that never errs, of whose answers a tenth cannot be read."""
    yield "| strategy | nDCG@10 | lost |"
    yield "|---|---|---|"
    best = here.mean([here.ordered(request, True) for request in here.requests])
    for name, (strategy, kind) in UNREAD.items():
        rows = [judged(here, strategy, kind, malformed=MALFORMED, seed=seed)[0] for seed in SEEDS]
        yield f"| {name} | {_over_seeds(rows)} | {best - np.mean([_mean(row) for row in rows]):.4f} |"


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values())))


def _over_seeds(rows: Sequence[Mapping[str, float]]) -> str:
    means = [_mean(row) for row in rows]
    return f"{np.mean(means):.4f} ± {np.std(means, ddof=1):.4f}"


def _spread(counts: Sequence[int]) -> str:
    if min(counts) == max(counts):
        return f"{counts[0]}"
    return f"{np.mean(counts):.1f} ({min(counts)} to {max(counts)})"


def page(here: World) -> str:
    """The results page."""
    written = ", ".join(f"{kind} {frame} + {each} a document" for kind, (frame, each) in WRITTEN.items())
    return "\n".join(
        [
            "# Strategies on TREC DL 2019",
            "",
            "`python -m benchmarks.strategies`: 43 questions, BM25's first 100 passages, NIST's labels (0 to 3), and",
            "nDCG@10 with linear gains. The judge is simulated, no language model is asked. It sees the grade of a",
            "passage plus noise: a normal deviate times the noise level. Equal grades keep the order of the prompt.",
            "Depth is the longest chain of calls that wait for each other. Means over questions, least and most in",
            f"brackets; ± is the standard deviation over {len(SEEDS)} seeds. What a strategy does:",
            "[docs/strategies.md](../../docs/strategies.md).",
            "",
            "Rows are fair to each other as far as the judge is equally good at all three kinds of answer. A language",
            "model is not: what it errs by when it sees one passage or twenty must be measured with it.",
            "",
            "## Published runs, and the limits",
            "",
            *figures(here),
            "",
            "## A judge that never errs",
            "",
            "A strategy promises the best order of its first places (`exact places`) and reached it for so many",
            "questions. Left: BM25's order. Right: the same candidates shuffled. Tokens of a question are",
            f"estimated: {TOKENS_PER_WORD} a word of a frame of {PROMPT_WORDS} words, of the query twice and of each",
            f"passage, and 4 for the passage's identifier; answers without reasoning: {written}.",
            "",
            *knowing(here),
            "",
            "## Judges that err, each time anew",
            "",
            "Noise is drawn anew for every prompt and passage. Calls and depth are means over all noise levels; the",
            "labels' range is 0 to 3. Published runs above lie where the noise is between 1 and 2.",
            "",
            *noisy(here, 0.0),
            "## Judges that repeat themselves",
            "",
            f"The same noise, but {STEADY:g} of its variance belongs to the passage and is the same in every prompt,",
            "which no number of calls mends.",
            "",
            *noisy(here, STEADY),
            "## Answers that cannot be read",
            "",
            f"No noise; each answer is unreadable with probability {MALFORMED:g}.",
            "",
            *unread(here),
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(world()), encoding="utf-8")
    sys.exit()
