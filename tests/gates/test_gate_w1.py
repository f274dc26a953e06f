"""Gate W1: 120 ways of getting out of a text, in every place of a report that data reaches, and the page still has only
its own tags, no handler, no link but to its own sections, and a policy that allows nothing inline but by hash."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.gates.mutants import Mutant
from tests.report_kit import HARMLESS, METRICS, Page, check_texts_stay_texts, make_evaluation, report_of, run_of

pytestmark = [pytest.mark.gates, pytest.mark.timeout(600)]

CONTEXTS = (
    "@",  # a text
    '">@',  # an attribute
    "'>@",
    '" onmouseover="alert(1)" style="color:red" x="@',
    "</script>@",
    '"}}]}</script>@',  # a string of JSON in a script
    "</style></title></textarea></noscript></template>@",
    "--><!-- -->@<!--",
    "]]>@<![CDATA[",
    "</bdi></summary></details></section></main></body></html>@",
)
"""Where the attacker thinks the text stands, with "@" for the vector."""
VECTORS = (
    "<script>alert(1)</script>",
    "<ScRiPt\n/x>alert(1)</ScRiPt >",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s></svg>",
    "<a href='javascript:alert(1)'>x</a>",
    '<a href="jav&#x09;ascript:alert(1)">x</a>',
    "<math><mi xlink:href='javascript:alert(1)'>x</mi></math>",
    "<iframe srcdoc='&lt;script&gt;alert(1)&lt;/script&gt;'></iframe>",
    "<form action=javascript:alert(1)><button autofocus onfocus=alert(1)>x</button></form>",
    "<meta http-equiv=refresh content='0;url=javascript:alert(1)'>",
    "&lt;script&gt;alert(1)&lt;/script&gt;\\u003cscript\\u003e<!--<script>",
)
"""What should run."""
PAYLOADS = [context.replace("@", vector) for context in CONTEXTS for vector in VECTORS]
PLACES = 100
"""Texts of the page that come from data; the payload stands in each."""

THIS = "tests/gates/test_gate_w1.py"
MARKUP, PARTS = "rankwright/reporting/markup.py", "rankwright/reporting/parts.py"
MUTANTS = [
    Mutant("W1", THIS, MARKUP, "quote=True", "quote=False"),
    Mutant("W1", THIS, PARTS, '.replace("<", "\\\\u003c")', '.replace("<", "<")'),
    Mutant(
        "W1",
        f"{THIS}::test_the_policy_allows_nothing_inline_but_by_hash",
        "rankwright/assets/report.html",
        "script-src '$script_hash'",
        "script-src 'unsafe-inline'",
    ),
]


def report_with(folder: Path, text: str) -> str:
    """The page of an evaluation and a run in which this text stands for question, passage, title, id, answer, model,
    setting, error, alarm and logged name."""
    alarm = {"name": text, "step": 7, **dict.fromkeys(("seen", "wanted", "cause", "knob"), text)}
    run: dict[str, Any] = run_of(text)
    run["result"]["alarms"] = [alarm]
    metrics = [{**line, text: 1.0} for line in METRICS]
    return report_of(folder, make_evaluation(text), title=text, run=run, metrics=metrics)


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> str:
    page = report_with(tmp_path_factory.mktemp("harmless"), HARMLESS)
    assert Page(page).text.count(HARMLESS) >= PLACES
    return page


def test_there_are_as_many_payloads_as_promised() -> None:
    assert len(set(PAYLOADS)) == 120


@pytest.mark.parametrize("vector", VECTORS)
def test_no_payload_becomes_more_than_a_text(tmp_path: Path, harmless: str, vector: str) -> None:
    for context in CONTEXTS:
        payload = context.replace("@", vector)
        check_texts_stay_texts(report_with(tmp_path, payload), harmless, payload)


def hash_of(text: str) -> str:
    """As a policy names an inline element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_policy_allows_nothing_inline_but_by_hash(tmp_path: Path) -> None:
    page = Page(report_with(tmp_path, PAYLOADS[-1]))
    (policy,) = [value for name, _, value in page.attributes if name == "meta" and value.startswith("default-src")]
    rules = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    style, _, script = page.scripts
    assert {rule: rules[rule] for rule in rules if rule.endswith("-src")} == {
        "default-src": "'none'",
        "style-src": hash_of(style),
        "script-src": hash_of(script),
    }
