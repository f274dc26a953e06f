"""What a model's folder or hub repository may not bring: code, weights in a pickle, and files of others; and a hub that
is not there."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from rankwright.errors import ModelError

FOLLOW = "RANKWRIGHT_FOLLOW_LINKS"
"""Set to 1, links out of a model's folder are followed: what they lead to is read, saved and uploaded as its own."""


@contextmanager
def fetched(path: str) -> Iterator[None]:
    """Around whatever opens a folder or hub name. Where the hub's host has no address the block runs in the hub's
    offline mode: what was fetched before opens, and any other name fails at once, not after a minute of retries for
    each of its files. A proxy finds the address itself, so with one nothing is asked.

    Raises:
        ModelError: a file of the folder is not its own.
    """
    from huggingface_hub import constants

    refuse_others_files(path)
    with _Offline.lock:
        offline_anyway = constants.HF_HUB_OFFLINE and not _Offline.blocks
    if Path(path).exists() or offline_anyway or _proxied() or _has_address(constants.ENDPOINT):
        yield
        return
    with _Offline.lock:
        _Offline.blocks += 1
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        with _Offline.lock:
            _Offline.blocks -= 1
            constants.HF_HUB_OFFLINE = _Offline.blocks > 0


class _Offline:
    """The mode is the whole process's: the last of several threads' blocks ends it."""

    lock = Lock()
    blocks = 0


def _proxied() -> bool:
    return not {"http", "https", "all"}.isdisjoint(getproxies())  # which has the exceptions as "no" too


def _has_address(endpoint: str) -> bool:
    try:
        socket.getaddrinfo(urlsplit(endpoint).hostname, None)
    except (OSError, UnicodeError):
        return False
    return True


def refuse_others_files(path: str) -> None:
    """A folder that comes from anyone may hold links to files of whoever opens it, which would be read as a vocabulary,
    saved again and uploaded; what is no file, and is waited for without end; and an index of weights that names files
    elsewhere. Links inside the folder are its own, and so are those into the hub's cache, which is made of them; others
    are followed where FOLLOW asks for it.

    Raises:
        ModelError: there is one.
    """
    folder = Path(path)
    for file in _seen(folder):
        if wrong := _wrong_kind(folder, file):
            what, next_step = wrong
            raise ModelError(
                f"Model '{path}' holds {file.relative_to(folder).as_posix()}, which {what}; wanted files of its own. "
                f"{next_step}"
            )
        stray = next((name for name in _shards(file) if Path(name).name != name), None)
        if stray is not None:
            raise ModelError(
                f"Model '{path}' has weights in {stray[:80]!r} by {file.name}; wanted names of files in the folder. "
                "Save it again with save_pretrained."
            )


def _seen(folder: Path) -> Iterator[Path]:
    """What may be opened in a folder and its subfolders; hidden files never are."""
    for entry in _entries(folder):
        yield entry
        if entry.is_dir() and not entry.is_symlink():
            yield from _entries(entry)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:  # told by what opens it, if anything does
        return []


def _wrong_kind(folder: Path, file: Path) -> tuple[str, str] | None:
    """What is wrong with a file of a folder, and what to do; None where nothing is."""
    if file.is_symlink():
        if not os.path.exists(file):  # noqa: PTH110 (Path.exists raises where a folder on the way is closed)
            return "is a link that leads to nothing", "Fetch what it leads to, or take it out."
        if os.environ.get(FOLLOW) != "1" and not _is_own(folder, file):
            return "is a link that leads out of the folder", (
                f"If you know where it leads, set {FOLLOW}=1, which follows such links; or put a copy in its place."
            )
    if file.is_file() or file.is_dir():
        return None
    return "is no file", "If you know where it comes from, put a copy in its place or take it out."


def _is_own(folder: Path, link: Path) -> bool:
    """Whether a link leads into its folder, or to a blob of the hub's cache."""
    target = Path(os.path.realpath(link))
    if target.is_relative_to(os.path.realpath(folder)) or _is_blob(target):
        return True
    # The folder of the repository may be a link itself, or be reached by one, behind which it has any name.
    places = (link.absolute(), Path(os.path.realpath(link.parent), link.name))
    repositories = (above.parent for place in places for above in place.parents if above.name == "snapshots")
    return any(target.parent == Path(os.path.realpath(repository), "blobs") for repository in repositories)


def _is_blob(target: Path) -> bool:
    return target.parent.name == "blobs" and target.parents[1].name.startswith("models--")


def _shards(file: Path) -> list[str]:
    """The files that an index of weights names; none where it cannot be read, which is told by what opens it."""
    if not file.name.endswith(".index.json"):
        return []
    try:
        return [str(name) for name in json.loads(file.read_bytes())["weight_map"].values()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def refuse_adapter(path: str) -> None:
    """An adapter beside a model names other weights to fetch, and may bring its own in a pickle; with peft installed
    transformers would open both.

    Raises:
        ModelError: there is one.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(path) is not None:
        raise ModelError(
            f"Model '{path}' holds an adapter (adapter_config.json); wanted the whole model in safetensors. Merge the "
            "adapter into its model (merge_and_unload of peft), and save that with save_pretrained."
        )


def refuse_code(path: str, *, may_be_quantized: bool = False) -> None:
    """What a config.json can ask for beside `auto_map`, which is never followed: attention or experts out of a
    repository of kernels, which are code, and forms of weights that bring some.

    Args:
        path: folder or hub name.
        may_be_quantized: whether weights may be quantized; what opens them is a package that the user has installed.

    Raises:
        ModelError: it asks for one of them.
    """
    from transformers import PreTrainedConfig

    try:
        config, _ = PreTrainedConfig.get_config_dict(path)
    except OSError:  # told by what opens it
        return
    asked = next(_asked_for(config, may_be_quantized), None)
    if asked is not None:
        raise ModelError(
            f"Model '{path}' asks in config.json for {asked}, which needs code that is not here; wanted plain weights "
            "and the model's own attention. Take the entry out, or save the model without quantization."
        )


def _asked_for(config: Any, may_be_quantized: bool) -> Iterator[str]:
    for key, value in config.items() if isinstance(config, dict) else ():
        quantized = key == "quantization_config" and value and not may_be_quantized
        if quantized or ("_implementation" in key and "/" in str(value)):
            yield f"{key} {str(value)[:80]!r}"
        yield from _asked_for(value, may_be_quantized)
