"""Differences between two rows over the same questions. Questions about one passage or article are no independent
witnesses: intervals and tests resample whole groups of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from benchmarks.embedded.sets import load_sets
from benchmarks.embedded.split import WANTED, components
from rankwright.metrics.significance import bootstrap_interval, paired_permutation_test


@dataclass(frozen=True)
class Difference:
    """One row minus another over the same questions and seeds."""

    mean: float
    low: float
    high: float
    """Bounds of the 95 % bootstrap interval over groups of questions."""
    p: float
    """Of the paired sign-flip permutation test over the same groups."""
    seeds: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}], {p_in_words(self.p)}"


def p_in_words(p: float) -> str:
    """With three digits; it is never 0."""
    return f"p {p:.3f}" if p >= 0.0005 else "p < 0.001"


@cache
def groups() -> dict[str, int]:
    """query_id -> its group: questions tied by a gold passage's text or title (the unit that split.json deals out)."""
    return {question.key: n for n, group in enumerate(components(load_sets(WANTED))) for question in group}


def difference(
    per: Mapping[str, float],
    base: Mapping[str, float],
    seeds: tuple[int, ...] = (),
    group_of: Mapping[str, Any] | None = None,
) -> Difference:
    """Of one row minus another.

    Args:
        per, base: query_id -> value, of the same questions.
        seeds: over which both are means.
        group_of: query_id -> name of its group; by default `groups`.
    """
    known = groups() if group_of is None else group_of
    differences = np.array([per[query_id] - base[query_id] for query_id in base])
    clusters = np.unique([str(known.get(query_id, query_id)) for query_id in base], return_inverse=True)[1]
    low, high = bootstrap_interval(differences, seed=0, resamples=10_000, clusters_Q=clusters)
    p = paired_permutation_test(differences, seed=0, permutations=100_000, clusters_Q=clusters)
    return Difference(float(differences.mean()), low, high, p, seeds)
