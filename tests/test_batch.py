"""The stage that a worker of Ray Data runs, without Ray: tests/gates/test_ray_cluster.py has a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import rankwright
from rankwright.batch import RerankStage, ray_data, rerank_dataset
from rankwright.data.jsonl import row_of
from rankwright.errors import ConfigurationError, MissingDependencyError, ModelError
from tests.bulk_kit import Stub, examples, score_of
from tests.cli_kit import DOORS, make_model, rows


def block(count: int, **columns: Any) -> pa.Table:
    return pa.Table.from_pylist([{**row_of(example), **columns} for example in examples(count)])


def test_candidates_come_best_first_and_everything_else_stays() -> None:
    table = block(20, topic="islands", weight=0.5)
    found = RerankStage(Stub, top_k=3)(table)
    assert found.drop_columns(["candidates", "error"]).equals(table.drop_columns(["candidates"]))
    assert found.schema.names == [*table.schema.names, "error"]
    for example, row in zip(examples(20), found.to_pylist(), strict=True):
        scores = {d.doc_id: score_of(example.query.query_id, d.doc_id) for d in example.candidates}
        best = sorted(scores.items(), key=lambda one: -one[1])[:3]
        assert [(c["doc_id"], c["score"]) for c in row["candidates"]] == best
        texts = {d.doc_id: (d.title, d.text) for d in example.candidates}
        assert [(c["title"], c["text"]) for c in row["candidates"]] == [texts[doc_id] for doc_id, _ in best]


def test_blocks_have_one_schema_whatever_they_hold() -> None:
    table, stage = block(6), RerankStage(Stub, max_failed=10)
    failing = RerankStage(lambda: Stub(["q0"]))(table.slice(0, 1))
    empty = stage(table.slice(0, 0))
    assert stage(table).schema.equals(failing.schema)
    assert stage(table).schema.equals(empty.schema)


def test_further_fields_of_candidates_stay_and_missing_ids_are_made() -> None:
    candidates = [{"text": "a", "url": "u1", "score": 3}, {"text": "b", "url": "u2", "score": None}]
    (row,) = RerankStage(Stub)(pa.Table.from_pylist([{"question": "?", "candidates": candidates}])).to_pylist()
    assert {c["text"]: c["url"] for c in row["candidates"]} == {"a": "u1", "b": "u2"}
    assert all(c["doc_id"] for c in row["candidates"])


def test_rows_that_fail_are_named_and_keep_their_candidates() -> None:
    table = pa.Table.from_pylist(
        [
            {"query_id": "q1", "question": "?", "candidates": [{"doc_id": "d", "text": "a"}]},
            {"query_id": "q2", "question": " ", "candidates": [{"doc_id": "d", "text": "a"}]},
            {"query_id": "q3", "question": "?", "candidates": []},
            {"query_id": "q4", "question": "?", "candidates": [{"doc_id": "d", "text": None}]},
            {"query_id": "q5", "question": "?", "candidates": [{"doc_id": "d", "text": "a"}]},
        ]
    )
    found = RerankStage(lambda: Stub(["q5"]))(table).to_pylist()
    assert [row["error"].partition(";")[0] for row in found] == [
        "",
        "field 'question' is empty",
        "field 'candidates' is empty",
        "passage 'd' has neither title nor text",
        "ValueError: planned",
    ]
    assert [[c["score"] for c in row["candidates"]] for row in found[1:]] == [[None], [], [None], [None]]
    with pytest.raises(ModelError, match="4 questions failed, the last 'q5'"):
        RerankStage(lambda: Stub(["q5"]), max_failed=3)(table)


@pytest.mark.parametrize("candidates", [["a", "b"], None, "a"])
def test_columns_that_do_not_fit_are_named(candidates: Any) -> None:
    row = {"question": "?"} | ({} if candidates is None else {"candidates": candidates})
    with pytest.raises(ConfigurationError, match=r"has the columns question \(string\).*wanted query_id, question and"):
        RerankStage(Stub)(pa.Table.from_pylist([row]))


def test_a_model_s_scores_and_cuts_are_those_of_the_plain_path(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    stage, plain = RerankStage(str(model)), rankwright.load(model)
    (door, *_), long = rows(), "Door 10 stands in a wall. " * 20
    table = pa.Table.from_pylist([{"question": door["question"], "candidates": [*door["candidates"], {"text": long}]}])
    (row,) = stage(table).to_pylist()
    documents = [rankwright.types.Document(c["doc_id"], c["text"], c["title"] or "") for c in row["candidates"]]
    expected = plain.rerank(door["question"], documents)
    assert [c["score"] for c in row["candidates"]] == pytest.approx(expected.scores, abs=1e-6)
    requests = [rankwright.types.RerankRequest(rankwright.types.Query("0", door["question"]), tuple(documents))]
    _, cut = stage.rank(requests)
    assert (cut.pairs, cut.cut, cut.max_length) == (len(documents), 1, plain.max_length)
    assert len(DOORS) > 1


def test_workers_are_not_left_to_choose_a_backend_each() -> None:
    """Half of the rows would have the scores of another one, where processors are mixed."""
    rows: Any = None  # refused before anything is asked of them
    with pytest.raises(ConfigurationError, match=r"Backend is 'auto'.*Name the backend"):
        rerank_dataset(rows, "reference", backend="auto")


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "rankwright\[ray\]"'):
        ray_data()
