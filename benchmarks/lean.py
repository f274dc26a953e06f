"""What an installation without PyTorch saves: size, time of import, cold start to the first score, and to a server that
is ready.

    python -m benchmarks.lean [--processes 7] [--pip-args "..."]

Makes two fresh environments with pip, one for `rankwright[onnx]` and one for `rankwright[serve,train]`, writes the
embedded reference as a model folder and as an export, and starts processes in turn, each with one thread. Packages come
from pip's own settings, with the versions of constraints.txt. Needs the extras embedded and export in the environment
that it is run in, and a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import rankwright
from benchmarks.kept import processor_words

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks" / "results" / "lean.md"
LEAN, FULL = "onnx", "serve,train"
"""Extras: without PyTorch, and with it."""
PROMISED = 60
"""Seconds within which `rankwright serve` is ready."""
PATIENT = 600.0
IMPORT = "import rankwright; rankwright.RankwrightError"
SCORE = (
    "import sys, rankwright\n"
    "scores = rankwright.load(sys.argv[1], backend=sys.argv[2]).rerank('who?', ['Ida Moss.', 'Nobody.']).scores\n"
    "print(scores[0])"
)
WORDS = """Measured on: {machine}; Python {python}, versions of constraints.txt, the CPU build of PyTorch, one thread,
the embedded reference (22.7 million weights). Fresh environments made by pip, both with what `rankwright serve` needs;
size is what pip added, compiled files left out. {processes} processes of each kind, in turn, after one that warms the
disk's cache: median (smallest to largest). CPU seconds are those of all threads of a process, from its start to its
end. Wall seconds of a server are those from its start to the first 200 of `/ready`, which is promised within
{promised} s: the slowest took {slowest:.1f} s."""


@dataclass(frozen=True)
class Process:
    """One kind of process that is started again and again."""

    command: Sequence[str]
    port: int = 0
    """Of a server, which is ended when it is ready; 0 for a process that ends by itself."""
    chooses: bool = False
    """Whether it is to find the fastest backend anew, which is otherwise remembered."""


@dataclass(frozen=True)
class Started:
    """One process."""

    wall: float
    """Seconds until its end, or until it was ready."""
    cpu: float
    """Seconds of all its threads."""
    printed: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=7)
    parser.add_argument("--pip-args", default=os.environ.get("PIP_ARGS", ""))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lean-") as place:
        folder = Path(place)
        models = _models(folder)
        environments = {extras: _environment(folder / extras, extras, asked.pip_args) for extras in (LEAN, FULL)}
        processes = _processes({extras: python for extras, (python, _) in environments.items()}, models)
        for process in processes.values():  # compiled files, the disk's cache and the choice of a backend are there
            _start(process, folder)
        found: dict[str, list[Started]] = {name: [] for name in processes}
        for _ in range(asked.processes):
            for name, process in processes.items():
                found[name].append(_start(process, folder))
        facts = {extras: facts for extras, (_, facts) in environments.items()}
        PAGE.write_text(_page(facts, found, asked.processes), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


def _models(folder: Path) -> dict[str, Path]:
    reference = rankwright.load("reference")
    reference.save(folder / "model")  # pyright: ignore[reportAttributeAccessIssue]
    rankwright.export("reference", folder / "export")
    return {"torch": folder / "model", "onnx": folder / "export"}


def _environment(folder: Path, extras: str, pip_args: str) -> tuple[Path, dict[str, float]]:
    """A fresh environment with the package, its Python, and what it took."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    bare = _size(folder)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    begun = time.monotonic()
    wanted = f"rankwright[{extras}] @ {ROOT.as_uri()}"
    subprocess.run(
        [*command, "--constraint", str(ROOT / "constraints.txt"), *shlex.split(pip_args), wanted],
        check=True,
        cwd=folder,
    )
    seconds = time.monotonic() - begun
    listing = subprocess.run([str(python), "-m", "pip", "list", "--format", "json"], capture_output=True, check=True)
    packages = len(json.loads(listing.stdout)) - 2  # pip and rankwright
    return python, {"MB": (_size(folder) - bare) / 1e6, "packages": packages, "seconds": seconds}


def _size(folder: Path) -> int:
    """Bytes of all files, without what Python compiles on the way."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files if path.suffix != ".pyc")


def _processes(pythons: Mapping[str, Path], models: Mapping[str, Path]) -> dict[str, Process]:
    lean, full = str(pythons[LEAN]), str(pythons[FULL])
    export, model = str(models["onnx"]), str(models["torch"])

    def served(python: str, model: str, backend: str, *, chooses: bool = False) -> Process:
        port = _free_port()
        command = [str(Path(python).with_name("rankwright")), "serve", model, "--backend", backend]
        return Process([*command, "--port", str(port)], port, chooses)

    return {
        "import, without PyTorch": Process([lean, "-c", IMPORT]),
        "import, with PyTorch": Process([full, "-c", IMPORT]),
        "first score, fp32 in ONNX Runtime": Process([lean, "-c", SCORE, export, "onnx"]),
        "first score, int8 in ONNX Runtime": Process([lean, "-c", SCORE, export, "onnx-int8"]),
        "first score, fp32 in PyTorch": Process([full, "-c", SCORE, model, "torch"]),
        "server ready, fp32 in ONNX Runtime": served(lean, export, "onnx"),
        "server ready, int8 in ONNX Runtime": served(lean, export, "onnx-int8"),
        "server ready, PyTorch, `--backend torch`": served(full, model, "torch"),
        "server ready, PyTorch, `--backend auto`": served(full, model, "auto"),
        "server ready, PyTorch, `--backend auto` for the first time": served(full, model, "auto", chooses=True),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(asked: Process, folder: Path) -> Started:
    chosen = tempfile.mkdtemp(dir=folder) if asked.chooses else str(folder / "chosen")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANKWRIGHT_CACHE": chosen}
    for name in ("PYTHONPATH", "RANKWRIGHT_API_KEY"):
        environment.pop(name, None)
    begun = time.monotonic()
    process = subprocess.Popen(
        asked.command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    wall = _ready(process, asked.port) - begun if asked.port else 0.0
    if asked.port:
        process.send_signal(signal.SIGTERM)
    printed = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{shlex.join(asked.command)} ended with {process.returncode}")
    return Started(wall or time.monotonic() - begun, usage.ru_utime + usage.ru_stime, printed.strip())


def _ready(process: subprocess.Popen[str], port: int) -> float:
    """When it said at /ready that it is."""
    end = time.monotonic() + PATIENT
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                return time.monotonic()
        except OSError:
            time.sleep(0.02)
    process.kill()
    sys.exit(f"The server on port {port} did not become ready.")


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _page(facts: Mapping[str, Mapping[str, float]], found: Mapping[str, Sequence[Started]], processes: int) -> str:
    slowest = max(run.wall for name, runs in found.items() if name.startswith("server") for run in runs)
    words = WORDS.format(
        machine=processor_words(),
        python=platform.python_version(),
        processes=processes,
        promised=PROMISED,
        slowest=slowest,
    )
    lines = [
        "# Installed without PyTorch",
        "",
        "```",
        f"python -m benchmarks.lean --processes {processes}",
        "```",
        "",
        *textwrap.wrap(words, 120),
        "",
        "| installation | packages | MB |",
        "|---|---|---|",
    ]
    for extras, fact in facts.items():
        lines.append(f'| `pip install "rankwright[{extras}]"` | {fact["packages"]:.0f} | {fact["MB"]:,.0f} |')
    lines += ["", "| process | CPU s | wall s |", "|---|---|---|"]
    for name, runs in found.items():
        cpu, wall = _spread([run.cpu for run in runs], 2), _spread([run.wall for run in runs], 2)
        lines.append(f"| {name} | {cpu} | {wall} |")
    scores = {name: runs[0].printed for name, runs in found.items() if runs[0].printed}
    lines += [
        "",
        "First score of each: " + ", ".join(f"{name.split(', ')[1]} {score}" for name, score in scores.items()),
    ]
    return "\n".join(lines) + ".\n"


if __name__ == "__main__":
    main()
