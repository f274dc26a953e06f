"""`rankwright diagnose`: the JSON line, the table, the announcement, the cache, bad input."""

from __future__ import annotations

import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from rankwright.cli.app import run
from tests.cli_kit import (
    QUESTIONS,
    ROOT,
    body_of,
    key_reader,
    make_model,
    one_line,
    reply,
    rows,
    run_process,
    serving,
    write_rows,
)
from tests.test_cli_costs import endpoint

DEMO = ROOT / "rankwright" / "assets" / "demo"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each question four times, enough for a verdict; the key stands in the last of three candidates."""
    monkeypatch.chdir(tmp_path)
    many = [{**row, "query_id": f"{row['query_id']}-{i}"} for row in rows() for i in range(4)]
    return write_rows(tmp_path / "doors.jsonl", many)


def diagnosing(data: Path, url: str, *more: str) -> list[str]:
    given = ["--data", str(data), "--retriever", "given", "--model", "first-stage", "--top-k", "1"]
    return ["diagnose", *given, "--reader", url, "--reader-model", "stub", *more]


def diagnosed(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[dict[str, Any], str]:
    """The object on standard output and what stands on standard error."""
    assert run([*arguments, "--output", "json"]) == 0
    captured = capsys.readouterr()
    return one_line(captured.out), captured.err


def test_the_json_line_has_verdict_and_numbers_and_the_second_run_is_free(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with key_reader() as url:
        first, told = diagnosed(capsys, diagnosing(data, url))
        second, told_again = diagnosed(capsys, diagnosing(data, url))
    n = 4 * QUESTIONS
    assert (first["verdict"], first["n"], first["set"], first["reference"]) == (
        "training can pay",
        n,
        "doors",
        "first-stage",
    )
    means = {name: number["mean"] for name, number in first["numbers"].items()}
    wanted = {"found": 1, "no_documents": 0, "first_stage": 0, "gold_first": 1, "best_order": 1, "headroom": 1}
    assert means.items() >= wanted.items()
    assert first["numbers"]["headroom"] == {"mean": 1.0, "ci_low": 1.0, "ci_high": 1.0, "n": n}
    # three passages and none: four contexts a question at most, of which the four copies of a question share each
    assert first["bound"] == 4 * n
    assert first["reader_calls"] + first["cache_hits"] <= first["bound"]
    assert first["reader_calls"] <= 4 * QUESTIONS
    assert f"Diagnosis reads {n} questions: at most {4 * n} reader calls" in told
    assert f"Reader calls {first['reader_calls']} (0 failed)" in told
    assert told.splitlines()[-1] == f"training can pay: {first['reason']}"
    assert second["reader_calls"] == 0
    assert "Reader calls 0 (0 failed)" in told_again
    assert second["numbers"] == first["numbers"]
    assert first["signature"].startswith("diagnose@1|set:doors|retriever:given|depth:10|reader:stub@")
    assert "|reward:f1|reference:first-stage|queries:48|" in first["signature"]


def test_nothing_is_sent_before_the_bound_is_told(data: Path) -> None:
    """With a reader that refuses every call, the announcement stands above the refusal."""
    with key_reader(status=401) as url:
        done = run_process(*diagnosing(data, url), cwd=data.parent)
    assert done.returncode == 6
    assert done.stderr.index("Diagnosis reads 48 questions") < done.stderr.index("401")
    assert done.stdout == ""


def test_a_wrong_key_costs_one_call_and_no_ranking(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rank_with(*_: object) -> None:
        raise AssertionError("The key was not tried first.")

    monkeypatch.setattr("rankwright.diagnosis.rank_with", rank_with)
    with key_reader(status=401) as url:
        assert run(diagnosing(data, url)) == 6
    told = capsys.readouterr().err
    assert "refused the key" in told
    assert "Reader calls 1 (1 failed)" in told


def test_text_ends_with_the_verdict(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with key_reader() as url:
        assert run(diagnosing(data, url)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("training can pay: the best order found earns +1.000 [+1.000, +1.000] more than")
    assert lines[-2].startswith("Signature diagnose@1|set:doors|")
    table = "\n".join(lines)
    for part in ("1.000 [1.000, 1.000]", "recall ceiling", "reader calls", "doors: 48 questions, depth 10, top 1"):
        assert part in table


def test_fewer_calls_read_fewer_questions(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with key_reader() as url:
        found, told = diagnosed(capsys, diagnosing(data, url, "--max-reader-calls", "42"))
        assert run(diagnosing(data, url, "--max-reader-calls", "3")) == 2
    assert (found["n"], found["bound"], found["verdict"]) == (10, 40, "undecided")
    assert found["reader_calls"] <= 40
    assert "Diagnosis reads 10 questions instead of 48, because of --max-reader-calls" in told
    assert "--max-reader-calls is 3, but one question may cost 4" in capsys.readouterr().err


def test_the_price_is_told_before_and_is_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server bills a token for each byte in, and as many out as were allowed."""
    monkeypatch.chdir(tmp_path)
    questions = write_rows(tmp_path / "doors.jsonl", rows())
    prices = ["--price-input", "1000", "--price-output", "2000"]
    with endpoint() as (url, server):
        found, told = diagnosed(capsys, [*diagnosing(questions, url), *prices])
        bound = re.findall(r"at most 48 reader calls, price at most ([\d.]+), less what", told)
    bills = sum(len(prompt.encode()) * 1000 + 64 * 2000 for prompt in server.prompts) / 1e6
    assert len(server.prompts) == found["reader_calls"] > QUESTIONS
    assert bills <= float(bound[0]) < 3 * bills
    with key_reader() as url:
        _, told = diagnosed(capsys, diagnosing(questions, url))
        assert "reader calls, price unknown (--price-input and --price-output), less" in told
        _, told = diagnosed(capsys, [*diagnosing(questions, url), *prices, "--set", "reader.sampling={top_p: 1}"])
        assert "reader calls, price without limit (no max_tokens), less" in told


def test_second_reads_are_paid_once(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with key_reader() as url:
        once, _ = diagnosed(capsys, diagnosing(data, url))
        twice, _ = diagnosed(capsys, diagnosing(data, url, "--repeat-reads"))
        again, _ = diagnosed(capsys, diagnosing(data, url, "--repeat-reads"))
    assert "repeat_noise" not in once["numbers"]
    assert twice["numbers"]["repeat_noise"]["mean"] == 0.0
    assert twice["numbers"]["best_again"]["mean"] == 1.0
    assert twice["reader_calls"] == 2 * QUESTIONS
    assert again["reader_calls"] == 0


def test_the_embedded_reader_on_a_few_questions_of_the_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = ["--data", str(DEMO / "questions.jsonl"), "--corpus", str(DEMO / "corpus.jsonl")]
    few = ["--questions", "6", "--top-k", "1", "--depth", "5", "--orders", "5", "--reward", "sub-em"]
    found, told = diagnosed(capsys, ["diagnose", *files, *few])
    assert (found["n"], found["verdict"], found["bound"]) == (6, "undecided", 6 * 6)
    assert "only 6 questions were read completely; a verdict wants 30" in found["reason"]
    assert found["numbers"]["no_documents"]["mean"] == 0.0
    assert found["numbers"]["best_order"]["mean"] >= found["numbers"]["reference"]["mean"]
    assert "|reward:sub_em|reference:reference|" in found["signature"]
    assert "price 0" in told


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reader", "none"], "--reader none"),
        (["--top-k", "11"], "--top-k 11 above --depth 10"),
        (["--samples", "1"], "--samples"),
        (["--reward", "f2"], "Reward 'f2' is unknown"),
        (["--device", "abacus"], "Device is 'abacus'"),
        (["--set", "top_k=1"], "top_k, which says nothing here"),
        (["--repeat-reads"], "always answers the same"),
    ],
)
def test_wrong_arguments_end_with_2(
    data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(["diagnose", "--data", str(data), "--retriever", "given", "--model", "first-stage", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_question_without_answers_is_bad_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = rows()
    some[3]["answers"] = []
    data = write_rows(tmp_path / "some.jsonl", some)
    arguments = ["diagnose", "--data", str(data), "--retriever", "given", "--model", "first-stage"]
    assert run(arguments) == 5
    assert "some.jsonl, line 4: question 'q13' has no" in capsys.readouterr().err


def test_a_reader_that_fails_too_often_ends_with_6_and_can_be_mended(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sick = True

    def answer(request: BaseHTTPRequestHandler) -> None:
        prompt = json.loads(body_of(request))["messages"][-1]["content"]
        message = {"role": "assistant", "content": "NO ANSWER"}
        body = {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        reply(request, body, 422 if sick and "door 12?" in prompt else 200)

    with serving(answer) as address:
        assert run(diagnosing(data, f"{address}/v1")) == 6
        captured = capsys.readouterr()
        assert run(diagnosing(data, f"{address}/v1", "--max-failed-reads", "0.1")) == 0
        allowed = capsys.readouterr().out
        sick = False
        mended, _ = diagnosed(capsys, diagnosing(data, f"{address}/v1"))
    assert captured.out == ""
    wanted = r"failed on \d+ of 192 announced reads; at most 1% may fail. Mend the reader and run the same command"
    assert re.search(wanted, captured.err)
    assert "16 failed and left out" in allowed
    assert mended["failed_reads"] == 0
    assert mended["reader_calls"] == 4  # those of door 12: what was answered before is kept
    assert mended["verdict"] == "limit: reader"


def test_a_model_of_the_users_own_is_the_reference(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path / "flat", flat=True)
    with key_reader() as url:
        arguments = [a if a != "first-stage" else str(model) for a in diagnosing(data, url)]
        found, _ = diagnosed(capsys, arguments)
    assert found["reference"] == str(model)
    assert found["numbers"]["reference"]["mean"] == found["numbers"]["first_stage"]["mean"]
