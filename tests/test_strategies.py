"""Strategies with a judge whose knowledge is planted: exactness, counts, unreadable answers, one query at a time."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.data import load_examples, read_trec_run
from rankwright.errors import ConfigurationError, DataError, ModelError, ReaderError
from rankwright.evaluation import Evaluation, evaluate
from rankwright.metrics.ranking import ranking_metrics
from rankwright.strategies import (
    BubbleSort,
    Fused,
    Groupwise,
    HeapSort,
    LLMReranker,
    Pointwise,
    Sliding,
    Strategy,
    StrategyReport,
    TopK,
    run_strategies,
    windows,
)
from rankwright.types import (
    Choice,
    Document,
    Example,
    Judged,
    Judgement,
    Permutation,
    Query,
    Ranking,
    RerankRequest,
    Scores,
)
from tests.simulated_llm import Kind, SimulatedJudge, nonsense, prompt_tokens

KIND_OF: Mapping[type, Kind] = {
    Sliding: "permutation",
    TopK: "permutation",
    HeapSort: "choice",
    BubbleSort: "choice",
    Pointwise: "scores",
    Groupwise: "scores",
}
EVERY: tuple[Strategy, ...] = (
    Sliding(window=5, stride=2),
    Sliding(window=4, stride=1, passes=2),
    TopK(top_k=3, window=5, waiting=4),
    TopK(top_k=3, window=5, waiting=0),
    HeapSort(children=3, top_k=4),
    HeapSort(children=2, top_k=4, votes=3, shuffle=True),
    BubbleSort(children=3, top_k=4),
    Pointwise(),
    Groupwise(group=4),
    Groupwise(group=5, repeats=3, interval=2),
)
NAMES = [strategy.name for strategy in EVERY]
GRADES = st.one_of(
    st.lists(st.integers(0, 3), max_size=70),
    st.integers(0, 70).flatmap(lambda count: st.permutations(range(count))),
)


def request_of(values: Sequence[float], query_id: str = "q") -> RerankRequest:
    """Document i is named di and has the i-th grade."""
    documents = tuple(Document(f"d{i}", f"passage {i} of {query_id}") for i in range(len(values)))
    return RerankRequest(Query(query_id, "which?"), documents)


def judge_of(strategy: Strategy, values: Sequence[float], query_id: str = "q", **options: Any) -> SimulatedJudge:
    grades = {query_id: {f"d{i}": value for i, value in enumerate(values)}}
    return SimulatedJudge(grades, KIND_OF[type(strategy)], **options)


def ranked(
    strategy: Strategy, values: Sequence[float], **options: Any
) -> tuple[Ranking, SimulatedJudge, StrategyReport]:
    judge = judge_of(strategy, values, **options)
    (ranking,), report = run_strategies(strategy, judge, [request_of(values)])
    return ranking, judge, report


def places(ranking: Ranking) -> list[int]:
    return [int(doc_id[1:]) for doc_id in ranking.doc_ids]


def grades_of(ranking: Ranking, values: Sequence[float]) -> list[float]:
    return [values[place] for place in places(ranking)]


# --- a judge that never errs ---------------------------------------------------------------------------------------


@given(GRADES, st.integers(2, 12), st.data())
def test_one_pass_of_windows_brings_the_overlap_to_the_top(values: list[int], window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window - 1))
    ranking, _, report = ranked(Sliding(window, stride), values)
    carried = window if len(values) <= window else window - stride
    assert grades_of(ranking, values)[:carried] == sorted(values, reverse=True)[:carried]
    calls = math.ceil(max(0, len(values) - window) / stride) + 1 if len(values) > 1 else 0
    assert report.calls_per_query == report.depth_per_query == [calls]


@given(GRADES, st.integers(2, 12), st.integers(0, 30), st.data())
def test_top_k_is_exact_at_any_length(values: list[int], window: int, waiting: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, window - 1))
    ranking, _, _ = ranked(TopK(top_k, window, waiting), values)
    assert grades_of(ranking, values)[:top_k] == sorted(values, reverse=True)[:top_k]


@given(GRADES, st.integers(1, 12), st.integers(1, 15), st.sampled_from([HeapSort, BubbleSort]), st.booleans())
def test_sorts_by_choice_find_the_first_and_leave_the_rest(
    values: list[int], children: int, top_k: int, sort: type[HeapSort | BubbleSort], shuffle: bool
) -> None:
    ranking, _, _ = ranked(sort(children, top_k, shuffle=shuffle), values)
    assert grades_of(ranking, values)[:top_k] == sorted(values, reverse=True)[:top_k]
    assert places(ranking)[top_k:] == sorted(places(ranking)[top_k:])


@given(GRADES, st.integers(1, 12), st.integers(1, 3), st.data())
def test_scores_give_the_whole_order_with_ties_as_in_the_first_stage(
    values: list[int], group: int, repeats: int, data: st.DataObject
) -> None:
    best = sorted(range(len(values)), key=lambda place: (-values[place], place))
    pointwise, judge, _ = ranked(Pointwise(), values)
    assert places(pointwise) == best
    assert [len(window.documents) for window in judge.windows] == [1] * len(values)
    assert list(pointwise.scores) == [float(values[place]) for place in best]
    interval = data.draw(st.integers(0, group))
    groupwise, judge, report = ranked(Groupwise(group, repeats, interval), values)
    assert places(groupwise) == best
    calls = repeats * (math.ceil(max(0, len(values) - group) / (interval or group)) + 1) if values else 0
    assert (report.calls, report.max_depth) == (calls, min(1, len(values)))
    assert max((len(window.documents) for window in judge.windows), default=0) <= group


def test_an_order_that_is_upside_down_needs_several_passes_below_the_overlap() -> None:
    values = list(range(30))
    once, twice = (grades_of(ranked(Sliding(10, 5, passes), values)[0], values) for passes in (1, 2))
    best = values[::-1]
    assert (once[:5], twice[:10]) == (best[:5], best[:10])
    assert once[:10] != best[:10]


# --- calls and depth -----------------------------------------------------------------------------------------------


def test_windows_of_the_papers() -> None:
    assert len(windows(100, 20, 10)) == 9
    assert len(windows(100, 10, 5)) == 19
    assert [end - start for start, end in windows(100, 20, 10)] == [20] * 9
    assert windows(0, 20, 10) == [(0, 0)]


@given(st.integers(1, 200), st.integers(1, 30), st.data())
def test_windows_cover_a_list_and_overlap(count: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    found = windows(count, window, stride)
    assert (found[0][1], found[-1][0]) == (count, 0)
    for (later, _), (start, end) in itertools.pairwise(found):
        assert end == later + window - stride
        assert start == max(0, later - stride)


@pytest.mark.parametrize(("children", "mean"), [(19, 23.4), (9, 31.4), (3, 81.7)])
def test_calls_of_the_heap_on_random_orders(children: int, mean: float) -> None:
    """Means simulated elsewhere for 100 documents and the first ten. At least every node with children is asked about,
    and the root whenever something was put there; at most every document that is put there goes to the bottom."""
    chance = random.Random(0)
    calls = [
        ranked(HeapSort(children), chance.sample(range(100), 100))[2].calls for _ in range(60 if children == 3 else 150)
    ]
    assert sum(calls) / len(calls) == pytest.approx(mean, abs=0.4)
    parents = math.ceil(99 / children)
    assert parents + 9 <= min(calls)
    if children == 19:  # two levels below the root
        assert max(calls) <= parents + 1 + 9 * 2


def test_building_a_heap_waits_once_for_each_level() -> None:
    """100 documents, 19 children: five nodes below the root have children of their own."""
    values = list(range(100, 0, -1))  # a heap already
    _, judge, report = ranked(HeapSort(top_k=1), values)
    assert [len(round_) for round_ in judge.rounds] == [5, 1]
    assert (report.calls_per_query, report.depth_per_query) == ([6], [2])


def test_bubbles_compare_nothing_twice() -> None:
    values = list(range(100, 0, -1))
    _, judge, report = ranked(BubbleSort(), values)
    first = math.ceil((100 - 20) / 19) + 1
    # Afterwards only the window at the top has other documents, and none where the next one begins at its place (4).
    assert report.calls == first + 9 - 1
    seen = Counter(frozenset(document.doc_id for document in window.documents) for window in judge.windows)
    assert set(seen.values()) == {1}


@given(st.integers(0, 250), st.integers(2, 25), st.data())
def test_top_k_calls_as_often_as_the_sliding_window_in_fewer_rounds(
    count: int, window: int, data: st.DataObject
) -> None:
    top_k, waiting = data.draw(st.integers(1, window - 1)), data.draw(st.integers(0, 60))
    _, judge, report = ranked(TopK(top_k, window, waiting), [0] * count, noise=1.0)
    assert report.calls == (len(windows(count, window, window - top_k)) if count > 1 else 0)
    assert all(len(asked.documents) == window for round_ in judge.rounds[:-1] for asked in round_)
    left, depth = count, int(count > 1)
    while left > window:
        left -= max(1, (left - waiting) // window) * (window - top_k)
        depth += 1
    assert report.max_depth == depth


@pytest.mark.parametrize(
    ("count", "waiting", "calls", "depth"), [(100, 20, 9, 5), (100, 0, 9, 4), (1000, 20, 99, 9), (1000, 0, 99, 7)]
)
def test_rounds_of_a_knock_out(count: int, waiting: int, calls: int, depth: int) -> None:
    _, judge, report = ranked(TopK(waiting=waiting), random.Random(0).sample(range(count), count))
    assert (report.calls, report.max_depth) == (calls, depth)
    assert sum(len(window.documents) for window in judge.windows) == calls * 20


@given(st.integers(0, 90).flatmap(lambda count: st.permutations(range(count))))
def test_a_knock_out_for_which_all_wait_shows_the_sliding_windows(values: list[int]) -> None:
    judges = [ranked(strategy, values)[1] for strategy in (TopK(3, 10, waiting=90), Sliding(10, 7))]
    one, two = ([sorted(d.doc_id for d in window.documents) for window in judge.windows] for judge in judges)
    assert one == two


@pytest.mark.parametrize("strategy", EVERY, ids=NAMES)
@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_compare(strategy: Strategy, count: int) -> None:
    ranking, _, report = ranked(strategy, [1] * count)
    assert ranking.doc_ids == ("d0",)[:count]
    scored = isinstance(strategy, Pointwise | Groupwise)
    assert report.calls == (count * getattr(strategy, "repeats", 1) if scored else 0)


# --- any judge -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", EVERY, ids=NAMES)
@given(count=st.integers(0, 40), seed=st.integers(0, 2**32))
@settings(max_examples=25)
def test_every_ranking_holds_the_documents_once_with_falling_scores(strategy: Strategy, count: int, seed: int) -> None:
    ranking, judge, report = ranked(strategy, [1] * count, noise=1.0, malformed=0.3, seed=seed)
    assert sorted(places(ranking)) == list(range(count))
    assert all(a > b for a, b in zip(ranking.scores, ranking.scores[1:], strict=False))
    assert report.calls == len(judge.windows) == sum(report.outcomes.values())
    assert report.max_depth == len(judge.rounds)


@pytest.mark.parametrize("strategy", EVERY, ids=NAMES)
def test_a_query_is_ranked_alike_alone_and_beside_others(strategy: Strategy) -> None:
    chance = random.Random(0)
    values = {f"q{i}": [chance.random() for _ in range(count)] for i, count in enumerate([23, 0, 7, 31, 1, 12])}
    grades = {query_id: {f"d{i}": value for i, value in enumerate(row)} for query_id, row in values.items()}
    requests = [request_of(row, query_id) for query_id, row in values.items()]

    def judge() -> SimulatedJudge:
        return SimulatedJudge(grades, KIND_OF[type(strategy)], noise=0.3, malformed=0.2)

    together, report = run_strategies(strategy, judge(), requests)
    backwards, _ = run_strategies(strategy, judge(), requests[::-1])
    assert backwards[::-1] == together
    for i, request in enumerate(requests):
        alone, its = run_strategies(strategy, judge(), [request])
        assert alone == [together[i]]
        assert its.calls_per_query == [report.calls_per_query[i]]
        assert its.depth_per_query == [report.depth_per_query[i]]


@pytest.mark.parametrize("strategy", [*EVERY, HeapSort(3, 9, unread="first-stage")], ids=lambda strategy: strategy.name)
def test_a_judge_that_nobody_can_read_changes_nothing(strategy: Strategy) -> None:
    ranking, _, report = ranked(strategy, list(range(17)), malformed=1.0)
    assert report.outcomes == {"malformed": report.calls}
    assert report.repairs == {"no identifier": report.calls}
    if isinstance(strategy, HeapSort) and strategy.unread == "root":
        assert places(ranking)[:4] == [0, 16, 15, 14]  # a leaf was put at the root, and stays
    else:
        assert places(ranking) == list(range(17))


def test_documents_without_a_score_stand_behind_all_others() -> None:
    class Half(SimulatedJudge):
        def _judgement(self, window: RerankRequest) -> Judgement:
            place = int(window.documents[0].doc_id[1:])
            return Scores((float(place),)) if place % 2 else nonsense("scores", 1, "no number")

    (ranking,), report = run_strategies(Pointwise(), Half({}, "scores"), [request_of(range(6))])
    assert places(ranking) == [5, 3, 1, 0, 2, 4]
    assert ranking.scores[:3] == (5.0, 3.0, 1.0)
    assert list(ranking.scores[3:]) == pytest.approx([1.0] * 3)
    assert 1.0 > ranking.scores[3] > ranking.scores[4] > ranking.scores[5]
    assert report.outcomes == {"ok": 3, "malformed": 3}


@pytest.mark.parametrize("scale", ["min-max", "z-score"])
def test_a_document_without_a_score_is_fused_as_the_lowest_and_not_by_the_step_behind_it(scale: Any) -> None:
    class Silent(SimulatedJudge):
        def _judgement(self, window: RerankRequest) -> Judgement:
            read = window.documents[0].doc_id in ("d0", "d1")
            return Scores((0.7 if read else None,), "ok" if read else "malformed")

    request = replace(request_of(range(5)), first_stage={f"d{i}": float(i) for i in range(5)})
    (ranking,), _ = run_strategies(Fused(Pointwise(), 0.1, scale), Silent({}, "scores"), [request])
    assert places(ranking) == [4, 3, 2, 1, 0]  # all that is known of any two of them is the first stage


def test_groups_average_over_what_could_be_read() -> None:
    """Three repeats; the first group of the second repeat cannot be read."""
    strategy = Groupwise(group=3, repeats=3)
    seen: list[list[int]] = []

    class Numbered(SimulatedJudge):
        def judge(self, windows: Sequence[RerankRequest]) -> list[Judged]:
            seen.extend([int(document.doc_id[1:]) for document in window.documents] for window in windows)
            answers = [Scores(tuple(10.0 * call + place for place in group)) for call, group in enumerate(seen)]
            return [Judged(nonsense("scores", 3, "no JSON") if call == 2 else a) for call, a in enumerate(answers)]

    (ranking,), _ = run_strategies(strategy, Numbered({}, "scores"), [request_of(range(6))])
    assert len(seen) == 6
    assert len({tuple(group) for group in seen[::2]}) == 3
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert sorted(first + second) == list(range(6))
    for place, score in zip(places(ranking), ranking.scores, strict=True):
        got = [10.0 * call + place for call, group in enumerate(seen) if place in group and call != 2]
        assert score == pytest.approx(sum(got) / len(got))


# --- votes ---------------------------------------------------------------------------------------------------------


class Scripted:
    """Answers with the given choices of documents in turn; None for an unreadable one."""

    name = "scripted"

    def __init__(self, *choices: str | None) -> None:
        self.choices = list(choices)
        self.shown: list[list[str]] = []

    def judge(self, windows: Sequence[RerankRequest]) -> list[Judged]:
        judged = []
        for window in windows:
            ids = [document.doc_id for document in window.documents]
            self.shown.append(ids)
            choice = self.choices.pop(0)
            judged.append(Judged(nonsense("choice", 0, "no label") if choice is None else Choice(ids.index(choice))))
        return judged


@pytest.mark.parametrize(
    ("votes", "best"),
    [
        (("d2", "d1", "d2"), "d2"),
        (("d2", "d1", None), "d1"),  # equal: the first stage decides
        (("d3", None, None), "d3"),
        ((None, None, None), "d0"),
    ],
)
def test_votes_over_several_orders(votes: tuple[str | None, ...], best: str) -> None:
    judge = Scripted(*votes)
    strategy = HeapSort(children=3, top_k=1, votes=3)
    (ranking,), report = run_strategies(strategy, judge, [request_of(range(4))])
    assert ranking.doc_ids[0] == best
    assert (report.calls, report.max_depth) == (3, 1)
    assert judge.shown[0] == ["d0", "d1", "d2", "d3"]
    assert all(sorted(shown) == judge.shown[0] for shown in judge.shown)
    assert len({tuple(shown) for shown in judge.shown}) > 1


def test_a_shuffle_has_a_seed() -> None:
    orders = []
    for seed in (0, 0, 1):
        judge = Scripted("d0")
        run_strategies(HeapSort(9, 1, shuffle=True, seed=seed), judge, [request_of(range(10))])
        orders.append(judge.shown[0])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [(HeapSort(19, 1, votes=3, shuffle=True), "choice"), (Groupwise(group=20, repeats=3), "scores")],
)
def test_every_query_and_every_repeat_has_a_shuffle_of_its_own(strategy: Strategy, kind: Kind) -> None:
    judge = SimulatedJudge({}, kind)
    run_strategies(strategy, judge, [request_of(range(20), query_id) for query_id in "ab"])
    orders = [tuple(document.doc_id for document in window.documents) for window in judge.windows]
    assert (len(orders), len(set(orders))) == (6, 6)


def test_an_order_that_cannot_be_read_is_no_choice() -> None:
    """Its first document is only where a shuffle put it."""
    judge = SimulatedJudge({}, "permutation", malformed=1.0)
    (ranking,), _ = run_strategies(HeapSort(9, 1, shuffle=True), judge, [request_of(range(10))])
    assert judge.windows[0].documents[0].doc_id != "d0"
    assert ranking.doc_ids[0] == "d0"


# --- the scheduler -------------------------------------------------------------------------------------------------


def test_each_round_asks_for_the_windows_of_all_queries_at_once() -> None:
    lengths = {"a": 30, "b": 5, "c": 20}
    judge = SimulatedJudge({}, "permutation")
    progress: list[tuple[str, int, int]] = []
    rankings, report = run_strategies(
        Sliding(10, 5),
        judge,
        [request_of(range(n), query_id) for query_id, n in lengths.items()],
        on_progress=lambda *told: progress.append(told),
    )
    asked = [[window.query.query_id for window in round_] for round_ in judge.rounds]
    assert asked == [["a", "b", "c"], ["a", "c"], ["a", "c"], ["a"], ["a"]]
    assert [ranking.query_id for ranking in rankings] == list(lengths)
    assert (report.calls_per_query, report.depth_per_query) == ([5, 1, 3], [5, 1, 3])
    assert (report.calls, report.max_depth, report.mean_depth) == (9, 5, 3.0)
    assert report.input_tokens == sum(map(prompt_tokens, judge.windows))
    assert report.output_tokens == sum(4 * len(window.documents) for window in judge.windows)
    assert [done for _, done, _ in progress] == [0, 1, 1, 2, 2, 3]
    assert progress[-1] == ("rank by sliding(window=10,stride=5,passes=1)", 3, 3)


def test_no_queries() -> None:
    assert run_strategies(Sliding(), SimulatedJudge({}, "permutation"), []) == ([], StrategyReport())


def test_reports_count_what_was_paid_and_what_was_mended_and_add_up() -> None:
    class Planned(SimulatedJudge):
        def judge(self, windows: Sequence[RerankRequest]) -> list[Judged]:
            orders = [tuple(range(len(window.documents))) for window in windows]
            return [
                Judged(Permutation(orders[0], "repaired", ("id missing", "id twice")), 7, 2, paid=False),
                Judged(Permutation(orders[1]), None, None),
            ]

    _, report = run_strategies(Sliding(), Planned({}, "permutation"), [request_of(range(3), q) for q in "ab"])
    assert report.outcomes == {"repaired": 1, "ok": 1}
    assert report.repairs == {"id missing": 1, "id twice": 1}
    assert (report.paid, report.input_tokens, report.output_tokens, report.without_tokens) == (1, 7, 2, 1)
    both = report + report
    assert (both.calls, both.paid, both.outcomes["ok"], both.input_tokens) == (4, 2, 2, 14)
    told = both.to_json()
    assert told["sequential_depth"] == {"max": 1, "mean": 1.0}
    assert (told["calls"], told["queries"], told["repairs"]["id twice"]) == (4, 4, 2)
    assert type(told["outcomes"]) is dict


def test_too_many_failed_calls_are_an_error_and_unreadable_answers_are_not() -> None:
    request = request_of(range(40))
    judge = judge_of(Pointwise(), range(40), failed=0.4)
    with pytest.raises(
        ReaderError, match=r"failed on \d+ of 40 calls, most often with 'timeout' .* at most 5% may fail"
    ):
        run_strategies(Pointwise(), judge, [request])
    (ranking,), report = run_strategies(Pointwise(), judge, [request], max_failed=0.9)
    assert len(ranking.doc_ids) == 40
    assert report.failures == {"timeout": report.outcomes["malformed"]}
    assert not report.repairs
    run_strategies(Pointwise(), judge_of(Pointwise(), range(40), malformed=1.0), [request])


def test_a_model_that_fails_is_not_asked_to_the_end() -> None:
    judge = SimulatedJudge({}, "permutation", failed=1.0)
    requests = [request_of(range(30), f"q{i}") for i in range(50)]
    with pytest.raises(ReaderError, match="failed on 50 of 50 calls"):
        run_strategies(Sliding(10, 5), judge, requests)
    assert len(judge.rounds) == 1
    few = SimulatedJudge({}, "permutation", failed=1.0)
    with pytest.raises(ReaderError, match="failed on 5 of 5 calls"):
        run_strategies(Sliding(10, 5), few, requests[:1])


@pytest.mark.parametrize(
    ("strategy", "kind", "message"),
    [
        (
            Sliding(),
            "choice",
            "given Choice, which a setwise prompt makes; it needs Permutation. Take a listwise prompt",
        ),
        (TopK(), "scores", "given Scores, .* it needs Permutation"),
        (HeapSort(), "scores", "given Scores, .* it needs Choice"),
        (Pointwise(), "permutation", "given Permutation, .* it needs Scores. Take a pointwise or groupwise prompt"),
    ],
)
def test_a_prompt_of_another_kind_is_named(strategy: Strategy, kind: Kind, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run_strategies(strategy, SimulatedJudge({}, kind), [request_of(range(3))])


@pytest.mark.parametrize("sort", [HeapSort(3, 2), BubbleSort(3, 2)])
def test_the_first_of_a_permutation_is_a_choice(sort: Strategy) -> None:
    values = [0, 3, 1, 2, 5, 4]
    judge = SimulatedJudge({"q": {f"d{i}": value for i, value in enumerate(values)}}, "permutation")
    (ranking,), _ = run_strategies(sort, judge, [request_of(values)])
    assert places(ranking) == [4, 5, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("strategy", "judgement", "message"),
    [
        (Sliding(), Permutation((0, 0, 1)), "orders 3 documents"),
        (Sliding(), Permutation((0, 1)), "orders 2 documents"),
        (HeapSort(), Choice(3), "chose the document at position 3 where 3 were shown"),
        (HeapSort(), Choice(-1), "chose the document at position -1"),
        (Groupwise(), Scores((1.0, None)), "2 scores where 3"),
        (Groupwise(), Scores((1.0, None, math.nan)), "score nan"),
    ],
)
def test_judgements_that_do_not_belong_to_the_window_are_refused(
    strategy: Strategy, judgement: Judgement, message: str
) -> None:
    class Wrong(SimulatedJudge):
        def _judgement(self, window: RerankRequest) -> Judgement:
            return judgement

    with pytest.raises(ModelError, match=message):
        run_strategies(strategy, Wrong({}, "choice"), [request_of(range(3))])


def test_a_policy_that_loses_windows_is_refused() -> None:
    class Lost(SimulatedJudge):
        def judge(self, windows: Sequence[RerankRequest]) -> list[Judged]:
            return super().judge(windows)[:-1]

    with pytest.raises(ModelError, match="gave 1 judgements for 2 windows"):
        run_strategies(Sliding(), Lost({}, "permutation"), [request_of(range(3), q) for q in "ab"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sliding(window=1),
        lambda: Sliding(stride=20),
        lambda: Sliding(stride=0),
        lambda: Sliding(passes=0),
        lambda: TopK(top_k=0),
        lambda: TopK(top_k=20),
        lambda: TopK(window=1),
        lambda: TopK(waiting=-1),
        lambda: HeapSort(children=0),
        lambda: BubbleSort(votes=0),
        lambda: HeapSort(unread="last"),  # pyright: ignore[reportArgumentType]
        lambda: Groupwise(group=0),
        lambda: Groupwise(repeats=0),
        lambda: Groupwise(group=5, interval=6),
        lambda: Fused(Pointwise(), 1.5),
        lambda: Fused(Pointwise(), 0.5, "max"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_settings_that_cannot_be_are_refused(make: Any) -> None:
    with pytest.raises(ConfigurationError, match="; wanted"):
        make()


def test_the_reranker_is_named_by_all_that_decides_its_ranking() -> None:
    judge = SimulatedJudge({"0": {"1": 1.0}}, "permutation")
    reranker = LLMReranker(judge, Sliding(4, 2))
    assert reranker.name == "simulated(permutation,noise=0.0,seed=0) sliding(window=4,stride=2,passes=1)"
    assert Fused(Groupwise(), 0.4).name.endswith("seed=0)+first-stage(min-max,weight=0.4)")
    ranking = reranker.rerank("rain?", ["sun", "rain", "wind"], top_k=2)
    assert ranking == Ranking("0", ("1", "0"), (2.0, 1.0))
    assert reranker.report.calls == 1


# --- fusion --------------------------------------------------------------------------------------------------------


def with_first_stage(values: Sequence[float], scores: Sequence[float]) -> RerankRequest:
    return replace(request_of(values), first_stage={f"d{i}": score for i, score in enumerate(scores)})


@pytest.mark.parametrize("scale", ["min-max", "z-score"])
@given(
    rows=st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=1, max_size=12), weight=st.floats(0, 1)
)
@settings(max_examples=40)
def test_fusion_is_a_weighted_sum_of_rescaled_scores(
    scale: Any, rows: list[tuple[float, float]], weight: float
) -> None:
    def rescaled(row: list[float]) -> list[float]:
        n = len(row)
        low, high, mean = min(row), max(row), math.fsum(row) / n
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in row) / n)
        if scale == "min-max":
            return [(x - low) / (high - low) if high > low else 0.0 for x in row]
        return [(x - mean) / deviation if deviation > 0 else 0.0 for x in row]

    values, first = [a for a, _ in rows], [b for _, b in rows]
    judge = judge_of(Pointwise(), values)
    (ranking,), _ = run_strategies(Fused(Pointwise(), weight, scale), judge, [with_first_stage(values, first)])
    wanted = [(1 - weight) * a + weight * b for a, b in zip(rescaled(values), rescaled(first), strict=True)]
    assert list(ranking.scores) == pytest.approx([wanted[place] for place in places(ranking)], abs=1e-6)
    assert sorted(ranking.scores, reverse=True) == list(ranking.scores)
    assert sorted(places(ranking)) == list(range(len(rows)))


def test_fusion_at_its_ends() -> None:
    values, first = [1.0, 3.0, 2.0], [0.5, 0.1, 0.9]
    for weight, order in ((0.0, [1, 2, 0]), (1.0, [2, 0, 1])):
        judge = judge_of(Sliding(), values)
        (ranking,), _ = run_strategies(Fused(Sliding(), weight), judge, [with_first_stage(values, first)])
        assert places(ranking) == order


@pytest.mark.parametrize("scores", [[], [1.0, 2.0], [1.0, 2.0, math.inf]])
def test_fusion_without_scores_is_an_error_before_any_call(scores: list[float]) -> None:
    judge = SimulatedJudge({}, "scores")
    known, unknown = with_first_stage([0.0] * 3, [1.0] * 3), with_first_stage([0.0] * 3, scores)
    with pytest.raises(DataError, match=f"no finite first-stage score for {3 - min(2, len(scores))} of 3 documents"):
        run_strategies(Fused(Pointwise(), 0.5), judge, [known, unknown])
    assert judge.rounds == []


def test_evaluation_hands_on_the_scores_of_the_first_stage(tmp_path: Path) -> None:
    request = with_first_stage([0.0, 1.0, 2.0], [0.1, 0.9, 0.0])
    example = Example(request.query, request.documents, (), {"d1": 1}, request.first_stage)
    fused = LLMReranker(judge_of(Pointwise(), [0.0, 1.0, 2.0]), Fused(Pointwise(), 0.9))
    evaluation = evaluate({"fused": fused}, [example], depth=2, top_k=1)
    assert evaluation.models["fused"].rankings["q"].doc_ids == ("d1", "d0")
    evaluation.save(tmp_path / "evaluation.json")
    assert Evaluation.load(tmp_path / "evaluation.json") == evaluation


# --- trec_dl19 -----------------------------------------------------------------------------------------------------


def test_a_judge_with_the_labels_reaches_the_best_order_of_dl19(data_root: Path) -> None:
    folder = data_root / "trec_dl19"
    examples = load_examples(folder / "bm25_top100.json", "rank_llm", qrels=folder / "qrels.txt").examples
    relevance = {example.query.query_id: example.relevance for example in examples}
    requests = [RerankRequest(example.query, example.candidates, example.first_stage) for example in examples]
    assert {len(request.first_stage) for request in requests} == {100}
    for strategy in (Sliding(), TopK(), HeapSort(), BubbleSort(), Pointwise(), Groupwise()):
        judge = SimulatedJudge(relevance, KIND_OF[type(strategy)])
        rankings, _ = run_strategies(strategy, judge, requests)
        values = ranking_metrics(rankings, relevance, ["nDCG@10"])["nDCG@10"].values()
        assert (len(values), sum(values) / len(values)) == (43, pytest.approx(0.8922, abs=0.00005)), strategy.name


def test_published_runs_evaluate_to_the_reference_figures(data_root: Path) -> None:
    folder = data_root / "trec_dl19"
    relevance = {
        example.query.query_id: example.relevance
        for example in load_examples(folder / "bm25_top100.json", "rank_llm", qrels=folder / "qrels.txt").examples
    }

    def mean(path: Path) -> float:
        values = ranking_metrics(read_trec_run(path), relevance, ["nDCG@10"])["nDCG@10"].values()
        assert len(values) == 43
        return sum(values) / 43

    runs = sorted((folder / "peer_runs").glob("rankgpt-3.5-*.run"))
    assert sum(map(mean, runs)) / len(runs) == pytest.approx(0.6834, abs=0.00005)
    assert mean(folder / "peer_runs" / "rankvicuna-7b.run") == pytest.approx(0.6682, abs=0.00005)
