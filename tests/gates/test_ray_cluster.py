"""Reranking on a Ray cluster of two nodes on this machine (tests/ray_run.py): results of one process, with a worker
killed in the middle. `make ray` runs it; starting Ray alone takes longer than most tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rankwright.data import read_trec_run
from tests.bulk_kit import PAIRS, examples, score_of
from tests.cli_kit import ROOT, make_model
from tests.ray_run import COUNT

pytestmark = [pytest.mark.gates, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    model = make_model(tmp_path_factory.mktemp("models") / "random")
    done = subprocess.run(
        [sys.executable, "-m", "tests.ray_run", str(folder), str(model)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "found.json").read_text("utf-8"))


@pytest.mark.parametrize("case", ["dataset", "score"])
def test_both_nodes_worked_and_a_worker_died(folder: Path, case: str) -> None:
    names = sorted(path.name.partition("-")[0] for path in (folder / case).iterdir())
    assert names == ["died", "node", "node"]


def test_a_dataset_comes_back_whole_with_the_scores_of_the_formula(found: dict[str, Any]) -> None:
    for example, row in zip(examples(COUNT), found["rows"], strict=True):
        query_id = example.query.query_id
        ids = {d.doc_id: score_of(query_id, d.doc_id) for d in example.candidates}
        best = sorted(ids.items(), key=lambda one: -one[1])[:3]
        assert (row["query_id"], row["answers"]) == (query_id, list(example.answers))
        if query_id == "q5":
            assert row["error"] == "ValueError: planned"
            assert [c["score"] for c in row["candidates"]] == [None] * len(ids)
        else:
            assert row["error"] == ""
            assert [(c["doc_id"], c["score"]) for c in row["candidates"]] == best
        assert {c["text"] for c in row["candidates"]} <= {d.text for d in example.candidates}


def test_ordered_actors_leave_the_bytes_of_one_process(folder: Path) -> None:
    """Also where scores show which questions were scored together."""
    assert (folder / "ray.run").read_bytes() == (folder / "here.run").read_bytes()
    assert len(read_trec_run(folder / "ray.run")) == COUNT - 1


def test_the_command_leaves_the_bytes_of_the_command_without_ray(folder: Path, found: dict[str, Any]) -> None:
    assert found["codes"] == [0, 0, 0]
    plain = (folder / "plain.jsonl").read_bytes()
    assert (folder / "cli.jsonl").read_bytes() == plain
    assert (folder / "own.jsonl").read_bytes() == plain  # without a cluster the command starts Ray itself


def test_workers_read_windows_as_the_command_without_ray_does(folder: Path, found: dict[str, Any]) -> None:
    assert found["windows"] == [0, 0, 0, 2]
    cut, windows, by_ray = ((folder / f"{name}.jsonl").read_bytes() for name in ("cut", "windows", "ray-windows"))
    assert by_ray == windows
    assert by_ray != cut


def test_errors_of_workers_are_ours(folder: Path, found: dict[str, Any]) -> None:
    missing, poisoned = found["errors"]
    assert missing == "MissingDependencyError: run pip install x"
    assert "Workers died 4 times over the questions" in poisoned
    assert len(read_trec_run(folder / "Poisoned.run")) == COUNT  # what was written before stayed


def test_the_batches_are_small_enough_to_be_many() -> None:
    assert sum(len(example.candidates) for example in examples(COUNT)) / PAIRS > 30
