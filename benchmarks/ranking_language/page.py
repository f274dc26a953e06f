"""results/ranking-language.md out of the records that are kept."""

from __future__ import annotations

from statistics import stdev
from typing import Any

from benchmarks.ranking_language.language import MISLED, questions
from benchmarks.ranking_language.rows import LESSONS, ROWS, SEEDS, SHORT, Row
from benchmarks.ranking_language.running import TEST, mean, record
from rankwright.metrics.significance import bootstrap_interval, holm, paired_permutation_test

Records = dict[tuple[str, int], dict[str, Any]]
NAMES = {"ndcg": "nDCG@10", "best_first": "best first"}
BLOCK = 30
"""Steps whose rewards are averaged in the table of curves, as many as lie between two scores."""
INTRODUCTION = """# GRPO on the ranking language

```
python -m benchmarks.ranking_language run
python -m benchmarks.ranking_language page
```

What is measured, how it is read, and what was changed before these rows were run, and why:
[analysis.md](../ranking_language/analysis.md). A decoder of 0.9 million weights from a random start; windows of 6 to 8
passages, whose best order has nDCG@10 1; SFT on a teacher that is mostly wrong about half of the topics (the warm-up),
then GRPO with the rewards, prompts, parsers and strategies of the product. Every row reads the 1,000 test questions
before and after its training and at no other time; curves and settings are of the dev side. Both sides have queries
that no training question has.
"""


def page() -> str:
    """The page as far as runs are kept."""
    rows = (*LESSONS.values(), *ROWS.values())
    there = {(row.name, seed): found for row in rows for seed in row.seeds if (found := record(row, seed))}
    parts = (
        [INTRODUCTION, _measured_on(there), ""],
        ["## Runs", "", *_runs(rows, there), ""],
        ["## What was learned", "", *_differences(there), ""],
        ["## Where it was learned", "", *_topics(there), ""],
        ["## Against REARANK's reward", "", *_ablations(there), ""],
        ["## Curves", "", *_curves(there), ""],
        ["## Settings", "", *_settings(), ""],
    )
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _measured_on(there: Records) -> str:
    machines = ", ".join(sorted({found["hardware"] for found in there.values()}))
    most = max((found["processor_seconds"] for found in there.values()), default=0.0)
    return (
        f"Measured on {machines}, one process a run with one thread, beside other work, so that wall seconds say "
        f"little; the longest run took {most:.0f} seconds of one core. The bound of 4 minutes on 2 cores is 480."
    )


def _table(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |", "|" + "---|" * len(cells)]


def _runs(rows: tuple[Row, ...], there: Records) -> list[str]:
    """One line a run."""
    lines = [
        "Test side, before -> after. *Not in form*: calls whose answer had to be mended or could not be read. Seconds: "
        "of training with its scores on dev, by the processor's clock / by the wall's.",
        "",
        *_table("run", "form", "starts from", "seed", "nDCG@10", "best first", "not in form", "steps", "seconds"),
    ]
    for row in rows:
        begins = f"| {row.name} | {row.kind} | {row.start or 'random'} |"
        for seed in row.seeds:
            found = there.get((row.name, seed))
            lines.append(f"{begins} {seed} | {_run(found)} |" if found else f"{begins} {seed} | not run | | | | |")
    return lines


def _run(found: dict[str, Any]) -> str:
    before, after = found["before"], found["after"]
    ndcg = f"{mean(before['ndcg']):.3f} -> {mean(after['ndcg']):.3f}"
    best = f"{mean(before['best_first']):.1%} -> {mean(after['best_first']):.1%}"
    form = f"{before['malformed']:.1%} -> {after['malformed']:.1%}"
    return f"{ndcg} | {best} | {form} | {found['steps']} | {found['processor_seconds']:.0f} / {found['seconds']:.0f}"


def _gain(row: Row, there: Records) -> tuple[list[float], list[float]]:
    """The gain of each question, mean over the seeds that are there; and the mean gain of each of these seeds."""
    runs = [there[row.name, seed] for seed in row.seeds if (row.name, seed) in there]
    each = [
        [found["after"][row.metric][name] - found["before"][row.metric][name] for name in found["before"][row.metric]]
        for found in runs
    ]
    return [sum(of) / len(of) for of in zip(*each, strict=True)], [sum(of) / len(of) for of in each]


def _differences(there: Records) -> list[str]:
    gains = {name: _gain(row, there) for name, row in ROWS.items()}
    tested = [name for name, (_, of_seed) in gains.items() if len(of_seed) == len(SEEDS)]
    raw = [paired_permutation_test(gains[name][0]) for name in tested]
    corrected = dict(zip(tested, holm(raw), strict=True)) if tested else {}
    lines = [
        "After less before on the test side, for each question the mean over the seeds; 95 % bootstrap interval and "
        "permutation test over questions, Holm's correction over the rows with three seeds. A row of one seed has no "
        "verdict.",
        "",
        *_table("run", "measure", "gain", "95 % interval", "p", "gain of each seed", "their deviation", ""),
    ]
    for name, (gain, of_seed) in gains.items():
        if not of_seed:
            continue
        low, high = bootstrap_interval(gain)
        p = f"{corrected[name]:.4f} (Holm)" if name in corrected else f"{paired_permutation_test(gain):.4f}"
        word = _verdict(low, high) if name in corrected else f"{len(of_seed)} seed{'s' if len(of_seed) > 1 else ''}"
        lines.append(
            f"| {name} | {NAMES[ROWS[name].metric]} | {sum(gain) / len(gain):+.3f} | {low:+.3f} to {high:+.3f} | {p} | "
            f"{', '.join(f'{one:+.3f}' for one in of_seed)} | {f'{stdev(of_seed):.3f}' if len(of_seed) > 1 else ''} | "
            f"{word} |"
        )
    return lines


def _verdict(low: float, high: float) -> str:
    return "learned" if low > 0 else "unlearned" if high < 0 else "not shown"


def _topics(there: Records) -> list[str]:
    """Before and after, apart by what the teacher knew."""
    misled = {
        example.query.query_id: int(example.query.text.split()[0][1:]) in MISLED
        for example in questions(TEST, 2, side="test")
    }
    lines = [
        "Questions of the topics of which the teacher is mostly wrong, and of the others; mean over the seeds.",
        "",
        *_table("run", "measure", "mostly wrong", "others"),
    ]
    for name, row in ROWS.items():
        runs = [there[name, seed] for seed in row.seeds if (name, seed) in there]
        if runs:
            cells = [
                f"{_of_topics(runs, 'before', row.metric, misled, of):.3f} -> "
                f"{_of_topics(runs, 'after', row.metric, misled, of):.3f}"
                for of in (True, False)
            ]
            lines.append(f"| {name} | {NAMES[row.metric]} | {' | '.join(cells)} |")
    return lines


def _of_topics(runs: list[dict[str, Any]], when: str, metric: str, misled: dict[str, bool], of: bool) -> float:
    values = [value for found in runs for name, value in found[when][metric].items() if misled[name] is of]
    return sum(values) / len(values)


def _ablations(there: Records) -> list[str]:
    """The listwise rows of one seed beside rearank's of the same seed; the reader's reward over all seeds."""
    lines = [
        "nDCG@10 after training less that of `rearank` after training with the same seeds and the same questions. One "
        "seed says nothing of another: no verdict.",
        "",
        *_table("run", "seeds", "difference", "95 % interval", "p"),
    ]
    for name, row in ROWS.items():
        seeds = [seed for seed in row.seeds if (name, seed) in there and ("rearank", seed) in there]
        if name == "rearank" or row.kind != "listwise" or not seeds:
            continue
        values = [
            sum(there[name, s]["after"]["ndcg"][q] - there["rearank", s]["after"]["ndcg"][q] for s in seeds)
            / len(seeds)
            for q in there[name, seeds[0]]["after"]["ndcg"]
        ]
        low, high = bootstrap_interval(values)
        lines.append(
            f"| {name} | {', '.join(map(str, seeds))} | {sum(values) / len(values):+.3f} | {low:+.3f} to {high:+.3f} | "
            f"{paired_permutation_test(values):.4f} |"
        )
    return lines


def _curves(there: Records) -> list[str]:
    lines = [
        f"Dev side by step, and means over each {BLOCK} steps of what GRPO logs: reward, share of prompts whose "
        "rollouts all earn the same (they teach nothing), KL to the start.",
        "",
        *_table("run", "seed", "measure on dev: step", "reward", "no spread", "KL"),
    ]
    for name, row in ROWS.items():
        for seed in row.seeds:
            if (name, seed) in there:
                log = there[name, seed]["log"]
                key = f"eval_{row.metric}"
                scores = ", ".join(f"{line['step']}: {line[key]:.3f}" for line in log if key in line)
                means = " | ".join(_means(log, what) for what in ("reward", "frac_reward_zero_std", "kl"))
                lines.append(f"| {name} | {seed} | {NAMES[row.metric]} {scores} | {means} |")
    return lines


def _means(log: list[dict[str, Any]], name: str) -> str:
    values = [line[name] for line in log if line.get(name) is not None]
    blocks = [values[start : start + BLOCK] for start in range(0, len(values), BLOCK)]
    return ", ".join(f"{sum(block) / len(block):.2f}" for block in blocks)


def _settings() -> list[str]:
    lines = [
        "The same for all but what the table names: temperature 1, KL weight 0.001, clip 0.2, loss `sequence_mean`, "
        "advantages by the deviation of the prompt's rewards, one update of each generation, constant learning rate "
        "after a short rise.",
        "",
        *_table("run", "reward", "learning rate", "steps", "questions a step", "prompts of each", "rollouts"),
    ]
    for row in (*LESSONS.values(), *ROWS.values()):
        prompts = str(6 if row.start == SHORT else 1) if row.reward else ""
        rollouts = str(row.grpo.rollouts) if row.reward else ""
        options = "".join(f", {name} {value}" for name, value in row.options.items())
        lines.append(
            f"| {row.name} | {row.reward or 'none (SFT)'}{options} | {row.loop.learning_rate:g} | "
            f"{row.loop.trainer['max_steps']} | {row.loop.batch_size} | {prompts} | {rollouts} |"
        )
    return lines
