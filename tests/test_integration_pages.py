"""The page of integrations: its examples run as they stand, and it names the versions that are installed here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import rankwright
from tests.tiny_bert import save_cross_encoder

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "integrations.md").read_text("utf-8")
EXAMPLES = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
NAMES = dict(EXAMPLES)["What holds in all of them"]


def test_every_library_has_an_example() -> None:
    libraries = re.findall(r"^\| ([\w-]+) \| `pip", PAGE, re.MULTILINE)
    assert [heading for heading, _ in EXAMPLES[1:]] == libraries
    assert len(libraries) == 6


@pytest.mark.parametrize(("heading", "code"), EXAMPLES[1:], ids=[heading for heading, _ in EXAMPLES[1:]])
def test_an_example_runs_as_it_stands(
    heading: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "mine" / "model"
    rankwright.load(save_cross_encoder(folder)).save(folder)
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(NAMES + code, namespace)
    assert capsys.readouterr().out.count("\n") >= code.count("print("), "it prints what it found"


def test_the_versions_on_the_page_are_those_that_are_installed() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines())
    cells = [row[-1] for row in re.findall(r"^\| [\w-]+ \| `pip[^|]*\|([^|]*)\| ([^|]*) \|$", PAGE, re.MULTILINE)]
    named = [package.rsplit(" ", 1) for cell in cells for package in cell.split(", ")]
    assert [(name, pins[name]) for name, _ in named] == [(name, version) for name, version in named]
    assert len(named) == 7
