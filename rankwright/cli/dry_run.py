"""`train --dry-run`: what a run costs at most, before anything is spent or written.

Calls, tokens and price are upper bounds: every visit of a question with as many reads as it may need, nothing from the
cache, no early end. Seconds are measured on the first batch and multiplied; reads of an endpoint are bounded by their
deadlines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from rankwright.budget import FREE, Ahead, Bill, total
from rankwright.cli.build import Splits, build_reader, checked_device, load_splits
from rankwright.cli.common import print_out, say
from rankwright.cli.costs import (
    check_expansion_price,
    expansion_bill,
    expansion_prices,
    run_costs,
    tokens_at_most,
)
from rankwright.cli.rewards import answer_reward_of
from rankwright.cli.run import first_context, learning, policy_of, rankers
from rankwright.cli.settings import RunSettings
from rankwright.evaluation import READS_AT_ONCE
from rankwright.types import Context, Document, Example, Query


@dataclass(frozen=True)
class Forecast:
    """What a run comes to at most."""

    steps: int
    """Optimizer steps."""
    questions: int
    """Visits of training questions."""
    evaluations: int
    """On dev."""
    bills: Mapping[str, Bill]
    """Part of the run -> its reads."""
    expansion: Bill
    """Of query expansion, whose calls are not the reader's."""
    roughly: int | None
    """Input tokens of all parts with four characters taken for one; None where they were counted."""
    seconds: Mapping[str, float | None]
    """Part of the run -> seconds on this machine; None for the reads of an endpoint, which only asking could tell."""
    reads_at_most: float | None
    """Seconds in which all reads of an endpoint are over, whatever it does; None where nothing bounds them, or there is
    no endpoint."""


def forecast(settings: RunSettings, name: str) -> Forecast:
    """What this run would cost at most. Asks no endpoint and writes nothing; a reader on this machine reads one batch.

    Raises:
        RankwrightError: what the run itself would be refused for, as far as it shows before the first step.
    """
    from rankwright.training import Schedule, check_arguments, usable_examples

    say("Dry run: nothing is spent or written.")
    checked_device(settings.model.device)
    reward = answer_reward_of(settings)
    check_expansion_price(settings)
    splits = load_splits(settings, instead=Longest)
    reader: Any = build_reader(settings.reader, None, "", settings.model.device)
    algorithm, _ = learning(settings, splits, reader, reward)
    check_arguments(settings.loop, settings.model.device)
    examples = usable_examples(splits.train)
    if not settings.expansion.wanted:  # what expansion finds is not known here
        algorithm.check(examples)
    parts = list(Schedule(examples, settings.loop, algorithm.inner_epochs, settings.seed, has_dev=True).whole())
    visits = [example for part in parts for example in part.examples]
    evaluations = sum(part.evaluations for part in parts)
    orders = len(rankers(splits, None, None))

    def bills(tokens_of: Callable[[Context], int]) -> dict[str, Bill]:
        costs = run_costs(settings, splits, algorithm, orders, tokens_of)
        first = first_context(f"{name}-{'0' * 8}")
        return {
            "first_call": costs.read(first) if settings.reader.is_endpoint else Bill(),
            "training": costs.training(visits),
            "dev": total([costs.evaluation] * evaluations),
            "comparison": costs.comparison,
        }

    counted = bills(_token_counter(settings, reader))
    return Forecast(
        steps=len(parts) * algorithm.inner_epochs,
        questions=len(visits),
        evaluations=evaluations,
        bills=counted,
        expansion=expansion_bill(settings, _questions(splits)) if settings.expansion.wanted else Bill(),
        roughly=total(bills(_characters(reader)).values()).input_tokens if settings.reader.is_endpoint else None,
        seconds=_seconds(settings, splits, reader, algorithm, visits, evaluations, total(counted.values()).calls),
        reads_at_most=_reads_at_most(settings, total(counted.values()), _batches(settings, parts, counted)),
    )


def _questions(splits: Splits) -> list[str]:
    texts = (example.query.text for side in (splits.train, splits.dev, splits.test) for example in side)
    return list(dict.fromkeys(texts))


class Longest:
    """Stands for a first stage that only asking could tell: gives every query the longest passages, which are no
    fewer and, in bytes, no shorter than those that would be found."""

    name = "longest"

    def __init__(self, corpus: Sequence[Document]) -> None:
        self._corpus = sorted(corpus, key=_size, reverse=True)

    def retrieve(self, queries: Sequence[Query], depth: int) -> list[tuple[Document, ...]]:
        """The same for each."""
        return [tuple(self._corpus[:depth])] * len(queries)


def _token_counter(settings: RunSettings, reader: Any) -> Callable[[Context], int]:
    """Input tokens of a read: counted on this machine, a bound for an endpoint, whose tokenizer is not known."""
    if reader is None:
        return lambda context: 0
    if settings.reader.is_endpoint:
        return tokens_at_most(reader)
    if settings.reader.reader == "embedded":
        return reader.input_tokens
    return lambda context: reader.llm.input_tokens(reader.request(context))


def _characters(reader: Any) -> Callable[[Context], int]:
    """About the input tokens of a read."""
    from rankwright.llms.http import CHARACTERS_PER_TOKEN

    return lambda context: sum(len(text) for _, text in reader.request(context).messages) // CHARACTERS_PER_TOKEN


# --- seconds


def _seconds(
    settings: RunSettings,
    splits: Splits,
    reader: Any,
    algorithm: Any,
    visits: Sequence[Example],
    evaluations: int,
    calls: int,
) -> dict[str, float | None]:
    """Measured on the batch that takes longest and multiplied, so that it is too much rather than too little."""
    batch = _longest(visits, settings.loop.batch_size)
    say(f"Timing the longest {len(batch)} questions.")
    learning, scoring = _time_policy(policy_of(settings), batch)
    once = {example.query.query_id: example for example in visits}.values()
    reads: float | None = 0.0
    if calls:
        reads = None if settings.reader.is_endpoint else calls * _time_reader(reader, batch, settings.rrpo.train_k)
    return {
        "training": learning * _pairs(visits) * algorithm.inner_epochs
        + scoring * _pairs(once) * algorithm.needs_reference,
        "dev": scoring * _pairs(splits.dev) * evaluations,
        "comparison": scoring * _pairs(splits.test) * 2,  # reference and trained model
        "reads": reads,
    }


def _longest(visits: Sequence[Example], count: int) -> list[Example]:
    """The questions with the longest passages, each once."""

    once = {example.query.query_id: example for example in visits}.values()
    return sorted(once, key=lambda e: sum(map(_size, e.candidates)) / len(e.candidates), reverse=True)[:count]


def _size(document: Document) -> int:
    return len(f"{document.title}{document.text}".encode("utf-8", "replace"))


def _batches(settings: RunSettings, parts: Sequence[Ahead], bills: Mapping[str, Bill]) -> int:
    """How often the reader is asked: the first call, every batch of a rollout, every evaluation on dev, and the
    comparison, so many reads at once."""
    of_each = [-(-len(part.examples) // settings.loop.batch_size) for part in parts]
    rollouts = sum(of_each) if bills["training"].calls else 0
    comparison = -(-bills["comparison"].calls // READS_AT_ONCE)
    return 1 + rollouts + sum(part.evaluations for part in parts) + comparison


def _reads_at_most(settings: RunSettings, whole: Bill, batches: int) -> float | None:
    """Seconds after which all reads of an endpoint have ended: so many of a batch at once, each at its deadline, and
    before that the waits under the user's own limits per minute, which no deadline counts."""
    reader = settings.reader
    if not reader.is_endpoint:
        return None
    waits = 60 * whole.calls / reader.requests_per_minute if reader.requests_per_minute else 0.0
    if reader.tokens_per_minute:
        if whole.output_tokens is None:
            return None
        waits = max(waits, 60 * (whole.input_tokens + whole.output_tokens) / reader.tokens_per_minute)
    waits *= 1 + reader.max_retries  # every attempt takes its place
    # A batch of n takes ceil(n / concurrency) deadlines, which is at most (n + concurrency - 1) / concurrency.
    in_a_row = (whole.calls + batches * (reader.concurrency - 1)) / reader.concurrency
    return reader.deadline * in_a_row + waits


def _pairs(examples: Any) -> int:
    return sum(len(example.candidates) for example in examples)


def _time_policy(policy: Any, batch: Sequence[Example]) -> tuple[float, float]:
    """Seconds of a question with one passage: in a forward and backward pass, and in a forward pass alone."""
    from rankwright.training import requests_of

    requests = requests_of(batch)

    def learn(some: Any) -> None:
        scores = policy(some)
        scores[scores.isfinite()].sum().backward()
        next(weight.grad for weight in policy.parameters() if weight.grad is not None).sum().item()  # waits for a GPU
        policy.zero_grad(set_to_none=True)

    learn(requests[:1])  # what is only done once
    return (
        _timed(lambda: learn(requests)) / _pairs(batch),
        _timed(lambda: policy.rerank_batch(requests)) / _pairs(batch),
    )


def _time_reader(reader: Any, batch: Sequence[Example], k: int) -> float:
    """Seconds of a read of the k longest passages."""
    contexts = [Context(e.query, tuple(sorted(e.candidates, key=_size, reverse=True)[:k])) for e in batch]
    reader.answer(contexts[:1])
    return _timed(lambda: reader.answer(contexts)) / len(contexts)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# --- what is told


def record(settings: RunSettings, found: Forecast) -> dict[str, Any]:
    """The object that `train --dry-run --output json` prints as one line."""
    bills = {**found.bills, "total": total(found.bills.values())}
    output, prices = bills["total"].output_tokens, settings.reader.prices
    price = prices.of(bills["total"].input_tokens, output) if prices else None
    passages = expansion_prices(settings) if settings.expansion.wanted else FREE
    expansion_price = passages.of(found.expansion.input_tokens, found.expansion.output_tokens) if passages else None
    seconds = {part: None if taken is None else round(taken, 3) for part, taken in found.seconds.items()}
    known = [taken for taken in seconds.values() if taken is not None]
    return {
        "steps": found.steps,
        "questions": found.questions,
        "evaluations": found.evaluations,
        "calls": {part: bill.calls for part, bill in bills.items()},
        "expansion_calls": found.expansion.calls,
        "expansion_price": expansion_price,
        "input_tokens": {part: bill.input_tokens for part, bill in bills.items()},
        "input_tokens_are": "counted" if found.roughly is None else "bytes",
        "estimated_input_tokens": found.roughly,
        "output_tokens": {part: bill.output_tokens for part, bill in bills.items()},
        "price": price,
        "estimated_price": prices.of(found.roughly, output) if prices and found.roughly is not None else None,
        "seconds": {**seconds, "total": round(sum(known), 3) if len(known) == len(seconds) else None},
        "paced_seconds": _paced_seconds(settings, bills["total"], found.roughly),
        "reads_at_most_seconds": None if found.reads_at_most is None else round(found.reads_at_most, 3),
    }


def _paced_seconds(settings: RunSettings, whole: Bill, roughly: int | None) -> float | None:
    """What the user's limits per minute make of all these calls; None without such limits."""
    if roughly is None:
        return None
    tokens = roughly + (whole.output_tokens or 0)
    limits = ((whole.calls, settings.reader.requests_per_minute), (tokens, settings.reader.tokens_per_minute))
    return max((60 * amount / limit for amount, limit in limits if limit), default=None)


def show(settings: RunSettings, found: dict[str, Any]) -> None:
    """The record as a table and sentences, on standard output."""
    table = Table(title="At most")
    table.add_column("part")
    for heading in ("reader calls", "input tokens", "output tokens"):
        table.add_column(heading, justify="right")
    for part, calls in found["calls"].items():
        tokens = (found["input_tokens"][part], found["output_tokens"][part])
        table.add_row(part.replace("_", " "), f"{calls:,}", *("no limit" if n is None else f"{n:,}" for n in tokens))
    print_out(table)
    print_out(
        f"{found['steps']} optimizer steps, {found['questions']} visits of training questions, {found['evaluations']} "
        "evaluations on dev."
    )
    if found["expansion_calls"]:
        dear = found["expansion_price"]
        priced = "unknown (expansion.price_input, expansion.price_output)" if dear is None else f"at most {dear:.4f}"
        print_out(f"Query expansion: at most {found['expansion_calls']:,} calls besides, price {priced}.")
        print_out("Its candidates are not known before it: every question is counted with the longest passages.")
    for line in (*_on_price(settings, found), *_on_time(settings, found), *_on_limits(settings, found)):
        print_out(line)
    print_out("Nothing is taken off for answers that the cache has, for reads that visits share, or for an early end.")


def _on_price(settings: RunSettings, found: dict[str, Any]) -> list[str]:
    reader = settings.reader
    if not reader.is_endpoint:
        return [
            "Price 0: no reads are paid for." if reader.reader == "none" else "Price 0: the reader is on this machine."
        ]
    about = f"about {found['estimated_input_tokens']:,} with four characters a token"
    lines = [f"Input tokens are one for each byte, since the endpoint's tokenizer is not known; {about}."]
    if reader.prices is None:
        return [*lines, "Price unknown: give --price-input and --price-output."]
    if found["price"] is None:
        return [*lines, "Price without limit: give max_tokens in reader.sampling."]
    cheaper = f"{found['estimated_price']:.4f} with four characters a token"
    return [*lines, f"Price at most {found['price']:.4f}; at most {cheaper}. Attempts that time out may be billed too."]


def _on_time(settings: RunSettings, found: dict[str, Any]) -> list[str]:
    shown = {part: _duration(seconds) for part, seconds in found["seconds"].items()}
    here = f"training {shown['training']}, dev {shown['dev']}, comparison {shown['comparison']}"
    if found["seconds"]["reads"] is not None:
        return [f"Time about {shown['total']} on this machine: {here}, reads {shown['reads']}."]
    paced, reader = found["paced_seconds"], settings.reader
    reads = "unknown" if paced is None else f"{_duration(paced)} for all of them under the limits per minute"
    bound = "without limit: give max_tokens in reader.sampling"
    if found["reads_at_most_seconds"] is not None:
        bound = f"at most {_duration(found['reads_at_most_seconds'])}"
    return [
        f"Time about: {here}; reads {reads}, {reader.concurrency} at once.",
        f"Reads {bound}, with every call until its deadline of {reader.deadline:g} s (reader.deadline).",
    ]


def _on_limits(settings: RunSettings, found: dict[str, Any]) -> list[str]:
    budget, seconds = settings.budget, found["seconds"]
    both = (found["price"], found["expansion_price"])
    hours = sum(seconds[part] or 0.0 for part in ("training", "dev", "reads")) / 3600  # the limit is without comparison
    about = "about" if seconds["reads"] is not None else "without the reader about"
    bounds = (
        ("--max-reader-calls", budget.reader_calls, found["calls"]["total"] + found["expansion_calls"], "the bound is"),
        ("--max-cost", budget.cost, None if None in both else sum(both), "the bound is"),
        ("--max-hours", budget.hours, float(f"{hours:.2g}"), f"the run takes {about}"),
    )
    return [
        f"{flag} {limit:.10g} may end the run early: {words} {bound:.10g}."
        for flag, limit, bound, words in bounds
        if limit and bound is not None and bound > limit
    ]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
