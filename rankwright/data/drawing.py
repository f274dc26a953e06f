"""Training sets drawn from labelled questions with candidates: many sets of each question (REARANK), or one relevant
passage among others (Rank-R1). What is drawn for a question depends on seed, query_id and number of the draw alone.

    prepared = DrawnSets(draws=50, size=20, seed=0).prepare(examples)
    write_prepared("train.jsonl", prepared)

Sets whose labels come from a language model: rankwright.teaching.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Literal

from rankwright.data.jsonl import write_jsonl
from rankwright.errors import ConfigurationError, DataError
from rankwright.metrics.orders import ndcg
from rankwright.metrics.ranking import has_relevant
from rankwright.types import Document, Example


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """One question of a training set, and where it comes from."""

    example: Example
    """Labels, scores and order are those of its candidates alone."""
    metadata: Mapping[str, object]
    """For people and for splits: recipe, seed, and as `query_id` the question that it was made from."""


@dataclass
class Prepared:
    """A training set, and what was left out of it."""

    questions: int = 0
    """Questions that there were."""
    rows: list[PreparedRow] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """What was left out, in words -> how often."""


def write_prepared(path: str | Path, prepared: Prepared) -> None:
    """Writes the rows in our own format, their metadata with them; an older file stays where that fails.

    Raises:
        DataError: no row is left, or two would have the same query_id.
        StorageError: the file cannot be written.
    """
    if not prepared.rows:
        reasons = ", ".join(f"{times} {what}" for what, times in prepared.left_out.most_common()) or "nothing"
        raise DataError(
            f"Of {prepared.questions} questions no row is left for {path} (left out: {reasons}); wanted one at least. "
            "Give labelled questions with more candidates, or loosen the filters (--set)."
        )
    notes = {row.example.query.query_id: row.metadata for row in prepared.rows}
    if len(notes) < len(prepared.rows):
        twice, times = Counter(row.example.query.query_id for row in prepared.rows).most_common(1)[0]
        raise DataError(
            f"query_id '{twice}' would stand {times} times in {path}; wanted every query_id once. Draws are named "
            "QUERY#NUMBER: rename questions that are called so already, and give every question once."
        )
    write_jsonl(path, (row.example for row in prepared.rows), notes)


def only_among(example: Example, documents: Iterable[Document]) -> Example:
    """The example with these documents for candidates, and without what is known of others; a teacher's thoughts number
    the candidates, so they stay with all of them in their order alone."""
    candidates = tuple(documents)
    kept = {document.doc_id for document in candidates}
    if len(kept) < len(candidates):
        raise DataError(
            f"Candidates of query '{example.query.query_id}' hold a doc_id more than once; wanted every passage once."
        )
    return replace(
        example,
        candidates=candidates,
        relevance={doc_id: grade for doc_id, grade in example.relevance.items() if doc_id in kept},
        first_stage={doc_id: score for doc_id, score in example.first_stage.items() if doc_id in kept},
        order=tuple(doc_id for doc_id in example.order if doc_id in kept),
        thoughts=example.thoughts if candidates == example.candidates else "",
    )


def renamed(example: Example, number: int) -> Example:
    """The same question as number so much of its draws: QUERY#NUMBER."""
    return replace(example, query=replace(example.query, query_id=f"{example.query.query_id}#{number}"))


def require(recipe: str, name: str, value: object, holds: bool, wanted: str) -> None:
    """Raises ConfigurationError unless the setting holds."""
    if not holds:
        raise ConfigurationError(f"Recipe {recipe} has {name} {value!r}; wanted {wanted}.")


@dataclass(frozen=True)
class DrawnSets:
    """Many candidate sets of few labelled questions: `draws` times `size` passages at random out of the first `depth`
    (REARANK, Zhang et al., EMNLP 2025, https://arxiv.org/abs/2505.20046, sections 3.4 and 4.1).

    A set without a relevant passage is dropped, and one whose nDCG is below `least`. The paper's text means the nDCG of
    the set's order as it stands, the caption of its ablation that of the best order. It does not say in which order
    the passages stand, nor what nDCG is divided by; both are options and ours. (Its 179 questions with 50 draws are
    8,950 at most, yet 12,000 instances are told of: some number is another one.)
    """

    draws: int = 50
    size: int = 20
    depth: int = 100
    """Candidates of a question that are drawn from."""
    least: float = 0.1
    """Lowest nDCG of a set that is kept."""
    measured: Literal["initial", "best", "none"] = "initial"
    """Of which order the nDCG is: the set's as it stands, or its best; none drops only sets without a relevant one."""
    ideal: Literal["question", "set"] = "question"
    """What nDCG is divided by; ours. question: the best order of all labelled passages, as trec_eval has it. set: the
    best order of the set, of which the best nDCG is always 1."""
    order: Literal["first-stage", "shuffled"] = "first-stage"
    """How the passages of a set stand; ours."""
    cutoff: int = 10
    """Ranks that count for nDCG."""
    seed: int = 0

    name = "rearank"

    def __post_init__(self) -> None:
        require(self.name, "draws", self.draws, self.draws >= 1, "1 or more")
        require(self.name, "size", self.size, self.size >= 2, "2 or more, to put in order")
        require(self.name, "depth", self.depth, self.depth >= self.size, f"at least size, {self.size}")
        require(self.name, "cutoff", self.cutoff, self.cutoff >= 1, "1 or more")
        require(self.name, "least", self.least, 0.0 <= self.least <= 1.0, "0 to 1")
        for option, value, known in (
            ("measured", self.measured, ("initial", "best", "none")),
            ("ideal", self.ideal, ("question", "set")),
            ("order", self.order, ("first-stage", "shuffled")),
        ):
            require(self.name, option, value, value in known, "one of " + ", ".join(known))

    def prepare(self, examples: Iterable[Example]) -> Prepared:
        """Sets of all questions, in order, each named QUERY#NUMBER with numbers from 1."""
        prepared = Prepared()
        for example in examples:
            prepared.questions += 1
            reason = self._unfit(example)
            if reason:
                prepared.left_out[reason] += 1
            else:
                self._draw(example, prepared)
        return prepared

    def _unfit(self, example: Example) -> str:
        """Why nothing can be drawn for a question; empty where something can."""
        there = example.candidates[: self.depth]
        if not has_relevant(example.relevance):
            return "questions without a relevant label"
        if len(there) < self.size:
            return f"questions with fewer than {self.size} candidates"
        if not any(example.relevance.get(document.doc_id, 0) >= 1 for document in there):
            return f"questions without a relevant passage among {self.depth} candidates"
        return ""

    def _draw(self, example: Example, prepared: Prepared) -> None:
        query_id, there = example.query.query_id, example.candidates[: self.depth]
        seen: set[tuple[int, ...]] = set()
        for number in range(1, self.draws + 1):
            places = Random(repr((self.seed, query_id, number))).sample(range(len(there)), self.size)
            drawn = tuple(places if self.order == "shuffled" else sorted(places))
            documents = [there[place] for place in drawn]
            reason = "sets that were drawn before" if drawn in seen else self._dropped(example, documents)
            seen.add(drawn)
            if reason:
                prepared.left_out[reason] += 1
                continue
            note = {"recipe": self.name, "query_id": query_id, "draw": number, "seed": self.seed}
            prepared.rows.append(PreparedRow(renamed(only_among(example, documents), number), note))

    def _dropped(self, example: Example, documents: Sequence[Document]) -> str:
        """Why a set is dropped; empty where it is kept."""
        gains = [max(0, example.relevance.get(document.doc_id, 0)) for document in documents]
        if not any(gains):
            return "sets without a relevant passage"
        best = sorted(gains, reverse=True)
        labelled = sorted((max(0, grade) for grade in example.relevance.values()), reverse=True)
        ideal = best if self.ideal == "set" else labelled
        judged = best if self.measured == "best" else gains
        if self.measured != "none" and ndcg(judged, ideal, self.cutoff) < self.least:
            return f"sets with {self.measured} nDCG@{self.cutoff} below {self.least:g}"
        return ""


@dataclass(frozen=True)
class OneRelevant:
    """One relevant passage among others that are not, shuffled (Rank-R1, Zhuang et al., 2025,
    https://arxiv.org/abs/2503.06034; create_dataset.py of ielab/llm-rankers).

    The defaults are those of version 0.1. Version 0.2 (create_dataset_v0.2.py) is `positive="random"`,
    `count="drawn"`, `negatives=9`. The relevant passage comes from the candidates or, where the first stage missed it,
    from `passages`; all others are candidates without a relevant label.
    """

    negatives: int = 19
    """Passages that are not relevant; with count=drawn the most of them."""
    positive: Literal["first", "random"] = "first"
    """Which relevant passage, where there are several: the first of the labels or a random one."""
    count: Literal["all", "drawn"] = "all"
    """all: `negatives` of them, questions with fewer are left out. drawn: k of them, k with probability proportional
    to k."""
    depth: int = 100
    """Candidates of a question that are drawn from."""
    seed: int = 0

    name = "rank-r1"

    def __post_init__(self) -> None:
        require(self.name, "negatives", self.negatives, self.negatives >= 1, "1 or more")
        require(self.name, "depth", self.depth, self.depth >= 1, "1 or more")
        require(self.name, "positive", self.positive, self.positive in ("first", "random"), "one of first, random")
        require(self.name, "count", self.count, self.count in ("all", "drawn"), "one of all, drawn")

    def prepare(self, examples: Iterable[Example], passages: Mapping[str, Document] | None = None) -> Prepared:
        """One row of each question.

        Args:
            passages: doc_id -> passage, for relevant ones that are not among the candidates.
        """
        prepared = Prepared()
        for example in examples:
            prepared.questions += 1
            found = self._set(example, passages or {})
            if isinstance(found, str):
                prepared.left_out[found] += 1
                continue
            note = {"recipe": self.name, "query_id": example.query.query_id, "seed": self.seed}
            prepared.rows.append(PreparedRow(only_among(example, found), note))
        return prepared

    def _set(self, example: Example, passages: Mapping[str, Document]) -> list[Document] | str:
        """The passages, or why there are none."""
        known = {**passages, **{document.doc_id: document for document in example.candidates}}
        relevant = [doc_id for doc_id, grade in example.relevance.items() if grade >= 1]
        positives = [known[doc_id] for doc_id in relevant if doc_id in known]
        negatives = [document for document in example.candidates[: self.depth] if document.doc_id not in set(relevant)]
        least = self.negatives if self.count == "all" else 1
        if not relevant:
            return "questions without a relevant label"
        if not positives:
            return "questions whose relevant passages are not known"
        if len(negatives) < least:
            return f"questions with fewer than {least} candidate{'s' * (least > 1)} not relevant"
        chance = Random(repr((self.seed, example.query.query_id)))
        positive = positives[0] if self.positive == "first" else chance.choice(positives)
        drawn = [positive, *chance.sample(negatives, self._negatives(len(negatives), chance))]
        chance.shuffle(drawn)
        return drawn

    def _negatives(self, there: int, chance: Random) -> int:
        if self.count == "all":
            return self.negatives
        counts = range(1, min(self.negatives, there) + 1)
        return chance.choices(counts, weights=counts)[0]


def interval_sample(count: int, size: int, chance: Random) -> list[int]:
    """One place at random out of each of `size` intervals, as equal as can be, of 0 ... count - 1; ascending.

    >>> interval_sample(3, 3, Random(0))
    [0, 1, 2]
    """
    bounds = [count * number // size for number in range(size + 1)]
    return [chance.randrange(low, high) for low, high in pairwise(bounds)]
