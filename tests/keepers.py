"""A world in which no question shares a word with its answer, but a good guess does."""

from __future__ import annotations

import re

from rankwright.types import Document, Query

KEEPERS = range(10, 22)
"""Two digits, because BM25 passes over words of one character."""


def question(keeper: int) -> str:
    return f"Who keeps lamp {keeper}?"


def target(keeper: int) -> Document:
    """Answers the question in other words."""
    return Document(f"beacon-{keeper}", f"Since May name{keeper} has tended that beacon.")


CORPUS = [d for k in KEEPERS for d in (Document(f"lamp-{k}", f"Lamp {k} is green."), target(k))]


def guess(text: str) -> str:
    """What a model that knows this world writes for a question."""
    keeper = re.findall(r"lamp (\d+)", text)[-1]
    return f"Passage: name{keeper} tends\nthe beacon."


def queries(*keepers: int) -> list[Query]:
    return [Query(f"q{keeper}", question(keeper)) for keeper in keepers]
