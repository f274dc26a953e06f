"""Whether a difference between two systems on the same questions is more than chance.

All functions take the per-question differences `differences_Q` (system a minus system b), because pairing removes the
spread between easy and hard questions. They are valid where questions are independent of each other, or, with
`clusters_Q`, where the groups of questions are: several questions about one passage gain or lose together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankwright.errors import ConfigurationError

_CELLS_AT_ONCE = 2_000_000
"""Resampled values held in memory together: 16 MB for each of the few arrays that are made of them."""
_ROUNDING = 1e-12
"""Share of the absolute values below which their sum is rounding."""


def paired_permutation_test(
    differences_Q: ArrayLike, *, seed: int = 0, permutations: int = 10_000, clusters_Q: ArrayLike | None = None
) -> float:
    """Two-sided p-value of the mean difference under random sign flips (Fisher's randomisation test).

    If both systems were alike, each question's difference would be as likely with the other sign. p is the share of
    sign patterns whose mean is at least as far from 0 as the one seen. Where all patterns of the non-zero differences
    are at most `permutations`, each is tried once and p is exact; else random patterns are drawn and p = (1 + hits) /
    (1 + permutations), which is never 0. Smucker, Allan and Carterette, "A comparison of statistical significance tests
    for information retrieval evaluation", 2007, https://doi.org/10.1145/1321440.1321528.

    Args:
        differences_Q: one number per question.
        seed: of the random patterns.
        permutations: how many patterns.
        clusters_Q: group of each question, of any kind; all of a group change their sign together.
    """
    from scipy import stats  # takes a second; whoever compares nothing does without

    differences = _checked(differences_Q, "paired_permutation_test", permutations)
    if clusters_Q is not None:
        differences, _ = _by_cluster(differences, clusters_Q, "paired_permutation_test")
    # A difference of 0 is the same with either sign, so it changes neither the sum nor the share.
    moving = differences[differences != 0.0]
    if moving.size < 2:
        return 1.0
    total = np.abs(moving).sum()

    def distance(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        # Sums of the same numbers in another order differ in the last bits.
        return np.round(np.abs(values.sum(axis=axis)) / total, 12)

    if 2**moving.size <= permutations:
        test = stats.permutation_test((moving,), distance, permutation_type="samples", alternative="greater")
        return float(test.pvalue)
    random = np.random.default_rng(seed)

    def flipped(size: tuple[int, ...]) -> NDArray[np.float64]:
        return np.where(random.random(size) < 0.5, moving, -moving)

    test = stats.monte_carlo_test(
        moving, flipped, distance, alternative="greater", n_resamples=permutations, batch=_at_once(moving.size)
    )
    return float(test.pvalue)


def bootstrap_interval(
    values_Q: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 1_000,
    confidence: float = 0.95,
    clusters_Q: ArrayLike | None = None,
) -> tuple[float, float]:
    """Percentile interval of the mean over questions drawn with replacement.

    For a comparison pass the per-question differences; both systems are then resampled together. Efron and Tibshirani,
    "An Introduction to the Bootstrap", 1993, chapter 13; with clusters Davison and Hinkley, "Bootstrap Methods and
    their Application", 1997, section 3.8.

    Args:
        values_Q: one number per question.
        seed: of the draws.
        resamples: how many.
        confidence: share of resampled means inside the interval.
        clusters_Q: group of each question, of any kind; whole groups are drawn.
    """
    from scipy import stats

    values = _checked(values_Q, "bootstrap_interval", resamples)
    if not 0.0 < confidence < 1.0:
        raise ConfigurationError(f"Confidence of bootstrap_interval is {confidence}; give a fraction such as 0.95.")
    grouped = None if clusters_Q is None else _by_cluster(values, clusters_Q, "bootstrap_interval")
    data = grouped or (values,)
    if data[0].size == 1:
        return float(values.mean()), float(values.mean())
    interval = stats.bootstrap(
        data,
        _mean_of_clusters if grouped else np.mean,
        paired=grouped is not None,
        vectorized=True,
        n_resamples=resamples,
        batch=_at_once(data[0].size),
        confidence_level=confidence,
        method="percentile",
        rng=seed,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _mean_of_clusters(sums: NDArray[np.float64], sizes: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return sums.sum(axis=axis) / sizes.sum(axis=axis)


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


def _by_cluster(
    values: NDArray[np.float64], clusters_Q: ArrayLike, caller: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the values of each group; where they cancel out to rounding, as 0.1 + 0.2 - 0.3 does, the sum
    is 0."""
    clusters = np.asarray(clusters_Q)
    if clusters.shape != values.shape:
        raise ConfigurationError(
            f"{caller} was given clusters of shape {clusters.shape} for {values.size} questions; give one for each."
        )
    numbers = np.unique(clusters, return_inverse=True)[1]
    sums, sizes, absolute = (np.bincount(numbers, weights) for weights in (values, None, np.abs(values)))
    return np.where(np.abs(sums) > _ROUNDING * absolute, sums, 0.0), sizes.astype(np.float64)


def _at_once(width: int) -> int:
    """Resamples of so many values that are held in memory together."""
    return max(1, _CELLS_AT_ONCE // width)


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
