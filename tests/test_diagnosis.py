"""`diagnose`: each verdict in a world made for it, ceilings against brute force, and what it costs."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.diagnosis import (
    MINIMUM_QUESTIONS,
    NUMBERS,
    THRESHOLDS,
    Diagnosis,
    DiagnosisSettings,
    _judged,
    _Question,
    diagnose,
    sample_questions,
)
from rankwright.errors import ConfigurationError, DataError, ReaderError, RewardError
from rankwright.evaluation import FirstStage, GoldFirst, Score, evaluate
from rankwright.llms.cache import CachedLLM, ReadStore
from rankwright.readers import CachedReader, LLMReader
from rankwright.rewards import answer_reward
from rankwright.types import (
    Answer,
    Completion,
    CompletionResult,
    Context,
    Document,
    Example,
    LLMRequest,
    Outcome,
    Query,
    Ranking,
    Reader,
    ReadFailed,
    ReadResult,
    RerankRequest,
    RewardValue,
    as_documents,
    as_query,
)
from tests.toy import DOCUMENTS, ToyPolicy, ToyReader, examples

F1 = answer_reward("f1")
WITHOUT_SEVEN = tuple(document for document in DOCUMENTS if document.doc_id != "7")


class Says:
    """A reader whose answer is a function of the ids of its passages."""

    name = "says"

    def __init__(self, answer: Callable[[str, tuple[str, ...]], str]) -> None:
        self._answer = answer
        self.contexts: list[Context] = []

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        self.contexts.extend(contexts)
        return [Answer(self._answer(c.query.query_id, tuple(d.doc_id for d in c.documents))) for c in contexts]

    def cache_key(self, context: Context) -> str:
        return repr((context.query.query_id, [d.doc_id for d in context.documents]))


class Priced:
    """A reward that is a function of question and passages, for worlds that the rewards are known of."""

    name = "priced"

    def __init__(self, price: Callable[[str, tuple[str, ...]], float]) -> None:
        self._price = price

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        ids = (tuple(d.doc_id for d in o.context.documents) for o in outcomes)
        return [RewardValue(self._price(o.group_id, chosen)) for o, chosen in zip(outcomes, ids, strict=True)]


READER = Says(lambda *_: "")
"""For worlds whose rewards are priced without a look at the answer."""


def chance(*of: object) -> float:
    """A number from 0 to below 1 that looks random and is always the same."""
    return int.from_bytes(hashlib.sha256(repr(of).encode()).digest()[:6], "big") / 2**48


class Reference(ToyPolicy):
    """The toy world's policy, with the method for one query that a Reranker has."""

    def rerank(self, query: str | Query, documents: Sequence[str | Document], top_k: int | None = None) -> Ranking:
        (ranking,) = self.rerank_batch([RerankRequest(as_query(query), as_documents(documents))])
        return ranking.best(top_k)


def with_candidates(documents: Sequence[Document], count: int = 40) -> list[Example]:
    return [replace(example, candidates=tuple(documents)) for example in examples(count)]


def mean(diagnosis: Diagnosis, name: str) -> float:
    return diagnosis.means[name].mean


# --- verdicts ----------------------------------------------------------------------------------------------------


def test_training_can_pay_where_the_reference_hides_what_the_reader_needs() -> None:
    found = diagnose(examples(40), ToyReader(), F1, reference=Reference())
    assert found.verdict == "training can pay"
    assert "+1.000 [+1.000, +1.000] more than toy" in found.reason
    expected = {"found": 1, "no_documents": 0, "reference": 0, "gold_first": 1, "best_order": 1, "headroom": 1}
    assert {name: mean(found, name) for name in expected} == expected
    assert 0.2 < mean(found, "teaching") < 1.0
    assert mean(found, "order_noise") == mean(found, "closed_book") == 0.0
    assert all("7" in order for order in found.best_orders.values())


def test_the_retriever_is_the_limit_where_it_finds_nothing() -> None:
    found = diagnose(with_candidates(WITHOUT_SEVEN), ToyReader(), F1, reference=Reference())
    assert found.verdict == "limit: retriever"
    assert "only 0.0% [0.0%, 0.0%] of the questions" in found.reason
    assert (mean(found, "relevant_one"), mean(found, "lost_to_retriever"), mean(found, "lost_to_reader")) == (0, 1, 0)
    assert "gold_first" not in found.means


def test_the_retriever_is_the_limit_where_the_rest_is_solved() -> None:
    top = (DOCUMENTS[7], *WITHOUT_SEVEN)
    rows = [*with_candidates(top, 40)[:24], *with_candidates(WITHOUT_SEVEN, 40)[24:]]
    found = diagnose(rows, ToyReader(), F1)
    assert found.verdict == "limit: retriever"
    assert (mean(found, "found"), mean(found, "headroom"), mean(found, "lost_to_retriever")) == (0.6, 0.0, 0.4)


def test_the_reader_is_the_limit_where_it_makes_nothing_of_good_passages() -> None:
    found = diagnose(examples(40), Says(lambda *_: ""), F1, reference=Reference())
    assert found.verdict == "limit: reader"
    assert "with good passages first it earns 0.000" in found.reason
    assert mean(found, "lost_to_reader") == 1.0


def test_the_reader_is_the_limit_where_its_answers_stay_half_right() -> None:
    always = diagnose(examples(40), Says(lambda _, ids: "seven eight nine" if ids else ""), F1)
    assert (always.verdict, mean(always, "headroom"), mean(always, "lost_to_reader")) == ("limit: reader", 0.0, 0.5)
    half = Says(lambda _, ids: "seven eight nine" if "7" in ids else "")
    decided = diagnose(examples(40), half, F1, reference=Reference())  # half right, but the order decides
    assert (decided.verdict, mean(decided, "headroom")) == ("training can pay", 0.5)


def test_the_reader_is_the_limit_where_passages_give_it_nothing() -> None:
    def price(query_id: str, ids: tuple[str, ...]) -> float:
        return 0.6 + 0.3 * chance(query_id, ids) if "3" in ids else 0.6

    found = diagnose(examples(40), READER, Priced(price), top_k=1)
    assert (found.verdict, mean(found, "passage_gain")) == ("limit: reader", 0.0)
    assert "over no document at all" in found.reason
    assert found.means["headroom"].ci_low > 0.02


def test_the_data_is_the_limit_where_the_reader_knows_the_answers_by_heart() -> None:
    found = diagnose(examples(40), Says(lambda *_: "seven"), F1, reference=Reference())
    assert found.verdict == "limit: data"
    assert "100.0% [100.0%, 100.0%] of the questions are answered as well without documents" in found.reason


def test_a_reader_that_answers_nothing_does_not_know_by_heart() -> None:
    assert mean(diagnose(examples(40), Says(lambda *_: ""), F1), "closed_book") == 0.0


def test_the_data_is_the_limit_where_all_orders_are_equal() -> None:
    found = diagnose(examples(40), Says(lambda _, ids: "seven" if ids else ""), F1, reference=Reference())
    assert found.verdict == "limit: data"
    assert "solved as they are" in found.reason
    assert mean(found, "headroom") == mean(found, "teaching") == 0.0


def test_few_questions_with_headroom_are_no_proof_that_there_is_none() -> None:
    """Two of thirty hide what the reader needs: on average 0.067, which may be 0 and may be 0.17."""
    first, last = (DOCUMENTS[7], *WITHOUT_SEVEN), (*WITHOUT_SEVEN, DOCUMENTS[7])
    rows = [replace(row, candidates=last if i < 2 else first) for i, row in enumerate(examples(30))]
    found = diagnose(rows, ToyReader(), F1)
    headroom = found.means["headroom"]
    assert (headroom.mean, headroom.ci_low < 0.02 < headroom.ci_high) == (pytest.approx(2 / 30), True)
    assert found.verdict == "undecided"
    assert found.reason.endswith("and does not rule it out. Read more questions.")


def test_the_data_is_the_limit_where_no_sample_ever_differs() -> None:
    sure = Reference()
    with torch.no_grad():
        sure.scores.mul_(1_000)
    found = diagnose(examples(40), ToyReader(), F1, reference=sure)
    assert (found.verdict, mean(found, "headroom"), mean(found, "teaching")) == ("limit: data", 1.0, 0.0)
    assert "rrpo.temperature" in found.reason


def lucky(q: str, ids: tuple[str, ...]) -> str:
    """Right on half of the orders, whatever they hold."""
    return "seven" if ids and chance(q, ids) < 0.5 else ""


def test_the_best_of_many_lucky_orders_is_no_headroom() -> None:
    found = diagnose(examples(60), Says(lucky), F1, reference=Reference())
    assert found.means["headroom"].ci_low > 0.3
    assert found.means["gold_headroom"].ci_low <= 0
    assert found.verdict == "undecided"
    assert "may be luck" in found.reason
    top = [replace(example, candidates=(DOCUMENTS[7], *WITHOUT_SEVEN)) for example in examples(60)]
    settled = diagnose(top, Says(lucky), F1)  # gold first is what the first stage has, so nothing is open
    assert (settled.means["gold_headroom"][:3], settled.verdict) == ((0.0, 0.0, 0.0), "limit: data")


@pytest.mark.parametrize(
    ("gold", "verdict"),
    [((-0.01, 0.01), "limit: data"), ((-0.01, 0.03), "undecided"), ((0.005, 0.015), "training can pay")],
)
def test_a_small_headroom_of_marked_passages_is_a_limit_only_where_it_may_be_none(
    gold: tuple[float, float], verdict: str
) -> None:
    """Marked passages first are one order of many: that they earn more is no luck, and the best earns more yet."""
    found = diagnose(examples(40), ToyReader(), F1, reference=Reference())
    headroom, between = Score(0.05, 0.03, 0.07, 40), Score(sum(gold) / 2, *gold, 40)
    means = {**found.means, "headroom": headroom, "gold_headroom": between}
    assert _judged(means, found.settings)[0] == verdict


@pytest.mark.parametrize(
    ("name", "verdict"),
    [("found", "retriever"), ("closed_book", "data"), ("gold_first", "reader"), ("teaching", "data")],
)
def test_a_mean_next_to_its_threshold_says_that_it_is_open(name: str, verdict: str) -> None:
    """The verdict stands; who reads it may take more questions before a reader or a retriever is thrown away."""
    found = diagnose(examples(40), ToyReader(), F1, reference=Reference())
    threshold = THRESHOLDS[name]
    beside = Score(threshold, threshold - 0.03, threshold + 0.03, 40)
    if name != "closed_book":  # which is a limit from its threshold on
        judged, reason = _judged({**found.means, name: beside}, found.settings)
        assert (judged, "more questions may say otherwise" in reason) == ("training can pay", True)
    mean_of = threshold if name == "closed_book" else threshold - 0.002
    for margin, is_open in ((0.03, True), (0.001, False)):
        means = {**found.means, name: Score(mean_of, mean_of - margin, mean_of + margin * is_open, 40)}
        judged, reason = _judged(means, found.settings)
        assert judged == f"limit: {verdict}"
        assert (f" The interval of {name} holds {threshold:g}: more questions may say otherwise." in reason) == is_open


def test_a_second_read_takes_the_luck_out_of_the_best_order() -> None:
    again = Says(lambda q, ids: lucky(f"again {q}", ids))
    found = diagnose(examples(200), Says(lucky), F1, reference=Reference(), questions=200, second_reader=again)
    assert mean(found, "best_order") > 0.95
    assert abs(mean(found, "best_again") - 0.5) < 0.15
    assert abs(mean(found, "headroom")) < 0.15
    assert abs(mean(found, "repeat_noise") - 0.5) < 0.15
    assert found.verdict != "training can pay"
    per_question = [sum(c.query.query_id == f"q{i}" for c in again.contexts) for i in range(200)]
    assert set(per_question) <= {1, 2}


def test_too_few_questions_get_no_verdict() -> None:
    found = diagnose(examples(MINIMUM_QUESTIONS - 1), ToyReader(), F1, reference=Reference())
    assert found.verdict == "undecided"
    assert "only 29 questions" in found.reason
    assert diagnose(examples(MINIMUM_QUESTIONS), ToyReader(), F1, reference=Reference()).verdict == "training can pay"


# --- numbers -----------------------------------------------------------------------------------------------------


def world(count: int, candidates: int) -> list[Example]:
    documents = tuple(Document(str(i), f"integer {i}") for i in range(candidates))
    return [Example(Query(f"q{i}", "?"), documents, ("seven",), {"0": 1}) for i in range(count)]


def ceiling(price: Callable[[str, tuple[str, ...]], float], query_id: str, candidates: int, k: int) -> float:
    """Brute force over all orders."""
    return max(price(query_id, order) for order in itertools.permutations(map(str, range(candidates)), k))


def test_the_ceiling_is_exact_where_all_orders_can_be_read() -> None:
    found = diagnose(world(40, 4), READER, Priced(chance), top_k=2, orders=12)
    assert found.values["best_order"] == {f"q{i}": ceiling(chance, f"q{i}", 4, 2) for i in range(40)}
    fewer = diagnose(world(40, 4), READER, Priced(chance), top_k=2, orders=2)
    assert sum(fewer.values["best_order"].values()) < sum(found.values["best_order"].values())


def test_the_search_finds_the_ceiling_where_earlier_places_count_for_more() -> None:
    def price(query_id: str, ids: tuple[str, ...]) -> float:
        gains = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        gains.sort(key=lambda gain: chance(query_id, gain))
        return sum(weight * gains[int(i)] for weight, i in zip((0.8, 0.1, 0.01), ids, strict=False))

    found = diagnose(world(40, 6), READER, Priced(price), orders=18)
    wanted = {f"q{i}": ceiling(price, f"q{i}", 6, 3) for i in range(40)}
    assert found.values["best_order"] == pytest.approx(wanted)
    assert mean(diagnose(world(40, 6), READER, Priced(price), orders=0), "best_order") < mean(found, "best_order")


def test_the_ceiling_is_never_above_the_true_one_and_never_below_what_was_read() -> None:
    found = diagnose(world(40, 5), READER, Priced(chance), orders=6)
    for query_id, best in found.values["best_order"].items():
        assert best <= ceiling(chance, query_id, 5, 3)
        assert best == chance(query_id, found.best_orders[query_id])
        assert best >= max(found.values[name][query_id] for name in ("first_stage", "reference", "gold_first"))


def test_the_parts_of_every_question_add_up_to_1() -> None:
    rows = [*world(40, 6)[:20], *(replace(row, relevance={"x": 1}) for row in world(40, 6)[20:])]
    found = diagnose(rows, READER, Priced(chance))
    parts = ("reference", "headroom", "lost_to_reader", "lost_to_retriever")
    for i in range(40):
        assert sum(found.values[part][f"q{i}"] for part in parts) == pytest.approx(1.0)
        assert (found.values["lost_to_retriever"][f"q{i}"] > 0) == (i >= 20)


def test_gold_first_is_that_of_an_evaluation() -> None:
    def answer(query_id: str, ids: tuple[str, ...]) -> str:
        return "seven" if chance(query_id, ids) < 0.5 else "seven or so"

    rows = [replace(row, relevance={"3": 1, "4": 2, "5": -1}) for row in world(40, 6)]
    found = diagnose(rows, Says(answer), F1)
    scores = evaluate({"g": GoldFirst(rows)}, rows, reader=Says(answer), depth=10).scores["g"]["F1"]
    assert found.means["gold_first"][:1] == (pytest.approx(scores.mean),)


def test_answers_are_marks_where_no_candidate_is_labelled() -> None:
    documents = (*(Document(str(i), f"integer {i}") for i in range(5)), Document("s", "It is Seven."))
    rows = [Example(Query(f"q{i}", "?"), documents, ("seven",), {"missing": 1}) for i in range(40)]
    found = diagnose(rows, Says(lambda _, ids: "seven" if ids[:1] == ("s",) else ""), F1)
    names = ("found", "hit", "relevant_one", "first_stage", "gold_first", "gold_headroom")
    assert [mean(found, name) for name in names] == [1, 1, 0, 0, 1, 1]
    both = [replace(row, relevance={"0": 1, "missing": 1}) for row in rows]
    counted = diagnose(both, Says(lambda *_: ""), F1)
    assert [mean(counted, name) for name in ("relevant_one", "relevant_all")] == [1, 0]
    bare = diagnose([replace(row, relevance={}) for row in rows], Says(lambda *_: ""), F1)
    assert bare.means.keys() & {"relevant_one", "relevant_all"} == set()


def test_yes_and_no_mark_no_passage() -> None:
    """The word stands in many texts that do not answer; only a label tells."""
    documents = (Document("a", "No ships sail there."), Document("b", "Oh yes, it rains."), Document("c", "Rome."))
    rows = [
        Example(Query(f"q{i}", "?"), documents, answers)
        for i, answers in enumerate([("No.",), ("yes",), ("no", "rome")] * 10)
    ]
    found = diagnose(rows, Says(lambda *_: "no"), F1)
    assert (mean(found, "found"), mean(found, "hit")) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert found.means["gold_first"].n == 10
    labelled = diagnose([replace(row, relevance={"b": 1}) for row in rows], Says(lambda *_: "no"), F1)
    assert mean(labelled, "found") == 1


def test_order_noise_is_the_spread_over_orders_of_the_same_passages() -> None:
    prices: dict[tuple[str, ...], float] = {("0", "1", "2"): 0.2, ("2", "1", "0"): 0.5, ("1", "2", "0"): 0.6}
    found = diagnose(world(40, 3), READER, Priced(lambda _, ids: prices.get(ids, 0.0)), orders=0)
    assert mean(found, "order_noise") == pytest.approx(np.std([0.2, 0.5, 0.6], ddof=1))
    assert "order_noise" not in diagnose(world(40, 3), READER, Priced(chance), top_k=1).means


def test_samples_are_drawn_with_the_softmax_of_the_scores() -> None:
    example = world(1, 4)[0]
    scores = (2.0, 1.0, 0.0, -1.0)
    chosen = DiagnosisSettings(2, 4, 0, 20_000, False, 0, "r", "f1", "m", "s", "given")
    question = _Question(example, Ranking("q0", ("2", "0", "3", "1"), scores), chosen)
    shares = [sum(order[0] == position for order in question.samples) / 20_000 for position in (2, 0, 3, 1)]
    assert shares == pytest.approx(np.exp(scores) / np.exp(scores).sum(), abs=0.012)
    assert all(len(set(order)) == 2 for order in question.samples)


def test_teaching_is_the_share_of_questions_whose_samples_differ() -> None:
    varied = Priced(lambda q, ids: chance(q, ids) if int(q[1:]) < 10 else 0.5)
    found = diagnose(world(40, 8), READER, varied, samples=8)
    assert {q for q, teaches in found.values["teaching"].items() if teaches} == {f"q{i}" for i in range(10)}


def test_every_number_is_described_and_no_other() -> None:
    noisy = diagnose(world(40, 6), READER, Priced(chance), second_reader=Says(lambda *_: ""))
    assert list(noisy.means) == list(NUMBERS)
    page = (Path(__file__).parents[1] / "docs" / "diagnose.md").read_text("utf-8")
    assert [name for name in NUMBERS if f"`{name}`" not in page] == []


# --- what it costs -----------------------------------------------------------------------------------------------


class Counted:
    """Notes when the bound was told, and every distinct context."""

    name = "counted"

    def __init__(self) -> None:
        self.calls = 0
        self.told: list[tuple[int, int]] = []

    def announce(self, questions: int, bound: int) -> None:
        assert self.calls == 0
        self.told.append((questions, bound))

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        assert self.told
        assert len(set(contexts)) == len(contexts)
        self.calls += len(contexts)
        return [Answer("x") for _ in contexts]


@settings(max_examples=60, deadline=None)
@given(
    candidates=st.integers(1, 7),
    top_k=st.integers(1, 4),
    orders=st.integers(0, 30),
    samples=st.integers(2, 6),
    limit=st.none() | st.integers(60, 400),
    twice=st.booleans(),
)
def test_the_announced_bound_is_never_exceeded(
    candidates: int, top_k: int, orders: int, samples: int, limit: int | None, twice: bool
) -> None:
    reader, second = Counted(), Counted()
    second.told.append((0, 0))
    found = diagnose(
        world(9, candidates),
        reader,
        Priced(chance),
        top_k=top_k,
        orders=orders,
        samples=samples,
        max_reader_calls=limit,
        second_reader=second if twice else None,
        resamples=2,
        announce=reader.announce,
    )
    assert reader.told == [(found.n, found.bound)]
    assert reader.calls + second.calls == found.reader_calls <= found.bound
    assert found.bound <= (limit or math.inf)
    k = min(top_k, candidates)
    assert reader.calls <= found.n * (1 + math.perm(candidates, k))
    if limit is None and orders >= math.perm(candidates, k):
        assert reader.calls == found.n * (1 + math.perm(candidates, k))  # the bound is met where it is exact


class Backwards(FirstStage):
    name = "backwards"

    def _ordered(self, request: RerankRequest) -> Iterable[Document]:
        return reversed(request.documents)


def test_the_bound_of_one_question_is_met_where_all_its_orders_differ() -> None:
    rows = [replace(row, relevance={"5": 1}) for row in world(40, 12)]
    reader, again = Says(lambda *_: ""), Says(lambda *_: "")
    found = diagnose(rows, reader, Priced(chance), reference=Backwards(), depth=12, second_reader=again)
    reads = Counter(context.query.query_id for context in (*reader.contexts, *again.contexts))
    assert max(reads.values()) == found.settings.reads_per_question(12) == 4 + 2 + 4 + 12 + 2


def test_a_question_that_is_solved_is_searched_no_further() -> None:
    reader = Counted()
    reader.told.append((0, 0))
    diagnose(world(40, 8), reader, Priced(lambda _, ids: float(bool(ids))), orders=50, samples=2)
    assert reader.calls <= 40 * (4 + 2 + 2)


def test_fewer_questions_are_read_for_fewer_calls_and_they_are_a_part_of_more() -> None:
    few = diagnose(world(40, 8), READER, Priced(chance), max_reader_calls=500)
    more = diagnose(world(40, 8), READER, Priced(chance), max_reader_calls=700)
    cost = few.settings.reads_per_question(8)
    assert (few.n, more.n, few.bound) == (500 // cost, 700 // cost, 500 // cost * cost)
    assert few.values["best_order"].items() <= more.values["best_order"].items()
    wanted = rf"--max-reader-calls is 5, but one question may cost {cost} .*verdict.* lower --orders and --samples"
    with pytest.raises(ConfigurationError, match=wanted):
        diagnose(world(40, 8), READER, Priced(chance), max_reader_calls=5)


def test_questions_are_chosen_by_id_and_seed_alone() -> None:
    rows = examples(50)
    ids = [row.query.query_id for row in sample_questions(rows, 10, 0)]
    assert ids == [row.query.query_id for row in sample_questions(rows[::-1], 20, 0)][:10]
    assert ids != [row.query.query_id for row in sample_questions(rows, 10, 1)]
    found = diagnose(rows, ToyReader(), F1, questions=10)
    assert list(found.values["reference"]) == ids


def test_a_second_diagnosis_costs_nothing(tmp_path: Path) -> None:
    def diagnosed(store: ReadStore, count: int) -> Diagnosis:
        reader = CachedReader(Says(lucky), store)
        return diagnose(examples(60), reader, F1, reference=Reference(), questions=count)

    with ReadStore(tmp_path / "reads.sqlite") as store:
        first, second, larger = diagnosed(store, 40), diagnosed(store, 40), diagnosed(store, 50)
    assert first.reader_calls > 40 * 8
    assert (second.reader_calls, second.cache_hits) == (0, first.reader_calls)
    assert (second.means, second.verdict) == (first.means, first.verdict)
    assert larger.cache_hits >= first.reader_calls
    assert larger.reader_calls <= 10 * first.settings.reads_per_question(10)


# --- failed reads and bad input ----------------------------------------------------------------------------------


def test_failed_reads_are_counted_and_left_out() -> None:
    found = diagnose(examples(60), ToyReader(fail_every=40), F1, reference=Reference(), max_failed=0.05)
    assert found.failed_reads > 0
    assert found.verdict == "training can pay"
    assert any(found.means[name].n < 60 for name in ("reference", "no_documents", "gold_first", "first_stage"))
    assert mean(found, "reference") == 0.0
    assert mean(found, "gold_first") == 1.0  # a failure is no 0


def test_a_question_without_a_single_answer_has_no_rewards() -> None:
    class Deaf(Says):
        def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
            results = super().answer(contexts)
            return [ReadFailed("x") if c.query.query_id == "q3" else r for c, r in zip(contexts, results, strict=True)]

    found = diagnose(examples(40), Deaf(lambda *_: ""), F1, max_failed=0.1)
    assert [name for name, values in found.values.items() if "q3" in values] == [
        "found",
        "hit",
        "relevant_one",
        "relevant_all",
    ]
    assert found.best_orders["q3"] == ()
    assert found.means["best_order"].n == 39


def test_too_many_failed_reads_end_it_early_and_what_was_read_is_kept(tmp_path: Path) -> None:
    class Failing(Says):
        failing = True

        def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
            results = super().answer(contexts)
            return [ReadFailed("down") if self.failing and i % 2 else r for i, r in enumerate(results)]

    behind = Failing(lucky)
    with ReadStore(tmp_path / "reads.sqlite") as store:
        reader = CachedReader(behind, store)
        with pytest.raises(ReaderError, match=r"'says' failed on \d+ of \d+ announced reads.*run the same command"):
            diagnose(examples(100), reader, F1, reference=Reference())
        kept = reader.paid
        assert 0 < len(behind.contexts) < 500  # of some two thousand
        behind.failing = False
        mended = diagnose(examples(100), reader, F1, reference=Reference())
    clean = diagnose(examples(100), Says(lucky), F1, reference=Reference())
    assert mended.means == clean.means
    assert mended.reader_calls + mended.cache_hits == clean.reader_calls
    assert mended.cache_hits > 0.9 * kept  # without half of its answers the search had gone other ways


def test_a_reward_without_values_is_not_the_readers_fault() -> None:
    reward = Priced(lambda q, ids: math.nan if chance(q) < 0.5 else chance(q, ids))
    with pytest.raises(RewardError, match=r"^Reward 'priced' gave no value for \d+ of \d+ announced answers.*command"):
        diagnose(examples(100), READER, reward)
    with pytest.raises(RewardError, match=r"no value for \d+ of \d+ answers; at most 1%"):
        diagnose(examples(2), READER, Priced(lambda _, ids: float("7" in ids) if ids else math.nan), orders=200)
    assert diagnose(examples(40), READER, reward, max_failed=1.0).failed_reads > 100


def test_a_few_questions_are_judged_by_the_reads_that_were_made() -> None:
    with pytest.raises(ReaderError, match=r"failed on \d+ of \d+ reads; at most 1%"):
        diagnose(examples(2), ToyReader(fail_every=12), F1, orders=200)


@pytest.mark.parametrize("value", [1.5, -0.1])
def test_a_reward_off_the_scale_is_refused(value: float) -> None:
    with pytest.raises(ConfigurationError, match=r"Reward 'priced' gave .* for query 'q\d+'; diagnose wants .* 0 to 1"):
        diagnose(examples(5), READER, Priced(lambda *_: value))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"questions": 0}, "questions 0"),
        ({"depth": 0}, "depth 0"),
        ({"top_k": 0}, "top_k 0"),
        ({"orders": -1}, "orders -1"),
        ({"samples": 1}, "samples 1"),
        ({"top_k": 11}, "top_k 11 above depth 10"),
        ({"max_failed": 1.1}, "max_failed is 1.1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        diagnose(examples(5), READER, F1, **arguments)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no questions"),
        ([*examples(2), *examples(1)], "'q0' occurs 2 times"),
        ([replace(examples(1)[0], candidates=())], "Candidate list of query 'q0' is empty"),
        ([replace(examples(1)[0], answers=())], "'q0' has no accepted answer"),
    ],
)
def test_questions_that_cannot_be_read_are_refused_before_a_call(rows: list[Example], message: str) -> None:
    reader = Counted()
    with pytest.raises(DataError, match=message):
        diagnose(rows, reader, F1)
    assert reader.calls == 0


def test_depth_cuts_the_candidates() -> None:
    found = diagnose(examples(40), ToyReader(), F1, depth=7)  # document 7 is the eighth
    assert found.verdict == "limit: retriever"


# --- a reader that asks anew -------------------------------------------------------------------------------------


class Echo:
    """A language model that says how often it was asked."""

    name = "echo"

    def __init__(self) -> None:
        self.requests: list[LLMRequest] = []

    def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
        self.requests.extend(requests)
        return [Completion(f"call {len(self.requests)}") for _ in requests]


def test_a_reader_that_asks_again_is_answered_anew_and_kept_apart(tmp_path: Path) -> None:
    llm = Echo()
    context = Context(Query("q", "where?"), DOCUMENTS[:2])

    def said(reader: Reader) -> str:
        (result,) = reader.answer([context])
        assert isinstance(result, Answer)
        return result.text

    with ReadStore(tmp_path / "reads.sqlite") as store:
        reader = LLMReader(CachedLLM(llm, store))
        texts = [said(reader), said(reader), said(reader.again()), said(reader.again())]
    assert texts == ["call 1", "call 1", "call 2", "call 2"]
    assert llm.requests[0].messages == llm.requests[1].messages
    assert llm.requests[0].sampling == llm.requests[1].sampling
