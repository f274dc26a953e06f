"""Gate C2: a call's deadline is one for all its attempts and waits. Calls that are never answered end at it, all of
them together within 1.05 of it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from rankwright.llms.http import HTTPLLM
from rankwright.types import CompletionFailed, CompletionResult
from tests.chaos_client import KEY, SLOW, ask
from tests.chaos_reader import reader_apart
from tests.gates.mutants import Mutant
from tests.gates.sizes import tries

pytestmark = [pytest.mark.gates, pytest.mark.timeout(600)]

CALLS = tries(500, 100)
DEADLINE = float(tries(120, 16))
"""In full numbers that of the package. What it takes one thread to begin and end so many calls at one moment does not
grow with it: a twentieth of it has to be more than that. So the server is another process, and the Makefile runs this
gate with nothing beside it."""
LONGEST = 1.05
MANY = 1_000
NEVER = (
    *([fault] * MANY for fault in SLOW),
    ["429-plain"] * MANY,
    ["429-seconds"] * MANY,
    ["hang", "429-ms", "drip", "503", "slow-headers"] * MANY,
)
"""Ways of never answering: what one question meets, request after request."""

THIS = "tests/gates/test_gate_c2.py"
MUTANTS = [
    Mutant(
        "C2",
        THIS,
        "rankwright/llms/http.py",
        "            left -= time.monotonic() - started\n            wait = retry_wait(",
        "            wait = retry_wait(",
    ),
    Mutant("C2", THIS, "rankwright/llms/http.py", "min(self.attempt_timeout, left)", "self.attempt_timeout"),
]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("rankwright.llms.http.CONNECT_SECONDS", 300.0)


def asked(scripts: dict[str, list[str]], attempt_timeout: float) -> tuple[float, list[CompletionResult]]:
    """Wall time of calls that all begin together, and their results. Only the deadline limits their attempts."""
    with reader_apart(scripts) as address:
        times: dict[str, Any] = {"deadline": DEADLINE, "attempt_timeout": attempt_timeout, "first_backoff": 0.5}
        llm = HTTPLLM("m", address, concurrency=CALLS, max_retries=MANY, stop_after=10_000, **times)
        requests = [ask(question) for question in scripts]
        started = time.monotonic()
        results = llm.complete(requests)
        return time.monotonic() - started, results


@pytest.mark.parametrize("share", [0.9, 10.0], ids=["two attempts", "one attempt"])
def test_calls_that_are_never_answered_end_at_their_deadline(share: float, capsys: pytest.CaptureFixture[str]) -> None:
    """All ways of never answering, in equal parts. An attempt may take this share of the deadline."""
    never = {f"q{number}": NEVER[number % len(NEVER)] for number in range(CALLS)}
    wall, results = asked(never, share * DEADLINE)
    with capsys.disabled():
        print(f"\n{CALLS} calls, deadline {DEADLINE:.0f} s: {wall:.2f} s")
    assert {type(result) for result in results} == {CompletionFailed}
    assert wall <= LONGEST * DEADLINE
