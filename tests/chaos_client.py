"""The client that is asked to live with the chaos reader, and what it should make of each of its faults."""

from __future__ import annotations

from typing import Any

from rankwright.errors import BudgetExceededError, ReaderError
from rankwright.llms.calls import Call
from rankwright.llms.http import HTTPLLM
from rankwright.types import LLMRequest
from tests.chaos_reader import ChaosReader

KEY = "sk-chaos-secret"
MAX_RETRIES = 2

# --- every fault by name: its class, and whether another attempt is made ------------------------------------------

RETRIED = {
    "429-seconds": "http 429",
    "429-ms": "http 429",
    "429-past": "http 429",
    "429-nan": "http 429",
    "429-plain": "http 429",
    "408": "http 408",
    "409": "http 409",
    "500": "http 500",
    "502": "http 502",
    "503": "http 503",
    "504": "http 504",
    "529": "http 529",
    "closed": "connection broken",
    "reset-before": "connection broken",
    "reset-in-body": "connection broken",
    "cut-body": "connection broken",
    "bad-chunk": "connection broken",
    "not-http": "connection broken",
    "html": "not json",
    "empty-body": "not json",
    "not-utf8": "not json",
    "deep": "not json",
    "twice": "not json",
    "duplicate-chunk": "not json",
    "bad-gzip": "bad encoding",
    "list": "wrong json type",
    "number": "wrong json type",
    "error-200": "no choices",
    "no-choices": "no choices",
    "null-choices": "no choices",
    "choices-text": "wrong json type",
    "choices-numbers": "wrong json type",
    "no-message": "wrong json type",
    "content-list": "wrong json type",
}
"""May pass -> reason of the call where it stays."""
FINAL = {
    "429-huge": "http 429",  # asks for more time than the call has
    "400": "http 400",
    "too-long": "prompt too long",
    "413": "http 413",
    "422": "http 422",
    "content-null": "empty text",
    "content-empty": "empty text",
    "content-blank": "empty text",
    "length": "length",
    "filter": "content filter",
    "refusal": "refusal",
}
"""Would come again -> reason."""
SLOW: dict[str, str] = dict.fromkeys(("hang", "drip", "slow-headers"), "timeout")
"""Never end."""
STOPPING: dict[str, type[ReaderError]] = {
    "401": ReaderError,
    "402": BudgetExceededError,
    "403": ReaderError,
    "404": ReaderError,
    "quota": BudgetExceededError,
    "redirect": ReaderError,
}
"""What every further call would meet -> the error that ends the run."""

# --- asking ------------------------------------------------------------------------------------------------------


def ask(question: str, **sampling: float | int | str) -> LLMRequest:
    """A request that the chaos reader knows by its question."""
    return LLMRequest((("user", question),), tuple(sorted(sampling.items())) or (("max_tokens", 8),))


def client(server: ChaosReader, **options: Any) -> HTTPLLM:
    """A client in a hurry, which never takes a slow machine for a fault of the server."""
    settings: dict[str, Any] = {
        "first_backoff": 0.005,
        "max_retries": MAX_RETRIES,
        "attempt_timeout": 300.0,
        "deadline": 600.0,
        "stop_after": 10_000,
    }
    return HTTPLLM("m", server.base_url, **settings | options)


def calls_of(llm: HTTPLLM, requests: list[LLMRequest]) -> list[Call]:
    """The call of each request, in order."""
    found: dict[int, Call] = {}
    llm.complete_each(requests, lambda calls: found.update((call.index, call) for call in calls))
    return [found[index] for index in range(len(requests))]
