"""What our GRPO step costs beside a bare TRL script: `python -m benchmarks.grpo_cost` (some minutes; it writes
results/grpo-cost.md).

The bare script is what TRL's own examples are: a data set of prompts, a function that finds an order in a completion
and pays REARANK's relative nDCG for it, a GRPOTrainer. Ours is `tune_by_reward`: whole questions, strict parser and
reward of the toolkit, parts in the log, generation in portions. Both have the same weights, prompts, numbers of
completions, passes and updates. They take turns in one process, on one thread; a step is from the end of one optimizer
step to the end of the next, so that it holds data, generation, reward, loss and log. Checkpoints are left out.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.kept import hardware
from benchmarks.pages import of_one_table, spread
from benchmarks.ranking_language.decoder import decoder, tokenizer
from benchmarks.ranking_language.language import prompt, questions
from rankwright.algorithms.config import TrainConfig
from rankwright.algorithms.generating import GRPOConfig
from rankwright.algorithms.grpo import TRLReward, prompt_rows
from rankwright.rewards import ranking_reward
from rankwright.tuning import tune_by_reward

PAGE = Path(__file__).parent / "results" / "grpo-cost.md"
QUESTIONS, WINDOW, ROLLOUTS, PER_PASS, ANSWER = 8, 8, 8, 32, 36
RATE = 1e-4
HEADS = ("rankwright, processor s", "bare TRL, processor s", "ratio", "rankwright, s", "bare TRL, s", "ratio")
SIZES = {"1 million weights": (128, 4), "2 million weights": (192, 4)}
Stamp = tuple[float, float]
"""Seconds by the clock, and of the processor."""


@contextmanager
def stamps() -> Iterator[list[Stamp]]:
    """Notes when each optimizer step of any Trainer ends."""
    from transformers.trainer_callback import CallbackHandler

    noted: list[Stamp] = []
    original = CallbackHandler.on_step_end

    def on_step_end(self: Any, *args: Any, **kwargs: Any) -> Any:
        noted.append((time.perf_counter(), time.process_time()))
        return original(self, *args, **kwargs)

    CallbackHandler.on_step_end = on_step_end
    try:
        yield noted
    finally:
        CallbackHandler.on_step_end = original


def bare(model: Path, folder: Path, steps: int, seed: int) -> None:
    """The script without the toolkit; prompts are taken from it, since they must be the same."""
    from datasets import Dataset
    from trl import GRPOConfig as TRLConfig  # pyright: ignore[reportPrivateImportUsage]
    from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    examples, made = questions(4 * QUESTIONS, 0, window=WINDOW), prompt()
    rows = [
        {
            "prompt": [{"role": "user", "content": made.messages(e.query, e.candidates)[0][1]}],
            "grades": [e.relevance[document.doc_id] for document in e.candidates],
        }
        for e in examples
    ]

    def dcg(grades: Sequence[int]) -> float:
        return sum(grade / math.log2(rank + 2) for rank, grade in enumerate(grades[:10]))

    def reward(completions: Any, grades: Any, **_: Any) -> list[float | None]:
        values: list[float | None] = []
        for completion, given in zip(completions, grades, strict=True):
            text = completion[0]["content"]
            found = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
            order = [int(number) - 1 for number in re.findall(r"\[(\d+)\]", found[1])] if found else []
            relative = 0.0
            if sorted(order) == list(range(len(given))):
                initial, ideal = dcg(given), dcg(sorted(given, reverse=True))
                relative = (dcg([given[i] for i in order]) - initial) / ((ideal - initial) or 1.0)
            tags = all(tag in text for tag in ("<think>", "</think>", "<answer>", "</answer>"))
            values.append(0.8 * relative + 0.1 * tags + 0.1 * bool(order))
        return values

    arguments = TRLConfig(
        output_dir=str(folder),
        learning_rate=RATE,
        per_device_train_batch_size=PER_PASS,
        gradient_accumulation_steps=QUESTIONS * ROLLOUTS // PER_PASS,
        num_generations=ROLLOUTS,
        max_completion_length=ANSWER,
        max_steps=steps,
        beta=0.0,
        loss_type="grpo",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        seed=seed,
        model_init_kwargs={"dtype": "float32", "device_map": None},
    )
    trainer: Any = GRPOTrainer(
        str(model),
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    trainer.train()


def ours(model: Path, folder: Path, steps: int, seed: int) -> None:
    """The same by the toolkit."""
    made = prompt()
    rows = prompt_rows(questions(4 * QUESTIONS, 0, window=WINDOW), made, WINDOW)
    reward = TRLReward(ranking_reward("rearank"), made, rows, ROLLOUTS)
    config = GRPOConfig(rollouts=ROLLOUTS, max_completion_length=ANSWER, completions_per_pass=PER_PASS)
    loop = TrainConfig(batch_size=QUESTIONS, learning_rate=RATE, eval_steps=10 * steps, trainer={"max_steps": steps})
    tune_by_reward(model, tokenizer(), reward, config, loop, folder, seed=seed)


LOOPS: dict[str, Callable[[Path, Path, int, int], None]] = {"bare TRL": bare, "rankwright": ours}


def measure(width: int, layers: int, repeats: int, steps: int) -> dict[str, list[Stamp]]:
    """Mean seconds of a step of each loop, for each repeat; its first step warms up. The loops change places from
    repeat to repeat."""
    found: dict[str, list[Stamp]] = {name: [] for name in LOOPS}
    with TemporaryDirectory() as place:
        model = Path(place) / "model"
        decoder(0, width=width, layers=layers).save_pretrained(model)
        tokenizer().save_pretrained(model)
        for repeat in range(repeats):
            for name in sorted(LOOPS, reverse=repeat % 2 == 1):
                with stamps() as noted:
                    LOOPS[name](model, Path(place) / f"{name}-{repeat}", steps, repeat)
                assert len(noted) == steps
                walls, cpus = zip(*noted, strict=True)
                found[name].append(((walls[-1] - walls[0]) / (steps - 1), (cpus[-1] - cpus[0]) / (steps - 1)))
    return found


def line(size: str, found: dict[str, list[Stamp]]) -> str:
    """A row of the page."""
    cells = [size]
    for clock in (1, 0):
        pairs = [(a[clock], b[clock]) for a, b in zip(found["rankwright"], found["bare TRL"], strict=True)]
        whole = sum(a for a, _ in pairs) / sum(b for _, b in pairs)
        cells += [spread([a for a, _ in pairs], ".3f"), spread([b for _, b in pairs], ".3f")]
        cells += [f"{whole:.3f}; {spread([a / b for a, b in pairs], '.3f')}"]
    return f"| {' | '.join(cells)} |"


def page(lines: Sequence[str], repeats: int, steps: int) -> str:
    """The results page."""
    about = (
        f"Measured on: {hardware()}, one thread, alone. A step: {QUESTIONS} questions with {ROLLOUTS} "
        f"completions of {ANSWER} tokens at most\nabout {WINDOW} passages of the ranking language, REARANK's reward, "
        f"passes of {PER_PASS} completions, fp32, random weights. {repeats} runs of\n{steps} steps of each loop in "
        "turn in one process, the first step of a run left out; one seed for each repeat. Median of the runs'\nmeans "
        "(smallest to largest); the ratio is rankwright by bare TRL, of the sums, then of neighbouring runs. Other "
        "work on the\nmachine changes processor seconds little, and seconds of the clock much."
    )
    note = (
        "The loops draw other completions, because they shuffle differently; a generation is as long as its longest "
        f"one, which has {ANSWER}\ntokens in both. Checkpoints and evaluations are left out. Goal: a ratio of at most "
        "1.05, by processor seconds."
    )
    heads = ("model", *HEADS)
    command = f"OMP_NUM_THREADS=1 python -m benchmarks.grpo_cost --repeats {repeats} --steps {steps}"
    return of_one_table("What GRPO costs beside a bare TRL script", command, about, heads, lines, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--size", choices=list(SIZES), help="only this one, printed and not written")
    args = parser.parse_args()
    lines = []
    for size, shape in SIZES.items():
        if args.size in (None, size):
            lines.append(line(size, measure(*shape, args.repeats, args.steps)))
            print(lines[-1], flush=True)
    if args.size is None:
        PAGE.write_text(page(lines, args.repeats, args.steps), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
