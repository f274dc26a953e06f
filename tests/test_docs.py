"""Docs: links lead somewhere, and pages that come from code say what the code says."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

import rankwright
from rankwright.algorithms import RRPO, RRPOConfig, Supervised
from rankwright.algorithms.config import TrainConfig
from rankwright.cli.app import run
from rankwright.cli.recipes import load_recipe, recipe_names
from rankwright.cli.settings import RunSettings
from rankwright.prompts.ranking import load_ranking_prompt
from rankwright.training import SUPPORTED_ARGUMENTS, dev_scorer, train
from tests.toy import ToyPolicy, ToyReader, examples

ROOT = Path(__file__).resolve().parent.parent


def _load_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _load_build()
PAGES = build.pages()


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert build.broken_links(page) == []


def test_the_link_check_finds_missing_files_and_anchors(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# Two `words`, here\n", encoding="utf-8")
    links = (
        "[x](b.md) [x](b.md#two-words-here) [x](b.md#three) [x](c.md) [x](https://c.example) `[x](d.md)` [x](#top)\n"
    )
    (tmp_path / "a.md").write_text(f"# Top\n{links}", encoding="utf-8")
    assert build.broken_links(tmp_path / "a.md") == ["a.md: b.md#three", "a.md: c.md"]


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_commands_of_several_lines_can_be_pasted(page: Path) -> None:
    assert build.unjoined_commands(page.read_text(encoding="utf-8")) == []


def test_the_check_of_commands_finds_lines_without_a_backslash() -> None:
    good = "rankwright train a \\\n  --b c \\\n  --d\n    At most\n\n    $ rankwright eval x\n    rankwright eval y\n"
    assert build.unjoined_commands(good) == []
    assert build.unjoined_commands("    rankwright train a\n      b\n") == ["rankwright train a"]
    assert build.unjoined_commands("KEY=1 rankwright train a \\\n  --b c\n  --dry-run\n") == ["--b c"]


def test_the_api_page_is_what_the_docstrings_say() -> None:
    page = build.API_PAGE.read_text(encoding="utf-8") if build.API_PAGE.exists() else ""
    assert page == build.api_page(), "docs/api.md is out of date; run `make docs` and commit it"
    assert not re.search(r"^ +(Args|Raises|Returns)\b.*:$", page, re.MULTILINE), "a docstring is indented unevenly"


def test_the_command_line_page_is_what_help_says() -> None:
    assert build.CLI_PAGE.read_text(encoding="utf-8") == build.cli_page(), "docs/cli.md is out of date; run `make docs`"


def test_the_settings_page_is_what_the_fields_say() -> None:
    page = build.SETTINGS_PAGE.read_text(encoding="utf-8")
    assert page == build.settings_page(), "docs/settings.md is out of date; run `make docs` and commit it"


def test_every_setting_is_on_its_page() -> None:
    def names(settings: object, prefix: str = "") -> set[str]:
        found: set[str] = set()
        for field in dataclasses.fields(settings):  # pyright: ignore[reportArgumentType]
            value = getattr(settings, field.name)
            found |= names(value, f"{field.name}.") if dataclasses.is_dataclass(value) else {prefix + field.name}
        return found

    rows = set(re.findall(r"^\| `([\w.]+)` \|", build.settings_page(), re.MULTILINE))
    assert rows == names(RunSettings()) | SUPPORTED_ARGUMENTS


def test_a_setting_without_docstring_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "settings.py"
    source.write_text('class S:\n    a: int = 1\n    """First."""\n    b: str | None = None\n', encoding="utf-8")
    fields = build.fields_of(source, "S")
    assert fields == {"a": ("int", "First."), "b": ("str or None", "")}
    with pytest.raises(SystemExit, match=r"x\.b"):
        build._settings_table("x.", {"b": fields["b"]}, SimpleNamespace(b=None))


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_links_to_lines_lie_in_the_definition_they_name(page: Path) -> None:
    assert build.astray_lines(page) == [], "run `make docs`, which renews the lines"


def test_lines_are_found_and_renewed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("X = 1\n\n\nclass A:\n    def b(self) -> None:\n        pass\n", encoding="utf-8")
    page = tmp_path / "p.md"
    page.write_text("[`X`](a.py#L1) [`A.b`](a.py#L6) [`A.b`](a.py#L4) [`gone`](a.py#L1)", encoding="utf-8")
    assert build.astray_lines(page) == ["p.md: A.b in a.py, line 4", "p.md: gone in a.py, line 1"]
    assert build.with_lines(page) == "[`X`](a.py#L1) [`A.b`](a.py#L5) [`A.b`](a.py#L5) [`gone`](a.py#L1)"


def test_the_tree_in_the_readme_is_the_tree() -> None:
    assert build.tree_differences() == []


def test_the_tree_check_finds_what_is_left_out_and_invented(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("```\nrankwright/\n  types.py  nouns\n  nowhere.py  no\n  data/  loaders\n```\n", encoding="utf-8")
    differences = build.tree_differences(page)
    assert "README.md leaves out rankwright/errors.py" in differences
    assert "README.md invents rankwright/nowhere.py" in differences
    assert not [line for line in differences if "types.py" in line or "rankwright/data/" in line]


def test_the_site_lists_every_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    nested = [page for entry in site["nav"] for page in entry.values()]
    listed = {page for part in nested for page in ([part] if isinstance(part, str) else _pages_of(part))}
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}


def _pages_of(part: list[dict[str, str]]) -> list[str]:
    return [page for entry in part for page in entry.values()]


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_tables_of_recipes_are_what_the_files_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == build.with_recipes(text), "a table of a recipe is out of date; run `make docs` and commit it"


def test_a_table_of_a_recipe_has_every_value_with_its_source() -> None:
    text = "# A\n<!-- recipe first -->\nold\n<!-- end of recipe -->\nend\n"
    renewed = build.with_recipes(text)
    assert "old" not in renewed
    assert renewed.startswith("# A\n<!-- recipe first -->\n| setting")
    assert renewed.endswith("|\n<!-- end of recipe -->\nend\n")
    stage = load_recipe("first").settings
    rows = re.findall(r"^\| `([\w.]+)` \| (all|sft) \| `(.*)` \| (\w+) \|", renewed, re.MULTILINE)
    table = {key: (json.loads(value), source) for key, _, value, source in rows}
    assert table | {"method": ("sft", "paper")} == {key: (s.value, s.source) for key, s in stage.items()}


def test_every_recipe_has_a_page_with_its_table() -> None:
    for name in recipe_names():
        text = (ROOT / "docs" / "systems" / f"{name}.md").read_text(encoding="utf-8")
        assert build.RECIPE.findall(text)[0][1] == name


def _commands() -> list[list[str]]:
    """Every command of the pages of systems, as a shell divides it."""
    texts = [page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "systems").glob("*.md"))]
    blocks = [block for text in texts for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line]
    return [shlex.split(line.partition(" > ")[0]) for line in dict.fromkeys(lines)]


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_commands_of_systems_lack_their_data_alone(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder with nothing but the prompts that training would have saved, each is done or misses its own file."""
    monkeypatch.chdir(tmp_path)
    for part in command:
        if part.startswith("runs/") and command[1] == "rerank":
            name = load_recipe(Path(part).parts[1].removesuffix("-sft")).settings["generating.prompt"].value
            load_ranking_prompt(name).save(tmp_path / part)
    program, verb, *_ = command
    assert program == "rankwright"
    code = run(command[1:] + ["--dry-run"] * (verb == "train" and "--dry-run" not in command))
    said = " ".join(capsys.readouterr().err.split())
    files = [part.rpartition("=")[2] for part in command if part.endswith((".jsonl", ".json", ".run"))]
    assert code == 0 if not files else any(name in said for name in files), said


def test_the_api_page_refuses_a_name_without_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    def bare() -> None: ...

    monkeypatch.setattr(rankwright, "__all__", ["bare"])
    monkeypatch.setattr(rankwright, "bare", bare, raising=False)
    with pytest.raises(SystemExit, match=r"rankwright\.bare"):
        build.api_page()


def _logged(folder: Path, algorithm: RRPO | Supervised) -> list[set[str]]:
    """Names on the lines of training steps, and on those of dev."""
    policy, reward = ToyPolicy(), rankwright.answer_reward("f1")
    config = TrainConfig(epochs=1, batch_size=4, eval_steps=2)
    dev = dev_scorer(examples(4), ToyReader(), reward, top_k=1)
    train(policy, copy.deepcopy(policy), algorithm, examples(8), config, folder, score_dev=dev)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kinds = [[row for row in rows if ("eval_reward" in row) is of_dev] for of_dev in (False, True)]
    assert all(len({frozenset(row) for row in kind}) == 1 for kind in kinds), "lines of one kind have the same names"
    return [set(kind[0]) for kind in kinds]


LOGGED = (ROOT / "docs" / "rrpo.md").read_text("utf-8").partition("## What is logged\n")[2].partition("\n## ")[0]
ON_EVERY_LINE = {"step", "epoch"}
"""Said in a sentence above the tables."""


@pytest.mark.parametrize(
    "config",
    [
        RRPOConfig(),
        RRPOConfig(
            advantage="gae",
            scale="question",
            ratio_anchor="reference",
            inner_epochs=2,
            kl="sampled",
            drop_closed_book=True,
            skip_unanimous=True,
        ),
    ],
    ids=["defaults", "all options"],
)
def test_the_page_of_rrpo_names_what_is_logged_and_nothing_else(tmp_path: Path, config: RRPOConfig) -> None:
    algorithm = RRPO(config, ToyReader(fail_every=30), rankwright.answer_reward("f1"))
    steps, dev = _logged(tmp_path, algorithm)
    tables = [re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE) for part in LOGGED.split("Lines of evaluations on dev")]
    assert [sorted(names) for names in tables] == [sorted(steps - ON_EVERY_LINE), sorted(dev - ON_EVERY_LINE)]
    assert steps & dev >= ON_EVERY_LINE
    assert all(f"`{name}`" in LOGGED.partition("|")[0] for name in ON_EVERY_LINE)


def test_the_page_of_rrpo_names_what_a_critic_logs(tmp_path: Path) -> None:
    config = RRPOConfig(baseline="critic", advantage="gae")
    plain, _ = _logged(tmp_path / "plain", RRPO(RRPOConfig(), ToyReader(), rankwright.answer_reward("f1")))
    steps, _ = _logged(tmp_path / "critic", RRPO(config, ToyReader(), rankwright.answer_reward("f1")))
    sentence = LOGGED[LOGGED.index("With `baseline: critic` there is") :].partition(":")[2].partition(":")[0]
    assert set(re.findall(r"`(\w+)`", sentence)) == {"critic_error"} & (steps - plain)


def test_the_page_of_rrpo_names_what_learning_from_labels_logs(tmp_path: Path) -> None:
    steps, _ = _logged(tmp_path, Supervised())
    sentence = LOGGED[LOGGED.index("`train --method supervised` logs") :].partition(", the share")[0]
    assert set(re.findall(r"`(\w+)`", sentence)) == steps - ON_EVERY_LINE
