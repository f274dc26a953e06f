"""Gate C7: a whole training run over a reader behind HTTP, killed 200 times and resumed, pays no stored answer twice
and ends with the bytes of a run that nobody killed."""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.cli_kit import make_model, rows, write_rows
from tests.gates.mutants import Mutant
from tests.gates.sizes import tries
from tests.kill_harness import LEFT, Job, Point
from tests.kill_jobs import run_command
from tests.test_cli_costs import Server, command, endpoint

pytestmark = [pytest.mark.gates, pytest.mark.timeout(2400)]

KILLS = tries(full=200, quick=15)
CONCURRENCY = 2
PLACES = [
    "rankwright.llms.cache:CachedLLM._keep",
    "rankwright.training:FeedbackTrainer._save_checkpoint",
    "rankwright.cli.run:_begin_folder",
    "rankwright.cli.run:_write_results",
]
COUNTS = {"reader_calls", "cache_hits", "seconds", "seconds_by_part"}
"""What result.json may have otherwise: the second time an answer comes from the cache."""

GATE = "tests/gates/test_gate_c7.py"
MUTANTS = [
    Mutant(
        "C7",
        GATE,
        "rankwright/llms/cache.py",
        "self._store.put_many(answers, [self._entry",
        "self._store.put_many({}, [self._entry",
    ),
    Mutant(
        "C7",
        GATE,
        "rankwright/training.py",
        '        self.algorithm.restore(state["algorithm"])\n',
        "",
    ),
]


class SlowServer(Server):
    """Takes its time, so that kills meet calls in flight."""

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        time.sleep(0.003)
        super().__call__(request)

    def asked(self, since: int = 0) -> list[str]:
        """Prompts of the run; the first call of a run that begins is its own each time."""
        return [prompt for prompt in self.prompts[since:] if "The number of this run" not in prompt]


def world(folder: Path) -> Path:
    """Questions and a model, the same in every folder."""
    folder.mkdir()
    write_rows(folder / "q.jsonl", rows())
    make_model(folder / "tiny")
    return folder


def session(folder: Path, address: str, point: Point | None = None) -> Job:
    """The command, resumed where there is something to resume."""
    resume = ["--resume"] if (folder / "runs/a/config.json").exists() else []
    arguments = command(address, *resume, **{"reader.concurrency": str(CONCURRENCY)})
    return Job(run_command, folder, arguments, point=point)


def outcome(folder: Path) -> dict[str, Any]:
    """What a run came to, less what may differ."""
    run = folder / "runs/a"
    result = json.loads((run / "result.json").read_text("utf-8"))
    found: dict[str, Any] = {
        "result": {name: value for name, value in result.items() if name not in COUNTS},
        "metrics": uncounted((run / "metrics.jsonl").read_bytes()),
        "evaluation": re.sub(rb'"paid": (true|false)', b"", (run / "evaluation.json").read_bytes()),
    }
    model = {path.name: path.read_bytes() for path in (run / "model").iterdir() if path.name != "README.md"}
    assert "model.safetensors" in model
    return {**found, **model}


def uncounted(metrics: bytes) -> bytes:
    """Without who gave the answers, the reader or the cache."""
    return re.sub(rb'"(eval_)?(reader_calls|cache_hits)": [\d.]+', b"", metrics)


def test_a_killed_run_pays_no_answer_twice_and_ends_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, server = random.Random(3), SlowServer()
    with endpoint(server) as (address, _):
        calls: dict[str, int] = {}
        whole, asked = None, Counter[str]()
        usual = 0.0
        for number, place in enumerate(["", *PLACES]):
            folder, before = world(tmp_path / f"whole-{number}"), len(server.prompts)
            job = session(folder, address, Point(place) if place else None)
            assert not job.end()
            assert job.words("code")[0] in (0, 8)
            usual = usual or time.monotonic() - job.started
            calls[place] = job.words(LEFT)[-1] if place else 0
            asked = Counter(server.asked(before))
            assert max(asked.values()) == 1
            whole = whole or outcome(folder)
            assert outcome(folder) == whole
        kills, runs, repeats = Counter[str](), 0, 0
        while kills.total() < KILLS:
            folder, begun = world(tmp_path / f"killed-{runs}"), len(server.prompts)
            stored: set[str] = set()
            killed_here = 0
            while True:
                before = len(server.prompts)
                place = draw.choice(PLACES) if draw.random() < 0.5 else ""
                point = Point(place, draw.randint(1, calls[place])) if place else None
                job = session(folder, address, point)
                if not place:
                    job.kill_after(draw.uniform(0, usual))
                was_killed = job.end()
                assert not stored & set(server.asked(before))
                stored.update(job.words("stored"))
                if not was_killed:
                    break
                killed_here += 1
                kills[place.rpartition(".")[2] or "by the clock"] += 1
            assert job.words("code")[0] in (0, 8)
            assert outcome(folder) == whole
            again = Counter(server.asked(begun))
            assert again.keys() == asked.keys()
            assert again.total() - len(again) <= CONCURRENCY * killed_here
            repeats += again.total() - len(again)
            runs += 1
    with capsys.disabled():
        print(f"\nC7: {kills.total()} kills in {runs} runs ({dict(kills)}), {repeats} calls repeated, 0 of them stored")
