"""A cross-encoder of the BERT family computed without padding: all pairs of a batch stand in one row of tokens.

Everything but attention works on single tokens, so it needs no padding: embeddings, linear layers, layer norms. Only
attention spreads the pairs out, to the longest of the batch, and batches hold pairs of like length. Queries, keys and
values come out of one multiplication; weights are laid out for oneDNN once, GELU and the residual sum are computed
inside its products; in the last layer only the first token of a pair goes on, because the score is read there.

In bf16 weights, products and the residual stream are bfloat16, while sums in products, layer norms, softmax and the
head are fp32. Every number of a pair is computed from that pair alone.

A model is taken only if its scores agree with transformers' own forward pass (`packed` compares them): all others keep
that pass.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import accumulate
from threading import Barrier
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from rankwright.batching import row_batches, share_of
from rankwright.rerankers.cross_encoder import CrossEncoderReranker
from rankwright.rerankers.scoring import offset_table
from rankwright.rerankers.tokens import Pair, TokenScorer
from rankwright.types import Document, Query, RerankRequest

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
"""Model types whose encoders are built of the same parts under the same names."""
TOKENS_AT_ONCE = 1024
"""Tokens of one batch: activations of more leave the processor's cache, fewer leave its threads idle."""
WIDTH = 16
"""Attention is padded to a multiple of it: the softmax of rows of other widths takes three times as long in bf16."""
HIDDEN = -30000.0
"""Stands where padding would be attended to; in bf16 too its exponential is zero beside any score."""
AGREEMENT = 1e-4
"""How far fp32 scores may be from transformers' own, as a share of their size: what another order of sums makes."""

_SENTENCE = "Rain falls on the hills and the river carries it to the sea, where the sun takes it up again. "
PROBES = tuple((_SENTENCE * 6)[:letters] for letters in (15, 47, 0, 190, 47, 4, 560, 100))
"""Passages of different lengths that scores are compared on."""


class Linear:
    """A linear layer in one precision, laid out for oneDNN where this processor has it."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, *, prepack: bool) -> None:
        self.weight = weight.detach().to(dtype).contiguous()
        self.bias = bias.detach().to(dtype)
        self.prepacked = prepack and self.weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        if self.prepacked:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, TOKENS_AT_ONCE)

    def __call__(self, rows_TH: Tensor) -> Tensor:
        """rows_TH times the weights, plus the bias."""
        if self.prepacked:
            return torch.ops.mkldnn._linear_pointwise(rows_TH, self.weight, self.bias, "none", [], "")
        return functional.linear(rows_TH, self.weight, self.bias)

    def gelu(self, rows_TH: Tensor) -> Tensor:
        """The same, and GELU of it."""
        if self.prepacked:
            return torch.ops.mkldnn._linear_pointwise(rows_TH, self.weight, self.bias, "gelu", [], "none")
        return functional.gelu(self(rows_TH))

    def plus(self, rows_TH: Tensor, residual_TH: Tensor) -> Tensor:
        """The same plus what flows past it."""
        if self.prepacked:
            return torch.ops.mkldnn._linear_pointwise.binary(rows_TH, residual_TH, self.weight, self.bias, "add")
        return self(rows_TH).add_(residual_TH)


@dataclass(frozen=True)
class Norm:
    """Layer norm; sums are fp32 in either precision."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, rows_TH: Tensor) -> Tensor:
        return functional.layer_norm(rows_TH, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True)
class Block:
    """One layer of the encoder."""

    queries: Linear | None
    """Only in the last layer, where just the first token of each pair asks."""
    states: Linear
    """Queries, keys and values in one; keys and values in the last layer."""
    mix: Linear
    mixed: Norm
    up: Linear
    down: Linear
    done: Norm


class Spread:
    """How the pairs of one batch stand in its row of tokens, and where attention puts them.

    Args:
        lengths: tokens of each pair, in the order of the row.
        dtype: of the mask.
        device: of the tensors.
    """

    def __init__(self, lengths: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        lengths_P = torch.tensor(lengths, device=device)
        self.pairs = len(lengths)
        self.width = -(-max(lengths) // WIDTH) * WIDTH
        self.starts_P = torch.tensor([0, *accumulate(lengths[:-1])], device=device)
        self.places_T = torch.arange(sum(lengths), device=device) - self.starts_P.repeat_interleave(lengths_P)
        columns = torch.arange(self.width, device=device)
        filled_PW = columns < lengths_P[:, None]
        self.full = min(lengths) == self.width
        """No pair is shorter than the width: rows need no moving."""
        self._wide = torch.where(filled_PW, self.starts_P[:, None] + columns, 0).flatten()
        self._tight = filled_PW.flatten().nonzero()[:, 0]
        self._mask_P11W = torch.where(filled_PW, 0.0, HIDDEN).to(dtype)[:, None, None, :]

    def wide(self, rows: Tensor) -> Tensor:
        """Rows of tokens -> `width` rows for each pair."""
        return rows if self.full else rows.index_select(0, self._wide)

    def tight(self, rows: Tensor) -> Tensor:
        """And back."""
        return rows if self.full else rows.index_select(0, self._tight)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of (pairs x heads, asking tokens or width, size of a head); queries are scaled already."""
        scores = torch.bmm(queries, keys.transpose(1, 2))
        if not self.full:
            scores.view(self.pairs, -1, scores.shape[1], self.width).add_(self._mask_P11W)
        return torch.bmm(torch.softmax(scores, -1), values)


class PackedEncoder:
    """The forward pass over one row of tokens.

    Args:
        model: a sequence-classification model of one of FAMILIES, in fp32.
        precision: "fp32" or "bf16"; embeddings and head stay fp32.
        prepack: whether weights are laid out for oneDNN; without it fp32 weights are the model's own, not copies.
    """

    def __init__(self, model: Any, precision: Precision, *, prepack: bool = True) -> None:
        base = model.base_model
        self.heads = int(model.config.num_attention_heads)
        self.dtype = DTYPES[precision]
        self.device = next(model.parameters()).device
        self._embeddings = base.embeddings
        self._project = getattr(base, "embeddings_project", None)
        self._pooler = getattr(base, "pooler", None)
        self._classifier = model.classifier
        table = offset_table(model)
        self._first_position = 0 if table is None else table.padding_idx + 1
        layers = list(base.encoder.layer)
        self._blocks = [self._block(layer, layer is layers[-1], prepack) for layer in layers]

    def _block(self, layer: Any, last: bool, prepack: bool) -> Block:
        attention, mix, down = layer.attention.self, layer.attention.output, layer.output

        def linear(weight: Tensor, bias: Tensor) -> Linear:
            return Linear(weight, bias, self.dtype, prepack=prepack)

        def norm(source: Any) -> Norm:
            return Norm(source.weight.detach().to(self.dtype), source.bias.detach().to(self.dtype), source.eps)

        parts = (attention.query, attention.key, attention.value)
        scale = (attention.query.weight.shape[0] // self.heads) ** -0.5  # of attention scores, paid once here
        weights = [part.weight * (scale if part is attention.query else 1) for part in parts]
        biases = [part.bias * (scale if part is attention.query else 1) for part in parts]
        return Block(
            queries=linear(weights[0], biases[0]) if last else None,
            states=linear(torch.cat(weights[last:]), torch.cat(biases[last:])),
            mix=linear(mix.dense.weight, mix.dense.bias),
            mixed=norm(mix.LayerNorm),
            up=linear(layer.intermediate.dense.weight, layer.intermediate.dense.bias),
            down=linear(down.dense.weight, down.dense.bias),
            done=norm(down.LayerNorm),
        )

    @torch.inference_mode()
    def __call__(self, ids: Sequence[np.ndarray], types: Sequence[np.ndarray] | None) -> list[float]:
        """One logit a pair, from its token ids and segments (None: all of one)."""
        spread = Spread([len(row) for row in ids], self.dtype, self.device)
        rows = self._embedded(ids, types, spread)
        for block in self._blocks:
            rows = self._through(block, rows, spread)
        first_P1H = rows.float()[:, None]
        pooled = first_P1H if self._pooler is None else self._pooler(first_P1H)
        return self._classifier(pooled).float().flatten().tolist()

    def _embedded(self, ids: Sequence[np.ndarray], types: Sequence[np.ndarray] | None, spread: Spread) -> Tensor:
        row_T = torch.from_numpy(np.concatenate(ids)).to(self.device)
        of_T = torch.zeros_like(row_T) if types is None else torch.from_numpy(np.concatenate(types)).to(self.device)
        places_T = spread.places_T + self._first_position
        rows = self._embeddings(input_ids=row_T[None], token_type_ids=of_T[None], position_ids=places_T[None])
        return (rows if self._project is None else self._project(rows))[0].to(self.dtype)

    def _through(self, block: Block, rows: Tensor, spread: Spread) -> Tensor:
        states = self._by_head(spread.wide(block.states(rows)), spread)
        if block.queries is None:
            queries, keys, values = states
            mixed = spread.attend(queries, keys, values)
            mixed = mixed.view(spread.pairs, self.heads, spread.width, -1).transpose(1, 2)
            mixed = spread.tight(mixed.reshape(spread.pairs * spread.width, -1))
        else:
            keys, values = states
            rows = rows.index_select(0, spread.starts_P)
            queries = block.queries(rows).view(spread.pairs * self.heads, 1, -1)
            mixed = spread.attend(queries, keys, values).view(spread.pairs, -1)
        rows = block.mixed(block.mix.plus(mixed, rows))
        return block.done(block.down.plus(block.up.gelu(rows), rows))

    def _by_head(self, states: Tensor, spread: Spread) -> Tensor:
        """(parts, pairs x heads, width, size of a head) out of rows that hold all parts of a token side by side."""
        size = self._blocks[0].mixed.weight.shape[0] // self.heads
        split = states.view(spread.pairs, spread.width, -1, self.heads, size).permute(2, 0, 3, 1, 4)
        return split.reshape(-1, spread.pairs * self.heads, spread.width, size)


class Crew:
    """Threads that compute whole batches side by side, each with one thread of PyTorch's: nobody waits for the others
    after every operator, as they do who share one batch.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._opened_in = os.getpid()
        self._begin()

    @property
    def is_forked(self) -> bool:
        """Whether this process was forked from the one that opened the model. PyTorch hangs there where it computes
        with several threads of its own; with this crew it does not."""
        return self._opened_in != os.getpid()

    def _begin(self) -> None:
        self._process, self._pool = os.getpid(), ThreadPoolExecutor(self.size, "rankwright-packed", _compute_alone)
        begun = Barrier(self.size)
        list(self._pool.map(lambda _: begun.wait(), range(self.size)))
        torch.set_num_threads(self.size)  # a part of what each has set is the whole process's

    def each(self, compute: Callable[[Sequence[int]], None], groups: Sequence[Sequence[int]]) -> None:
        """Computes all groups; the first error is raised when all have ended."""
        if self._process != os.getpid():  # a forked process has none of the threads
            self._begin()
        done = [self._pool.submit(compute, group) for group in groups]
        wait(done)
        for one in done:
            one.result()


def _compute_alone() -> None:
    """Gives this thread one thread of PyTorch's. The first question after them would set them to the process's number,
    so it is asked before."""
    torch.get_num_threads()
    torch.set_num_threads(1)


class PackedReranker(TokenScorer):
    """A Scorer over a PackedEncoder; `packed` makes one where a model allows it.

    Args:
        encoder: computes the logits.
        source: the cross-encoder whose tokenizer, template and length are taken.
        precision: of the encoder, for the name.
    """

    def __init__(self, encoder: PackedEncoder, source: CrossEncoderReranker, precision: Precision) -> None:
        # A copy: the source sets how its own cuts from call to call.
        tokenizer = Tokenizer.from_str(source.tokenizer.backend_tokenizer.to_str())
        super().__init__(tokenizer, source.template, source.max_length, source.tokenizer.truncation_side)
        self.max_tokens = TOKENS_AT_ONCE
        self._encoder = encoder
        self._name = f"{source.name}|packed-{precision}"
        self._typed = "token_type_ids" in source.tokenizer.model_input_names
        threads = torch.get_num_threads()
        self._crew = Crew(threads) if threads > 1 and encoder.device.type == "cpu" else None

    @property
    def name(self) -> str:
        """How it was asked for, and how it is computed."""
        return self._name

    def score_tokens(self, pairs: Sequence[Pair]) -> list[float]:
        """Logits in order; with several threads whole batches are computed side by side."""
        scores = [0.0] * len(pairs)

        def compute(group: Sequence[int]) -> None:
            types = [pairs[row].types_T for row in group] if self._typed else None
            found = self._encoder([pairs[row].ids_T for row in group], types)
            for row, score in zip(group, found, strict=True):
                scores[row] = score

        lengths = [len(pair.ids_T) for pair in pairs]
        threads = min(self._crew.size, torch.get_num_threads()) if self._crew else 1
        groups = list(row_batches(lengths, share_of(sum(lengths), self.max_tokens, threads)))
        if self._crew is None or threads == 1 or (len(groups) == 1 and not self._crew.is_forked):
            for group in groups:
                compute(group)
        else:
            self._crew.each(compute, groups)
        return scores


def packed(source: CrossEncoderReranker, precision: Precision) -> PackedReranker | None:
    """The source computed without padding; None where its model is of another build or its scores come out different.

    Both passes are compared in fp32 on PROBES; in the precision asked for each score has to be a number.
    """
    model = source.model
    if not _is_of_the_family(source):
        return None
    requests = [RerankRequest(Query("probe", PROBES[1]), tuple(Document(str(i), p) for i, p in enumerate(PROBES)))]
    with source.uncounted():
        wanted = source.score_batch(requests)[0].scores
    try:
        plain = PackedReranker(PackedEncoder(model, "fp32", prepack=False), source, "fp32")
        if not _difference(plain, requests, wanted) <= AGREEMENT * max(1.0, *map(abs, wanted)):  # NaN is not
            return None
        reranker = PackedReranker(PackedEncoder(model, precision), source, precision)
        if not np.isfinite(_difference(reranker, requests, wanted)):
            return None
    except (AttributeError, RuntimeError, TypeError, ValueError):  # built of other parts than its family's name says
        return None
    return reranker


def _difference(reranker: PackedReranker, requests: Sequence[RerankRequest], wanted: Sequence[float]) -> float:
    found = reranker.score_batch(requests)[0].scores
    return float(np.abs(np.subtract(found, wanted)).max())  # max of Python may pass over a NaN


def _is_of_the_family(source: CrossEncoderReranker) -> bool:
    config = source.model.config
    return (
        config.model_type in FAMILIES
        and getattr(config, "hidden_act", "") == "gelu"
        and not getattr(config, "is_decoder", False)
        and source.tokenizer.is_fast
    )
