"""LLMPolicy: what a language model is asked about windows, and what becomes of its answers and failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from rankwright.errors import ConfigurationError
from rankwright.llms.cache import CachedLLM, ReadStore
from rankwright.llms.calls import Call, CallsReport, collect
from rankwright.llms.http import HTTPLLM
from rankwright.prompts.answers import Tags
from rankwright.prompts.ranking import RankingPrompt, load_ranking_prompt, shipped_prompts
from rankwright.rerankers.generating import LLMPolicy, default_sampling
from rankwright.types import (
    Choice,
    Completion,
    CompletionFailed,
    CompletionResult,
    Document,
    GeneratingPolicy,
    LLMRequest,
    Permutation,
    Query,
    RerankRequest,
    Scores,
)
from tests.cli_kit import body_of, reply, serving


class ScriptedLLM:
    """Says what it is told to say, and keeps what it was asked."""

    name = "scripted"

    def __init__(self, say: Callable[[LLMRequest], CompletionResult]):
        self.asked: list[LLMRequest] = []
        self.batches = 0
        self._say = say

    def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
        self.batches += 1
        self.asked += requests
        return [self._say(request) for request in requests]


def window(count: int, query: str = "q", text: str = "word") -> RerankRequest:
    return RerankRequest(Query(query, f"what is {query}?"), tuple(Document(f"d{n}", text) for n in range(count)))


def policy(
    prompt: str, say: str | CompletionResult, **sampling: float | int | str | None
) -> tuple[LLMPolicy, ScriptedLLM]:
    llm = ScriptedLLM(lambda request: Completion(say, 10, 5) if isinstance(say, str) else say)
    return LLMPolicy(llm, load_ranking_prompt(prompt), sampling=sampling), llm


def test_a_window_is_one_call_and_all_of_them_are_one_batch() -> None:
    judge, llm = policy("listwise-1", "[2] > [1] > [3]")
    judged = judge.judge([window(3, "a"), window(3, "b"), window(2, "c")])
    assert isinstance(judge, GeneratingPolicy)
    assert (len(llm.asked), llm.batches) == (3, 1)
    assert judged[0].judgement == Permutation((1, 0, 2))
    assert judged[2].judgement == Permutation((1, 0), "repaired", ("id out of range",))
    assert [(one.input_tokens, one.output_tokens, one.paid) for one in judged] == [(10, 5, True)] * 3
    assert ["what is b?" in text for text in (llm.asked[0].messages[-1][1], llm.asked[1].messages[-1][1])] == [
        False,
        True,
    ]


def test_a_call_that_fails_takes_tokens_too(tmp_path: Path) -> None:
    """A text that did not end is billed, and so is one that the cache turns down."""

    class Endless:
        name = "endless"

        def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
            return collect(self, requests)

        def complete_each(self, requests: Sequence[LLMRequest], on_calls: CallsReport) -> None:
            told = [CompletionFailed("length"), Completion(" ", 7, 1), CompletionFailed("timeout")]
            tokens = [(9, 512), (7, 1), (None, None)]
            on_calls([Call(i, told[i], 1, *tokens[i]) for i in range(len(requests))])

    windows, prompt = [window(2, query) for query in "abc"], load_ranking_prompt("listwise-1")
    with ReadStore(tmp_path / "reads.sqlite") as store:
        for llm in (CachedLLM(Endless(), store), Endless()):
            judged = LLMPolicy(llm, prompt).judge(windows)
            assert [one.judgement.outcome for one in judged] == ["malformed"] * 3
            assert [(one.input_tokens, one.output_tokens) for one in judged] == [(9, 512), (7, 1), (None, None)]


def test_thoughts_before_an_answer_are_handed_on() -> None:
    judge, _ = policy("listwise-think-1", "<think>[2] it is</think><answer>[2] > [1]</answer>")
    (judged,) = judge.judge([window(2)])
    assert (judged.judgement, judged.thoughts) == (Permutation((1, 0)), "[2] it is")
    judge, _ = policy("listwise-1", "[2] > [1]")
    assert [one.thoughts for one in judge.judge([window(2), window(1)])] == ["", ""]


def test_a_request_carries_messages_sampling_and_version() -> None:
    judge, llm = policy("listwise-1", "[1]")
    judge.judge([window(2)])
    (request,) = llm.asked
    prompt = load_ranking_prompt("listwise-1")
    assert request.messages == prompt.messages(window(2).query, window(2).documents)
    assert dict(request.sampling) == {"max_tokens": 512, "temperature": 0}
    assert request.prompt_version == "listwise-1"
    assert judge.name == "scripted|prompt:listwise-1|max_tokens=512,temperature=0"


@pytest.mark.parametrize(
    ("prompt", "count", "settled"),
    [
        ("listwise-1", 1, Permutation((0,))),
        ("listwise-1", 0, Permutation(())),
        ("listwise-letters-1", 1, Permutation((0,))),
        ("setwise-think-1", 1, Choice(0)),
        ("setwise-think-1", 0, Choice(None)),
        ("groupwise-1", 0, Scores(())),
        ("pointwise-binary-1", 0, Scores(())),
    ],
)
def test_what_needs_no_judgement_takes_no_call(prompt: str, count: int, settled: object) -> None:
    judge, llm = policy(prompt, "")
    (judged,) = judge.judge([window(count)])
    assert (judged.judgement, judged.paid, judged.input_tokens) == (settled, False, 0)
    assert llm.batches == 0


def test_a_single_document_has_no_score_before_it_was_judged() -> None:
    judge, llm = policy("groupwise-1", '<reason>-</reason><answer>{"[1]": 4}</answer>')
    assert judge.judge([window(1)])[0].judgement == Scores((4.0,))
    assert len(llm.asked) == 1


@pytest.mark.parametrize("prompt", shipped_prompts())
def test_a_failed_call_is_a_malformed_judgement_with_its_reason(prompt: str) -> None:
    judge, _ = policy(prompt, CompletionFailed("http 400", paid=False))
    count = 1 if judge.prompt.kind == "pointwise" else 3
    (judged,) = judge.judge([window(count)])
    assert (judged.judgement.outcome, judged.judgement.repairs) == ("malformed", ("call failed: http 400",))
    assert (judged.paid, judged.input_tokens) == (False, None)
    expected = {"listwise": Permutation, "setwise": Choice, "groupwise": Scores, "pointwise": Scores}
    assert type(judged.judgement) is expected[judge.prompt.kind]


@pytest.mark.parametrize(
    ("prompt", "say", "sizes"),
    [
        ("setwise-1", "[2]", [1024, 176]),
        ("pointwise-yes-no-1", "yes", [1024, 176]),
        ("pointwise-integer-1", "7", [*[128] * 9, 48]),  # the log probabilities of whole texts fill the memory
    ],
)
def test_very_many_windows_are_asked_about_in_batches(prompt: str, say: str, sizes: list[int]) -> None:
    at_once: list[int] = []

    class Counting(ScriptedLLM):
        def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
            at_once.append(len(requests))
            return super().complete(requests)

    llm = Counting(lambda request: Completion(say))
    judge = LLMPolicy(llm, load_ranking_prompt(prompt))
    count = 1 if judge.prompt.kind == "pointwise" else 2
    judged = judge.judge([window(count, f"q{number}") for number in range(1200)])
    assert (at_once, len(judged), judge.shown) == (sizes, 1200, 1200 * count)
    assert [request.messages for request in llm.asked] == [
        judge.request(window(count, f"q{number}")).messages for number in range(1200)
    ]


def test_an_answer_from_a_cache_is_not_paid() -> None:
    judge, _ = policy("listwise-1", Completion("[2] > [1]", 10, 5, paid=False))
    assert not judge.judge([window(2)])[0].paid


def test_a_prompt_that_does_not_fit_is_an_error_and_is_not_cut() -> None:
    judge, _ = policy("listwise-1", CompletionFailed("prompt too long", paid=False, detail="777 tokens"))
    size = sum(len(text) for _, text in judge.request(window(3)).messages)
    with pytest.raises(
        ConfigurationError,
        match=rf"3 documents of query 'q' has {size} characters.*cannot take \(777 tokens\).*512 tokens of.*--window",
    ):
        judge.judge([window(3)])


def test_a_prompt_that_a_server_finds_too_long_is_an_error_in_its_words_and_no_judgement(tmp_path: Path) -> None:
    said = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"

    def refuse(request: BaseHTTPRequestHandler) -> None:
        body_of(request)
        reply(request, {"error": {"message": said, "type": "BadRequestError", "code": 400}}, 400)

    with serving(refuse) as url, ReadStore(tmp_path / "reads.sqlite") as store:
        judge = LLMPolicy(CachedLLM(HTTPLLM("m", url, stop_after=3), store), load_ranking_prompt("listwise-1"))
        with pytest.raises(ConfigurationError, match=rf"2 documents of query 'q0' .*\(http 400: {said}\); wanted"):
            judge.judge([window(2, f"q{number}") for number in range(9)])


def test_more_documents_than_identifiers_are_an_error_before_any_call() -> None:
    judge, llm = policy("listwise-letters-1", "A")
    with pytest.raises(ConfigurationError, match=r"27 documents.*identifiers for 26"):
        judge.judge([window(2), window(27)])
    assert llm.batches == 0


def test_passages_that_are_cut_are_counted() -> None:
    judge, _ = policy("listwise-1", "[1]")
    judge.judge([window(3, text="x" * 300), window(4, text="x" * 301), window(1, text="x" * 301)])
    assert (judge.shown, judge.cut) == (7, 4)


def test_sampling_of_the_user_goes_before_that_of_the_prompt() -> None:
    judge, llm = policy("setwise-think-1", "", max_tokens=None, max_completion_tokens=99, temperature=None)
    judge.judge([window(2)])
    assert dict(llm.asked[0].sampling) == {"max_completion_tokens": 99}


def test_without_log_probabilities_the_likeliest_tokens_are_not_asked_for_either() -> None:
    judge, llm = policy("pointwise-integer-1", "<think>-</think><answer>7</answer>", logprobs=None)
    (judged,) = judge.judge([window(1)])
    assert dict(llm.asked[0].sampling) == {"max_tokens": 2048, "temperature": 0}
    assert judged.judgement == Scores((7.0,), "repaired", ("no probability",))


@pytest.mark.parametrize("name", shipped_prompts())
def test_every_prompt_asks_for_as_much_as_its_form_needs(name: str) -> None:
    prompt = load_ranking_prompt(name)
    bare = RankingPrompt(prompt.version, prompt.kind, prompt.parser, prompt.turns, tags=prompt.tags)
    for sampling in (default_sampling(prompt), default_sampling(bare)):
        assert sampling["temperature"] == 0
        assert (sampling.get("logprobs"), sampling.get("top_logprobs")) == (
            (True, 20) if prompt.needs_logprobs else (None, None)
        )
        one_token = prompt.needs_logprobs and not prompt.tags.thinking
        assert (sampling["max_tokens"] == 1) is one_token


def test_a_bare_number_may_be_of_several_tokens_and_a_bracket_stands_before_the_second() -> None:
    letters, number = load_ranking_prompt("listwise-letters-1"), load_ranking_prompt("pointwise-integer-1")
    second = replace(letters, sampling={}, options={"token": 2})
    assert default_sampling(second)["max_tokens"] == 2
    bare = replace(number, sampling={}, tags=Tags())
    assert default_sampling(bare)["max_tokens"] == 512  # 10 is two tokens to many models: cut after one it would be 1
