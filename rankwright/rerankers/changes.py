"""Changes of a run's model that are made on purpose: they are no damage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rankwright.data.files import replace_text
from rankwright.manifests import MANIFEST, digest, model_entries


@contextmanager
def noted(model: Path) -> Iterator[None]:
    """Around what writes into a model's folder. Where it is a run's, what was written, made or taken away stands in the
    run's manifest as it is afterwards; of what was not touched, damage stays known.

    Args:
        model: folder of a model, of a run or not, there or not.

    Raises:
        OSError: the manifest cannot be written.
    """
    try:
        is_of_run = bool(model_entries(model))
    except (OSError, ValueError, RecursionError):  # what opens the model tells of it
        is_of_run = False
    before = _state(model) if is_of_run else {}
    yield
    if not is_of_run:
        return
    run, after = model.absolute().parent, _state(model)
    manifest = json.loads((run / MANIFEST).read_text(encoding="utf-8"))
    for name in (name for name in {**before, **after} if before.get(name) != after.get(name)):
        if name not in after:
            manifest.pop(name, None)
        elif name in manifest or name not in before:  # a card, which people may change, stands in none
            manifest[name] = digest(run / name)
    replace_text(run / MANIFEST, json.dumps(manifest, indent=1))


def _state(model: Path) -> dict[str, tuple[int, int, int]]:
    """Name as a manifest has it -> what differs once a file was written."""
    place = model.absolute()
    found = {str(path.relative_to(place.parent)): path.stat() for path in place.rglob("*") if path.is_file()}
    return {name: (stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in found.items()}
