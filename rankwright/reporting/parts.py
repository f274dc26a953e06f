"""What all pages share: the frame with its policy, tables, p values."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from string import Template
from typing import Any

from rankwright.reporting.markup import Html, escape, tag

VERDICT_RULE = (
    "Better or worse is said only where the interval excludes 0 and the paired permutation test has p < 0.05."
)


def whole_page(title: str, body: Html, contents: Mapping[str, Any], *, anchor: str, also: str = "") -> str:
    """A page in one file. Its policy allows its one style sheet and its one script by hash.

    Args:
        title: Of the window.
        body: What is seen.
        contents: Data that the page carries as JSON.
        anchor: Id of the element that holds them.
        also: Name of a style sheet and a script in assets/ that the page needs beside those of all pages.
    """
    style, script = ("".join(_asset(f"{name}.{kind}") for name in ("report", also) if name) for kind in ("css", "js"))
    return Template(_asset("report.html")).substitute(
        title=escape(title),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        body=body,
        anchor=anchor,
        data=_json(contents),
    )


def _asset(name: str) -> str:
    return resources.files("rankwright").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def p_text(value: float) -> str:
    """A p value for a table."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def p_phrase(p: float) -> str:
    """A p value behind the letter."""
    return p_text(p) if p < 0.001 else f"= {p_text(p)}"


def table(heads: Iterable[Html], rows: Iterable[Html]) -> Html:
    """A table that a click on a column's head sorts (report.js)."""
    written = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows), class_="sortable")
    return tag("div", written, class_="scroll")
