"""Verb `eval`: any number of models on the same questions and candidates."""

from __future__ import annotations

import shlex
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from rankwright.cli.common import (
    BadRow,
    OutputKind,
    RetrieverKind,
    emit,
    print_out,
    progress_bars,
    results_width,
    say,
    score_table,
    shown_metrics,
)
from rankwright.cli.settings import DataSettings, ReaderSettings
from rankwright.data import Dataset
from rankwright.errors import ConfigurationError, DataError
from rankwright.evaluation import Evaluation, FirstStage, GoldFirst, PairedTest, evaluate, verdict
from rankwright.types import Example, Reader, Reranker

WORSE_EXIT_CODE = 8

EXAMPLES = """
**Examples**

Did training help? Both models read by the embedded reader, with BM25 over the passages of the file:

    rankwright eval reference runs/first/model --data test.jsonl --baseline reference

Ranking quality alone, by relevance labels, on candidates as they were given:

    rankwright eval first-stage reference --data run.trec --format trec --corpus corpus.jsonl
      --qrels qrels.txt --retriever given --depth 100 --reader none --output json

An LLM reads; its answers and their price are kept in the cache:

    rankwright eval reference runs/first/model --data test.jsonl --reader http://localhost:8000/v1
      --reader-model Qwen/Qwen2.5-7B-Instruct --report comparison.html
"""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("eval", epilog=EXAMPLES)(compare)


def compare(
    models: list[str] = typer.Argument(
        ...,
        metavar="MODEL",
        help="A folder, a hub name, reference (embedded), first-stage (order as it came) or gold-first (by label).",
    ),
    data: Path = typer.Option(..., "--data", help="Questions: file or folder in one of the formats."),
    format: str = typer.Option(
        "jsonl", "--format", help="jsonl, hotpotqa, 2wiki, musique, dpr, squad, beir, trec or rank_llm."
    ),
    qrels: Path | None = typer.Option(None, help="Relevance labels (TREC or BEIR); they choose the questions."),
    corpus: Path | None = typer.Option(None, help="Passages to retrieve from; without it, those of the data file."),
    retriever: RetrieverKind = typer.Option(
        RetrieverKind.bm25, help="bm25 over the corpus, or given: candidates in the order of the data."
    ),
    depth: int = typer.Option(20, min=1, help="Candidates per question."),
    top_k: int = typer.Option(3, min=1, help="Passages that the reader sees; the k of hit@k."),
    reader: str = typer.Option(
        "embedded", help="embedded, none, the base URL of an OpenAI-compatible endpoint, or a local causal LM."
    ),
    reader_model: str = typer.Option("", help="Model name at the endpoint."),
    reader_prompt: str = typer.Option("reader-1", help="A shipped prompt or a file with {passages} and {question}."),
    requests_per_minute: float = typer.Option(0.0, min=0.0, help="Limit on requests to the endpoint; 0 sets none."),
    tokens_per_minute: float = typer.Option(0.0, min=0.0, help="Limit on tokens to the endpoint; 0 sets none."),
    price_input: float | None = typer.Option(None, min=0.0, help="Price of a million input tokens, for the ledger."),
    price_output: float | None = typer.Option(None, min=0.0, help="Price of a million output tokens."),
    api_key_env: str = typer.Option("OPENAI_API_KEY", help="Environment variable that holds the endpoint's key."),
    cache: str = typer.Option("runs/reads.sqlite", help="SQLite file of all answers, shared by all runs."),
    on_bad_row: BadRow = typer.Option(BadRow.error, help="Stop at a bad row, or leave it out and count it."),
    baseline: str | None = typer.Option(
        None,
        help="The MODEL that all others are tested against, with exit code 8 if one is worse; else all pairs are.",
    ),
    gold_first: bool = typer.Option(False, "--gold-first", help="Add a row with labelled passages put first."),
    seed: int = typer.Option(0, help="Seed of the bootstrap and of the permutation test."),
    device: str = typer.Option("cpu", help="Torch device of models and local readers."),
    output: OutputKind = typer.Option(OutputKind.text, help="json prints one line on standard output."),
    report: Path | None = typer.Option(None, help="Write the comparison as one HTML file."),
    save: Path | None = typer.Option(None, help="Write rankings, answers and scores as JSON, for rankwright report."),
) -> int:
    """Compare models on the same questions and candidates: scores with intervals, paired tests, a signature."""
    from rankwright.cli.build import checked_device, load_one, tell_of_cut
    from rankwright.report import write_report

    names = _checked_names([*models, *([GoldFirst.name] if gold_first else [])], baseline)
    data_settings = DataSettings(
        format=format,
        corpus=str(corpus or ""),
        qrels=str(qrels or ""),
        retriever=retriever.value,
        depth=depth,
        on_bad_row=on_bad_row.value,
    )
    reader_settings = ReaderSettings(
        reader=reader,
        model=reader_model,
        prompt=reader_prompt,
        cache=cache,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        api_key_env=api_key_env,
        price_input=price_input,
        price_output=price_output,
    )
    checked_device(device)
    dataset = load_one(str(data), data_settings, need_answers=reader != "none")
    examples, first_stage, skipped = _with_candidates(dataset, data_settings)
    rankers = {name: _ranker(name, examples, device) for name in names}
    with _opened_reader(reader_settings, device) as opened, progress_bars() as progress:
        evaluation = evaluate(
            rankers,
            examples,
            reader=opened,
            top_k=top_k,
            depth=depth,
            baseline=baseline,
            seed=seed,
            set_name=dataset.name,
            retriever=first_stage,
            skipped=skipped,
            progress=progress,
        )
    for ranker in rankers.values():
        tell_of_cut(ranker)
    worse = _worse_than_baseline(evaluation)
    _print(evaluation, worse, output)
    if save is not None:
        evaluation.save(save)
        say(f"Saved to {save}")
    if report is not None:
        run = {"environment": {"command": "rankwright " + shlex.join(sys.argv[1:])}}
        write_report(report, evaluation, title=f"Comparison on {dataset.name}", run=run)
        say(f"Report {report}")
    return WORSE_EXIT_CODE if worse else 0


def _checked_names(names: Sequence[str], baseline: str | None) -> Sequence[str]:
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ConfigurationError(f"Model '{name}' was given {times} times; wanted every model once. Remove one.")
    if baseline is not None and baseline not in names:
        raise ConfigurationError(
            f"Baseline '{baseline}' is not among the models {', '.join(names)}; wanted one of them, as typed there."
        )
    return names


def _with_candidates(dataset: Dataset, settings: DataSettings) -> tuple[list[Example], str, int]:
    """Examples with candidates, the first stage as it belongs in a signature, and the rows left out."""
    from rankwright.cli.build import candidates
    from rankwright.retrieval import BM25

    if settings.retriever == RetrieverKind.bm25:
        index = BM25(dataset.corpus)
        return candidates(dataset.examples, dataset.corpus, "bm25", settings.depth, index), index.name, dataset.skipped
    usable: Sequence[Example] = dataset.examples
    if settings.on_bad_row == BadRow.skip:
        usable = [example for example in dataset.examples if example.candidates]
    left_out = len(dataset.examples) - len(usable)
    if left_out:
        say(f"{left_out} questions with an empty candidate list skipped.")
    if not usable:
        raise DataError(
            f"None of {len(dataset.examples)} questions of {dataset.name} has candidates; --retriever given wants them "
            "in the data. Add them, or take --retriever bm25."
        )
    return candidates(usable, dataset.corpus, "given", settings.depth), "given", dataset.skipped + left_out


def _ranker(name: str, examples: Sequence[Example], device: str) -> Reranker:
    from rankwright.cli.build import build_reranker

    return GoldFirst(examples) if name == GoldFirst.name else build_reranker(name, device)


@contextmanager
def _opened_reader(settings: ReaderSettings, device: str) -> Iterator[Reader | None]:
    """The reader over its cache; at the end its calls are summed up."""
    from rankwright.cli.build import build_reader, open_store

    if settings.reader == "none":
        yield None
        return
    run = f"eval-{uuid.uuid4().hex[:8]}"
    with open_store(settings.cache) as store:
        reader = build_reader(settings, store, run, device)
        yield reader
        share_cut = getattr(reader, "share_cut", 0.0)
        if reader is not None and share_cut:
            say(f"{reader.name}: {share_cut:.1%} of the tokens of questions and passages lay beyond its limit.")
        totals = store.ledger.totals(run)
        calls = f"Reader calls {totals.calls} ({totals.failed} failed), price {totals.price_text}"
        say(f"{calls}; they stand in {settings.cache} as {run}.")


def _worse_than_baseline(evaluation: Evaluation) -> list[PairedTest]:
    """Tests of the headline metric that show a model to be worse than the baseline the user named."""
    fixed_orders = (FirstStage.name, GoldFirst.name)
    return [
        test
        for test in evaluation.tests
        if evaluation.settings.baseline is not None
        and test.metric == evaluation.headline_metric
        and test.a not in fixed_orders
        and verdict(test) == "worse"
    ]


def _print(evaluation: Evaluation, worse: Sequence[PairedTest], output: OutputKind) -> None:
    if output is OutputKind.json:
        signatures = {metric: evaluation.signature_of(metric) for metric in evaluation.metrics}
        emit({**evaluation.to_json(), "signatures": signatures})
    else:
        _print_text(evaluation)
    last = say if output is OutputKind.json else print_out
    test = evaluation.headline_test()
    if test is not None and not worse:
        last(_sentence(test))
    for found in worse:
        last(_sentence(found))


def _print_text(evaluation: Evaluation) -> None:
    metrics = shown_metrics(evaluation, results_width())
    print_out(score_table(evaluation, results_width()))
    if evaluation.tests:
        print_out(_test_table(evaluation, metrics))
    failed = {name: result.n_failed for name, result in evaluation.models.items() if result.n_failed}
    for name, count in failed.items():
        print_out(f"{name}: {count} of {evaluation.n} reads failed; they are missing from its means.")
    if evaluation.settings.skipped:
        print_out(f"{evaluation.settings.skipped} bad rows were skipped.")
    print_out("Signatures:")
    for metric in metrics:
        print_out(f"  {evaluation.signature_of(metric)}")


def _test_table(evaluation: Evaluation, metrics: Sequence[str]) -> Table:
    table = Table(title="Paired tests, a minus b")
    for heading in ("metric", "a", "b"):
        table.add_column(heading, overflow="fold")
    for heading in ("n", "delta [95 % interval]", "p", "Holm p"):
        table.add_column(heading, justify="right")
    table.add_column("a is")
    for test in evaluation.tests:
        if test.metric in metrics:
            table.add_row(*_test_cells(test))
    return table


def _test_cells(test: PairedTest) -> tuple[Any, ...]:
    delta = f"{test.delta:+.3f} [{test.ci_low:+.3f}, {test.ci_high:+.3f}]"
    return test.metric, test.a, test.b, str(test.n), delta, f"{test.p:.4f}", f"{test.p_holm:.4f}", verdict(test)


def _sentence(test: PairedTest) -> str:
    """One test in words."""
    words = {
        "better": "is BETTER than",
        "not shown": "shows NO DIFFERENCE to",
        "worse": "is WORSE than",
    }
    return (
        f"{test.a} {words[verdict(test)]} {test.b}: {test.metric} {test.delta:+.3f} (95 % interval {test.ci_low:+.3f} "
        f"to {test.ci_high:+.3f}, p = {test.p:.4f}, n = {test.n})."
    )
