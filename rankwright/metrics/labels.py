"""Which documents of a question are relevant."""

from __future__ import annotations

from collections.abc import Mapping

from rankwright.metrics.answer import contains_answer
from rankwright.types import Example


def labels_of(example: Example) -> Mapping[str, int]:
    """doc_id -> grade of an example; where it has no grades, 1 for every candidate that an accepted answer stands in.

    >>> from rankwright.types import Document, Query
    >>> labels_of(Example(Query("q", "who?"), (Document("1", "Ida Moss."), Document("2", "Nobody.")), ("Ida Moss",)))
    {'1': 1}
    """
    if example.relevance or not example.answers:
        return example.relevance
    return {d.doc_id: 1 for d in example.candidates if contains_answer(f"{d.title} {d.text}", example.answers)}
