"""A comparison of two runs as one HTML file: verdict and tests as text, and every question to look through.

The questions travel as JSON and become elements when they are looked at (assets/compare.js, which knows texts only, no
markup), so that a run of many thousand questions opens at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rankwright.comparison import DECIMALS, Comparison, Side
from rankwright.evaluation import PairedTest, verdict, write_whole
from rankwright.metrics.answer import contains_answer
from rankwright.reporting.charts import interval, share_bar
from rankwright.reporting.markup import Html, join, printable, quoted, shortened, signed, tag, tone
from rankwright.reporting.parts import VERDICT_RULE, p_phrase, p_text, table, whole_page
from rankwright.types import Answer, Document, Example, ReadFailed

_PLACES_SHOWN = 10
_TEXT = 400
"""Longest question, list of accepted answers or answer."""
_BUDGET = 16_000_000
"""Characters of passages that a page may carry: a browser reads such a file in about a second."""


class _Lengths(NamedTuple):
    """Longest piece of a passage that the reader saw, and of one below the cut."""

    read: int
    unread: int


_LENGTHS = (_Lengths(700, 110), _Lengths(350, 60), _Lengths(160, 0), _Lengths(0, 0))
"""Tried in this order until all passages fit the budget."""
_GOLD, _HAS_ANSWER = 1, 2


def write_comparison(path: str | Path, comparison: Comparison, *, budget: int = _BUDGET) -> Path:
    """Write the page of a comparison as one HTML file; it needs no server and no network.

    Args:
        path: The file; missing folders are made.
        comparison: What `compare_sides` returned.
        budget: Characters of passages that it may carry; larger runs show shorter pieces of them, and the page says so.

    Raises:
        StorageError: the file cannot be written.
    """
    contents, cut = _contents(comparison, budget)
    test = comparison.headline_test
    title = f"{comparison.before.name} → {comparison.after.name}"
    sections = [
        ("differ", "What is not the same", _disagreements(comparison)),
        ("scores", "Scores", _scores(comparison, test)),
        ("questions", "Questions", _questions(comparison, cut)),
        ("about", "What was compared", _about(comparison)),
    ]
    shown = [section for section in sections if section[2]]
    body = join(
        [
            _header(comparison, [(anchor, heading) for anchor, heading, _ in shown]),
            tag(
                "main",
                _verdict(comparison, test),
                *(tag("section", tag("h2", heading), content, id=anchor) for anchor, heading, content in shown),
            ),
            tag("footer", f"Made by rankwright {comparison.after.evaluation.settings.version}."),
        ]
    )
    page = whole_page(title, body, contents, anchor="comparison", also="compare")
    write_whole(Path(path), page, "Comparison")
    return Path(path)


# --- what is written as text -------------------------------------------------------------------------------------


def _header(comparison: Comparison, anchors: Iterable[tuple[str, str]]) -> Html:
    settings = comparison.before.evaluation.settings
    reader = "no reader" if settings.reader == "none" else f"top {settings.top_k} read by {settings.reader}"
    left_out = f", {comparison.left_out:,} left out" if comparison.left_out else ""
    line = (
        f"{len(comparison.questions):,} questions of {settings.set_name}{left_out} · {settings.depth} candidates each "
        f"· {reader}"
    )
    return tag(
        "header",
        tag("h1", quoted(comparison.before.name), " → ", quoted(comparison.after.name)),
        tag("p", quoted(line), class_="soft"),
        # Not by "#anchor": what stands behind # is the state of the questions below.
        tag("nav", *(tag("a", heading, href=f"#{anchor}") for anchor, heading in anchors), aria_label="Sections"),
    )


def _verdict(comparison: Comparison, test: PairedTest) -> Html:
    word = verdict(test)
    a, b = quoted(test.a), quoted(test.b)
    heading = {
        "better": join(["Better: ", a, " beats ", b]),
        "worse": join(["Worse: ", a, " falls behind ", b]),
        "not shown": join(["Not shown: ", a, " may be no different from ", b]),
    }[word]
    before, after = comparison.means(test.metric)
    sentence = (
        f"{test.metric} {before:.3f} before, {after:.3f} after: a difference of {signed(test.delta)} with a 95 % "
        f"interval from {signed(test.ci_low)} to {signed(test.ci_high)} and p {p_phrase(test.p)}, over {test.n:,} "
        "questions."
    )
    return tag(
        "section",
        tag("p", heading, class_="word"),
        tag("p", sentence),
        tag("p", VERDICT_RULE, class_="soft"),
        class_=f"verdict {word.split()[0]}",
        aria_label="Verdict",
    )


def _disagreements(comparison: Comparison) -> Html:
    if not comparison.differences:
        return join([])
    heads = [tag("th", name, scope="col") for name in ("", "Before", "After")]
    rows = [
        tag("tr", tag("th", found.what, scope="row"), tag("td", quoted(found.before)), tag("td", quoted(found.after)))
        for found in comparison.differences
    ]
    note = (
        "The two were evaluated in different ways, and this page was forced: a difference below may come from here and "
        "not from the models."
    )
    if any(found.reads for found in comparison.differences):
        note += " Metrics of answers are left out, because the answers say nothing about each other."
    return join([tag("p", note), table(heads, rows)])


def _scores(comparison: Comparison, headline: PairedTest) -> Html:
    reach = max(max(abs(test.ci_low), abs(test.ci_high)) for test in comparison.tests) or 1.0
    numbers = ("Before", "After", "Difference", "95 % interval", "p", "Won", "Same", "Lost")
    names = ("Metric", *numbers[:4], "drawn", *numbers[4:], "Verdict")
    heads = [tag("th", name, scope="col", class_="number" if name in numbers else None) for name in names]
    rows = [_score_row(comparison, test, reach, is_headline=test == headline) for test in comparison.tests]
    note = (
        "Means over the questions where both have a value. The interval is a paired bootstrap, p a paired permutation "
        "test, and won, same and lost count questions."
    )
    return join([tag("p", note, class_="soft"), table(heads, rows)])


def _score_row(comparison: Comparison, test: PairedTest, reach: float, *, is_headline: bool) -> Html:
    word, counts = verdict(test), comparison.counts(test.metric)
    return tag(
        "tr",
        tag("th", test.metric, scope="row"),
        *(tag("td", f"{mean:.3f}", class_="number") for mean in comparison.means(test.metric)),
        tag("td", signed(test.delta), class_="number", data_value=repr(test.delta)),
        tag("td", f"{signed(test.ci_low)} … {signed(test.ci_high)}", class_="number", data_value=repr(test.ci_low)),
        tag("td", interval(test, reach), data_value=repr(test.delta)),
        tag("td", p_text(test.p), class_="number", data_value=repr(test.p)),
        *(tag("td", f"{count:,}", class_="number", data_value=str(count)) for count in counts),
        tag("td", tag("span", word, class_=f"tag {tone(word)}")),
        class_="headline" if is_headline else None,
    )


def _questions(comparison: Comparison, cut: str) -> Html:
    """The frame that compare.js fills."""
    counts = comparison.counts(comparison.headline_test.metric)
    note = (
        "Won means a higher value after than before. The address of this page keeps what is shown: copy it to come "
        "back, or to send it on."
    )
    without = tag("noscript", tag("p", "Looking through the questions needs JavaScript, which is off here."))
    frame = tag("div", id="look", class_="look")
    return join(
        [
            tag("p", note, *([f" {cut}"] if cut else []), class_="soft"),
            tag("div", share_bar((counts.won, counts.same, counts.lost), "same"), id="share"),
            without,
            frame,
        ]
    )


def _about(comparison: Comparison) -> Html:
    signatures = "\n".join(
        side.evaluation.signature_of(metric)
        for side in (comparison.before, comparison.after)
        for metric in comparison.metrics
    )
    rows: list[Html] = []
    for heading, side in (("Before", comparison.before), ("After", comparison.after)):
        rows += [tag("dt", heading), tag("dd", quoted(side.name), " (model ", quoted(side.row), " of its evaluation)")]
    return join([tag("dl", *rows), tag("pre", signatures)])


# --- what compare.js shows ---------------------------------------------------------------------------------------


def _contents(comparison: Comparison, budget: int) -> tuple[dict[str, Any], str]:
    """The questions as JSON, and what to say where passages had to be cut short."""
    read = [side.evaluation.settings.top_k for side in (comparison.before, comparison.after)]
    passages = _Passages()
    questions = [_question(comparison, query_id, passages, read) for query_id in comparison.questions]
    lengths = next((tried for tried in _LENGTHS if passages.size(tried) <= budget), _LENGTHS[-1])
    short = ""
    if lengths != _LENGTHS[0]:
        piece = f"the first {lengths.read} characters of those that were read" if lengths.read else "titles and ids"
        short = f"The run is large: of the passages this page has {piece}."
    contents = {
        "names": [printable(side.name) for side in (comparison.before, comparison.after)],
        "metrics": list(comparison.metrics),
        "headline": comparison.metrics.index(comparison.headline_test.metric),
        "read": read,
        "unread": lengths.unread,
        "documents": passages.written(lengths),
        "questions": questions,
    }
    return contents, short


class _Passages:
    """Every passage that a page shows, once; questions name them by number."""

    def __init__(self) -> None:
        self._numbers: dict[Document, int] = {}
        self._read: set[Document] = set()

    def number(self, document: Document, *, read: bool) -> int:
        """The passage's number."""
        if read:
            self._read.add(document)
        return self._numbers.setdefault(document, len(self._numbers))

    def size(self, lengths: _Lengths) -> int:
        """Characters of all passages at these lengths."""
        return sum(min(len(document.text), self._length(document, lengths)) for document in self._numbers)

    def written(self, lengths: _Lengths) -> list[list[str]]:
        """[id, title, piece of the text] of each, by number."""
        return [
            [
                printable(shortened(document.doc_id, 120)),
                printable(shortened(document.title, 120)),
                printable(shortened(document.text, length)) if (length := self._length(document, lengths)) else "",
            ]
            for document in self._numbers
        ]

    def _length(self, document: Document, lengths: _Lengths) -> int:
        return lengths.read if document in self._read else lengths.unread


def _question(comparison: Comparison, query_id: str, passages: _Passages, read: Sequence[int]) -> Mapping[str, Any]:
    sides, places = (comparison.before, comparison.after), [max(_PLACES_SHOWN, top_k) for top_k in read]
    examples = (comparison.before_examples[query_id], comparison.after_examples[query_id])
    orders = [side.result.rankings[query_id].doc_ids for side in sides]
    where = [{doc_id: place for place, doc_id in enumerate(order, start=1)} for order in orders]
    answering = cache(lambda document, answers: contains_answer(document.text, answers))  # most stand on both sides
    rankings = [
        _ranking(side, example, order[:shown], other, passages, answering)
        for side, example, order, other, shown in zip(sides, examples, orders, reversed(where), places, strict=True)
    ]
    values = [[side.result.values.get(metric, {}).get(query_id) for side in sides] for metric in comparison.metrics]
    return {
        "id": printable(query_id),
        "text": printable(shortened(examples[0].query.text, _TEXT)),
        "answers": printable(shortened(" · ".join(examples[0].answers), _TEXT)),
        "values": [[None if v is None else round(v, DECIMALS) for v in pair] for pair in values],
        "reads": [_read(side, query_id) for side in sides],
        "rankings": rankings,
        "more": [max(0, len(order) - shown) for order, shown in zip(orders, places, strict=True)],
    }


def _read(side: Side, query_id: str) -> str | None:
    """What the reader said; None without a reader."""
    read = side.result.reads.get(query_id)
    if isinstance(read, ReadFailed):
        return f"(failed: {printable(read.reason)})"
    return printable(shortened(read.text.strip(), _TEXT)) or "(no answer)" if isinstance(read, Answer) else None


def _ranking(
    side: Side,
    example: Example,
    order: Sequence[str],
    other: Mapping[str, int],
    passages: _Passages,
    answering: Callable[[Document, tuple[str, ...]], bool],
) -> list[list[int]]:
    """[passage, its place on the other side or 0, marks] for each place."""
    documents = {document.doc_id: document for document in example.candidates}
    items = []
    for place, doc_id in enumerate(order, start=1):
        document = documents[doc_id]
        marks = _GOLD if example.relevance.get(doc_id, 0) >= 1 else 0
        marks |= _HAS_ANSWER if example.answers and answering(document, example.answers) else 0
        number = passages.number(document, read=place <= side.evaluation.settings.top_k)
        items.append([number, other.get(doc_id, 0), marks])
    return items
