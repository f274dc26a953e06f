"""What a training run may cost: bounds out of settings, and the budget that holds them against the ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankwright.budget import Bill, Budget, Costs
from rankwright.checkpoints import ALGORITHM_STATE, newest_checkpoint
from rankwright.cli.build import Splits
from rankwright.cli.common import say
from rankwright.cli.expansion import expansion_run, language_model
from rankwright.cli.settings import ReaderSettings, RunSettings
from rankwright.errors import ConfigurationError, LimitReachedError, ResumeError
from rankwright.expansion import SAMPLING, passage_request
from rankwright.llms.cache import LedgerEntry, ReadStore
from rankwright.llms.calls import Prices, input_tokens_at_most
from rankwright.prompts import load_prompt
from rankwright.types import Context, Example, Query, Reader


def run_costs(
    settings: RunSettings, splits: Splits, algorithm: Any, orders: int, tokens_of: Callable[[Context], int]
) -> Costs:
    """What the parts of this run read at most.

    Args:
        settings: of the run.
        splits: its questions.
        algorithm: what learns.
        orders: rankings of the comparison.
        tokens_of: input tokens of a read, at most.
    """
    asked = settings.reader.reader != "none"
    return Costs(
        tokens_of,
        settings.reader.output_limit,
        algorithm.reads_per_question,
        settings.rrpo.train_k,
        splits.train,
        splits.dev if asked else (),
        splits.test if asked else (),
        settings.top_k,
        orders,
    )


def tokens_at_most(reader: Any) -> Callable[[Context], int]:
    """Input tokens of a read by a language model whose tokenizer is not known here."""
    return lambda context: input_tokens_at_most(reader.request(context))


def run_budget(
    settings: RunSettings,
    splits: Splits,
    reader: Reader | None,
    algorithm: Any,
    orders: int,
    store: ReadStore,
    run_id: str,
) -> Budget:
    """The limits of this run, over all its sessions. Tokens are counted only where they have a price."""
    priced = settings.reader.is_endpoint and bool(settings.budget.cost)
    tokens_of = tokens_at_most(reader) if priced else lambda context: 0
    costs = run_costs(settings, splits, algorithm, orders, tokens_of)

    def besides() -> tuple[int, float]:
        return spent_on_expansion(settings, list(splits.passages), store, run_id)

    return Budget(settings.budget, costs, settings.reader.prices, lambda: store.ledger.totals(run_id), besides)


def spent_on_expansion(
    settings: RunSettings, questions: Sequence[str], store: ReadStore, run_id: str
) -> tuple[int, float]:
    """Calls that query expansion about these questions has made, over all sessions of the run, and their price."""
    if not settings.expansion.wanted:
        return 0, 0.0
    spent = store.ledger.totals(expansion_run(run_id))
    return spent.calls, _expansion_budget(settings, questions, store, run_id).paid(spent)


def _writer(settings: RunSettings) -> ReaderSettings:
    """Who writes the passages of query expansion, in the words of a reader's settings."""
    model = language_model(settings.expansion, settings.reader)
    return replace(model, sampling=dict(settings.expansion.sampling or SAMPLING))


def expansion_prices(settings: RunSettings) -> Prices | None:
    """Of the tokens of query expansion: 0 on this machine, None where they are not known."""
    return _writer(settings).prices


def expansion_bill(settings: RunSettings, questions: Sequence[str]) -> Bill:
    """What query expansion asks at most."""
    return _expansion_costs(settings, questions).comparison


def _expansion_costs(settings: RunSettings, questions: Sequence[str]) -> Costs:
    """A call for each question, which is all that is sent."""
    prompt, writer = load_prompt(settings.expansion.prompt, "query2doc"), _writer(settings)
    return Costs(
        lambda context: input_tokens_at_most(passage_request(context.query.text, prompt, writer.sampling)),
        writer.output_limit,
        lambda candidates: 1,
        0,
        (),
        (),
        [Example(Query(text, text), ()) for text in questions],
        0,
        1,
    )


def _expansion_budget(settings: RunSettings, questions: Sequence[str], store: ReadStore, run_id: str) -> Budget:
    """The limits of the run, as query expansion sees them."""

    def besides() -> tuple[int, float]:
        spent = store.ledger.totals(run_id)
        return spent.calls, spent.known_price

    costs, prices = _expansion_costs(settings, questions), expansion_prices(settings)
    return Budget(settings.budget, costs, prices, lambda: store.ledger.totals(expansion_run(run_id)), besides)


def check_expansion_price(settings: RunSettings) -> None:
    """Whether a limit of cost can hold for query expansion too.

    Raises:
        ConfigurationError: its price is not known, or its answers have no end.
    """
    expansion, limit = settings.expansion, settings.budget.cost
    if not limit or not expansion.wanted:
        return
    if expansion_prices(settings) is None:
        raise ConfigurationError(
            f"Limit --max-cost is {limit:g}, but the price of query expansion by {expansion.llm} is not known; wanted "
            "expansion.price_input and expansion.price_output, each for a million tokens. Give both with --set, or "
            "limit --max-reader-calls."
        )
    if _writer(settings).output_limit is None:
        raise ConfigurationError(
            f"Limit --max-cost is {limit:g}, but expansion.sampling is {expansion.sampling!r}; wanted max_tokens or "
            "max_completion_tokens in it, because a passage without end may cost anything."
        )


def check_expansion_budget(settings: RunSettings, questions: Sequence[str], store: ReadStore, run_id: str) -> None:
    """Whether query expansion may be asked about these questions.

    Raises:
        ConfigurationError: see `check_expansion_price`.
        LimitReachedError: it could exceed a limit of the run.
    """
    check_expansion_price(settings)
    budget = _expansion_budget(settings, questions, store, run_id)
    stop_if(
        budget.refusal(budget.costs.comparison, "query expansion"),
        "Nothing was begun: give the same command with a higher limit.",
    )


def stop_if(refusal: str | None, next_step: str) -> None:
    """Ends the command where there is a reason to.

    Raises:
        LimitReachedError: there is.
    """
    if refusal:
        raise LimitReachedError(f"{refusal} {next_step}")


def check_ledger(settings: RunSettings, store: ReadStore, run_id: str, folder: Path) -> None:
    """Whether a run that goes on still has its ledger, as it has not in another cache, or in one that was damaged and
    begun anew. Warns where it has not, for what it has read is paid for again, and enters the calls that are missing,
    so that every sum and limit has them from then on.

    Raises:
        ResumeError: it made calls that the ledger does not have, and has a limit that they count toward.
    """
    checkpoint = newest_checkpoint(folder, warn=False)  # training warns
    if checkpoint is None:
        return
    made = int(json.loads((checkpoint / ALGORITHM_STATE).read_text(encoding="utf-8"))["totals"]["reader_calls"])
    totals = store.ledger.totals(run_id)
    known = totals.calls + totals.damaged
    if known >= made:
        return
    found = (
        f"The run in {folder} has made {made} reader calls, but the ledger in {settings.reader.cache} knows of {known}"
    )
    if settings.budget.reader_calls or settings.budget.cost:
        raise ResumeError(
            f"{found}; wanted the cache that it began with to keep its limits. Name that one with --cache, or go on "
            "without --max-reader-calls and --max-cost."
        )
    say(
        f"Warning: {found}. The others are entered there without what they cost: name the cache that has all of them "
        "(--cache), or what they read is read and paid for again."
    )
    price = None if settings.reader.is_endpoint else 0.0
    missing = LedgerEntry(run_id, settings.reader.model or settings.reader.reader, "ok", price=price)
    store.put_many({}, [missing] * (made - known))
