"""Query expansion in `retrieve`, `eval` and `train`: settings, what is shown and kept, failures, resume."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from rankwright.algorithms import Supervised
from rankwright.cli.app import run
from rankwright.cli.build import load_splits
from rankwright.cli.expansion import expanded, language_model, passages_text, read_passages
from rankwright.cli.run import _deciding
from rankwright.cli.settings import ExpansionSettings, ReaderSettings, settings_from
from rankwright.data import load_examples, read_trec_run
from rankwright.errors import ConfigurationError, ResumeError
from rankwright.expansion import Query2Doc
from rankwright.llms.cache import ReadStore
from rankwright.llms.http import OPENAI_URL
from rankwright.prompts import ask_for_passage, load_prompt
from rankwright.prompts.ranking import PROMPT_FILE
from rankwright.rerankers import load
from rankwright.retrieval import BM25
from rankwright.types import CompletionFailed
from tests.chaos_reader import ChaosReader
from tests.cli_kit import body_of, make_model, one_line, reply, serving, write_rows
from tests.keepers import CORPUS, KEEPERS, guess, queries, question, target
from tests.tiny_lm import END, make_chain_model

# --- settings ----------------------------------------------------------------------------------------------------

HERE, THERE = "http://here/v1", "http://there/v1"


@pytest.mark.parametrize(
    ("expansion", "reader", "asked"),
    [
        ({"llm": "reader"}, {}, (HERE, "big", "KEY", 3.0, 4.0)),
        ({"llm": HERE}, {}, (HERE, "big", "KEY", 3.0, 4.0)),
        ({"llm": "reader", "model": "small"}, {}, (HERE, "small", "KEY", None, None)),
        ({"llm": HERE, "model": "small", "price_input": 1, "price_output": 2}, {}, (HERE, "small", "KEY", 1.0, 2.0)),
        ({"llm": THERE, "model": "big"}, {}, (THERE, "big", "OPENAI_API_KEY", None, None)),
        ({"llm": THERE, "model": "m", "api_key_env": "MINE"}, {}, (THERE, "m", "MINE", None, None)),
        ({"llm": THERE}, {}, (THERE, "", "OPENAI_API_KEY", None, None)),
        ({"llm": THERE, "model": "m"}, {"reader": "embedded", "model": ""}, (THERE, "m", "KEY", 3.0, 4.0)),
        ({"llm": "reader"}, {"reader": "folder", "model": ""}, ("folder", "", "KEY", 3.0, 4.0)),
    ],
)
def test_what_is_not_said_is_as_for_the_reader_but_no_key_or_price_of_another(
    expansion: dict[str, Any], reader: dict[str, Any], asked: tuple[Any, ...]
) -> None:
    base: dict[str, Any] = {
        "reader": HERE,
        "model": "big",
        "api_key_env": "KEY",
        "price_input": 3.0,
        "price_output": 4.0,
    }
    of_reader = ReaderSettings(**{**base, **reader}, concurrency=7, requests_per_minute=9, deadline=5)
    llm = language_model(ExpansionSettings(**expansion), of_reader)
    assert (llm.reader, llm.model, llm.api_key_env, llm.price_input, llm.price_output) == asked
    assert (llm.concurrency, llm.requests_per_minute, llm.deadline) == (7, 9, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--expand-with", "reader"], "the reader is embedded; wanted a language model"),
        (["--expand-with", "embedded"], "Expansion was given --expand-with embedded"),
        (["--expand-with", HERE, "--retriever", "given"], "beside --retriever given"),
        (["--expand-model", "m"], "Expansion model 'm' was given, but nobody to ask"),
        (["--set", "expansion.repeats=0"], "Setting expansion.repeats is 0; wanted 1 or more"),
        (["--set", "expansion.max_failed=2"], "Setting expansion.max_failed is 2.0; wanted 0 to 1"),
        (["--set", "expansion.price_input=-1"], "Setting expansion.price_input is -1"),
        (["--set", "expansion.n=1"], "expansion.n"),
    ],
)
@pytest.mark.parametrize("verb", [["train", "--name", "a"], ["eval", "first-stage"]], ids=lambda v: v[0])
def test_an_expansion_that_does_not_fit_is_refused_before_anything_is_read(
    verb: list[str],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*verb, "--data", "not-there.jsonl", *arguments]) == 2
    said = capsys.readouterr().err
    assert (message in said, said.count("\n")) == (True, 1), said


def test_the_demo_takes_no_expansion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["demo", "--set", f"expansion.llm={HERE}", "--set", "expansion.model=m"]) == 2
    assert "The demo was given query expansion by http://here/v1" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


# --- the verbs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """q.jsonl and c.jsonl in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "c.jsonl", [{"doc_id": d.doc_id, "text": d.text} for d in CORPUS])
    questions = [
        {
            "query_id": f"q{k}",
            "question": question(k),
            "answers": [f"name{k}"],
            "relevance": {target(k).doc_id: 1},
        }
        for k in KEEPERS
    ]
    return write_rows(tmp_path / "q.jsonl", questions)


FILES = ["--data", "q.jsonl", "--corpus", "c.jsonl"]


@contextmanager
def endpoint(*refused_once: str) -> Iterator[tuple[str, list[str]]]:
    """A model that writes good passages and reads answers out of good passages; and the messages it got."""
    asked: list[str] = []
    refused = list(refused_once)

    def answer(request: BaseHTTPRequestHandler) -> None:
        text = json.loads(body_of(request))["messages"][-1]["content"]
        asked.append(text)
        if text in refused:
            refused.remove(text)
            return reply(request, {"error": {"message": "not now"}}, 400)
        names = re.findall(r"name\d+", text)
        content = guess(text) if text.startswith("Write a short passage") else (names or ["NO ANSWER"])[0]
        message = {"role": "assistant", "content": content}
        usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        reply(
            request, {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
        )

    with serving(answer) as address:
        yield f"{address}/v1", asked


def shipped_message(keeper: int) -> str:
    return ask_for_passage(load_prompt("query2doc-1", "query2doc"), question(keeper))


def ledger(path: str = "runs/reads.sqlite") -> Mapping[str, tuple[int, int]]:
    """Calls and failures of every run."""
    with ReadStore(path) as store:
        sums = {name: store.ledger.totals(name) for name in store.ledger.runs()}
        return {name: (totals.calls, totals.failed) for name, totals in sums.items()}


def test_retrieve_finds_more_and_shows_the_query(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with endpoint() as (url, asked):
        command = ["retrieve", *FILES, "--depth", "2", "--expand-with", url, "--expand-model", "m"]
        prices = ["--price-input", "1", "--price-output", "1", "--cache", "kept.sqlite"]
        assert run([*command, *prices, "--out", "out.jsonl", "--output", "json"]) == 0
        said = capsys.readouterr()
        assert run([*command, *prices, "--out", "out.run"]) == 0
        assert len(asked) == len(KEEPERS)  # the second run asked nobody
    told = one_line(said.out)
    assert (told["questions"], told["failed_expansions"]) == (len(KEEPERS), 0)
    assert told["retriever"].startswith(f"bm25+query2doc(m@{url},prompt=query2doc-1,n=5,")
    assert "Expansion calls 12 (0 failed), price 0.0001440; they stand in kept.sqlite as retrieve-" in said.err
    assert f"For example '{question(10)}' with 'name10 tends the beacon.'" in said.err
    rows = [json.loads(line) for line in Path("out.jsonl").read_text("utf-8").splitlines()]
    searched = [" ".join([question(k)] * 5 + [f"name{k} tends the beacon."]) for k in KEEPERS]
    assert [row["metadata"]["expanded_query"] for row in rows] == searched
    for row, example, keeper in zip(rows, load_examples("out.jsonl", "jsonl").examples, KEEPERS, strict=True):
        assert row["question"] == example.query.text == question(keeper)
        assert target(keeper) in example.candidates
    ranked = read_trec_run(Path("out.run"))
    assert [r.doc_ids for r in ranked] == [tuple(c["doc_id"] for c in row["candidates"]) for row in rows]
    assert Path("out.run").read_text("utf-8").split()[5] == "bm25+query2doc"
    assert list(ledger("kept.sqlite").values()) == [(len(KEEPERS), 0)]


def test_retrieve_searches_as_asked_where_a_passage_fails_and_stops_where_too_many_do(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = {shipped_message(keeper): ["400", "400"] for keeper in (10, 11)}
    with ChaosReader(failing) as server:
        command = ["retrieve", *FILES, "--out", "out.jsonl", "--expand-with", server.base_url, "--expand-model", "m"]
        assert run(command) == 6
        said = capsys.readouterr().err
        assert "failed for 2 of 12 questions, most often with 'http 400' (2 times); at most 5% may fail" in said
        assert "give the same command again: passages in the cache are kept" in said
        assert "Expansion calls 12 (2 failed)" in said
        assert not Path("out.jsonl").exists()
        assert run([*command, "--set", "expansion.max_failed=0.2"]) == 0
        said = capsys.readouterr().err
        assert "10 of 12 questions have a passage; 2 (16.7%) failed and are searched as asked" in said
        rows = [json.loads(line) for line in Path("out.jsonl").read_text("utf-8").splitlines()]
        assert ["metadata" in row for row in rows] == [False, False] + [True] * 10
        bare = BM25(CORPUS).retrieve(queries(10), 100)[0]
        assert [c["doc_id"] for c in rows[0]["candidates"]] == [document.doc_id for document in bare]
        assert run(command) == 0  # the server has mended
    assert sorted(ledger().values()) == [(2, 0), (2, 2), (12, 2)]


def test_a_refused_key_costs_one_call(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ChaosReader({shipped_message(keeper): ["401"] for keeper in KEEPERS}) as server:
        command = ["retrieve", *FILES, "--out", "out.jsonl", "--expand-with", server.base_url, "--expand-model", "m"]
        assert run(command) == 6
        assert len(server.ledger) == 1
    told = capsys.readouterr().err
    assert "refused the key" in told
    assert "Expansion calls 1 (1 failed)" in told


def test_without_expansion_retrieve_writes_what_it_wrote(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["retrieve", *FILES, "--out", "out.jsonl", "--output", "json"]) == 0
    told = one_line(capsys.readouterr().out)
    assert (told["retriever"], told["failed_expansions"]) == ("bm25", None)
    assert "metadata" not in Path("out.jsonl").read_text("utf-8")
    assert not Path("runs").exists()


def test_eval_compares_on_expanded_candidates_and_its_reader_sees_the_question_as_asked(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with endpoint() as (url, asked):
        command = ["eval", "first-stage", *FILES, "--depth", "2", "--top-k", "2", "--output", "json"]
        reader = ["--reader", url, "--reader-model", "m"]
        assert run([*command, *reader, "--expand-with", "reader"]) == 0
        with_passages = one_line(capsys.readouterr().out)
        assert run([*command, *reader]) == 0
        bare = one_line(capsys.readouterr().out)
    assert (with_passages["models"]["first-stage"]["recall@10"], with_passages["models"]["first-stage"]["EM"]) == (
        1.0,
        1.0,
    )
    assert bare["models"]["first-stage"]["recall@10"] < 0.2
    how = f"m@{url},prompt=query2doc-1,n=5,max_tokens=256,temperature=0.0"
    assert f"|retriever:bm25+query2doc({how})|depth:2|" in with_passages["signature"]
    assert "|retriever:bm25|" in bare["signature"]
    read = [text for text in asked if not text.startswith("Write a short passage")]
    assert read != []
    assert all(text.count("Who keeps lamp") == 1 for text in read)
    assert not any("tends" in text for text in read)
    name = next(run for run in ledger() if run.endswith("/expansion"))
    assert (ledger()[name], ledger()[name.removesuffix("/expansion")]) == ((12, 0), (12, 0))


def test_eval_looks_at_its_models_before_expansion_is_paid_for(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    Path("writer").mkdir()
    for name in ("config.json", PROMPT_FILE):
        Path("writer", name).write_text("{}")
    with endpoint() as (url, asked):
        command = ["eval", "first-stage", *FILES, "--depth", "2", "--top-k", "2", "--expand-with", url]
        for more, words in (
            (["./nowhere"], "Model folder './nowhere' does not exist"),
            (["writer"], "Model 'writer' is a language model that writes its ranking"),
            (["--llm", "runs/none"], "Model folder 'runs/none' does not exist"),
            (["--llm", OPENAI_URL, "--llm-model", "m"], f"Key for {OPENAI_URL} is missing"),
            (["--llm", url], f"Language model {url} was given without a model name"),
        ):
            assert run([*command, "--expand-model", "m", *more]) in (2, 4, 5)
            assert words in " ".join(capsys.readouterr().err.split()), more
    assert not asked
    assert not Path("runs").exists()


def test_diagnose_expands_the_questions_that_it_reads_once_nothing_speaks_against_it(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two out of three passages have six orders, and none is read, too: seven reads a question."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with endpoint() as (url, asked):
        plain = ["diagnose", *FILES, "--depth", "3", "--top-k", "2", "--model", "first-stage", "--expand-with", url]
        command = [*plain, "--expand-model", "m"]
        reader = ["--reader", url, "--reader-model", "m"]
        for more, words in (
            ([*reader, "--max-reader-calls", "6"], "one question may cost 7 reader calls"),
            (["--repeat-reads"], "the embedded reader always answers the same"),
            (["--reader", url], f"Reader {url} was given without a model name"),
            ([*reader, "--price-input", "1"], "Only the input price of reader"),
            (["--reader", OPENAI_URL, "--reader-model", "m"], f"Key for {OPENAI_URL} is missing"),
            ([*reader, "--reader-prompt", "nowhere.txt"], "nowhere.txt"),
            (["--reader", "runs/nowhere"], "nowhere"),
            ([*reader, "--model", "./nowhere"], "Model folder './nowhere' does not exist"),
        ):
            assert run([*command, *more]) in (2, 4)
            assert words in " ".join(capsys.readouterr().err.split()), more
            assert not asked
        assert run([*command, *reader, "--max-reader-calls", "20"]) == 0
        assert "Diagnosis reads 2 questions instead of 12" in capsys.readouterr().err
    assert sum(text.startswith("Write a short passage") for text in asked) == 2


def test_an_endpoint_without_a_model_name_is_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["retrieve", *FILES, "--out", "o.jsonl", "--expand-with", HERE]) == 2
    assert f"Expansion {HERE} was given without a model name" in capsys.readouterr().err
    assert run(["retrieve", *FILES, "--out", "o.jsonl", "--expand-with", HERE, "--config", "no.yaml"]) == 4


def test_a_local_language_model_writes_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This one says the same to every prompt."""
    folder = make_chain_model(tmp_path / "lm", ["answer", "is", "rome", END])
    (tmp_path / "mine.txt").write_text("{question}", "utf-8")
    settings = ExpansionSettings(llm=str(folder), prompt=str(tmp_path / "mine.txt"), sampling={"max_tokens": 9})
    reader = ReaderSettings(cache=str(tmp_path / "reads.sqlite"))
    first = expanded(BM25(CORPUS), queries(10), settings, reader, "r", known={question(11): "from before"})
    asked = [" ".join([question(keeper)] * 5) for keeper in (10, 11)]
    assert [query.text for query in first.expand(queries(10, 11))] == [
        f"{asked[0]} answer is rome",
        f"{asked[1]} from before",
    ]
    assert first.name.startswith("bm25+query2doc(lm@sha256:")
    assert "Expansion calls 1 (0 failed), price 0.0000" in capsys.readouterr().err
    with pytest.raises(
        ConfigurationError, match="Leave --expand-model out, or give the endpoint's base URL as --expand"
    ):
        expanded(BM25(CORPUS), [], replace(settings, model="m"), reader, "r")


# --- train -------------------------------------------------------------------------------------------------------


def training(url: str, *more: str) -> list[str]:
    """A training from labels, without any reader: six questions, three steps."""
    command = ["train", "--name", "a", *FILES, "--model", "tiny", "--method", "supervised", "--reader", "none"]
    shares = ["data.dev_share=0.25", "data.test_share=0.25", "loop.eval_steps=2", "loop.batch_size=2"]
    sets = [text for value in shares for text in ("--set", value)]
    expansion = ["--expand-with", url, "--expand-model", "m"]
    return [*command, "--epochs", "1", "--depth", "3", "--eval-depth", "3", *sets, *expansion, *more]


UNKNOWN = {"price": None, "known_price": 0.0, "unpriced_calls": 12}


def test_train_searches_with_expanded_queries_and_says_so_everywhere(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model(data.with_name("tiny"))
    with endpoint() as (url, asked):
        assert run(training(url)) in (0, 8)
        assert len(asked) == len(KEEPERS)
    result = json.loads(Path("runs/a/result.json").read_text())
    assert result["expansion"] == {"questions": 12, "failed": 0, "calls": 12, **UNKNOWN}
    assert result["reader_calls"] == 0
    assert f"|retriever:bm25+query2doc(m@{url},prompt=query2doc-1," in result["signature"]
    stored = json.loads(Path("runs/a/config.json").read_text())
    assert (stored["expansion"]["llm"], stored["expansion"]["repeats"]) == (url, 5)
    assert list(ledger()) == [f"{stored['run_id']}/expansion"]
    rows = [json.loads(line) for line in Path("runs/a/expansions.jsonl").read_text("utf-8").splitlines()]
    assert {row["question"]: row["passage"] for row in rows} == {
        question(k): f"name{k} tends the beacon." for k in KEEPERS
    }
    compared = json.loads(Path("runs/a/evaluation.json").read_text())
    names = {row["query"][0].removeprefix("q"): row for row in compared["examples"]}
    ids = [document[0] for document in compared["documents"]]
    assert all(f"beacon-{k}" in [ids[place] for place in row["candidates"]] for k, row in names.items())
    assert all(row["query"][1] == question(int(k)) for k, row in names.items())
    capsys.readouterr()
    every = ["--depth", "24", "--eval-depth", "24"]  # without expansion the labelled passages lie far behind
    assert run([*training(url, "--expand-with", "none", "--expand-model", "", *every), "--overwrite"]) in (0, 8)
    assert not Path("runs/a/expansions.jsonl").exists()
    assert json.loads(Path("runs/a/result.json").read_text())["expansion"] is None


PRICED = ["--set", "expansion.price_input=1000", "--set", "expansion.price_output=2000"]


def test_calls_of_expansion_count_toward_the_limits(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twelve calls, none of them by the reader; of a price of 10 tokens in and 2 out each."""
    make_model(data.with_name("tiny"))
    with endpoint() as (url, asked):
        assert run(training(url, "--max-reader-calls", "11")) == 9
        assert "made 0 reader calls and query expansion may make 12 more; wanted at most 11" in capsys.readouterr().err
        assert run(training(url, "--max-cost", "1000")) == 2
        assert "the price of query expansion by http" in capsys.readouterr().err
        assert run(training(url, *PRICED, "--max-cost", "1000", "--set", "expansion.sampling={top_p: 1}")) == 2
        assert "expansion.sampling is {'top_p': 1}; wanted max_tokens" in capsys.readouterr().err
        assert run(training(url, *PRICED, "--max-cost", "1")) == 9
        refused = capsys.readouterr().err
        assert "query expansion may cost" in refused
        assert not asked
        enough = re.findall(r"--max-cost; ([\d.]+) would do", refused)[0]
        assert run(training(url, *PRICED, "--max-cost", enough, "--max-reader-calls", "12")) in (0, 8)
    result = json.loads(Path("runs/a/result.json").read_text())
    assert result["expansion"]["price"] == pytest.approx(12 * (10 * 1000 + 2 * 2000) / 1e6)
    assert result["expansion"]["unpriced_calls"] == 0


def test_a_reader_has_what_expansion_left(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Calls of both are held against the limit of a run, over all its sessions."""
    make_model(data.with_name("tiny"))
    limit, resume, stops = 50, [], []
    with endpoint() as (url, asked):
        both = [*training(url), "--method", "rrpo", "--reader", url, "--reader-model", "m"]
        while (code := run([*both, "--max-reader-calls", str(limit), *resume])) == 9:
            stops.append(capsys.readouterr().err)
            assert sum(calls for calls, _ in ledger().values()) == len(asked) <= limit
            limit, resume = int(re.findall(r"--max-reader-calls; (\d+) would do", stops[-1])[0]), ["--resume"]
    assert code in (0, 8)
    assert len(asked) <= limit
    assert len(stops) > 1
    assert all("reader calls and 12 besides (query expansion) and the" in stop for stop in stops)


def test_what_a_run_paid_before_it_began_counts_when_it_is_given_again(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve passages and the first call; then each step is refused, or Ctrl-C came."""
    make_model(data.with_name("tiny"))
    with endpoint() as (url, asked):
        both = [*training(url), "--method", "rrpo", "--reader", url, "--reader-model", "m", "--max-reader-calls"]
        with monkeypatch.context() as patch:
            patch.setattr(Query2Doc, "_check_failures", interrupted)
            assert run([*both, "13"]) == 130
        assert len(asked) == 12
        capsys.readouterr()
        said = []
        for _ in range(3):
            assert run([*both, "13"]) == 9
            said.append(capsys.readouterr().err)
            assert len(asked) == 13
        assert "has made 1 reader calls and 12 besides (query expansion) and the next step may make" in said[0]
        assert said[0].splitlines()[-1] == said[1].splitlines()[-1] == said[2].splitlines()[-1]
        assert "writes passages for 0 questions (12 of 12 are in the cache)." in said[0]
        assert len(ledger()) == 2
        assert [path.name for path in Path("runs/a").iterdir() if path.is_file()] == ["run_id"]
        enough = int(re.findall(r"--max-reader-calls; (\d+) would do", said[0])[0])
        assert run([*both, str(enough)]) in (0, 8, 9)
        assert len(asked) <= enough
        stored = json.loads(Path("runs/a/config.json").read_text())["run_id"]
        assert set(ledger()) == {stored, f"{stored}/expansion"}
        assert not Path("runs/a/run_id").exists()
        assert run([*both, "13", "--overwrite"]) == 9  # a new run, which asks a first call of its own
        assert "has made 1 reader calls and the next step" in capsys.readouterr().err
        assert len(ledger()) == 3


def test_train_refuses_what_it_can_before_it_pays_for_expansion(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with endpoint() as (url, asked):
        rrpo = [*training(url), "--method", "rrpo"]
        for more, words in (
            ([*rrpo, "--reader", url], f"Reader {url} was given without a model name"),
            ([*rrpo, "--reader", HERE, "--reader-model", "m", "--price-input", "1"], "Only the input price of reader"),
            ([*rrpo, "--reader", OPENAI_URL, "--reader-model", "m"], f"Key for {OPENAI_URL} is missing"),
            ([*training(url), "--model", "./nowhere"], "Model folder './nowhere' does not exist"),
        ):
            assert run(more) in (2, 4)
            assert words in " ".join(capsys.readouterr().err.split()), more
    assert not asked
    assert not Path("runs/a").exists()


def test_a_dry_run_bounds_candidates_that_only_expansion_would_find(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The targets are longer than what the bare questions find."""
    make_model(data.with_name("tiny"))
    with endpoint() as (url, _):
        reader = ["--reader", url, "--reader-model", "m", "--price-input", "1000", "--price-output", "2000"]
        both = [*training(url), "--method", "rrpo", *reader, *PRICED, "--depth", "2", "--output", "json"]
        assert run([*both, "--dry-run"]) == 0
        found = one_line(capsys.readouterr().out)
        assert run([*training(url), "--dry-run"]) == 0  # labels are found or not: only expansion knows
        assert "Query expansion: at most 12 calls besides, price unknown" in capsys.readouterr().out
        assert run([*both, "--cache", "x.sqlite"]) in (0, 8)
        with ReadStore("x.sqlite") as store:
            wholes = {name.endswith("/expansion"): store.ledger.totals(name) for name in store.ledger.runs()}
    longest = max(len(d.text) for d in CORPUS)
    assert found["expansion_calls"] == wholes[True].calls == 12
    assert wholes[True].known_price <= found["expansion_price"]
    assert wholes[False].calls <= found["calls"]["total"]
    per_read = found["input_tokens"]["dev"] / found["calls"]["dev"]
    assert per_read >= 3 * longest


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_resume_refuses_another_expansion_and_goes_on_with_the_passages_it_began_with(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that failed at the beginning would get a passage now, and other candidates with it."""
    make_model(data.with_name("tiny"))
    with endpoint(shipped_message(10)) as (url, asked):
        command = training(url, "--set", "expansion.max_failed=0.1", "--set", "loop.eval_steps=1")
        losses, plain = itertools.count(1), Supervised.loss

        def breaking(*given: Any) -> Any:
            return interrupted() if next(losses) == 2 else plain(*given)

        with monkeypatch.context() as patch:
            patch.setattr(Supervised, "loss", breaking)
            assert run(command) == 130
        assert list(Path("runs/a").glob("checkpoint-*"))
        before = Path("runs/a/expansions.jsonl").read_bytes()
        assert json.loads(before.splitlines()[[b"failed" in line for line in before.splitlines()].index(True)]) == {
            "question": question(10),
            "failed": "http 400",
        }
        calls = len(asked)
        capsys.readouterr()
        for other in (["expansion.repeats=2"], ["expansion.model=n"], ["expansion.sampling={max_tokens: 9}"]):
            assert run([*command, "--resume", "--set", *other]) == 2
            assert f"Setting {other[0].partition('=')[0]}" in capsys.readouterr().err
        faster = ["--set", "reader.concurrency=2", "--set", "expansion.max_failed=0.5"]
        assert run([*command, "--resume", *faster, "--set", "expansion.api_key_env=OTHER"]) in (0, 8)
        assert len(asked) == calls
    assert Path("runs/a/expansions.jsonl").read_bytes() == before
    assert json.loads(Path("runs/a/result.json").read_text())["expansion"]["failed"] == 1


def test_passages_of_a_run_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_passages(tmp_path) == {}
    passages = {"who\u2028 ?": "one \u00e4", "what?": CompletionFailed("length")}
    (tmp_path / "expansions.jsonl").write_text(passages_text(passages), "utf-8")
    assert read_passages(tmp_path) == passages
    for damage in ('{"question": "who?"', "[]", '{"question": "who?"}', "7"):
        (tmp_path / "expansions.jsonl").write_text(damage, "utf-8")
        with pytest.raises(ResumeError, match=r"expansions.jsonl is damaged .* Remove it"):
            read_passages(tmp_path)


def test_what_a_prompt_of_ones_own_says_decides_a_run(data: Path) -> None:
    make_model(data.with_name("tiny"))
    tree: dict[str, Any] = {
        "data": {"train": "q.jsonl", "corpus": "c.jsonl", "dev_share": 0.25, "test_share": 0.25},
        "reader": {"reader": "none"},
        "method": "supervised",
    }
    model, found = load("tiny"), []
    with endpoint() as (url, asked):
        for words in ("Write a short passage: {question}", "Write a short passage, please: {question}"):
            Path("mine.txt").write_text(words, "utf-8")
            settings = settings_from({**tree, "expansion": {"llm": url, "model": "m", "prompt": "mine.txt"}})
            found.append(_deciding(settings, load_splits(settings), None, model))
        assert len(asked) == 2 * len(KEEPERS)
    assert [name for name in found[0] if found[0][name] != found[1][name]] == ["first stage"]
