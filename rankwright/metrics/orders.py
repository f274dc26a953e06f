"""Measures of one order of the few documents of a prompt, out of their gains: for rewards, which price thousands of
orders and have no run or qrels to give to an engine.

Everything here is about the documents at hand: the best order of nDCG and the denominator of recall are theirs, not
those of all labelled documents as in `metrics.ranking`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby


def dcg(gains: Sequence[float], cutoff: int) -> float:
    """Sum of gain by log2(rank + 1) over the first `cutoff` ranks, with gains as they are (Järvelin and Kekäläinen
    2002, https://doi.org/10.1145/582415.582418).

    >>> dcg([3.0, 0.0, 1.0], 10)
    3.5
    """
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains[:cutoff], start=1))


def ndcg(gains: Sequence[float], best: Sequence[float], cutoff: int) -> float:
    """DCG by that of the best order; 0 where nothing is relevant.

    Args:
        gains: in the order judged.
        best: gains of the best order.
        cutoff: ranks that count.

    >>> ndcg([0.0, 1.0], [1.0, 0.0], 10) == 1 / math.log2(3)
    True
    """
    ideal = dcg(best, cutoff)
    return dcg(gains, cutoff) / ideal if ideal else 0.0


def recall(gains: Sequence[float], cutoff: int) -> float:
    """Share of all gain that stands in the first `cutoff` ranks; with gains of 0 and 1 that is recall. 0 where nothing
    is relevant.

    >>> recall([1.0, 0.0, 1.0, 1.0], 3)
    0.6666666666666666
    """
    total = math.fsum(gains)
    return math.fsum(gains[:cutoff]) / total if total else 0.0


def averaged_over_ties(scores: Sequence[float], gains: Sequence[float]) -> list[float]:
    """Gains by descending score, where documents of one score share the mean of their gains: DCG and recall of that are
    their expectations over all orders of the ties (McSherry and Najork 2008,
    https://doi.org/10.1007/978-3-540-78646-7_38).

    >>> averaged_over_ties([1.0, 5.0, 1.0], [1.0, 2.0, 0.0])
    [2.0, 0.5, 0.5]
    """
    pairs = sorted(zip(scores, gains, strict=True), key=lambda pair: -pair[0])
    shared: list[float] = []
    for _, tied in groupby(pairs, key=lambda pair: pair[0]):
        values = [gain for _, gain in tied]
        shared += [math.fsum(values) / len(values)] * len(values)
    return shared


def average_overlap(one: Sequence[int], two: Sequence[int]) -> float:
    """Mean over depths d of the share of the first d that both orders have in common: rank-biased overlap (Webber,
    Moffat and Zobel 2010, https://doi.org/10.1145/1852102.1852106) with p = 1, cut at the end of the orders.

    Args:
        one: an order.
        two: the same elements in another; two orders of nothing agree (1).

    >>> average_overlap([0, 1], [1, 0])
    0.5
    """
    seen_one: set[int] = set()
    seen_two: set[int] = set()
    shares: list[float] = []
    for depth, (a, b) in enumerate(zip(one, two, strict=True), start=1):
        seen_one.add(a)
        seen_two.add(b)
        shares.append(len(seen_one & seen_two) / depth)
    return math.fsum(shares) / len(shares) if shares else 1.0


def cube_rank(hits: Sequence[bool], relevant: int) -> float:
    """Sum of 1 / rank^3 over the ranks that hit, by that of `relevant` hits at the top; 0 where nothing is relevant
    (the result reward of MM-R5, arXiv 2506.12364, section 3.3.2).

    >>> cube_rank([False, True], 1)
    0.125
    """
    ideal = math.fsum(1 / rank**3 for rank in range(1, relevant + 1))
    return math.fsum(1 / rank**3 for rank, hit in enumerate(hits, start=1) if hit) / ideal if ideal else 0.0


def jensen_shannon(one: Sequence[float], two: Sequence[float], base: float = 2.0) -> float:
    """Jensen-Shannon divergence of two distributions (Lin 1991, https://doi.org/10.1109/18.61115), from 0 to log(2) in
    the base: with base 2 at most 1.

    >>> jensen_shannon([1.0, 0.0], [0.0, 1.0])
    1.0
    """
    middle = [(p + q) / 2 for p, q in zip(one, two, strict=True)]
    divergence = (_kl(one, middle) + _kl(two, middle)) / 2
    return max(divergence, 0.0) / math.log(base)


def _kl(one: Sequence[float], two: Sequence[float]) -> float:
    return math.fsum(p * math.log(p / q) for p, q in zip(one, two, strict=True) if p > 0)
