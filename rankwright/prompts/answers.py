"""Where the answer stands in what a model wrote: behind its thoughts, between tags where tags were agreed.

Numbers that stand in thoughts are no answer. So where thoughts were begun and not ended, nothing is taken but an
answer between its own tags.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

NO_ANSWER = "no answer"
TAGS_NOT_AS_AGREED = "tags not as agreed"
THINKING_NOT_CLOSED = "thinking not closed"
ANSWER_NOT_CLOSED = "answer not closed"
ANSWER_NOT_OPENED = "answer not opened"
ANSWER_TAGS_MISSING = "answer tags missing"
ANSWER_TAGS_ADDED = "answer tags added"
ANSWER_INSIDE_THINKING = "answer inside thinking"
SEVERAL_ANSWERS = "several answers"

THINK = "think"
"""What models that think by themselves put around their thoughts, whatever was agreed."""


@dataclass(frozen=True, slots=True)
class Tags:
    """Names of the tags that a prompt asks for; empty for none."""

    thinking: str = ""
    """Around what is passed over, for example `think` for <think>...</think>."""
    answer: str = ""
    """Around what is read."""


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a text that is read."""

    text: str | None
    """None where there is none; `repairs` then says why."""
    repairs: tuple[str, ...] = ()
    trusted: bool = True
    """False where thoughts may stand in it: tags were agreed, and none of them is there."""


@dataclass(frozen=True, slots=True)
class _Mark:
    name: str
    closing: bool
    start: int
    end: int


def strict_span(text: str, tags: Tags) -> str | None:
    """What stands between the tags if they stand as agreed: each pair once, thoughts first, nothing around them.

    >>> strict_span("<think>hm</think> <answer>[2] > [1]</answer>", Tags("think", "answer"))
    '[2] > [1]'
    """
    inside, rest = text.strip(), text.strip()
    for name in filter(None, (tags.thinking, tags.answer)):
        opening, closing = f"<{name}>", f"</{name}>"
        if text.count(opening) != 1 or text.count(closing) != 1 or not rest.startswith(opening):
            return None
        inside, closed, rest = rest[len(opening) :].partition(closing)
        rest = rest.strip()
        if not closed:
            return None
    if not tags.answer:
        return rest
    return None if rest else inside.strip()


def lenient_span(text: str, tags: Tags) -> Span:
    """The best guess at the answer, and what had to be overlooked for it.

    >>> lenient_span("<think>[1] or [3]?", Tags("think", "answer"))
    Span(text=None, repairs=('thinking not closed',), trusted=True)
    >>> lenient_span("<think>[1] or [3]?</think>[3] > [1]", Tags("think", "answer")).repairs
    ('answer tags missing',)
    """
    marks = _marks(text, tags)
    thoughts = {THINK, tags.thinking}
    ends = [mark.end for mark in marks if mark.closing and mark.name in thoughts]
    unfinished = not ends and any(mark.name in thoughts for mark in marks)
    begin = ends[-1] if ends else 0
    answers = [mark for mark in marks if mark.name not in thoughts]
    block = _block(text, [mark for mark in answers if mark.start >= begin])
    if block.text is not None:
        return _of_block(block, tags, unfinished)
    if unfinished:
        return Span(None, (THINKING_NOT_CLOSED,))
    rest = text[begin:]
    if not rest.strip():
        return _inside_thoughts(text, answers)
    return _untagged(rest, tags, [mark.start - begin for mark in answers if mark.start >= begin], bool(ends))


def thoughts_in(text: str, tags: Tags) -> str:
    """The thoughts before an answer, without their tags. Empty where there are none, where they did not end, and where
    a tag stands in them, so that what they say and the answer cannot be told apart.

    >>> thoughts_in("<think>[2] is on topic.</think>[2] > [1]", Tags())
    '[2] is on topic.'
    """
    marks = _marks(text, tags)
    of_thoughts = [mark for mark in marks if mark.name in {THINK, tags.thinking}]
    ends = [mark for mark in of_thoughts if mark.closing]
    if len(ends) != 1:
        return ""
    # A chat template may have written the opening tag, so that it is no part of the text.
    begin = max((mark.end for mark in of_thoughts if mark.end <= ends[0].start), default=0)
    inside = [mark for mark in marks if begin <= mark.start < ends[0].start]
    opened = sum(not mark.closing for mark in of_thoughts)
    return "" if inside or opened > 1 else text[begin : ends[0].start].strip()


def _of_block(block: Span, tags: Tags, unfinished: bool) -> Span:
    if not unfinished:
        return Span(block.text, (*block.repairs, *(() if tags.answer else (ANSWER_TAGS_ADDED,))))
    if ANSWER_NOT_CLOSED in block.repairs:  # it may be mentioned in a thought that goes on
        return Span(None, (THINKING_NOT_CLOSED,))
    return Span(block.text, (THINKING_NOT_CLOSED, *block.repairs))


def _inside_thoughts(text: str, answers: Sequence[_Mark]) -> Span:
    """Nothing stands behind the thoughts; an answer between its tags may stand in them."""
    block = _block(text, answers)
    if block.text is None or ANSWER_NOT_CLOSED in block.repairs:
        return Span(None, (NO_ANSWER,))
    return Span(block.text, (ANSWER_INSIDE_THINKING, *block.repairs))


def _untagged(rest: str, tags: Tags, closings: Sequence[int], thoughts_ended: bool) -> Span:
    """The words behind the thoughts, where no answer was opened; at `closings` one is closed all the same."""
    if not tags.answer and not closings:
        return Span(rest)
    trusted = thoughts_ended or not tags.thinking
    if closings:
        return Span(rest[: closings[0]], (ANSWER_NOT_OPENED,), trusted)
    return Span(rest, (ANSWER_TAGS_MISSING,), trusted)


def _block(text: str, answers: Sequence[_Mark]) -> Span:
    """The last answer that is opened and closed; else from the last opening on."""
    openings = [number for number, mark in enumerate(answers) if not mark.closing]
    if not openings:
        return Span(None)
    several = (SEVERAL_ANSWERS,) if len(openings) > 1 else ()
    for number in reversed(openings):
        if number + 1 < len(answers) and answers[number + 1].closing:
            return Span(text[answers[number].end : answers[number + 1].start], several)
    return Span(text[answers[openings[-1]].end :], (*several, ANSWER_NOT_CLOSED))


def _marks(text: str, tags: Tags) -> list[_Mark]:
    found = _pattern(tags).finditer(text)
    return [_Mark(mark[2].lower(), bool(mark[1]), mark.start(), mark.end()) for mark in found]


@lru_cache(maxsize=64)
def _pattern(tags: Tags) -> re.Pattern[str]:
    names = "|".join(sorted({THINK, tags.thinking or THINK, tags.answer or "answer"}))
    return re.compile(rf"<\s*+(/?+)\s*+({names})\s*+>", re.IGNORECASE)
