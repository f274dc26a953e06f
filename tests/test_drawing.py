"""Training sets drawn from labelled questions: what is in a set, what is dropped, that draws repeat themselves."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rankwright.data import load_examples
from rankwright.data.drawing import DrawnSets, OneRelevant, Prepared, PreparedRow, interval_sample, write_prepared
from rankwright.errors import ConfigurationError, DataError
from rankwright.types import Document, Example, Query


def example(query_id: str, count: int, relevance: dict[str, int], **more: Any) -> Example:
    """Candidates d0, d1, ... whose first-stage scores fall."""
    documents = tuple(Document(f"d{i}", f"passage {i}") for i in range(count))
    scores = {document.doc_id: float(-i) for i, document in enumerate(documents)}
    return Example(Query(query_id, f"{query_id}?"), documents, ("yes",), relevance, scores, **more)


def ids(row: PreparedRow) -> list[str]:
    return [document.doc_id for document in row.example.candidates]


# --- REARANK ---


def test_a_set_is_part_of_the_candidates_in_their_order_with_what_belongs_to_it() -> None:
    source = example("q", 12, {"d1": 2, "d7": 1, "elsewhere": 1}, order=("d7", "d1", "d0"))
    prepared = DrawnSets(draws=30, size=5, depth=10, measured="none").prepare([source])
    assert prepared.rows
    for row in prepared.rows:
        drawn = ids(row)
        assert len(drawn) == 5
        assert drawn == sorted(drawn, key=lambda doc_id: int(doc_id[1:]))
        assert {"d10", "d11"}.isdisjoint(drawn)  # beyond the depth
        assert row.example.relevance == {d: source.relevance[d] for d in source.relevance if d in drawn}
        assert row.example.first_stage == {d: source.first_stage[d] for d in drawn}
        assert row.example.order == tuple(d for d in source.order if d in drawn)
        assert (row.example.answers, row.example.query.text) == (source.answers, source.query.text)
        assert row.metadata["query_id"] == "q"
        assert row.example.query.query_id == f"q#{row.metadata['draw']}"
    dropped = prepared.left_out["sets without a relevant passage"] + prepared.left_out["sets that were drawn before"]
    assert len(prepared.rows) + dropped == 30


def test_draws_depend_on_seed_question_and_number_alone() -> None:
    one, two = example("a", 40, {f"d{i}": 1 for i in range(40)}), example("b", 40, {f"d{i}": 1 for i in range(40)})
    recipe = DrawnSets(draws=4, size=10, depth=40, seed=3, measured="none")
    together = [ids(row) for row in recipe.prepare([one, two]).rows]
    alone = [ids(row) for row in recipe.prepare([two]).rows]
    assert together[4:] == alone
    assert len({tuple(drawn) for drawn in together}) == 8  # differ between questions and numbers
    fewer = DrawnSets(draws=2, size=10, depth=40, seed=3, measured="none")
    assert [ids(row) for row in fewer.prepare([two]).rows] == alone[:2]
    other = DrawnSets(draws=4, size=10, depth=40, seed=4, measured="none")
    assert [ids(row) for row in other.prepare([two]).rows] != alone


def test_every_candidate_is_drawn_equally_often() -> None:
    """size / depth of the draws, within four standard deviations."""
    draws, share = 600, 5 / 20
    source = example("q", 20, {f"d{i}": 1 for i in range(20)})
    rows = DrawnSets(draws=draws, size=5, depth=20, measured="none").prepare([source]).rows
    times = Counter(doc_id for row in rows for doc_id in ids(row))
    assert max(abs(times[f"d{i}"] - len(rows) * share) for i in range(20)) < 4 * math.sqrt(draws * share * (1 - share))


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        # Two candidates, the relevant one second: the set as it stands has 1 / log2(3) = 0.63 of the set's best order.
        ({"measured": "initial", "ideal": "set", "least": 0.63}, True),
        ({"measured": "initial", "ideal": "set", "least": 0.64}, False),
        ({"measured": "best", "ideal": "set", "least": 1.0}, True),
        # Of all labelled passages (two of grade 1) the best order is 1 + 1 / log2(3) = 1.63.
        ({"measured": "initial", "ideal": "question", "least": 0.38}, True),  # 0.631 / 1.631 = 0.387
        ({"measured": "initial", "ideal": "question", "least": 0.39}, False),
        ({"measured": "best", "ideal": "question", "least": 0.61}, True),  # 1 / 1.631 = 0.613
        ({"measured": "best", "ideal": "question", "least": 0.62}, False),
        ({"measured": "none", "ideal": "question", "least": 1.0}, True),
        ({"measured": "initial", "ideal": "set", "least": 0.0, "cutoff": 1}, True),
        ({"measured": "initial", "ideal": "set", "least": 0.1, "cutoff": 1}, False),
    ],
)
def test_filters_by_hand(settings: dict[str, Any], kept: bool) -> None:
    source = example("q", 2, {"d1": 1, "elsewhere": 1})
    prepared = DrawnSets(draws=1, size=2, depth=2, **settings).prepare([source])
    assert len(prepared.rows) == kept
    assert prepared.left_out.total() == (not kept)


def test_sets_without_a_relevant_passage_are_dropped_and_a_grade_below_0_is_none() -> None:
    source = example("q", 3, {"d0": 1, "d1": -2})
    prepared = DrawnSets(draws=40, size=1 + 1, depth=3, measured="initial").prepare([source])
    assert {tuple(ids(row)) for row in prepared.rows} == {("d0", "d1"), ("d0", "d2")}
    assert prepared.left_out["sets without a relevant passage"] == 1  # its repetitions count as such
    assert prepared.left_out["sets that were drawn before"] == 40 - 3


def test_shuffled_sets_stand_in_the_order_of_the_draw() -> None:
    source = example("q", 6, {f"d{i}": 1 for i in range(6)})
    prepared = DrawnSets(draws=200, size=3, depth=6, order="shuffled", least=0).prepare([source])
    firsts = Counter(ids(row)[0] for row in prepared.rows)
    assert set(firsts) == {f"d{i}" for i in range(6)}
    assert len(prepared.rows) > math.comb(6, 3)  # other orders of a set are other prompts


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (example("q", 3, {"d0": 1}), "questions with fewer than 4 candidates"),
        (example("q", 9, {}), "questions without a relevant label"),
        (example("q", 9, {"d0": 0}), "questions without a relevant label"),
        (example("q", 9, {"d8": 1}), "questions without a relevant passage among 6 candidates"),
    ],
)
def test_questions_that_no_set_can_be_drawn_from(source: Example, reason: str) -> None:
    prepared = DrawnSets(draws=3, size=4, depth=6).prepare([source])
    assert (prepared.questions, prepared.rows, dict(prepared.left_out)) == (1, [], {reason: 1})


# --- Rank-R1 ---


def test_one_relevant_passage_and_all_others_not() -> None:
    source = example("q", 12, {"d5": 1, "d2": 2, "d3": 0})
    (row,) = OneRelevant(negatives=9).prepare([source]).rows
    assert len(ids(row)) == 10
    assert "d2" not in ids(row)  # relevant too, but d5 is the first of the labels
    assert row.example.relevance == {"d5": 1} | ({"d3": 0} if "d3" in ids(row) else {})
    assert ids(row) != sorted(ids(row), key=lambda doc_id: int(doc_id[1:]))  # shuffled
    assert row.example.query.query_id == "q"


def test_the_relevant_passage_stands_anywhere() -> None:
    sources = [example(f"q{i}", 6, {"d0": 1}) for i in range(400)]
    places = Counter(ids(row).index("d0") for row in OneRelevant(negatives=3).prepare(sources).rows)
    assert set(places) == {0, 1, 2, 3}
    assert max(abs(times - 100) for times in places.values()) < 4 * math.sqrt(400 * 0.25 * 0.75)


def test_the_number_of_others_is_drawn_in_proportion_to_itself() -> None:
    """k of 1, 2, 3 with probability k / 6, within four standard deviations."""
    total, most = 1200, 3
    sources = [example(f"q{i}", 9, {"d0": 1}) for i in range(total)]
    rows = OneRelevant(negatives=most, count="drawn").prepare(sources).rows
    times = Counter(len(ids(row)) - 1 for row in rows)
    assert set(times) == {1, 2, 3}
    for k in times:
        share = k / math.comb(most + 1, 2)
        assert abs(times[k] - total * share) < 4 * math.sqrt(total * share * (1 - share))


def test_a_random_relevant_passage() -> None:
    sources = [example(f"q{i}", 5, {"d1": 1, "d2": 1}) for i in range(60)]
    chosen = Counter(next(iter(row.example.relevance)) for row in OneRelevant(2, "random").prepare(sources).rows)
    assert set(chosen) == {"d1", "d2"}


def test_a_relevant_passage_that_the_first_stage_missed() -> None:
    source, missed = example("q", 3, {"m": 1}), Document("m", "missed")
    assert dict(OneRelevant(3).prepare([source]).left_out) == {"questions whose relevant passages are not known": 1}
    (row,) = OneRelevant(3).prepare([source], {"m": missed}).rows
    assert sorted(ids(row)) == ["d0", "d1", "d2", "m"]


@pytest.mark.parametrize(
    ("source", "settings", "reason"),
    [
        (example("q", 9, {}), {}, "questions without a relevant label"),
        (example("q", 9, {"d0": 1}), {}, "questions with fewer than 19 candidates not relevant"),
        (example("q", 30, {"d0": 1}), {"depth": 19}, "questions with fewer than 19 candidates not relevant"),
        (
            example("q", 1, {"d0": 1}),
            {"count": "drawn"},
            "questions with fewer than 1 candidate not relevant",
        ),
    ],
)
def test_questions_without_enough_for_a_set(source: Example, settings: dict[str, Any], reason: str) -> None:
    prepared = OneRelevant(**settings).prepare([source])
    assert (prepared.rows, dict(prepared.left_out)) == ([], {reason: 1})


# --- both ---


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        (DrawnSets, {"draws": 0}, "rearank has draws 0; wanted 1 or more"),
        (DrawnSets, {"size": 1}, "has size 1; wanted 2 or more"),
        (DrawnSets, {"depth": 19}, "has depth 19; wanted at least size, 20"),
        (DrawnSets, {"least": 1.5}, "has least 1.5; wanted 0 to 1"),
        (DrawnSets, {"measured": "final"}, "has measured 'final'; wanted one of initial, best, none"),
        (DrawnSets, {"cutoff": 0}, "has cutoff 0"),
        (OneRelevant, {"negatives": 0}, "rank-r1 has negatives 0"),
        (OneRelevant, {"count": "some"}, "has count 'some'; wanted one of all, drawn"),
        (OneRelevant, {"positive": "last"}, "has positive 'last'"),
    ],
)
def test_settings_out_of_range(recipe: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        recipe(**settings)


def test_a_passage_that_stands_twice_is_refused() -> None:
    source = example("q", 2, {"d0": 1})
    twice = Example(source.query, source.candidates + source.candidates[:1], relevance=source.relevance)
    with pytest.raises(DataError, match="Candidates of query 'q' hold a doc_id more than once"):
        DrawnSets(draws=1, size=3, depth=3).prepare([twice])


def test_rows_read_back_with_their_source(tmp_path: Path) -> None:
    prepared = DrawnSets(draws=2, size=3, depth=9, measured="none").prepare([example("q", 9, {"d0": 3, "d1": 1})])
    write_prepared(tmp_path / "sets.jsonl", prepared)
    assert list(load_examples(tmp_path / "sets.jsonl", "jsonl").examples) == [row.example for row in prepared.rows]
    assert '"metadata": {"recipe": "rearank", "query_id": "q", "draw": ' in (tmp_path / "sets.jsonl").read_text()


def test_nothing_and_repeated_ids_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "sets.jsonl"
    with pytest.raises(DataError, match=r"Of 3 questions no row is left for .* \(left out: 2 cats\)"):
        write_prepared(path, Prepared(3, [], Counter(cats=2)))
    rows = DrawnSets(draws=1, size=2, depth=2).prepare([example("q", 2, {"d0": 1})]).rows
    with pytest.raises(DataError, match="query_id 'q#1' would stand 2 times"):
        write_prepared(path, Prepared(1, rows * 2))
    assert not path.exists()


@pytest.mark.parametrize(("count", "size"), [(5, 5), (50, 20), (7, 3), (20, 1)])
def test_an_interval_sample_has_one_of_each_interval(count: int, size: int) -> None:
    for seed in range(20):
        places = interval_sample(count, size, Random(seed))
        assert len(places) == size
        for number, place in enumerate(places):
            assert math.floor(count * number / size) <= place < math.ceil(count * (number + 1) / size)
