"""Rerankers, and the one door to them: `load(path)`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rankwright.errors import ConfigurationError

if TYPE_CHECKING:
    from rankwright.rerankers.cross_encoder import CrossEncoderReranker

REFERENCE = "reference"


def load(
    path: str | Path, backend: str = "torch", *, device: str = "cpu", max_length: int | None = None
) -> CrossEncoderReranker:
    """Opens a reranker: a folder, a hub name, or `reference` (the embedded one).

    Args:
        path: folder of a sequence-classification model with one label, its hub name, or "reference".
        backend: "torch" (fp32).
        device: a torch device; the default is the CPU, where scores are reproducible.
        max_length: tokens of query and document together; by default what the model's tokenizer says.

    Raises:
        ResourceNotFoundError: nothing is found under that name.
        ModelError: what is found is not a cross-encoder with one label.
    """
    if backend != "torch":
        raise ConfigurationError(f"Backend is '{backend}'; wanted 'torch', the only one of this version.")
    from rankwright.rerankers.cross_encoder import CrossEncoderReranker, load_reference

    if str(path) == REFERENCE:
        return load_reference(device=device, max_length=max_length)
    return CrossEncoderReranker.from_pretrained(str(path), device=device, max_length=max_length)


__all__ = ["REFERENCE", "load"]
