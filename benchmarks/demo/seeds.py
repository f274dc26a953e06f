"""The demo in a fresh clone, over five seeds, and with shuffled answers: `python -m benchmarks.demo.seeds` writes
results/demo.md.

Resumable: what was run is kept in results/kept/demo/ and not run again. `--page` only writes the page.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kept import ASSETS, READER, REFERENCE, digests, measured, read
from rankwright.cli.settings import load_settings
from rankwright.cli.train import DEMO_RECIPE
from rankwright.evaluation import Evaluation
from rankwright.metrics.significance import bootstrap_interval

PAGE = Path(__file__).parents[1] / "results" / "demo.md"
WORK = Path(__file__).parents[1] / "work" / "demo"
SEEDS = range(5)
ROOT = Path(__file__).parents[2]
QUESTIONS = ASSETS / "demo" / "questions.jsonl"
SHIPPED = (READER, REFERENCE, ASSETS / "demo" / "corpus.jsonl", QUESTIONS)
CLONE = (WORK / "clone.json", {"recipe": DEMO_RECIPE.read_text(encoding="utf-8"), **digests(SHIPPED)})


def folder(seed: int, shuffled: bool) -> Path:
    """Run folder of one seed."""
    return Path("runs") / f"demo-{'shuffled-' if shuffled else ''}{seed}"


def kept_at(seed: int, shuffled: bool) -> tuple[Path, dict[str, Any]]:
    """File of one seed's result, and what decides it."""
    settings = asdict(load_settings(DEMO_RECIPE, [], {"seed": seed}))
    return WORK / f"{folder(seed, shuffled).name}.json", {"settings": settings, **digests(SHIPPED)}


def run(seed: int, shuffled: bool) -> dict[str, Any]:
    """result.json of one demo in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "rankwright.cli",
        "demo",
        "--seed",
        str(seed),
        "--name",
        folder(seed, shuffled).name,
    ]
    code = subprocess.run([*command, *(["--shuffle-answers"] if shuffled else [])], check=False).returncode
    if code not in (0, 8):
        sys.exit(f"demo with seed {seed} ended with exit code {code}")
    result = json.loads((folder(seed, shuffled) / "result.json").read_text(encoding="utf-8"))
    return result | {"gains": gains(Evaluation.load(folder(seed, shuffled) / "evaluation.json"))}


def gains(evaluation: Evaluation) -> dict[str, list[float]]:
    """Kind of question (single-hop, two-hop, comparison) -> gain in F1 of every one of the test side."""
    kind_of = {e["query_id"]: e["metadata"]["type"] for e in map(json.loads, QUESTIONS.read_text("utf-8").splitlines())}
    before, after = (evaluation.models[name].values["F1"] for name in ("reference", "trained"))
    found: dict[str, list[float]] = defaultdict(list)
    for query_id in before:
        found[kind_of[query_id]].append(after[query_id] - before[query_id])
    return found


def clone() -> dict[str, float]:
    """Seconds of `git clone` and `make demo` (PIP_ARGS as the environment says), and of the training in it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "rankwright"
        began = time.perf_counter()
        subprocess.run(["git", "clone", "-q", str(ROOT), str(place)], check=True)
        subprocess.run(["make", "demo"], cwd=place, check=True)
        seconds = time.perf_counter() - began
        result = json.loads((place / "runs" / "demo" / "result.json").read_text(encoding="utf-8"))
    return {"seconds": seconds, "training": result["seconds"]}


def table(shuffled: bool) -> list[str]:
    """One line a seed, then mean and spread of the gain."""
    lines = [
        "| seed | n | F1 reference | F1 trained | gain [95 % interval] | p | verdict | best step | reader calls | "
        "training seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    records = []
    for seed in SEEDS:
        r = read(*kept_at(seed, shuffled))
        if r is None:
            lines.append(f"| {seed} | not run |" + " |" * 8)
            continue
        records.append(r)
        lines.append(
            f"| {seed} | {r['n']} | {r['f1_reference']:.3f} | {r['f1_trained']:.3f} | {r['delta']:+.3f} "
            f"[{r['ci_low']:+.3f}, {r['ci_high']:+.3f}] | {r['p_value']:.4f} | {r['verdict']} | {r['best_step']} of "
            f"{r['steps']} | {r['reader_calls']} | {r['seconds']:.0f} |"
        )
    if len(records) > 1:
        found = [r["delta"] for r in records]
        spread = f"mean {np.mean(found):+.3f}, standard deviation {np.std(found, ddof=1):.3f}"
        lines += ["", f"Gain over {len(found)} seeds: {spread}, smallest {min(found):+.3f}, largest {max(found):+.3f}."]
        lines += ["", "By kind of question, mean over these seeds: " + ", ".join(by_kind(records)) + "."]
    return lines


def by_kind(records: Sequence[dict[str, Any]]) -> list[str]:
    """Gain of each kind of question with its interval over questions."""
    words = []
    for kind in records[0]["gains"]:
        each = np.mean([record["gains"][kind] for record in records], axis=0)
        low, high = bootstrap_interval(each, seed=0, resamples=10_000)
        words.append(f"{kind} {each.mean():+.3f} [{low:+.3f}, {high:+.3f}] (n = {len(each)})")
    return words


def page() -> str:
    """The results page."""
    recipe = load_settings(DEMO_RECIPE, [], {})
    fresh = read(*CLONE)
    clone_words = (
        f"Clone, install and `make demo` took {fresh['seconds']:.0f} s, of which training {fresh['training']:.0f} s "
        "(packages from a near mirror, CPU build of torch)."
        if fresh
        else "A fresh clone: not run."
    )
    return "\n".join(
        [
            "# The demo over five seeds",
            "",
            "Command: `python -m benchmarks.demo.seeds`. Questions of the bundled knowledge base that were not used "
            "in training;",
            f"BM25 first stage ({recipe.data.depth} candidates in training, {recipe.data.eval_depth} in the "
            f"comparison), embedded reference and reader, top {recipe.top_k} to the reader.",
            "Settings: `rankwright/recipes/demo.yaml`, chosen by cross-validation on the training and dev sides "
            "([experiments](../../docs/experiments.md)).",
            "With them RRPO samples the first choice only, its baseline is the mean reward of the question's samples, "
            "and the reference",
            "anchors the KL alone; the form that the paper prints stands beside it on [choices.md](choices.md).",
            "The test side was read before: by seeds 0 to 3 with another baseline, by seed 0 with another weight of "
            "the reader's order,",
            "and by seed 0 with 36 steps instead of 30, changed for other reasons (experiments.md).",
            f"Machine: {platform.machine()}, 2 cores. The runs share one cache of answers, so later seeds pay for "
            "fewer reads.",
            "The clone and seeds 0 and 1 had the machine to themselves; seeds 2 to 4 and the control ran beside other "
            "work, which shows in their seconds.",
            "",
            clone_words,
            "",
            "## Trained on the questions' own answers",
            "",
            *table(shuffled=False),
            "",
            "## Control: the answers of the training questions shuffled across questions",
            "",
            "Dev keeps its own answers, so that the best checkpoint is chosen as it would be by a user; best step 0 "
            "is the untrained",
            "reference, which nothing that was learned could beat.",
            "",
            *table(shuffled=True),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", action="store_true", help="only write the page")
    args = parser.parse_args()
    if not args.page:
        measured(*CLONE, clone)
        for shuffled in (False, True):
            for seed in SEEDS:
                measured(*kept_at(seed, shuffled), lambda seed=seed, shuffled=shuffled: run(seed, shuffled))
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
