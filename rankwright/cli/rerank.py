"""Verb `rerank`: one question, a stream of requests, a file of questions with candidates, or a TREC run; by a model
that scores, or by a language model and a strategy."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import typer
from rich.table import Table

from rankwright.cli.asked import MAX_FAILED, Ranker, Source, given
from rankwright.cli.common import (
    FORMAT_HELP,
    PARTIAL_EXIT_CODE,
    BadRow,
    OutputKind,
    as_command,
    emit,
    print_out,
    progress_bars,
    say,
    too_many_failed,
    write_out,
)
from rankwright.cli.options import (
    STRATEGIES,
    ApiKeyEnv,
    Backend,
    Cache,
    PriceInput,
    PriceOutput,
    RequestsPerMinute,
    TokensPerMinute,
    Windows,
)
from rankwright.data.fields import FIX_FORMAT
from rankwright.data.intake import Intake
from rankwright.data.problems import RowError
from rankwright.errors import ConfigurationError, DataError
from rankwright.types import Document, Query, Ranking, Reranker, RerankRequest

STDIN = "standard input"
QUERY_ID_FIELDS = ("query_id", "_id", "id")
_QUERIES_AT_ONCE = 64

EXAMPLES = r"""
**Examples**

    rankwright rerank "who wrote Faust?" "Goethe wrote it." \
      "A fist is a hand." --top-k 1

Passages as JSON lines, from a file or from another program:

    rankwright rerank "who wrote Faust?" --passages passages.jsonl \
      --output json

    cat passages.jsonl | rankwright rerank "who wrote Faust?" \
      --model runs/first/model

Many requests, one {"query", "documents"} object a line, each answered with one JSON line at once:

    cat requests.jsonl | rankwright rerank --model reference > answers.jsonl

A TREC run in, a TREC run out:

    rankwright rerank --run bm25.run --topics topics.tsv \
      --corpus corpus.jsonl > reranked.run

Millions of pairs: progress, constant memory; the same command goes on after a kill. Then the third of eight parts, on
any machine; at last the parts in one:

    rankwright rerank --run bm25.run --corpus corpus.jsonl \
      --model runs/first/model --out reranked.run.gz

    rankwright rerank --run bm25.run --corpus beir-folder --out top.jsonl \
      --top-k 10 --shard 3/8

    rankwright rerank --out top.jsonl --join 8

A language model behind an OpenAI-compatible endpoint sees 20 passages at a time; --output json tells calls and tokens:

    rankwright rerank --llm http://localhost:8000/v1 \
      --llm-model Qwen/Qwen2.5-7B-Instruct --strategy sliding \
      --data bm25_top100.json --format rank_llm --output json

Fewer rounds, another prompt, a tenth of the first stage's scores; then a local model with yes or no to each passage:

    rankwright rerank --llm http://localhost:8000/v1 \
      --llm-model Qwen/Qwen2.5-7B-Instruct --strategy topk \
      --prompt listwise-think-1 --fuse 0.1 --data candidates.jsonl \
      > reranked.run

    rankwright rerank "who wrote Faust?" --passages passages.jsonl \
      --llm ./my-llm --strategy pointwise
"""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog=EXAMPLES)(rerank)


def rerank(
    context: typer.Context,
    question: str | None = typer.Argument(None, help="Without it, requests are read from standard input."),
    passages: list[str] | None = typer.Argument(None, help="Passages; without any, JSON lines on standard input."),
    model: str = typer.Option("reference", help="reference (embedded), a folder, a hub name, or first-stage."),
    top_k: int | None = typer.Option(None, min=1, help="Keep only the best; all without it."),
    passages_file: Path | None = typer.Option(
        None, "--passages", help='Passages as JSON lines or array: {"text", "title"?, "doc_id"?}.'
    ),
    data: Path | None = typer.Option(None, help="Questions with candidates: file or folder in one of the formats."),
    format: str | None = typer.Option(None, help=f"Format of --data. {FORMAT_HELP} Default jsonl."),
    run: Path | None = typer.Option(None, help="TREC run to rerank; needs --corpus."),
    topics: Path | None = typer.Option(None, help="Questions of the run; else topics* or queries* beside it."),
    corpus: Path | None = typer.Option(None, help="Passages of the run or of --data."),
    depth: int | None = typer.Option(None, min=1, help="Candidates of a question that are reranked; all without it."),
    llm: str | None = typer.Option(
        None,
        help="Language model in the place of --model: an endpoint's base URL, a local causal LM, or vllm:PATH, run "
        "by vLLM (untested).",
    ),
    llm_model: str | None = typer.Option(None, help="Model name at the endpoint of --llm."),
    strategy: str | None = typer.Option(
        None, help=f"How a language model covers the candidates: {', '.join(STRATEGIES)}. Default sliding."
    ),
    prompt: str | None = typer.Option(
        None,
        help="Shipped prompt (rankwright prompts list), file, or a model's folder. Default: the one that the folder of "
        "--llm keeps, else the strategy's.",
    ),
    window: int | None = typer.Option(None, help="Passages that the language model sees at once. Default 20."),
    stride: int | None = typer.Option(None, help="Steps of a sliding window. Default: half of the window."),
    fuse: float | None = typer.Option(None, help="Share of the first stage's scores in the result, 0 to 1."),
    max_failed: float | None = typer.Option(
        None,
        min=0,
        max=1,
        help="Largest share of the language model's calls that may fail; above it the exit code is 7. Default 0.01. "
        "Above 0.05, or this where it is larger, the command stops.",
    ),
    set_: list[str] = typer.Option(
        [],
        "--set",
        help="NAME=VALUE: a setting of the strategy (repeats=4), sampling.NAME, fuse.scale, or reader.NAME for the "
        "endpoint (reader.concurrency=8).",
    ),
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    price_input: PriceInput = None,
    price_output: PriceOutput = None,
    api_key_env: ApiKeyEnv = None,
    cache: Cache = None,
    on_bad_row: BadRow = typer.Option(
        BadRow.error,
        help="Stop at a bad line, or go on and count it; a bad request is answered with an error, and the exit code "
        "is 7.",
    ),
    device: str = typer.Option("cpu", help="Torch device."),
    backend: Backend = "torch",
    windows: Windows = None,
    out: Path | None = typer.Option(
        None,
        help="File for the rankings of --run or --data, read and written in constant memory; the same command goes on "
        "after a kill. A TREC run, or rows with texts where the name ends in .jsonl; .gz packs.",
    ),
    shard: str | None = typer.Option(None, help="I/N: only the I-th of N parts, into OUT with .I-of-N in its name."),
    join: int | None = typer.Option(None, min=2, help="Put so many shards of --out together, and do nothing else."),
    max_failed_questions: int | None = typer.Option(
        None, min=0, help="Questions of --out that may fail; each is named, and the exit code is 7. Default 10."
    ),
    store: Path | None = typer.Option(
        None, help="Folder for the look-up copy of --corpus. Default: beside --out, until that is complete."
    ),
    ray: bool = typer.Option(
        False, "--ray", help="Score --out by workers on the Ray cluster of RAY_ADDRESS, or on this machine's cores."
    ),
    workers: int | None = typer.Option(None, min=1, help="Workers of --ray. Default: one for each CPU."),
    output: OutputKind = typer.Option(
        OutputKind.text, help="json prints one line, of a run one a question; requests are always answered so."
    ),
) -> int:
    """Put passages in the order in which they help to answer a question, best first, with raw scores.

    A language model's answers that cannot be read are no error: their passages stand as they were given and the exit
    code is 0; they are counted under `outcomes.malformed` beside `calls` in --output json.
    """
    from rankwright.bulk import shard_of
    from rankwright.cli.bulk import BulkOptions, check_bulk, check_ray, join_files, rerank_bulk
    from rankwright.cli.llm import calls_of

    of_file = {"--topics": topics, "--format": format, "--corpus": corpus, "--depth": depth}
    of_llm = {
        "--strategy": strategy,
        "--prompt": prompt,
        "--fuse": fuse,
        "--set": set_ or None,
        "--window": window,
        "--stride": stride,
        "--llm-model": llm_model,
        "--requests-per-minute": requests_per_minute,
        "--tokens-per-minute": tokens_per_minute,
        "--price-input": price_input,
        "--price-output": price_output,
        "--api-key-env": api_key_env,
        "--cache": cache,
    }
    check_bulk(out, given(context))
    allowed = MAX_FAILED if max_failed is None else max_failed
    if out is not None and join is not None:
        return join_files(out, join, allowed, output)
    _check_arguments(question, passages_file, run, data, of_file)
    how = windows.value if windows else None
    ranker = Ranker.asked(model, device, backend, how, llm, {**of_llm, "--max-failed": max_failed}, allowed)
    check_ray(ray, workers, llm)
    file, form = run or data, "trec" if run else format or "jsonl"
    source = None if file is None else Source(file, run is not None, form, topics, corpus, depth, on_bad_row.value)
    if out is not None and source is not None:
        options = BulkOptions(
            out=out,
            shard=shard_of("1/1" if shard is None else shard),
            store=store,
            max_failed=10 if max_failed_questions is None else max_failed_questions,
            max_failed_calls=allowed,
            ray=ray,
            workers=workers,
            top_k=top_k,
            output=output,
        )
        return rerank_bulk(ranker, source, options)
    wanted = _Wanted(ranker.name, top_k, on_bad_row, output)
    if source is not None:
        requests, skipped = source.requests()
        answer = partial(_answer_file, requests, skipped, source.is_run, wanted)
    elif question is not None:
        documents, skipped = _documents(passages or [], passages_file, on_bad_row)
        answer = partial(_answer_question, question, documents, skipped, wanted)
    else:
        answer = partial(_answer_requests, wanted)
    with ranker.opened() as reranker:
        failed = answer(reranker)
    failed += too_many_failed(*calls_of(reranker), allowed, "The same command asks them again.")
    return PARTIAL_EXIT_CODE if failed else 0


class _Wanted(NamedTuple):
    """How answers are given."""

    model: str
    """Who ranks, as it was asked for."""
    top_k: int | None
    on_bad_row: BadRow
    output: OutputKind


def _check_arguments(
    question: str | None, passages_file: Path | None, run: Path | None, data: Path | None, of_file: Mapping[str, Any]
) -> None:
    if run is not None and data is not None:
        raise ConfigurationError(f"--run {run} and --data {data} were both given; wanted one of them.")
    file = run or data
    given = [name for name, value in of_file.items() if value is not None]
    if file is None and given:
        raise ConfigurationError(f"{given[0]} was given without --run and --data; wanted the file that it belongs to.")
    if run is not None and of_file["--format"] is not None:
        raise ConfigurationError(f"--format was given with --run {run}, which is a TREC run; wanted it with --data.")
    if file is not None and (question is not None or passages_file is not None):
        raise ConfigurationError(
            f"A question or --passages was given beside {'--run' if run else '--data'} {file}; wanted one of the two. "
            "A file brings its own questions and passages."
        )
    if question is not None and not question.strip():
        raise ConfigurationError("The question is empty; wanted text. Quote it if it has spaces.")
    try:
        (question or "").encode()
    except UnicodeEncodeError as error:  # bytes of the shell that are no UTF-8 arrive as halves of surrogate pairs
        raise ConfigurationError(
            f"The question has bytes at character {error.start} that are no UTF-8; wanted text. Check the terminal's "
            "encoding."
        ) from None
    if question is None and passages_file is not None:
        raise ConfigurationError(f"--passages {passages_file} was given without a question; put it before the options.")


# --- one question ------------------------------------------------------------------------------------------------


def _answer_question(
    question: str, documents: tuple[Document, ...], skipped: int, wanted: _Wanted, reranker: Reranker
) -> int:
    """The answer to one question; 0, since nothing of it can fail alone."""
    from rankwright.cli.llm import say_taken, taken

    request = RerankRequest(Query("0", question), documents)
    (ranking,) = reranker.rerank_batch([request])
    answer = _answer(request, ranking.best(wanted.top_k), wanted.model, skipped)
    _print({**answer, **taken(reranker)}, wanted.output)
    say_taken(reranker)
    return 0


def _documents(texts: Sequence[str], file: Path | None, on_bad_row: BadRow) -> tuple[tuple[Document, ...], int]:
    """Passages of the arguments, then those of the file; of standard input where there are neither. And how many were
    bad."""
    from rankwright.data.rows import json_rows

    intake = _OneFormat(skip_bad_rows=on_bad_row is BadRow.skip, need_answers=False)
    documents: dict[str, Document] = {}
    for number, text in enumerate(texts, start=1):
        with intake.row(f"passage argument {number}", 0):
            if not text.strip():
                raise RowError("it is empty", "the text of a passage", "Write one, or leave the argument out.")
            _take(documents, _document(text, len(documents)))
    if file is not None:
        _take_rows(documents, file, json_rows(file, intake), intake)
    elif not texts:
        _refuse_terminal("passages, one JSON object with a text a line")
        _take_rows(documents, STDIN, _stdin_rows(intake), intake)
    skipped = intake.dataset(file or Path(STDIN)).skipped  # logs what was skipped and unknown fields
    if not documents:
        raise DataError(
            f"{file or STDIN} holds no usable passage ({skipped} bad lines); wanted at least one "
            '{"text": "..."} a line. Give passages as arguments, with --passages FILE or on standard input.'
        )
    return tuple(documents.values()), skipped


class _OneFormat(Intake):
    """Of passages and of requests, among whose formats --format does not choose."""

    @contextlib.contextmanager
    def row(self, file: object, line: int) -> Iterator[None]:
        with super().row(file, line):
            try:
                yield
            except RowError as error:
                raise _without_format(error) from None


def _without_format(error: RowError) -> RowError:
    step = error.next_step.replace(FIX_FORMAT, "Correct the row; rankwright rerank --help has examples.")
    return RowError(error.found, error.wanted, step)


def _take_rows(
    documents: dict[str, Document], place: object, rows: Iterable[tuple[int, Mapping[str, Any]]], intake: Any
) -> None:
    from rankwright.data.fields import CANDIDATE_FIELDS

    for line, row in rows:
        with intake.row(place, line):
            intake.note_fields(place, line, row, CANDIDATE_FIELDS)
            _take(documents, _document(row, len(documents)))


def _stdin_rows(intake: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line, object) of every good line of standard input."""
    for line, raw in _stdin_lines():
        row: Mapping[str, Any] | None = None
        with intake.row(STDIN, line):
            row = _parsed(raw)
        if row is not None:
            yield line, row


def _stdin_lines() -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of every line that is not blank, as it arrives."""
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        line = raw.removeprefix(b"\xef\xbb\xbf").strip()
        if line:
            yield number, line


def _parsed(raw: bytes) -> Mapping[str, Any]:
    from rankwright.data.files import decoded, parsed_object

    return parsed_object(decoded(raw))


def _document(value: object, position: int) -> Document:
    """A string, or an object with text, title and doc_id; without an id it is named by its position."""
    from rankwright.data.fields import ID_FIELDS, checked_text, document, id_field, object_of, passage

    if isinstance(value, str):
        return document("", checked_text(value, "passage"), str(position))
    row = object_of(value, "passage")
    found = passage(row)
    return found if id_field(row, *ID_FIELDS) is not None else replace(found, doc_id=str(position))


def _take(documents: dict[str, Document], found: Document) -> None:
    if found.doc_id in documents:
        raise RowError(
            f"doc_id '{found.doc_id}' stands twice among the passages",
            "every doc_id once",
            "Rename one; passages without a doc_id are named by their position, from 0.",
        )
    documents[found.doc_id] = found


def _refuse_terminal(wanted: str) -> None:
    if sys.stdin is None or sys.stdin.isatty():
        found = "closed" if sys.stdin is None else "a terminal"
        raise ConfigurationError(
            f"Nothing to rerank was given and standard input is {found}; wanted {wanted}. "
            "See rankwright rerank --help for examples."
        )


def _answer(request: RerankRequest, ranking: Ranking, model: str, skipped: int) -> dict[str, Any]:
    """The JSON answer to one request; `skipped` counts the bad rows so far."""
    ranked = zip(ranking.documents(request.documents), ranking.scores, strict=True)
    results = [
        {"rank": rank, "doc_id": document.doc_id, "score": score, "title": document.title, "text": document.text}
        for rank, (document, score) in enumerate(ranked, start=1)
    ]
    return {"query": request.query.text, "model": model, "skipped": skipped, "results": results}


def _print(answer: Mapping[str, Any], output: OutputKind) -> None:
    if output is OutputKind.json:
        emit(answer)
        return
    table = Table()
    for heading in ("rank", "score", "doc_id"):
        table.add_column(heading, justify="right" if heading != "doc_id" else "left")
    table.add_column("passage", overflow="fold")
    for row in answer["results"]:
        text = f"{row['title']}: {row['text']}" if row["title"] else row["text"]
        table.add_row(str(row["rank"]), f"{row['score']:.4f}", row["doc_id"], " ".join(text.split()))
    print_out(table)
    if answer["skipped"]:
        print_out(f"{answer['skipped']} bad rows were skipped.")


# --- requests ----------------------------------------------------------------------------------------------------


def _answer_requests(wanted: _Wanted, reranker: Reranker) -> int:
    """Answers every line of standard input as it arrives; the number of lines that could not be read."""
    from rankwright.cli.llm import taken

    _refuse_terminal('requests, one {"query", "documents"} object a line')
    answered = failed = 0
    noted = Intake(skip_bad_rows=True, need_answers=False)
    for line, raw in _stdin_lines():
        try:
            row = _parsed(raw)
            query_id, request = _request(row)
        except RowError as error:
            problem = as_command(str(_without_format(error).at(STDIN, line)))
            if wanted.on_bad_row is BadRow.error:
                raise DataError(problem) from None
            failed += 1
            emit({"line": line, "error": problem})
            continue
        answered += 1
        noted.note_fields(STDIN, line, row, *_request_fields(row))
        (ranking,) = reranker.rerank_batch([request])
        answer = _answer(request, ranking.best(wanted.top_k), wanted.model, failed) | taken(reranker, last=True)
        emit({"query_id": query_id, **answer} if query_id is not None else answer)
    noted.dataset(Path(STDIN))  # warns of unknown fields
    if not answered + failed:
        raise DataError(
            f'{STDIN} is empty; wanted requests, one {{"query", "documents"}} object a line. '
            "Or give a question as argument."
        )
    say(f"{answered} requests answered, {failed} bad lines.")
    return failed


def _request_fields(row: Mapping[str, Any]) -> tuple[frozenset[str], Mapping[str, frozenset[str]]]:
    """The fields of a request, and those of the objects in it."""
    from rankwright.data import rank_llm
    from rankwright.data.fields import CANDIDATE_FIELDS

    known = rank_llm.FORMAT.fields | {"query", "documents", "candidates", *QUERY_ID_FIELDS}
    if isinstance(row["query"], dict):
        return known, {**rank_llm.FORMAT.nested, "documents": rank_llm.FORMAT.nested["candidates"]}
    return known, {"documents": CANDIDATE_FIELDS, "candidates": CANDIDATE_FIELDS}


def _request(row: Mapping[str, Any]) -> tuple[str | None, RerankRequest]:
    """The id that a request brings and what it asks: {"query", "documents" | "candidates"}, or a row of rank_llm."""
    from rankwright.data import rank_llm
    from rankwright.data.fields import id_field, list_field, shown, text_field

    names = [name for name in ("documents", "candidates") if name in row]
    if len(names) != 1:
        raise RowError(
            f"a request with fields {shown(sorted(row))}",
            "'query' and one of 'documents' and 'candidates'",
            "Correct the line.",
        )
    if isinstance(row.get("query"), dict):
        example = rank_llm.parse_row({**row, "candidates": row[names[0]]})
        documents = {document.doc_id: document for document in example.candidates}
        query_id, query, first_stage = example.query.query_id, example.query, example.first_stage
    else:
        documents, first_stage = {}, {}
        for position, value in enumerate(list_field(row, names[0])):
            _take(documents, _document(value, position))
        query_id = id_field(row, *QUERY_ID_FIELDS)
        query = Query(query_id or "0", text_field(row, "query"))
    if not documents:
        raise RowError(f"field '{names[0]}' is empty", "at least one passage", "Add passages, or leave the line out.")
    return query_id, RerankRequest(query, tuple(documents.values()), first_stage)


# --- a file of questions -----------------------------------------------------------------------------------------


def _answer_file(
    requests: Sequence[RerankRequest], skipped: int, is_run: bool, wanted: _Wanted, reranker: Reranker
) -> int:
    """A TREC run; for json a line for each question of a run, else one object with all rankings. 0: a question that
    fails ends the command."""
    from rankwright.cli.llm import say_taken, taken
    from rankwright.data import trec_run_lines
    from rankwright.strategies import Fused, LLMReranker, check_first_stage

    rankings: list[Ranking] = []
    if isinstance(reranker, LLMReranker) and isinstance(reranker.strategy, Fused):
        for request in requests:
            check_first_stage(request)  # before the first batch is paid for
    # A language model has bars of its own, and the oldest rich that we take shows only one set of bars at a time.
    own = reranker.on_progress if isinstance(reranker, LLMReranker) else None
    with progress_bars() if own is None else contextlib.nullcontext(own) as progress:
        for start in range(0, len(requests), _QUERIES_AT_ONCE):
            batch = requests[start : start + _QUERIES_AT_ONCE]
            ranked = [ranking.best(wanted.top_k) for ranking in reranker.rerank_batch(batch)]
            for request, ranking in zip(batch, ranked, strict=True):
                if wanted.output is OutputKind.text:
                    write_out("".join(f"{line}\n" for line in trec_run_lines(ranking)))
                elif is_run:
                    emit({"query_id": ranking.query_id, **_answer(request, ranking, wanted.model, skipped)})
            rankings += [] if is_run else ranked
            progress("rerank", start + len(batch), len(requests))
    say_taken(reranker)
    if not is_run and wanted.output is OutputKind.json:
        rows = [{"query_id": r.query_id, "doc_ids": list(r.doc_ids), "scores": list(r.scores)} for r in rankings]
        emit({"model": wanted.model, "skipped": skipped, **taken(reranker), "rankings": rows})
    return 0
