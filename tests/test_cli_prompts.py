"""`rankwright prompts`: list, show, render."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankwright.cli.app import run
from rankwright.prompts.ranking import load_ranking_prompt, shipped_prompts
from rankwright.types import Document, Query
from tests.cli_kit import one_line, run_process
from tests.test_cli_surface import LIGHT


def test_the_list_has_every_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prompts", "list", "--output", "json"]) == 0
    prompts = one_line(capsys.readouterr().out)["prompts"]
    assert [prompt["name"] for prompt in prompts] == list(shipped_prompts())
    assert {prompt["kind"] for prompt in prompts} == {"listwise", "setwise", "groupwise", "pointwise"}
    letters = next(prompt for prompt in prompts if prompt["name"] == "listwise-letters-1")
    assert (letters["parser"], letters["max_documents"], letters["logprobs"]) == ("first-token", 26, True)
    assert run(["prompts", "list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in shipped_prompts())


def test_a_copy_of_what_is_shown_is_the_same_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prompts", "show", "groupwise-1"]) == 0
    copy = tmp_path / "mine.yaml"
    copy.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_ranking_prompt(copy) == load_ranking_prompt("groupwise-1")
    copy.write_text(copy.read_text("utf-8").replace("grade search results", "grade passages"), encoding="utf-8")
    assert run(["prompts", "show", "--prompt", str(copy), "--output", "json"]) == 0
    shown = one_line(capsys.readouterr().out)
    assert shown["name"].startswith("sha256:")
    assert "grade passages" in shown["messages"][0]["text"]


def test_rendered_messages_are_those_that_are_sent(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prompts", "render", "listwise-1", "--query", "a [1]?", "first", "second " * 100]
    assert run([*arguments, "--output", "json"]) == 0
    shown = one_line(capsys.readouterr().out)
    documents = [Document("0", "first"), Document("1", "second " * 100)]
    sent = load_ranking_prompt("listwise-1").messages(Query("0", "a [1]?"), documents)
    assert [(message["role"], message["content"]) for message in shown["messages"]] == list(sent)
    assert (shown["name"], shown["passages"], shown["cut"]) == ("listwise-1", 2, 1)
    assert run(arguments) == 0
    said = capsys.readouterr()
    assert said.out == "".join(f"--- {role}\n{content}\n" for role, content in sent)
    assert "1 of 2 passages were cut to 300 characters" in said.err


def test_a_prompt_file_needs_no_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_ranking_prompt("pointwise-binary-1").save(tmp_path)
    assert run(["prompts", "render", "--prompt", str(tmp_path), "--query", "why?", "because", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["passages"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "nothing-1"], 4, "listwise-1"),
        (["show"], 2, "prompts list"),
        (["render", "pointwise-binary-1", "--query", "q", "a", "b"], 2, "2 documents at once"),
        (["render", "listwise-1", "--query", "q"], 2, "given no passage to show"),
        (["render", "--prompt", "missing.yaml", "--query", "q", "a"], 4, "missing.yaml"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prompts", *arguments]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_prompts_load_no_deep_learning_library(tmp_path: Path) -> None:
    done = run_process("prompts", "list", "--output", "json", cwd=tmp_path, code=LIGHT)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]"), done.stderr
