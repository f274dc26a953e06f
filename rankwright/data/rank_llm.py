"""rank_llm's two request files: the older {query, hits} and the newer {query: {text, qid}, candidates}.

rank_llm itself knows no answers; `answers` is read where somebody added them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from rankwright.data.fields import (
    Row,
    answers_field,
    checked_text,
    distinct,
    document,
    list_field,
    object_of,
    optional_text,
    required_id,
    shown,
    text_field,
)
from rankwright.data.problems import SKIP, RowError
from rankwright.data.rows import RowFormat
from rankwright.types import Document, Example, Query

_TEXT_FIELDS = ("text", "segment", "contents", "content", "body", "passage")
# rank_llm writes title and text of a hit into one string, with these two words
_TITLE_AND_CONTENT = re.compile(r"Title: (?P<title>.*?) Content: (?P<text>.*)", re.DOTALL)
_ONE_OF_TWO = "{query, hits: [{qid, docid, content}]} or {query: {qid, text}, candidates: [{docid, doc}]}"


def parse_row(row: Row) -> Example:
    """One question with its first-stage candidates, in either shape, best first."""
    if "hits" in row:
        return _parse_hits(row)
    if "candidates" in row:
        query = object_of(row.get("query"), "field 'query'")
        return Example(
            query=Query(required_id(query, "qid"), text_field(query, "text")),
            candidates=distinct(_candidate(object_of(c, "candidate")) for c in list_field(row, "candidates")),
            answers=answers_field(row, "answers"),
            first_stage=_scores(list_field(row, "candidates")),
        )
    raise RowError(f"fields {shown(sorted(row))}", _ONE_OF_TWO, "Check that the format (--format) is rank_llm.")


FORMAT = RowFormat(
    parse_row,
    frozenset({"query", "hits", "candidates", "answers", "invocations_history", "ranking_exec_summary"}),
    ("hits", "candidates"),
    {
        "query": frozenset({"qid", "text"}),
        "hits": frozenset({"qid", "docid", "content", "rank", "score"}),
        "candidates": frozenset({"docid", "doc", "score"}),
    },
)


def _parse_hits(row: Row) -> Example:
    hits = [object_of(value, "hit") for value in list_field(row, "hits")]
    if not hits:  # the query's id stands only in its hits
        raise RowError(
            f"candidate list 'hits' of query {shown(row.get('query'))} is empty",
            "at least one hit, because hits carry the query's id",
            f"Such rows are left out with {SKIP}.",
        )
    query_ids = {required_id(hit, "qid") for hit in hits}
    if len(query_ids) > 1:
        raise RowError(f"hits of one query carry the ids {sorted(query_ids)}", "one qid", "Correct the row.")
    return Example(
        query=Query(query_ids.pop(), text_field(row, "query")),
        candidates=distinct(_hit(hit) for hit in sorted(hits, key=_rank)),
        answers=answers_field(row, "answers"),
        first_stage=_scores(hits),
    )


def _scores(rows: Iterable[Row]) -> dict[str, float]:
    """doc_id -> score of the first stage, of those that have one."""
    return {required_id(row, "docid"): _score(row["score"]) for row in rows if row.get("score") is not None}


def _score(score: object) -> float:
    try:
        number = math.nan if isinstance(score, bool) or not isinstance(score, int | float) else float(score)
    except OverflowError:  # JSON's whole numbers have any length
        number = math.nan
    if math.isnan(number):
        raise RowError(f"field 'score' is {shown(score)}", "a number to sort by", "Correct the row.")
    return number


def _rank(hit: Row) -> float:
    rank = hit.get("rank", 0)
    if isinstance(rank, bool) or not isinstance(rank, int | float):
        raise RowError(f"field 'rank' is {shown(rank)}", "a number", "Correct the row.")
    return rank


def _hit(hit: Row) -> Document:
    content = text_field(hit, "content")
    both = _TITLE_AND_CONTENT.fullmatch(content)
    title, text = (both["title"], both["text"]) if both else ("", content)
    return document(title, text, required_id(hit, "docid"))


def _candidate(candidate: Row) -> Document:
    doc_id, content = required_id(candidate, "docid"), candidate.get("doc")
    if isinstance(content, str):
        return document("", checked_text(content, "doc"), doc_id)
    fields = object_of(content, f"field 'doc' of '{doc_id}'")
    return document(optional_text(fields, "title"), text_field(fields, *_TEXT_FIELDS), doc_id)
