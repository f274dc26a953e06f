"""Checkpoint folders: complete where their manifest says so, found again newest first, refused for other settings.

Imports no torch, so that a run that may not begin is refused at once.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import IO, Any
from uuid import uuid4

from rankwright.data.files import replace_text, take_lock
from rankwright.errors import ResumeError, StorageError
from rankwright.manifests import MANIFEST, damaged_files, digest

logger = logging.getLogger(__name__)

ALGORITHM_STATE = "algorithm.json"
LOCK = ".lock"
_mine: dict[tuple[Path, int], IO[str]] = {}
"""Run folder and thread that has it for itself -> its lock, which a forked child finds closed."""


def make_folder(folder: Path) -> None:
    """Creates a run folder and proves that it can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{uuid4().hex}"  # of its own: several processes do so at once
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"Run folder {folder} cannot be written ({error.strerror}); wanted a writable folder. Choose another with "
        "--name."
    )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes a run folder, in which no other process and no other thread may make a run meanwhile; where nothing was
    put into it, it goes again. Who has it may ask once more, by any of its names.

    Raises:
        StorageError: another one makes a run in it, or it cannot be written.
    """
    lock, mine = folder / LOCK, (folder.resolve(), get_ident())
    if mine in _mine and not _mine[mine].closed:
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    try:
        with _taken(lock) as stream:
            _mine[mine] = stream
            try:
                yield
            finally:
                del _mine[mine]
                if _is_at(stream, lock):
                    with suppress(OSError):
                        lock.unlink()  # as long as nobody else can take it
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def _taken(lock: Path) -> IO[str]:
    """The lock, held until it is closed; who holds it stands in it, for people alone: containers of one host name each
    have a process 1."""
    try:
        stream = lock.open("a+", encoding="utf-8")
        if take_lock(stream) and _is_at(stream, lock):
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {platform.node()}")
            stream.flush()
            return stream
        holder = lock.read_text(encoding="utf-8") if lock.exists() else ""  # gone with who held it a moment ago
    except OSError as error:
        raise _unwritable(lock.parent, error) from error
    stream.close()
    raise StorageError(
        f"Run folder {lock.parent} is being written by {holder or 'another process'}; wanted one at a time. Wait for "
        "it, or give another --name."
    )


def _is_at(stream: IO[str], path: Path) -> bool:
    """Whether an open file is the one of that name: who left may have removed it, and another made it anew."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except (OSError, ValueError):  # the latter of a closed one
        return False


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(folder: Path, names: Iterable[str] | None = None) -> None:
    """Writes sizes and hashes of all files, or of those named that are there, after these are on disk: a folder with a
    valid manifest is complete."""
    named = folder.rglob("*") if names is None else (folder / name for name in names)
    files = sorted(path for path in named if path.is_file())
    for path in files:
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
    replace_text(folder / MANIFEST, json.dumps({str(p.relative_to(folder)): digest(p) for p in files}, indent=1))


def is_complete(folder: Path) -> bool:
    """True where every file of the manifest is there with its hash."""
    return not damaged_files(folder)


def step_of(folder: Path) -> int:
    """Step number in a checkpoint's name."""
    return int(folder.name.rsplit("-", 1)[1])


def sorted_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders by step, complete or not."""
    return sorted((p for p in folder.glob("checkpoint-*") if p.name.rsplit("-", 1)[1].isdigit()), key=step_of)


def remove_after(folder: Path, step: int = -1) -> None:
    """Removes what stands in the way of a run that goes on from a step, or begins: checkpoints of later steps, which
    are damaged and would count as its newest, and halves that a kill left. By default all of them, as of a run that
    nobody will resume."""
    later = [path for path in sorted_checkpoints(folder) if step_of(path) > step]
    for path in (*later, *folder.glob(".checkpoint-*.partial")):
        shutil.rmtree(path)


def newest_checkpoint(folder: Path, *, warn: bool = True) -> Path | None:
    """The newest complete checkpoint; damaged ones are passed over, with a warning unless another look gives that. None
    where there are none at all.

    Raises:
        ResumeError: there are some, but none is complete.
    """
    passed: list[str] = []
    for path in reversed(sorted_checkpoints(folder)):
        if is_complete(path):
            if passed and warn:
                logger.warning(
                    "Damaged or unreadable in %s: %s; the run goes on from %s.", folder, ", ".join(passed), path.name
                )
            return path
        passed.append(path.name)
    if passed:
        raise ResumeError(
            f"No checkpoint in {folder} is complete and readable ({', '.join(passed)}). If they cannot be mended, "
            "--overwrite begins the run anew and removes them."
        )
    return None


def complete_checkpoint(folder: Path, step: int) -> Path:
    """The checkpoint of a step, every byte of it as it was saved.

    Raises:
        ResumeError: it is damaged or gone.
    """
    checkpoint = folder / f"checkpoint-{step}"
    if damaged := damaged_files(checkpoint):
        raise ResumeError(
            f"Checkpoint {checkpoint}, whose weights are the best on dev, is damaged or gone ({', '.join(damaged)}). "
            "If it cannot be mended, --overwrite begins the run anew and removes it."
        )
    return checkpoint


def fingerprint_of(settings: Mapping[str, Any]) -> str:
    """All settings as one text, the same for the same settings."""
    return json.dumps(settings, sort_keys=True, default=str)


def check_fingerprint(checkpoint: Path, wanted: str) -> None:
    """Refuses to go on from a checkpoint with other settings than the run began with."""
    found = json.loads((checkpoint / ALGORITHM_STATE).read_text(encoding="utf-8"))["fingerprint"]
    check_same_settings(json.loads(found), json.loads(wanted), checkpoint.parent)


def check_same_settings(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuses other settings than the run in the folder began with, naming the first that differs.

    Raises:
        ResumeError: one differs.
    """
    old, new = _flat(before), _flat(now)
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            raise ResumeError(
                f"Setting {name} is {new.get(name)!r}, but the run in {folder} began with {old.get(name)!r}. "
                "Give the same settings to --resume, or start a new run with another --name."
            )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf for key, part in value.items() for name, leaf in _flat(part, f"{prefix}.{key}".lstrip(".")).items()
    }
