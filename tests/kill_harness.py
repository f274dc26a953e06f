"""Processes to be killed, forked from one that has everything imported, so that a start costs milliseconds.

    job = Job(kill_jobs.store_rows, path, "writer 1")     # is given `say` and then the arguments
    job.kill_after(random.uniform(0, usual_seconds))      # or Job(..., points=[Point("rankwright.training:train", 7)])
    job.end()
    job.said                                              # the ledger: what it had acknowledged by then

What a process says goes into a pipe, which outlives its writer: everything that `say` returned from is in `said`.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120.0
"""Seconds after which a process that should have ended hangs."""
ENTERED, LEFT, FAILED = "entered", "left", "failed"

Say = Callable[[Any], None]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.kill_jobs"])


@dataclass(frozen=True)
class Point:
    """A place in the code at which a process ends itself by SIGKILL: the `number`-th call made while `inside` runs,
    counted over all its runs.

    It says (ENTERED, calls so far, time, inside) and (LEFT, calls so far, time, inside) of each run of `inside`, also
    where `number` is 0 and it survives. With None it does not count, which takes time. Of several points none may lie
    inside another.
    """

    inside: str
    """module:function or module:Class.function."""
    number: int | None = 0
    calls: frozenset[str] = frozenset()
    """Names of the functions whose calls count; all where it is empty."""

    def install(self, say: Say) -> None:
        """In the process that is to die."""
        module, _, path = self.inside.partition(":")
        *owners, name = path.split(".")
        owner: Any = importlib.import_module(module)
        for part in owners:
            owner = getattr(owner, part)
        plain, count = getattr(owner, name), 0

        def see(frame: Any, event: str, called: Any) -> None:
            nonlocal count
            if event not in ("call", "c_call"):
                return
            if self.calls and (frame.f_code.co_name if event == "call" else called.__name__) not in self.calls:
                return
            count += 1
            if count == self.number:
                os.kill(os.getpid(), signal.SIGKILL)

        def watched(*args: Any, **kwargs: Any) -> Any:
            say((ENTERED, count, time.monotonic(), self.inside))
            if self.number is not None:
                sys.setprofile(see)
            try:
                return plain(*args, **kwargs)
            finally:
                sys.setprofile(None)
                say((LEFT, count, time.monotonic(), self.inside))

        setattr(owner, name, watched)


class Job:
    """One process. `work` is a function of tests/kill_jobs.py; `said` fills while the job is listened to."""

    def __init__(self, work: Callable[..., None], *arguments: Any, points: Sequence[Point] = ()) -> None:
        _start_server()
        self.said: list[Any] = []
        self.started = time.monotonic()
        self._ears, mouth = _context.Pipe(duplex=False)
        self._process = _context.Process(target=_run, args=(mouth, work, arguments, points), daemon=True)
        self._process.start()
        mouth.close()

    def listen(self, seconds: float, until: Callable[[Any], bool] = lambda word: False) -> bool:
        """Collects what the job says for so long or until a word; False where the job has fallen silent for good."""
        deadline = time.monotonic() + seconds
        while self._ears.poll(max(0.0, deadline - time.monotonic())):
            try:
                self.said.append(self._ears.recv())
            except (EOFError, OSError):  # a kill may tear the last word
                return False
            if until(self.said[-1]):
                break
        return True

    def kill(self) -> None:
        """Whatever it is doing."""
        self._process.kill()

    def kill_after(self, seconds: float) -> None:
        """Unless it has ended by then."""
        if self.listen(seconds):
            self.kill()

    def end(self) -> bool:
        """Waits for it; whether it was killed. Raises an AssertionError where it failed or hangs."""
        silent = not self.listen(PATIENCE)
        self._ears.close()
        if not silent:
            self.kill()
        self._process.join(PATIENCE)
        code = self._process.exitcode
        self._process.close()
        failures = [word[1] for word in self.said if isinstance(word, tuple) and word[0] == FAILED]
        assert silent, f"The job hangs; it said {self.said[-3:]} last"
        assert code in (0, -signal.SIGKILL), f"The job ended with {code}:\n{''.join(failures)}"
        return code != 0

    def words(self, kind: str) -> list[Any]:
        """What it said of this kind: of the tuples that begin with it, what comes next."""
        return [word[1] for word in self.said if word[0] == kind]


def _start_server() -> None:
    """The process from which all jobs are forked; it finds this repository wherever pytest was started."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _run(mouth: Connection, work: Callable[..., None], arguments: tuple[Any, ...], points: Sequence[Point]) -> None:
    gc.freeze()  # a collection would write to every object of the parent, and so copy all its memory
    try:
        for point in points:
            point.install(mouth.send)
        work(mouth.send, *arguments)
    except BaseException:
        mouth.send((FAILED, traceback.format_exc()))
        raise
