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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import kept, protocol
from benchmarks.demo.build import SOURCE, numbered, read_rows
from benchmarks.kept import ASSETS, DEVICE, READER, REFERENCE, SPLIT, digests, hardware, measured, read
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


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    rrpo: Mapping[str, Any] | None
    """Settings of RRPO; None learns from gold labels."""
    learning_rate: float | None = None
    """None: the world's."""
    epochs: int = 1
    """Times the world's steps."""


THREE = {"train_k": 3, "samples": 4, "scale": "window"}
TWICE = THREE | {"inner_epochs": 2}
THREE_Q = {"train_k": 3, "samples": 8, "scale": "question"}
ONE_Q = {"train_k": 1, "samples": 128, "scale": "question"}
DEMO_ARMS = {
    "three steps, 4 samples, window": Arm(THREE),
    "... advantage gae": Arm(THREE | {"advantage": "gae"}),
    "... advantage marginal": Arm(THREE | {"advantage": "marginal"}),
    "... KL sampled": Arm(THREE | {"kl": "sampled"}),
    "... ratio to the reference": Arm(THREE | {"ratio_anchor": "reference"}),
    "... each rollout used twice": Arm(TWICE),
    "... each rollout used twice, ratio to the reference": Arm(TWICE | {"ratio_anchor": "reference"}),
    "three steps, 8 samples, question": Arm(THREE_Q),
    "one step, 128 samples, window": Arm(ONE_Q | {"scale": "window"}),
    "one step, 128 samples, question": Arm(ONE_Q),
    "gold labels": Arm(None),
}
REAL_ARMS = DEMO_ARMS | {
    "one step, 128 samples, question, rate 2e-4": Arm(ONE_Q, 2e-4),
    "one step, 128 samples, question, rate 5e-5, two epochs": Arm(ONE_Q, 5e-5, 2),
    "one step, 128 samples, question, two epochs": Arm(ONE_Q, None, 2),
    "one step, 128 samples, question, beta 0": Arm(ONE_Q | {"beta": 0.0}),
    "two steps, 32 samples, question": Arm({"train_k": 2, "samples": 32, "scale": "question"}),
    "three steps, 16 samples, question": Arm(THREE_Q | {"samples": 16}),
    "three steps, 16 samples, question, rate 2e-4": Arm(THREE_Q | {"samples": 16}, 2e-4),
    "three steps, 16 samples, question, two epochs": Arm(THREE_Q | {"samples": 16}, None, 2),
    "three steps, 4 samples, window, rate 2e-4": Arm(THREE, 2e-4),
    "three steps, 4 samples, window, two epochs": Arm(THREE, None, 2),
    "gold labels, rate 5e-5": Arm(None, 5e-5),
    "gold labels, rate 5e-5, two epochs": Arm(None, 5e-5, 2),
}


@dataclass(frozen=True)
class World:
    """Questions, arms and what all arms share."""

    halves: Callable[[], Halves]
    arms: Mapping[str, Arm]
    files: Sequence[Path]
    """What decides the outcome beside the settings."""
    learning_rate: float
    steps: int
    max_length: int
    seeds: Sequence[int] = (0,)


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
    "real": World(
        real_halves,
        REAL_ARMS,
        (READER, REFERENCE, SPLIT),
        learning_rate=1e-4,
        steps=52,
        max_length=160,
        seeds=(0, 1, 2),
    ),
}


def made_with(world: World, arm: str) -> dict[str, Any]:
    """What decides an arm's outcome."""
    settings = [asdict(world.arms[arm]) if arm in world.arms else None]
    return {"settings": [*settings, world.learning_rate, world.steps, world.max_length], **digests(world.files)}


def kept_at(name: str, arm: str, half: int, seed: int = 0) -> Path:
    """File of one measurement."""
    words = "".join(c if c.isalnum() else "-" for c in arm).strip("-")
    return WORK / name / f"{words}-{half}-{seed}.json"


def run(name: str, arm: str, half: int, seed: int) -> dict[str, Any]:
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
    policy = load(REFERENCE_ARM, device=DEVICE, max_length=world.max_length)
    start = copy.deepcopy(policy)
    folder = kept_at(name, arm, half, seed).with_suffix("")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ReadStore(WORK / f"{name}-reads.sqlite") as store:
        reader = CachedReader(EmbeddedReader(device=DEVICE), store, run="choices")
        if arm == REFERENCE_ARM:
            return {
                "hardware": hardware(),
                "seconds": 0.0,
                "reads": 0,
                "f1": {"1.0": f1(policy, parts[1 - half], reader)},
            }
        chosen = world.arms[arm]
        rrpo = None if chosen.rrpo is None else RRPOConfig(**chosen.rrpo)
        algorithm = Supervised() if rrpo is None else RRPO(rrpo, reader, answer_reward("f1"), seed)
        config = TrainConfig(
            epochs=float(chosen.epochs),
            learning_rate=chosen.learning_rate or world.learning_rate,
            trainer={"max_steps": world.steps * chosen.epochs, "bf16": True},
        )
        began = time.perf_counter()
        result = train(policy, start, algorithm, parts[half], config, folder, seed=seed, resume=True)
        seconds = time.perf_counter() - began
        found, trained = {}, copy.deepcopy(policy.state_dict())
        for share in SHARES:
            policy.load_state_dict(trained)
            interpolate(policy, start.state_dict(), share)
            found[str(share)] = f1(policy, parts[1 - half], reader)
        reads = result.reader_calls + result.cache_hits
        return {"hardware": hardware(), "seconds": seconds, "reads": reads, "f1": found}


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


def records(name: str, arm: str) -> list[dict[str, Any]]:
    """What is kept of an arm: both halves of every seed that is complete."""
    found = []
    for seed in WORLDS[name].seeds:
        both = [read(kept_at(name, arm, half, seed), made_with(WORLDS[name], arm)) for half in HALVES]
        found += both if None not in both else []
    return found


def values(found: Sequence[Mapping[str, Any]], share: float, top_k: int) -> dict[str, float]:
    """F1 of all questions, each from the half it was held out of, mean over seeds."""
    per: dict[str, list[float]] = {}
    for record in found:
        for query_id, value in record["f1"][str(share)][str(top_k)].items():
            per.setdefault(query_id, []).append(value)
    return {query_id: float(np.mean(row)) for query_id, row in per.items()}


def row(name: str, arm: str, start: Mapping[int, Mapping[str, float]]) -> str:
    """One line of the table."""
    found = records(name, arm)
    if not found or not start:
        return f"| {arm} | not run |" + " |" * 5
    cells = []
    for share in SHARES:
        for top_k in TOP_KS:
            per = values(found, share, top_k)
            gains = np.array([per[q] - start[top_k][q] for q in start[top_k]])
            low, high = bootstrap_interval(gains, seed=0, resamples=10_000)
            cells.append(f"{gains.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
    reads = np.mean([record["reads"] for record in found])
    return f"| {arm} | {len(found) // 2} | " + " | ".join(cells) + f" | {reads:.0f} |"


def section(name: str) -> list[str]:
    """One world's table."""
    world = WORLDS[name]
    found = records(name, REFERENCE_ARM)
    start = {top_k: values(found, 1.0, top_k) for top_k in TOP_KS} if found else {}
    levels = ", ".join(f"{np.mean(list(per.values())):.3f} at top {top_k}" for top_k, per in start.items())
    what = {"demo": "The demo's world, 8 candidates", "real": "nq_open and xquad_en, 10 candidates"}[name]
    heads = [f"{'half' if share < 1 else 'all'} of the way, top {top_k}" for share in SHARES for top_k in TOP_KS]
    machines = sorted({record["hardware"] for arm in world.arms for record in records(name, arm)})
    if not machines:
        return [f"## {what}", "", f"`python -m benchmarks.choices {name}`: not run.", ""]
    return [
        f"## {what}",
        "",
        f"`python -m benchmarks.choices {name}`: {len(start.get(1, ()))} questions, {world.steps} steps of 8 and "
        f"learning rate {world.learning_rate:g} unless an arm says otherwise; F1 of the reference "
        f"{levels or 'not run'}. Measured on: {', '.join(machines)}.",
        "",
        "| arm | seeds | " + " | ".join(heads) + " | reads |",
        "|---|---|" + "---|" * (len(heads) + 1),
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
            "last weights,",
            "mean over the seeds; no test side is touched. Gain in F1 over the reference, with the weights half of the "
            "way (`loop.interpolation` 0.5) and",
            "all of it, when the reader sees one passage or three; 95 % bootstrap intervals over questions, not "
            "corrected for the number",
            "of arms. First stage BM25, embedded reference and reader; what an arm does not name has its default. "
            "Reads are those of",
            "one half's training (in bf16), with those that the cache answered.",
            "",
            *(line for name in WORLDS for line in section(name)),
        ]
    )


def run_one(name: str, arm: str, half: int, seed: int) -> None:
    """One arm on one half, kept."""
    path = kept_at(name, arm, half, seed)
    record = measured(path, made_with(WORLDS[name], arm), lambda: run(name, arm, half, seed))
    means = {
        f"{share} top {top_k}": round(float(np.mean(list(per.values()))), 4)
        for share, found in record["f1"].items()
        for top_k, per in found.items()
    }
    print(arm, half, means, f"{record['seconds']:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=(*WORLDS, "page"))
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--arm", help="only this arm")
    parser.add_argument("--half", type=int, choices=HALVES, help="with --arm: only this half, in this process")
    parser.add_argument("--seed", type=int, default=0, help="with --half")
    args = parser.parse_args()
    name = args.what
    if name != "page" and args.half is not None:
        run_one(name, args.arm, args.half, args.seed)
    elif name != "page":
        arms = [args.arm] if args.arm else [REFERENCE_ARM, *WORLDS[name].arms]
        tasks = [(arm, half, seed) for seed in WORLDS[name].seeds for arm in arms for half in HALVES]
        one = ["benchmarks.choices", name, "--arm"]
        kept.run_each([[*one, arm, "--half", str(half), "--seed", str(seed)] for arm, half, seed in tasks], args.jobs)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
