"""Gate C7: a whole training run with query expansion over a reader behind HTTP, killed 200 times and resumed, pays no
stored answer twice and ends with the bytes of a run that nobody killed: model, checkpoints, comparison, report."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
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
SETTLED = 0.05
"""Seconds without a call after which none comes of a killed client."""
PLACES = [
    "rankwright.llms.cache:CachedLLM._keep",
    "rankwright.training:FeedbackTrainer._save_checkpoint",
    "rankwright.cli.run:_begin_folder",
    "rankwright.cli.run:write_results",
]
COUNTS = {"cache_hits", "seconds", "seconds_by_part"}
"""What result.json may have otherwise: the second time an answer comes from the cache. Paid calls are as many."""
COUNTED = rb'"(eval_)?(reader_calls|cache_hits)": [\d.]+'
OF_A_CHECKPOINT = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")

GATE = "tests/gates/test_gate_c7.py"
MUTANTS = [
    Mutant(
        "C7",
        GATE,
        "rankwright/llms/cache.py",
        "self._store.put_many(answers, [self._entry",
        "self._store.put_many({}, [self._entry",
    ),
    Mutant("C7", GATE, "rankwright/training.py", "self.algorithm.restore(state[", "dict(state["),
    Mutant(
        "C7", GATE, "rankwright/llms/http.py", "count = min(self._llm.concurrency, self._total)", "count = self._total"
    ),
]


class SlowServer(Server):
    """Takes its time, so that kills meet calls in flight."""

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        time.sleep(0.003)
        super().__call__(request)

    def settle(self) -> None:
        """Waits for what a killed client had sent."""
        seen = -1
        while seen < len(self.prompts):
            seen = len(self.prompts)
            time.sleep(SETTLED)

    def asked(self, since: int = 0) -> list[str]:
        """Prompts of the run."""
        return [nameless(prompt) for prompt in self.prompts[since:]]


def nameless(text: str) -> str:
    """Without the name that a run gives itself, which its first call asks about and config.json holds."""
    return re.sub(r"\ba-[0-9a-f]{8}\b", "a-NAME", text)


def world(folder: Path) -> Path:
    """Questions and a model, the same in every folder."""
    first = folder.with_name("world")
    if not first.exists():
        first.mkdir()
        write_rows(first / "q.jsonl", rows())
        make_model(first / "tiny")
    shutil.copytree(first, folder)
    return folder


def session(folder: Path, address: str, *points: Point) -> Job:
    """The command, resumed where there is something to resume."""
    resume = ["--resume"] if (folder / "runs/a/config.json").exists() else []
    settings = {
        "reader.concurrency": str(CONCURRENCY),
        "data.retriever": "bm25",
        "data.depth": "3",
        "data.eval_depth": "6",
    }
    expansion = {"expansion.llm": address, "expansion.model": "writer"}
    arguments = command(address, *resume, **settings, **expansion)
    return Job(run_command, folder, arguments, points=points)


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run came to, less what may differ: times, and who gave the answers, the reader or the cache."""
    run = folder / "runs/a"
    result = json.loads((run / "result.json").read_text("utf-8"))
    names = ["expansions.jsonl", "environment.json", *(f"model/{path.name}" for path in (run / "model").iterdir())]
    names += [f"{path.name}/{file}" for path in run.glob("checkpoint-*") for file in OF_A_CHECKPOINT]
    assert {"model/model.safetensors", "model/README.md"} < set(names)
    metrics = (run / "metrics.jsonl").read_bytes()
    return {
        **{name: (run / name).read_bytes() for name in names},
        "config": nameless((run / "config.json").read_text("utf-8")),
        "result": {name: value for name, value in result.items() if name not in COUNTS},
        "metrics": re.sub(COUNTED, b"", metrics),
        "reads": [reads_of(json.loads(line)) for line in metrics.splitlines()],
        "evaluation": re.sub(rb'"paid": (true|false)', b"", (run / "evaluation.json").read_bytes()),
        "report": untimed((run / "report.html").read_text("utf-8"), result),
    }


def reads_of(row: Mapping[str, float]) -> list[float]:
    """How many answers a line of the metrics has of the reader and the cache together."""
    return [row.get(f"{of}reader_calls", 0) + row.get(f"{of}cache_hits", 0) for of in ("", "eval_")]


def untimed(report: str, result: Mapping[str, Any]) -> str:
    """Without the numbers in which results may differ."""
    assert f"{result['reader_calls']}</b><span>paid reader calls ({result['cache_hits']} from cache)" in report
    report = re.sub(r"\(\d+ from cache\)", "", report)
    report = re.sub(r"<b>[^<]*(?=</b><span>training<)", "", report)
    term = r'<dt><bdi class="data">(cache_hits|seconds|seconds_by_part\.\w+)</bdi></dt>'
    return re.sub(term + r'<dd><bdi class="data">[\d.]+</bdi></dd>', "", report)


@dataclass
class Ledger:
    """Of all killed runs together."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    repeats: list[int] = field(default_factory=list)
    """Of each kill, calls that were made again: they were in flight, so their answers had not been stored."""


@dataclass(frozen=True)
class Usual:
    """The run that nobody kills."""

    outcome: dict[str, Any]
    prompts: set[str]
    seconds: float
    calls: dict[str, int]
    """Made in each of the places."""


def run_whole(folder: Path, address: str, server: SlowServer) -> Usual:
    """Twice, first with calls counted; it starts the process from which all are forked, which takes time of its own."""
    counted = session(world(folder / "counted"), address, *map(Point, PLACES))
    assert not counted.end()
    before = len(server.prompts)
    plain = session(world(folder / "whole"), address)
    assert not plain.end()
    seconds = time.monotonic() - plain.started
    assert outcome(folder / "counted") == outcome(folder / "whole")
    prompts = server.asked(before)
    assert len(prompts) == len(set(prompts)) > CONCURRENCY * 10
    calls = {word[3]: word[1] for word in counted.said if word[0] == LEFT}
    return Usual(outcome(folder / "whole"), set(prompts), seconds, calls)


def run_killed(
    folder: Path, address: str, server: SlowServer, usual: Usual, draw: random.Random, ledger: Ledger
) -> None:
    """One run, killed again and again; half of the sessions by the clock, in the others at a call that is made."""
    stored, sessions, in_flight = set[str](), list[set[str]](), list[set[str]]()
    while True:
        before = len(server.prompts)
        place = draw.choice(PLACES) if draw.random() < 0.5 else ""
        points = [Point(place, draw.randint(1, max(1, usual.calls[place] // 2)))] if place else []
        job = session(folder, address, *points)
        if not place:
            job.kill_after(draw.uniform(0, usual.seconds / 2))
        was_killed = job.end()
        server.settle()
        asked = server.asked(before)
        sessions.append(set(asked))
        assert len(asked) == len(sessions[-1]), "a session asks twice"
        assert not stored & sessions[-1], "what was stored is paid for again"
        stored.update(map(nameless, job.words("stored")))
        if not was_killed:
            break
        in_flight.append(sessions[-1] - stored)
        ledger.kills[place.rpartition(".")[2].rpartition(":")[2] or "by the clock"] += 1
    assert job.words("code")[0] in (0, 8)
    assert outcome(folder) == usual.outcome
    assert set[str]().union(*sessions) == usual.prompts
    repeats = [len(lost & set[str]().union(*sessions[kill + 1 :])) for kill, lost in enumerate(in_flight)]
    assert max(repeats, default=0) <= CONCURRENCY
    ledger.repeats += repeats
    ledger.runs += 1


def test_a_killed_run_pays_no_answer_twice_and_ends_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, ledger = random.Random(3), Ledger()
    server = SlowServer()
    with endpoint(server) as (address, _):
        usual = run_whole(tmp_path, address, server)
        while ledger.kills.total() < KILLS:
            folder = world(tmp_path / f"killed-{ledger.runs}")
            run_killed(folder, address, server, usual, draw, ledger)
    with capsys.disabled():
        print(
            f"\nC7: {ledger.kills.total()} kills in {ledger.runs} runs ({dict(ledger.kills)}), {sum(ledger.repeats)} "
            f"calls repeated, at most {max(ledger.repeats)} after a kill, none of them stored"
        )
