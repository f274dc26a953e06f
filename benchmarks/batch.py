"""What `rerank --out` costs beside the model, in time and memory: `python -m benchmarks.batch run` (resumable, half an
hour), then `... page`.

Every measurement has a process of its own, in turn with the others. A scorer that costs nothing shows what reading,
looking up and writing cost; the embedded reference shows what share of the whole that is.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.kept import REFERENCE, digests, hardware, measured, processor_words, read, run_each
from benchmarks.pages import spread
from rankwright.bulk import PAIRS_AT_ONCE, Form, Output, Ranked, Score, batches, looked_through, write_rankings
from rankwright.data import write_jsonl
from rankwright.data.store import file_digest
from rankwright.data.streams import ExampleStream
from rankwright.types import Document, Example, Query, Ranking

WORK = Path(__file__).parent / "work" / "batch"
PAGE = Path(__file__).parent / "results" / "batch.md"
CANDIDATES, WORDS, REPEATS = 20, 60, 3
QUERIES = (1_000, 10_000, 30_000)
CORPORA = (10_000, 100_000, 300_000)
MODEL_QUERIES = 110
PLACE_QUERIES, PLACE_CANDIDATES, PLACE_BACKEND = 520, 40, "bf16"
"""Ten batches: with fewer, one of two workers has most of them, since four of each may be on their way."""
LARGE = 30_000
"""From here on a measurement takes minutes."""
FORMS = {"rows": "JSON lines in, JSON lines out", "run": "TREC run, BEIR folder in, TREC run out"}
PLACES = {"one process": 1, "two shards": 2, "two Ray workers": 2}


# --- inputs -------------------------------------------------------------------------------------------------------


def passage(number: int) -> Document:
    """A passage of so many words that others have none of."""
    return Document(f"d{number}", " ".join(f"word{(number * 31 + i * i) % 5000}" for i in range(WORDS)))


def questions(count: int, corpus: int) -> Iterator[Example]:
    """Each with CANDIDATES passages out of so many."""
    for number in range(count):
        documents = tuple(passage((number * 7919 + i * 104729) % corpus) for i in range(CANDIDATES))
        stage = {document.doc_id: float(-rank) for rank, document in enumerate(documents)}
        yield Example(Query(f"q{number}", f"which word follows word{number % 5000}?"), documents, (), {}, stage)


def written(folder: Path, form: str, count: int, corpus: int) -> ExampleStream:
    """The questions as files."""
    if form == "rows":
        write_jsonl(folder / "rows.jsonl", questions(count, corpus))
        return ExampleStream(folder / "rows.jsonl", folder=folder)
    beir = folder / "beir"
    beir.mkdir()
    with (beir / "corpus.jsonl").open("w") as stream:
        for number in range(corpus):
            stream.write(json.dumps({"_id": f"d{number}", "text": passage(number).text}) + "\n")
    with (folder / "first.run").open("w") as run, (beir / "queries.jsonl").open("w") as topics:
        for example in questions(count, corpus):
            topics.write(json.dumps({"_id": example.query.query_id, "text": example.query.text}) + "\n")
            for doc_id, score in example.first_stage.items():
                run.write(f"{example.query.query_id} Q0 {doc_id} 1 {score} x\n")
    return ExampleStream(folder / "first.run", "trec", corpus=beir, folder=folder)


# --- measurements -------------------------------------------------------------------------------------------------


def peak() -> float:
    """MiB that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds on the wall and of the CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def free(found: Any) -> Iterator[Sequence[Ranked]]:
    """A scorer that turns candidates round."""
    for batch in found:
        yield [
            Ranking(
                e.query.query_id,
                tuple(d.doc_id for d in reversed(e.candidates)),
                tuple(float(-i) for i in range(len(e.candidates))),
            )
            for e in batch.examples
        ]


def through(stream: ExampleStream, out: Path, score: Score) -> dict[str, Any]:
    """One whole run; seconds of each part."""
    parts: dict[str, Any] = {"digests": timed(lambda: stream.digests)}
    with Output.opened(out, {}, stream.digests) as output:
        parts["look"] = timed(lambda: output.begin(looked_through(stream)))
        parts["write"] = timed(lambda: write_rankings(output, score, stream, Form.of(out)))
        return {**parts, "pairs": output.done.pairs, "peak": peak()}


def of_path(form: str, count: int) -> dict[str, Any]:
    """The whole path with a scorer that costs nothing; 20,000 passages."""
    with TemporaryDirectory() as folder:
        stream = written(Path(folder), form, count, 20_000)
        before = peak()
        return {
            **through(stream, Path(folder) / ("out.jsonl" if form == "rows" else "out.run"), free),
            "before": before,
        }


def of_corpus(size: int) -> dict[str, Any]:
    """The store of so many passages, then 1,000 questions out of it."""
    with TemporaryDirectory() as folder:
        stream = written(Path(folder), "run", 1_000, size)
        before = peak()
        parts = through(stream, Path(folder) / "out.run", free)
        assert stream.store_path is not None
        return {**parts, "before": before, "mib": stream.store_path.stat().st_size / 2**20}


def of_model(count: int) -> dict[str, Any]:
    """The reference over rows of real questions: its scoring alone and the whole path, batch by batch in turn."""
    import torch

    from benchmarks import protocol
    from rankwright.rerankers import load

    torch.set_num_threads(1)
    reranker = load("reference")
    examples = protocol.splits(train_depth=CANDIDATES)["train"][:count]
    alone, inside = Seconds(), Seconds()

    def score(found: Any) -> Iterator[Sequence[Ranked]]:
        for batch in found:
            rankings: Sequence[Ranked] = ()
            for seconds in (alone, inside) if batch.number % 2 else (inside, alone):
                with seconds:
                    rankings = reranker.rerank_batch(batch.requests)
            yield list(rankings)

    reranker.rerank_batch(next(batches(examples, 64)).requests)
    with TemporaryDirectory() as folder:
        write_jsonl(Path(folder) / "rows.jsonl", examples)
        stream = ExampleStream(Path(folder) / "rows.jsonl", folder=folder)
        parts = through(stream, Path(folder) / "out.jsonl", score)
    whole = sum(parts[part]["cpu"] for part in ("digests", "look", "write"))
    return {"whole": whole, "alone": alone.cpu, "inside": inside.cpu, "pairs": parts["pairs"], "peak": parts["peak"]}


class Seconds:
    """CPU seconds spent inside, added up."""

    cpu = 0.0

    def __enter__(self) -> None:
        self._began = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.cpu += time.process_time() - self._began


def of_place(place: str, count: int) -> dict[str, Any]:
    """The command itself over real questions: processes that start, open the model and score, one thread each."""
    from benchmarks import protocol

    with TemporaryDirectory() as folder:
        rows, out = Path(folder) / "rows.jsonl", Path(folder) / "out.run"
        write_jsonl(rows, protocol.splits(train_depth=PLACE_CANDIDATES)["train"][:count])
        command = [sys.executable, "-m", "rankwright.cli", "rerank", "--data", str(rows), "--out", str(out)]
        told_how = ["--backend", PLACE_BACKEND, "--output", "json"]
        ways = {
            "one process": [[]],
            "two shards": [["--shard", "1/2"], ["--shard", "2/2"]],
            "two Ray workers": [["--ray", "--workers", "2"]],
        }
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        began = time.perf_counter()
        running = [subprocess.Popen([*command, *way, *told_how], env=environment, stdout=-1) for way in ways[place]]
        told = [json.loads(process.communicate()[0]) for process in running]
        seconds = time.perf_counter() - began
        if len(told) > 1:
            subprocess.run([*command[:4], "--out", str(out), "--join", str(len(told))], check=True, stdout=-1)
        return {
            "seconds": seconds,
            "pairs": sum(one["pairs"] for one in told),
            "scoring": max(one["seconds"] for one in told),
            "digest": file_digest(out),
        }


# --- page ---------------------------------------------------------------------------------------------------------


PARTS: dict[str, tuple[Callable[..., Any], list[tuple[Any, ...]]]] = {
    "path": (of_path, [(form, count) for form in FORMS for count in QUERIES]),
    "corpus": (of_corpus, [(size,) for size in CORPORA]),
    "model": (of_model, [(MODEL_QUERIES,)]),
    "place": (of_place, [(place, PLACE_QUERIES) for place in PLACES]),
}


def made_with() -> dict[str, Any]:
    """What decides the measurements."""
    sizes = {"candidates": CANDIDATES, "words": WORDS, "pairs_at_once": PAIRS_AT_ONCE}
    return {**sizes, **digests([REFERENCE]), "hardware": hardware()}


def kept_at(part: str, arguments: Sequence[Any], repeat: int) -> Path:
    """The file of one measurement."""
    return WORK / f"{part}-{'-'.join(str(one).replace(' ', '-') for one in arguments)}-{repeat}"


def found(part: str, *arguments: Any) -> list[dict[str, Any]]:
    """What was measured."""
    values = [read(kept_at(part, arguments, repeat), made_with()) for repeat in range(REPEATS)]
    return [value for value in values if value is not None]


def page() -> str:
    """The tables."""
    lines = [HEAD.format(hardware=processor_words(), candidates=CANDIDATES, words=WORDS, batch=PAIRS_AT_ONCE)]
    for form, words in FORMS.items():
        lines += [
            f"\n{words}:\n",
            "| questions | pairs | pairs/s | CPU µs a pair | of it first pass | peak MiB |",
            "|---|---|---|---|---|---|",
        ]
        for count in QUERIES:
            rows = found("path", form, count)
            whole = [{k: sum(r[p][k] for p in ("digests", "look", "write")) for k in ("seconds", "cpu")} for r in rows]
            pairs = count * CANDIDATES
            lines.append(
                f"| {count:,} | {pairs:,} | {spread([pairs / w['seconds'] for w in whole])} | "
                f"{spread([w['cpu'] / pairs * 1e6 for w in whole], '.1f')} | "
                f"{spread([(r['look']['cpu'] + r['digests']['cpu']) / pairs * 1e6 for r in rows], '.1f')} | "
                f"{spread([r['peak'] for r in rows])} |"
            )
    lines += [
        CORPUS,
        "| passages | seconds to make the store | store MiB | peak MiB | CPU µs a pair in the second pass |",
        "|---|---|---|---|---|",
    ]
    for size in CORPORA:
        rows = found("corpus", size)
        lines.append(
            f"| {size:,} | {spread([r['look']['seconds'] for r in rows], '.1f')} | {spread([r['mib'] for r in rows])} "
            f"| {spread([r['peak'] for r in rows])} "
            f"| {spread([r['write']['cpu'] / 20_000 * 1e6 for r in rows], '.1f')} |"
        )
    rows = found("model", MODEL_QUERIES)
    beside = [(r["whole"] - r["alone"] - r["inside"]) / r["pairs"] for r in rows]
    lines += [
        MODEL.format(pairs=rows[0]["pairs"] if rows else "missing"),
        "| scoring alone, CPU ms a pair | the same inside the path | beside it, CPU ms a pair | overhead | peak MiB |",
        "|---|---|---|---|---|",
        f"| {spread([r['alone'] / r['pairs'] * 1e3 for r in rows], '.2f')} "
        f"| {spread([r['inside'] / r['pairs'] * 1e3 for r in rows], '.2f')} "
        f"| {spread([seconds * 1e3 for seconds in beside], '.3f')} "
        f"| {spread([100 * s * r['pairs'] / r['alone'] for s, r in zip(beside, rows, strict=True)], '.2f')} % "
        f"| {spread([r['peak'] for r in rows])} |",
        PLACE.format(pairs=PLACE_QUERIES * PLACE_CANDIDATES, backend=PLACE_BACKEND),
        "| how | threads in all | seconds with start | seconds in the command | pairs/s in the command |",
        "|---|---|---|---|---|",
    ]
    for place, threads in PLACES.items():
        rows = found("place", place, PLACE_QUERIES)
        lines.append(
            f"| {place} | {threads} | {spread([r['seconds'] for r in rows])} "
            f"| {spread([r['scoring'] for r in rows])} | {spread([r['pairs'] / r['scoring'] for r in rows])} |"
        )
    equal = {r["digest"] for place in PLACES for r in found("place", place, PLACE_QUERIES)}
    lines += [f"\nDifferent files among all of these: {len(equal)} (1: all ways leave equal bytes)."] if equal else []
    return "\n".join(lines) + "\n"


HEAD = """# What reranking in bulk costs beside the model

```
python -m benchmarks.batch run
python -m benchmarks.batch page
```

Measured on: {hardware}, one thread a process, nothing else on the machine.
{candidates} candidates a question of {words} words, batches of {batch} pairs.
Median of up to 3 processes (smallest to largest), all measurements in turn; what was not measured yet says so.

## The path without a model

A scorer that costs nothing: two passes over the input, digests, look-ups, results on the disk. The first pass
counts, so that there is a time left, and finds what is wrong before anything is scored."""

CORPUS = """
## The corpus

The look-up copy of a corpus, made once, and 1,000 questions out of it.
"""

MODEL = """
## With a model

The embedded reference over {pairs} pairs of real questions (nq_open, xquad_en), cut to its own length. Scoring
alone and scoring inside the path in one process, in turn over the same batches; the overhead is what the path takes
beside scoring.
"""

PLACE = """
## Side by side

The command itself, started cold, over {pairs} pairs of real questions in {backend}:
one process with one thread, two shards at once, two workers of Ray.
"""


def commands() -> Iterator[list[str]]:
    """Every measurement, small ones first, so that an early end leaves a page."""
    for repeat in range(REPEATS):
        for part, (_, cases) in sorted(PARTS.items(), key=lambda one: one[0] != "model"):
            for number, case in enumerate(cases):
                if all(not isinstance(size, int) or size < LARGE for size in case):
                    yield [part, str(number), str(repeat)]
    for repeat in range(REPEATS):
        for part, (_, cases) in PARTS.items():
            for number, case in enumerate(cases):
                if any(isinstance(size, int) and size >= LARGE for size in case):
                    yield [part, str(number), str(repeat)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "page", "one"))
    parser.add_argument("rest", nargs="*")
    asked = parser.parse_args()
    if asked.what == "one":
        part, number, repeat = asked.rest
        work, cases = PARTS[part]
        case = cases[int(number)]
        measured(kept_at(part, case, int(repeat)), made_with(), lambda: work(*case))
    elif asked.what == "run":
        run_each([["benchmarks.batch", "one", *words] for words in commands()])
    else:
        PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
