from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from rankwright.errors import ConfigurationError, DataError, RankwrightError, RewardError
from rankwright.metrics.answer import exact_match, f1, rouge_l, sub_em
from rankwright.rewards import answer_reward, completion_reward, function_reward, resolve_reward
from rankwright.types import (
    Answer,
    Choice,
    Context,
    Document,
    Example,
    Outcome,
    Permutation,
    Query,
    ReadFailed,
    ReadResult,
    RewardValue,
    Scores,
)

DOCUMENTS = (Document("d1", "Paris is the capital."), Document("d2", "London is rainy."))


def outcome(result: ReadResult, answers: tuple[str, ...] = ("Paris", "City of Light"), position: int = 2) -> Outcome:
    query = Query("q7", "Capital of France?")
    return Outcome(Example(query, DOCUMENTS, answers), Context(query, DOCUMENTS[:position]), result, position, "q7")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """Writes a module into the current directory and gives the spec of a function in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    name = f"user_rewards_{abs(hash(request.node.name))}"

    def write(body: str, function: str = "reward") -> str:
        (tmp_path / f"{name}.py").write_text(body, encoding="utf-8")
        return f"{name}:{function}"

    yield write
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "metric"), [("f1", f1), ("em", exact_match), ("sub_em", sub_em), ("rouge_l", rouge_l)]
)
@pytest.mark.parametrize("text", ["Paris", "It is Paris", "London", ""])
def test_an_answer_is_paid_its_metric(name: str, metric, text: str) -> None:
    expected = metric(text, ("Paris", "City of Light"))
    assert answer_reward(name)([outcome(Answer(text))]) == [RewardValue(expected, {name: expected})]
    assert answer_reward(name).name == name


def test_a_failed_read_has_no_value_and_keeps_its_place() -> None:
    values = answer_reward("em")([outcome(ReadFailed("timeout")), outcome(Answer("Paris")), outcome(Answer("Rome"))])
    assert [value.value for value in values] == [None, 1.0, 0.0]


def test_the_guard_reaches_the_metric() -> None:
    priced = [outcome(Answer("yes, he did"), ("yes",))]
    assert answer_reward("f1")(priced)[0].value == pytest.approx(2 / (3 + 1))
    assert answer_reward("f1", yes_no_guard=True)(priced)[0].value == 0.0
    with pytest.raises(ConfigurationError, match="guard"):
        answer_reward("em", yes_no_guard=True)


def test_a_question_without_answers_is_named() -> None:
    with pytest.raises(DataError, match="'q7' has no accepted answer"):
        answer_reward("f1")([outcome(Answer("Paris"), ())])


@pytest.mark.parametrize("spelling", ["f1", "F1", "EM", "sub-EM", "ROUGE-L", "sub_em"])
def test_names_resolve_in_any_spelling(spelling: str) -> None:
    assert resolve_reward(spelling).name == spelling.lower().replace("-", "_")


@pytest.mark.parametrize("name", ["bleu", "", "f2"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="unknown"):
        resolve_reward(name)
    with pytest.raises(ConfigurationError, match="unknown"):
        answer_reward(name)


def test_a_function_gets_the_columns_of_trl(module) -> None:
    spec = module(
        "seen = {}\ndef reward(**columns):\n    seen.update(columns)\n    return [0.5] * len(columns['completions'])\n"
    )
    outcomes = [outcome(Answer("Paris")), outcome(ReadFailed("http 500")), outcome(Answer(""), position=1)]
    reward = resolve_reward(spec)
    assert [value.value for value in reward(outcomes)] == [0.5, None, 0.5]
    assert sys.modules[spec.partition(":")[0]].seen == {
        "prompts": ["Capital of France?"] * 2,
        "completions": ["Paris", ""],
        "answers": [["Paris", "City of Light"]] * 2,
        "doc_ids": [["d1", "d2"], ["d1"]],
        "position": [2, 1],
    }
    assert reward.name == spec


def test_named_columns_with_kwargs_and_values_of_any_number_type(module) -> None:
    spec = module(
        "import numpy\ndef reward(completions, answers, **kwargs):\n    return (True, 2, numpy.float32(0.5), None)\n"
    )
    values = function_reward(spec)([outcome(Answer("x"))] * 4)
    assert [value.value for value in values] == [1.0, 2.0, 0.5, None]


def test_a_function_is_not_called_without_answers(module) -> None:
    reward = function_reward(module("def reward(**kwargs):\n    raise AssertionError('called')\n"))
    assert reward([outcome(ReadFailed("timeout"))]) == [RewardValue(None)]
    assert reward([]) == []


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("[1.0]", "1 values for 2"),
        ("[1.0] * 3", "3 values for 2"),
        ("None", "returned NoneType"),
        ("0.5", "returned float"),
        ("'ab'", "returned str"),
        ("__import__('numpy').ones(2)", r"ndarray.*tolist"),
        ("[1.0, float('nan')]", "nan for question 'q7'"),
        ("[1.0, float('inf')]", "inf for question 'q7'"),
        ("[1.0, '1']", "'1' for question 'q7'"),
        ("[1.0, 1j]", "1j for question 'q7'"),
    ],
)
def test_what_is_no_list_of_rewards_is_refused(module, expression: str, message: str) -> None:
    reward = function_reward(module(f"def reward(**kwargs):\n    return {expression}\n"))
    with pytest.raises(RewardError, match=message):
        reward([outcome(Answer("Paris"))] * 2)


TOGETHER = """
import asyncio
loops, running, most = [], 0, 0
async def judged(text):
    global running, most
    running += 1
    most = max(most, running)
    await asyncio.sleep(0.01)
    running -= 1
    if text == "down":
        raise TimeoutError("no answer")
    return len(text)
async def reward(completions, weight=1, **kwargs):
    loops.append(asyncio.get_running_loop())
    found = await asyncio.gather(*map(judged, completions), return_exceptions=True)
    return [one if isinstance(one, Exception) else weight * one for one in found]
"""


def test_an_async_function_prices_everything_at_once_and_what_failed_has_no_value(
    module, caplog: pytest.LogCaptureFixture
) -> None:
    spec = module(TOGETHER)
    reward = function_reward(spec, {"weight": 2})
    texts = ["a", "down", "abc"] * 5
    outcomes = [outcome(Answer(text)) for text in texts]
    wanted = [None if text == "down" else 2.0 * len(text) for text in texts]
    assert [value.value for value in reward(outcomes)] == wanted
    assert [value.value for value in reward(outcomes)] == wanted
    used = sys.modules[spec.partition(":")[0]]
    assert used.most == len(texts)  # all of them were waited for together
    first, second = used.loops
    assert first is second  # a client may keep its connections
    assert f"failed on 5 of {len(texts)} completions, first with TimeoutError: no answer" in caplog.text


def test_an_async_function_works_inside_of_a_running_loop_too(module) -> None:
    reward = function_reward(module(TOGETHER))

    async def notebook() -> list[RewardValue]:
        return reward([outcome(Answer("ab"))])

    assert asyncio.run(notebook()) == [RewardValue(2.0)]


def test_an_async_function_that_raises_is_an_error_and_not_a_zero(module) -> None:
    spec = module("async def reward(**kwargs):\n    raise KeyError('year')\n")
    with pytest.raises(RewardError, match="raised KeyError"):
        function_reward(spec)([outcome(Answer("x"))])


def test_options_are_keywords_and_must_fit(module) -> None:
    spec = module(
        "def reward(completions, year, **_):\n    return [year] * len(completions)\n"
        "def strict(prompts, completions, answers, doc_ids, position): ..."
    )
    assert function_reward(spec, {"year": 7})([outcome(Answer("x"))]) == [RewardValue(7.0)]
    with pytest.raises(ConfigurationError, match="'year'"):
        function_reward(spec)
    with pytest.raises(ConfigurationError, match="'month'"):
        function_reward(spec.replace(":reward", ":strict"), {"month": 1})


def test_a_function_of_completions_sees_words_orders_and_grades(module) -> None:
    """No reader is needed; what is malformed has no order and still words to be priced."""
    spec = module("seen = {}\ndef reward(**columns):\n    seen.update(columns)\n    return [1.0, None, 0.0, 0.5]")
    judgements = [
        Permutation((1, 0)),
        Permutation((0, 1), "malformed", ("id missing",)),
        Choice(1),
        Scores((0.5, 2.0)),
    ]
    query = Query("q7", "Capital of France?")
    example = Example(query, DOCUMENTS, ("Paris",), {"d1": 2})
    written = [
        Outcome(example, Context(query, DOCUMENTS), ReadFailed("not read"), 0, "q7", judgement, f"words {number}")
        for number, judgement in enumerate(judgements)
    ]
    assert [value.value for value in completion_reward(spec)(written)] == [1.0, None, 0.0, 0.5]
    assert sys.modules[spec.partition(":")[0]].seen == {
        "prompts": [query.text] * 4,
        "completions": [f"words {number}" for number in range(4)],
        "answers": [["Paris"]] * 4,
        "doc_ids": [["d1", "d2"]] * 4,
        "relevance": [{"d1": 2}] * 4,
        "orders": [["d2", "d1"], None, ["d2"], ["d2", "d1"]],
        "outcomes": ["ok", "malformed", "ok", "ok"],
    }
    with pytest.raises(ConfigurationError, match="without a judgement"):
        completion_reward(spec)([outcome(Answer("x"))])


def test_an_exception_keeps_its_cause(module) -> None:
    reward = function_reward(module("def reward(**kwargs):\n    return [kwargs['year']]\n"))
    with pytest.raises(RankwrightError, match="raised KeyError") as caught:
        reward([outcome(Answer("Paris"))])
    assert isinstance(caught.value, RewardError)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("body", "function", "message"),
    [
        ("def reward(prompts, completions): ...", "reward", r"add \*\*kwargs"),
        ("def reward(year, **kwargs): ...", "reward", "'year'"),
        ("reward = 3", "reward", "is of type int"),
        ("reward = 3", "other", "does not define"),
        ("1 / 0", "reward", "ZeroDivisionError"),
        ("import not_there_at_all", "reward", "'not_there_at_all'"),
        ("def reward(:", "reward", "SyntaxError"),
    ],
)
def test_functions_that_cannot_be_used_are_refused_before_the_run(
    module, body: str, function: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        function_reward(module(body, function))


@pytest.mark.parametrize("spec", [":reward", "module:", "module", "no_such_module_here:reward", "a:b:c"])
def test_specs_that_name_nothing_are_refused(spec: str) -> None:
    with pytest.raises(ConfigurationError):
        function_reward(spec)


def test_a_file_of_the_current_directory_hides_no_installed_module(module, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('hidden')", encoding="utf-8")
    assert (
        function_reward(module("import json\ndef reward(**kwargs): return [1.0]"))([outcome(Answer(""))])[0].value == 1
    )


def test_rewards_import_no_torch() -> None:
    code = "import sys, rankwright.rewards, rankwright.metrics.ranking; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
