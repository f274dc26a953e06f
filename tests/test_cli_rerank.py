"""`rankwright rerank`: passages from arguments, files, standard input; requests; runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import rankwright
from rankwright.cli.app import run
from rankwright.data import read_trec_run
from rankwright.rerankers.packed import PackedReranker
from rankwright.rerankers.tokens import Pair
from rankwright.types import Document, Ranking
from tests.cli_kit import DOORS, feed, make_model, one_line, rows, write_rows

QUESTION = "What is the key of door 10?"
PASSAGES = ("Door 10 stands in a wall.", "The key of door 10 is word10.", "Door 11 is painted.")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("models") / "random"))


@pytest.fixture(scope="module")
def expected(model: str) -> Ranking:
    """What the Python API says."""
    ranking = rankwright.load(model).rerank(QUESTION, PASSAGES)
    assert ranking.doc_ids != ("0", "1", "2")  # else an order left alone would pass
    return ranking


def pairs(answer: dict[str, Any]) -> list[tuple[str, float]]:
    return [(row["doc_id"], row["score"]) for row in answer["results"]]


def wanted(ranking: Ranking, top_k: int | None = None) -> list[tuple[str, Any]]:
    scores = [pytest.approx(score, abs=1e-6) for score in ranking.scores]
    return list(zip(ranking.doc_ids, scores, strict=True))[:top_k]


# --- one question ------------------------------------------------------------------------------------------------


def test_passages_from_arguments(model: str, expected: Ranking, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rerank", QUESTION, *PASSAGES, "--model", model, "--top-k", "2", "--output", "json"]) == 0
    found = one_line(capsys.readouterr().out)
    assert pairs(found) == wanted(expected, 2)
    assert found["results"][0]["text"] == PASSAGES[int(expected.doc_ids[0])]
    assert (found["query"], found["model"]) == (QUESTION, model)


def test_text_is_a_table(model: str, expected: Ranking, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rerank", QUESTION, *PASSAGES, "--model", model]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "oor 1" in line]
    texts = [PASSAGES[int(doc_id)] for doc_id in expected.doc_ids]
    assert [text in line for text, line in zip(texts, lines, strict=True)] == [True] * 3


def test_passages_from_a_file_follow_those_of_the_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "p.jsonl", [{"text": "b"}, {"text": "c", "title": "C", "doc_id": "sea"}])
    assert run(["rerank", "q", "a", "--passages", str(file), "--model", "first-stage", "--output", "json"]) == 0
    results = one_line(capsys.readouterr().out)["results"]
    assert [(row["doc_id"], row["title"], row["text"]) for row in results] == [
        ("0", "", "a"),
        ("1", "", "b"),
        ("sea", "C", "c"),
    ]


def test_passages_from_standard_input(
    model: str, expected: Ranking, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, {"text": PASSAGES[0]}, b"", {"text": PASSAGES[1], "score": 3}, {"text": PASSAGES[2]})
    assert run(["rerank", QUESTION, "--model", model, "--output", "json"]) == 0
    assert pairs(one_line(capsys.readouterr().out)) == wanted(expected)


def test_titles_go_through_the_template_of_the_model(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(tmp_path / "p.jsonl", [{"text": PASSAGES[0], "title": "Paint"}, {"text": PASSAGES[1]}])
    assert run(["rerank", QUESTION, "--passages", str(file), "--model", model, "--output", "json"]) == 0
    documents = [Document("0", PASSAGES[0], "Paint"), Document("1", PASSAGES[1])]
    assert pairs(one_line(capsys.readouterr().out)) == wanted(rankwright.load(model).rerank(QUESTION, documents))


def test_foreign_text_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rerank", "q", "red \x1b[31m [bold]alert[/] :smile:", "--model", "first-stage"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[bold]alert[/] :smile:" in out


# --- how it is computed ------------------------------------------------------------------------------------------


def test_a_backend_computes_the_same_order(
    model: str, expected: Ranking, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    plain = PackedReranker.score_tokens

    def noted(self: PackedReranker, pairs: Sequence[Pair]) -> list[float]:
        computed.append(len(pairs))
        return plain(self, pairs)

    monkeypatch.setattr(PackedReranker, "score_tokens", noted)
    assert run(["rerank", QUESTION, *PASSAGES, "--model", model, "--backend", "packed", "--output", "json"]) == 0
    found = one_line(capsys.readouterr().out)["results"]
    assert [row["doc_id"] for row in found] == list(expected.doc_ids)
    assert [row["score"] for row in found] == pytest.approx(expected.scores, abs=1e-5)
    assert computed[-1] == len(PASSAGES)  # before it those of the comparison with fp32


@pytest.mark.parametrize("how", ["max", "mean"])
def test_long_passages_are_read_whole_in_windows(model: str, how: Any, capsys: pytest.CaptureFixture[str]) -> None:
    long = " ".join(["Door 10 stands in a wall."] * 10 + ["The key is word10."])
    texts = [long, *PASSAGES]
    assert run(["rerank", QUESTION, *texts, "--model", model, "--windows", how, "--output", "json"]) == 0
    captured = capsys.readouterr()
    whole = rankwright.load(model, windows=how).rerank(QUESTION, texts)
    assert pairs(one_line(captured.out)) == wanted(whole)
    assert "what lies beyond is not read" not in captured.err
    cut = rankwright.load(model).rerank(QUESTION, texts)
    scores = [dict(zip(ranking.doc_ids, ranking.scores, strict=True))["0"] for ranking in (cut, whole)]
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)


def test_cuts_are_told_once_with_what_helps(
    model: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert run(["rerank", QUESTION, "door " * 80, *PASSAGES, "--model", model]) == 0
    told = capsys.readouterr().err
    assert "25.0% of question-passage pairs are longer than its limit of 48 tokens" in told
    assert told.endswith("Split long passages, or read them whole with --windows max.\n")
    assert caplog.messages == []
    assert run(["rerank", "door " * 80, *PASSAGES, "--model", model, "--windows", "max"]) == 0
    assert capsys.readouterr().err.endswith("Shorten questions and titles: they leave no room for a window.\n")


@pytest.mark.parametrize("option", [["--backend", "packed"], ["--windows", "max"]])
def test_what_says_nothing_of_language_models_is_refused(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rerank", "q", "p", "--llm", "http://localhost:1/v1", "--llm-model", "m", *option]) == 2
    assert f"{option[0]} was given with --llm http://localhost:1/v1" in capsys.readouterr().err


# --- requests ----------------------------------------------------------------------------------------------------


def test_every_request_gets_one_line(
    model: str, expected: Ranking, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [{"doc_id": f"d{i}", "text": text} for i, text in enumerate(PASSAGES)]
    hits = [{"docid": f"d{i}", "doc": {"contents": text}} for i, text in enumerate(PASSAGES)]
    feed(
        monkeypatch,
        b"\xef\xbb\xbf" + json.dumps({"query": QUESTION, "documents": PASSAGES}).encode(),
        {"query": QUESTION, "candidates": ids, "query_id": "mine"},
        {"query": {"text": QUESTION, "qid": 7}, "candidates": hits},
    )
    assert run(["rerank", "--model", model]) == 0
    captured = capsys.readouterr()
    plain, named, rank_llm = map(json.loads, captured.out.splitlines())
    renamed = Ranking("", tuple(f"d{doc_id}" for doc_id in expected.doc_ids), expected.scores)
    assert (pairs(plain), "query_id" in plain) == (wanted(expected), False)
    assert (pairs(named), named["query_id"]) == (wanted(renamed), "mine")
    assert (pairs(rank_llm), rank_llm["query_id"]) == (wanted(renamed), "7")
    assert "3 requests answered" in captured.err


def test_a_bad_request_stops_or_is_answered_with_its_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (
        {"query": "a", "documents": ["x"]},
        b'{"query": ',
        {"query": "b", "documents": []},
        {"query": "c", "candidates": ["y"]},
    )
    feed(monkeypatch, *lines)
    assert run(["rerank", "--model", "first-stage"]) == 5
    captured = capsys.readouterr()
    assert one_line(captured.out)["query"] == "a"
    assert "standard input, line 2: broken JSON" in captured.err
    feed(monkeypatch, *lines)
    assert run(["rerank", "--model", "first-stage", "--on-bad-row", "skip"]) == 7
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer.get("query") for answer in answers] == ["a", None, None, "c"]
    assert [answer.get("line") for answer in answers] == [None, 2, 3, None]
    assert [answer.get("skipped") for answer in answers] == [0, None, None, 2]
    assert "field 'documents' is empty; wanted at least one passage" in answers[2]["error"]


def test_passages_and_requests_are_not_told_of_formats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--format belongs to --data; beside passages it is refused."""
    file = tmp_path / "passages.jsonl"
    file.write_text('["a"]\n', "utf-8")
    example = "rankwright rerank --help has examples"
    for arguments in (["q", "--passages", str(file)], ["q"], []):
        feed(monkeypatch, b'{"words": "a"}')
        assert run(["rerank", *arguments, "--model", "first-stage"]) == 5
        words = capsys.readouterr().err
        assert example in words or "'query' and one of" in words
        assert "--format" not in words


def test_an_empty_passage_argument_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rerank", "q", "a", " ", "--model", "first-stage"]) == 5
    assert capsys.readouterr().err == (
        "rankwright: passage argument 2: it is empty; wanted the text of a passage. Write one, or leave the argument "
        "out.\n"
    )


# --- a run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def trec(tmp_path: Path) -> list[str]:
    """Arguments for a run of all doors, its questions and its passages."""
    write_rows(tmp_path / "corpus.jsonl", [passage for row in rows() for passage in row["candidates"]])
    (tmp_path / "topics.tsv").write_text("".join(f"{r['query_id']}\t{r['question']}\n" for r in rows()), "utf-8")
    run_lines = (
        f"q{door} Q0 {kind}-{door} {rank} {-rank} bm25\n"
        for door in DOORS
        for rank, kind in enumerate(("wall", "paint", "key"), start=1)
    )
    (tmp_path / "first.run").write_text("".join(run_lines), "utf-8")
    names = {"--run": "first.run", "--topics": "topics.tsv", "--corpus": "corpus.jsonl"}
    return [part for flag, name in names.items() for part in (flag, str(tmp_path / name))]


def test_a_run_comes_out_as_a_run(
    model: str, trec: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["rerank", *trec, "--model", model, "--top-k", "2"]) == 0
    (tmp_path / "out.run").write_text(capsys.readouterr().out, "utf-8")
    found = read_trec_run(tmp_path / "out.run")
    reranker = rankwright.load(model)
    documents = {row["query_id"]: [Document(**passage) for passage in row["candidates"]] for row in rows()}
    best = {row["query_id"]: reranker.rerank(row["question"], documents[row["query_id"]], top_k=2) for row in rows()}
    assert {ranking.query_id: ranking.doc_ids for ranking in found} == {q: r.doc_ids for q, r in best.items()}


def test_depth_cuts_the_candidates_of_a_run(trec: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rerank", *trec, "--model", "first-stage", "--depth", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"q{door} Q0 wall-{door} 1 1.0 rankwright" for door in DOORS]


def test_a_run_comes_out_as_json_with_what_was_skipped(
    trec: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "first.run").open("a") as stream:
        stream.write("q10 Q0 wall-10\n")
    asked = ["rerank", *trec, "--model", "first-stage", "--top-k", "1", "--on-bad-row", "skip"]
    assert run([*asked, "--output", "json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(a["query_id"], a["skipped"], a["results"][0]["doc_id"]) for a in answers] == [
        (f"q{door}", 1, f"wall-{door}") for door in DOORS
    ]


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "lines", "code", "message"),
    [
        (["q", " "], [], 5, "passage argument 1: it is empty"),
        (["q"], [], 5, "standard input holds no usable passage (0 bad lines)"),
        (["q"], [{"txt": "a"}], 5, "standard input, line 1: a passage with fields ['txt']"),
        (["q"], [b'{"text": "\xff"}'], 5, "standard input, line 1: byte 0xff at column 11 is not UTF-8"),
        (["q"], [{"text": "a"}, {"text": "b", "doc_id": "0"}], 5, "line 2: doc_id '0' stands twice"),
        ([], [], 5, "standard input is empty; wanted requests"),
        ([], [{"query": "a"}], 5, "line 1: a request with fields ['query']"),
        ([], [{"query": " ", "documents": ["a"]}], 5, "line 1: field 'query' is empty"),
        ([], [{"query": "a", "documents": "b"}], 5, "line 1: field 'documents' is 'b' (str); wanted a list"),
        (["  ", "p"], [], 2, "The question is empty"),
        (["q", "p", "--top-k", "0"], [], 2, "--top-k"),
        (["q", "p", "--windows", "sum"], [], 2, "--windows"),
        (["caf\udce9", "p"], [], 2, "The question has bytes at character 3 that are no UTF-8"),
        (["--topics", "t.tsv"], [], 2, "--topics was given without --run"),
        (["q", "p", "--depth", "5"], [], 2, "--depth was given without --run"),
        (["q", "--run", "r.run"], [], 2, "beside --run r.run"),
        (["--passages", "p.jsonl"], [], 2, "without a question"),
        (["--run", "no.run", "--corpus", "c.jsonl"], [], 4, "does not exist"),
        (["q", "--passages", "no.jsonl"], [], 4, "'no.jsonl' does not exist"),
    ],
)
def test_bad_input_is_named(
    arguments: list[str],
    lines: list[object],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feed(monkeypatch, *lines)
    assert run(["rerank", *arguments, "--model", "first-stage"]) == code
    captured = capsys.readouterr()
    assert (captured.out, message in captured.err) == ("", True), captured.err


def test_bad_and_unknown_lines_of_passages_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    feed(monkeypatch, {"text": "a", "colour": "red"}, b"{", {"text": "b"})
    assert run(["rerank", "q", "--model", "first-stage", "--on-bad-row", "skip", "--output", "json"]) == 0
    found = one_line(capsys.readouterr().out)
    assert ([row["doc_id"] for row in found["results"]], found["skipped"]) == (["0", "1"], 1)
    assert "standard input, line 1: unknown field(s) 'colour'" in caplog.text
    assert "1 bad row(s) skipped" in caplog.text
    feed(monkeypatch, {"text": "a"}, b"{")
    assert run(["rerank", "q", "--model", "first-stage", "--on-bad-row", "skip"]) == 0
    assert "1 bad rows were skipped." in capsys.readouterr().out


def test_unknown_fields_of_requests_are_told_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    feed(
        monkeypatch,
        {"query": "a", "documents": ["x", {"text": "y", "titel": "Y"}]},
        {"query": "b", "candidates": [{"text": "y", "score": 1}], "topk": 3},
        {"query": {"text": "c", "qid": 1}, "documents": [{"docid": "d", "doc": "x", "rang": 1}]},
    )
    assert run(["rerank", "--model", "first-stage"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    (record,) = caplog.records
    names = "'documents.rang', 'documents.titel', 'topk'"
    assert f"standard input, line 1: unknown field(s) {names}" in record.getMessage()


def test_nothing_is_awaited_from_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    assert run(["rerank", "q", "--model", "first-stage"]) == 2
    assert run(["rerank", "--model", "first-stage"]) == 2
    assert capsys.readouterr().err.count("standard input is a terminal") == 2
