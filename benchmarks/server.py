"""What serving costs beside scoring: `python -m benchmarks.server` writes results/server.md.

The same questions go to `rankwright serve`, in the backends torch, bf16 (where the processor has it) and onnx, to our
engine without HTTP in the same, to the model alone, and to sentence-transformers' CrossEncoder behind a plain FastAPI
route, all on the same weights with one thread each: some four minutes on a machine that does nothing else. CPU seconds
are those of the serving process (user and system), so that the client's own work and other work on the machine do not
count; rounds are interleaved, and medians of rounds are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from benchmarks.kept import processor_words
from rankwright.types import Document, Query, RerankRequest
from tests.load_kit import Answer, Line, post, quantile, statuses
from tests.served import Served

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks" / "results" / "server.md"
DOCUMENTS = 20
QUESTIONS = ("who keeps the light?", "when was the bridge built?", "what is carried in the race?", "who paid for it?")
CLIENTS = (1, 8)
BACKENDS = ("torch", "bf16", "onnx")
PATIENT = 600.0
"""Seconds: nothing is to be late on a machine that is busy with other work."""
Who = tuple[str, str]
"""Of NAMES, and a backend."""
PLAIN: Who = ("plain", "torch")


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
    made = [{"query": query, "documents": documents, "return_documents": False} for query, documents in asked]
    return [post(json.dumps(body).encode(), "/v1/rerank", "k", "Content-Type: application/json") for body in made]


# --- the other side of the pipe: scoring without HTTP -----------------------------------------------------------------


def backends() -> list[str]:
    """Those of BACKENDS that this processor has."""
    import torch

    return [name for name in BACKENDS if name != "bf16" or torch.ops.mkldnn._is_mkldnn_bf16_supported()]


def place(folder: Path, backend: str) -> Path:
    """Where the model of a backend lies."""
    return folder / ("export" if backend == "onnx" else "model")


def without_http(folder: str) -> None:
    """Answers lines of (what, backend, requests, clients) with the CPU seconds and the seconds of each request; `auto`
    with the name of what that backend opens."""
    import rankwright
    from rankwright.engine import Engine, EngineSettings

    settings = EngineSettings(timeout=PATIENT, patience=PATIENT, give_up=PATIENT)
    models = {name: rankwright.load(place(Path(folder), name), name) for name in backends()}
    engines = {name: Engine(lambda model=model: {"model": model}, settings) for name, model in models.items()}
    for engine in engines.values():
        engine.start()
        engine.opened()
    for line in sys.stdin:
        what, backend, count, clients = json.loads(line)
        if what == "auto":
            print(json.dumps(rankwright.load(place(Path(folder), backend), "auto").name), flush=True)
            continue
        model, engine = models[backend], engines[backend]
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


def by_pipe(process: subprocess.Popen[str], who: Who, count: int, clients: int) -> Round:
    """The same without HTTP."""
    cpu, seconds = told(process, *who, count, clients)
    return Round(cpu, tuple(seconds), count * DOCUMENTS)


def told(process: subprocess.Popen[str], *asked: str | int) -> Any:
    """What the process without HTTP answers."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(asked) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def ours(folder: Path, backend: str) -> Callable[[int], list[str]]:
    """The command of our server, by its port."""
    command = [sys.executable, "-m", "rankwright.cli", "serve", str(place(folder, backend)), "--backend", backend]
    command += ["--log-level", "warning", "--timeout", str(PATIENT), "--patience", str(PATIENT), "--port"]
    return lambda port: [*command, str(port)]


def measured(folder: Path, rounds: int, count: int) -> tuple[dict[tuple[Who, int], list[Round]], str]:
    """(who, clients) -> rounds, and what `--backend auto` takes; all servers stay up, and take turns."""
    import rankwright

    reference = rankwright.load("reference")
    reference.save(folder / "model")  # pyright: ignore[reportAttributeAccessIssue]
    rankwright.export("reference", folder / "export", forms=("fp32",))
    one_thread = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    one_thread["RANKWRIGHT_API_KEY"] = ""
    this = [sys.executable, "-m", "benchmarks.server"]
    alone = subprocess.Popen(
        [*this, "--alone", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **one_thread},
    )
    commands = {("server", backend): ours(folder, backend) for backend in backends()}
    commands[PLAIN] = lambda port: [*this, "--plain", str(folder / "model"), str(port)]
    who: dict[Who, Callable[[int, int], Round]] = {("model", "torch"): partial(by_pipe, alone, ("model", "torch"))}
    found: dict[tuple[Who, int], list[Round]] = {}
    with contextlib.ExitStack() as running:
        for backend in backends():
            who["engine", backend] = partial(by_pipe, alone, ("engine", backend))
        for name, command in commands.items():
            logs = folder / "-".join(name)
            logs.mkdir()
            who[name] = partial(over_http, running.enter_context(Served(command, logs, "/ready", one_thread)))
        for run in who.values():
            run(4, 4)
        for number in range(rounds):
            for clients in CLIENTS:
                for name, run in who.items():
                    found.setdefault((name, clients), []).append(run(count, clients))
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
        computed = str(told(alone, "auto", "torch", 0, 0)).partition("|")[2]
        chosen = {"": "torch", "packed-fp32": "packed", "packed-bf16": "bf16"}.get(computed, computed)
    alone.communicate(timeout=60)
    return found, chosen


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


def at_share(rounds: Sequence[Round], share: float) -> float:
    """Milliseconds of a request below which this share of all lies."""
    return 1000 * quantile([seconds for one in rounds for seconds in one.seconds], share)


def ratio(one: Sequence[Round], other: Sequence[Round]) -> str:
    """Median of the rounds' ratios, with the least and the most."""
    found = sorted((a.cpu / a.pairs) / (b.cpu / b.pairs) for a, b in zip(one, other, strict=True))
    return f"{statistics.median(found):.3f} ({found[0]:.3f} to {found[-1]:.3f})"


def page(found: Mapping[tuple[Who, int], Sequence[Round]], chosen: str, command: str, count: int) -> str:
    """Markdown."""
    rounds = len(next(iter(found.values())))
    rows = [
        f"| {NAMES[who[0]]} | {who[1]} | {clients} | {per_pair(one):.3f} "
        f"| {ratio(one, found[('engine', who[1]), clients])} | {ratio(one, found[PLAIN, clients])} "
        f"| {at_share(one, 0.5):.0f} | {at_share(one, 0.95):.0f} |"
        for (who, clients), one in found.items()
    ]
    return "\n".join(
        [
            "# What serving costs",
            "",
            f"`{command}` on {processor_words()}:",
            f"{rounds} interleaved rounds of {count} requests of {DOCUMENTS} passages (30 to 100 words), the embedded",
            f"reference, one thread. `--backend auto` takes {chosen} here; onnx is fp32.",
            "CPU is that of the serving process alone; ratios are those of rounds, their median with the least and",
            "the most; the engine is that of the same backend. One of several clients waits for the others' documents,",
            "too. Where several come at once the plain route scores each in a thread of its own, so it has all cores",
            "then, and rankwright the one that it was given: compare CPU, and times with one client alone.",
            "",
            "| who | backend | clients | CPU ms a pair | to the engine | to the plain route | p50 ms | p95 ms |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--requests", type=int, default=6)
    options.add_argument("--alone")
    options.add_argument("--plain", nargs=2)
    given = options.parse_args()
    if given.alone:
        without_http(given.alone)
    elif given.plain:
        plain_route(given.plain[0], int(given.plain[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            found, chosen = measured(Path(folder), given.rounds, given.requests)
        command = f"python -m benchmarks.server --rounds {given.rounds} --requests {given.requests}"
        PAGE.write_text(page(found, chosen, command, given.requests), encoding="utf-8")
        print(PAGE.read_text("utf-8"))


if __name__ == "__main__":
    main()
