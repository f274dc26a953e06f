"""What a model's folder or hub repository may not bring: code, and weights in a pickle; and a hub that is not there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from rankwright.errors import ModelError


@contextmanager
def fetched(path: str) -> Iterator[None]:
    """Around whatever opens a folder or hub name. Where the hub's host has no address the block runs in the hub's
    offline mode: what was fetched before opens, and any other name fails at once, not after a minute of retries for
    each of its files. A proxy finds the address itself, so with one nothing is asked."""
    from huggingface_hub import constants

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
