"""Reading the replies of an OpenAI-compatible server: what a body or a status code means for the call and for the run.

A server may say anything. Every reply becomes one `Reply`; nothing here raises.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from rankwright.llms.completions import Api, as_chat
from rankwright.llms.logprobs import (
    BAD_LOGPROBS,
    NO_LOGPROBS,
    read_logprobs,
    top_wanted,
    wants_first_tokens,
    wants_logprobs,
)
from rankwright.types import Completion, CompletionFailed, CompletionResult, LLMRequest

EMPTY_TEXT = "empty text"
LENGTH = "length"
REFUSAL = "refusal"
CONTENT_FILTER = "content filter"
NOT_JSON = "not json"
WRONG_TYPE = "wrong json type"
NO_CHOICES = "no choices"
TIMEOUT = "timeout"
NOT_REACHED = "connection failed"
BROKEN = "connection broken"
BAD_ENCODING = "bad encoding"
ABORTED = "aborted"
TOO_LONG = "prompt too long"
"""Prompt and answer do not fit into the model's context together; other passages would have to be sent."""

RETRIED_STATUSES = frozenset({408, 409, 425, 429})
"""Besides all of 5xx. The others would fail the same way again."""

QUOTA_CODES = ("insufficient_quota", "quota_exceeded", "billing", "budget_exceeded", "insufficient_balance", "credit")
"""Parts of an error's `code` or `type` that mean: no money left. The `message` is not searched, because some servers
say "you exceeded your current quota" of a limit per minute that ends by itself."""


TOO_LONG_CODES = ("context_length", "context_window", "context_size")
"""Parts of an error's `code` or `type` that mean TOO_LONG: of OpenAI and Azure, of hosted services, of llama.cpp."""
_TOO_LONG_WORDS = re.compile(
    r"context (?:length|window|size)|(?:prompt|input) is too long|input token count|reduce the length"
    r"|maximum (?:input|model|prompt) length|inputs.{0,3} (?:must have less than|tokens \+)",
    re.IGNORECASE,
)
"""What vLLM, SGLang, TGI and others write where they have no such code."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What one attempt came to."""

    result: CompletionResult
    retry: bool = False
    """True where another attempt may end better."""
    retry_after: float | None = None
    """Seconds the server asked for."""
    input_tokens: int | None = 0
    """None where the attempt may have been billed but no count is known."""
    output_tokens: int | None = 0
    reached: bool = True
    """False where no HTTP response came back."""


def read_completion(body: bytes, request: LLMRequest, api: Api = "chat") -> Reply:
    """Reply for the body of a 200.

    Malformed bodies are retried: they come from proxies and crashing servers. What the model itself decided (an empty
    text, a refusal, a stop at the length limit) is not: at temperature 0 it would decide the same again.

    Of a request for log probabilities they are the answer: a text may then be empty, and one or two tokens need no end.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):  # RecursionError: ten thousand opening brackets
        return _malformed(NOT_JSON)
    if not isinstance(data, dict):
        return _malformed(WRONG_TYPE)
    choices = data.get("choices")
    if not choices:
        return _malformed(NO_CHOICES)
    choice = choices[0] if isinstance(choices, list) else None
    choice = as_chat(choice) if api == "completions" else choice
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return _malformed(WRONG_TYPE)
    content = message.get("content")
    if not isinstance(content, str | None):
        return _malformed(WRONG_TYPE)
    input_tokens, output_tokens = _usage(data.get("usage"))
    asked = wants_logprobs(request)
    logprobs = read_logprobs(choice.get("logprobs"), top_wanted(request)) if asked else ()
    if logprobs == BAD_LOGPROBS:
        return _malformed(BAD_LOGPROBS)
    given = () if isinstance(logprobs, str) else logprobs
    reason = _failure(content, message, choice.get("finish_reason"), request, bool(given))
    result = CompletionFailed(reason) if reason else Completion(content or "", input_tokens, output_tokens, True, given)
    return Reply(result, input_tokens=input_tokens, output_tokens=output_tokens)


def _failure(
    content: str | None, message: dict[str, Any], finish_reason: object, request: LLMRequest, has_logprobs: bool
) -> str | None:
    empty = not (content and content.strip())
    if message.get("refusal"):
        return REFUSAL
    if finish_reason == "content_filter":
        return CONTENT_FILTER
    # A model that wrote nothing has no token to tell of.
    if wants_logprobs(request) and not has_logprobs and (not empty or finish_reason == "length"):
        return NO_LOGPROBS
    if finish_reason == "length":
        return None if wants_first_tokens(request) else LENGTH
    return EMPTY_TEXT if empty and not has_logprobs else None


def _usage(usage: object) -> tuple[int | None, int | None]:
    if not isinstance(usage, dict):
        return None, None
    return _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _malformed(reason: str) -> Reply:
    return Reply(CompletionFailed(reason), retry=True, input_tokens=None, output_tokens=None)


def unfinished() -> Reply:
    """Stands for an attempt that is under way; what it costs is not known."""
    return Reply(CompletionFailed(ABORTED), input_tokens=None, output_tokens=None)


def timed_out() -> Reply:
    """Reply for an attempt that did not end in time; the server may have worked, and billed, to the end."""
    return Reply(CompletionFailed(TIMEOUT), retry=True, input_tokens=None, output_tokens=None, reached=False)


def not_answered(cause: BaseException | None) -> Reply:
    """Reply for a connection that was not made, was cut, or carried bytes that cannot be decoded.

    Told apart by the name of the transport's exception, because the SDK changed its transport library once already.
    """
    kind = type(cause).__name__
    if kind == "DecodingError":
        return Reply(CompletionFailed(BAD_ENCODING), retry=True, input_tokens=None, output_tokens=None)
    if kind == "ConnectError":
        return Reply(CompletionFailed(NOT_REACHED), retry=True, reached=False)
    return Reply(CompletionFailed(BROKEN), retry=True, input_tokens=None, output_tokens=None, reached=False)


def refused(status: int, retry_after: float | None) -> Reply:
    """Reply for a status other than 2xx; servers do not bill these."""
    retry = status in RETRIED_STATUSES or status >= 500
    return Reply(CompletionFailed(f"http {status}"), retry=retry, retry_after=retry_after)


def too_long(detail: str) -> Reply:
    """Reply for a refusal of a prompt that does not fit; `detail` is the server's own words."""
    return Reply(CompletionFailed(TOO_LONG, detail=detail))


def is_too_long(status: int, code: object, kind: object, message: str) -> bool:
    """True where a refusal means that prompt and answer exceed the context. Of 5xx the words do not say so: llama.cpp
    uses like ones where other requests have taken its memory, which passes."""
    if any(mark in f"{code} {kind}".lower() for mark in TOO_LONG_CODES):
        return True
    return 400 <= status < 500 and status not in RETRIED_STATUSES and bool(_TOO_LONG_WORDS.search(message))


def is_out_of_quota(status: int, code: str | None, kind: str | None) -> bool:
    """True where the account behind the key cannot pay; waiting would not help."""
    return status == 402 or any(mark in f"{code} {kind}".lower() for mark in QUOTA_CODES)
