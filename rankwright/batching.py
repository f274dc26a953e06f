"""Length-sorted, token-budgeted micro-batches: used by readers and rerankers.

Padding is the largest waste of a small encoder on a CPU; sorting by length removes most of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

ON_A_PROCESSOR, ON_A_GPU = 1024, 8192
OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "bad allocation")
"""How PyTorch and ONNX Runtime say that memory ran out, for which they have no class of error in common."""
WORTH_A_THREAD = 128
"""Tokens: fewer are not divided among threads."""


def tokens_at_once(device_type: str) -> int:
    """Padded tokens of one forward pass. On a processor few: activations stay in its caches, and lists of unlike
    lengths are cut where padding would fill them (docs/experiments.md); a GPU wants many.

    >>> tokens_at_once("cpu"), tokens_at_once("cuda")
    (1024, 8192)
    """
    return ON_A_PROCESSOR if device_type == "cpu" else ON_A_GPU


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an error's message says that memory ran out.

    >>> says_out_of_memory(RuntimeError("std::bad_alloc"))
    True
    """
    return any(words in str(error).lower() for words in OUT_OF_MEMORY)


def token_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Positions of items grouped so that (items in group) x (longest item) stays within `max_tokens`.

    Args:
        lengths: tokens of each item.
        max_tokens: padded tokens of one group; an item longer than that is a group of its own.

    >>> list(token_batches([3, 9, 4, 2], 12))
    [[1], [2, 0, 3]]
    """
    group: list[int] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and (len(group) + 1) * longest > max_tokens:
            yield group
            group = []
        if not group:
            longest = max(lengths[position], 1)
        group.append(position)
    if group:
        yield group


def row_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Positions of items, the longest first, grouped so that the tokens of a group sum to `max_tokens` at most: for
    passes that put a group into one row and pad nothing.

    Args:
        lengths: tokens of each item.
        max_tokens: tokens of one group; an item longer than that is a group of its own.

    >>> list(row_batches([3, 9, 4, 2], 12))
    [[1], [2, 0, 3]]
    >>> list(row_batches([3, 9, 3, 2], 12))
    [[1, 0], [2, 3]]
    """
    group: list[int] = []
    tokens = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and tokens + lengths[position] > max_tokens:
            yield group
            group, tokens = [], 0
        group.append(position)
        tokens += lengths[position]
    if group:
        yield group


def share_of(tokens: int, max_tokens: int, threads: int) -> int:
    """Tokens of a batch such that as many batches come to each thread, none longer than `max_tokens`.

    >>> share_of(1500, 1024, 2), share_of(2500, 1024, 2), share_of(100, 1024, 2), share_of(5000, 1024, 1)
    (750, 625, 1024, 1024)
    """
    if threads == 1 or tokens < threads * WORTH_A_THREAD:
        return max_tokens
    batches = -(-tokens // max_tokens)
    return -(-tokens // (-(-batches // threads) * threads))
