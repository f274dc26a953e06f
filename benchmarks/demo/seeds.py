"""The demo over five seeds, and its control with shuffled answers: `python -m benchmarks.demo.seeds` writes
results/demo.md.

Resumable: what was run is kept in work/demo/ and not run again. `--page` only writes the page.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kept import ASSETS, READER, REFERENCE, digests, measured, read
from rankwright.cli.settings import load_settings
from rankwright.cli.train import DEMO_RECIPE

PAGE = Path(__file__).parents[1] / "results" / "demo.md"
WORK = Path(__file__).parents[1] / "work" / "demo"
SEEDS = range(5)


def folder(seed: int, shuffled: bool) -> Path:
    """Run folder of one seed."""
    return Path("runs") / f"demo-{'shuffled-' if shuffled else ''}{seed}"


def kept_at(seed: int, shuffled: bool) -> tuple[Path, dict[str, Any]]:
    """File of one seed's result, and what decides it."""
    settings = asdict(load_settings(DEMO_RECIPE, [], {"seed": seed}))
    shipped = digests([READER, REFERENCE, ASSETS / "demo" / "corpus.jsonl", ASSETS / "demo" / "questions.jsonl"])
    return WORK / f"{folder(seed, shuffled).name}.json", {"settings": settings, **shipped}


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
    return json.loads((folder(seed, shuffled) / "result.json").read_text(encoding="utf-8"))


def table(shuffled: bool) -> list[str]:
    """One line a seed, then mean and spread of the gain."""
    lines = [
        "| seed | n | F1 reference | F1 trained | gain [95 % interval] | p | verdict | reader calls | training "
        "seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    gains = []
    for seed in SEEDS:
        r = read(*kept_at(seed, shuffled))
        if r is None:
            lines.append(f"| {seed} | not run |" + " |" * 7)
            continue
        gains.append(r["delta"])
        lines.append(
            f"| {seed} | {r['n']} | {r['f1_reference']:.3f} | {r['f1_trained']:.3f} | {r['delta']:+.3f} "
            f"[{r['ci_low']:+.3f}, {r['ci_high']:+.3f}] | {r['p_value']:.4f} | {r['verdict']} | {r['reader_calls']} "
            f"| {r['seconds']:.0f} |"
        )
    if len(gains) > 1:
        spread = f"mean {np.mean(gains):+.3f}, standard deviation {np.std(gains, ddof=1):.3f}"
        lines += ["", f"Gain over {len(gains)} seeds: {spread}, smallest {min(gains):+.3f}, largest {max(gains):+.3f}."]
    return lines


def page() -> str:
    """The results page."""
    recipe = load_settings(DEMO_RECIPE, [], {})
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
            f"Machine: {platform.machine()}, 2 cores. The runs share one cache of answers, so later seeds pay for "
            "fewer reads.",
            "",
            "## Trained on the questions' own answers",
            "",
            *table(shuffled=False),
            "",
            "## Control: the answers of the training questions shuffled across questions",
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
        for shuffled in (False, True):
            for seed in SEEDS:
                measured(*kept_at(seed, shuffled), lambda seed=seed, shuffled=shuffled: run(seed, shuffled))
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
