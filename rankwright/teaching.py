"""Training sets whose labels a language model gives: its order, its order where it agrees with its own points
(ReasonRank), or an order and points of two teachers fused (GroupRank). And all data recipes by name.

    teacher = Teacher(LLMPolicy(llm, load_ranking_prompt("listwise-1")), Sliding(window=20, stride=10))
    prepared = TaughtOrders(depth=20).prepare(examples, teacher)
    write_prepared("train.jsonl", prepared)

What a teacher did not say in words that can be read is left out and counted, never made up. With a CachedLLM inside, a
run that was killed pays for nothing twice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal, NamedTuple, TypeVar

from rankwright.data.drawing import (
    DrawnSets,
    OneRelevant,
    Prepared,
    PreparedRow,
    interval_sample,
    only_among,
    renamed,
    require,
)
from rankwright.errors import ConfigurationError, DataError
from rankwright.metrics.orders import ndcg
from rankwright.strategies import Pointwise, Progress, Strategy, StrategyReport, run_strategies
from rankwright.types import (
    CALL_FAILED,
    Document,
    Example,
    GeneratingPolicy,
    Judged,
    Permutation,
    Ranking,
    RerankRequest,
    Scores,
)

T = TypeVar("T")

QUERIES_AT_ONCE = 64
TOP_GRADE = 10
"""Grades of fused labels go from 0 to this, as the points of a groupwise prompt."""


@dataclass
class Teacher:
    """A language model with a prompt, which labels passages."""

    policy: GeneratingPolicy
    strategy: Strategy = field(default_factory=Pointwise)
    """How it covers the passages of a question."""
    max_failed: float = 0.5
    """Largest share of failed calls among 64 questions; with more the model's server is at fault, and the work ends."""
    on_progress: Progress | None = None
    report: StrategyReport = field(default_factory=StrategyReport)
    """Of all that it was asked."""
    thoughts: dict[str, str] = field(default_factory=dict)
    """query_id -> what it wrote before its order, of the questions that it ordered in one answer with all documents as
    they stood, so that `[1]` in it is the first of them."""

    def orders(self, requests: Sequence[RerankRequest]) -> list[tuple[str, ...] | str]:
        """The doc_ids of each request, best first; or the reason why there is no order: an answer on the way to it that
        could not be read.

        Raises:
            DataError: two requests have one query_id.
            ReaderError: too many calls failed.
        """

        def order(heard: _Heard, ranking: Ranking) -> tuple[str, ...] | str:
            return heard.unread.get(ranking.query_id, ranking.doc_ids)

        return self._asked(requests, order)

    def points(self, requests: Sequence[RerankRequest]) -> list[dict[str, float]]:
        """doc_id -> score of each request, of the documents whose score could be read. Wants a strategy that shows
        every document once.

        Raises:
            As `orders`.
        """

        def scores(heard: _Heard, ranking: Ranking) -> dict[str, float]:
            return heard.points.get(ranking.query_id, {})

        return self._asked(requests, scores)

    def _asked(self, requests: Sequence[RerankRequest], part: Callable[[_Heard, Ranking], T]) -> list[T]:
        counts = Counter(request.query.query_id for request in requests)
        if len(counts) < len(requests):
            twice, times = counts.most_common(1)[0]
            raise DataError(f"query_id '{twice}' stands {times} times among the questions; wanted every one once.")
        found: list[T] = []
        for start in range(0, len(requests), QUERIES_AT_ONCE):
            batch = requests[start : start + QUERIES_AT_ONCE]
            heard = _Heard(self.policy, {request.query.query_id: request.documents for request in batch})
            rankings, report = run_strategies(
                self.strategy, heard, batch, max_failed=self.max_failed, on_progress=self.on_progress
            )
            self.report += report
            self.thoughts |= heard.thoughts
            found += [part(heard, ranking) for ranking in rankings]
            if self.on_progress is not None:
                self.on_progress("questions labelled", start + len(batch), len(requests))
        return found


class _Heard:
    """A GeneratingPolicy that notes by question what the one inside said."""

    def __init__(self, policy: GeneratingPolicy, shown: Mapping[str, tuple[Document, ...]]) -> None:
        self.policy = policy
        self.shown = shown
        """query_id -> all its documents, in order."""
        self.unread: dict[str, str] = {}
        """query_id -> why its first unreadable answer could not be read."""
        self.points: dict[str, dict[str, float]] = {}
        self._answers: dict[str, list[str]] = {}

    @property
    def thoughts(self) -> dict[str, str]:
        """query_id -> thoughts, where one answer was about all documents in their order."""
        return {query_id: said[0] for query_id, said in self._answers.items() if len(said) == 1 and said[0]}

    @property
    def name(self) -> str:
        return self.policy.name

    def judge(self, windows: Sequence[RerankRequest]) -> list[Judged]:
        judged = self.policy.judge(windows)
        for window, one in zip(windows, judged, strict=False):  # the scheduler refuses another number
            self._note(window, one)
        return judged

    def _note(self, window: RerankRequest, one: Judged) -> None:
        judgement, query_id = one.judgement, window.query.query_id
        whole = isinstance(judgement, Permutation) and window.documents == self.shown[query_id]
        self._answers.setdefault(query_id, []).append(one.thoughts if whole else "")
        if isinstance(judgement, Scores):
            said = zip(window.documents, judgement.values, strict=False)
            scores = {document.doc_id: value for document, value in said if value is not None}
            self.points.setdefault(query_id, {}).update(scores)
        partly = isinstance(judgement, Scores) and None in judgement.values
        if judgement.outcome == "malformed" or partly:
            self.unread.setdefault(query_id, _reason(judgement.repairs))


def _reason(repairs: Sequence[str]) -> str:
    failed = next((repair for repair in repairs if repair.startswith(CALL_FAILED)), None)
    return failed or next(iter(repairs), "no reason given")


def _requests(examples: Sequence[Example]) -> list[RerankRequest]:
    return [RerankRequest(example.query, example.candidates, example.first_stage) for example in examples]


def _with_enough(examples: Iterable[Example], prepared: Prepared, depth: int, least: int) -> list[Example]:
    """The questions with `least` candidates or more, cut to `depth`."""
    kept: list[Example] = []
    for example in examples:
        prepared.questions += 1
        if len(example.candidates) < least:
            prepared.left_out[f"questions with fewer than {least} candidates"] += 1
        else:
            kept.append(only_among(example, example.candidates[:depth]))
    return kept


# --- one teacher's order --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaughtOrders:
    """A teacher's order of the first `depth` candidates, for learning by imitation (RankGPT, Sun et al., EMNLP 2023,
    https://arxiv.org/abs/2304.09542, section 4).

    `order` of the row is the teacher's, and so are `thoughts` where one answer ordered all passages. With
    `labels="order"` its grades are n for the best passage ... 1 for the last, for whatever learns from grades, in the
    place of those of the data; with `kept` these stay.
    """

    depth: int = 20
    labels: Literal["order", "kept"] = "order"

    name = "permutation"

    def __post_init__(self) -> None:
        require(self.name, "depth", self.depth, self.depth >= 2, "2 or more, to put in order")
        require(self.name, "labels", self.labels, self.labels in ("order", "kept"), "one of order, kept")

    def prepare(self, examples: Iterable[Example], teacher: Teacher) -> Prepared:
        """One row of each question whose order could be read."""
        prepared = Prepared()
        shown = _with_enough(examples, prepared, self.depth, 2)
        for example, order in zip(shown, teacher.orders(_requests(shown)), strict=True):
            if isinstance(order, str):
                prepared.left_out[f"questions without an order ({order})"] += 1
                continue
            grades = descending(order) if self.labels == "order" else example.relevance
            note = {"recipe": self.name, "query_id": example.query.query_id, "teacher": teacher.policy.name}
            thoughts = teacher.thoughts.get(example.query.query_id, "")
            taught = replace(example, order=order, relevance=grades, thoughts=thoughts)
            prepared.rows.append(PreparedRow(taught, note))
        return prepared


def descending(order: Sequence[str]) -> dict[str, int]:
    """An order as grades, from its length down to 1.

    >>> descending(["b", "a"])
    {'b': 2, 'a': 1}
    """
    return {doc_id: len(order) - rank for rank, doc_id in enumerate(order)}


# --- an order that agrees with points -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SelfConsistent:
    """A teacher's order, kept where its nDCG against the teacher's own labels of single passages is `least` or more
    (ReasonRank, Liu et al., 2025, https://arxiv.org/abs/2508.07050, section 4.1: 0.4).

    A row has both: the labels are its relevance, the order its `order`, with the `thoughts` before it where one answer
    ordered all passages of the row. Passages whose label could not be read are
    left out of it.
    """

    relevant_from: float
    """Points from which a passage is relevant; ours, the paper's labels are relevant or not from the start."""
    depth: int = 20
    least: float = 0.4
    cutoff: int = 10
    """Ranks that count for nDCG."""

    name = "reasonrank"

    def __post_init__(self) -> None:
        require(self.name, "depth", self.depth, self.depth >= 2, "2 or more, to put in order")
        require(self.name, "least", self.least, 0.0 <= self.least <= 1.0, "0 to 1")
        require(self.name, "cutoff", self.cutoff, self.cutoff >= 1, "1 or more")
        require(self.name, "relevant_from", self.relevant_from, math.isfinite(self.relevant_from), "a finite number")

    def prepare(self, examples: Iterable[Example], lists: Teacher, single: Teacher) -> Prepared:
        """One row of each question where both agree.

        Args:
            lists: gives orders.
            single: gives points of single passages; in the paper the same model.
        """
        prepared = Prepared()
        labelled = _labelled(_with_enough(examples, prepared, self.depth, 2), lists, single, prepared)
        for example, order, points in labelled:
            grades = {doc_id: int(points[doc_id] >= self.relevant_from) for doc_id in order}
            agreement = consistency(order, grades, self.cutoff)
            if not any(grades.values()):
                prepared.left_out["questions without a passage that the points call relevant"] += 1
            elif agreement < self.least:
                prepared.left_out[
                    f"questions with nDCG@{self.cutoff} below {self.least:g} of order against points"
                ] += 1
            else:
                note = _note(self.name, example, lists, single) | {"consistency": agreement}
                prepared.rows.append(PreparedRow(replace(example, order=order, relevance=grades), note))
        return prepared


def consistency(order: Sequence[str], grades: Mapping[str, int], cutoff: int = 10) -> float:
    """nDCG of an order against grades of the same documents.

    >>> consistency(["b", "a"], {"a": 0, "b": 1})
    1.0
    """
    gains = [grades[doc_id] for doc_id in order]
    return ndcg(gains, sorted(gains, reverse=True), cutoff)


def _note(recipe: str, example: Example, lists: Teacher, single: Teacher) -> dict[str, object]:
    teachers = {"lists": lists.policy.name, "single": single.policy.name}
    return {"recipe": recipe, "query_id": example.query.query_id, "teachers": teachers}


def _labelled(
    examples: Sequence[Example], lists: Teacher, single: Teacher, prepared: Prepared, least: int = 2
) -> list[tuple[Example, tuple[str, ...], dict[str, float]]]:
    """(question, order, points) of those that have both, with the passages alone that have a point. Single passages
    are asked about only where there is an order."""
    ordered: list[tuple[Example, tuple[str, ...]]] = []
    for example, order in zip(examples, lists.orders(_requests(examples)), strict=True):
        if isinstance(order, str):
            prepared.left_out[f"questions without an order ({order})"] += 1
        else:
            thoughts = lists.thoughts.get(example.query.query_id, "")
            ordered.append((replace(example, thoughts=thoughts), order))
    found = []
    asked = _requests([example for example, _ in ordered])
    for (example, order), points in zip(ordered, single.points(asked), strict=True):
        kept = [document for document in example.candidates if document.doc_id in points]
        prepared.left_out["passages without points"] += len(example.candidates) - len(kept)
        if len(kept) < least:
            prepared.left_out[f"questions with fewer than {least} passages that have points"] += 1
        else:
            found.append((only_among(example, kept), tuple(d for d in order if d in points), points))
    prepared.left_out += Counter()  # what is 0 goes
    return found


# --- two teachers fused ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FusedLabels:
    """Short lists out of one long one, labelled once by two teachers (GroupRank, Sun et al., 2025,
    https://arxiv.org/abs/2511.11653, later version, section 3.2 and algorithm 1).

    The long list: the first `top` candidates and `drawn` at random out of those up to rank `until`. The label of a
    passage is -0.5 ln(its rank by points) - 0.5 ln(its rank in the teacher's order). `lists` short lists take one
    passage out of each interval of the order by label; their sizes go from `smallest` to `largest`; they stand
    shuffled. `order` of a row is that by label, its grades are 10 (1 + label / ln n) as whole numbers, n the length of
    the long list.

    Ours, because the paper leaves it open: equal points share the mean of their ranks, sizes are equally likely, how
    many short lists there are, how labels become grades.
    """

    top: int = 10
    drawn: int = 40
    until: int = 200
    lists: int = 2
    smallest: int = 5
    largest: int = 20
    seed: int = 0

    name = "grouprank"

    def __post_init__(self) -> None:
        require(self.name, "top", self.top, self.top >= 0, "0 or more")
        require(self.name, "drawn", self.drawn, self.drawn >= 0, "0 or more")
        require(self.name, "until", self.until, self.until >= self.top, f"at least top, {self.top}")
        require(self.name, "lists", self.lists, self.lists >= 1, "1 or more")
        require(self.name, "smallest", self.smallest, self.smallest >= 2, "2 or more, to put in order")
        require(self.name, "largest", self.largest, self.largest >= self.smallest, f"at least {self.smallest}")
        there = self.top + self.drawn
        require(self.name, "top + drawn", there, there >= self.smallest, f"at least smallest, {self.smallest}")

    def prepare(self, examples: Iterable[Example], lists: Teacher, single: Teacher) -> Prepared:
        """Short lists of each question, named QUERY#NUMBER with numbers from 1.

        Args:
            lists: gives the order of a long list.
            single: gives points of single passages.
        """
        prepared = Prepared()
        long = [self.long_list(example) for example in _with_enough(examples, prepared, self.until, self.smallest)]
        for example, order, points in _labelled(long, lists, single, prepared, self.smallest):
            labels = fused_labels(order, points)
            best = sorted(order, key=lambda doc_id: -labels[doc_id])
            graded = replace(example, order=tuple(best), relevance=as_grades(labels), thoughts="")
            for number in range(1, self.lists + 1):
                short = self._short(graded, number)
                note = _note(self.name, example, lists, single) | {
                    "draw": number,
                    "seed": self.seed,
                    "labels": {document.doc_id: labels[document.doc_id] for document in short},
                }
                prepared.rows.append(PreparedRow(renamed(only_among(graded, short), number), note))
        return prepared

    def long_list(self, example: Example) -> Example:
        """What the teachers see, in the order of the first stage."""
        rest = range(self.top, len(example.candidates))
        drawn = Random(repr((self.seed, example.query.query_id))).sample(rest, min(self.drawn, len(rest)))
        places = sorted([*range(min(self.top, len(example.candidates))), *drawn])
        return only_among(example, (example.candidates[place] for place in places))

    def _short(self, graded: Example, number: int) -> list[Document]:
        chance = Random(repr((self.seed, graded.query.query_id, number)))
        document_of = {document.doc_id: document for document in graded.candidates}
        size = chance.randint(self.smallest, min(self.largest, len(document_of)))
        places = interval_sample(len(document_of), size, chance)
        short = [document_of[graded.order[place]] for place in places]
        chance.shuffle(short)
        return short


def fused_labels(order: Sequence[str], points: Mapping[str, float]) -> dict[str, float]:
    """doc_id -> -0.5 ln(rank by points) - 0.5 ln(rank in the order), ranks from 1; equal points share the mean of their
    ranks.

    >>> fused_labels(["a", "b"], {"a": 3.0, "b": 5.0})["a"] == -0.5 * math.log(2) - 0.5 * math.log(1)
    True
    """
    labels = {}
    for rank, doc_id in enumerate(order, start=1):
        above = sum(points[other] > points[doc_id] for other in order)
        equal = sum(points[other] == points[doc_id] for other in order)
        labels[doc_id] = -0.5 * math.log(above + (equal + 1) / 2) - 0.5 * math.log(rank)
    return labels


def as_grades(labels: Mapping[str, float]) -> dict[str, int]:
    """Fused labels of n documents as grades: 10 for the first in both orders, 0 for the last in both.

    >>> as_grades({"a": 0.0, "b": -0.5 * math.log(2), "c": -math.log(3)})
    {'a': 10, 'b': 7, 'c': 0}
    """
    scale = math.log(len(labels)) if len(labels) > 1 else 1.0
    return {doc_id: round(TOP_GRADE * (1.0 + label / scale)) for doc_id, label in labels.items()}


# --- by name --------------------------------------------------------------------------------------------------------


class DataRecipe(NamedTuple):
    """How a training set is made, by its name."""

    made_by: type[Any]
    """Its fields are the settings."""
    defaults: Mapping[str, Any]
    """Settings that differ from those of the class."""
    teachers: int
    """How many a language model has to play: none; one that orders; one that orders and one that scores."""
    about: str


RECIPES: Mapping[str, DataRecipe] = {
    "rearank": DataRecipe(DrawnSets, {}, 0, "many drawn candidate sets of few labelled questions (REARANK)"),
    "rank-r1": DataRecipe(OneRelevant, {}, 0, "one relevant passage and 19 others (Rank-R1 v0.1)"),
    "rank-r1-v0.2": DataRecipe(
        OneRelevant,
        {"positive": "random", "count": "drawn", "negatives": 9},
        0,
        "one relevant passage and 1 to 9 others (Rank-R1 v0.2)",
    ),
    "permutation": DataRecipe(TaughtOrders, {}, 1, "a teacher's order (RankGPT)"),
    "reasonrank": DataRecipe(SelfConsistent, {}, 2, "a teacher's order that agrees with its own labels (ReasonRank)"),
    "grouprank": DataRecipe(FusedLabels, {}, 2, "short lists with labels of two teachers fused (GroupRank)"),
}
"""Every data recipe by the name that `rankwright prepare` takes."""


def find_recipe(name: str) -> DataRecipe:
    """Raises ConfigurationError where there is none of this name."""
    if name not in RECIPES:
        raise ConfigurationError(f"Data recipe '{name}' is unknown; use one of {', '.join(RECIPES)}.")
    return RECIPES[name]


def prepare(
    recipe: str,
    examples: Iterable[Example],
    *,
    lists: Teacher | None = None,
    single: Teacher | None = None,
    passages: Mapping[str, Document] | None = None,
    **settings: Any,
) -> Prepared:
    """A training set for rerankers made of a language model, by a recipe's name; `write_prepared` writes it.

    Args:
        recipe: a name of RECIPES; docs/data-recipes.md describes them.
        examples: questions with candidates, and with labels where no teacher gives them.
        lists: orders passages, for permutation, reasonrank and grouprank.
        single: scores single passages, for reasonrank and grouprank.
        passages: doc_id -> passage, for relevant passages that the first stage missed (rank-r1).
        settings: fields of the recipe's class.

    Raises:
        ConfigurationError: an unknown recipe, a setting out of range, or a teacher that is missing.
        ReaderError: too many calls of a teacher failed.
    """
    found = find_recipe(recipe)
    return applied(found.made_by(**{**found.defaults, **settings}), examples, lists, single, passages)


def applied(
    made: DrawnSets | OneRelevant | TaughtOrders | SelfConsistent | FusedLabels,
    examples: Iterable[Example],
    lists: Teacher | None,
    single: Teacher | None,
    passages: Mapping[str, Document] | None,
) -> Prepared:
    """What a recipe with its settings makes of the questions."""
    if isinstance(made, DrawnSets):
        return made.prepare(examples)
    if isinstance(made, OneRelevant):
        return made.prepare(examples, passages)
    if lists is None or (single is None and not isinstance(made, TaughtOrders)):
        raise ConfigurationError(
            f"Data recipe {made.name} was given too few teachers; wanted one that orders passages"
            f"{'' if isinstance(made, TaughtOrders) else ' and one that scores single ones'}. Give a language model."
        )
    if isinstance(made, TaughtOrders):
        return made.prepare(examples, lists)
    assert single is not None
    return made.prepare(examples, lists, single)
