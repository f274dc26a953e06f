"""Templates in the forms of rank_llm and Rank-R1: read word for word, or refused by name. The words here are ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankwright.cli.app import run
from rankwright.errors import ConfigurationError
from rankwright.prompts.ranking import load_ranking_prompt
from rankwright.types import Choice, Completion, Document, Permutation, Query

SINGLE = """
method: "singleturn_listwise"
system_message: "You sort. <think> first </think> <answer> then </answer>."
prefix: |
  Here are {num} texts on {query}.
body: |
  [{rank}] {candidate}
suffix: |-
  Query: {query}.
  Sort all {num}, as in [2] > [1]; no {{braces}}.
output_validation_regex: r"^\\[\\d+\\]( > \\[\\d+\\])*$"
output_extraction_regex: r"\\[(\\d+)\\]"
"""
LETTERS = SINGLE.replace("<think> first </think> <answer> then </answer>", "Now").replace("\\d+", "[A-Z]")
TURNS = """
method: "multiturn_listwise"
system_message: "You sort."
prefix_user: "{num} texts on {query} follow."
prefix_assistant: "Go on."
body_user: "[{rank}] {candidate}"
body_assistant: "Got [{rank}]."
suffix_user: "Sort {num} on {query}."
output_patterns: ["x"]
"""
SETWISE = '''
prompt_system = "Think: <think> </think> <answer> </answer>."
prompt_user = """On "{query}", which is best?
{docs}
Say <answer>[3]</answer>."""
pattern = '<think>.*?</think>'
'''
QUERY, DOCUMENTS = Query("q", "fleas"), (Document("a", "one [2] two"), Document("b", "three", "Title"))


def written(folder: Path, text: str, name: str = "theirs.yaml") -> Path:
    (folder / name).write_text(text, "utf-8")
    return folder / name


def test_one_turn_of_rank_llm(tmp_path: Path) -> None:
    prompt = load_ranking_prompt(written(tmp_path, SINGLE))
    assert prompt.messages(QUERY, DOCUMENTS) == (
        ("system", "You sort. <think> first </think> <answer> then </answer>."),
        (
            "user",
            "Here are 2 texts on fleas.\n[1] one (2) two\n[2] Title: three\nQuery: fleas.\n"
            "Sort all 2, as in [2] > [1]; no {braces}.",
        ),
    )
    read = prompt.parse(Completion("<think>1</think><answer>[2] > [1]</answer>"), 2, strict=True)
    assert read == Permutation((1, 0))
    assert (prompt.shown.limit, prompt.shown.unit) == (300, "words")


def test_letters_of_rank_llm_are_read_from_the_second_token(tmp_path: Path) -> None:
    prompt = load_ranking_prompt(written(tmp_path, LETTERS))
    assert "[A] one (2) two\n[B] Title: three\n" in prompt.messages(QUERY, DOCUMENTS)[1][1]
    top = ({"[": -0.1}, {"B": -0.2, "A": -0.3})
    assert prompt.parse(Completion("[B", top_logprobs=top), 2) == Permutation((1, 0))
    assert prompt.needs_logprobs


def test_turns_of_rank_llm(tmp_path: Path) -> None:
    assert load_ranking_prompt(written(tmp_path, TURNS)).messages(QUERY, DOCUMENTS) == (
        ("system", "You sort."),
        ("user", "2 texts on fleas follow."),
        ("assistant", "Go on."),
        ("user", "[1] one (2) two"),
        ("assistant", "Got [1]."),
        ("user", "[2] Title: three"),
        ("assistant", "Got [2]."),
        ("user", "Sort 2 on fleas."),
    )
    without = "\n".join(line for line in TURNS.splitlines() if not line.startswith("body_assistant"))
    messages = load_ranking_prompt(written(tmp_path, without)).messages(QUERY, DOCUMENTS)
    assert messages[1:] == (
        ("user", "2 texts on fleas follow."),
        ("assistant", "Go on."),
        ("user", "[1] one (2) two[2] Title: threeSort 2 on fleas."),
    )


def test_rank_r1(tmp_path: Path) -> None:
    prompt = load_ranking_prompt(written(tmp_path, SETWISE, "theirs.toml"))
    assert prompt.messages(QUERY, DOCUMENTS) == (
        ("system", "Think: <think> </think> <answer> </answer>."),
        ("user", 'On "fleas", which is best?\n[1]: one (2) two\n[2]: Title: three\nSay <answer>[3]</answer>.'),
    )
    assert prompt.parse(Completion("<think>so</think><answer>[2]</answer>"), 2, strict=True) == Choice(1)
    assert prompt.most == 20


def test_it_is_a_prompt_like_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its version is that of what it says, wherever it lies; a copy in our form is the same prompt."""
    first = load_ranking_prompt(written(tmp_path, SINGLE))
    assert first == load_ranking_prompt(written(tmp_path, SINGLE, "other.yml"))
    assert first.version.startswith("sha256:")
    assert load_ranking_prompt(first.save(tmp_path / "model").parent) == first
    assert run(["prompts", "show", "--prompt", str(tmp_path / "theirs.yaml")]) == 0
    assert load_ranking_prompt(written(tmp_path, capsys.readouterr().out, "ours.yaml")) == first
    short = first.limited(1).messages(QUERY, DOCUMENTS)[1][1]
    assert "[1] one\n[2] Title:\n" in short


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            SINGLE.replace("singleturn_listwise", "pairwise"),
            "Part 'method' of template .* is 'pairwise'; wanted single",
        ),
        (SINGLE.replace("{query}.\n  Sort", "{psg_ids}\n  Sort"), "wanted no field but query, .*, and not 'psg_ids'"),
        (SINGLE.replace("Sort all", "Sort { all"), "wanted fields in braces, each opened and closed"),
        (SINGLE.replace("body:", "bodies:"), "Part 'body' of template .* is missing; wanted it"),
        ("method: singleturn_listwise\nbody: 3\n", "Part 'body' of template .* is '3'; wanted text"),
        (SINGLE.replace("{rank}", "x"), "the field {identifier} beside every {passage}"),
        (SINGLE.replace("{query}", "it"), "the field {query} in one of them"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load_ranking_prompt(written(tmp_path, text))
