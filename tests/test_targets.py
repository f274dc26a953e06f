"""Completions that relevance labels teach: what the prompt's strict parser reads back must be what the labels say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

from rankwright.algorithms.grpo import order_of, prompt_rows
from rankwright.algorithms.targets import label_order, targets
from rankwright.data import load_examples
from rankwright.data.drawing import write_prepared
from rankwright.data.jsonl import write_jsonl
from rankwright.errors import ConfigurationError, DataError
from rankwright.prompts.ranking import load_ranking_prompt, shipped_prompts
from rankwright.strategies import Sliding
from rankwright.teaching import TaughtOrders, Teacher
from rankwright.types import Choice, Completion, Document, Example, Judgement, Permutation, Query, Scores
from tests.simulated_llm import SimulatedJudge

DOCUMENTS = tuple(Document(f"d{i}", f"text {i}") for i in range(3))
EXAMPLE = Example(Query("q", "?"), DOCUMENTS, (), {"d2": 3, "d1": 1})
BEST = (2, 1, 0)

Parse = Callable[[str, int], Judgement | None]


@dataclass
class Prompt:
    kind: str
    read: Parse
    letters: bool = False
    parser: str = "permutation"

    def identifiers(self, count: int) -> tuple[str, ...]:
        return tuple("ABCDEF"[:count]) if self.letters else tuple(str(i + 1) for i in range(count))

    def messages(self, query: Query, documents: Sequence[Document]) -> tuple[tuple[str, str], ...]:
        return (("user", query.text),)

    def parse(self, completion: Completion, count: int, *, strict: bool = False) -> Judgement:
        return self.read(completion.text, count) or Permutation(tuple(range(count)), "malformed")


def inside(pattern: str, then: Callable[[str], Judgement | None]) -> Parse:
    def read(text: str, count: int) -> Judgement | None:
        found = re.fullmatch(pattern, text, re.DOTALL)
        return then(found[1]) if found else None

    return read


def order(text: str) -> Judgement | None:
    return Permutation(tuple(int(number) - 1 for number in re.findall(r"\d", text))) if "[" in text else None


def choice(text: str) -> Judgement | None:
    return Choice(int(text[1]) - 1) if text.startswith("[") else None


def scores(text: str) -> Judgement | None:
    return Scores(tuple(float(value) for value in json.loads(text).values()))


THINK = r"<think>.*</think>\s*<answer>(.*)</answer>"
JSON = r"<reason>.*</reason>\s*<answer>\s*```json\n(.*)\n```\s*</answer>"


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        (Prompt("listwise", inside(r"(\[.*\])", order)), "[3] > [2] > [1]"),
        (Prompt("listwise", inside(THINK, order)), "<think>\n\n</think>\n<answer>[3] > [2] > [1]</answer>"),
        (Prompt("setwise", inside(r"<answer>(.*)</answer>", choice)), "<answer>[3]</answer>"),
        (Prompt("groupwise", inside(r"(\{.*\})", scores)), '{"[1]": 0, "[2]": 3, "[3]": 10}'),
    ],
)
def test_the_best_judgement_is_written_in_the_prompts_own_form(prompt: Prompt, wanted: str) -> None:
    assert targets(prompt_rows([EXAMPLE], prompt, 3), prompt) == [wanted]


def test_a_fenced_block_is_found_too() -> None:
    prompt = Prompt("groupwise", inside(JSON, scores))
    (text,) = targets(prompt_rows([EXAMPLE], prompt, 3), prompt)
    assert prompt.parse(Completion(text), 3) == Scores((0.0, 3.0, 10.0))


def test_letters_are_identifiers_too() -> None:
    prompt = Prompt("listwise", inside(r"(\[.*\])", lambda text: Permutation(BEST) if text[1] == "C" else None), True)
    assert targets(prompt_rows([EXAMPLE], prompt, 3), prompt) == ["[C] > [B] > [A]"]


@pytest.mark.parametrize(
    ("read", "wanted"),
    [
        (lambda text: Scores((float(text),)) if text.isdigit() else None, ["0", "3", "10"]),
        (lambda text: Scores((float(text == "yes"),)) if text in ("yes", "no") else None, ["no", "yes", "yes"]),
        (lambda text: Scores((float(text),)) if text in ("0", "1") else None, ["0", "1", "1"]),
    ],
)
def test_a_pointwise_prompt_gets_a_number_or_a_word(read: Callable[[str], Judgement | None], wanted: list[str]) -> None:
    prompt = Prompt("pointwise", inside("(.*)", read))
    assert targets(prompt_rows([EXAMPLE], prompt, 3), prompt) == wanted


def test_a_parser_that_reads_something_else_than_was_meant_is_refused() -> None:
    prompt = Prompt("listwise", lambda text, count: Permutation(tuple(range(count))))
    with pytest.raises(ConfigurationError, match="reads none of the forms"):
        targets(prompt_rows([EXAMPLE], prompt, 3), prompt)


def test_equal_grades_stay_in_the_order_of_the_first_stage() -> None:
    assert label_order(DOCUMENTS, replace(EXAMPLE, relevance={"d1": 1, "d2": 1})) == (1, 2, 0)
    assert label_order(DOCUMENTS, replace(EXAMPLE, relevance={})) == (0, 1, 2)


def test_a_teachers_order_goes_before_grades() -> None:
    """d2 has the highest grade and is not in the order, as d1, which has a lower one."""
    assert label_order(DOCUMENTS, replace(EXAMPLE, order=("elsewhere", "d0"))) == (0, 2, 1)
    assert label_order(DOCUMENTS, replace(EXAMPLE, order=("d1", "d2", "d0"))) == (1, 2, 0)


@pytest.mark.parametrize(("labels", "name"), [("order", "listwise-1"), ("kept", "listwise-think-1")])
def test_a_prepared_file_teaches_its_order(labels: Literal["order", "kept"], name: str, tmp_path: Path) -> None:
    documents = tuple(Document(f"d{i}", f"text {i}") for i in range(6))
    source = Example(Query("q", "?"), documents, (), {"d0": 1})
    judge = SimulatedJudge({"q": {"d4": 9, "d1": 5, "d5": 3}}, "permutation")
    write_prepared(tmp_path / "taught.jsonl", TaughtOrders(6, labels).prepare([source], Teacher(judge, Sliding())))
    examples = load_examples(tmp_path / "taught.jsonl", "jsonl").examples
    prompt = load_ranking_prompt(name)
    (text,) = targets(prompt_rows(examples, prompt, 6), prompt)
    assert prompt.parse(Completion(text), 6, strict=True) == Permutation((4, 1, 5, 0, 2, 3))


@pytest.mark.parametrize("name", shipped_prompts())
def test_every_shipped_prompt_can_be_taught(name: str) -> None:
    prompt = load_ranking_prompt(name)
    rows = prompt_rows([EXAMPLE], prompt, 3)
    if prompt.parser == "first-token":
        assert targets(rows, prompt) == ["C > B > A"]
        return
    judged = [
        prompt.parse(Completion(text), len(row.documents), strict=True)
        for text, row in zip(targets(rows, prompt), rows.rows, strict=True)
    ]
    assert {judgement.outcome for judgement in judged} == {"ok"}
    if prompt.kind == "pointwise":
        values = [judgement.values[0] for judgement in judged if isinstance(judgement, Scores)]
        assert values == sorted(values, key=lambda value: value or 0.0)
        assert len({*values}) > 1
    else:
        assert order_of(judged[0], 3)[0] == BEST[0]


@pytest.mark.parametrize(("name", "tag"), [("listwise-think-1", "think"), ("groupwise-1", "reason")])
def test_a_teachers_thoughts_stand_before_the_answer_that_is_taught(name: str, tag: str) -> None:
    prompt = load_ranking_prompt(name).limited(None)
    thoughts = "[3] is best, [1] is not about it > [2].\n"
    thinking = replace(EXAMPLE, thoughts=thoughts)
    (bare,), (taught,) = (targets(prompt_rows([e], prompt, 3), prompt) for e in (EXAMPLE, thinking))
    assert taught == bare.replace(f"<{tag}>\n\n</{tag}>", f"<{tag}>\n{thoughts.strip()}\n</{tag}>") != bare
    judgement = prompt.parse(Completion(taught), 3, strict=True)
    assert (order_of(judgement, 3), judgement.outcome) == (BEST, "ok")
    assert targets(prompt_rows([thinking], prompt, 2), prompt) != [taught]  # they are about three passages
    for prompt_without in ("listwise-1", "pointwise-think-1"):
        other = load_ranking_prompt(prompt_without).limited(None)
        of_both = [targets(prompt_rows([e], other, 3), other) for e in (EXAMPLE, thinking)]
        assert of_both[0] == of_both[1]


def test_thoughts_that_hide_the_answer_are_named() -> None:
    prompt = load_ranking_prompt("listwise-think-1").limited(None)
    wrong = replace(EXAMPLE, thoughts="so </think> <answer>[1] > [2] > [3]</answer>")
    with pytest.raises(DataError, match=r"Thoughts of question 'q' cannot stand before its answer"):
        targets(prompt_rows([wrong], prompt, 3), prompt)


def test_thoughts_are_written_and_read_back(tmp_path: Path) -> None:
    thinking = replace(EXAMPLE, query=Query("q", "which?"), thoughts="[3] is best.")
    write_jsonl(tmp_path / "a.jsonl", [thinking])
    (read,) = load_examples(tmp_path / "a.jsonl", "jsonl", need_answers=False).examples
    assert read.thoughts == thinking.thoughts
