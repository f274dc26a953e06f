"""Measurements that are kept, so that a page can be made in several sittings, and what they were made with: a part that
was measured with another reader, reference or knowledge base must not stand beside new ones."""

from __future__ import annotations

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
DEVICE = os.environ.get("DEVICE", "cpu")
"""Where models run. Every record says on what it was measured."""


def hardware() -> str:
    """What DEVICE is, in words."""
    import torch

    if DEVICE.startswith("cuda"):
        return torch.cuda.get_device_name(DEVICE)
    return f"{os.cpu_count()} CPUs ({platform.processor() or platform.machine()})"


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
    return {file.name: _digest(file) for file in files}


@cache
def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def measured(path: Path, made_with: dict[str, Any], measure: Callable[[], Any]) -> Any:
    """What `measure` gives, from the file if it was measured before.

    Args:
        path: where it is kept.
        made_with: settings and digests that decide the outcome, as JSON values.
        measure: gives JSON values.
    """
    if (kept := read(path, made_with)) is not None:
        return kept
    value = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"made_with": made_with, "value": value}), encoding="utf-8")
    return value


def read(path: Path, made_with: dict[str, Any]) -> Any:
    """What is kept in a file; None where there is none. Ends the program where it was made with something else."""
    if not path.exists():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["made_with"] != made_with:
        sys.exit(f"{path} was made with {kept['made_with']}; wanted {made_with}. Move it away to measure it anew.")
    return kept["value"]
