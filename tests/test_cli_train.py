"""Verb `train` on a small model: what a resume takes, and how a run ends."""

from __future__ import annotations

import html
import itertools
import json
import math
import re
import shlex
import shutil
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from rankwright.algorithms import Supervised
from rankwright.checkpoints import newest_checkpoint, step_of
from rankwright.cli.app import run
from rankwright.cli.build import Splits, load_splits
from rankwright.cli.card import _chosen
from rankwright.cli.run import HOW_FAST, RunOutcome, _deciding, environment_record, teller
from rankwright.cli.settings import settings_from
from rankwright.cli.train import DEMO_FOLDER, with_exchanged_answers
from rankwright.data import load_examples
from rankwright.errors import DataError, ModelError, ReaderError, ResumeError
from rankwright.evaluation import Evaluation, FirstStage, evaluate
from rankwright.llms.cache import ReadStore
from rankwright.metrics.answer import normalise
from rankwright.readers import CachedReader
from rankwright.rerankers import choice, load
from rankwright.rewards import resolve_reward
from rankwright.training import requests_of
from rankwright.types import Answer, Context, Document, Example, Query, ReadFailed, ReadResult
from tests.cli_kit import key_reader, make_model, one_line, rows, write_rows
from tests.tiny_causal import WORDS, save_causal
from tests.training_kit import held_elsewhere

HERE = {"data.retriever": "given", "data.dev_share": "0.25", "data.test_share": "0.25", "loop.eval_steps": "2"}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A training from labels, without any reader: six questions, three steps."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "q.jsonl", rows())
    make_model(tmp_path / "tiny")
    named = [text for name, value in HERE.items() for text in ("--set", f"{name}={value}")]
    command = ["train", "--name", "a", "--data", "q.jsonl", "--model", "tiny", "--method", "supervised"]
    return [*command, "--reader", "none", "--epochs", "1", "--set", "loop.batch_size=2", *named]


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def broken(command: list[str]) -> Path:
    """The folder of a run that was interrupted before its first checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rankwright.algorithms.Supervised.loss", interrupted)
        assert run(command) == 130
    folder = Path("runs/a")
    assert not list(folder.glob("checkpoint-*"))
    return folder


OPENED = (
    ["report", "runs/a"],
    ["push", "runs/a", "owner/name", "--dry-run"],
    ["rerank", "Which?", "one", "another", "--model", "runs/a"],
    ["rerank", "Which?", "one", "another", "--model", "runs/a/model"],
)


def test_a_run_with_a_damaged_weight_is_refused_until_its_model_is_made_again(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One bit makes other scores, and no other error. The card may be changed."""
    assert run(command) in (0, 8)
    weights = Path("runs/a/model/model.safetensors")
    whole = weights.read_bytes()
    (weights.parent / "README.md").write_text("My own card.", "utf-8")
    assert [run(verb) for verb in OPENED] == [0] * len(OPENED)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for verb in OPENED:
        capsys.readouterr()
        assert run(verb) == ModelError.exit_code == DataError.exit_code
        said = " ".join(capsys.readouterr().err.split())
        assert "model/model.safetensors in runs/a is not as the run left it" in said
    assert run([*command, "--resume"]) in (0, 8)
    assert weights.read_bytes() == whole
    assert [run(verb) for verb in OPENED] == [0] * len(OPENED)


def pasted(page: Path) -> list[list[str]]:
    """The commands of a report, as a shell takes them."""
    section = page.read_text("utf-8").partition('id="reproduce"')[2]
    return [shlex.split(html.unescape(text)) for text in re.findall(r"<pre>(.*?)</pre>", section, re.DOTALL)]


def check_same_comparison(comparison: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The command gives every figure of runs/a, intervals, tests and signatures among them."""
    capsys.readouterr()
    assert run([*comparison, "--output", "json"]) in (0, 8)
    found = one_line(capsys.readouterr().out)
    del found["signatures"]
    stored = json.dumps(Evaluation.load("runs/a/evaluation.json").to_json())
    assert found == json.loads(stored.replace('"reference"', '"tiny"').replace('"trained"', '"runs/a/model"'))


OUTCOME = ("reference", "trained", "delta", "ci_low", "p_value", "n", "steps", "best_step", "dev_best", "signature")


def test_the_commands_of_a_report_train_and_compare_again(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's own length and template are the reference's, too; the test questions are drawn by its seed."""
    own = ["--seed", "3", "--set", "model.max_length=13", "--template", "{title} {title} is {text}"]
    monkeypatch.setattr("sys.argv", ["rankwright", *command, *own, "--learning-rate", "0.1"])
    assert run() in (0, 8)
    begun, training, comparison = pasted(Path("runs/a/report.html"))
    assert begun == sys.argv
    check_same_comparison(comparison[1:], capsys)
    assert training[-2:] == ["--name", "a-again"]
    assert run(training[1:]) in (0, 8)
    first, again = (json.loads(Path(f"runs/{name}/result.json").read_text()) for name in ("a", "a-again"))
    assert [first[name] for name in OUTCOME] == [again[name] for name in OUTCOME]
    assert run(["report", "runs/a", "--out", "elsewhere.html"]) == 0
    assert pasted(Path("elsewhere.html")) == [begun, training, comparison]


def test_a_report_of_a_resumed_run_has_the_command_that_began_it(
    command: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a fresh folder --resume would be refused."""
    begun = ["rankwright", *command, "--set", "loop.eval_steps=1"]
    monkeypatch.setattr("sys.argv", begun)
    with monkeypatch.context() as patch:
        patch.setattr("rankwright.cli.run._compare", interrupted)
        assert run() == 130
    before = Path("runs/a/environment.json").read_bytes()
    shutil.rmtree("runs/a/checkpoint-3")
    monkeypatch.setattr("sys.argv", [*begun, "--resume", "--max-hours", "9"])
    assert run() in (0, 8)
    assert Path("runs/a/environment.json").read_bytes() == before
    assert pasted(Path("runs/a/report.html"))[0] == begun
    assert "Goes on from checkpoint-2; any later steps are made again.\n" in caplog.text


@pytest.mark.parametrize(
    ("kept", "command", "processes"),
    [
        ({"command": "rankwright train --name b", "processes": 2}, "rankwright train --name b", 2),
        ({"command": 5, "processes": "2"}, "now", 1),
        ({"command": ["rankwright"], "processes": True}, "now", 1),
        ([], "now", 1),
        (None, "now", 1),
    ],
)
def test_how_a_run_began_is_taken_from_a_whole_record_alone(
    kept: Any, command: str, processes: int, tmp_path: Path
) -> None:
    """A wrong one would end the run after the work of it."""
    (tmp_path / "environment.json").write_text("{" if kept is None else json.dumps(kept), "utf-8")
    found = environment_record("now", tmp_path, resume=True)
    assert (found["command"], found["processes"]) == (command, processes)
    assert environment_record("now", tmp_path, resume=False)["command"] == "now"


def test_a_resume_that_begins_anew_is_told_as_a_beginning(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["rankwright", *command, "--resume"])
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/run_id").write_text("a-1", "utf-8")
    assert run() in (0, 8)
    assert pasted(Path("runs/a/report.html"))[0] == ["rankwright", *command]


def test_a_run_that_is_out_of_patience_says_so(command: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """On the screen, in result.json and in the report, resumed or not."""
    stopped = "Training stopped at step 1 of 3: 1 evaluation without a better dev reward (loop.patience)."
    impatient = [*command, "--learning-rate", "1e-12", "--set", "loop.eval_steps=1", "--set", "loop.patience=1"]
    assert run(impatient) == 0
    assert caplog.messages.count(stopped) == 1
    first = json.loads(Path("runs/a/result.json").read_text())
    assert first["stopped_early"] == stopped
    assert f">{stopped}</bdi></p>" in Path("runs/a/report.html").read_text("utf-8")
    assert run([*impatient, "--resume"]) == 0
    assert caplog.messages.count(stopped) == 1
    again = json.loads(Path("runs/a/result.json").read_text())
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    assert run([*command, "--name", "b"]) in (0, 8)
    assert json.loads(Path("runs/b/result.json").read_text())["stopped_early"] is None


def test_with_corpus_endpoint_and_query_expansion_the_commands_of_a_report_work_too(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    passages = [passage for row in rows() for passage in row["candidates"]]
    write_rows(Path("corpus.jsonl"), passages)
    write_rows(Path("q.jsonl"), [{name: row[name] for name in ("query_id", "question", "answers")} for row in rows()])
    with key_reader() as address:
        reads = ["--reader", address, "--reader-model", "stub", "--expand-with", "reader"]
        searched = ["--set", "data.retriever=bm25", "--corpus", "corpus.jsonl", "--eval-depth", "5", "--top-k", "2"]
        assert run([*command, "--method", "rrpo", *reads, *searched]) in (0, 8)
        _, training, comparison = pasted(Path("runs/a/report.html"))
        check_same_comparison(comparison[1:], capsys)
        assert run(training[1:]) in (0, 8)
    first, again = (json.loads(Path(f"runs/{name}/result.json").read_text()) for name in ("a", "a-again"))
    assert [first[name] for name in OUTCOME] == [again[name] for name in OUTCOME]
    assert again["reader_calls"] == 1  # the first one, whether the endpoint answers: the cache has all others


def test_a_finished_run_needs_its_checkpoints_for_a_resume_alone(command: list[str]) -> None:
    """As docs/costs.md says of what may be deleted."""
    assert run(command) in (0, 8)
    before = json.loads(Path("runs/a/result.json").read_text())
    for checkpoint in Path("runs/a").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert [run(verb) for verb in OPENED] == [0] * len(OPENED)
    assert run(["eval", "tiny", "runs/a", "--data", "runs/a", "--format", "evaluation", "--reader", "none"]) == 0
    assert run(["compare", "runs/a", "runs/a", "--before-model", "reference"]) in (0, 8)
    assert run([*command, "--resume"]) in (0, 8)
    again = json.loads(Path("runs/a/result.json").read_text())
    assert [again[name] for name in OUTCOME] == [before[name] for name in OUTCOME]
    assert list(Path("runs/a").glob("checkpoint-*"))  # it was trained anew


def test_without_a_checkpoint_a_resume_compares_settings_too(
    broken: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (broken / "config.json").read_bytes()
    assert run([*command, "--resume", "--learning-rate", "0.1"]) == 2
    found = capsys.readouterr().err
    assert f"Setting loop.learning_rate is 0.1, but the run in {broken} began with 2e-05." in found
    assert (broken / "config.json").read_bytes() == before
    assert run([*command, "--resume", "--set", "reader.concurrency=2"]) == 0  # only how fast answers come
    assert f"There is no checkpoint in {broken}: training begins anew." in capsys.readouterr().err
    result = json.loads((broken / "result.json").read_text())
    assert result["steps"] == 3
    stored = json.loads((broken / "config.json").read_text())
    assert (stored["run_id"], stored["reader"]["concurrency"]) == (json.loads(before)["run_id"], 2)


def test_after_a_checkpoint_a_resume_compares_settings_too(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == 0
    assert list(Path("runs/a").glob("checkpoint-*"))
    assert run([*command, "--resume", "--seed", "7"]) == 2
    assert "Setting seed is 7, but the run in runs/a began with 0." in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace("run_id", "runid"),
        lambda text: '{"run_id": "a-1"}',
        lambda text: '{"run_id": "a-1", "reader": "embedded"}',
    ],
    ids=["torn", "a list", "no run_id", "no settings", "no reader settings"],
)
def test_a_damaged_config_is_named(
    broken: Path, command: list[str], capsys: pytest.CaptureFixture[str], damage: Callable[[str], str]
) -> None:
    config = broken / "config.json"
    config.write_text(damage(config.read_text()))
    assert run([*command, "--resume"]) == 2
    found = capsys.readouterr().err
    assert f"File {config} is damaged" in found
    assert "--overwrite" in found


def test_a_run_that_another_process_makes_is_refused_before_anything_is_read(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankwright.cli.run.load_splits", lambda *_: pytest.fail("the questions were loaded"))
    with held_elsewhere(Path("runs/a")):
        assert run(command) == 6
    assert "Run folder runs/a is being written by process 7 on moon" in " ".join(capsys.readouterr().err.split())


def test_a_comparison_that_fails_costs_nothing_of_the_training(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, max_failed: float, **__: Any) -> None:
        raise ReaderError(f"Too many reads failed; at most {max_failed} may.")

    with monkeypatch.context() as patch:
        patch.setattr("rankwright.cli.run.evaluate", failing)
        assert run([*command, "--max-failed-reads", "0.25"]) == 6
    found = capsys.readouterr().err
    assert "at most 0.25 may." in found
    assert "with --resume makes the comparison (--max-failed-reads SHARE lets more reads fail)" in found
    assert len(load("runs/a/model").rerank("door", ["a", "b"]).doc_ids) == 2
    assert run([*command, "--resume", "--max-failed-reads", "0.5"]) == 0
    result = json.loads(Path("runs/a/result.json").read_text())
    assert result["steps"] == 3
    assert (result["n_ok"], result["n_failed"]) == ({}, {})  # without a reader


class Moody:
    """A reader that knows the key of every door, for so many batches of reads."""

    name = "moody"

    def __init__(self, batches: float) -> None:
        self.batches = batches

    def cache_key(self, context: Context) -> str:
        return " ".join([context.query.text, *(document.text for document in context.documents)])

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        self.batches -= 1
        if self.batches < 0:
            return [ReadFailed("http 503") for _ in contexts]
        found = [[d.text for d in context.documents if d.doc_id.startswith("key")] for context in contexts]
        return [Answer(texts[0].split()[-1].strip(".") if texts else "") for texts in found]


def test_a_run_that_was_broken_off_before_it_began_to_train_begins_anew(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("rankwright.cli.run._train", interrupted)
        assert run(command) == 130
    kept = Path("runs/a/run_id").read_text("utf-8").strip()
    assert not Path("runs/a/config.json").exists()
    assert run([*command, "--resume", "--seed", "7"]) == 0  # nothing was trained that this would belie
    assert "broken off before it began to train: it begins anew" in " ".join(capsys.readouterr().err.split())
    assert json.loads(Path("runs/a/config.json").read_text("utf-8"))["run_id"] == kept


def test_failed_reads_of_training_are_counted_over_all_sessions(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deaf(Moody):
        """Does not answer about one training question."""

        def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
            found = zip(contexts, super().answer(contexts), strict=True)
            return [ReadFailed("http 503") if c.query.text == asked else result for c, result in found]

    whole = settings_from({"data": {"train": "q.jsonl", "retriever": "given", "dev_share": 0.25, "test_share": 0.25}})
    asked = load_splits(whole).train[0].query.text
    monkeypatch.setattr("rankwright.cli.run.build_reader", lambda *_: Deaf(math.inf))
    learning = [*command, "--method", "rrpo", "--reader", "embedded", "--set", "rrpo.max_failed_reads=0.9"]
    assert run(learning) in (0, 8)
    result = json.loads(Path("runs/a/result.json").read_text("utf-8"))
    logged = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text("utf-8").splitlines()]
    assert result["failed_reads"] == sum(row.get("failed_reads", 0) for row in logged) > 0
    told = f"In training and on dev {result['failed_reads']} reads failed or got no reward"
    assert told in " ".join(capsys.readouterr().err.split())
    assert run([*learning, "--resume"]) in (0, 8)
    assert json.loads(Path("runs/a/result.json").read_text("utf-8"))["failed_reads"] == result["failed_reads"]


def test_a_run_that_a_broken_reader_stopped_goes_on_when_it_is_mended(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    learning = ["--method", "rrpo", "--reader", "embedded", "--set", "rrpo.samples=8", "--set", "top_k=1"]
    monkeypatch.setattr("rankwright.cli.run.build_reader", lambda *_: Moody(0))
    assert run([*command, *learning]) == 6
    assert "Mend the reader and go on with --resume" in capsys.readouterr().err
    monkeypatch.setattr("rankwright.cli.run.build_reader", lambda *_: Moody(math.inf))
    assert run([*command, *learning, "--resume"]) in (0, 8)
    result = json.loads(Path("runs/a/result.json").read_text())
    assert (result["steps"], result["metric"], result["n"]) == (3, "F1", 3)


def test_an_address_without_its_scheme_is_named_also_beside_a_model(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--method", "rrpo", "--reader", "localhost:9/v1", "--reader-model", "m"]) == 2
    assert "For a server write http://localhost:9/v1." in capsys.readouterr().err


@pytest.mark.parametrize("cached", [False, True])
def test_an_endpoint_that_is_down_leaves_the_earlier_run(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """However much of what it would be asked the cache knows."""
    made: list[Any] = []

    def build_reader(settings: Any, store: ReadStore, run: str, *_: Any) -> CachedReader:
        made.append(Moody(0 if made else math.inf))
        return CachedReader(made[-1], store, run=run)

    endpoint = ["--method", "rrpo", "--reader", "http://127.0.0.1:9/v1", "--reader-model", "m", "--set", "top_k=1"]
    if not cached:
        assert run(command) == 0
        made.append("an earlier run without a reader")
    monkeypatch.setattr("rankwright.cli.run.build_reader", build_reader)
    if cached:
        assert run([*command, *endpoint]) in (0, 8)
    before = {path: path.read_bytes() for path in Path("runs/a").rglob("*") if path.is_file()}
    assert run([*command, *endpoint, "--overwrite"]) == 6
    assert "Reader 'moody' did not answer a first call (http 503)" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("runs/a").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("dev_best", "best_step", "interpolation", "words"),
    [
        (None, 9, 1.0, "the weights after the last of 9 steps"),
        (None, 9, 0.5, "the weights after the last of 9 steps, 0.5 of the way there from the starting weights"),
        (0.5, 0, 0.5, "on 7 dev questions no checkpoint was better than the starting weights, which these are"),
        (0.5, 6, 1.0, "the best of its checkpoints on 7 dev questions (step 6 of 9)"),
    ],
)
def test_the_card_says_which_weights_these_are(
    dev_best: float | None, best_step: int, interpolation: float, words: str
) -> None:
    assert _chosen({"dev_best": dev_best, "best_step": best_step, "steps": 9}, 7, interpolation) == words


@pytest.mark.parametrize("verdict", ["better", "not shown", "worse"])
def test_the_demo_ends_with_the_next_step_unless_the_model_is_worse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verdict: str
) -> None:
    documents = (Document("a", "Nothing."), Document("b", "It is here."))
    evaluation = evaluate({"first-stage": FirstStage()}, [Example(Query("q", "Where?"), documents, (), {"b": 1})])
    numbers = dict.fromkeys(("reference", "trained", "delta", "ci_low", "ci_high", "p_value", "seconds"), 0.5)
    counts = {"n": 1, "reader_calls": 1, "cache_hits": 0, "skipped": 0, "failed_reads": 0, "n_failed": {}}
    counts |= {"dev_best": 0.5, "best_step": 0 if verdict == "not shown" else 7}
    alarm = {"name": "drift", "step": 7, "seen": "x", "wanted": "y", "cause": "z", "knob": "t"}
    result = {"verdict": verdict, "metric": "F1", "signature": "F1|set:x", "alarms": [alarm], **numbers, **counts}
    outcome = RunOutcome(Path("runs/demo"), result, evaluation, 8 if verdict == "worse" else 0)
    monkeypatch.setattr("rankwright.cli.train.run_demo", lambda *_, **__: outcome)
    assert run(["demo"]) == outcome.exit_code
    lines = capsys.readouterr().err.splitlines()
    said = next(line for line in lines if line.startswith("The trained model "))
    assert any(line.startswith("Alarms while training: drift (step 7). ") for line in lines[: lines.index(said)])
    in_vain = "On dev no checkpoint was better than the starting weights: the model is its reference, unchanged."
    assert (in_vain in lines[: lines.index(said)]) == (verdict == "not shown")
    after = lines[lines.index(said) + 1 :]
    command = "    rankwright train --name mine --data questions.jsonl --corpus passages.jsonl"
    assert after == ([] if verdict == "worse" else ["Next, on your own questions and passages:", command])


@pytest.mark.parametrize("arguments", [[], ["--resume"]], ids=["anew", "resumed"])
def test_the_demo_replaces_an_earlier_one_or_goes_on_with_it(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    asked: list[tuple[bool, bool]] = []

    def run_training(*_: object, resume: bool, overwrite: bool, **__: object) -> None:
        asked.append((resume, overwrite))
        raise ResumeError("as far as this")

    monkeypatch.setattr("rankwright.cli.run.run_training", run_training)
    run(["demo", *arguments])
    assert asked == [(bool(arguments), not arguments)]


@pytest.mark.parametrize("output", ["text", "json"])
def test_the_verdict_comes_after_the_json(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """On a terminal standard output and error are one."""
    said: list[str] = []
    outcome = SimpleNamespace(result={"verdict": "worse"}, exit_code=8)
    monkeypatch.setattr("rankwright.cli.train.run_demo", lambda *_, **__: outcome)
    monkeypatch.setattr("rankwright.cli.run.show", lambda *_: said.append(capfd.readouterr().out))
    assert run(["demo", "--output", output]) == 8
    assert said == ['{"verdict": "worse"}\n' if output == "json" else ""]


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_answers_are_never_a_questions_own(seed: int) -> None:
    """In the bundled questions many answers stand more than once, some in several ways of writing."""
    before = list(load_examples(DEMO_FOLDER / "questions.jsonl", "jsonl").examples)
    after = with_exchanged_answers(before, seed)
    assert [e.query for e in after] == [e.query for e in before]
    assert Counter(e.answers for e in after) == Counter(e.answers for e in before)
    own = [{normalise(answer) for answer in example.answers} for example in before]
    assert [
        e.query.text for e, answers in zip(after, own, strict=True) if answers & set(map(normalise, e.answers))
    ] == []
    assert with_exchanged_answers(before, seed) == after
    assert with_exchanged_answers(before, seed + 5) != after


def test_the_control_of_the_demo_learns_exchanged_answers_and_asks_for_the_true_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Splits] = []

    def run_training(*_: object, splits: Splits, **__: object) -> None:
        given.append(splits)
        raise ResumeError("as far as this")

    monkeypatch.setattr("rankwright.cli.run.run_training", run_training)
    for options in ([], ["--shuffle-answers"]):
        run(["demo", *options])
    plain, control = given
    assert [replace(e, answers=()) for e in control.train] == [replace(e, answers=()) for e in plain.train]
    assert Counter(e.answers for e in control.train) == Counter(e.answers for e in plain.train)
    pairs = [(set(map(normalise, e.answers)), e) for e in plain.train]
    taught = [set(map(normalise, e.answers)) for e in control.train]
    assert [e.query.text for (own, e), other in zip(pairs, taught, strict=True) if own & other] == []
    assert (control.dev, control.test) == (plain.dev, plain.test)
    assert min(map(len, (plain.train, plain.dev, plain.test))) > 50


def test_the_progress_says_how_many_reader_calls_may_still_come() -> None:
    told: list[tuple[int, int, str]] = []
    tell = teller(lambda *what: told.append(what), 16)
    tell(1, 10, {"reward": 0.25, "reference_reward": 0.5, "kl": 9.0})
    tell(2, 10, {"eval_reward": 0.75})
    tell(10, 10, {})
    assert told == [
        (1, 10, "reward 0.250, reference 0.500, at most 144 reader calls left in training"),
        (2, 10, "reward 0.250, reference 0.500, dev 0.750, at most 128 reader calls left in training"),
        (10, 10, "reward 0.250, reference 0.500, dev 0.750, at most 0 reader calls left in training"),
    ]
    tell = teller(lambda *what: told.append(what), 16, inner_epochs=4)
    tell(3, 12, {})
    tell(4, 12, {})
    assert [words for _, _, words in told[3:]] == ["at most 32 reader calls left in training"] * 2


def test_passages_that_are_too_long_and_rows_that_were_skipped_are_told(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    long = rows()
    for row in long:
        row["candidates"][0]["text"] *= 20
    write_rows(Path("q.jsonl"), [*long, {"question": ""}])
    assert run([*command, "--on-bad-row", "skip", "--output", "json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["skipped"], result["pairs_cut"]) == (1, pytest.approx(1 / 3, abs=1e-3))
    assert "33.3% of question-passage pairs are longer than its limit of 48 tokens" in captured.err
    assert re.search(r"the first: \d+ tokens with passage '[^']+' for question '[^']+'", captured.err)
    assert "raise --set model.max_length" in captured.err
    assert "1 bad rows were skipped." in captured.err
    assert f"Signature {result['signature']}" in captured.err


def test_the_share_of_cut_pairs_is_of_all_sessions(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One side alone is too long, so that each session would see another share."""
    whole = settings_from({"data": {"train": "q.jsonl", "retriever": "given", "dev_share": 0.25, "test_share": 0.25}})
    test = {example.query.text for example in load_splits(whole).test}
    long = rows()
    for row in long:
        row["candidates"][0]["text"] *= 1 if row["question"] in test else 20
    write_rows(Path("q.jsonl"), long)
    assert run(command) == 0
    share = json.loads(Path("runs/a/result.json").read_text("utf-8"))["pairs_cut"]
    assert 0 < share < 1
    assert run([*command, "--resume"]) == 0  # the comparison alone
    assert json.loads(Path("runs/a/result.json").read_text("utf-8"))["pairs_cut"] == share


def test_a_corpus_of_one_passage_is_nothing_to_rank(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(Path("c.jsonl"), [{"doc_id": "a", "text": "Door 10 is painted."}])
    write_rows(Path("q.jsonl"), [{"question": row["question"], "answers": row["answers"]} for row in rows()])
    assert run([*command, "--corpus", "c.jsonl", "--set", "data.retriever=bm25"]) == 5
    assert "has 1 passage; wanted at least two to rank" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_what_decides_a_run_is_all_but_how_fast_answers_come(command: list[str]) -> None:
    tree: dict[str, Any] = {"data": {"train": "q.jsonl", "retriever": "given"}, "model": {"name": "tiny"}}
    settings, model = settings_from(tree), load("tiny")
    splits = load_splits(settings)
    before = _deciding(settings, splits, None, model)
    speed = {"cache": "x", "concurrency": 2, "requests_per_minute": 9, "tokens_per_minute": 9, "api_key_env": "X"}
    speed |= {"price_input": 1, "price_output": 1, "deadline": 9, "attempt_timeout": 9, "max_retries": 1}
    assert set(speed) == set(HOW_FAST)
    assert _deciding(settings_from({**tree, "reader": speed}), splits, None, model) == before
    limits = {"reader_calls": 9, "cost": 9.0, "hours": 9.0}
    assert _deciding(settings_from({**tree, "budget": limits}), splits, None, model) == before

    def differs(now: dict[str, Any]) -> list[str]:
        return [name for name in now if now[name] != before[name]]

    assert differs(_deciding(settings_from({**tree, "seed": 1}), splits, None, model)) == ["run"]
    other = load_examples("q.jsonl", "jsonl").examples
    assert differs(_deciding(settings, replace(splits, train=list(other)), None, model)) == ["training questions"]
    assert differs(_deciding(settings, replace(splits, dev=splits.dev[1:]), None, model)) == ["dev questions"]
    tree["reward"] = "priced_by_a_test:price"
    before["file of the reward"] = ""
    found = []
    for factor in (1, 2):
        code = f"def price(completions, **_): return [{factor} * len(c) for c in completions]\n"
        Path("priced_by_a_test.py").write_text(code, "utf-8")
        resolve_reward("priced_by_a_test:price")
        found.append(_deciding(settings_from(tree), splits, None, model)["file of the reward"])
    assert len({"", *found}) == 3
    model.get_submodule("model.classifier").get_parameter("weight").data.neg_()
    assert differs(_deciding(settings, splits, None, model)) == ["starting weights"]


# --- what a run leaves behind


def test_lora_goes_on_after_a_break_and_is_saved_merged_at_its_best_step(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps, of which dev likes the second best; the broken run stops in the second, after a checkpoint."""
    dev: list[Example] = []
    seen: list[list[tuple[float, ...]]] = []

    def dev_scorer(examples: Sequence[Example], *_: Any, **__: Any) -> Callable[[Any], dict[str, float]]:
        dev[:] = examples

        def score(policy: Any) -> dict[str, float]:
            seen.append([ranking.scores for ranking in policy.rerank_batch(requests_of(examples))])
            return {"reward": [0.0, 1.0, 3.0, 2.0][len(seen) - 1]}

        return score

    monkeypatch.setattr("rankwright.cli.run.build_reader", lambda *_: Moody(math.inf))
    monkeypatch.setattr("rankwright.training.dev_scorer", dev_scorer)
    lora = [*command, "--reader", "embedded", "--lora-rank", "4", "--learning-rate", "0.1"]
    lora += ["--set", "loop.eval_steps=1"]
    losses, plain = itertools.count(1), Supervised.loss

    def breaking(*given: Any) -> Any:
        return interrupted() if next(losses) == 2 else plain(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Supervised, "loss", breaking)
        assert run(lora) == 130
    checkpoint = newest_checkpoint(Path("runs/a"))
    assert checkpoint is not None
    assert step_of(checkpoint) == 1
    assert any("lora_A" in name for name in load_file(checkpoint / "model.safetensors"))
    assert run([*lora, "--resume"]) in (0, 8)
    assert json.loads(Path("runs/a/result.json").read_text())["best_step"] == 2
    folder = Path("runs/a/model")
    start, saved = (load_file(path / "model.safetensors") for path in (Path("tiny"), folder))
    assert saved.keys() == start.keys()
    assert not list(folder.glob("*adapter*"))
    changed = {name for name in start if not saved[name].equal(start[name])}
    assert any("attention" in name for name in changed)
    assert not any("embeddings" in name for name in changed)
    reopened = [ranking.scores for ranking in load(folder).rerank_batch(requests_of(dev))]
    for scores, before, best, last in zip(reopened, seen[0], seen[2], seen[3], strict=True):
        assert scores == pytest.approx(best, abs=1e-5)
        assert scores != pytest.approx(before, abs=1e-3)
        assert scores != pytest.approx(last, abs=1e-3)
    seen.clear()
    lora[lora.index("a")] = "unbroken"
    assert run(lora) in (0, 8)
    other = Path("runs/unbroken/model/model.safetensors")
    assert other.read_bytes() == (folder / "model.safetensors").read_bytes()


REWARD_OF_ONES_OWN = """
calls = []

def right(*, prompts, completions, answers, doc_ids, position):
    calls.append({"prompts": prompts, "completions": completions, "answers": answers, "doc_ids": doc_ids,
                  "position": position})
    return [float(completion in accepted) for completion, accepted in zip(completions, answers)]
"""


def test_a_reward_and_a_template_of_ones_own_go_through_the_command(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr("rankwright.cli.run.build_reader", lambda *_: Moody(math.inf))
    Path("prices").mkdir()
    Path("prices/of_doors.py").write_text(REWARD_OF_ONES_OWN)
    template = "{text} is {title}"
    mine = ["--method", "rrpo", "--reader", "embedded", "--reward", "prices.of_doors:right", "--template", template]
    assert run([*command, *mine, "--learning-rate", "0.1"]) in (0, 8)

    calls = sys.modules["prices.of_doors"].calls
    row_of = {row["question"]: row for row in rows()}
    positions: set[int] = set()
    for call in calls:
        assert len({len(column) for column in call.values()}) == 1
        for prompt, completion, answers, doc_ids, position in zip(*call.values(), strict=True):
            row = row_of[prompt]
            key = next(passage["doc_id"] for passage in row["candidates"] if passage["doc_id"].startswith("key"))
            assert answers == row["answers"]
            assert completion == (row["answers"][0] if key in doc_ids else "")
            assert set(doc_ids) <= {passage["doc_id"] for passage in row["candidates"]}
            assert len(set(doc_ids)) == position
            positions.add(position)
    assert positions == {0, 1, 2, 3}

    model = load("runs/a/model")
    assert json.loads(Path("runs/a/model/config.json").read_text())["rankwright"]["template"] == template
    titled, spelled = Document("t", "Door 10", "Paint"), Document("s", "Door 10 is Paint")
    usual = Document("u", "Paint: Door 10")
    scores = {d.doc_id: model.rerank("What is painted?", [d]).scores[0] for d in (titled, spelled, usual)}
    assert scores["t"] == pytest.approx(scores["s"], abs=1e-6)
    assert scores["t"] != pytest.approx(scores["u"], abs=1e-3)
    compared = Evaluation.load("runs/a/evaluation.json")
    for ranking in model.rerank_batch(requests_of(compared.examples)):
        found = compared.models["trained"].rankings[ranking.query_id]
        assert (found.doc_ids, found.scores) == (ranking.doc_ids, pytest.approx(ranking.scores, abs=1e-5))


def test_a_trained_model_opens_in_the_fastest_backend(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the scores that the run's own comparison has of it, which are not those of where it started."""
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))
    others = [{**row, "relevance": {row["candidates"][0]["doc_id"]: 1}} for row in rows()]
    write_rows(Path("q.jsonl"), others)  # where it started is right about the usual labels
    assert run([*command, "--learning-rate", "0.01", "--epochs", "4"]) in (0, 8)
    capsys.readouterr()
    found = load("runs/a/model", backend="auto")
    chosen = json.loads(next((tmp_path / "cache").iterdir()).read_text())["backend"]
    assert f"runs/a/model: backend {chosen}, " in capsys.readouterr().err
    assert found.name == load("runs/a/model", backend=chosen).name
    compared = Evaluation.load("runs/a/evaluation.json")

    def held(name: str) -> list[float]:
        rankings = [compared.models[name].rankings[e.query.query_id] for e in compared.examples]
        return [score for ranking in rankings for _, score in sorted(zip(ranking.doc_ids, ranking.scores, strict=True))]

    ranked = found.rerank_batch(requests_of(compared.examples))
    scores = [score for ranking in ranked for _, score in sorted(zip(ranking.doc_ids, ranking.scores, strict=True))]
    (probed,) = load("runs/a/model").score_batch(choice.probes())
    allowed = choice.TOLERANCE * statistics.pstdev(probed.scores)
    assert scores == pytest.approx(held("trained"), abs=allowed)
    assert scores != pytest.approx(held("reference"), abs=allowed)


@pytest.mark.parametrize("method", ["rrpo", "supervised"])
def test_the_card_names_data_reader_and_reward_and_has_both_models(
    command: list[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("rankwright.cli.run.build_reader", lambda *_: Moody(math.inf))
    assert run([*command, "--method", method, "--reader", "embedded", "--reward", "sub_em"]) in (0, 8)
    card, result = Path("runs/a/model/README.md").read_text(), json.loads(Path("runs/a/result.json").read_text())
    assert f"Trained from `tiny` by `{method}` on 6 questions of `q.jsonl`" in card
    source = "the answers of the reader `moody` (reward sub_em);" if method == "rrpo" else "relevance labels;"
    assert f"learning from {source}" in card
    lines = card[card.index("## Before and after") :].splitlines()
    head, _, *models = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert [head[0], *(row[0] for row in models)] == ["model", "first-stage", "reference", "trained"]
    assert {"EM", "F1", "nDCG@10"} < set(head)
    assert [cell for row in models for cell in row[1:] if not re.fullmatch(r"\d\.\d{3} \[[\d., ]+\]", cell)] == []
    before, after = (row[head.index("F1")].split()[0] for row in models[1:])
    assert (before, after) == (f"{result['f1_reference']:.3f}", f"{result['f1_trained']:.3f}")
    assert "3 questions of `q-held-out` that were not used in training" in card
    assert "library_name: sentence-transformers" in card
    assert "opens in `sentence_transformers.CrossEncoder`" in card


def test_the_card_of_a_scoring_language_model_promises_no_cross_encoder(command: list[str], tmp_path: Path) -> None:
    words = (*WORDS, *(word for row in rows() for word in re.findall(r"\w+", row["question"])))
    plain = save_causal(tmp_path / "plain", words=tuple(dict.fromkeys(words)))
    load(plain, kind="yes-no").save(Path("scorer"))
    assert run([*command, "--model", "scorer"]) in (0, 8)
    card = Path("runs/a/model/README.md").read_text()
    assert "library_name: transformers" in card
    assert "scores (yes-no)" in card
    assert "AutoModelForCausalLM" in card
    assert not re.search("cross-?encoder", card, re.IGNORECASE)
    assert load("runs/a/model").rerank("What is it?", ["moon", "rain"]).scores
