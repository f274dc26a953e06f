"""`train --dry-run` and the limits of `train`, against an endpoint that bills every byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from rankwright import evaluation
from rankwright.algorithms.config import TrainConfig
from rankwright.cli.app import run
from rankwright.cli.dry_run import _longest
from rankwright.cli.train import DEMO_FOLDER
from rankwright.llms.cache import LedgerTotals, ReadStore
from rankwright.training import check_arguments
from rankwright.types import Document, Example, Query
from tests.chaos_reader import ChaosReader
from tests.cli_kit import body_of, make_model, one_line, reply, rows, serving, write_rows
from tests.tiny_lm import make_chain_model

HERE = {"data.retriever": "given", "data.dev_share": "0.25", "data.test_share": "0.25", "loop.eval_steps": "2"}
PRICES = ("--price-input", "1000", "--price-output", "2000")
REFUSED_ARGUMENTS = {
    "optim": "nobody",
    "lr_scheduler_type": "nobody",
    "fp16": "true",
    "report_to": "nobody",
    "lr_scheduler_kwargs": "{nobody: 1}",
}
"""What transformers alone knows to be wrong."""


class Server:
    """Finds the key of a door in its prompt; bills a token for each byte in, and as many out as were allowed."""

    def __init__(self, *, says_usage: bool = True) -> None:
        self.prompts: list[str] = []
        self.says_usage = says_usage

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(body_of(request))
        prompt = body["messages"][-1]["content"]
        self.prompts.append(prompt)
        found = re.search(r"The key of door \d+ is (\w+)", prompt)
        message = {"role": "assistant", "content": found[1] if found else "NO ANSWER"}
        usage = {"prompt_tokens": len(prompt.encode()), "completion_tokens": body["max_tokens"]}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        reply(request, {"id": "x", "choices": [choice], **({"usage": usage} if self.says_usage else {})})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "q.jsonl", rows())
    make_model(tmp_path / "tiny")
    return tmp_path


def command(reader: str, *more: str, name: str = "a", **settings: str) -> list[str]:
    """Six training questions, two a step; three on dev and three to compare. The servers here let few wait."""
    settings = {"reader.concurrency": "2", **settings}
    named = [text for key, value in {**HERE, **settings}.items() for text in ("--set", f"{key}={value}")]
    asked = ["--reader-model", "m"] if reader.startswith("http") else []
    plain = ["train", "--name", name, "--data", "q.jsonl", "--model", "tiny", "--reader", reader, *asked]
    return [*plain, "--epochs", "2", "--set", "loop.batch_size=2", *named, *more]


@contextmanager
def endpoint(server: Server | None = None) -> Iterator[tuple[str, Server]]:
    server = server or Server()
    with serving(server) as address:
        yield f"{address}/v1", server


def spent(name: str = "a", cache: str = "runs/reads.sqlite") -> LedgerTotals:
    with ReadStore(cache) as store:
        (run_id,) = [run for run in store.ledger.runs() if run.startswith(f"{name}-")]
        return store.ledger.totals(run_id)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- limits


def test_a_run_stops_at_its_limit_of_calls_and_goes_on_as_if_it_had_not(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By what each message says would do, until the run is whole; and no answer is paid for twice."""
    with endpoint() as (address, server):
        assert run(command(address, "--cache", "whole.sqlite", name="whole")) in (0, 8)
        whole = spent("whole", "whole.sqlite")
        assert len(server.prompts) == whole.calls
        server.prompts.clear()
        limit, resume, sessions = 50, [], 0
        while True:
            sessions += 1
            code = run(command(address, "--max-reader-calls", str(limit), *resume))
            said = capsys.readouterr().err
            assert len(server.prompts) == spent().calls <= limit
            if code != 9:
                break
            assert f"wanted at most {limit} in all (--max-reader-calls; " in said
            assert "with --resume and a higher limit" in said
            told = rf"Reader calls {spent().calls} \(0 failed\)(, \d+ attempts)?, price unknown; they stand in runs/"
            assert re.search(told, said)
            limit = int(would_do(said))
            resume = ["--resume"]
    assert code in (0, 8), said
    assert sessions > 2
    assert spent().calls == whole.calls
    assert max(map(server.prompts.count, server.prompts)) == 1
    for file in ("model/model.safetensors", "metrics.jsonl"):
        one, two = (Path("runs", name, file).read_bytes() for name in ("whole", "a"))
        assert _uncounted(one) == _uncounted(two)


def _uncounted(content: bytes) -> bytes:
    """The share of answers that came from the cache may differ after a stop."""
    return re.sub(rb'"(eval_)?(reader_calls|cache_hits)": [\d.]+', b"", content)


def test_a_limit_stops_before_the_first_call(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Or, where that one may be made, before training; the next command begins."""
    with endpoint() as (address, server):
        assert run(command(address, *PRICES, "--max-cost", "0.0001")) == 9
        assert "the first call may cost" in capsys.readouterr().err
        assert not server.prompts
        assert run(command(address, "--max-reader-calls", "1")) == 9
        assert "The run has made 1 reader calls and the next step may make" in capsys.readouterr().err
        assert len(server.prompts) == 1
        assert [path.name for path in Path("runs/a").iterdir() if path.is_file()] == ["run_id"]
        assert run(command(address, "--max-reader-calls", "1000")) in (0, 8)


def test_a_limit_stops_before_the_comparison_and_what_would_do_does_after_a_kill(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three evaluations on dev and the first call are all that learning from labels costs. Three questions are compared
    in no more than twelve orders, of which each is read once."""
    with endpoint() as (address, server):
        labels = [*command(address), "--method", "supervised", "--epochs", "1"]
        assert run([*labels, "--max-reader-calls", "10"]) == 9
        said = capsys.readouterr().err
        found = re.search(
            r"has made (\d+) reader calls and the comparison may make (\d+) more; wanted at most 10", said
        )
        assert found
        made, missing = map(int, found.groups())
        assert (made + missing > 10, missing <= 12) == (True, True)
        assert "The model is trained and saved: the same command with --resume and a higher limit makes the" in said
        assert len(server.prompts) <= 10
        trained = Path("runs/a/model/model.safetensors").read_bytes()
        assert not Path("runs/a/result.json").exists()
        enough = ["--resume", "--max-reader-calls", str(int(would_do(said)))]
        with monkeypatch.context() as patch:
            patch.setattr(evaluation, "READS_AT_ONCE", 2)
            patch.setattr(evaluation, "_check_failures", interrupted)
            assert run([*labels, *enough]) == 130
        assert spent().calls == made + 2
        assert run([*labels, *enough]) in (0, 8)
        assert spent().calls == len(server.prompts) == made + missing
        assert Path("runs/a/model/model.safetensors").read_bytes() == trained
    assert json.loads(Path("runs/a/result.json").read_text())["steps"] == 3


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_the_cost_stays_below_its_limit(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """10 tokens in and 3 out a call: far below the bound, by which the next step is judged all the same."""
    with ChaosReader() as server:
        assert run(command(server.base_url, *PRICES, "--max-cost", "1")) == 9
        refused = capsys.readouterr().err
        assert len(server.ledger) == 1
        server.ledger.clear()
        limit = would_do(refused)
        assert run(command(server.base_url, *PRICES, "--max-cost", str(limit), name="b")) == 9
        said = capsys.readouterr().err
        cost = len(server.ledger) * (10 * 1000 + 3 * 2000) / 1e6
    assert "Training has not begun" in refused
    assert re.search(rf"wanted at most {limit:g} in all \(--max-cost; .*All is saved at step [1-5] of 6", said)
    assert spent("b").known_price == pytest.approx(cost)
    assert 0.1 < cost <= limit


def would_do(said: str) -> float:
    """The limit that a refusal names."""
    return float(re.findall(r"--max-[a-z-]+; ([\d.]+) would do", said)[0])


def test_a_server_that_bills_every_byte_does_not_exceed_the_cost(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit, resume, sessions = 40.0, [], 0
    with endpoint() as (address, _):
        while True:
            sessions += 1
            code = run(command(address, *PRICES, "--max-cost", str(limit), *resume))
            said = capsys.readouterr().err
            assert spent().price is not None
            assert spent().known_price <= limit
            if code != 9:
                break
            limit, resume = would_do(said), ["--resume"]
    assert (code in (0, 8), sessions > 2) == (True, True), said


def test_calls_that_tell_no_usage_are_counted_as_the_dearest(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with endpoint(Server(says_usage=False)) as (address, server):
        assert run(command(address, *PRICES, "--max-cost", "50")) == 9
        said = capsys.readouterr().err
    assert server.prompts
    bills = sum(len(prompt.encode()) * 1000 + 64 * 2000 for prompt in server.prompts) / 1e6
    assert 20 < bills <= 50
    assert f"({len(server.prompts)} calls of unknown price counted as the dearest there can be)" in said


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ([], "but the price of reader http://127.0.0.1:9/v1 is not known; wanted --price-input and --price-output"),
        (["--price-input", "1"], "is not known; wanted --price-input and --price-output"),
        ([*PRICES, "--set", "reader.sampling={temperature: 0}"], "wanted max_tokens or max_completion_tokens in it"),
    ],
    ids=["no price", "half a price", "answers without end"],
)
def test_a_cost_that_cannot_be_known_is_refused_before_anything(
    here: Path, capsys: pytest.CaptureFixture[str], more: list[str], wanted: str
) -> None:
    before = files(here)
    assert run(command("http://127.0.0.1:9/v1", "--max-cost", "5", *more)) == 2
    assert wanted in capsys.readouterr().err
    assert files(here) == before


def test_hours_end_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = [*command("none"), "--method", "supervised"]
    assert run([*labels, "--max-hours", "0.000000001"]) == 9
    assert "wanted at most 1e-09 (--max-hours). Training has not begun" in capsys.readouterr().err
    assert run([*labels, "--max-hours", "1", "--max-cost", "1", "--max-reader-calls", "1"]) == 0


def test_a_run_under_a_limit_keeps_its_ledger(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another cache would count from 0."""
    with endpoint() as (address, server):
        assert run(command(address, "--max-reader-calls", "60")) == 9
        made = len(server.prompts)
        capsys.readouterr()
        assert run(command(address, "--max-reader-calls", "90", "--resume", "--cache", "other.sqlite")) == 2
        assert re.search(
            r"run in runs/a has made \d+ reader calls, but the ledger in other\.sqlite knows of 0; wanted the cache",
            capsys.readouterr().err,
        )
        assert len(server.prompts) == made
        assert run(command(address, "--resume", "--cache", "other.sqlite")) in (0, 8)
        warned = re.search(r"Warning: .* has made (\d+) reader calls, but .* knows of 0", capsys.readouterr().err)
        result = json.loads(Path("runs/a/result.json").read_text("utf-8"))
        assert warned
        assert result["reader_calls"] == int(warned[1]) + len(server.prompts) - made
        assert (result["price"], result["unpriced_calls"]) == (None, result["reader_calls"])
        assert run(command(address, "--resume", "--cache", "other.sqlite")) in (0, 8)
        again = json.loads(Path("runs/a/result.json").read_text("utf-8"))
        assert again["reader_calls"] == result["reader_calls"]
        assert run(command(address, "--max-reader-calls", "90", "--resume", "--cache", "other.sqlite")) in (0, 8)


def test_an_unknown_limit_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command("embedded", **{"budget.cents": "1"})) == 2
    assert "no setting budget.cents" in capsys.readouterr().err


# --- the dry run

PARTS = ["first_call", "training", "dev", "comparison", "total"]
BATCHES = 1 + 6 + 4 + 1
"""The first call, six rollouts, four evaluations, the comparison."""


def dry(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> dict[str, Any]:
    """Its record; nothing may be written."""
    before = files(Path())
    assert run([*arguments, "--dry-run", "--output", "json"]) == 0
    assert files(Path()) == before
    assert not Path("runs").exists()
    found = one_line(capsys.readouterr().out)
    assert list(found) == [
        "steps",
        "questions",
        "evaluations",
        "calls",
        "expansion_calls",
        "expansion_price",
        "input_tokens",
        "input_tokens_are",
        "estimated_input_tokens",
        "output_tokens",
        "price",
        "estimated_price",
        "seconds",
        "paced_seconds",
        "reads_at_most_seconds",
    ]
    assert [list(found[name]) for name in ("calls", "input_tokens", "output_tokens")] == [PARTS] * 3
    assert list(found["seconds"]) == ["training", "dev", "comparison", "reads", "total"]
    for sums in (found["calls"], found["input_tokens"]):
        assert sums["total"] == sum(sums[part] for part in PARTS[:-1])
    return found


@pytest.mark.parametrize(
    "settings", [{}, {"rrpo.inner_epochs": "2", "rrpo.train_k": "1"}, {"loop.accumulation": "2"}], ids=str
)
def test_a_run_costs_no_more_than_its_dry_run_says(
    here: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, str]
) -> None:
    with endpoint() as (address, server):
        arguments = command(address, *PRICES, **settings)
        found = dry(capsys, arguments)
        assert not server.prompts
        assert run([*arguments, "--set", "loop.patience=0"]) in (0, 8)
    paid = spent()
    assert paid.price is not None
    assert paid.calls <= found["calls"]["total"]
    assert paid.input_tokens <= found["input_tokens"]["total"]
    assert paid.output_tokens <= found["output_tokens"]["total"] == found["calls"]["total"] * 64
    assert paid.price <= found["price"]
    assert found["estimated_price"] < found["price"]
    assert found["input_tokens_are"] == "bytes"
    lines = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    made = json.loads(Path("runs/a/result.json").read_text())
    assert (found["steps"], found["evaluations"]) == (made["steps"], sum("eval_reward" in line for line in lines))
    training = [line for line in lines if "loss" in line]
    assert sum(line["reader_calls"] + line["cache_hits"] for line in training) <= found["calls"]["training"]


def test_the_bound_is_that_of_the_formula(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three candidates, S = 4, K = 3: min(5, 3) + min(5, 6) + min(5, 6) prefixes and no document are 14 reads a visit;
    4 evaluations of 3 questions; 3 questions in 4 orders, labels being there. Of time: two reads at once, each to its
    deadline, and one left over in each batch."""
    found = dry(capsys, command("http://127.0.0.1:9/v1"))
    assert found["calls"] == {"first_call": 1, "training": 12 * 14, "dev": 4 * 3, "comparison": 3 * 4, "total": 193}
    assert (found["steps"], found["questions"], found["evaluations"]) == (6, 12, 4)
    assert (found["price"], found["estimated_price"]) == (None, None)
    assert (found["seconds"]["reads"], found["seconds"]["total"], found["paced_seconds"]) == (None, None, None)
    assert found["reads_at_most_seconds"] == (193 + BATCHES * (2 - 1)) / 2 * 120
    assert found["seconds"]["training"] > 0
    paced = dry(capsys, command("http://127.0.0.1:9/v1", "--requests-per-minute", "60", "--tokens-per-minute", "1e9"))
    assert paced["paced_seconds"] == 193
    assert paced["reads_at_most_seconds"] == found["reads_at_most_seconds"] + 193 * (1 + 4)  # attempts


def test_time_is_that_of_the_questions_with_the_longest_passages() -> None:
    def question(name: str, *texts: str) -> Example:
        return Example(Query(name, "?"), tuple(Document(text, text) for text in texts), ("a",))

    short, long, middle = question("s", "a", "b"), question("l", "a", "bb" * 9), question("m", "aaa", "bbb")
    assert _longest([short, middle, long, short], 2) == [long, middle]


def test_a_limit_of_hours_is_held_against_what_is_known_of_the_time(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for reader, words in (("http://127.0.0.1:9/v1", "without the reader about"), ("embedded", "about")):
        assert run([*command(reader), "--max-hours", "1e-9", "--dry-run"]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert f"--max-hours 1e-09 may end the run early: the run takes {words}" in told


def test_calls_of_query_expansion_are_told_apart_and_not_made(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bm25 = {"data.retriever": "bm25"}
    bare = dry(capsys, command("http://127.0.0.1:9/v1", **bm25))
    arguments = command("http://127.0.0.1:9/v1", "--expand-with", "reader", **bm25)
    expanded = dry(capsys, arguments)
    assert (bare["expansion_calls"], expanded["expansion_calls"]) == (0, 12)
    assert expanded["calls"] == bare["calls"]
    assert run([*arguments, "--dry-run"]) == 0
    assert "Query expansion: at most 12 calls" in capsys.readouterr().out


def test_learning_from_labels_without_a_reader_costs_time_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = dry(capsys, [*command("none"), "--method", "supervised"])
    assert found["calls"] == dict.fromkeys(PARTS, 0)
    assert (found["price"], found["seconds"]["reads"]) == (0, 0)
    assert found["seconds"]["total"] > 0


def test_the_embedded_reader_is_counted_and_timed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a few questions of the demo."""
    lines = (DEMO_FOLDER / "questions.jsonl").read_text("utf-8").splitlines()[:12]
    Path("q.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    passages = str(DEMO_FOLDER / "corpus.jsonl")
    arguments = command("embedded", "--corpus", passages, "--depth", "4", "--eval-depth", "4", "--top-k", "1")
    arguments += ["--set", "data.retriever=bm25", "--train-k", "1"]
    found = dry(capsys, arguments)
    assert (found["price"], found["input_tokens_are"], found["estimated_input_tokens"]) == (0, "counted", None)
    assert 0 < found["input_tokens"]["training"] <= found["calls"]["training"] * 512
    assert found["seconds"]["reads"] > 0
    assert found["reads_at_most_seconds"] is None
    assert found["seconds"]["total"] == pytest.approx(sum(list(found["seconds"].values())[:-1]))
    assert run(arguments) in (0, 8)
    assert 0 < spent().calls <= found["calls"]["total"]


def test_a_local_language_model_counts_its_own_tokens(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_chain_model(here / "lm", ["paris"])
    found = dry(capsys, command(str(folder), **{"reader.sampling": "{max_tokens: 4}"}))
    assert (found["price"], found["input_tokens_are"]) == (0, "counted")
    assert found["output_tokens"]["total"] == 4 * found["calls"]["total"]
    assert found["calls"]["first_call"] == 0


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ([], "Price unknown: give --price-input and --price-output."),
        (PRICES, "Price at most "),
        ([*PRICES, "--set", "reader.sampling={temperature: 0}"], "Price without limit: give max_tokens"),
        (["--requests-per-minute", "60"], "reads 3.2 min for all of them under the limits per minute, 2 at once."),
        (["--set", "reader.deadline=60"], "Reads at most 1.7 h, with every call until its deadline of 60 s"),
        (["--max-reader-calls", "100"], "--max-reader-calls 100 may end the run early: the bound is 193."),
    ],
)
def test_people_get_a_table(here: Path, capsys: pytest.CaptureFixture[str], more: Any, wanted: str) -> None:
    assert run(command("http://127.0.0.1:9/v1", *more, "--dry-run")) == 0
    said = capsys.readouterr().out
    assert re.search(r"total\s+│\s+193\s", said)
    assert wanted in said
    assert "6 optimizer steps, 12 visits of training questions, 4 evaluations on dev." in said


def test_a_dry_run_is_of_a_whole_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command("embedded", "--dry-run", "--resume")) == 2
    assert "--dry-run and --resume were both given" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        {"data.train": "none.jsonl"},
        {"model.name": "nothing-here"},
        {"reward": "none:here"},
        *({f"loop.trainer.{name}": value} for name, value in REFUSED_ARGUMENTS.items()),
    ],
    ids=str,
)
def test_a_dry_run_finds_what_the_run_would_be_refused_for(here: Path, settings: Mapping[str, str]) -> None:
    before = files(here)
    assert run([*command("http://127.0.0.1:9/v1", "--dry-run"), *(f"--set={k}={v}" for k, v in settings.items())]) > 1
    assert files(here) == before


@pytest.mark.parametrize("name", REFUSED_ARGUMENTS)
def test_training_arguments_are_refused_before_the_first_call(
    here: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with endpoint() as (address, server):
        assert run(command(address, **{f"loop.trainer.{name}": REFUSED_ARGUMENTS[name]})) == 2
    assert server.prompts == []
    assert name in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy", "cosine_with_restarts", "inverse_sqrt"])
def test_a_schedule_that_is_made_without_more_passes_the_check(name: str) -> None:
    """Some want an evaluation, which a run has."""
    check_arguments(TrainConfig(trainer={"lr_scheduler_type": name}), "cpu")


def test_a_dry_run_is_refused_where_there_is_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = [*command("none"), "--method", "supervised"]
    assert run(labels) == 0
    assert run([*labels, "--dry-run"]) == 2
    assert "Run folder runs/a already holds a run" in capsys.readouterr().err
    assert run([*labels, "--dry-run", "--overwrite"]) == 0
