"""What generating rerankers write, read strictly and leniently: any text gives a full judgement with an outcome."""

from __future__ import annotations

import doctest
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from types import ModuleType

import pytest

from rankwright.prompts import answers, parsers, probabilities, ranking
from rankwright.prompts.answers import Span, Tags, lenient_span, strict_span, thoughts_in
from rankwright.prompts.parsers import PARSERS, Form
from rankwright.prompts.ranking import RankingPrompt, load_ranking_prompt, shipped_prompts
from rankwright.types import Choice, Completion, Judgement, Permutation, Scores

BARE, ANSWER, THINK = Tags(), Tags("", "answer"), Tags("think", "answer")
LONG = "9" * 5000


def permutation(text: str, count: int = 3, tags: Tags = BARE, *, strict: bool = False, letters: bool = False):
    labels = tuple("ABCDEFGH"[:count]) if letters else tuple(str(n + 1) for n in range(count))
    return parsers.permutation(Completion(text), Form(labels, tags), strict=strict)


# --- where the answer stands --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("<think>1</think> <answer>2</answer>", Span("2")),
        ("1</think><answer>2</answer>", Span("2")),  # the server's template has written <think>
        ("<answer>2</answer>", Span("2")),
        ("<THINK>1</THINK><Answer>2</Answer>", Span("2")),
        ("<think>1<answer>2</answer>", Span("2", ("thinking not closed",))),
        ("<think>1", Span(None, ("thinking not closed",))),
        ("<think>I write <answer> and then 1", Span(None, ("thinking not closed",))),
        ("<think>1</think>2", Span("2", ("answer tags missing",))),
        ("1 or 2", Span("1 or 2", ("answer tags missing",), trusted=False)),
        ("<think>1</think><answer>2", Span("2", ("answer not closed",))),
        ("<think>1</think>2</answer>", Span("2", ("answer not opened",))),
        ("<think>1</think><answer>2</answer><answer>3</answer>", Span("3", ("several answers",))),
        ("<think>1</think><answer>2</answer> or <answer>", Span("2", ("several answers",))),
        ("<think>1 <answer>2</answer></think>", Span("2", ("answer inside thinking",))),
        ("<think><answer>1</answer></think><answer>2</answer>", Span("2")),
        ("<think>1<think>2</think>3</think><answer>4</answer>", Span("4")),
        ("<think>1</think>", Span(None, ("no answer",))),
        ("", Span(None, ("no answer",))),
    ],
)
def test_the_answer_is_found_behind_the_thoughts(text: str, span: Span) -> None:
    assert lenient_span(text, THINK) == span


@pytest.mark.parametrize(
    ("text", "tags", "thoughts"),
    [
        ("<think> [2] > [1]? </think> <answer>[2]</answer>", Tags("think", "answer"), "[2] > [1]?"),
        ("[2] > [1]?</think>[2]", Tags(), "[2] > [1]?"),  # the chat template opened them
        ("<Reason>so</reason><answer>{}</answer>", Tags("reason", "answer"), "so"),
        ("[2] > [1]", Tags("think", "answer"), ""),
        ("<think>never ends", Tags("think", "answer"), ""),
        ("<think>so <answer>[1]</answer></think><answer>[2]</answer>", Tags("think", "answer"), ""),
        ("<think>a</think><think>b</think>[2]", Tags("think"), ""),
        ("<think>a<think>b</think>[2]", Tags("think"), ""),
        ("", Tags("think"), ""),
    ],
)
def test_thoughts_are_told_from_the_answer_or_not_at_all(text: str, tags: Tags, thoughts: str) -> None:
    assert thoughts_in(text, tags) == thoughts


def test_without_agreed_tags_all_behind_native_thoughts_is_the_answer() -> None:
    assert lenient_span("<think>1</think>2", BARE) == Span("2")
    assert lenient_span("2", BARE) == Span("2")
    assert lenient_span("<answer>2</answer>", BARE) == Span("2", ("answer tags added",))
    assert lenient_span("<think>1", BARE) == Span(None, ("thinking not closed",))


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("<think>1</think> <answer> 2 </answer>\n", "2"),
        ("<answer>2</answer>", None),
        ("<think>1</think>2", None),
        ("<think>1</think><answer>2</answer> so", None),
        ("<think>1</think> so <answer>2</answer>", None),
        ("<think><think>1</think><answer>2</answer>", None),
        ("<think><answer>1</answer></think><answer>2</answer>", None),
        ("<think>1</think><answer>2", None),
        ("<answer>2</answer><think>1</think>", None),
        ("<THINK>1</THINK><answer>2</answer>", None),
    ],
)
def test_strictly_each_tag_stands_once_and_nothing_around_them(text: str, inside: str | None) -> None:
    assert strict_span(text, THINK) == inside


# --- permutations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "order", "repairs"),
    [
        ("[2] > [3] > [1]", (1, 2, 0), ()),
        ("[2]>[3]>[1]", (1, 2, 0), ()),
        ("**[2] > [3] > [1]**.", (1, 2, 0), ()),
        ("[3] > [1]", (2, 0, 1), ("id missing",)),
        ("[2]", (1, 0, 2), ("id missing",)),
        ("[2] > [2] > [3] > [1]", (1, 2, 0), ("id repeated",)),
        ("[0] > [2] > [1] > [3]", (1, 0, 2), ("id out of range",)),  # 0 is not the last document
        ("[2] > [4] > [1] > [3]", (1, 0, 2), ("id out of range",)),
        (f"[2] > [{LONG}] > [1] > [3]", (1, 0, 2), ("id out of range",)),
        ("[-1] > [2] > [1] > [3]", (1, 0, 2), ("id out of range",)),
        ("[02] > [1] > [3]", (1, 0, 2), ("leading zero",)),
        ("[٢] > [３] > [①]", (1, 2, 0), ("look-alike characters",)),
        ("【2】 > 【3】 > 【1】", (1, 2, 0), ("brackets missing",)),
        ("(2) > (3) > (1)", (1, 2, 0), ("brackets missing",)),
        ("2 > 3 > 1", (1, 2, 0), ("brackets missing",)),
        ("Passage 2 > Passage 3 > Passage 1", (1, 2, 0), ("words around", "brackets missing")),
        ("3, 1, 2", (2, 0, 1), ("other separators", "brackets missing")),
        ("[3], [1], [2]", (2, 0, 1), ("other separators",)),
        ("[3] -> [1] -> [2]", (2, 0, 1), ("other separators",)),
        ("[3] = [1] > [2]", (2, 0, 1), ("other separators",)),
        ("1. [3]\n2. [1]\n3. [2]", (2, 0, 1), ("words around", "other separators")),
        ("Ranking:\n1. [3] on fleas\n2. [1] on dogs\n3. [2]", (2, 0, 1), ("words around", "other separators")),
        ("- **[3]** good\n- **[1]** less so, as [2]", (2, 0, 1), ("words around", "other separators", "id missing")),
        ("Of 3 passages: [2] > [3] > [1]. Passage 1 is 100% off topic.", (1, 2, 0), ("words around",)),
        ("[1] > [2]. No: [2] > [3] > [1]", (1, 2, 0), ("words around",)),
        ("1. 3\n2. 1\n3. 2", (2, 0, 1), ("other separators", "brackets missing")),  # the first number is a place
        ("[3] (grade 9) > [1] (grade 2) > [2]", (2, 0, 1), ("words around",)),  # 2 > [2] is no ranking
        ("[3] (9) > [1] (2) > [2] (1)", (2, 0, 1), ("words around",)),
        ("<think>[1] > [2] > [3]</think>[2] > [3] > [1]", (1, 2, 0), ()),
    ],
)
def test_lenient_permutations(text: str, order: tuple[int, ...], repairs: tuple[str, ...]) -> None:
    assert permutation(text) == Permutation(order, "repaired" if repairs else "ok", repairs)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no answer"),
        ("I cannot rank them.", "no id"),
        ("Passage 2 is better than passage 1 in 3 respects.", "no id"),  # digits of prose are no ranking
        ("[3] is off topic, [2] helps a little, and [1] answers it.", "no id"),  # nor is what it mentions first
        ("[0] > [9]", "id out of range"),
        ("[] > []", "no id"),
        ("<think>[2] > [3] > [1]", "thinking not closed"),
        (f"[{LONG}]", "id out of range"),
        ("[3] grade 9 > [1] grade 2 > [2]", "no id"),  # neither 9 > [1] nor 2 > [2] is a ranking
    ],
)
def test_what_holds_no_ranking_keeps_the_order_and_says_so(text: str, reason: str) -> None:
    assert permutation(text) == Permutation((0, 1, 2), "malformed", (reason,))


@pytest.mark.parametrize(
    ("text", "read"),
    [
        # REARANK's own parser takes the whole response here, digits of the thoughts included.
        ("<think>[3] is off, [2] helps. <answer>[2] > [3] > [1]", Permutation((0, 1, 2), "malformed")),
        ("<think>3 is off, 2 helps.</think> <answer>[2] > [3] > [1]", Permutation((1, 2, 0), "repaired")),
        ("3 is off, 2 helps, 1 too.", Permutation((0, 1, 2), "malformed")),
        ("I think [3] > [1], no: [2] > [3] > [1]", Permutation((1, 2, 0), "repaired")),
    ],
)
def test_digits_of_thoughts_do_not_get_into_the_ranking(text: str, read: Permutation) -> None:
    found = permutation(text, tags=THINK)
    assert (found.order, found.outcome) == (read.order, read.outcome)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[2] > [3]", "id missing"),
        ("[2] > [3] > [3] > [1]", "id repeated"),
        ("[2] > [3] > [1] > [0]", "id out of range"),
        ("[02] > [3] > [1]", "id out of range"),
        ("2 > 3 > 1", "form not as agreed"),
        ("[2] > [3] > [1].", "form not as agreed"),
        ("[２] > [3] > [1]", "form not as agreed"),
        ("", "form not as agreed"),
    ],
)
def test_strictly_anything_but_the_agreed_order_is_malformed(text: str, reason: str) -> None:
    assert permutation("[2] > [3] > [1]", strict=True) == Permutation((1, 2, 0))
    read = permutation(text, strict=True)
    assert (read.order, read.outcome, read.repairs[0]) == ((0, 1, 2), "malformed", reason)


def test_letters_are_identifiers_too() -> None:
    assert permutation("[B] > [A]", 2, letters=True) == Permutation((1, 0))
    assert permutation("b > a", 2, letters=True) == Permutation((1, 0), "repaired", ("lower case", "brackets missing"))
    assert permutation("I like a better: [B] > [A]", 2, letters=True).order == (1, 0)
    assert permutation("[B] > [A]", 2, letters=True, strict=True) == Permutation((1, 0))
    assert permutation("[Z] > [A]", 2, letters=True) == Permutation(
        (0, 1), "repaired", ("id out of range", "id missing")
    )


# --- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("[2]", Choice(1)),
        (" [2]\n", Choice(1)),
        ("**[2]**", Choice(1, "repaired", ("words around",))),
        ("2", Choice(1, "repaired", ("brackets missing",))),
        ("(2)", Choice(1, "repaired", ("brackets missing",))),
        ("Passage 2", Choice(1, "repaired", ("brackets missing",))),
        ("The best is [2], for 3 reasons.", Choice(1, "repaired", ("words around",))),
        ("[2] > [1] > [3]", Choice(1, "repaired", ("several labels",))),
        ("[2] [2]", Choice(1, "repaired", ("words around",))),
        ("[2] or [1]", Choice(None, "malformed", ("several labels",))),
        ("[0]", Choice(None, "malformed", ("id out of range",))),
        ("[4]", Choice(None, "malformed", ("id out of range",))),
        (f"[{LONG}]", Choice(None, "malformed", ("id out of range",))),
        ("none", Choice(None, "malformed", ("no id",))),
    ],
)
def test_labels(text: str, choice: Choice) -> None:
    form = Form(("1", "2", "3"), THINK)
    assert parsers.label(Completion(f"<think>[3]?</think><answer>{text}</answer>"), form, strict=False) == choice
    strict = parsers.label(Completion(f"<think>[3]?</think><answer>{text}</answer>"), form, strict=True)
    assert strict == choice if choice.outcome == "ok" else strict.outcome == "malformed"


def test_a_label_among_thoughts_is_no_choice() -> None:
    form = Form(("1", "2", "3"), THINK)
    assert parsers.label(Completion("I think it is [2]"), form, strict=False) == Choice(
        None, "malformed", ("answer tags missing", "no answer")
    )
    assert parsers.label(Completion("[2]"), form, strict=False) == Choice(1, "repaired", ("answer tags missing",))
    assert parsers.label(Completion("[1]</think> So [2]"), form, strict=False).position == 1


# --- scores as JSON -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values", "repairs"),
    [
        ('{"[1]": 7, "[2]": 0}', (7.0, 0.0), ()),
        ('```json\n{"[1]": 7, "[2]": 0}\n```', (7.0, 0.0), ()),
        ('Scores: {"[1]": 7, "[2]": 0}', (7.0, 0.0), ("words around",)),
        ('{"[1]": 7, "[2]": 0', (7.0, 0.0), ("brace missing",)),
        ('{"[1]": 7, "[2]": 0,', (7.0, 0.0), ("brace missing",)),
        ('{"[1]]": 7, "[2]": 0}', (7.0, 0.0), ("key form",)),
        ('{"1": 7, "Document 2": 0}', (7.0, 0.0), ("key form",)),
        ('{"[1]: 7, "[2]": 0}', (7.0, 0.0), ("json broken",)),
        ("{'[1]': 7, '[2]': 0}", (7.0, 0.0), ("json broken",)),
        ("[1]: 7\n[2]: 0", (7.0, 0.0), ("json broken",)),
        ('{"scores": {"[1]": 7, "[2]": 0}}', (7.0, 0.0), ("json nested",)),
        ('{"[1]": 1, "[2]": 1} no: {"[1]": 7, "[2]": 0}', (7.0, 0.0), ("several objects",)),
        ('{"[1]": 7, "[1]": 1, "[2]": 0}', (7.0, 0.0), ("id repeated",)),
        ('{"[1]": 7, "[0]": 9, "[3]": 9, "[2]": 0}', (7.0, 0.0), ("id out of range",)),
        ('{"[1]": "7", "[2]": "0/10"}', (7.0, 0.0), ("score as text",)),
        ('{"[1]": 7.5, "[2]": 0}', (7.5, 0.0), ("score is no integer",)),
        ('{"[1]": 7}', (7.0, None), ("id missing",)),
        ('{"[1]": 7, "[2]": NaN}', (7.0, None), ("score is no number", "id missing")),
        ('{"[1]": 7, "[2]": -Infinity}', (7.0, None), ("score is no number", "id missing")),
        ('{"[1]": 7, "[2]": 1e999}', (7.0, None), ("score is no number", "id missing")),
        ('{"[1]": 7, "[2]": true}', (7.0, None), ("score is no number", "id missing")),
        ('{"[1]": 7, "[2]": null}', (7.0, None), ("score is no number", "id missing")),
        ('{"[1]": 7, "[2]": [1]}', (7.0, None), ("score is no number", "id missing")),
        ('{"[1]": 7, "[2]": 11}', (7.0, None), ("score out of range", "id missing")),
        ('{"[1]": 7, "[2]": -1}', (7.0, None), ("score out of range", "id missing")),
        (f'{{"[1]": 7, "[2]": {LONG}}}', (7.0, None), ("json broken", "score is no number", "id missing")),
        ('{"[1]": 7, "[2]": "high"}', (7.0, None), ("score is no number", "id missing")),
        ("{" * 3000 + '"[1]": 7, "[2]": 0}', (7.0, 0.0), ("brace missing",)),
    ],
)
def test_scores(text: str, values: tuple[float | None, ...], repairs: tuple[str, ...]) -> None:
    form = Form(("1", "2"), Tags("reason", "answer"), {"scale": [0, 10]})
    said = Completion(f"<reason>[2]: 9?</reason><answer>{text}</answer>")
    assert parsers.json_scores(said, form, strict=False) == Scores(values, "repaired" if repairs else "ok", repairs)
    strict = parsers.json_scores(said, form, strict=True)
    assert strict == (Scores(values) if not repairs else Scores((None, None), "malformed", strict.repairs))


@pytest.mark.parametrize("text", ["", "high and low", "{}", "[]", "7, 0", "null", '{"[9]": 3}', '{"[1]": "x"}', "}{"])
def test_no_score_is_not_a_zero(text: str) -> None:
    form = Form(("1", "2"), options={"scale": [0, 10]})
    read = parsers.json_scores(Completion(text), form, strict=False)
    assert (read.values, read.outcome) == ((None, None), "malformed")
    assert read.repairs


# --- integers -----------------------------------------------------------------------------------------------------


def one(
    parser: str,
    text: str,
    *,
    strict: bool = False,
    tags: Tags = BARE,
    top: Sequence[Mapping[str, float]] = (),
    **options,
):
    chosen = {"scale": [0, 10], **options}
    read = PARSERS[parser](Completion(text, top_logprobs=tuple(top)), Form(("1",), tags, chosen), strict=strict)
    assert isinstance(read, Scores)
    return read


def logs(**probabilities: float) -> dict[str, float]:
    return {token: math.log(value) for token, value in probabilities.items()}


def spelled(text: str) -> list[dict[str, float]]:
    """Tokens of one character, each sure."""
    return [{character: 0.0} for character in text]


@pytest.mark.parametrize(
    ("text", "value", "repairs"),
    [
        ("7", 7.0, ()),
        ("10", 10.0, ()),
        ("07", 7.0, ("words around",)),
        ("Score: 7", 7.0, ("words around",)),
        ("7/10", 7.0, ("words around",)),
        ("7 out of 10.", 7.0, ("words around",)),
        ("7.0", 7.0, ("words around",)),
        ("７", 7.0, ("look-alike characters",)),
        ("7.5", None, ("no score",)),
        ("11", None, ("score out of range",)),
        ("-1", None, ("no score",)),
        ("7 or 8", None, ("several scores",)),
        (LONG, None, ("score out of range",)),
        ("high", None, ("no score",)),
    ],
)
def test_integers(text: str, value: float | None, repairs: tuple[str, ...]) -> None:
    said = f"<think>8 of 10</think><answer>{text}</answer>"
    outcome = "malformed" if value is None else "repaired"
    expected = repairs if value is None else (*repairs, "no probability")
    assert one("integer", said, tags=THINK) == Scores((value,), outcome, expected)
    strict = one("integer", said, tags=THINK, strict=True)
    assert strict == (Scores((value,)) if not repairs else Scores((None,), "malformed", ("form not as agreed",)))


def test_an_integer_is_weighted_by_its_probability() -> None:
    top = [*spelled("<answer>"), logs(**{"7": 0.5, " 7": 0.25, "3": 0.25}), *spelled("</answer>")]
    assert one("integer", "<answer>7</answer>", tags=ANSWER, top=top) == Scores((pytest.approx(7 * 0.75),))  # pyright: ignore[reportArgumentType]
    mean = (7 * 0.75 + 3 * 0.25) / 1.0
    read = one("integer", "<answer>7</answer>", tags=ANSWER, top=top, score="expected")
    assert read.values[0] == pytest.approx(mean)


def test_the_ten_of_two_tokens_has_the_product_of_their_probabilities() -> None:
    top = [logs(**{"1": 0.8, "2": 0.2}), logs(**{"0": 0.5, ".": 0.5})]
    assert one("integer", "10", top=top).values[0] == pytest.approx(10 * 0.8 * 0.5)
    # 0.8 is divided between 10 and 1 as the next token says.
    assert one("integer", "10", top=top, score="expected").values[0] == pytest.approx(10 * 0.4 + 1 * 0.4 + 2 * 0.2)
    assert one("integer", "1", top=[top[0], logs(**{".": 0.5, "0": 0.5})]).values[0] == pytest.approx(0.8)


def test_the_probability_is_that_of_the_answer_and_not_of_a_number_in_thoughts() -> None:
    thoughts = [*spelled("<think>"), {"7": math.log(0.1)}, *spelled("</think>")]
    top = [*thoughts, {"7": math.log(0.9)}]
    assert one("integer", "<think>7</think>7", tags=Tags("think"), top=top).values[0] == pytest.approx(7 * 0.9)


# --- verdicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parser", "yes", "no"), [("yes-no", "yes", "no"), ("true-false", "true", "false"), ("binary", "1", "0")]
)
def test_a_verdict_is_scored_by_both_probabilities(parser: str, yes: str, no: str) -> None:
    top = [logs(**{yes: 0.3, f" {yes.upper()}": 0.1, no: 0.2, "x": 0.4})]
    assert one(parser, yes, top=top, score="probability") == Scores((pytest.approx(0.4 / 0.6),))  # pyright: ignore[reportArgumentType]
    assert one(parser, yes, top=top, score="logit").values[0] == pytest.approx(math.log(0.4 / 0.2))


def test_exact_forms_leave_other_spellings_out() -> None:
    top = [logs(**{"yes": 0.3, "Yes": 0.3, "no": 0.1})]
    assert one("yes-no", "yes", top=top, score="probability").values[0] == pytest.approx(0.6 / 0.7)
    assert one("yes-no", "yes", top=top, score="probability", forms="exact").values[0] == pytest.approx(0.3 / 0.4)


def test_sure_verdicts_stay_apart() -> None:
    scores = [one("yes-no", "yes", top=[{"yes": 0.0, "no": -float(n)}], score="logit").values[0] for n in (40, 50, 60)]
    assert scores == [40.0, 50.0, 60.0]


def test_a_verdict_that_is_not_listed_counts_with_the_bound_on_its_probability() -> None:
    read = one("yes-no", "yes", top=[logs(yes=0.9, maybe=0.06, x=0.03)], score="probability")
    assert read == Scores((pytest.approx(0.9 / (0.9 + 0.01)),), "repaired", ("other verdict not listed",))  # pyright: ignore[reportArgumentType]
    assert one("yes-no", "so", top=[logs(so=0.9, maybe=0.05)]) == Scores((None,), "malformed", ("verdict not listed",))


def test_a_verdict_stands_behind_the_thoughts() -> None:
    tags = Tags("think")
    top = [*spelled("<think>"), logs(true=0.9, false=0.1), *spelled("</think>"), {" ": 0.0}, logs(false=0.8, true=0.2)]
    said = "<think>true</think> false"
    assert one("true-false", said, tags=tags, top=top).values[0] == pytest.approx(0.2)
    assert one("true-false", said, tags=tags, top=top[:10]).outcome == "malformed"
    assert one("true-false", "false", tags=tags, top=top[-1:]).values[0] == pytest.approx(0.2)  # thoughts left out


@pytest.mark.parametrize(
    ("text", "value"),
    [("yes", 1.0), ("No.", 0.0), ("Yes, it is", 1.0), ("yes or no", None), ("maybe", None), ("", None)],
)
def test_a_verdict_without_probabilities_is_no_score_unless_the_prompt_says_so(text: str, value: float | None) -> None:
    assert one("yes-no", text) == Scores((None,), "malformed", ("no logprobs",))
    read = one("yes-no", text, text_verdict=True)
    assert read.values == (value,)
    assert read.outcome == ("malformed" if value is None else "repaired")
    assert ("verdict from text" in read.repairs) is (value is not None)


def test_strictly_a_verdict_is_its_word() -> None:
    assert one("binary", "1", strict=True) == Scores((1.0,))
    assert one("binary", " 0\n", strict=True) == Scores((0.0,))
    assert one("binary", "1.", strict=True) == Scores((None,), "malformed", ("form not as agreed",))
    assert one("true-false", "<think>x</think>true", tags=Tags("think"), strict=True) == Scores((1.0,))


# --- first token --------------------------------------------------------------------------------------------------


def first(top: Sequence[Mapping[str, float]], *, count: int = 3, **options: object) -> Judgement:
    form = Form(tuple("ABCDEFGH"[:count]), options=options)
    return parsers.first_token(Completion("B", top_logprobs=tuple(top)), form, strict=False)


def test_letters_are_ranked_by_their_probability() -> None:
    assert first([logs(B=0.5, A=0.1, C=0.2)]) == Permutation((1, 2, 0))


def test_of_two_tokens_for_one_letter_the_likelier_counts() -> None:
    top = [{"C": math.log(0.3), " A": math.log(0.4), "A": math.log(0.01), "[B": math.log(0.2)}]
    assert first(top) == Permutation((0, 2, 1))


def test_letters_that_are_not_listed_follow_in_the_order_of_the_prompt() -> None:
    top = [logs(D=0.5, B=0.1, Z=0.2, a=0.1, The=0.05)]
    assert first(top, count=4) == Permutation((3, 1, 0, 2), "repaired", ("id missing",))


def test_without_letters_or_probabilities_nothing_is_ranked() -> None:
    assert first([logs(The=0.9)]) == Permutation((0, 1, 2), "malformed", ("no id",))
    assert first([]) == Permutation((0, 1, 2), "malformed", ("no logprobs",))


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("B > A > C", Permutation((1, 0, 2))),
        ("B > A", Permutation((0, 1, 2), "malformed", ("id missing",))),
        ("B", Permutation((0, 1, 2), "malformed", ("id missing",))),
        ("[B] > [A] > [C]", Permutation((0, 1, 2), "malformed", ("form not as agreed",))),
    ],
)
def test_strictly_the_whole_order_is_read_from_the_words(text: str, read: Permutation) -> None:
    top = (logs(C=0.9, A=0.05, B=0.05),)
    assert parsers.first_token(Completion(text, top_logprobs=top), Form(("A", "B", "C")), strict=True) == read


def test_the_letter_may_be_the_second_token() -> None:
    top = [{"[": 0.0, "A": -9.0}, logs(B=0.5, A=0.1, C=0.2)]
    assert first(top, token=2) == Permutation((1, 2, 0))
    assert first(top[:1], token=2).outcome == "malformed"


# --- any text -----------------------------------------------------------------------------------------------------

PROMPTS = [load_ranking_prompt(name) for name in shipped_prompts()]
SCRAPS = [
    *("[", "]", "(", ")", "{", "}", ">", "<", ",", ":", '"', "```", "\n", "\0", "\ud800", "\u200b", "٣", "²", "①", "Ⅷ"),
    *("<think>", "</think>", "<answer>", "</answer>", "<reason>", "</reason>", "</", "<ANSWER>", "&gt;", "->", "="),
    *("[0]", "[1]", "[99]", "[-1]", "[1.5]", LONG, f"[{LONG}]", "1e999", "NaN", "-Infinity", "true", "null", "0x1"),
    *("[A]", "a > b", "yes", "no", "1", "0", "10", "11", "7/10", '{"[1]": 5}', '"[2]": ', "{" * 200, "[1] > " * 60),
]


def good(prompt: RankingPrompt, count: int, rng: random.Random) -> str:
    """A completion in the agreed form."""
    labels = list(prompt.identifiers(count))
    rng.shuffle(labels)
    value = {
        "permutation": " > ".join(f"[{name}]" for name in labels),
        "first-token": " > ".join(labels),
        "label": f"[{labels[0]}]",
        "json-scores": "{" + ", ".join(f'"[{name}]": {rng.randint(0, 10)}' for name in labels) + "}",
        "integer": str(rng.randint(0, 10)),
        "yes-no": rng.choice(("yes", "no")),
        "binary": rng.choice("10"),
        "true-false": rng.choice(("true", "false")),
    }[prompt.parser]
    thoughts = f"[{rng.randint(0, count)}] helps more than {rng.randint(0, 30)} others."
    before = f"<{prompt.tags.thinking}>{thoughts}</{prompt.tags.thinking}>\n" if prompt.tags.thinking else ""
    return before + (f"<{prompt.tags.answer}>{value}</{prompt.tags.answer}>" if prompt.tags.answer else value)


def mutated(text: str, rng: random.Random) -> str:
    for _ in range(rng.choice((0, 1, 1, 2, 3, 6))):
        begin, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        end = min(end, begin + 12)
        piece = rng.choice(
            ("", rng.choice(SCRAPS), text[begin:end] * 2, text[begin:end][::-1], chr(rng.randint(1, 0x2FFF)))
        )
        text = text[:begin] + piece + text[end:]
    return text[: rng.randint(0, len(text))] if rng.random() < 0.1 else text


def with_tokens(text: str, prompt: RankingPrompt, count: int, rng: random.Random) -> Completion:
    """The text with token probabilities, among them in places those that the parser looks for; mutated too."""
    if rng.random() < 0.3:
        return Completion(text)
    size = rng.choice((1, 1, 3, 7))
    wanted = ["yes", "no", "true", "false", *"10", *prompt.identifiers(count)]
    stray = ["A", " B", " No", "10", "", "<", "\u0120A", "True"]
    values = (0.0, -0.1, -3.0, -9999.0) if rng.random() < 0.7 else (-math.inf, math.nan, 2.0, -0.1)

    def alternatives() -> list[str]:
        return wanted if rng.random() < 0.4 else [rng.choice(stray) for _ in range(rng.randint(0, 4))]

    tokens = [text[start : start + size] for start in range(0, min(len(text), 300), size)]
    top = tuple({name: rng.choice(values) for name in (token, *alternatives())} for token in tokens)
    return Completion(text, top_logprobs=top)


def check_full(judgement: Judgement, count: int) -> None:
    assert judgement.outcome in ("ok", "repaired", "malformed")
    assert bool(judgement.repairs) is (judgement.outcome != "ok")
    assert all(0 < len(name) < 40 for name in judgement.repairs)
    if isinstance(judgement, Permutation):
        assert sorted(judgement.order) == list(range(count))
        assert judgement.outcome != "malformed" or judgement.order == tuple(range(count))
    elif isinstance(judgement, Choice):
        assert (judgement.position is None) is (judgement.outcome == "malformed")
        assert judgement.position is None or 0 <= judgement.position < count
    else:
        assert len(judgement.values) == count
        assert (set(judgement.values) == {None}) is (judgement.outcome == "malformed")
        assert all(value is None or math.isfinite(value) for value in judgement.values)


def try_mutations(tries: int, seed: int) -> Counter[tuple[str, str]]:
    rng, seen = random.Random(seed), Counter[tuple[str, str]]()
    for number in range(tries):
        prompt = PROMPTS[number % len(PROMPTS)]
        count = 1 if prompt.kind == "pointwise" else rng.randint(2, 20)
        text = mutated(good(prompt, count, rng), rng)
        completion = with_tokens(text, prompt, count, rng)
        strict, lenient = (prompt.parse(completion, count, strict=strict) for strict in (True, False))
        check_full(strict, count)
        check_full(lenient, count)
        assert strict.outcome != "repaired"
        if strict.outcome == "ok" and not prompt.needs_logprobs:
            assert lenient == strict, text
        seen[prompt.parser, lenient.outcome] += 1
    return seen


def test_fifty_thousand_mutated_completions_give_full_judgements_with_an_outcome() -> None:
    seen = try_mutations(50_000, seed=0)
    assert {parser for parser, _ in seen} == {prompt.parser for prompt in PROMPTS} == set(PARSERS)
    assert all(seen[parser, outcome] >= 100 for parser in PARSERS for outcome in ("ok", "repaired", "malformed")), seen


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.version)
@pytest.mark.parametrize(
    "scrap", [" ", "<", "[", "{", "-", ">", "1 ", "[1] > ", "<think>", '{"a":', "```", '"[1]":', "😀"]
)
def test_long_texts_take_no_time_to_read(prompt: RankingPrompt, scrap: str) -> None:
    """What grows faster than in proportion would take minutes here."""
    text = scrap * (60_000 // len(scrap))
    for wrapped in (text, f"<think>{text}</think><answer>{text}</answer>"):
        check_full(prompt.parse(Completion(wrapped), 1), 1)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.version)
def test_good_completions_are_ok_strictly(prompt: RankingPrompt) -> None:
    rng = random.Random(0)
    for _ in range(20):
        count = 1 if prompt.kind == "pointwise" else rng.randint(1, 20)
        text = good(prompt, count, rng)
        assert prompt.parse(Completion(text), count, strict=True).outcome == "ok", text


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.version)
def test_a_judgement_of_more_documents_than_identifiers_is_full_too(prompt: RankingPrompt) -> None:
    check_full(prompt.parse(Completion("[1]"), 30), 30)


@pytest.mark.parametrize("module", [answers, parsers, probabilities, ranking])
def test_doctests(module: ModuleType) -> None:
    done = doctest.testmod(module)
    assert done.attempted > 0
    assert done.failed == 0


@pytest.mark.parametrize(("text", "score"), [("7/10", 7.0), ("7 out of 10", 7.0), ("4/5", None), ("4 out of 5", None)])
def test_a_grade_of_another_scale_is_no_grade(text: str, score: float | None) -> None:
    form = Form(("1",), options={"scale": (0, 10), "score": "weighted"})
    assert parsers.integer(Completion(text), form, strict=False).values == (score,)
    assert parsers.json_scores(Completion(f'{{"[1]": "{text}"}}'), form, strict=False).values == (score,)


def test_an_object_without_scores_behind_the_scores_takes_nothing_away() -> None:
    form = Form(("1", "2"), options={"scale": (0, 10)})
    read = parsers.json_scores(Completion('{"[1]": 7, "[2]": 3} as asked: {}'), form, strict=False)
    assert read == Scores((7.0, 3.0), "repaired", ("several objects",))


def test_a_number_whose_own_probability_is_not_known_is_not_taken_for_certain() -> None:
    form = Form(("1",), options={"scale": (0, 10), "score": "weighted"})
    read = parsers.integer(Completion("7", top_logprobs=({"7": -math.inf, "8": -1.0},)), form, strict=False)
    assert read == Scores((7.0,), "repaired", ("no probability",))
