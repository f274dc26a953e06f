"""What one call of a language model came to and what it cost; shared by the clients and the cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from rankwright.errors import ConfigurationError
from rankwright.types import CompletionFailed, CompletionResult, LLMRequest

MILLION = 1_000_000
TEMPLATE_TOKENS = 256
"""What a server's chat template may add to a message, a system prompt of its own among it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One logical call: all attempts made for one request, and their sum on the bill."""

    index: int
    """Position of the request in the batch."""
    result: CompletionResult
    attempts: int = 1
    """Requests sent for it, retries included."""
    input_tokens: int | None = None
    """Over all attempts; None where one of them may have been billed without saying so."""
    output_tokens: int | None = None
    price: float | None = None
    """In the currency of the price list; None where it is not known, never 0 in its place."""

    @property
    def told(self) -> CompletionResult:
        """The result as it is handed on: a failure takes tokens too, and says how many."""
        if isinstance(self.result, CompletionFailed):
            return replace(self.result, input_tokens=self.input_tokens, output_tokens=self.output_tokens)
        return self.result


CallsReport = Callable[[Sequence[Call]], None]


@runtime_checkable
class IncrementalLLM(Protocol):
    """An LLM that hands out every result as soon as it is there, so that a kill loses only what is in flight."""

    @property
    def name(self) -> str: ...

    def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
        """One result per request, in order."""
        ...

    def complete_each(self, requests: Sequence[LLMRequest], on_calls: CallsReport) -> None:
        """Calls `on_calls` with finished calls, in any order, each request exactly once."""
        ...


@runtime_checkable
class SuspiciousLLM(Protocol):
    """An LLM that stops where none of its first calls is answered, unless it is told that it has answered before."""

    def answered_before(self) -> None:
        """The model is known to answer: a cache holds answers of it. What fails from now on concerns single calls."""
        ...


def collect(llm: IncrementalLLM, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
    """Results of `complete_each` in the order of the requests: how an incremental LLM implements `complete`."""
    results: dict[int, CompletionResult] = {}
    llm.complete_each(requests, lambda calls: results.update((call.index, call.told) for call in calls))
    return [results[index] for index in range(len(requests))]


@dataclass(frozen=True, slots=True)
class Prices:
    """What a model costs per million tokens."""

    input: float
    output: float

    @classmethod
    def from_mapping(cls, prices: Mapping[str, float] | None) -> Prices | None:
        """Reads {"input": x, "output": y}; None stays None (unknown).

        Raises ConfigurationError for other names, missing ones, and values that are no price.
        """
        if prices is None:
            return None
        if set(prices) != {"input", "output"}:
            raise ConfigurationError(
                f"Prices name {sorted(prices)}; give exactly 'input' and 'output', each per million tokens."
            )
        for side, value in prices.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ConfigurationError(f"Price of {side} tokens is {value!r}; give a number of at least 0.")
        return cls(float(prices["input"]), float(prices["output"]))

    def of(self, input_tokens: int | None, output_tokens: int | None) -> float | None:
        """Price of that many tokens; None if one of the counts is not known."""
        if input_tokens is None or output_tokens is None:
            return None
        return (input_tokens * self.input + output_tokens * self.output) / MILLION


def input_tokens_at_most(request: LLMRequest) -> int:
    """Upper bound of a request's input tokens, whatever the tokenizer: those of today's language models cut bytes or
    longer pieces, never less."""
    return sum(len(text.encode("utf-8", "replace")) for _, text in request.messages) + TEMPLATE_TOKENS


def output_limit(sampling: Mapping[str, float | int | str]) -> int | None:
    """Tokens that an answer may have under these sampling parameters; None where they set no limit, as some servers
    understand -1."""
    given = [sampling.get(name) for name in ("max_tokens", "max_completion_tokens")]
    limits = [int(limit) for limit in given if isinstance(limit, int | float) and 1 <= limit < math.inf]
    return max(limits, default=None)


def price_text(price: float | None) -> str:
    """A price for people: "unknown" if it is not known."""
    return "unknown" if price is None else f"{price:.{price_decimals(price)}f}"


def price_decimals(price: float) -> int:
    """Four, and more where those would show little or nothing of it."""
    return 4 if price >= 0.01 or not price else 7
