"""What the killed processes of tests/kill_harness.py do. Imported once by the process from which they are forked, so
everything that they need is imported here."""

from __future__ import annotations

import copy
import fcntl
import hashlib
import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

import rankwright.cli.run
import rankwright.rerankers.cross_encoder  # noqa: F401
from rankwright.algorithms import RRPO, RRPOConfig
from rankwright.algorithms.config import TrainConfig
from rankwright.bulk import Form, Output, looked_through, scored_here, write_rankings
from rankwright.cli.app import run
from rankwright.data.streams import ExampleStream
from rankwright.llms.cache import ReadStore
from rankwright.llms.calls import Call, CallsReport
from rankwright.llms.http import HTTPLLM
from rankwright.rewards import answer_reward
from rankwright.training import dev_scorer, train
from rankwright.types import Completion, LLMRequest, Ranking, RerankRequest
from tests.bulk_kit import Companionable
from tests.kill_harness import Say
from tests.toy import ToyPolicy, ToyReader, examples

# --- the cache

SQLITE_WITHOUT_THE_FAULT = (3, 51, 3)
"""Before it, WAL with several writers can corrupt the file (https://sqlite.org/wal.html)."""


def value_of(key: str) -> dict[str, Any]:
    """A value that says to which key it belongs, some pages long."""
    return {"text": hashlib.sha256(key.encode()).hexdigest() * (1 + len(key) % 7 * 20)}


def store_rows(say: Say, path: Path, name: str, rows_per_batch: int = 4) -> None:
    """Stores batches of rows until it is killed, and acknowledges each batch by its name."""
    store, number = ReadStore(path), 0
    while True:
        batch = f"{name} {number}"
        store.put_many({key: value_of(key) for key in keys_of(batch, rows_per_batch)})
        say(batch)
        number += 1


def keys_of(batch: str, rows_per_batch: int = 4) -> list[str]:
    """Of the rows of a batch."""
    return [f"{batch} {row}{'-' * row}" for row in range(rows_per_batch)]


def open_at_once(say: Say, path: Path, barrier: Path, name: str) -> None:
    """Opens the store as soon as nobody locks the barrier any more, and uses it."""
    with barrier.open("rb") as stream:
        say(("ready", True))
        fcntl.flock(stream, fcntl.LOCK_SH)
    with ReadStore(path) as store:
        store.put_many({name: value_of(name)})
        say(("found", store.get_many([name]) == {name: value_of(name)}))


def store_with_version(say: Say, path: Path, version: tuple[int, int, int], name: str, batches: int) -> None:
    """Stores some batches under a SQLite that gives itself this version; says how the file lies after each."""
    sqlite3.sqlite_version_info, sqlite3.sqlite_version = version, ".".join(map(str, version))
    with ReadStore(path) as store:
        for number in range(batches):
            store.put_many({f"{name} {number}": value_of(name)})
            say(("mode", (in_wal_mode(path), Path(f"{path}-wal").exists())))


def in_wal_mode(path: Path) -> bool:
    """By the two version numbers in the header of the file (https://sqlite.org/fileformat.html, 1.3.3)."""
    with path.open("rb") as stream:
        return 2 in stream.read(20)[18:]


# --- training

TOY_EVERY, TOY_STEPS = 2, 10


class BulkyPolicy(ToyPolicy):
    """With weights that do not fit into one write."""

    def __init__(self) -> None:
        super().__init__()
        self.bulk = nn.Parameter(torch.arange(300_000, dtype=torch.float32))


class Progress(TrainerCallback):
    """Says which steps are done and which are saved."""

    def __init__(self, say: Say) -> None:
        self.say = say

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.say(("step", state.global_step))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.say(("saved", state.global_step))


def train_toy(say: Say, folder: Path) -> None:
    """Trains, or goes on with it, and says what came out."""
    torch.set_num_threads(1)
    policy, reader, reward = BulkyPolicy(), ToyReader(), answer_reward("f1")
    result = train(
        policy,
        copy.deepcopy(policy),
        RRPO(RRPOConfig(beta=0.0), reader, reward, seed=1),
        examples(20),
        TrainConfig(epochs=2, batch_size=4, learning_rate=0.3, eval_steps=TOY_EVERY, patience=0),
        folder,
        seed=1,
        score_dev=dev_scorer(examples(4), reader, reward, top_k=1),
        resume=True,
        callbacks=[Progress(say)],
    )
    weights = hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in policy.state_dict().values()))
    say(("result", (weights.hexdigest(), result.steps, result.best_step, result.dev_best, result.reader_calls)))


def run_command(say: Say, folder: Path, arguments: Sequence[str]) -> None:
    """The command line; acknowledges each answer of the reader, by its prompt, once it is stored."""
    torch.set_num_threads(1)
    os.chdir(folder)
    plain = HTTPLLM.complete_each

    def telling(self: HTTPLLM, requests: Sequence[LLMRequest], on_calls: CallsReport) -> None:
        def keep(calls: Sequence[Call]) -> None:
            on_calls(calls)
            for call in calls:
                if isinstance(call.result, Completion):
                    say(("stored", requests[call.index].messages[-1][1]))

        plain(self, requests, keep)

    HTTPLLM.complete_each = telling
    say(("code", run(arguments)))


# --- reranking in bulk


def rerank_rows(say: Say, data: Path, out: Path, pairs: int) -> None:
    """Reranks a file of rows as far as it comes; says the questions of every batch that was written."""
    stream = ExampleStream(data, folder=out.parent)

    class Slow(Companionable):
        def rerank_batch(self, requests: Sequence[RerankRequest]) -> list[Ranking]:
            time.sleep(0.02)
            return super().rerank_batch(requests)

    with Output.opened(out, {"model": "stub"}, stream.digests) as output:
        if output.totals is None:
            output.begin(looked_through(stream, pairs))
        stub = Slow()
        write_rankings(
            output,
            scored_here(stub),
            stream,
            Form.of(out),
            pairs=pairs,
            on_progress=lambda what, done, total: say(("written", stub.asked[-1])) if stub.asked else None,
        )
