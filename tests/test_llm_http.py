"""The HTTP client against a server that does everything wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from openai import DefaultAsyncHttpxClient

from rankwright.errors import BudgetExceededError, ConfigurationError, ReaderError, StorageError
from rankwright.llms.calls import Call
from rankwright.llms.http import HTTPLLM
from rankwright.llms.replies import is_too_long
from rankwright.types import Completion, CompletionFailed, CompletionResult, LLMRequest
from tests.chaos_client import FINAL, KEY, MAX_RETRIES, RETRIED, SLOW, STOPPING, ask, calls_of, client
from tests.chaos_reader import FAULTS, ChaosReader
from tests.cli_kit import body_of, reply, serving

CALLS_PER_FAULT = 3
TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("rankwright.llms.http.CONNECT_SECONDS", 300.0)


# --- every fault by name: its reason, and whether another attempt is made -----------------------------------------


def test_no_fault_is_left_out() -> None:
    assert RETRIED.keys() | FINAL.keys() | SLOW.keys() | STOPPING.keys() | {"ok", "429-date"} == FAULTS.keys()


def questions_with(faults: dict[str, str], script: list[str]) -> dict[str, list[str]]:
    """question -> script, several questions for each fault; "X" in the script stands for the fault."""
    return {
        f"{fault}#{number}": [fault if entry == "X" else entry for entry in script]
        for fault in faults
        for number in range(CALLS_PER_FAULT)
    }


def test_a_fault_that_stays_becomes_a_failure_with_its_reason() -> None:
    reasons = RETRIED | FINAL
    with ChaosReader(questions_with(reasons, ["X"] * 9)) as server:
        questions = list(questions_with(reasons, []))
        calls = calls_of(client(server), [ask(question) for question in questions])
        found = {question: call.result for question, call in zip(questions, calls, strict=True)}
        assert found == {question: CompletionFailed(reasons[question.split("#")[0]]) for question in questions}
        sent = {question: sum(seen.question == question for seen in server.ledger) for question in questions}
    wanted = {q: 1 + MAX_RETRIES if q.split("#")[0] in RETRIED else 1 for q in questions}
    assert sent == wanted
    assert {q: call.attempts for q, call in zip(questions, calls, strict=True)} == wanted


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"message": "Input is large.", "code": "context_length_exceeded"}),
        (400, {"message": "This model's maximum context length is 4096 tokens. However, you requested", "code": 400}),
        (400, {"message": "You passed 25 input tokens. However, the model's context length is only 24 tokens."}),
        (400, {"message": "request (4390 tokens) is large", "type": "exceed_context_size_error", "code": 400}),
        (500, {"message": "the request is large", "type": "exceed_context_size_error", "code": 500}),
        (413, {"message": "prompt is too long: 210000 tokens > 200000 maximum"}),
        (422, "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000"),
    ],
)
def test_a_refusal_of_a_prompt_that_is_too_long_is_known_whatever_the_server(status: int, error: object) -> None:
    def refuse(request: BaseHTTPRequestHandler) -> None:
        body_of(request)
        reply(request, {"error": error}, status)

    with serving(refuse) as url:
        (call,) = calls_of(HTTPLLM("m", url), [ask("q")])
    assert (call.result, call.attempts) == (CompletionFailed("prompt too long"), 1)
    said = error["message"] if isinstance(error, dict) else error
    assert isinstance(call.result, CompletionFailed)
    assert call.result.detail == f"http {status}: {said}"


def test_other_refusals_are_none_of_a_long_prompt() -> None:
    taken = {"error": {"message": "Context size has been exceeded.", "type": "server_error"}}  # by other requests
    assert not is_too_long(500, None, "server_error", str(taken))
    assert not is_too_long(429, None, None, "input token count per minute, reduce the length of your day")
    assert not is_too_long(400, "invalid_value", "invalid_request_error", "logprobs are not supported")


def test_prompts_that_are_too_long_do_not_count_against_a_server_that_has_not_answered_yet() -> None:
    questions = [f"q{number}" for number in range(9)]
    with ChaosReader({question: ["too-long"] for question in questions}) as server:
        results = client(server, stop_after=5, concurrency=1).complete([ask(question) for question in questions])
    assert results == [CompletionFailed("prompt too long")] * 9


def test_a_fault_that_passes_is_retried_to_the_answer() -> None:
    with ChaosReader(questions_with(RETRIED, ["X", "ok"])) as server:
        questions = list(questions_with(RETRIED, []))
        calls = calls_of(client(server), [ask(question) for question in questions])
    assert [call.result for call in calls] == [Completion(f"answer to {question}", 10, 3) for question in questions]
    assert {call.attempts for call in calls} == {2}


def test_a_retry_after_in_the_form_of_a_date_is_waited_for() -> None:
    with ChaosReader({"q": ["429-date"]}) as server:
        (call,) = calls_of(client(server), [ask("q")])
    assert (call.result, call.attempts) == (Completion("answer to q", 10, 3), 2)


@pytest.mark.parametrize("fault", SLOW)
def test_a_server_that_never_ends_meets_the_deadline(fault: str) -> None:
    questions = [f"q{number}" for number in range(30)]
    with ChaosReader({question: [fault] * 9 for question in questions}) as server:
        llm = client(server, deadline=0.4, attempt_timeout=30.0, concurrency=30)
        assert llm.complete([ask(question) for question in questions]) == [CompletionFailed("timeout")] * 30


def test_one_slow_attempt_is_not_the_whole_call() -> None:
    with ChaosReader({"q": ["hang"]}) as server:
        (call,) = calls_of(client(server, attempt_timeout=0.5, max_retries=50), [ask("q")])
    assert call.result == Completion("answer to q", 10, 3)
    assert call.attempts >= 2


def test_retries_end_with_the_deadline_though_more_are_allowed() -> None:
    with ChaosReader({"q": ["429-seconds"] * 10_000}) as server:
        (call,) = calls_of(client(server, deadline=0.3, max_retries=10_000), [ask("q")])
    assert call.result in (CompletionFailed("http 429"), CompletionFailed("timeout"))
    assert 1 <= call.attempts < 16  # every attempt waits for the 0.02 seconds the server asks for


def test_a_port_where_nobody_listens_is_a_failed_connection() -> None:
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{placeholder.getsockname()[1]}"
        llm = HTTPLLM("m", address, max_retries=1, first_backoff=0.005, stop_after=99)
        assert llm.complete([ask("q")]) == [CompletionFailed("connection failed")]


# --- errors that stop the run -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("401", ReaderError, r"m@http.*refused the key \(http 401.*OPENAI_API_KEY is set\); wanted one .* Put it"),
        ("403", ReaderError, r"refused the key \(http 403: not for you"),
        ("404", ReaderError, r"http 404.*Check the model name"),
        ("402", BudgetExceededError, r"out of quota \(http 402.*; wanted one .*resume"),
        ("quota", BudgetExceededError, r"out of quota \(http 429"),
    ],
)
def test_what_all_calls_would_meet_stops_at_once(fault: str, error: type[Exception], message: str) -> None:
    with ChaosReader({"q3": [fault] * 9}) as server:
        llm = client(server, concurrency=1)
        answered: list[Call] = []
        with pytest.raises(error, match=message) as raised:
            llm.complete_each([ask(f"q{number}") for number in range(9)], answered.extend)
        assert [call.index for call in answered] == [0, 1, 2, 3]
        assert answered[-1] == Call(3, CompletionFailed("aborted"), 1, None, None, None)  # sent, so perhaps billed
        assert len(server.ledger) == 4
    assert KEY not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None  # the SDK's error holds the request, and with it the key


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405])
def test_a_refusal_of_all_calls_costs_one_of_them(status: int) -> None:
    """Whatever the concurrency: the first call of all goes alone."""
    paths: list[str] = []

    def refuse(request: BaseHTTPRequestHandler) -> None:
        body_of(request)
        paths.append(request.path)
        reply(request, {"error": {"message": "no"}}, status)

    with serving(refuse) as url:
        llm = HTTPLLM("m", url, concurrency=16)
        for _ in range(2):
            with pytest.raises((ReaderError, BudgetExceededError), match=f"http {status}: no"):
                llm.complete([ask(f"q{number}") for number in range(40)])
    assert len(paths) == 2


def test_only_the_first_call_goes_alone_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwright.llms.http.ALONE_SECONDS", 0.1)
    with ChaosReader({"slow": ["hang"]}) as server:
        finished: list[Call] = []
        llm = client(server, concurrency=4, deadline=1.0, max_retries=0)
        llm.complete_each([ask("slow"), ask("q1")], finished.extend)
        assert [call.index for call in finished] == [1, 0]
    with ChaosReader(seconds=0.3) as server:
        monkeypatch.setattr("rankwright.llms.http.ALONE_SECONDS", 60.0)
        llm = client(server, concurrency=4)
        llm.complete([ask("q0")])
        llm.complete([ask(f"q{number}") for number in range(4)])
        assert server.most_in_flight == 4


def test_calls_in_flight_may_end_when_the_run_stops() -> None:
    questions = [f"q{number}" for number in range(50)]
    with ChaosReader({"q3": ["402"]}, seconds=0.05) as server:  # not the first, which goes alone
        answered: list[Call] = []
        with pytest.raises(BudgetExceededError):
            client(server, concurrency=5).complete_each([ask(question) for question in questions], answered.extend)
        assert len(server.ledger) == len(answered)  # every request the server saw has been handed out
    assert [call.result.reason for call in answered if isinstance(call.result, CompletionFailed)] == ["aborted"]
    assert len(answered) < 50


def test_attempts_before_the_one_that_stops_the_run_are_counted() -> None:
    with ChaosReader({"q": ["503", "html", "401"]}) as server:
        reported: list[Call] = []
        with pytest.raises(ReaderError, match="refused the key"):
            client(server, prices={"input": 1.0, "output": 1.0}).complete_each([ask("q")], reported.extend)
        assert len(server.ledger) == 3
    assert reported == [Call(0, CompletionFailed("aborted"), 3, None, None, None)]


def test_a_call_that_waits_for_its_next_attempt_makes_none_when_the_run_stops() -> None:
    """Its attempt so far is counted."""
    with ChaosReader({"slow": ["429-huge"], "bad": ["503", "401"]}) as server:
        llm = client(server, deadline=90_000.0, concurrency=2)
        reported: list[Call] = []
        with pytest.raises(ReaderError, match="refused the key"):
            llm.complete_each([ask("slow"), ask("bad")], reported.extend)
        assert len(server.ledger) == 3
    assert sorted(call.attempts for call in reported) == [1, 2]


def test_an_error_of_the_ledger_does_not_hide_why_the_run_stops() -> None:
    def full(calls: Sequence[Call]) -> None:
        raise StorageError("disk full")

    with ChaosReader({"q": ["401"]}) as server, pytest.raises(ReaderError, match="refused the key"):
        client(server).complete_each([ask("q")], full)


def test_the_key_is_never_carried_to_another_host() -> None:
    with ChaosReader() as other, ChaosReader({"q": ["redirect"]}, redirect_to=other.base_url) as server:
        with pytest.raises(ReaderError, match=r"redirects to http://127\.0\.0\.1 .*final address"):
            client(server).complete([ask("q")])
        assert other.ledger == []
        assert server.ledger[0].authorization == f"Bearer {KEY}"


def test_a_server_that_was_never_reached_stops_the_run() -> None:
    with ChaosReader({f"q{number}": ["closed"] * 9 for number in range(40)}) as server:  # two calls may fail at once
        with pytest.raises(
            ReaderError,
            match=r"in [67] attempts in a row \(last: connection broken\); wanted .* run the same command again",
        ):
            client(server, stop_after=6, concurrency=2).complete([ask(f"q{number}") for number in range(40)])
        assert 6 <= len(server.ledger) <= 8


def test_a_server_none_of_whose_first_calls_is_answered_stops_the_run() -> None:
    questions = [f"q{number}" for number in range(40)]
    wanted = r"first 5 calls .* all failed \(last: http 400: too many tokens\)"
    reported: list[Call] = []
    with ChaosReader({q: ["400"] for q in questions}) as server, pytest.raises(ReaderError, match=wanted):
        client(server, stop_after=5, concurrency=1).complete_each([ask(q) for q in questions], reported.extend)
    assert len(reported) == 5  # failed, but perhaps paid: they belong into the ledger


def test_failures_after_the_first_answer_are_values_however_many() -> None:
    questions = [f"q{number}" for number in range(1, 40)]
    with ChaosReader({question: ["length"] for question in questions}) as server:
        llm = client(server, stop_after=5, concurrency=1)
        results = llm.complete([ask("q0"), *(ask(question) for question in questions)])
    assert results == [Completion("answer to q0", 10, 3), *[CompletionFailed("length")] * 39]


def test_a_tenth_of_permanent_faults_fails_a_tenth_of_the_calls() -> None:
    questions = [f"q{number}" for number in range(300)]
    with ChaosReader({question: ["400"] for question in questions[::10]}) as server:
        results = client(server).complete([ask(question) for question in questions])
        assert server.most_in_flight <= 16
        assert len(server.ledger) == 300
    failed = [isinstance(result, CompletionFailed) for result in results]
    assert failed == [number % 10 == 0 for number in range(300)]


def test_transient_faults_cost_one_request_each() -> None:
    questions = [f"q{number}" for number in range(200)]
    with ChaosReader({question: ["503"] for question in questions[::10]}) as server:
        results = client(server).complete([ask(question) for question in questions])
        assert len(server.ledger) == 220
    assert all(isinstance(result, Completion) for result in results)


# --- what is sent, counted and shown ------------------------------------------------------------------------------


def test_the_request_says_what_the_caller_said_and_nothing_else() -> None:
    request = LLMRequest(
        (("system", "be short"), ("user", "q\ud800")), (("max_tokens", 5), ("top_k", 3), ("temperature", 0.0))
    )
    with ChaosReader() as server:
        client(server).complete([request])
        (seen,) = server.ledger
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "q?"}]
    assert seen.body == {"model": "m", "messages": messages, "max_tokens": 5, "top_k": 3, "temperature": 0.0}
    assert seen.path == "/v1/chat/completions"


def test_in_flight_is_bounded_by_the_concurrency() -> None:
    with ChaosReader(seconds=0.02) as server:
        client(server, concurrency=3).complete([ask(f"q{number}") for number in range(30)])
        assert server.most_in_flight == 3


def test_progress_counts_to_the_total() -> None:
    steps: list[tuple[int, int]] = []
    with ChaosReader({"q2": ["400"]}) as server:
        llm = client(server, progress=lambda done, total: steps.append((done, total)))
        llm.complete([ask(f"q{number}") for number in range(5)])
    assert steps == [(number, 5) for number in range(1, 6)]


def test_tokens_and_price_sum_over_all_attempts() -> None:
    script = {"once": [], "lost": ["html"], "refused": ["503"], "cut": ["length"]}
    with ChaosReader(script) as server:
        llm = client(server, prices={"input": 1.0, "output": 2.0})
        once, lost, refused, cut = calls_of(llm, [ask(question) for question in script])
    price = (10 * 1.0 + 3 * 2.0) / 1_000_000
    assert (once.input_tokens, once.output_tokens, once.price) == (10, 3, pytest.approx(price))
    assert (refused.attempts, refused.price) == (2, pytest.approx(price))  # a 503 is not billed
    assert (lost.attempts, lost.input_tokens, lost.price) == (2, None, None)  # a 200 of unknown content may be
    assert (cut.result, cut.price) == (CompletionFailed("length"), pytest.approx(price))  # failed, yet paid


def test_without_a_price_list_no_price_is_known() -> None:
    with ChaosReader() as server:
        assert calls_of(client(server), [ask("q")])[0].price is None


def test_the_request_limit_is_kept_across_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def note(seconds: float, stopping: asyncio.Event) -> None:
        waits.append(seconds)

    monkeypatch.setattr("rankwright.llms.http._pause", note)
    with ChaosReader() as server:
        llm = client(server, requests_per_minute=1.0)
        for number in range(3):
            llm.complete([ask(f"q{number}")])
    assert waits == [0, pytest.approx(60, abs=5), pytest.approx(120, abs=10)]


def test_the_token_limit_learns_from_the_servers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def note(seconds: float, stopping: asyncio.Event) -> None:
        waits.append(seconds)

    monkeypatch.setattr("rankwright.llms.http._pause", note)
    with ChaosReader() as server:
        llm = client(server, tokens_per_minute=60.0)  # 1 a second
        llm.complete([ask("q" * 400, max_tokens=99)])  # estimated 100 + 99, counted 13
        llm.complete([ask("q", max_tokens=0)])
    assert waits == [pytest.approx(198, abs=1), pytest.approx(12, abs=5)]


def test_the_key_shows_nowhere(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    with ChaosReader({"q": ["400"], "r": ["401"]}) as server:
        llm = client(server)
        llm.complete([ask("q")])
        with pytest.raises(ReaderError) as raised:
            llm.complete([ask("r")])
    shown = [repr(llm), llm.name, caplog.text, *capsys.readouterr(), str(raised.value)]
    assert not any(KEY in text for text in shown)
    assert "***" in str(raised.value)  # the server repeated it


def test_a_refused_request_is_told_once_in_the_servers_words(caplog: pytest.LogCaptureFixture) -> None:
    with ChaosReader({f"q{number}": ["400"] for number in range(5)}) as server:
        client(server).complete([ask(f"q{number}") for number in range(5)])
    told = [record.getMessage() for record in caplog.records if record.name == "rankwright.llms.http"]
    assert len(told) == 1
    assert "http 400: too many tokens" in told[0]


def test_another_variable_may_hold_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", "sk-other\n")
    with ChaosReader() as server:
        client(server, api_key_env="OTHER_KEY").complete([ask("q")])
        assert server.ledger[0].authorization == "Bearer sk-other"


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://host.example/api/v3", "https://host.example/api/v3"),
        (" http://[::1]:80/v1 ", "http://[::1]:80/v1"),
    ],
)
def test_the_address_is_completed(given: str, used: str) -> None:
    assert HTTPLLM("m", given).name == f"m@{used}"


@pytest.mark.parametrize(
    "address",
    ["localhost:8000", "ftp://host/v1", "http://", "http://host:99999/v1", "", "http://[::1/v1", "http://h/v1?key=1"],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="Base URL of the language model"):
        HTTPLLM("m", address)


@pytest.mark.parametrize(
    "address",
    ["http://me:hunter2@host/v1", "http://me:hunter2@host:99999/v1", "me:hunter2@host", "http://me:hunter2/@h"],
)
def test_a_password_in_the_address_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ConfigurationError, match="user name or password") as raised:
        HTTPLLM("m", address)
    assert "hunter2" not in str(raised.value)


def test_openai_itself_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        HTTPLLM("m")
    assert HTTPLLM("m", "http://localhost:8000").name == "m@http://localhost:8000/v1"


@pytest.mark.parametrize("key", ["sk-ö", "sk two", "sk\tx"])
def test_a_key_no_header_can_carry_is_refused_and_not_repeated(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigurationError, match="Copy the key again") as raised:
        HTTPLLM("m", "http://localhost")
    assert key not in str(raised.value)


def test_a_key_in_the_place_of_its_variables_name_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match="not the name of an environment variable") as raised:
        HTTPLLM("m", "http://localhost", api_key_env="sk-hush-1")
    assert "hush" not in str(raised.value)
    with pytest.raises(ConfigurationError, match="api_key looks like a secret") as raised:
        HTTPLLM("m", "http://localhost").complete([ask("q", api_key="sk-hush-2")])
    assert "hush" not in str(raised.value)


def test_a_key_over_plain_http_to_another_machine_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    HTTPLLM("m", "http://127.0.0.1:8000")
    assert caplog.text == ""
    HTTPLLM("m", "http://reader.example:8000")
    assert "unencrypted" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "option",
    [
        {"concurrency": 0},
        {"max_retries": -1},
        {"deadline": 0.0},
        {"deadline": float("nan")},
        {"stop_after": 0},
        {"attempt_timeout": -1.0},
    ],
)
def test_a_setting_out_of_range_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        HTTPLLM("m", "http://localhost", **option)


@pytest.mark.parametrize("name", ["model", "messages", "stream", "n"])
def test_sampling_may_not_take_over_the_request(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        HTTPLLM("m", "http://localhost").complete([ask("q", **{name: 2})])


# --- where it runs ------------------------------------------------------------------------------------------------


def test_no_requests_make_no_connection() -> None:
    assert HTTPLLM("m", "http://localhost:1").complete([]) == []


def test_it_works_inside_a_running_event_loop() -> None:
    async def cell() -> list[CompletionResult]:
        return client(server).complete([ask("q1"), ask("q2")])

    with ChaosReader() as server:
        assert asyncio.run(cell()) == [Completion("answer to q1", 10, 3), Completion("answer to q2", 10, 3)]


def test_an_in_process_transport_can_stand_in_for_the_network() -> None:
    module = sys.modules[
        DefaultAsyncHttpxClient.__mro__[1].__module__.split(".")[0]
    ]  # httpx or httpx2, as the SDK has it
    body = {"choices": [{"message": {"content": "paris"}}]}
    transport = module.MockTransport(lambda request: module.Response(200, content=json.dumps(body)))
    llm = HTTPLLM("m", "https://reader.example", transport=transport)
    assert llm.complete([ask("q")]) == [Completion("paris", None, None)]


def test_jitter_leaves_the_global_random_numbers_alone() -> None:
    import random

    random.seed(3)
    wanted = random.Random(3).random()
    with ChaosReader({"q": ["503", "503"]}) as server:
        client(server).complete([ask("q")])
    assert random.random() == wanted


CTRL_C = """
import asyncio, signal, sys
# A shell that runs the tests in the background has its children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
from chaos_reader import ChaosReader
from rankwright.llms.http import HTTPLLM
from rankwright.llms.replies import is_too_long
from rankwright.types import LLMRequest

answered = []
def tell(calls):
    answered.extend(calls)
    print([getattr(call.result, "reason", "answered") for call in calls], calls[0].attempts, flush=True)

with ChaosReader({"hang": ["hang"] * 9}) as server:
    requests = [LLMRequest((("user", question),)) for question in ("a", "hang", "b")]
    llm = HTTPLLM("m", server.base_url)
    async def cell():
        llm.complete_each(requests, tell)
    try:
        if sys.argv[2] == "notebook":
            asyncio.new_event_loop().run_until_complete(cell())
        else:
            llm.complete_each(requests, tell)
    except KeyboardInterrupt:
        print("interrupted after", len(answered), flush=True)
"""


@pytest.mark.parametrize("place", ["script", "notebook"])
def test_ctrl_c_ends_the_calls_in_flight_and_keeps_the_answers(place: str) -> None:
    command = [sys.executable, "-c", CTRL_C, str(TESTS), place]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=TESTS.parent
    ) as job:
        assert job.stdout is not None
        assert [job.stdout.readline(), job.stdout.readline()] == ["['answered'] 1\n"] * 2
        job.send_signal(signal.SIGINT)
        assert job.stdout.readline() == "['aborted'] 1\n"
        assert job.stdout.readline() == "interrupted after 3\n"
        job.wait(30)
