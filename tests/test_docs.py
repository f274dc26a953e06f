"""Docs: links lead somewhere, and the API page says what the docstrings say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import rankwright

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


def test_the_api_page_is_what_the_docstrings_say() -> None:
    page = build.API_PAGE.read_text(encoding="utf-8") if build.API_PAGE.exists() else ""
    assert page == build.api_page(), "docs/api.md is out of date; run `make docs` and commit it"


def test_the_api_page_refuses_a_name_without_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    def bare() -> None: ...

    monkeypatch.setattr(rankwright, "__all__", ["bare"])
    monkeypatch.setattr(rankwright, "bare", bare, raising=False)
    with pytest.raises(SystemExit, match=r"rankwright\.bare"):
        build.api_page()
