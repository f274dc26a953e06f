from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rankwright.errors import ConfigurationError, DataError, RankwrightError, RewardError
from rankwright.metrics.answer import exact_match, f1, rouge_l, sub_em
from rankwright.rewards import answer_reward, function_reward, resolve_reward
from rankwright.types import Answer, Context, Document, Example, Outcome, Query, ReadFailed, ReadResult, RewardValue

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
        ("async def reward(**kwargs): ...", "reward", "async"),
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
