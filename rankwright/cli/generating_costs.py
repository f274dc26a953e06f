"""`train --dry-run` for a language model that writes its judgement: every setting with its source, and upper bounds of
what the run generates and reads. Loads no model, so that a recipe can be looked at without anything; where the model is
a folder, prompts are held against its tokenizer and template."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from rankwright.cli.build import Splits, build_reader, load_splits
from rankwright.cli.common import print_out
from rankwright.cli.costs import tokens_at_most
from rankwright.cli.recipes import USER, Recipe
from rankwright.cli.settings import RunSettings, flat, settings_tree
from rankwright.errors import ConfigurationError
from rankwright.llms.endpoint import model_place
from rankwright.prompts.ranking import load_ranking_prompt
from rankwright.types import Context, Example

SHOWN = ("method", "reward", "seed", "model", "generating", "loop", "grpo", "sft")
"""Parts of the settings that decide what such a model learns, besides those of a recipe and those that were given."""


def record(settings: RunSettings, recipe: Recipe | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The object that `train --recipe NAME --dry-run --output json` prints as one line.

    Args:
        settings: of the run.
        recipe: that it began with.
        given: dotted name -> value of what the user put in.

    Raises:
        RankwrightError: what the run itself would be refused for, as far as data and the model's folder tell.
    """
    values = flat(settings_tree(settings))
    named = {**(recipe.settings if recipe else {}), **given}
    other = "sft" if settings.method == "grpo" else "grpo"
    silent = {other} | ({"reward"} if settings.method == "sft" else set())
    shown = [name for name in values if name in named or name.split(".")[0] in set(SHOWN) - silent]
    return {
        "settings": {name: {"value": values[name], "source": _source(name, recipe, given)} for name in shown},
        "budget": _checked_budget(settings) if settings.data.train else None,
    }


def _checked_budget(settings: RunSettings) -> dict[str, Any]:
    """The bounds of a run that would not be refused at once."""
    from rankwright.cli.dry_run import Longest

    settings = placed(settings)
    splits = load_splits(settings, instead=Longest)
    check_questions(settings, splits)
    # Another model would have to be fetched or trained first, and candidates of expansion are not known before it.
    if Path(settings.model.name).is_dir() and not settings.expansion.wanted:
        from rankwright.cli.tune import check_run

        check_run(settings, splits)
    return budget(settings, splits)


def placed(settings: RunSettings) -> RunSettings:
    """The settings with the model's folder where a run's was named."""
    return replace(settings, model=replace(settings.model, name=model_place(settings.model.name)))


def check_questions(settings: RunSettings, splits: Splits) -> None:
    """Whether there are as many training questions as the first generation takes.

    Raises:
        ConfigurationError: there are fewer.
    """
    loop, found = settings.loop, len(_usable(settings, splits))
    if not found:
        raise ConfigurationError(
            f"None of the {len(splits.train)} training questions has {_fewest(settings)} candidates; wanted that many "
            "of each. Raise --depth, or lower generating.window."
        )
    block = loop.batch_size * loop.accumulation
    if settings.method == "grpo" and found < block:
        fits = f"loop.batch_size={found // loop.accumulation or 1}"
        fits += " --set loop.accumulation=1" if found < loop.accumulation else ""
        raise ConfigurationError(
            f"A generation takes {block} questions (loop.batch_size x loop.accumulation), but {found} are there for "
            f"training; wanted as many. Give --set {fits}, or more questions."
        )


def _fewest(settings: RunSettings) -> int:
    """Candidates that a question must have to be trained on."""
    return settings.generating.window if _is_pointwise(settings) else 2


def _usable(settings: RunSettings, splits: Splits) -> list[Example]:
    fewest = _fewest(settings)
    return [example for example in splits.train if len(example.candidates) >= fewest]


def _source(name: str, recipe: Recipe | None, given: Mapping[str, Any]) -> str:
    """paper, code or ours; user for what was given."""
    if any(name == one or name.startswith(f"{one}.") for one in given):
        return USER
    return recipe.settings[name].source if recipe and name in recipe.settings else "ours"


def budget(settings: RunSettings, splits: Splits) -> dict[str, Any]:
    """What the run generates and reads at most, and the price of it: that of the reader, since the model that learns
    generates on this machine.

    Raises:
        RankwrightError: a reader cannot be made of the settings.
    """
    usable = _usable(settings, splits)
    visits = _visits(settings, len(usable))
    prompts = visits * _prompts_of_a_question(settings)
    completions = prompts * settings.grpo.rollouts if settings.method == "grpo" else 0
    own = bool(settings.reward_options.get("anchored"))  # the prompt's own order is read besides
    calls = visits * (settings.grpo.rollouts + own) if settings.asks_reader else 0
    return {
        "questions": visits,
        "prompts": prompts,
        "completions": completions,
        "output_tokens": completions * settings.grpo.max_completion_length,
        "reader_calls": calls,
        "price": _price(settings, usable, calls) if calls else 0.0,
    }


def _visits(settings: RunSettings, questions: int) -> int:
    """Visits of training questions, rounded up to whole generations."""
    block = settings.loop.batch_size * settings.loop.accumulation
    steps = settings.loop.trainer.get("max_steps", -1)
    if steps > 0:
        per_step = settings.grpo.updates * settings.grpo.iterations if settings.method == "grpo" else 1
        return math.ceil(steps / per_step) * block
    return math.ceil(settings.loop.epochs * questions / block) * block


def _prompts_of_a_question(settings: RunSettings) -> int:
    return settings.generating.window if _is_pointwise(settings) else 1


def _is_pointwise(settings: RunSettings) -> bool:
    return load_ranking_prompt(settings.generating.prompt).kind == "pointwise"


def _price(settings: RunSettings, examples: Sequence[Example], calls: int) -> float | None:
    """Of so many reads, each as long as the longest can be; None where it is not known."""
    reader = settings.reader
    if not reader.is_endpoint:
        return 0.0
    if reader.prices is None or reader.output_limit is None:
        return None
    tokens_of = tokens_at_most(build_reader(reader, None, ""))
    longest = max((tokens_of(_longest(example, settings)) for example in examples), default=0)
    return reader.prices.of(calls * longest, calls * reader.output_limit)


def _longest(example: Example, settings: RunSettings) -> Context:
    window = example.candidates[: settings.generating.window]
    longest = sorted(window, key=lambda document: -len(f"{document.title}{document.text}".encode("utf-8", "replace")))
    return Context(example.query, tuple(longest[: settings.top_k]))


def show(found: Mapping[str, Any], recipe: Recipe | None) -> None:
    """The record as a table and sentences, on standard output."""
    table = Table(title=f"{recipe.paper}, stage {recipe.method}" if recipe else "Settings")
    for heading in ("setting", "value", "source", "where, or why"):
        table.add_column(heading)
    for name, setting in found["settings"].items():
        known = recipe.settings.get(name) if recipe and setting["source"] != USER else None
        table.add_row(name, str(setting["value"]), setting["source"], known.where if known else "")
    print_out(table)
    bounds = found["budget"]
    if bounds is None:
        print_out("What it costs depends on the questions: add --data FILE.")
        return
    price = "unknown (--price-input, --price-output)" if bounds["price"] is None else f"at most {bounds['price']:.4f}"
    print_out(
        f"At most {bounds['questions']:,} visits of training questions, {bounds['prompts']:,} prompts, "
        f"{bounds['completions']:,} completions with {bounds['output_tokens']:,} tokens on this machine; "
        f"{bounds['reader_calls']:,} reader calls, price {price}."
    )
