"""Scores from the probabilities of the tokens that a model wrote, and of those that it could have written.

All of it is in double precision and from log probabilities: squashed in 16 bits, the scores of good documents become
equal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from rankwright.prompts.answers import THINK, Tags
from rankwright.types import Completion

VERDICT_NOT_FOUND = "verdict not found"
VERDICT_NOT_LISTED = "verdict not listed"
OTHER_VERDICT_NOT_LISTED = "other verdict not listed"

_AROUND = " \t\r\n\u00a0▁ĠĊ[](){}<>/*\"'`:=.,"
"""What a token may carry before or after a word; ▁, Ġ and Ċ stand for blanks in vocabularies."""
_LEAST = 1e-12
"""Probability left over for tokens that are not listed, where those listed add up to one."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A score, or None with the reason."""

    score: float | None
    repairs: tuple[str, ...] = ()


def verdict(completion: Completion, words: tuple[str, str], tags: Tags, options: Mapping[str, Any]) -> Reading:
    """How much likelier the first word is than the second, where the model gave its verdict.

    A word that the server does not list is at most as likely as the least likely token that it lists, and not likelier
    than what those leave over; this bound is taken in its place, which is a repair. Without both there is no score.

    >>> heads = Completion("yes", top_logprobs=({"yes": math.log(0.6), "no": math.log(0.2)},))
    >>> round(verdict(heads, ("yes", "no"), Tags(), {"score": "probability"}).score, 6)
    0.75
    """
    bare = _exact if options.get("forms") == "exact" else _any_case
    place = _verdict_place(completion, tags)
    if place is None:
        return Reading(None, (VERDICT_NOT_FOUND,))
    top = completion.top_logprobs[place]
    yes, no = (_log_mass(top, word, bare) for word in words)
    if yes is None and no is None:
        return Reading(None, (VERDICT_NOT_LISTED,))
    repairs = (OTHER_VERDICT_NOT_LISTED,) if yes is None or no is None else ()
    difference = (_bound(top) if yes is None else yes) - (_bound(top) if no is None else no)
    return Reading(difference if options.get("score") == "logit" else _sigmoid(difference), repairs)


def weighted_integer(completion: Completion, value: int, tags: Tags, options: Mapping[str, Any]) -> float | None:
    """The integer times its probability, or its expected value; None where its tokens are not found.

    An integer of several tokens has the product of their probabilities. For the expected value, the probability of a
    token that begins a longer integer of the scale is divided as the next token says if it was the one written, and
    counts for the shorter one if not.
    """
    if not completion.top_logprobs:
        return None
    tokens = _written(completion)
    start = _after_tags(tokens, tags)
    place = None if start is None else _number_place(tokens, start, str(value))
    if place is None:
        return None
    if options.get("score") == "expected":
        return _expected(completion.top_logprobs[place : place + 2], _any_case(tokens[place]), options["scale"])
    digits, logprob = str(value), 0.0
    for number in range(place, len(tokens)):
        piece = _any_case(tokens[number])
        mass = _log_mass(completion.top_logprobs[number], piece, _any_case)
        if mass is None:
            return None
        logprob += mass
        digits = digits.removeprefix(piece)
        if not digits:
            break
    return value * math.exp(min(0.0, logprob))


def first_identifiers(top: Mapping[str, float], labels: Sequence[str]) -> list[str]:
    """The labels that are listed, likeliest first; of several tokens for one label the likeliest counts."""
    best: dict[str, float] = {}
    for token, logprob in top.items():
        name = _exact(token)
        if name in labels and not math.isnan(logprob):
            best[name] = max(logprob, best.get(name, -math.inf))
    # Equal ones stay in the order of the prompt, not in that of the server's list.
    return sorted(best, key=lambda name: (-best[name], labels.index(name)))


def _verdict_place(completion: Completion, tags: Tags) -> int | None:
    """Number of the token that gives the verdict: the first word behind thoughts and opening tag. None where thoughts
    did not end, or nothing stands behind them."""
    tokens = _written(completion)
    start = _after_tags(tokens, tags)
    if start is None:
        return None
    return next((number for number in range(start, len(tokens)) if _any_case(tokens[number])), None)


def _written(completion: Completion) -> list[str]:
    """The tokens that were written: of every position the first."""
    return [next(iter(top), "") for top in completion.top_logprobs]


def _after_tags(tokens: Sequence[str], tags: Tags) -> int | None:
    """Number of the first token behind the last opened answer, or behind the thoughts; 0 without tags. None where
    thoughts were begun, or were agreed and more than a word stands there, and they did not end."""
    text = "".join(tokens)
    thoughts = "|".join(sorted({THINK, tags.thinking or THINK}))
    ends = [mark.end() for mark in re.finditer(rf"</(?:{thoughts})>", text, re.IGNORECASE)]
    answers = [mark.end() for mark in re.finditer(rf"<{tags.answer or 'answer'}>", text, re.IGNORECASE)]
    offset = max((*ends[-1:], *answers[-1:]), default=None)
    if offset is not None:
        lengths = accumulate(map(len, tokens))
        return next((number for number, end in enumerate(lengths) if end > offset), len(tokens))
    begun = re.search(rf"<(?:{thoughts})>", text, re.IGNORECASE)
    return None if begun or (tags.thinking and len(text.split()) > 1) else 0


def _number_place(tokens: Sequence[str], start: int, digits: str) -> int | None:
    """Where the tokens of a number begin, from `start` on."""
    for first in range(start, len(tokens)):
        rest, number = digits, first
        while rest and number < len(tokens) and (piece := _any_case(tokens[number])) and rest.startswith(piece):
            rest, number = rest[len(piece) :], number + 1
        if not rest and not (number < len(tokens) and tokens[number][:1].isdigit()):
            return first
    return None


def _expected(tops: Sequence[Mapping[str, float]], written: str, scale: Sequence[int]) -> float | None:
    """The expected integer of the scale where its first token is chosen."""
    masses = {str(value): _mass(tops[0], str(value)) for value in range(scale[0], scale[1] + 1)}
    longer = [digits for digits in masses if len(digits) > len(written) and digits.startswith(written)]
    if len(tops) > 1 and written in masses:
        whole = masses[written]
        for digits in longer:
            share = _mass(tops[1], digits[len(written) :])
            masses[digits] += whole * share
            masses[written] -= whole * share
    total = sum(masses.values())
    return sum(int(digits) * mass for digits, mass in masses.items()) / total if total > 0 else None


def _mass(top: Mapping[str, float], word: str) -> float:
    logprob = _log_mass(top, word, _any_case)
    return 0.0 if logprob is None else min(1.0, math.exp(min(0.0, logprob)))


def _log_mass(top: Mapping[str, float], word: str, bare: Callable[[str], str]) -> float | None:
    """Log probability that the token is this word in one of its forms; None where no form is listed."""
    return _log_sum(logprob for token, logprob in top.items() if bare(token) == word)


def _log_sum(logprobs: Iterable[float]) -> float | None:
    finite = [min(0.0, logprob) for logprob in logprobs if logprob > -math.inf]  # NaN is not above anything
    if not finite:
        return None
    highest = max(finite)
    return highest + math.log(sum(math.exp(logprob - highest) for logprob in finite))


def _bound(top: Mapping[str, float]) -> float:
    """The greatest log probability that a token can have which is not listed."""
    listed = [min(0.0, logprob) for logprob in top.values()]
    left = 1.0 - sum(math.exp(logprob) for logprob in listed if logprob > -math.inf)
    # The token written is listed first, even where others that are likelier are not.
    others = [logprob for logprob in listed[1:] if logprob > -math.inf]
    return min([math.log(max(left, _LEAST)), *others])


def _sigmoid(difference: float) -> float:
    if difference >= 0:
        return 1.0 / (1.0 + math.exp(-difference))
    return math.exp(difference) / (1.0 + math.exp(difference))


def _exact(token: str) -> str:
    """A token without what may stand around a word; capitals matter."""
    return token.strip(_AROUND)


def _any_case(token: str) -> str:
    return _exact(token).lower()
