"""What a run keeps of its steps while it trains, as both loops write it: metrics.jsonl, alarms.jsonl, the display."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerCallback

from rankwright import processes
from rankwright.alarms import Alarm, Watch
from rankwright.data.files import replace_text
from rankwright.errors import StorageError, TrainingError

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
ALARMS = "alarms.jsonl"
WRITE_ERRORS = (OSError, SafetensorError)
"""What a disk that is full or gone makes of a write."""


def write_problem(error: BaseException) -> str:
    """Why a write failed, in one line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def tell_where_it_goes_on(checkpoint: Path, *, with_answers: bool = False) -> None:
    """Says once from which checkpoint a run goes on: it may be far behind the last step that was seen.

    Args:
        checkpoint: its folder.
        with_answers: whether a reader is asked, whose answers are kept.
    """
    if not processes.rank():
        kept = ", with the answers that the cache has" if with_answers else ""
        logger.warning("Goes on from %s; any later steps are made again%s.", checkpoint.name, kept)


class Teller(TrainerCallback):
    """Passes log entries on to a progress display."""

    def __init__(self, on_step: Callable[[int, int, Mapping[str, float]], None]) -> None:
        self.on_step = on_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self.on_step(state.global_step, state.max_steps, logs or {})


class MetricsFile(TrainerCallback):
    """metrics.jsonl: one JSON line per log entry. On resume lines after the checkpoint are dropped, so that the file
    of a resumed run equals that of an unbroken one, but for answers that the cache now has (`cache_hits`)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def restore(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Brings back the lines of a checkpoint's log. What came later goes; what is torn, damaged or gone is written
        anew, with its names in the checkpoint's order."""
        rows = [_log_row(row["step"], row) for row in history if "train_runtime" not in row]
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        lines = [*text.split("\n"), *[""] * len(rows)]
        kept = [line if _holds(line, row) else json.dumps(row) for line, row in zip(lines, rows, strict=False)]
        with _writing(self.path):
            replace_text(self.path, "".join(line + "\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        if not logs or "train_runtime" in logs:  # times of this session; result.json has those of the run
            return
        with _writing(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(_log_row(state.global_step, logs)) + "\n")


def _log_row(step: int, logs: Mapping[str, Any]) -> dict[str, Any]:
    """A log entry as it stands in the file. NaN is no JSON: a value that could not be computed is null."""
    row = {"step": step, **logs}
    return {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in row.items()}


def _holds(line: str, row: Mapping[str, Any]) -> bool:
    try:
        return json.loads(line) == row
    except ValueError:
        return False


class Bell(TrainerCallback):
    """Tells of alarms: a warning, and a line in alarms.jsonl. Of several processes, which all see the same log, the
    first one tells.

    Args:
        folder: the run folder.
        stop: whether an alarm ends the run.
    """

    def __init__(self, folder: Path, stop: bool = False) -> None:
        self.path = folder / ALARMS
        self.stop = stop
        self.watch = Watch()

    def replay(self, metrics: Path) -> None:
        """Takes up a run that is resumed: its log so far gives the alarms that were told before."""
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
        for line in lines:
            self.watch.see(json.loads(line))
        if processes.rank():
            return
        with _writing(self.path):
            if self.watch.alarms:
                replace_text(self.path, "".join(map(_line_of, self.watch.alarms)))
            else:
                self.path.unlink(missing_ok=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        alarms = self.watch.see({"step": state.global_step, **(logs or {})})
        for alarm in () if processes.rank() else alarms:
            logger.warning("%s", alarm)
            with _writing(self.path), self.path.open("a", encoding="utf-8") as stream:
                stream.write(_line_of(alarm))
        if self.stop and alarms:
            with processes.alike():
                raise TrainingError(
                    f"{alarms[0]} The run stops there, because loop.stop_on_alarm is true; --resume goes on from the "
                    "last checkpoint, with --set loop.stop_on_alarm=false past the alarm."
                )


def _line_of(alarm: Alarm) -> str:
    return json.dumps(asdict(alarm)) + "\n"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What a full disk or a lost folder says of a log."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"Log {path} cannot be written ({write_problem(error)}); wanted room and permission in {path.parent}. "
            "Free some space and go on with --resume: the last complete checkpoint is intact."
        ) from error
