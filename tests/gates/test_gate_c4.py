"""Gate C4: the client has one retry loop. By the server's own list, a tenth of requests that fail for a moment costs at
most 1.15 requests per call, and no call ever takes more than 1 + max_retries."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from rankwright.types import Completion, CompletionFailed
from tests.chaos_client import KEY, RETRIED, ask, calls_of, client
from tests.chaos_reader import ChaosReader
from tests.gates.mutants import Mutant
from tests.gates.sizes import tries

pytestmark = [pytest.mark.gates, pytest.mark.timeout(600)]

CALLS = tries(10_000, 1_000)
LOST_CALLS = tries(1_000, 100)
MAX_RETRIES = 4
SHARE = 0.1
MOST = 1.15
"""Requests per call; 1 / (1 - SHARE) = 1.11 are expected where each request fails with that share."""
TRANSIENT = sorted(RETRIED)

THIS = "tests/gates/test_gate_c4.py"
MUTANTS = [
    Mutant(
        "C4",
        THIS,
        "rankwright/llms/http.py",
        "            max_retries=0,\n",
        "            max_retries=1,  # of the SDK\n",
    ),
    Mutant("C4", THIS, "rankwright/llms/http.py", "len(spent) > self.max_retries", "len(spent) > self.max_retries + 1"),
]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("rankwright.llms.http.CONNECT_SECONDS", 300.0)


def faults_of(rng: random.Random) -> list[str]:
    """What a question meets before its answer, where each request fails with a probability of SHARE."""
    faults: list[str] = []
    while rng.random() < SHARE:
        faults.append(rng.choice(TRANSIENT))
    return faults


def test_a_tenth_of_transient_faults_costs_little_and_no_call_much(capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    scripts = {f"q{number}": faults_of(rng) for number in range(CALLS)}
    lasting = {question: len(faults) > MAX_RETRIES for question, faults in scripts.items()}
    with ChaosReader(scripts) as server:
        calls = calls_of(client(server, max_retries=MAX_RETRIES), [ask(question) for question in scripts])
    sent = Counter(seen.question for seen in server.ledger)
    per_call = sent.total() / CALLS
    with capsys.disabled():
        print(
            f"\n{CALLS} calls, {sent.total()} requests: {per_call:.3f} per call, at most {max(sent.values())} for one"
        )
    assert [isinstance(call.result, Completion) for call in calls] == [not lost for lost in lasting.values()]
    assert [call.attempts for call in calls] == [sent[question] for question in scripts]
    assert max(sent.values()) <= 1 + MAX_RETRIES
    assert 1.0 < per_call <= MOST


def test_a_call_that_stays_lost_takes_one_request_and_its_retries() -> None:
    scripts = {f"q{number}": [TRANSIENT[number % len(TRANSIENT)]] * 100 for number in range(LOST_CALLS)}
    with ChaosReader(scripts) as server:
        calls = calls_of(client(server, max_retries=MAX_RETRIES), [ask(question) for question in scripts])
    assert {type(call.result) for call in calls} == {CompletionFailed}
    assert Counter(seen.question for seen in server.ledger) == dict.fromkeys(scripts, 1 + MAX_RETRIES)
