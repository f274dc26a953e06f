"""`train --method sft` and `--method grpo`, from a file of questions to a model that opens again, on a decoder of a few
thousand weights in the ranking language."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

import rankwright
from benchmarks.ranking_language import language
from benchmarks.ranking_language.decoder import decoder, tokenizer
from rankwright.checkpoints import sorted_checkpoints
from rankwright.cli import common, tune
from rankwright.cli.app import run
from rankwright.cli.common import score_text
from rankwright.cli.run import damaged_records
from rankwright.evaluation import Evaluation
from rankwright.llms.cache import ReadStore
from rankwright.llms.local import LocalLLM
from rankwright.prompts import ask_for_passage, load_prompt
from rankwright.prompts.ranking import load_ranking_prompt
from rankwright.types import Example
from tests.chaos_reader import ChaosReader
from tests.cli_kit import ROOT, one_line, write_rows
from tests.training_kit import held_elsewhere

PROMPT = Path(language.__file__).with_name("listwise.yaml")
GIVEN = ["--data", "test.jsonl", "--retriever", "given", "--reader", "none"]
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


def row(example: Example) -> dict[str, Any]:
    return {
        "query_id": example.query.query_id,
        "question": f"{example.query.text}",
        "answers": list(example.answers),
        "candidates": [{"doc_id": f"{example.query.query_id}-{d.doc_id}", "text": d.text} for d in example.candidates],
        "relevance": {f"{example.query.query_id}-{doc_id}": grade for doc_id, grade in example.relevance.items()},
    }


def distinct(count: int, seed: int, side: language.Side = "train") -> list[Example]:
    """Questions of different words: the splits may share none."""
    found = {example.query.text: example for example in language.questions(300, seed, side=side, window=6)}
    return list(found.values())[:count]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    decoder(0, width=16, layers=1).save_pretrained("start")
    tokenizer().save_pretrained("start")
    held_out = distinct(8, 1, "test")
    sides = {"train": distinct(12, 0), "dev": held_out[:3], "test": held_out[3:]}
    for side, examples in sides.items():
        write_rows(tmp_path / f"{side}.jsonl", [row(example) for example in examples])
    files = [part for side in sides for part in ("--data" if side == "train" else f"--{side}", f"{side}.jsonl")]
    sets = {
        "generating.prompt": PROMPT,
        "generating.window": 6,
        "loop.batch_size": 4,
        "loop.eval_steps": 2,
        "grpo.max_completion_length": 20,
        "grpo.rollouts": 2,
        "grpo.completions_per_pass": 8,
    }
    set_ = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    return ["train", *files, "--retriever", "given", "--model", "start", "--learning-rate", "0.005", *set_]


def test_sft_teaches_the_form_and_saves_a_model_with_its_prompt(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = run([*command, "--method", "sft", "--name", "a", "--epochs", "120", "--output", "json"])
    result = one_line(capsys.readouterr().out)
    assert code in (0, 8)
    assert result["n"] == 5
    assert (result["malformed_reference"], result["method"]) == (1.0, "sft")
    assert result["malformed_trained"] < 1.0
    assert json.loads(Path("runs/a/result.json").read_text()) == result
    assert load_ranking_prompt("runs/a/model") == load_ranking_prompt(PROMPT)
    assert LocalLLM("runs/a/model", device="cpu").name
    assert json.loads(Path("runs/a/config.json").read_text())["method"] == "sft"
    logged = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    assert next(row["step"] for row in logged if "eval_malformed" in row) == 0
    check_records(result, capsys)


def check_records(result: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluation, card and report of runs/a say what result.json does, and other verbs open them."""
    evaluation = Evaluation.load("runs/a/evaluation.json")
    assert (evaluation.n, evaluation.signature, evaluation.settings.depth) == (5, result["signature"], 6)
    for row in ("reference", "trained"):
        values = evaluation.models[row].values["nDCG@10"].values()
        assert sum(values) / 5 == pytest.approx(result[row]) == pytest.approx(evaluation.scores[row]["nDCG@10"].mean)
    assert evaluation.models["reference"].rankings == evaluation.models["first-stage"].rankings  # all were malformed
    assert damaged_records(Path("runs/a")) == []
    card = Path("runs/a/model/README.md").read_text("utf-8")
    assert "Trained from `start` by `sft` on 12 questions of `train.jsonl`" in card
    assert score_text(evaluation.scores["trained"]["nDCG@10"]) in card
    assert "LLMReranker, Sliding" in card
    assert result["signature"] in Path("runs/a/report.html").read_text("utf-8")
    assert run(["report", "runs/a", "--out", "again.html"]) == 0
    assert run(["compare", "runs/a", "runs/a", "--before-model", "reference", "--output", "json"]) in (0, 8)
    assert one_line(capsys.readouterr().out)["delta"] == pytest.approx(result["delta"])
    section = Path("again.html").read_text("utf-8").partition('id="reproduce"')[2]
    *_, comparison = (shlex.split(html.unescape(text)) for text in re.findall(r"<pre>(.*?)</pre>", section, re.DOTALL))
    assert run([*comparison[1:], "--output", "json"]) in (0, 8)
    found = one_line(capsys.readouterr().out)["models"]
    assert found["runs/a/model"]["nDCG@10"] == pytest.approx(result["trained"])
    assert found["start"]["nDCG@10"] == pytest.approx(result["reference"])


def test_a_run_that_another_process_makes_is_refused_before_anything_is_read(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankwright.cli.tune.load_splits", lambda *_: pytest.fail("the questions were loaded"))
    with held_elsewhere(Path("runs/a")):
        assert run([*command, "--method", "sft", "--name", "a"]) == 6
    assert "Run folder runs/a is being written by process 7 on moon" in " ".join(capsys.readouterr().err.split())


def test_in_python_train_tunes_too(command: list[str]) -> None:
    Path("runs/start").mkdir(parents=True)
    Path("start").rename("runs/start/model")  # a run's folder stands for its model
    data = {side: f"{side}.jsonl" for side in ("train", "dev", "test")} | {"retriever": "given"}
    settings = {
        "method": "sft",
        "data": data,
        "model": {"name": "runs/start"},
        "generating": {"prompt": str(PROMPT), "window": 6},
        "loop": {"trainer": {"max_steps": 1}},
    }
    result = rankwright.train("a", settings)
    assert (result["method"], result["steps"], result["n"]) == ("sft", 1, 5)
    card = Path("runs/a/model/README.md").read_text("utf-8")
    assert "```\nrankwright.train('a', ...)\n```" in card


def test_a_run_that_nothing_can_be_compared_in_says_so(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in Path("test.jsonl").read_text("utf-8").splitlines()]
    write_rows(Path("test.jsonl"), [{name: row[name] for name in row if name != "relevance"} for row in rows])
    assert run([*command, "--method", "sft", "--name", "a", "--epochs", "0.1"]) == 0
    assert "Nothing was compared" in " ".join(capsys.readouterr().err.split())
    assert "Not compared." in Path("runs/a/model/README.md").read_text("utf-8")
    assert not Path("runs/a/evaluation.json").exists()
    for verb in (["rerank", "q", "p", "--model", "runs/a"], ["serve", "runs/a"], ["eval", "runs/a/model", *GIVEN]):
        assert run(verb) == 5
        said = " ".join(capsys.readouterr().err.split())
        assert "is a language model that writes its ranking" in said
        assert "rankwright rerank --llm runs/a" in said
    for verb in (["report", "runs/a"], ["compare", "runs/a", "runs/a"]):
        assert run(verb) != 0
        said = " ".join(capsys.readouterr().err.split())
        assert "Run runs/a is finished and was not scored" in said
        assert "--resume" not in said


@pytest.mark.parametrize("reward", ["rearank", "f1"])
def test_grpo_runs_from_questions_to_model(
    command: list[str], reward: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "now_and_then", lambda: common.say)  # every line, not one in ten seconds
    assert run([*command, "--method", "grpo", "--name", "a", "--epochs", "1", "--reward", reward]) in (0, 8)
    said = capsys.readouterr().err
    assert "3 steps" in said
    assert "training: step 0 of 3, dev " in said
    assert re.search(r"training: step 3 of 3, reward -?[\d.]+, dev [\d.]+, loss -?[\d.]+\n", said)
    logged = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    assert sum("reward" in row for row in logged) == 3
    assert all(row["malformed"] == 1.0 for row in logged if "reward" in row)
    assert (Path("runs/a/model") / "model.safetensors").is_file()
    assert load_ranking_prompt("runs/a/model") == load_ranking_prompt(PROMPT)  # it asks for 36 tokens, more than 20


JUDGE = """
import asyncio
async def judged(words, order, relevance):
    await asyncio.sleep(0.001)
    if words.startswith("[1]"):
        raise TimeoutError("no answer")
    return len(words) / 100
async def price(completions, orders, relevance, scale, **_):
    assert scale == 2
    return await asyncio.gather(*map(judged, completions, orders, relevance), return_exceptions=True)
"""


def test_an_async_function_prices_what_was_written_without_a_reader(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("grpo_judge.py").write_text(JUDGE, encoding="utf-8")
    grpo = [*command, "--method", "grpo", "--name", "a", "--epochs", "1", "--reader", "none"]
    options = ["--reward", "grpo_judge:price", "--set", "grpo.max_failed_rewards=1"]
    grpo += ["--set", "grpo.max_completion_length=38"]
    assert run([*grpo, *options]) == 2
    assert "do not fit: missing a required argument: 'scale'" in " ".join(capsys.readouterr().err.split())
    assert run([*grpo, *options, "--reward-option", "scale=2"]) in (0, 8)
    logged = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    rewards = [row for row in logged if "reward" in row]
    assert dict(load_ranking_prompt("runs/a/model").sampling) == {"max_tokens": 38, "temperature": 0}  # as in training
    assert len(rewards) == 3
    assert all(row["reward"] > 0 for row in rewards)
    assert json.loads(Path("runs/a/config.json").read_text())["reward_options"] == {"scale": 2}


def test_options_of_a_reward_reach_it_and_its_parts_reach_the_log(command: list[str]) -> None:
    """All that is written is malformed: the rank term is what its ladder (without tags) pays, the reader's -1."""
    grpo = [*command, "--method", "grpo", "--epochs", "1", "--reward-option"]
    ladder = "ladder={rungs: [{fault: judgement, pays: 7, source: ours, where: test}]}"
    for name, reward, option, wanted in (
        ("a", "rearank", ladder, {"reward": 0.8 * 7 + 0.1, "parts/rank": 7.0, "parts/tags": 1.0}),
        ("b", "f1", "anchored=true", {"reward": -1.0, "parts/well_formed": 0.0}),
    ):
        assert run([*grpo, option, "--name", name, "--reward", reward]) in (0, 8)
        rows = map(json.loads, Path(f"runs/{name}/metrics.jsonl").read_text().splitlines())
        first = next(row for row in rows if "reward" in row)
        assert {part: first[part] for part in wanted} == pytest.approx(wanted)


def test_a_run_that_is_out_of_time_goes_on(
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["rankwright", "train", "--name", "a", "--begun"])
    tune = [*command, "--method", "grpo", "--name", "a", "--epochs", "1", "--reward", "rearank"]
    assert run([*tune, "--max-hours", "0.0000001"]) == 9
    assert "--max-hours 1e-07 is over at step 1" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in sorted_checkpoints(Path("runs/a"))] == ["checkpoint-1"]
    assert run(tune) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert run([*tune, "--resume", "--set", "grpo.rollouts=4"]) == 2
    assert "grpo.rollouts is 4" in " ".join(capsys.readouterr().err.split())
    assert run([*tune, "--resume", "--max-hours", "0.0000001"]) == 9
    assert "--max-hours 1e-07 is over at step 1" in " ".join(capsys.readouterr().err.split())  # not a step more
    monkeypatch.setattr("sys.argv", ["rankwright", "train", "--name", "a", "--later", "--resume"])
    assert run([*tune, "--resume"]) in (0, 8)
    assert "3 steps" in capsys.readouterr().err
    assert "Goes on from checkpoint-1; any later steps are made again.\n" in caplog.text
    page = Path("runs/a/report.html").read_text("utf-8")
    assert "rankwright train --name a --begun" in page
    assert "--later" not in page


def test_a_run_without_a_checkpoint_cannot_resume_with_other_settings(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused before anything is read or paid."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    tune_again = [*command, "--method", "grpo", "--name", "a", "--epochs", "1", "--reward", "rearank"]
    with monkeypatch.context() as patched:
        patched.setattr(tune._Work, "tuned", interrupted)
        assert run(tune_again) == 130
    assert not sorted_checkpoints(Path("runs/a"))
    with monkeypatch.context() as patched:
        patched.setattr("rankwright.cli.tune.load_splits", lambda *_, **__: pytest.fail("the questions were loaded"))
        for more, words in (
            (["--seed", "7"], "Setting seed is 7, but the run in runs/a began with 0"),
            (["--learning-rate", "0.5"], "Setting loop.learning_rate is 0.5, but"),
            (["--method", "sft"], "Setting method is 'sft', but"),
        ):
            assert run([*tune_again, "--resume", *more]) == 2
            assert words in " ".join(capsys.readouterr().err.split())
    assert run([*tune_again, "--resume", "--max-hours", "9", "--set", "grpo.completions_per_pass=4"]) in (0, 8)


def test_prompts_that_are_too_long_are_shortened_where_that_is_wanted(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A prompt: three words, six passages of identifier and four words, and a mark; cut to three words it has 28."""
    whole, short = 3 + 6 * (1 + 4) + 1, 3 + 6 * (1 + 3) + 1
    grpo = [*command, "--method", "grpo", "--name", "a", "--epochs", "1", "--reward", "f1", "--max-hours", "0.0000001"]
    limits = ["--set", f"generating.max_prompt_length={short}", "--set", "generating.passage_unit=words"]
    assert run([*grpo, *limits]) == 2
    assert f"has {whole} tokens; wanted {short} at most" in " ".join(capsys.readouterr().err.split())
    assert run([*grpo, *limits, "--overwrite", "--set", "generating.shorten_to_fit=true"]) == 9
    said = " ".join(capsys.readouterr().err.split())
    assert f"12 of 12 training prompts had more than {short} tokens" in said


def test_what_is_too_long_is_refused_before_the_start_is_loaded(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The start answers all test questions first, which takes hours with a large model."""
    monkeypatch.setattr(tune._Work, "_started", lambda work: pytest.fail("It was loaded."))
    positions = AutoConfig.from_pretrained("start").max_position_embeddings
    words = 3 + 6 * (1 + 4) + 1
    grpo, sft = [[*command, "--name", "a", "--method", method, "--epochs", "1"] for method in ("grpo", "sft")]
    grpo += ["--reward", "rearank"]
    room = ["--set", f"grpo.max_completion_length={positions - words}"]
    cases: list[tuple[list[str], str]] = [
        ([*grpo, "--set", "generating.max_prompt_length=9"], f"longest training prompt has {words} tokens; wanted 9"),
        ([*sft, "--set", "generating.max_prompt_length=9"], f"longest training prompt has {words} tokens; wanted 9"),
        ([*sft, "--set", f"sft.max_length={words}"], f"wanted {words} at most (sft.max_length"),
    ]
    for arguments, said in cases:
        assert run(arguments) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    dev = [json.loads(line) for line in Path("dev.jsonl").read_text("utf-8").splitlines()]
    dev[0]["candidates"][0]["text"] += " and more"
    write_rows(Path("dev.jsonl"), dev)
    assert run([*grpo, *room]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"longest dev prompt has {words + 2} tokens; wanted {words} at most" in said
    assert not Path("runs").exists()


def test_a_dry_run_refuses_what_the_run_would(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Of 12 training questions a generation takes 4."""
    grpo = [*command, "--name", "a", "--method", "grpo", "--reward", "rearank"]
    assert run([*grpo, "--dry-run", "--output", "json"]) == 0
    assert one_line(capsys.readouterr().out)["budget"]["questions"] == 2 * 12
    three = ["--set", "grpo.updates=3"]  # 4 questions x 1 prompt x 2 rollouts
    decoder(0, width=16, layers=1).save_pretrained("bare")
    without = tokenizer()
    without.chat_template = None
    without.save_pretrained("bare")
    cases = [
        (["--set", "loop.batch_size=13"], "A generation takes 13 questions", "--set loop.batch_size=12,"),
        (["--set", "loop.accumulation=5"], "A generation takes 20 questions", "--set loop.batch_size=2,"),
        (three, "A generation has 8 completions", "wanted a multiple of 3"),
        (["--set", "loop.trainer.optim=nobody"], "Training argument optim is 'nobody'", "wanted one of"),
        (["--model", "bare"], "has no chat template", "wanted one"),
        (["--model", "empty"], "Model 'empty' has no tokenizer that opens", "save_pretrained"),
    ]
    Path("empty").mkdir()
    Path("empty", "config.json").write_text("{}", "utf-8")
    for more, *said in cases:
        for dry in (["--dry-run"], []):
            assert run([*grpo, *more, *dry]) == (5 if "empty" in more else 2)
            text = " ".join(capsys.readouterr().err.split())
            assert [words for words in said if words not in text] == []
    assert run([*grpo, "--model", "no/such"]) == 5
    assert "Model 'no/such' has no tokenizer that opens" in " ".join(capsys.readouterr().err.split())
    stage = [*grpo, "--model", "runs/first-stage/model"]  # which is still to be trained
    assert run([*stage, "--dry-run"]) == 0
    assert run(stage) == 4
    assert "Model folder 'runs/first-stage/model' does not exist" in " ".join(capsys.readouterr().err.split())
    assert not Path("runs").exists()


def test_eranks_reference_is_what_rerank_wrote_and_every_document_has_one(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = Path(language.__file__).with_name("integer.yaml")
    erank = [*command, "--method", "grpo", "--name", "a", "--epochs", "1", "--reward", "erank"]
    erank += ["--set", f"generating.prompt={prompt}", "--reward-option", "reference=scores.json"]
    rows = [json.loads(line) for line in Path("train.jsonl").read_text("utf-8").splitlines()]
    ids = {row["query_id"]: [passage["doc_id"] for passage in row["candidates"]] for row in rows}
    rankings = [
        {"query_id": query_id, "doc_ids": doc_ids, "scores": [9.0 - rank for rank in range(len(doc_ids))]}
        for query_id, doc_ids in ids.items()
    ]
    Path("scores.json").write_text(json.dumps({"outcomes": {"malformed": 2}, "rankings": rankings[1:]}), "utf-8")
    assert run(erank) == 5
    said = " ".join(capsys.readouterr().err.split())
    assert "no reference score for 6 documents" in said
    assert said.count("2 scores of scores.json could not be read") == 1
    assert not Path("runs").exists()
    Path("scores.json").write_text(json.dumps({"outcomes": {"malformed": 0}, "rankings": rankings}), "utf-8")
    seen: list[dict[tuple[str, str], float]] = []

    def stop(model: Any, tokenizer: Any, reward: Any, *rest: Any, **more: Any) -> None:
        seen.append(reward.reward.reference)
        raise KeyboardInterrupt

    monkeypatch.setattr("rankwright.tuning.tune_by_reward", stop)
    assert run(erank) != 0
    assert seen == [{(q, doc_id): 9.0 - rank for q, doc_ids in ids.items() for rank, doc_id in enumerate(doc_ids)}]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"rankings": [{}]}',
        '{"outcomes": {"malformed": 0}, "rankings": [{"query_id": "q", "doc_ids": ["a"]}]}',
    ],
)
def test_a_reference_that_is_none_is_named(text: str, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("scores.json").write_text(text, "utf-8")
    erank = [*command, "--method", "grpo", "--name", "a", "--reward", "erank", "--reward-option"]
    assert run([*erank, "reference=scores.json"]) == 2
    assert "Option reference is 'scores.json'" in " ".join(capsys.readouterr().err.split())


def best_first(orders: dict[str, list[str]]) -> dict[str, list[str]]:
    """The same documents, by their grades in test.jsonl."""
    rows = map(json.loads, Path("test.jsonl").read_text("utf-8").splitlines())
    grades = {row["query_id"]: row["relevance"] for row in rows}
    return {q: sorted(ids, key=lambda doc_id: -grades[q].get(doc_id, 0)) for q, ids in orders.items()}


def test_what_the_start_came_to_is_measured_once(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = tune._Work._started
    monkeypatch.setattr(tune._Work, "_started", lambda work: asked.append("loaded") or original(work))
    grpo = [*command, "--method", "grpo", "--name", "a", "--epochs", "1", "--reward", "rearank"]
    assert run([*grpo, "--max-hours", "0.0000001"]) == 9
    kept = json.loads(Path("runs/a/before.json").read_text())
    assert len(kept["orders"]) == 5
    Path("runs/a/before.json").write_text(json.dumps({**kept, "orders": best_first(kept["orders"])}))
    assert run([*grpo, "--resume"]) in (0, 8)
    assert asked == ["loaded"]
    assert json.loads(Path("runs/a/result.json").read_text())["reference"] == 1
    assert run([*grpo, "--overwrite", "--max-hours", "0.0000001"]) == 9
    assert asked == ["loaded"] * 2


def test_what_cannot_be_tuned_is_refused_before_anything_is_read(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        ("--reward", "rerank"): "Reward 'rerank' is unknown; wanted one of rearank",
        ("--resume", "--reward", "rearank"): "holds no run to resume",
        ("--reward", "f1", "--max-reader-calls", "3"): "could make 24 reader calls",
        ("--reward", "f1", "--reward-option", "anchored=1", "--max-reader-calls", "3"): "could make 36 reader calls",
        ("--reward", "rearank", "--set", "generating.prompt=nobody"): "neither a file",
        ("--reward", "rearank", "--set", "loop.stop_on_alarm=true"): "but method grpo has no alarms",
    }
    for more, words in cases.items():
        code = run([*command, "--method", "grpo", "--name", "b", "--epochs", "1", *more])
        assert code, more
        assert code == 4 or "--resume" not in more
        assert words in " ".join(capsys.readouterr().err.split()), more
    assert not Path("runs").exists()


# --- query expansion


def expanding(command: list[str], server: ChaosReader, name: str, *more: str) -> list[str]:
    """GRPO on 20 questions whose candidates BM25 finds with a passage of the server's; ended after its first step."""
    asked = ["--retriever", "bm25", "--expand-with", server.base_url, "--expand-model", "m"]
    short = ["--depth", "6", "--eval-depth", "6", "--epochs", "1", "--max-hours", "0.0000001"]
    return [*command, "--method", "grpo", "--name", name, "--reward", "rearank", *asked, *short, *more]


def spent(cache: str = "runs/reads.sqlite") -> dict[str, int]:
    """Calls of every run."""
    with ReadStore(cache) as store:
        return {name: store.ledger.totals(name).calls for name in store.ledger.runs()}


def test_a_resume_goes_on_with_the_passages_of_query_expansion_that_the_run_began_with(command: list[str]) -> None:
    """A question that failed at the beginning would get one now, and other candidates with it."""
    text = json.loads(Path("train.jsonl").read_text("utf-8").splitlines()[0])["question"]
    failing = ask_for_passage(load_prompt("query2doc-1", "query2doc"), text)
    with ChaosReader({failing: ["400"]}) as server:
        grpo = expanding(command, server, "a", "--set", "expansion.max_failed=0.1")
        assert run(grpo) == 9
        assert len(server.ledger) == 20
        before = Path("runs/a/expansions.jsonl").read_bytes()
        assert before.count(b'"failed"') == 1
        run_id = json.loads(Path("runs/a/config.json").read_text())["run_id"]
        assert spent() == {f"{run_id}/expansion": 20}
        assert run([*grpo, "--resume", "--max-hours", "0"]) in (0, 8)
        assert len(server.ledger) == 20
        assert Path("runs/a/expansions.jsonl").read_bytes() == before
        result = json.loads(Path("runs/a/result.json").read_text())
        unknown = {"price": None, "known_price": 0.0, "unpriced_calls": 20}
        assert result["expansion"] == {"questions": 20, "failed": 1, "calls": 20, **unknown}
        assert run(expanding(command, server, "a", "--expand-with", "none", "--expand-model", "", "--overwrite")) == 9
    assert not Path("runs/a/expansions.jsonl").exists()


def test_calls_of_query_expansion_count_toward_the_limits_of_their_own_run(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with ChaosReader() as server:
        assert run(expanding(command, server, "a", "--max-reader-calls", "20")) == 9
        assert "--max-hours 1e-07 is over" in capsys.readouterr().err  # and no other limit
        other = ["--expand-model", "n", "--reader", server.base_url, "--reader-model", "n", "--reward", "f1"]
        assert run(expanding(command, server, "b", *other, "--max-reader-calls", "43")) == 9
        said = " ".join(capsys.readouterr().err.split())
        assert "could make 24 reader calls and 20 of query expansion" in said
        assert len(server.ledger) == 20
        for more, words in (
            (["--set", "loop.batch_size=99"], "A generation takes 99 questions"),
            (["--set", "generating.prompt=nobody"], "neither a file"),
            (["--reader-model", ""], "was given without a model name"),
        ):
            assert run(expanding(command, server, "b", *other, *more)) != 0
            assert words in " ".join(capsys.readouterr().err.split())
        assert len(server.ledger) == 20
        assert not Path("runs/b").exists()
        free = ["--set", "expansion.price_input=0", "--set", "expansion.price_output=0"]
        priced = ["--price-input", "1000000", "--price-output", "0", *free, "--max-cost", "200"]
        assert run(expanding(command, server, "b", *other, *priced)) == 9  # found once the candidates are known
        assert "Training has not begun" in " ".join(capsys.readouterr().err.split())
        assert len(server.ledger) == 40
        assert run(expanding(command, server, "b", *other, "--max-reader-calls", "44")) == 9
        assert "--max-hours 1e-07 is over" in " ".join(capsys.readouterr().err.split())
        assert sum(seen.question.startswith("Write a short passage") for seen in server.ledger) == 40
    assert not Path("runs/b/run_id").exists()
    assert list(spent().values()) == [20, 20]  # what a model that has learned nothing writes is not read


def test_of_two_processes_the_first_one_asks_for_query_expansion_and_tells_how_it_ends(command: list[str]) -> None:
    launcher = ["-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def said(*arguments: str) -> str:
        words = [sys.executable, *launcher, "rankwright.cli", *arguments]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240, check=False)
        return done.stderr

    with ChaosReader() as server:
        over = said(*expanding(command, server, "a"))
        assert over.count("--max-hours 1e-07 is over") == 1, over[-3000:]
        assert len(server.ledger) == 20
    refused = said(*command, "--method", "sft", "--name", "b", "--set", "sft.max_length=5")
    assert refused.count("tokens of prompt and completion; wanted 5 at most") == 1, refused[-3000:]
