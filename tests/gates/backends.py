"""How far a score may move in each backend where nothing of its own pair moved, and which this processor computes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import pytest
import torch

ROUNDING = 1e-5
"""Absolute, of raw scores: sums in another order."""
OF_DEVIATION = {"bf16": 0.05}
"""Backend -> the same in standard deviations of the scores, where numbers have eight bits."""
BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
NO_AVX512 = "this processor has no avx512, by which PyTorch computes bf16"
"""Stands in allowed-skips.txt."""


def tolerance(backend: str, scores: Sequence[float]) -> float:
    """How far one of these scores may move."""
    share = OF_DEVIATION.get(backend)
    return ROUNDING if share is None else share * statistics.pstdev(scores)


def skip_where_not_computed(backend: str) -> None:
    """Skips a test of bf16 on a processor that has none."""
    if backend == "bf16" and not BF16:
        pytest.skip(NO_AVX512)
