"""Rerankers, and the one door to them: `load(path)`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rankwright.errors import ConfigurationError
from rankwright.llms.endpoint import check_model_place
from rankwright.rerankers.onnx_folder import is_export

if TYPE_CHECKING:
    from rankwright.rerankers.causal import Kind
    from rankwright.rerankers.ranking import Scorer

REFERENCE = "reference"
BACKENDS = ("torch", "onnx", "onnx-int8")


def load(
    path: str | Path,
    backend: str = "torch",
    *,
    device: str = "cpu",
    max_length: int | None = None,
    kind: Kind | None = None,
) -> Scorer:
    """Opens a reranker: a folder, a hub name, or `reference` (the embedded one).

    Args:
        path: folder of a sequence-classification model with one label or of a scoring language model that rankwright
            saved, its hub name, or "reference".
        backend: "torch" (fp32), "onnx" (fp32 in ONNX Runtime) or "onnx-int8". A folder of `rankwright export` opens in
            ONNX Runtime in any case, without PyTorch, and int8 is what "onnx-int8" asks for. A folder of PyTorch is
            exported on the way, once, into the user's cache.
        device: a torch device; the default is the CPU, where scores are reproducible.
        max_length: tokens of query and document together; by default what the model's tokenizer says.
        kind: "yes-no", "integer" or "single-token": any causal language model, scored that way with a prompt of ours.
            Published ones were trained on their own prompts (`CausalReranker.from_pretrained` takes them); untested
            with any of them.

    Raises:
        ResourceNotFoundError: nothing is found under that name.
        ModelError: what is found is neither a cross-encoder with one label nor a scoring language model.
        ConfigurationError: a label of the kind is not one token of the model.
    """
    if backend not in BACKENDS:
        raise ConfigurationError(f"Backend is '{backend}'; wanted one of {', '.join(BACKENDS)}.")
    if backend != "torch" or is_export(path):
        return _exported(str(path), backend, device, max_length, kind)
    from rankwright.rerankers.cross_encoder import CrossEncoderReranker, load_reference

    if str(path) == REFERENCE:
        return load_reference(device=device, max_length=max_length)
    check_model_place(str(path))
    if kind is not None or _is_causal(str(path)):
        from rankwright.rerankers.causal import CausalReranker

        return CausalReranker.from_pretrained(str(path), kind=kind, device=device, max_length=max_length)
    return CrossEncoderReranker.from_pretrained(str(path), device=device, max_length=max_length)


def _exported(path: str, backend: str, device: str, max_length: int | None, kind: str | None) -> Scorer:
    """An export, or the one that is made on the way, in ONNX Runtime."""
    from rankwright.rerankers.onnx import OnnxReranker

    if device != "cpu" or kind is not None:
        found = f"device '{device}'" if device != "cpu" else f"kind '{kind}'"
        raise ConfigurationError(
            f"Model '{path}' was asked for with {found} and ONNX Runtime; wanted the CPU and a cross-encoder. Leave it "
            "out, or use PyTorch (backend 'torch', a folder of PyTorch)."
        )
    form = "int8" if backend == "onnx-int8" else "fp32"
    if is_export(path):
        return OnnxReranker.from_folder(path, form=form, max_length=max_length)
    from rankwright.rerankers.exporting import cached_export

    return OnnxReranker.from_folder(cached_export(path, form, max_length), form=form, max_length=max_length, name=path)


def _is_causal(path: str) -> bool:
    """Whether a config.json says that rankwright saved a scoring language model; what cannot be read is not one."""
    from transformers import PreTrainedConfig

    try:
        config, _ = PreTrainedConfig.get_config_dict(path)
    except (OSError, ValueError):
        return False
    own = config.get("rankwright")
    return isinstance(own, dict) and own.get("kind") == "causal"


__all__ = ["BACKENDS", "REFERENCE", "load"]
