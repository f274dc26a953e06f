"""Budgets: bounds of what comes next, limits held against the ledger, and training that stops in time."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankwright.algorithms import RRPO, RRPOConfig
from rankwright.algorithms.config import TrainConfig
from rankwright.budget import FREE, Ahead, Bill, Budget, BudgetConfig, Costs, _rounded_up, total
from rankwright.errors import ConfigurationError, LimitReachedError, StorageError
from rankwright.llms.cache import LedgerEntry, LedgerTotals, ReadStore
from rankwright.llms.calls import Prices, input_tokens_at_most, output_limit, price_text
from rankwright.readers import CachedReader
from rankwright.rewards import answer_reward
from rankwright.training import Schedule, TrainResult, dev_scorer, train
from rankwright.types import Context, Document, Example, LLMRequest, Query
from tests.toy import ToyPolicy, ToyReader, examples

NOTHING = LedgerTotals(0, 0, 0, 0, 0, 0, 0.0, 0, 0, 0.0)


DEV = 40
"""Dev questions in the toy world: so many that a bound without their reads would be found out."""


def question(name: str, *texts: str) -> Example:
    return Example(Query(name, "ab"), tuple(Document(str(i), text) for i, text in enumerate(texts)), ("x",))


def letters(context: Context) -> int:
    return len(context.query.text) + sum(len(document.text) for document in context.documents)


def costs(tokens_of: Callable[[Context], int] = letters, **changes: Any) -> Costs:
    """A question costs a read for each candidate in training; 2 passages there and 1 elsewhere."""
    values: dict[str, Any] = {
        "output_tokens": 5,
        "reads_per_question": lambda candidates: candidates,
        "train_k": 2,
        "train": [],
        "dev": [],
        "test": [],
        "top_k": 1,
        "orders": 3,
    }
    return Costs(tokens_of, **{**values, **changes})


# --- bounds


def test_a_visit_costs_its_reads_each_as_long_as_its_longest_passages() -> None:
    one, two = question("a", "1234", "12", "123"), question("b", "1")
    # a: 3 reads of 2 + 4 + 3 letters, b: 1 read of 2 + 1.
    assert costs().training([one, two, one]) == Bill(7, 2 * 3 * 9 + 3, 35)


def test_no_reads_cost_nothing() -> None:
    assert costs(reads_per_question=lambda _: 0).training([question("a", "1")]) == Bill(0, 0, 0)


def test_a_reader_that_cuts_may_read_most_of_a_single_passage() -> None:
    """As the embedded one, which gives each of several passages a share."""

    def shared(context: Context) -> int:
        room = 6 // max(1, len(context.documents) ** 2)
        return sum(min(room, len(document.text)) for document in context.documents)

    assert shared(Context(Query("a", ""), (Document("1", "123456"), Document("2", "12345")))) == 2
    assert costs(shared).training([question("a", "12345", "123456")]) == Bill(2, 2 * 6, 10)


def test_an_evaluation_reads_every_dev_question_and_a_comparison_every_order() -> None:
    short, long = question("a", "1"), question("b", "123", "12", "1", "")
    found = costs(dev=[short, long], test=[short, long, question("c")])
    assert found.evaluation == Bill(2, 3 + 5, 10)
    # One passage has one order, four have three of three; without candidates it is asked all the same.
    assert found.comparison == Bill(1 + 3 + 1, 3 + 3 * 5 + 2, 25)
    assert costs(test=[question("d", "1", "2")], top_k=2).comparison.calls == 2  # two orders of two passages
    assert found.ahead(Ahead([long], 2)) == total([Bill(4, 4 * 7, 20), found.evaluation, found.evaluation])
    assert found.longest_read.input_tokens == 5
    assert costs(train=[long], dev=[short]).longest_read.input_tokens == 7


def test_questions_of_train_dev_and_test_may_share_their_ids() -> None:
    """As rows that are numbered in each file: the bound of one is not that of the others."""
    train, dev, test = question("1", "1"), question("1", "12345"), question("1", "123")
    found = costs(train=[train], dev=[dev], test=[test], train_k=1)
    assert found.training([train]).input_tokens == 2 + 1
    assert found.evaluation.input_tokens == 2 + 5
    assert found.comparison.input_tokens == 2 + 3
    assert found.longest_read.input_tokens == 2 + 5


def test_answers_without_a_limit_have_no_bound() -> None:
    found = costs(output_tokens=None, dev=[question("a", "1")])
    assert found.evaluation + Bill(1, 1, 1) == Bill(2, 4, None)
    assert total([]) == Bill()


@pytest.mark.parametrize(
    ("sampling", "limit"),
    [
        ({"max_tokens": 64, "temperature": 0.0}, 64),
        ({"max_completion_tokens": 2000}, 2000),
        ({"max_tokens": 64, "max_completion_tokens": 10}, 64),
        ({"temperature": 1}, None),
        ({"max_tokens": "many"}, None),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 0}, None),
        ({"max_tokens": math.inf}, None),
        ({"max_tokens": math.nan}, None),
    ],
)
def test_how_long_an_answer_may_be(sampling: dict[str, Any], limit: int | None) -> None:
    assert output_limit(sampling) == limit


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_tokenizer_makes_more_tokens_than_bytes(text: str) -> None:
    assert input_tokens_at_most(LLMRequest((("user", text),))) >= len(text.encode())


# --- limits


def budget(spent: LedgerTotals = NOTHING, prices: Prices | None = FREE, **limits: Any) -> Budget:
    return Budget(BudgetConfig(**limits), costs(train=[question("a", "12345678")]), prices, lambda: spent)


@pytest.mark.parametrize("field", ["reader_calls", "cost", "hours"])
def test_a_limit_below_zero_is_refused(field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"budget\.{field} is -1; wanted 0 or more"):
        BudgetConfig(**{field: -1})


def test_calls_may_reach_their_limit_and_not_one_more() -> None:
    spent = replace(NOTHING, calls=90)
    assert budget(spent, reader_calls=100).refusal(Bill(10), "the next step") is None
    assert budget(spent, reader_calls=100).refusal(Bill(11), "the next step") == (
        "The run has made 90 reader calls and the next step may make 11 more; wanted at most 100 in all "
        "(--max-reader-calls; 101 would do for that)."
    )


def test_without_limits_the_ledger_is_not_asked() -> None:
    def never() -> LedgerTotals:
        raise AssertionError

    unlimited = Budget(BudgetConfig(), costs(), None, never)
    assert unlimited.refusal(Bill(10**9, 10**9, None), "all") is None
    assert unlimited.training(Ahead([question("a", "1")], 1, 1e9)) is None
    assert Budget(BudgetConfig(reader_calls=1), costs(), None, never).reads([], "all") is None  # no questions, no calls


def test_cost_is_what_was_paid_and_the_tokens_to_come() -> None:
    spent, prices = replace(NOTHING, calls=1, known_price=0.5), Prices(1.0, 2.0)
    bill = Bill(10, 100_000, 200_000)  # 0.1 + 0.4
    assert budget(spent, prices, cost=1.0).refusal(bill, "the next step") is None
    assert budget(spent, prices, cost=0.999).refusal(bill, "the next step") == (
        "The run has cost 0.5000 and the next step may cost 0.5000 more; wanted at most 0.999 in all (--max-cost; "
        "1.0000 would do for that)."
    )


def test_what_was_spent_besides_counts_too() -> None:
    spent, prices = replace(NOTHING, calls=5, known_price=0.5), Prices(1.0, 1.0)

    def refused(**limits: Any) -> str | None:
        both = Budget(BudgetConfig(**limits), costs(), prices, lambda: spent, lambda: (7, 0.25))
        return both.refusal(Bill(3, 100_000, 0), "all")

    assert refused(reader_calls=15, cost=0.85) is None
    assert "has made 5 reader calls and 7 besides (query expansion) and all may make 3 more" in str(
        refused(reader_calls=14)
    )
    assert "has cost 0.7500 and all may cost 0.1000 more" in str(refused(cost=0.84))


def test_a_server_that_bills_more_than_the_bound_is_believed() -> None:
    """The dearest call so far, for each of the calls to come."""
    spent = replace(NOTHING, calls=1, known_price=0.1, highest_price=0.1)
    assert budget(spent, Prices(1.0, 1.0), cost=1.1).refusal(Bill(10, 10, 10), "all") is None
    refused = budget(spent, Prices(1.0, 1.0), cost=1.0).refusal(Bill(10, 10, 10), "all")
    assert refused is not None
    assert "may cost 1.0000 more" in refused


def test_calls_of_unknown_price_count_as_the_dearest_and_never_as_nothing() -> None:
    """Two attempts of 10 letters in and 5 tokens out."""
    spent = replace(NOTHING, calls=1, unpriced_calls=1, unpriced_attempts=2, attempts=2)
    prices = Prices(100_000.0, 0.0)  # 0.1 a token
    assert budget(spent, prices, cost=2.1).refusal(Bill(1, 1, 0), "all") is None
    refused = budget(spent, prices, cost=2.0).refusal(Bill(1, 1, 0), "all")
    assert refused is not None
    assert "has cost 2.0000 (1 calls of unknown price counted as the dearest there can be)" in refused


def test_unknown_prices_and_endless_answers_allow_nothing() -> None:
    for found in (budget(prices=None, cost=1e9), budget(prices=Prices(1, 1), cost=1e9)):
        assert found.refusal(Bill(1, 1, None), "all") is not None
    assert budget(cost=1.0).refusal(Bill(10**6, 10**6, 10**6), "all") is None  # free


def test_hours_end_training_when_they_are_over() -> None:
    limited = budget(hours=0.5)
    assert limited.training(Ahead([], 0, 1799.9)) is None
    assert limited.training(Ahead([], 0, 1800.0)) == "Training has taken 0.5 hours; wanted at most 0.5 (--max-hours)."
    assert limited.reads([Context(Query("a", "?"), ())], "all") is None


def test_a_damaged_row_of_the_ledger_counts_as_a_call_of_the_run() -> None:
    spent = replace(NOTHING, calls=2, damaged=1)
    assert budget(spent, reader_calls=4).refusal(Bill(1), "all") is None
    refused = budget(spent, reader_calls=3).refusal(Bill(1), "all")
    assert refused is not None
    assert "has made 2 reader calls and perhaps 1 that are damaged rows of the ledger" in refused
    prices = Prices(100_000.0, 0.0)  # 0.1 a token
    assert budget(spent, prices, cost=1.1).refusal(Bill(1, 1, 0), "all") is None
    refused = budget(spent, prices, cost=1.0).refusal(Bill(1, 1, 0), "all")
    assert refused is not None
    assert "has cost 1.0000 (1 calls of unknown price counted" in refused


def test_a_ledger_that_lost_calls_is_no_ground_for_more() -> None:
    sums = iter([replace(NOTHING, calls=5), replace(NOTHING, calls=4)])
    limited = Budget(BudgetConfig(reader_calls=100), costs(), FREE, lambda: next(sums))
    assert limited.refusal(Bill(1), "all") is None
    with pytest.raises(StorageError, match=r"had 5 calls and now has 4; wanted all .* without limits"):
        limited.refusal(Bill(1), "all")


def test_the_ledger_tells_what_a_budget_asks(tmp_path: Path) -> None:
    with ReadStore(tmp_path / "x.sqlite") as store:
        assert store.ledger.totals("a") == NOTHING
        entry = LedgerEntry("a", "m", "ok", 1, 1, 1, 0.25)
        lost = replace(entry, outcome="timeout", attempts=3, price=None)
        store.put_many({}, [entry, replace(entry, price=0.5), lost, lost, replace(entry, run="b", price=9.0)])
        found = store.ledger.totals("a")
    assert (found.calls, found.known_price, found.highest_price) == (4, 0.75, 0.5)
    assert (found.unpriced_calls, found.unpriced_attempts) == (2, 6)


# --- training


class Counting(ToyReader):
    """Counts calls; can stand behind a cache."""

    def cache_key(self, context: Context) -> str:
        return " ".join([context.query.query_id, *(document.doc_id for document in context.documents)])


def once(
    folder: Path,
    reader: Any,
    rrpo: RRPOConfig,
    config: TrainConfig,
    may_go_on: Callable[[Ahead], str | None] | None = None,
    *,
    questions: Sequence[Example] = (),
    resume: bool = False,
) -> TrainResult:
    policy, reward = ToyPolicy(), answer_reward("f1")
    algorithm = RRPO(rrpo, reader, reward, seed=1)
    dev = dev_scorer(examples(DEV), reader, reward, top_k=1)
    return train(
        policy,
        copy.deepcopy(policy),
        algorithm,
        questions or examples(11),
        config,
        folder,
        score_dev=dev,
        resume=resume,
        may_go_on=may_go_on,
    )


WORLDS = st.fixed_dictionaries(
    {
        "samples": st.integers(1, 3),
        "train_k": st.integers(1, 3),
        "inner_epochs": st.integers(1, 2),
        "batch_size": st.integers(1, 4),
        "accumulation": st.integers(1, 2),
        "eval_steps": st.integers(1, 4),
        "epochs": st.sampled_from([0.5, 1.0, 1.5]),
        "cached": st.booleans(),
        "fail_every": st.sampled_from([0, 50]),
        "cap": st.integers(1, 400),
    }
)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(world=WORLDS)
def test_a_limit_of_calls_is_never_exceeded(tmp_path_factory: pytest.TempPathFactory, world: dict[str, Any]) -> None:
    """Over random worlds, with and without a cache, over as many sessions as it takes with a limit that grows."""
    folder = tmp_path_factory.mktemp("world")
    rrpo = RRPOConfig(
        samples=world["samples"], train_k=world["train_k"], inner_epochs=world["inner_epochs"], max_failed_reads=1
    )
    config = TrainConfig(
        epochs=world["epochs"],
        batch_size=world["batch_size"],
        accumulation=world["accumulation"],
        eval_steps=world["eval_steps"],
        learning_rate=0.3,
    )
    toy = Counting(world["fail_every"])
    store = ReadStore(folder / "reads.sqlite") if world["cached"] else None
    reader = toy if store is None else CachedReader(toy, store, run="a")
    found = Costs(
        letters, 1, RRPO(rrpo, reader, answer_reward("f1")).reads_per_question, 3, [], examples(DEV), [], 1, 0
    )

    def spent() -> LedgerTotals:
        assert store is None or store.ledger.totals("a").calls == toy.calls
        return replace(NOTHING, calls=toy.calls)

    cap = world["cap"]
    with store or nullcontext():
        for session in itertools.count():
            limited = Budget(BudgetConfig(reader_calls=cap), found, FREE, spent)
            try:
                once(folder, reader, rrpo, config, limited.training, resume=session > 0)
                break
            except LimitReachedError as error:
                assert toy.calls <= cap
                wanted = int(str(error).split("--max-reader-calls; ")[1].split()[0])
                assert wanted > cap, "it could have gone on"
                cap = max(wanted, cap + 30)
        assert toy.calls <= cap


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("inner_epochs", [1, 2])
@pytest.mark.parametrize(("count", "epochs", "every"), [(11, 1.5, 2), (8, 2.0, 3), (4, 0.5, 1)])
def test_what_is_announced_is_what_comes(
    tmp_path: Path, count: int, epochs: float, every: int, inner_epochs: int, accumulation: int
) -> None:
    """Questions and evaluations, of a whole run and before each step; epochs end within accumulated batches too."""
    config = TrainConfig(
        epochs=epochs, batch_size=2, accumulation=accumulation, eval_steps=every, patience=0, learning_rate=0.1
    )
    rrpo = RRPOConfig(samples=1, train_k=1, inner_epochs=inner_epochs)
    announced: list[Ahead] = []
    read: list[list[str]] = []

    class Watching(ToyReader):
        """Dev has questions of its own; each question of a rollout is read without a document once."""

        def answer(self, contexts: Sequence[Context]) -> Any:
            bare = [c.query.query_id for c in contexts if not c.documents]
            dev = not bare
            read[-1].extend(["dev"] if dev else bare)
            return super().answer(contexts)

    def note(ahead: Ahead) -> None:
        announced.append(ahead)
        read.append([])

    once(tmp_path, Watching(), rrpo, config, note, questions=examples(count))
    for ahead, made in zip(announced, read, strict=True):
        names = [e.query.query_id for e in ahead.examples] + ["dev"] * ahead.evaluations
        # At the end of an epoch it is asked twice, and nothing lies between.
        assert not made or sorted(made) == sorted(names)
    whole = list(Schedule(examples(count), config, inner_epochs, 0, has_dev=True).whole())
    came = [(made, ahead) for ahead, made in zip(announced, read, strict=True) if made]
    assert [ahead.examples for _, ahead in came] == [ahead.examples for ahead in whole]
    assert [ahead.evaluations for _, ahead in came] == [ahead.evaluations for ahead in whole]


def test_the_order_of_an_epoch_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run looks at every step of millions of questions."""
    drawn, plain = list[int](), torch.randperm

    def randperm(count: int, **given: Any) -> torch.Tensor:
        drawn.append(count)
        return plain(count, **given)

    monkeypatch.setattr(torch, "randperm", randperm)
    schedule = Schedule(examples(20), TrainConfig(epochs=3, batch_size=4), 1, 0, has_dev=False)
    assert len(list(schedule.whole())) == 15
    assert drawn == [20] * 3


def test_hours_are_counted_over_all_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a minute whenever it is looked at, and by a day between sessions."""
    clock = SimpleNamespace(now=0.0)

    def look() -> float:
        clock.now += 60
        return clock.now

    monkeypatch.setattr("rankwright.training.time", SimpleNamespace(monotonic=look))
    rrpo, config = RRPOConfig(samples=1, train_k=1), TrainConfig(epochs=4, batch_size=4, eval_steps=100)
    taken: list[float] = []

    def session(hours: float, resume: bool) -> TrainResult:
        limited = Budget(BudgetConfig(hours=hours), costs(reads_per_question=lambda _: 0), FREE, lambda: NOTHING)

        def may_go_on(ahead: Ahead) -> str | None:
            taken.append(ahead.seconds / 3600)
            return limited.training(ahead)

        return once(tmp_path, ToyReader(), rrpo, config, may_go_on, resume=resume)

    with pytest.raises(
        LimitReachedError, match=r"Training has taken 0\.\d+ hours; wanted at most 0\.5 .*saved at step"
    ):
        session(0.5, resume=False)
    assert taken[-1] >= 0.5 > taken[-2]
    stopped = taken[-1]
    clock.now += 86_400
    with pytest.raises(LimitReachedError, match=r"All is saved at step [1-9]"):
        session(0.5, resume=True)
    assert stopped <= taken[-1] < stopped + 0.2
    result = session(100, resume=True)
    assert stopped * 3600 < result.seconds < 86_400
    assert result.steps == 12


def test_a_limit_below_the_first_step_spends_nothing_and_leaves_the_earlier_run(tmp_path: Path) -> None:
    config = TrainConfig(epochs=1, batch_size=4, eval_steps=2)
    once(tmp_path, ToyReader(), RRPOConfig(), config)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    reader = Counting()
    with pytest.raises(
        LimitReachedError, match=r"^No\. Training has not begun: give the same command with a higher"
    ) as e:
        once(tmp_path, reader, RRPOConfig(), config, lambda _: "No.")
    assert e.value.exit_code == 9
    assert reader.calls == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_that_has_ended_is_not_asked(tmp_path: Path) -> None:
    config = TrainConfig(epochs=1, batch_size=4, eval_steps=2)
    once(tmp_path, ToyReader(), RRPOConfig(), config)
    assert once(tmp_path, ToyReader(), RRPOConfig(), config, lambda _: "No.", resume=True).steps == math.ceil(11 / 4)


def test_a_small_limit_of_cost_is_not_rounded_away() -> None:
    assert (price_text(0.00012), _rounded_up(0.00012341), _rounded_up(0.0100001)) == (
        "0.0001200",
        "0.0001235",
        "0.0101",
    )
