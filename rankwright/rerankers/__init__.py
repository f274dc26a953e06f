"""Rerankers, and the one door to them: `load(path)`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from rankwright.errors import ConfigurationError, MissingDependencyError, ModelError
from rankwright.llms.endpoint import check_model_place, check_name, model_place
from rankwright.llms.folders import fetched
from rankwright.rerankers.onnx_folder import is_export, read_manifest

if TYPE_CHECKING:
    from rankwright.rerankers.causal import Kind
    from rankwright.rerankers.ranking import Scorer
    from rankwright.rerankers.scoring import ScoringReranker
    from rankwright.rerankers.windows import Windows

REFERENCE = "reference"
BACKENDS = {
    "torch": "fp32 by transformers: equal to sentence-transformers",
    "packed": "fp32 without padding; PyTorch",
    "bf16": "bfloat16 without padding; PyTorch on a processor with avx512",
    "onnx": "fp32 in ONNX Runtime; no PyTorch with a folder of rankwright export",
    "onnx-int8": "8-bit integers in ONNX Runtime, a scale for every token; likewise",
}
"""What a reranker can be computed by."""
AUTO = "auto"
TRIED = ("torch", "packed", "bf16")
"""Those of which AUTO takes the fastest. An export takes half a minute to make, and is asked for by name."""
OF_EXPORTS = {"onnx": "fp32", "onnx-int8": "int8"}
"""Backend of ONNX Runtime -> the form that it computes; of these AUTO takes the fastest where an export is opened."""


@overload
def load(  # an export opens in ONNX Runtime all the same: whoever wants to train names a folder of PyTorch
    path: str | Path,
    backend: Literal["torch"] = "torch",
    *,
    device: str = "cpu",
    max_length: int | None = None,
    kind: Kind | None = None,
) -> ScoringReranker: ...


@overload
def load(
    path: str | Path,
    backend: str = "torch",
    *,
    device: str = "cpu",
    max_length: int | None = None,
    kind: Kind | None = None,
    windows: Windows | None = None,
) -> Scorer: ...


def load(
    path: str | Path,
    backend: str = "torch",
    *,
    device: str = "cpu",
    max_length: int | None = None,
    kind: Kind | None = None,
    windows: Windows | None = None,
) -> Scorer:
    """Opens a reranker: a folder, a hub name, or `reference` (the embedded one).

    Args:
        path: folder of a sequence-classification model with one label or of a scoring language model that rankwright
            saved, its hub name, or "reference"; of a run's folder the model in it.
        backend: "torch" (fp32, as transformers computes it), "packed" (fp32 without padding), "bf16" (the same in
            bfloat16) or "auto": the fastest of them whose scores agree with fp32, measured once on this machine. A
            model that cannot be packed keeps transformers' pass, in bf16 too. "onnx" and "onnx-int8" are ONNX Runtime:
            a folder of `rankwright export` opens in it in any case, without PyTorch, in fp32 unless "onnx-int8" is
            asked for, or "auto", which chooses among these two; of a model folder an export is made on the way, once,
            in the user's cache.
        device: a torch device; the default is the CPU, where scores are reproducible.
        max_length: tokens of query and document together; by default what the model's tokenizer says.
        kind: "yes-no", "integer" or "single-token": any causal language model, scored that way with a prompt of ours.
            Published ones were trained on their own prompts (`CausalReranker.from_pretrained` takes them); untested
            with any of them.
        windows: "max" or "mean": passages that are too long are read in overlapping windows, and the best or the mean
            score counts; by default they are cut, a warning is logged once, and `share_cut` says how many.

    Raises:
        ResourceNotFoundError: nothing is found under that name, or a run that has no model yet.
        ModelError: what is found is neither a cross-encoder with one label nor a scoring language model; among others a
            language model that was trained to write its ranking.
        MissingDependencyError: a package is not installed; the message says which extra brings it.
        ConfigurationError: a label of the kind is not one token of the model; an unknown backend; windows for a model
            that reads all documents in one prompt.
    """
    check_backend_name(backend)
    if str(path) != REFERENCE:
        path = model_place(str(path))
        if kind is None:
            refuse_writer(path)

    exported = is_export(path)
    if not exported:
        if str(path) != REFERENCE:
            check_model_place(str(path))  # here, and not for every backend that is tried: it reads all weights
        _check_installed(str(path))

    def opened(backend: str) -> Scorer:
        return _computed(_policy(path, device, max_length, kind), backend)

    if exported or backend.startswith("onnx"):
        scorer = _exported(str(path), backend, device, max_length, kind)
    elif backend == AUTO:
        from rankwright.rerankers.choice import fastest

        scorer = fastest(opened, list(TRIED))
    else:
        scorer = opened(backend)
    if windows is None:
        return scorer
    from rankwright.rerankers.windows import WindowedScorer

    return _same_scale(scorer, WindowedScorer(scorer, windows))


def check_named(name: str) -> None:
    """Whether `load` may find a model under a name: looks at files alone, before seconds of imports.

    Raises:
        ConfigurationError, ResourceNotFoundError, ModelError: as `rankwright.llms.endpoint.check_name`.
    """
    if name != REFERENCE and not is_export(name):
        check_name(name)


def check_backend_name(backend: str) -> None:
    """Raises ConfigurationError for a backend that `load` does not know."""
    if backend not in (*BACKENDS, AUTO):
        raise ConfigurationError(f"Backend is '{backend}'; wanted one of {', '.join(BACKENDS)}, {AUTO}.")


def refuse_writer(path: str) -> None:
    """Raises ModelError for the folder of a language model that writes its ranking, or that of its run: it has no
    scores."""
    from rankwright.prompts.ranking import PROMPT_FILE

    if (Path(model_place(path)) / PROMPT_FILE).is_file():
        raise ModelError(
            f"Model '{path}' is a language model that writes its ranking ({PROMPT_FILE} is in its folder); wanted one "
            f"that scores. It ranks by rankwright rerank --llm {path}, and eval --llm; it cannot be served, exported "
            "or trained by rrpo."
        )


def _check_installed(path: str) -> None:
    """Raises MissingDependencyError where what opens a model of PyTorch is not installed."""
    try:
        import torch
        import transformers

        assert torch
        assert transformers
    except ModuleNotFoundError as error:
        extras = "train,embedded" if path == REFERENCE else "train"
        raise MissingDependencyError(
            f"Model '{path}' needs {error.name}, which is not installed; run pip install \"rankwright[{extras}]\". "
            'A folder of rankwright export needs pip install "rankwright[onnx]" alone.',
            name=error.name,
        ) from error


def _policy(path: str | Path, device: str, max_length: int | None, kind: Kind | None) -> ScoringReranker:
    """The model in fp32, by transformers."""
    from rankwright.rerankers.cross_encoder import CrossEncoderReranker, load_reference

    if str(path) == REFERENCE:
        return load_reference(device=device, max_length=max_length)
    if kind is not None or _is_causal(str(path)):
        from rankwright.rerankers.causal import CausalReranker

        return CausalReranker.from_pretrained(str(path), kind=kind, device=device, max_length=max_length)
    return CrossEncoderReranker.from_pretrained(str(path), device=device, max_length=max_length)


def _computed(source: ScoringReranker, backend: str) -> Scorer:
    """The model in a backend of PyTorch; it may take over the source's parts."""
    if backend == "torch":
        return source
    import torch

    from rankwright.rerankers.cross_encoder import CrossEncoderReranker
    from rankwright.rerankers.packed import packed

    if backend == "bf16" and source.device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise ConfigurationError(
            "Backend is 'bf16', which PyTorch computes by avx512 only, and this processor has none; wanted 'packed', "
            "which is fp32, or 'auto'."
        )
    if isinstance(source, CrossEncoderReranker):
        scorer = packed(source, "bf16" if backend == "bf16" else "fp32")
        if scorer is not None:
            return _same_scale(source, scorer)
    if backend == "bf16":
        source.rename(f"{source.name}|bf16")
        source.to(torch.bfloat16)
    return source


def _same_scale(source: Scorer, scorer: Scorer) -> Scorer:
    """The scorer with the temperature and the threshold of what it computes."""
    scorer.temperature, scorer.threshold = source.temperature, source.threshold
    return scorer


def _exported(path: str, backend: str, device: str, max_length: int | None, kind: str | None) -> Scorer:
    """An export, or the one that is made on the way, in ONNX Runtime."""
    from rankwright.rerankers.onnx import OnnxReranker

    if device != "cpu" or kind is not None or backend in ("packed", "bf16"):
        found = f"device '{device}'" if device != "cpu" else f"kind '{kind}'" if kind else f"backend '{backend}'"
        raise ConfigurationError(
            f"Model '{path}' was asked for with {found} and ONNX Runtime; wanted the CPU and a cross-encoder in "
            "backend 'onnx' or 'onnx-int8'. Leave it out, or name a folder of PyTorch."
        )
    if not is_export(path):
        from rankwright.rerankers.exporting import cached_export

        form = OF_EXPORTS[backend]
        folder = cached_export(path, form, max_length)
        return OnnxReranker.from_folder(folder, form=form, max_length=max_length, name=path)

    def opened(backend: str) -> Scorer:
        return OnnxReranker.from_folder(path, form=OF_EXPORTS.get(backend, "fp32"), max_length=max_length)

    if backend != AUTO:
        return opened(backend)
    from rankwright.rerankers.choice import fastest

    fp32 = "fp32" in read_manifest(Path(path)).forms
    return fastest(opened, list(OF_EXPORTS) if fp32 else ["onnx-int8"])


def _is_causal(path: str) -> bool:
    """Whether a config.json says that rankwright saved a scoring language model; what cannot be read is not one."""
    from transformers import PreTrainedConfig

    try:
        with fetched(path):
            config, _ = PreTrainedConfig.get_config_dict(path)
    except (OSError, ValueError, RecursionError):
        return False
    own = config.get("rankwright") if isinstance(config, dict) else None
    return isinstance(own, dict) and own.get("kind") == "causal"


__all__ = ["AUTO", "BACKENDS", "REFERENCE", "TRIED", "load", "refuse_writer"]
