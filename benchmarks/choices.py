"""RRPO's options beside each other on the demo's world: `python -m benchmarks.choices run`, then `... page`.

The questions of the training and dev sides are halved by clusters. Every arm learns on one half and is measured on the
other, both ways, after the same number of steps; the weights half of the way from the reference (loop.interpolation)
are measured too. No test side is touched. Resumable, an arm and a half at a time. The same options on real questions
stand in benchmarks/paper.py.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import differences, kept, pages
from benchmarks.demo.build import SOURCE, numbered, read_rows
from benchmarks.kept import ASSETS, DEVICE, READER, REFERENCE, digests, hardware, measured, read
from benchmarks.protocol import LOOP, RRPO_BASE
from rankwright.batching import tokens_at_once
from rankwright.checkpoints import remove_after
from rankwright.cli.settings import load_settings
from rankwright.cli.train import DEMO_RECIPE, demo_splits
from rankwright.types import Example

PAGE = Path(__file__).parent / "results" / "choices.md"
WORK = Path(__file__).parent / "work" / "choices"
TOP_KS = (1, 3)
SHARES = (0.5, 1.0)
HALVES = (0, 1)
SEED = 0
STEPS, RATE, LENGTH, DEPTH = 24, 5e-5, 128, 8
FILES = (READER, REFERENCE, ASSETS / "demo" / "corpus.jsonl", ASSETS / "demo" / "questions.jsonl")
"""What decides the outcome beside the settings."""
REFERENCE_ARM, DEFAULT_ARM = "reference", "three steps, 4 samples, window"
TWICE = {"inner_epochs": 2}
THREE_Q = {"samples": 8, "scale": "question"}
ONE = {"train_k": 1, "samples": 128}
ARMS: dict[str, dict[str, Any] | None] = {
    DEFAULT_ARM: {},
    "... advantage gae": {"advantage": "gae"},
    "... advantage marginal": {"advantage": "marginal"},
    "... KL sampled": {"kl": "sampled"},
    "... questions without variance skipped": {"skip_unanimous": True},
    "... ratio to the reference": {"ratio_anchor": "reference"},
    "... each rollout used twice": TWICE,
    "... each rollout used twice, ratio to the reference": TWICE | {"ratio_anchor": "reference"},
    "three steps, 8 samples, question": THREE_Q,
    "one step, 128 samples, window": ONE,
    "one step, 128 samples, question": ONE | {"scale": "question"},
    "gold labels": None,
}
"""Arm -> its settings of RRPO, on those that the protocol stands upon; None learns from gold labels."""


@cache
def cluster_of() -> dict[str, str]:
    """query_id -> the cluster of the demo's world that it asks about."""
    rows = read_rows("questions", SOURCE)
    query_ids = numbered(rows, "sundrel-q")
    return {query_ids[row["id"]]: row["cluster"] for row in rows}


def halves() -> tuple[list[Example], list[Example]]:
    """The demo's questions with DEPTH candidates, by halves of the clusters."""
    splits = demo_splits(load_settings(DEMO_RECIPE, [f"data.eval_depth={DEPTH}"], {}))
    examples = [*splits.train, *splits.dev]
    clusters = sorted({cluster_of()[example.query.query_id] for example in examples})
    random.Random(0).shuffle(clusters)
    first = set(clusters[::2])
    is_first = [cluster_of()[example.query.query_id] in first for example in examples]
    return (
        [example for example, yes in zip(examples, is_first, strict=True) if yes],
        [example for example, yes in zip(examples, is_first, strict=True) if not yes],
    )


def made_with(arm: str) -> dict[str, Any]:
    """What decides an arm's outcome."""
    world = {"steps": STEPS, "learning_rate": RATE, "max_length": LENGTH, "depth": DEPTH, "bf16": True, "seed": SEED}
    return {
        "settings": ARMS.get(arm),
        "base": {"rrpo": RRPO_BASE, "loop": LOOP},
        "world": world,
        "tokens_at_once": tokens_at_once(torch.device(DEVICE).type),
        **digests(FILES),
    }


def kept_at(arm: str, half: int) -> Path:
    """File of one measurement."""
    words = "".join(c if c.isalnum() else "-" for c in arm).strip("-")
    return WORK / f"{words}-{half}.json"


def run(arm: str, half: int) -> dict[str, Any]:
    """Trains on one half as an arm says; F1 of every question of the other half, by share of the way and depth."""
    from rankwright.algorithms import RRPO, RRPOConfig, Supervised
    from rankwright.algorithms.config import TrainConfig
    from rankwright.llms.cache import ReadStore
    from rankwright.readers import CachedReader, EmbeddedReader
    from rankwright.rerankers import load
    from rankwright.rewards import answer_reward
    from rankwright.training import interpolate, train

    parts = halves()
    policy = load(REFERENCE_ARM, device=DEVICE, max_length=LENGTH)
    start = copy.deepcopy(policy)
    folder = kept_at(arm, half).with_suffix("")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ReadStore(WORK / "reads.sqlite") as store:
        reader = CachedReader(EmbeddedReader(device=DEVICE), store, run="choices")
        if arm == REFERENCE_ARM:
            return {"hardware": hardware(), "reads": 0, "f1": {"1.0": f1(policy, parts[1 - half], reader)}}
        own = ARMS[arm]
        rrpo = None if own is None else RRPOConfig(**(RRPO_BASE | own))
        algorithm = Supervised() if rrpo is None else RRPO(rrpo, reader, answer_reward("f1"), SEED)
        settings = LOOP | {"learning_rate": RATE, "trainer": {"max_steps": STEPS, "bf16": True}}
        result = train(policy, start, algorithm, parts[half], TrainConfig(**settings), folder, seed=SEED, resume=True)
        found, trained = {}, copy.deepcopy(policy.state_dict())
        for share in SHARES:
            policy.load_state_dict(trained)
            interpolate(policy, start.state_dict(), share)
            found[str(share)] = f1(policy, parts[1 - half], reader)
        return {"hardware": hardware(), "reads": result.reader_calls + result.cache_hits, "f1": found}


def f1(policy: Any, examples: Sequence[Example], reader: Any) -> dict[str, dict[str, float]]:
    """Depth for the reader -> query_id -> F1."""
    from rankwright.evaluation import FirstStage, evaluate
    from rankwright.training import requests_of

    rankings = policy.rerank_batch(requests_of(examples))
    ranked = [replace(e, candidates=r.documents(e.candidates)) for e, r in zip(examples, rankings, strict=True)]
    found = {}
    for top_k in TOP_KS:
        evaluation = evaluate({"policy": FirstStage()}, ranked, reader=reader, top_k=top_k, depth=DEPTH)
        found[str(top_k)] = dict(evaluation.models["policy"].values["F1"])
    return found


def records(arm: str) -> list[dict[str, Any]]:
    """Both halves of an arm, or nothing."""
    both = [read(kept_at(arm, half), made_with(arm)) for half in HALVES]
    return both if None not in both else []


def values(arm: str, share: float, top_k: int) -> dict[str, float]:
    """F1 of all questions, each from the half that it was held out of; empty where the arm is not run."""
    return {
        query_id: value for record in records(arm) for query_id, value in record["f1"][str(share)][str(top_k)].items()
    }


def row(arm: str) -> str:
    """One line of the table."""
    if not records(arm) or not records(REFERENCE_ARM):
        return f"| {arm} | not run |" + " |" * (2 * len(SHARES) * len(TOP_KS))
    cells = []
    for share in SHARES:
        for top_k in TOP_KS:
            per = values(arm, share, top_k)
            cells.append(gain(per, values(REFERENCE_ARM, 1.0, top_k)))
            default = values(DEFAULT_ARM, share, top_k)
            cells.append(gain(per, default) if default and arm != DEFAULT_ARM else "")
    reads = np.mean([record["reads"] for record in records(arm)])
    return f"| {arm} | " + " | ".join(cells) + f" | {reads:.0f} |"


def gain(per: Mapping[str, float], base: Mapping[str, float]) -> str:
    """Difference with its interval, over clusters."""
    found = differences.difference(per, base, group_of=cluster_of())
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def page() -> str:
    """The results page."""
    heads = [
        f"{'half' if share < 1 else 'all'} of the way, top {top_k}: minus {base}"
        for share in SHARES
        for top_k in TOP_KS
        for base in ("reference", "first arm")
    ]
    start = {top_k: values(REFERENCE_ARM, 1.0, top_k) for top_k in TOP_KS}
    levels = ", ".join(f"{np.mean(list(per.values())):.3f} at top {top_k}" for top_k, per in start.items() if per)
    where = sorted({record["hardware"] for arm in ARMS for record in records(arm)})
    return "\n".join(
        [
            "# RRPO's options beside each other",
            "",
            "```",
            "python -m benchmarks.choices run",
            "python -m benchmarks.choices page",
            "```",
            "",
            f"The demo's world, {len(start[1]) or '(not run)'} questions of its training and dev sides, halved by "
            "clusters: each arm learns on one half and is",
            f"measured on the other, both ways, with last weights, one seed ({SEED}); no test side is touched. {STEPS} "
            f"steps of {LOOP['batch_size']} questions, learning",
            f"rate {RATE:g}, {DEPTH} candidates, BM25, embedded reference and reader, training in bf16. F1, with the "
            "weights half of the way",
            "(`loop.interpolation` 0.5) and all of it, when the reader sees one passage or three; 95 % bootstrap "
            "intervals over clusters, not corrected",
            "for the number of arms, and blind to how far other seeds would be. Reads are those of one half's "
            "training, with those that the cache",
            "answered.",
            f"F1 of the reference: {levels or 'not run'}. Measured on: {', '.join(where) or 'not run'}.",
            "",
            f"| arm | {' | '.join(heads)} | reads |",
            "|---" * (len(heads) + 2) + "|",
            *(row(arm) for arm in ARMS),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "one", "page"))
    parser.add_argument("--jobs", type=int, default=1, help="with run: processes side by side")
    parser.add_argument("--arm", choices=[REFERENCE_ARM, *ARMS], help="only this arm")
    parser.add_argument("--half", type=int, choices=HALVES, help="with one")
    args = parser.parse_args()
    if args.what == "one":
        path = kept_at(args.arm, args.half)
        record = measured(path, made_with(args.arm), lambda: run(args.arm, args.half))
        remove_after(path.with_suffix(""))
        print(args.arm, args.half, record["reads"], flush=True)
    elif args.what == "run":
        tasks = [(arm, half) for arm in ([args.arm] if args.arm else [REFERENCE_ARM, *ARMS]) for half in HALVES]
        one = ["benchmarks.choices", "one", "--arm"]
        kept.run_each([[*one, arm, "--half", str(half)] for arm, half in tasks], args.jobs)
    else:
        pages.write(PAGE, page(), measured=bool(records(REFERENCE_ARM)))


if __name__ == "__main__":
    sys.exit(main())
