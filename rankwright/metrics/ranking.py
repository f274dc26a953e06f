"""How well an order puts relevant documents first: nDCG@k, RR@k, recall@k and AP, computed by ir_measures.

nDCG has linear gains and the denominator of all labelled documents (Järvelin and Kekäläinen, "Cumulated gain-based
evaluation of IR techniques", 2002, https://doi.org/10.1145/582415.582418), as trec_eval computes it. A document without
a label counts as not relevant; recall and AP divide by all relevant documents, retrieved or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rankwright.errors import ConfigurationError, DataError
from rankwright.types import Ranking, ScoredDoc

_NAMES = re.compile(r"(?P<measure>nDCG|RR|recall|AP)(?:@(?P<cutoff>[1-9][0-9]*))?")


class _Label(NamedTuple):
    """One line of labels, in the field names that ir_measures reads."""

    query_id: str
    doc_id: str
    relevance: int


def ranking_metrics(
    rankings: Iterable[Ranking], relevance: Mapping[str, Mapping[str, int]], names: Iterable[str]
) -> dict[str, dict[str, float]]:
    """Value of each named metric for each query: `values[name][query_id]`.

    Args:
        rankings: One ranking per query. Equal scores keep the order of the ranking.
        relevance: query_id -> doc_id -> grade; grades of 1 and above are relevant.
        names: `nDCG`, `RR`, `recall` (always with a cutoff) or `AP`, such as `nDCG@10`.

    A query without any relevant document has no value, because every order of it is as good as any other: it is left
    out of the answer, and whoever prints a mean says over how many queries (`queries_without_relevant`).

    Raises:
        ConfigurationError: a name is unknown.
        DataError: a query or, inside a ranking, a document occurs twice.
    """
    measures = {name: _measure(name) for name in names}
    judged = [ranking for ranking in _checked(rankings) if has_relevant(relevance.get(ranking.query_id, {}))]
    if not judged or not measures:
        return {name: {} for name in measures}

    import ir_measures

    labels: list[_Label] = []
    run: list[ScoredDoc] = []
    for number, ranking in enumerate(judged):
        named = _numbered(ranking, relevance[ranking.query_id], str(number))
        labels += named[0]
        run += named[1].scored_docs()
    # An empty ranking puts no line in the run, so the engine never hears of its query: it found nothing, which is 0.
    values = {name: {ranking.query_id: 0.0 for ranking in judged} for name in measures}
    name_of = {measure: name for name, measure in measures.items()}
    for metric in ir_measures.iter_calc(list(name_of), labels, run):
        values[name_of[metric.measure]][judged[int(metric.query_id)].query_id] = float(metric.value)
    return values


def _numbered(ranking: Ranking, grades: Mapping[str, int], query: str) -> tuple[list[_Label], Ranking]:
    """Labels and ranking of one query with numbers for ids.

    The engine keeps ids as C strings: it would cut them at a NUL, and a lone surrogate ends the process.
    """
    numbers = {doc_id: str(i) for i, doc_id in enumerate(dict.fromkeys((*ranking.doc_ids, *grades)))}
    labels = [_Label(query, numbers[doc_id], grade) for doc_id, grade in grades.items()]
    return labels, Ranking(query, tuple(numbers[doc_id] for doc_id in ranking.doc_ids), ranking.scores)


def queries_without_relevant(query_ids: Iterable[str], relevance: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The queries that no label calls relevant, in the order given; ranking metrics are undefined for them."""
    return [query_id for query_id in query_ids if not has_relevant(relevance.get(query_id, {}))]


def has_relevant(grades: Mapping[str, int]) -> bool:
    """Whether a label calls some document relevant."""
    return any(grade >= 1 for grade in grades.values())


def _measure(name: str) -> Any:
    import ir_measures

    match = _NAMES.fullmatch(name)
    if match is None or (match["cutoff"] is None and match["measure"] != "AP"):
        raise ConfigurationError(
            f"Ranking metric '{name}' is unknown; use nDCG@k, RR@k, recall@k or AP, such as nDCG@10."
        )
    measure = getattr(ir_measures, "R" if match["measure"] == "recall" else match["measure"])
    return measure if match["cutoff"] is None else measure @ int(match["cutoff"])


def _checked(rankings: Iterable[Ranking]) -> list[Ranking]:
    known: dict[str, Ranking] = {}
    for ranking in rankings:
        if ranking.query_id in known:
            raise DataError(
                f"Query '{ranking.query_id}' has two rankings; metrics need one. Give every query its own id."
            )
        if len(set(ranking.doc_ids)) != len(ranking.doc_ids):
            raise DataError(
                f"Ranking of query '{ranking.query_id}' names {len(ranking.doc_ids)} documents, of which "
                f"{len(set(ranking.doc_ids))} differ; every document may occur once. Remove the repeated doc_ids."
            )
        known[ranking.query_id] = ranking
    return list(known.values())
