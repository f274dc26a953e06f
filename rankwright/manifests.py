"""Sizes and hashes of a folder's files, in its manifest.json: damage is found before a file is used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rankwright.errors import ModelError, ResourceNotFoundError

MANIFEST = "manifest.json"
MODEL = "model"
"""The folder of a run that holds its model."""
ENVIRONMENT = "environment.json"
"""What a run keeps of how it was begun; it stands there from the beginning."""

GO_ON = "the command that began it, with --resume"
"""How a run is finished. The command is not told: environment.json, which has it, may come from anyone."""


def check_has_model(run: Path) -> None:
    """Whether a folder is no run that is still without its model: its training is under way or was broken off.

    Args:
        run: any folder; one with weights of its own is a model's, and so no run.

    Raises:
        ResourceNotFoundError: it is such a run.
    """
    is_run = (run / ENVIRONMENT).is_file() and not any(run.glob("*.safetensors"))
    if is_run and not (run / MODEL / "config.json").is_file():
        raise ResourceNotFoundError(
            f"Run {run} is not finished and holds no model yet; wanted a finished run. Where it is not under way, "
            f"finish it with {GO_ON}."
        )


def digest(path: Path) -> dict[str, Any]:
    """A file's entry in a manifest."""
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def damaged_files(folder: Path) -> list[str]:
    """Files that are not there as the folder's manifest says; the manifest where it cannot be read."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).items()
        return [name for name, entry in listed if not _is_as_written(folder / name, entry)]
    except (OSError, ValueError, AttributeError):
        return [MANIFEST]


def _is_as_written(path: Path, entry: object) -> bool:
    try:
        return digest(path) == entry
    except (OSError, ValueError):
        return False


def model_entries(model: Path) -> dict[str, Any]:
    """What the manifest of a run says of its model's files. Nothing of a model elsewhere, and of one beside a
    manifest.json of another tool.

    Args:
        model: folder of a model, of a run or not.

    Raises:
        OSError, ValueError, RecursionError: a manifest is there and cannot be read.
    """
    place = model.absolute()
    if place.name != MODEL or not (place.parent / MANIFEST).is_file():
        return {}
    manifest = json.loads((place.parent / MANIFEST).read_text(encoding="utf-8"))
    listed = manifest.items() if isinstance(manifest, dict) else ()
    found = {name: entry for name, entry in listed if name.startswith(f"{MODEL}/")}
    return found if any(_is_entry(entry) for entry in found.values()) else {}


def _is_entry(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"bytes", "sha256"}


def check_model(folder: Path) -> None:
    """Whether the model of a run is as the run left it, before anything is made of its numbers: a flipped bit in a
    weight is no error of safetensors. A model elsewhere has no manifest and is taken as it is. Every byte is read.

    Args:
        folder: of a model, of a run or not.

    Raises:
        ModelError: a file of the model is damaged or gone.
    """
    run = folder.absolute().parent
    try:
        damaged = [name for name, entry in model_entries(folder).items() if not _is_as_written(run / name, entry)]
    except (OSError, ValueError, RecursionError):
        damaged = [MANIFEST]
    if damaged:
        raise ModelError(
            f"{', '.join(damaged)} in {folder.parent} is not as the run left it; wanted the files that its {MANIFEST} "
            f"lists. Make the model again with {GO_ON}, or remove {MANIFEST} to take it as it is."
        )
