"""Whether a difference between two systems on the same questions is more than chance.

All functions take the per-question differences `differences_Q` (system a minus system b), because pairing removes the
spread between easy and hard questions. They are valid where questions are independent of each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankwright.errors import ConfigurationError

_CELLS_AT_ONCE = 2_000_000
"""Resampled cells held in memory at one time: 16 MB of float64."""
_ROUNDING = 1e-12
"""Means this close are equal: sums of the same numbers in another order differ in the last bits."""


def paired_permutation_test(differences_Q: ArrayLike, *, seed: int = 0, permutations: int = 10_000) -> float:
    """Two-sided p-value of the mean difference under random sign flips (Fisher's randomisation test).

    If both systems were alike, each question's difference would be as likely with the other sign. p is the share of
    sign patterns whose mean is at least as far from 0 as the one seen. Where all patterns of the non-zero differences
    are at most `permutations`, each is tried once and p is exact; else random patterns are drawn and p = (1 + hits) /
    (1 + permutations), which is never 0. Smucker, Allan and Carterette, "A comparison of statistical significance tests
    for information retrieval evaluation", 2007, https://doi.org/10.1145/1321440.1321528.
    """
    differences = _checked(differences_Q, "paired_permutation_test", permutations)
    # A difference of 0 is the same with either sign, so it changes neither the sum nor the share.
    moving = differences[differences != 0.0]
    seen = abs(moving.sum()) - _ROUNDING * max(1.0, float(np.abs(moving).sum()))
    if 2**moving.size <= permutations:
        patterns = (np.arange(2**moving.size)[:, None] >> np.arange(moving.size)) & 1
        return float(np.mean(np.abs(_signed_sums(patterns, moving)) >= seen))
    random = np.random.default_rng(seed)
    hits = 0
    for rows in _chunks(permutations, moving.size):
        packed = np.frombuffer(random.bytes(rows * ((moving.size + 7) // 8)), dtype=np.uint8).reshape(rows, -1)
        patterns = np.unpackbits(packed, axis=1, count=moving.size)
        hits += int(np.count_nonzero(np.abs(_signed_sums(patterns, moving)) >= seen))
    return (1 + hits) / (1 + permutations)


def bootstrap_interval(
    values_Q: ArrayLike, *, seed: int = 0, resamples: int = 1_000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean over questions drawn with replacement.

    For a comparison pass the per-question differences; both systems are then resampled together. Efron and Tibshirani,
    "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    values = _checked(values_Q, "bootstrap_interval", resamples)
    if not 0.0 < confidence < 1.0:
        raise ConfigurationError(f"Confidence of bootstrap_interval is {confidence}; give a fraction such as 0.95.")
    random = np.random.default_rng(seed)
    means = np.concatenate(
        [
            values[random.integers(0, values.size, (rows, values.size))].mean(axis=1)
            for rows in _chunks(resamples, values.size)
        ]
    )
    low, high = np.quantile(means, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of one family of tests, corrected so that 0.05 bounds the chance of any false finding; order kept.

    The i-th smallest of m is multiplied by m - i (i from 0), never falls below the one before it and never exceeds 1.
    Holm, "A simple sequentially rejective multiple test procedure", 1979, https://www.jstor.org/stable/4615733.
    """
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def _signed_sums(patterns: NDArray[np.integer], moving: NDArray[np.float64]) -> NDArray[np.float64]:
    # With b in {0, 1} the sign is 2b - 1, so the signed sum is 2 (b . d) - sum(d).
    return 2.0 * (patterns.astype(np.float64) @ moving) - moving.sum()


def _chunks(total: int, width: int) -> list[int]:
    size = max(1, _CELLS_AT_ONCE // max(1, width))
    return [min(size, total - start) for start in range(0, total, size)]


def _checked(values_Q: ArrayLike, caller: str, rounds: int) -> NDArray[np.float64]:
    values = np.asarray(values_Q, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ConfigurationError(f"{caller} was given an array of shape {values.shape}; give one number per question.")
    if not np.isfinite(values).all():
        raise ConfigurationError(
            f"{caller} was given {int((~np.isfinite(values)).sum())} values that are not finite; "
            "mask failed questions first."
        )
    if rounds < 1:
        raise ConfigurationError(f"{caller} was asked for {rounds} rounds; ask for at least 1.")
    return values
