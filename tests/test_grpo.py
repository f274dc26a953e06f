"""Prompt rows, rewards as TRL calls them, whole questions; the loop itself is in test_tuning.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from rankwright import processes
from rankwright.algorithms.grpo import PromptRows, TRLReward, begun_by, check_complete, order_of, prompt_rows
from rankwright.errors import RewardError, TrainingError
from rankwright.llms.http import HTTPLLM
from rankwright.readers.llm import LLMReader
from rankwright.rewards import ranking_reward
from rankwright.types import (
    Answer,
    Choice,
    Completion,
    Context,
    Document,
    Example,
    Judgement,
    Outcome,
    Permutation,
    Query,
    RewardValue,
    Scores,
)
from tests.chaos_reader import ChaosReader


def question(name: str, documents: int = 3) -> Example:
    """Its answer stands in the last document."""
    candidates = tuple(Document(f"{name}{i}", f"text {i}") for i in range(documents))
    return Example(Query(name, f"{name}?"), candidates, (f"text {documents - 1}",), {candidates[-1].doc_id: 1})


@dataclass
class Numbers:
    """A prompt whose answer is numbers from 1 in order; anything else is malformed."""

    kind: str = "listwise"
    parser: str = "permutation"

    def identifiers(self, count: int) -> tuple[str, ...]:
        return tuple(str(number) for number in range(1, count + 1))

    def messages(self, query: Query, documents: Sequence[Document]) -> tuple[tuple[str, str], ...]:
        return (("system", "rank"), ("user", f"{query.text} {' | '.join(document.text for document in documents)}"))

    def parse(self, completion: Completion, count: int, *, strict: bool = False) -> Judgement:
        assert strict
        order = tuple(int(number) - 1 for number in re.findall(r"\d+", completion.text))
        if sorted(order) == list(range(count)):
            return Permutation(order)
        return Permutation(tuple(range(count)), "malformed", ("not all",))


@dataclass
class Seen:
    """A reward of what it is given: the reciprocal rank of the relevant document; None for `no value`."""

    name: str = "seen"
    calls: list[list[Outcome]] = field(default_factory=list)

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        self.calls.append(list(outcomes))
        return [self._price(outcome) for outcome in outcomes]

    def _price(self, outcome: Outcome) -> RewardValue:
        if outcome.completion == "no value":
            return RewardValue(None)
        assert isinstance(outcome.judgement, Permutation)
        best = [outcome.context.documents[i].doc_id in outcome.example.relevance for i in outcome.judgement.order]
        return RewardValue(1 / (1 + best.index(True)))


def rewarded(reward: Any, written: Sequence[tuple[int, str]], **arguments: Any) -> list[float | None]:
    """What TRL would be given for completions in conversational form."""
    completions = [[{"role": "assistant", "content": text}] for _, text in written]
    return reward([None] * len(written), completions, row=[number for number, _ in written], **arguments)


def test_rows_hold_the_messages_and_come_back_by_their_number() -> None:
    rows = prompt_rows([question("a"), question("b"), question("short", 2)], Numbers(), 3)
    assert (rows.questions, rows.per_question) == (2, 1)
    assert [row["row"] for row in rows.columns()] == [0, 1]
    assert rows.columns()[1]["prompt"] == [
        {"role": "system", "content": "rank"},
        {"role": "user", "content": "b? text 0 | text 1 | text 2"},
    ]


def test_a_pointwise_prompt_has_a_row_for_each_document_side_by_side() -> None:
    rows = prompt_rows([question("a"), question("b")], Numbers("pointwise"), 3)
    assert (rows.questions, rows.per_question, len(rows.rows)) == (2, 3, 6)
    assert [row.example.query.query_id for row in rows.rows] == ["a", "a", "a", "b", "b", "b"]
    assert [[d.doc_id for d in row.documents] for row in rows.rows[:3]] == [["a0"], ["a1"], ["a2"]]


def test_only_the_window_is_shown_and_shorter_questions_may_be_kept() -> None:
    given = [question("a", 5), question("b", 2), question("c", 1)]
    assert prompt_rows(given, Numbers(), 3).rows[0].messages[1][1] == "a? text 0 | text 1 | text 2"
    kept = prompt_rows(given, Numbers(), 3, shorter=True)
    assert [len(row.documents) for row in kept.rows] == [3, 2]
    assert prompt_rows(given, Numbers("pointwise"), 3, shorter=True).questions == 1


def test_questions_that_are_all_too_short_are_an_error() -> None:
    with pytest.raises(TrainingError, match=r"None of the 1 training questions has 4 candidates"):
        prompt_rows([question("a")], Numbers(), 4)


def test_the_reward_sees_judgement_words_and_documents_of_all_rollouts_together() -> None:
    reward = Seen()
    rows = prompt_rows([question("a"), question("b")], Numbers(), 3)
    written = [(0, "3 2 1"), (0, "1 2 3"), (1, "2 3 1"), (1, "nothing")]
    assert rewarded(TRLReward(reward, Numbers(), rows, 2), written) == [1.0, 1 / 3, 1 / 2, 1 / 3]
    ((first, *others),) = reward.calls
    assert len(others) == 3
    assert first.judgement == Permutation((2, 1, 0))
    assert (first.completion, first.group_id, first.context.documents) == ("3 2 1", "a", question("a").candidates)
    assert others[-1].judgement is not None
    assert others[-1].judgement.outcome == "malformed"


def test_a_tag_that_the_template_opened_belongs_to_the_completion() -> None:
    """Models that always think begin behind it; without it every completion would miss a tag."""
    reward = Seen()
    rows = prompt_rows([question("a")], Numbers(), 3)
    wrapped = TRLReward(reward, Numbers(), rows, 1, begun=begun_by("<|user|>?<|assistant|><think>\n"))
    rewarded(wrapped, [(0, "hm</think>3 1 2")])
    assert [outcome.completion for outcome in reward.calls[0]] == ["<think>hm</think>3 1 2"]


@pytest.mark.parametrize("prompt", ["<|assistant|>", "a <think> of it", "<think>\n\n</think>\n\n", "<user>"])
def test_other_prompts_begin_no_completion(prompt: str) -> None:
    assert begun_by(prompt) == ""


def test_a_failed_reward_is_none_and_never_zero() -> None:
    rows = prompt_rows([question("a")], Numbers(), 3)
    reward = TRLReward(Seen(), Numbers(), rows, 2)
    logged: dict[str, float] = {}
    assert rewarded(reward, [(0, "3 1 2"), (0, "no value")], log_metric=logged.__setitem__) == [1.0, None]
    assert logged == {"ok": 0.5, "repaired": 0.0, "malformed": 0.5, "failed_rewards": 0.5}


class OfWhatWasRead:
    """Pays an answer that came from the passage with the answer."""

    name = "of what was read"

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        right = [float(outcome.context.documents[0].text == outcome.example.answers[0]) for outcome in outcomes]
        return [
            RewardValue(value, {"right": value}) if isinstance(outcome.result, Answer) else RewardValue(None)
            for value, outcome in zip(right, outcomes, strict=True)
        ]


def test_a_reader_over_http_is_asked_about_a_whole_generation_at_once_and_fails_alone() -> None:
    rows = prompt_rows([question("a"), question("b")], Numbers(), 3)
    orders = ("1 2 3", "2 1 3", "3 1 2")
    with ChaosReader(seconds=0.2) as server:
        reader = LLMReader(HTTPLLM("m", server.base_url, max_retries=0))
        failing = Context(Query("b", "b?"), (question("b").candidates[1],))
        (message,) = reader.request(failing).messages
        server.script({message[1]: ["400"] * 9})
        reward = ranking_reward("reader", reader=reader, reward=OfWhatWasRead(), depth=1)
        logged: dict[str, float] = {}
        wrapped = TRLReward(reward, Numbers(), rows, 3)
        values = rewarded(wrapped, [(row, said) for row in (0, 1) for said in orders], log_metric=logged.__setitem__)
        assert server.most_in_flight == 2 * len(orders) - 1  # the first of all goes alone
    assert values == [0.0, 0.0, 1.0, 0.0, None, 1.0]
    assert logged["failed_rewards"] == 1 / 6
    assert logged["parts/right"] == 2 / 5


def test_too_many_failed_rewards_end_the_run_and_fewer_do_not() -> None:
    """Over the last 300, from the fiftieth on: a few at the beginning say nothing."""
    rows = prompt_rows([question("a")], Numbers(), 3)

    def price(failed: int, of: int, wrapped: TRLReward) -> None:
        wrapped.price([(0, "no value")] * failed + [(0, "3 1 2")] * (of - failed))

    few = TRLReward(Seen(), Numbers(), rows, 2, max_failed=0.1)
    price(49, 49, few)
    with pytest.raises(RewardError, match=r"no value to 49 of the last 50 completions; at most 10%"):
        price(0, 1, few)
    recent = TRLReward(Seen(), Numbers(), rows, 2, max_failed=0.1)
    price(4, 40, recent)
    price(0, 300, recent)
    price(30, 100, recent)  # the first four are forgotten
    with pytest.raises(RewardError, match=r"31 of the last 300"):
        price(1, 1, recent)


def test_parts_of_a_reward_are_logged_as_means_over_those_that_have_them() -> None:
    class InParts(Seen):
        def _price(self, outcome: Outcome) -> RewardValue:
            malformed = outcome.judgement is not None and outcome.judgement.outcome == "malformed"
            return RewardValue(0.5, {"form": 0.0} if malformed else {"form": 1.0, "rank": 0.25})

    rows = prompt_rows([question("a")], Numbers(), 3)
    logged: dict[str, float] = {}
    wrapped = TRLReward(InParts(), Numbers(), rows, 4)
    rewarded(wrapped, [(0, "3 1 2"), (0, "1"), (0, "2"), (0, "3 2 1")], log_metric=logged.__setitem__)
    assert {name: logged[name] for name in logged if "/" in name} == {"parts/form": 2 / 4, "parts/rank": 0.25}


def two_questions() -> PromptRows:
    return prompt_rows([question("a"), question("b")], Numbers("pointwise"), 3)


@pytest.mark.parametrize(
    "numbers",
    [
        [0, 0, 1, 1],  # the third document is missing
        [0, 0, 1, 1, 2],  # a rollout of it
        [0, 0, 1, 1, 2, 2, 2, 2],  # twice as many
        [0, 0, 1, 1, 2, 2, 3],  # the next question has begun
    ],
)
def test_an_incomplete_question_is_an_error(numbers: list[int]) -> None:
    with pytest.raises(TrainingError, match=r"Question '[ab]' came to its reward with \d completions"):
        check_complete(numbers, two_questions(), 2)


def test_whole_questions_are_complete_in_any_order() -> None:
    check_complete([2, 1, 0, 0, 2, 1], two_questions(), 2)
    check_complete([], two_questions(), 2)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_prices_whole_questions_and_keeps_its_share(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """Half of the rollouts of a question are another process's."""
    shares = [[(0, "3 2 1"), (0, "1 2 3")], [(0, "2 3 1"), (0, "1 3 2")]]
    monkeypatch.setattr(processes, "rank", lambda: rank)
    monkeypatch.setattr(processes, "from_first", lambda work: work())
    reward = Seen()
    rows = prompt_rows([question("a")], Numbers(), 3)
    wrapped = TRLReward(reward, Numbers(), rows, 4, gather=lambda share: shares)
    assert rewarded(wrapped, shares[rank]) == [[1.0, 1 / 3], [1 / 2, 1 / 2]][rank]
    assert len(reward.calls[0]) == 4


@pytest.mark.parametrize(
    ("judgement", "order"),
    [
        (Permutation((1, 0, 2, 3)), (1, 0, 2, 3)),
        (Choice(1), (1, 0, 2, 3)),
        (Choice(None), (0, 1, 2, 3)),
        (Scores((0.5, None, 2.0, 0.5)), (2, 0, 3, 1)),
        (Scores((-1.0, 0.0, -2.0, None)), (1, 0, 2, 3)),
    ],
)
def test_a_judgement_is_an_order_of_all_documents(judgement: Judgement, order: tuple[int, ...]) -> None:
    assert order_of(judgement, 4) == order
