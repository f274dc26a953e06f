"""Log probabilities of tokens: which requests ask for them, how a server's are read, and what is said of a server that
drops them."""

from __future__ import annotations

from collections.abc import Mapping

from rankwright.errors import ReaderError
from rankwright.llms.calls import output_limit
from rankwright.types import LLMRequest

NO_LOGPROBS = "no logprobs"
BAD_LOGPROBS = "bad logprobs"

LEAST = -9999.0
"""Stands for a probability of 0, as in OpenAI's answers; no JSON number is minus infinity."""
SLACK = 1e-3
"""So far above 0 a log probability may be by rounding. What is further above is something else, perhaps a raw logit."""

FIRST_TOKENS = 2
"""So many tokens at most are asked for where no end of the text is waited for."""

NAMES = ("logprobs", "top_logprobs")


def wants_logprobs(request: LLMRequest) -> bool:
    """Whether the sampling parameters ask for log probabilities."""
    return bool(dict(request.sampling).get("logprobs"))


def wants_first_tokens(request: LLMRequest) -> bool:
    """Whether only the log probabilities of the first token are asked for, or of the second behind a bracket, which
    need no end of the text."""
    limit = output_limit(dict(request.sampling))
    return wants_logprobs(request) and limit is not None and limit <= FIRST_TOKENS


def top_wanted(request: LLMRequest) -> int:
    """How many of the likeliest tokens are asked for beside the one written; 0 where none are."""
    value = dict(request.sampling).get("top_logprobs", 0)
    return int(value) if isinstance(value, int | float) and 0 <= value <= 1_000_000 else 0


def read_logprobs(found: object, top: int) -> tuple[Mapping[str, float], ...] | str:
    """What a server says under `choices[0].logprobs`, in the form of `Completion.top_logprobs`.

    A string is the reason why there are none: NO_LOGPROBS where they, or all the alternatives that were asked for, are
    missing; BAD_LOGPROBS where they are something else. Never raises, whatever was found.
    """
    if not found:
        return NO_LOGPROBS
    content = found.get("content", []) if isinstance(found, dict) else found
    if content is None or content == []:
        return NO_LOGPROBS
    if not isinstance(content, list) or not isinstance(found, dict):
        return BAD_LOGPROBS
    positions: list[Mapping[str, float]] = []
    dropped = top > 0
    for entry in content:
        alternatives = _alternatives(entry, top)
        written = _pair(entry)
        if alternatives is None or written is None:
            return BAD_LOGPROBS
        dropped = dropped and not alternatives
        positions.append(likeliest([written, *alternatives]))
    return NO_LOGPROBS if dropped else tuple(positions)


def likeliest(pairs: list[tuple[str, float]]) -> dict[str, float]:
    """(token, log probability) pairs as a mapping; of several tokens with one text the likeliest counts."""
    found: dict[str, float] = {}
    for token, value in pairs:
        found[token] = max(value, found.get(token, LEAST))
    return found


def _alternatives(entry: object, top: int) -> list[tuple[str, float]] | None:
    """The likeliest first, at most `top`; None where something else stands there."""
    given = (entry.get("top_logprobs") or []) if isinstance(entry, dict) else None
    if not isinstance(given, list):
        return None
    pairs = [_pair(one) for one in given]
    sound = [pair for pair in pairs if pair is not None]
    return sorted(sound, key=lambda pair: -pair[1])[:top] if len(sound) == len(pairs) else None


def _pair(entry: object) -> tuple[str, float] | None:
    if not isinstance(entry, dict):
        return None
    token, value = entry.get("token"), entry.get("logprob")
    if not isinstance(token, str) or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Compared before it becomes a float: JSON has whole numbers that no float can hold. NaN compares as False.
    if not value <= SLACK:
        return None
    return token, LEAST if value < LEAST else min(0.0, float(value))


def without_logprobs(llm_name: str, request: LLMRequest, found: str = "left them out of its answer") -> ReaderError:
    """The error for an LLM that was asked for log probabilities and has none to give: no further call would have."""
    sampling = dict(request.sampling)
    asked = ", ".join(f"{name} {sampling[name]}" for name in NAMES if name in sampling)
    return ReaderError(
        f"{llm_name} was asked for log probabilities of tokens ({asked}) and {found}; wanted a server that gives them. "
        "Strategies that work without: sliding, heapsort, bubblesort, groupwise, topk; those that do not: pointwise by "
        "logit, single-token. Choose one of the former, or another server; a pointwise prompt that reads words as well "
        "(pointwise-integer-1) works with sampling.logprobs null."
    )
