"""What an installation without PyTorch saves: size, time of import, cold start to the first score.

    python -m benchmarks.lean [--processes 7] [--pip-args "..."]

Makes two fresh environments with pip, one for `rankwright[onnx]` and one for `rankwright[train]`, writes the embedded
reference as a model folder and as an export, and starts processes in turn. Packages come from pip's own settings, with
the versions of constraints.txt. Needs the extras embedded and export in the environment that it is run in.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rankwright

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks" / "results" / "lean.md"
EXTRAS = {"without PyTorch": "onnx", "with PyTorch": "train"}
IMPORT = "import rankwright; rankwright.RankwrightError"
SCORE = (
    "import sys, rankwright\n"
    "scores = rankwright.load(sys.argv[1], backend=sys.argv[2]).rerank('who?', ['Ida Moss.', 'Nobody.']).scores\n"
    "print(scores[0])"
)


@dataclass(frozen=True)
class Started:
    """One process, from its start to its end."""

    wall: float
    """Seconds."""
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
        environments = {name: _environment(folder / extra, extra, asked.pip_args) for name, extra in EXTRAS.items()}
        commands = _commands({name: python for name, (python, _) in environments.items()}, models)
        for command in commands.values():  # compiled files and the disk's cache are warm
            _start(command)
        found: dict[str, list[Started]] = {name: [] for name in commands}
        for _ in range(asked.processes):
            for name, command in commands.items():
                found[name].append(_start(command))
        PAGE.write_text(_page(environments, found, asked.processes), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


def _models(folder: Path) -> dict[str, Path]:
    reference = rankwright.load("reference")
    reference.save(folder / "model")  # pyright: ignore[reportAttributeAccessIssue]
    rankwright.export("reference", folder / "export")
    return {"torch": folder / "model", "onnx": folder / "export", "onnx-int8": folder / "export"}


def _environment(folder: Path, extra: str, pip_args: str) -> tuple[Path, dict[str, float]]:
    """A fresh environment with the package, its Python, and what it took."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    bare = _size(folder)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    begun = time.monotonic()
    wanted = f"rankwright[{extra}] @ {ROOT.as_uri()}"
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


def _commands(pythons: dict[str, Path], models: dict[str, Path]) -> dict[str, list[str]]:
    lean, full = pythons["without PyTorch"], pythons["with PyTorch"]
    return {
        "import, without PyTorch": [str(lean), "-c", IMPORT],
        "import, with PyTorch": [str(full), "-c", IMPORT],
        "first score, fp32 in ONNX Runtime": [str(lean), "-c", SCORE, str(models["onnx"]), "onnx"],
        "first score, int8 in ONNX Runtime": [str(lean), "-c", SCORE, str(models["onnx-int8"]), "onnx-int8"],
        "first score, fp32 in PyTorch": [str(full), "-c", SCORE, str(models["torch"]), "torch"],
    }


def _start(command: Sequence[str]) -> Started:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    begun = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    printed = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{shlex.join(command)} ended with {process.returncode}")
    return Started(time.monotonic() - begun, usage.ru_utime + usage.ru_stime, printed.strip())


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _page(
    environments: dict[str, tuple[Path, dict[str, float]]], found: dict[str, list[Started]], processes: int
) -> str:
    lines = [
        "# Installed without PyTorch",
        "",
        "```",
        f"python -m benchmarks.lean --processes {processes}",
        "```",
        "",
        f"Measured on: {os.cpu_count()} CPUs ({platform.machine()}), Python {platform.python_version()}, versions of "
        "constraints.txt, the CPU build of PyTorch, one",
        "thread, the embedded reference (22.7 million weights). Fresh environments made by pip; size is what "
        "pip added, compiled files left out.",
        f"{processes} processes of each kind, in turn, after one that warms the disk's cache: median (smallest to "
        "largest). CPU seconds are those of all",
        "threads of a process; wall time was disturbed by other work on the machine.",
        "",
        "| installation | packages | MB |",
        "|---|---|---|",
    ]
    for name, (_, facts) in environments.items():
        extra = EXTRAS[name]
        lines.append(f'| `pip install "rankwright[{extra}]"` | {facts["packages"]:.0f} | {facts["MB"]:,.0f} |')
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
