"""Alarms: each rule on synthetic logs, what a run does with them, and some failures planted in a small world (all of
them: tests/gates/test_gate_alarms.py)."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwright.alarms import LONG, RULES, Watch, alarms_in
from rankwright.algorithms import RRPO, RRPOConfig
from rankwright.algorithms.guards import leak_share
from rankwright.errors import ConfigurationError, TrainingError
from rankwright.llms.cache import ReadStore
from rankwright.maths.order import input_order
from rankwright.readers import CachedReader
from rankwright.reading import agreement, holdout_metric
from rankwright.rewards import answer_reward
from rankwright.training import dev_scorer, train
from rankwright.types import Answer, Context, Document, Example, Outcome, Query, ReadFailed, ReadResult
from tests.planted import PLANTED, RIGHT, Believer, Changed, World, healthy, questions
from tests.toy import ToyPolicy, ToyReader, examples

Row = dict[str, Any]
INF = math.inf


def log(lines: int = 40, **columns: Callable[[int], float | None] | float | None) -> list[Row]:
    """A healthy log, noisy as real ones are, with these columns instead; a function is given the line's number."""
    draw = random.Random(0)
    rows: list[Row] = []
    for i in range(lines):
        row: Row = {
            "step": i + 1,
            "loss": draw.uniform(-0.5, 0.5),
            "grad_norm": 5 * draw.uniform(0.3, 4),
            "reward": 0.3 + 0.2 * draw.random() + 0.002 * i,
            "reference_reward": 0.4 + 0.1 * draw.random(),
            "no_document_reward": 0.05,
            "zero_variance_share": draw.choice([0.25, 0.5, 0.75, 1.0]),
            "reader_calls": 40.0,
            "cache_hits": 10.0,
            "failed_reads": 0.0,
            "skipped_steps": 0.0,
            "kl": 0.01,
            "exact_kl": 0.01 * i * draw.uniform(0.5, 1.5),
            "entropy": 1.2 * draw.uniform(0.4, 1.0),
            "score_spread": 2 * draw.uniform(0.7, 1.5),
            "tied_share": 0.01,
            "position_correlation": 0.3 * draw.uniform(0.0, 2.0),
            "reference_position_correlation": 0.3 * draw.uniform(0.0, 2.0),
            "reward_agreement": draw.uniform(0.5, 1.0),
            "leak_share": draw.choice([0.0, 0.0, 0.25]),
            "stale_share": None,
        }
        row |= {name: made(i) if callable(made) else made for name, made in columns.items()}
        rows.append(row)
    return rows


def dev(*values: tuple[float | None, float | None], every: int = 20) -> list[Row]:
    return [{"step": i * every, "eval_reward": one, "eval_holdout": two} for i, (one, two) in enumerate(values)]


def after(change: int, before: float, then: float) -> Callable[[int], float]:
    return lambda i: then if i >= change else before


def told(rows: list[Row]) -> dict[str, int]:
    return {alarm.name: alarm.step for alarm in alarms_in(rows)}


# --- rules

GOES_OFF: list[tuple[str, Mapping[str, Any], int]] = [
    ("kl_jump", {"exact_kl": after(20, 0.1, 1.6), "reward": 0.9}, 23),
    ("kl_jump", {"exact_kl": after(1, 0.0, 1.6), "reward": 0.9}, 3),
    ("drift", {"exact_kl": lambda i: 0.05 * i, "reward": 0.4, "reference_reward": 0.45}, 26),
    ("scores_equal", {"tied_share": after(10, 0.0, 1.0)}, 12),
    ("scores_equal", {"score_spread": after(10, 2.0, 0.01)}, 13),
    ("growth", {"score_spread": after(10, 2.0, 30.0)}, 12),
    ("growth", {"grad_norm": lambda i: 1.0 if i < 12 else 2.0 ** (i - 12)}, 21),
    ("not_a_number", {"skipped_steps": after(7, 0.0, 1.0)}, 8),
    ("not_a_number", {"kl": lambda i: None if i == 5 else 0.1}, 6),
    ("not_a_number", {"loss": lambda i: math.nan if i == 5 else 0.1}, 6),
    ("entropy_collapse", {"entropy": after(10, 1.2, 0.02), "reward": 0.4, "reference_reward": 0.4}, 20),
    ("constant_reward", {**dict.fromkeys(("reward", "reference_reward", "no_document_reward"), 0.0)}, 10),
    ("no_variance", {"zero_variance_share": 1.0}, 20),
    ("reward_against_answers", {"reward_agreement": after(10, 0.8, -0.5)}, 15),
    ("reward_against_answers", {"no_document_reward": 0.9}, 10),
    ("closed_book", {"no_document_reward": 0.38}, 10),
    ("answers_leak", {"leak_share": 0.5}, 5),
    ("position_only", {"position_correlation": after(10, 0.3, 0.99)}, 20),
    ("position_only", {"position_correlation": after(10, 0.3, -0.99)}, 20),
    ("stale_cache", {"stale_share": lambda i: 0.5 if i > 3 else None}, 5),
    ("failed_reads", {"failed_reads": 4.0}, 10),
]


@pytest.mark.parametrize(("name", "columns", "latest"), GOES_OFF)
def test_a_rule_goes_off_by_then_and_alone(name: str, columns: Mapping[str, Any], latest: int) -> None:
    if name == "constant_reward":
        columns = {**columns, "zero_variance_share": 1.0}
    alarms = told(log(**columns))
    assert set(alarms) == {name}
    assert alarms[name] <= latest


STAYS_QUIET: list[Mapping[str, Any]] = [
    {},
    {"exact_kl": lambda i: 0.05 * i, "reward": lambda i: 0.4 + 0.02 * i},  # a long way that pays
    {"exact_kl": lambda i: 2.0 if i % 5 == 0 else 0.1},  # single batches
    {"kl": lambda i: 9.0},  # the sampled estimate has no bound
    {"score_spread": lambda i: 0.05 if i == 20 else 2.0},
    {"grad_norm": lambda i: 300.0 if i == 20 else 5.0},
    {"grad_norm": lambda i: 20.0 if i > 20 else 1.0},
    {"grad_norm": None},  # fp16, whose scaler leaves such steps out
    {"entropy": after(10, 1.2, 0.02), "reward": after(10, 0.3, 0.9)},  # sure, and right
    {"zero_variance_share": None},  # one sample
    {"zero_variance_share": 1.0, "entropy": after(5, 1.2, 0.28)},  # alike because the policy is sure
    dict.fromkeys(("reward", "reference_reward"), 1.0) | {"zero_variance_share": 1.0, "entropy": 0.25},  # solved
    {"no_document_reward": 0.25},  # a reader that knows half by heart
    {"no_document_reward": 0.0, "reward": 0.0},  # of nothing, everything is 80 %
    {"reward_agreement": lambda i: random.Random(i).uniform(-0.3, 0.5)},
    {"reward_agreement": lambda i: -0.9 if i % 7 == 0 else 0.3},
    {"leak_share": lambda i: 0.25 * (i % 3 == 0)},
    {"position_correlation": 0.97, "reference_position_correlation": 0.95},  # as its reference does
    {"stale_share": 0.0},
    {"stale_share": 0.125},
    {"failed_reads": lambda i: 5.0 if i == 20 else 0.0},
]


@pytest.mark.parametrize("columns", STAYS_QUIET)
def test_noise_and_harmless_cases_set_nothing_off(columns: Mapping[str, Any]) -> None:
    assert told(log(lines=60, **columns)) == {}


@pytest.mark.parametrize("end", [0.0, 0.5])
def test_a_long_way_is_judged_by_dev_where_there_is_one(end: float) -> None:
    """The reward on the training questions rises either way."""
    rows = log(exact_kl=lambda i: 0.05 * i, reward=lambda i: 0.4 + 0.02 * i)
    whole = [*dev((0.3, 0.3), (0.3 + end, 0.3 + end)), *rows]
    assert set(told(whole)) == (set() if end else {"drift"})


@pytest.mark.parametrize(
    ("values", "goes_off"),
    [
        ([(0.4, 0.4), (0.45, 0.38)], True),
        ([(0.4, 0.4), (0.449, 0.38)], False),
        ([(0.4, 0.4), (0.5, 0.381)], False),
        ([(0.4, 0.4), (0.5, 0.4), (0.5, 0.3)], True),
        ([(0.4, 0.4), (0.2, 0.2), (0.4, 0.4)], False),
        ([(0.4, None), (0.5, None)], False),
        ([(None, 0.4), (0.5, 0.1)], False),
        ([(0.4, 0.1)], False),
    ],
)
def test_the_reward_that_rises_while_the_holdout_falls(
    values: list[tuple[float | None, float | None]], goes_off: bool
) -> None:
    """By 0.05 and 0.02 since before training."""
    assert set(told(dev(*values))) == ({"holdout_falls"} if goes_off else set())


def test_a_log_of_learning_from_labels_sets_nothing_off() -> None:
    names = ("step", "loss", "grad_norm", "entropy", "skipped_steps")
    rows = [{name: row[name] for name in names} for row in log(entropy=after(5, 1.2, 0.001))]
    assert told([*dev((0.4, 0.4), (0.4, 0.4)), *rows]) == {}


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([*log(1)[0], "eval_reward", "eval_holdout"]),
            st.one_of(st.none(), st.floats(), st.sampled_from([0.0, 1.0, INF, math.nan])),
        ),
        max_size=40,
    )
)
def test_no_log_is_too_strange(rows: list[Row]) -> None:
    alarms_in({**row, "step": i} for i, row in enumerate(rows))


def test_an_alarm_is_told_once_with_all_that_helps() -> None:
    watch = Watch()
    news = [alarm for row in log(exact_kl=after(20, 0.1, 1.6), reward=0.9) for alarm in watch.see(row)]
    assert news == watch.alarms
    (alarm,) = news
    text = str(alarm)
    assert text.startswith("Alarm kl_jump at step 22: the KL to the reference rose by 1.")
    assert all(part in text for part in (alarm.seen, alarm.wanted, alarm.cause, "Lower loop.learning_rate."))


def test_rules_have_names_of_their_own_and_whole_sentences() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES) == 15
    for rule in RULES:
        assert rule.cause.endswith(".")
        assert rule.knob.endswith(".")
        assert not rule.wanted.endswith(".")


def test_every_rule_is_tried_above() -> None:
    assert {name for name, _, _ in GOES_OFF} | {"holdout_falls"} == {rule.name for rule in RULES}


def test_the_page_has_a_row_for_every_rule() -> None:
    page = (Path(__file__).parents[1] / "docs" / "rrpo.md").read_text("utf-8").partition("\n## Alarms\n")[2]
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (.+) \| (.+) \|$", page.partition("\n## ")[0], re.MULTILINE)
    assert rows == [(rule.name, rule.cause, rule.knob) for rule in RULES]


def test_long_logs_take_no_longer_per_line() -> None:
    """A rule that went over the whole log at each line would look at 50 million values."""
    counted = 0

    class Counting(dict[str, Any]):
        def get(self, *key: Any) -> Any:
            nonlocal counted
            counted += 1
            return super().get(*key)

    alarms_in(Counting(row) for row in log(lines=2000))
    assert counted < 2000 * 10 * LONG


# --- what the rules look at


def test_input_order_by_hand() -> None:
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, -INF], [2.0, 2.0, -INF, -INF], [5.0, *[-INF] * 3]])
    correlation, tied = input_order(scores)
    assert correlation.tolist()[:3] == [1.0, -1.0, 0.0]
    assert tied.tolist()[:3] == [0.0, 0.0, 1.0]
    assert math.isnan(correlation[3])
    assert math.isnan(tied[3])


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=7), st.integers(0, 3))
def test_input_order_by_counting_pairs(scores: list[int], padding: int) -> None:
    pairs = [(a, b) for i, a in enumerate(scores) for b in scores[i + 1 :]]
    wanted = sum((a > b) - (a < b) for a, b in pairs) / len(pairs), sum(a == b for a, b in pairs) / len(pairs)
    found = input_order(torch.tensor([[float(score) for score in scores] + [-INF] * padding]))
    assert [value.item() for value in found] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("rewards", "holdout", "wanted"),
    [
        ([0.0, 0.5, 1.0], [0.1, 0.2, 0.3], 1.0),
        ([1.0, 0.0, None], [0.0, 1.0, 1.0], -1.0),
        ([1.0, 1.0, 1.0], [0.0, 1.0, 1.0], None),
        ([1.0, 0.0], [0.0, None], None),
        ([], [], None),
    ],
)
def test_agreement(rewards: list[float | None], holdout: list[float | None], wanted: float | None) -> None:
    found = agreement(rewards, holdout)
    assert math.isnan(found) if wanted is None else found == pytest.approx(wanted)


def outcome(text: str | None, answers: tuple[str, ...] = ("red sea",)) -> Outcome:
    example = Example(Query("q", "where?"), (), answers)
    result: ReadResult = ReadFailed("planned") if text is None else Answer(text)
    return Outcome(example, Context(example.query, ()), result, 1, "q")


@pytest.mark.parametrize(
    ("reward", "text", "answers", "wanted"),
    [
        ("f1", "by the red sea", ("red sea",), 1.0),
        ("em", "by the red sea", ("red sea",), 0.8),
        ("sub_em", "by the red sea", ("red sea",), 0.8),
        ("em", None, ("red sea",), None),
        ("em", "x", (), None),
    ],
)
def test_the_holdout_is_another_measure_than_the_reward(
    reward: str, text: str | None, answers: tuple[str, ...], wanted: float | None
) -> None:
    assert holdout_metric(answer_reward(reward))(outcome(text, answers)) == wanted


@pytest.mark.parametrize(
    ("question", "answers", "passages", "leaks"),
    [
        ("Who is it?", ["Ida Moss"], ["Ida Moss keeps the light since 1931."], False),
        ("Is Ida Moss the keeper?", ["Ida Moss"], [], True),
        ("Who is it?", ["Ida Moss"], ["It is red.", "Answer: Ida Moss"], True),
        ("Are there no keepers?", ["no"], ["no"], False),
        ("Who is it?", [], ["x"], False),
        ("Who is it?", ["?"], ["?"], False),
        ("Where is it?", ["UK", "United Kingdom of Great Britain"], ["Ann was born in the UK."], False),
        (
            "Where is it?",
            ["UK", "United Kingdom of Great Britain"],
            ["It is the United Kingdom of Great Britain."],
            True,
        ),
    ],
)
def test_leaks(question: str, answers: list[str], passages: list[str], leaks: bool) -> None:
    documents = tuple(Document(str(i), text) for i, text in enumerate(passages))
    tight = Example(Query("q", question), documents, tuple(answers))
    assert leak_share([tight]) == float(leaks)
    assert leak_share([tight, Example(Query("r", "What?"), (), ("x",))]) == float(leaks) / 2


# --- the cache that no longer holds


@pytest.mark.parametrize("rereads", [0, 3, 100])
def test_stored_answers_are_read_again_as_often_as_said(tmp_path: Path, rereads: int) -> None:
    rows = questions(10, 4, 0)
    contexts = [Context(row.query, row.candidates) for row in rows]
    asked: list[int] = []

    class Asked(Changed):
        def answer(self, contexts: Any) -> list[ReadResult]:
            asked.append(len(contexts))
            return super().answer(contexts)

    with ReadStore(tmp_path / "s.sqlite") as store:
        first = CachedReader(Believer(), store, run="first", rereads=rereads)
        before = first.answer(contexts)
        assert math.isnan(first.stale_share)  # all were new
        first.answer(contexts)
        second = CachedReader(Asked(), store, run="second", rereads=rereads)
        after = [second.answer(contexts) for _ in range(2)]
        assert first.stale_share == 0.0 if rereads else math.isnan(first.stale_share)
        assert second.stale_share == 1.0 if rereads else math.isnan(second.stale_share)
        assert sum(asked) == min(rereads, 2 * len(contexts))
        assert (second.paid, second.hits) == (0, 2 * len(contexts))
        assert store.ledger.totals("second").calls == 0
    for results in after:
        assert [r.text for r in results if isinstance(r, Answer)] == [r.text for r in before if isinstance(r, Answer)]


def test_what_fails_when_read_again_says_nothing(tmp_path: Path) -> None:
    contexts = [Context(row.query, row.candidates) for row in questions(3, 4, 0)]

    class Down(Believer):
        def answer(self, contexts: Any) -> list[ReadResult]:
            return [ReadFailed("planned") for _ in contexts]

    with ReadStore(tmp_path / "s.sqlite") as store:
        CachedReader(Believer(), store).answer(contexts)
        reader = CachedReader(Down(), store, rereads=8)
        assert all(isinstance(result, Answer) for result in reader.answer(contexts))
        assert math.isnan(reader.stale_share)


def test_equal_contexts_of_a_batch_cost_one_read_answered_or_not(tmp_path: Path) -> None:
    contexts = [Context(row.query, row.candidates) for row in questions(1, 4, 0)]

    class Down(Believer):
        def answer(self, contexts: Any) -> list[ReadResult]:
            return [ReadFailed("planned") for _ in contexts]

    for reader, hits in ((Believer(), len(contexts)), (Down(), 0)):
        with ReadStore(tmp_path / f"{hits}.sqlite") as store:
            cached = CachedReader(reader, store, run="a")
            paid = [result.paid for result in cached.answer([*contexts, *contexts])]
            assert paid == [True] * len(contexts) + [False] * len(contexts)
            assert store.ledger.totals("a").calls == len(contexts)
            assert cached.hits == hits


# --- in a run


def leaking(folder: Path, **more: Any) -> Any:
    """A run over questions that name their answer: the alarm goes off at step 5 of 10."""
    rows = [replace(row, query=replace(row.query, text="is it seven?")) for row in examples(20)]
    reader, reward = ToyReader(), answer_reward("f1")
    resume = more.pop("resume", False)
    config = replace(World().loop, batch_size=2, epochs=1, eval_steps=3, **more)
    algorithm, score_dev = RRPO(RRPOConfig(), reader, reward), dev_scorer(rows[:4], reader, reward, 1)
    return train(ToyPolicy(), ToyPolicy(), algorithm, rows, config, folder, score_dev=score_dev, resume=resume)


def alarm_lines(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / "alarms.jsonl").read_text("utf-8").splitlines()]


def test_a_run_tells_its_alarms(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = leaking(tmp_path)
    (alarm,) = result.alarms
    assert (alarm.name, alarm.step, result.steps) == ("answers_leak", 5, 10)
    assert [record.getMessage() for record in caplog.records] == [str(alarm)]
    assert alarm_lines(tmp_path) == [asdict(alarm)]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert alarms_in(rows) == [alarm]


def test_a_run_stops_at_an_alarm_where_it_is_told_to_and_can_go_on(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^Alarm answers_leak at step 5: .* loop\.stop_on_alarm is true; --resume"):
        leaking(tmp_path, stop_on_alarm=True)
    with pytest.raises(TrainingError, match="Alarm answers_leak at step 5"):  # from the checkpoint of step 3
        leaking(tmp_path, stop_on_alarm=True, resume=True)
    result = leaking(tmp_path, resume=True)
    assert (result.steps, [alarm.step for alarm in result.alarms]) == (10, [5])
    assert [row["step"] for row in alarm_lines(tmp_path)] == [5]


def test_alarms_of_before_a_break_are_kept_and_not_told_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = leaking(tmp_path)
    caplog.clear()
    again = leaking(tmp_path, resume=True)  # has ended
    assert again.alarms == whole.alarms
    assert not any(str(alarm) in caplog.messages for alarm in whole.alarms)
    assert alarm_lines(tmp_path) == [asdict(alarm) for alarm in whole.alarms]


def test_a_new_run_begins_without_the_alarms_of_the_one_before(tmp_path: Path) -> None:
    leaking(tmp_path)
    assert World(steps=2).alarms(tmp_path) == {}


def test_stop_on_alarm_is_yes_or_no() -> None:
    with pytest.raises(ConfigurationError, match=r"loop\.stop_on_alarm is 'never'"):
        replace(World().loop, stop_on_alarm="never")  # pyright: ignore[reportArgumentType]


# --- failures planted in a small world

QUICK = {
    "constant reward": 12,
    "flipped reward": 8,
    "answers leaking": 8,
    "stale cache": 3,
    "position-only policy": 12,
    "NaN creep": 12,
}
"""Those that show within few steps -> steps."""


@pytest.mark.parametrize("kind", QUICK)
def test_a_planted_failure_is_named(tmp_path: Path, kind: str) -> None:
    world, names = PLANTED[kind]
    assert names & set(replace(world, steps=QUICK[kind]).alarms(tmp_path))


@pytest.mark.parametrize("number", range(2))
def test_a_healthy_run_sets_nothing_off(tmp_path: Path, number: int) -> None:
    assert replace(healthy(number), steps=25).alarms(tmp_path) == {}


def test_the_world_is_one_in_which_something_can_be_learned() -> None:
    """Or a healthy run in it would prove nothing: the reader is right with rain first, wrong with river."""
    rain, river, moon = Document("1", "rain ab"), Document("2", "river ab"), Document("3", "moon ab")
    contexts = [Context(Query("q", "cd?"), chosen) for chosen in ((moon, rain, river), (river, rain), (moon,), ())]
    says = [answer.text for answer in Believer().answer(contexts) if isinstance(answer, Answer)]
    assert (says[0], says[2:]) == (RIGHT, ["", ""])
    assert says[1] not in (RIGHT, "")
    assert {len({word.text.split()[0] for word in row.candidates}) for row in questions(5, 6, 1)} == {3}
