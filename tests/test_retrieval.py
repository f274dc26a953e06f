"""BM25: the formula, the order of ties, what is saved, and candidates for examples."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankwright.errors import ConfigurationError, DataError, ResourceNotFoundError, StorageError
from rankwright.retrieval import BM25, with_candidates
from rankwright.types import Document, Example, Query, Retriever

KELP = Document("kelp", "A seaweed that grows fast.", "Kelp")
CRAB = Document("crab", "An animal with ten legs.", "Crab")
EEL = Document("eel", "A long fish. It grows slowly.")
SEA = (KELP, CRAB, EEL)


def ids(retriever: Retriever, question: str, depth: int) -> list[str]:
    (found,) = retriever.retrieve([Query("q", question)], depth)
    return [document.doc_id for document in found]


def test_bm25_is_a_retriever() -> None:
    assert isinstance(BM25(SEA), Retriever)


def test_scores_are_lucenes_formula() -> None:
    texts = ["oak oak elm", "oak ash", "elm elm elm ash pine"]
    bm25 = BM25([Document(str(i), text) for i, text in enumerate(texts)])
    (found,) = bm25.retrieve_with_scores([Query("q", "oak pine")], 3)

    k1, b, count = 0.9, 0.4, len(texts)
    mean_length = sum(len(text.split()) for text in texts) / count

    def score(text: str) -> float:
        words = text.split()
        norm = k1 * (1 - b + b * len(words) / mean_length)
        total = 0.0
        for term in ("oak", "pine"):
            holders = sum(term in other.split() for other in texts)
            idf = math.log(1 + (count - holders + 0.5) / (holders + 0.5))
            total += idf * words.count(term) / (words.count(term) + norm)
        return total

    expected = sorted(((score(text), str(i)) for i, text in enumerate(texts)), reverse=True)
    assert [document.doc_id for document, _ in found] == [doc_id for _, doc_id in expected]
    assert [value for _, value in found] == pytest.approx([value for value, _ in expected], rel=1e-5)


def test_title_is_searched_and_words_are_stemmed() -> None:
    assert ids(BM25(SEA), "crabs", 1) == ["crab"]
    assert ids(BM25(SEA), "growing fishes", 2) == ["eel", "kelp"]
    unstemmed = BM25(SEA, stemmer=None)
    assert unstemmed.retrieve_with_scores([Query("q", "crabs")], 1)[0][0][1] == 0


def test_stop_words_do_not_count() -> None:
    (found,) = BM25(SEA).retrieve_with_scores([Query("q", "that with it")], 3)
    assert [score for _, score in found] == [0, 0, 0]
    assert ids(BM25(SEA, stop_words=None), "that with it", 1) != ["crab", "eel"]
    assert ids(BM25(SEA, stop_words=["grows", "fast"]), "with grows fast", 1) == ["crab"]


def test_equal_scores_keep_the_order_of_the_corpus() -> None:
    twins = [Document(f"{n}", "same words here") for n in range(50)]
    bm25 = BM25([*twins, Document("best", "same same same words")])
    for depth in (1, 7, 51):
        assert ids(bm25, "same", depth) == ["best", *(f"{n}" for n in range(50))][:depth]


def test_never_more_results_than_the_corpus_has() -> None:
    assert ids(BM25(SEA), "seaweed", 100) == ["kelp", "crab", "eel"]


def test_a_corpus_of_one_passage_works() -> None:
    assert ids(BM25([KELP]), "seaweed", 20) == ["kelp"]
    assert ids(BM25([KELP]), "unknown", 20) == ["kelp"]


@pytest.mark.parametrize("question", ["zebra", "the", "?", ""])
def test_a_query_without_a_known_word_gets_the_first_passages_with_a_warning(
    question: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert ids(BM25(SEA), question, 2) == ["kelp", "crab"]
    assert "No word of 1 of the queries is in the corpus, for example of 'q'" in caplog.text


def test_queries_do_not_influence_each_other() -> None:
    bm25 = BM25(SEA)
    queries = [Query(str(n), text) for n, text in enumerate(["seaweed", "legs", "zebra", "fish seaweed"])]
    assert bm25.retrieve(queries, 3) == [bm25.retrieve([query], 3)[0] for query in queries]
    assert bm25.retrieve([], 3) == []


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([], "The corpus for BM25 is empty"),
        ([KELP, KELP], "doc_id 'kelp' stands twice"),
        ([Document("x", "the of and"), Document("y", "!")], "None of the 2 passages holds a word"),
    ],
    ids=["empty", "twice", "no words"],
)
def test_an_unusable_corpus_is_named(documents: list[Document], said: str) -> None:
    with pytest.raises(DataError, match=said):
        BM25(documents)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k1": -1}, "k1 of BM25 is -1; wanted 0 or more"),
        ({"b": 1.5}, "b of BM25 is 1.5; wanted 0 to 1"),
        ({"stemmer": "klingon"}, "Stemmer 'klingon' is unknown; wanted one of .*english"),
        ({"stop_words": "klingon"}, "stop_words 'klingon' are unknown"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        BM25(SEA, **options)


@pytest.mark.parametrize("depth", [0, -1])
def test_depth_must_be_positive(depth: int) -> None:
    with pytest.raises(ConfigurationError, match=f"depth is {depth}; wanted 1 or more"):
        BM25(SEA).retrieve([Query("q", "seaweed")], depth)


def test_the_name_holds_what_is_not_default() -> None:
    assert BM25(SEA).name == "bm25"
    assert BM25(SEA, k1=1.5, stemmer=None).name == "bm25,k1=1.5,stemmer=None"


# --- saved indexes ---

STRANGE = (*SEA, Document("odd", "line\nbreak \u2028 separator \U0001f600 text", 'a "title"'))


@pytest.mark.parametrize("options", [{}, {"k1": 1.5, "b": 0.75, "stemmer": None, "stop_words": ["grows"]}])
def test_a_loaded_index_answers_as_the_one_that_was_saved(tmp_path: Path, options: dict[str, Any]) -> None:
    built = BM25(STRANGE, **options)
    built.save(tmp_path / "new" / "index")
    loaded = BM25.load(tmp_path / "new" / "index")
    queries = [Query(str(n), text) for n, text in enumerate(["grows fast", "separators of a title", "zebra", "a fish"])]
    assert loaded.retrieve_with_scores(queries, 4) == built.retrieve_with_scores(queries, 4)
    assert (len(loaded), loaded.settings, loaded.name) == (4, built.settings, built.name)


def test_saving_replaces_an_index_even_the_one_that_is_mapped(tmp_path: Path) -> None:
    BM25([KELP, CRAB]).save(tmp_path / "index")
    loaded = BM25.load(tmp_path / "index")
    loaded.save(tmp_path / "index")
    assert ids(BM25.load(tmp_path / "index"), "crab", 2) == ["crab", "kelp"]
    BM25([EEL]).save(tmp_path / "index")
    assert ids(BM25.load(tmp_path / "index"), "crab", 2) == ["eel"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["index"]


def test_saving_does_not_replace_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigurationError, match="holds other files; wanted a new folder"):
        BM25(SEA).save(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_disk_that_fills_up_leaves_the_older_index(tmp_path: Path) -> None:
    BM25(SEA).save(tmp_path / "index")
    larger = BM25([Document(str(n), f"word{n} " * 20) for n in range(100)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # a write past it fails as on a full disk
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            larger.save(tmp_path / "index")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ids(BM25.load(tmp_path / "index"), "crab", 1) == ["crab"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["index"]


def test_a_folder_without_an_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceNotFoundError, match="holds no BM25 index"):
        BM25.load(tmp_path)


def _cut_documents(index: Path) -> None:
    path = index / "documents.jsonl"
    path.write_bytes(path.read_bytes()[:-5])


def _remove_scores(index: Path) -> None:
    (index / "data.csc.index.npy").unlink()


def _empty_scores(index: Path) -> None:
    (index / "indices.csc.index.npy").write_bytes(b"")


def _empty_offsets(index: Path) -> None:
    np.save(index / "documents.offsets.npy", np.zeros(0, dtype=np.int64))


def _break_settings(index: Path) -> None:
    (index / "bm25.json").write_text("{")


def _change(index: Path, **values: object) -> None:
    path = index / "bm25.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


DAMAGES = [
    _cut_documents,
    _remove_scores,
    _empty_scores,
    _empty_offsets,
    _break_settings,
    lambda index: _change(index, documents=7),
    lambda index: _change(index, format=99),
    lambda index: _change(index, surprise=1),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_named(tmp_path: Path, damage: Any) -> None:
    BM25(SEA).save(tmp_path / "index")
    damage(tmp_path / "index")
    with pytest.raises(StorageError, match=r"is damaged: .*; wanted a complete index\. Build it again\."):
        BM25.load(tmp_path / "index")


# --- candidates ---


def test_candidates_are_filled_in_and_all_else_stays() -> None:
    examples = [
        Example(Query("a", "seaweed"), answers=("kelp",), relevance={"kelp": 1}),
        Example(Query("b", "legs"), candidates=(EEL,), first_stage={"eel": 9.0}),
    ]
    ((_, kelp),), ((_, crab),) = BM25(SEA).retrieve_with_scores([example.query for example in examples], 1)
    assert with_candidates(examples, BM25(SEA), 1) == [
        Example(Query("a", "seaweed"), (KELP,), ("kelp",), {"kelp": 1}, {"kelp": kelp}),
        Example(Query("b", "legs"), (CRAB,), first_stage={"crab": crab}),
    ]


def test_scores_of_an_earlier_first_stage_do_not_stay() -> None:
    class FindsEel:
        def retrieve(self, queries: Sequence[Query], depth: int) -> list[tuple[Document, ...]]:
            return [(EEL,) for _ in queries]

    (example,) = with_candidates([Example(Query("b", "?"), (EEL,), first_stage={"eel": 9.0})], FindsEel(), 1)
    assert example.first_stage == {}


class _FindsNothing:
    def retrieve(self, queries: Sequence[Query], depth: int) -> list[tuple[Document, ...]]:
        return [() for _ in queries]


def test_an_empty_result_is_an_error_with_the_query() -> None:
    with pytest.raises(DataError, match="Candidate list of query 'q17' is empty; retrieval returned 0 documents"):
        with_candidates([Example(Query("q17", "?"))], _FindsNothing(), 5)
