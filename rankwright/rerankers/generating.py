"""A language model and a prompt that judge a few documents at once; strategies.py covers long lists with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rankwright.errors import ConfigurationError
from rankwright.llms.calls import output_limit
from rankwright.llms.logprobs import FIRST_TOKENS
from rankwright.llms.replies import TOO_LONG
from rankwright.prompts.ranking import RankingPrompt, Rendered
from rankwright.types import (
    CALL_FAILED,
    LLM,
    Choice,
    Completion,
    CompletionFailed,
    CompletionResult,
    Judged,
    Judgement,
    LLMRequest,
    Permutation,
    RerankRequest,
    Scores,
)

LOGPROBS: Mapping[str, float | int | str] = {"logprobs": True, "top_logprobs": 20}
"""As many as OpenAI's interface gives."""
ONE_ANSWER, WITH_THOUGHTS = 512, 4096
"""Tokens for a permutation, scores or a number, and where thoughts come first."""


AT_ONCE, LONG_AT_ONCE = 1024, 128
"""Windows that are asked about in one batch, and where each answer brings the log probabilities of a whole text: at 20
of 2,000 tokens these are some 6 MB."""


class LLMPolicy:
    """A GeneratingPolicy: each window is one call of the language model, read leniently.

    Arguments: `llm`, wrapped in CachedLLM to keep its answers; `prompt`; `sampling`, parameters that replace those of
    the prompt, where None leaves one out (some reasoning models want `max_completion_tokens` and no `max_tokens` or
    temperature).

    A prompt file may name its sampling; what it leaves open is temperature 0 and as many tokens as its form needs, with
    log probabilities where it reads them. A call that fails is a malformed judgement. Nothing is cut silently: passages
    longer than the prompt's limit are counted in `cut`, and a prompt that is longer than the model's context is an
    error.

    Raises ConfigurationError for a sampling parameter that JSON cannot hold.
    """

    def __init__(
        self,
        llm: LLM,
        prompt: RankingPrompt,
        *,
        sampling: Mapping[str, float | int | str | None] | None = None,
    ):
        self.llm = llm
        self.prompt = prompt
        merged = {**default_sampling(prompt), **(sampling or {})}
        if not merged.get("logprobs"):
            merged.pop("top_logprobs", None)  # servers refuse it alone
        self._sampling = tuple(sorted((name, value) for name, value in merged.items() if value is not None))
        _check_values(self._sampling)
        self.shown = 0
        """Passages shown so far, repetitions included."""
        self.cut = 0
        """Those of them that were longer than the prompt's limit."""

    @property
    def name(self) -> str:
        """Model, prompt version and sampling."""
        sampling = ",".join(f"{name}={value}" for name, value in self._sampling)
        return f"{self.llm.name}|prompt:{self.prompt.version}|{sampling}"

    def judge(self, windows: Sequence[RerankRequest]) -> list[Judged]:
        """One judgement per window, in order. Windows that need no judgement take no call: without documents, or with
        one that is only to be ordered. Many are asked about in several batches, so that prompts and log probabilities
        of a part of them are held at once.

        Raises:
            ConfigurationError: more documents than the prompt has identifiers, or a prompt that is longer than the
                model's context.
        """
        asked = [number for number, window in enumerate(windows) if not self._is_settled(window)]
        for number in asked:
            self.prompt.identifiers(len(windows[number].documents))  # before any call
        judged = [Judged(self._settled(len(window.documents)), 0, 0, paid=False) for window in windows]
        size = self._batch_size()
        for start in range(0, len(asked), size):
            batch = asked[start : start + size]
            for number, one in zip(batch, self._judge([windows[number] for number in batch]), strict=True):
                judged[number] = one
        return judged

    def _judge(self, windows: Sequence[RerankRequest]) -> list[Judged]:
        rendered = [self.prompt.rendered(window.query, window.documents) for window in windows]
        self.shown += sum(len(window.documents) for window in windows)
        self.cut += sum(one.cut for one in rendered)
        requests = [self._request(one) for one in rendered]
        answered = zip(windows, requests, self.llm.complete(requests), strict=True)
        return [self._judged(window, request, result) for window, request, result in answered]

    def _batch_size(self) -> int:
        tokens = output_limit(dict(self._sampling)) or WITH_THOUGHTS
        return LONG_AT_ONCE if self.prompt.needs_logprobs and tokens > FIRST_TOKENS else AT_ONCE

    def request(self, window: RerankRequest) -> LLMRequest:
        """What the language model is asked about a window.

        Raises:
            ConfigurationError: more documents than the prompt has identifiers.
        """
        return self._request(self.prompt.rendered(window.query, window.documents))

    def _request(self, rendered: Rendered) -> LLMRequest:
        return LLMRequest(rendered.messages, self._sampling, self.prompt.version)

    def _is_settled(self, window: RerankRequest) -> bool:
        """A single document has an order, but no score before it was judged."""
        return len(window.documents) <= (1 if self.prompt.kind in ("listwise", "setwise") else 0)

    def _settled(self, count: int) -> Judgement:
        if self.prompt.kind == "listwise":
            return Permutation(tuple(range(count)))
        return Choice(0 if count else None) if self.prompt.kind == "setwise" else Scores(())

    def _judged(self, window: RerankRequest, request: LLMRequest, result: CompletionResult) -> Judged:
        count = len(window.documents)
        if isinstance(result, Completion):
            judgement = self.prompt.parse(result, count)
            thoughts = self.prompt.thoughts(result)
            return Judged(judgement, result.input_tokens, result.output_tokens, result.paid, thoughts)
        if result.reason == TOO_LONG:
            raise self._too_long(window, request, result)
        failed = self.prompt.malformed(count, f"{CALL_FAILED}{result.reason}")
        return Judged(failed, result.input_tokens, result.output_tokens, result.paid)

    def _too_long(self, window: RerankRequest, request: LLMRequest, result: CompletionFailed) -> ConfigurationError:
        room = output_limit(dict(self._sampling))
        return ConfigurationError(
            f"Prompt '{self.prompt.version}' with {len(window.documents)} documents of query '{window.query.query_id}' "
            f"has {_characters(request)} characters, which {self.llm.name} cannot take "
            f"({result.detail or result.reason}); wanted a prompt that fits its context together with {room or 'the'} "
            "tokens of an answer. Show fewer documents at once (--window; children of heapsort and bubblesort, group "
            "of groupwise), less of each (passages.limit of the prompt file), or lower max_tokens (--set "
            "sampling.max_tokens=N)."
        )


def default_sampling(prompt: RankingPrompt) -> dict[str, float | int | str]:
    """The sampling parameters of a prompt: its own, and for the rest temperature 0, as many tokens as its form needs,
    and log probabilities where they are read."""
    tokens = WITH_THOUGHTS if prompt.tags.thinking else _of_a_word(prompt) or ONE_ANSWER
    logprobs = LOGPROBS if prompt.needs_logprobs else {}
    limit = {} if "max_completion_tokens" in prompt.sampling else {"max_tokens": tokens}
    return {"temperature": 0.0, **limit, **logprobs, **prompt.sampling}


def _of_a_word(prompt: RankingPrompt) -> int | None:
    """Tokens up to the one that is read, where that is the first or second; None where more are written. A number may
    take several: many tokenizers cut 10 into digits."""
    if prompt.parser == "first-token":
        return int(prompt.options.get("token", 1))
    return 1 if prompt.needs_logprobs and prompt.parser != "integer" and not prompt.tags.answer else None


def _check_values(sampling: Sequence[tuple[str, Any]]) -> None:
    for name, value in sampling:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ConfigurationError(
                f"Sampling parameter {name} is {str(value)[:80]}; wanted a finite number, text, true, false, or a "
                "list or names of them. Correct it in the prompt file or on the command line."
            ) from None


def _characters(request: LLMRequest) -> int:
    return sum(len(text) for _, text in request.messages)
