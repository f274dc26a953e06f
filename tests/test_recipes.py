"""Recipes by name: each value with its source, without data, model, key or extra; what a user gives replaces it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankwright.algorithms.generating import GRPOConfig, SFTConfig
from rankwright.cli.app import run
from rankwright.cli.recipes import FOLDER, SOURCES, load_recipe, recipe_names
from rankwright.cli.rewards import check_reward
from rankwright.cli.settings import load_settings
from rankwright.errors import ConfigurationError
from rankwright.prompts.ranking import load_ranking_prompt
from tests.cli_kit import one_line, rows, run_process, write_rows
from tests.test_cli_surface import WITHOUT_TORCH

SEVEN = ("erank", "first", "grouprank", "prorank", "rank-r1", "rearank", "reasonrank")
STAGES = [(name, stage) for name in SEVEN for stage in yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["stages"]]


def dry_run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run(["train", *arguments, "--dry-run", "--output", "json"]) == 0
    return one_line(capsys.readouterr().out)


def test_the_seven_recipes_are_there() -> None:
    assert recipe_names() == SEVEN


def test_a_dry_run_of_a_recipe_needs_nothing_and_imports_no_torch(tmp_path: Path) -> None:
    commands = [["train", "--recipe", name, "--dry-run", "--output", "json"] for name in SEVEN]
    done = run_process(json.dumps(commands), cwd=tmp_path, code=WITHOUT_TORCH, OPENAI_API_KEY="")
    lines = done.stdout.splitlines()
    assert lines[1::2] == ["exit code 0"] * len(SEVEN), done.stderr
    for line in lines[::2]:
        found = json.loads(line)
        assert found["budget"] is None
        assert {frozenset(setting) for setting in found["settings"].values()} == {frozenset({"value", "source"})}
        assert {setting["source"] for setting in found["settings"].values()} <= set(SOURCES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_every_value_of_a_recipe_has_a_source_and_a_place(name: str, stage: str) -> None:
    recipe = load_recipe(name, stage)
    assert {setting.source for setting in recipe.settings.values()} <= set(SOURCES)
    assert [key for key, setting in recipe.settings.items() if not setting.where] == []
    settings = load_settings(None, [], {}, recipe.values())  # known names, allowed values
    check_reward(settings)
    assert load_ranking_prompt(settings.generating.prompt).version == settings.generating.prompt


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_a_recipe_leaves_no_setting_of_its_method_to_a_default(name: str, stage: str) -> None:
    section = {"grpo": GRPOConfig, "sft": SFTConfig}[stage]
    wanted = {f"{stage}.{field.name}" for field in dataclasses.fields(section)}
    basics = ("model.name", "model.lora_rank", "generating.prompt", "generating.window", "generating.max_prompt_length")
    wanted |= {*basics, "loop.batch_size", "loop.epochs", "loop.learning_rate", "loop.trainer.lr_scheduler_type"}
    wanted |= {"reward"} if stage == "grpo" else {"loop.batch_size"}
    assert wanted - load_recipe(name, stage).settings.keys() == set()


# What the notes on the papers have, by our names. Whatever the paper leaves open must not stand here as its own.
PUBLISHED = [
    ("rearank", "grpo", {"grpo.rollouts": 32, "loop.batch_size": 128, "generating.window": 20, "reward": "rearank"}),
    (
        "rank-r1",
        "grpo",
        {"grpo.rollouts": 8, "loop.learning_rate": 1e-5, "model.lora_rank": 16, "model.lora_alpha": 32},
    ),
    ("rank-r1", "sft", {"loop.learning_rate": 1e-5, "loop.batch_size": 2, "loop.accumulation": 8}),
    ("reasonrank", "grpo", {"loop.learning_rate": 1e-6, "grpo.rollouts": 8, "grpo.beta": 0.001, "grpo.updates": 2}),
    ("reasonrank", "sft", {"loop.learning_rate": 5e-6, "loop.epochs": 5, "sft.max_length": 20480 + 3072}),
    ("grouprank", "grpo", {"model.lora_rank": 32, "loop.learning_rate": 1e-5, "loop.batch_size": 64, "loop.epochs": 5}),
    ("grouprank", "sft", {"loop.learning_rate": 3e-5, "sft.max_length": 32768}),
    ("erank", "grpo", {"grpo.rollouts": 5, "grpo.clip": 0.2, "grpo.beta": 0.001, "loop.batch_size": 1280 // 20}),
    ("erank", "sft", {"model.lora_rank": 32, "model.lora_alpha": 64, "loop.learning_rate": 1e-4}),
    ("first", "sft", {"sft.ranking_weight": 10, "sft.ranking_loss": "ranknet", "loop.learning_rate": 5e-6}),
]
OPEN = [
    ("rearank", ("loop.learning_rate", "grpo.beta", "grpo.temperature", "grpo.max_completion_length", "grpo.clip")),
    ("rank-r1", ("grpo.beta", "grpo.temperature", "loop.epochs")),
    ("grouprank", ("grpo.clip",)),
    ("erank", ("reward",)),
    ("prorank", ("reward", "loop.learning_rate", "grpo.rollouts", "grpo.beta", "loop.batch_size")),
]


@pytest.mark.parametrize(("name", "stage", "values"), PUBLISHED)
def test_published_values_are_those_of_paper_or_code(name: str, stage: str, values: dict[str, Any]) -> None:
    settings = load_recipe(name, stage).settings
    assert {key: settings[key].value for key in values} == values
    assert {settings[key].source for key in values} <= {"paper", "code"}


@pytest.mark.parametrize(("name", "keys"), OPEN)
def test_what_a_paper_leaves_open_is_ours(name: str, keys: tuple[str, ...]) -> None:
    assert {key: load_recipe(name).settings[key].source for key in keys} == dict.fromkeys(keys, "ours")


def test_what_the_user_gives_replaces_the_recipe_and_is_called_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("grpo: {rollouts: 4, beta: 0.5}\nmodel: {name: tiny}\n", "utf-8")
    given = ["--config", str(config), "--set", "grpo.beta=0.25", "--learning-rate", "0.001"]
    settings = dry_run("--recipe", "rearank", *given, capsys=capsys)["settings"]
    ours = {"grpo.rollouts": 4, "grpo.beta": 0.25, "model.name": "tiny", "loop.learning_rate": 0.001}
    assert {key: settings[key] for key in ours} == {key: {"value": v, "source": "user"} for key, v in ours.items()}
    assert settings["loop.batch_size"] == {"value": 128, "source": "paper"}


def test_a_method_chooses_the_stage(capsys: pytest.CaptureFixture[str]) -> None:
    settings = dry_run("--recipe", "reasonrank", "--method", "sft", capsys=capsys)["settings"]
    assert settings["loop.learning_rate"]["value"] == 5e-6
    assert [key for key in settings if key.startswith("grpo.")] == []


def test_the_budget_counts_prompts_completions_and_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_rows(tmp_path / "q.jsonl", rows()))
    sides = [
        str(
            write_rows(tmp_path / f"{side}.jsonl", [{**row, "question": f"{side} {row['question']}"} for row in rows()])
        )
        for side in ("dev", "test")
    ]
    small = ["--data", data, "--dev", sides[0], "--test", sides[1], "--retriever", "given", "--depth", "3"]
    sizes = ["loop.batch_size=4", "loop.epochs=2", "grpo.rollouts=5", "generating.window=3", "grpo.updates=1"]
    sets = [part for size in sizes for part in ("--set", size)]
    found = dry_run("--recipe", "rearank", *small, *sets, capsys=capsys)["budget"]
    visits = 2 * len(rows())
    assert (found["questions"], found["prompts"], found["completions"]) == (visits, visits, visits * 5)
    assert (found["output_tokens"], found["reader_calls"], found["price"]) == (visits * 5 * 2048, 0, 0.0)
    paid = ["--reader", "http://localhost:9/v1", "--reader-model", "m", "--price-input", "1", "--price-output", "2"]
    found = dry_run("--recipe", "rearank", *small, *sets, "--reward", "f1", *paid, capsys=capsys)["budget"]
    assert found["reader_calls"] == visits * 5
    assert found["price"] > 2 * visits * 5 * 64 / 1e6  # the answers alone
    found = dry_run("--recipe", "erank", *small, *sets, capsys=capsys)["budget"]
    assert found["prompts"] == 3 * visits


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "rearnk", "--dry-run"], "Did you mean rearank"),
        (["--recipe", "demo", "--dry-run"], ", ".join(SEVEN)),
        (["--recipe", "first", "--method", "grpo", "--dry-run"], "no stage for --method grpo; wanted sft"),
        (
            ["--recipe", "rearank", "--dry-run", "--reward", "f1", "--reader", "none"],
            "Reward f1 pays a reader's answer",
        ),
        (
            ["--recipe", "rearank", "--dry-run", "--reward-option", "recall_weight=1"],
            "Reward 'rearank' was given the option 'recall_weight'; its options are rank_weight, tags_weight",
        ),
        (
            ["--recipe", "reasonrank", "--dry-run", "--reward-option", "recall_weight=much"],
            "Setting reward_options.recall_weight is 'much'",
        ),
        (["--recipe", "erank", "--dry-run", "--reward-option", "reference=1"], "wanted the file that rankwright"),
        (["--recipe", "erank", "--dry-run", "--reward-option", "reference=no.json"], "'no.json' (FileNotFoundError"),
        (["--recipe", "rearank", "--dry-run", "--reward", "f1", "--reward-option", "depth=1"], "option 'depth'"),
        (["--recipe", "rearank", "--dry-run", "--reward-option", "cutoff"], "wanted NAME=VALUE"),
        (["--recipe", "rearank", "--dry-run", "--reward-option", "cutoff=0"], "Option cutoff of reward 'rearank' is 0"),
        (["--recipe", "rearank", "--dry-run", "--model", "reference"], "cannot write"),
        (["--recipe", "rearank", "--dry-run", "--depth", "10"], "generating.window is 20"),
        (["--recipe", "rearank", "--dry-run", "--set", "grpo.rollout=3"], "Did you mean"),
        (["--recipe", "rearank"], "No name was given"),
        (["--dry-run"], "No name was given"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_the_table_says_where_each_value_is_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--recipe", "rearank", "--dry-run"]) == 0
    text = capsys.readouterr().out
    (line,) = (line for line in text.splitlines() if "grpo.rollouts" in line)
    assert [word in line for word in ("32", "paper", "section 4.1")] == [True] * 3
    assert "add --data FILE" in text


def test_an_unknown_recipe_is_an_error_of_the_library_too() -> None:
    with pytest.raises(ConfigurationError, match="rank-r1, rearank"):
        load_recipe("rankgpt")
