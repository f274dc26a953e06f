"""DPR and FlashRAG rows: question, answers | golden_answers, and `ctxs` with title and text.

`isgold` becomes relevance (1 or 0); `hasanswer` does not: a passage that holds the string need not answer the question.
"""

from __future__ import annotations

from rankwright.data.fields import (
    PASSAGE_FIELDS,
    Row,
    answers_field,
    content_id,
    distinct,
    flag_field,
    id_field,
    list_field,
    object_of,
    passage,
    text_field,
)
from rankwright.data.rows import RowFormat
from rankwright.types import Example, Query

_ID_FIELDS = ("id", "_id", "question_id", "q_id")
_CONTEXT_FIELDS = {"isgold", "is_gold", "hasanswer", "has_answer", "score", "title_score", "passage_id", "psg_id"}


def parse_row(row: Row) -> Example:
    """One question; without an id of its own it is named by a hash of its text, so that order does not matter."""
    question = text_field(row, "question")
    contexts = [object_of(value, "passage of field 'ctxs'") for value in list_field(row, "ctxs")]
    documents = [passage(context) for context in contexts]
    relevance: dict[str, int] = {}
    for context, candidate in zip(contexts, documents, strict=True):
        gold = flag_field(context, "isgold", "is_gold")
        if gold is not None:
            relevance[candidate.doc_id] = max(relevance.get(candidate.doc_id, 0), int(gold))
    return Example(
        query=Query(id_field(row, *_ID_FIELDS) or content_id("", question), question),
        candidates=distinct(documents),
        answers=answers_field(row, "answers", "golden_answers"),
        relevance=relevance,
    )


FORMAT = RowFormat(
    parse_row,
    frozenset(
        {*_ID_FIELDS, "question", "answers", "golden_answers", "ctxs", "dataset", "metadata", "nq_annotated_gold"}
    ),
    ("ctxs",),
    {"ctxs": PASSAGE_FIELDS | _CONTEXT_FIELDS},
)
