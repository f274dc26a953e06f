"""`make docs`: writes docs/api.md from the docstrings and checks the relative links of every Markdown page.

Plain Markdown is read where it lies, so there is no site to build. tests/test_docs.py calls the same functions.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rankwright

ROOT = Path(__file__).resolve().parent.parent
API_PAGE = ROOT / "docs" / "api.md"
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]*))?\)")  # target and anchor; absolute URLs are left out
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def _signature(thing: Any) -> str:
    try:
        return str(inspect.signature(thing))
    except (TypeError, ValueError):
        return ""  # exceptions and protocols have none worth printing


def _methods(thing: Any) -> Iterator[tuple[str, Any]]:
    for name, member in vars(thing).items():
        if not name.startswith("_") and inspect.isfunction(member) and member.__doc__:
            yield name, member


def api_page() -> str:
    """The reference of all public names, in the order of `rankwright.__all__`.

    Raises:
        SystemExit: a public name has no docstring.
    """
    parts = ["# API", "Written by `make docs` from the docstrings; every name imports from `rankwright`."]
    for name in rankwright.__all__:
        thing = getattr(rankwright, name)
        if isinstance(thing, str):
            continue  # __version__
        text = inspect.getdoc(thing)
        if not text:
            raise SystemExit(f"Public name 'rankwright.{name}' has no docstring; describe it in {thing.__module__}.")
        parts += [f"## {name}", f"```python\n{thing.__module__}.{name}{_signature(thing)}\n```", text]
        if inspect.isclass(thing):
            for method, function in _methods(thing):
                parts += [f"```python\n{name}.{method}{_signature(function)}\n```", inspect.getdoc(function) or ""]
    return "\n\n".join(parts) + "\n"


def pages() -> list[Path]:
    """Markdown pages of the project, outside hidden folders and run folders."""
    found = (p.relative_to(ROOT) for p in ROOT.rglob("*.md"))
    return [ROOT / p for p in sorted(found) if p.parts[0] != "runs" and not any(x.startswith(".") for x in p.parts)]


def anchors(text: str) -> set[str]:
    """Anchors that forges give to the headings of a page: lower case, punctuation dropped, spaces to hyphens."""
    without_blocks = CODE.sub(lambda code: "" if "\n" in code.group() else code.group().strip("`"), text)
    titles = HEADING.findall(without_blocks)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page whose file or anchor does not exist, each as `page: link`."""
    text = page.read_text(encoding="utf-8")
    broken: list[str] = []
    for target, anchor in LINK.findall(CODE.sub("", text)):
        linked = (page.parent / target) if target else page
        missing_anchor = anchor and linked.suffix == ".md" and linked.is_file()
        if not linked.exists() or (missing_anchor and anchor not in anchors(linked.read_text(encoding="utf-8"))):
            broken.append(f"{page.name}: {target}{'#' + anchor if anchor else ''}")
    return broken


def main() -> None:
    """Write the API page, then end with an error where a link leads nowhere."""
    API_PAGE.write_text(api_page(), encoding="utf-8")
    broken = [link for page in pages() for link in broken_links(page)]
    if broken:
        sys.exit("Links that lead nowhere; correct the target or add the page:\n" + "\n".join(broken))


if __name__ == "__main__":
    main()
