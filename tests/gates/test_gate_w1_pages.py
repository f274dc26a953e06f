"""Gate W1 for the pages that scripts make: 120 ways of getting out of a text, in every place of the comparison and of
the server's page that data or the server's answers reach, in a real Chromium. The page keeps its elements and
attributes, nothing runs, nothing is loaded, and the browser has nothing to complain of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rankwright.comparison import Side, compare_sides
from rankwright.reporting.compared import write_comparison
from rankwright.server.page import HEADERS
from tests.browser import Window, chromium, standing_in
from tests.gates.mutants import Mutant
from tests.gates.test_gate_w1 import CONTEXTS, VECTORS
from tests.report_kit import HARMLESS, Page, make_evaluation

pytestmark = [pytest.mark.gates, pytest.mark.timeout(600)]

THIS = "tests/gates/test_gate_w1_pages.py"
COMPARISON = f"{THIS}::test_no_payload_becomes_more_than_a_text_in_a_comparison"
SERVED = f"{THIS}::test_no_payload_becomes_more_than_a_text_on_the_server_s_page"
POLICY = f"{THIS}::test_the_server_s_policy_allows_own_files_only"
APPENDING = "made.append(...children.filter((child) => child !== null));"
AS_MARKUP = (
    "for (const child of children) if (child !== null) "
    'typeof child === "string" ? made.insertAdjacentHTML("beforeend", child) : made.append(child);'
)
PAGE = "rankwright/server/page.py"
MUTANTS = [
    Mutant("W1", COMPARISON, "rankwright/assets/compare.js", APPENDING, AS_MARKUP),
    Mutant("W1", COMPARISON, "rankwright/reporting/parts.py", '.replace("<", "\\\\u003c")', '.replace("<", "<")'),
    Mutant("W1", SERVED, "rankwright/assets/page/page.js", APPENDING, AS_MARKUP),
    Mutant(
        "W1",
        SERVED,
        "rankwright/assets/page/page.js",
        'byId("problem").textContent = error.message;',
        'byId("problem").innerHTML = error.message;',
    ),
    Mutant("W1", POLICY, PAGE, "\"script-src 'self'\"", "\"script-src 'self' 'unsafe-inline'\""),
    Mutant("W1", POLICY, PAGE, "require-trusted-types-for 'script'", "require-trusted-types-for 'none'"),
]

Open = Callable[..., Window]


@pytest.fixture(scope="module")
def browser() -> Iterator[Open]:
    with chromium() as opened:
        yield opened


def opened_comparison(window: Window, folder: Path, text: str) -> Page:
    """The page of a comparison in which this text stands for question, passage, title, id, answer, model and setting;
    every question is opened. What was written is returned."""
    evaluation = make_evaluation(text, n=3, wins=0.5)
    first, second, _ = evaluation.models
    sides = Side(f"old{text}", evaluation, first), Side(f"new{text}", evaluation, second)
    path = write_comparison(folder / "comparison.html", compare_sides(*sides))
    window.page.goto("about:blank")
    window.page.goto(path.as_uri())
    for summary in window.page.locator("summary").all():
        summary.click()
    window.page.locator(".sides").nth(2).wait_for()
    return Page(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("vector", VECTORS)
def test_no_payload_becomes_more_than_a_text_in_a_comparison(browser: Open, tmp_path: Path, vector: str) -> None:
    window = browser()
    plain = opened_comparison(window, tmp_path, HARMLESS)
    structure = window.structure()
    for context in CONTEXTS:
        page = opened_comparison(window, tmp_path, context.replace("@", vector))
        assert page.elements == plain.elements
        assert page.links == plain.links
        assert page.oddities == []
        assert [page.scripts[0], page.scripts[2]] == [plain.scripts[0], plain.scripts[2]]
        assert "<" not in page.scripts[1]  # a browser reads "<!--<script>" in a script otherwise than HTMLParser
        assert window.structure() == structure
    assert window.problems == []
    assert {url for url in window.requests if not url.startswith("about:")} == {window.page.url}


def used_page(window: Window, text: str) -> list[list[str]]:
    """What the server's page is made of while this text stands for question, passage, title, model, reader and answer,
    and after the server has refused with it."""
    words = {"models": (f"a{text}", f"b{text}"), "reader": {"name": text, "top_k": 1}, "answer": text}
    structures = []
    with standing_in(key=None, **words) as (address, said):
        window.page.goto(address)
        window.page.get_by_text("Serving").wait_for()
        window.page.get_by_label("Question", exact=True).fill(text)
        passages = [text, {"text": text, "title": text}, "another"]
        window.page.get_by_label("Passages", exact=True).fill(json.dumps(passages))
        for said.refusal, sign in ((None, "passages ranked by"), ((422, text, {}), r"\(status 422")):
            window.page.get_by_role("button", name="Rank").click()
            window.page.get_by_text(re.compile(sign)).wait_for()
            window.page.wait_for_function(
                "() => ![...document.querySelectorAll('.said')].some((e) => e.textContent === '…')"
            )
            structures.append(window.structure())
        assert window.page.evaluate("[...document.querySelectorAll('.said')].map((e) => e.textContent)") == [text] * 2
        assert all(url.startswith(address) for url in window.requests)
    return structures


@pytest.mark.parametrize("vector", VECTORS)
def test_no_payload_becomes_more_than_a_text_on_the_server_s_page(browser: Open, vector: str) -> None:
    window = browser()
    plain = used_page(window, HARMLESS)
    for context in CONTEXTS:
        window.requests.clear()
        assert used_page(window, context.replace("@", vector)) == plain
    assert {problem.partition(" (")[0] for problem in window.problems} == {
        "error: Failed to load resource: the server responded with a status of 422"
    }


def test_the_server_s_policy_allows_own_files_only() -> None:
    rules = dict(part.strip().split(" ", 1) for part in HEADERS["Content-Security-Policy"].split(";"))
    assert rules == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
