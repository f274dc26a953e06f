"""DPR and FlashRAG rows: question, answers | golden_answers, and passages with title and text.

Retrieval results hold them in `ctxs`, best first. `isgold` becomes relevance (1 or 0); `hasanswer` does not: a passage
that holds the string need not answer the question.

Files to train a DPR retriever hold them in `positive_ctxs` (relevance 1), `negative_ctxs` and `hard_negative_ctxs` (0).
No retriever put such a row in order, and both the lists and the scores tell the labels: DPR writes 1000 for a gold
passage and 0 for a random negative. The candidates therefore stand in the order of a hash, the same in every load.

`passage_id` and `psg_id` are not read: a passage without `id` is named by a hash of title and text, so that one in two
lists is one passage.
"""

from __future__ import annotations

from collections.abc import Iterator

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
from rankwright.data.problems import RowError
from rankwright.data.rows import RowFormat
from rankwright.types import Document, Example, Query

_ID_FIELDS = ("id", "_id", "question_id", "q_id")
_TRAINING_LISTS = {"positive_ctxs": True, "negative_ctxs": False, "hard_negative_ctxs": False}
"""Those of a training file, and whether their passages are relevant."""
_CONTEXT_FIELDS = PASSAGE_FIELDS | {"hasanswer", "has_answer", "score", "title_score", "passage_id", "psg_id"}


def parse_row(row: Row) -> Example:
    """One question; without an id of its own it is named by a hash of its text, so that order does not matter."""
    question = text_field(row, "question")
    judged = [*_retrieved(row)] or sorted(_for_training(row), key=lambda pair: content_id(question, pair[0].doc_id))
    relevance: dict[str, int] = {}
    for candidate, gold in judged:
        if gold is not None:
            relevance[candidate.doc_id] = max(relevance.get(candidate.doc_id, 0), int(gold))
    return Example(
        query=Query(id_field(row, *_ID_FIELDS) or content_id("", question), question),
        candidates=distinct(candidate for candidate, _ in judged),
        answers=answers_field(row, "answers", "golden_answers"),
        relevance=relevance,
    )


def _retrieved(row: Row) -> Iterator[tuple[Document, bool | None]]:
    """The passages of `ctxs`, each with its label if it has one."""
    contexts = list_field(row, "ctxs")
    both = [name for name in _TRAINING_LISTS if contexts and list_field(row, name)]
    if both:
        raise RowError(
            f"the row has passages in 'ctxs' and in '{both[0]}'",
            "retrieval results (ctxs) or training lists, because only the first have an order",
            "Take one of the two out of the row.",
        )
    for value in contexts:
        context = object_of(value, "passage of field 'ctxs'")
        yield passage(context), flag_field(context, "isgold", "is_gold")


def _for_training(row: Row) -> Iterator[tuple[Document, bool]]:
    """The passages of a training row with their labels."""
    for name, relevant in _TRAINING_LISTS.items():
        for value in list_field(row, name):
            yield passage(object_of(value, f"passage of field '{name}'")), relevant


FORMAT = RowFormat(
    parse_row,
    frozenset(
        {
            *_ID_FIELDS,
            "question",
            "answers",
            "golden_answers",
            "ctxs",
            *_TRAINING_LISTS,
            "dataset",
            "metadata",
            "nq_annotated_gold",
        }
    ),
    ("ctxs", *_TRAINING_LISTS),
    {"ctxs": _CONTEXT_FIELDS | {"isgold", "is_gold"}, **dict.fromkeys(_TRAINING_LISTS, _CONTEXT_FIELDS)},
)
