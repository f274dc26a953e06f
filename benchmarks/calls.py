"""What saves reader calls, and what it costs in learning: `python -m benchmarks.calls run` (a row at a time, a
quarter of an hour each on one core; a row that was killed begins anew), then `... page`.

Training questions, candidates and dev side of the protocol; three steps, four samples, ten candidates, two epochs; each
row has a cold cache of its own. Naive is every sampled prefix of every visit read anew. No test side is touched.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks import kept, pages, protocol
from benchmarks.kept import DEVICE, measured, read
from rankwright.checkpoints import remove_after

WORK = Path(__file__).parent / "work" / "calls"
PAGE = Path(__file__).parent / "results" / "calls.md"
EPOCHS, SAMPLES, STEPS = 2, 4, 3
SEEDS = (0, 1, 2)
"""Of the combinations that the goal is judged by; the other rows have the first."""
MORE_SEEDS = (*SEEDS, 3, 4)
"""Of the exact cache and of the combination that was nearest to it in three."""
LOOP = {
    "epochs": EPOCHS,
    "learning_rate": 1e-4,
    "eval_steps": 38,
    "interpolation": 0.5,
    "patience": 0,
    **protocol.MIXED,
}
"""Without patience, so that all rows take the same number of steps, as far as whole rollouts allow."""
MOST, WITHIN = 0.35, 0.005
"""The goal: at most so much of naive's calls, and a dev F1 at most so far below naive's."""
EXACT = "exact cache"
"""The row that trains as naive does, because the reader always answers the same."""
NEAREST = "the same noise, first two shared, two samples first, none without documents"
COMBINATIONS: dict[str, dict[str, Any]] = {
    NEAREST: {
        "noise": "question",
        "shared_steps": 2,
        "read_first": 2,
        "read_closed_book": False,
    },
    "the same noise, first document shared, one sample first, none without documents": {
        "noise": "question",
        "shared_steps": 1,
        "read_first": 1,
        "read_closed_book": False,
    },
    "each rollout twice, two samples first, none without documents": {
        "inner_epochs": 2,
        "read_first": 2,
        "read_closed_book": False,
    },
    "each rollout twice, three samples first, none without documents": {
        "inner_epochs": 2,
        "read_first": 3,
        "read_closed_book": False,
    },
}
"""Whole combinations, each run with several seeds and held against the goal."""
ROWS: dict[str, dict[str, Any]] = {
    EXACT: {},
    "the same noise at every visit": {"noise": "question"},
    "pairs share the first document": {"shared_steps": 1},
    "pairs share the first two": {"shared_steps": 2},
    "the same noise, first document shared": {"noise": "question", "shared_steps": 1},
    "the same noise, first two shared": {"noise": "question", "shared_steps": 2},
    "two samples first": {"read_first": 2},
    "the same noise, first two shared, two samples first": {"noise": "question", "shared_steps": 2, "read_first": 2},
    "the same noise, one sample first, none without documents": {
        "noise": "question",
        "read_first": 1,
        "read_closed_book": False,
    },
    **COMBINATIONS,
}


def settings_of(row: str) -> dict[str, Any]:
    """As the protocol takes them. Where a rollout makes several updates, questions are visited less often, for as many
    optimizer steps as the other rows take."""
    epochs = EPOCHS // updates_of(row)
    return {"rrpo": {"train_k": STEPS, "samples": SAMPLES, **ROWS[row]}, "loop": {**LOOP, "epochs": epochs}}


def updates_of(row: str) -> int:
    """Optimizer steps of one rollout."""
    return ROWS[row].get("inner_epochs", 1)


def seeds_of(row: str) -> tuple[int, ...]:
    if row in (EXACT, NEAREST):
        return MORE_SEEDS
    return SEEDS if row in COMBINATIONS else SEEDS[:1]


def folder_of(row: str, seed: int) -> Path:
    return WORK / "".join(c if c.isalnum() else "-" for c in (f"{row} seed {seed}" if seed else row))


def run(row: str, seed: int) -> dict[str, Any]:
    """Trains; paid calls of the steps (dev's are not among them), and what dev F1 was after how many of them."""
    from rankwright.llms.cache import ReadStore
    from rankwright.readers import CachedReader, EmbeddedReader

    folder = folder_of(row, seed)
    # A resumed run would not count what it had read between the checkpoint and the kill: its cache has that.
    shutil.rmtree(folder, ignore_errors=True)
    data = protocol.splits()
    protocol.WORK.mkdir(parents=True, exist_ok=True)
    with ReadStore(protocol.WORK / "reads.sqlite") as shared:
        # Each row counts from an empty cache of its own; what another row read is not computed anew.
        reader = protocol.Paid(CachedReader(EmbeddedReader(device=DEVICE), shared, run=str(folder)))
        settings, own = settings_of(row), folder / "reads.sqlite"
        result = protocol.train_one("rrpo", seed, data, settings, str(folder), cache=own, teacher=reader)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    sizes = {"questions": len(data["train"]), "dev_questions": len(data["dev"])}
    return {**result, **sizes, **counted(lines, result["steps"], updates_of(row))}


def counted(lines: Sequence[Mapping[str, Any]], steps: int, updates: int = 1) -> dict[str, Any]:
    """Of the lines of metrics.jsonl, which are of one rollout and its `updates` steps each: calls of each epoch's
    number of steps, and (step, calls up to it, dev reward) of every evaluation."""
    calls = {line["step"]: line["reader_calls"] for line in lines if "reader_calls" in line}
    if sorted(calls) != list(range(updates, steps + 1, updates)):
        sys.exit(
            f"metrics.jsonl has {len(calls)} lines of rollouts; wanted one for each {updates} of {steps} steps. "
            "Nothing is kept."
        )

    def paid(after: int, up_to: int) -> float:
        return sum(number for step, number in calls.items() if after < step <= up_to)

    each = steps // EPOCHS
    dev = [line for line in lines if "eval_reward" in line]
    return {
        "calls": [paid(epoch * each, (epoch + 1) * each) for epoch in range(EPOCHS)],
        "dev": [[line["step"], paid(0, line["step"]), line["eval_reward"]] for line in dev],
    }


def record_of(row: str, seed: int = SEEDS[0]) -> dict[str, Any] | None:
    """What a row came to with one seed; None where it is not run."""
    return read(folder_of(row, seed) / "calls.json", protocol.made_with(settings_of(row)))


def naive_of(questions: int) -> int:
    """Calls of an epoch in which every sampled prefix is read anew."""
    return questions * SAMPLES * STEPS


def share_of(record: Mapping[str, Any]) -> float:
    """Calls of both epochs, as a share of naive's."""
    return sum(record["calls"]) / (EPOCHS * naive_of(record["questions"]))


def saved_by_cache(record: Mapping[str, Any]) -> float:
    """Share of all answers that a run asks for, those of the reference's prefixes and the one without documents among
    them, which the cache gave."""
    asked = EPOCHS * record["questions"] * (SAMPLES * STEPS + STEPS + 1)
    return 1 - sum(record["calls"]) / asked


def until(record: Mapping[str, Any], best: float) -> tuple[int, float] | None:
    """Step and calls at the first evaluation on dev that is WITHIN of `best` or above; None where none is."""
    near = (
        (step, calls) for step, calls, reward in sorted(record["dev"], key=lambda row: row[0]) if _near(reward, best)
    )
    return next(near, None)


def _near(reward: float, best: float) -> bool:
    return round(best - reward, 6) <= WITHIN


def goal(share: float, dev: float, naive: float) -> str:
    """Whether few calls came to a dev F1 as good as naive's.

    Args:
        share: of naive's calls.
        dev, naive: best dev F1 of the row and of naive, or their means over seeds.
    """
    missed = [words for words, met in (("calls", share <= MOST), ("dev F1", _near(dev, naive))) if not met]
    return f"missed: {' and '.join(missed)}" if missed else "met"


def visits(step: int, record: Mapping[str, Any]) -> int:
    """Questions visited up to a step; the last batch of an epoch may be a small one."""
    each = record["steps"] // EPOCHS
    return step // each * record["questions"] + min(step % each * protocol.BATCH_SIZE, record["questions"])


def naive_line(exact: Mapping[str, Any] | None, naive: int | None) -> str:
    """The run that saves nothing: its calls are computed, its dev F1 is that of the exact cache. `naive` is None where
    no row has counted the questions."""
    if naive is None:
        return "| nothing (naive, computed) | not run |" + " |" * 7
    if exact is None:
        return f"| nothing (naive, computed) | {naive} | 100% | 100% | 100% | | | | |"
    found = until(exact, exact["dev_best"])
    near = "" if found is None else f"{visits(found[0], exact) * SAMPLES * STEPS} (step {found[0]})"
    dev = f"{exact['dev_before']:.4f} -> {exact['dev_best']:.4f}"
    return f"| nothing (naive, computed) | {naive} | 100% | 100% | 100% | {dev} | | {near} | |"


def line_of(row: str, record: Mapping[str, Any] | None, best: float | None) -> str:
    """One line of the table; `best` is the dev reward of the naive run."""
    if record is None:
        return f"| {row} | not run |" + " |" * 7
    first, second = (calls / naive_of(record["questions"]) for calls in record["calls"])
    behind = near = reached = ""
    if best is not None:
        behind, reached = f"{100 * (record['dev_best'] - best):+.2f}", goal(share_of(record), record["dev_best"], best)
        found = until(record, best)
        near = f"{found[1]:.0f} (step {found[0]})" if found else "never"
    return (
        f"| {row} | {sum(record['calls']):.0f} | {first:.0%} | {second:.0%} | {share_of(record):.0%} | "
        f"{record['dev_before']:.4f} -> {record['dev_best']:.4f} | {behind} | {near} | {reached} |"
    )


def page() -> str:
    """The results page."""
    records = {row: record_of(row) for row in ROWS}
    exact = records[EXACT]
    naive = None
    trained_on, in_all = "Training questions (number: not run)", "(not run) in all"
    dev = "small (number of questions: not run)"
    if sizes := next((record for record in records.values() if record), None):
        naive = naive_of(sizes["questions"]) * EPOCHS
        trained_on, in_all = f"{sizes['questions']} training questions", f"{naive} in all"
        one_answer = f"{100 / sizes['dev_questions']:.2f} points"
        dev = f"{sizes['dev_questions']} questions, so that one answer more or less is {one_answer}"
    lines = [
        "# Reader calls",
        "",
        "```",
        "python -m benchmarks.calls run",
        "python -m benchmarks.calls page",
        "```",
        "",
        f"{trained_on} of nq_open and xquad_en, {STEPS} steps, {SAMPLES} samples, 10 candidates,",
        f"{EPOCHS} epochs of optimizer steps in every row, seed {SEEDS[0]}, embedded reader, cold cache. Calls are",
        "those of training steps, with the reference's prefixes and the reads without documents, which naive does not",
        f"count: {SAMPLES} x {STEPS} for each visit, {in_all}.",
        "",
        f"Goal: at most {MOST:.0%} of naive's calls over both epochs, and a best dev F1 at most {100 * WITHIN:g}",
        f"points below naive's. Dev is {dev}, and",
        "one seed a weak witness: whole combinations and the exact cache are run with more of them, below. Looked",
        f"at every {LOOP['eval_steps']} steps; *until* is what was paid up to the first look that came as near to",
        "naive's best. Naive trains as the exact cache does, because the reader always answers the same. Training in",
        f"bf16 autocast, dev rankings in {protocol.RANKING}.",
        "",
        "Where each rollout makes two updates, questions are visited once instead of twice, for as many steps but the",
        "two of an incomplete batch; what stands as its epochs is paid up to the middle step and after it.",
        "",
        "In the first epoch each question is met once, so that the same noise at every visit saves nothing there: how",
        "far a row with it is from the one without it in that epoch is how far two runs differ by chance.",
        "",
        "| what saves | calls | of naive, epoch 1 | epoch 2 | both | dev F1 before -> best | points to naive | until "
        f"| goal, by seed {SEEDS[0]} alone |",
        "|---|---|---|---|---|---|---|---|---|",
        naive_line(exact, naive),
    ]
    best = exact["dev_best"] if exact else None
    return "\n".join([*lines, *(line_of(row, records[row], best) for row in ROWS), *seed_lines()]) + "\n"


def seed_lines() -> list[str]:
    """The whole combinations beside naive over all seeds, each with its verdict."""
    return [
        "",
        "## The goal over seeds",
        "",
        f"{len(COMBINATIONS)} combinations, judged by their means over {len(SEEDS)} seeds, or {len(MORE_SEEDS)}:",
        f"the first was nearest to naive when it had {len(SEEDS)}, and being the best of several flatters it. Others,",
        "with one seed or with an option that was taken out again, are in",
        "[experiments.md](../../docs/experiments.md). Intervals are Student's t over seeds; the goal asks for the mean",
        "alone.",
        "",
        "| what saves | of naive's calls | best dev F1 by seed | points to naive by seed | mean [95 % interval] "
        "| until, by seed | goal |",
        "|---|---|---|---|---|---|---|",
        *(seed_line(row) for row in (EXACT, *COMBINATIONS)),
    ]


def seed_line(row: str) -> str:
    """One combination, with a verdict where it and the exact cache are run with all its seeds."""
    runs, naive = _runs(row, seeds_of(row)), _runs(EXACT, seeds_of(row))
    if not runs:
        return f"| {row} | not run |" + " |" * 5
    share = mean(map(share_of, runs))
    dev, best = ([record["dev_best"] for record in records] for records in (runs, naive))
    head = f"| {row} | {share:.1%} | {_by_seed(dev, '.4f')} |"
    if not naive:
        return head + " |" * 4
    reached = ", ".join(_until_cell(run, of_naive) for run, of_naive in zip(runs, best, strict=True))
    if row == EXACT:
        return f"{head} | | {reached} | |"
    behind = [100 * (one - of_naive) for one, of_naive in zip(dev, best, strict=True)]
    verdict = goal(share, mean(dev), mean(best))
    return f"{head} {_by_seed(behind, '+.2f')} | {_mean_cell(behind)} | {reached} | {verdict} |"


def _runs(row: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A record for each of the seeds; none where one is missing."""
    found = [record for seed in seeds if (record := record_of(row, seed))]
    return found if len(found) == len(seeds) else []


def _mean_cell(values: Sequence[float]) -> str:
    from scipy import stats

    middle, half = mean(values), stats.t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{middle:+.2f} [{middle - half:+.2f}, {middle + half:+.2f}]"


def _until_cell(record: Mapping[str, Any], best: float) -> str:
    found = until(record, best)
    return "never" if found is None else f"{found[1] / (EPOCHS * naive_of(record['questions'])):.0%}"


def _by_seed(values: Iterable[float], form: str) -> str:
    return ", ".join(format(value, form) for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "one", "page"))
    parser.add_argument("--row", choices=list(ROWS))
    parser.add_argument("--seed", type=int, default=SEEDS[0], help="with one: seed of the row")
    parser.add_argument("--jobs", type=int, default=1, help="with run: processes side by side")
    args = parser.parse_args()
    if args.what == "page":
        pages.write(PAGE, page(), measured=any(record_of(row) is not None for row in ROWS))
    elif args.what == "one":
        folder = folder_of(args.row, args.seed)
        made_with = protocol.made_with(settings_of(args.row))
        measured(folder / "calls.json", made_with, lambda: run(args.row, args.seed))
        remove_after(folder)
        shutil.rmtree(folder / "model", ignore_errors=True)
    else:
        parts = [(row, seed) for row in ([args.row] if args.row else ROWS) for seed in seeds_of(row)]
        kept.run_each(
            [["benchmarks.calls", "one", "--row", row, "--seed", str(seed)] for row, seed in parts], args.jobs
        )


if __name__ == "__main__":
    sys.exit(main())
