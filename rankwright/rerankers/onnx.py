"""An exported cross-encoder in ONNX Runtime: tokenizers, onnxruntime and numpy, no PyTorch.

Pairs are scored in groups of one length, so nothing is padded, and every number of a pair is computed from that pair
alone: no passage moves another's score, in int8 neither (its scales belong to one token's row). Threads take whole
groups; inside a group one thread computes, which needs no barrier after every operator and spins for none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwright.batching import says_out_of_memory, share_of
from rankwright.errors import MissingDependencyError, ModelError, OutOfMemoryError
from rankwright.rerankers.onnx_folder import (
    AGAIN,
    INPUTS,
    TOKENIZER,
    Manifest,
    checked_file,
    checked_graph,
    read_manifest,
)
from rankwright.rerankers.tokens import Pair, TokenScorer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENS_AT_ONCE = 512
"""Tokens of one call of ONNX Runtime. More leave the processor's cache: measured, 2048 are a fifth slower."""


class OnnxReranker(TokenScorer):
    """A Scorer over a folder of `rankwright export`.

    Args:
        session: an onnxruntime.InferenceSession.
        tokenizer: of the tokenizers library.
        manifest: what was exported.
        name: how it appears in tables.
        form: "fp32" or "int8".
        max_length: tokens of a pair; by default the manifest's.
        threads: groups that are computed side by side.
    """

    def __init__(
        self,
        session: Any,
        tokenizer: Tokenizer,
        manifest: Manifest,
        *,
        name: str,
        form: str = "fp32",
        max_length: int | None = None,
        threads: int | None = None,
    ) -> None:
        length = min(max_length or manifest.max_length, manifest.max_length)
        super().__init__(tokenizer, manifest.template, length, manifest.truncation_side)
        self.manifest = manifest
        self.form = form
        self.temperature = manifest.temperature
        self.threshold = manifest.threshold
        self.threads = threads or usable_threads()
        self._name = name
        self._session = session
        self._inputs = [node.name for node in session.get_inputs()]

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        form: str = "fp32",
        max_length: int | None = None,
        threads: int | None = None,
        name: str | None = None,
    ) -> OnnxReranker:
        """Opens an export; every file is compared with its hash, and nothing in it is run but the graph.

        Raises:
            MissingDependencyError: onnxruntime or tokenizers is not installed.
            ConfigurationError: the folder has no such form.
            ModelError: a file is missing, damaged, or not what an export holds.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        graph = checked_graph(folder, form, manifest)
        tokenizer = _tokenizer(checked_file(folder, TOKENIZER, manifest))
        session = _session(graph)
        return cls(
            session,
            tokenizer,
            manifest,
            name=name or str(folder),
            form=form,
            max_length=max_length,
            threads=threads,
        )

    @property
    def name(self) -> str:
        """How it was asked for, and how it is computed."""
        return f"{self._name}|{'onnx' if self.form == 'fp32' else 'onnx-int8'}"

    def score_tokens(self, pairs: Sequence[Pair]) -> list[float]:
        """Raw logits in order."""
        lengths = [len(pair.ids_T) for pair in pairs]
        groups = even_batches(lengths, share_of(sum(lengths), TOKENS_AT_ONCE, self.threads))
        scores = [0.0] * len(pairs)

        def compute(group: Sequence[int]) -> None:
            found = self._run([pairs[row] for row in group])
            for row, score in zip(group, found, strict=True):
                scores[row] = score

        if self.threads == 1 or len(groups) < 2:
            for group in groups:
                compute(group)
        else:
            with ThreadPoolExecutor(min(self.threads, len(groups)), "rankwright-onnx") as pool:
                list(pool.map(compute, groups))
        return scores

    def _run(self, pairs: Sequence[Pair]) -> list[float]:
        """Raw logits of pairs of one length."""
        ids_PT = np.stack([pair.ids_T for pair in pairs]).astype(np.int64)
        types_PT = np.stack([pair.types_T for pair in pairs]).astype(np.int64)
        inputs = {"input_ids": ids_PT, "attention_mask": np.ones_like(ids_PT), "token_type_ids": types_PT}
        batch = {name: inputs[name] for name in self._inputs}
        try:
            (logits,) = self._session.run(None, batch)
        except Exception as error:  # onnxruntime's errors have no class of their own that could be named without it
            if says_out_of_memory(error):
                raise OutOfMemoryError(
                    f"Memory ran out in model '{self.name}' ({_first_line(error)}); wanted room for {len(pairs)} pairs "
                    f"of {ids_PT.shape[1]} tokens. Free memory, or shorten the passages."
                ) from error
            raise ModelError(
                f"Model '{self.name}' cannot be computed ({_first_line(error)}); wanted the graph of a cross-encoder. "
                f"{AGAIN}"
            ) from error
        return [float(score) for score in logits[:, 0]]


def even_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Positions of items in groups of one length, the longest first, of at most `max_tokens` tokens or one item.

    >>> even_batches([3, 9, 3, 3], 6)
    [[1], [0, 2], [3]]
    """
    of_length: dict[int, list[int]] = {}
    for position, length in enumerate(lengths):
        of_length.setdefault(length, []).append(position)
    groups: list[list[int]] = []
    for length, positions in sorted(of_length.items(), reverse=True):
        size = max(1, max_tokens // max(length, 1))
        groups += [positions[at : at + size] for at in range(0, len(positions), size)]
    return groups


def usable_threads() -> int:
    """OMP_NUM_THREADS where it is set, else the processors that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if asked.isdecimal() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tokenizer(path: Path) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise _missing("tokenizers") from error
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(
            f"Tokenizer {path} is damaged ({_first_line(error)}); wanted tokenizer.json. {AGAIN}"
        ) from error


def _session(graph: Path) -> Any:
    """The graph, ready to compute; one thread, because threads take whole groups.

    Raises:
        ModelError: it is damaged, or not the graph of a cross-encoder.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing("onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is wrong is said by the error
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # see _run
        raise ModelError(
            f"Graph {graph} cannot be opened ({_first_line(error)}); wanted an ONNX file. {AGAIN}"
        ) from error
    inputs, outputs = [node.name for node in session.get_inputs()], session.get_outputs()
    if "input_ids" not in inputs or not set(inputs) <= set(INPUTS):
        raise ModelError(
            f"Graph {graph} has the inputs {', '.join(inputs)}; wanted some of {', '.join(INPUTS)}. {AGAIN}"
        )
    shape = outputs[0].shape if len(outputs) == 1 else None
    if shape is None or len(shape) != 2 or shape[1] != 1:
        found = ", ".join(f"{node.name} {node.shape}" for node in outputs)
        raise ModelError(f"Graph {graph} has the outputs {found}; wanted one with one score a pair. {AGAIN}")
    return session


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(f'Exported models need {package}; run pip install "rankwright[onnx]".')


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]
