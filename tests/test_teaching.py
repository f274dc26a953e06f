"""Training sets with labels of a teacher: what is kept, what is left out and counted, formulas of fused labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

import rankwright
from rankwright.data.drawing import Prepared
from rankwright.errors import ConfigurationError, DataError, ReaderError
from rankwright.strategies import Groupwise, HeapSort, Pointwise, Sliding, Strategy
from rankwright.teaching import (
    RECIPES,
    FusedLabels,
    SelfConsistent,
    TaughtOrders,
    Teacher,
    as_grades,
    consistency,
    fused_labels,
)
from rankwright.types import Document, Example, Judged, Permutation, Query, RerankRequest, Scores
from tests.simulated_llm import Kind, SimulatedJudge

Grades = dict[str, dict[str, float]]


def example(query_id: str, count: int, relevance: dict[str, int] | None = None) -> Example:
    documents = tuple(Document(f"{query_id}-{i}", f"passage {i}") for i in range(count))
    return Example(Query(query_id, f"{query_id}?"), documents, (), relevance or {})


def questions(count: int, documents: int) -> tuple[list[Example], Grades]:
    """Questions whose passages get better towards the end of the list."""
    examples = [example(f"q{number}", documents) for number in range(count)]
    return examples, {e.query.query_id: {d.doc_id: i for i, d in enumerate(e.candidates)} for e in examples}


def teacher(grades: Any, kind: Kind = "permutation", strategy: Strategy | None = None, **settings: Any) -> Teacher:
    way = strategy or (Pointwise() if kind == "scores" else Sliding(window=4, stride=2))
    return Teacher(SimulatedJudge(grades, kind, **settings), way, max_failed=1.0)


def rows_of(prepared: Prepared) -> dict[str, Example]:
    return {row.example.query.query_id: row.example for row in prepared.rows}


class Scripted:
    """A policy that says the same of every prompt of a question."""

    name = "scripted"

    def __init__(self, said: dict[str, Any]) -> None:
        self.said = said

    def judge(self, windows: Sequence[RerankRequest]) -> list[Judged]:
        return [Judged(self.said[window.query.query_id]) for window in windows]


class Pointing:
    """A policy that scores single passages by a table; what is not in it could not be read."""

    name = "pointing"

    def __init__(self, points: dict[str, float]) -> None:
        self.points = points

    def judge(self, windows: Sequence[RerankRequest]) -> list[Judged]:
        values = [self.points.get(window.documents[0].doc_id) for window in windows]
        return [Judged(Scores((value,), "ok" if value is not None else "malformed")) for value in values]


class Thinking:
    """A policy that turns the list around and thinks aloud about it; single passages it all likes alike."""

    name = "thinking"

    def judge(self, windows: Sequence[RerankRequest]) -> list[Judged]:
        return [self._judged(window) for window in windows]

    def _judged(self, window: RerankRequest) -> Judged:
        count = len(window.documents)
        if count == 1:
            return Judged(Scores((1.0,)), thoughts="about one alone")
        return Judged(Permutation(tuple(reversed(range(count)))), thoughts=f"[{count}] of {window.query.query_id}")


# --- permutation ---


def test_the_teachers_order_and_its_grades() -> None:
    examples, grades = questions(3, 4)
    found = rows_of(TaughtOrders(depth=4).prepare(examples, teacher(grades)))
    for source in examples:
        row, ids = found[source.query.query_id], [d.doc_id for d in source.candidates]
        assert row.order == tuple(reversed(ids))
        assert row.relevance == {doc_id: rank for rank, doc_id in enumerate(ids, start=1)}
        assert row.candidates == source.candidates  # they stay as the first stage had them


def test_the_teacher_sees_the_first_candidates_and_labels_may_stay() -> None:
    source = example("q", 6, {"q-0": 3, "q-5": 1})
    taught = teacher({"q": {"q-1": 2, "q-5": 9}})
    (row,) = TaughtOrders(depth=3, labels="kept").prepare([source], taught).rows
    assert row.example.order == ("q-1", "q-0", "q-2")
    assert row.example.relevance == {"q-0": 3}
    assert row.metadata == {"recipe": "permutation", "query_id": "q", "teacher": taught.policy.name}


@pytest.mark.parametrize(("fault", "reason"), [("malformed", "no identifier"), ("failed", "call failed: timeout")])
def test_what_cannot_be_read_is_left_out_and_counted(fault: str, reason: str) -> None:
    """Of a long list a single window is enough: the order would be in part that of the first stage."""
    examples, grades = questions(200, 6)
    faults: dict[str, Any] = {fault: 0.1}
    taught = teacher(grades, seed=1, **faults)
    prepared = TaughtOrders(depth=6).prepare(examples, taught)
    bad = taught.report.outcomes["malformed"]
    left = prepared.left_out[f"questions without an order ({reason})"]
    assert 0 < left <= bad
    assert len(prepared.rows) == 200 - left
    whole = rows_of(TaughtOrders(depth=6).prepare(examples, teacher(grades, seed=1)))
    assert all(row == whole[query_id] for query_id, row in rows_of(prepared).items())


def test_thoughts_stay_where_one_answer_ordered_all_passages_as_they_stand() -> None:
    """[1] in them is the first candidate of the row; after a second window it would be another one."""
    sources = [
        replace(example("q", 4), thoughts="of an older teacher"),
        replace(example("r", 5), thoughts="of an older teacher"),
    ]
    taught = Teacher(Thinking(), Sliding(window=4, stride=2))
    found = rows_of(TaughtOrders(depth=5).prepare(sources, taught))
    assert {query_id: row.thoughts for query_id, row in found.items()} == {"q": "[4] of q", "r": ""}
    twice = Teacher(Thinking(), Sliding(window=4, stride=2, passes=2))
    assert [row.example.thoughts for row in TaughtOrders(depth=4).prepare(sources[:1], twice).rows] == [""]
    plain = teacher({"q": {}})
    assert [row.example.thoughts for row in TaughtOrders(depth=4).prepare(sources[:1], plain).rows] == [""]


def test_thoughts_go_with_the_passages_that_they_number() -> None:
    lists, points = Teacher(Thinking(), Sliding(window=4, stride=2)), {f"q-{i}": 1.0 for i in range(4)}
    whole = SelfConsistent(depth=4, relevant_from=1.0)
    (row,) = whole.prepare([example("q", 4)], lists, Teacher(Pointing(points))).rows
    assert row.example.thoughts == "[4] of q"
    del points["q-1"]  # it is left out, and [4] would be the third
    (row,) = whole.prepare([example("q", 4)], lists, Teacher(Pointing(points))).rows
    assert (len(row.example.candidates), row.example.thoughts) == (3, "")
    fused = FusedLabels(top=4, drawn=0, smallest=4, largest=4, lists=3)
    rows = fused.prepare([example("q", 4)], lists, Teacher(Thinking())).rows
    assert [row.example.thoughts for row in rows] == ["", "", ""]  # they stand shuffled


def test_an_order_by_scores_of_which_one_is_missing_is_left_out() -> None:
    said = Scripted({"q": Scores((1.0, None, 2.0), "repaired", ("id missing",)), "r": Scores((1.0, 0.0, 2.0))})
    prepared = TaughtOrders().prepare([example("q", 3), example("r", 3)], Teacher(said, Groupwise(group=3)))
    assert [row.metadata["query_id"] for row in prepared.rows] == ["r"]
    assert dict(prepared.left_out) == {"questions without an order (id missing)": 1}


def test_a_root_that_stays_because_nothing_was_read_is_no_order() -> None:
    examples, grades = questions(50, 6)
    taught = teacher(grades, "choice", HeapSort(children=2, top_k=6), malformed=0.2)
    prepared = TaughtOrders(depth=6).prepare(examples, taught)
    assert prepared.left_out.total() == 50 - len(prepared.rows) > 0


def test_too_many_failed_calls_end_the_work() -> None:
    examples, grades = questions(9, 4)
    with pytest.raises(ReaderError, match="failed on 9 of 9 calls"):
        TaughtOrders(depth=4).prepare(examples, Teacher(SimulatedJudge(grades, "permutation", failed=1.0), Sliding()))


def test_questions_with_one_passage_and_questions_of_one_name() -> None:
    prepared = TaughtOrders().prepare([example("q", 1)], teacher({}))
    assert dict(prepared.left_out) == {"questions with fewer than 2 candidates": 1}
    with pytest.raises(DataError, match="query_id 'q' stands 2 times among the questions"):
        TaughtOrders().prepare([example("q", 3)] * 2, teacher({}))


def test_batches_are_put_together_in_order() -> None:
    examples, grades = questions(130, 3)
    told: list[tuple[int, int]] = []
    taught = teacher(grades)
    taught.on_progress = lambda what, done, total: told.append((done, total)) if what == "questions labelled" else None
    prepared = TaughtOrders(depth=3).prepare(examples, taught)
    assert [row.metadata["query_id"] for row in prepared.rows] == [e.query.query_id for e in examples]
    assert told == [(64, 130), (128, 130), (130, 130)]
    assert taught.report.calls == 130


# --- ReasonRank ---


@pytest.mark.parametrize(
    ("order", "value"),
    [
        ((0, 1, 2), 1.0),
        ((1, 0, 2), 1 / math.log2(3)),
        ((1, 2, 0), 1 / math.log2(4)),
    ],
)
def test_an_order_is_kept_where_it_agrees_with_the_points(order: tuple[int, ...], value: float) -> None:
    """One relevant passage, q-0: nDCG is 1 / log2(rank + 1)."""
    source, points = example("q", 3), {"q-0": 5.0, "q-1": 4.9, "q-2": 0.0}
    said = Scripted({"q": Permutation(order)})

    def prepared(least: float) -> Prepared:
        recipe = SelfConsistent(relevant_from=5.0, least=least)
        return recipe.prepare([source], Teacher(said, Sliding()), Teacher(Pointing(points)))

    (row,) = prepared(value).rows
    assert row.metadata["consistency"] == pytest.approx(value)
    assert row.example.order == tuple(f"q-{i}" for i in order)
    assert row.example.relevance == {"q-0": 1, "q-1": 0, "q-2": 0}
    if value < 1:
        stricter = prepared(value + 1e-9)
        assert (stricter.rows, stricter.left_out.total()) == ([], 1)


def test_the_published_threshold() -> None:
    assert SelfConsistent(relevant_from=0).least == 0.4
    assert consistency(["a", "b"], {"a": 0, "b": 0}) == 0.0
    assert consistency([str(i) for i in range(11)], {str(i): int(i == 10) for i in range(11)}) == 0.0  # beyond rank 10


def test_passages_without_points_leave_and_questions_with_none_relevant_too() -> None:
    examples = [example("a", 4), example("b", 3), example("c", 2)]
    points = {"a-0": 1.0, "a-2": 0.0, "a-3": 0.0, "b-0": 0.0, "b-1": 0.0, "b-2": 0.0, "c-0": 1.0}
    said = Scripted({e.query.query_id: Permutation(tuple(range(len(e.candidates)))) for e in examples})
    recipe = SelfConsistent(relevant_from=0.5)
    prepared = recipe.prepare(examples, Teacher(said, Sliding()), Teacher(Pointing(points), max_failed=1))
    (row,) = prepared.rows
    assert row.example.order == ("a-0", "a-2", "a-3")
    assert [document.doc_id for document in row.example.candidates] == ["a-0", "a-2", "a-3"]
    assert dict(prepared.left_out) == {
        "passages without points": 2,
        "questions with fewer than 2 passages that have points": 1,
        "questions without a passage that the points call relevant": 1,
    }


def test_passages_are_not_paid_for_where_there_is_no_order() -> None:
    examples, grades = questions(5, 4)
    single = teacher(grades, "scores")
    recipe = SelfConsistent(relevant_from=1)
    prepared = recipe.prepare(examples, teacher(grades, malformed=1.0), single)
    assert (prepared.rows, single.report.calls) == ([], 0)


# --- GroupRank ---


def test_fused_labels_by_hand() -> None:
    """Equal points share ranks 2 and 3."""
    labels = fused_labels(["a", "b", "c"], {"a": 1.0, "b": 7.0, "c": 1.0})
    wanted = {"a": (2.5, 1), "b": (1, 2), "c": (2.5, 3)}
    assert labels == {d: pytest.approx(-0.5 * math.log(p) - 0.5 * math.log(r)) for d, (p, r) in wanted.items()}


def test_grades_of_fused_labels() -> None:
    count = 50
    order = [f"d{i}" for i in range(count)]
    grades = as_grades(fused_labels(order, {d: float(-i) for i, d in enumerate(order)}))
    assert [grades[d] for d in order] == [round(10 * (1 - math.log(r) / math.log(count))) for r in range(1, count + 1)]
    assert (max(grades.values()), min(grades.values())) == (10, 0)


def test_short_lists_are_spread_over_the_long_one() -> None:
    examples, grades = questions(4, 300)
    lists = teacher(grades, strategy=Sliding(window=50, stride=25))
    recipe = FusedLabels(lists=3, seed=2)
    prepared = recipe.prepare(examples, lists, teacher(grades, "scores"))
    assert len(prepared.rows) == 4 * 3
    assert lists.report.calls == 4  # once a question, however many lists
    sizes = set()
    for row in prepared.rows:
        source, ids = str(row.metadata["query_id"]), [d.doc_id for d in row.example.candidates]
        sizes.add(len(ids))
        best = sorted(ids, key=lambda doc_id: -grades[source][doc_id])
        assert row.example.order == tuple(best)
        assert ids != best  # shuffled
        assert all(grades[source][doc_id] < 200 for doc_id in ids)  # up to rank 200
        values: Any = row.metadata["labels"]
        assert sorted(ids, key=lambda doc_id: -values[doc_id]) == best
        assert all(row.example.relevance[a] >= row.example.relevance[b] for a, b in pairwise(best))
        assert max(row.example.relevance.values()) >= 4  # one of the first of 5 intervals of 50: rank 10 or better
    assert sizes <= set(range(5, 21))
    assert len(sizes) > 1
    again = recipe.prepare(examples[1:2], lists, teacher(grades, "scores"))
    assert [row.example.candidates for row in again.rows] == [row.example.candidates for row in prepared.rows[3:6]]


def test_the_long_list_has_the_first_and_some_of_the_rest() -> None:
    source = example("q", 100)
    lists = teacher({}, strategy=Sliding(window=50, stride=25))
    FusedLabels(top=10, drawn=40, until=60).prepare([source], lists, teacher({}, "scores"))
    (window,) = lists.policy.windows  # pyright: ignore[reportAttributeAccessIssue]
    places = [int(document.doc_id.removeprefix("q-")) for document in window.documents]
    assert places[:10] == list(range(10))
    assert len(set(places)) == 50
    assert places == sorted(places)
    assert max(places) < 60


def test_fewer_candidates_than_a_short_list_needs() -> None:
    examples = [example("a", 4), example("b", 5)]
    prepared = FusedLabels(lists=1).prepare(examples, teacher({}, strategy=Sliding()), teacher({}, "scores"))
    assert [len(row.example.candidates) for row in prepared.rows] == [5]
    assert dict(prepared.left_out) == {"questions with fewer than 5 candidates": 1}


# --- by name ---


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        (TaughtOrders, {"depth": 1}, "permutation has depth 1; wanted 2 or more"),
        (TaughtOrders, {"labels": "none"}, "has labels 'none'; wanted one of order, kept"),
        (SelfConsistent, {"relevant_from": math.nan}, "has relevant_from nan; wanted a finite number"),
        (SelfConsistent, {"relevant_from": 0, "least": 2}, "has least 2; wanted 0 to 1"),
        (FusedLabels, {"smallest": 1}, "grouprank has smallest 1"),
        (FusedLabels, {"largest": 4}, "has largest 4; wanted at least 5"),
        (FusedLabels, {"top": 1, "drawn": 2}, r"has top \+ drawn 3; wanted at least smallest, 5"),
        (FusedLabels, {"until": 9}, "has until 9; wanted at least top, 10"),
    ],
)
def test_settings_out_of_range(recipe: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        recipe(**settings)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_by_its_name(name: str) -> None:
    documents = tuple(Document(f"d{i}", f"passage {i}") for i in range(30))
    source = Example(Query("q", "?"), documents, (), {"d29": 1, "d3": 2})
    grades = {"q": {"d29": 10.0, "d3": 9.0}}
    lists, single = teacher(grades, strategy=Sliding()), teacher(grades, "scores")
    settings: dict[str, Any] = {"relevant_from": 5} if name == "reasonrank" else {}
    prepared = rankwright.prepare(name, [source], lists=lists, single=single, **settings)
    assert prepared.rows
    assert (lists.report.calls > 0, single.report.calls > 0) == (RECIPES[name].teachers > 0, RECIPES[name].teachers > 1)


def test_unknown_names_and_missing_teachers() -> None:
    with pytest.raises(ConfigurationError, match="Data recipe 'listnet' is unknown; use one of rearank"):
        rankwright.prepare("listnet", [])
    with pytest.raises(ConfigurationError, match="permutation was given too few teachers; wanted one that orders"):
        rankwright.prepare("permutation", [])
    with pytest.raises(ConfigurationError, match=r"grouprank was given too few .* and one that scores single ones"):
        rankwright.prepare("grouprank", [], lists=teacher({}))
