"""Rewards of generated rankings: tables by hand, an independent oracle on 5,000 random cases a reward, and what must
hold of all of them."""

from __future__ import annotations

import dataclasses
import doctest
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankwright.errors import ConfigurationError, DataError, IncompleteQuestionError, ReaderError
from rankwright.metrics import orders
from rankwright.metrics.ranking import ranking_metrics
from rankwright.rewards import RANKING_REWARDS, answer_reward, ranking_reward, words
from rankwright.rewards.ladders import LADDERS, Ladder, Rung
from rankwright.types import (
    Answer,
    Choice,
    Context,
    Document,
    Example,
    Judgement,
    Outcome,
    Permutation,
    Query,
    Ranking,
    ReadFailed,
    ReadResult,
    RewardValue,
    Scores,
)
from tests import ranking_reward_oracle as oracle
from tests.cli_kit import ROOT

CASES = 5000
UNREAD = ReadFailed("nobody read", paid=False)
SECOND = 1 / math.log2(3)
"""Discount of rank 2."""


def outcome(grades: Sequence[int], judgement: Judgement | None, text: str = "", group: str = "q") -> Outcome:
    """What a prompt with documents d1, d2, ... of these grades came to."""
    documents = tuple(Document(f"d{i}", f"text {i}") for i in range(1, len(grades) + 1))
    query = Query(group, "Which?")
    relevance = {document.doc_id: grade for document, grade in zip(documents, grades, strict=True)}
    example = Example(query, documents, ("yes",), relevance)
    return Outcome(example, Context(query, documents), UNREAD, 0, group, judgement, text)


def order(*ids: int) -> Permutation:
    """An order as a prompt's ids say it, from 1."""
    return Permutation(tuple(i - 1 for i in ids))


def said(answer: str, thought: str = "x", tag: str = "think") -> str:
    return f"<{tag}>{thought}</{tag}> <answer>{answer}</answer>"


def strict(text: str, count: int) -> Permutation:
    """The judgement of a strict parser of [2] > [1] in the last answer block."""
    found = re.fullmatch(r"\s*\[\d+\](\s*>\s*\[\d+\])*\s*", oracle.last_answer(text) or "")
    ids = [int(number) for number in re.findall(r"\d+", found[0])] if found else []
    if sorted(ids) == list(range(1, count + 1)):
        return order(*ids)
    return Permutation(tuple(range(count)), "malformed", ("not an order",))


def ids_of(judgement: Permutation) -> list[int] | None:
    return [i + 1 for i in judgement.order] if judgement.outcome == "ok" else None


def value(reward: Any, *outcomes: Outcome) -> float | None:
    return reward(list(outcomes))[0].value


def test_doctests() -> None:
    for module in (orders, words):
        result = doctest.testmod(module)
        assert result.attempted
        assert result.failed == 0


# --- tables by hand ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grades", "text", "relative", "tags", "form"),
    [
        # From 1/log2(3) to 1: the best order earns all of it, the prompt's own nothing.
        ([0, 1], said("[2] > [1]"), 1.0, 1, 1),
        ([0, 1], said("[1] > [2]"), 0.0, 1, 1),
        # Three documents, only the middle one relevant: last place loses what first place wins, and more.
        ([0, 1, 0], said("[1] > [3] > [2]"), (0.5 - SECOND) / (1 - SECOND), 1, 1),
        # Linear gains, not 2^g - 1: from (1, 3) the best gains (3 + s) - (1 + 3s).
        ([1, 3, 0], said("[1] > [3] > [2]"), (1 + 3 / 2 - 1 - 3 * SECOND) / (3 + SECOND - 1 - 3 * SECOND), 1, 1),
        # Nothing to gain: measured from zero.
        ([1, 0], said("[1] > [2]"), 1.0, 1, 1),
        ([1, 0], said("[2] > [1]"), SECOND, 1, 1),
        ([1, 1], said("[2] > [1]"), 1.0, 1, 1),
        ([0, 0], said("[2] > [1]"), 0.0, 1, 1),
        ([*[1] * 10, 0, 1], said(" > ".join(f"[{i}]" for i in range(1, 13))), 1.0, 1, 1),  # from rank 11 nothing counts
        # Malformed: the rank term is 0, the two forms are looked at one by one.
        ([0, 1], said("[2] > [2]"), 0.0, 1, 1),
        ([0, 1], said("[2]"), 0.0, 1, 1),
        ([0, 1], said("[0] > [1]"), 0.0, 1, 1),
        ([0, 1], said("2 > 1"), 0.0, 1, 0),
        ([0, 1], "<answer>[2] > [1]</answer>", 1.0, 0, 1),
        ([0, 1], "<think>a</think> [2] > [1]", 0.0, 0, 0),
        ([0, 1], "", 0.0, 0, 0),
    ],
)
def test_rearank_by_hand(grades: list[int], text: str, relative: float, tags: int, form: int) -> None:
    (found,) = ranking_reward("rearank")([outcome(grades, strict(text, len(grades)), text)])
    assert found.value == pytest.approx(0.8 * relative + 0.1 * tags + 0.1 * form)
    assert found.parts["rank"] == pytest.approx(relative)
    assert (found.parts["tags"], found.parts["form"]) == (tags, form)


def test_rearank_is_clipped_only_when_asked() -> None:
    """Nine of ten places lost, where one was to be gained."""
    grades = [2, 3, *[0] * 18]
    last = [*range(3, 21), 2, 1]
    worst = outcome(grades, order(*last), said(" > ".join(f"[{i}]" for i in last)))
    unclipped = (0 - 2 - 3 * SECOND) / (3 + 2 * SECOND - 2 - 3 * SECOND)
    assert unclipped < -5
    assert value(ranking_reward("rearank"), worst) == pytest.approx(0.8 * unclipped + 0.2)
    assert value(ranking_reward("rearank", clip=5), worst) == pytest.approx(0.8 * -5 + 0.2)


def test_rearank_settled_as_tfrank_has_it() -> None:
    reward = ranking_reward("rearank", settled="ndcg-1")
    assert value(reward, outcome([1, 0], order(1, 2), said("[1] > [2]"))) == pytest.approx(0.2)
    assert value(reward, outcome([1, 0], order(2, 1), said("[2] > [1]"))) == pytest.approx(0.8 * (SECOND - 1) + 0.2)


@pytest.mark.parametrize(
    ("grades", "text", "position", "paid"),
    [
        ([0, 1, 0], said("[2]"), 1, 1),
        ([0, 1, 0], said("[1]"), 0, 0),
        ([0, 1, 0], said("2"), None, 0),  # not the label
        ([0, 1, 0], "<THINK>x</THINK>\n<Answer>[2]</Answer>", 1, 1),  # the authors lower the text first
        ([0, 1, 0], "[2]", 1, 0),  # right, but not in the form
        ([0, 1, 0], "<think>x</think> so <answer>[2]</answer>", 1, 0),
        ([1, 3, 3], said("[3]"), 2, 1),
        ([1, 3, 3], said("[1]"), 0, 0),
        ([0, 0], said("[1]"), 0, 0),
    ],
)
def test_rank_r1_by_hand(grades: list[int], text: str, position: int | None, paid: int) -> None:
    judgement = Choice(position, "ok" if position is not None else "malformed")
    assert value(ranking_reward("rank-r1"), outcome(grades, judgement, text)) == paid


@pytest.mark.parametrize(
    ("grades", "text", "paid"),
    [
        ([0, 1], said("[2] > [1]"), 1 + 0.2 + 0.1),
        ([0, 1], said("[1] > [2]"), SECOND + 0.2 + 0.1 * (0 / 1 + 2 / 2) / 2),
        # Grades are relevant or not: 3 and 1 are equal to nDCG, not to the gold order.
        ([3, 1], said("[2] > [1]"), 1 + 0.2 + 0.1 * 0.5),
        ([0, 1], said("[2] > [2]"), 0),
        ([0, 1], said("[2] > [1] > [1]"), 0),
        ([0, 1], said("[2] > [0]"), 0),
        ([0, 1], "<answer>[2] > [1]</answer>", -1),
        ([0, 1], "<think>x</think> I say <answer>[2] > [1]</answer>", -1),
        ([0, 1], "", -1),
        ([0, 0], said("[1] > [2]"), 0.1),
    ],
)
def test_reasonrank_by_hand(grades: list[int], text: str, paid: float) -> None:
    found = value(ranking_reward("reasonrank"), outcome(grades, strict(text, len(grades)), text))
    assert found == pytest.approx(paid)


def test_reasonrank_pays_two_relevant_at_ranks_nine_and_ten_for_recall() -> None:
    """The reason for recall: both survive into the next window, though nDCG prefers ranks 1 and 11."""
    grades = [1, 1, *[0] * 10]
    kept = order(*range(3, 11), 1, 2, 11, 12)
    split = order(1, *range(3, 12), 2, 12)
    one, two = ranking_reward("reasonrank")([outcome(grades, j, said("x")) for j in (kept, split)])
    assert one.parts["ndcg"] < two.parts["ndcg"]
    assert (one.parts["recall"], two.parts["recall"]) == (1.0, 0.5)


def test_reasonrank_with_a_teachers_order() -> None:
    """d3 > d1 > d2, then what the teacher did not rank."""
    gold = {"q": ("d3", "elsewhere", "d1")}
    reward = ranking_reward("reasonrank", gold=gold, recall_weight=0, overlap_weight=1)
    right = outcome([0, 1, 0, 2], order(3, 1, 4, 2), said("x"))
    assert reward([right])[0].parts["overlap"] == 1
    assert reward([replace(right, judgement=order(3, 1, 2, 4))])[0].parts["overlap"] == pytest.approx((3 + 2 / 3) / 4)
    of_the_data = replace(right, example=replace(right.example, order=gold["q"]))
    own = ranking_reward("reasonrank", recall_weight=0, overlap_weight=1)
    assert own([of_the_data])[0] == reward([right])[0] != own([right])[0]


@pytest.mark.parametrize(
    ("grades", "scores", "paid"),
    [
        # The same distribution: JS is 0.
        ([0, 1], [0.0, 7.0], 1 + 0.2 + 0.1),
        # The opposite one: JS in bits is 1.
        ([0, 1], [7.0, 0.0], SECOND + 0.2 + 0.1 * 0),
        # All tied: each order half of the time, and JS((1/2, 1/2), (0, 1)) = H(1/4, 3/4) - H(1/2, 1/2) / 2.
        ([0, 1], [5.0, 5.0], (1 + SECOND) / 2 + 0.2 + 0.1 * (1 - (0.25 * 2 + 0.75 * math.log2(4 / 3) - 0.5))),
        # All zero: uniform too.
        ([0, 0], [0.0, 0.0], 0.1),
    ],
)
def test_grouprank_by_hand(grades: list[int], scores: list[float], paid: float) -> None:
    text = said("{}", tag="reason")
    found = value(ranking_reward("grouprank"), outcome(grades, Scores(tuple(scores)), text))
    assert found == pytest.approx(paid)


@pytest.mark.parametrize(
    ("text", "judgement", "paid"),
    [
        ("no tags", Scores((1.0, 2.0)), -0.5),
        ("no tags", Scores((None, None), "malformed"), -0.5),
        (said("{", tag="reason"), Scores((None, None), "malformed"), -0.1),
        (said("{", tag="reason"), Scores((1.0, None)), -0.1),
        (said("{", tag="reason"), Scores((1.0, math.nan)), -0.1),
        (said("{}", tag="think"), Scores((1.0, 2.0)), -0.5),
    ],
)
def test_the_ladder_of_grouprank(text: str, judgement: Scores, paid: float) -> None:
    assert value(ranking_reward("grouprank"), outcome([0, 1], judgement, text)) == paid


@pytest.mark.parametrize(
    ("grades", "text", "result", "form"),
    [
        ([0, 1, 0, 0], said("[2, 1, 3, 4]"), 1.0, 1.0),
        ([0, 1, 0, 0], said("[1, 2, 3, 4]"), 1 / 8, 1.0),
        ([0, 1, 0, 1], said("[4, 1, 2]"), (1 + 1 / 27) / (1 + 1 / 8), 3 / 4),
        ([0, 1, 0, 0], said("[2]"), 1.0, 1 / 4),
        ([0, 1, 0, 0], said("[2, 2, 2, 2]"), 1.0, 1 / 4),  # repeated ids count once
        ([0, 0, 0, 1], said("[0, 4]"), 1 / 8, 2 / 4 * 1 / 2),  # 0 is none, and not the last
        ([0, 1], said("[9, 8, 7, 6, 5, 2]"), 1 / 216, (2 - 4) / 2 * 1 / 6),  # below 0
        ([0, 1], "<answer>[2, 1]</answer>", 1.0, 0.0),
        ([0, 1], said("none of them"), 0.0, 0.0),
        ([0, 1], said("9" * 5000), 0.0, 0.0),
        ([0, 0], said("[1, 2]"), 0.0, 1.0),
    ],
)
def test_mm_r5_by_hand(grades: list[int], text: str, result: float, form: float) -> None:
    malformed = Permutation(tuple(range(len(grades))), "malformed")
    (found,) = ranking_reward("mm-r5")([outcome(grades, malformed, text)])
    assert found.value == pytest.approx(result + form)
    assert (found.parts["result"], found.parts["format"]) == (pytest.approx(result), pytest.approx(form))


@pytest.mark.parametrize(
    ("grade", "score", "paid"), [(1, 1, 1.0), (0, 0, 1.0), (1, 0, 0.5), (0, 1, 0.5), (1, 7, 0.0), (1, None, 0.0)]
)
def test_prorank_by_hand(grade: int, score: float | None, paid: float) -> None:
    judgement = Scores((score,), "malformed" if score is None else "ok")
    assert value(ranking_reward("prorank"), outcome([grade], judgement)) == paid


# --- a question's pool -------------------------------------------------------------------------------------------

Roll = oracle.Roll


def pool(rolls: Sequence[Roll], group: str = "q") -> list[Outcome]:
    """A question's rollouts, each of a prompt with one document."""
    documents = {name: Document(name, name) for name, _, _ in rolls}
    relevance = {name: grade for name, _, grade in rolls}
    query = Query(group, "Which?")
    example = Example(query, tuple(documents.values()), (), relevance)
    return [
        Outcome(
            example,
            Context(query, (documents[name],)),
            UNREAD,
            0,
            group,
            Scores((score,), "malformed" if score is None else "ok"),
        )
        for name, score, _ in rolls
    ]


def test_erank_by_hand() -> None:
    """Two rollouts of a relevant and of two other documents: 9 is rank 1, both 7 are rank 2, 3 is rank 4, 0 is rank
    5."""
    rolls: list[Roll] = [("a", 9, 1), ("a", 3, 1), ("b", 7, 0), ("b", 3, 0), ("c", 7, 0), ("c", None, 0)]
    assert [v.value for v in ranking_reward("erank")(pool(rolls))] == [1.0, 0.25, -0.5, 0.0, -0.5, -1.0]
    near = {("q", "a"): 9.0, ("q", "b"): 1.0, ("q", "c"): 7.0}
    paid = [v.value for v in ranking_reward("erank", reference=near, above="best")(pool(rolls))]
    squares = [-0.5 * ((score - near["q", name]) / 10) ** 2 for name, score in (("b", 7), ("b", 3), ("c", 7))]
    assert paid == [1.0, 0.25, *map(pytest.approx, squares), -1.0]


def test_one_number_for_all_earns_the_most_of_erank_unless_ties_stand_against_it() -> None:
    same: list[Roll] = [("a", 5, 1), ("a", 5, 1), ("b", 5, 0), ("b", 5, 0)]
    apart: list[Roll] = [("a", 5, 1), ("a", 5, 1), ("b", 0, 0), ("b", 0, 0)]
    for rolls, ties, paid in (
        (same, "shared", [1, 1, 0, 0]),
        (apart, "shared", [1, 1, 0, 0]),
        (same, "against", [1 / 3, 1 / 3, -0.5, -0.5]),
        (apart, "against", [1, 1, 0, 0]),
    ):
        assert [v.value for v in ranking_reward("erank", ties=ties)(pool(rolls))] == paid


def test_erank_as_a_share_of_ndcg() -> None:
    """Both rollouts of the relevant document on top: their shares add up to 1."""
    rolls: list[Roll] = [("a", 9, 1), ("a", 8, 1), ("b", 7, 0), ("b", 3, 0)]
    paid = [v.value for v in ranking_reward("erank", positive="ndcg")(pool(rolls))]
    assert paid[:2] == [pytest.approx(1 / (1 + SECOND)), pytest.approx(SECOND / (1 + SECOND))]


def test_retro_star_by_hand() -> None:
    """Mean 60 for a: 100 is furthest, 50 closest. b's rollouts lie within tau, so that only the comparison pays."""
    rolls: list[Roll] = [("a", 100, 1), ("a", 50, 1), ("a", 30, 1), ("b", 30, 0), ("b", 20, 0), ("b", None, 0)]
    found = ranking_reward("retro-star")(pool(rolls))
    assert [v.parts.get("intra") for v in found] == [-1, 1, 0, 0, 0, None]
    assert [v.parts.get("inter") for v in found] == [1, 1, 0.5, pytest.approx(2 / 3), 1, None]
    assert [v.value for v in found] == [
        pytest.approx(-0.75 + 0.25),
        pytest.approx(0.75 + 0.25),
        pytest.approx(0.25 * 0.5),
        pytest.approx(0.25 * 2 / 3),
        pytest.approx(0.25),
        -1,
    ]


@pytest.mark.parametrize(
    ("reward", "options", "rolls", "message"),
    [
        ("erank", {}, [("a", 1, 1), ("a", 1, 1), ("b", 1, 0)], "1 rollouts of document 'b' of question 'q'; wanted 2"),
        ("erank", {"rollouts": 2}, [("a", 1, 1), ("b", 1, 0)], "1 rollouts of document 'a' of question 'q'; wanted 2"),
        ("erank", {"rollouts": 1}, [("a", 1, 1), ("a", 1, 1)], "2 rollouts of document 'a' of question 'q'; wanted 1"),
        ("retro-star", {"rollouts": 8}, [("a", 1, 1), ("b", 1, 0)], "wanted 8"),
        ("retro-star", {}, [("a", 1, 1), ("b", 1, 1)], "2 relevant documents and 0 others of question 'q'"),
        ("retro-star", {}, [("b", 1, 0)], "0 relevant documents and 1 others"),
    ],
)
def test_an_incomplete_question_is_named(reward: str, options: dict[str, int], rolls: list[Roll], message: str) -> None:
    with pytest.raises(IncompleteQuestionError, match=message):
        ranking_reward(reward, **options)(pool(rolls))


def test_documents_that_a_question_must_come_with_are_counted() -> None:
    """All of its candidates where it has fewer than wanted."""
    whole = pool([("a", 1, 1), ("b", 1, 0), ("c", 1, 0)])
    assert len(ranking_reward("erank", documents=20)(whole)) == 3
    for wanted in (3, 20):
        with pytest.raises(IncompleteQuestionError, match="2 documents of question 'q'; wanted 3"):
            ranking_reward("erank", documents=wanted)(whole[:2])


def test_questions_of_one_batch_are_ranked_apart() -> None:
    rolls: list[Roll] = [("a", 5, 1), ("b", 9, 0)]
    other: list[Roll] = [("a", 9, 1), ("b", 5, 0)]
    one, two = pool(rolls, "one"), pool(other, "two")
    mixed = [one[0], two[1], two[0], one[1]]
    assert [v.value for v in ranking_reward("erank")(mixed)] == [0.5, 0.0, 1.0, -0.5]


def test_a_reference_score_must_not_be_missing() -> None:
    with pytest.raises(DataError, match="document 'b' of question 'q'"):
        ranking_reward("erank", reference={("q", "a"): 1.0})(pool([("a", 5, 1), ("b", 3, 0)]))


@pytest.mark.parametrize("name", ["erank", "retro-star", "prorank"])
def test_a_prompt_with_two_documents_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="with 2 documents"):
        ranking_reward(name)([outcome([0, 1], Scores((1.0, 0.0)))])


# --- the oracle --------------------------------------------------------------------------------------------------


def random_grades(draw: random.Random) -> list[int]:
    kind = draw.random()
    if kind < 0.1:
        return [0] * draw.randint(1, 14)
    if kind < 0.5:
        return [int(draw.random() < 0.3) for _ in range(draw.randint(1, 14))]
    return sorted((draw.choice([0, 0, 0, 1, 2, 3]) for _ in range(draw.randint(1, 24))), reverse=draw.random() < 0.1)


def random_answer(draw: random.Random, count: int) -> str:
    """Mostly an order of all; else one with something wrong: repeated, left out, 0, too large, other words."""
    ids = draw.sample(range(1, count + 1), count)
    for _ in range(draw.choice([0, 0, 0, 1, 2])):
        place = draw.randrange(len(ids) + 1)
        fault = draw.choice(["repeat", "drop", "zero", "large", "many"])
        if fault == "drop" and ids:
            ids.pop(place % len(ids))
        elif fault == "many":
            ids += [draw.randint(1, 3 * count) for _ in range(2 * count)]
        else:
            ids.insert(place, {"repeat": ids[place % len(ids)] if ids else 1, "zero": 0}.get(fault, count + place + 1))
    form = draw.choice(["[{}]"] * 6 + ["{}", "({})", "[ {} ]"])
    gap = draw.choice([" > "] * 6 + [">", ", ", "\n>\n", " = "])
    return draw.choice(["", "", "", "", " ", "\n", "Best: "]) + gap.join(form.format(i) for i in ids)


def random_text(draw: random.Random, answer: str, tags: tuple[str, str] = ("think", "answer")) -> str:
    """The answer among tags, of which some may be wrong."""
    thinking, answering = tags
    if draw.random() < 0.6:
        between = draw.choice(["", " ", "\n\n"])
        return f"<{thinking}>why</{thinking}>{between}<{answering}>{answer}</{answering}>"
    pieces = [f"<{thinking}>", "why", f"</{thinking}>", f"<{answering}>", answer, f"</{answering}>"]
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(pieces) + 1)
        change = draw.choice(["drop", "swap", "word", "upper", "again"])
        if change == "word" or not pieces:
            pieces.insert(place, draw.choice([" so ", "[1]", "<answer>", "</think>", "</answer>", " "]))
        elif change == "drop":
            pieces.pop(place % len(pieces))
        elif change == "upper":
            pieces[place % len(pieces)] = pieces[place % len(pieces)].upper()
        elif change == "again":
            pieces += pieces[place % len(pieces) :]
        else:
            other = draw.randrange(len(pieces))
            pieces[place % len(pieces)], pieces[other] = pieces[other], pieces[place % len(pieces)]
    return "".join(pieces)


def agree(reward: Any, cases: Sequence[tuple[Outcome, float]]) -> list[RewardValue]:
    """All cases in one call, each equal to what the oracle pays."""
    found = reward([outcome for outcome, _ in cases])
    wrong = [
        (case.completion, case.judgement, case.example.relevance, got.value, wanted)
        for (case, wanted), got in zip(cases, found, strict=True)
        if got.value is None or abs(got.value - wanted) > 1e-9
    ]
    assert wrong == []
    return found


def both_ways(found: Sequence[RewardValue]) -> None:
    """The cases have enough of either: well formed and malformed."""
    well = sum(v.parts["well_formed"] for v in found) / len(found)
    assert 0.1 < well < 0.9


Options = dict[str, Any]
LISTWISE: list[tuple[str, Options, Callable[..., float], Options]] = [
    ("rearank", {}, oracle.rearank, {}),
    ("rearank", {"settled": "ndcg-1", "clip": 0.5}, oracle.rearank, {"settled": "ndcg-1", "clip": 0.5}),
    ("reasonrank", {}, oracle.reasonrank, {}),
    ("mm-r5", {}, oracle.mm_r5, {}),
    ("mm-r5", {"deduplicate": False}, oracle.mm_r5, {"deduplicate": False}),
]


@pytest.mark.parametrize(("name", "options", "formula", "its_options"), LISTWISE)
def test_orders_are_paid_what_the_oracle_pays(
    name: str, options: Options, formula: Callable[..., float], its_options: Options
) -> None:
    draw = random.Random(f"{name} {options}")
    cases: list[tuple[Outcome, float]] = []
    for _ in range(CASES // 5 if options else CASES):
        grades = random_grades(draw)
        text = random_text(draw, random_answer(draw, len(grades)))
        judgement = strict(text, len(grades))
        cases.append((outcome(grades, judgement, text), formula(text, ids_of(judgement), grades, **its_options)))
    found = agree(ranking_reward(name, **options), cases)
    both_ways(found)


def test_choices_are_paid_what_the_oracle_pays() -> None:
    draw = random.Random("choices")
    cases: list[tuple[Outcome, float]] = []
    for _ in range(CASES):
        grades = random_grades(draw)
        label = draw.choice([draw.randint(1, len(grades)), oracle.ideal_ids(grades)[0], None])
        text = random_text(draw, f"[{label or 0}]")
        judgement = Choice(None, "malformed") if label is None else Choice(label - 1)
        cases.append((outcome(grades, judgement, text), oracle.rank_r1(text, label, grades)))
    both_ways(agree(ranking_reward("rank-r1"), cases))


@pytest.mark.parametrize(
    ("distribution", "base", "ties"),
    [("sum", 2.0, "mean"), ("softmax", math.e, "prompt"), ("sum", 10.0, "prompt"), ("softmax", 2.0, "mean")],
)
def test_groups_are_paid_what_the_oracle_pays(distribution: str, base: float, ties: str) -> None:
    draw = random.Random(f"{distribution} {base} {ties}")
    cases: list[tuple[Outcome, float]] = []
    for _ in range(CASES if distribution == "sum" and ties == "mean" else CASES // 5):
        grades = random_grades(draw)
        top = draw.choice([0, 1, 10])
        scores = [float(draw.randint(0, top)) for _ in grades]
        readable = draw.random() < 0.7
        text = random_text(draw, json.dumps(scores), ("reason", "answer"))
        judgement = Scores(tuple(scores)) if readable else Scores((None,) * len(grades), "malformed")
        wanted = oracle.grouprank(text, scores if readable else None, grades, distribution, base, ties)
        cases.append((outcome(grades, judgement, text), wanted))
    reward = ranking_reward("grouprank", distribution=distribution, log_base=base, ties=ties)
    both_ways(agree(reward, cases))


def test_single_documents_are_paid_what_the_oracle_pays() -> None:
    draw = random.Random("single")
    cases: list[tuple[Outcome, float]] = []
    for _ in range(CASES):
        grade, score = draw.randint(0, 3), draw.choice([0.0, 1.0, 1, 0, 2.0, -1.0, None])
        judgement = Scores((score,), "malformed" if score is None else "ok")
        cases.append((outcome([grade], judgement), oracle.prorank(score, grade)))
    agree(ranking_reward("prorank"), cases)


def random_rolls(draw: random.Random, top: int) -> list[Roll]:
    rollouts = draw.randint(1, 6)
    grades = {f"d{i}": draw.choice([0, 0, 1, 2]) for i in range(draw.randint(2, 6))}
    grades |= {"d0": 1, "d1": 0}
    return [
        (name, None if draw.random() < 0.15 else float(draw.randint(0, top)), grade)
        for name, grade in grades.items()
        for _ in range(rollouts)
    ]


@pytest.mark.parametrize(
    ("name", "options", "top"),
    [
        ("erank", {}, 10),
        ("erank", {"positive": "ndcg", "above": "best"}, 3),
        ("erank", {"ties": "against"}, 3),
        ("retro-star", {}, 100),
        ("retro-star", {"alpha": 0.5, "tau": 0}, 4),
    ],
)
def test_pools_are_paid_what_the_oracle_pays(name: str, options: Options, top: int) -> None:
    draw = random.Random(f"{name} {options}")
    formula = {"erank": oracle.erank, "retro-star": oracle.retro_star}[name]
    cases: list[tuple[Outcome, float]] = []
    while len(cases) < (CASES // 5 if options else CASES):
        rolls = random_rolls(draw, top)
        cases += zip(pool(rolls, f"q{len(cases)}"), formula(rolls, **options), strict=True)
    draw.shuffle(cases)
    agree(ranking_reward(name, **options), cases)


def test_pools_with_references_are_paid_what_the_oracle_pays() -> None:
    draw = random.Random("references")
    cases: list[tuple[Outcome, float]] = []
    references: dict[tuple[str, str], float] = {}
    while len(cases) < CASES:
        rolls, group = random_rolls(draw, 10), f"q{len(cases)}"
        reference = {name: draw.random() * 10 for name, _, _ in rolls}
        references |= {(group, name): score for name, score in reference.items()}
        cases += zip(pool(rolls, group), oracle.erank(rolls, reference=reference), strict=True)
    agree(ranking_reward("erank", reference=references), cases)


def test_ndcg_and_recall_are_those_of_the_engine() -> None:
    """Where all labelled documents are in the prompt; recall there is of those with a label of 1 and above."""
    draw = random.Random("engine")
    rankings: list[Ranking] = []
    relevance: dict[str, dict[str, int]] = {}
    ours: dict[str, tuple[float, float]] = {}
    for number in range(200):
        grades = random_grades(draw)
        ids = draw.sample(range(len(grades)), len(grades))
        name = f"q{number}"
        relevance[name] = {str(i): grade for i, grade in enumerate(grades)}
        rankings.append(Ranking(name, tuple(map(str, ids)), tuple(float(-i) for i in range(len(ids)))))
        gains = [grades[i] for i in ids]
        hits = [float(gain > 0) for gain in gains]
        ours[name] = orders.ndcg(gains, sorted(gains, reverse=True), 10), orders.recall(hits, 10)
    theirs = ranking_metrics(rankings, relevance, ["nDCG@10", "recall@10"])
    assert len(theirs["nDCG@10"]) > 100
    for name, ndcg in theirs["nDCG@10"].items():
        assert ours[name] == (pytest.approx(ndcg), pytest.approx(theirs["recall@10"][name]))


# --- what must hold of every reward ------------------------------------------------------------------------------


def random_outcomes(name: str, draw: random.Random) -> list[Outcome]:
    """A question's rollouts of the kind that a reward is for."""
    if name in ("erank", "retro-star"):
        return pool(random_rolls(draw, 100))
    grades = [draw.randint(0, 1)] if name == "prorank" else random_grades(draw)
    outcomes: list[Outcome] = []
    for _ in range(4):
        text = random_text(
            draw, random_answer(draw, len(grades)), ("reason" if name == "grouprank" else "think", "answer")
        )
        judgement: Judgement = strict(text, len(grades))
        if name == "rank-r1":
            judgement = Choice(judgement.order[0], judgement.outcome)
        if name in ("grouprank", "prorank"):
            judgement = Scores(tuple(float(draw.randint(0, 1)) for _ in grades), judgement.outcome)
        outcomes.append(outcome(grades, judgement, text))
    return outcomes


def made(name: str) -> Any:
    return ranking_reward(name) if name != "reader" else reader_reward(CountingReader())


@pytest.mark.parametrize("name", RANKING_REWARDS)
def test_the_order_of_a_questions_rollouts_does_not_matter(name: str) -> None:
    draw = random.Random(name)
    for _ in range(50):
        outcomes = random_outcomes(name, draw)
        places = draw.sample(range(len(outcomes)), len(outcomes))
        found = made(name)(outcomes)
        assert made(name)([outcomes[i] for i in places]) == [found[i] for i in places]


BOUNDS = {
    "rearank": (-math.inf, 1),
    "rank-r1": (0, 1),
    "reasonrank": (-1, 1.3),
    "grouprank": (-0.5, 1.3),
    "erank": (-1, 1),
    "retro-star": (-1, 1),
    "prorank": (0, 1),
    "mm-r5": (-math.inf, 2),
    "reader": (-1, 1),
}


@pytest.mark.parametrize("name", RANKING_REWARDS)
def test_rewards_stay_in_their_bounds(name: str) -> None:
    draw = random.Random(name)
    low, high = BOUNDS[name]
    for _ in range(200):
        for found in made(name)(random_outcomes(name, draw)):
            assert found.value is not None
            assert low - 1e-9 <= found.value <= high + 1e-9
            assert all(math.isfinite(part) for part in found.parts.values())


def test_the_page_names_the_parts_that_are_logged_and_no_others() -> None:
    page = (ROOT / "docs" / "ranking-rewards.md").read_text("utf-8").partition("## Parts in the log\n")[2]
    table = page.partition("\n## ")[0]
    named = {
        name: set(re.findall(r"`(\w+)`", cell)) for name, cell in re.findall(r"^\| `(.*?)` \| (.*) \|$", table, re.M)
    }
    assert named.keys() == RANKING_REWARDS.keys()
    for name, parts in named.items():
        draw = random.Random(name)
        reward = made(name) if name != "reader" else reader_reward(CountingReader(), anchored=True)
        found = {part for _ in range(50) for value in reward(random_outcomes(name, draw)) for part in value.parts}
        assert {part if part != "em" else "f1" for part in found} == parts, name


@pytest.mark.parametrize("name", ["rearank", "reasonrank", "mm-r5"])
def test_the_best_order_is_paid_best_and_the_first_relevant_document_decides(name: str) -> None:
    """Of all orders of four documents."""
    grades = [0, 2, 0, 1]
    text = said("[2] > [4] > [1] > [3]")
    best = value(ranking_reward(name), outcome(grades, order(2, 4, 1, 3), text))
    rng = random.Random(0)
    others = [order(*rng.sample(range(1, 5), 4)) for _ in range(60)]
    assert all((value(ranking_reward(name), outcome(grades, o, text)) or 0) <= (best or 0) + 1e-12 for o in others)


@pytest.mark.parametrize("name", RANKING_REWARDS)
def test_a_batch_of_nothing_is_paid_nothing(name: str) -> None:
    assert made(name)([]) == []


@pytest.mark.parametrize("name", RANKING_REWARDS)
def test_a_reading_without_judgement_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="without a judgement"):
        made(name)([outcome([1], None)])


@pytest.mark.parametrize("name", [name for name in RANKING_REWARDS if name != "reader"])
def test_what_had_to_be_repaired_is_malformed(name: str) -> None:
    """Rewards see what a strict parser says; a repaired judgement of a lenient one earns no more."""
    draw = random.Random(0)
    well = [o for o in random_outcomes(name, draw) for _ in [0] if o.judgement and o.judgement.outcome == "ok"]
    while not well:
        well = [o for o in random_outcomes(name, draw) if o.judgement and o.judgement.outcome == "ok"]
    if name in ("erank", "retro-star"):
        well = pool([("a", 5, 1), ("b", 3, 0)])
    judged = [o.judgement for o in well]
    repaired = [replace(o, judgement=replace(j, outcome="repaired")) for o, j in zip(well, judged, strict=True) if j]
    malformed = [replace(o, judgement=replace(j, outcome="malformed")) for o, j in zip(well, judged, strict=True) if j]
    assert [v.value for v in made(name)(repaired)] == [v.value for v in made(name)(malformed)]


@pytest.mark.parametrize("name", [name for name in RANKING_REWARDS if name not in ("reader", "rank-r1")])
def test_a_question_without_labels_is_named(name: str) -> None:
    bare = outcome([1], Scores((1.0,)), said("x"))
    with pytest.raises(DataError, match="'q' has no relevance labels"):
        made(name)([replace(bare, example=replace(bare.example, relevance={}))])


def test_a_document_twice_in_a_prompt_and_a_prompt_without_documents_are_named() -> None:
    twice = outcome([0, 1], order(2, 1), said("[2] > [1]"))
    documents = (twice.context.documents[0],) * 2
    with pytest.raises(DataError, match="2 documents, of which 1 differ"):
        ranking_reward("rearank")([replace(twice, context=replace(twice.context, documents=documents))])
    with pytest.raises(DataError, match="0 documents"):
        ranking_reward("rearank")([replace(twice, context=replace(twice.context, documents=()))])


@pytest.mark.parametrize(
    ("name", "judgement"),
    [
        ("rearank", Permutation((-1, 0))),  # id 0 as a position: Python would take the last document
        ("rearank", Permutation((0, 0))),
        ("rearank", Permutation((0,))),
        ("rearank", Choice(0)),
        ("reasonrank", Permutation((1, 2))),
        ("mm-r5", Permutation((-1, 0))),
        ("grouprank", Permutation((0, 1))),
        ("grouprank", Scores((1.0,))),
        ("rank-r1", Choice(-1)),
        ("rank-r1", Choice(2)),
        ("rank-r1", Scores((1.0, 0.0))),
    ],
)
def test_a_judgement_that_is_none_of_the_prompt_is_refused(name: str, judgement: Judgement) -> None:
    text = said("[2] > [1]", tag="reason" if name == "grouprank" else "think")
    with pytest.raises(ConfigurationError, match="for question 'q'; wanted"):
        ranking_reward(name)([outcome([0, 1], judgement, text)])


def test_an_id_of_0_never_selects_the_last_document() -> None:
    """The relevant document is the last one, and the answer names it by no id of the prompt."""
    for name, least in (("rearank", 0.2), ("reasonrank", 0.0), ("rank-r1", 0.0)):
        text = said("[0] > [1] > [2]")
        judgement = Choice(None, "malformed") if name == "rank-r1" else strict(text, 3)
        assert value(ranking_reward(name), outcome([0, 0, 1], judgement, text)) == pytest.approx(least)


def test_labels_below_0_count_as_0() -> None:
    text = said("[3] > [1] > [2]")
    one, two = (outcome(grades, strict(text, 3), text) for grades in ([-2, 0, 1], [0, 0, 1]))
    for name in ("rearank", "reasonrank", "mm-r5"):
        assert value(ranking_reward(name), one) == value(ranking_reward(name), two)


def test_scores_order_documents_for_rewards_of_orders() -> None:
    """Equal scores keep the order of the prompt."""
    scored = outcome([0, 1, 0], Scores((3.0, 5.0, 3.0)), said("x"))
    assert ranking_reward("reasonrank")([scored])[0].parts["overlap"] == 1


def test_an_order_says_which_document_is_the_best() -> None:
    assert value(ranking_reward("rank-r1"), outcome([0, 1], order(2, 1), said("[2] > [1]"))) == 1


# --- the reader --------------------------------------------------------------------------------------------------


class CountingReader:
    """Answers "yes" if d1 is among the documents; fails where `failing` is the first. Counts what it is asked."""

    name = "counting"

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.batches: list[list[tuple[str, ...]]] = []

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        shown = [tuple(document.doc_id for document in context.documents) for context in contexts]
        self.batches.append(shown)
        return [
            ReadFailed("planned") if ids[0] == self.failing else Answer("yes" if "d1" in ids else "no") for ids in shown
        ]


def reader_reward(reader: Any, **options: Any) -> Any:
    return ranking_reward("reader", reader=reader, reward=answer_reward("em"), **options)


def test_the_reader_reads_the_first_documents_of_what_was_written_in_one_batch() -> None:
    reader = CountingReader()
    rollouts = [
        outcome([0] * 4, j) for j in (order(4, 3, 2, 1), order(3, 1, 2, 4), order(4, 3, 1, 2), order(3, 1, 4, 2))
    ]
    found = reader_reward(reader, depth=2)(rollouts)
    # Equal first documents are read once, their order counts.
    assert reader.batches == [[("d4", "d3"), ("d3", "d1")]]
    assert [v.value for v in found] == [0, 1, 0, 1]
    assert found[1].parts == {"em": 1.0, "well_formed": 1.0}


def test_of_a_choice_the_chosen_document_alone_is_read() -> None:
    """And the anchor is the first of the prompt alone."""
    reader = CountingReader()
    found = reader_reward(reader, anchored=True)([outcome([0] * 4, Choice(2)), outcome([0] * 4, Choice(0))])
    assert reader.batches == [[("d3",), ("d1",)]]
    assert [v.value for v in found] == [-1, 0]


def test_fewer_documents_than_the_depth_are_all_read() -> None:
    reader = CountingReader()
    assert value(reader_reward(reader, depth=3), outcome([0, 0], order(2, 1))) == 1
    assert reader.batches == [[("d2", "d1")]]


def test_a_malformed_ranking_is_not_read_and_a_failed_read_has_no_value() -> None:
    reader = CountingReader(failing="d3")
    rollouts = [outcome([0] * 3, j) for j in (Permutation((0, 1, 2), "malformed"), order(3, 1, 2), order(2, 1, 3))]
    found = reader_reward(reader, depth=1)(rollouts)
    assert [v.value for v in found] == [-1, None, 0]
    assert [v.parts["well_formed"] for v in found] == [0, 1, 1]
    assert reader.batches == [[("d3",), ("d2",)]]


def test_a_reader_is_not_asked_for_malformed_rankings_alone() -> None:
    reader = CountingReader()
    assert value(reader_reward(reader, anchored=True), outcome([0], Permutation((0,), "malformed"))) == -1
    assert reader.batches == []


def test_an_anchored_reward_is_what_is_gained_over_the_prompts_order() -> None:
    reader = CountingReader()
    rollouts = [outcome([0] * 3, j) for j in (order(2, 1, 3), order(1, 3, 2), order(2, 3, 1))]
    found = reader_reward(reader, depth=1, anchored=True)(rollouts)
    assert [v.value for v in found] == [-1, 0, -1]
    assert {v.parts["anchor"] for v in found} == {1.0}
    assert reader.batches == [[("d2",), ("d1",)]]  # the prompt's own order was among those written


def test_without_an_anchor_there_is_no_value() -> None:
    found = reader_reward(CountingReader(failing="d1"), depth=1, anchored=True)([outcome([0] * 2, order(2, 1))])
    assert [v.value for v in found] == [None]


def test_the_answer_reward_sees_what_was_read_and_all_rollouts_of_a_question() -> None:
    calls: list[list[Outcome]] = []

    class Watching:
        name = "watching"

        def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
            calls.append(list(outcomes))
            return [RewardValue(math.nan if o.position == 1 else 0.25) for o in outcomes]

    reward = ranking_reward("reader", reader=CountingReader(), reward=Watching(), depth=2, anchored=True)
    rollouts = [outcome([0] * 3, order(3, 2, 1)), outcome([0] * 3, order(3, 2, 1)), outcome([0], order(1), group="r")]
    assert [v.value for v in reward(rollouts)] == [0, 0, None]
    written, initial = calls
    assert [[d.doc_id for d in o.context.documents] for o in written] == [["d3", "d2"], ["d3", "d2"], ["d1"]]
    assert [o.result for o in written] == [Answer("no"), Answer("no"), Answer("yes")]
    assert [(o.group_id, [d.doc_id for d in o.context.documents]) for o in initial] == [
        ("q", ["d1", "d2"]),
        ("r", ["d1"]),
    ]


def test_the_readers_reward_needs_no_labels_but_says_what_decides_it() -> None:
    bare = outcome([0, 0], order(2, 1))
    bare = replace(bare, example=replace(bare.example, relevance={}))
    assert value(reader_reward(CountingReader()), bare) == 1
    assert reader_reward(CountingReader()).name == "reader(em@3)"
    assert reader_reward(CountingReader(), depth=5, anchored=True).name == "reader(em@5,anchored)"


def test_a_reader_that_leaves_out_an_answer_is_named() -> None:
    class Short(CountingReader):
        def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
            return super().answer(contexts)[1:]

    with pytest.raises(ReaderError, match="0 results for 1 contexts"):
        reader_reward(Short())([outcome([0], order(1))])


def test_random_readings_are_paid_what_a_loop_over_rollouts_pays() -> None:
    """5,000 rollouts against a reader that is asked one by one."""
    draw = random.Random("readings")
    rollouts: list[Outcome] = []
    while len(rollouts) < CASES:
        count = draw.randint(1, 6)
        for _ in range(8):
            judgement = order(*draw.sample(range(1, count + 1), count))
            judged = judgement if draw.random() < 0.8 else replace(judgement, outcome="malformed")
            rollouts.append(outcome([0] * count, judged, group=f"q{len(rollouts) // 8}"))

    def alone(o: Outcome, ids: Sequence[int]) -> float | None:
        first = [o.context.documents[i] for i in ids][:2]
        if first[0].doc_id == "d2":
            return None
        return float("d1" in [d.doc_id for d in first])

    for anchored in (False, True):
        wanted: list[float | None] = []
        for o in rollouts:
            assert isinstance(o.judgement, Permutation)
            paid, anchor = alone(o, o.judgement.order), alone(o, range(len(o.context.documents)))
            difference = None if paid is None or anchor is None else paid - anchor
            wanted.append(-1.0 if o.judgement.outcome != "ok" else difference if anchored else paid)
        reader = CountingReader(failing="d2")
        assert [v.value for v in reader_reward(reader, depth=2, anchored=anchored)(rollouts)] == wanted
        assert len(reader.batches) == 1


# --- names, options, ladders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RANKING_REWARDS)
@pytest.mark.parametrize("spelling", [str.upper, str.title, lambda name: f" {name.replace('-', '_')} "])
def test_names_resolve_in_any_spelling(name: str, spelling: Callable[[str], str]) -> None:
    options = {"reader": CountingReader(), "reward": answer_reward("em")} if name == "reader" else {}
    found = ranking_reward(spelling(name), **options)
    assert type(found) is RANKING_REWARDS[name]
    assert found.name.startswith(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rerank", {}, r"'rerank' is unknown; use one of rearank, rank-r1, reasonrank"),
        ("rearank", {"weight": 1}, r"'weight' of ranking reward 'rearank' is unknown; use one of rank_weight, .*tags"),
        ("reader", {}, "no reader and no reward"),
        ("reader", {"reader": 1}, "no reward"),
        ("rearank", {"cutoff": 0}, "cutoff"),
        ("rearank", {"settled": "zero"}, "settled .*'zero'; use one of ndcg, ndcg-1"),
        ("rearank", {"clip": 0}, "clip"),
        ("rearank", {"tags": "think"}, "Tags"),
        ("rearank", {"tags": ("a b",)}, "Tags"),
        ("reasonrank", {"relevant_from": 0}, "relevant_from"),
        ("grouprank", {"distribution": "max"}, "distribution"),
        ("grouprank", {"ties": "last"}, "ties"),
        ("grouprank", {"log_base": 1}, "log_base"),
        ("erank", {"above": "all"}, "above"),
        ("erank", {"rollouts": 0}, "rollouts"),
        ("erank", {"scale": 0}, "scale"),
        ("retro-star", {"alpha": 2}, "alpha"),
        ("prorank", {"stage": 2}, "stage 2.*sft"),
        ("reader", {"reader": 1, "reward": 1, "depth": 0}, "depth"),
    ],
)
def test_unknown_names_and_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ranking_reward(name, **options)


def test_a_prompt_without_tags_can_be_used_with_every_reward() -> None:
    plain = outcome([0, 1], order(2, 1), "[2] > [1]")
    assert value(ranking_reward("rearank", tags=()), plain) == pytest.approx(1)
    assert value(ranking_reward("reasonrank", tags=[]), plain) == pytest.approx(1.3)
    assert value(ranking_reward("rank-r1", tags=()), plain) == 1
    assert value(ranking_reward("mm-r5", tags=()), plain) == pytest.approx(2)
    assert value(ranking_reward("mm-r5", tags=()), replace(plain, judgement=strict("", 2))) == pytest.approx(2)


def test_every_reward_has_a_ladder_and_every_rung_a_source() -> None:
    assert set(LADDERS) == set(RANKING_REWARDS)
    for ladder in LADDERS.values():
        assert ladder.rungs
        assert [rung.pays for rung in ladder.rungs] == sorted(rung.pays for rung in ladder.rungs)
        assert all(rung.where and rung.source in ("paper", "code", "ours") for rung in ladder.rungs)


PAGE = (Path(__file__).resolve().parent.parent / "docs" / "ranking-rewards.md").read_text(encoding="utf-8")


def test_the_page_has_every_rung() -> None:
    rows = {
        f"| `{name}` | {ladder.rule + ' of ' + ', '.join(ladder.tags) if ladder.tags else 'none asked for'} "
        f"| {rung.fault} | {rung.pays:g} | {rung.source} | {rung.where} |"
        for name, ladder in LADDERS.items()
        for rung in ladder.rungs
    }
    table = PAGE.partition("| reward | tags |")[2].partition("\n\n")[0].splitlines()[2:]
    assert set(table) == rows


SECTIONS = {
    "rearank": "REARANK",
    "rank-r1": "Rank-R1",
    "reasonrank": "ReasonRank",
    "grouprank": "GroupRank",
    "prorank": "ProRank",
    "mm-r5": "MM-R5",
    "erank": "ERank",
    "retro-star": "Retro*",
    "reader": "Reader",
}


@pytest.mark.parametrize("name", RANKING_REWARDS)
def test_the_page_names_every_option_with_its_default(name: str) -> None:
    section = PAGE.partition(f"\n## {SECTIONS[name]}\n")[2].partition("\n## ")[0]
    for field in dataclasses.fields(RANKING_REWARDS[name]):
        if field.name != "ladder":
            assert re.search(rf"`{field.name}(=|`)", section), field.name
        if isinstance(field.default, float | str):
            shown = field.default if isinstance(field.default, str) else f"{field.default:g}"
            assert shown in section, field.name


def test_a_ladder_can_be_replaced() -> None:
    steps = Ladder((Rung("tags", -3.0, "ours", "here"), Rung("judgement", -2.0, "ours", "here")), ("why", "pick"))
    reward = ranking_reward("reasonrank", ladder=steps)
    malformed = strict("", 2)
    assert value(reward, outcome([0, 1], malformed, "<why>x</why><pick>?</pick>")) == -2
    assert value(reward, outcome([0, 1], order(2, 1), said("[2] > [1]"))) == -3


@pytest.mark.parametrize(
    ("text", "pairs", "sequence", "answer"),
    [
        ("<think>a</think><answer>b</answer>", True, True, "b"),
        ("<think>a</think>\n\n <answer>b</answer>", True, True, "b"),
        ("<answer>b</answer><think>a</think>", True, False, "b"),
        ("<think>a</think>then<answer>b</answer>", True, False, "b"),
        ("<think>a</think>x</think><answer>b</answer>", True, True, "b"),
        ("<think>a</think><answer>b", False, False, None),
        ("<think>a<answer>b</answer>", False, False, "b"),
        ("</think><think><answer>b</answer>", False, False, "b"),
        ("<think><answer>a</answer></think><answer>b</answer>", True, True, "b"),
        ("<think>a</think><answer>b</answer> or <answer>c</answer>", True, True, "c"),
        ("<think>a</think><answer>b</answer> or <answer>c", True, True, None),
        ("İ<Think>a</THINK><ANSWER>İb</answer>", True, True, "İb"),
        ("", False, False, None),
    ],
)
def test_tags(text: str, pairs: bool, sequence: bool, answer: str | None) -> None:
    tags = ("think", "answer")
    assert words.has_pairs(text, tags) is pairs is oracle.tags_anywhere(text, tags)
    assert words.in_sequence(text, tags) is sequence is oracle.blocks_together(text, tags)
    assert words.answer_of(text, tags) == answer == oracle.last_answer(text)


def test_endless_tags_take_no_time() -> None:
    """What a model repeats until its limit: a search that tries every beginning would take minutes."""
    for text in (
        "<think>" * 20_000,
        "<think></think>" + " " * 200_000,
        "</think> " * 20_000 + "<answer>",
        "[1] > " * 40_000,
    ):
        assert not words.in_sequence(f"<think>{text}", ("think", "answer"))
        assert not words.is_order(text + "!")
        assert words.answer_of(text, ("think", "answer")) is None
