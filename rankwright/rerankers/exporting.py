"""A cross-encoder leaves PyTorch: its graph in ONNX, in fp32 and int8, beside tokenizer and manifest.

`torch.onnx.export` writes the graph and `rerankers/int8.py` makes the integer one from it. Both are then run on real
pairs beside the model that they came from, and a folder appears only where scores and rankings stayed within BOUNDS: it
is written under another name and renamed when whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import rankwright
from rankwright.backbone import ASSETS, sha256_file
from rankwright.data import load_examples
from rankwright.errors import (
    ConfigurationError,
    DataError,
    MissingDependencyError,
    ModelError,
    ResourceNotFoundError,
    StorageError,
)
from rankwright.metrics.labels import labels_of
from rankwright.metrics.ranking import ranking_metrics
from rankwright.rerankers.choice import cache_folder
from rankwright.rerankers.cross_encoder import REFERENCE_ADAPTER, CrossEncoderReranker, load_reference
from rankwright.rerankers.onnx import OnnxReranker
from rankwright.rerankers.onnx_folder import GRAPHS, INPUTS, TOKENIZER, Manifest, is_export, read_manifest
from rankwright.rerankers.ranking import Scorer, checked, ranked, render
from rankwright.rerankers.scoring import first_line
from rankwright.retrieval import BM25, with_candidates
from rankwright.types import Example, RerankRequest

logger = logging.getLogger(__name__)

OPSET = 23
"""The first with an operator for attention."""
DEMO_QUESTIONS = 40
DEMO_DEPTH = 10
SEEN_PAIRS = 64
"""Pairs on which the channels of activations are looked at for int8."""
NDCG = "nDCG@10"
_PROTOBUF_LIMIT = 1_900_000_000


@dataclass(frozen=True)
class Bound:
    """How far a form may be from the model that it was made from."""

    error: float
    """Largest absolute difference of a raw score, in standard deviations of the model's scores."""
    ndcg: float
    """Largest loss of nDCG@10, averaged over the questions."""


BOUNDS: Mapping[str, Bound] = {"fp32": Bound(1e-3, 1e-3), "int8": Bound(0.3, 0.01)}


@dataclass(frozen=True)
class Parity:
    """How the scores of a form compare with those of the model, on the same pairs."""

    pairs: int
    questions: int
    largest_error: float
    """Of raw scores, absolute."""
    spread: float
    """Standard deviation of the model's scores."""
    rank_correlation: float
    """Spearman's, averaged over the questions."""
    ndcg_before: float | None
    """nDCG@10 of the model; None where no question has a relevant document."""
    ndcg_after: float | None

    def beyond(self, bound: Bound) -> str:
        """What is further away than allowed; empty where nothing is."""
        allowed = bound.error * self.spread
        if not self.largest_error <= allowed:  # a NaN is beyond, too
            return f"a score that differs by {self.largest_error:.4g}, wanted at most {allowed:.4g}"
        lost = (self.ndcg_before or 0.0) - (self.ndcg_after or 0.0)
        if lost > bound.ndcg:
            return (
                f"nDCG@10 of {self.ndcg_after:.4f} instead of {self.ndcg_before:.4f}, wanted a loss of at most "
                f"{bound.ndcg}"
            )
        return ""


def export(
    reranker: CrossEncoderReranker,
    folder: Path,
    examples: Sequence[Example] | None = None,
    *,
    forms: Sequence[str] = ("fp32", "int8"),
    bounds: Mapping[str, Bound] = BOUNDS,
    tell: Callable[[str], None] = logger.info,
) -> Manifest:
    """Writes the folder that `rankwright.load` opens without PyTorch.

    Args:
        reranker: what is exported.
        folder: must not exist, or be empty.
        examples: questions with candidates and, for nDCG, labels or answers; by default bundled ones.
        forms: "fp32" and "int8"; fp32 is needed for int8 and stays out of the folder where it is not named.
        bounds: how far each form may be from the model.
        tell: is told what is being done.

    Raises:
        ConfigurationError: the folder holds something, or a form is unknown.
        DataError: the examples have no candidates.
        MissingDependencyError: a package for the export is not installed.
        ModelError: the model cannot be exported, or a form is beyond its bound; nothing is written.
        StorageError: the folder cannot be written.
    """
    _check(reranker, folder, forms)
    tokenizer, inputs = _fast_tokenizer(reranker)
    requests, relevance = _requests(demo_examples() if examples is None else examples)
    before = _scores(reranker, requests)
    with _written_aside(folder) as draft:
        (draft / "onnx").mkdir()
        fp32 = draft / GRAPHS["fp32"]
        tell(f"Exporting {reranker.name} to ONNX (opset {OPSET}).")
        _write_graph(reranker, inputs, fp32)
        if "int8" in forms:
            from rankwright.rerankers.int8 import write_int8

            tell("Making the int8 form.")
            write_int8(fp32, draft / GRAPHS["int8"], _batches(reranker, inputs, requests))
        manifest = _manifest(reranker, tokenizer, draft)
        parity: dict[str, Any] = {}
        for form in forms:
            tell(f"Comparing {form} with the model on {sum(len(r.documents) for r in requests)} pairs.")
            after = _scores(OnnxReranker.from_folder(draft, form=form), requests)
            found = compare(requests, relevance, before, after)
            parity[form] = asdict(found)
            if beyond := found.beyond(bounds[form]):
                raise ModelError(
                    f"The {form} form of {reranker.name} has {beyond}, over {found.questions} questions; nothing was "
                    f"written. {'Export fp32 alone (--form fp32).' if form == 'int8' else 'Serve it with PyTorch.'}"
                )
        if "fp32" not in forms:
            for path in draft.glob("onnx/model.onnx*"):
                path.unlink()
        manifest = replace(manifest, parity=parity, files=_digests(draft))
        manifest.write(draft)
    return manifest


def _check(reranker: Any, folder: Path, forms: Sequence[str]) -> None:
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise MissingDependencyError(
            'Export needs onnx and onnxscript; run pip install "rankwright[export]".'
        ) from error
    assert onnx
    assert onnxscript
    if not isinstance(reranker, CrossEncoderReranker):
        raise ConfigurationError(
            f"Model {getattr(reranker, 'name', reranker)} is a {type(reranker).__name__}; wanted a cross-encoder in "
            "PyTorch, the only kind that is exported."
        )
    unknown = [form for form in forms if form not in GRAPHS]
    if unknown or not forms:
        raise ConfigurationError(f"Forms are {', '.join(forms) or 'none'}; wanted some of {', '.join(GRAPHS)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"Folder {folder} holds something; wanted a new one. Name another, or remove it.")


def _fast_tokenizer(reranker: CrossEncoderReranker) -> tuple[Any, list[str]]:
    """The tokenizer of the tokenizers library, and what it gives the model."""
    core = getattr(reranker.tokenizer, "backend_tokenizer", None)
    inputs = [name for name in INPUTS if name in reranker.tokenizer("a", "b")]
    if core is None or "attention_mask" not in inputs:
        raise ModelError(
            f"Model {reranker.name} has a tokenizer that cannot be kept as tokenizer.json; wanted one of the "
            "tokenizers library. Serve it with PyTorch."
        )
    return core, inputs


# --- the folder ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _written_aside(folder: Path) -> Iterator[Path]:
    """A new folder beside the wanted one; it takes its name at the end, or is removed after an error."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise StorageError(f"Folder {folder} cannot be made ({error.strerror}); wanted a writable place.") from error
    try:
        yield draft
        draft.chmod(0o755)  # mkdtemp keeps it to its owner; a server is often another user
        draft.replace(folder)
    except OSError as error:
        raise StorageError(
            f"Folder {folder} cannot be written ({error.strerror or error}); wanted a writable place with free space. "
            "Free some, or name another place."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _manifest(reranker: CrossEncoderReranker, tokenizer: Any, draft: Path) -> Manifest:
    """Writes tokenizer, config and what the manifest says of them."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(draft / TOKENIZER))
    reranker.model.config.to_json_file(draft / "config.json", use_diff=True)
    manifest = Manifest(
        template=reranker.template,
        max_length=reranker.max_length,
        truncation_side=reranker.tokenizer.truncation_side,
        temperature=reranker.temperature,
        threshold=reranker.threshold,
        source=Path(reranker.name).name,
        version=rankwright.__version__,
        files=_digests(draft),
    )
    manifest.write(draft)
    return manifest


def _digests(draft: Path) -> dict[str, str]:
    """Name -> sha256 of all files but the manifest."""
    files = [draft / TOKENIZER, *sorted((draft / "onnx").iterdir())]
    return {path.relative_to(draft).as_posix(): sha256_file(path) for path in files}


# --- the graph ----------------------------------------------------------------------------------------------------


class _Logits(nn.Module):
    """The model as a function of tensors in a fixed order."""

    def __init__(self, model: nn.Module, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.inputs, tensors, strict=True))).logits


def _write_graph(reranker: CrossEncoderReranker, inputs: Sequence[str], path: Path) -> None:
    batch = reranker.tokenizer(["a", "a b"], ["b c", "c d e"], padding=True, return_tensors="pt")
    device = next(reranker.model.parameters()).device
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    size = sum(weight.numel() * weight.element_size() for weight in reranker.model.parameters())
    try:
        with torch.no_grad(), _quiet_export():
            torch.onnx.export(
                _Logits(reranker.model, inputs).eval(),
                tuple(batch[name].to(device) for name in inputs),
                str(path),
                input_names=list(inputs),
                output_names=["logits"],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                external_data=size > _PROTOBUF_LIMIT,
                # A tuple in a tuple: the only argument is *tensors.
                dynamic_shapes=(tuple(dynamic for _ in inputs),),
            )
    except OSError:
        raise
    except Exception as error:  # whatever in a model the exporter does not know
        raise ModelError(
            f"Model {reranker.name} cannot be exported to ONNX ({type(error).__name__}: {first_line(error)}); nothing "
            "was written. Serve it with PyTorch."
        ) from error


def _batches(
    reranker: CrossEncoderReranker, inputs: Sequence[str], requests: Sequence[RerankRequest]
) -> list[dict[str, np.ndarray]]:
    """Inputs of the graph for some of the pairs, spread over the requests, each on its own."""
    pairs = [(r.query.text, render(reranker.template, document)) for r in requests for document in r.documents]
    chosen = pairs[:: max(1, len(pairs) // SEEN_PAIRS)]
    encoded = [reranker.tokenizer(*pair, truncation=True, max_length=reranker.max_length) for pair in chosen]
    return [{name: np.array([one[name]], np.int64) for name in inputs} for one in encoded]


@contextlib.contextmanager
def _quiet_export() -> Iterator[None]:
    """Keeps back what PyTorch 2.13 says of itself: operators of torchvision that are not there, and a name of its own
    that will change. Nobody who exports could do anything about either."""
    chatter = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            yield
    finally:
        chatter.setLevel(level)


# --- parity -------------------------------------------------------------------------------------------------------


def demo_examples(questions: int = DEMO_QUESTIONS, depth: int = DEMO_DEPTH) -> list[Example]:
    """Bundled questions with BM25's candidates, for whoever names no data."""
    folder = ASSETS / "demo"
    dataset = load_examples(folder / "questions.jsonl", "jsonl", corpus=folder / "corpus.jsonl")
    return with_candidates(dataset.examples[:questions], BM25(dataset.corpus), depth)


def _requests(examples: Sequence[Example]) -> tuple[list[RerankRequest], dict[str, Mapping[str, int]]]:
    filled = [example for example in examples if example.candidates]
    if sum(len(example.candidates) for example in filled) < 2:
        raise DataError(
            "The questions for the comparison have fewer than 2 candidates; wanted pairs to score. Give others."
        )
    requests = [RerankRequest(example.query, example.candidates) for example in filled]
    return requests, {example.query.query_id: labels_of(example) for example in filled}


def _scores(scorer: Scorer, requests: Sequence[RerankRequest]) -> list[tuple[float, ...]]:
    found = zip(requests, scorer.score_batch(requests), strict=True)
    return [checked(scorer.name, request, scored).scores for request, scored in found]


def compare(
    requests: Sequence[RerankRequest],
    relevance: Mapping[str, Mapping[str, int]],
    before: Sequence[tuple[float, ...]],
    after: Sequence[tuple[float, ...]],
) -> Parity:
    """How two scorers' raw scores of the same pairs compare.

    Args:
        requests: the pairs.
        relevance: query_id -> doc_id -> grade.
        before: scores of the one, a tuple a request.
        after: scores of the other.
    """
    from scipy import stats

    correlation: Any = stats.spearmanr
    one, other = np.concatenate(before), np.concatenate(after)
    correlations = [
        float(correlation(a, b).statistic)
        for a, b in zip(before, after, strict=True)
        if len(set(a)) > 1 and len(set(b)) > 1
    ]
    return Parity(
        len(one),
        len(requests),
        float(np.abs(one - other).max()),
        float(one.std()),
        float(np.mean(correlations)) if correlations else 1.0,
        _mean_ndcg(requests, relevance, before),
        _mean_ndcg(requests, relevance, after),
    )


def _mean_ndcg(
    requests: Sequence[RerankRequest], relevance: Mapping[str, Mapping[str, int]], scores: Sequence[tuple[float, ...]]
) -> float | None:
    from rankwright.types import Scored

    rankings = [
        ranked(request, Scored(row, (0,) * len(row), (False,) * len(row)))
        for request, row in zip(requests, scores, strict=True)
    ]
    values = ranking_metrics(rankings, relevance, [NDCG])[NDCG]
    return float(np.mean(list(values.values()))) if values else None


# --- exports that load makes ----------------------------------------------------------------------------------------


def cached_export(path: str, form: str, max_length: int | None = None) -> Path:
    """The export of a model folder or of the reference in the user's cache (RANKWRIGHT_CACHE, else XDG_CACHE_HOME or
    ~/.cache, below `rankwright`), made where it is not there yet.

    Raises:
        ConfigurationError: the path is no folder.
    """
    folder = cache_folder() / "exports" / f"{_content_key(path, max_length)}-{form}"
    if is_export(folder) and read_manifest(folder).version == rankwright.__version__:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    logger.warning("Exporting %s to ONNX (%s) into %s; this is done once.", path, form, folder)
    reranker = (
        load_reference(max_length=max_length)
        if path == "reference"
        else CrossEncoderReranker.from_pretrained(path, max_length=max_length)
    )
    try:
        export(reranker, folder, forms=[form])
    except (StorageError, ConfigurationError):
        if not is_export(folder):  # another process was faster otherwise
            raise
    return folder


def _content_key(path: str, max_length: int | None) -> str:
    """A hash of everything that an export is made of."""
    if path == "reference":
        files = [REFERENCE_ADAPTER]
    elif Path(path).is_dir():
        files = [f for f in sorted(Path(path).iterdir()) if f.suffix in (".json", ".safetensors", ".txt", ".model")]
    else:
        raise ResourceNotFoundError(
            f"Model '{path}' is no folder, and only folders are exported on the way; wanted one. Run rankwright export "
            f"{path} --to DIR --for cpu, and load DIR."
        )
    record = [rankwright.__version__, max_length, *((f.name, sha256_file(f)) for f in files)]
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()[:24]
