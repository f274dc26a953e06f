"""Millions of pairs: questions in, rankings out in their order, in constant memory; a killed run goes on where it was.

    with Output.opened(Path("out.run"), settings, stream.digests) as output:
        if output.totals is None:
            output.begin(looked_through(stream))
        write_rankings(output, scored_here(reranker), stream)

The input falls into *batches* of whole questions, by its own order alone. A batch is scored, and written, as a whole; a
shard is a run of batches. So a run that was killed, one in shards and one in a single go hand the model equal batches
and leave equal bytes.

Beside OUT stands OUT.progress: a line of JSON with settings, digests of the input and totals, then one for every batch,
written before the batch itself: where it ends in OUT, its checksum, which of its questions failed, and how many calls
of a language model so far. A batch is done when its bytes are in OUT.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from rankwright.data import trec_run_lines
from rankwright.data.files import replacing, take_lock
from rankwright.data.jsonl import row_of
from rankwright.errors import ConfigurationError, DataError, ModelError, RankwrightError, ResumeError, StorageError
from rankwright.rerankers import AUTO
from rankwright.types import Example, Ranking, Reranker, RerankRequest

logger = logging.getLogger("rankwright.bulk")

PAIRS_AT_ONCE = 2048
"""Pairs of question and passage from which on a batch is full: enough to sort by length, little to lose."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole questions that are scored together."""

    number: int
    """From 0, in the order of the input."""
    examples: tuple[Example, ...]

    @property
    def pairs(self) -> int:
        """Of question and passage."""
        return sum(len(example.candidates) for example in self.examples)

    @property
    def requests(self) -> list[RerankRequest]:
        """As a reranker takes them."""
        return [RerankRequest(e.query, e.candidates, e.first_stage) for e in self.examples]


@dataclass(frozen=True, slots=True)
class Failure:
    """A question without a ranking."""

    query_id: str
    error: str


Ranked = Ranking | Failure
Score = Callable[[Iterable[Batch]], Iterator[Sequence[Ranked]]]
"""One result for each question of each batch, in order. It may run ahead by a bounded number of batches."""
Progress = Callable[[str, int, int], None]


def batches(examples: Iterable[Example], pairs: int = PAIRS_AT_ONCE) -> Iterator[Batch]:
    """The questions in batches, each full as soon as it has so many pairs."""
    number, taken, held = 0, list[Example](), 0
    for example in examples:
        taken.append(example)
        held += len(example.candidates)
        if held >= pairs:
            yield Batch(number, tuple(taken))
            number, taken, held = number + 1, [], 0
    if taken:
        yield Batch(number, tuple(taken))


def rank_each(reranker: Reranker, requests: Sequence[RerankRequest]) -> list[Ranked]:
    """A ranking of each request. Where the reranker fails at them together, each is asked for alone, and those it fails
    at are Failures; what is no question's fault (a missing package, a full disk) is raised."""
    try:
        return [*reranker.rerank_batch(requests)]
    except Exception as error:
        if isinstance(error, RankwrightError) and not isinstance(error, DataError | ModelError):
            raise
        if len(requests) > 1:
            return [one for request in requests for one in rank_each(reranker, [request])]
        return [Failure(request.query.query_id, _told(error)) for request in requests]


def scored_here(reranker: Reranker) -> Score:
    """Scores batches one after the other in this process."""
    return lambda found: (rank_each(reranker, batch.requests) for batch in found)


def check_backend(backend: str) -> None:
    """Raises ConfigurationError for the backend `auto`: it may choose another on another machine, or on this one after
    an update, and results that are scored apart have to be of one scale."""
    if backend == AUTO:
        raise ConfigurationError(
            f"Backend is '{AUTO}', which each machine and each start chooses for itself; wanted one name for all "
            f"scores of a result. Name the backend: rankwright rerank QUESTION PASSAGE --model MODEL --backend {AUTO} "
            "says which is the fastest here."
        )


def _told(error: Exception) -> str:
    text = str(error).strip()
    return text if isinstance(error, RankwrightError) else f"{type(error).__name__}: {text or 'without a message'}"


# --- what there is to do ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Totals:
    """What an input holds."""

    batches: int
    questions: int
    pairs: int
    skipped: int
    """Bad rows."""


class Shard(NamedTuple):
    """One of several parts of the work, which need not know each other."""

    number: int = 1
    """From 1."""
    of: int = 1

    def span(self, total: int) -> range:
        """Which of so many batches are its own.

        >>> [list(Shard(i, 3).span(4)) for i in (1, 2, 3)]
        [[0], [1], [2, 3]]
        """
        return range(total * (self.number - 1) // self.of, total * self.number // self.of)

    def path(self, out: Path) -> Path:
        """The file of this part.

        >>> Shard(2, 8).path(Path("out.jsonl.gz")).name
        'out.2-of-8.jsonl.gz'
        """
        if self.of == 1:
            return out
        stem, dot, rest = out.name.partition(".")
        return out.with_name(f"{stem}.{self.number}-of-{self.of}{dot}{rest}")


def shard_of(text: str) -> Shard:
    """Out of "I/N".

    Raises:
        ConfigurationError: it is something else.
    """
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ConfigurationError(f"Shard is '{text}'; wanted I/N with I from 1 to N, for example 3/8.")
    return Shard(int(number), int(of))


@dataclass(slots=True)
class Looked:
    """An input that was read once."""

    totals: Totals
    pairs: array[int]
    """Of every batch."""

    def pairs_in(self, span: range) -> int:
        """Of these batches."""
        return sum(self.pairs[number] for number in span)


def looked_through(
    examples: Iterable[Example], pairs: int = PAIRS_AT_ONCE, on_read: Callable[[int], None] | None = None
) -> Looked:
    """Reads the whole input: what it holds, before anything is scored. Bad rows raise here. `on_read` is told how many
    questions were read."""
    counts, questions = array("L"), 0
    for batch in batches(examples, pairs):
        counts.append(batch.pairs)
        questions += len(batch.examples)
        if on_read is not None:
            on_read(questions)
    return Looked(Totals(len(counts), questions, sum(counts), getattr(examples, "skipped", 0)), counts)


# --- what is written ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Form:
    """How rankings are written."""

    rows: bool
    """Rows of our own format, with the texts and the scores of the reranker; else a TREC run."""
    packed: bool
    """With gzip, every batch a member of its own."""
    top_k: int | None = None

    @classmethod
    def of(cls, out: Path, top_k: int | None = None) -> Form:
        """By the name: .jsonl is rows, everything else a run; .gz is packed."""
        return cls(out.name.removesuffix(".gz").endswith(".jsonl"), out.name.endswith(".gz"), top_k)

    def written(self, examples: Sequence[Example], found: Sequence[Ranked]) -> bytes:
        """A batch as it stands in the file; questions that failed are left out."""
        both = zip(examples, found, strict=True)
        lines = [
            line + "\n"
            for example, ranking in both
            if isinstance(ranking, Ranking)
            for line in self._lines(example, ranking.best(self.top_k))
        ]
        data = "".join(lines).encode()
        # mtime=0: equal rankings are equal bytes
        return gzip.compress(data, mtime=0) if self.packed and data else data

    def _lines(self, example: Example, ranking: Ranking) -> Iterator[str]:
        if not self.rows:
            yield from trec_run_lines(ranking)
            return
        scores = dict(zip(ranking.doc_ids, ranking.scores, strict=True))
        documents = ranking.documents(example.candidates)
        yield json.dumps(row_of(replace(example, candidates=documents, first_stage=scores)), ensure_ascii=False)


class Calls(NamedTuple):
    """Of a language model; none for a model that scores."""

    made: int = 0
    failed: int = 0


@dataclass(slots=True)
class Done:
    """What lies in an output so far."""

    batches: int = 0
    questions: int = 0
    pairs: int = 0
    bytes: int = 0
    failed: list[Failure] = field(default_factory=list)
    calls: Calls = field(default_factory=Calls)
    shards: list[Done] = field(default_factory=list)
    """Of a joined output, what lay in each of its shards, in their order."""


class Output:
    """A file that grows by whole batches, and OUT.progress beside it."""

    def __init__(self, path: Path, about: Mapping[str, Any], shard: Shard) -> None:
        self.path, self.shard = path, shard
        self._about = {**about, "shard": list(shard)}
        self.totals: Totals | None = None
        """What the input holds; None where `begin` has still to say so."""
        self.shard_pairs = 0
        self.done = Done()
        self._record: IO[bytes] | None = None
        self._stream: IO[bytes] | None = None

    @classmethod
    def opened(
        cls, path: Path, settings: Mapping[str, Any], inputs: Mapping[str, str], shard: Shard | None = None
    ) -> Output:
        """The output at this path, new or where an earlier process left it; for this process alone until `close`.

        Raises:
            ResumeError: it was begun with other settings or another input.
            ConfigurationError: a file is there that is none of ours.
            StorageError: it cannot be written, or another process writes it.
        """
        from rankwright import __version__

        output = cls(path, {"version": __version__, "settings": settings, "inputs": dict(inputs)}, shard or Shard())
        try:
            output._open()
        except OSError as error:
            output.close()
            if isinstance(error, StorageError):
                raise
            raise _unwritable(path, error) from error
        except BaseException:
            output.close()
            raise
        return output

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the files; where nothing was begun, none is left."""
        if self.totals is None and self._stream is not None:
            self.path.unlink()
            record_path(self.path).unlink()
        for stream in (self._stream, self._record):
            if stream is not None:
                stream.close()

    @property
    def span(self) -> range:
        """The batches of this shard."""
        assert self.totals is not None
        return self.shard.span(self.totals.batches)

    @property
    def complete(self) -> bool:
        """Whether every batch of the shard is done."""
        return self.totals is not None and self.done.batches == len(self.span)

    def begin(self, looked: Looked) -> None:
        """Notes what there is to do, once."""
        self.totals = looked.totals
        self.shard_pairs = looked.pairs_in(self.span)
        self._note({**self._about, "totals": asdict(looked.totals), "shard_pairs": self.shard_pairs})

    def append(self, batch: Batch, data: bytes, failed: Sequence[Failure], calls: Calls) -> None:
        """One more batch. The record is written before the batch, and says by its checksum whether that arrived.

        Args:
            batch: the next one.
            data: as it is to stand in the file.
            failed: its questions without a ranking.
            calls: of all batches up to this one.

        Raises:
            StorageError: it cannot be written.
        """
        done = self.done
        end = done.bytes + len(data)
        entry: dict[str, Any] = {
            "batch": batch.number,
            "questions": done.questions + len(batch.examples),
            "pairs": done.pairs + batch.pairs,
            "bytes": end,
            "crc": zlib.crc32(data),
        }
        if failed:
            entry["failed"] = [asdict(one) for one in failed]
        if calls.made:
            entry |= {"calls": calls.made, "calls_failed": calls.failed}
        assert self._stream is not None
        try:
            self._note(entry)
            self._stream.write(data)
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.done = Done(done.batches + 1, entry["questions"], entry["pairs"], end, [*done.failed, *failed], calls)

    def _note(self, entry: Mapping[str, Any]) -> None:
        assert self._record is not None
        self._record.write(json.dumps(entry).encode() + b"\n")
        self._record.flush()
        os.fsync(self._record.fileno())

    def _open(self) -> None:
        record = record_path(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._record = record.open("a+b")
        if not take_lock(self._record):
            raise StorageError(f"'{self.path}' is being written by another process; wanted one at a time. Wait for it.")
        header, kept, self.done = _checked_read(self._record, self.path)
        if header is None and self.path.exists() and self.path.stat().st_size:
            raise ConfigurationError(
                f"'{self.path}' exists and {record.name} does not say how it was begun; wanted a new name, or the "
                "output of a run that was stopped. Name another file, or remove it."
            )
        self._record.truncate(kept)
        if header is not None:
            _check_same(self.path, header, self._about)
            self.totals, self.shard_pairs = Totals(**header["totals"]), header["shard_pairs"]
        self._stream = self.path.open("r+b" if self.path.exists() else "x+b")
        self._stream.truncate(self.done.bytes)
        self._stream.seek(self.done.bytes)


def record_path(out: Path) -> Path:
    """Of an output."""
    return out.with_name(out.name + ".progress")


def write_rankings(
    output: Output,
    score: Score,
    examples: Iterable[Example],
    form: Form,
    *,
    pairs: int = PAIRS_AT_ONCE,
    max_failed: int = 10,
    on_progress: Progress | None = None,
    calls: Callable[[], Calls] | None = None,
) -> None:
    """Scores the batches of the output's shard that it does not hold yet, and writes them. `calls` tells how many the
    reranker has made until now.

    Raises:
        ModelError: more questions failed than `max_failed`.
        DataError: the input has other batches than when the output was begun.
        StorageError: the output cannot be written.
    """
    span, earlier = output.span[output.done.batches :], output.done.calls
    if on_progress is not None:
        on_progress("pairs", output.done.pairs, output.shard_pairs)
    for batch, found in _scored(score, _only(batches(examples, pairs), span)):
        failed = [one for one in found if isinstance(one, Failure)]
        for one in failed:
            logger.warning("question '%s' failed: %s", one.query_id, one.error)
        check_failed(len(output.done.failed) + len(failed), max_failed, failed)
        so_far = _summed([earlier, calls()]) if calls is not None else earlier
        output.append(batch, form.written(batch.examples, found), failed, so_far)
        if on_progress is not None:
            on_progress("pairs", output.done.pairs, output.shard_pairs)
    if not output.complete:
        raise DataError(
            f"The input ended after {output.done.batches} of {len(output.span)} batches; wanted those that were "
            f"counted when '{output.path}' was begun. Leave the files alone while they are read."
        )


def check_failed(failures: int, most: int, last: Sequence[Failure]) -> None:
    """Raises ModelError where more failed than may."""
    if failures > most:
        raise ModelError(
            f"{failures} questions failed, the last '{last[-1].query_id}' ({last[-1].error}); wanted at most {most}. "
            "Correct the cause and go on with the same command, or allow more (--max-failed-questions N)."
        )


def _summed(calls: Iterable[Calls]) -> Calls:
    return Calls(*map(sum, zip(*calls, strict=True)))


def _only(found: Iterable[Batch], span: range) -> Iterator[Batch]:
    for batch in found:
        if batch.number >= span.stop:
            return
        if batch.number >= span.start:
            yield batch


def _scored(score: Score, found: Iterable[Batch]) -> Iterator[tuple[Batch, Sequence[Ranked]]]:
    """Each batch with its results; those that a score has run ahead with wait in between."""
    ahead: list[Batch] = []

    def noted() -> Iterator[Batch]:
        for batch in found:
            ahead.append(batch)
            yield batch

    for results in score(noted()):
        yield ahead.pop(0), results


# --- shards together ----------------------------------------------------------------------------------------------


def join_shards(out: Path, count: int) -> Done:
    """Puts the files of `count` shards into one, which is what a run without shards would have written.

    Raises:
        ResumeError: a shard is missing, not complete, or of other settings or another input.
        ConfigurationError: `out` exists.
        StorageError: it cannot be written.
    """
    if out.exists():
        raise ConfigurationError(f"'{out}' exists; wanted a new name for the joined file. Name another, or remove it.")
    parts = [_finished(out, Shard(number, count)) for number in range(1, count + 1)]
    first = parts[0]
    for part in parts[1:]:
        _check_same(part.path, {**part.header, "shard": None}, {**first.header, "shard": None})
    done = Done(
        sum(part.done.batches for part in parts),
        sum(part.done.questions for part in parts),
        sum(part.done.pairs for part in parts),
        sum(part.done.bytes for part in parts),
        [failure for part in parts for failure in part.done.failed],
        _summed(part.done.calls for part in parts),
        [part.done for part in parts],
    )
    try:
        with replacing(out) as joined:
            for part in parts:
                _copy(part.path, joined)
    except OSError as error:
        raise _unwritable(out, error) from error
    return done


class _Part(NamedTuple):
    path: Path
    header: Mapping[str, Any]
    done: Done


def _finished(out: Path, shard: Shard) -> _Part:
    path, record = shard.path(out), record_path(shard.path(out))
    if not (path.exists() and record.exists()):
        missing = record if path.exists() else path
        raise ResumeError(
            f"Shard '{missing}' is missing; wanted all shards and their records in one folder. Copy it there."
        )
    with record.open("rb") as stream:
        header, _, done = _checked_read(stream, path)
    if header is not None and header["shard"] != list(shard):
        number, of = header["shard"]
        raise ResumeError(
            f"'{path}' holds shard {number}/{of}; wanted {shard.number}/{shard.of}, as its name says. Copy that one "
            "there, with its record."
        )
    expected = None if header is None else len(shard.span(header["totals"]["batches"]))
    if header is None or done.batches != expected or path.stat().st_size != done.bytes:
        raise ResumeError(
            f"Shard '{path}' has {done.batches} of {'?' if expected is None else expected} batches; wanted all. Run "
            "its command again: it goes on where it stopped."
        )
    return _Part(path, header, done)


def _copy(path: Path, joined: IO[bytes]) -> None:
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            joined.write(chunk)


# --- the record ---------------------------------------------------------------------------------------------------


def _checked_read(record: IO[bytes], out: Path) -> tuple[dict[str, Any] | None, int, Done]:
    try:
        return _read(record, out)
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"The record '{record_path(out)}' is damaged ({error}); wanted lines of JSON as they were written. Restore "
            f"it, or remove it and '{out}' to begin anew."
        ) from error


def _read(record: IO[bytes], out: Path) -> tuple[dict[str, Any] | None, int, Done]:
    """The first line of a record, where its last good line ends, and what of it is in the output.

    A line without its end, and whatever stands behind a batch that did not arrive whole, was torn by a kill.
    """
    record.seek(0)
    first = record.readline()
    if not first.endswith(b"\n"):
        return None, 0, Done()
    header, kept, done = json.loads(first), len(first), Done()
    size = out.stat().st_size if out.exists() else 0
    last: tuple[int, Done, Mapping[str, Any]] | None = None
    for raw in record:
        entry = json.loads(raw) if raw.endswith(b"\n") else None
        if entry is None or entry["bytes"] > size:
            break
        if last is not None:  # a later batch is noted once this one is on the disk
            kept, done = last[0], last[1]
        failed = [*done.failed, *(Failure(**one) for one in entry.get("failed", ()))]
        calls = Calls(entry.get("calls", 0), entry.get("calls_failed", 0))
        now = Done(done.batches + 1, entry["questions"], entry["pairs"], entry["bytes"], failed, calls)
        last = (kept + len(raw), now, entry)
    if last is not None and _crc(out, done.bytes, last[1].bytes) == last[2]["crc"]:
        kept, done = last[0], last[1]
    return header, kept, done


def _crc(out: Path, start: int, end: int) -> int:
    with out.open("rb") as stream:
        stream.seek(start)
        return zlib.crc32(stream.read(end - start))


def _check_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for part in ("version", "settings", "inputs", "shard"):
        old, new = _flat(part, found[part]), _flat(part, wanted[part])
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                raise ResumeError(
                    f"'{path}' was begun with {name} {old.get(name)!r} and is asked to go on with {new.get(name)!r}; "
                    "wanted equal ones, since one file holds one run. Use the old ones, or name another file."
                )


def _flat(name: str, value: Any) -> dict[str, Any]:
    return {f"{name} {key}": inner for key, inner in value.items()} if isinstance(value, Mapping) else {name: value}


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"'{path}' cannot be written: {error.strerror or error}; wanted room and a writable folder. What is in it "
        "stays: make room and go on with the same command."
    )
