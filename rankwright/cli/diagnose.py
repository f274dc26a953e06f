"""Verb `diagnose`: whether training can pay, before it is paid for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import typer
from rich.table import Table

from rankwright.cli.common import (
    FORMAT_HELP,
    BadRow,
    OutputKind,
    RetrieverKind,
    emit,
    print_out,
    progress_bars,
    say,
    score_text,
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
from rankwright.cli.settings import (
    LARGEST_SEED,
    NO_EXPANSION,
    DataSettings,
    ExpansionSettings,
    ReaderSettings,
    check_expansion,
    load_expansion_settings,
    load_reader_settings,
)
from rankwright.diagnosis import MINIMUM_QUESTIONS, NUMBERS, Diagnosis, affordable, reads_at_most, sample_questions
from rankwright.diagnosis import diagnose as diagnose_examples
from rankwright.errors import ConfigurationError
from rankwright.reading import MAX_FAILED_READS
from rankwright.rerankers import REFERENCE
from rankwright.types import Example, Reader

EXAMPLES = r"""
**Examples**

Can training pay on these questions, with the embedded reader and the embedded reference?

    rankwright diagnose --data questions.jsonl --corpus passages.jsonl

Before an LLM is paid for thousands of answers, at most 1000 of them:

    rankwright diagnose --data questions.jsonl --corpus passages.jsonl \
      --reader http://localhost:8000/v1 \
      --reader-model Qwen/Qwen2.5-7B-Instruct --max-reader-calls 1000 \
      --output json

With the reader of a training run that showed no difference, and with second reads for its noise:

    rankwright diagnose --data questions.jsonl \
      --config runs/first/config.json --repeat-reads
"""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog=EXAMPLES)(diagnose)


def diagnose(
    data: Path = typer.Option(
        ..., "--data", help="Questions with answers, those of training: file or folder in one of the formats."
    ),
    format: str = typer.Option("jsonl", "--format", help=FORMAT_HELP),
    qrels: Path | None = typer.Option(None, help="Relevance labels (TREC or BEIR); they choose the questions."),
    topics: Path | None = typer.Option(None, help="Questions of a TREC run; else topics* or queries* beside it."),
    corpus: Path | None = typer.Option(None, help="Passages to retrieve from; without it, those of the data file."),
    retriever: RetrieverKind = typer.Option(
        RetrieverKind.bm25, help="bm25 over the corpus, or given: candidates in the order of the data."
    ),
    depth: int = typer.Option(10, min=1, help="Candidates per question, as in training."),
    expand_with: ExpandWith = None,
    expand_model: ExpandModel = None,
    top_k: int = typer.Option(3, min=1, help="Passages that the reader sees."),
    model: str = typer.Option(
        REFERENCE, help="Reranker that training would start from: reference, a folder, a hub name, or first-stage."
    ),
    reader: str | None = typer.Option(
        None, help="embedded, the base URL of an OpenAI-compatible endpoint, or a local causal LM. Default embedded."
    ),
    reader_model: ReaderModel = None,
    reader_prompt: str | None = typer.Option(
        None, help="A shipped prompt or a file with {passages} and {question}. Default reader-1."
    ),
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    price_input: PriceInput = None,
    price_output: PriceOutput = None,
    api_key_env: ApiKeyEnv = None,
    reward: str = typer.Option("f1", help="f1, em, sub_em, rouge_l or package.module:function; from 0 to 1."),
    cache: Cache = None,
    questions: int = typer.Option(100, min=1, help="How many questions are read; chosen by the seed."),
    orders: int = typer.Option(12, min=0, help="Orders per question that are read in search of the best one."),
    samples: int = typer.Option(4, min=2, help="Orders per question drawn as training draws them."),
    max_reader_calls: int | None = typer.Option(
        None,
        min=1,
        help="Read fewer questions where all of them could cost more calls; those of query expansion are not counted.",
    ),
    repeat_reads: bool = typer.Option(
        False, "--repeat-reads", help="Read two contexts per question a second time, for the noise of an LLM reader."
    ),
    config: Path | None = typer.Option(
        None, help="YAML file, or config.json of a run, whose reader settings are taken: the reader of that training."
    ),
    set_: list[str] = typer.Option(
        [], "--set", help="NAME=VALUE for any reader setting, for example --set reader.deadline=300."
    ),
    on_bad_row: BadRow = typer.Option(BadRow.error, help="Stop at a bad row, or leave it out and count it."),
    max_failed_reads: float = typer.Option(
        MAX_FAILED_READS,
        min=0,
        max=1,
        help="Largest share of failed reads, and of answers without a reward; above it nothing is reported.",
    ),
    seed: int = typer.Option(0, min=0, max=LARGEST_SEED, help="Seed of questions, sampled orders and intervals."),
    device: str = typer.Option("cpu", help="Torch device of models and local readers."),
    output: OutputKind = typer.Option(OutputKind.text, help="json prints one line on standard output."),
) -> int:
    """Say before training whether it can pay, and if not, which part is the limit: retriever, reader or data.

    Exit code 0 whatever the verdict."""
    data_settings = DataSettings(
        format=format,
        corpus=str(corpus or ""),
        qrels=str(qrels or ""),
        topics=str(topics or ""),
        retriever=retriever.value,
        depth=depth,
        on_bad_row=on_bad_row.value,
    )
    flags = {
        "expansion.llm": expand_with,
        "expansion.model": expand_model,
        "reader.reader": reader,
        "reader.model": reader_model,
        "reader.prompt": reader_prompt,
        "reader.cache": cache,
        "reader.requests_per_minute": requests_per_minute,
        "reader.tokens_per_minute": tokens_per_minute,
        "reader.api_key_env": api_key_env,
        "reader.price_input": price_input,
        "reader.price_output": price_output,
    }
    diagnosis = run_diagnosis(
        data,
        data_settings,
        load_reader_settings(config, set_, flags),
        load_expansion_settings(config, set_, flags),
        reward=reward,
        model=model,
        top_k=top_k,
        questions=questions,
        orders=orders,
        samples=samples,
        max_reader_calls=max_reader_calls,
        repeat_reads=repeat_reads,
        max_failed_reads=max_failed_reads,
        seed=seed,
        device=device,
    )
    in_words = f"{diagnosis.verdict}: {diagnosis.reason}"
    if output is OutputKind.json:
        with contextlib.suppress(typer.Exit):  # a reader of the pipe that has gone
            emit(diagnosis.to_json())
        say(in_words)
    else:
        print_out(_table(diagnosis))
        print_out(f"Signature {diagnosis.signature}")
        print_out(in_words)
    return 0


def run_diagnosis(
    data: Path,
    data_settings: DataSettings,
    reader_settings: ReaderSettings,
    expansion: ExpansionSettings = NO_EXPANSION,
    *,
    reward: str,
    model: str,
    top_k: int,
    questions: int,
    orders: int,
    samples: int,
    max_reader_calls: int | None,
    repeat_reads: bool,
    max_failed_reads: float,
    seed: int,
    device: str,
) -> Diagnosis:
    """The diagnosis of the questions of one file, with objects made by name."""
    from rankwright.cli.build import (
        build_reader,
        build_reranker,
        checked_device,
        command_run,
        counted_store,
        load_one,
        tell_of_cut,
        tell_of_reader_cut,
    )
    from rankwright.cli.expansion import with_first_stage
    from rankwright.readers import LLMReader
    from rankwright.rewards import resolve_reward

    if reader_settings.reader == "none":
        raise ConfigurationError(
            "diagnose was given --reader none; wanted the reader that training would learn from. Name one, or leave "
            "--reader out for the embedded one."
        )
    if top_k > data_settings.depth:  # said before models are loaded
        raise ConfigurationError(
            f"Diagnosis has --top-k {top_k} above --depth {data_settings.depth}; the reader can only see candidates. "
            "Raise --depth or lower --top-k."
        )
    if repeat_reads and reader_settings.reader == "embedded":
        raise ConfigurationError(
            "--repeat-reads was given, but the embedded reader always answers the same; wanted a language model. Leave "
            "it out: order_noise says how much the order of the same passages matters to it."
        )
    check_expansion(expansion, reader_settings.reader, data_settings.retriever)
    priced = resolve_reward(reward)
    checked_device(device)
    dataset = load_one(str(data), data_settings, need_answers=True)
    sampled = sample_questions(dataset.examples, questions, seed)
    reads = partial(reads_at_most, top_k=top_k, orders=orders, samples=samples, repeats=repeat_reads)
    searched = sampled  # no search for questions that are not read
    if data_settings.retriever == "bm25":
        costs = [reads(min(data_settings.depth, len(dataset.corpus)))] * len(sampled)
        searched = sampled[: affordable(costs, max_reader_calls)]
    reference = build_reranker(model, device)
    run = command_run("diagnose")
    examples, first_stage = with_first_stage(
        searched, dataset.corpus, data_settings, expansion, reader_settings, run, device
    )
    with counted_store(reader_settings.cache, run) as store, progress_bars() as progress:
        built = build_reader(reader_settings, store, run, device)
        assert built is not None

        def price_of(chosen: Sequence[Example]) -> str:
            return _price_at_most(reader_settings, built, chosen, top_k, reads)

        diagnosis = diagnose_examples(
            examples,
            built,
            priced,
            reference=reference,
            top_k=top_k,
            depth=data_settings.depth,
            questions=questions,
            orders=orders,
            samples=samples,
            second_reader=built.again() if repeat_reads and isinstance(built, LLMReader) else None,
            max_reader_calls=max_reader_calls,
            max_failed=max_failed_reads,
            seed=seed,
            set_name=dataset.name,
            retriever=first_stage,
            announce=lambda count, bound: _announce(count, len(sampled), bound, price_of(examples[:count])),
            progress=progress,
        )
    tell_of_cut(reference)
    tell_of_reader_cut(built)
    if dataset.skipped:
        say(f"{dataset.skipped} bad rows were skipped.")
    return diagnosis


def _price_at_most(
    settings: ReaderSettings, reader: Reader, examples: Sequence[Example], k: int, reads: Callable[[int], int]
) -> str:
    """What reads of at most k passages may cost, for people; empty for a reader on this machine."""
    from rankwright.budget import Costs
    from rankwright.cli.costs import tokens_at_most

    if not settings.is_endpoint:
        return ""
    bill = Costs(tokens_at_most(reader), settings.output_limit, reads, k, examples, (), (), k, 0).training(examples)
    if settings.prices is None:
        return ", price unknown (--price-input and --price-output)"
    price = settings.prices.of(bill.input_tokens, bill.output_tokens)
    return ", price without limit (no max_tokens)" if price is None else f", price at most {price:.4f}"


def _announce(count: int, wanted: int, bound: int, price: str) -> None:
    fewer = f" instead of {wanted}, because of --max-reader-calls" if count < wanted else ""
    say(f"Diagnosis reads {count} questions{fewer}: at most {bound} reader calls{price}, less what the cache knows.")
    if count < MINIMUM_QUESTIONS:
        say(f"Warning: a verdict wants {MINIMUM_QUESTIONS} questions; of {count} there will be numbers alone.")


def _table(diagnosis: Diagnosis) -> Table:
    settings = diagnosis.settings
    title = f"{settings.set_name}: {diagnosis.n} questions, depth {settings.depth}, top {settings.top_k}, reward "
    table = Table(title=f"{title}{settings.reward}, reference {settings.reference}")
    table.add_column("number")
    table.add_column("mean [95 % interval]", justify="right")
    table.add_column("n", justify="right")
    table.add_column("what it is", overflow="fold")
    for name, score in diagnosis.means.items():
        table.add_row(name, score_text(score), str(score.n), NUMBERS[name])
    failed = f", {diagnosis.failed_reads} failed and left out" if diagnosis.failed_reads else ""
    table.caption = f"{diagnosis.reader_calls} reader calls, {diagnosis.cache_hits} answers from the cache{failed}"
    return table
