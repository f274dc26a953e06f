"""What the nouns refuse, and how plain strings become nouns."""

from __future__ import annotations

from typing import Any

import pytest

from rankwright.errors import ConfigurationError, DataError
from rankwright.types import Document, Query, Ranking, RerankRequest, as_documents, as_query

A, B = Document("a", "rain"), Document("b", "moon")


def test_strings_are_known_by_their_position() -> None:
    assert as_documents(["rain", A, "rain"]) == (Document("0", "rain"), A, Document("2", "rain"))
    assert as_documents(text for text in ("rain", "")) == (Document("0", "rain"), Document("1", ""))  # pyright: ignore[reportArgumentType]
    assert as_documents([]) == ()
    assert (as_query("rain?"), as_query(Query("q", "rain?"))) == (Query("0", "rain?"), Query("q", "rain?"))


def test_a_ranking_gives_the_texts_that_were_ranked() -> None:
    ranking = Ranking("q", ("1", "0"), (2.0, 1.0))
    assert [document.text for document in ranking.documents(["rain", "sun"])] == ["sun", "rain"]
    with pytest.raises(ConfigurationError, match="Ranking of query 'q' has document '1', which is not among the 1 "):
        ranking.documents(["rain"])


def test_a_ranking_gives_its_documents_in_its_order() -> None:
    ranking = Ranking("q", ("b", "a"), (2.0, 1.0))
    assert ranking.documents([A, Document("c", "sun"), B]) == (B, A)
    assert ranking.best(1).documents((A, B)) == (B,)


@pytest.mark.parametrize(
    ("documents", "found"),
    [
        ("rain", "Documents are one str"),
        ("", "Documents are one str"),
        (b"rain", "Documents are one bytes"),
        (A, "Documents are one Document"),
        ({"a": "rain"}, "Documents are one dict"),
        (["rain", None], "Document at position 1 is a value of type NoneType"),
        ([A, {"text": "rain"}], "Document at position 1 is a value of type dict"),
        ([7], "Document at position 0 is a value of type int"),
    ],
)
def test_what_is_no_list_of_documents_is_named(documents: Any, found: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{found}; wanted"):
        as_documents(documents)


def test_a_request_names_the_id_that_stands_twice() -> None:
    assert RerankRequest(Query("q", "?"), ()).documents == ()
    assert RerankRequest(Query("q", "?"), (A, B)).documents == (A, B)
    with pytest.raises(
        DataError, match="doc_id 'b' stands 3 times among the documents of query 'q'; wanted every doc_id"
    ):
        RerankRequest(Query("q", "?"), (A, B, Document("b", "river"), B))


def test_a_ranking_has_a_score_for_every_document() -> None:
    with pytest.raises(ConfigurationError, match="Ranking of query 'q' has 2 doc_ids and 1 scores"):
        Ranking("q", ("a", "b"), (1.0,))
