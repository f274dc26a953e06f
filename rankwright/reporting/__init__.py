"""An evaluation as one HTML file: no server, no network, no script needed to read it.

Everything that came from data is text: it reaches the page through `tag`, which escapes it (markup.py). The page's own
policy (CSP) allows its one style sheet and its one script by hash.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwright.errors import ConfigurationError
from rankwright.evaluation import (
    Evaluation,
    FirstStage,
    GoldFirst,
    PairedTest,
    Score,
    verdict,
    write_whole,
)
from rankwright.llms.endpoint import SECRET_NAME
from rankwright.metrics.answer import contains_answer
from rankwright.reporting.again import commands, without_secrets
from rankwright.reporting.charts import curves, interval, share_bar
from rankwright.reporting.markup import Html, join, quoted, shortened, signed, tag, tone
from rankwright.reporting.parts import VERDICT_RULE, p_phrase, p_text, table, whole_page
from rankwright.types import Document, Example, ReadFailed

Record = Mapping[str, Any]

_READ_CHARACTERS = 700
"""Longest piece of a passage that the reader saw; below the cut a line of `_UNREAD_CHARACTERS` has to do."""
_UNREAD_CHARACTERS = 110
_PLACES_SHOWN = 10


def write_report(
    path: str | Path,
    evaluation: Evaluation,
    *,
    title: str,
    run: Record | None = None,
    metrics: Sequence[Record] | None = None,
    questions: int = 20,
) -> Path:
    """Write the report of an evaluation, and of the training run behind it, as one HTML file.

    The verdict is that of `Evaluation.headline_test`; the questions won and lost are those of the same pair of models.

    Args:
        path: The file; missing folders are made.
        title: Heading of the page.
        run: `config`, `environment` and `result`, each a mapping, as the run folder holds them; all optional. The
            `alarms` of the result become a section of their own. A `command` in the environment, as text or list, is
            shown as what began the run, with its number of `processes`. Given a `config` and a `folder`, which is where
            the run lies, commands that train and compare again are shown, too. Secrets are left out.
        metrics: The lines of metrics.jsonl, each with a `step`. Curves are drawn for reward, dev scores (`eval_F1`,
            `dev/nDCG@10`, ...), kl, entropy, score_spread and loss, as far as there are any.
        questions: How many of the questions won, and of those lost, are shown.

    Raises:
        StorageError: the file cannot be written.
    """
    if questions < 0:
        raise ConfigurationError(f"The report was asked for {questions} questions; ask for 0 or more.")
    run = run or {}
    test = evaluation.headline_test()
    sections = [
        ("scores", "Scores", _scores(evaluation)),
        ("differences", "Differences", _differences(evaluation, test)),
        ("alarms", "Alarms while training", _alarms((run.get("result") or {}).get("alarms") or ())),
        ("training", "Training", _training(metrics or (), run.get("result") or {})),
        ("questions", "Questions won and lost", _questions(evaluation, test, questions)),
        ("settings", "Settings", _settings(evaluation, run)),
        ("reproduce", "How to reproduce", _reproduce(evaluation, run)),
    ]
    shown = [(anchor, heading, content) for anchor, heading, content in sections if content]
    body = join(
        [
            _header(evaluation, title, [(anchor, heading) for anchor, heading, _ in shown]),
            tag(
                "main",
                _verdict(evaluation, test, run.get("result") or {}),
                _tiles(evaluation, test, run.get("result") or {}),
                *(tag("section", tag("h2", heading), content, id=anchor) for anchor, heading, content in shown),
            ),
            tag("footer", f"Made by rankwright {evaluation.settings.version}. All scores are fractions from 0 to 1."),
        ]
    )
    write_whole(Path(path), whole_page(title, body, evaluation.to_json(), anchor="evaluation"), "Report")
    return Path(path)


def _header(evaluation: Evaluation, title: str, anchors: Iterable[tuple[str, str]]) -> Html:
    settings = evaluation.settings
    reader = "no reader" if settings.reader == "none" else f"top {settings.top_k} read by {settings.reader}"
    line = f"{evaluation.n:,} questions of {settings.set_name} · {settings.depth} candidates each · {reader}"
    return tag(
        "header",
        tag("h1", quoted(title)),
        tag("p", quoted(line), class_="soft"),
        tag("nav", *(tag("a", heading, href=f"#{anchor}") for anchor, heading in anchors), aria_label="Sections"),
    )


def unchanged(result: Record) -> bool:
    """Whether a run, by the content of its result.json, trained in vain: dev chose the starting weights."""
    return result.get("dev_best") is not None and result.get("best_step") == 0


def _advice(result: Record) -> str:
    """What to make of a difference that is not shown."""
    if unchanged(result):
        return (
            " On dev no checkpoint was better than the starting weights: this model is its reference, unchanged. The "
            "curves below are of weights that were not kept. More dev questions, a lower learning rate or another "
            "reader may help."
        )
    return " More test questions would narrow the interval."


def _verdict(evaluation: Evaluation, test: PairedTest | None, result: Record) -> Html:
    if test is None:
        return _single(evaluation)
    word = verdict(test)
    a, b = quoted(test.a), quoted(test.b)
    heading, advice = {
        "better": (join(["Better: ", a, " beats ", b]), join([])),
        "worse": (join(["Worse: ", a, " falls behind ", b]), join([" This is no success: keep ", b, "."])),
        "not shown": (
            join(["Not shown: ", a, " may be no different from ", b]),
            join([_advice(result)]),
        ),
    }[word]
    means = [evaluation.scores[name][test.metric].mean for name in (test.a, test.b)]
    sentence = (
        f"{_metric_name(evaluation, test.metric)} {means[0]:.3f} against {means[1]:.3f}: "
        f"a difference of {signed(test.delta)} with a 95 % interval from {signed(test.ci_low)} "
        f"to {signed(test.ci_high)} and p {p_phrase(test.p)}, over {test.n:,} questions."
    )
    return tag(
        "section",
        tag("p", heading, class_="word"),
        tag("p", sentence, advice),
        tag(
            "p",
            VERDICT_RULE,
            class_="soft",
        ),
        class_=f"verdict {word.split()[0]}",
        aria_label="Verdict",
    )


def _single(evaluation: Evaluation) -> Html:
    metric = evaluation.headline_metric
    measured = [(name, row[metric]) for name, row in evaluation.scores.items() if metric in row]
    sentences = [
        tag(
            "p",
            quoted(name),
            f": {_metric_name(evaluation, metric)} {score.mean:.3f}, "
            f"95 % interval {score.ci_low:.3f} to {score.ci_high:.3f}, over {score.n:,} questions.",
        )
        for name, score in measured
    ]
    heading = tag("p", "Nothing to compare", class_="word")
    return tag("section", heading, *sentences, class_="verdict", aria_label="Verdict")


def _metric_name(evaluation: Evaluation, metric: str) -> str:
    """F1@3 for an answer metric, as signatures have it."""
    return evaluation.signature_of(metric).partition("|")[0]


def _tiles(evaluation: Evaluation, test: PairedTest | None, result: Record) -> Html:
    tiles = [(f"{evaluation.n:,}", "questions" + _bracket(evaluation.settings.skipped, "bad rows skipped"))]
    if test is not None:
        won, tied, lost = _shares(evaluation, test)
        tiles.append((f"{won:,} · {tied:,} · {lost:,}", "won · tied · lost"))
        tiles += _gap(evaluation, test)
    failed = sum(model.n_failed for model in evaluation.models.values())
    if any(model.reads for model in evaluation.models.values()):
        tiles.append((f"{failed:,}", "failed reads of all models, left out"))
    if "reader_calls" in result:
        from_cache = _bracket(result.get("cache_hits"), "from cache")
        tiles.append((_count(result["reader_calls"]), "paid reader calls" + from_cache))
    if "seconds" in result:
        tiles.append((_duration(result["seconds"]), "training"))
    return tag("ul", *(tag("li", tag("b", figure), tag("span", label)) for figure, label in tiles), class_="tiles")


def _gap(evaluation: Evaluation, test: PairedTest) -> list[tuple[str, str]]:
    """How much of the way from b up to the labelled order a has gone, where it went up at all."""
    mark = evaluation.scores.get(GoldFirst.name, {}).get(test.metric)
    base = evaluation.scores[test.b][test.metric]
    if mark is None or GoldFirst.name in (test.a, test.b) or mark.mean <= base.mean or test.delta <= 0:
        return []
    closed = test.delta / (mark.mean - base.mean)
    return [(f"{closed:.0%}", f"of the gap to {GoldFirst.name} closed")]


def _bracket(count: Any, what: str) -> str:
    return f" ({_count(count)} {what})" if count else ""


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return str(seconds)
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _scores(evaluation: Evaluation) -> Html:
    with_reader = any(model.reads for model in evaluation.models.values())
    heads = [
        tag("th", "Model", scope="col"),
        *(tag("th", metric, scope="col", class_="number") for metric in evaluation.metrics),
        *([tag("th", "failed reads", scope="col", class_="number")] if with_reader else []),
    ]
    rows = []
    for name, model in evaluation.models.items():
        role = _role(name, evaluation)
        cells = [tag("th", quoted(name), *([" ", tag("span", role, class_="tag")] if role else []), scope="row")]
        cells += [_score_cell(evaluation.scores[name].get(metric)) for metric in evaluation.metrics]
        if with_reader:
            cells.append(tag("td", f"{model.n_failed:,}", class_="number"))
        rows.append(tag("tr", *cells))
    note = "Mean over questions, below it the 95 % bootstrap interval. "
    labelled = next((row["nDCG@10"].n for row in evaluation.scores.values() if "nDCG@10" in row), None)
    if labelled is not None:
        note += f"nDCG, RR and recall cover the {labelled:,} questions with a relevant document. "
    if with_reader:
        note += f"EM, F1 and sub-EM judge the reader's answer to the first {evaluation.settings.top_k} passages."
    return join([tag("p", note, class_="soft"), table(heads, rows)])


def _role(name: str, evaluation: Evaluation) -> str:
    if name == evaluation.settings.baseline:
        return "baseline"
    return {FirstStage.name: "order as given", GoldFirst.name: "by label"}.get(name, "")


def _score_cell(score: Score | None) -> Html:
    if score is None:
        return tag("td", "–", class_="number", data_value="-1")
    interval = f"{score.ci_low:.3f}–{score.ci_high:.3f}"
    return tag("td", f"{score.mean:.3f}", tag("small", interval), class_="number", data_value=repr(score.mean))


def _differences(evaluation: Evaluation, headline: PairedTest | None) -> Html:
    if not evaluation.tests:
        return join([])
    first = [test for test in evaluation.tests if test.metric == evaluation.headline_metric]
    rest = [test for test in evaluation.tests if test.metric != evaluation.headline_metric]
    note = (
        "Each model minus the one it is compared with, question by question. The interval is a paired bootstrap, "
        "p a paired permutation test, and p (Holm) is corrected for all pairs of the same metric."
    )
    parts = [tag("p", note, class_="soft"), _test_table(first, headline)]
    if rest:
        summary = tag("summary", f"The other metrics ({len(rest):,} comparisons)")
        parts.append(tag("details", summary, tag("div", _test_table(rest, headline), class_="inside")))
    return join(parts)


def _test_table(tests: Sequence[PairedTest], headline: PairedTest | None) -> Html:
    reach = max((max(abs(test.ci_low), abs(test.ci_high)) for test in tests), default=0.0) or 1.0
    names = ("Model", "minus", "Metric", "Difference", "95 % interval", "drawn", "p", "p (Holm)", "Verdict")
    numbers = ("Difference", "95 % interval", "p", "p (Holm)")
    heads = [tag("th", name, scope="col", class_="number" if name in numbers else None) for name in names]
    rows = [_test_row(test, reach, is_headline=test == headline) for test in tests]
    return table(heads, rows)


def _test_row(test: PairedTest, reach: float, *, is_headline: bool) -> Html:
    word = verdict(test)
    return tag(
        "tr",
        tag("th", quoted(test.a), scope="row"),
        tag("td", quoted(test.b)),
        tag("td", test.metric),
        tag("td", signed(test.delta), class_="number", data_value=repr(test.delta)),
        tag("td", f"{signed(test.ci_low)} … {signed(test.ci_high)}", class_="number", data_value=repr(test.ci_low)),
        tag("td", interval(test, reach), data_value=repr(test.delta)),
        tag("td", p_text(test.p), class_="number", data_value=repr(test.p)),
        tag("td", p_text(test.p_holm), class_="number", data_value=repr(test.p_holm)),
        tag("td", tag("span", word, class_=f"tag {tone(word)}")),
        class_="headline" if is_headline else None,
    )


def _deltas(evaluation: Evaluation, test: PairedTest) -> dict[str, float]:
    values_a, values_b = (evaluation.models[name].values[test.metric] for name in (test.a, test.b))
    return {query_id: values_a[query_id] - values_b[query_id] for query_id in values_a if query_id in values_b}


def _shares(evaluation: Evaluation, test: PairedTest) -> tuple[int, int, int]:
    deltas = _deltas(evaluation, test).values()
    won, lost = sum(delta > 0 for delta in deltas), sum(delta < 0 for delta in deltas)
    return won, len(deltas) - won - lost, lost


def _alarms(alarms: Sequence[Record]) -> Html:
    """Signs that the training went wrong, with what to do; empty without any."""
    if not alarms:
        return join([])
    heads = [tag("th", name, scope="col") for name in ("Alarm", "Step", "Seen", "Wanted", "Likely cause, what to turn")]
    rows = [
        tag(
            "tr",
            tag("th", quoted(alarm["name"]), scope="row"),
            tag("td", f"{alarm['step']:,}", class_="number", data_value=repr(alarm["step"])),
            tag("td", quoted(alarm["seen"])),
            tag("td", quoted(alarm["wanted"])),
            tag("td", quoted(f"{alarm['cause']} {alarm['knob']}")),
        )
        for alarm in alarms
    ]
    note = "Each stands at the step at which it was first seen. An alarm is a sign, no proof."
    return join([tag("p", note, class_="soft"), table(heads, rows)])


def _training(metrics: Sequence[Record], result: Record) -> Html:
    """Curves, and why they end early where they do."""
    early = result.get("stopped_early")
    return join([*([tag("p", quoted(early), class_="soft")] if early else []), curves(metrics)])


def _questions(evaluation: Evaluation, test: PairedTest | None, limit: int) -> Html:
    if test is None or limit == 0:
        return join([])
    deltas = _deltas(evaluation, test)
    examples = [example for example in evaluation.examples if deltas.get(example.query.query_id)]
    by_delta = sorted(examples, key=lambda example: deltas[example.query.query_id])
    lost = [example for example in by_delta if deltas[example.query.query_id] < 0]
    won = [example for example in reversed(by_delta) if deltas[example.query.query_id] > 0]
    metric = _metric_name(evaluation, test.metric)
    note = tag(
        "p",
        f"Won means a higher {metric} for ",
        quoted(test.a),
        " than for ",
        quoted(test.b),
        ". The largest differences come first; open a question to see both rankings.",
        class_="soft",
    )
    parts = [note, share_bar(_shares(evaluation, test))]
    for heading, group in (("Won", won), ("Lost", lost)):
        if group:
            more = f", the first {limit} shown" if len(group) > limit else ""
            parts.append(tag("h3", f"{heading} ({len(group):,}{more})"))
            parts += [_question(evaluation, test, example, deltas[example.query.query_id]) for example in group[:limit]]
    return join(parts)


def _question(evaluation: Evaluation, test: PairedTest, example: Example, delta: float) -> Html:
    query_id = example.query.query_id
    reads = [_read_text(evaluation, name, query_id) for name in (test.b, test.a)]
    change = [tag("span", quoted(shortened(reads[0], 90)), " → ", quoted(shortened(reads[1], 90)), class_="answers")]
    summary = tag(
        "summary",
        tag("span", signed(delta), class_="delta better" if delta > 0 else "delta worse"),
        quoted(shortened(example.query.text, 400)),
        *(change if any(reads) else []),
    )
    about = [join(["Question ", tag("code", quoted(query_id))])]
    if example.answers:
        accepted = shortened(" · ".join(example.answers), 400)
        about.append(join([" Accepted: ", tag("b", quoted(accepted))]))
    sides = tag(
        "div",
        _side(evaluation, example, test.b, test.a, test.metric, "becomes"),
        _side(evaluation, example, test.a, test.b, test.metric, "was"),
        class_="sides",
    )
    inside = tag("div", tag("p", *about, class_="soft"), sides, class_="inside")
    return tag("details", summary, inside, class_="question")


def _read_text(evaluation: Evaluation, name: str, query_id: str) -> str:
    read = evaluation.models[name].reads.get(query_id)
    if read is None:
        return ""
    if isinstance(read, ReadFailed):
        return f"(failed: {read.reason})"
    return read.text.strip() or "(no answer)"


def _side(evaluation: Evaluation, example: Example, name: str, other: str, metric: str, moved: str) -> Html:
    query_id = example.query.query_id
    ranking = evaluation.models[name].rankings[query_id]
    other_places = {d: i for i, d in enumerate(evaluation.models[other].rankings[query_id].doc_ids, start=1)}
    documents = {document.doc_id: document for document in example.candidates}
    value = evaluation.models[name].values[metric][query_id]
    parts = [tag("h3", quoted(name), tag("span", f"  {metric} {value:.3f}", class_="soft"))]
    read = _read_text(evaluation, name, query_id)
    if read:
        parts.append(tag("p", tag("span", "Answer: ", class_="soft"), quoted(shortened(read, 400)), class_="reading"))
    items = []
    shown = ranking.doc_ids[: max(_PLACES_SHOWN, evaluation.settings.top_k)]
    for place, doc_id in enumerate(shown, start=1):
        if place == evaluation.settings.top_k + 1:
            items.append(tag("li", "not among the passages read", class_="cut"))
        move = "" if place == other_places[doc_id] else f"{moved} {other_places[doc_id]}"
        is_read = place <= evaluation.settings.top_k
        items.append(_passage(documents[doc_id], example, place, move, is_read=is_read))
    if len(ranking.doc_ids) > len(shown):
        items.append(tag("li", f"and {len(ranking.doc_ids) - len(shown)} more", class_="more"))
    return tag("div", *parts, tag("ol", *items, class_="ranking"))


def _passage(document: Document, example: Example, place: int, move: str, *, is_read: bool) -> Html:
    marks = [tag("b", quoted(shortened(document.title, 120)))] if document.title else []
    if example.relevance.get(document.doc_id, 0) >= 1:
        marks.append(tag("span", "gold", class_="tag gold", title="labelled relevant"))
    if example.answers and contains_answer(document.text, example.answers):
        marks.append(tag("span", "has answer", class_="tag", title="an accepted answer stands in this passage"))
    if move:
        marks.append(tag("span", move, class_="soft"))
    text = shortened(document.text, _READ_CHARACTERS if is_read else _UNREAD_CHARACTERS)
    content = tag(
        "div",
        tag("div", *marks, class_="marks"),
        tag("p", quoted(text), class_="passage"),
        title=f"document {shortened(document.doc_id, 120)}",
    )
    return tag("li", tag("span", str(place), class_="place"), content, class_=None if is_read else "unread")


def _settings(evaluation: Evaluation, run: Record) -> Html:
    signatures = tag("pre", "\n".join(evaluation.signature_of(metric) for metric in evaluation.metrics))
    note = "Two scores may be compared only where their signatures agree in everything but the model."
    parts = [tag("p", note, class_="soft"), signatures]
    blocks = (
        ("Evaluation", _fields(evaluation.settings)),
        ("Training configuration", run.get("config")),
        ("Result", run.get("result")),
        ("Environment", run.get("environment")),
    )
    for heading, values in blocks:
        if values:
            parts.append(tag("details", tag("summary", heading), _definitions(values)))
    return join(parts)


def _fields(settings: Any) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


def _definitions(values: Record) -> Html:
    rows = [(key, value) for key, value in _flat(values)]
    return tag("dl", *(part for key, value in rows for part in (tag("dt", quoted(key)), tag("dd", quoted(value)))))


def _flat(values: Record, prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if SECRET_NAME.search(str(key)) and value is not None:
            yield name, "(not shown)"
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, without_secrets(value if isinstance(value, str) else json.dumps(value, default=str))


def _reproduce(evaluation: Evaluation, run: Record) -> Html:
    parts = []
    for sentence, command in commands(evaluation, run):
        parts += [tag("p", sentence), tag("pre", command)]
    note = f"Use rankwright {evaluation.settings.version}; the same seed draws the same resamples and sign flips."
    parts.append(tag("p", note, class_="soft"))
    return join(parts)
