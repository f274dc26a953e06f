"""What saves reader calls, and what it costs in learning: `python -m benchmarks.calls run` (resumable, a quarter
of an hour a row), then `... page`.

Training questions, candidates and dev side of the protocol; three steps, four samples, ten candidates, two epochs; each
row has a cold cache of its own. Naive is every sampled prefix of every visit read anew. No test side is touched.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import kept, protocol
from benchmarks.kept import DEVICE, measured, read

WORK = Path(__file__).parent / "work" / "calls"
PAGE = Path(__file__).parent / "results" / "calls.md"
EPOCHS, SAMPLES, STEPS = 2, 4, 3
LOOP = {"epochs": EPOCHS, "learning_rate": 1e-4, "eval_steps": 38, "interpolation": 0.5, **protocol.MIXED}
ROWS: dict[str, dict[str, Any]] = {
    "exact cache": {},
    "the same noise at every visit": {"noise": "question"},
    "pairs share the first document": {"shared_steps": 1},
    "pairs share the first two": {"shared_steps": 2},
    "the same noise, first document shared": {"noise": "question", "shared_steps": 1},
    "the same noise, first two shared": {"noise": "question", "shared_steps": 2},
}


def settings_of(row: str) -> dict[str, Any]:
    """As the protocol takes them."""
    return {"rrpo": {"train_k": STEPS, "samples": SAMPLES, **ROWS[row]}, "loop": LOOP}


def folder_of(row: str) -> Path:
    return WORK / "".join(c if c.isalnum() else "-" for c in row)


def run(row: str) -> dict[str, Any]:
    """Trains; paid calls of each epoch's steps (dev's are not among them), and dev F1 before and at its best."""
    from rankwright.llms.cache import ReadStore
    from rankwright.readers import CachedReader, EmbeddedReader

    folder = folder_of(row)
    data = protocol.splits()
    with ReadStore(protocol.WORK / "reads.sqlite") as shared:
        # Each row counts from an empty cache of its own; what another row read is not computed anew.
        reader = protocol.Paid(CachedReader(EmbeddedReader(device=DEVICE), shared, run=str(folder)))
        settings, own = settings_of(row), folder / "reads.sqlite"
        result = protocol.train_one("rrpo", 0, data, settings, str(folder), cache=own, teacher=reader)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [line for line in lines if "reader_calls" in line]
    half = len(steps) // EPOCHS
    epochs = [sum(line["reader_calls"] for line in steps[i * half : (i + 1) * half]) for i in range(EPOCHS)]
    dev = [line["eval_reward"] for line in lines if "eval_reward" in line]
    return {**result, "questions": len(data["train"]), "calls": epochs, "dev": dev}


def record_of(row: str) -> dict[str, Any] | None:
    return read(folder_of(row) / "calls.json", protocol.made_with(settings_of(row)))


def line_of(row: str, record: Mapping[str, Any] | None, best: float | None) -> str:
    """One line of the table; `best` is the dev reward of the exact cache, which is that of the naive run."""
    if record is None:
        return f"| {row} | not run |" + " |" * 4
    naive = record["questions"] * SAMPLES * STEPS
    first, whole = record["calls"][0] / naive, sum(record["calls"]) / (EPOCHS * naive)
    behind = "" if best is None else f"{100 * (record['dev_best'] - best):+.2f}"
    return (
        f"| {row} | {sum(record['calls']):.0f} | {first:.0%} | {whole:.0%} | "
        f"{record['dev_before']:.4f} -> {record['dev_best']:.4f} | {behind} |"
    )


def page() -> str:
    """The results page."""
    exact = record_of("exact cache")
    questions = exact["questions"] if exact else 600
    naive = questions * SAMPLES * STEPS * EPOCHS
    lines = [
        "# Reader calls",
        "",
        "```",
        "python -m benchmarks.calls run",
        "python -m benchmarks.calls page",
        "```",
        "",
        f"{questions} training questions of nq_open and xquad_en, {STEPS} steps, {SAMPLES} samples, 10 candidates,",
        f"{EPOCHS} epochs of optimizer steps in every row, seed 0, embedded reader, cold cache. Calls are those of",
        "training steps, with the reference's prefixes and the reads without documents, which naive does not count:",
        f"{SAMPLES} x {STEPS} for each visit, {naive} in all. Goal: at most 35 % of naive, within 0.5 points of its",
        "dev F1.",
        "Naive trains as the exact cache does, because the reader always answers the same. Training in bf16",
        "autocast, dev rankings in bf16 without padding.",
        "",
        "| what saves | calls | of naive, first epoch | both | dev F1 before -> best | points to naive |",
        "|---|---|---|---|---|---|",
        f"| nothing (naive, computed) | {naive} | 100% | 100% | | |",
    ]
    best = exact["dev_best"] if exact else None
    return "\n".join([*lines, *(line_of(row, record_of(row), best) for row in ROWS)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "one", "page"))
    parser.add_argument("--row", choices=list(ROWS))
    parser.add_argument("--jobs", type=int, default=1, help="with run: processes side by side")
    args = parser.parse_args()
    if args.what == "page":
        PAGE.write_text(page(), encoding="utf-8")
    elif args.what == "one":
        measured(folder_of(args.row) / "calls.json", protocol.made_with(settings_of(args.row)), lambda: run(args.row))
    else:
        rows = [args.row] if args.row else ROWS
        kept.run_each([["benchmarks.calls", "one", "--row", row] for row in rows], args.jobs)


if __name__ == "__main__":
    sys.exit(main())
