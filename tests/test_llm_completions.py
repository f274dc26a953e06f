"""The dialect of /v1/completions: what is sent, what is read, and that answers of the two dialects are kept apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankwright.cli.build import build_llm
from rankwright.cli.settings import ReaderSettings, load_reader_settings
from rankwright.errors import ConfigurationError, ReaderError
from rankwright.llms.cache import CachedLLM, ReadStore, request_key
from rankwright.llms.completions import bare_text
from rankwright.llms.http import HTTPLLM
from rankwright.llms.logprobs import LEAST
from rankwright.llms.replies import read_completion
from rankwright.types import Completion, CompletionFailed, LLMRequest
from tests.chaos_client import FINAL, MAX_RETRIES, RETRIED, ask, calls_of, client
from tests.chaos_reader import ChaosReader, said_in_columns

MESSAGES = (("system", "Sort."), ("user", "[1] moon"), ("assistant", "Noted."), ("user", "Sort them."))
YES = {"yes": -0.1, "no": -2.3, "maybe": -5.0}
MAYBE = {"maybe": -5.0, "yes": -0.1, "no": -2.3}


def with_logprobs(max_tokens: int = 1, top: int = 2) -> LLMRequest:
    sampling = (("logprobs", True), ("max_tokens", max_tokens), ("temperature", 0.0), ("top_logprobs", top))
    return LLMRequest((("user", "q"),), sampling)


def body(**choice: Any) -> bytes:
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    whole = {"object": "text_completion", "usage": usage}
    return json.dumps(whole | {"choices": [{"index": 0, "text": "yes", "finish_reason": "stop"} | choice]}).encode()


# --- sent ------------------------------------------------------------------------------------------------------------


def test_the_texts_of_all_messages_are_one_prompt() -> None:
    with ChaosReader() as server:
        sampling = (("max_tokens", 8), ("stop", "\n"))
        (result,) = client(server, api="completions").complete([LLMRequest(MESSAGES, sampling)])
        (seen,) = server.ledger
    assert seen.path == "/v1/completions"
    assert seen.body == {"model": "m", "prompt": "\n\n".join(text for _, text in MESSAGES), **dict(sampling)}
    assert result == Completion("answer to Sort them.", 10, 3)


def test_sampling_is_translated() -> None:
    request = LLMRequest(MESSAGES, (("logprobs", True), ("max_completion_tokens", 1), ("top_logprobs", 5)))
    off = LLMRequest(MESSAGES, (("logprobs", False), ("max_tokens", 1)))
    with ChaosReader(tokens=lambda question: [YES]) as server:
        client(server, api="completions", concurrency=1).complete([request, off])
        sent = [
            {name: seen.body[name] for name in seen.body if name not in ("model", "prompt")} for seen in server.ledger
        ]
    assert sent == [{"logprobs": 5, "max_tokens": 1}, {"max_tokens": 1}]


@pytest.mark.parametrize("value", [5, "yes"])
def test_a_number_of_log_probabilities_in_the_other_form_is_refused_before_anything_is_sent(value: int | str) -> None:
    with ChaosReader() as server:
        with pytest.raises(ConfigurationError, match=r"logprobs is .*top_logprobs"):
            client(server, api="completions").complete([ask("q"), ask("p", logprobs=value)])
        assert server.ledger == []


def test_half_letters_are_sent_as_question_marks() -> None:
    with ChaosReader() as server:
        client(server, api="completions").complete([LLMRequest((("user", "a\ud800b"),))])
        assert server.ledger[0].body["prompt"] == "a?b"


def test_an_unknown_dialect_is_refused() -> None:
    unknown: Any = "responses"
    with pytest.raises(ConfigurationError, match="api is 'responses'; use one of chat, completions"):
        HTTPLLM("m", "http://127.0.0.1:9", api=unknown)


def test_the_address_that_does_not_exist_is_that_of_the_dialect() -> None:
    with (
        ChaosReader({"q": ["404"]}) as server,
        pytest.raises(ReaderError, match=rf"at http://127.0.0.1:{server.port}/v1/completions\. Check"),
    ):
        client(server, api="completions").complete([ask("q")])


# --- read ------------------------------------------------------------------------------------------------------------


def test_every_fault_is_what_it_is_in_the_chat_dialect() -> None:
    reasons = {name: reason for name, reason in (RETRIED | FINAL).items() if name not in ("no-message", "refusal")}
    with ChaosReader({name: [name] * 9 for name in reasons}) as server:
        calls = calls_of(client(server, api="completions"), [ask(name) for name in reasons])
    assert dict(zip(reasons, (call.result for call in calls), strict=True)) == {
        name: CompletionFailed(reason) for name, reason in reasons.items()
    }
    assert [call.attempts for call in calls] == [1 + MAX_RETRIES if name in RETRIED else 1 for name in reasons]


def test_the_form_of_each_dialect_is_malformed_in_the_other() -> None:
    chat = json.dumps({"choices": [{"message": {"content": "yes"}}]}).encode()
    assert read_completion(chat, ask("q"), "completions").result == CompletionFailed("wrong json type")
    assert read_completion(body(), ask("q"), "chat").result == CompletionFailed("wrong json type")
    assert read_completion(body(), ask("q"), "completions").result == Completion("yes", 7, 2)


def test_log_probabilities_begin_with_the_token_written() -> None:
    with ChaosReader(tokens=lambda question: [MAYBE, YES]) as server:
        (result,) = client(server, api="completions").complete([with_logprobs(max_tokens=8)])
    assert isinstance(result, Completion)
    assert result == Completion("maybeyes", 10, 3, True, (MAYBE, {"yes": -0.1, "no": -2.3}))
    assert [list(tokens) for tokens in result.top_logprobs] == [["maybe", "yes", "no"], ["yes", "no"]]


def test_the_form_of_chat_is_read_too() -> None:
    """llama.cpp's own server gives it in both dialects."""
    entry = {"token": "yes", "logprob": -0.1, "top_logprobs": [{"token": "no", "logprob": -2.3}]}
    result = read_completion(body(logprobs={"content": [entry]}), with_logprobs(), "completions").result
    assert result == Completion("yes", 7, 2, True, ({"yes": -0.1, "no": -2.3},))


SOUND = said_in_columns([YES], 2)


@pytest.mark.parametrize(
    "dropped", [None, {}, {**SOUND, "tokens": [], "token_logprobs": []}, {**SOUND, "top_logprobs": None}]
)
def test_a_server_that_drops_them_is_told_from_one_that_gives_them(dropped: Any) -> None:
    result = read_completion(body(logprobs=dropped), with_logprobs(), "completions").result
    assert result == CompletionFailed("no logprobs")


def test_only_the_written_token_where_no_others_were_asked_for() -> None:
    columns = {**SOUND, "top_logprobs": None}
    result = read_completion(body(logprobs=columns), with_logprobs(top=0), "completions").result
    assert result == Completion("yes", 7, 2, True, ({"yes": -0.1},))


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": "yes"},
        {"tokens": [4]},
        {"tokens": ["yes", "no"]},
        {"token_logprobs": None},
        {"token_logprobs": [None]},
        {"token_logprobs": [True]},
        {"token_logprobs": ["-0.1"]},
        {"token_logprobs": [float("nan")]},
        {"token_logprobs": [3.5]},
        {"token_logprobs": {"yes": -0.1}},
        {"top_logprobs": "yes"},
        {"top_logprobs": [["yes", -0.1]]},
        {"top_logprobs": [{"yes": None}]},
        {"top_logprobs": [{"yes": float("nan")}]},
        {"top_logprobs": SOUND["top_logprobs"] * 2},
    ],
)
def test_malformed_ones_are_no_scores_and_the_call_may_be_tried_again(change: dict[str, Any]) -> None:
    reply = read_completion(body(logprobs=SOUND | change), with_logprobs(), "completions")
    assert (reply.result, reply.retry) == (CompletionFailed("bad logprobs"), True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["content", *SOUND, "token", "logprob"]) | st.text(max_size=2), inner)
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # of a busy machine
@given(st.fixed_dictionaries({}, optional={"text": JSON, "logprobs": JSON, "finish_reason": JSON, "message": JSON}))
def test_any_choice_becomes_a_reply(choice: dict[str, Any]) -> None:
    raw = json.dumps({"choices": [choice]}).encode()
    read_completion(raw, ask("q"), "completions")
    result = read_completion(raw, with_logprobs(), "completions").result
    assert isinstance(result, CompletionFailed) or result.top_logprobs


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # of a busy machine
@given(st.fixed_dictionaries(dict.fromkeys(SOUND, JSON)))
def test_any_columns_become_numbers_or_a_failure(columns: dict[str, Any]) -> None:
    result = read_completion(body(logprobs=columns), with_logprobs(), "completions").result
    if isinstance(result, Completion):
        assert result.top_logprobs
        assert all(LEAST <= value <= 0 for tokens in result.top_logprobs for value in tokens.values())


def test_a_server_that_drops_them_stops_the_run_by_name() -> None:
    with (
        ChaosReader() as server,
        pytest.raises(ReaderError, match=r"/v1/completions was asked for log probabilities .* left them out"),
    ):
        client(server, api="completions").complete([with_logprobs()])


# --- kept, and set ---------------------------------------------------------------------------------------------------


def test_answers_of_the_dialects_are_kept_apart(tmp_path: Path) -> None:
    with ChaosReader() as server, ReadStore(tmp_path / "reads.sqlite") as store:
        chat, bare = (client(server, api=api) for api in ("chat", "completions"))
        for llm in (chat, bare, chat, bare):
            CachedLLM(llm, store, run="r").complete([ask("q")])
        assert [seen.path for seen in server.ledger] == ["/v1/chat/completions", "/v1/completions"]
        assert (chat.name, bare.name) == (f"m@{server.base_url}", f"m@{server.base_url}/completions")


def test_keys_of_chat_are_what_they_were() -> None:
    llm = HTTPLLM("m", "http://127.0.0.1:9/v1")
    request = LLMRequest((("user", "q"),), (("max_tokens", 8),), "reader-1")
    assert request_key(llm.name, request) == "59ac0b502235486b34a4db704445eeb11c56b539c7573bc870cd34173b971481"


def test_it_is_a_setting_of_endpoints_alone() -> None:
    flags = {"reader.reader": "http://127.0.0.1:9/v1", "reader.model": "m"}
    llm = build_llm(load_reader_settings(None, ["reader.api=completions"], flags))
    assert isinstance(llm, HTTPLLM)
    assert llm.name == "m@http://127.0.0.1:9/v1/completions"
    with pytest.raises(ConfigurationError, match=r"reader\.api is completions, but ./model is no endpoint"):
        ReaderSettings(reader="./model", api="completions")
    with pytest.raises(ConfigurationError, match=r"reader\.api"):
        load_reader_settings(None, ["reader.api=responses"], flags)


def test_a_local_model_without_a_template_gets_the_same_text() -> None:
    assert bare_text(MESSAGES) == "Sort.\n\n[1] moon\n\nNoted.\n\nSort them."
