"""A reader made of a prompt and a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rankwright.llms.cache import CachedLLM
from rankwright.prompts import Prompt, load_prompt, parse_answer, render
from rankwright.types import (
    LLM,
    Answer,
    CompletionFailed,
    CompletionResult,
    Context,
    LLMRequest,
    ReadFailed,
    ReadResult,
)

SAMPLING: Mapping[str, float | int | str] = {"max_tokens": 64, "temperature": 0.0}
"""Enough for a short answer, and the same answer every time as far as the server allows."""


class LLMReader:
    """Asks a language model for a short answer from numbered passages.

    Arguments: `llm`, wrapped in CachedLLM to keep its answers; `prompt`, a Prompt, default the shipped one;
    `sampling`, the sampling parameters of every request (reasoning models want `max_completion_tokens` and no
    temperature).
    """

    def __init__(
        self,
        llm: LLM,
        prompt: Prompt | None = None,
        *,
        sampling: Mapping[str, float | int | str] = SAMPLING,
    ):
        self.llm = llm
        self._prompt = prompt or load_prompt()
        self._sampling = tuple(sorted(sampling.items()))

    @property
    def name(self) -> str:
        sampling = ",".join(f"{name}={value}" for name, value in self._sampling)
        return f"{self.llm.name}|prompt:{self._prompt.version}|{sampling}"

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        """One result per context, in order. Answer("") where the model says that the passages hold no answer."""
        requests = [self.request(context) for context in contexts]
        return [_read(completion) for completion in self.llm.complete(requests)]

    def unanswered(self, contexts: Sequence[Context]) -> list[Context]:
        """Those that would be calls, equal ones once: what the cache around the language model does not answer; all of
        them without one."""
        asked = {self.request(context): context for context in contexts}
        if isinstance(self.llm, CachedLLM):
            return [asked[request] for request in self.llm.unanswered(list(asked))]
        return list(asked.values())

    def again(self) -> LLMReader:
        """The same reader for asking the same contexts anew: a cache keeps its answers apart, because the version of
        the prompt, which no server sees, is another."""
        version = f"{self._prompt.version}#2"
        return LLMReader(self.llm, replace(self._prompt, version=version), sampling=dict(self._sampling))

    def request(self, context: Context) -> LLMRequest:
        """What the language model is asked about a context."""
        return LLMRequest((("user", render(self._prompt, context)),), self._sampling, self._prompt.version)


def _read(completion: CompletionResult) -> ReadResult:
    if isinstance(completion, CompletionFailed):
        return ReadFailed(completion.reason, completion.paid)
    text = parse_answer(completion.text)
    return ReadFailed("empty text", completion.paid) if text is None else Answer(text, completion.paid)
