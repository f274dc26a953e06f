"""`rankwright rerank --llm` against a real `transformers serve` on loopback: both dialects, and a server that is killed
in the middle and started again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rankwright.cli.app import run
from rankwright.llms.cache import ReadStore
from tests.cli_kit import MAIN, ROOT, one_line, run_process, write_rows
from tests.served import START_SECONDS, Served, transformers_serve
from tests.tiny_lm import PASSAGE_WORDS, make_label_model

QUERIES, DOCUMENTS = 6, 8
WINDOWS = ["--window", "4", "--stride", "2"]
CALLS = QUERIES * 3
"""Windows of four by two over eight documents are three."""
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

pytestmark = pytest.mark.timeout(2 * START_SECONDS + 120)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_label_model(tmp_path_factory.mktemp("models") / "labels")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights without a chat template."""
    return make_label_model(tmp_path_factory.mktemp("models") / "labels", template=None)


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(transformers_serve(model), tmp_path_factory.mktemp("served"), "/health") as server:
        yield server


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(5)
    rows = [
        {
            "query": {"text": f"where is the {PASSAGE_WORDS[number]}", "qid": f"q{number}"},
            "candidates": [
                {
                    "docid": f"{number}-{i}",
                    "score": 9.0 - i,
                    "doc": {"contents": " ".join(rng.choices(PASSAGE_WORDS, k=6))},
                }
                for i in range(DOCUMENTS)
            ],
        }
        for number in range(QUERIES)
    ]
    return write_rows(tmp_path_factory.mktemp("data") / "candidates.jsonl", rows)


def asking(llm: str, data: Path, strategy: str, *more: str) -> list[str]:
    """The command's arguments."""
    command = ["rerank", "--llm", llm, "--strategy", strategy, "--data", str(data), "--format", "rank_llm"]
    return [*command, "--output", "json", *more]


def rankings(told: dict[str, Any]) -> dict[str, list[str]]:
    return {row["query_id"]: row["doc_ids"] for row in told["rankings"]}


@pytest.fixture(scope="module")
def unbroken(served: Served, model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command says that nothing disturbed, in a process of its own."""
    before = served.answered(CHAT)
    folder = tmp_path_factory.mktemp("unbroken")
    ended = run_process(*asking(served.url, data, "sliding", "--llm-model", str(model), *WINDOWS), cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert served.answered(CHAT) - before == CALLS
    return one_line(ended.stdout)


def test_the_chat_path_ranks_as_the_same_model_does_locally(
    unbroken: dict[str, Any], model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["--cache", str(tmp_path / "reads.sqlite")]
    assert run(asking(str(model), data, "sliding", *WINDOWS, *cache)) == 0
    local = one_line(capsys.readouterr().out)
    assert rankings(unbroken) == rankings(local)
    orders = {tuple(name.split("-")[1] for name in order) for order in rankings(unbroken).values()}
    assert len(orders) > 2  # the passages do matter
    assert (unbroken["calls"], unbroken["paid_calls"], unbroken["sequential_depth"]) == (CALLS, CALLS, 3)
    assert unbroken["outcomes"] == local["outcomes"] == {"ok": 0, "repaired": CALLS, "malformed": 0}
    assert unbroken["tokens"] == local["tokens"]


def test_the_completions_path_ranks_as_a_local_model_without_template(
    served: Served, model: Path, bare: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", "children=3", "--set", "top_k=2", "--cache", str(tmp_path / "reads.sqlite")]
    assert run(asking(str(bare), data, "heapsort", *settings)) == 0
    local = one_line(capsys.readouterr().out)
    before = served.answered(CHAT), served.answered(COMPLETIONS)
    path = ["--llm-model", str(model), "--set", "reader.api=completions"]
    assert run(asking(served.url, data, "heapsort", *settings, *path)) == 0
    told = one_line(capsys.readouterr().out)
    assert rankings(told) == rankings(local)
    assert told["outcomes"] == local["outcomes"]  # a fourth label for three passages is malformed
    assert told["outcomes"]["ok"] > told["calls"] / 2
    assert told["tokens"] == local["tokens"]
    assert (served.answered(CHAT), served.answered(COMPLETIONS)) == (before[0], before[1] + told["paid_calls"])


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("strategy", ["pointwise", "single-token"])
def test_strategies_that_read_log_probabilities_are_refused_by_name(
    served: Served,
    model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    api: str,
    strategy: str,
) -> None:
    """This server takes the parameters and drops them, in both dialects."""
    more = ["--llm-model", str(model), "--set", f"reader.api={api}", "--cache", str(tmp_path / "reads.sqlite")]
    assert run(asking(served.url, data, strategy, *more)) == 6
    said = " ".join(capsys.readouterr().err.split())
    assert "was asked for log probabilities of tokens (logprobs True, top_logprobs 20) and left them out" in said
    assert "Strategies that work without: sliding, heapsort, bubblesort, groupwise, topk" in said


def paid_rows(cache: Path) -> dict[str, list[str]]:
    """Outcomes of the ledger by run."""
    found: dict[str, list[str]] = {}
    with ReadStore(cache) as store:
        for name, outcome in store.read("SELECT run, outcome FROM ledger ORDER BY id"):
            found.setdefault(name, []).append(outcome)
    return found


def test_a_server_killed_in_the_middle_costs_only_what_it_had_not_answered(
    served: Served, model: Path, data: Path, unbroken: dict[str, Any], tmp_path: Path
) -> None:
    cache = tmp_path / "reads.sqlite"
    command = asking(served.url, data, "sliding", "--llm-model", str(model), *WINDOWS, "--cache", str(cache))
    hurried = [*command, "--set", "reader.max_retries=0", "--requests-per-minute", "600"]
    before = served.answered(CHAT)
    with ReadStore(cache) as store:
        first = subprocess.Popen(
            [sys.executable, "-c", MAIN, *hurried, "--set", "reader.concurrency=2"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while len(store) < CALLS // 3 and first.poll() is None:
            time.sleep(0.005)
        served.kill()
        out, said = first.communicate(timeout=120)
    answered = served.answered(CHAT) - before
    assert (first.returncode, out) == (6, "")
    assert "calls, most often with 'connection failed'" in " ".join(said.split())
    assert "run again: answers in the cache are kept" in " ".join(said.split())
    (outcomes,) = paid_rows(cache).values()
    kept = outcomes.count("ok")
    assert CALLS // 3 <= kept < CALLS
    assert kept <= answered <= kept + 2  # what was in flight may have been answered to nobody

    served.launch()  # and not waited for: the second command asks until it is there
    second = run_process(*command, "--set", "reader.max_retries=99", "--set", "reader.concurrency=1", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    told = one_line(second.stdout)
    assert rankings(told) == rankings(unbroken)
    assert (told["calls"], told["paid_calls"], told["failures"]) == (CALLS, CALLS - kept, {})
    assert served.answered(CHAT) == CALLS - kept
    _, again = paid_rows(cache).values()
    assert again == ["ok"] * (CALLS - kept)
    assert json.dumps(told["outcomes"]) == json.dumps(unbroken["outcomes"])
