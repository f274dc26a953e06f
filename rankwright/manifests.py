"""Sizes and hashes of a folder's files, in its manifest.json: damage is found before a file is used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rankwright.errors import ModelError

MANIFEST = "manifest.json"
MODEL = "model"
"""The folder of a run that holds its model."""


def digest(path: Path) -> dict[str, Any]:
    """A file's entry in a manifest."""
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def damaged_files(folder: Path, below: str = "") -> list[str]:
    """Files that are not there as the manifest says; the manifest where it cannot be read.

    Args:
        folder: has the manifest.
        below: only files of this folder in it; all where it is empty.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed = [(name, entry) for name, entry in manifest.items() if not below or name.startswith(f"{below}/")]
        return [name for name, entry in listed if not _is_as_written(folder / name, entry)]
    except (OSError, ValueError, AttributeError):
        return [MANIFEST]


def _is_as_written(path: Path, entry: object) -> bool:
    try:
        return digest(path) == entry
    except (OSError, ValueError):
        return False


def check_model(folder: Path) -> None:
    """Whether the model of a run is as the run left it, before anything is made of its numbers: a flipped bit in a
    weight is no error of safetensors. A model elsewhere has no manifest and is taken as it is.

    Args:
        folder: of a model, of a run or not.

    Raises:
        ModelError: a file of the model is damaged or gone.
    """
    place = folder.absolute()
    if place.name != MODEL or not (place.parent / MANIFEST).is_file():
        return
    if damaged := damaged_files(place.parent, MODEL):
        raise ModelError(
            f"{', '.join(damaged)} in {folder.parent} is not as the run left it; wanted the files that its {MANIFEST} "
            f"lists. Make the model again with rankwright train --resume, or remove {MANIFEST} to take it as it is."
        )
