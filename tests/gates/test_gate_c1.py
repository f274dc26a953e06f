"""Gate C1: whatever a reader's server does wrong, each call gets the right class and the right action, in time.

Every fault of the chaos reader, and a port where nobody listens, each with CALLS calls. Class: the reason of the
failure, or the error that ends the run. Action: how many requests were sent, by the server's own list, and when.
"""

from __future__ import annotations

import math
import socket
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from rankwright.llms.calls import Call
from rankwright.llms.http import HTTPLLM
from rankwright.types import Completion, CompletionFailed
from tests.chaos_client import FINAL, KEY, MAX_RETRIES, RETRIED, SLOW, STOPPING, ask, client
from tests.chaos_reader import DATE_AHEAD, FAULTS, ChaosReader
from tests.gates.mutants import Mutant
from tests.gates.sizes import tries

pytestmark = [pytest.mark.gates, pytest.mark.timeout(600)]

CALLS = tries(50, 5)
WANTED_FAULTS = 28
DEADLINE = 60.0
"""Of calls that end by themselves: a loaded machine stays far below, and 429-huge asks for more."""
SHORT_DEADLINE = 10.0
"""Of calls that never end by themselves. It is so long that a loaded machine, which needs half a second to tell that
the time of so many calls is over, tells it in LATEST."""
LATEST = 1.05
"""Times the deadline, as in gate C2."""
AT_ONCE = 5.0
"""Seconds in which a loaded machine is through with calls that wait for nothing."""
ASKED = {"429-seconds": 0.02, "429-ms": 0.015}
"""Fault -> seconds that the server asks for."""

THIS = "tests/gates/test_gate_c1.py"
MUTANTS = [
    Mutant("C1", THIS, "rankwright/llms/replies.py", "frozenset({408, 409, 425, 429})", "frozenset({408, 425, 429})"),
    Mutant("C1", THIS, "rankwright/llms/pacing.py", "return asked + rng.uniform(0,", "return rng.uniform(0,"),
    Mutant("C1", THIS, "rankwright/llms/http.py", "follow_redirects=False,", "follow_redirects=True,"),
    Mutant(
        "C1",
        f"{THIS}::test_what_passes_is_answered_at_the_second_request_and_not_earlier_than_asked",
        "rankwright/llms/pacing.py",
        "return max(0.0, when.timestamp() - now)",
        "return 0.0",
    ),
    Mutant(
        "C1",
        f"{THIS}::test_what_never_ends_is_left_at_the_deadline",
        "rankwright/llms/http.py",
        "min(self.attempt_timeout, left)",
        "min(self.attempt_timeout, left * 1.1)",
    ),
    Mutant(
        "C1",
        f"{THIS}::test_where_nobody_listens_the_connection_failed",
        "rankwright/llms/pacing.py",
        "return rng.uniform(0, min(LONGEST_BACKOFF, first_backoff * 2**attempt))",
        "return LONGEST_BACKOFF",
    ),
    Mutant(
        "C1",
        f"{THIS}::test_what_all_calls_would_meet_stops_the_run_at_the_first",
        "rankwright/llms/http.py",
        "        refusal = error\n",
        "        refusal = error\n            await asyncio.sleep(6)\n",
    ),
]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("rankwright.llms.http.CONNECT_SECONDS", 300.0)


@dataclass(frozen=True)
class Met:
    """One call and what the server saw of it."""

    fault: str
    call: Call
    sent: tuple[float, ...]
    """When its requests came in."""
    seconds: float
    """From the first of them until the call was reported."""


def meet(faults: Iterable[str], script: Sequence[str], **options: Any) -> list[Met]:
    """CALLS calls per fault; "X" in the script stands for the fault."""
    questions = {f"{fault}#{number}": fault for fault in faults for number in range(CALLS)}
    asked, calls, ended = list(questions), {}, {}

    def report(finished: Sequence[Call]) -> None:
        for call in finished:
            calls[asked[call.index]], ended[asked[call.index]] = call, time.monotonic()

    scripts = {
        question: [fault if entry == "X" else entry for entry in script] for question, fault in questions.items()
    }
    with ChaosReader(scripts) as server:
        llm = client(server, **{"deadline": DEADLINE, **options})
        llm.complete_each([ask(question) for question in asked], report)
    sent: dict[str, list[float]] = {question: [] for question in asked}
    for seen in server.ledger:
        sent[seen.question].append(seen.at)
    return [
        Met(fault, calls[question], tuple(sent[question]), ended[question] - sent[question][0])
        for question, fault in questions.items()
    ]


def check(met: Sequence[Met], reasons: dict[str, str], sent: int, latest: float = DEADLINE) -> None:
    """Class, action and time of calls whose fault stays."""
    assert [one for one in met if one.call.result != CompletionFailed(reasons[one.fault])] == []
    assert {(one.call.attempts, len(one.sent)) for one in met} == {(sent, sent)}
    assert [one for one in met if one.seconds > latest] == []
    assert Counter(one.fault for one in met) == dict.fromkeys(reasons, CALLS)


def date_asked(sent: float) -> float:
    """The date, whole seconds of the day, that the server names to a request that came then; by `time.monotonic`, as
    that is, and a little early, since the two clocks cannot be read at one moment."""
    offset, unsure = time.time() - time.monotonic(), 0.002
    return math.floor(sent + offset + DATE_AHEAD - unsure) - offset - unsure


def test_the_matrix_is_whole() -> None:
    tried = [*RETRIED, *FINAL, *SLOW, *STOPPING, "429-date"]
    assert len(set(tried)) == len(tried) >= WANTED_FAULTS
    assert {*tried, "ok"} == FAULTS.keys()


def test_what_may_pass_is_tried_again_as_often_as_allowed() -> None:
    check(meet(RETRIED, ["X"] * (MAX_RETRIES + 2)), RETRIED, sent=1 + MAX_RETRIES)


def test_what_passes_is_answered_at_the_second_request_and_not_earlier_than_asked() -> None:
    met = meet([*RETRIED, "429-date"], ["X", "ok"])
    assert {type(one.call.result) for one in met} == {Completion}
    assert {(one.call.attempts, len(one.sent)) for one in met} == {(2, 2)}
    assert [one for one in met if one.seconds > DEADLINE] == []
    early = [one for one in met if one.sent[1] - one.sent[0] < ASKED.get(one.fault, 0.0)]
    assert early == []
    assert [one for one in met if one.fault == "429-date" and one.sent[1] < date_asked(one.sent[0])] == []


def test_what_would_come_again_is_not_tried_again() -> None:
    check(meet(FINAL, ["X"] * 9), FINAL, sent=1)


def test_what_never_ends_is_left_at_the_deadline() -> None:
    """All at once, so that each begins with the first."""
    met = meet(SLOW, ["X"] * 9, deadline=SHORT_DEADLINE, concurrency=CALLS * len(SLOW))
    check(met, SLOW, sent=1, latest=LATEST * SHORT_DEADLINE)


@pytest.mark.parametrize("fault", STOPPING)
def test_what_all_calls_would_meet_stops_the_run_at_the_first(fault: str) -> None:
    """At once: nothing is waited for. It may be sent on to another port of the host, or to another host."""
    for number in range(CALLS):
        host = ("127.0.0.1", "localhost")[number % 2]
        with ChaosReader() as other, ChaosReader({"q": [fault] * 9}) as server:
            server.redirect_to = other.base_url.replace("127.0.0.1", host)
            with pytest.raises(STOPPING[fault]) as raised:
                client(server, deadline=DEADLINE, concurrency=1).complete([ask("q"), ask("after")])
            ended = time.monotonic()
            assert raised.type is STOPPING[fault]
            assert [seen.question for seen in server.ledger] == ["q"]
            assert ended - server.ledger[0].at <= AT_ONCE
            assert other.ledger == []
            assert KEY not in str(raised.value)


def test_where_nobody_listens_the_connection_failed() -> None:
    """After the waits between attempts, which are of milliseconds."""
    calls: list[Call] = []
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))  # kept, and never listening
        address = f"http://127.0.0.1:{placeholder.getsockname()[1]}"
        llm = HTTPLLM("m", address, max_retries=MAX_RETRIES, first_backoff=0.005, deadline=DEADLINE, stop_after=10_000)
        began = time.monotonic()
        llm.complete_each([ask(f"q{number}") for number in range(CALLS)], calls.extend)
        seconds = time.monotonic() - began
    assert [(call.result, call.attempts) for call in calls] == [
        (CompletionFailed("connection failed"), 1 + MAX_RETRIES)
    ] * CALLS
    assert seconds <= AT_ONCE
