"""What a training step costs, beside a plain PyTorch loop of the same objective: `python -m benchmarks.cost run`
(resumable, half an hour; the machine must do nothing else), then `... page`.

The plain loop is what one writes first: one question at a time, every pair padded to the full length, every sampled
prefix read by itself and read again when it comes again, the frozen reference scored anew at every visit. Both take the
same questions, candidates, reader, reward, samples and steps. Every measurement has a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks import kept, pages, protocol
from benchmarks.embedded.sets import LOADERS, load_sets, passages, side
from benchmarks.kept import DEVICE, READER, REFERENCE, SPLIT, digests, measured, processor_words, read
from benchmarks.pages import spread
from rankwright.batching import tokens_at_once
from rankwright.types import Context, Example, Outcome, Query

WORK = Path(__file__).parent / "work" / "cost"
PAGE = Path(__file__).parent / "results" / "cost.md"
KEPT = kept.place(WORK / "any").parent
STEPS, BATCH, REPEATS = 2, 8, 3
PARTS = ("forward", "reference", "reader", "backward", "rest")
LOOPS = ("rankwright", "plain", "rankwright, bf16", "plain, bf16")
SHAPES = {
    f"{candidates} candidates, {train_k} steps": {"candidates": candidates, "train_k": train_k}
    for candidates, train_k in ((10, 3), (5, 3), (20, 3), (40, 3), (10, 1), (10, 5))
}
CORPORA = (1_000, 10_000, 100_000)
QUERIES = 500


class Clock:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Adds what runs inside."""
        began = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - began


class TimedReader:
    """A reader whose time is taken."""

    def __init__(self, reader: Any, clock: Clock) -> None:
        self.reader, self.clock, self.reads = reader, clock, 0
        self.name = reader.name

    def cache_key(self, context: Context) -> str:
        """Of the reader behind."""
        return self.reader.cache_key(context)

    def answer(self, contexts: Sequence[Context]) -> Any:
        """Its answers."""
        self.reads += len(contexts)
        with self.clock.of("reader"):
            return self.reader.answer(contexts)


def examples_of(candidates: int) -> list[Example]:
    """The protocol's first training questions with so many candidates."""
    return protocol.splits(train_depth=candidates)["train"][: STEPS * BATCH]


def rankwright_loop(examples: Sequence[Example], train_k: int, clock: Clock, bf16: bool = False) -> dict[str, Any]:
    """`train`, with a cache that is empty at first; `bf16` as `loop.trainer.bf16`."""
    from accelerate import Accelerator

    from rankwright.algorithms import RRPO, RRPOConfig
    from rankwright.algorithms.config import TrainConfig
    from rankwright.llms.cache import ReadStore
    from rankwright.readers import CachedReader, EmbeddedReader
    from rankwright.rerankers import load
    from rankwright.rewards import answer_reward
    from rankwright.training import train

    backward = Accelerator.backward

    def timed(self: Any, *args: Any, **named: Any) -> None:
        with clock.of("backward"):
            backward(self, *args, **named)

    Accelerator.backward = timed
    policy, reference = (load("reference", device=DEVICE, max_length=protocol.LENGTH) for _ in range(2))
    reader = TimedReader(EmbeddedReader(device=DEVICE), clock)
    with TemporaryDirectory() as folder, ReadStore(Path(folder) / "reads.sqlite") as store:
        rrpo = RRPO(RRPOConfig(train_k=train_k), CachedReader(reader, store), answer_reward("f1"))
        config = TrainConfig(epochs=1.0, batch_size=BATCH, trainer={"max_steps": STEPS, "bf16": bf16})
        began = time.perf_counter()
        result = train(policy, reference, rrpo, examples, config, Path(folder) / "run")
        seconds = time.perf_counter() - began
    clock.seconds["forward"] = result.seconds_by_part["forward"]
    clock.seconds["reference"] = result.seconds_by_part["reference"]
    return {"seconds": seconds, "reads": reader.reads}


def plain_loop(examples: Sequence[Example], train_k: int, clock: Clock, bf16: bool = False) -> dict[str, Any]:
    """The same objective without batching and without memory: anchored advantages standardised over the recent ones,
    the policy that samples as the ratio's denominator (so that the ratio is 1 and its gradient that of the log
    probability), exact KL 0.02, no dropout; `bf16` is autocast around the policy."""
    from rankwright.readers import EmbeddedReader
    from rankwright.rerankers import load

    policy, reference = (load("reference", device=DEVICE, max_length=protocol.LENGTH) for _ in range(2))
    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    reader = TimedReader(EmbeddedReader(device=DEVICE), clock)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-5)
    draw = torch.Generator().manual_seed(0)
    policy.train()
    recent: list[float] = []
    began = time.perf_counter()
    for at in range(0, len(examples), BATCH):
        optimizer.zero_grad()
        for example in examples[at : at + BATCH]:
            with clock.of("forward"), torch.autocast(DEVICE.split(":")[0], torch.bfloat16, enabled=bf16):
                row = plain_scores(policy, example)
            row = row.float()
            with torch.no_grad(), clock.of("reference"):
                fixed = plain_scores(reference, example)
            best = fixed.argsort(descending=True).tolist()[:train_k]
            values = [price(reader, example, best[: t + 1]) for t in range(train_k)]
            logprobs, advantages = [], []
            for _ in range(4):
                left, chosen, gains = list(range(len(example.candidates))), [], []
                for t in range(min(train_k, len(left))):
                    log_p = row[left].log_softmax(0)
                    pick = int(torch.multinomial(log_p.detach().exp().cpu(), 1, generator=draw))
                    logprobs.append(log_p[pick])
                    chosen.append(left.pop(pick))
                    gains.append(price(reader, example, chosen) - values[t])
                advantages += [sum(gains[t:]) for t in range(len(gains))]
            recent = [*recent, *advantages][-512:]
            mean, deviation = float(np.mean(recent)), float(np.std(recent))
            weights = torch.tensor([(a - mean) / (deviation + 1e-8) for a in advantages], device=row.device)
            kl = (row.softmax(0) * (row.log_softmax(0) - fixed.log_softmax(0))).sum()
            loss = (-(torch.stack(logprobs) * weights).mean() + 0.02 * kl) / BATCH
            with clock.of("backward"):
                loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    return {"seconds": time.perf_counter() - began, "reads": reader.reads}


def plain_scores(model: Any, example: Example) -> torch.Tensor:
    """scores_D of one question, every pair padded to the full length."""
    questions = [example.query.text] * len(example.candidates)
    texts = [f"{d.title}: {d.text}" if d.title else d.text for d in example.candidates]
    batch = model.tokenizer(
        questions, texts, truncation=True, max_length=protocol.LENGTH, padding="max_length", return_tensors="pt"
    )
    return model.model(**batch.to(DEVICE)).logits[:, 0]


def price(reader: Any, example: Example, order: Sequence[int]) -> float:
    """F1 of the answer from the candidates at these positions, read by themselves."""
    from rankwright.rewards import answer_reward

    context = Context(example.query, tuple(example.candidates[i] for i in order))
    (answer,) = reader.answer([context])
    (value,) = answer_reward("f1")([Outcome(example, context, answer, len(order), example.query.query_id)])
    return float(value.value or 0.0)


def step_cost(loop: str, candidates: int, train_k: int) -> dict[str, Any]:
    """Seconds of a step by part, reads and peak memory of the process."""
    run: Callable[..., dict[str, Any]] = plain_loop if loop.startswith("plain") else rankwright_loop
    clock = Clock()
    found = run(examples_of(candidates), train_k, clock, bf16=loop.endswith("bf16"))
    clock.seconds["rest"] = found["seconds"] - sum(clock.seconds.values())
    return {
        "machine": machine(),
        "seconds": found["seconds"] / STEPS,
        "parts": {part: seconds / STEPS for part, seconds in clock.seconds.items()},
        "reads": found["reads"] / STEPS,
        "peak_mib": peak_mib(),
    }


def corpus_cost(size: int) -> dict[str, Any]:
    """Seconds to index a corpus of so many passages, queries per second at depth 10, memory of the index and at most
    while it is made. The real passages come again under other ids where the corpus is larger than they are many."""
    from rankwright.retrieval import BM25

    real = list(passages(load_sets(LOADERS)).values())
    corpus = [replace(real[i % len(real)], doc_id=f"{i}") for i in range(size)]
    queries = [Query(question.key, question.text) for question in side("rrpo", protocol.OPEN_SETS)][:QUERIES]
    began = time.perf_counter()
    index = BM25(corpus)
    indexed = time.perf_counter()
    index.retrieve(queries, 10)
    ended = time.perf_counter()
    tracemalloc.start()  # slows everything down, so the index is made once more
    again = BM25(corpus)
    held, peak = tracemalloc.get_traced_memory()
    del again
    return {
        "machine": machine(),
        "index_seconds": indexed - began,
        "queries_per_second": len(queries) / (ended - indexed),
        "index_mib": held / 2**20,
        "peak_mib": peak / 2**20,
    }


def peak_mib() -> float:
    """Most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tasks() -> dict[str, dict[str, Any]]:
    """Name -> what it measures; loops take turns, so that a slow minute of the machine meets both."""
    found: dict[str, dict[str, Any]] = {}
    for repeat in range(REPEATS):
        for words, shape in SHAPES.items():
            for loop in LOOPS:
                found[f"{words}, {loop}, {repeat}"] = {"loop": loop, **shape}
        for size in CORPORA:
            found[f"corpus {size}, {repeat}"] = {"size": size}
    return found


def kept_at(name: str) -> tuple[Path, dict[str, Any]]:
    """File of a measurement, and what decides it."""
    words = "".join(c if c.isalnum() else "-" for c in name)
    task = tasks()[name]
    made_with = {"task": task, "steps": STEPS, **digests([READER, REFERENCE, SPLIT])}
    if "loop" in task:  # a corpus is indexed without a model
        made_with["tokens_at_once"] = budget()
    return WORK / f"{words}.json", made_with


def machine() -> str:
    """Where this process computes: seconds of two machines, or of one and of two threads, are not of one table."""
    return f"{processor_words()}; {torch.get_num_threads()} threads"


def machines() -> list[str]:
    """Of all measurements that are there."""
    return sorted({record["machine"] for name in tasks() if (record := read(*kept_at(name)))})


def budget() -> int:
    """Padded tokens of one forward pass of rankwright."""
    return tokens_at_once(torch.device(DEVICE).type)


def run_one(name: str) -> None:
    """One measurement, kept."""
    task = tasks()[name]

    def measure() -> dict[str, Any]:
        if others := [words for words in machines() if words != machine()]:
            here = f"This is {machine()}; {KEPT} has times of {others[0]}"
            sys.exit(f"{here}. Move them away to measure all of them here.")
        return corpus_cost(**task) if "size" in task else step_cost(**task)

    record = measured(*kept_at(name), measure)
    print(name, {key: round(value, 2) for key, value in record.items() if isinstance(value, float)}, flush=True)


def records(prefix: str) -> list[dict[str, Any]]:
    """All repeats of a measurement that are there."""
    names = [f"{prefix}, {repeat}" for repeat in range(REPEATS)]
    return [record for name in names if (record := read(*kept_at(name))) is not None]


def shape_lines(words: str) -> list[str]:
    """All loops of one shape, and how many times as long the plain one takes."""
    lines, found = [], {loop: records(f"{words}, {loop}") for loop in LOOPS}
    for loop in LOOPS:
        if not found[loop]:
            lines.append(f"| {words} | {loop} | not run |" + " |" * (len(PARTS) + 4))
            continue
        seconds = [record["seconds"] for record in found[loop]]
        parts = [f"{np.median([record['parts'][part] for record in found[loop]]):.2f}" for part in PARTS]
        reads = np.median([record["reads"] for record in found[loop]])
        peak = np.median([record["peak_mib"] for record in found[loop]])
        ratio, plain = "", found[loop.replace("rankwright", "plain")]
        if not loop.startswith("plain") and plain:
            ratio = f"{np.median([r['seconds'] for r in plain]) / np.median(seconds):.2f}x"
        lines.append(
            f"| {words} | {loop} | {spread(seconds, '.1f')} | {BATCH / np.median(seconds):.2f} | "
            + " | ".join(parts)
            + f" | {reads:.0f} | {peak:.0f} | {ratio} |"
        )
    return lines


def corpus_line(size: int) -> str:
    """One size of the corpus."""
    if not (found := records(f"corpus {size}")):
        return f"| {size} | not run | | | |"
    columns = {key: [record[key] for record in found] for key in found[0] if key != "machine"}
    index, asked = spread(columns["index_seconds"], ".2f"), spread(columns["queries_per_second"], ".0f")
    memory = " | ".join(f"{np.median(columns[key]):.1f}" for key in ("index_mib", "peak_mib"))
    return f"| {size} | {index} | {asked} | {memory} |"


def page() -> str:
    """The results page."""
    return "\n".join(
        [
            "# What training costs",
            "",
            "```",
            "python -m benchmarks.cost run",
            "python -m benchmarks.cost page",
            "```",
            "",
            f"Measured on: {' and '.join(machines()) or 'not run'}. {STEPS} steps of {BATCH} questions of nq_open and "
            "xquad_en, 4 samples, embedded",
            "reference and reader, fp32 (bf16: autocast around the policy), pairs cut to 160 tokens, cold "
            "cache, the start of the process",
            f"left out. Median of {REPEATS} processes (smallest to largest), the loops in turn. The plain loop is the "
            "same objective in the same precision, one question at",
            "a time, every pair padded to 160 tokens, every prefix read by itself. Parts are seconds of a step: "
            "forward (the policy's scores),",
            "reference (its scores), reader, backward, and the rest (sampling, cache, optimizer, logs, the checkpoint "
            "at the end). In later epochs",
            "rankwright saves the reference's part and most reads, which these steps, the first of a run, do not show.",
            f"Padded tokens of one forward pass of rankwright: {budget():,}.",
            "",
            "| shape | loop | seconds a step | questions/s | "
            + " | ".join(PARTS)
            + " | reads a step | peak MiB | plain / this |",
            "|---" * (len(PARTS) + 7) + "|",
            *(line for words in SHAPES for line in shape_lines(words)),
            "",
            "## The corpus",
            "",
            f"BM25 over so many passages, {QUERIES} questions at depth 10; the passages of all sets, again under other "
            "ids where more are",
            "asked for (their texts are held once, and no word is new). A training step does not see the corpus: "
            "candidates are retrieved once, before it.",
            "",
            "| passages | seconds to index | questions/s | MiB of the index | MiB while it is made |",
            "|---|---|---|---|---|",
            *(corpus_line(size) for size in CORPORA),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "one", "page"))
    parser.add_argument("--name", choices=list(tasks()))
    args = parser.parse_args()
    if args.what == "one":
        run_one(args.name)
    elif args.what == "run":
        kept.run_each([["benchmarks.cost", "one", "--name", name] for name in tasks()])
    else:
        steps = any(kept.place(kept_at(name)[0]).exists() for name, task in tasks().items() if "loop" in task)
        pages.write(PAGE, page(), measured=steps)


if __name__ == "__main__":
    sys.exit(main())
