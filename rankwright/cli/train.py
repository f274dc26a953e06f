"""Verbs `demo` and `train`."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rankwright import processes
from rankwright.cli.common import (
    FORMAT_HELP,
    BadRow,
    OutputKind,
    RetrieverKind,
    command_line,
    emit,
    say,
)
from rankwright.cli.options import (
    ApiKeyEnv,
    Cache,
    ExpandModel,
    ExpandWith,
    PriceInput,
    PriceOutput,
    ReaderModel,
    RequestsPerMinute,
    TokensPerMinute,
)
from rankwright.cli.recipes import Recipe, load_recipe, recipe_names
from rankwright.cli.rewards import check_reward
from rankwright.cli.settings import RunSettings, given_names, load_settings
from rankwright.errors import ConfigurationError
from rankwright.metrics.answer import normalise
from rankwright.types import Example

if TYPE_CHECKING:
    from rankwright.cli.run import RunOutcome

DEMO_NAME = "demo"
DEMO_FOLDER = Path(__file__).parents[1] / "assets" / "demo"
DEMO_RECIPE = Path(__file__).parents[1] / "recipes" / "demo.yaml"

NEXT_STEP = """Next, on your own questions and passages:
    rankwright train --name mine --data questions.jsonl --corpus passages.jsonl"""

DEMO_EXAMPLES = """
**Examples**

    rankwright demo --seed 1

The control, in which nothing may be gained:

    rankwright demo --shuffle-answers --name control
"""

TRAIN_EXAMPLES = r"""
**Examples**

The embedded reference learns from the embedded reader; questions.jsonl holds {"question", "answers"} rows:

    rankwright train --name first --data questions.jsonl \
      --corpus passages.jsonl

A hub cross-encoder learns from an LLM behind an OpenAI-compatible endpoint:

    rankwright train --name bge --data train.jsonl --corpus corpus.jsonl \
      --model BAAI/bge-reranker-base --reader http://localhost:8000/v1 \
      --reader-model Qwen/Qwen2.5-7B-Instruct --reward f1

BM25 searches with a passage too that the reader's language model writes for each question (Query2Doc):

    rankwright train --name expanded --data train.jsonl --corpus corpus.jsonl \
      --expand-with reader --reader http://localhost:8000/v1 \
      --reader-model Qwen/Qwen2.5-7B-Instruct

What that costs at most, before anything is spent; then with a limit:

    rankwright train --name bge --data train.jsonl --corpus corpus.jsonl \
      --model BAAI/bge-reranker-base --reader http://localhost:8000/v1 \
      --reader-model Qwen/Qwen2.5-7B-Instruct --price-input 0.1 \
      --price-output 0.4 --dry-run

    rankwright train --name bge --data train.jsonl --corpus corpus.jsonl \
      --model BAAI/bge-reranker-base --reader http://localhost:8000/v1 \
      --reader-model Qwen/Qwen2.5-7B-Instruct --price-input 0.1 \
      --price-output 0.4 --max-cost 5

A language model learns to write rankings as in a paper (GRPO); first what the recipe says and where each value is from:

    rankwright train --recipe rearank --dry-run

    rankwright train --recipe rearank --name rearank --data train.jsonl \
      --corpus corpus.jsonl --depth 20 --model Qwen/Qwen2.5-0.5B-Instruct \
      --lora-rank 16 --device cuda

Go on after an interruption or with a higher limit, otherwise with the same settings:

    rankwright train --name first --data questions.jsonl \
      --corpus passages.jsonl --resume
"""


def register(app: typer.Typer) -> None:
    """Adds the verbs."""
    app.command(epilog=DEMO_EXAMPLES)(demo)
    app.command(epilog=TRAIN_EXAMPLES)(train)


def demo(
    seed: int | None = typer.Option(None, help="Order of questions, sampling noise and resampling. Default 0."),
    device: str | None = typer.Option(None, help="Torch device. Default cpu."),
    shuffle_answers: bool = typer.Option(
        False, help="Control: train with every question's answers exchanged for another's; nothing may be gained."
    ),
    cache: Cache = None,
    config: Path | None = typer.Option(
        None, help="YAML file, or config.json of a demo, with settings that replace the demo's."
    ),
    set_: list[str] = typer.Option([], "--set", help="NAME=VALUE, for example --set rrpo.samples=8; may be repeated."),
    name: str = typer.Option(DEMO_NAME, help="Run folder below runs/; an earlier one is replaced."),
    resume: bool = typer.Option(False, help="Go on with a demo that was broken off; do not replace it."),
    output: OutputKind = typer.Option(OutputKind.text, help="json prints result.json as one line."),
) -> int:
    """Train the embedded reranker from the embedded reader on a bundled knowledge base, and show whether it got
    better."""
    from rankwright.cli.run import show

    flags = {"seed": seed, "model.device": device, "reader.cache": cache}
    with processes.alike(ConfigurationError):
        settings = load_settings(config or DEMO_RECIPE, set_, flags)
    outcome = run_demo(settings, name, shuffle_answers=shuffle_answers, resume=resume, command=command_line())
    if output is OutputKind.json:
        emit(outcome.result)
    show(outcome, NEXT_STEP)
    return outcome.exit_code


def run_demo(
    settings: RunSettings, name: str, *, shuffle_answers: bool = False, resume: bool = False, command: str = ""
) -> RunOutcome:
    """The whole demo under these settings; unless resumed, an earlier run of that name is replaced as soon as all is
    found good."""
    from rankwright.cli.build import checked_device
    from rankwright.cli.run import run_folder, run_training

    if settings.expansion.wanted:
        raise ConfigurationError(
            f"The demo was given query expansion by {settings.expansion.llm}; its passages are found by BM25 alone. "
            "Leave expansion out, or use rankwright train."
        )
    run_folder(name)
    checked_device(settings.model.device)
    splits = demo_splits(settings, shuffle_answers=shuffle_answers)
    say("Demo: a knowledge base about the invented Sundrel Isles; no relevance label is used in training.")
    command = command or f"rankwright demo{' --shuffle-answers' * shuffle_answers}"
    return run_training(settings, name, splits=splits, resume=resume, overwrite=not resume, command=command)


def demo_splits(settings: RunSettings, *, shuffle_answers: bool = False) -> Any:
    """The bundled questions with BM25 candidates, divided as their metadata says."""
    from rankwright.cli.build import Splits, candidates
    from rankwright.data import load_examples
    from rankwright.retrieval import BM25

    dataset = load_examples(
        DEMO_FOLDER / "questions.jsonl", "jsonl", corpus=DEMO_FOLDER / "corpus.jsonl", need_answers=True
    )
    rows = (DEMO_FOLDER / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    split_of = {row["query_id"]: row["metadata"]["split"] for row in map(json.loads, rows)}
    parts: dict[str, list[Any]] = {"train": [], "dev": [], "test": []}
    for example in dataset.examples:
        parts[split_of[example.query.query_id]].append(example)
    if shuffle_answers:
        parts["train"] = with_exchanged_answers(parts["train"], settings.seed)
    index = BM25(dataset.corpus)
    depths = {"train": settings.data.depth, "dev": settings.data.eval_depth, "test": settings.data.eval_depth}
    ready = {part: candidates(rows, dataset.corpus, "bm25", depths[part], index) for part, rows in parts.items()}
    return Splits(ready["train"], ready["dev"], ready["test"], "sundrel-test", dataset.skipped, index.name)


def with_exchanged_answers(examples: Sequence[Example], seed: int) -> list[Example]:
    """Every question with the answers of another one, none of which is its own, however it is written."""
    accepted = [{normalise(answer) for answer in example.answers} for example in examples]
    places, draw = list(range(len(examples))), random.Random(seed)
    draw.shuffle(places)
    for i in range(len(places)):
        if accepted[i] & accepted[places[i]]:
            fit = [
                j
                for j, place in enumerate(places)
                if not accepted[i] & accepted[place] | accepted[j] & accepted[places[i]]
            ]
            j = draw.choice(fit)
            places[i], places[j] = places[j], places[i]
    return [replace(example, answers=examples[place].answers) for example, place in zip(examples, places, strict=True)]


def train(
    data: str = typer.Option("", "--data", help="Training questions: file or folder in one of the formats."),
    name: str | None = typer.Option(None, help="Name of the run; it is written to runs/NAME."),
    recipe: str | None = typer.Option(
        None,
        help=f"Begin with the settings of a paper: {', '.join(recipe_names())}; --config, flags and --set replace "
        "them. With --dry-run each is printed with its source: paper, code or ours.",
    ),
    dev: str | None = typer.Option(None, help="Questions that choose the checkpoint; without it, a share of --data."),
    test: str | None = typer.Option(None, help="Questions of the comparison; without it, a share of --data."),
    format: str | None = typer.Option(None, help=f"{FORMAT_HELP} Default jsonl."),
    corpus: str | None = typer.Option(None, help="Passages to retrieve from; without it, those of the question files."),
    qrels: str | None = typer.Option(
        None, help="Relevance labels (TREC or BEIR file, or a BEIR split), for --method supervised and nDCG."
    ),
    dev_qrels: str | None = typer.Option(
        None, help="Labels of --dev; without it, for beir the split dev, else those of --qrels."
    ),
    test_qrels: str | None = typer.Option(
        None, help="Labels of --test; without it, for beir the split test, else those of --qrels."
    ),
    topics: str | None = typer.Option(None, help="Questions of TREC runs; else topics* or queries* beside each run."),
    method: str | None = typer.Option(
        None,
        help="rrpo learns from the reader, supervised from labels; a language model that writes rankings learns by "
        "grpo from a reward, by sft from labels. Default rrpo, or the recipe's.",
    ),
    model: str | None = typer.Option(
        None, help="Reranker to start from: reference, a folder or a hub name. Default reference."
    ),
    lora_rank: int | None = typer.Option(
        None, help="Train LoRA updates of this rank; 0 trains all weights. Default 0."
    ),
    template: str | None = typer.Option(None, help="Joins {title} and {text}; saved with the model."),
    retriever: RetrieverKind | None = typer.Option(
        None, help="bm25, or given: candidates as in the data. Default bm25."
    ),
    depth: int | None = typer.Option(None, help="Candidates per training question. Default 10."),
    eval_depth: int | None = typer.Option(None, help="Candidates per dev and test question. Default 20."),
    top_k: int | None = typer.Option(None, help="Passages that the reader sees on dev and test. Default 3."),
    train_k: int | None = typer.Option(None, help="Steps of a sampled ranking. Default 3."),
    expand_with: ExpandWith = None,
    expand_model: ExpandModel = None,
    reader: str | None = typer.Option(
        None, help="embedded, none, an endpoint's base URL, or a local causal LM. Default embedded."
    ),
    reader_model: ReaderModel = None,
    reader_prompt: str | None = typer.Option(None, help="Prompt file for an LLM reader."),
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    price_input: PriceInput = None,
    price_output: PriceOutput = None,
    api_key_env: ApiKeyEnv = None,
    reward: str | None = typer.Option(
        None,
        help="f1, em, sub_em, rouge_l or package.module:function; for grpo also a paper's (docs/ranking-rewards.md). "
        "Default f1.",
    ),
    reward_option: list[str] = typer.Option(
        [], "--reward-option", help="NAME=VALUE for an option of the reward, for example recall_weight=0.3."
    ),
    cache: Cache = None,
    max_reader_calls: int | None = typer.Option(
        None,
        help="Reader calls of the whole run, with those of query expansion; it stops before a step that could exceed "
        "them. Default 0: no limit.",
    ),
    max_cost: float | None = typer.Option(
        None, help="The same for the price of its calls; needs --price-input and --price-output for an endpoint."
    ),
    max_hours: float | None = typer.Option(None, help="Hours of training, over all sessions. Default 0: no limit."),
    max_failed_reads: float | None = typer.Option(
        None,
        help="Largest share of failed reads in the comparison at the end; above it nothing is reported, and the model "
        "is kept. Default 0.01.",
    ),
    epochs: float | None = typer.Option(None, help="Passes over the training questions. Default 2."),
    learning_rate: float | None = typer.Option(None, help="Peak learning rate. Default 2e-5."),
    seed: int | None = typer.Option(None, help="Order of questions, sampling noise, splits. Default 0."),
    device: str | None = typer.Option(None, help="Torch device. Default cpu."),
    on_bad_row: BadRow | None = typer.Option(
        None, help="error stops at a bad row, skip leaves it out and counts it. Default error."
    ),
    config: Path | None = typer.Option(
        None, help="YAML file with settings (docs/settings.md), or config.json of a run."
    ),
    set_: list[str] = typer.Option([], "--set", help="NAME=VALUE for any setting, for example --set rrpo.beta=0.05."),
    resume: bool = typer.Option(False, help="Go on with the run of this name from its last complete checkpoint."),
    overwrite: bool = typer.Option(False, help="Replace an earlier run of this name."),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Only print what the run costs at most; nothing is spent or written."
    ),
    output: OutputKind = typer.Option(
        OutputKind.text, help="json prints result.json, or the dry run's bounds, as one line on standard output."
    ),
) -> int:
    """Train a reranker from a reader's answers (or from labels), compare it with its reference, write runs/NAME.

    A run that reaches --max-reader-calls, --max-cost or --max-hours ends with exit code 9 and goes on with --resume.
    """
    from rankwright.cli.run import run_folder, run_id_of, run_training, show

    flags = {
        "method": method,
        "data.train": data or None,
        "data.dev": dev,
        "data.test": test,
        "data.format": format,
        "data.corpus": corpus,
        "data.qrels": qrels,
        "data.dev_qrels": dev_qrels,
        "data.test_qrels": test_qrels,
        "data.topics": topics,
        "data.retriever": retriever and retriever.value,
        "data.depth": depth,
        "data.eval_depth": eval_depth,
        "data.on_bad_row": on_bad_row and on_bad_row.value,
        "expansion.llm": expand_with,
        "expansion.model": expand_model,
        "model.name": model,
        "model.lora_rank": lora_rank,
        "model.template": template,
        "model.device": device,
        "reader.reader": reader,
        "reader.model": reader_model,
        "reader.prompt": reader_prompt,
        "reader.cache": cache,
        "reader.requests_per_minute": requests_per_minute,
        "reader.tokens_per_minute": tokens_per_minute,
        "reader.price_input": price_input,
        "reader.price_output": price_output,
        "reader.api_key_env": api_key_env,
        "budget.reader_calls": max_reader_calls,
        "budget.cost": max_cost,
        "budget.hours": max_hours,
        "max_failed_reads": max_failed_reads,
        "reward": reward,
        "loop.epochs": epochs,
        "loop.learning_rate": learning_rate,
        "rrpo.train_k": train_k,
        "top_k": top_k,
        "seed": seed,
    }
    with processes.alike(ConfigurationError):
        if resume and overwrite:
            raise ConfigurationError(
                "--resume and --overwrite were both given; wanted one: go on with the run or replace it."
            )
        set_ = [*(f"reward_options.{text}" for text in reward_option), *set_]
        given = given_names(config, set_, flags)
        chosen = load_recipe(recipe, given.get("method")) if recipe else None
        if chosen and "reward" in given:
            chosen = chosen.without("reward_options.")  # they are those of the recipe's own reward
        settings = load_settings(config, set_, flags, chosen.values() if chosen else None)
        check_reward(settings)
        if dry_run and name is not None and not resume:
            run_id_of(run_folder(name), resume, overwrite)  # refused as the run itself would be
    if dry_run and settings.writes:
        return _sourced_dry_run(settings, chosen, given, output)
    if name is None:
        with processes.alike():
            raise ConfigurationError("No name was given for the run; add --name NAME. It becomes a folder in runs/.")
    if dry_run:
        return _dry_run(settings, name, resume, output)
    if settings.writes:
        return _tune(settings, name, resume, overwrite, output)
    outcome = run_training(settings, name, resume=resume, overwrite=overwrite, command=command_line())
    if output is OutputKind.json:
        emit(outcome.result)
    show(outcome)
    return outcome.exit_code


def _dry_run(settings: RunSettings, name: str, resume: bool, output: OutputKind) -> int:
    from rankwright.cli import dry_run

    if resume:
        raise ConfigurationError(
            "--dry-run and --resume were both given, but the bounds are those of a whole run; wanted one of them. "
            "rankwright cache runs says what a run has spent so far."
        )
    found = dry_run.record(settings, dry_run.forecast(settings, name))
    if output is OutputKind.json:
        emit(found)
    else:
        dry_run.show(settings, found)
    return 0


def _sourced_dry_run(settings: RunSettings, recipe: Recipe | None, given: Mapping[str, Any], output: OutputKind) -> int:
    """Of a language model's training: every setting with its source, and what the run costs at most."""
    from rankwright.cli import generating_costs

    found = generating_costs.record(settings, recipe, given)
    if output is OutputKind.json:
        emit(found)
    else:
        generating_costs.show(found, recipe)
    return 0


def _tune(settings: RunSettings, name: str, resume: bool, overwrite: bool, output: OutputKind) -> int:
    """Trains a language model that writes its judgement."""
    from rankwright.cli import tune

    result = tune.run_tuning(settings, name, resume=resume, overwrite=overwrite, command=command_line())
    if output is OutputKind.json:
        emit(result)
    tune.show(result, name)
    return tune.exit_code_of(result)
