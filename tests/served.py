"""A real server of a language model in a process of its own, which can be killed and started again."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

START_SECONDS = 240.0
"""The server imports torch and fastapi on a machine that may be busy."""
READY_SECONDS = 60.0
"""Within which `rankwright serve` over a small model promises to be ready."""


class Served:
    """Runs between `with` and the end of the block.

    Args:
        command: the port -> how the server is started.
        folder: takes a log of every start.
        health: path that answers once the server does.
        environment: variables beside those of this process.
        place: the folder that it works in; this process' own without.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        folder: Path,
        health: str,
        environment: Mapping[str, str] | None = None,
        place: Path | None = None,
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._command, self._folder, self._health, self._place = command, folder, health, place
        self._environment = os.environ | {"HF_HUB_OFFLINE": "1"} | dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = 0.0
        self.logs: list[Path] = []
        self.took = 0.0
        """Seconds from its last start until it answered."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Served:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def launch(self) -> None:
        """Starts it, without waiting."""
        self.logs.append(self._folder / f"log-{len(self.logs)}.txt")
        self._begun = time.monotonic()
        with self.logs[-1].open("w") as output:
            self._process = subprocess.Popen(
                self._command(self.port),
                stdout=output,
                stderr=output,
                env=self._environment,
                cwd=self._place,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it answers."""
        while time.monotonic() < self._begun + START_SECONDS:
            assert self._process is not None
            assert self._process.poll() is None, self.logs[-1].read_text()
            try:
                with urllib.request.urlopen(self.url + self._health, timeout=5):
                    self.took = time.monotonic() - self._begun
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"The server did not come up: {self.logs[-1].read_text()}")

    def start(self) -> None:
        self.launch()
        self.wait()

    def kill(self) -> None:
        """By SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def answered(self, path: str, start: int = -1) -> int:
        """Requests to a path that it says in its log to have answered well since that start."""
        return len(re.findall(rf'"POST {re.escape(path)} HTTP/1.1" 200', self.logs[start].read_text()))


def transformers_serve(model: Path) -> Callable[[int], list[str]]:
    """The command of `transformers serve`, which writes every request into its log."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--device", "cpu"]
    return lambda port: [*command, "--host", "127.0.0.1", "--port", str(port), "--log-level", "info"]
