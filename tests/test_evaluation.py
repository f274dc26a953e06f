from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rankwright
from rankwright.errors import (
    ConfigurationError,
    DataError,
    ModelError,
    ReaderError,
    ResourceNotFoundError,
    StorageError,
)
from rankwright.evaluation import Evaluation, FirstStage, GoldFirst, PairedTest, digest_of, evaluate, verdict
from rankwright.metrics.significance import bootstrap_interval, holm, paired_permutation_test
from rankwright.types import (
    Answer,
    Context,
    Document,
    Example,
    Query,
    Ranking,
    ReadFailed,
    ReadResult,
    Reranker,
    RerankRequest,
)

# Question i: its answer stands in passage "gold-i", which the first stage puts at place i % 5 of 5.
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")


def make_example(i: int) -> Example:
    others = [Document(f"other-{i}-{j}", f"nothing about it {j}") for j in range(4)]
    gold = Document(f"gold-{i}", f"the answer is {WORDS[i]}.", "Numbers")
    candidates = (*others[: i % 5], gold, *others[i % 5 :])
    return Example(Query(f"q{i}", f"Which number is {i}?"), candidates, (WORDS[i],), {f"gold-{i}": 1})


EXAMPLES = [make_example(i) for i in range(12)]


class ToyReader:
    """Knows the answer exactly if one of its passages holds it; fails on the questions it was told to."""

    name = "toy"

    def __init__(self, failing: Sequence[str] = ()) -> None:
        self.failing = failing
        self.contexts: list[Context] = []
        self.calls = 0

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        self.calls += 1
        self.contexts.extend(contexts)
        return [self._one(context) for context in contexts]

    def _one(self, context: Context) -> ReadResult:
        first = f"{context.query.query_id}:{context.documents[0].doc_id}"
        if context.query.query_id in self.failing or first in self.failing:
            return ReadFailed("timeout", paid=False)
        texts = [document.text for document in context.documents if document.text.startswith("the answer")]
        return Answer(texts[0].removeprefix("the answer is ") if texts else "unknown")


class Reversed(FirstStage):
    name = "reversed"

    def _ordered(self, request: RerankRequest):
        return reversed(request.documents)


class Scripted(FirstStage):
    """Returns what a function makes of each request."""

    def __init__(self, script) -> None:
        self.script = script

    def rerank_batch(self, requests: Sequence[RerankRequest]) -> list[Ranking]:
        return self.script(requests)


def gold_place(i: int, name: str) -> int:
    return {"first-stage": i % 5, "reversed": 4 - i % 5, "gold-first": 0}[name]


RANKERS: dict[str, Reranker] = {"first-stage": FirstStage(), "reversed": Reversed(), "gold-first": GoldFirst(EXAMPLES)}


@pytest.mark.parametrize("name", list(RANKERS))
def test_means_are_the_formulas_on_known_places(name: str) -> None:
    evaluation = evaluate(RANKERS, EXAMPLES, reader=ToyReader(), top_k=2, depth=5)
    places = [gold_place(i, name) for i in range(12)]
    expected = {
        "EM": np.mean([place < 2 for place in places]),
        "F1": np.mean([place < 2 for place in places]),
        "sub-EM": np.mean([place < 2 for place in places]),
        "hit@2": np.mean([place < 2 for place in places]),
        "nDCG@10": np.mean([1 / log2(place + 2) for place in places]),
        "RR@10": np.mean([1 / (place + 1) for place in places]),
        "recall@10": 1.0,
        "recall@20": 1.0,
    }
    assert evaluation.to_json()["models"][name] == pytest.approx(expected)
    assert evaluation.metrics == tuple(expected)
    assert [evaluation.models[name].values["EM"][f"q{i}"] for i in range(12)] == [place < 2 for place in places]


def test_depth_cuts_the_candidates_of_all_models_and_counts_lost_documents_as_lost() -> None:
    evaluation = evaluate(RANKERS, EXAMPLES, depth=2, top_k=1)
    assert all(len(ranking.doc_ids) == 2 for model in evaluation.models.values() for ranking in model.rankings.values())
    assert evaluation.scores["gold-first"]["recall@20"].mean == np.mean([i % 5 < 2 for i in range(12)])


def test_tests_are_those_of_the_metrics_package() -> None:
    evaluation = evaluate(RANKERS, EXAMPLES, reader=ToyReader(), top_k=2, depth=5, baseline="first-stage", seed=3)
    test = evaluation.test("gold-first", "first-stage", "RR@10")
    assert test is not None
    differences = [1 - 1 / (gold_place(i, "first-stage") + 1) for i in range(12)]
    assert test.delta == pytest.approx(np.mean(differences))
    assert (test.ci_low, test.ci_high) == pytest.approx(bootstrap_interval(differences, seed=3))
    assert test.p == paired_permutation_test(differences, seed=3)
    assert test.n == 12
    family = [t for t in evaluation.tests if t.metric == "RR@10"]
    assert [t.p_holm for t in family] == holm([t.p for t in family])
    assert {(t.a, t.b) for t in evaluation.tests} == {("reversed", "first-stage"), ("gold-first", "first-stage")}


def test_without_baseline_all_pairs_are_tested_later_minus_earlier() -> None:
    evaluation = evaluate(RANKERS, EXAMPLES, reader=ToyReader(), depth=5)
    assert {(t.a, t.b) for t in evaluation.tests} == {
        ("reversed", "first-stage"),
        ("gold-first", "first-stage"),
        ("gold-first", "reversed"),
    }
    better = evaluation.test("gold-first", "first-stage", "RR@10")
    assert better is not None
    assert better.delta > 0


def test_equal_contexts_are_read_once_and_models_are_read_together() -> None:
    reader = ToyReader()
    evaluate({"a": FirstStage(), "b": FirstStage(), "gold": GoldFirst(EXAMPLES)}, EXAMPLES, reader=reader, depth=5)
    seen = [(c.query.query_id, *(d.doc_id for d in c.documents)) for c in reader.contexts]
    # Gold stands first already for questions 0, 5 and 10, where gold-first and first-stage agree.
    assert len(seen) == len(set(seen)) == 12 + 12 - 3
    assert reader.calls == 1
    assert {len(context.documents) for context in reader.contexts} == {3}


def test_failed_reads_are_masked_pairwise_and_counted() -> None:
    reader = ToyReader(failing=["q1:gold-1"])
    models = {"first-stage": FirstStage(), "gold": GoldFirst(EXAMPLES)}
    evaluation = evaluate(models, EXAMPLES, reader=reader, top_k=1, depth=5, max_failed=0.1)
    assert "q1" not in evaluation.models["gold"].values["F1"]
    assert evaluation.models["first-stage"].values["F1"]["q1"] == 0.0
    assert evaluation.scores["gold"]["F1"][:1] == (1.0,)
    test = evaluation.test("gold", "first-stage", "F1")
    assert test is not None
    assert (test.n, test.delta) == (11, pytest.approx(1 - 3 / 11))
    rows = {row["model"]: (row["n_ok"], row["n_failed"], row["F1"].n) for row in evaluation.table()}
    assert rows == {"first-stage": (12, 0, 12), "gold": (11, 1, 11)}
    assert evaluation.to_json()["n_failed"] == {"first-stage": 0, "gold": 1}
    assert evaluation.scores["gold"]["nDCG@10"].n == 12


def test_too_many_failed_reads_end_the_evaluation() -> None:
    reader = ToyReader(failing=["q1"])
    with pytest.raises(ReaderError, match=r"'toy' failed on 1 of 12 contexts, most often with 'timeout'"):
        evaluate({"x": FirstStage()}, EXAMPLES, reader=reader, depth=5)
    evaluation = evaluate({"x": FirstStage()}, EXAMPLES, reader=reader, depth=5, max_failed=0.1)
    assert evaluation.scores["x"]["F1"].n == 11


@pytest.mark.parametrize(("failing", "ends"), [(1, False), (2, True)])
def test_one_read_of_a_hundred_may_fail(failing: int, ends: bool) -> None:
    examples = [replace(EXAMPLES[0], query=Query(f"q{i}", f"question {i}")) for i in range(100)]
    reader = ToyReader(failing=[f"q{i}" for i in range(failing)])
    with pytest.raises(ReaderError, match="at most 1% may fail") if ends else nullcontext():
        evaluate({"x": FirstStage()}, examples, reader=reader, depth=5)


def test_a_dead_reader_is_left_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwright.evaluation.READS_AT_ONCE", 4)
    reader = ToyReader(failing=[example.query.query_id for example in EXAMPLES])
    with pytest.raises(ReaderError, match="failed on 4 of 12"):
        evaluate({"x": FirstStage()}, EXAMPLES, reader=reader, depth=5)
    assert reader.calls == 1


def test_all_reads_failed_leaves_no_mean_where_it_is_allowed() -> None:
    reader = ToyReader(failing=[example.query.query_id for example in EXAMPLES])
    evaluation = evaluate(RANKERS, EXAMPLES, reader=reader, depth=5, max_failed=1.0)
    assert "F1" not in evaluation.to_json()["models"]["first-stage"]
    assert not [test for test in evaluation.tests if test.metric == "F1"]
    assert evaluation.headline_metric == "nDCG@10"


def test_a_missing_result_of_a_reader_is_named() -> None:
    reader = ToyReader()
    reader.answer = lambda contexts: []
    with pytest.raises(ReaderError, match="0 results for 12"):
        evaluate({"x": FirstStage()}, EXAMPLES, reader=reader, depth=5)


def test_label_metrics_leave_questions_without_labels_out() -> None:
    examples = [*EXAMPLES[:3], Example(Query("u", "?"), EXAMPLES[0].candidates, ("zero",))]
    evaluation = evaluate({"x": FirstStage()}, examples, depth=5)
    assert evaluation.scores["x"]["RR@10"][::3] == (pytest.approx((1 + 1 / 2 + 1 / 3) / 3), 3)
    assert evaluation.scores["x"]["hit@3"].n == 4
    assert evaluation.to_json()["n_labelled"] == 3


def test_without_reader_there_are_no_answer_metrics() -> None:
    evaluation = evaluate({"x": FirstStage()}, EXAMPLES, depth=5)
    assert evaluation.metrics == ("hit@3", "nDCG@10", "RR@10", "recall@10", "recall@20")
    assert evaluation.headline_metric == "nDCG@10"
    assert evaluation.headline_test() is None
    assert "n_ok" not in evaluation.table()[0]


def test_signature_names_what_a_score_depends_on() -> None:
    evaluation = evaluate(
        {"x": FirstStage()},
        EXAMPLES,
        reader=ToyReader(),
        depth=5,
        set_name="a|b",
        retriever="bm25s",
        seed=7,
    )
    tail = f"data:{digest_of(EXAMPLES)[:8]}|bs:1000|seed:7|norm:squad|v:{rankwright.__version__}"
    assert evaluation.signature == f"F1@3|set:a/b|retriever:bm25s|depth:5|reader:toy|queries:12|{tail}"
    assert evaluation.signature_of("hit@3") == f"hit@3|set:a/b|retriever:bm25s|depth:5|queries:12|{tail}"
    assert "norm" not in evaluation.signature_of("nDCG@10")
    assert "reader" not in evaluation.signature_of("nDCG@10")


def test_other_candidates_have_another_signature() -> None:
    other = [*EXAMPLES[1:], replace(EXAMPLES[0], candidates=EXAMPLES[0].candidates[::-1])]
    one, two = (
        evaluate({"x": FirstStage()}, examples, depth=5).signature_of("hit@3") for examples in (EXAMPLES, other)
    )
    assert one != two


def test_the_headline_compares_the_last_model_that_is_no_fixed_order() -> None:
    rankers = {
        "first-stage": FirstStage(),
        "reference": FirstStage(),
        "mine": Reversed(),
        "gold-first": RANKERS["gold-first"],
    }
    test = evaluate(rankers, EXAMPLES, depth=5, baseline="reference").headline_test()
    assert test is not None
    assert (test.a, test.b, test.metric) == ("mine", "reference", "nDCG@10")
    only = evaluate(
        {"first-stage": FirstStage(), "gold-first": RANKERS["gold-first"]}, EXAMPLES, depth=5
    ).headline_test()
    assert only is not None
    assert (only.a, only.b) == ("gold-first", "first-stage")


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        (0.01, 0.03, 0.01, "better"),
        (-0.03, -0.01, 0.01, "worse"),
        (0.01, 0.03, 0.05, "not shown"),
        (-0.03, -0.01, 0.2, "not shown"),
        (0.0, 0.03, 0.01, "not shown"),
        (-0.01, 0.03, 0.04, "not shown"),
    ],
)
def test_verdict(low: float, high: float, p: float, expected: str) -> None:
    assert verdict(PairedTest("a", "b", "F1", 10, (low + high) / 2, low, high, p, p)) == expected


def test_fixed_orders() -> None:
    documents = [Document("a", ""), Document("b", ""), Document("c", ""), Document("d", "")]
    example = Example(Query("q", "?"), tuple(documents), (), {"b": 1, "d": 2, "a": 0, "c": -1})
    assert FirstStage().rerank("q", documents).doc_ids == ("a", "b", "c", "d")
    assert FirstStage().rerank("q", ["x", "y"], top_k=1) == Ranking("0", ("0",), (2.0,))
    gold = GoldFirst([example])
    assert gold.rerank(example.query, documents) == Ranking("q", ("d", "b", "a", "c"), (4.0, 3.0, 2.0, 1.0))
    assert gold.rerank("another question", documents).doc_ids == ("a", "b", "c", "d")
    assert isinstance(gold, Reranker)
    with pytest.raises(ConfigurationError, match="none has a relevant"):
        GoldFirst([Example(Query("q", "?"), relevance={"a": 0})])


def test_json_keeps_the_contract() -> None:
    evaluation = evaluate(RANKERS, EXAMPLES, reader=ToyReader(), depth=5, skipped=2, set_name="toy")
    printed = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert (printed["set"], printed["n"], printed["skipped"]) == ("toy", 12, 2)
    assert printed["signature"] == evaluation.signature
    assert set(printed["models"]) == set(RANKERS)
    assert {"EM", "F1", "hit@3", "nDCG@10"} <= set(printed["models"]["reversed"])
    for test in printed["tests"]:
        assert {"a", "b", "metric", "delta", "ci_low", "ci_high", "p", "p_holm", "verdict"} <= set(test)
        means = printed["models"]
        assert test["delta"] == pytest.approx(means[test["a"]][test["metric"]] - means[test["b"]][test["metric"]])


def test_saved_and_loaded_evaluations_are_equal(tmp_path: Path) -> None:
    odd = Example(Query("q\ud800", 'quote " and \n'), (Document("d", "text"), Document("e", "text", "é")), ("text",))
    reader = ToyReader(failing=["q\ud800"])
    evaluation = evaluate(RANKERS, [*EXAMPLES, odd], reader=reader, depth=5, baseline="reversed", max_failed=0.5)
    path = tmp_path / "new" / "evaluation.json"
    evaluation.save(path)
    again = Evaluation.load(path)
    assert again == evaluation
    assert again.to_json() == evaluation.to_json()
    assert [entry.name for entry in path.parent.iterdir()] == ["evaluation.json"]
    packed = json.loads(path.read_text())
    packed["settings"]["prompt"] = ""  # as files of before have it, which do not say what a failed read cost
    for model in packed["models"].values():
        for read in model["reads"].values():
            if "failed" in read:
                read.pop("paid")
    path.write_text(json.dumps(packed))
    assert Evaluation.load(path).to_json() == evaluation.to_json()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"format": "rankwright-evaluation/1"}', '{"format": "other"}', '"x"']
)
def test_damaged_files_are_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"evaluation\.json"):
        Evaluation.load(path)


def test_missing_files_and_unwritable_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceNotFoundError, match="no evaluation file"):
        Evaluation.load(tmp_path / "none.json")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="cannot be written"):
        evaluate({"x": FirstStage()}, EXAMPLES, depth=5).save(tmp_path / "file" / "evaluation.json")


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_a_model_error(score: float) -> None:
    def broken(requests: Sequence[RerankRequest]) -> list[Ranking]:
        ranked = FirstStage().rerank_batch(requests)
        return [Ranking(r.query_id, r.doc_ids, (*r.scores[:-1], score)) for r in ranked]

    with pytest.raises(ModelError, match=r"'x' gave document 'other-0-3' of query 'q0' the score"):
        evaluate({"x": Scripted(broken)}, EXAMPLES, depth=5)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (lambda requests: [], "0 rankings for 12"),
        (lambda requests: FirstStage().rerank_batch(requests)[::-1], "query 'q11' where"),
        (
            lambda requests: [Ranking(r.query.query_id, ("gold-0",) * 5, (0.0,) * 5) for r in requests],
            "each candidate once",
        ),
        (lambda requests: [Ranking(r.query.query_id, (), ()) for r in requests], "ranked 0 documents"),
    ],
)
def test_rankings_that_are_not_the_candidates_are_a_model_error(script, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        evaluate({"x": Scripted(script)}, EXAMPLES, depth=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"baseline": "other"}, "Baseline 'other' is not among the models x"),
        ({"depth": 0}, "depth 0"),
        ({"top_k": 0}, "top_k 0"),
        ({"top_k": 6}, "top_k 6 above depth 5"),
        ({"max_failed": 5}, "max_failed is 5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        evaluate({"x": FirstStage()}, EXAMPLES, **{"depth": 5, **settings})


def test_no_model_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no model"):
        evaluate({}, EXAMPLES)


D = Document("d", "text")


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "no questions"),
        ([Example(Query("q", "?"), (D,), ("a",)), Example(Query("q", "!"), (D,), ("a",))], "'q' occurs 2 times"),
        ([Example(Query("q", "?"), (), ("a",))], "Candidate list of query 'q' is empty"),
        ([Example(Query("q", "?"), (D, D), ("a",))], "document 'd' 2 times"),
        ([Example(Query("q", "?"), (D,), (), {"d": 1})], "'q' has no accepted answer"),
    ],
)
def test_bad_questions_are_named(examples: list[Example], message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate({"x": FirstStage()}, examples, reader=ToyReader())


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to measure"):
        evaluate({"x": FirstStage()}, [Example(Query("q", "?"), (D,), (), {"d": 0})])


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    evaluate(RANKERS, EXAMPLES, reader=ToyReader(), depth=5, progress=lambda *step: told.append(step))
    assert ("rank with reversed", 12, 12) in told
    assert all(done <= total for _, done, total in told)
    assert [what for what, done, total in told if done == total][-2:] == ["intervals", "tests"]


def test_the_same_seed_gives_the_same_evaluation() -> None:
    first, second = (evaluate(RANKERS, EXAMPLES, reader=ToyReader(), depth=5, seed=1) for _ in range(2))
    assert first == second


def test_evaluation_imports_no_torch() -> None:
    code = "import sys, rankwright.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
