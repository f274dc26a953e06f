"""`rankwright rerank --out`: files in and out, going on, shards, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

import rankwright
from rankwright.batch import Make
from rankwright.bulk import Batch, Ranked, record_path, scored_here
from rankwright.cli.app import run
from rankwright.data import load_examples, read_trec_run
from rankwright.prompts.ranking import load_ranking_prompt
from rankwright.types import Ranking
from tests.bulk_kit import examples, write_rows, write_run
from tests.cli_kit import body_of, key_reader, make_model, one_line, reply, serving
from tests.cli_kit import write_rows as write_json
from tests.tiny_lm import make_chain_model

COUNT = 20
SPAN = 8
"""Pairs of a batch in these tests."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwright.bulk.PAIRS_AT_ONCE", SPAN)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_over_a_beir_folder(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, beir = write_run(tmp_path, COUNT)
    out = tmp_path / "results" / "out.jsonl"
    asked = ["rerank", "--run", str(first), "--corpus", str(beir), "--model", str(model), "--out", str(out)]
    assert run([*asked, "--top-k", "3", "--output", "json"]) == 0
    told = one_line(capsys.readouterr().out)
    loaded = load_examples(first, "trec", topics=beir / "queries.jsonl", corpus=beir / "corpus.jsonl").examples
    assert (told["questions"], told["pairs"]) == (COUNT, sum(len(e.candidates) for e in loaded))
    assert (told["failed"], told["skipped"], told["pairs_before"]) == ([], 0, 0)
    reranker = rankwright.load(model)
    for old, new in zip(loaded, load_examples(out, "jsonl").examples, strict=True):
        ranking = reranker.rerank(old.query, old.candidates)
        scores = dict(zip(ranking.doc_ids, ranking.scores, strict=True))
        assert new.query == old.query
        assert [new.first_stage[d.doc_id] for d in new.candidates] == pytest.approx(ranking.scores[:3], abs=1e-5)
        assert [scores[d.doc_id] for d in new.candidates] == pytest.approx(ranking.scores[:3], abs=1e-5)
    assert files(out.parent) == ["out.jsonl", "out.jsonl.progress"]  # the look-up copy of the corpus has gone


def test_it_goes_on_and_does_nothing_where_all_is_done(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", COUNT), tmp_path / "out.jsonl"
    asked = ["rerank", "--data", str(data), "--model", str(model), "--out", str(out)]
    assert run(asked) == 0
    whole = out.read_bytes()
    assert f"{COUNT} rankings: {out}" in capsys.readouterr().out
    assert run([*asked, "--output", "json"]) == 0
    captured = capsys.readouterr()
    assert "is complete; nothing was scored" in captured.err
    assert one_line(captured.out)["pairs_before"] == sum(len(e.candidates) for e in examples(COUNT))
    out.write_bytes(whole[: len(whole) // 2])
    assert run(asked) == 0
    assert "goes on after" in capsys.readouterr().err
    assert out.read_bytes() == whole
    assert run([*asked, "--top-k", "2"]) == 2
    assert "settings top_k None and is asked to go on with 2" in capsys.readouterr().err


def test_another_model_of_the_same_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, model = write_rows(tmp_path / "rows.jsonl", 4), tmp_path / "model"
    asked = ["rerank", "--data", str(data), "--model", str(model), "--out", str(tmp_path / "out.run")]
    make_model(model, seed=1)
    assert run(asked) == 0
    make_model(model, seed=2)
    assert run(asked) == 2
    assert "settings model model.safetensors" in capsys.readouterr().err


class Here:
    """In the place of RayScore: one worker, in this process. A cluster runs in tests/gates/test_ray_cluster.py."""

    def __init__(self, make: Make, workers: int, *, name: str) -> None:
        self._reranker: Any = make()

    def __call__(self, found: Iterable[Batch]) -> Iterator[Sequence[Ranked]]:
        return scored_here(self._reranker)(found)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reranker, name)


@pytest.mark.parametrize("where", [[], ["--ray"]])
def test_windows_are_read_and_belong_to_what_a_file_goes_on_with(
    where: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankwright.batch.connected", lambda workers: 1)
    monkeypatch.setattr("rankwright.batch.RayScore", Here)
    text = " ".join(["the key of door 10"] * 30)
    questions = ["What is the key?", " ".join(["What is the key?"] * 20)]
    rows = [{"question": question, "candidates": [{"doc_id": "a", "text": text}]} for question in questions]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    asked = ["rerank", "--data", str(tmp_path / "rows.jsonl"), "--model", str(model), "--out", str(out), *where]
    assert run([*asked, "--windows", "mean"]) == 0
    assert "Shorten questions and titles" in capsys.readouterr().err  # of the second, which leaves no room
    reranker = rankwright.load(model, windows="mean")
    for question, example in zip(questions, load_examples(out, "jsonl").examples, strict=True):
        whole = reranker.rerank(question, [text])
        assert list(example.first_stage.values()) == pytest.approx(whole.scores, abs=1e-5)
    for other, told in (([], "None"), (["--windows", "max"], "'max'")):
        assert run([*asked, *other]) == 2
        assert f"settings windows 'mean' and is asked to go on with {told}" in capsys.readouterr().err


def test_shards_of_other_windows_are_not_joined(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", 4), tmp_path / "out.run"
    asked = ["rerank", "--data", str(data), "--model", str(model), "--out", str(out)]
    for shard, windows in (("1/2", "max"), ("2/2", "mean")):
        assert run([*asked, "--shard", shard, "--windows", windows]) == 0
    assert run(["rerank", "--out", str(out), "--join", "2"]) == 2
    assert "settings windows 'mean' and is asked to go on with 'max'" in capsys.readouterr().err


def test_shards_are_made_apart_and_joined(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, beir = write_run(tmp_path, COUNT)
    asked = ["rerank", "--run", str(first), "--corpus", str(beir), "--model", str(model)]
    assert run([*asked, "--out", str(tmp_path / "whole" / "out.run.gz")]) == 0
    parts = tmp_path / "parts"
    out, stores = parts / "out.run.gz", ["--store", str(tmp_path / "stores")]
    for number in (2, 1, 3):
        assert run(["rerank", "--out", str(out), "--join", "3"]) == 2
        assert run([*asked, *stores, "--out", str(out), "--shard", f"{number}/3"]) == 0
    assert len(files(tmp_path / "stores")) == 1
    capsys.readouterr()
    assert run(["rerank", "--out", str(out), "--join", "3", "--output", "json"]) == 0
    assert one_line(capsys.readouterr().out)["questions"] == COUNT
    assert out.read_bytes() == (tmp_path / "whole" / "out.run.gz").read_bytes()


def test_a_question_that_fails_is_told_and_counted_by_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", COUNT), tmp_path / "out.run"
    plain = rankwright.cli.build.FirstStage.rerank_batch

    def failing(self: object, requests: list[rankwright.types.RerankRequest]) -> list[Ranking]:
        if any(request.query.query_id == "q3" for request in requests):
            raise ValueError("planned")
        return plain(self, requests)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("rankwright.cli.build.FirstStage.rerank_batch", failing)
    asked = ["rerank", "--data", str(data), "--model", "first-stage", "--out", str(out)]
    assert run([*asked, "--max-failed-questions", "0"]) == 5
    assert "1 questions failed, the last 'q3' (ValueError: planned); wanted at most 0" in capsys.readouterr().err
    assert run([*asked, "--output", "json"]) == 7
    captured = capsys.readouterr()
    assert one_line(captured.out)["failed"] == [{"query_id": "q3", "error": "ValueError: planned"}]
    assert "Question 'q3' has no ranking: ValueError: planned" in captured.err
    assert run(asked) == 7  # nothing is left to score, and the failure is not forgotten


def test_bad_rows_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 3)
    with data.open("a") as stream:
        stream.write('{"question": "?", "candidates": []}\n')
    asked = ["rerank", "--data", str(data), "--model", "first-stage", "--out", str(tmp_path / "out.run")]
    assert run(asked) == 5
    assert "line 4: candidate list 'candidates'" in capsys.readouterr().err
    assert files(tmp_path) == ["rows.jsonl"]
    assert run([*asked, "--on-bad-row", "skip", "--output", "json"]) == 0
    assert one_line(capsys.readouterr().out)["skipped"] == 1


def test_a_language_model_writes_a_file_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", 6), tmp_path / "out.run"
    with key_reader() as address:
        endpoint = ["--llm", address, "--llm-model", "m", "--cache", str(tmp_path / "reads.sqlite")]
        asked = ["rerank", "--data", str(data), *endpoint, "--out", str(out)]
        assert run(asked) == 0
        assert run([*asked, "--device", "cpu:0"]) == 0  # it says nothing of an endpoint
    rankings = read_trec_run(out)
    assert [len(r.doc_ids) for r in rankings] == [len(e.candidates) for e in examples(6)]
    assert "calls" in capsys.readouterr().err


def test_another_language_model_of_the_same_name_or_another_prompt_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", 3)
    prompt, shown = tmp_path / "prompt", load_ranking_prompt("pointwise-yes-no-1").limited
    shown(2).save(prompt)
    make_chain_model(tmp_path / "model", ["paris"])
    asked = ["rerank", "--data", "rows.jsonl", "--llm", "model", "--prompt", str(prompt), "--out", "out.run"]
    assert run(asked) == 0
    capsys.readouterr()
    assert run([*asked, "--max-failed", "0.5", "--requests-per-minute", "9"]) == 0  # they decide no ranking
    assert "is complete; nothing was scored" in capsys.readouterr().err
    others = (
        (["--set", "sampling.max_tokens=5"], "sampling {}"),
        (["--fuse", "0.5"], "--strategy"),
        (["--device", "cpu:0"], "device 'cpu'"),
    )
    for more, told in others:
        assert run([*asked, *more]) == 2
        assert f"was begun with settings {told}" in " ".join(capsys.readouterr().err.split())
    shown(3).save(prompt)
    assert run(asked) == 2
    assert "settings --prompt 'sha256:" in capsys.readouterr().err
    shown(2).save(prompt)
    make_chain_model(tmp_path / "model", ["rome"])
    assert run(asked) == 2
    assert "settings model model.safetensors" in capsys.readouterr().err


def test_failed_calls_of_a_language_model_stay_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are final, so a later start, and the file of all shards, tell of them as the first start did."""
    monkeypatch.setattr("rankwright.bulk.PAIRS_AT_ONCE", 60)
    monkeypatch.chdir(tmp_path)
    broken, asked_for = [True], list[bytes]()

    def fails_once(request: BaseHTTPRequestHandler) -> None:
        asked_for.append(body_of(request))
        if broken[0] and b"question 7 " in asked_for[-1]:
            return reply(request, {"error": {"message": "no", "type": "invalid_request_error"}}, status=400)
        message = {"role": "assistant", "content": "[2] > [1]"}
        return reply(request, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    two = [{"text": "one"}, {"text": "two"}]
    rows = [{"query_id": str(n), "question": f"question {n} ?", "candidates": two} for n in range(60)]
    data, out = write_json(tmp_path / "data.jsonl", rows), tmp_path / "out.run"
    with serving(fails_once) as url:
        asked = ["rerank", "--data", str(data), "--llm", url, "--llm-model", "m", "--out", str(out), "--output", "json"]

        def told(code: int, *more: str) -> tuple[int, int, str]:
            assert run([*asked, *more]) == code
            written = capsys.readouterr()
            found = one_line(written.out)
            return found["calls"], found["calls_failed"], " ".join(written.err.split())

        assert "1 of 60 calls failed, above 1%" in told(7)[2]
        assert "remove the file and its .progress" in told(7)[2]
        assert len(asked_for) == 60
        out.write_bytes(out.read_bytes()[:-1])  # a kill in the second batch of two: the first has the failed call
        assert told(7)[:2] == (60, 1)
        for number in (1, 2):
            told(7 if number == 1 else 0, "--shard", f"{number}/2")
        assert run(["rerank", "--out", str(tmp_path / "out.run"), "--join", "2"]) == 2  # the name is taken
        for path in (out, record_path(out)):
            path.unlink()
        assert run(["rerank", "--out", str(out), "--join", "2"]) == 7
        told_of = " ".join(capsys.readouterr().err.split())
        assert "1 of 60 calls failed" in told_of
        assert "Calls failed in out.1-of-2.run (1 of 30). To have them asked again, remove the file and" in told_of
        assert "out.2-of-2" not in told_of
        assert "not needed" not in told_of
        broken[0] = False
        shard = tmp_path / "out.1-of-2.run"
        for path in (out, shard, record_path(shard)):  # as it was told
            path.unlink()
        assert told(0, "--shard", "1/2")[:2] == (30, 0)
        assert run(["rerank", "--out", str(out), "--join", "2"]) == 0
        told_of = " ".join(capsys.readouterr().err.split())
        for number in (1, 2):
            assert f"out.{number}-of-2.run and out.{number}-of-2.run.progress are not needed any more." in told_of
        out.unlink()
        assert told(0)[:2] == (60, 0)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--shard", "1/2", "--data", "d"], 2, "--shard was given without --out"),
        (["--join", "2"], 2, "--join was given without --out"),
        (["--out", "o"], 2, "--out o was given without --run and --data"),
        (["--out", "o", "--data", "d", "--shard", "3/2"], 2, "Shard is '3/2'"),
        (["--out", "o", "--data", "d"], 4, "'d' does not exist"),
        (["--out", "o", "--data", "d", "--backend", "auto"], 2, "Name the backend"),
        (["--out", "o", "--data", "d", "--backend", "auto", "--ray"], 2, "Name the backend"),
        (["--out", "o", "--data", "d", "--backend", "auto", "--shard", "1/2"], 2, "Name the backend"),
        (["--out", "o", "--run", "r", "--corpus", "c"], 4, "'r' does not exist"),
        (["--out", "o", "--run", "/dev/null"], 2, "is not a file that can be read twice"),
        (["--out", "o", "--run", __file__], 2, "no corpus was given"),
        (["--out", "o", "--data", "d", "--format", "squad"], 2, "Format is 'squad'"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["rerank", "--model", "first-stage", *arguments]) == code
    captured = capsys.readouterr()
    assert (captured.out, message in captured.err) == ("", True), captured.err
    assert files(tmp_path) == []


JOIN = ["rerank", "--out", "o", "--join", "2"]


@pytest.mark.parametrize(
    "option",
    [
        ["--data", "d"],
        ["--windows", "max"],
        ["--top-k", "3"],
        ["--model", "first-stage"],
        ["--backend", "packed"],
        ["--device", "cuda"],
        ["--workers", "2"],
        ["--on-bad-row", "skip"],
        ["--passages", "p.jsonl"],
        ["--llm", "folder"],
        ["--llm-model", "m"],
        ["--strategy", "topk"],
        ["--prompt", "listwise-1"],
        ["--window", "4"],
        ["--fuse", "0"],
        ["--set", "passes=2"],
        ["--cache", "c"],
        ["--model", "reference"],
        ["--max-failed-questions", "0"],
    ],
    ids=" ".join,
)
def test_what_shards_were_made_by_is_refused_where_they_are_joined(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*JOIN, *option]) == 2
    assert f"{option[0]} was given with --join" in capsys.readouterr().err


def test_a_join_takes_no_question_and_needs_all_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*JOIN, "who?"]) == 2
    assert "question was given with --join" in capsys.readouterr().err
    assert run([*JOIN, "--max-failed", "0.5", "--output", "json"]) == 2
    assert "'o.1-of-2' is missing" in capsys.readouterr().err


def test_rows_go_back_in(tmp_path: Path) -> None:
    """What comes out as rows is read by every verb that takes questions with candidates."""
    data, out = write_rows(tmp_path / "rows.jsonl", 3), tmp_path / "out.jsonl.gz"
    assert run(["rerank", "--data", str(data), "--model", "first-stage", "--out", str(out)]) == 0
    assert run(["rerank", "--data", str(out), "--model", "first-stage", "--out", str(tmp_path / "again.jsonl")]) == 0
    rows = (tmp_path / "again.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(row)["question"] for row in rows] == [e.query.text for e in examples(3)]
