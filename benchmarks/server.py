"""What serving costs beside scoring: `python -m benchmarks.server` writes results/server.md.

The same questions go to `rankwright serve`, to sentence-transformers' CrossEncoder behind a plain FastAPI route, to our
engine without HTTP, and to the model alone, all on the same weights with one thread each. CPU seconds are those of the
serving process (user and system), so that the client's own work and other work on the machine do not count; rounds are
interleaved, and medians of rounds are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from benchmarks.kept import hardware
from rankwright.types import Document, Query, RerankRequest
from tests.load_kit import Answer, Line, post, quantile, statuses
from tests.served import Served

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks" / "results" / "server.md"
DOCUMENTS = 20
QUESTIONS = ("who keeps the light?", "when was the bridge built?", "what is carried in the race?", "who paid for it?")
CLIENTS = (1, 8)
PATIENT = 600.0
"""Seconds: nothing is to be late on a machine that is busy with other work."""


@dataclass(frozen=True)
class Round:
    """What one round of one server took."""

    cpu: float
    """Seconds of the serving process."""
    seconds: tuple[float, ...]
    """Of each request."""
    pairs: int


def requests(count: int) -> list[tuple[str, list[str]]]:
    """Questions with passages of the bundled knowledge base, of 30 to 100 words."""
    file = ROOT / "rankwright" / "assets" / "demo" / "corpus.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    corpus = [f"{row['title']}: {row['text']}" for row in rows]
    return [
        (QUESTIONS[i % len(QUESTIONS)], [corpus[(37 * i + 11 * j) % len(corpus)] for j in range(DOCUMENTS)])
        for i in range(count)
    ]


def bodies(count: int) -> list[bytes]:
    """The same as HTTP requests."""
    asked = requests(count)
    return [
        post(json.dumps({"query": q, "documents": d, "return_documents": False}).encode(), key="k") for q, d in asked
    ]


# --- the other side of the pipe: scoring without HTTP -----------------------------------------------------------------


def without_http(folder: str) -> None:
    """Answers lines of (what, requests, clients) with the CPU seconds and the seconds of each request."""
    import rankwright
    from rankwright.engine import Engine, EngineSettings

    model = rankwright.load(folder)
    engine = Engine(lambda: {"model": model}, EngineSettings(timeout=PATIENT, patience=PATIENT, give_up=PATIENT))
    engine.start()
    engine.opened()
    for line in sys.stdin:
        what, count, clients = json.loads(line)
        asked = [
            RerankRequest(Query("0", q), tuple(Document(str(i), text) for i, text in enumerate(d)))
            for q, d in requests(count)
        ]
        seconds: list[float] = []
        cpu = time.process_time()
        if what == "model":
            for request in asked:
                begun = time.monotonic()
                model.score_batch([request])
                seconds.append(time.monotonic() - begun)
        else:
            for start in range(0, count, clients):
                begun = time.monotonic()
                futures = [engine.submit("model", [request]) for request in asked[start : start + clients]]
                for future in futures:
                    future.result()
                    seconds.append(time.monotonic() - begun)
        print(json.dumps([time.process_time() - cpu, seconds]), flush=True)


class Body(BaseModel):
    """What the plain route takes; its annotation is looked up in the module."""

    query: str
    documents: list[str]


def plain_route(folder: str, port: int) -> None:
    """What people write: CrossEncoder in a FastAPI route, at their defaults."""
    import uvicorn
    from fastapi import FastAPI
    from sentence_transformers import CrossEncoder

    model, app = CrossEncoder(folder, device="cpu"), FastAPI()

    @app.get("/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/v1/rerank")
    def rerank(body: Body) -> dict[str, Any]:
        scores = model.predict([(body.query, text) for text in body.documents], show_progress_bar=False)
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        return {"results": [{"index": i, "relevance_score": float(scores[i])} for i in order]}

    uvicorn.run(app, port=port, log_level="warning")


# --- measuring -------------------------------------------------------------------------------------------------------


def cpu_of(process: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def over_http(server: Served, count: int, clients: int) -> Round:
    """The requests, by so many clients at once."""
    raws, process = bodies(count), server._process
    assert process is not None
    answers: list[Answer] = []

    async def ask(number: int) -> None:
        line = Line(server.port)
        for raw in raws[number::clients]:
            answers.append(await line.send(raw))
        line.close()

    async def all_of_them() -> None:
        await asyncio.gather(*[ask(number) for number in range(clients)])
        Line.every.clear()

    before = cpu_of(process.pid)
    asyncio.run(all_of_them())
    assert set(statuses(answers)) == {200}, statuses(answers)
    return Round(cpu_of(process.pid) - before, tuple(answer.seconds for answer in answers), count * DOCUMENTS)


def by_pipe(process: subprocess.Popen[str], what: str, count: int, clients: int) -> Round:
    """The same without HTTP."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([what, count, clients]) + "\n")
    process.stdin.flush()
    cpu, seconds = json.loads(process.stdout.readline())
    return Round(cpu, tuple(seconds), count * DOCUMENTS)


def measured(folder: Path, rounds: int, count: int) -> dict[tuple[str, int], list[Round]]:
    """(who, clients) -> rounds; all servers stay up, and take turns."""
    import rankwright

    model = folder / "model"
    rankwright.load("reference").save(model)  # pyright: ignore[reportAttributeAccessIssue]
    one_thread = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    this = [sys.executable, "-m", "benchmarks.server"]
    ours = [sys.executable, "-m", "rankwright.cli", "serve", str(model), "--log-level", "warning"]
    ours += ["--timeout", str(PATIENT), "--patience", str(PATIENT)]
    alone = subprocess.Popen(
        [*this, "--alone", str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **one_thread},
    )
    found: dict[tuple[str, int], list[Round]] = {}
    (folder / "ours").mkdir()
    (folder / "plain").mkdir()
    with (
        Served(lambda port: [*ours, "--port", str(port)], folder / "ours", "/ready", one_thread) as served,
        Served(lambda port: [*this, "--plain", str(model), str(port)], folder / "plain", "/ready", one_thread) as plain,
    ):
        who: Mapping[str, Callable[[int, int], Round]] = {
            "model": lambda count, clients: by_pipe(alone, "model", count, clients),
            "engine": lambda count, clients: by_pipe(alone, "engine", count, clients),
            "server": lambda count, clients: over_http(served, count, clients),
            "plain": lambda count, clients: over_http(plain, count, clients),
        }
        for run in who.values():
            run(8, 8)
        for number in range(rounds):
            for clients in CLIENTS:
                for name, run in who.items():
                    found.setdefault((name, clients), []).append(run(count, clients))
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    alone.communicate(timeout=60)
    return found


# --- the page --------------------------------------------------------------------------------------------------------

NAMES = {
    "model": "the model alone (`score_batch`)",
    "engine": "our engine, without HTTP",
    "server": "`rankwright serve`",
    "plain": "`CrossEncoder.predict` behind a FastAPI route",
}


def per_pair(rounds: Sequence[Round]) -> float:
    """CPU milliseconds of a pair, the median of rounds."""
    return 1000 * statistics.median(one.cpu / one.pairs for one in rounds)


def ratio(one: Sequence[Round], other: Sequence[Round]) -> str:
    """Median of the rounds' ratios, with the least and the most."""
    found = sorted((a.cpu / a.pairs) / (b.cpu / b.pairs) for a, b in zip(one, other, strict=True))
    return f"{statistics.median(found):.3f} ({found[0]:.3f} to {found[-1]:.3f})"


def page(found: Mapping[tuple[str, int], Sequence[Round]], command: str, count: int) -> str:
    """Markdown."""
    rounds = len(next(iter(found.values())))
    rows = [
        f"| {NAMES[name]} | {clients} | {per_pair(one):.3f} | {ratio(one, found['engine', clients])} "
        f"| {ratio(one, found['plain', clients])} | {1000 * quantile([s for r in one for s in r.seconds], 0.5):.0f} "
        f"| {1000 * quantile([s for r in one for s in r.seconds], 0.95):.0f} |"
        for (name, clients), one in found.items()
    ]
    return "\n".join(
        [
            "# What serving costs",
            "",
            f"`{command}` on {hardware()}: {rounds} interleaved rounds of {count} requests",
            f"of {DOCUMENTS} passages (30 to 100 words) each, the embedded reference in torch fp32, one thread.",
            "CPU is that of the serving process alone; ratios are those of rounds, their median with the least and",
            "the most. Seconds are those of a machine with other work on it: compare them within this table only. One",
            "of several clients waits for the others' documents too.",
            "",
            "| who | clients | CPU ms a pair | to the engine | to the plain route | p50 ms | p95 ms |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--requests", type=int, default=8)
    options.add_argument("--alone")
    options.add_argument("--plain", nargs=2)
    given = options.parse_args()
    if given.alone:
        without_http(given.alone)
    elif given.plain:
        plain_route(given.plain[0], int(given.plain[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = measured(Path(folder), given.rounds, given.requests)
        PAGE.write_text(page(found, "python -m benchmarks.server", given.requests), encoding="utf-8")
        print(PAGE.read_text("utf-8"))


if __name__ == "__main__":
    main()
