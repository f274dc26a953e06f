"""Verbs `retrieve` and `validate`."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from rankwright.cli.common import (
    FORMAT_HELP,
    BadRow,
    OutputKind,
    as_command,
    emit,
    print_out,
    progress_bars,
    say,
)
from rankwright.cli.options import (
    ApiKeyEnv,
    Cache,
    ExpandModel,
    ExpandWith,
    PriceInput,
    PriceOutput,
    RequestsPerMinute,
    TokensPerMinute,
)
from rankwright.errors import ConfigurationError, DataError
from rankwright.evaluation import Progress
from rankwright.types import Document, Query, Ranking

if TYPE_CHECKING:
    from rankwright.data import Dataset, Problem, ValidationReport
    from rankwright.expansion import Query2Doc
    from rankwright.retrieval import BM25

INVALID_EXIT_CODE = 5
_QUERIES_AT_ONCE = 256
_PROBLEMS_SHOWN = 20

RETRIEVE_EXAMPLES = r"""
**Examples**

Candidates for training and evaluation, in our own format (questions, answers, labels and candidates in one file):

    rankwright retrieve --data questions.jsonl --corpus passages.jsonl \
      --depth 20 --out candidates.jsonl

A TREC run from BEIR files, keeping the index for later:

    rankwright retrieve --data nfcorpus/queries.jsonl --format beir \
      --corpus nfcorpus/corpus.jsonl --out bm25.run \
      --save-index indexes/nfcorpus

    rankwright retrieve --data more.jsonl --index indexes/nfcorpus \
      --out more.run

BM25 searches with a passage too that a language model writes for each question (Query2Doc); it stands in the rows:

    rankwright retrieve --data questions.jsonl --corpus passages.jsonl \
      --out candidates.jsonl --expand-with http://localhost:8000/v1 \
      --expand-model Qwen/Qwen2.5-7B-Instruct
"""

VALIDATE_EXAMPLES = """
**Examples**

    rankwright validate questions.jsonl --corpus passages.jsonl

    rankwright validate dev.json --format hotpotqa --need-answers --output json
"""


def register(app: typer.Typer) -> None:
    """Adds the verbs."""
    app.command(epilog=RETRIEVE_EXAMPLES)(retrieve)
    app.command(epilog=VALIDATE_EXAMPLES)(validate)


# --- retrieve ----------------------------------------------------------------------------------------------------


def retrieve(
    data: Path = typer.Option(..., "--data", help="Questions: file or folder in one of the formats."),
    format: str = typer.Option("jsonl", "--format", help=FORMAT_HELP),
    corpus: Path | None = typer.Option(None, help="Passages; without it and --index, those of the data file."),
    topics: Path | None = typer.Option(None, help="Questions of a TREC run; else topics* or queries* beside it."),
    qrels: str | None = typer.Option(
        None, help="Only questions with labels in this file, or in this BEIR split. Default for beir: test."
    ),
    depth: int = typer.Option(100, min=1, help="Candidates per question."),
    out: Path | None = typer.Option(None, help="FILE.jsonl or FILE.run (TREC), with .gz where wanted."),
    index: Path | None = typer.Option(None, help="Folder of a saved index to search instead of a corpus."),
    save_index: Path | None = typer.Option(None, help="Keep the index in this folder."),
    expand_with: ExpandWith = None,
    expand_model: ExpandModel = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    price_input: PriceInput = None,
    price_output: PriceOutput = None,
    api_key_env: ApiKeyEnv = None,
    cache: Cache = None,
    config: Path | None = typer.Option(
        None, help="YAML file, or config.json of a run, whose query expansion is taken: that of the training."
    ),
    set_: list[str] = typer.Option(
        [], "--set", help="NAME=VALUE for any setting of expansion or reader, for example --set expansion.repeats=3."
    ),
    device: str = typer.Option("cpu", help="Torch device of a local language model."),
    on_bad_row: BadRow = typer.Option(BadRow.error, help="Stop at a bad row, or leave it out and count it."),
    output: OutputKind = typer.Option(OutputKind.text, help="json prints counts as one line on standard output."),
) -> None:
    """Find candidates for every question with BM25."""
    from rankwright.cli.build import checked_device
    from rankwright.cli.settings import check_expansion, load_expansion_settings, load_reader_settings
    from rankwright.data import load_examples
    from rankwright.retrieval import BM25

    flags = {
        "expansion.llm": expand_with,
        "expansion.model": expand_model,
        "reader.requests_per_minute": requests_per_minute,
        "reader.tokens_per_minute": tokens_per_minute,
        "reader.price_input": price_input,
        "reader.price_output": price_output,
        "reader.api_key_env": api_key_env,
        "reader.cache": cache,
    }
    expansion, reader = load_expansion_settings(config, set_, flags), load_reader_settings(config, set_, flags)
    check_expansion(expansion, reader.reader, "bm25")
    checked_device(device)
    as_run = _is_run(out) if out is not None else False
    if out is None and save_index is None:
        raise ConfigurationError("Neither --out nor --save-index was given; wanted a place for the result.")
    if index is not None and (corpus is not None or save_index is not None):
        raise ConfigurationError(
            f"--index {index} was given beside --corpus or --save-index; wanted either a saved index or a corpus."
        )
    searched = BM25.load(index) if index is not None else None
    dataset = load_examples(data, format, corpus=corpus, qrels=qrels, topics=topics, on_bad_row=on_bad_row.value)
    searched = searched or BM25(dataset.corpus)
    if save_index is not None:
        searched.save(save_index)
        say(f"Index of {len(searched)} passages saved to {save_index}")
    first = None
    if out is not None:
        if expansion.wanted:
            from rankwright.cli.expansion import expanded

            run, queries = f"retrieve-{uuid.uuid4().hex[:8]}", [example.query for example in dataset.examples]
            first = expanded(searched, queries, expansion, reader, run, device=device)
        _write(out, dataset, searched, first, depth, as_run=as_run)
    counts = {
        "set": dataset.name,
        "questions": len(dataset.examples),
        "skipped": dataset.skipped,
        "unjudged": dataset.unjudged,
        "passages": len(searched),
        "depth": min(depth, len(searched)),
        "retriever": (first or searched).name,
        "failed_expansions": first.failed if first else None,
        "out": str(out) if out is not None else None,
    }
    if output is OutputKind.json:
        emit(counts)
    else:
        print_out(
            f"{dataset.name}: {len(dataset.examples)} questions ({dataset.skipped} bad rows skipped, "
            f"{dataset.unjudged} without labels left out), {counts['depth']} candidates each of {len(searched)} "
            f"passages by {counts['retriever']}: {out or 'not written'}"
        )


def _is_run(out: Path) -> bool:
    name = out.name.removesuffix(".gz")
    if name.endswith((".run", ".trec")):
        return True
    if name.endswith(".jsonl"):
        return False
    raise ConfigurationError(
        f"--out is '{out}'; wanted a name that ends in .jsonl (our format) or .run (TREC), with .gz where wanted."
    )


def _write(out: Path, dataset: Dataset, index: BM25, first: Query2Doc | None, depth: int, *, as_run: bool) -> None:
    """The candidates, found with the expanded queries where there is an expansion."""
    from rankwright.data import write_jsonl, write_trec_run

    asked = [example.query for example in dataset.examples]
    queries = first.expand(asked) if first else asked
    with progress_bars() as progress:
        found = zip(dataset.examples, _found(queries, index, depth, progress), strict=True)
        if as_run:
            rankings = (
                Ranking(example.query.query_id, tuple(d.doc_id for d, _ in rows), tuple(score for _, score in rows))
                for example, rows in found
            )
            write_trec_run(out, rankings, tag="bm25+query2doc" if first else "bm25")
        else:
            notes = {q.query_id: {"expanded_query": q.text} for q, old in zip(queries, asked, strict=True) if q != old}
            examples = (
                replace(
                    example,
                    candidates=tuple(d for d, _ in rows),
                    first_stage={d.doc_id: score for d, score in rows},
                )
                for example, rows in found
            )
            write_jsonl(out, examples, notes)


def _found(
    queries: Sequence[Query], index: BM25, depth: int, progress: Progress
) -> Iterator[tuple[tuple[Document, float], ...]]:
    """The passages of each query with their scores."""
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        batch = queries[start : start + _QUERIES_AT_ONCE]
        yield from index.retrieve_with_scores(batch, depth)
        progress("retrieve", start + len(batch), len(queries))


# --- validate ----------------------------------------------------------------------------------------------------


def validate(
    file: Path = typer.Argument(..., help="File (for beir also a folder or zip) with questions."),
    format: str = typer.Option("jsonl", "--format", help=FORMAT_HELP),
    corpus: Path | None = typer.Option(None, help="Passages that the questions shall be answered from."),
    qrels: Path | None = typer.Option(None, help="Relevance labels (TREC or BEIR)."),
    topics: Path | None = typer.Option(None, help="Questions of a TREC run; else topics* or queries* beside it."),
    need_answers: bool = typer.Option(
        False, "--need-answers", help="A question without answers is a problem, as where a reader is asked."
    ),
    output: OutputKind = typer.Option(OutputKind.text, help="json prints one line on standard output."),
) -> int:
    """Check questions, passages and labels before anything is spent on them; exit code 5 where there are problems."""
    from rankwright.data import validate as read_all

    try:
        with _quiet("rankwright.data"):
            report = read_all(file, format, qrels=qrels, corpus=corpus, topics=topics, need_answers=need_answers)
    except DataError as error:
        if output is OutputKind.json:  # a file that cannot be read at all; the message goes to standard error too
            emit({"ok": False, "name": file.name, "error": str(error)})
        raise
    as_said = [replace(problem, next_step=as_command(problem.next_step)) for problem in report.problems]
    report = replace(report, problems=tuple(as_said))
    if output is OutputKind.json:
        emit(report.as_dict())
    else:
        _print_report(report)
    return 0 if report.ok else INVALID_EXIT_CODE


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Nothing from this logger: the report says it all once."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _print_report(report: ValidationReport) -> None:
    table = Table(title=report.name, show_header=False)
    table.add_column("what")
    table.add_column("value", overflow="fold")
    for what, value in _lines(report):
        table.add_row(what, value)
    print_out(table)
    _print_problems("warning", report.warnings)
    _print_problems("problem", report.problems)
    if report.questions and report.problems:
        print_out("Verbs that use the file leave bad rows out with --on-bad-row skip.")
    if report.ok:
        print_out(f"No problems in the questions. {report.unchecked}" if report.unchecked else "No problems.")
    elif not report.problems:
        print_out("No usable question. Check that --format is the format of the file.")


def _lines(report: ValidationReport) -> Iterator[tuple[str, str]]:
    yield "questions", str(report.questions)
    yield "bad rows", str(report.skipped)
    if report.unjudged:
        yield "left out, without labels in the qrels", str(report.unjudged)
    yield "with answers", str(report.with_answers)
    yield "with candidates", str(report.with_candidates)
    yield "with relevant passages", str(report.with_labels)
    yield "passages", str(report.passages)
    if report.labels_outside_corpus:
        yield "labelled passages that the corpus lacks", str(report.labels_outside_corpus)
    if report.answerable_share is not None:
        yield "an answer stands in a candidate", f"{report.answerable_share:.1%} of questions"
    for what, lengths in (
        ("candidates per question", report.candidates),
        ("words per question", report.question_words),
        ("words per passage", report.passage_words),
    ):
        yield what, f"{lengths.smallest} to {lengths.largest}, median {lengths.median:g}"


def _print_problems(kind: str, problems: Sequence[Problem]) -> None:
    if problems:
        print_out(f"{len(problems)} {kind}{'s' if len(problems) != 1 else ''}:")
    for problem in problems[:_PROBLEMS_SHOWN]:
        print_out(f"  {problem}")
    if len(problems) > _PROBLEMS_SHOWN:
        print_out(f"  and {len(problems) - _PROBLEMS_SHOWN} more; --output json lists them all.")
