"""The questions that RRPO's authors ask, at the size of the protocol: `python -m benchmarks.paper run` (resumable, a
quarter of an hour a row and seed on two cores), then `... page`.

Rows are trained as those of benchmarks/protocol.py, with the same questions, candidates, learning rate and number of
questions seen. Rankings of the test side are kept, so that they can be read anew: by another reader, in another order,
with another number of passages.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import kept, protocol
from benchmarks.kept import DEVICE, measured, read
from rankwright.metrics.significance import bootstrap_interval, paired_permutation_test
from rankwright.types import Context, Example, Outcome, Reader, RerankRequest

PAGE = Path(__file__).parent / "results" / "paper.md"
_TRAINED = Path(__file__).parent / "work" / "another-reader"
READERS = {"another": _TRAINED / "phase-1.pt", "weak": _TRAINED / "phase-0.pt"}
"""Readers beside the embedded one, from `python -m benchmarks.embedded.train_reader --seed 1 --bf16 --out
benchmarks/work/another-reader`: all of its training with another seed and not cut down to an adapter; and the same as
it was after cloze questions alone, before it saw a written one."""
DEEPEST = 5
LOOP = {"learning_rate": 1e-4, "eval_steps": 38, "interpolation": 0.5, **protocol.MIXED}
TWICE = LOOP | {"eval_steps": 76}
"""Two updates of each rollout: as many questions, twice the steps."""


@dataclass(frozen=True)
class Row:
    """One way to train."""

    rrpo: Mapping[str, Any] = field(default_factory=dict)
    """Settings of RRPO that differ from the defaults, which are the form that the paper prints but for the ratio's
    denominator, the advantage and the KL: three steps, four samples, the reference's greedy ranking as baseline."""
    loop: Mapping[str, Any] = field(default_factory=lambda: dict(LOOP))
    teacher: str = ""
    """Who reads while training, a name in READERS; empty for the embedded reader."""
    kept_as: str = ""
    """Name of the rows of the protocol's page, where it is one of them."""


ROWS: dict[str, Row] = {
    "RRPO": Row(),
    "RRPO, one step, question": Row(kept_as="rrpo"),
    "listwise bandit": Row({"action": "ranking"}),
    "PPO with a critic": Row({"baseline": "critic", "advantage": "gae", "inner_epochs": 2}, TWICE),
    "supervised (gold labels)": Row(kept_as="supervised"),
    "RRPO from a weak reader": Row(teacher="weak"),
    "GRPO's advantages": Row({"scale": "deviation"}),
    "group mean": Row({"baseline": "group"}),
    "leave one out": Row({"baseline": "leave_one_out"}),
    "no baseline": Row({"baseline": "none"}),
    "advantage gae": Row({"advantage": "gae"}),
    "advantage marginal": Row({"advantage": "marginal"}),
    "KL sampled": Row({"kl": "sampled"}),
    "each rollout twice": Row({"inner_epochs": 2}, TWICE),
    "each rollout twice, ratio to the reference": Row({"inner_epochs": 2, "ratio_anchor": "reference"}, TWICE),
    "train_k 1": Row({"train_k": 1}),
    "train_k 2": Row({"train_k": 2}),
    "train_k 5": Row({"train_k": 5}),
}
MAIN = (
    "RRPO",
    "RRPO, one step, question",
    "listwise bandit",
    "PPO with a critic",
    "supervised (gold labels)",
    "RRPO from a weak reader",
)
"""Rows with every seed and every reading; the others have one seed, and the reader of the training alone."""
FIXED = ("first-stage", "reference", "gold-first")
READINGS = {
    "top 3": {"top_k": 3},
    "top 1": {"top_k": 1},
    "top 5": {"top_k": 5},
    "top 3, best passage last": {"top_k": 3, "turned": True},
    "top 3, another reader": {"top_k": 3, "reader": "another"},
    "top 3, weak reader": {"top_k": 3, "reader": "weak"},
}


def names_of(row: str) -> list[str]:
    """Folders of a row's seeds; a fixed order has one."""
    if row in FIXED:
        return [row]
    plain = "".join(c if c.isalnum() else "-" for c in row).strip("-")
    return [f"{ROWS[row].kept_as or f'paper-{plain}'}-{seed}" for seed in seeds_of(row)]


def seeds_of(row: str) -> tuple[int, ...]:
    """The seeds it is trained with; a fixed order has one."""
    return protocol.SEEDS if row in MAIN else protocol.SEEDS[:1]


def settings_of(row: str) -> dict[str, Any]:
    """As the protocol takes them."""
    if row in FIXED:
        return {}
    if ROWS[row].kept_as:
        return protocol.settings_of(names_of(row)[0]) or {}
    own = {"rrpo": dict(ROWS[row].rrpo), "loop": dict(ROWS[row].loop)}
    return own | ({"teacher": ROWS[row].teacher} if ROWS[row].teacher else {})


def best_documents(model: Any, examples: Sequence[Example]) -> dict[str, list[str]]:
    """query_id -> doc_ids of the first passages."""
    requests = [RerankRequest(example.query, example.candidates) for example in examples]
    return {ranking.query_id: list(ranking.doc_ids[:DEEPEST]) for ranking in model.rerank_batch(requests)}


def rank(name: str, settings: Mapping[str, Any]) -> None:
    """Keeps the test rankings of one model."""
    from rankwright.evaluation import FirstStage, GoldFirst
    from rankwright.rerankers import load

    def model(examples: Sequence[Example]) -> Any:
        if name == "first-stage":
            return FirstStage()
        if name == "gold-first":
            return GoldFirst(examples)
        place = "reference" if name == "reference" else str(protocol.WORK / name / "model")
        return protocol.mixed(load(place, device=DEVICE, max_length=protocol.LENGTH))

    def ranked() -> dict[str, list[str]]:
        examples = protocol.splits()["test"]
        return best_documents(model(examples), examples)

    measured(protocol.WORK / name / "rankings.json", protocol.made_with(settings), ranked)


def train_row(name: str, seed: int, settings: Mapping[str, Any]) -> None:
    """Trains one seed of a row that is not the protocol's."""
    teacher = reader_of(settings["teacher"]) if "teacher" in settings else None
    path = protocol.WORK / name / "train.json"
    measured(
        path,
        protocol.made_with(settings),
        lambda: protocol.train_one("rrpo", seed, protocol.splits(), settings, name, teacher=teacher),
    )


def reader_of(name: str) -> Any:
    """The embedded reader, or one of READERS."""
    from benchmarks.embedded.report import full_reader
    from rankwright.readers import EmbeddedReader

    return full_reader(READERS[name]) if name else EmbeddedReader(device=DEVICE)


def score(
    rankings: Mapping[str, Sequence[str]], examples: Sequence[Example], reading: Mapping[str, Any], reader: Reader
) -> dict[str, float]:
    """query_id -> F1 of the answer from the first passages, read as `reading` says."""
    from rankwright.rewards import answer_reward

    contexts = []
    for example in examples:
        documents = {document.doc_id: document for document in example.candidates}
        chosen = [documents[doc_id] for doc_id in rankings[example.query.query_id][: reading["top_k"]]]
        contexts.append(Context(example.query, tuple(chosen[::-1] if reading.get("turned") else chosen)))
    results = reader.answer(contexts)
    outcomes = [
        Outcome(e, c, r, len(c.documents), e.query.query_id)
        for e, c, r in zip(examples, contexts, results, strict=True)
    ]
    found = {o.example.query.query_id: v.value for o, v in zip(outcomes, answer_reward("f1")(outcomes), strict=True)}
    if None in found.values():
        sys.exit(f"Reader {reader.name} failed; nothing is kept.")
    return {query_id: float(value or 0.0) for query_id, value in found.items()}


def readings_of(row: str) -> list[str]:
    """How its rankings are read."""
    return [words for words, reading in READINGS.items() if row in (*FIXED, *MAIN) or set(reading) == {"top_k"}]


def read_anew(row: str, name: str, settings: Mapping[str, Any]) -> None:
    """Every reading of one model's rankings."""
    from rankwright.llms.cache import ReadStore
    from rankwright.readers import CachedReader

    examples = protocol.splits()["test"]
    rankings = read(protocol.WORK / name / "rankings.json", protocol.made_with(settings))
    with ReadStore(protocol.WORK / "reads.sqlite") as store:
        for words in readings_of(row):
            if not missing(reading := READINGS[words]):
                reader = CachedReader(reader_of(reading.get("reader", "")), store, run=f"paper-{words}")
                measured(
                    read_at(name, words),
                    made_with(settings, words),
                    lambda reading=reading, reader=reader: score(rankings, examples, reading, reader),
                )
                print(name, words, flush=True)


def missing(reading: Mapping[str, Any]) -> bool:
    """Whether it asks for a reader that was not trained here."""
    return "reader" in reading and not READERS[reading["reader"]].exists()


def made_with(settings: Mapping[str, Any], words: str) -> dict[str, Any]:
    """What decides a reading."""
    return protocol.made_with(settings) | {"reading": dict(READINGS[words])}


def read_at(name: str, words: str) -> Path:
    """File of one reading."""
    return protocol.WORK / name / f"read-{''.join(c if c.isalnum() else '-' for c in words)}.json"


def values(names: Sequence[str], settings: Mapping[str, Any], words: str) -> tuple[dict[str, float] | None, int]:
    """Per-question mean over the seeds that are there, and their number."""
    found = [part for name in names if (part := read(read_at(name, words), made_with(settings, words))) is not None]
    if not found:
        return None, 0
    return {q: float(np.mean([part[q] for part in found])) for q in found[0]}, len(found)


def difference(row: str, base: str, words: str) -> tuple[float, float, float, float] | None:
    """Mean difference in F1 over the same questions, its interval and p; None where one of them is missing."""
    per, _ = values(names_of(row), settings_of(row), words)
    other, _ = values(names_of(base), settings_of(base), words)
    if per is None or other is None:
        return None
    differences = np.array([per[q] - other[q] for q in other])
    low, high = bootstrap_interval(differences, seed=0, resamples=10_000)
    return float(differences.mean()), low, high, paired_permutation_test(differences, seed=0, permutations=100_000)


def cell(row: str, words: str) -> str:
    """Mean, difference to the reference with its interval and p."""
    if words not in readings_of(row):
        return "-"
    per, seeds = values(names_of(row), settings_of(row), words)
    found = difference(row, "reference", words)
    if per is None or found is None:
        return "not run"
    mean, low, high, p = found
    marked = "" if seeds == len(protocol.SEEDS) else f" ({seeds} of {len(protocol.SEEDS)} seeds)"
    return f"{np.mean(list(per.values())):.3f}; {mean:+.4f} [{low:+.4f}, {high:+.4f}], p {p:.3f}{marked}"


@dataclass(frozen=True)
class Claim:
    """What the paper found, as a difference between two rows that must be positive."""

    words: str
    row: str = ""
    base: str = "reference"
    reading: str = "top 3"
    why_not: str = ""
    """Why it cannot be tested here; then the rest is not used."""

    def line(self) -> str:
        """Held where the interval lies above 0; not held otherwise, with what was seen."""
        if self.why_not:
            return f"| {self.words} | not testable here | {self.why_not} |"
        what = f"{self.row} minus {self.base}, {self.reading}"
        if (found := difference(self.row, self.base, self.reading)) is None:
            return f"| {self.words} | not run | {what} |"
        mean, low, high, p = found
        held = "held" if low > 0 else "not held: the opposite" if high < 0 else "not held: no difference shown"
        return f"| {self.words} | {held} | {what}: {mean:+.4f} [{low:+.4f}, {high:+.4f}], p {p:.3f} |"


NO_LLM = "needs a language model; this machine has the embedded reader alone"
CLAIMS = (
    Claim("RRPO lifts the reranker it starts from", "RRPO"),
    Claim("... at top 5", "RRPO", reading="top 5"),
    Claim("... by as much as to be significant (paper: p < 0.01), with our settings", "RRPO, one step, question"),
    Claim("three steps while training are better than one", "RRPO", "train_k 1"),
    Claim("... and better than five", "RRPO", "train_k 5"),
    Claim("the trained ranking helps a reader that it never saw", "RRPO", reading="top 3, another reader"),
    Claim("... and a weaker one", "RRPO", reading="top 3, weak reader"),
    Claim("a weak reader's rewards still teach", "RRPO from a weak reader"),
    Claim("gains hold in another order of the passages", "RRPO", reading="top 3, best passage last"),
    Claim("a listwise bandit is better at top 1", "listwise bandit", "RRPO", "top 1"),
    Claim("... and worse at top 3", "RRPO", "listwise bandit"),
    Claim("PPO with a critic is better at top 1", "PPO with a critic", "RRPO", "top 1"),
    Claim("... and worse at top 3", "RRPO", "PPO with a critic"),
    Claim("gains hold with two other prompts of the reader", why_not="the embedded reader has no prompt"),
    Claim("RRPO adds to Query2Doc's gain", why_not=NO_LLM),
    Claim("RRPO is ahead of RankZephyr", why_not=NO_LLM),
    Claim(
        "gains hold on 2WikiMultiHopQA and MuSiQue",
        why_not="the embedded reader answers few such questions even from their gold passages",
    ),
)


def fixed_cell(name: str, words: str) -> str:
    per, _ = values([name], {}, words)
    return "not run" if per is None else f"{np.mean(list(per.values())):.3f}"


def page() -> str:
    """The results page."""
    lines = [
        "# The paper's questions at the size of this protocol",
        "",
        "```",
        "python -m benchmarks.paper run",
        "python -m benchmarks.paper page",
        "```",
        "",
        "Protocol of [protocol.md](protocol.md): 600 training questions, BM25 over all pooled passages, 10 candidates",
        "while training, 20 in the test, 1,208 questions of nq_open and xquad_en, embedded reader. Unless a row says",
        "otherwise: three steps, four samples, the reference's greedy ranking as baseline, learning rate 1e-4, one",
        "pass over the questions, half of the way from the starting weights, best of three points on dev. The settings",
        "were not chosen for any of the rows but the second, which is that of protocol.md.",
        "",
        "F1 by the reader of the training (top 3) and read otherwise; difference to the reference over the same",
        "questions, 95 % bootstrap interval, paired sign-flip permutation test, not corrected for the number of rows.",
        "Rows without mark are means over three seeds; the rest was read by the embedded reader alone. Training in",
        "bf16 autocast, rankings in bf16 without padding, readers in fp32.",
        "",
        "| row | " + " | ".join(READINGS) + " |",
        "|---" * (len(READINGS) + 1) + "|",
    ]
    for name, words in zip(FIXED, ("BM25 order", "reference", "gold-first"), strict=True):
        lines.append(f"| {words} | " + " | ".join(fixed_cell(name, reading) for reading in READINGS) + " |")
    for row in ROWS:
        lines.append(f"| {row} | " + " | ".join(cell(row, reading) for reading in READINGS) + " |")
    lines += [
        "",
        "## The paper's claims",
        "",
        "Held where the 95 % interval of the difference lies above 0.",
        "",
        "| claim | here | measured |",
        "|---|---|---|",
        *(claim.line() for claim in CLAIMS),
    ]
    return "\n".join(lines) + "\n"


def run_one(row: str, seed: int) -> None:
    """Trains where a row trains, ranks the test side and reads the rankings in every way."""
    settings = settings_of(row)
    name = names_of(row)[0 if row in FIXED else protocol.SEEDS.index(seed)]
    if row in ROWS and not ROWS[row].kept_as:
        train_row(name, seed, settings)
    rank(name, settings)
    read_anew(row, name, settings)


def run_all(rows: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
    """Each row and seed in a process of its own, all rows with the first seed before the second."""
    trained = [(row, seed) for seed in seeds for row in rows if seed in seeds_of(row)]
    if absent := [row for row in rows if ROWS[row].kept_as and not settings_of(row)]:
        print(f"{', '.join(absent)}: not trained by benchmarks.protocol yet; left out", file=sys.stderr)
    tasks = [(row, 0) for row in FIXED] + [(row, seed) for row, seed in trained if row not in absent]
    kept.run_each([["benchmarks.paper", "one", "--row", row, "--seed", str(seed)] for row, seed in tasks], jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "one", "page"))
    parser.add_argument("--row", nargs="*", default=[], choices=[*FIXED, *ROWS])
    parser.add_argument("--seed", type=int, nargs="*", default=list(protocol.SEEDS), choices=protocol.SEEDS)
    parser.add_argument("--jobs", type=int, default=1, help="with run: processes side by side")
    args = parser.parse_args()
    if args.what == "one":
        run_one(args.row[0], args.seed[0])
    elif args.what == "run":
        run_all([row for row in args.row or ROWS if row in ROWS], args.seed, args.jobs)
    else:
        PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
