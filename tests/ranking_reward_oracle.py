"""What each ranking reward should pay, straight from the formulas of the papers: plain loops and exact fractions where
logarithms allow it, and nothing of rankwright. Documents are numbered from 1 as in a prompt; `ids` is the order that
was written, or None where it is malformed; `grades` are those of the prompt's documents, in order."""

from __future__ import annotations

import re
from fractions import Fraction
from math import exp, log, log2


def tags_anywhere(text: str, names: tuple[str, str]) -> bool:
    found = [re.search(f"<{name}>.*</{name}>", text, re.DOTALL | re.IGNORECASE) for name in names]
    return None not in found


def blocks_together(text: str, names: tuple[str, str]) -> bool:
    first, second = names
    pattern = rf"<{first}>.*?</{first}>\s*<{second}>.*?</{second}>"
    return re.search(pattern, text, re.DOTALL | re.IGNORECASE) is not None


def last_answer(text: str) -> str | None:
    pieces = re.split("<answer>", text, flags=re.IGNORECASE)
    if len(pieces) == 1:
        return None
    inside = re.split("</answer>", pieces[-1], flags=re.IGNORECASE)
    return inside[0] if len(inside) > 1 else None


def gain_sum(ids: list[int], grades: list[int], k: int) -> float:
    total = 0.0
    for rank in range(1, min(k, len(ids)) + 1):
        total += grades[ids[rank - 1] - 1] / log2(rank + 1)
    return total


def ideal_ids(grades: list[int]) -> list[int]:
    ids: list[int] = []
    for grade in sorted(set(grades), reverse=True):
        ids += [i + 1 for i, g in enumerate(grades) if g == grade]
    return ids


def rearank(
    text: str, ids: list[int] | None, grades: list[int], settled: str = "ndcg", clip: float | None = None
) -> float:
    k = 10
    start = gain_sum(list(range(1, len(grades) + 1)), grades, k)
    top = gain_sum(ideal_ids(grades), grades, k)
    if ids is None or top == 0:
        relative = 0.0
        if clip is not None and relative > clip:
            relative = clip
    else:
        found = gain_sum(ids, grades, k)
        if abs(top - start) < 1e-12:
            relative = found / top if settled == "ndcg" else found / top - 1
        else:
            # as the paper writes it, with nDCG
            relative = (found / top - start / top) / (1 - start / top)
        if clip is not None:
            relative = clip if relative > clip else -clip if relative < -clip else relative
    answer = last_answer(text)
    form = answer is not None and re.match(r"^\s*\[\s*\w+\s*\](\s*>\s*\[\s*\w+\s*\])*\s*\Z", answer) is not None
    return 0.8 * relative + (0.1 if tags_anywhere(text, ("think", "answer")) else 0) + (0.1 if form else 0)


def rank_r1(text: str, label: int | None, grades: list[int]) -> float:
    if label is None or not blocks_together(text, ("think", "answer")):
        return 0
    chosen = grades[label - 1]
    return 1 if chosen > 0 and all(chosen >= other for other in grades) else 0


def overlap(one: list[int], two: list[int]) -> Fraction:
    total = Fraction(0)
    for depth in range(1, len(one) + 1):
        common = [x for x in one[:depth] if x in two[:depth]]
        total += Fraction(len(common), depth)
    return total / len(one)


def reasonrank(text: str, ids: list[int] | None, grades: list[int], gold: list[int] | None = None) -> float:
    if not blocks_together(text, ("think", "answer")):
        return -1
    if ids is None:
        return 0
    relevant = [1 if grade > 0 else 0 for grade in grades]
    total = sum(relevant)
    ndcg = gain_sum(ids, relevant, 10) / sum(1 / log2(r + 1) for r in range(1, min(total, 10) + 1)) if total else 0
    recall = Fraction(sum(relevant[i - 1] for i in ids[:10]), total) if total else Fraction(0)
    wanted = ideal_ids(grades) if gold is None else gold
    return ndcg + 0.2 * float(recall) + 0.1 * float(overlap(ids, wanted))


def entropy(shares: list[float], base: float) -> float:
    return -sum(p * log(p) for p in shares if p > 0) / log(base)


def shares(numbers: list[float], kind: str) -> list[float]:
    if kind == "softmax":
        return [exp(x) / sum(exp(y) for y in numbers) for x in numbers]
    total = sum(numbers)
    return [float(Fraction(x) / Fraction(total)) if total else 1 / len(numbers) for x in numbers]


def grouprank(
    text: str,
    scores: list[float] | None,
    grades: list[int],
    kind: str = "sum",
    base: float = 2,
    ties: str = "mean",
) -> float:
    if not tags_anywhere(text, ("reason", "answer")):
        return -0.5
    if scores is None:
        return -0.1
    ndcg = recall = 0.0
    top = gain_sum(ideal_ids(grades), grades, 10)
    relevant = sum(1 for grade in grades if grade > 0)
    for i, (score, grade) in enumerate(zip(scores, grades, strict=True)):
        above = sum(1 for other in scores if other > score)
        tied = [j for j, other in enumerate(scores) if other == score]
        # With "mean" the document stands on each rank of its tie with the same probability.
        places = range(len(tied)) if ties == "mean" else [tied.index(i)]
        ranks = [above + 1 + place for place in places]
        if top:
            ndcg += sum(grade / log2(rank + 1) for rank in ranks if rank <= 10) / len(ranks) / top
        if relevant and grade > 0:
            recall += sum(1 for rank in ranks if rank <= 10) / len(ranks) / relevant
    p, q = shares(scores, kind), shares([float(g) for g in grades], kind)
    mixed = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    divergence = entropy(mixed, base) - entropy(p, base) / 2 - entropy(q, base) / 2
    return ndcg + 0.2 * recall + 0.1 * (1 - divergence)


def prorank(score: float | None, grade: int) -> float:
    if score not in (0, 1):
        return 0
    return 1 if (score == 1) == (grade > 0) else 0.5


def mm_r5(text: str, ids: list[int] | None, grades: list[int], deduplicate: bool = True) -> float:
    answer = last_answer(text)
    written = ids
    if written is None:
        written = [int(x) if len(x) < 10 else 0 for x in re.findall("[0-9]+", answer or "")]
        if deduplicate:
            written = [x for i, x in enumerate(written) if x not in written[:i]]
    n, relevant = len(grades), sum(1 for grade in grades if grade > 0)
    result = Fraction(0)
    for rank, x in enumerate(written, start=1):
        if 1 <= x <= n and grades[x - 1] > 0:
            result += Fraction(1, rank**3)
    result = result / sum(Fraction(1, k**3) for k in range(1, relevant + 1)) if relevant else Fraction(0)
    form = Fraction(0)
    if tags_anywhere(text, ("think", "answer")) and written:
        valid = sum(1 for x in written if 1 <= x <= n)
        form = Fraction(n - abs(len(written) - n), n) * Fraction(valid, len(written))
    return float(result + form)


Roll = tuple[str, float | None, int]
"""Document, score (None: malformed), grade."""


def erank(
    rolls: list[Roll],
    positive: str = "reciprocal",
    above: str = "worst",
    reference: dict[str, float] | None = None,
    ties: str = "shared",
) -> list[float]:
    def rank(score: float, first: bool = False) -> int:
        ahead = sum(1 for _, other, _ in rolls if other is not None and other > score)
        equal = sum(1 for _, other, g in rolls if other == score and g <= 0)
        return 1 + ahead + (equal if first else 0)

    paid: list[float] = []
    against = ties == "against"
    ranks_of_positives = [rank(s, against) for _, s, g in rolls if s is not None and g > 0]
    for document, score, grade in rolls:
        if score is None:
            paid.append(-1.0)
        elif grade > 0 and positive == "reciprocal":
            paid.append(1 / rank(score, against))
        elif grade > 0:
            best = sum(1 / log2(r + 1) for r in range(1, sum(1 for _, _, g in rolls if g > 0) + 1))
            paid.append(1 / log2(rank(score, against) + 1) / best)
        elif any(rank(score) < r for r in ranks_of_positives) and (
            above == "worst" or all(rank(score) < r for r in ranks_of_positives)
        ):
            paid.append(-0.5)
        else:
            away = score / 10 - reference[document] / 10 if reference else 0
            paid.append(-0.5 * away * away)
    return paid


def retro_star(rolls: list[Roll], alpha: float = 0.75, tau: float = 20) -> list[float]:
    paid: list[float] = []
    for document, score, grade in rolls:
        if score is None:
            paid.append(-1.0)
            continue
        same = [Fraction(s) for d, s, _ in rolls if d == document and s is not None]
        mean = sum(same, Fraction(0)) / len(same)
        gaps = [abs(s - mean) for s in same]
        gap = abs(Fraction(score) - mean)
        intra = 0
        if max(gaps) > tau and max(gaps) != min(gaps):
            intra = 1 if gap == min(gaps) else -1 if gap == max(gaps) else 0
        others = [s for _, s, g in rolls if s is not None and (g > 0) != (grade > 0)]
        wins = [1 for s in others if (score > s if grade > 0 else score < s)]
        inter = Fraction(len(wins), len(others)) if others else Fraction(0)
        paid.append(alpha * intra + (1 - alpha) * float(inter))
    return paid
