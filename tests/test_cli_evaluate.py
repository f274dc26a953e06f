"""`rankwright eval`: the JSON line, the table, exit codes, bad input."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import rankwright
from rankwright.cli.app import run
from rankwright.cli.build import load_splits
from rankwright.cli.evaluate import _worse_than_baseline
from rankwright.cli.settings import ReaderSettings, settings_from, settings_tree
from rankwright.errors import DataError
from rankwright.evaluation import Evaluation, PairedTest
from rankwright.llms.cache import ReadStore
from rankwright.readers import CachedReader
from rankwright.training import requests_of
from rankwright.types import Answer, Context, ReadResult
from tests.cli_kit import DOORS, MAIN, QUESTIONS, ROOT, key_reader, make_model, one_line, rows, run_process, write_rows

GIVEN = ("--retriever", "given", "--reader", "none")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "doors.jsonl", rows())


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that scores everything alike, so that it leaves the order as it is."""
    return str(make_model(tmp_path_factory.mktemp("models") / "flat", flat=True))


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert run(["eval", *map(str, arguments), "--output", "json"]) == 0
    return one_line(capsys.readouterr().out)


# --- results -----------------------------------------------------------------------------------------------------


def test_one_json_line_stands_alone_on_standard_output(data: Path) -> None:
    done = run_process("eval", "first-stage", "--data", str(data), *GIVEN, "--output", "json", cwd=data.parent)
    assert done.returncode == 0, done.stderr
    assert {"set", "n", "skipped", "signature", "models", "tests"} <= one_line(done.stdout).keys()
    assert not (data.parent / "runs").exists()  # no reader, so nothing to keep


def test_scores_follow_from_the_order(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, "first-stage", "gold-first", "--data", data, *GIVEN, "--top-k", "2", "--depth", "3")
    first = {"hit@2": 0.0, "nDCG@10": 1 / math.log2(4), "RR@10": 1 / 3, "recall@10": 1.0, "recall@20": 1.0}
    best = dict.fromkeys(first, 1.0)
    assert found["models"] == {"first-stage": pytest.approx(first), "gold-first": pytest.approx(best)}
    assert (found["set"], found["n"], found["skipped"]) == ("doors", QUESTIONS, 0)
    test = next(test for test in found["tests"] if test["metric"] == "hit@2")
    assert {"a": "gold-first", "b": "first-stage", "delta": 1.0, "ci_low": 1.0, "ci_high": 1.0}.items() <= test.items()
    assert 0.0 < test["p"] < 0.01
    assert "retriever:given|depth:3" in found["signature"]
    assert found["signatures"]["hit@2"].startswith("hit@2|set:doors|")


def test_models_carry_the_names_that_were_typed(
    data: Path, flat: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(flat).parent)
    found = evaluated(capsys, "./flat", "first-stage", "--data", data, *GIVEN)
    assert list(found["models"]) == ["./flat", "first-stage"]
    assert found["models"]["./flat"] == found["models"]["first-stage"]


def test_a_run_folder_stands_for_its_model(data: Path, flat: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder = data.parent / "run"
    run_folder.mkdir()
    (run_folder / "model").symlink_to(flat)
    assert list(evaluated(capsys, run_folder, "--data", data, *GIVEN)["models"]) == [str(run_folder)]


def test_bm25_searches_the_pooled_passages_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exchanged = rows()
    for row, other in zip(exchanged, rows()[1:] + rows()[:1], strict=True):
        row["candidates"] = other["candidates"]  # the answer stands in the candidates of another question only
    found = evaluated(
        capsys, "first-stage", "--data", write_rows(tmp_path / "x.jsonl", exchanged), "--reader", "none", "--top-k", "1"
    )
    assert found["models"]["first-stage"]["hit@1"] == 1.0
    assert "retriever:bm25|depth:20" in found["signature"]


def test_a_given_run_keeps_the_order_of_its_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = [passage for row in rows() for passage in row["candidates"]]
    write_rows(tmp_path / "corpus.jsonl", corpus)
    (tmp_path / "topics.tsv").write_text("".join(f"{r['query_id']}\t{r['question']}\n" for r in rows()), "utf-8")
    (tmp_path / "qrels.txt").write_text("".join(f"q{i} 0 key-{i} 1\n" for i in DOORS), "utf-8")
    lines = [f"q{i} Q0 {kind}-{i} 1 {score} x\n" for i in DOORS for kind, score in (("wall", 1), ("key", 2))]
    (tmp_path / "first.run").write_text("".join(lines), "utf-8")
    files = ("--corpus", tmp_path / "corpus.jsonl", "--qrels", tmp_path / "qrels.txt")
    found = evaluated(capsys, "first-stage", "--data", tmp_path / "first.run", "--format", "trec", *files, *GIVEN)
    assert found["models"]["first-stage"]["RR@10"] == 1.0


def test_a_reader_behind_http_is_asked_once_for_a_context(
    data: Path, flat: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = data.parent / "kept" / "reads.sqlite"
    models = ("first-stage", flat, "gold-first")
    with key_reader() as url:
        asked = (*models, "--data", data, "--retriever", "given", "--top-k", "1", "--reader", url, "--cache", cache)
        arguments = ["eval", *map(str, asked), "--reader-model", "stub", "--output", "json"]
        assert run(arguments) == 0
        first = capsys.readouterr()
        assert run(arguments) == 0
        second = capsys.readouterr()
    found = one_line(first.out)
    wrong = {"EM": 0.0, "F1": 0.0, "sub-EM": 0.0, "hit@1": 0.0}
    assert found["models"]["first-stage"].items() >= wrong.items()
    assert found["models"][flat].items() >= wrong.items()
    assert found["models"]["gold-first"].items() >= dict.fromkeys(wrong, 1.0).items()
    assert found["signature"].startswith("F1@1|set:doors|retriever:given|depth:20|reader:stub@")
    # Attempts are told where a busy machine had to ask twice.
    assert re.search(rf"Reader calls {2 * QUESTIONS} \(0 failed\)(, \d+ attempts)?, price unknown", first.err)
    assert "Reader calls 0 (0 failed)" in second.err
    assert one_line(second.out) == found


def test_text_shows_scores_tests_and_signatures(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "first-stage", "gold-first", "--data", str(data), *GIVEN]) == 0
    text = capsys.readouterr().out
    for part in ("0.500 [0.500, 0.500]", "+0.500 [+0.500, +0.500]", "Holm p", "better", "nDCG@10|set:doors|"):
        assert part in text
    assert "recall@10" in text
    assert "recall@20" not in text  # of three candidates
    assert text.splitlines()[-1].startswith("gold-first is BETTER than first-stage: nDCG@10 +0.500")


def test_questions_of_a_saved_evaluation_are_ranked_as_they_were(
    data: Path, flat: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With candidates, labels and names of set and first stage; as deep as they were."""
    saved = data.with_name("saved.json")
    searched = ("--data", data, "--reader", "none", "--depth", 25)
    before = evaluated(capsys, "first-stage", *searched, "--save", saved)
    found = evaluated(capsys, "first-stage", flat, "--data", saved, "--format", "evaluation", "--reader", "none")
    assert found["signature"] == before["signature"]
    assert "|depth:25|" in found["signature"]
    assert found["models"][flat] == found["models"]["first-stage"] == before["models"]["first-stage"]


def test_the_comparison_of_a_run_is_made_again_as_it_was(
    data: Path, flat: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """How many passages the reader saw, and the seed, are those of the evaluation where nothing else is asked for."""
    saved = data.with_name("evaluation.json")
    asked = ("--reader", "none", "--depth", 4, "--top-k", 2, "--seed", 7)
    before = evaluated(capsys, flat, "first-stage", "--data", data, *asked, "--save", saved)
    again = evaluated(capsys, flat, "first-stage", "--data", saved, "--format", "evaluation", "--reader", "none")
    assert "hit@2" in again["models"]["first-stage"]
    assert again["signature"] == before["signature"]
    assert again["tests"] == before["tests"]


def test_more_candidates_than_an_evaluation_has_are_not_there(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = data.with_name("saved.json")
    none = ("--reader", "none")
    evaluated(capsys, "first-stage", "--data", data, *none, "--depth", 4, "--save", saved)
    assert run(["eval", "first-stage", "--data", str(saved), "--format", "evaluation", *none, "--depth", "9"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "The evaluation has 4 candidates a question and --depth 9 asks for more: 4 it is." in told
    asked = ("--data", saved, "--format", "evaluation", *none)
    said = failed(capsys, 2, "first-stage", *asked, "--depth", 9, "--top-k", 6)
    assert "top_k 6 above depth 4" in said
    fewer = evaluated(capsys, "first-stage", *asked, "--depth", 2)
    assert "hit@2" in fewer["models"]["first-stage"]


@pytest.mark.parametrize("place", ["", "evaluation.json"])
def test_a_run_is_read_with_the_format_of_one(place: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("evaluation.json", "config.json"):
        (data.parent / name).write_text("{}", "utf-8")
    named = data.parent / place
    said = failed(capsys, 2, "first-stage", "--data", named, "--reader", "none")
    assert f"Data {named} holds the comparison of a run, and was to be read as jsonl" in said
    assert "wanted --format evaluation" in said


@pytest.mark.parametrize("flag", ["--corpus", "--qrels", "--topics", "--expand-with", "--expand-model"])
def test_what_a_saved_evaluation_has_is_not_given_again(
    flag: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", "first-stage", "--data", "saved.json", "--format", "evaluation", flag, "given"]) == 2
    assert f"{flag} was given with --format evaluation" in " ".join(capsys.readouterr().err.split())


def test_a_template_of_the_run_is_for_torch(uneven: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = data.with_name("config.json")
    config.write_text(json.dumps({"model": {"name": uneven, "template": "{text}"}}), "utf-8")
    command = ["eval", uneven, "--data", str(data), *GIVEN, "--config", str(config)]
    assert run([*command, "--backend", "packed"]) == 2
    assert "has template '{text}' in --config" in " ".join(capsys.readouterr().err.split())
    assert run(command) == 0


def test_report_and_saved_file_are_written(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, saved = data.parent / "out" / "page.html", data.parent / "out" / "saved.json"
    evaluated(capsys, "first-stage", "gold-first", "--data", data, *GIVEN, "--report", page, "--save", saved)
    assert "gold-first" in page.read_text("utf-8")
    assert run(["report", str(saved), "--out", str(data.parent / "again.html")]) == 0
    assert "gold-first" in (data.parent / "again.html").read_text("utf-8")


# --- how models are computed ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose scores differ."""
    return str(make_model(tmp_path_factory.mktemp("models") / "uneven"))


def long_rows() -> list[dict[str, Any]]:
    """The first candidate of each question is too long for the model."""
    long = rows()
    for row in long:
        row["candidates"][0]["text"] += " wall" * 60
    return long


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--backend", "packed"], "|packed-fp32"),
        (["--windows", "max"], "|windows-max"),
        (["--backend", "packed", "--windows", "mean"], "|packed-fp32|windows-mean"),
    ],
)
def test_what_is_served_can_be_evaluated(
    options: list[str], name: str, uneven: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, saved = write_rows(tmp_path / "long.jsonl", long_rows()), tmp_path / "saved.json"
    found = evaluated(capsys, uneven, "first-stage", "--data", data, *GIVEN, *options, "--save", saved)
    assert found["computed"] == {uneven: f"{uneven}{name}"}
    kept = Evaluation.load(saved)
    assert kept.computed == found["computed"]
    chosen = dict(zip(options[::2], options[1::2], strict=True))
    windows: Any = chosen.get("--windows")
    scorer = rankwright.load(uneven, chosen.get("--backend", "torch"), windows=windows)
    for ranking in scorer.rerank_batch(requests_of(kept.examples)):
        held = kept.models[uneven].rankings[ranking.query_id]
        assert (held.doc_ids, held.scores) == (ranking.doc_ids, pytest.approx(ranking.scores, abs=1e-5))


def test_a_table_says_how_its_models_were_computed(uneven: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", uneven, "first-stage", "--data", str(data), *GIVEN, "--backend", "packed"]) == 0
    assert f"{uneven}: computed as {uneven}|packed-fp32.\n" in capsys.readouterr().out
    assert "computed" not in evaluated(capsys, uneven, "--data", data, *GIVEN)


@pytest.mark.parametrize("option", [["--backend", "packed"], ["--windows", "max"]])
def test_an_option_of_scoring_models_needs_one(
    option: list[str], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for models in (["first-stage"], ["gold-first"], ["--llm", "http://localhost:1/v1", "--llm-model", "m"]):
        assert run(["eval", *models, "--data", str(data), *GIVEN, *option]) == 2
        assert f"{option[0]} was given without a MODEL that scores" in capsys.readouterr().err


# --- verdict -----------------------------------------------------------------------------------------------------


def test_a_model_worse_than_the_named_baseline_ends_with_8(
    data: Path, flat: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", flat, "--gold-first", "--data", str(data), *GIVEN, "--baseline", "gold-first"]
    assert run(arguments) == 8
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{flat} is WORSE than gold-first: nDCG@10 -0.500")
    assert run([*arguments, "--output", "json"]) == 8
    captured = capsys.readouterr()
    assert one_line(captured.out)["baseline"] == "gold-first"
    assert "is WORSE than gold-first" in captured.err.splitlines()[-1]


def test_a_model_worse_than_reference_ends_with_8_without_a_named_baseline() -> None:
    def worse(a: str, b: str, low: float, high: float, baseline: str | None = None) -> list[PairedTest]:
        test = PairedTest(a, b, "F1", 9, (low + high) / 2, low, high, 0.01, 0.01)
        evaluation: Any = SimpleNamespace(
            settings=SimpleNamespace(baseline=baseline), tests=(test,), headline_metric="F1"
        )
        return _worse_than_baseline(evaluation)

    assert [(t.a, t.delta) for t in worse("mine", "reference", -0.3, -0.1)] == [("mine", pytest.approx(-0.2))]
    assert [(t.a, t.ci_high) for t in worse("reference", "mine", 0.1, 0.3)] == [("mine", -0.1)]
    assert not worse("reference", "mine", -0.3, -0.1)
    assert not worse("first-stage", "reference", -0.3, -0.1)
    assert not worse("mine", "reference", -0.3, -0.1, baseline="other")


@pytest.mark.parametrize("output", ["text", "json"])
def test_the_verdict_is_the_last_line_of_the_command(data: Path, flat: str, output: str) -> None:
    """Standard output and error as on a terminal, where both are one."""
    arguments = ["eval", flat, "gold-first", "--data", str(data), *GIVEN, "--baseline", "gold-first"]
    files = ["--report", "page.html", "--save", "saved.json", "--output", output]
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *arguments, *files],
        cwd=data.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 8, done.stdout
    assert "Report page.html" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(f"{flat} is WORSE than gold-first: nDCG@10 -0.500")


@pytest.mark.parametrize("baseline", [["--baseline", "first-stage"], []], ids=["better", "no baseline"])
def test_no_other_outcome_is_a_failure(data: Path, flat: str, baseline: list[str]) -> None:
    assert run(["eval", flat, "first-stage", "gold-first", "--data", str(data), *GIVEN, *baseline]) == 0


# --- bad input ---------------------------------------------------------------------------------------------------


def failed(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """What the user reads: one line on standard error, nothing on standard output."""
    assert run(["eval", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["first-stage", "first-stage"], "Model 'first-stage' was given 2 times"),
        (["first-stage", "--baseline", "mine"], "Baseline 'mine' is not among the models first-stage"),
        (["first-stage", "--top-k", "21"], "top_k 21 above depth 20"),
        (["first-stage", "--depth", "0"], "--depth"),
        (["first-stage", "--retriever", "magic"], "magic"),
        (["first-stage", "--format", "jsnl"], "Did you mean 'jsonl'"),
        (["first-stage", "--device", "abacus"], "Device is 'abacus'"),
        (["first-stage", "--reader", "http://127.0.0.1:9/v1"], "--reader-model"),
        ([], "MODEL"),
    ],
)
def test_wrong_arguments_end_with_2(
    data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    assert message in failed(capsys, 2, "--data", data, "--reader", "none", *arguments)


def test_a_model_or_file_that_is_not_there_ends_with_4(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = data.parent / "no" / "model"
    assert str(missing) in failed(capsys, 4, missing, "--data", data, *GIVEN)
    assert "Did you mean 'doors.jsonl'" in failed(
        capsys, 4, "first-stage", "--data", data.parent / "door.jsonl", *GIVEN
    )


def test_gold_first_needs_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = [{name: row[name] for name in row if name != "relevance"} for row in rows()]
    data = write_rows(tmp_path / "bare.jsonl", bare)
    assert "give labels (--qrels)" in failed(capsys, 2, "first-stage", "--gold-first", "--data", data, *GIVEN)


def test_a_question_without_answers_is_bad_only_where_a_reader_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = rows()
    some[3]["answers"] = []
    data = write_rows(tmp_path / "some.jsonl", some)
    cache = ("--cache", tmp_path / "reads.sqlite")
    assert evaluated(capsys, "first-stage", "--data", data, *GIVEN)["n"] == QUESTIONS
    with key_reader() as url:
        reader = ("--data", data, "--reader", url, "--reader-model", "stub", *cache)
        assert f"{data}, line 4: question 'q13' has no answer" in failed(capsys, 5, "first-stage", *reader)
        found = evaluated(capsys, "first-stage", *reader, "--on-bad-row", "skip")
    assert (found["n"], found["skipped"]) == (QUESTIONS - 1, 1)


def test_an_empty_candidate_list_is_named_or_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = rows()
    some[0]["candidates"] = []
    del some[1]["candidates"]
    data = write_rows(tmp_path / "some.jsonl", some)
    assert f"{data}, line 1: candidate list 'candidates'" in failed(capsys, 5, "first-stage", "--data", data, *GIVEN)
    found = evaluated(capsys, "first-stage", "--data", data, *GIVEN, "--on-bad-row", "skip")
    assert (found["n"], found["skipped"]) == (QUESTIONS - 2, 2)
    some[0]["candidates"] = rows()[0]["candidates"]
    write_rows(data, some)
    assert f"{data}, line 2: candidate list of query 'q11' is empty" in failed(
        capsys, 5, "first-stage", "--data", data, *GIVEN
    )
    tree = {"data": {"train": str(data), "retriever": "given"}}
    with pytest.raises(DataError, match=r"some.jsonl, line 2: candidate list of query 'q11' is empty"):
        load_splits(settings_from(tree))
    tree["data"]["on_bad_row"] = "skip"
    assert load_splits(settings_from(tree)).skipped == 1
    write_rows(data, some[1:2])
    message = failed(capsys, 5, "first-stage", "--data", data, *GIVEN, "--on-bad-row", "skip")
    assert "take --retriever bm25" in message


def test_a_reader_that_refuses_the_key_ends_with_6(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = data.parent / "reads.sqlite"
    with key_reader(status=401) as url:
        message = failed(
            capsys, 6, "first-stage", "--data", data, "--reader", url, "--reader-model", "stub", "--cache", cache
        )
    assert "401" in message
    assert re.search(r"Reader calls \d+ \(\d+ failed\)(, \d+ attempts)?, price unknown", message)


def test_the_reader_of_a_run_is_taken_with_all_its_settings(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ReaderSettings] = []

    def build(settings: ReaderSettings, store: ReadStore, run: str, device: str) -> CachedReader:
        asked.append(settings)
        return CachedReader(CuttingReader(), store, run=run)

    monkeypatch.setattr("rankwright.cli.build.build_reader", build)
    monkeypatch.chdir(data.parent)
    trained = settings_from({"reader": {"reader": "http://127.0.0.1:9/v1", "model": "m", "sampling": {"top_p": 0.5}}})
    config = data.with_name("config.json")
    config.write_text(json.dumps({"run_id": "x-1", **settings_tree(trained)}), "utf-8")
    arguments = ["eval", "first-stage", "--data", str(data), "--config", str(config), "--reader-model", "other"]
    assert run([*arguments, "--set", "reader.deadline=300", "--set", "reader.concurrency=2"]) == 0
    assert asked == [replace(trained.reader, model="other", deadline=300.0, concurrency=2)]
    assert run([*arguments, "--set", "reader.deadline=-1"]) == 2
    assert run([*arguments, "--set", "top_k=1"]) == 2
    assert run([*arguments, "--set", "reader.dedline=1"]) == 2
    assert len(asked) == 1
    message = capsys.readouterr().err
    for part in ("Setting reader.deadline is -1", "top_k, which says nothing here", "reader.dedline"):
        assert part in message


def test_topics_of_a_run_may_lie_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, elsewhere = given_run(tmp_path)
    arguments = ["--data", str(data), "--format", "trec", "--corpus", str(tmp_path / "corpus.jsonl")]
    labels = ["--qrels", str(tmp_path / "labels.txt")]
    assert run(["eval", "first-stage", *arguments, *labels, *GIVEN]) == 2  # none beside the run
    found = evaluated(capsys, "first-stage", *arguments, *labels, *GIVEN, "--topics", elsewhere)
    assert found["n"] == QUESTIONS
    out = ["--out", str(tmp_path / "out.jsonl")]
    assert run(["retrieve", *arguments, *out, "--topics", str(elsewhere)]) == 0
    settings = {"train": str(data), "format": "trec", "corpus": str(tmp_path / "corpus.jsonl"), "retriever": "given"}
    tree = {"method": "supervised", "reader": {"reader": "none"}, "data": {**settings, "topics": str(elsewhere)}}
    assert len(load_splits(settings_from(tree)).train) > 0


def given_run(folder: Path) -> tuple[Path, Path]:
    """A run, and its questions in another folder."""
    write_rows(folder / "corpus.jsonl", [passage for row in rows() for passage in row["candidates"]])
    (folder / "elsewhere").mkdir()
    topics = folder / "elsewhere" / "asked.tsv"
    topics.write_text("".join(f"{r['query_id']}\t{r['question']}\n" for r in rows()), "utf-8")
    (folder / "labels.txt").write_text("".join(f"q{i} 0 key-{i} 1\n" for i in DOORS), "utf-8")
    lines = [f"q{i} Q0 {kind}-{i} 1 {score} x\n" for i in DOORS for kind, score in (("wall", 1), ("key", 2))]
    (folder / "first.run").write_text("".join(lines), "utf-8")
    return folder / "first.run", topics


def test_passages_that_reach_the_limit_of_a_model_are_counted(
    tmp_path: Path, flat: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = write_rows(tmp_path / "long.jsonl", long_rows())
    assert run(["eval", flat, "--data", str(data), *GIVEN]) == 0
    told = capsys.readouterr().err
    assert "33.3% of question-passage pairs are longer than its limit of 48 tokens" in told
    assert "or read them whole with --windows max." in told
    assert caplog.messages == []  # what Python would be warned of is said already


class CuttingReader:
    """Finds nothing, and says that it had to cut."""

    name = "cutter"
    share_cut = 0.25

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        return [Answer("") for _ in contexts]

    def cache_key(self, context: Context) -> str:
        return repr(context)


def test_what_a_reader_cut_away_is_said(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(settings: object, store: ReadStore, run: str, device: str) -> CachedReader:
        return CachedReader(CuttingReader(), store, run=run)

    monkeypatch.setattr("rankwright.cli.build.build_reader", build)
    assert run(["eval", "first-stage", "--data", str(data), "--cache", str(data.parent / "reads.sqlite")]) == 0
    assert (
        "cutter: 25.0% of the tokens of questions and passages lay beyond its limit and were not read. Split"
        in capsys.readouterr().err
    )


def test_a_result_that_cannot_be_saved_is_still_printed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = data / "saved.json"  # below a file
    assert run(["eval", "first-stage", "--data", str(data), *GIVEN, "--output", "json", "--save", str(blocked)]) == 6
    captured = capsys.readouterr()
    assert json.loads(captured.out)["n"] == QUESTIONS
    assert "Evaluation cannot be written" in captured.err
