"""Two evaluations against each other: what may be compared, the figures, the page, the verb."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import rankwright
from rankwright.cli.app import run
from rankwright.cli.common import WORSE_EXIT_CODE
from rankwright.comparison import Counts, Side, compare_sides, outcome_of
from rankwright.errors import ConfigurationError, DataError, ResourceNotFoundError, StorageError
from rankwright.evaluation import Evaluation, FirstStage, evaluate
from rankwright.reporting.compared import write_comparison
from rankwright.types import Answer, Context, Document, Example, Query, ReadResult
from tests.cli_kit import one_line
from tests.report_kit import HARMLESS, HOSTILE, Page, Reversed

N = 12
"""Questions; a difference that all show is significant: 2 / 2 ** 12 < 0.05."""


class FirstWord:
    """A reader that answers with the first word of the first passage."""

    def __init__(self, name: str = "first word") -> None:
        self.name = name

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        return [Answer(context.documents[0].text.split()[0]) for context in contexts]


def example(i: int, depth: int = 4) -> Example:
    """A question whose labelled passage, with the answer, comes last."""
    others = [Document(f"o{i}-{j}", f"wrong passage {j} of {i}") for j in range(depth - 1)]
    gold = Document(f"g{i}", f"right passage of {i}", "The title")
    return Example(Query(f"q{i}", f"Question {i}?"), (*others, gold), ("right",), {gold.doc_id: 1})


EXAMPLES = [example(i) for i in range(N)]
LAST_FIRST = {"trained": Reversed()}
AS_GIVEN = {"trained": FirstStage()}


def evaluated(
    rankers: Mapping[str, FirstStage],
    examples: Sequence[Example] = EXAMPLES,
    *,
    reader: str = "first word",
    **how: int | str,
) -> Evaluation:
    options = {"top_k": 2, "depth": 4, "resamples": 200, "permutations": 2000, "set_name": "test", **how}
    return evaluate(rankers, examples, reader=FirstWord(reader) if reader else None, **options)  # pyright: ignore[reportArgumentType]


def sides(before: Evaluation, after: Evaluation) -> tuple[Side, Side]:
    return Side("old", before, "trained"), Side("new", after, "trained")


BEFORE, AFTER = evaluated(AS_GIVEN), evaluated(LAST_FIRST)


# --- figures -----------------------------------------------------------------------------------------------------


def test_the_figures_are_those_of_one_evaluation_of_both() -> None:
    together = evaluated({"old": FirstStage(), "new": Reversed()})
    comparison = compare_sides(*sides(BEFORE, AFTER))
    assert comparison.questions == tuple(f"q{i}" for i in range(N))
    assert comparison.metrics == together.metrics
    for test in comparison.tests:
        assert test == replace(together.test("new", "old", test.metric) or test, p_holm=test.p)
    assert comparison.headline_test.metric == "F1"
    assert comparison.means("F1") == (0.0, 1.0)
    assert comparison.means("nDCG@10") == (pytest.approx(1 / math.log2(5)), 1.0)
    assert comparison.counts("F1") == Counts(won=N, same=0, lost=0)
    assert comparison.counts("recall@10") == Counts(won=0, same=N, lost=0)
    assert (comparison.left_out, comparison.differences) == (0, ())


def test_turned_round_everything_is_lost() -> None:
    comparison = compare_sides(*sides(AFTER, BEFORE))
    assert comparison.counts("F1") == Counts(won=0, same=0, lost=N)
    assert comparison.headline_test.delta == -1.0
    assert [row["outcome"] for row in comparison.perquery()] == ["lost"] * N
    assert next(comparison.perquery())["values"]["F1"] == [1.0, 0.0]


def test_noise_in_the_last_digits_is_no_difference() -> None:
    values = dict(BEFORE.models["trained"].values)
    values["nDCG@10"] = {query_id: value + 1e-12 for query_id, value in values["nDCG@10"].items()}
    moved = replace(BEFORE, models={"trained": replace(BEFORE.models["trained"], values=values)})
    assert compare_sides(*sides(BEFORE, moved)).counts("nDCG@10") == Counts(won=0, same=N, lost=0)


@pytest.mark.parametrize(
    ("pair", "outcome"), [((0.0, 1.0), "won"), ((1.0, 0.5), "lost"), ((0.5, 0.5), "same"), (None, "not compared")]
)
def test_what_became_of_a_question(pair: tuple[float, float] | None, outcome: str) -> None:
    assert outcome_of(pair) == outcome


# --- what may be compared ----------------------------------------------------------------------------------------

FEWER = [*EXAMPLES[2:], example(N)]
REWORDED = [replace(EXAMPLES[0], query=Query("q0", "Another question?")), *EXAMPLES[1:]]
RELABELLED = [replace(EXAMPLES[0], relevance={"o0-0": 1}), *EXAMPLES[1:]]
REANSWERED = [replace(EXAMPLES[0], answers=("wrong",)), *EXAMPLES[1:]]
FOUND_OTHERS = [
    replace(EXAMPLES[0], candidates=(*EXAMPLES[0].candidates[1:], Document("x", "a new one"))),
    *EXAMPLES[1:],
]

APART = {
    "other questions": (evaluated(LAST_FIRST, FEWER), "test questions: 12 of test (10 shared) against 11 of test", 10),
    "another text": (evaluated(LAST_FIRST, REWORDED), "test questions: 12 of test (11 shared)", 11),
    "other labels": (evaluated(LAST_FIRST, RELABELLED), "test questions: 12 of test (11 shared)", 11),
    "other answers": (evaluated(LAST_FIRST, REANSWERED), "test questions: 12 of test (11 shared)", 11),
    "another depth": (evaluated(LAST_FIRST, depth=3), "depth: 4 against 3", N),
    "another retriever": (evaluated(LAST_FIRST, retriever="bm25"), "retriever: given against bm25", N),
    "another corpus": (evaluated(LAST_FIRST, FOUND_OTHERS), "candidates: those of test against others for 1 of 12", N),
    "another reader": (evaluated(LAST_FIRST, reader="other"), "reader: first word against other", N),
    "no reader": (evaluated(LAST_FIRST, reader=""), "reader: first word against none", N),
    "more passages read": (evaluated(LAST_FIRST, top_k=3), "passages read: 2 against 3", N),
}


@pytest.mark.parametrize("name", APART)
def test_runs_that_do_not_agree_are_refused_by_name_and_forced_as_far_as_that_makes_sense(
    name: str, tmp_path: Path
) -> None:
    other, words, shared = APART[name]
    with pytest.raises(ConfigurationError) as refused:
        compare_sides(*sides(BEFORE, other))
    assert words in str(refused.value)
    assert "--force" in str(refused.value)
    assert ("the same --test FILE" in str(refused.value)) == words.startswith("test questions")
    comparison = compare_sides(*sides(BEFORE, other), force=True)
    assert len(comparison.questions) == shared
    reads = name in ("another reader", "no reader", "more passages read")
    assert ("F1" in comparison.metrics) == (not reads)
    assert "nDCG@10" in comparison.metrics
    page = Page(write_comparison(tmp_path / "page.html", comparison).read_text("utf-8")).text
    assert "What is not the same" in page
    assert ("Metrics of answers are left out" in page) == reads


def test_the_order_of_questions_and_their_skipped_neighbours_do_not_matter() -> None:
    turned = evaluated(LAST_FIRST, EXAMPLES[::-1], skipped=3, seed=4, set_name="renamed")
    comparison = compare_sides(*sides(BEFORE, turned))
    assert comparison.tests == compare_sides(*sides(BEFORE, AFTER)).tests


def test_force_does_not_help_where_nothing_is_shared() -> None:
    other = evaluated(LAST_FIRST, [example(i) for i in range(100, 104)])
    for force in (False, True):
        with pytest.raises(
            ConfigurationError, match=r"share no test question.*--force cannot help.*the same --test FILE"
        ):
            compare_sides(*sides(BEFORE, other), force=force)


def test_force_does_not_help_where_only_answers_were_measured() -> None:
    def answers_only(reader: str, top_k: int) -> Evaluation:
        bare = [replace(found, relevance={}) for found in EXAMPLES]
        return evaluated(LAST_FIRST, bare, reader=reader, top_k=top_k)

    with pytest.raises(ConfigurationError, match=r"no metric .*where reader and passages read differ"):
        compare_sides(*sides(answers_only("a", 2), answers_only("b", 3)), force=True)


def test_a_metric_that_not_both_have_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"Metric 'hit@3' cannot be compared.*nDCG@10"):
        compare_sides(*sides(BEFORE, AFTER), metrics=["hit@3"])
    assert compare_sides(*sides(BEFORE, AFTER), metrics=["RR@10"]).metrics == ("RR@10",)


# --- the page ----------------------------------------------------------------------------------------------------


def carried(page: str) -> dict:
    """What the page carries for its script."""
    return json.loads(Page(page).scripts[1])


def test_the_page_carries_every_question_with_both_rankings(tmp_path: Path) -> None:
    page = write_comparison(tmp_path / "page.html", compare_sides(*sides(BEFORE, AFTER))).read_text("utf-8")
    found = carried(page)
    assert found["names"] == ["old", "new"]
    assert [question["id"] for question in found["questions"]] == [f"q{i}" for i in range(N)]
    first = found["questions"][0]
    assert first["reads"] == ["wrong", "right"]
    assert first["values"][found["headline"]] == [0.0, 1.0]
    texts = [[found["documents"][number][0] for number, _, _ in ranking] for ranking in first["rankings"]]
    assert texts == [[d.doc_id for d in EXAMPLES[0].candidates], [d.doc_id for d in EXAMPLES[0].candidates][::-1]]
    assert [other for _, other, _ in first["rankings"][0]] == [4, 3, 2, 1]
    assert [marks for _, _, marks in first["rankings"][1]] == [3, 0, 0, 0]  # labelled, and with the answer
    assert "Better: new beats old" in Page(page).text


def test_a_large_run_carries_shorter_passages_and_says_so(tmp_path: Path) -> None:
    long = [
        replace(found, candidates=tuple(replace(d, text=d.text + " word" * 200) for d in found.candidates))
        for found in EXAMPLES
    ]
    comparison = compare_sides(*sides(evaluated(AS_GIVEN, long), evaluated(LAST_FIRST, long)))
    whole = write_comparison(tmp_path / "whole.html", comparison).read_text("utf-8")
    assert max(len(text) for _, _, text in carried(whole)["documents"]) > 600
    short = write_comparison(tmp_path / "short.html", comparison, budget=12_000).read_text("utf-8")
    assert sum(len(text) for _, _, text in carried(short)["documents"]) < 12_000
    assert "the first 160 characters" in Page(short).text
    bare = write_comparison(tmp_path / "bare.html", comparison, budget=0).read_text("utf-8")
    assert {text for _, _, text in carried(bare)["documents"]} == {""}
    assert len(carried(bare)["questions"]) == N
    assert "titles and ids" in Page(bare).text


@pytest.mark.parametrize("payload", HOSTILE)
def test_hostile_texts_stay_texts(tmp_path: Path, payload: str) -> None:
    """Before any script runs; what a browser makes of it stands in test_browser.py."""

    def page_of(text: str) -> Page:
        named = [
            replace(found, query=Query(text, text), answers=(text, "right"), candidates=found.candidates)
            for found in EXAMPLES[:1]
        ]
        both = [evaluated(rankers, named, set_name=text, reader=text) for rankers in (AS_GIVEN, LAST_FIRST)]
        pair = Side(f"old{text}", both[0], "trained"), Side(f"new{text}", both[1], "trained")
        return Page(write_comparison(tmp_path / "page.html", compare_sides(*pair)).read_text("utf-8"))

    page, plain = page_of(payload), page_of(HARMLESS)
    assert page.elements == plain.elements
    assert page.links == plain.links
    assert page.oddities == []
    assert [page.scripts[0], page.scripts[2]] == [plain.scripts[0], plain.scripts[2]]
    assert "<" not in page.scripts[1]


# --- the verb ----------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, evaluation in (("old", BEFORE), ("new", AFTER)):
        evaluation.save(tmp_path / "runs" / name / "evaluation.json")
    return tmp_path / "runs"


def test_compare_prints_the_table_and_writes_the_page(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "runs/old", "runs/new"]) == 0
    out = capsys.readouterr().out
    assert "old -> new: 12 questions" in out
    assert "new is BETTER than old: F1 +1.000" in out
    assert "Better: new beats old" in Page((runs / "new" / "compare-with-old.html").read_text("utf-8")).text


def test_compare_prints_one_json_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = "elsewhere/page.html"
    arguments = ["runs/old/evaluation.json", "runs/new", "--perquery", "--report", page, "--output", "json"]
    assert run(["compare", *arguments, "--names", "a", "--names", "b", "--eval-metrics", "F1"]) == 0
    found = one_line(capsys.readouterr().out)
    assert found["names"] == ["a", "b"]
    assert (found["metric"], found["before"], found["after"], found["delta"]) == ("F1", 0.0, 1.0, 1.0)
    assert found["verdict"] == "better"
    assert [(row["metric"], row["won"], row["lost"]) for row in found["tests"]] == [("F1", N, 0)]
    assert [row["outcome"] for row in found["perquery"]] == ["won"] * N
    assert Path(found["report"]).is_file()
    kept = rankwright.compare(runs / "old", runs / "new", names=["a", "b"], eval_metrics=["F1"], perquery=True)
    assert {**found, "report": None} == kept


def test_a_second_run_that_is_worse_ends_with_its_exit_code(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "runs/new", "runs/old"]) == WORSE_EXIT_CODE
    assert "old is WORSE than new" in capsys.readouterr().out


def test_runs_that_do_not_agree_end_in_one_line_and_can_be_forced(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(LAST_FIRST, FEWER, depth=3).save(runs / "other" / "evaluation.json")
    assert run(["compare", "runs/old", "runs/other"]) == 2
    err = capsys.readouterr().err
    assert "test questions: 12 of test (10 shared)" in err
    assert "depth: 4 against 3" in err
    assert not (runs / "other" / "compare-with-old.html").exists()
    assert run(["compare", "runs/old", "runs/other", "--force"]) == 0
    out = capsys.readouterr().out
    assert "3 questions that not both have in the same form were left out." in out
    assert "Forced, though they differ in depth: 4 against 3." in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["runs/old", "runs/nowhere"], ResourceNotFoundError.exit_code, "There is no run folder runs/nowhere; "),
        (["runs", "runs/new"], ResourceNotFoundError.exit_code, "holds no evaluation.json"),
        (["runs/old", "broken.json"], DataError.exit_code, "is not an evaluation or is damaged"),
        (["runs/old", "runs/old"], 2, "was to be compared with itself"),
        (["runs/old", "runs/new", "--after-model", "x"], 2, "has no model 'x'; wanted one of trained"),
        (["runs/old", "runs/new", "--names", "x"], 2, "--names was given 1 times"),
        (["runs/old", "runs/new", "--eval-metrics", "nDCG@7"], 2, "Metric 'nDCG@7' cannot be compared"),
        (["runs/old", "runs/new", "--report", "broken.json/x.html"], StorageError.exit_code, "Comparison cannot be"),
    ],
)
def test_bad_arguments_are_named(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    (runs.parent / "broken.json").write_text("{", encoding="utf-8")
    assert run(["compare", *arguments]) == code
    assert words in " ".join(capsys.readouterr().err.split())


def test_models_of_one_run_and_runs_of_one_name_are_told_apart(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated({"reference": FirstStage(), "trained": Reversed()}).save(runs / "new" / "evaluation.json")
    assert run(["compare", "runs/new", "runs/new", "--before-model", "reference"]) == 0
    assert "new is BETTER than new: reference" in capsys.readouterr().out
    assert (runs / "new" / "compare-with-new-reference.html").is_file()
    BEFORE.save(runs / "elsewhere" / "new" / "evaluation.json")
    assert run(["compare", "runs/elsewhere/new", "runs/new"]) == 0
    assert "runs/new is BETTER than runs/elsewhere/new" in capsys.readouterr().out


def test_a_damaged_run_is_not_compared(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rankwright.checkpoints import write_manifest

    write_manifest(runs / "new", ["evaluation.json"])
    AFTER.save(runs / "new" / "evaluation.json")
    assert run(["compare", "runs/old", "runs/new"]) == 0
    (runs / "new" / "evaluation.json").write_text(
        (runs / "new" / "evaluation.json").read_text("utf-8").replace("right", "wrong", 1), encoding="utf-8"
    )
    assert run(["compare", "runs/old", "runs/new"]) == DataError.exit_code
    assert "is not as the run left it" in capsys.readouterr().err
