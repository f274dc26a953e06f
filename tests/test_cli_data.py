"""`rankwright retrieve` and `rankwright validate`."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankwright.cli.app import run
from rankwright.data import load_examples, read_trec_run
from rankwright.retrieval import BM25
from rankwright.types import Query
from tests.cli_kit import DOORS, QUESTIONS, one_line, rows, write_rows


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Questions and answers without candidates; corpus.jsonl lies beside them."""
    write_rows(tmp_path / "corpus.jsonl", [passage for row in rows() for passage in row["candidates"]])
    bare = [{name: row[name] for name in row if name != "candidates"} for row in rows()]
    return write_rows(tmp_path / "doors.jsonl", bare)


def corpus_of(questions: Path) -> list[str]:
    return ["--corpus", str(questions.with_name("corpus.jsonl"))]


# --- retrieve ----------------------------------------------------------------------------------------------------


def test_candidates_are_written_with_all_that_is_known(questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = questions.with_name("out.jsonl.gz")
    arguments = ["retrieve", "--data", str(questions), *corpus_of(questions), "--depth", "5", "--out", str(out)]
    assert run([*arguments, "--output", "json"]) == 0
    expected = {"set": "doors", "questions": QUESTIONS, "skipped": 0, "passages": 3 * QUESTIONS, "depth": 5}
    assert one_line(capsys.readouterr().out).items() >= expected.items()
    found = load_examples(out, "jsonl").examples
    source = load_examples(questions, "jsonl", corpus=questions.with_name("corpus.jsonl"))
    index = BM25(source.corpus)
    retrieved = index.retrieve_with_scores([e.query for e in source.examples], 5)
    assert [e.candidates for e in found] == [tuple(document for document, _ in row) for row in retrieved]
    assert [e.first_stage for e in found] == [{d.doc_id: score for d, score in row} for row in retrieved]
    assert [(e.query, e.answers, e.relevance) for e in found] == [
        (e.query, e.answers, e.relevance) for e in source.examples
    ]


def test_a_run_holds_the_scores(questions: Path) -> None:
    out = questions.with_name("out.run")
    assert run(["retrieve", "--data", str(questions), *corpus_of(questions), "--depth", "2", "--out", str(out)]) == 0
    found = read_trec_run(out)
    assert [(r.query_id, r.doc_ids[0], len(r.doc_ids)) for r in found] == [(f"q{d}", f"key-{d}", 2) for d in DOORS]
    index = BM25(load_examples(questions, "jsonl", corpus=questions.with_name("corpus.jsonl")).corpus)
    (row,) = index.retrieve_with_scores([Query("q10", "What is the key of door 10?")], 2)
    assert found[0].scores == tuple(score for _, score in row)


def test_a_saved_index_gives_the_same_candidates(questions: Path) -> None:
    first, second = questions.with_name("a.run"), questions.with_name("b.run")
    index = str(questions.with_name("index"))
    assert (
        run(["retrieve", "--data", str(questions), *corpus_of(questions), "--out", str(first), "--save-index", index])
        == 0
    )
    assert run(["retrieve", "--data", str(questions), "--index", index, "--out", str(second)]) == 0
    assert first.read_text("utf-8") == second.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--out", "x.csv"], 2, "--out is 'x.csv'; wanted a name that ends in .jsonl"),
        ([], 2, "Neither --out nor --save-index"),
        (["--index", "i", "--corpus", "c", "--out", "x.run"], 2, "--index i was given beside"),
        (["--index", "i", "--out", "x.run"], 4, "holds no BM25 index"),
        (["--out", "x.run"], 5, "The corpus for BM25 is empty"),
        (["--depth", "0", "--out", "x.run"], 2, "--depth"),
    ],
)
def test_retrieve_names_what_is_wrong(
    questions: Path,
    arguments: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(questions.parent)
    assert run(["retrieve", "--data", str(questions), *arguments]) == code
    captured = capsys.readouterr()
    assert (captured.out, message in captured.err) == ("", True), captured.err


def test_a_part_of_a_beir_set_is_named_and_the_rest_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beir = tmp_path / "set"
    (beir / "qrels").mkdir(parents=True)
    write_rows(beir / "corpus.jsonl", [passage for row in rows() for passage in row["candidates"]])
    write_rows(beir / "queries.jsonl", [{"_id": row["query_id"], "text": row["question"]} for row in rows()])
    for split, door in (("train", DOORS[0]), ("test", DOORS[1])):
        (beir / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\nq{door}\tkey-{door}\t1\n", "utf-8")
    arguments = ["retrieve", "--data", str(beir), "--format", "beir", "--out", str(tmp_path / "x.run")]
    found = []
    for part, door in (([], DOORS[1]), (["--qrels", "train"], DOORS[0])):
        assert run([*arguments, *part, "--output", "json"]) == 0
        found.append(one_line(capsys.readouterr().out))
        assert (tmp_path / "x.run").read_text().split()[0] == f"q{door}"
    assert [(row["questions"], row["unjudged"]) for row in found] == [(1, len(DOORS) - 1)] * 2


# --- validate ----------------------------------------------------------------------------------------------------


def test_a_good_file_is_described(questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", str(questions), *corpus_of(questions), "--output", "json"]) == 0
    expected = {
        "ok": True,
        "unchecked": "",
        "questions": QUESTIONS,
        "passages": 3 * QUESTIONS,
        "with_answers": QUESTIONS,
        "problems": [],
    }
    assert one_line(capsys.readouterr().out).items() >= expected.items()
    assert run(["validate", str(questions), *corpus_of(questions)]) == 0
    text = capsys.readouterr().out
    assert "No problems." in text
    assert str(3 * QUESTIONS) in text


def test_what_could_not_be_checked_is_said(questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", str(questions)]) == 0
    assert "No problems in the questions. There are no passages: they could not be" in capsys.readouterr().out
    assert run(["validate", str(questions), "--output", "json"]) == 0
    assert one_line(capsys.readouterr().out)["unchecked"].endswith("Give --corpus FILE.")


def bad_rows(path: Path, count: int) -> Path:
    return write_rows(
        path, [*rows(), *({"question": f"number {i}", "answers": 5} for i in range(count)), {"answers": "x"}]
    )


def test_problems_are_listed_with_their_lines_and_end_with_5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    file = bad_rows(tmp_path / "bad.jsonl", 2)
    assert run(["validate", str(file)]) == 5
    text = capsys.readouterr().out
    assert "3 problems:" in text
    for line in (QUESTIONS + 1, QUESTIONS + 2, QUESTIONS + 3):
        assert f"{file}, line {line}: " in text
    assert caplog.text == ""  # said once, on standard output
    assert run(["validate", str(file), "--output", "json"]) == 5
    found = one_line(capsys.readouterr().out)
    assert (found["ok"], found["skipped"]) == (False, 3)
    assert found["problems"][0].keys() == {"file", "line", "found", "wanted", "next_step"}
    assert [problem["line"] for problem in found["problems"]] == [QUESTIONS + i for i in (1, 2, 3)]


def test_twenty_problems_are_shown_and_the_others_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = bad_rows(tmp_path / "bad.jsonl", 24)
    assert run(["validate", str(file)]) == 5
    text = capsys.readouterr().out
    assert text.count(f"{file}, line ") == 20
    assert "and 5 more; --output json lists them all." in text


def test_missing_answers_are_a_problem_only_on_demand(questions: Path, tmp_path: Path) -> None:
    bare = [{"query_id": row["query_id"], "question": row["question"]} for row in rows()]
    file = write_rows(tmp_path / "bare.jsonl", bare)
    assert run(["validate", str(file), *corpus_of(questions)]) == 0
    assert run(["validate", str(file), *corpus_of(questions), "--need-answers"]) == 5


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"", 5, "the file is empty"),
        (b"[{", 5, "broken JSON"),
        (None, 4, "does not exist"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.json"
    if content is not None:
        file.write_bytes(content)
    assert run(["validate", str(file), "--output", "json"]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    if code == 5:
        found = one_line(captured.out)
        assert (found["ok"], message in found["error"]) == (False, True)


# --- what bad rows advise


BAD_ROWS = '{"question": "a b?", "answers": ["cd"], "candidates": ["ab cd", "ef"]}\n{"question": ""}\n'


def test_the_advice_is_one_that_the_verb_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(BAD_ROWS, "utf-8")
    assert run(["eval", "first-stage", "--data", str(file), "--reader", "none"]) == 5
    assert "line 2: field 'question' is empty; wanted text. Correct the row, or leave bad rows out with " in (
        words := capsys.readouterr().err
    )
    assert words.rstrip().endswith("with --on-bad-row skip.")
    assert run(["validate", str(file)]) == 5
    found = capsys.readouterr().out
    assert "line 2: field 'question' is empty; wanted text. Correct the row.\n" in found
    assert found.endswith("Verbs that use the file leave bad rows out with --on-bad-row skip.\n")


@pytest.mark.parametrize("command", [["validate"], ["eval", "first-stage", "--on-bad-row", "skip", "--data"]])
def test_a_file_without_any_json_is_told_once(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.csv"
    file.write_text("question,answers\n" * 20, "utf-8")
    assert run([*command, str(file)]) == 5
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "this is no JSON Lines file: none of its 20 rows is a JSON object" in captured.err
