"""HotpotQA, 2WikiMultiHopQA (same shape) and MuSiQue: paragraphs in the row, labels from the annotators' evidence.

HotpotQA exists as `context` = [[title, [sentence, ...]], ...] (the original, also 2Wiki) and as {"title": [...],
"sentences": [[...], ...]} (Hugging Face); `supporting_facts` and `_id`/`id` vary likewise. A paragraph is relevant (1)
where the evidence names its title; all others of the row are judged 0. Paragraphs have no ids of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankwright.data.fields import (
    Row,
    answers_field,
    checked_text,
    distinct,
    document,
    flag_field,
    list_field,
    object_of,
    optional_text,
    required_id,
    shown,
    text_field,
    unanswerable,
)
from rankwright.data.problems import RowError
from rankwright.data.rows import RowFormat
from rankwright.types import Document, Example, Query

_UNUSED_OF_2WIKI = {"entity_ids", "evidences", "evidences_id", "answer_id", "qa_pairs", "explanation"}
_CHECK_FORMAT = "Check that the format (--format) is the one of this file, or correct the row."


def parse_hotpotqa(row: Row) -> Example:
    """One question of HotpotQA or 2WikiMultiHopQA, in any of their spellings."""
    candidates = distinct(_paragraph(title, sentences) for title, sentences in _context(row))
    relevance: dict[str, int] = {}
    if row.get("supporting_facts") is not None:
        gold = _supporting_titles(row["supporting_facts"])
        relevance = {paragraph.doc_id: int(paragraph.title in gold) for paragraph in candidates}
    return Example(
        query=Query(required_id(row, "_id", "id"), text_field(row, "question")),
        candidates=candidates,
        answers=answers_field(row, "answer"),
        relevance=relevance,
    )


def parse_musique(row: Row) -> Example:
    """One question of MuSiQue; `answer_aliases` count as answers. An unanswerable question is a RowError."""
    query_id = required_id(row, "id", "_id")
    if flag_field(row, "answerable") is False:
        raise unanswerable(query_id)
    paragraphs = [object_of(value, "paragraph") for value in list_field(row, "paragraphs")]
    documents = [document(optional_text(p, "title"), text_field(p, "paragraph_text")) for p in paragraphs]
    relevance: dict[str, int] = {}
    for paragraph, candidate in zip(paragraphs, documents, strict=True):
        supporting = flag_field(paragraph, "is_supporting")
        if supporting is not None:  # a paragraph that stands twice is relevant if either of them is
            relevance[candidate.doc_id] = max(relevance.get(candidate.doc_id, 0), int(supporting))
    return Example(
        query=Query(query_id, text_field(row, "question")),
        candidates=distinct(documents),
        answers=answers_field(row, "answer", "answer_aliases"),
        relevance=relevance,
    )


HOTPOTQA = RowFormat(
    parse_hotpotqa,
    frozenset({"_id", "id", "question", "answer", "context", "supporting_facts", "type", "level"} | _UNUSED_OF_2WIKI),
    ("context",),
    {"context": frozenset({"title", "sentences"}), "supporting_facts": frozenset({"title", "sent_id"})},
)
MUSIQUE = RowFormat(
    parse_musique,
    frozenset(
        {"_id", "id", "question", "answer", "answer_aliases", "answerable", "paragraphs", "question_decomposition"}
    ),
    ("paragraphs",),
    {"paragraphs": frozenset({"idx", "title", "paragraph_text", "is_supporting"})},
)


def _context(row: Row) -> list[tuple[Any, Any]]:
    """(title, sentences) pairs, still unchecked inside."""
    context = row.get("context") or []
    if isinstance(context, dict):
        titles, sentences = list_field(context, "title"), list_field(context, "sentences")
        if len(titles) != len(sentences):
            raise RowError(
                f"field 'context' has {len(titles)} titles and {len(sentences)} sentence lists",
                "as many of the one as of the other",
                "Correct the row.",
            )
        return list(zip(titles, sentences, strict=True))
    return [_pair(value, "context") for value in list_field({"context": context}, "context")]


def _supporting_titles(facts: object) -> set[str]:
    if isinstance(facts, dict):
        titles: Sequence[Any] = list_field(facts, "title")
    else:
        titles = [_pair(value, "supporting_facts")[0] for value in list_field({"facts": facts}, "facts")]
    return {checked_text(title, "supporting_facts") for title in titles}


def _pair(value: object, name: str) -> tuple[Any, Any]:
    if isinstance(value, list) and len(value) == 2:
        return value[0], value[1]
    wanted = "[title, sentences]" if name == "context" else "[title, sentence number]"
    raise RowError(f"field '{name}' holds {shown(value)}", wanted, _CHECK_FORMAT)


def _paragraph(title: object, sentences: object) -> Document:
    """Sentences are joined by one space, whichever of the two habits (leading space or none) the source has."""
    if not isinstance(sentences, list):
        raise RowError(f"the paragraph {shown(title)} holds {shown(sentences)}", "a list of sentences", _CHECK_FORMAT)
    parts = [checked_text(sentence, "context").strip() for sentence in sentences]
    return document(checked_text(title, "context"), " ".join(part for part in parts if part))
