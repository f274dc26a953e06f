"""The programs of long measurements (calls, protocol, paper): their arithmetic, and what they keep."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import calls, choices, cost, differences, kept, pages, paper, protocol, query2doc
from benchmarks.embedded.sets import Question
from rankwright.algorithms.config import TrainConfig
from rankwright.retrieval import BM25, with_candidates
from rankwright.training import Schedule
from rankwright.types import Document, Example, Query, Ranking, RerankRequest
from tests.keepers import CORPUS, queries, target
from tests.test_expansion import Writer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folders in the place of benchmarks/work and results/kept."""
    monkeypatch.setattr(kept, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(kept, "WORK", tmp_path / "work")
    monkeypatch.setattr(protocol, "WORK", tmp_path / "work" / "protocol")
    monkeypatch.setattr(calls, "WORK", tmp_path / "work" / "calls")
    monkeypatch.setattr(cost, "WORK", tmp_path / "work" / "cost")
    monkeypatch.setattr(choices, "WORK", tmp_path / "work" / "choices")
    readers = {name: tmp_path / "work" / "another-reader" / file.name for name, file in paper.READERS.items()}
    monkeypatch.setattr(paper, "READERS", readers)
    paper.difference.cache_clear()
    monkeypatch.setattr(differences, "groups", dict)
    return tmp_path / "work"


# --- calls -------------------------------------------------------------------------------------------------------


def lines_of(paid: Sequence[int], rewards: dict[int, float]) -> list[dict[str, Any]]:
    """metrics.jsonl of a run: a line for each step, and one for each evaluation after it."""
    lines: list[dict[str, Any]] = []
    for step in range(len(paid) + 1):
        if step:
            lines.append({"step": step, "reader_calls": float(paid[step - 1]), "loss": 0.0})
        if step in rewards:
            lines.append({"step": step, "eval_reward": rewards[step], "eval_reader_calls": 1000.0})
    return lines


def test_calls_are_counted_by_epoch_and_up_to_each_look_at_dev() -> None:
    paid, rewards = [7, 5, 3, 1], {0: 0.4, 2: 0.5, 4: 0.45}
    assert calls.counted(lines_of(paid, rewards), steps=4) == {
        "calls": [7 + 5, 3 + 1],
        "dev": [[0, 0, 0.4], [2, 7 + 5, 0.5], [4, 7 + 5 + 3 + 1, 0.45]],
    }


def test_calls_of_rollouts_with_two_updates_are_counted_at_their_last_step() -> None:
    lines = [line for line in lines_of([0, 5, 0, 1], {0: 0.4, 2: 0.5}) if line["step"] % 2 == 0]
    assert calls.counted(lines, steps=4, updates=2) == {"calls": [5, 1], "dev": [[0, 0, 0.4], [2, 5, 0.5]]}


@pytest.mark.parametrize("row", list(calls.ROWS))
def test_all_rows_take_the_same_number_of_optimizer_steps(row: str) -> None:
    """But for an incomplete batch, which a rollout of several updates leaves out."""
    loop = TrainConfig(**protocol.LOOP | calls.settings_of(row)["loop"])
    updates = calls.updates_of(row)
    examples = [Example(Query(f"q{i}", "?"), (Document("a", "b"),)) for i in range(603)]
    assert Schedule(examples, loop, updates, 0, has_dev=True).steps == (152 if updates == 1 else 150)


def test_a_step_without_a_line_is_not_counted_as_free() -> None:
    lines = [line for line in lines_of([7, 5, 3, 1], {}) if line["step"] != 2]
    with pytest.raises(SystemExit, match="3 lines of rollouts; wanted one for each 1 of 4 steps"):
        calls.counted(lines, steps=4)


QUESTIONS = 100
NAIVE = calls.EPOCHS * QUESTIONS * calls.SAMPLES * calls.STEPS
FEW = round(calls.MOST * NAIVE)


def record(paid: int, best: float, dev: Sequence[Sequence[float]] = ()) -> dict[str, Any]:
    return {
        "questions": QUESTIONS,
        "dev_questions": 20,
        "steps": 26,
        "calls": [paid - 1, 1],
        "dev": [list(row) for row in dev],
        "dev_before": 0.4,
        "dev_best": best,
    }


@pytest.mark.parametrize(
    ("paid", "best", "words"),
    [
        (FEW, 0.5, "met"),
        (FEW, 0.495, "met"),
        (FEW, 0.6, "met"),
        (FEW + 1, 0.5, "missed: calls"),
        (FEW, 0.4949, "missed: dev F1"),
        (FEW + 1, 0.4949, "missed: calls and dev F1"),
    ],
)
def test_the_goal_is_few_calls_and_a_dev_f1_near_naives(paid: int, best: float, words: str) -> None:
    assert calls.goal(calls.share_of(record(paid, best)), best, naive=0.5) == words


@pytest.mark.parametrize(
    ("dev", "found"),
    [
        ([(0, 0, 0.4), (13, 70, 0.4949), (26, 90, 0.52)], (26, 90)),
        ([(26, 90, 0.52), (13, 70, 0.495), (0, 0, 0.4)], (13, 70)),
        ([(0, 0, 0.5), (13, 70, 0.6)], (0, 0)),
        ([(0, 0, 0.4), (13, 70, 0.494)], None),
    ],
)
def test_calls_until_dev_first_comes_near(dev: Any, found: tuple[int, float] | None) -> None:
    assert calls.until(record(100, 0.5, dev), best=0.5) == found


@pytest.mark.parametrize(("step", "visited"), [(0, 0), (5, 40), (12, 96), (13, 100), (14, 108), (26, 200)])
def test_naive_pays_for_each_visit(step: int, visited: int) -> None:
    """100 questions are 13 steps, the last of 4."""
    assert calls.visits(step, record(100, 0.5)) == visited


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def table(page: str) -> list[list[str]]:
    return [cells(line) for line in page.splitlines() if line.startswith("| ")]


def parts(page: str) -> tuple[list[list[str]], list[list[str]]]:
    """The tables of rows and of combinations over seeds."""
    rows, seeds = page.split("## The goal over seeds")
    return table(rows), table(seeds)


def keep(row: str, value: dict[str, Any], seed: int = 0) -> None:
    path = calls.folder_of(row, seed) / "calls.json"
    kept.measured(path, protocol.made_with(calls.settings_of(row)), lambda: value)


@pytest.mark.usefixtures("work")
def test_the_page_of_calls_compares_with_the_exact_cache() -> None:
    saving = "pairs share the first two"
    keep(calls.EXACT, record(NAIVE // 2, 0.5, [(0, 0, 0.4), (13, 900, 0.5), (26, 1200, 0.45)]))
    keep(saving, record(NAIVE // 4, 0.47, [(0, 0, 0.4), (13, 300, 0.46), (26, 600, 0.47)]))
    (head, naive, *rows), _ = parts(calls.page())
    by_name = {row[0]: row for row in rows}
    assert {len(row) for row in (head, naive, *rows)} == {9}
    assert naive[1:] == [f"{NAIVE}", "100%", "100%", "100%", "0.4000 -> 0.5000", "", f"{100 * 4 * 3} (step 13)", ""]
    shares = ["100%", "0%", "50%"]
    assert by_name[calls.EXACT][2:] == [*shares, "0.4000 -> 0.5000", "+0.00", "900 (step 13)", "missed: calls"]
    assert by_name[saving][4:] == ["25%", "0.4000 -> 0.4700", "-3.00", "never", "missed: dev F1"]
    assert [row[1] for row in rows].count("not run") == len(calls.ROWS) - 2


@pytest.mark.usefixtures("work")
def test_the_page_of_calls_without_records_has_no_verdict() -> None:
    page = calls.page()
    (head, *rows), (_, *seeds) = parts(page)
    assert {len(row) for row in (head, *rows)} == {9}
    assert [row[1:] for row in seeds] == [["not run", *[""] * 5]] * (1 + len(calls.COMBINATIONS))
    page = page.split("## The goal over seeds")[0]
    assert len(rows) == 1 + len(calls.ROWS)
    assert all(row[1] == "not run" and not any(row[2:]) for row in rows)
    # Nor has it a number of questions, which a record brings.
    assert page.count("not run") == len(rows) + 3
    keep(calls.EXACT, record(NAIVE // 2, 0.5))
    page = calls.page().split("## The goal over seeds")[0]
    assert page.count("not run") == len(calls.ROWS) - 1
    assert f"{QUESTIONS} training questions of" in page
    assert f"{NAIVE} in all." in page
    assert f"Dev is 20 questions, so that one answer more or less is {100 / 20:.2f} points," in page


@pytest.mark.parametrize(
    ("paid", "best", "behind", "reached", "verdict"),
    [
        (0.35, (0.49, 0.5, 0.495), ["-1.00, +0.00, -0.50", "-0.50 [-1.74, +0.74]"], "never, 35%, 35%", "met"),
        (0.36, (0.5, 0.5, 0.5), ["+0.00, +0.00, +0.00", "+0.00 [+0.00, +0.00]"], "36%, 36%, 36%", "missed: calls"),
        (0.3, (0.48, 0.5, 0.504), ["-2.00, +0.00, +0.40", "-0.53 [-3.73, +2.66]"], "never, 30%, 30%", "missed: dev F1"),
    ],
)
@pytest.mark.usefixtures("work")
def test_the_goal_is_judged_by_the_mean_over_seeds(
    paid: float, best: tuple[float, ...], behind: list[str], reached: str, verdict: str
) -> None:
    nearest, row, *others = calls.COMBINATIONS
    few = round(NAIVE * paid)
    for seed in calls.SEEDS:
        assert all(line[1] == "not run" for line in parts(calls.page())[1][1:]), "no verdict before the last seed"
        keep(calls.EXACT, record(NAIVE // 2, 0.5, [(26, NAIVE // 2, 0.5)]), seed)
        keep(row, record(few, best[seed], [(26, few, best[seed])]), seed)
    by_name = {line[0]: line[1:] for line in parts(calls.page())[1]}
    of_row = ", ".join(f"{value:.4f}" for value in best)
    assert by_name[row] == [f"{paid:.1%}", of_row, *behind, reached, verdict]
    assert all(by_name[other] == ["not run", *[""] * 5] for other in (calls.EXACT, nearest, *others))


@pytest.mark.usefixtures("work")
def test_the_nearest_combination_and_the_exact_cache_have_more_seeds() -> None:
    for seed in calls.MORE_SEEDS:
        page = parts(calls.page())[1]
        assert [line[1] for line in page[1:3]] == ["not run"] * 2
        keep(calls.EXACT, record(NAIVE // 2, 0.5, [(26, NAIVE // 2, 0.5)]), seed)
        keep(calls.NEAREST, record(NAIVE // 4, 0.49 + 0.002 * seed), seed)
    _, exact, nearest, *_ = parts(calls.page())[1]
    assert exact[1:] == ["50.0%", ", ".join(["0.5000"] * 5), "", "", ", ".join(["50%"] * 5), ""]
    assert nearest[3:5] == ["-1.00, -0.80, -0.60, -0.40, -0.20", "-0.60 [-0.99, -0.21]"]
    assert nearest[6] == "missed: dev F1"


# --- what is kept, and what it was made with ---------------------------------------------------------------------


def test_records_of_another_budget_of_tokens_or_another_ranking_are_refused(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = work / "protocol" / "any" / "train.json"
    kept.measured(path, protocol.made_with({}), lambda: {"n": 1})
    assert kept.read(path, protocol.made_with({})) == {"n": 1}
    with monkeypatch.context() as patch:
        patch.setattr(protocol, "DEVICE", "cuda:0")
        with pytest.raises(SystemExit, match="'tokens_at_once': 8192"):
            kept.read(path, protocol.made_with({}))
    monkeypatch.setattr(protocol, "RANKING", "fp32")
    with pytest.raises(SystemExit, match="'ranking': 'fp32'"):
        kept.read(path, protocol.made_with({}))


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


class Training:
    """Counts trainings; each leaves weights of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def __call__(self) -> dict[str, int]:
        for part in ("checkpoint-38", "model"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self.count += 1
        (self.folder / "model" / "model.safetensors").write_bytes(b"w" * self.count)
        return {"training": self.count}


def test_a_row_whose_weights_stayed_on_another_machine_is_trained_again_only_where_they_are_needed(work: Path) -> None:
    folder = work / "protocol" / "row"
    train = Training(folder)
    wanted = [protocol.rankings_at("row", "test"), protocol.rankings_at("row", "hotpot")]
    other = folder / "read-top-3.json"

    def again() -> dict[str, Any]:
        return protocol.trained("row", {}, wanted, train)

    assert again() == again() == {"training": 1, "weights": digest_of(b"w")}
    assert [path.name for path in folder.iterdir()] == ["model"]
    for path in (wanted[0], other):
        kept.measured(path, protocol.made_with({}), dict)
    shutil.rmtree(folder / "model")
    assert again() == {"training": 2, "weights": digest_of(b"ww")}
    # What was made with the weights that are gone went with them.
    assert not kept.place(wanted[0]).exists()
    assert not kept.place(other).exists()
    for path in wanted:
        kept.measured(path, protocol.made_with({}), dict)
    shutil.rmtree(folder / "model")
    assert again() == {"training": 2, "weights": digest_of(b"ww")}
    with pytest.raises(SystemExit, match="was made with"):
        protocol.trained("row", {"loop": {"epochs": 2}}, [*wanted, folder / "new.json"], train)
    assert kept.place(wanted[0]).exists()


@pytest.mark.parametrize("program", [calls, choices])
def test_a_row_that_is_done_leaves_its_log_and_what_others_read(
    program: Any, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {calls: ["--row", calls.EXACT], choices: ["--arm", choices.REFERENCE_ARM, "--half", "0"]}[program]
    folder = calls.folder_of(calls.EXACT, 0) if program is calls else choices.kept_at(choices.REFERENCE_ARM, 0)
    others = folder.parent / "other" / "checkpoint-2"

    def run(*row: Any) -> dict[str, Any]:
        for part in (folder.with_suffix("") / "checkpoint-2", folder.with_suffix("") / ".checkpoint-4.partial", others):
            part.mkdir(parents=True)
        (folder.with_suffix("") / "metrics.jsonl").touch()
        return {"reads": 1}

    monkeypatch.setattr(program, "run", run)
    for _ in range(2):  # the second finds the record
        monkeypatch.setattr(sys, "argv", ["one", "one", *words])
        program.main()
        assert [path.name for path in folder.with_suffix("").iterdir()] == ["metrics.jsonl"]
        assert others.exists()


def test_weights_of_another_training_rank_nothing_under_a_kept_record(work: Path) -> None:
    folder, wanted = work / "protocol" / "row", [protocol.rankings_at("row", "test")]
    train, file = Training(folder), folder / "model" / "model.safetensors"

    def again() -> dict[str, Any]:
        return protocol.trained("row", {}, wanted, train)

    assert again()["weights"] == digest_of(b"w")
    file.write_bytes(b"trained on another machine")
    assert again() == {"training": 2, "weights": digest_of(b"ww")}
    assert protocol.weights_at("row") == digest_of(file.read_bytes())
    # Where nothing more is made with them, they do not matter.
    kept.measured(wanted[0], protocol.made_with({}), dict)
    file.write_bytes(b"trained on another machine")
    assert again() == {"training": 2, "weights": digest_of(b"ww")}


def keep_trained(name: str, settings: dict[str, Any]) -> None:
    record = {"steps": 1, "weights": "any"}
    kept.measured(protocol.WORK / name / "train.json", protocol.made_with(settings), lambda: record)
    values = {"values": {"F1": {"a": 0.5}}}
    kept.measured(protocol.tested_at(name, "test"), protocol.made_with(settings), lambda: values)


@pytest.mark.usefixtures("work")
def test_seeds_that_were_trained_with_other_settings_are_not_one_row() -> None:
    one, other = {"loop": {"epochs": 1}}, {"loop": {"epochs": 2}}
    keep_trained("rrpo-1", one)
    keep_trained("supervised-0", other)
    assert (protocol.settings_of("rrpo"), protocol.settings_of("supervised")) == (one, other)
    assert set(protocol.trained_records()) == {"rrpo-1", "supervised-0"}
    assert protocol.tested("rrpo-1", "test") is not None
    keep_trained("rrpo-2", other)
    for read in (protocol.trained_records, lambda: protocol.tested("rrpo-2", "test")):
        with pytest.raises(SystemExit, match=r"rrpo-2.* was made with .*'epochs': 2.*; wanted .*'epochs': 1"):
            read()


@pytest.mark.usefixtures("work")
def test_a_seed_beside_others_is_trained_as_they_were_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def begins() -> None:
        raise InterruptedError

    monkeypatch.setattr(protocol, "splits", begins)
    one = {"loop": {"epochs": 2}}
    settings = protocol.settings_to_run(json.dumps({"supervised": one}))
    assert settings == {"rrpo": protocol.CHOSEN["rrpo"], "supervised": one}
    assert protocol.settings_to_run(None) == protocol.CHOSEN
    with pytest.raises(SystemExit, match="--settings names loop; wanted rrpo or supervised"):
        protocol.settings_to_run(json.dumps(one))
    keep_trained("rrpo-0", protocol.CHOSEN["rrpo"])
    with pytest.raises(InterruptedError):
        protocol.run_trained("rrpo-1", settings)
    with pytest.raises(SystemExit, match=r"rrpo-1 was to be trained with .*'epochs': 2.*'samples': 128"):
        protocol.run_trained("rrpo-1", {"rrpo": one})


class Turned:
    """Ranks the last candidate first, and notes what it was asked."""

    name = "turned"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def rerank_batch(self, requests: Sequence[RerankRequest]) -> list[Ranking]:
        self.asked += [request.query.query_id for request in requests]
        turned = [[document.doc_id for document in reversed(request.documents)] for request in requests]
        return [
            Ranking(request.query.query_id, tuple(ids), tuple(float(-i) for i in range(len(ids))))
            for request, ids in zip(requests, turned, strict=True)
        ]


def example(name: str, count: int = 7) -> Example:
    documents = tuple(Document(f"{name}{i}", f"text {i}", f"title {i}") for i in range(count))
    return Example(Query(name, f"question {name}?"), documents, ("yes",), {f"{name}0": 1})


def test_a_model_is_loaded_and_a_set_ranked_once_and_only_if_asked(work: Path) -> None:
    model, loads = Turned(), []
    data = {"test": [example("a"), example("b")], "hotpot": [example("c")]}
    for _ in range(2):
        orders = protocol.orders_of(lambda: loads.append(1) or model, data)
        protocol.keep_rankings("row", orders, {}, ["test"])
        protocol.keep_rankings("row", orders, {}, ["test"])
    assert (len(loads), model.asked) == (1, ["a", "b"])
    rankings = kept.read(protocol.rankings_at("row", "test"), protocol.made_with({}))
    assert rankings["a"] == [f"a{i}" for i in range(6, 6 - protocol.DEEPEST, -1)]


def test_digests_of_other_readers_decide_readings_and_the_rows_that_they_teach(work: Path) -> None:
    weak, words = paper.READERS["weak"], "weak reader"
    assert paper.weights_of("weak") == {}
    weak.parent.mkdir(parents=True)
    weak.write_bytes(b"weights")
    digest = kept.digests([weak])
    assert paper.made_with({}, words)[weak.name] == digest[weak.name]
    assert weak.name not in paper.made_with({}, "top 3")
    assert paper.settings_of("RRPO from a weak reader")["teacher"] == {"name": "weak", **digest}
    assert "teacher" not in paper.settings_of("RRPO")
    # On another machine the offsets that were chosen for it tell which weights the records are of.
    kept.measured(weak.with_suffix(".offsets.json"), digest, lambda: [0.0, 1.0])
    assert paper.lacks_reader("weak") == ""
    weak.unlink()
    assert paper.weights_of("weak") == digest


def test_a_reader_that_was_trained_again_reads_nothing_beside_records_of_the_first(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, row, weak = "weak reader", "RRPO from a weak reader", paper.READERS["weak"]
    monkeypatch.setattr(paper, "readings_of", lambda row: [words])
    assert paper.TRAIN_READERS in paper.lacks(row, 0)
    first, again = digest_of(b"first"), digest_of(b"trained again")
    kept.measured(weak.with_suffix(".offsets.json"), {weak.name: first}, lambda: [0.0, 1.0])
    for found in ("is not there", f"has other weights ({again})"):
        lack = f"{weak} {found}; wanted {first}"
        assert lack in paper.lacks(row, 0)
        with pytest.raises(SystemExit, match=re.escape(lack)):
            paper.reader_of("weak")
        paper.read_anew("reference", "reference", {})
        assert lack in capsys.readouterr().err
        assert paper.by_seed("reference", words) == {}
        weak.parent.mkdir(parents=True, exist_ok=True)
        weak.write_bytes(b"trained again")
    kept.measured(paper.read_at("reference", words), paper.made_with({}, words), lambda: {"a": 0.5})
    paper.read_anew("reference", "reference", {})
    assert capsys.readouterr().err == ""
    assert paper.by_seed("reference", words) == {0: {"a": 0.5}}


def test_a_page_with_figures_stays_until_there_are_new_ones(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for text, measured, shown in (("not run", False, "not run"), ("0.5", True, "0.5"), ("not run", False, "0.5")):
        pages.write(page, text, measured=measured)
        assert page.read_text("utf-8") == shown


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("program", [calls, paper])
def test_pages_of_calls_and_paper_stay_until_something_is_kept(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("0.5", encoding="utf-8")
    monkeypatch.setattr(program, "PAGE", page)
    monkeypatch.setattr(program, "page", lambda: "0.6")
    monkeypatch.setattr("sys.argv", ["program", "page"])
    program.main()
    assert page.read_text("utf-8") == "0.5"
    if program is calls:
        keep(list(calls.ROWS)[-1], record(100, 0.5))
    else:
        kept.measured(paper.read_at("reference", "top 5"), paper.made_with({}, "top 5"), dict)
    program.main()
    assert page.read_text("utf-8") == "0.6"


# --- the paper's questions ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("work")
def test_rows_are_compared_over_the_seeds_that_both_have() -> None:
    row = {0: {"a": 0.5, "b": 0.25}, 1: {"a": 1.0, "b": 1.0}, 2: {"a": 0.0, "b": 1.0}}
    base = {0: {"a": 0.25, "b": 0.25}, 2: {"a": 0.25, "b": 0.5}}
    found = paper.compare(row, base)
    assert found is not None
    # Over seeds 0 and 2: a 0.25 and 0.25, b 0.625 and 0.375.
    assert (found.seeds, found.mean) == ((0, 2), 0.125)
    assert (found.low, found.high) == (0.0, 0.25)
    assert paper.compare(row, {3: base[0]}) is None


@pytest.mark.usefixtures("work")
def test_questions_of_one_passage_are_one_witness() -> None:
    base = dict.fromkeys("abcd", 0.0)
    per = {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.1}
    alone = differences.difference(per, base)
    tied = differences.difference(per, base, group_of={"a": 0, "b": 0, "c": 0, "d": 1})
    assert alone.mean == tied.mean == 0.4
    assert (alone.p, tied.p) == (2 / 2**4, 2 / 2**2)
    assert (tied.low, tied.high) == (0.1, 0.5)
    assert str(tied) == "+0.4000 [+0.1000, +0.5000], p 0.500"
    assert differences.p_in_words(1e-5) == "p < 0.001"


def test_questions_about_one_article_are_one_group() -> None:
    groups = differences.groups()
    asked = {q.key for q in protocol.side("test", protocol.OPEN_SETS)}
    assert asked <= groups.keys()
    xquad = [key for key in asked if key.startswith("xquad_en:")]
    assert len({groups[key] for key in xquad}) < len(xquad) / 10


@pytest.mark.usefixtures("work")
def test_a_claim_that_does_not_outlive_holms_correction_says_so_and_one_seed_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {
        "RRPO": differences.Difference(0.01, 0.005, 0.015, 0.03, (0, 1, 2)),
        "train_k 5": differences.Difference(0.01, 0.005, 0.015, 0.001, (0,)),
    }
    monkeypatch.setattr(paper, "difference", lambda row, base, words: found.get(row))
    claims = [paper.Claim("one", "RRPO"), paper.Claim("other", "train_k 5"), paper.Claim("third", "no baseline")]
    monkeypatch.setattr(paper, "CLAIMS", (*claims, paper.Claim("fourth", "RRPO"), paper.Claim("fifth", why_not="so")))
    lines = [cells(line)[:2] for line in paper.claim_lines()]
    assert lines == [
        ["one", "held; not after Holm's correction"],
        ["other", "held (seed 0)"],
        ["third", "not run"],
        ["fourth", "held; not after Holm's correction"],
        ["fifth", "not testable here"],
    ]


@pytest.mark.usefixtures("work")
def test_rows_tell_their_seeds_and_how_much_they_may_read() -> None:
    settings = paper.settings_of("RRPO")
    for name, value in zip(paper.names_of("RRPO"), (0.5, 0.25, 0.75), strict=True):
        made = paper.made_with(settings, "top 3")
        kept.measured(paper.read_at(name, "top 3"), made, lambda value=value: {"a": value})
    assert paper.each_seed("RRPO") == "0.500 0.250 0.750"
    assert paper.each_seed("train_k 1") == ""
    rows = ("RRPO", "listwise bandit", "train_k 1", "RRPO, one step, question", "supervised (gold labels)")
    assert [paper.reads_at_most(row) for row in rows] == ["16", "6", "6", "11", "0"]


@pytest.mark.usefixtures("work")
def test_three_seeds_beside_one_are_compared_over_that_one_and_a_fixed_order_stands_beside_all() -> None:
    def keep_reading(row: str, values: Sequence[float]) -> None:
        settings = paper.settings_of(row)
        for name, value in zip(paper.names_of(row), values, strict=True):
            made = paper.made_with(settings, "top 3")
            kept.measured(paper.read_at(name, "top 3"), made, lambda value=value: {"a": value, "b": value})

    keep_reading("RRPO", [0.5, 0.25, 0.75])
    keep_reading("train_k 1", [0.25])
    keep_reading("reference", [0.25])
    one, fixed = (paper.difference("RRPO", base, "top 3") for base in ("train_k 1", "reference"))
    assert one is not None
    assert (one.seeds, one.mean) == ((0,), 0.25)
    assert fixed is not None
    assert (fixed.seeds, fixed.mean) == ((0, 1, 2), 0.25)
    assert "RRPO minus train_k 1, top 3, seed 0: +0.2500" in paper.Claim("words", "RRPO", "train_k 1").line()
    assert "(seed 0)" in paper.cell("train_k 1", "top 3")
    assert "seed" not in paper.cell("RRPO", "top 3")


@pytest.mark.usefixtures("work")
def test_the_page_says_how_each_row_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"rrpo": ["a", "b", "a"], "test": ["c"]}
    monkeypatch.setattr(protocol, "side", lambda name, sets: [Question(key, key, (), ()) for key in keys[name]])
    rate = protocol.CHOSEN["supervised"]["loop"]["learning_rate"]
    words = " ".join(paper.trained_how().split())
    assert "2 training questions" in words
    assert "1 questions of nq_open" in words
    assert f"3 steps, 4 samples, the reference's greedy ranking as baseline, learning rate {1e-4:g}," in words
    assert f'"supervised (gold labels)" (learning rate {rate:g})' in words
    assert f'"RRPO, one step, question" (train_k 1, samples 128, scale question, learning rate {1e-4:g})' in words
    keep_trained("supervised-1", {"loop": {"learning_rate": 3e-3}})
    keep_trained("rrpo-0", {"rrpo": {"samples": 7}})
    words = " ".join(paper.trained_how().split())
    assert '"supervised (gold labels)" (learning rate 0.003)' in words
    assert f'"RRPO, one step, question" (samples 7, learning rate {protocol.LOOP["learning_rate"]:g})' in words


@pytest.mark.parametrize(
    ("low", "high", "p", "alpha", "words"),
    [
        (0.001, 0.01, 0.04, None, "held"),
        (0.001, 0.01, 0.05, None, "not held: p is not below 0.05"),
        (0.001, 0.01, 0.04, 0.01, "not held: p is not below 0.01"),
        (0.001, 0.01, 0.01, 0.01, "not held: p is not below 0.01"),
        (0.001, 0.01, 0.009, 0.01, "held"),
        (0.0, 0.01, 0.001, 0.01, "not held: no difference shown"),
        (-0.01, 0.01, 0.5, None, "not held: no difference shown"),
        (-0.02, -0.01, 0.001, None, "not held: the opposite"),
    ],
)
def test_a_claim_is_held_by_its_interval_and_by_the_level_that_it_names(
    low: float, high: float, p: float, alpha: float | None, words: str
) -> None:
    assert paper.verdict(paper.Difference((low + high) / 2, low, high, p, (0,)), alpha) == words


@pytest.mark.usefixtures("work")
def test_every_claim_has_a_verdict_and_its_ground() -> None:
    for claim in paper.CLAIMS:
        if claim.row:
            assert claim.row in paper.ROWS
            assert claim.base in {*paper.ROWS, *paper.FIXED}
            assert {claim.reading} <= {*paper.readings_of(claim.row)} & {*paper.readings_of(claim.base)}
            assert claim.judged()[0] == ("not testable here" if claim.why_not else "not run")
        else:
            assert bool(claim.why_not) != bool(claim.other)
    assert paper.saved_by_cache()[0] == "not run"


ONE_COUNT = "held by one count, not by the other"


@pytest.mark.parametrize(("paid", "words"), [(0.41, "held"), (0.42, ONE_COUNT), (0.55, ONE_COUNT), (0.56, "not held")])
@pytest.mark.usefixtures("work")
def test_the_claim_about_the_cache_is_judged_by_what_is_asked_for_and_by_naive(paid: float, words: str) -> None:
    """Twelve prefixes of samples at each visit, three of the reference, one without documents."""
    keep(calls.EXACT, record(round(paid * calls.EPOCHS * QUESTIONS * 16), 0.5))
    verdict, what = paper.saved_by_cache()
    assert verdict == words
    assert what.startswith(f"of all answers that the run asked for, {1 - paid:.0%} came from the cache")
    assert f"alone, each read anew, it saved {1 - paid * 16 / 12:.0%} " in what


def test_a_ranking_is_read_in_every_form() -> None:
    one = example("a")
    given = {words: paper.context_of(one, ["a3", "a1", "a5", "a0"], paper.READINGS[words]) for words in paper.READINGS}
    ids = {words: [document.doc_id for document in context.documents] for words, context in given.items()}
    assert ids["top 1"] == ["a3"]
    assert ids["top 3"] == ["a3", "a1", "a5"]
    assert ids["best passage last"] == ["a5", "a1", "a3"]
    assert {tuple(ids[words]) for words in ("passages without titles", "instruction before the question")} == {
        ("a3", "a1", "a5")
    }
    assert [document.title for document in given["passages without titles"].documents] == [""] * 3
    assert [document.title for document in given["top 3"].documents] == ["title 3", "title 1", "title 5"]
    texts = {words: context.query.text for words, context in given.items()}
    instruction = paper.READINGS["instruction before the question"]["instruction"]
    assert texts.pop("instruction before the question") == f"{instruction} question a?"
    assert set(texts.values()) == {"question a?"}


def test_rows_wait_for_what_they_are_made_from(work: Path) -> None:
    row, name = "RRPO, one step, question", "rrpo-1"
    assert paper.lacks(row, 1) == f"{name} is not trained by benchmarks.protocol yet"
    assert str(paper.READERS["weak"]) in paper.lacks("RRPO from a weak reader", 0)
    assert paper.lacks("RRPO", 0) == paper.lacks("reference", 0) == ""
    for path in paper.rankings_of(row, name):
        kept.measured(path, {}, dict)
    assert paper.lacks(row, 1) == ""
    assert {path.parent.name for path in paper.rankings_of(row, name)} == {name}


@pytest.mark.usefixtures("work")
def test_expanded_questions_are_ranked_and_read_once_their_passages_are_written() -> None:
    words = "Query2Doc"
    claim = next(claim for claim in paper.CLAIMS if claim.reading == words)
    before = paper.made_with({}, words)
    assert words in paper.readings_of("RRPO")
    assert [path.name for path in paper.rankings_of("RRPO", "row")] == [
        f"rankings-{name}.json" for name in sorted(protocol.TEST_SETS)
    ]
    assert paper.cell("RRPO", words) == "not run"
    assert claim.judged()[0] == "not testable here"

    index = BM25(CORPUS)
    query2doc.write(Writer(), queries(10), index)
    assert query2doc.SET in protocol.kept_sets()
    asked = [Example(query, relevance={target(10).doc_id: 1}) for query in queries(10)]
    assert [query2doc.recall(with_candidates(asked, one, 3)) for one in (index, query2doc.search(index))] == [0, 1]
    assert protocol.rankings_at("row", query2doc.SET) in paper.rankings_of("RRPO", "row")
    assert paper.made_with({}, words) != before
    assert paper.made_with({}, "top 3") == protocol.made_with({}) | {"reading": paper.READINGS["top 3"]}
    for row, value in (("RRPO", 1.0), ("reference", 0.5)):
        made_with = paper.made_with(paper.settings_of(row), words)
        path = paper.read_at(paper.names_of(row)[0], words)
        kept.measured(path, made_with, lambda value=value: {f"q{i}": value for i in range(50)})
    paper.difference.cache_clear()
    assert claim.judged()[0] == "held (seed 0)"


# --- options beside each other -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("work")
def test_arms_stand_beside_the_reference_and_the_first_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "cluster_of", lambda: {"a": "one", "b": "two"})

    def keep_arm(arm: str, values: dict[str, float]) -> None:
        for half, (query_id, value) in zip(choices.HALVES, values.items(), strict=True):
            of_k = {str(top_k): {query_id: value} for top_k in choices.TOP_KS}
            record = {"hardware": "any", "reads": 10, "f1": {str(share): of_k for share in choices.SHARES}}
            kept.measured(choices.kept_at(arm, half), choices.made_with(arm), lambda record=record: record)

    gae = "... advantage gae"
    assert choices.row(gae) == f"| {gae} | not run |" + " |" * 8
    keep_arm(choices.REFERENCE_ARM, {"a": 0.25, "b": 0.25})
    keep_arm(choices.DEFAULT_ARM, {"a": 0.5, "b": 0.5})
    keep_arm(gae, {"a": 0.25, "b": 0.75})
    first, other = (cells(choices.row(arm)) for arm in (choices.DEFAULT_ARM, gae))
    assert first[1:] == ["+0.250 [+0.250, +0.250]", "", *["+0.250 [+0.250, +0.250]", ""] * 3, "10"]
    assert other[1:3] == ["+0.250 [+0.000, +0.500]", "+0.000 [-0.250, +0.250]"]


# --- cost --------------------------------------------------------------------------------------------------------


def keep_cost(name: str, seconds: float, machine: str = "this one") -> None:
    record = {
        "machine": machine,
        "seconds": seconds,
        "parts": dict.fromkeys(cost.PARTS, 0.1),
        "reads": 8,
        "peak_mib": 9,
    }
    kept.measured(*cost.kept_at(name), lambda: record)


@pytest.mark.usefixtures("work")
def test_a_loop_is_compared_with_the_plain_one_of_its_precision() -> None:
    shape = next(iter(cost.SHAPES))
    for loop, seconds in (("rankwright", 2.0), ("plain", 3.0), ("rankwright, bf16", 1.0), ("plain, bf16", 1.25)):
        keep_cost(f"{shape}, {loop}, 0", seconds)
    assert [cells(line)[-1] for line in cost.shape_lines(shape)] == ["1.50x", "", "1.25x", ""]
    assert "not run" in cost.shape_lines(list(cost.SHAPES)[1])[0]


@pytest.mark.usefixtures("work")
def test_times_of_two_machines_are_not_of_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = list(cost.tasks())[:2]
    monkeypatch.setattr(cost, "machine", lambda: "another")
    monkeypatch.setattr(cost, "step_cost", lambda **task: pytest.fail("nothing may be measured"))
    keep_cost(first, 2.0)
    with pytest.raises(SystemExit, match=r"This is another; .* has times of this one\. Move them away"):
        cost.run_one(second)
    cost.run_one(first)  # is there, so nothing is to be measured
    assert cost.machines() == ["this one"]


# --- the make target ---------------------------------------------------------------------------------------------


def run_make(folder: Path, *failing: str) -> tuple[int, list[str]]:
    """Exit code of `make benchmarks` in a folder, and what its Python was called with."""
    notes, python = folder / "notes", folder / "bin" / "python"
    python.parent.mkdir()
    fails = "".join(f'*"{words}"*) exit 5;; ' for words in failing)
    python.write_text(f'#!/bin/sh\necho "$@" >> {notes}\ncase "$*" in {fails}*) exit 0;; esac\n')
    python.chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt", "MADE", "DEMO_INSTALLED", "ALL_INSTALLED"):
        (folder / name).touch()
    installed = [f"{name}={folder / name}" for name in ("MADE", "DEMO_INSTALLED", "ALL_INSTALLED")]
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
    run = subprocess.run(
        ["make", "-f", ROOT / "Makefile", "benchmarks", f"BIN={python.parent}", *installed, "JOBS=2"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, notes.read_text("utf-8").splitlines()


def test_make_benchmarks_measures_on_where_a_program_fails_and_fails_at_the_end(tmp_path: Path) -> None:
    code, called = run_make(tmp_path, "calls run")
    assert code == 2
    programs = [line.split()[1:3] for line in called if "train_reader" not in line]
    names = ("cost", "calls", "protocol", "paper", "choices")
    assert programs == [[f"benchmarks.{name}", what] for name in names for what in ("run", "page")]


WEIGHTS = paper.READERS["another"]


@pytest.mark.parametrize(
    ("there", "trains"),
    [(None, True), (WEIGHTS, False), (kept.place(WEIGHTS.with_suffix(".offsets.json")), False)],
    ids=["neither", "weights", "offsets"],
)
def test_make_benchmarks_trains_the_other_reader_once_on_all_machines(
    there: Path | None, trains: bool, tmp_path: Path
) -> None:
    if there is not None:
        file = tmp_path / there.relative_to(ROOT)
        file.parent.mkdir(parents=True)
        file.touch()
    code, called = run_make(tmp_path)
    assert code == 0
    assert (paper.TRAIN_READERS.removeprefix("python ") in called) == trains
    assert "-m benchmarks.paper run --jobs 2" in called
