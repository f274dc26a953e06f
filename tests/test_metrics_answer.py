from __future__ import annotations

import sys

import pytest

from rankwright.errors import DataError, MissingDependencyError
from rankwright.metrics import answer as module
from rankwright.metrics.answer import contains_answer, exact_match, f1, normalise, rouge_l, sub_em

METRICS = (exact_match, f1, sub_em, rouge_l)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Jean-Luc Godard", "jeanluc godard"),
        ("Beyoncé", "beyoncé"),
        ("the A-Team", "ateam"),
        ("1,000", "1000"),
        ("東京", "東京"),
        ("  An  apple a\tday ", "apple day"),
        ("theatre", "theatre"),
        ("The A", ""),
    ],
)
def test_normalise_follows_the_squad_rules(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "token_f1"),
    [
        ("Paris", ["Paris"], 1.0, 1.0),
        ("London", ["Paris"], 0.0, 0.0),
        ("The capital is Paris", ["Paris"], 0.0, 2 * (1 / 3) * 1 / (1 / 3 + 1)),
        ("Barack Obama", ["Barack Hussein Obama"], 0.0, 2 * 1 * (2 / 3) / (1 + 2 / 3)),
        ("who", ["The Who"], 1.0, 1.0),
        ("no no no", ["no"], 0.0, 2 * (1 / 3) * 1 / (1 / 3 + 1)),
        ("new york new york", ["york new"], 0.0, 2 * (2 / 4) * 1 / (2 / 4 + 1)),
        ("x", ["y z", "x w", "w"], 0.0, 2 * 1 * (1 / 2) / (1 + 1 / 2)),
        ("", [""], 1.0, 1.0),
        ("the", [""], 1.0, 1.0),
        ("", ["Paris"], 0.0, 0.0),
        ("Paris", [""], 0.0, 0.0),
        ("東京", ["東京"], 1.0, 1.0),
        ("京都", ["東京"], 0.0, 0.0),
    ],
)
def test_exact_match_and_f1(prediction: str, answers: list[str], em: float, token_f1: float) -> None:
    assert exact_match(prediction, answers) == em
    assert f1(prediction, answers) == pytest.approx(token_f1)


@pytest.mark.parametrize("metric", [exact_match, f1, sub_em])
def test_an_answer_that_the_rules_empty_equals_only_itself(metric) -> None:
    assert metric("a", ["A"]) == 1.0
    assert metric("the", ["A"]) == 0.0
    assert metric("", ["A"]) == 0.0
    assert metric("!", ["?"]) == 0.0


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("It was Jean-Luc Godard.", ["Jean-Luc Godard"], 1.0),
        ("I know nothing", ["no"], 0.0),
        ("the cat sat", ["at"], 0.0),
        ("anything at all", ["?", "A", ""], 0.0),
        ("vitamin A", ["A", "vitamin a"], 1.0),
        ("", [""], 1.0),
        ("答えは東京です", ["東京"], 1.0),
        ("no idea", ["no"], 1.0),
    ],
)
def test_sub_em_matches_whole_tokens(prediction: str, answers: list[str], expected: float) -> None:
    assert sub_em(prediction, answers) == expected


@pytest.mark.parametrize("metric", [f1, sub_em, rouge_l])
def test_yes_no_guard_is_off_by_default_and_cuts_both_ways(metric) -> None:
    assert metric("yes, he did", ["yes"]) > 0.0
    assert metric("yes, he did", ["yes"], yes_no_guard=True) == 0.0
    assert metric("Yes.", ["yes"], yes_no_guard=True) == 1.0
    assert metric("red house", ["house red"], yes_no_guard=True) == metric("red house", ["house red"])


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Barack Obama", ["Barack Hussein Obama"], 2 * 1 * (2 / 3) / (1 + 2 / 3)),
        ("running dogs", ["run dog"], 1.0),
        ("b a", ["a b"], 0.5),
        ("London", ["Paris", "london"], 1.0),
        ("", [""], 1.0),
        (".", ["Paris"], 0.0),
        ("東京都", ["東京"], 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("Beyoncé", ["beyoncé"], 1.0),
        ("beyonc", ["beyoncé"], 0.0),
    ],
)
def test_rouge_l(prediction: str, answers: list[str], expected: float) -> None:
    assert rouge_l(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize("metric", METRICS)
def test_the_best_accepted_answer_counts(metric) -> None:
    one_by_one = [metric("new york city", [answer]) for answer in ("boston", "new york", "york city new")]
    assert metric("new york city", ["boston", "new york", "york city new"]) == max(one_by_one)


@pytest.mark.parametrize("metric", [*METRICS, contains_answer])
def test_missing_answers_are_refused(metric) -> None:
    with pytest.raises(DataError, match="empty"):
        metric("Paris", [])
    with pytest.raises(DataError, match="single text"):
        metric("Paris", "Paris")


def test_contains_answer_looks_for_whole_tokens() -> None:
    passage = "The Eiffel Tower, in Paris, opened in 1889."
    assert contains_answer(passage, ["the Eiffel tower"])
    assert contains_answer(passage, ["Rome", "1889"])
    assert not contains_answer(passage, ["Par", "188"])
    assert not contains_answer(passage, ["", "a", "?"])
    assert not contains_answer("", [""])


def test_rouge_without_its_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    module._rouge_scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "rankwright\[rouge\]"'):
        rouge_l("Paris", ["Paris"])
