"""What tests/gates/test_ray_cluster.py looks at: FOLDER MODEL. Ray warns of things of its own, so this is no test.

A cluster of two nodes on this machine, with one worker on each. Every case leaves what it found in FOLDER/found.json.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.cluster_utils import Cluster

from rankwright.batch import Make, RayScore, rerank_dataset
from rankwright.bulk import Form, Output, Score, looked_through, scored_here, write_rankings
from rankwright.cli.app import run
from rankwright.data.jsonl import row_of
from rankwright.data.streams import ExampleStream
from rankwright.errors import MissingDependencyError, RankwrightError
from rankwright.types import Ranking, RerankRequest
from tests.bulk_kit import PAIRS, Companionable, Stub, examples, write_rows

COUNT = 120


class Mortal(Companionable):
    """Notes where it works, and dies once, at question q77."""

    def __init__(self, notes: Path, companionable: bool) -> None:
        super().__init__(["q5"])
        self.notes, self.companionable = notes, companionable

    def rerank_batch(self, requests: Sequence[RerankRequest]) -> list[Ranking]:
        node = ray.get_runtime_context().get_node_id()
        (self.notes / f"node-{node}").touch()
        died = self.notes / "died"
        if any(request.query.query_id == "q77" for request in requests) and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().rerank_batch(requests)

    def _shift(self, ids: Sequence[str]) -> float:
        return super()._shift(ids) if self.companionable else 0.0


def broken() -> Stub:
    raise MissingDependencyError("run pip install x")


def by_dataset(notes: Path) -> list[dict[str, Any]]:
    """All rows of a dataset that went through the stage."""
    rows = [{**row_of(example), "place": number} for number, example in enumerate(examples(COUNT))]
    found = rerank_dataset(
        ray.data.from_items(rows), partial(Mortal, notes, False), workers=2, top_k=3, questions_at_once=7
    )
    return sorted(found.take_all(), key=lambda row: row["place"])


def by_score(data: Path, out: Path, score: Score) -> None:
    stream = ExampleStream(data, folder=out.parent)
    with Output.opened(out, {}, stream.digests) as output:
        if output.totals is None:
            output.begin(looked_through(stream, PAIRS))
        write_rankings(output, score, stream, Form.of(out), pairs=PAIRS)


class Poisoned(Stub):
    """Dies of question q77, every time."""

    def rerank_batch(self, requests: Sequence[RerankRequest]) -> list[Ranking]:
        if any(request.query.query_id == "q77" for request in requests):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().rerank_batch(requests)


def named_error(data: Path, out: Path, make: Make) -> str:
    try:
        by_score(data, out, RayScore(make, 2))
    except RankwrightError as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def notes(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def main(folder: Path, model: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    data = write_rows(folder / "rows.jsonl", COUNT)
    of_dataset, of_score = notes(folder, "dataset"), notes(folder, "score")
    rows = by_dataset(of_dataset)
    by_score(data, folder / "here.run", scored_here(Companionable(["q5"])))
    by_score(data, folder / "ray.run", RayScore(partial(Mortal, of_score, True), 2))
    asked = ["rerank", "--data", str(data), "--model", model, "--out"]
    codes = [run([*asked, str(folder / "plain.jsonl")]), run([*asked, str(folder / "cli.jsonl"), "--ray"])]
    long = write_rows(folder / "long.jsonl", 12, words=60)
    whole = ["rerank", "--data", str(long), "--model", model, "--out"]
    windows = [
        run([*whole, str(folder / f"{name}.jsonl"), *more])
        for name, more in {
            "cut": [],
            "windows": ["--windows", "max"],
            "ray-windows": ["--windows", "max", "--ray"],
        }.items()
    ]
    windows.append(run([*whole, str(folder / "ray-windows.jsonl"), "--ray"]))  # without windows it cannot go on
    errors = [named_error(data, folder / f"{made.__name__}.run", made) for made in (broken, Poisoned)]
    by_score(data, folder / "Poisoned.run", scored_here(Stub()))  # goes on here
    ray.shutdown()
    cluster.shutdown()
    own = [sys.executable, "-m", "rankwright.cli", *asked, str(folder / "own.jsonl"), "--ray", "--workers", "2"]
    codes.append(subprocess.run(own, check=False).returncode)  # which starts Ray itself
    found = {"rows": rows, "codes": codes, "windows": windows, "errors": errors}
    (folder / "found.json").write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
