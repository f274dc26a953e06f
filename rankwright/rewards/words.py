"""Whether a completion has the form that a reward pays for: pure functions of its text.

Tags are found in any case (Rank-R1 lowers the text before it looks; we do so everywhere). No tags asked for are always
there, so that a prompt without tags can be used with every reward.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

_ORDER = re.compile(r"\s*\[\s*\w+\s*\](?:\s*>\s*\[\s*\w+\s*\])*\s*")
_NUMBER = re.compile("[0-9]+")
_LONGEST_NUMBER = 9
"""Digits of an identifier; Python refuses to convert endless ones."""


def has_pairs(text: str, tags: Sequence[str]) -> bool:
    """Whether every tag opens and, after that, closes.

    >>> has_pairs("<answer>[1]</answer> <think>x</think>", ("think", "answer"))
    True
    """
    text = text.lower()
    return all(-1 < text.find(f"<{tag}>") < text.rfind(f"</{tag}>") for tag in map(str.lower, tags))


def in_sequence(text: str, tags: Sequence[str]) -> bool:
    """Whether the tags' blocks stand somewhere one behind the other, in order, with nothing but blanks between them.

    >>> in_sequence("So: <think>x</think> <answer>[1]</answer>.", ("think", "answer"))
    True
    >>> in_sequence("<think>x</think> it is <answer>[1]</answer>", ("think", "answer"))
    False
    """
    text, names, end = text.lower(), [tag.lower() for tag in tags], 0
    # The earliest place for each border leaves the most room for those behind it, so no other needs to be tried.
    borders = [rf"</{one}>\s*<{two}>" for one, two in pairwise(names)]
    for border in (f"<{names[0]}>", *borders, f"</{names[-1]}>") if names else ():
        found = re.compile(border).search(text, end)
        if found is None:
            return False
        end = found.end()
    return True


def answer_of(text: str, tags: Sequence[str]) -> str | None:
    """What stands in the block of the last tag, the last one where there are several; all of it without tags, None
    where no such block opens and closes.

    >>> answer_of("<think><answer>?</answer></think><answer>[2] > [1]</answer>", ("think", "answer"))
    '[2] > [1]'
    """
    if not tags:
        return text
    opening = [match.end() for match in re.finditer(f"<{tags[-1]}>", text, re.IGNORECASE)]
    closing = re.compile(f"</{tags[-1]}>", re.IGNORECASE).search(text, opening[-1]) if opening else None
    return text[opening[-1] : closing.start()] if closing else None


def is_order(answer: str) -> bool:
    """Whether an answer has the form [a] > [b] > [c]; which identifiers they are is not looked at.

    >>> [is_order(answer) for answer in ("[2] > [1]", "[2], [1]", "best: [2]", "")]
    [True, False, False, False]
    """
    return _ORDER.fullmatch(answer) is not None


def numbers_in(answer: str) -> list[int]:
    """All numbers of an answer, in order; one that is longer than any identifier counts as 0, which is none.

    >>> numbers_in("[3, 0, 12]")
    [3, 0, 12]
    """
    return [int(run) if len(run) <= _LONGEST_NUMBER else 0 for run in _NUMBER.findall(answer)]
