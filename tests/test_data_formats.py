"""Every format to Examples, and back out again."""

from __future__ import annotations

import gzip
import json
import logging
import math
import resource
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.data import (
    FORMATS,
    Dataset,
    describe,
    load_examples,
    read_trec_run,
    validate,
    write_jsonl,
    write_trec_run,
)
from rankwright.data.fields import content_id
from rankwright.errors import DataError, StorageError
from rankwright.types import Document, Example, Query, Ranking

SENTENCES = ["A kelp is a seaweed.", " It grows fast."]
KELP = Document(
    content_id("Kelp", "A kelp is a seaweed. It grows fast."), "A kelp is a seaweed. It grows fast.", "Kelp"
)
CRAB = Document(content_id("Crab", "Crabs walk sideways."), "Crabs walk sideways.", "Crab")

HOTPOT_FIELDS = {"question": "What is kelp?", "answer": "a seaweed"}
HOTPOT_AS_LISTS = {
    **HOTPOT_FIELDS,
    "_id": "q1",
    "context": [["Kelp", SENTENCES], ["Crab", ["Crabs walk sideways."]]],
    "supporting_facts": [["Kelp", 0], ["Kelp", 1]],
}
HOTPOT_AS_OBJECTS = {
    **HOTPOT_FIELDS,
    "id": "q1",
    "context": {"title": ["Kelp", "Crab"], "sentences": [SENTENCES, ["Crabs walk sideways."]]},
    "supporting_facts": {"title": ["Kelp"], "sent_id": [0]},
}
MUSIQUE = {
    "id": "q1",
    "question": "What is kelp?",
    "answer": "a seaweed",
    "answer_aliases": ["seaweed", "a seaweed"],
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "Kelp", "paragraph_text": KELP.text, "is_supporting": True},
        {"idx": 1, "title": "Crab", "paragraph_text": CRAB.text, "is_supporting": False},
    ],
}
DPR = {
    "question": "What is kelp?",
    "answers": ["a seaweed"],
    "ctxs": [
        {"id": "w1", "title": "Kelp", "text": "A seaweed.", "isgold": True, "hasanswer": True, "score": 2.5},
        {"id": "w2", "title": "Crab", "text": "Not a seaweed.", "isgold": False, "hasanswer": True, "score": 1.5},
    ],
}
DPR_TRAINING = {
    "dataset": "nq_dev_psgs_w100",
    "question": "What is kelp?",
    "answers": ["a seaweed"],
    "positive_ctxs": [{"title": "Kelp", "text": "A seaweed.", "score": 1000, "title_score": 1, "passage_id": "11"}],
    "negative_ctxs": [{"title": "Oak", "text": "A tree.", "score": 0, "title_score": 0, "passage_id": "12"}],
    "hard_negative_ctxs": [
        {"title": "Crab", "text": "Eats kelp.", "score": 9.5, "title_score": 0, "psg_id": "13"},
        {"title": "Kelp", "text": "A seaweed.", "score": 8.5, "title_score": 0, "psg_id": "11"},
    ],
}
FLASHRAG = {"id": "f1", "question": "What is kelp?", "golden_answers": ["a seaweed"], "metadata": {"level": 1}}
RANK_LLM_HITS = {
    "query": "what is kelp",
    "hits": [
        {"content": "Crabs walk.", "qid": 7, "docid": "c", "rank": 2, "score": 1.0},
        {"content": "Title: Kelp Content: A seaweed.", "qid": 7, "docid": "k", "rank": 1, "score": 2.0},
    ],
}
RANK_LLM_REQUEST = {
    "query": {"text": "what is kelp", "qid": "7"},
    "candidates": [
        {"docid": "k", "score": 2.0, "doc": {"title": "Kelp", "segment": "A seaweed."}},
        {"docid": "c", "score": 1.0, "doc": {"contents": "Crabs walk."}},
    ],
}
SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Kelp_%28plant%29",
            "paragraphs": [
                {
                    "context": "A seaweed.",
                    "qas": [
                        {"id": "s1", "question": "What?", "answers": [{"text": "A seaweed", "answer_start": 0}] * 2},
                        {"id": "s2", "question": "Which?", "answers": [{"text": "seaweed", "answer_start": 2}]},
                    ],
                }
            ],
        }
    ],
}
CORPUS = [{"_id": "k", "title": "Kelp", "text": "A seaweed."}, {"_id": "c", "title": "", "text": "Crabs walk."}]


def json_lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def load_rows(folder: Path, format: str, *rows: object, **options: Any) -> Dataset:
    return load_examples(write(folder / "set.jsonl", json_lines(*rows)), format, **options)


def only(dataset: Dataset) -> Example:
    (example,) = dataset.examples
    assert dataset.skipped == 0
    assert dataset.warnings == ()
    return example


def test_formats_are_those_of_the_contract() -> None:
    assert set(FORMATS) == {"jsonl", "hotpotqa", "2wiki", "musique", "dpr", "squad", "beir", "trec", "rank_llm"}


def test_jsonl_gives_every_part_of_an_example(tmp_path: Path) -> None:
    row = {
        "query_id": 3,
        "question": "What is kelp?",
        "answers": ["a seaweed"],
        "candidates": [
            {"doc_id": "k", "title": "Kelp", "text": "A seaweed.", "score": 7},
            {"_id": "c", "contents": '"Crab"\nWalks.', "score": None},
            "Bare text.",
        ],
        "relevance": {"k": 2},
        "order": ["c", 4, "k"],
    }
    assert only(load_rows(tmp_path, "jsonl", row)) == Example(
        Query("3", "What is kelp?"),
        (
            Document("k", "A seaweed.", "Kelp"),
            Document("c", "Walks.", "Crab"),
            Document(content_id("", "Bare text."), "Bare text."),
        ),
        ("a seaweed",),
        {"k": 2},
        {"k": 7.0},
        ("c", "4", "k"),
    )


def test_questions_without_id_are_named_by_their_text(tmp_path: Path) -> None:
    rows = [{"question": "What is kelp?"}, {"question": "What is a crab?"}]
    forward = load_rows(tmp_path, "jsonl", *rows).examples
    backward = load_rows(tmp_path, "jsonl", *reversed(rows)).examples
    assert {e.query for e in forward} == {e.query for e in backward}
    assert len({e.query.query_id for e in forward}) == 2


@pytest.mark.parametrize("format", ["hotpotqa", "2wiki"])
@pytest.mark.parametrize("row", [HOTPOT_AS_LISTS, HOTPOT_AS_OBJECTS], ids=["lists", "objects"])
def test_hotpotqa_reads_both_spellings_alike(tmp_path: Path, format: str, row: object) -> None:
    assert only(load_rows(tmp_path, format, row)) == Example(
        Query("q1", "What is kelp?"), (KELP, CRAB), ("a seaweed",), {KELP.doc_id: 1, CRAB.doc_id: 0}
    )


def test_hotpotqa_keeps_a_repeated_paragraph_once(tmp_path: Path) -> None:
    row = {**HOTPOT_AS_LISTS, "context": [["Kelp", SENTENCES], ["Crab", ["Crabs walk sideways."]], ["Kelp", SENTENCES]]}
    assert only(load_rows(tmp_path, "hotpotqa", row)).candidates == (KELP, CRAB)


def test_hotpotqa_without_evidence_has_no_labels(tmp_path: Path) -> None:
    row = {name: value for name, value in HOTPOT_AS_LISTS.items() if name != "supporting_facts"}
    assert only(load_rows(tmp_path, "hotpotqa", row)).relevance == {}


def test_musique_counts_aliases_as_answers(tmp_path: Path) -> None:
    assert only(load_rows(tmp_path, "musique", MUSIQUE)) == Example(
        Query("q1", "What is kelp?"), (KELP, CRAB), ("a seaweed", "seaweed"), {KELP.doc_id: 1, CRAB.doc_id: 0}
    )


def test_dpr_takes_labels_from_isgold_and_not_from_hasanswer(tmp_path: Path) -> None:
    path = tmp_path / "nq.jsonl.gz"
    path.write_bytes(gzip.compress(json_lines(DPR).encode()))
    dataset = load_examples(path, "dpr")
    example = dataset.examples[0]
    assert dataset.name == "nq"
    assert example.query == Query(content_id("", "What is kelp?"), "What is kelp?")
    assert example.relevance == {"w1": 1, "w2": 0}
    assert [document.doc_id for document in example.candidates] == ["w1", "w2"]


def test_dpr_without_isgold_has_no_labels(tmp_path: Path) -> None:
    contexts = [{"title": "Kelp", "text": "A seaweed.", "hasanswer": True}, {"title": "Crab", "text": "Walks."}]
    assert load_rows(tmp_path, "dpr", {**DPR, "ctxs": contexts}).examples[0].relevance == {}


def test_dpr_training_lists_become_labels(tmp_path: Path) -> None:
    example = only(load_rows(tmp_path, "dpr", DPR_TRAINING))
    kelp, oak, crab = (
        content_id(*words) for words in (("Kelp", "A seaweed."), ("Oak", "A tree."), ("Crab", "Eats kelp."))
    )
    assert example.relevance == {kelp: 1, oak: 0, crab: 0}  # Kelp stands in two lists
    assert sorted(document.doc_id for document in example.candidates) == sorted([kelp, oak, crab])
    assert example.answers == ("a seaweed",)


def test_the_order_of_dpr_training_candidates_does_not_tell_the_labels(tmp_path: Path) -> None:
    def row(number: int, *, swapped: bool) -> dict[str, Any]:
        gold, wrong = ([{"text": f"{kind} {number}", "score": score}] for kind, score in (("gold", 1000), ("wrong", 0)))
        positive, negative = (wrong, gold) if swapped else (gold, wrong)
        return {"question": f"{number}?", "positive_ctxs": positive, "hard_negative_ctxs": negative}

    count = 400
    given = load_rows(tmp_path, "dpr", *(row(n, swapped=False) for n in range(count))).examples
    swapped = load_rows(tmp_path, "dpr", *(row(n, swapped=True) for n in reversed(range(count)))).examples
    assert [example.candidates for example in given] == [example.candidates for example in reversed(swapped)]
    first = sum(example.relevance[example.candidates[0].doc_id] for example in given)
    assert abs(first - count / 2) < 4 * (count / 4) ** 0.5  # four standard deviations of a fair coin


def test_dpr_training_rows_may_lack_lists_or_leave_them_empty(tmp_path: Path) -> None:
    some = {"question": "1?", "negative_ctxs": [], "hard_negative_ctxs": [{"text": "b"}], "positive_ctxs": None}
    retrieved = {**DPR, "positive_ctxs": [], "negative_ctxs": None}
    first, second = load_rows(tmp_path, "dpr", some, retrieved).examples
    assert list(first.relevance.values()) == [0]
    assert second.relevance == {"w1": 1, "w2": 0}


def test_flashrag_questions_come_with_their_corpus(tmp_path: Path) -> None:
    corpus = write(
        tmp_path / "corpus.jsonl",
        json_lines({"id": "0", "contents": '"Kelp"\nA seaweed.'}, {"id": "1", "contents": "No title\nhere."}),
    )
    dataset = load_rows(tmp_path, "dpr", FLASHRAG, corpus=corpus)
    assert only(dataset).answers == ("a seaweed",)
    assert dataset.corpus == (Document("0", "A seaweed.", "Kelp"), Document("1", "No title\nhere."))


def test_squad_makes_the_paragraph_the_labelled_candidate(tmp_path: Path) -> None:
    path = write(tmp_path / "squad.json", json.dumps(SQUAD, indent=1))
    first, second = load_examples(path, "squad").examples
    paragraph = Document(content_id("Kelp (plant)", "A seaweed."), "A seaweed.", "Kelp (plant)")
    assert first == Example(Query("s1", "What?"), (paragraph,), ("A seaweed",), {paragraph.doc_id: 1})
    assert second.candidates == (paragraph,)


FLAT_SQUAD = [
    {
        "id": question["id"],
        "title": SQUAD["data"][0]["title"],
        "context": paragraph["context"],
        "question": question["question"],
        "answers": {"text": [answer["text"] for answer in question["answers"]], "answer_start": [0]},
    }
    for paragraph in SQUAD["data"][0]["paragraphs"]
    for question in paragraph["qas"]
]


@pytest.mark.parametrize("rows", [SQUAD["data"], FLAT_SQUAD], ids=["articles", "flat"])
@pytest.mark.parametrize("as_array", [True, False], ids=["array", "lines"])
def test_squad_may_come_without_its_envelope(tmp_path: Path, rows: list[Any], as_array: bool) -> None:
    whole = load_examples(write(tmp_path / "squad.json", json.dumps(SQUAD)), "squad")
    text = json.dumps(rows, indent=2) if as_array else json_lines(*rows)
    found = load_examples(write(tmp_path / "other.json", text), "squad")
    assert found.examples == whole.examples
    assert [problem.found for problem in found.warnings] == [problem.found for problem in whole.warnings]


@pytest.mark.parametrize("row", [RANK_LLM_HITS, RANK_LLM_REQUEST], ids=["hits", "candidates"])
def test_rank_llm_reads_both_shapes_alike(tmp_path: Path, row: object) -> None:
    assert only(load_rows(tmp_path, "rank_llm", row)) == Example(
        Query("7", "what is kelp"),
        (Document("k", "A seaweed.", "Kelp"), Document("c", "Crabs walk.")),
        first_stage={"k": 2.0, "c": 1.0},
    )


def test_rank_llm_rows_need_no_scores(tmp_path: Path) -> None:
    hits = [{"content": text, "qid": 7, "docid": text, "score": None} for text in "ab"]
    del hits[1]["score"]
    assert only(load_rows(tmp_path, "rank_llm", {"query": "?", "hits": hits})).first_stage == {}


@pytest.mark.parametrize("row", [RANK_LLM_HITS, RANK_LLM_REQUEST], ids=["hits", "candidates"])
def test_rank_llm_rows_may_bring_answers(tmp_path: Path, row: dict[str, Any]) -> None:
    dataset = load_rows(tmp_path, "rank_llm", {**row, "answers": ["a seaweed", " "]}, need_answers=True)
    assert only(dataset).answers == ("a seaweed",)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.json.gz"])
@pytest.mark.parametrize("as_array", [True, False], ids=["array", "lines"])
def test_a_json_file_is_one_array_or_json_lines_whatever_its_name(tmp_path: Path, name: str, as_array: bool) -> None:
    rows = [HOTPOT_AS_LISTS, {**HOTPOT_AS_LISTS, "_id": "q2"}]
    text = json.dumps(rows, indent=2) if as_array else json_lines(*rows)
    packed = gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
    dataset = load_examples(write(tmp_path / name, packed), "hotpotqa")
    assert [example.query.query_id for example in dataset.examples] == ["q1", "q2"]
    assert dataset.name == "rows"


def test_a_byte_order_mark_and_other_line_separators_do_no_harm(tmp_path: Path) -> None:
    row = {"query_id": "q1", "question": "one\u2028two"}
    raw = b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + b"\r\n\r\n"
    assert load_examples(write(tmp_path / "a.jsonl", raw), "jsonl").examples[0].query.text == "one\u2028two"


# --- corpora and identity ---


def test_pooled_corpus_holds_every_passage_once_in_order_of_appearance(tmp_path: Path) -> None:
    other = {**HOTPOT_AS_LISTS, "_id": "q2", "context": [["Eel", ["Eels swim."]], ["Kelp", SENTENCES]]}
    dataset = load_rows(tmp_path, "hotpotqa", HOTPOT_AS_LISTS, other)
    assert [document.title for document in dataset.corpus] == ["Kelp", "Crab", "Eel"]
    assert dataset.examples[1].candidates[1] is dataset.examples[0].candidates[0]


def test_passages_without_ids_take_those_of_the_corpus(tmp_path: Path) -> None:
    rows = [{"id": 11, "title": "Kelp", "text": KELP.text}, {"id": 12, "title": "Eel", "text": "Eels swim."}]
    corpus = write(tmp_path / "corpus.jsonl", json_lines(*rows))
    dataset = load_rows(tmp_path, "hotpotqa", HOTPOT_AS_LISTS, corpus=corpus)
    assert dataset.corpus == (Document("11", KELP.text, "Kelp"), Document("12", "Eels swim.", "Eel"))
    assert [document.doc_id for document in dataset.examples[0].candidates] == ["11", CRAB.doc_id]
    assert dataset.examples[0].relevance == {"11": 1, CRAB.doc_id: 0}


def test_scores_and_order_follow_the_ids_of_the_corpus(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus.jsonl", json_lines({"id": 11, "title": "Kelp", "text": KELP.text}))
    given = {"title": "Kelp", "text": KELP.text, "score": 2.5}
    row = {"question": "?", "candidates": [given, {**given, "score": 1.0}], "order": [content_id("Kelp", KELP.text)]}
    (example,) = load_rows(tmp_path, "jsonl", row, corpus=corpus).examples
    assert (example.first_stage, example.order) == ({"11": 2.5}, ("11",))


def test_labels_that_all_miss_the_corpus_are_reported(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus.jsonl", json_lines(*CORPUS))
    (warning,) = load_rows(tmp_path, "hotpotqa", HOTPOT_AS_LISTS, corpus=corpus).warnings
    assert "is in the corpus" in warning.found


def test_corpus_may_be_two_columns_with_a_tab(tmp_path: Path) -> None:
    corpus = write(tmp_path / "collection.tsv", 'p1\t"Kelp" is a seaweed\np2\tCrabs walk\n')
    dataset = load_rows(tmp_path, "jsonl", {"question": "What?"}, corpus=corpus)
    assert dataset.corpus == (Document("p1", '"Kelp" is a seaweed'), Document("p2", "Crabs walk"))


# --- BEIR and TREC ---


def beir_files() -> dict[str, str]:
    queries = [{"_id": "q1", "text": "what is kelp"}, {"_id": "q2", "text": "what is a crab", "metadata": {}}]
    return {
        "corpus.jsonl": json_lines(*CORPUS),
        "queries.jsonl": json_lines(*queries),
        "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\tk\t2\nq1\tc\t0\n",
        "qrels/dev.tsv": "query-id\tcorpus-id\tscore\nq2\tc\t1\n",
    }


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    for name, text in beir_files().items():
        write(tmp_path / "sea" / name, text)
    return tmp_path / "sea"


def test_beir_folder_defaults_to_the_test_questions(beir: Path) -> None:
    dataset = load_examples(beir, "beir")
    assert only(dataset) == Example(Query("q1", "what is kelp"), relevance={"k": 2, "c": 0})
    assert dataset.corpus == (Document("k", "A seaweed.", "Kelp"), Document("c", "Crabs walk."))
    assert (dataset.name, dataset.unjudged) == ("sea", 1)


def test_beir_opens_in_every_wrapping(beir: Path, tmp_path: Path) -> None:
    expected = load_examples(beir, "beir")
    archive = tmp_path / "sea.zip"
    with zipfile.ZipFile(archive, "w") as pack:
        for name, text in beir_files().items():
            pack.writestr(f"sea/{name}", text)
    outer = tmp_path / "outer"
    with zipfile.ZipFile(archive) as pack:
        pack.extractall(outer)
    for path in (archive, outer, beir / "queries.jsonl"):
        assert load_examples(path, "beir").examples == expected.examples
        assert load_examples(path, "beir").corpus == expected.corpus


@pytest.mark.parametrize("qrels", ["dev", "FILE"])
def test_beir_split_is_named_by_split_or_by_file(beir: Path, qrels: str) -> None:
    chosen = beir / "qrels" / "dev.tsv" if qrels == "FILE" else qrels
    assert only(load_examples(beir, "beir", qrels=chosen)) == Example(Query("q2", "what is a crab"), relevance={"c": 1})


def test_beir_without_labels_keeps_all_questions(beir: Path) -> None:
    for split in ("test", "dev"):
        (beir / "qrels" / f"{split}.tsv").unlink()
    assert len(load_examples(beir, "beir").examples) == 2


@pytest.fixture
def trec(tmp_path: Path) -> Path:
    write(tmp_path / "first.run", "7 Q0 c 1 1.5 tag\n7 Q0 k 2 2.5 tag\n8 Q0 k 1 0.5 tag\n")
    write(tmp_path / "topics.txt", "7\twhat is kelp\n8\twhat is a crab\n9\tnever retrieved\n")
    write(tmp_path / "labels.qrels", "7 0 k 3\n7 0 x 0\n9 0 k 1\n")
    write(tmp_path / "passages.jsonl", json_lines(*CORPUS))
    return tmp_path


def test_trec_joins_run_topics_corpus_and_labels(trec: Path) -> None:
    write(trec / "labels.qrels", "7 0 k 3\n7 0 x 0\n")
    dataset = load_examples(trec / "first.run", "trec", qrels=trec / "labels.qrels", corpus=trec / "passages.jsonl")
    assert only(dataset) == Example(
        Query("7", "what is kelp"),
        (Document("k", "A seaweed.", "Kelp"), Document("c", "Crabs walk.")),  # the score decides, not the rank column
        relevance={"k": 3, "x": 0},
        first_stage={"k": 2.5, "c": 1.5},
    )
    assert dataset.unjudged == 1


def test_labelled_topics_that_the_run_lacks_are_told_of(trec: Path) -> None:
    """Left out unseen, they would change the mean of every metric."""
    dataset = load_examples(trec / "first.run", "trec", qrels=trec / "labels.qrels", corpus=trec / "passages.jsonl")
    assert [example.query.query_id for example in dataset.examples] == ["7"]
    (warning,) = dataset.warnings
    assert warning.file == str(trec / "topics.txt")
    run = trec / "first.run"
    assert warning.found == f"1 of 2 topics with labels, for example '9', have no usable line in the run '{run}'"


@pytest.mark.parametrize("need_candidates", [True, False])
def test_without_labels_the_run_chooses_the_topics_and_says_so(trec: Path, need_candidates: bool) -> None:
    dataset = load_examples(trec / "first.run", "trec", corpus=trec / "passages.jsonl", need_candidates=need_candidates)
    assert ([example.query.query_id for example in dataset.examples], dataset.skipped) == (["7", "8"], 0)
    (warning,) = dataset.warnings
    assert warning.file == str(trec / "topics.txt")
    assert f"1 of 3 topics, for example '9', have no usable line in the run '{trec / 'first.run'}'" == warning.found


def test_topics_may_be_a_file_of_our_own(trec: Path) -> None:
    """The questions that `retrieve --out x.run` was given serve as topics of that run."""
    write(trec / "mine.jsonl", '{"query_id": "7", "question": "what is kelp", "answers": ["a weed"]}\n')
    dataset = load_examples(trec / "first.run", "trec", corpus=trec / "passages.jsonl", topics=trec / "mine.jsonl")
    (example,) = dataset.examples
    assert (example.query.text, example.answers) == ("what is kelp", ("a weed",))
    assert example.candidates


def test_trec_topics_alone_are_questions_to_retrieve_for(trec: Path) -> None:
    dataset = load_examples(trec / "topics.txt", "trec", corpus=trec / "passages.jsonl")
    assert [example.query.query_id for example in dataset.examples] == ["7", "8", "9"]
    assert not any(example.candidates for example in dataset.examples)


def test_trec_topics_may_be_named_and_json_lines(trec: Path) -> None:
    topics = write(trec / "q.jsonl", json_lines({"_id": "8", "text": "what is a crab", "answers": ["a walker"]}))
    with_warning = load_examples(trec / "first.run", "trec", corpus=trec / "passages.jsonl", topics=topics)
    assert with_warning.examples[0].answers == ("a walker",)
    assert "1 of 2 queries, for example '7', have no topic" in with_warning.warnings[0].found


def test_a_run_with_topics_is_a_run_whatever_its_first_line_is(trec: Path) -> None:
    run = write(trec / "torn.run", "query_id Q0 doc_id rank score\n" + (trec / "first.run").read_text())
    given: dict[str, Any] = {"corpus": trec / "passages.jsonl", "topics": trec / "topics.txt"}
    with pytest.raises(DataError, match=r"torn\.run, line 1"):
        load_examples(run, "trec", **given)
    dataset = load_examples(run, "trec", on_bad_row="skip", **given)
    assert ([len(example.candidates) for example in dataset.examples], dataset.skipped) == ([2, 1], 1)


def test_a_corpus_may_be_loaded_already(trec: Path) -> None:
    corpus = load_examples(trec / "topics.txt", "trec", corpus=trec / "passages.jsonl").corpus
    (trec / "passages.jsonl").unlink()
    dataset = load_examples(trec / "first.run", "trec", corpus=corpus)
    assert [document.doc_id for document in dataset.examples[0].candidates] == ["k", "c"]
    assert dataset.corpus == corpus
    with pytest.raises(DataError, match="doc_id 'k' stands 2 times in the corpus given"):
        load_examples(trec / "first.run", "trec", corpus=[*corpus, Document("k", "Another.")])
    with pytest.raises(DataError, match="The corpus given has no document"):
        load_examples(trec / "first.run", "trec", corpus=[])


# --- writers ---

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)
ID = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)
DOCUMENTS = st.dictionaries(ID, st.tuples(TEXT, st.text(st.characters(codec="utf-8"), max_size=9)), max_size=4)
EXAMPLES = st.dictionaries(
    ID,
    st.tuples(
        TEXT,
        DOCUMENTS,
        st.lists(TEXT, unique=True, max_size=3),
        st.dictionaries(ID, st.integers(-2, 3)),
        st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=4, max_size=4),
    ),
    min_size=1,
    max_size=3,
)


@settings(deadline=None)
@given(EXAMPLES)
def test_written_examples_read_back_equal(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    examples = [
        Example(
            Query(query_id, question),
            tuple(Document(f"{query_id}-{doc_id}", *passage) for doc_id, passage in documents.items()),
            tuple(answers),
            relevance,
            {f"{query_id}-{doc_id}": score for doc_id, score in zip(documents, scores, strict=False)},
            tuple(reversed(documents)),
        )
        for query_id, (question, documents, answers, relevance, scores) in content.items()
    ]
    path = tmp_path_factory.mktemp("round") / "set.jsonl.gz"
    write_jsonl(path, examples)
    assert list(load_examples(path, "jsonl").examples) == examples


def test_a_score_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    """rank_llm's may be infinite, and our own reader would refuse it."""
    document = Document("d", "Text.")
    scores = {"d": math.inf}
    write_jsonl(tmp_path / "set.jsonl", [Example(Query("q", "?"), (document,), first_stage=scores)])
    assert load_examples(tmp_path / "set.jsonl", "jsonl").examples[0] == Example(Query("q", "?"), (document,))


SCORES = st.lists(st.floats(allow_nan=False), max_size=5)


@settings(deadline=None)
@given(st.dictionaries(ID, SCORES.filter(bool), min_size=1, max_size=3))
def test_a_written_run_reads_back_in_the_same_order(
    tmp_path_factory: pytest.TempPathFactory, scores: dict[str, list[float]]
) -> None:
    rankings = [Ranking(q, tuple(f"d{i}" for i in range(len(s))), tuple(s)) for q, s in scores.items()]
    path = tmp_path_factory.mktemp("run") / "x.run"
    write_trec_run(path, rankings)
    again = read_trec_run(path)
    assert [(r.query_id, r.doc_ids) for r in again] == [(r.query_id, r.doc_ids) for r in rankings]
    for before, after in zip(rankings, again, strict=True):
        falling = all(a > b for a, b in zip(before.scores, before.scores[1:], strict=False))
        assert after.scores == (before.scores if falling else tuple(float(n) for n in range(len(before.scores), 0, -1)))


def test_a_failed_write_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "x.run"
    write_trec_run(path, [Ranking("q", ("d",), (1.0,))])
    before = path.read_bytes()
    with pytest.raises(DataError, match="'two words' cannot stand in a TREC run"):
        write_trec_run(path, [Ranking("q", ("d",), (2.0,)), Ranking("q2", ("two words",), (1.0,))])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    file = write(tmp_path / "file", "x")
    with pytest.raises(StorageError, match="cannot be written"):
        write_jsonl(file / "set.jsonl", [])


def test_a_disk_that_fills_up_is_a_storage_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a write past it fails as on a full disk
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            write_jsonl(tmp_path / "set.jsonl", [Example(Query("q", "?" * 2000))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


# --- validation ---


def test_validation_counts_what_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unanswered = {**DPR, "id": "q2", "answers": ["plankton"]}
    path = write(tmp_path / "set.jsonl", json_lines({**DPR, "id": "q1"}, unanswered) + "{broken\n")
    with caplog.at_level(logging.CRITICAL):
        report = validate(path, "dpr")
    assert (report.questions, report.skipped, report.passages) == (2, 1, 2)
    assert (report.with_candidates, report.with_answers, report.with_labels) == (2, 2, 2)
    assert report.answerable_share == 1 / 2
    assert (report.candidates.smallest, report.candidates.largest) == (2, 2)
    assert (report.passage_words.smallest, report.passage_words.median) == (3, (3 + 4) / 2)  # title included
    assert report.problems[0].line == 3
    assert not report.ok
    assert json.loads(json.dumps(report.as_dict()))["skipped"] == 1


def test_validation_of_a_set_without_candidates_has_no_share(beir: Path) -> None:
    report = describe(load_examples(beir, "beir"))
    assert report.answerable_share is None
    assert report.ok
    assert report.labels_outside_corpus == 0


def test_validation_reports_an_unusable_set_instead_of_failing(tmp_path: Path) -> None:
    report = validate(write(tmp_path / "set.jsonl", json_lines({"wrong": 1})), "jsonl")
    assert (report.questions, report.skipped, report.ok) == (0, 1, False)
