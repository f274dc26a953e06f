"""What the verbs share: options, the console, progress, tables."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from rankwright.data import FORMATS
from rankwright.data.problems import SKIP
from rankwright.errors import StorageError
from rankwright.evaluation import Evaluation, Score


class _Watched(Console):
    def on_broken_pipe(self) -> None:
        """Who watched has gone, as in `2>&1 | head`: the work goes on in silence."""
        self.quiet = True


console = _Watched(stderr=True, highlight=False, markup=False)
"""For people; results go to standard output by `write_out`."""

FORMAT_HELP = f"One of {', '.join(FORMATS)}."
PARTIAL_EXIT_CODE = 7
"""Some of what was asked for failed, and the rest is there."""
WORSE_EXIT_CODE = 8
"""A model that is worse than what it is compared with."""
PIPE_WIDTH = 240
"""Columns that a table may take in a pipe or file, where no terminal says how wide it is."""


class OutputKind(StrEnum):
    """--output."""

    text = "text"
    json = "json"


class RetrieverKind(StrEnum):
    """--retriever."""

    bm25 = "bm25"
    given = "given"


class BadRow(StrEnum):
    """--on-bad-row."""

    error = "error"
    skip = "skip"


def command_line() -> str:
    """The command as typed, for reports."""
    return "rankwright " + shlex.join(sys.argv[1:])


def say(text: str) -> None:
    """One line for people, on standard error."""
    console.print(harmless(text), soft_wrap=True)


def too_many_failed(calls: int, failed: int, allowed: float, step: str) -> bool:
    """Whether a larger share of a language model's calls failed than may without a word; said here, with what to do."""
    if failed <= allowed * calls:
        return False
    say(
        f"{failed} of {calls} calls failed, above {allowed:.0%} (--max-failed), so the exit code is "
        f"{PARTIAL_EXIT_CODE}: documents of those windows keep their order. {step}"
    )
    return True


def harmless(text: str) -> str:
    """Text of others without characters by which it could steer a terminal."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def as_command(message: str) -> str:
    """A message of the library as the command line says it: with the option, without its name in Python."""
    return message.replace(SKIP, "--on-bad-row skip")


def emit(record: Mapping[str, Any]) -> None:
    """One JSON line for machines, on standard output, at once: another program may be waiting for it. ASCII, which
    every terminal and pipe can carry."""
    write_out(json.dumps(record) + "\n")


def print_out(what: str | Table) -> None:
    """A line or a table of results for people, on standard output."""
    paper = Console(file=io.StringIO(), width=results_width(), highlight=False, markup=False, emoji=False)
    with paper.capture() as captured:
        paper.print(what, soft_wrap=isinstance(what, str))
    write_out(harmless(captured.get()))


def write_out(text: str) -> None:
    """Text on standard output, at once.

    Raises:
        typer.Exit: with 0, where the reader of a pipe has gone, as in `| head`.
        StorageError: it cannot be written, for example on a full disk.
    """
    if sys.stdout is None:  # closed, as by >&-
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        silence()
        raise typer.Exit from None
    except OSError as error:
        silence()
        raise StorageError(
            f"Results cannot be written to standard output ({error.strerror}); wanted a pipe or disk that takes them. "
            "Make room or write elsewhere."
        ) from error


def silence() -> None:
    """Where standard output takes nothing any more, what is still buffered goes nowhere: else Python would fail on it
    once more while it ends."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def results_width() -> int:
    """Columns that a table may take on standard output."""
    return Console().width if sys.stdout is not None and sys.stdout.isatty() else PIPE_WIDTH


@contextmanager
def progress_bars(*, rate: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A function to be told (what, done, total): bars on a terminal, a line every ten seconds elsewhere; with the pace
    where `rate` says so."""
    if console.is_terminal:
        with _bars() as bars:
            tasks: dict[str, Any] = {}
            pace = _TimeLeft()

            def show(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bars.add_task(what, total=total, note="")
                note = pace.of(what, done, total, rate=rate).removeprefix(", ").partition(",")[0] if rate else ""
                bars.update(tasks[what], completed=done, total=total, note=note)

            yield show
        return
    tell, left = now_and_then(), _TimeLeft()
    yield lambda what, done, total: tell(f"{what}: {done} of {total}{left.of(what, done, total, rate=rate)}")


class _TimeLeft:
    """How long pieces of work still take, at the pace since each was first told of: a resumed one has a head start."""

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, int]] = {}
        self._last: dict[str, int] = {}

    def of(self, what: str, done: int, total: int, *, rate: bool = False) -> str:
        """ ", 3 min left", with the rate ", 120 a second, 3 min left"; nothing before there is a pace, and after the
        end."""
        if done < self._last.get(what, 0):  # the next piece of work under this name
            del self._began[what]
        self._last[what] = done
        at, first = self._began.setdefault(what, (time.monotonic(), done))
        if not first < done < total:
            return ""
        each = (time.monotonic() - at) / (done - first)
        seconds, pace = each * (total - done), f", {1 / max(each, 1e-9):.0f} a second" if rate else ""
        return f"{pace}, {seconds / 60:.0f} min left" if seconds >= 90 else f"{pace}, {seconds:.0f} s left"


def now_and_then() -> Callable[[str], None]:
    """Says what it is given, at most once in ten seconds."""
    last = time.monotonic()

    def tell(words: str) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            say(words)

    return tell


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


@contextmanager
def training_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A function to be told (step, steps, note) by a training: a bar on a terminal, a line every ten seconds
    elsewhere."""
    if console.is_terminal:
        with _bars() as bars:
            task = bars.add_task("training", total=None, note="")
            yield lambda step, steps, note: bars.update(task, completed=step, total=steps, note=note)
        return
    tell, left = now_and_then(), _TimeLeft()
    yield lambda step, steps, note: tell(f"training: step {step} of {steps}, {note}{left.of('training', step, steps)}")


def score_text(score: Score | None) -> str:
    """Mean with interval, for a table cell."""
    return "-" if score is None else f"{score.mean:.3f} [{score.ci_low:.3f}, {score.ci_high:.3f}]"


def shown_metrics(evaluation: Evaluation, width: int) -> list[str]:
    """A narrow terminal shows the metrics that decide, and none shows recall@20 of lists that end before: it is
    recall@10 once more. The JSON and the report have them all."""
    longest = max((len(example.candidates) for example in evaluation.examples), default=0)
    metrics = [m for m in evaluation.metrics if m != "recall@20" or longest > 10]
    return [m for m in metrics if width >= 140 or m in ("EM", "F1", "nDCG@10") or m.startswith("hit@")]


def score_table(evaluation: Evaluation, width: int | None = None) -> Table:
    """One row per model, one column per metric, each with its 95 % interval; made for so many columns of text."""
    table = Table(title=f"{evaluation.settings.set_name}: {evaluation.n} questions, mean [95 % interval]")
    table.add_column("model", overflow="fold")
    shown = shown_metrics(evaluation, width or console.width)
    for metric in shown:
        table.add_column(metric, justify="right")
    for row in evaluation.table():
        table.add_row(row["model"], *(score_text(row.get(metric)) for metric in shown))
    return table


def read_text(path: Path) -> str:
    """A small text file of the user's, with our own error."""
    from rankwright.errors import ResourceNotFoundError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResourceNotFoundError(
            f"File {path} cannot be read ({error}); wanted a UTF-8 text file. Check the path."
        ) from error
