"""Reports made of hostile texts, and what must be true of each such page."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rankwright.evaluation import Evaluation, FirstStage, GoldFirst, evaluate
from rankwright.reporting import write_report
from rankwright.types import Answer, Context, Document, Example, Query, ReadFailed, ReadResult, Reranker, RerankRequest

HARMLESS = "plain words"

# Ways out of text, attributes, scripts, comments, styles and encodings; none may change the structure of the page.
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</ScRiPt ><img src=x onerror=alert(1)>",
    "<img src=x onerror=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "<svg/onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<math><mi xlink:href='javascript:alert(1)'>x",
    "<a href='javascript:alert(1)'>x</a>",
    '<a href="jav&#x09;ascript:alert(1)">x</a>',
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "<iframe src='https://evil.example'></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<object data='https://evil.example'></object>",
    "<embed src='https://evil.example'>",
    "<link rel=stylesheet href='https://evil.example/x.css'>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<base href='https://evil.example/'>",
    "<form action='https://evil.example'><input name=a><button>go</button></form>",
    "<style>@import 'https://evil.example/x.css'</style>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</textarea></noscript></template><script>alert(1)</script>",
    "<!-- --><script>alert(1)</script><!--",
    "--><script>alert(1)</script>",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<?xml version='1.0'?><script>alert(1)</script>",
    '" onmouseover="alert(1)" x="',
    "' onfocus='alert(1)' autofocus='",
    "` onclick=`alert(1)",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "\\u003cscript\\u003ealert(1)\\u003c/script\\u003e",
    "<scr\x00ipt>alert(1)</scr\x00ipt>",
    "\x1b[31m<b>red</b>",
    "\u202egnp.exe\u202c <b>reversed</b>",
    "\ud800<b>half a pair</b>",
    "$title $body ${script} $$ {0} %s",
    "</summary></details></section></main></body></html><script>alert(1)</script>",
    "<" * 50 + "script>alert(1)//" + ">" * 50,
    "\u2028\u2029</script>",
)


class ToyReader:
    """Says a fixed text, right only where the first passage is the labelled one."""

    def __init__(self, text: str, failing: Sequence[str] = ()) -> None:
        self.name, self.text, self.failing = text, text, failing

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        return [self._one(context) for context in contexts]

    def _one(self, context: Context) -> ReadResult:
        if context.query.query_id in self.failing:
            return ReadFailed(self.text)
        return Answer("right" if context.documents[0].text.startswith("the right") else self.text)


class Reversed(FirstStage):
    def _ordered(self, request: RerankRequest):
        return reversed(request.documents)


def make_evaluation(text: str = HARMLESS, *, n: int = 16, wins: float = 0.8125, reader: bool = True) -> Evaluation:
    """Two models of which the second wins that share of the questions; `text` stands wherever data can put a text."""
    examples = []
    for i in range(n):
        gold = Document(f"g{i}{text}", f"the right passage {text}", text)
        others = [Document(f"o{i}-{j}{text}", f"{text} nothing {j}", text if j else "") for j in range(11)]
        candidates = (*others, gold) if i < wins * n else (gold, *others)
        examples.append(
            Example(Query(f"q{i}{text}", f"{text} question {i}?"), candidates, ("right", text), {gold.doc_id: 1})
        )
    rankers: dict[str, Reranker] = {
        f"base{text}": FirstStage(),
        f"mine{text}": Reversed(),
        "gold-first": GoldFirst(examples),
    }
    return evaluate(
        rankers,
        examples,
        reader=ToyReader(f"wrong {text}", failing=[f"q{n - 1}{text}"]) if reader else None,
        top_k=2,
        depth=12,
        baseline=f"base{text}",
        set_name=text,
        retriever=text,
        resamples=200,
        permutations=2000,
        max_failed=1.0,
    )


def run_of(text: str) -> dict[str, Any]:
    return {
        "config": {"reader": text, "nested": {"value": [text, 1]}, "samples": 4},
        "environment": {"command": ["rankwright", "train", text], "machine": text},
        "result": {"reader_calls": 1200, "cache_hits": 300, "seconds": 240.0, "note": text},
    }


METRICS = [{"step": i, "reward": 0.4 + i / 1000, "kl": i / 500, "eval_F1": 0.5, "eval_EM": 0.4} for i in range(60)]


LINKING = {"href", "src", "srcset", "srcdoc", "action", "formaction", "data", "poster", "background", "ping"}


class Page(HTMLParser):
    """The structure and the texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.oddities: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(sorted(name for name, _ in attrs))))
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self._open and self._open[-1] in ("script", "style") else self.texts).append(data)

    def handle_comment(self, data: str) -> None:
        self.oddities.append(data)

    handle_pi = unknown_decl = handle_comment

    @property
    def links(self) -> list[str]:
        """Whatever a browser could follow or load."""
        return [value for _, name, value in self.attributes if name.rpartition(":")[2] in LINKING]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def report_of(tmp_path: Path, evaluation: Evaluation, **options: Any) -> str:
    """The page that is written."""
    path = write_report(tmp_path / "report.html", evaluation, **{"title": "A title", **options})
    return path.read_text(encoding="utf-8")


def check_texts_stay_texts(html: str, harmless: str, payload: str) -> None:
    """The page is that of harmless texts in all but its texts, which show the payload as it was written."""
    page, plain = Page(html), Page(harmless)
    assert page.elements == plain.elements
    assert page.oddities == []
    assert not [attribute for attribute in page.attributes if attribute[1].startswith("on") or attribute[1] == "style"]
    assert page.links == plain.links
    assert all(link.startswith("#") for link in page.links)
    assert page.scripts[0] == plain.scripts[0]
    assert page.scripts[2] == plain.scripts[2]
    assert json.loads(page.scripts[1])["set"] == payload
    assert "<" not in page.scripts[1]  # a browser reads "<!--<script>" in a script otherwise than HTMLParser
    # Nothing is lost either: what can be shown is shown as it was written.
    shown = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", payload)
    assert " ".join(shown.split()) in page.text
