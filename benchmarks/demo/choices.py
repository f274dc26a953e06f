"""RRPO's options beside each other on the demo's world: `python -m benchmarks.demo.choices` writes results/choices.md.

The questions of the training and dev sides, halved by clusters; every arm learns on one half and is measured on the
other, both ways, after the same number of steps. The test side is not touched. Resumable, an arm and a half at a time;
`--page` only writes the page.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demo.build import SOURCE, numbered, read_rows
from benchmarks.kept import ASSETS, READER, REFERENCE, digests, measured, read
from rankwright.cli.settings import load_settings
from rankwright.cli.train import DEMO_RECIPE, demo_splits
from rankwright.metrics.significance import bootstrap_interval
from rankwright.types import Example

PAGE = Path(__file__).parents[1] / "results" / "choices.md"
WORK = Path(__file__).parents[1] / "work" / "choices"
LOOP = {"epochs": 1.0, "batch_size": 8, "learning_rate": 5e-5, "seed": 0, "trainer_arguments": {"max_steps": 24}}
MAX_LENGTH = 128
TOP_KS = (1, 3)

THREE = {"train_k": 3, "samples": 4, "scale": "window"}
THREE_Q = {"train_k": 3, "samples": 8, "scale": "question"}
ONE_Q = {"train_k": 1, "samples": 128, "scale": "question"}
ARMS: dict[str, dict[str, Any]] = {
    "three steps, 4 samples, window": THREE,
    "... advantage gae": THREE | {"advantage": "gae"},
    "... advantage marginal": THREE | {"advantage": "marginal"},
    "three steps, 8 samples, question": THREE_Q,
    "... + advantage gae": THREE_Q | {"advantage": "gae"},
    "... + advantage marginal": THREE_Q | {"advantage": "marginal"},
    "one step, 128 samples, window": ONE_Q | {"scale": "window"},
    "one step, 128 samples, question": ONE_Q,
    "... ratio to the reference": ONE_Q | {"ratio_anchor": "reference"},
    "... KL sampled": ONE_Q | {"kl": "sampled"},
}
HALVES = (0, 1)


def halves() -> tuple[list[Example], list[Example]]:
    """Questions of the training and dev sides with the training depth's candidates, by halves of the clusters."""
    settings = load_settings(DEMO_RECIPE, ["data.eval_depth=8"], {})
    splits = demo_splits(settings)
    rows = read_rows("questions", SOURCE)
    query_ids = numbered(rows, "sundrel-q")
    cluster_of = {query_ids[row["id"]]: row["cluster"] for row in rows}
    examples = [*splits.train, *splits.dev]
    clusters = sorted({cluster_of[e.query.query_id] for e in examples})
    random.Random(0).shuffle(clusters)
    first = set(clusters[::2])
    parts: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        parts[cluster_of[example.query.query_id] not in first].append(example)
    return parts


def made_with(arm: str) -> dict[str, Any]:
    """What decides an arm's outcome."""
    shipped = digests([READER, REFERENCE, ASSETS / "demo" / "corpus.jsonl", ASSETS / "demo" / "questions.jsonl"])
    return {"rrpo": ARMS.get(arm, {}), "loop": LOOP, "max_length": MAX_LENGTH, **shipped}


def kept_at(arm: str, half: int) -> Path:
    """File of one measurement."""
    name = "".join(c if c.isalnum() else "-" for c in arm).strip("-")
    return WORK / f"{name}-{half}.json"


def run(arm: str, half: int) -> dict[str, Any]:
    """Trains on one half under an arm's settings; F1 of every question of the other half at each depth."""
    from rankwright.algorithms import RRPO, RRPOConfig
    from rankwright.llms.cache import ReadStore
    from rankwright.readers import CachedReader, EmbeddedReader
    from rankwright.rerankers import load
    from rankwright.rewards import answer_reward
    from rankwright.training import TrainConfig, train

    parts = halves()
    training, held_out = parts[half], parts[1 - half]
    policy = load("reference", max_length=MAX_LENGTH)
    WORK.mkdir(parents=True, exist_ok=True)
    with ReadStore(WORK / "reads.sqlite") as store:
        reader = CachedReader(EmbeddedReader(), store, run="choices")
        began, calls = time.perf_counter(), 0
        if arm in ARMS:
            algorithm = RRPO(RRPOConfig(**ARMS[arm]), reader, answer_reward("f1"), seed=0)
            config = TrainConfig(**LOOP)
            folder = WORK / f"{kept_at(arm, half).stem}"
            result = train(policy, copy.deepcopy(policy), algorithm, training, config, folder, resume=True)
            calls = result.reader_calls + result.cache_hits
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "reads": calls, "f1": f1(policy, held_out, reader)}


def f1(policy: Any, examples: Sequence[Example], reader: Any) -> dict[str, dict[str, float]]:
    """Depth for the reader -> query_id -> F1."""
    from rankwright.evaluation import evaluate

    found = {}
    for top_k in TOP_KS:
        evaluation = evaluate({"policy": policy}, examples, reader=reader, top_k=top_k, depth=8, set_name="choices")
        found[str(top_k)] = dict(evaluation.models["policy"].values["F1"])
    return found


def values(arm: str, top_k: int) -> dict[str, float] | None:
    """F1 of all questions, each from the half it was held out of; None where a half is missing."""
    found: dict[str, float] = {}
    for half in HALVES:
        record = read(kept_at(arm, half), made_with(arm))
        if record is None:
            return None
        found |= record["f1"][str(top_k)]
    return found


def row(arm: str, start: Mapping[int, Mapping[str, float]]) -> str:
    """One line of the table."""
    cells = []
    for top_k in TOP_KS:
        per = values(arm, top_k)
        if per is None:
            return f"| {arm} | not run |" + " |" * 3
        gains = np.array([per[q] - start[top_k][q] for q in start[top_k]])
        low, high = bootstrap_interval(gains, seed=0, resamples=10_000)
        cells.append(f"{gains.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
    records = [read(kept_at(arm, half), made_with(arm)) for half in HALVES]
    reads = np.mean([record["reads"] for record in records])
    seconds = np.mean([record["seconds"] for record in records])
    return f"| {arm} | {cells[0]} | {cells[1]} | {reads:.0f} | {seconds:.0f} |"


def page() -> str:
    """The results page."""
    starts = {top_k: per for top_k in TOP_KS if (per := values("reference", top_k)) is not None}
    count = len(starts[1]) if starts else 0
    levels = ", ".join(f"{np.mean(list(per.values())):.3f} at top {top_k}" for top_k, per in starts.items())
    return "\n".join(
        [
            "# RRPO's options beside each other",
            "",
            "Command: `python -m benchmarks.demo.choices`. The demo's training and dev sides, halved by clusters: each "
            "arm learns on one half",
            f"and is measured on the other, both ways ({count} questions, 8 BM25 candidates, embedded reader). "
            f"{LOOP['trainer_arguments']['max_steps']} steps of {LOOP['batch_size']} questions,",
            f"learning rate {LOOP['learning_rate']:g}, last weights, seed 0; the test side is not touched. What is "
            "not named has its default. Gain in F1",
            f"over the reference ({levels}) with 95 % bootstrap interval over questions; reads and seconds of one "
            "half's training (seconds fall",
            "where the cache knows an answer from an earlier arm). No correction for the number of arms.",
            "",
            "| arm | F1 gain, top 1 | F1 gain, top 3 | reads | seconds |",
            "|---|---|---|---|---|",
            *(row(arm, starts) if starts else f"| {arm} | not run | | | |" for arm in ARMS),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", action="store_true", help="only write the page")
    args = parser.parse_args()
    if not args.page:
        for arm in ("reference", *ARMS):
            for half in HALVES:
                record = measured(kept_at(arm, half), made_with(arm), lambda arm=arm, half=half: run(arm, half))
                means = {k: round(float(np.mean(list(v.values()))), 4) for k, v in record["f1"].items()}
                print(arm, half, means, f"{record['seconds']:.0f} s", flush=True)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
