"""Bad input: every fault has a name with file, line, value found, value wanted and next step."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from rankwright.data import load_examples, read_trec_run
from rankwright.errors import ConfigurationError, DataError, RankwrightError, ResourceNotFoundError
from rankwright.retrieval import BM25, with_candidates

GOOD = {"query_id": "good", "question": "What is kelp?", "answers": ["a seaweed"]}
CONTEXT = {"title": "Kelp", "text": "A seaweed."}
PAIR = [{"doc_id": "a", "text": "one"}, {"doc_id": "b", "text": "two"}]


def encoded(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def write(path: Path, *rows: Any) -> Path:
    path.write_bytes(encoded(*rows))
    return path


# format, the bad row, what the message must say
BAD_ROWS = [
    pytest.param("jsonl", b'{"question": "What', "broken JSON", id="broken line"),
    pytest.param("jsonl", b'{"question": "caf\xe9"}', "byte 0xe9 at column 18 is not UTF-8", id="latin-1"),
    pytest.param("jsonl", {"question": "\ud800"}, "surrogate", id="half of a surrogate pair"),
    pytest.param("jsonl", b'["a"]', "JSON object", id="no object"),
    pytest.param("jsonl", b"[" * 100_000, "cannot be read|broken JSON", id="nested too deep"),
    pytest.param("jsonl", b'{"question": ' + b"9" * 5000 + b"}", "cannot be read", id="number too long"),
    pytest.param("jsonl", {"query": "What?"}, "wanted field 'question'", id="question missing"),
    pytest.param("jsonl", {"question": " "}, "field 'question' is empty", id="question blank"),
    pytest.param("jsonl", {"question": 3}, r"field 'question' is 3 \(int\); wanted a string", id="question no text"),
    pytest.param("jsonl", GOOD, "query_id 'good' stands here and in line 1", id="query twice"),
    pytest.param("jsonl", {"query_id": "a b", "question": "?"}, "an id without white space", id="id with a space"),
    pytest.param("jsonl", {"query_id": True, "question": "?"}, "field 'query_id' is True", id="id no text"),
    pytest.param("jsonl", {"question": "?", "answers": [1]}, r"field 'answers' is 1 \(int\)", id="answer no text"),
    pytest.param("jsonl", {"question": "?", "candidates": []}, "candidate list 'candidates' .* empty", id="none"),
    pytest.param("jsonl", {"question": "?", "candidates": {}}, "wanted a list", id="candidates no list"),
    pytest.param("jsonl", {"question": "?", "candidates": [{"doc_id": "d"}]}, "field 'text'", id="passage no text"),
    pytest.param(
        "jsonl", {"question": "?", "candidates": [{"text": ""}]}, "neither title nor text", id="passage blank"
    ),
    pytest.param("jsonl", {"question": "?", "candidates": PAIR[:1] * 2}, "'a' stands twice", id="candidate twice"),
    *(
        pytest.param(
            "jsonl",
            {"question": "?", "candidates": [{"doc_id": "a", "text": "x", "score": score}]},
            "field 'score' of candidate 'a' is .*; wanted a finite number",
            id=f"score {name}",
        )
        for name, score in (("text", "1"), ("true", True), ("nan", float("nan")), ("endless", 10**400))
    ),
    pytest.param(
        "jsonl", {"question": "?", "order": ["a", "b", "a"]}, "'a' stands 2 times in field 'order'", id="order"
    ),
    pytest.param("jsonl", {"question": "?", "order": "a"}, "field 'order' is 'a'.*wanted a list", id="order no list"),
    pytest.param("jsonl", {"question": "?", "relevance": {"a": 0.5}}, "0.5; wanted a whole number", id="half a grade"),
    pytest.param("jsonl", {"question": "?", "relevance": ["a"]}, "wanted a JSON object", id="labels no object"),
    pytest.param("hotpotqa", {"question": "?", "answer": "x"}, "wanted an id in field '_id' or 'id'", id="id missing"),
    pytest.param(
        "hotpotqa",
        {"id": "h", "question": "?", "context": {"title": ["A", "B"], "sentences": [["a"]]}},
        "2 titles and 1 sentence lists",
        id="ragged context",
    ),
    pytest.param("hotpotqa", {"id": "h", "question": "?", "context": ["A"]}, r"\[title, sentences\]", id="no pairs"),
    pytest.param(
        "hotpotqa", {"id": "h", "question": "?", "context": [["A", "a"]]}, "a list of sentences", id="no sentences"
    ),
    pytest.param("hotpotqa", {"id": "h", "question": "?", "context": []}, "candidate list 'context'", id="no context"),
    pytest.param(
        "hotpotqa",
        {"id": "h", "question": "?", "context": [["A", ["a"]]], "supporting_facts": ["A"]},
        r"\[title, sentence number\]",
        id="evidence no pairs",
    ),
    pytest.param("musique", {"id": "m", "question": "?", "answerable": False}, "unanswerable", id="musique no answer"),
    pytest.param("musique", {"id": "m", "question": "?", "paragraphs": [{"title": "A"}]}, "paragraph_text", id="bare"),
    pytest.param("dpr", {"question": "?", "ctxs": []}, "candidate list 'ctxs' .* is empty", id="no ctxs"),
    pytest.param("dpr", {"question": "?", "ctxs": ["a"]}, "wanted a JSON object", id="ctxs no objects"),
    pytest.param("dpr", {"question": "?", "ctxs": [{**CONTEXT, "isgold": "no"}]}, "true or false", id="isgold text"),
    pytest.param("dpr", {"question": "?", "positive_ctxs": []}, "'positive_ctxs' .* is empty", id="no training ctxs"),
    pytest.param(
        "dpr", {"question": "?", "negative_ctxs": ["a"]}, "of field 'negative_ctxs' is 'a'", id="bare strings"
    ),
    pytest.param(
        "dpr",
        {"question": "?", "ctxs": [CONTEXT], "positive_ctxs": [CONTEXT]},
        "passages in 'ctxs' and in 'positive_ctxs'; wanted retrieval results",
        id="retrieved and labelled",
    ),
    pytest.param(
        "rank_llm",
        {"query": "?", "hits": [{"qid": 1, "docid": "a", "content": "x"}], "answers": [1]},
        r"field 'answers' is 1 \(int\)",
        id="rank_llm answer no text",
    ),
    pytest.param("rank_llm", {"question": "?"}, "{query, hits", id="not rank_llm"),
    pytest.param("rank_llm", {"query": "?", "hits": []}, "candidate list 'hits' of query", id="no hits"),
    pytest.param(
        "rank_llm",
        {"query": "?", "hits": [{"qid": 1, "docid": "a", "content": "x"}, {"qid": 2, "docid": "b", "content": "y"}]},
        r"carry the ids \['1', '2'\]",
        id="two queries in one",
    ),
    pytest.param(
        "rank_llm",
        {"query": "?", "hits": [{"qid": 1, "docid": "a", "content": "x", "rank": "first"}]},
        "field 'rank' is 'first'; wanted a number",
        id="rank no number",
    ),
    *(
        pytest.param(
            "rank_llm",
            {"query": {"qid": "1", "text": "?"}, "candidates": [{"docid": "a", "doc": "x", "score": score}]},
            r"field 'score' is .*; wanted a number to sort by",
            id=f"score {name}",
        )
        for name, score in (("text", "1.5"), ("true", True), ("nan", float("nan")), ("endless", 10**400))
    ),
    pytest.param(
        "rank_llm", {"query": {"qid": "1", "text": "?"}, "candidates": []}, "'candidates' .* is empty", id="none ranked"
    ),
]
GOOD_ROWS: dict[str, dict[str, Any]] = {
    "jsonl": GOOD,
    "hotpotqa": {"id": "good", "question": "What?", "answer": "x", "context": [["Kelp", ["A seaweed."]], ["A", ["b"]]]},
    "musique": {
        "id": "good",
        "question": "What?",
        "answer": "x",
        "paragraphs": [{"title": "K", "paragraph_text": t} for t in "ab"],
    },
    "dpr": {"id": "good", "question": "What?", "answers": ["x"], "ctxs": [CONTEXT, {**CONTEXT, "title": "B"}]},
    "rank_llm": {"query": {"qid": "good", "text": "What?"}, "candidates": [{"docid": d, "doc": d} for d in "ab"]},
}


@pytest.mark.parametrize(("format", "bad", "said"), BAD_ROWS)
def test_a_bad_row_stops_the_load_with_its_place(tmp_path: Path, format: str, bad: Any, said: str) -> None:
    path = write(tmp_path / "set.jsonl", GOOD_ROWS[format], b"", bad)
    with pytest.raises(DataError, match=said) as caught:
        load_examples(path, format)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert "; wanted " in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(("format", "bad", "said"), BAD_ROWS)
def test_skipping_leaves_a_bad_row_out_and_counts_it(tmp_path: Path, format: str, bad: Any, said: str) -> None:
    last = json.loads(json.dumps(GOOD_ROWS[format]).replace('"good"', '"later"'))
    dataset = load_examples(write(tmp_path / "set.jsonl", GOOD_ROWS[format], bad, last), format, on_bad_row="skip")
    assert [example.query.query_id for example in dataset.examples] == ["good", "later"]
    assert (dataset.skipped, [problem.line for problem in dataset.problems]) == (1, [2])


def test_skipping_says_how_many_and_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "set.jsonl", GOOD, b"{", b"{")
    load_examples(path, "jsonl", on_bad_row="skip")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"2 bad row(s) skipped; the first: {path}, line 2: broken JSON")


def test_rows_of_an_array_are_named_by_the_line_where_they_begin(tmp_path: Path) -> None:
    text = "[\n" + json.dumps(GOOD, indent=1) + ",\n" + '  {"question": 1}\n]'
    path = tmp_path / "set.json"
    path.write_text(text)
    with pytest.raises(DataError, match=f"line {text[: text.index('1}')].count(chr(10)) + 1}: field 'question' is 1"):
        load_examples(path, "jsonl")
    assert load_examples(path, "jsonl", on_bad_row="skip").skipped == 1


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize(
    "text", ['[{"question": "a"}', '[{"question": "a"} {"question": "b"}]', '[{"question": "a"}] x', '[{"question": ]']
)
def test_a_broken_array_cannot_be_skipped_over(tmp_path: Path, text: str, on_bad_row: str) -> None:
    path = tmp_path / "set.json"
    path.write_text("\n" + text)
    with pytest.raises(DataError, match="line 2: broken JSON"):
        load_examples(path, "jsonl", on_bad_row=on_bad_row)


# --- what must hold across rows ---


@pytest.mark.parametrize("second", [{"text": "three"}, {"text": "one", "title": "Other"}], ids=["text", "title"])
def test_one_id_for_two_passages_is_refused(tmp_path: Path, second: dict[str, str]) -> None:
    rows = [
        {"query_id": "1", "question": "?", "candidates": PAIR},
        {"query_id": "2", "question": "?", "candidates": [{"doc_id": "a", **second}]},
    ]
    path = write(tmp_path / "set.jsonl", *rows)
    with pytest.raises(DataError, match=r"line 2: doc_id 'a' is .* here and 'one' .*elsewhere; wanted one id"):
        load_examples(path, "jsonl")
    dataset = load_examples(path, "jsonl", on_bad_row="skip")
    assert [document.doc_id for document in dataset.corpus] == ["a", "b"]
    with pytest.raises(DataError, match="doc_id 'a'"):
        load_examples(write(tmp_path / "last.jsonl", rows[1]), "jsonl", corpus=write(tmp_path / "c.jsonl", *PAIR))


def test_answers_are_required_only_where_a_reader_is_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", GOOD, {"query_id": "mute", "question": "?", "answers": [" "]})
    assert load_examples(path, "jsonl").examples[1].answers == ()
    with pytest.raises(DataError, match="line 2: question 'mute' has no answer; wanted at least one"):
        load_examples(path, "jsonl", need_answers=True)
    assert load_examples(path, "jsonl", need_answers=True, on_bad_row="skip").skipped == 1


def test_an_empty_candidate_list_is_fine_where_a_corpus_can_fill_it(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", {"question": "?", "candidates": []})
    assert load_examples(path, "jsonl", corpus=write(tmp_path / "c.jsonl", *PAIR)).examples[0].candidates == ()


def test_unknown_fields_give_one_warning_and_the_rows_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "set.jsonl", GOOD, *({"question": f"{n}?", "anwsers": ["x"], "z": 1} for n in range(3)))
    dataset = load_examples(path, "jsonl")
    assert len(dataset.examples) == 4
    assert [record.getMessage() for record in caplog.records] == [str(warning) for warning in dataset.warnings]
    (warning,) = dataset.warnings
    assert (warning.line, warning.found) == (2, "unknown field(s) 'anwsers', 'z'")


HOPPED = {"_id": "q", "question": "What?", "answer": "x", "context": {"title": ["T"], "sentences": [["s"]], "a": 1}}
STEP = {"idx": 0, "title": "T", "paragraph_text": "p", "is_suporting": True}


@pytest.mark.parametrize(
    ("format", "row", "names"),
    [
        ("jsonl", {"question": "?", "candidates": [{"text": "a", "titel": "A"}, {"text": "b", "score": 1}]},
         "'candidates.titel'"),
        ("dpr", {"question": "?", "answers": ["a"], "ctxs": [{"text": "a", "titel": "A", "hasanswer": True}]},
         "'ctxs.titel'"),
        ("dpr", {"question": "?", "answers": ["a"], "positive_ctxs": [{"text": "a", "isgold": False, "psg_id": "1"}]},
         "'positive_ctxs.isgold'"),
        ("hotpotqa", HOPPED, "'context.a'"),
        ("musique", {"id": "q", "question": "?", "answer": "x", "paragraphs": [STEP]}, "'paragraphs.is_suporting'"),
        ("rank_llm", {"query": "?", "hits": [{"qid": 1, "docid": 2, "content": "c", "titel": "A"}]}, "'hits.titel'"),
        ("rank_llm", {"query": {"text": "?", "qid": 1, "x": 1}, "candidates": [{"docid": 2, "doc": "c", "rang": 1}]},
         "'candidates.rang', 'query.x'"),
        ("squad", {"data": [{"titel": "T", "paragraphs": [{"context": "c", "kontext": "", "qas": [
            {"id": "q", "question": "?", "answers": [{"text": "c", "start": 0}]}]}]}], "versoin": 1},
         "'answers.start', 'kontext', 'titel', 'versoin'"),
        ("squad", {"titel": "T", "paragraphs": [{"context": "c", "qas": [{"id": "q", "question": "?", "x": 1}]}]},
         "'titel', 'x'"),
    ],
)  # fmt: skip
def test_unknown_fields_of_objects_inside_a_row_are_named_too(
    tmp_path: Path, format: str, row: dict[str, Any], names: str
) -> None:
    dataset = load_examples(write(tmp_path / "set.jsonl", row), format)
    found = [warning.found for warning in dataset.warnings if "unknown" in warning.found]
    assert (len(dataset.examples), found) == (1, [f"unknown field(s) {names}"])


def test_passages_of_questions_that_the_labels_do_not_know_are_pooled_too(tmp_path: Path) -> None:
    """The question's passage stands in the row of another one, which is not judged and has no answer."""
    rows = [
        {"query_id": "q1", "question": "kelp?", "answers": ["cold"], "candidates": [{"doc_id": "a", "text": "a crab"}]},
        {"query_id": "q2", "question": "crab?", "candidates": [{"doc_id": "b", "text": "kelp likes it cold"}]},
    ]
    (tmp_path / "qrels.txt").write_text("q1 0 b 1\n")
    path = write(tmp_path / "set.jsonl", *rows)
    dataset = load_examples(path, "jsonl", qrels=tmp_path / "qrels.txt", need_answers=True)
    assert [example.query.query_id for example in dataset.examples] == ["q1"]
    assert ([document.doc_id for document in dataset.corpus], dataset.unjudged) == (["a", "b"], 1)
    (found,) = with_candidates(dataset.examples, BM25(dataset.corpus), 2)
    assert found.candidates[0].doc_id == "b"


def test_a_corpus_of_one_passage_works_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = load_examples(write(tmp_path / "s.jsonl", GOOD), "jsonl", corpus=write(tmp_path / "c.jsonl", PAIR[0]))
    assert len(dataset.corpus) == 1
    assert "the corpus holds one passage" in caplog.text


# --- whole files ---


@pytest.mark.parametrize("content", [b"", b" \n\n", gzip.compress(b"")], ids=["nothing", "blank", "gzip of nothing"])
@pytest.mark.parametrize("format", ["jsonl", "hotpotqa", "musique", "dpr", "squad", "rank_llm", "trec"])
def test_an_empty_file_is_named(tmp_path: Path, format: str, content: bytes) -> None:
    path = tmp_path / "set.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.json: the file is empty; wanted at least one row"):
        load_examples(path, format)


@pytest.mark.parametrize("format", ["jsonl", "squad", "beir", "trec"])
def test_a_missing_file_is_named_with_the_closest_name(tmp_path: Path, format: str) -> None:
    write(tmp_path / "questions.jsonl", GOOD)
    with pytest.raises(ResourceNotFoundError, match=r"question\.jsonl' does not exist.*'questions\.jsonl'") as caught:
        load_examples(tmp_path / "question.jsonl", format, corpus=write(tmp_path / "c.jsonl", *PAIR))
    assert isinstance(caught.value, FileNotFoundError)


def test_labels_that_begin_with_a_line_of_odd_blanks(tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("\u00a0\ngood 0 b 1\n", "utf-8")
    with pytest.raises(DataError, match=r"qrels\.txt, line 1"):
        load_examples(write(tmp_path / "s.jsonl", GOOD), "jsonl", qrels=qrels)


@pytest.mark.parametrize("side", ["corpus", "qrels"])
def test_missing_side_files_are_named(tmp_path: Path, side: str) -> None:
    side_file: dict[str, Any] = {side: tmp_path / "no" / "file"}
    with pytest.raises(ResourceNotFoundError, match=r"Its folder .* does not exist either"):
        load_examples(write(tmp_path / "s.jsonl", GOOD), "jsonl", **side_file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(encoded(GOOD) * 500)[:40], "breaks off or is damaged"),
        ("\n".join(map(json.dumps, [GOOD])).encode("utf-16"), "UTF-16 byte order mark; wanted UTF-8"),
        (b"PK\x03\x04....", "a zip archive; wanted a file of rows"),
    ],
    ids=["cut gzip", "utf-16", "zip"],
)
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_damaged_file_is_named_even_where_rows_are_skipped(
    tmp_path: Path, content: bytes, said: str, on_bad_row: str
) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_examples(path, "jsonl", on_bad_row=on_bad_row)


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a folder; wanted a file"):
        load_examples(tmp_path, "jsonl")


def test_a_whole_file_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_bytes(b'[\n{"question": "caf\xe9"}]')
    with pytest.raises(
        DataError, match=r"line 2: byte 0xe9 at column 18 is not UTF-8; wanted UTF-8\. Convert the file"
    ):
        load_examples(path, "jsonl")


def test_no_usable_row_is_an_error_even_where_rows_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", {"wrong": 1}, {"wrong": 2})
    with pytest.raises(DataError, match=r"no usable question, 2 bad row\(s\) skipped \(the first: .*line 1"):
        load_examples(path, "jsonl", on_bad_row="skip")


def test_labels_of_other_questions_are_an_error(tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("other 0 d 1\n")
    with pytest.raises(DataError, match="no question with relevance labels, 1 without"):
        load_examples(write(tmp_path / "s.jsonl", GOOD), "jsonl", qrels=qrels)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "hotpot"}, "Format 'hotpot' is unknown; wanted one of jsonl, .* Did you mean 'hotpotqa'?"),
        ({"on_bad_row": "ignore"}, "on_bad_row is 'ignore'; wanted 'error' or 'skip'"),
        ({"topics": "topics.txt"}, "topics were given with format jsonl"),
    ],
    ids=["format", "on_bad_row", "topics"],
)
def test_wrong_options_are_configuration_errors(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load_examples(write(tmp_path / "s.jsonl", GOOD), **{"format": "jsonl", **options})


# --- SQuAD's envelope, corpora, labels, runs ---


def test_unanswerable_squad_questions_are_named_with_their_line(tmp_path: Path) -> None:
    questions = [
        {"id": "yes", "question": "What?", "answers": [{"text": "kelp"}], "is_impossible": False},
        {"id": "no", "question": "Why?", "answers": [], "plausible_answers": [{"text": "x"}], "is_impossible": True},
    ]
    text = json.dumps({"data": [{"title": "T", "paragraphs": [{"context": "kelp", "qas": questions}]}]}, indent=1)
    path = tmp_path / "dev.json"
    path.write_text(text)
    line = text[: text.index('"no"')].count("\n")  # its object begins in the line before its id
    with pytest.raises(DataError, match=f"line {line}: question 'no' is marked unanswerable"):
        load_examples(path, "squad")
    dataset = load_examples(path, "squad", on_bad_row="skip")
    assert ([example.query.query_id for example in dataset.examples], dataset.skipped) == (["yes"], 1)


def test_lines_of_squad_outlive_bad_parts_and_other_ids(tmp_path: Path) -> None:
    """Neither a paragraph that is rejected, nor an id of something else, nor a brace in a text moves or hides lines."""
    text = r"""{"data": [
 {"title": "T", "id": 1, "paragraphs": [
  {"qas": [{"id": "lost", "question": "?"}]},
  {"context": "kelp } \" { \"id\": \\", "id": 2,
   "qas": [
    {"id": "a", "question": "What?", "answers": [{"id": 3, "text": "kelp"}]},
    {"question": "Which?"},
    {"id": "b", "question": " "},
    {"id": "c", "question": "Why?"}]}]},
 {"title": 3},
 {"paragraphs": [{"context": "crab", "qas": [
    "what?",
    {"id": "a", "question": "Twice?"}]}]}]}
"""
    path = tmp_path / "dev.json"
    path.write_text(text)
    dataset = load_examples(path, "squad", on_bad_row="skip")
    assert [example.query.query_id for example in dataset.examples] == ["a", "c"]
    assert [(problem.line, problem.found.split(";")[0][:30]) for problem in dataset.problems] == [
        (3, "article 1, paragraph 1: no suc"),
        (7, "no id in fields ['question']"),
        (8, "field 'question' is empty"),
        (10, "article 2: field 'title' is 3 "),
        (11, "question is 'what?' (str)"),
        (13, "query_id 'a' stands here and i"),
    ]
    assert "in line 6" in dataset.problems[-1].found


def test_bad_rows_of_squad_without_envelope_are_named_or_skipped(tmp_path: Path) -> None:
    article = {
        "title": "T",
        "paragraphs": [{"context": "kelp", "qas": [{"id": "a", "question": "What?"}, {"id": "b"}]}],
    }
    flat = {"id": "c", "title": "T", "context": "kelp", "question": "Why?", "answers": {"text": [], "answer_start": []}}
    path = write(tmp_path / "dev.jsonl", article, flat, {"id": "d"}, {**flat, "id": "e", "answers": {"text": ["kelp"]}})
    dataset = load_examples(path, "squad", on_bad_row="skip")
    assert [example.query.query_id for example in dataset.examples] == ["a", "e"]
    assert [(problem.line, problem.found[:20]) for problem in dataset.problems] == [
        (1, "no such field in ['i"),
        (2, "question 'c' is mark"),
        (3, "no such field in ['i"),
    ]
    with pytest.raises(DataError, match=r"dev.jsonl, line 1: no such field"):
        load_examples(path, "squad")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "no question; wanted at least one"),
        ('{"dato": []}', "without the list 'data'; wanted .* or flat rows"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', "article 1, paragraph 1: no such .* wanted field 'context'"),
        ('{"data": [3]}', "article 1: an article is 3"),
        ('{"data": ', "broken JSON"),
    ],
)
def test_a_broken_squad_envelope_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "dev.json"
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        load_examples(path, "squad", on_bad_row="skip")


def test_a_bad_article_or_paragraph_of_squad_is_named_by_its_place_or_skipped(tmp_path: Path) -> None:
    def asked(name: str) -> dict[str, Any]:
        return {"context": f"all about {name}", "qas": [{"id": name, "question": "What?", "answers": []}]}

    articles = [
        {"title": "T", "paragraphs": [asked("a"), {"qas": []}, asked("b"), "text"]},
        7,
        {"title": 3, "paragraphs": [asked("lost")]},
        {"title": "U", "paragraphs": [{**asked("c"), "qas": ["what?", *asked("c")["qas"]]}]},
    ]
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"data": articles}))
    dataset = load_examples(path, "squad", on_bad_row="skip")
    assert [example.query.query_id for example in dataset.examples] == ["a", "b", "c"]
    places = ["article 1, paragraph 2", "article 1, paragraph 4", "article 2", "article 3", "question is 'what?' (str)"]
    assert [problem.found.split(": ")[0] for problem in dataset.problems] == places
    with pytest.raises(
        DataError, match=r"json, line 1: article 1, paragraph 2: no such field .* wanted field 'context'"
    ):
        load_examples(path, "squad")
    (tmp_path / "dev.jsonl").write_text(json.dumps(articles[0]) + "\n")
    with pytest.raises(DataError, match=r"dev.jsonl, line 1: article, paragraph 2: no such field"):
        load_examples(tmp_path / "dev.jsonl", "squad")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([PAIR[0], PAIR[0]], "line 2: doc_id 'a' stands twice in the corpus"),
        ([PAIR[0], {"doc_id": "a", "text": "other"}], "line 2: doc_id 'a' stands twice in the corpus"),
        ([b"a\tone", b"b two"], r"line 2: 'b two' has 1 column\(s\)"),
        ([b"a\tone", b"b\ttwo\tTitle"], r"line 2: .* has 3 column\(s\)"),
    ],
    ids=["same", "other", "no tab", "three columns"],
)
def test_bad_corpus_rows_are_named_and_counted(tmp_path: Path, rows: list[Any], said: str) -> None:
    path, corpus = write(tmp_path / "s.jsonl", GOOD), write(tmp_path / "corpus", *rows)
    with pytest.raises(DataError, match=said):
        load_examples(path, "jsonl", corpus=corpus)
    assert load_examples(path, "jsonl", corpus=corpus, on_bad_row="skip").skipped == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("good 0 a", "whole number"),
        ("good 0 a 1 2", r"5 column\(s\)"),
        ("good 0 b 2", "grade 2 for query 'good' and 1 before"),
    ],
)
def test_bad_label_lines_are_named(tmp_path: Path, line: str, said: str) -> None:
    qrels = tmp_path / "qrels.txt"
    qrels.write_text(f"good 0 b 1\n{line}\n")
    path = write(tmp_path / "s.jsonl", GOOD)
    with pytest.raises(DataError, match=rf"qrels\.txt, line 2: .*{said}"):
        load_examples(path, "jsonl", qrels=qrels)
    assert load_examples(path, "jsonl", qrels=qrels, on_bad_row="skip").examples[0].relevance == {"b": 1}


RUN = "q Q0 a 1 2.0 t\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("q Q0 b 2", r"4 column\(s\); wanted six columns"),
        ("q Q0 b second 1.0 t", "rank 'second' and score '1.0'; wanted a whole number and a number"),
        ("q Q0 b 2 nan t", "the score of 'b' is not a number"),
        ("q Q0 a 2 1.0 t", "doc_id 'a' stands twice for query 'q'"),
        ("q Q0 z 2 1.0 t", "doc_id 'z' of query 'q' is not in the corpus; wanted one of its 2 passages"),
    ],
)
def test_bad_run_lines_are_named(tmp_path: Path, line: str, said: str) -> None:
    run = tmp_path / "first.run"
    run.write_text(f"{RUN}{line}\n")
    (tmp_path / "topics.txt").write_text("q\twhat is kelp\n")
    corpus = write(tmp_path / "c.jsonl", *PAIR)
    with pytest.raises(DataError, match=rf"first\.run, line 2: .*{said}"):
        load_examples(run, "trec", corpus=corpus)
    if " z " not in line:  # without a corpus any doc_id will do
        with pytest.raises(DataError, match=said):
            read_trec_run(run)
    dataset = load_examples(run, "trec", corpus=corpus, on_bad_row="skip")
    assert ([document.doc_id for document in dataset.examples[0].candidates], dataset.skipped) == (["a"], 1)


def test_a_run_needs_a_corpus_and_topics(tmp_path: Path) -> None:
    run = tmp_path / "first.run"
    run.write_text(RUN)
    with pytest.raises(ConfigurationError, match="found none in its folder, wanted one file topics"):
        load_examples(run, "trec", corpus=write(tmp_path / "c.jsonl", *PAIR))
    (tmp_path / "topics.txt").write_text("q\twhat is kelp\nno tab here\n")
    with pytest.raises(ConfigurationError, match="no corpus was given"):
        load_examples(run, "trec")
    with pytest.raises(DataError, match=r"topics\.txt, line 2: 'no tab here' is no topic"):
        load_examples(run, "trec", corpus=tmp_path / "c.jsonl")


def test_topics_twice_are_named(tmp_path: Path) -> None:
    path = tmp_path / "topics.txt"
    path.write_text("q\twhat is kelp\nq\twhat is a crab\n")
    with pytest.raises(DataError, match="line 2: query_id 'q' stands here and in line 1"):
        load_examples(path, "trec", corpus=write(tmp_path / "c.jsonl", *PAIR))


def test_a_question_twice_without_ids_is_named_by_its_words(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"question": "what is kelp"}, {"question": "what is kelp"})
    with pytest.raises(
        DataError, match=r"line 2: the question 'what is kelp' stands here and in line 1.*query_id of its"
    ):
        load_examples(path, "jsonl")


def test_an_incomplete_beir_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no queries\.jsonl; wanted the folder of one BEIR set"):
        load_examples(tmp_path, "beir")
    write(tmp_path / "queries.jsonl", {"_id": "q", "text": "?"})
    with pytest.raises(DataError, match=r"no corpus\.jsonl; wanted the passages"):
        load_examples(tmp_path, "beir")
    write(tmp_path / "corpus.jsonl", *PAIR)
    (tmp_path / "qrels").mkdir()
    for split in ("dev", "train"):
        (tmp_path / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\n")
    with pytest.raises(ConfigurationError, match="has the splits dev, train and no test"):
        load_examples(tmp_path, "beir")
    with pytest.raises(ResourceNotFoundError, match="'tets' does not exist"):
        load_examples(tmp_path, "beir", qrels="tets")


def test_every_error_is_one_of_ours_with_its_exit_code() -> None:
    assert issubclass(DataError, RankwrightError)
    assert (DataError.exit_code, ResourceNotFoundError.exit_code, ConfigurationError.exit_code) == (5, 4, 2)


@pytest.mark.parametrize(
    ("fields", "likely"),
    [({"context": [], "supporting_facts": []}, "hotpotqa"), ({"ctxs": []}, "dpr"), ({"context": []}, "")],
)
def test_rows_of_another_format_are_told_which_it_is(tmp_path: Path, fields: dict[str, Any], likely: str) -> None:
    row = {"question": "?", "answers": ["c"], **fields}
    (warning,) = load_examples(write(tmp_path / "set.jsonl", row), "jsonl").warnings
    assert ("of the format" in warning.next_step) == bool(likely)
    assert not likely or warning.next_step.endswith(f"--format {likely}.")
