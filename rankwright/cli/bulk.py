"""`rankwright rerank --out FILE`: millions of pairs, in constant memory, to go on after a kill, in shards, over Ray."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rankwright import bulk
from rankwright.bulk import (
    Calls,
    Done,
    Form,
    Output,
    Progress,
    Score,
    Shard,
    check_backend,
    join_shards,
    looked_through,
    record_path,
    scored_here,
    write_rankings,
)
from rankwright.cli.asked import Ranker, Source
from rankwright.cli.build import build_reranker, tell_of_cut
from rankwright.cli.common import (
    PARTIAL_EXIT_CODE,
    OutputKind,
    emit,
    now_and_then,
    print_out,
    progress_bars,
    say,
    too_many_failed,
)
from rankwright.cli.llm import calls_of, say_taken
from rankwright.data.store import file_digest
from rankwright.data.streams import ExampleStream
from rankwright.errors import ConfigurationError, DataError
from rankwright.llms.endpoint import bare_place, model_place
from rankwright.rerankers.windows import WindowedScorer
from rankwright.strategies import LLMReranker

DECIDING_FILES = ("*.safetensors", "*.onnx", "*.json", "*.yaml", "*.txt", "*.model", "*.jinja")
"""What of a model's folder decides its scores."""
NEED_OUT = ("--shard", "--join", "--max-failed-questions", "--store", "--ray")
OF_JOIN = ("--out", "--join", "--max-failed", "--output")
"""Options that say something where shards are joined, which are scored already."""
ASK_AGAIN = (
    "To have them asked again, remove the file and its .progress and give the command that wrote it; what was answered "
    "comes out of the cache."
)
"""What to do about calls that failed."""


@dataclass(frozen=True)
class BulkOptions:
    """What `rerank` was asked for that belongs to a file of results."""

    out: Path
    shard: Shard
    store: Path | None
    max_failed: int
    """Questions that may fail."""
    max_failed_calls: float
    """Share of a language model's calls, above which the exit code says so."""
    ray: bool
    workers: int | None
    top_k: int | None
    output: OutputKind

    @property
    def path(self) -> Path:
        """The file that is written: OUT, or that of the shard."""
        return self.shard.path(self.out)


def check_bulk(out: Path | None, given: Sequence[str]) -> None:
    """That options which belong together came together.

    Args:
        out: --out.
        given: what stands on the command line.
    """
    needs = next((name for name in given if name in NEED_OUT), None)
    if out is None and needs is not None:
        raise ConfigurationError(f"{needs} was given without --out; wanted the file of the results.")
    if "--join" not in given:
        if out is not None and not {"--run", "--data"} & set(given):
            raise ConfigurationError(f"--out {out} was given without --run and --data; wanted what is to be reranked.")
        return
    foreign = next((name for name in given if name not in OF_JOIN), None)
    if foreign is not None:
        raise ConfigurationError(f"{foreign} was given with --join, which only puts shards together; leave it out.")


def check_ray(ray: bool, workers: int | None, llm: str | None) -> None:
    """That options of --ray came with it, and none that it has no use for."""
    if workers is not None and not ray:
        raise ConfigurationError("--workers was given without --ray; wanted both, or neither.")
    if ray and llm is not None:
        raise ConfigurationError(
            "--ray was given with --llm, whose calls one process makes side by side; leave it out, and raise "
            "--set reader.concurrency=N."
        )


def join_files(out: Path, count: int, max_failed_calls: float, output: OutputKind) -> int:
    """`--join`: the files of all shards as one; the exit code. Where that is 0, the shards have served."""
    done = join_shards(out, count)
    parts = [Shard(number, count).path(out) for number in range(1, count + 1)]
    failed = [
        f"{part.name} ({shard.calls.failed} of {shard.calls.made})"
        for part, shard in zip(parts, done.shards, strict=True)
        if shard.calls.failed
    ]
    step = f"Calls failed in {', '.join(failed)}. {ASK_AGAIN} Do so for each of these, remove {out.name} and join."
    code = _tell(out, done, {"shards": count}, f"{count} shards joined", max_failed_calls, step, output)
    if not code:
        for part in parts:
            say(f"{part.name} and {record_path(part).name} are not needed any more.")
    return code


def rerank_bulk(ranker: Ranker, source: Source, options: BulkOptions) -> int:
    """`--out`: writes the rankings of a file, as far as they are not there yet; the exit code."""
    check_backend(ranker.backend)
    stream = source.stream(options.store or options.out.parent)
    of_input = {"format": source.format, "depth": source.depth, "on_bad_row": source.on_bad_row}
    settings = {**_identity(ranker), **of_input}
    if options.ray:
        return _rerank_on_ray(ranker, stream, settings, options)
    with ranker.opened() as reranker:
        own = reranker.on_progress if isinstance(reranker, LLMReranker) else None
        code = _rerank_file(stream, settings, options, scored_here(reranker), own, lambda: calls_of(reranker))
        say_taken(reranker)
    return code


def _rerank_on_ray(ranker: Ranker, stream: ExampleStream, settings: Mapping[str, Any], options: BulkOptions) -> int:
    """Scored by the workers of a Ray cluster."""
    from rankwright.batch import RayScore, connected

    count = connected(options.workers)
    say(f"{count} workers.")
    score = RayScore(partial(build_reranker, ranker.model, **ranker.load), count, name=ranker.model)
    code = _rerank_file(stream, settings, options, score)
    advice = [WindowedScorer.against_cuts] if ranker.windows else []
    tell_of_cut(score, *advice)  # pyright: ignore[reportArgumentType]
    return code


def _rerank_file(
    stream: ExampleStream,
    settings: Mapping[str, Any],
    options: BulkOptions,
    score: Score,
    progress: Progress | None = None,
    calls: Callable[[], Calls] | None = None,
) -> int:
    """The exit code. `progress` is told in the place of bars of pairs, `calls` tells those of a language model until
    now."""
    path, pairs_at_once = options.path, bulk.PAIRS_AT_ONCE
    began = time.monotonic()
    asked = {**settings, "pairs": pairs_at_once, "top_k": options.top_k}
    with Output.opened(path, asked, stream.digests, options.shard) as file:
        if file.totals is None:
            _begin(file, stream, pairs_at_once)
        before = file.done
        if file.complete:
            say(f"{path} is complete; nothing was scored.")
        elif before.batches:
            say(f"{path} goes on after {before.pairs} of {file.shard_pairs} pairs.")
        with progress_bars(rate=True) if progress is None else contextlib.nullcontext(progress) as tell:
            write_rankings(
                file,
                score,
                stream,
                Form.of(path, options.top_k),
                pairs=pairs_at_once,
                max_failed=options.max_failed,
                on_progress=tell,
                calls=calls,
            )
        skipped = file.totals.skipped if file.totals else 0
        done = file.done
    _drop_store(stream, options)
    seconds, pairs = time.monotonic() - began, done.pairs - before.pairs
    told = {
        "shard": list(options.shard),
        "skipped": skipped,
        "pairs_before": before.pairs,
        "seconds": round(seconds, 3),
        "pairs_per_second": round(pairs / seconds, 1),
    }
    words = f"{pairs} pairs scored in {seconds:.0f} s ({pairs / seconds:.0f} a second)"
    words += f", {skipped} bad rows skipped" if skipped else ""
    return _tell(path, done, told, words, options.max_failed_calls, ASK_AGAIN, options.output)


def _begin(file: Output, stream: ExampleStream, pairs: int) -> None:
    tell = now_and_then()
    looked = looked_through(stream, pairs, lambda count: tell(f"{count} questions read"))
    if not looked.totals.questions:
        raise DataError(
            f"{stream.path} names no candidates; wanted questions with some. rankwright retrieve finds them."
        )
    file.begin(looked)
    say(f"{looked.totals.questions} questions with {looked.totals.pairs} pairs, {file.shard_pairs} of them here.")


def _drop_store(stream: ExampleStream, options: BulkOptions) -> None:
    """The store beside a finished output goes; shards, and whoever named a folder, may need it again."""
    stream.close()
    if stream.store_path is not None and options.store is None and options.shard.of == 1:
        stream.store_path.unlink(missing_ok=True)


def _tell(
    out: Path, done: Done, told: Mapping[str, Any], words: str, max_failed_calls: float, step: str, output: OutputKind
) -> int:
    """What lies in a file now; the exit code. `step`: how to have calls that failed asked again."""
    failed = [{"query_id": one.query_id, "error": one.error} for one in done.failed]
    if output is OutputKind.json:
        calls = {"calls": done.calls.made, "calls_failed": done.calls.failed} if done.calls.made else {}
        emit({"out": str(out), "questions": done.questions, "pairs": done.pairs, "failed": failed, **calls, **told})
    else:
        print_out(f"{done.questions - len(failed)} rankings: {out}; {words}")
    for one in done.failed:
        say(f"Question '{one.query_id}' has no ranking: {one.error}")
    return PARTIAL_EXIT_CODE if too_many_failed(*done.calls, max_failed_calls, step) or failed else 0


def _identity(ranker: Ranker) -> dict[str, Any]:
    """What decides the rankings; limits and prices may change when a file goes on. The version of a prompt is the
    digest of its file."""
    if ranker.llm is None or ranker.settings is None:
        read = {"windows": ranker.windows} if ranker.windows else {}  # absent where files of before have none
        return {**model_identity(ranker.model), "backend": ranker.backend, "device": ranker.device, **read}
    asked, endpoint = ranker.settings, ranker.settings.endpoint
    return {
        "--llm": ranker.llm,
        **model_identity(bare_place(ranker.llm)),
        "--llm-model": endpoint.model,
        "reader.api": endpoint.api,
        **({} if endpoint.is_endpoint else {"device": ranker.device}),  # an endpoint has its own
        "--prompt": asked.prompt.version,
        "--strategy": asked.strategy.name,
        "sampling": dict(asked.sampling),
    }


def model_identity(name: str) -> dict[str, str]:
    """What a model was asked for by, and digests of its folder's files: another one under the same name has others."""
    folder = Path(model_place(name))
    files = sorted({file for glob in DECIDING_FILES for file in folder.glob(glob)}) if folder.is_dir() else []
    return {"model": name, **{f"model {file.name}": file_digest(file) for file in files}}
