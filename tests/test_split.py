"""The split of the real questions: what trains one part of the project is never shown to another."""

from __future__ import annotations

import json
import random
from itertools import combinations
from pathlib import Path

import pytest

from benchmarks.embedded import sets

SIDES = ("reader", "reference", "rrpo", "dev", "test")
SPLIT = Path(sets.__file__).parent / "split.json"


@pytest.fixture
def gold(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """side -> ids of its gold passages."""
    monkeypatch.setattr(sets, "ROOT", data_root)
    return {name: {d.doc_id for q in sets.side(name) for d in q.gold} for name in SIDES}


def test_no_question_is_on_two_sides() -> None:
    keys = [key for name in SIDES for key in json.loads(SPLIT.read_text(encoding="utf-8"))[name]]
    assert len(keys) == len(set(keys)) > 4000


@pytest.mark.parametrize(("one", "other"), combinations(SIDES, 2), ids="-".join)
def test_no_gold_passage_is_on_two_sides(gold: dict[str, set[str]], one: str, other: str) -> None:
    assert gold[one]
    assert not gold[one] & gold[other]


@pytest.fixture
def titles(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """side -> titles of its gold passages."""
    monkeypatch.setattr(sets, "ROOT", data_root)
    return {name: {d.title.lower().strip() for q in sets.side(name) for d in q.gold} - {""} for name in SIDES}


@pytest.mark.parametrize(("one", "other"), combinations(SIDES, 2), ids="-".join)
def test_no_title_of_a_gold_passage_is_on_two_sides(titles: dict[str, set[str]], one: str, other: str) -> None:
    assert titles[one]
    assert not titles[one] & titles[other]


@pytest.mark.parametrize("name", ["reader", "reference"])
def test_training_shows_no_gold_passage_of_another_side(gold: dict[str, set[str]], name: str) -> None:
    from benchmarks.embedded.train_reader import TRAIN_SETS

    shown = {d.doc_id for d in sets.passages_for(name, TRAIN_SETS)}
    others = [ids for side, ids in gold.items() if side != name]
    assert shown
    assert not shown & set().union(*others)


def test_no_test_question_has_a_gold_passage_that_training_showed(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their words, because the same article stands under two ids where two sets print it differently."""
    from benchmarks.embedded.train_reader import TRAIN_SETS

    monkeypatch.setattr(sets, "ROOT", data_root)
    seen = sets.Shown(d for name in ("reader", "reference") for d in sets.passages_for(name, TRAIN_SETS))
    for name in ("dev", "test"):
        questions = sets.side(name)
        assert questions
        assert [q.key for q in questions if any(d in seen for d in q.gold)] == []


def test_a_passage_printed_differently_is_the_same_passage() -> None:
    text = "The Crowne Plaza is a chain of hotels, founded in 1983."
    seen = sets.Shown([sets.document("Crowne Plaza", f"{text} It has 409 of them in 52 countries.")])
    assert sets.document("crowne plaza", text.upper()) in seen
    assert sets.document("Other", f" {text}  It has 409 of them in 52 countries. ") in seen
    assert sets.document("Other", text) not in seen
    assert sets.document("Crowne Plaza", "Its first house was opened in Rockville, Maryland.") not in seen


def test_the_reference_never_sees_what_scifact_tests(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.embedded.train_reference import training_lists

    monkeypatch.setattr(sets, "ROOT", data_root)
    tested = {doc_id for _, _, labels in sets.scifact_test() for doc_id in labels}
    shown = {d.doc_id for item in training_lists(random.Random(0), 400, 3000) for d in (*item.gold, *item.found)}
    assert len(tested) > 200
    assert not shown & tested
