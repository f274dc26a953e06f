from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rankwright.errors import ConfigurationError, StorageError
from rankwright.evaluation import Evaluation, FirstStage, evaluate
from rankwright.reporting import write_report
from rankwright.reporting.again import commands
from rankwright.reporting.charts import curves, ticks
from rankwright.reporting.markup import escape, join, quoted, shortened, signed, tag
from tests.report_kit import (
    HARMLESS,
    HOSTILE,
    METRICS,
    Page,
    check_texts_stay_texts,
    make_evaluation,
    report_of,
    run_of,
)


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    return report_of(folder, make_evaluation(), title=HARMLESS, run=run_of(HARMLESS), metrics=METRICS)


@pytest.mark.parametrize("payload", HOSTILE)
def test_hostile_texts_stay_texts(tmp_path: Path, harmless: str, payload: str) -> None:
    metrics = [{**line, "eval_F1": 0.5, payload: 1.0} for line in METRICS]
    html = report_of(tmp_path, make_evaluation(payload), title=payload, run=run_of(payload), metrics=metrics)
    check_texts_stay_texts(html, harmless, payload)


def test_the_policy_allows_exactly_one_style_and_one_script(harmless: str) -> None:
    policy = next(value for _, name, value in Page(harmless).attributes if value.startswith("default-src"))
    style, _, script = Page(harmless).scripts

    def allowed(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    assert [part.strip() for part in policy.split(";")] == [
        "default-src 'none'",
        f"style-src {allowed(style)}",
        f"script-src {allowed(script)}",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_the_page_needs_nothing_from_elsewhere(harmless: str) -> None:
    assert not re.search(r"(https?:)?//\w|@import|url\(", harmless.replace("// Sorting", ""))
    assert {tag for tag, _ in Page(harmless).elements}.isdisjoint(
        {"link", "img", "iframe", "object", "embed", "base", "form"}
    )


def test_a_better_model_is_called_better(harmless: str) -> None:
    text = Page(harmless).text
    assert "Better: mineplain words beats baseplain words" in text
    assert "F1@2" in text
    assert "of the gap to gold-first closed" in text
    assert "paid reader calls (300 from cache)" in text
    assert "4.0 min" in text


def test_a_worse_model_is_never_a_success(tmp_path: Path) -> None:
    page = Page(report_of(tmp_path, make_evaluation(wins=0.0)))
    assert "Worse: mineplain words falls behind baseplain words" in page.text
    assert "This is no success: keep baseplain words" in page.text
    assert "beats" not in page.text
    assert "closed" not in page.text
    assert ("section", "class", "verdict worse") in page.attributes


def test_no_difference_is_called_not_shown(tmp_path: Path) -> None:
    text = Page(report_of(tmp_path, make_evaluation(wins=0.5, reader=False))).text
    assert "Not shown: mineplain words may be no different from baseplain words" in text
    assert "beats" not in text


@pytest.mark.parametrize("best_step", [0, 4])
def test_a_model_that_is_its_reference_is_called_so(tmp_path: Path, best_step: int) -> None:
    run = {"result": {"dev_best": 0.5, "best_step": best_step}}
    text = Page(report_of(tmp_path, make_evaluation(wins=0.5, reader=False), run=run)).text
    assert ("this model is its reference, unchanged" in text) == (best_step == 0)
    assert ("More test questions would narrow the interval." in text) == (best_step != 0)


def test_one_model_has_nothing_to_compare_with(tmp_path: Path) -> None:
    evaluation = make_evaluation()
    single = evaluate({"only": FirstStage()}, evaluation.examples, depth=12)
    html = report_of(tmp_path, single)
    text = Page(html).text
    assert "Nothing to compare only : nDCG@10" in text
    assert 'id="questions"' not in html
    assert 'id="training"' not in html


def test_questions_show_both_rankings_answers_and_marks(harmless: str) -> None:
    # 13 of 16 questions are won; question 15 failed to be read and takes part in no comparison.
    page = Page(harmless)
    assert "Won (13)" in page.text
    assert "Lost (2)" in page.text
    assert "won 13 (87%) tied 0 (0%) lost 2 (13%)" in page.text
    assert page.elements.count(("details", ("class",))) == 13 + 2
    won = page.text[page.text.index("Won (13)") : page.text.index("Lost (2)")]
    assert won.count("Accepted: right · plain words") == 13
    assert won.count("wrong plain words → right") == 13
    assert won.count("gold") >= 13
    assert won.count("was 12") == won.count("becomes 12") == 13
    assert won.count("not among the passages read") == won.count("and 2 more") == 26


def test_the_number_of_questions_shown_is_limited_and_said(tmp_path: Path) -> None:
    page = Page(report_of(tmp_path, make_evaluation(), questions=3))
    assert "Won (13, the first 3 shown)" in page.text
    assert page.elements.count(("details", ("class",))) == 3 + 2
    assert 'id="questions"' not in report_of(tmp_path, make_evaluation(), questions=0)
    with pytest.raises(ConfigurationError, match="-1 questions"):
        report_of(tmp_path, make_evaluation(), questions=-1)


def test_tables_hold_every_score_with_its_interval(harmless: str) -> None:
    evaluation, text = make_evaluation(), Page(harmless).text
    for row in evaluation.scores.values():
        for score in row.values():
            assert f"{score.mean:.3f} {score.ci_low:.3f}–{score.ci_high:.3f}" in text
    for metric in evaluation.metrics:
        assert evaluation.signature_of(metric) in text


def test_the_numbers_are_in_the_page_for_machines(harmless: str) -> None:
    assert json.loads(Page(harmless).scripts[1]) == json.loads(json.dumps(make_evaluation().to_json()))


def test_secrets_are_left_out(tmp_path: Path) -> None:
    run = {
        "config": {
            "api_key": "hush-1",
            "reader": {"token": "hush-2", "max_tokens": 64},
            "url": "https://me:hush-3@host/v1",
        },
        "environment": {"command": ["rankwright", "train", "--api-key", "hush-4", "--hub-token=hush-5"]},
    }
    html = report_of(tmp_path, make_evaluation(), run=run)
    assert "hush" not in html
    assert "64" in html
    assert "https://host/v1" in html


@pytest.mark.parametrize(
    ("environment", "begun", "again"),
    [
        (
            {"command": "rankwright train --name a --data q.jsonl", "processes": 2},
            "torchrun --nproc-per-node 2 -m rankwright.cli train --name a --data q.jsonl",
            "torchrun --nproc-per-node 2 -m rankwright.cli train --config runs/a/config.json --name a-again",
        ),
        (
            {"command": "rankwright demo --shuffle-answers --resume", "processes": 1},
            "rankwright demo --shuffle-answers",
            "rankwright demo --shuffle-answers --config runs/a/config.json --name a-again",
        ),
        (
            {"command": "rankwright.train('a', ...)"},
            "rankwright.train('a', ...)",
            "rankwright train --config runs/a/config.json --name a-again",
        ),
    ],
)
def test_a_run_is_made_again_as_it_was_started(environment: dict[str, Any], begun: str, again: str) -> None:
    config = {"model": {"name": "tiny", "device": "cuda"}, "max_failed_reads": 0.2}
    run = {"config": config, "environment": environment, "folder": "runs/a"}
    evaluation = make_evaluation()
    (said, first), (_, second), (_, third) = commands(evaluation, run)
    assert (first, second) == (begun, again)
    assert ("in 2 processes" in said) == ("torchrun" in begun)
    assert third.endswith("--max-failed-reads 0.2 --device cuda")


def test_a_comparison_is_made_again_by_its_own_command_or_by_one_with_gaps() -> None:
    evaluation = make_evaluation()
    assert [c for _, c in commands(evaluation, {"environment": {"command": "rankwright eval a b"}})] == [
        "rankwright eval a b"
    ]
    ((_, general),) = commands(evaluation, {})
    assert "--data FILE" in general
    assert "--reader READER" in general


def test_values_that_are_no_numbers_leave_gaps_in_curves_not_errors() -> None:
    lines = [
        {"step": 1, "kl": 0.1},
        {"step": 2, "kl": float("nan")},
        {"kl": 3.0},
        {"step": 3, "kl": None},
        {"step": 4, "kl": 0.2},
    ]
    drawn = curves(lines)
    assert "KL over training steps: kl from 0.1 to 0.2" in drawn
    assert "nan" not in drawn
    assert len(re.findall(r"polyline", drawn)) == 2 * 1
    assert curves([{"step": 1, "other": 2.0}]) == ""
    assert curves([]) == ""


def test_curves_are_drawn_for_what_was_logged() -> None:
    lines = [
        {
            "step": i,
            "reward": i,
            "train/kl": i,
            "entropy": 1,
            "score_spread": i,
            "loss": -i,
            "dev/nDCG@10": i,
            "epoch": i,
        }
        for i in (1, 2)
    ]
    titles = re.findall(r"<figcaption><b>(\w+)</b>", curves(lines))
    assert titles == ["Reward", "Dev", "KL", "Entropy", "Spread", "Loss"]


@pytest.mark.parametrize("payload", [HARMLESS, *HOSTILE[:6]])
def test_alarms_stand_above_the_curves_with_cause_and_knob(tmp_path: Path, payload: str) -> None:
    alarm = {"name": "drift", "step": 1207, "seen": payload, "wanted": "less", "cause": "Because.", "knob": "Turn it."}
    metrics = [{"step": step, "reward": 0.5} for step in range(3)]
    options: dict[str, Any] = {"metrics": metrics, "run": {"result": {"alarms": [alarm]}}}
    page = report_of(tmp_path, make_evaluation(), **options)
    headings = re.findall(r'<section id="(\w+)"', page)
    assert headings.index("alarms") == headings.index("training") - 1
    section = page[page.index('<section id="alarms"') : page.index('<section id="training"')]
    assert "<script" not in section
    assert "<img" not in section
    assert all(text in section for text in ("drift", "1,207", "Because. Turn it.", "less", escape(payload)))
    quiet = report_of(tmp_path, make_evaluation(), metrics=metrics, run={"result": {"alarms": []}})
    assert '<section id="alarms"' not in quiet


def test_several_quantities_of_one_kind_share_a_figure_with_a_legend() -> None:
    drawn = curves([{"step": i, "reward": 0.5, "reference_reward": 0.4, "no_document_reward": 0.1} for i in (1, 2)])
    assert drawn.count("<figure>") == 1
    assert re.findall(r'<i class="key (s\d)"></i><bdi class="data">(\w+)</bdi>', drawn) == [
        ("s0", "reward"),
        ("s1", "reference_reward"),
        ("s2", "no_document_reward"),
    ]
    assert len(re.findall("<polyline", drawn)) == 3


def test_long_curves_are_thinned_and_smoothed_but_keep_their_end() -> None:
    drawn = curves([{"step": i, "reward": float(i % 2)} for i in range(5001)])
    raw, mean = re.findall(r'points="([^"]+)"', drawn)
    assert len(raw.split()) <= 402
    assert "at step 5000" in drawn
    heights = [float(point.split(",")[1]) for point in mean.split()]
    assert max(heights) - min(heights) < 210


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 100.0, [0, 50, 100]),
        (0.31, 0.69, [0.3, 0.4, 0.5, 0.6, 0.7]),
        (-0.013, 0.02, [-0.02, -0.01, 0.0, 0.01, 0.02]),
        (3.0, 3.0, [2.6, 2.8, 3.0, 3.2, 3.4]),
        (0.0, 0.0, [-1.0, -0.5, 0.0, 0.5, 1.0]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    found = ticks(low, high, 5)
    assert found[0] <= low
    assert found[-1] >= high
    assert found == pytest.approx(expected)


def test_drawings_have_names(harmless: str) -> None:
    page = Page(harmless)
    drawings = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(drawings) > 5
    assert all("role" in attributes for attributes in drawings)
    assert harmless.count("<svg ") == len(re.findall(r"<svg [^>]*><title>[^<]+</title>", harmless))


def test_the_report_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write_report(tmp_path / "new" / "report.html", make_evaluation(), title="x")
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="Report cannot be written"):
        write_report(tmp_path / "file" / "report.html", make_evaluation(), title="x")


def test_a_loaded_evaluation_makes_the_same_report(tmp_path: Path) -> None:
    evaluation = make_evaluation("<b>ü</b>")
    evaluation.save(tmp_path / "evaluation.json")
    assert report_of(tmp_path, Evaluation.load(tmp_path / "evaluation.json")) == report_of(tmp_path, evaluation)


def test_markup_escapes_whatever_is_not_markup() -> None:
    assert tag("p", "<b>", tag("b", "&"), class_='a"b') == '<p class="a&quot;b">&lt;b&gt;<b>&amp;</b></p>'
    assert join(["<", quoted(">")]) == '&lt;<bdi class="data">&gt;</bdi>'
    # Gluing markup to text with + gives text again, which is then escaped: a slip shows, it does not bite.
    assert tag("p", tag("b", "x") + "<i>") == "<p>&lt;b&gt;x&lt;/b&gt;&lt;i&gt;</p>"
    assert escape("a\x00b\ud800c\td\n") == "a\ufffdb\ufffdc\td\n"


def test_small_helpers() -> None:
    assert [signed(0.0321), signed(-0.5), signed(0.0), signed(-0.0001)] == ["+0.032", "−0.500", "0.000", "0.000"]
    assert shortened("one two three", 13) == "one two three"
    assert shortened("one two three", 9) == "one two …"
    assert shortened("one two three", 7) == "one two …"
    assert shortened("x" * 20, 5) == "xxxxx …"


def test_reports_import_no_torch() -> None:
    code = "import sys, rankwright.reporting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
