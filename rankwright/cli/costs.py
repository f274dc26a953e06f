"""What a training run may cost: bounds out of settings, and the budget that holds them against the ledger."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankwright.budget import Budget, Costs
from rankwright.checkpoints import ALGORITHM_STATE, newest_checkpoint
from rankwright.cli.build import Splits
from rankwright.cli.settings import RunSettings
from rankwright.errors import LimitReachedError, ResumeError
from rankwright.llms.cache import ReadStore
from rankwright.llms.calls import input_tokens_at_most
from rankwright.types import Context, Reader


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
    return Budget(settings.budget, costs, settings.reader.prices, lambda: store.ledger.totals(run_id))


def stop_if(refusal: str | None, next_step: str) -> None:
    """Ends the command where there is a reason to.

    Raises:
        LimitReachedError: there is.
    """
    if refusal:
        raise LimitReachedError(f"{refusal} {next_step}")


def check_ledger(settings: RunSettings, store: ReadStore, run_id: str, folder: Path) -> None:
    """Whether a run that goes on under a limit still has its ledger, as it has not in another cache, or in one that was
    damaged and begun anew.

    Raises:
        ResumeError: it made calls that the ledger does not have.
    """
    if not (settings.budget.reader_calls or settings.budget.cost):
        return
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        return
    made = json.loads((checkpoint / ALGORITHM_STATE).read_text(encoding="utf-8"))["totals"]["reader_calls"]
    known = store.ledger.totals(run_id).calls
    if known < made:
        raise ResumeError(
            f"The run in {folder} has made {made:.0f} reader calls, but the ledger in {settings.reader.cache} knows of "
            f"{known}; wanted the cache that it began with to keep its limits. Name that one with --cache, or go on "
            "without --max-reader-calls and --max-cost."
        )
