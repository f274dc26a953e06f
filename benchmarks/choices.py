"""RRPO's options beside each other: `python -m benchmarks.choices demo` (and `real`), then the page results/choices.md.

The questions of the training and dev sides are halved, by clusters in the demo's world and by gold passage in the real
one. Every arm learns on one half and is measured on the other, both ways, after the same number of steps; the weights
half of the way from the reference (loop.interpolation) are measured too. No test side is touched. Resumable, an arm and
a half at a time; `page` only writes the page.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import protocol
from benchmarks.demo.build import SOURCE, numbered, read_rows
from benchmarks.kept import ASSETS, READER, REFERENCE, SPLIT, digests, measured, read
from rankwright.cli.settings import load_settings
from rankwright.cli.train import DEMO_RECIPE, demo_splits
from rankwright.metrics.significance import bootstrap_interval
from rankwright.types import Example

PAGE = Path(__file__).parent / "results" / "choices.md"
WORK = Path(__file__).parent / "work" / "choices"
TOP_KS = (1, 3)
SHARES = (0.5, 1.0)
HALVES = (0, 1)
REFERENCE_ARM = "reference"
Halves = tuple[list[Example], list[Example]]

THREE = {"train_k": 3, "samples": 4, "scale": "window"}
TWICE = THREE | {"inner_epochs": 2}
THREE_Q = {"train_k": 3, "samples": 8, "scale": "question"}
ONE_Q = {"train_k": 1, "samples": 128, "scale": "question"}
DEMO_ARMS: dict[str, dict[str, Any] | None] = {
    "three steps, 4 samples, window": THREE,
    "... advantage gae": THREE | {"advantage": "gae"},
    "... advantage marginal": THREE | {"advantage": "marginal"},
    "... KL sampled": THREE | {"kl": "sampled"},
    "... ratio to the reference": THREE | {"ratio_anchor": "reference"},
    "... each rollout used twice": TWICE,
    "... each rollout used twice, ratio to the reference": TWICE | {"ratio_anchor": "reference"},
    "three steps, 8 samples, question": THREE_Q,
    "one step, 128 samples, window": ONE_Q | {"scale": "window"},
    "one step, 128 samples, question": ONE_Q,
    "gold labels": None,
}
REAL_ARMS: dict[str, dict[str, Any] | None] = {
    "three steps, 4 samples, window": THREE,
    "three steps, 8 samples, question": THREE_Q,
    "one step, 128 samples, question": ONE_Q,
    "gold labels": None,
}


@dataclass(frozen=True)
class World:
    """Questions, arms and what all arms share."""

    halves: Callable[[], Halves]
    arms: Mapping[str, dict[str, Any] | None]
    """Name -> settings of RRPO; None learns from gold labels."""
    files: Sequence[Path]
    """What decides the outcome beside the settings."""
    learning_rate: float
    steps: int
    max_length: int


def demo_halves() -> Halves:
    """The demo's questions with eight candidates, by halves of the clusters."""
    splits = demo_splits(load_settings(DEMO_RECIPE, ["data.eval_depth=8"], {}))
    rows = read_rows("questions", SOURCE)
    query_ids = numbered(rows, "sundrel-q")
    cluster_of = {query_ids[row["id"]]: row["cluster"] for row in rows}
    clusters = sorted({cluster_of[e.query.query_id] for e in (*splits.train, *splits.dev)})
    random.Random(0).shuffle(clusters)
    first = set(clusters[::2])
    return _parted([*splits.train, *splits.dev], lambda e: cluster_of[e.query.query_id] in first)


def real_halves() -> Halves:
    """The protocol's questions with ten candidates, by a hash of a gold passage."""
    data = protocol.splits(depth=10)

    def is_first(example: Example) -> bool:
        return hashlib.md5(min(example.relevance).encode()).digest()[-1] % 2 == 0

    return _parted([*data["train"], *data["dev"]], is_first)


def _parted(examples: Sequence[Example], is_first: Callable[[Example], bool]) -> Halves:
    return [e for e in examples if is_first(e)], [e for e in examples if not is_first(e)]


DEMO_FILES = (READER, REFERENCE, ASSETS / "demo" / "corpus.jsonl", ASSETS / "demo" / "questions.jsonl")
WORLDS = {
    "demo": World(demo_halves, DEMO_ARMS, DEMO_FILES, learning_rate=5e-5, steps=24, max_length=128),
    "real": World(real_halves, REAL_ARMS, (READER, REFERENCE, SPLIT), learning_rate=1e-4, steps=52, max_length=160),
}


def made_with(world: World, arm: str) -> dict[str, Any]:
    """What decides an arm's outcome."""
    settings = [world.arms.get(arm), world.learning_rate, world.steps, world.max_length]
    return {"settings": settings, **digests(world.files)}


def kept_at(name: str, arm: str, half: int) -> Path:
    """File of one measurement."""
    words = "".join(c if c.isalnum() else "-" for c in arm).strip("-")
    return WORK / name / f"{words}-{half}.json"


def run(name: str, arm: str, half: int) -> dict[str, Any]:
    """Trains on one half as an arm says; F1 of every question of the other half, by share of the way and depth."""
    from rankwright.algorithms import RRPO, RRPOConfig, Supervised
    from rankwright.algorithms.config import TrainConfig
    from rankwright.llms.cache import ReadStore
    from rankwright.readers import CachedReader, EmbeddedReader
    from rankwright.rerankers import load
    from rankwright.rewards import answer_reward
    from rankwright.training import interpolate, train

    world = WORLDS[name]
    parts = world.halves()
    policy = load(REFERENCE_ARM, max_length=world.max_length)
    start = copy.deepcopy(policy)
    folder = kept_at(name, arm, half).with_suffix("")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ReadStore(WORK / "reads.sqlite") as store:
        reader = CachedReader(EmbeddedReader(), store, run="choices")
        if arm == REFERENCE_ARM:
            return {"seconds": 0.0, "reads": 0, "f1": {"1.0": f1(policy, parts[1 - half], reader)}}
        settings = world.arms[arm]
        algorithm = RRPO(RRPOConfig(**settings), reader, answer_reward("f1")) if settings else Supervised()
        steps = {"max_steps": world.steps}
        config = TrainConfig(epochs=1.0, learning_rate=world.learning_rate, trainer=steps)
        began = time.perf_counter()
        result = train(policy, start, algorithm, parts[half], config, folder, resume=True)
        seconds = time.perf_counter() - began
        found, trained = {}, copy.deepcopy(policy.state_dict())
        for share in SHARES:
            policy.load_state_dict(trained)
            interpolate(policy, start.state_dict(), share)
            found[str(share)] = f1(policy, parts[1 - half], reader)
        return {"seconds": seconds, "reads": result.reader_calls + result.cache_hits, "f1": found}


def f1(policy: Any, examples: Sequence[Example], reader: Any) -> dict[str, dict[str, float]]:
    """Depth for the reader -> query_id -> F1."""
    from rankwright.evaluation import FirstStage, evaluate
    from rankwright.training import requests_of

    rankings = policy.rerank_batch(requests_of(examples))
    ranked = [replace(e, candidates=r.documents(e.candidates)) for e, r in zip(examples, rankings, strict=True)]
    found = {}
    for top_k in TOP_KS:
        evaluation = evaluate({"policy": FirstStage()}, ranked, reader=reader, top_k=top_k, depth=10)
        found[str(top_k)] = dict(evaluation.models["policy"].values["F1"])
    return found


def values(name: str, arm: str, share: float, top_k: int) -> dict[str, float] | None:
    """F1 of all questions, each from the half it was held out of; None where a half is missing."""
    found: dict[str, float] = {}
    for half in HALVES:
        record = read(kept_at(name, arm, half), made_with(WORLDS[name], arm))
        if record is None:
            return None
        found |= record["f1"][str(share)][str(top_k)]
    return found


def row(name: str, arm: str, start: Mapping[int, Mapping[str, float]]) -> str:
    """One line of the table."""
    cells = []
    for share in SHARES:
        for top_k in TOP_KS:
            per = values(name, arm, share, top_k)
            if per is None or not start:
                return f"| {arm} | not run |" + " |" * 5
            gains = np.array([per[q] - start[top_k][q] for q in start[top_k]])
            low, high = bootstrap_interval(gains, seed=0, resamples=10_000)
            cells.append(f"{gains.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
    records = [read(kept_at(name, arm, half), made_with(WORLDS[name], arm)) for half in HALVES]
    reads, seconds = (np.mean([record[key] for record in records]) for key in ("reads", "seconds"))
    return f"| {arm} | " + " | ".join(cells) + f" | {reads:.0f} | {seconds:.0f} |"


def section(name: str) -> list[str]:
    """One world's table."""
    world = WORLDS[name]
    found = {top_k: values(name, REFERENCE_ARM, 1.0, top_k) for top_k in TOP_KS}
    start = {top_k: per for top_k, per in found.items() if per is not None}
    levels = ", ".join(f"{np.mean(list(per.values())):.3f} at top {top_k}" for top_k, per in start.items())
    what = {"demo": "The demo's world, 8 candidates", "real": "nq_open and xquad_en, 10 candidates"}[name]
    heads = [f"{'half' if share < 1 else 'all'} of the way, top {top_k}" for share in SHARES for top_k in TOP_KS]
    return [
        f"## {what}",
        "",
        f"`python -m benchmarks.choices {name}`: {len(start.get(1, ()))} questions, {world.steps} steps of 8, learning "
        f"rate {world.learning_rate:g}; F1 of the reference {levels or 'not run'}.",
        "",
        "| arm | " + " | ".join(heads) + " | reads | seconds |",
        "|---|" + "---|" * (len(heads) + 2),
        *(row(name, arm, start) for arm in world.arms),
        "",
    ]


def page() -> str:
    """The results page."""
    return "\n".join(
        [
            "# RRPO's options beside each other",
            "",
            "Training and dev sides, halved: each arm learns on one half and is measured on the other, both ways, with "
            "last weights and",
            "seed 0; no test side is touched. Gain in F1 over the reference, with the weights half of the way "
            "(`loop.interpolation` 0.5) and",
            "all of it, when the reader sees one passage or three; 95 % bootstrap intervals over questions, not "
            "corrected for the number",
            "of arms. First stage BM25, embedded reference and reader; what an arm does not name has its default. "
            "Reads and seconds are",
            "those of one half's training; seconds fall where the cache knows an answer from an earlier arm.",
            "",
            *(line for name in WORLDS for line in section(name)),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=(*WORLDS, "page"))
    name = parser.parse_args().what
    if name != "page":
        world = WORLDS[name]
        for arm in (REFERENCE_ARM, *world.arms):
            for half in HALVES:
                record = measured(
                    kept_at(name, arm, half),
                    made_with(world, arm),
                    lambda arm=arm, half=half: run(name, arm, half),
                )
                means = {
                    f"{share} top {top_k}": round(float(np.mean(list(per.values()))), 4)
                    for share, found in record["f1"].items()
                    for top_k, per in found.items()
                }
                print(arm, half, means, f"{record['seconds']:.0f} s", flush=True)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
