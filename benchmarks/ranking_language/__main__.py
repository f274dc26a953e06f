"""`python -m benchmarks.ranking_language run rearank --seed 0` measures one row of analysis.md, `page` writes
results/ranking_language.md. Resumable: what was measured is kept in results/kept/ranking_language/ and not run again; a
warm-up is made once a seed and form, and its weights stay in work/."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.kept import WORK, digests, hardware, measured, read
from benchmarks.ranking_language.language import (
    PerfectReader,
    prompt,
    questions,
    taught_levels,
    written,
)
from rankwright.algorithms.config import TrainConfig
from rankwright.algorithms.generating import GRPOConfig, SFTConfig
from rankwright.algorithms.grpo import PromptRow, PromptRows, TRLReward, order_of
from rankwright.metrics.ranking import ranking_metrics
from rankwright.metrics.significance import bootstrap_interval, holm, paired_permutation_test
from rankwright.rewards import answer_reward, ranking_reward
from rankwright.types import Completion, Context, Example, Outcome, Ranking, Reward, RewardValue

HERE = Path(__file__).parent
PAGE = HERE.parent / "results" / "ranking_language.md"
PLACE = WORK / "ranking_language"
DECIDING = tuple(HERE / name for name in ("language.py", "decoder.py", "listwise.yaml", "setwise.yaml"))
SECONDS = 240
"""Of a run's training."""
SEEDS = (0, 1, 2)
METRIC = "nDCG@10"


@dataclass(frozen=True)
class Row:
    """One row of analysis.md."""

    name: str
    reward: str
    """Empty for SFT."""
    kind: str = "listwise"
    warm: bool = True
    """Whether it starts from the warm-up."""
    seeds: tuple[int, ...] = (0,)
    grpo: GRPOConfig = field(
        default_factory=lambda: GRPOConfig(
            rollouts=8, max_completion_length=36, beta=0.001, completions_per_pass=128, completions_at_once=128
        )
    )
    loop: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            batch_size=16,
            learning_rate=3e-4,
            eval_steps=30,
            trainer={"max_steps": 120, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5},
        )
    )


BASE = Row("rearank", "rearank", seeds=SEEDS)
WARM_UP = Row(
    "warm-up",
    "",
    warm=False,
    seeds=SEEDS,
    loop=TrainConfig(
        batch_size=64,
        learning_rate=1e-3,
        eval_steps=150,
        trainer={"max_steps": 450, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 30},
    ),
)
FIRST_LESSON = replace(
    WARM_UP,
    loop=replace(
        WARM_UP.loop,
        eval_steps=600,
        trainer={"max_steps": 600, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 30},
    ),
)
"""Windows of one and two passages: what words are worth, before long prompts."""
ROWS = {
    row.name: row
    for row in (
        WARM_UP,
        BASE,
        replace(BASE, name="rank-r1", reward="rank-r1", kind="setwise"),
        replace(BASE, name="reader", reward="reader"),
        replace(BASE, name="reasonrank", reward="reasonrank", seeds=(0,)),
        replace(BASE, name="rl-only", warm=False, seeds=(0,)),
        replace(BASE, name="sft-only", reward="", seeds=(0,), loop=replace(BASE.loop, batch_size=64)),
        replace(BASE, name="ndcg", reward="ndcg", seeds=(0,)),
        replace(BASE, name="difference", reward="difference", seeds=(0,)),
        replace(
            BASE,
            name="group-4",
            seeds=(0,),
            grpo=replace(BASE.grpo, rollouts=4),
            loop=replace(BASE.loop, batch_size=32),
        ),
        replace(
            BASE,
            name="group-16",
            seeds=(0,),
            grpo=replace(BASE.grpo, rollouts=16),
            loop=replace(BASE.loop, batch_size=8),
        ),
    )
}


@dataclass(frozen=True)
class PlainNDCG:
    """Raw nDCG@10 of the window, or what it is above that of the order as given; 0 for malformed ones. Ablations."""

    name: str

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        return [RewardValue(self._one(outcome)) for outcome in outcomes]

    def _one(self, outcome: Outcome) -> float:
        assert outcome.judgement is not None
        if outcome.judgement.outcome == "malformed":
            return 0.0
        count = len(outcome.context.documents)
        value = _ndcg(outcome.example, order_of(outcome.judgement, count))
        return value - (_ndcg(outcome.example, range(count)) if self.name == "difference" else 0.0)


def _ndcg(example: Example, order: Sequence[int]) -> float:
    return ranking_metrics([_ranking(example, order)], {example.query.query_id: example.relevance}, [METRIC])[METRIC][
        example.query.query_id
    ]


def _ranking(example: Example, order: Sequence[int]) -> Ranking:
    ids = tuple(example.candidates[i].doc_id for i in order)
    return Ranking(example.query.query_id, ids, tuple(map(float, range(len(ids), 0, -1))))


def reward_of(name: str) -> Reward:
    """The reward of a row."""
    if name in ("ndcg", "difference"):
        return PlainNDCG(name)
    if name == "reader":
        return ranking_reward("reader", reader=PerfectReader(), reward=answer_reward("f1"), depth=1)
    return ranking_reward(name)


@dataclass(frozen=True)
class Score:
    """What is measured of a model on the held-out questions."""

    kind: str
    tokenizer: Any
    examples: tuple[Example, ...]

    def values(self, model: Any) -> dict[str, Any]:
        """nDCG@10 by question, share of malformed completions, mean F1 of the reader's answer from the first passage,
        share of first passages that are best."""
        from benchmarks.ranking_language.decoder import LONGEST_COMPLETION
        from rankwright.tuning import greedy

        asked = prompt(self.kind)
        rows = _rows(self.examples, asked).rows
        texts = greedy(model, self.tokenizer, [row.messages for row in rows], LONGEST_COMPLETION, 300)
        sizes = [len(row.documents) for row in rows]
        judged = [asked.parse(Completion(text), size) for text, size in zip(texts, sizes, strict=True)]
        strict = [asked.parse(Completion(text), size, strict=True) for text, size in zip(texts, sizes, strict=True)]
        orders = [order_of(one, size) for one, size in zip(judged, sizes, strict=True)]
        rankings = [_ranking(row.example, order) for row, order in zip(rows, orders, strict=True)]
        first = [row.documents[order[0]] for row, order in zip(rows, orders, strict=True)]
        answers = PerfectReader().answer(
            [Context(row.example.query, (document,)) for row, document in zip(rows, first, strict=True)]
        )
        hits = [answer.text in row.example.answers for answer, row in zip(answers, rows, strict=True)]  # pyright: ignore[reportAttributeAccessIssue]
        return {
            "ndcg": ranking_metrics(rankings, {e.query.query_id: e.relevance for e in self.examples}, [METRIC])[METRIC],
            "malformed": sum(one.outcome == "malformed" for one in strict) / len(strict),
            "best_first": sum(hits) / len(hits),
        }

    def __call__(self, model: Any) -> dict[str, float]:
        found = self.values(model)
        mean = sum(found["ndcg"].values()) / len(found["ndcg"])
        return {"eval_ndcg": mean, "eval_malformed": found["malformed"], "eval_best_first": found["best_first"]}


def kept_at(row: Row, seed: int) -> tuple[Path, dict[str, Any]]:
    """File of a run's record, and what decides it."""
    made_with = {"row": asdict(row), "first lesson": asdict(FIRST_LESSON), "seed": seed, **digests(DECIDING)}
    return PLACE / f"{row.name}-{seed}.json", json.loads(json.dumps(made_with))  # as it is read back


def run(row: Row, seed: int) -> dict[str, Any]:
    """The record of one run, measured or kept."""
    return measured(*kept_at(row, seed), lambda: _run(row, seed))


def warm_model(kind: str, seed: int) -> Path:
    """Folder of the warm-up of this form and seed, made where it is not there."""
    row = replace(WARM_UP, kind=kind, name=f"{WARM_UP.name}{'' if kind == 'listwise' else f'-{kind}'}")
    folder = PLACE / f"{row.name}-{seed}"
    if not (folder / "config.json").exists():
        first = _first_lesson(kind, seed)
        record = _run(row, seed, folder, first)
        measured(*kept_at(row, seed), lambda: record)
    return folder


def _first_lesson(kind: str, seed: int) -> Path:
    folder = PLACE / f"first-{kind}-{seed}"
    short = [one for window in (1, 2) for one in questions(19_200, window, window=window)]
    if not (folder / "config.json").exists():
        _run(replace(FIRST_LESSON, kind=kind), seed, folder, _random(seed), short)
    return folder


def _random(seed: int) -> Path:
    """Folder of the decoder before it has learned anything."""
    from benchmarks.ranking_language.decoder import decoder, tokenizer

    folder = PLACE / f"random-{seed}"
    if not (folder / "config.json").exists():
        tokenizer().save_pretrained(folder)
        decoder(seed).save_pretrained(folder)
    return folder


def _run(
    row: Row, seed: int, save: Path | None = None, start: Path | None = None, lessons: Sequence[Example] = ()
) -> dict[str, Any]:
    """The record of one run.

    Args:
        row: what is run.
        seed: of training.
        save: where the model is to lie.
        start: what it starts from, by default what the row says.
        lessons: questions of SFT, by default those of long windows.
    """
    from benchmarks.ranking_language.decoder import tokenizer
    from rankwright.tuning import Taught, save_tuned, tune_by_completions, tune_by_reward

    words = tokenizer()
    start = start or (warm_model(row.kind, seed) if row.warm else _random(seed))
    score = Score(row.kind, words, tuple(questions(300, 2, held_out=True)))
    more: dict[str, Any] = {"seed": seed, "score": score, "seconds": SECONDS}
    before = score.values(_loaded(start))
    asked = prompt(row.kind)
    with tempfile.TemporaryDirectory() as folder:
        if row.reward:
            rows = _rows(questions(4_000, 1), asked)
            reward = TRLReward(reward_of(row.reward), asked, rows, row.grpo.rollouts)
            tuned = tune_by_reward(start, words, reward, row.grpo, row.loop, Path(folder), **more)
        else:
            rows = _rows(lessons or questions(28_800, 0), asked)
            taught = [Taught(one.messages, written(taught_levels(one.example, seed), row.kind)) for one in rows.rows]
            tuned = tune_by_completions(start, words, taught, SFTConfig(), row.loop, Path(folder), **more)
    if save is not None:
        save_tuned(tuned, words, save)
    logged = ("step", "eval_ndcg", "eval_malformed", "eval_best_first", "reward", "kl", "completions/mean_length")
    return {
        "before": before,
        "after": score.values(tuned.model),
        "log": [one for line in tuned.history if len(one := {n: line[n] for n in logged if n in line}) > 1],
        "steps": tuned.steps,
        "seconds": tuned.seconds,
        "stopped": tuned.stopped,
        "hardware": hardware(),
    }


def _rows(examples: Sequence[Example], asked: Any) -> PromptRows:
    """Prompts of all of them, those of one passage too."""
    rows = tuple(PromptRow(e, e.candidates, asked.messages(e.query, e.candidates)) for e in examples)
    return PromptRows(rows, 1)


def _loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


# --- the page


def page() -> str:
    """results/ranking_language.md as far as runs are kept."""
    records = {(row.name, seed): read(*kept_at(row, seed)) for row in ROWS.values() for seed in row.seeds}
    there = {key: record for key, record in records.items() if record is not None}
    lines = [
        "# GRPO on the ranking language",
        "",
        "`python -m benchmarks.ranking_language run NAME --seed N`, then `python -m benchmarks.ranking_language page`. "
        "What is measured and how it is read was fixed before the first GRPO run: "
        "[analysis.md](../ranking_language/analysis.md).",
        "",
        f"Measured on {', '.join(sorted({record['hardware'] for record in there.values()}))}. Held-out {METRIC}, "
        "malformed completions and first passages that are the best one, before -> after.",
        "",
        f"| run | seed | {METRIC} | malformed | best first | steps | seconds |",
        "|---|---|---|---|---|---|---|",
        *(_line(name, seed, record) for (name, seed), record in records.items()),
        "",
        "## Differences",
        "",
        "Mean over the seeds of each held-out question's difference; 95 % bootstrap interval, permutation test, Holm's "
        "correction over the runs with three seeds.",
        "",
        *_differences(there),
        "",
        "## Curves",
        "",
        f"| run | seed | {METRIC} by step | mean reward of ten steps |",
        "|---|---|---|---|",
        *(_curve(name, seed, record) for (name, seed), record in there.items()),
    ]
    return "\n".join(lines) + "\n"


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def _line(name: str, seed: int, record: dict[str, Any] | None) -> str:
    if record is None:
        return f"| {name} | {seed} | not run | | | | |"
    before, after = record["before"], record["after"]
    ended = f"{record['steps']}{' (time over)' if record['stopped'] else ''}"
    return (
        f"| {name} | {seed} | {_mean(before['ndcg']):.3f} -> {_mean(after['ndcg']):.3f} | {before['malformed']:.1%} -> "
        f"{after['malformed']:.1%} | {before['best_first']:.1%} -> {after['best_first']:.1%} | {ended} | "
        f"{record['seconds']:.0f} |"
    )


def _differences(there: dict[tuple[str, int], dict[str, Any]]) -> list[str]:
    found = {}
    for row in ROWS.values():
        of_row = [there[row.name, seed] for seed in row.seeds if (row.name, seed) in there]
        if len(of_row) == len(SEEDS) and row.name != WARM_UP.name:
            found[row.name] = [
                sum(one["after"]["ndcg"][name] - one["before"]["ndcg"][name] for one in of_row) / len(of_row)
                for name in of_row[0]["before"]["ndcg"]
            ]
    if not found:
        return ["No run has its three seeds yet."]
    corrected = dict(zip(found, holm([paired_permutation_test(values) for values in found.values()]), strict=True))
    lines = ["| run | difference | 95 % interval | p (Holm) | |", "|---|---|---|---|---|"]
    for name, values in found.items():
        low, high = bootstrap_interval(values)
        word = "learned" if low > 0 else "unlearned" if high < 0 else "not shown"
        lines.append(
            f"| {name} | {sum(values) / len(values):+.3f} | {low:+.3f} to {high:+.3f} | {corrected[name]:.4f} | "
            f"{word} |"
        )
    return lines


def _curve(name: str, seed: int, record: dict[str, Any]) -> str:
    scores = [f"{line['step']}: {line['eval_ndcg']:.3f}" for line in record["log"] if "eval_ndcg" in line]
    rewards = [line["reward"] for line in record["log"] if line.get("reward") is not None]
    tens = [f"{sum(rewards[i : i + 10]) / len(rewards[i : i + 10]):.2f}" for i in range(0, len(rewards), 10)]
    return f"| {name} | {seed} | {', '.join(scores)} | {', '.join(tens)} |"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "page"))
    parser.add_argument("row", nargs="?", choices=tuple(ROWS))
    parser.add_argument("--seed", type=int, help="all of the row by default")
    given = parser.parse_args()
    if given.what == "page":
        PAGE.write_text(page(), encoding="utf-8")
        return
    if given.row is None:
        sys.exit(f"run wants one of {', '.join(ROWS)}.")
    row = ROWS[given.row]
    for seed in row.seeds if given.seed is None else (given.seed,):
        if row.name == WARM_UP.name:
            warm_model(row.kind, seed)
        else:
            run(row, seed)
        print(_line(row.name, seed, read(*kept_at(row, seed))))


if __name__ == "__main__":
    main()
