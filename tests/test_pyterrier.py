"""A reranker in PyTerrier: the transformer, in PyTerrier's own pipelines and experiments. No Java is started."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pandas as pd
import pyterrier as pt
import pytest

import rankwright
from rankwright.errors import ConfigurationError, ResourceNotFoundError
from rankwright.integrations import opened
from rankwright.integrations.pyterrier import RankwrightReranker
from tests.integration_kit import Written, sigmoid
from tests.tiny_bert import save_cross_encoder

COLUMNS = ["qid", "query", "docno", "text", "score", "rank", "url"]


def _frame() -> pd.DataFrame:
    """Two queries whose rows are mixed, one document twice, an index with gaps."""
    rows = [
        ["q1", "rain?", "a", "rain 1", 9.0, 0, "x"],
        ["ü 2", "moon?", "a", "rain 5", 9.0, 0, None],
        ["q1", "rain?", "雨/b", "river 3", 8.0, 1, "y"],
        ["q1", "rain?", "a", "rain 1", 7.0, 2, "z"],
        ["ü 2", "moon?", "c", "moon -2", 8.0, 1, "x"],
    ]
    return pd.DataFrame(rows, columns=COLUMNS, index=[7, 7, 3, 1, 0])


def test_rows_get_new_scores_and_ranks_and_keep_the_rest() -> None:
    frame, written = _frame(), Written()
    found = RankwrightReranker(written)(frame)
    pd.testing.assert_frame_equal(frame, _frame())
    assert isinstance(found, pd.DataFrame)
    assert list(found["score"]) == [1.0, 5.0, 3.0, 1.0, -2.0]
    assert list(found["rank"]) == [1, 0, 0, 2, 1]
    new = ["score", "rank"]
    pd.testing.assert_frame_equal(found.drop(columns=new), _frame().drop(columns=new))
    assert len(written.asked) == 1
    expected = [
        ("rain?", "rain 1"),
        ("rain?", "river 3"),
        ("rain?", "rain 1"),
        ("moon?", "rain 5"),
        ("moon?", "moon -2"),
    ]
    assert [(query, text) for query, _, text in written.read] == expected


def test_large_frames_are_several_calls_of_whole_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "PAIRS_AT_ONCE", 3)
    written = Written()
    found = RankwrightReranker(written).transform(_frame())
    assert [[len(r.documents) for r in requests] for requests in written.asked] == [[3], [2]]
    assert list(found["score"]) == [1.0, 5.0, 3.0, 1.0, -2.0]


@pytest.mark.parametrize("columns", [COLUMNS, ["qid", "query", "docno", "text"]])
def test_an_empty_frame_has_the_columns_of_a_full_one(columns: list[str]) -> None:
    written = Written()
    found = RankwrightReranker(written).transform(pd.DataFrame(columns=columns))
    full = RankwrightReranker(written).transform(_frame().filter(columns))
    assert len(found) == 0
    assert list(found.columns) == list(full.columns)
    assert found["score"].dtype == full["score"].dtype
    assert len(written.asked) == 1


def test_pyterrier_can_inspect_it() -> None:
    reranker = RankwrightReranker(Written(), title_field="title")
    assert pt.inspect.transformer_inputs(reranker) == [["qid", "docno", "query", "text", "title"]]
    outputs = pt.inspect.transformer_outputs(reranker, ["qid", "docno", "query", "text", "title"])
    assert outputs == ["qid", "docno", "query", "text", "title", "score", "rank"]


def test_what_is_read_of_a_row() -> None:
    frame = _frame()[:3].assign(body=["a 1", None, math.nan], title=["A", None, math.nan])
    written = Written()
    found = RankwrightReranker(written, text_field="body", title_field="title", scale="sigmoid").transform(frame)
    assert written.read == [("rain?", "A", "a 1"), ("rain?", "", ""), ("moon?", "", "")]
    assert list(found["score"]) == pytest.approx([sigmoid(1.0), sigmoid(-100.0), sigmoid(-100.0)], rel=1e-12, abs=0)


def test_an_experiment_measures_the_pipeline() -> None:
    frame = _frame().drop_duplicates(["qid", "docno"])
    first_stage = pt.Transformer.from_df(frame)
    topics = pd.DataFrame([["q1", "rain?"], ["ü 2", "moon?"]], columns=["qid", "query"])
    qrels = pd.DataFrame([["q1", "雨/b", 1], ["ü 2", "c", 1]], columns=["qid", "docno", "label"])
    pipeline = first_stage >> RankwrightReranker(Written()) % 1
    systems, names = [first_stage, pipeline], ["before", "after"]
    table = pt.Experiment(systems, topics, qrels, ["recip_rank"], names, plan="tree")
    assert list(table["recip_rank"]) == [(1 / 2 + 1 / 2) / 2, (1 + 0) / 2]


def test_single_queries_and_records_work_too() -> None:
    pipeline = pt.Transformer.from_df(_frame().drop(columns=["query"])) >> RankwrightReranker(Written())
    found = pipeline.search("rain?", qid="q1")
    assert list(found["docno"]) == ["雨/b", "a", "a"]
    records = RankwrightReranker(Written())(_frame().to_dict(orient="records"))
    assert isinstance(records, list)
    assert [record["score"] for record in records] == [1.0, 5.0, 3.0, 1.0, -2.0]


def test_a_model_by_name_gives_its_raw_scores_and_is_pickled_as_its_name(tmp_path: Path) -> None:
    folder = save_cross_encoder(tmp_path / "model")
    frame = _frame().head(1)
    reranker = RankwrightReranker(folder, load={"max_length": 8})
    expected = rankwright.load(folder, max_length=8).rerank("rain?", ["rain 1"]).scores
    pickled = pickle.loads(pickle.dumps(reranker))
    assert [list(each.transform(frame)["score"]) for each in (reranker, pickled)] == [list(expected)] * 2
    assert len(pickle.dumps(reranker)) < 1000
    assert hash(pickled) == hash(reranker) != hash(RankwrightReranker(folder))


def test_wrong_input_is_named() -> None:
    with pytest.raises(pt.validate.InputValidationError, match="text"):
        RankwrightReranker(Written()).transform(_frame().drop(columns=["text"]))
    with pytest.raises(ConfigurationError, match="Scale of scores is 'softmax'"):
        RankwrightReranker(Written(), scale="softmax")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ResourceNotFoundError, match="no/such/folder"):
        RankwrightReranker("no/such/folder")


def test_no_java_was_started() -> None:
    assert not pt.java.started()
