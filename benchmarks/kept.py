"""Measurements that are kept, so that a page can be made in several sittings, and what they were made with: a part that
was measured with another reader, reference or knowledge base must not stand beside new ones."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parents[1] / "rankwright" / "assets"
READER = ASSETS / "reader.safetensors"
REFERENCE = ASSETS / "reference.safetensors"
SPLIT = Path(__file__).parent / "embedded" / "split.json"
SHOWN = SPLIT.with_name("shown.json")
WORK = Path(__file__).parent / "work"
KEPT = Path(__file__).parent / "results" / "kept"
DEVICE = os.environ.get("DEVICE", "cpu")
"""Where models run. Every record says on what it was measured."""


def hardware() -> str:
    """What DEVICE is, in words."""
    import torch

    if DEVICE.startswith("cuda"):
        return torch.cuda.get_device_name(DEVICE)
    return f"{os.cpu_count()} CPUs ({platform.processor() or platform.machine()})"


def processor_words() -> str:
    """The processor, and the instruction sets of it that fast kernels ask for."""
    from rankwright.rerankers.choice import instruction_sets, processor

    return f"{processor()}, {hardware()}; {', '.join(instruction_sets())}"


def run_each(commands: Sequence[Sequence[str]], jobs: int = 1) -> None:
    """Runs Python modules with their arguments, each in a process of its own, `jobs` side by side. Where one fails,
    those that have begun end, no other begins, and the program ends."""
    failed: list[str] = []

    def run(command: Sequence[str]) -> None:
        if not failed and (code := subprocess.run([sys.executable, "-m", *command], check=False).returncode):
            failed.append(f"'{' '.join(command)}' ended with exit code {code}")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, commands))
    if failed:
        sys.exit(f"{'; '.join(failed)}; see above, then run the same command again: what is done is kept.")


def digests(files: Sequence[Path]) -> dict[str, str]:
    """File name -> first digits of the content's sha256."""
    return {file.name: _digest(file, file.stat().st_mtime_ns, file.stat().st_size) for file in files}


@cache
def _digest(file: Path, changed: int, size: int) -> str:
    # Weights that are trained again lie where the others lay: time and size of the file tell them apart.
    del changed, size
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def measured(path: Path, made_with: dict[str, Any], measure: Callable[[], Any]) -> Any:
    """What `measure` gives, from the file if it was measured before.

    Args:
        path: its name below WORK; the file itself lies in KEPT, see `place`.
        made_with: settings and digests that decide the outcome, as JSON values.
        measure: gives JSON values.
    """
    if (kept := read(path, made_with)) is not None:
        return kept
    record = json.dumps({"made_with": made_with, "value": _rounded(measure())}).encode()
    file = place(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f".{os.getpid()}")
    aside.write_bytes(gzip.compress(record, mtime=0))
    aside.replace(file)
    return json.loads(record)["value"]


def read(path: Path, made_with: dict[str, Any]) -> Any:
    """What is kept in a file; None where there is none. Ends the program where it was made with something else."""
    if not (file := place(path)).exists():
        return None
    kept = record_of(path)
    if kept["made_with"] != made_with:
        sys.exit(f"{file} was made with {kept['made_with']}; wanted {made_with}. Move it away to measure it anew.")
    return kept["value"]


def record_of(path: Path) -> dict[str, Any]:
    """A kept value and what it was made with."""
    return json.loads(gzip.decompress(place(path).read_bytes()))


def place(path: Path) -> Path:
    """Where a measurement lies: below KEPT by the name it has below WORK, small, and part of the project, so that a
    page that takes days can be gone on with on another machine."""
    return (KEPT / path.relative_to(WORK) if path.is_relative_to(WORK) else path).with_suffix(".json.gz")


def forget(folder: Path) -> None:
    """Deletes the records of one folder below WORK."""
    for file in place(folder / "any").parent.glob("*.json.gz"):
        file.unlink()


def _rounded(value: Any) -> Any:
    """Numbers with six digits: more is below the noise of every measurement here."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value
