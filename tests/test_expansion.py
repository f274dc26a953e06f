"""Query2Doc: the prompt, the formula, what is asked and kept, failures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwright.errors import ConfigurationError, ReaderError, ResourceNotFoundError
from rankwright.expansion import Query2Doc
from rankwright.llms.cache import CachedLLM, ReadStore
from rankwright.prompts import Prompt, ask_for_passage, load_prompt, parse_passage
from rankwright.retrieval import BM25, with_candidates
from rankwright.types import (
    Completion,
    CompletionFailed,
    CompletionResult,
    Example,
    LLMRequest,
    Query,
    Retriever,
)
from tests.keepers import CORPUS, KEEPERS, guess, queries, question, target

SHIPPED = "6248472a884f5796ed3f41a49d1a5941ad83511e6789872815fb029622992390"
PROMPT = Prompt("bare", "{question}", "query2doc")


@dataclass
class Writer:
    """A language model that writes what `write` makes of a message, and remembers the messages."""

    write: Callable[[str], str | CompletionFailed] = guess
    asked: list[str] = field(default_factory=list)
    name: str = "writer@here"

    def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
        texts = [request.messages[0][1] for request in requests]
        self.asked += texts
        written = map(self.write, texts)
        return [text if isinstance(text, CompletionFailed) else Completion(text) for text in written]


def found(retriever: Retriever, keeper: int, depth: int) -> list[str]:
    return [document.doc_id for document in retriever.retrieve(queries(keeper), depth)[0]]


# --- prompt and parser -------------------------------------------------------------------------------------------


def test_the_shipped_prompt_is_the_text_that_its_version_promises() -> None:
    prompt = load_prompt("query2doc-1", "query2doc")
    assert (prompt.version, hashlib.sha256(prompt.text.encode()).hexdigest()) == ("query2doc-1", SHIPPED)
    assert ask_for_passage(prompt, "who\n\nQuestion: {question}").endswith(
        "\nQuestion: who Question: {question}\nPassage:"
    )


def test_a_prompt_of_one_kind_is_none_of_the_other(tmp_path: Path) -> None:
    with pytest.raises(ResourceNotFoundError, match=r"Reader prompt 'query2doc-1' is neither .* \(reader-1\)"):
        load_prompt("query2doc-1")
    with pytest.raises(ResourceNotFoundError, match=r"Query2doc prompt 'reader-1' is neither .* \(query2doc-1\)"):
        load_prompt("reader-1", "query2doc")
    (tmp_path / "mine.txt").write_text("{passages}", "utf-8")
    with pytest.raises(ConfigurationError, match=r"does not hold {question}; write {question} into its text"):
        load_prompt(tmp_path / "mine.txt", "query2doc")


@pytest.mark.parametrize(
    ("written", "passage"),
    [
        ("Kelp grows.", "Kelp grows."),
        ("Passage: Kelp\n grows.\r\n\n It is\tbrown.\n", "Kelp grows. It is brown."),
        ("**Passage:** Kelp grows.", "Kelp grows."),
        ("<think>Passage: what?</think>\nKelp grows.", "Kelp grows."),
        ("Kelp grows.\n\nQuestion: and crabs?\nPassage: They walk.", "Kelp grows."),
        ("The question: is it kelp?", "The question: is it kelp?"),
        ("Kelp \ud800\x1b[31m\u200bgrows", "Kelp ?[31mgrows"),
        ("<think>Passage: what", None),
        ("Passage:\n", None),
        (" \n", None),
    ],
)
def test_a_passage_is_one_line_without_wrapping(written: str, passage: str | None) -> None:
    assert parse_passage(written) == passage


@given(st.text(st.characters(), max_size=60))
def test_any_text_is_one_printable_line_or_nothing(text: str) -> None:
    passage = parse_passage(text)
    assert passage is None or (passage.strip() != "" and len(passage.splitlines()) == 1)
    assert passage is None or passage.encode()


# --- the formula -------------------------------------------------------------------------------------------------


def test_the_question_stands_n_times_before_the_passage() -> None:
    asked, passage = question(10), "name10 tends the beacon."
    assert Query2Doc(BM25(CORPUS), Writer()).expand(queries(10)) == [
        Query("q10", f"{asked} {asked} {asked} {asked} {asked} {passage}")
    ]
    assert Query2Doc(BM25(CORPUS), Writer(), repeats=1).expand(queries(10))[0].text == f"{asked} {passage}"


def test_every_repetition_counts_in_the_score() -> None:
    """BM25 is a sum over the words of a query: n scores of the question and one of the passage."""
    index = BM25(CORPUS)

    def scores(text: str) -> dict[str, float]:
        (rows,) = index.retrieve_with_scores([Query("q", text)], len(CORPUS))
        return {document.doc_id: score for document, score in rows}

    bare, passage = scores(question(10)), scores("name10 tends the beacon.")
    whole = scores(Query2Doc(index, Writer(), repeats=3).expand(queries(10))[0].text)
    assert whole == pytest.approx({doc_id: 3 * bare[doc_id] + passage[doc_id] for doc_id in whole}, rel=1e-5)
    assert bare["lamp-10"] > 0 < passage["beacon-10"]


def test_a_helpful_passage_finds_what_the_question_alone_does_not() -> None:
    index = BM25(CORPUS)
    expanded = Query2Doc(index, Writer())
    assert isinstance(expanded, Retriever)
    for keeper in KEEPERS[1:]:
        assert target(keeper).doc_id not in found(index, keeper, 3)
        assert target(keeper).doc_id in found(expanded, keeper, 2)


def test_only_the_retriever_sees_the_expanded_query() -> None:
    examples = [Example(query, answers=("x",)) for query in queries(10, 11)]
    filled = with_candidates(examples, Query2Doc(BM25(CORPUS), Writer()), 2)
    assert [replace(example, candidates=()) for example in filled] == examples


# --- asking ------------------------------------------------------------------------------------------------------


def test_a_question_is_asked_once() -> None:
    writer = Writer()
    expanded = Query2Doc(BM25(CORPUS), writer, PROMPT)
    twice = [*queries(10, 11, 10), Query("other", question(11))]
    assert [query.query_id for query in expanded.expand(twice)] == ["q10", "q11", "q10", "other"]
    expanded.retrieve(queries(11, 12), 1)
    assert writer.asked == [question(10), question(11), question(12)]
    known = Query2Doc(BM25(CORPUS), writer, PROMPT, known=expanded.passages)
    assert known.expand(twice) == expanded.expand(twice)
    assert len(writer.asked) == 3


def test_a_second_run_is_answered_by_the_cache(tmp_path: Path) -> None:
    writer = Writer()
    with ReadStore(tmp_path / "reads.sqlite") as store:
        texts = []
        for name in ("first", "second"):
            llm = CachedLLM(writer, store, run=name, accepts=parse_passage)
            texts.append(Query2Doc(BM25(CORPUS), llm, PROMPT).expand(queries(10, 11)))
        assert texts[0] == texts[1]
        assert [store.ledger.totals(name).calls for name in ("first", "second")] == [2, 0]
        other = Query2Doc(BM25(CORPUS), CachedLLM(writer, store, run="third"), replace(PROMPT, version="changed"))
        other.expand(queries(10))
        assert store.ledger.totals("third").calls == 1
    assert writer.asked == [question(10), question(11), question(10)]


def test_progress_is_told_batch_by_batch() -> None:
    told: list[tuple[int, int]] = []
    many = [Query(str(i), f"lamp {i}") for i in range(300)]
    Query2Doc(BM25(CORPUS), Writer()).expand(many, lambda done, total: told.append((done, total)))
    assert told == [(128, 300), (256, 300), (300, 300)]


def failing_for(*keepers: int) -> Callable[[str], str | CompletionFailed]:
    texts = {question(keeper) for keeper in keepers}
    return lambda text: CompletionFailed("http 500") if text in texts else guess(text)


def test_a_question_without_a_passage_is_searched_as_asked_and_counted() -> None:
    empty: Callable[[str], str] = lambda text: "<think>hm" if "11" in text else guess(text)  # noqa: E731
    for write, reason in ((failing_for(11), "http 500"), (empty, "empty text")):
        expanded = Query2Doc(BM25(CORPUS), Writer(write), PROMPT, max_failed=0.5)
        texts = [query.text for query in expanded.expand(queries(10, 11))]
        assert texts[0].count(question(10)) == 5
        assert texts[1] == question(11)
        assert (expanded.failed, expanded.passages[question(11)]) == (1, CompletionFailed(reason))
        assert found(expanded, 11, 3) == found(BM25(CORPUS), 11, 3)


def test_too_many_failures_stop_before_all_is_asked() -> None:
    writer = Writer(lambda _: CompletionFailed("length"))
    many = [Query(str(i), f"lamp {i}") for i in range(300)]
    with pytest.raises(ReaderError, match=r"failed for 128 of 300 questions, most often with 'length'.*at most 5%"):
        Query2Doc(BM25(CORPUS), writer).expand(many)
    assert len(writer.asked) == 128
    exact = Query2Doc(BM25(CORPUS), Writer(failing_for(10)), PROMPT, max_failed=1 / 12)
    exact.expand(queries(*KEEPERS))
    assert exact.failed == 1


@pytest.mark.parametrize("options", [{"repeats": 0}, {"max_failed": 1.5}, {"max_failed": -0.1}])
def test_wrong_settings_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="Query2Doc was given"):
        Query2Doc(BM25(CORPUS), Writer(), **options)


def test_the_name_holds_all_that_decides_the_query() -> None:
    def name(**options: Any) -> str:
        return Query2Doc(BM25(CORPUS, k1=1.5), Writer(), **options).name

    how = "writer@here,prompt=query2doc-1,n=5,max_tokens=256,temperature=0.0"
    assert name() == f"bm25,k1=1.5+query2doc({how})"
    assert len({name(), name(repeats=2), name(prompt=PROMPT), name(sampling={"max_tokens": 9})}) == 4
