"""`rankwright prepare`: recipes over files, with a teacher behind HTTP, and gone on with after a kill."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from rankwright.algorithms.grpo import prompt_rows
from rankwright.algorithms.targets import targets
from rankwright.cli.app import run
from rankwright.cli.prepare import RECIPE_NAMES, middle_of
from rankwright.data import load_examples
from rankwright.prompts.ranking import load_ranking_prompt
from rankwright.teaching import RECIPES
from tests.cli_kit import MAIN, ROOT, body_of, one_line, reply, serving, write_rows
from tests.test_cli_llm import said

GRADES = {"q1": [3, 9, 0, 7, 5, 1, 8, 2], "q2": [0, 4, 10, 6, 1], "q3": [2, 1, 0, 0, 0]}


def rows() -> list[dict[str, Any]]:
    return [
        {
            "query_id": query_id,
            "question": f"what is {query_id}?",
            "candidates": [
                {"doc_id": f"{query_id}-{i}", "text": f"grade {grade}", "score": 20.0 - i}
                for i, grade in enumerate(grades)
            ],
            "relevance": {f"{query_id}-{i}": int(grade >= 7) for i, grade in enumerate(grades)},
        }
        for query_id, grades in GRADES.items()
    ]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_rows(tmp_path / "data.jsonl", rows())


class Server:
    """Reads grades. Answers so many requests at once, the others when it is released."""

    def __init__(self) -> None:
        self.requests = 0
        self.free: int | None = None
        self.waiting, self.released = threading.Event(), threading.Event()
        self.broken: tuple[str, ...] = ()
        """Words of prompts that get no usable answer."""
        self.thinks = False

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(body_of(request))
        self.requests += 1
        if self.free is not None and self.requests > self.free:
            self.waiting.set()
            self.released.wait(30)
        words = "\n".join(message["content"] for message in body["messages"])
        text, tokens = said(words)
        if any(word in words for word in self.broken):
            text, tokens = "I would rather not.", []
        if self.thinks:
            text = f"<think>{text[:3]} has the best grade.</think><answer>{text}</answer>"
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
        choice["finish_reason"] = "stop"
        if body.get("logprobs"):
            content = [
                {
                    "token": next(iter(top)),
                    "logprob": next(iter(top.values())),
                    "top_logprobs": [{"token": token, "logprob": value} for token, value in top.items()],
                }
                for top in tokens
            ]
            choice["logprobs"] = {"content": content}
        reply(request, {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 10}})


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    with serving(server) as address:
        yield address
        server.released.set()


def arguments(recipe: str, data: Path, *more: str) -> list[str]:
    return ["prepare", recipe, "--data", str(data), "--out", str(data.with_name("out.jsonl")), *more]


def best_first(query_id: str) -> tuple[str, ...]:
    grades = GRADES[query_id]
    return tuple(f"{query_id}-{i}" for i in sorted(range(len(grades)), key=lambda i: -grades[i]))


def test_the_names_in_the_help_are_those_that_are_there() -> None:
    assert tuple(RECIPES) == RECIPE_NAMES


def test_drawn_sets_and_what_was_left_out(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--set", "size=3", "--set", "draws=5", "--set", "depth=8", "--seed", "4", "--output", "json"]
    assert run(arguments("rearank", data, *options)) == 0
    found = one_line(capsys.readouterr().out)
    examples = load_examples(data.with_name("out.jsonl"), "jsonl").examples
    assert found["rows"] == len(examples)
    assert found["settings"] | {"size": 3, "draws": 5, "depth": 8, "seed": 4} == found["settings"]
    assert found["left_out"]["questions without a relevant label"] == 1  # q3
    assert (found["questions"], found["teachers"]) == (3, {})
    assert {example.query.query_id.split("#")[0] for example in examples} <= {"q1", "q2"}

    first = data.with_name("out.jsonl").read_bytes()
    assert run(arguments("rearank", data, *options)) == 0
    assert data.with_name("out.jsonl").read_bytes() == first
    assert run(arguments("rearank", data, *options, "--seed", "5")) == 0
    assert data.with_name("out.jsonl").read_bytes() != first


def test_bm25_finds_candidates_as_deep_as_the_recipe_draws(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = [{key: row[key] for key in ("query_id", "question", "relevance")} for row in rows()]
    passages = [passage for row in rows() for passage in row["candidates"]]
    bare = write_rows(data.with_name("bare.jsonl"), questions)
    corpus = write_rows(data.with_name("corpus.jsonl"), [{k: p[k] for k in ("doc_id", "text")} for p in passages])
    options = ["--corpus", str(corpus), "--retriever", "bm25", "--set", "size=4", "--set", "depth=6"]
    assert run(arguments("rearank", bare, *options, "--set", "measured=none")) == 0
    examples = load_examples(data.with_name("out.jsonl"), "jsonl").examples
    assert {len(example.candidates) for example in examples} == {4}
    assert all(set(example.first_stage) == {d.doc_id for d in example.candidates} for example in examples)
    capsys.readouterr()
    assert run(arguments("rearank", bare, "--corpus", str(corpus))) != 0
    assert "wanted at least one passage, because candidates are taken as given" in capsys.readouterr().err


def test_what_a_teacher_thought_is_what_sft_teaches(
    url: str, server: Server, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.thinks = True
    teacher = ["--llm", url, "--llm-model", "m", "--prompt", "listwise-reason-1", "--window", "5"]
    assert run(arguments("permutation", data, *teacher, "--set", "stride=2", "--output", "json")) == 0
    found = one_line(capsys.readouterr().out)
    assert (found["rows"], found["with_thoughts"]) == (3, 2)  # q1 has eight passages: two windows
    prompt = load_ranking_prompt("listwise-reason-1")
    for example in load_examples(data.with_name("out.jsonl"), "jsonl").examples:
        (taught,) = targets(prompt_rows([example], prompt, 8, shorter=True), prompt)
        order = [example.candidates.index(next(d for d in example.candidates if d.doc_id == i)) for i in example.order]
        words = " > ".join(f"[{place + 1}]" for place in order)
        thoughts = f"{words[:3]} has the best grade." if len(order) == 5 else ""
        assert taught == f"<think>\n{thoughts}\n</think>\n<answer>{words}</answer>"


def test_sets_of_rank_r1(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments("rank-r1", data, "--set", "negatives=4", "--output", "json")) == 0
    found = one_line(capsys.readouterr().out)
    assert (found["rows"], found["left_out"]) == (2, {"questions without a relevant label": 1})
    for example in load_examples(data.with_name("out.jsonl"), "jsonl").examples:
        assert len(example.candidates) == 5
        assert sum(example.relevance.values()) == 1
    assert run(arguments("rank-r1-v0.2", data, "--output", "json")) == 0
    assert one_line(capsys.readouterr().out)["settings"] == {
        "negatives": 9,
        "positive": "random",
        "count": "drawn",
        "depth": 100,
        "seed": 0,
    }


def test_a_teachers_order(url: str, server: Server, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.broken = ("what is q2?",)
    teacher = ["--llm", url, "--llm-model", "m", "--price-input", "1", "--price-output", "2"]
    assert run(arguments("permutation", data, *teacher, "--output", "json")) == 0
    written = capsys.readouterr()
    found = one_line(written.out)
    assert found["rows"] == 2
    assert sum(found["left_out"].values()) == 1
    assert next(iter(found["left_out"])).startswith("questions without an order (")
    taught = found["teachers"]["lists"]
    assert (taught["calls"], taught["paid_calls"], taught["tokens"]["input"]) == (3, 3, 300)
    assert taught["outcomes"] == {"ok": 2, "repaired": 0, "malformed": 1}
    assert "Language model calls 3 (0 failed), price" in " ".join(written.err.split())
    for example in load_examples(data.with_name("out.jsonl"), "jsonl").examples:
        best = best_first(example.query.query_id)
        assert example.order == best
        assert example.relevance == {doc_id: len(best) - rank for rank, doc_id in enumerate(best)}


def test_an_order_that_agrees_with_points(url: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments("reasonrank", data, "--llm", url, "--llm-model", "m", "--output", "json")) == 0
    found = one_line(capsys.readouterr().out)
    # What says yes says it with (grade + 1/2) / 11, so a passage is relevant from grade 5.
    assert found["settings"]["relevant_from"] == 0.5
    assert found["left_out"] == {"questions without a passage that the points call relevant": 1}
    assert found["teachers"]["lists"]["calls"] == 3
    assert found["teachers"]["single"]["calls"] == sum(map(len, GRADES.values()))
    for example in load_examples(data.with_name("out.jsonl"), "jsonl").examples:
        query_id = example.query.query_id
        assert example.order == best_first(query_id)
        assert example.relevance == {f"{query_id}-{i}": int(grade >= 5) for i, grade in enumerate(GRADES[query_id])}


def test_two_teachers_fused(url: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--llm", url, "--llm-model", "m", "--point-llm-model", "other", "--point-prompt", "pointwise-yes-no-1"]
    assert run(arguments("grouprank", data, *options, "--set", "lists=1", "--output", "json")) == 0
    found = one_line(capsys.readouterr().out)
    assert found["rows"] == 3
    lists, single = found["teachers"]["lists"], found["teachers"]["single"]
    assert "window=50" in lists["name"]
    assert ("|prompt:pointwise-yes-no-1" in single["name"], "other" in single["name"]) == (True, True)
    (five,) = (e for e in load_examples(data.with_name("out.jsonl"), "jsonl").examples if e.query.query_id == "q2#1")
    assert five.order == best_first("q2")  # all five passages
    assert [five.relevance[d] for d in five.order] == [round(10 * (1 - math.log(r) / math.log(5))) for r in range(1, 6)]


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("listnet", [], "Data recipe 'listnet' is unknown; use one of rearank"),
        ("rearank", ["--set", "size=1"], "Recipe rearank has size 1; wanted 2 or more"),
        ("rearank", ["--set", "sizes=3"], "Recipe rearank was given 'sizes'; its settings are draws, size"),
        ("rearank", ["--set", "draws=many"], "Setting draws is 'many'"),
        ("rearank", ["--llm", "http://localhost:1"], "--llm was given for recipe rearank, which has no teacher"),
        ("rank-r1", ["--price-input", "1"], "--price-input was given for recipe rank-r1, which has no teacher"),
        ("permutation", [], "Recipe permutation has no teacher; wanted --llm"),
        ("permutation", ["--llm", "x", "--seed", "1"], "--seed was given for recipe permutation, which draws nothing"),
        ("permutation", ["--llm", "x", "--point-prompt", "p"], "which has no teacher of single passages"),
        ("permutation", ["--llm", "x", "--set", "widow=3"], "Strategy sliding was given 'widow'"),
        ("permutation", ["--llm", "x", "--set", "max_failed=2"], "Setting max_failed is 2; wanted a share"),
        ("reasonrank", ["--llm", "x", "--point-prompt", "listwise-1"], "wanted a pointwise one"),
        ("reasonrank", ["--llm", "x", "--set", "single.depth=3"], "Strategy pointwise was given 'depth'"),
    ],
)
def test_what_does_not_fit_is_told_first(
    recipe: str, options: list[str], message: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(recipe, data, *options)) != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert not data.with_name("out.jsonl").exists()


def test_where_it_may_be_written_and_what_nothing_is(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prepare", "rearank", "--data", str(data), "--out", "sets.run"]) == 2
    assert "wanted a name that ends in .jsonl" in capsys.readouterr().err
    assert run(arguments("rearank", data)) == 5
    assert "no row is left" in capsys.readouterr().err
    assert not data.with_name("out.jsonl").exists()


@pytest.mark.parametrize(
    ("prompt", "middle"),
    [("pointwise-integer-1", 5.0), ("pointwise-binary-1", 0.0), ("pointwise-yes-no-1", 0.5)],
)
def test_points_from_which_a_passage_is_relevant(prompt: str, middle: float) -> None:
    assert middle_of(load_ranking_prompt(prompt)) == middle


def test_after_a_kill_only_what_is_missing_is_asked(
    url: str, server: Server, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count, free = 8, 5
    write_rows(data, [{**rows()[0], "query_id": f"q{i}", "question": f"what is {i}?"} for i in range(count)])
    teacher = ["--llm", url, "--llm-model", "m", "--set", "reader.concurrency=1", "--cache", "calls.sqlite"]
    server.free = free
    command = [sys.executable, "-c", MAIN, *arguments("permutation", data, *teacher)]
    with subprocess.Popen(
        command, cwd=data.parent, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, stderr=subprocess.DEVNULL
    ) as process:
        assert server.waiting.wait(60)
        process.kill()
    assert not data.with_name("out.jsonl").exists()
    server.released.set()
    server.free = None
    assert run(arguments("permutation", data, *teacher, "--output", "json")) == 0
    found = one_line(capsys.readouterr().out)
    assert (found["rows"], found["teachers"]["lists"]["calls"]) == (count, count)
    assert found["teachers"]["lists"]["paid_calls"] <= count - free + 1  # the last one may not have been kept yet
    again = data.with_name("out.jsonl").read_bytes()
    assert run(arguments("permutation", data, *teacher, "--cache", "new.sqlite")) == 0
    assert data.with_name("out.jsonl").read_bytes() == again
