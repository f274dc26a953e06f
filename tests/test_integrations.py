"""What all integrations share, and what they say where their library is absent. None of the libraries is needed."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import logging
import math
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import rankwright
from rankwright.errors import ConfigurationError, MissingDependencyError, ResourceNotFoundError
from rankwright.integrations import opened as opened_module
from rankwright.integrations.opened import PAIRS_AT_ONCE, Hit, Opened, Passage, parts, title_of
from rankwright.types import RerankRequest, Scored
from tests.integration_kit import PATIENCE, Held, Written, while_held
from tests.tiny_bert import save_cross_encoder

ROOT = Path(__file__).resolve().parent.parent
PASSAGES = [Passage("rain 1"), Passage("river 3"), Passage("rain 1"), Passage("moon -2")]


# --- rankings ----------------------------------------------------------------------------------------------------


def test_hits_are_positions_best_first_and_equal_scores_keep_their_order() -> None:
    opened = Opened(Written(), {})
    assert opened.rank("q", PASSAGES, top_k=None, scale="raw") == [Hit(1, 3.0), Hit(0, 1.0), Hit(2, 1.0), Hit(3, -2.0)]
    assert opened.rank("q", PASSAGES, top_k=2, scale="raw") == [Hit(1, 3.0), Hit(0, 1.0)]


@pytest.mark.parametrize("score", [-1000.0, -2.5, 0.0, 3.0, 1000.0])
def test_a_sigmoid_is_one_over_one_plus_e_to_the_minus_score(score: float) -> None:
    (hit,) = Opened(Written(), {}).rank("q", [Passage(f"rain {score}")], top_k=None, scale="sigmoid")
    expected = 1 / (1 + math.exp(-score)) if score > -700 else 0.0
    assert hit.score == pytest.approx(expected, rel=1e-12)


def test_a_fitted_temperature_scales_as_the_server_s_scores_and_leaves_raw_ones_alone() -> None:
    written = Written()
    written.temperature = 2.0
    hits = Opened(written, {}).rank("q", PASSAGES, top_k=2, scale="sigmoid")
    assert [hit.score for hit in hits] == pytest.approx([1 / (1 + math.exp(-3 / 2)), 1 / (1 + math.exp(-1 / 2))])
    assert [hit.score for hit in Opened(written, {}).rank("q", PASSAGES, top_k=2, scale="raw")] == [3.0, 1.0]


def test_scores_that_a_sigmoid_makes_equal_keep_the_order_of_their_logits() -> None:
    passages = [Passage("a 40"), Passage("b 60"), Passage("c 50")]
    hits = Opened(Written(), {}).rank("q", passages, top_k=None, scale="sigmoid")
    assert [hit.position for hit in hits] == [1, 2, 0]
    assert {hit.score for hit in hits} == {1.0}


def test_many_queries_are_one_call_and_have_ids_of_their_own() -> None:
    written = Written()
    asked = [("first", PASSAGES[:2]), ("second", []), ("third", PASSAGES[3:])]
    found = Opened(written, {}).rank_all(asked, top_k=None, scale="raw")
    assert found == [[Hit(1, 3.0), Hit(0, 1.0)], [], [Hit(0, -2.0)]]
    assert len(written.asked) == 1
    assert len({request.query.query_id for request in written.asked[0]}) == 3


def test_nothing_to_rank_opens_no_model() -> None:
    opened = Opened("no/such/folder", {})
    assert opened.rank("q", [], top_k=3, scale="raw") == []
    assert asyncio.run(opened.rank_async("q", [], top_k=3, scale="raw")) == []
    with pytest.raises(ResourceNotFoundError, match="no/such/folder"):
        opened.rank("q", PASSAGES, top_k=3, scale="raw")
    with pytest.raises(ResourceNotFoundError, match="no/such/folder"):
        asyncio.run(opened.rank_async("q", PASSAGES, top_k=3, scale="raw"))


def test_parts_are_whole_queries_of_a_bounded_number_of_pairs() -> None:
    half = PAIRS_AT_ONCE // 2
    asked = [(str(i), [i] * n) for i, n in enumerate((half, half, 1, 2 * PAIRS_AT_ONCE, 1, 0))]
    assert [[query for query, _ in part] for part in parts(asked)] == [["0", "1"], ["2"], ["3"], ["4", "5"]]
    assert list(parts([])) == []


@pytest.mark.parametrize(("fields", "title"), [({"t": "Rain"}, "Rain"), ({"t": None}, ""), ({}, ""), ({"t": 7}, "7")])
def test_a_title_is_a_string_whatever_metadata_holds(fields: dict[str, Any], title: str) -> None:
    assert title_of(fields, "t") == title
    assert title_of(fields, None) == title_of(None, "t") == ""


def test_a_model_by_name_scores_as_load_does(tmp_path: Path) -> None:
    import rankwright

    folder = save_cross_encoder(tmp_path / "model")
    texts = ["rain and river", "the moon", "a river of rain"]
    expected = rankwright.load(folder, max_length=12).rerank("rain", texts)
    hits = Opened(folder, {"max_length": 12}).rank("rain", [Passage(t) for t in texts], top_k=None, scale="raw")
    assert [(str(hit.position), hit.score) for hit in hits] == list(zip(expected.doc_ids, expected.scores, strict=True))


@pytest.mark.parametrize(
    ("text", "read"),
    [("rain \ud83c 1", "rain \ufffd 1"), ("\ud83c\udf27 1", "\U0001f327 1"), ("雨 \x00 \u202e 1", "雨 \x00 \u202e 1")],
)
def test_halves_of_characters_are_replaced_before_a_tokenizer_meets_them(text: str, read: str, tmp_path: Path) -> None:
    written = Written()
    Opened(written, {}).rank(text, [Passage(text, text)], top_k=None, scale="raw")
    assert written.read == [(read, read, read)]
    opened = Opened(save_cross_encoder(tmp_path / "model"), {})
    assert [hit.position for hit in opened.rank(text, [Passage(text, text)], top_k=None, scale="raw")] == [0]


def test_cut_passages_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    opened = Opened(Written(), {})
    long = Passage("one two three four five six seven eight 9")
    with caplog.at_level(logging.WARNING, "rankwright"):
        opened.rank("q", PASSAGES[:1], top_k=None, scale="raw")
        assert caplog.messages == []
        opened.rank("q", [long], top_k=None, scale="raw")
        opened.rank("q", [long], top_k=None, scale="raw")
    (message,) = caplog.messages
    assert message.startswith("50.0 % of the pairs that 'written' has scored are longer than its 8 tokens (the first: ")


def test_doctests() -> None:
    result = doctest.testmod(opened_module)
    assert result.attempted > 0
    assert result.failed == 0


# --- wrong input -------------------------------------------------------------------------------------------------


def test_a_model_must_be_a_name_or_a_reranker() -> None:
    with pytest.raises(ConfigurationError, match="Model is a value of type int; wanted a folder, a hub name or a rer"):
        Opened(7, {})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("query", "passages", "top_k", "scale", "message"),
    [
        (None, PASSAGES, None, "raw", "Query is a value of type NoneType; wanted a string"),
        ("q", [PASSAGES[0], Passage(None)], None, "raw", "Document at position 1 has a text of type NoneType"),  # pyright: ignore[reportArgumentType]
        ("q", PASSAGES, 0, "raw", "Number of passages to keep is 0; wanted a whole number from 1"),
        ("q", PASSAGES, 2.5, "raw", "Number of passages to keep is 2.5; wanted a whole number"),
        ("q", PASSAGES, None, "softmax", "Scale of scores is 'softmax'; wanted 'raw'"),
    ],
)
def test_wrong_input_is_named(query: Any, passages: Any, top_k: Any, scale: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Opened(Written(), {}).rank(query, passages, top_k=top_k, scale=scale)


# --- threads and event loops -------------------------------------------------------------------------------------


class OneAtATime(Written):
    """Fails where two calls are in it at once."""

    inside = 0

    def score_batch(self, requests: Sequence[RerankRequest]) -> list[Scored]:
        self.inside += 1
        time.sleep(0.001)  # lets other threads in, if nothing keeps them out
        assert self.inside == 1
        self.inside -= 1
        return super().score_batch(requests)


def test_a_reranker_scores_one_call_at_a_time_in_all_integrations_together() -> None:
    reranker = OneAtATime()
    several = [Opened(reranker, {}) for _ in range(3)]

    def call(number: int) -> list[Hit]:
        passages = [Passage(f"rain {number}"), Passage("rain 0.5")]
        return several[number % 3].rank("q", passages, top_k=1, scale="raw")

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(call, range(40)))
    assert [hits[0].score for hits in found] == [0.5, *(float(n) for n in range(1, 40))]


def test_a_real_tokenizer_survives_threads_and_event_loop(tmp_path: Path) -> None:
    opened = Opened(save_cross_encoder(tmp_path / "model"), {})
    asked = [(f"rain {i}", [Passage("river " * (i + k + 1)) for k in range(3)]) for i in range(12)]
    expected = [opened.rank(*one, top_k=None, scale="raw") for one in asked]

    async def all_of_them() -> list[list[Hit]]:
        return await asyncio.gather(*(opened.rank_async(*one, top_k=None, scale="raw") for one in asked))

    with ThreadPoolExecutor(6) as pool:
        threads = pool.map(lambda one: opened.rank(*one, top_k=None, scale="raw"), asked)
        assert asyncio.run(all_of_them()) == expected
        assert list(threads) == expected


def test_the_event_loop_goes_on_while_a_call_scores() -> None:
    held = Held()
    call = Opened(held, {}).rank_async("q", PASSAGES, top_k=1, scale="raw")
    assert asyncio.run(while_held(held, call)) == [Hit(1, 3.0)]


def test_waiting_calls_leave_the_threads_of_the_program_alone() -> None:
    held = Held()
    opened = Opened(held, {})

    async def program() -> int:
        calls = [asyncio.ensure_future(opened.rank_async("q", PASSAGES, top_k=1, scale="raw")) for _ in range(100)]
        await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.to_thread(held.begun.wait, PATIENCE), PATIENCE)
        held.let_go.set()
        return sum(hits == [Hit(1, 3.0)] for hits in await asyncio.gather(*calls))

    assert asyncio.run(program()) == 100


class Together(Written):
    """Scores only while another one scores too."""

    def __init__(self, barrier: threading.Barrier) -> None:
        super().__init__()
        self.barrier = barrier

    def score_batch(self, requests: Sequence[RerankRequest]) -> list[Scored]:
        self.barrier.wait(PATIENCE)
        return super().score_batch(requests)


def test_two_rerankers_score_at_the_same_time() -> None:
    barrier = threading.Barrier(2)

    async def program() -> list[list[Hit]]:
        several = [Opened(Together(barrier), {}) for _ in range(2)]
        return await asyncio.gather(*(o.rank_async("q", PASSAGES, top_k=1, scale="raw") for o in several))

    assert asyncio.run(program()) == [[Hit(1, 3.0)]] * 2


def test_a_call_that_is_cancelled_while_it_waits_is_never_made() -> None:
    held = Held()
    opened = Opened(held, {})

    async def program() -> None:
        first = asyncio.ensure_future(opened.rank_async("first", PASSAGES, top_k=1, scale="raw"))
        second = asyncio.ensure_future(opened.rank_async("second", PASSAGES, top_k=1, scale="raw"))
        await asyncio.to_thread(held.begun.wait, PATIENCE)
        second.cancel()
        await asyncio.sleep(0)
        held.let_go.set()
        await first
        await opened.rank_async("third", PASSAGES, top_k=1, scale="raw")

    asyncio.run(program())
    assert [requests[0].query.text for requests in held.asked] == ["first", "third"]


def test_an_error_reaches_the_caller_and_the_next_call_works() -> None:
    opened = Opened(Written(), {})

    async def program() -> list[Hit]:
        with pytest.raises(ValueError, match="could not convert string to float: 'rain'"):
            await opened.rank_async("q", [Passage("rain")], top_k=1, scale="raw")
        return await opened.rank_async("q", PASSAGES, top_k=1, scale="raw")

    assert asyncio.run(program()) == [Hit(1, 3.0)]


FORK = """
import asyncio, os, threading
from rankwright.integrations.opened import Opened, Passage
from tests.integration_kit import Held

held = Held()
opened = Opened(held, {})
call = lambda: opened.rank("q", [Passage("rain 1")], top_k=1, scale="raw")
threading.Thread(target=lambda: asyncio.run(opened.rank_async("q", [Passage("rain 1")], top_k=1, scale="raw"))).start()
held.begun.wait()
child = os.fork()
held.let_go.set()
if child == 0:
    assert call() == asyncio.run(opened.rank_async("q", [Passage("rain 1")], top_k=1, scale="raw"))
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_forked_process_does_not_wait_for_threads_that_it_does_not_have() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], cwd=ROOT, timeout=60, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


# --- pickling ----------------------------------------------------------------------------------------------------


def test_a_model_by_name_is_pickled_as_its_name_and_opened_again(tmp_path: Path) -> None:
    opened = Opened(save_cross_encoder(tmp_path / "model"), {"max_length": 16})
    expected = opened.rank("rain", PASSAGES, top_k=None, scale="raw")
    small = pickle.dumps(opened)
    assert len(small) < 1000
    assert pickle.loads(small).rank("rain", PASSAGES, top_k=None, scale="raw") == expected


def test_an_opened_reranker_is_pickled_whole() -> None:
    again = pickle.loads(pickle.dumps(Opened(Written(), {})))
    assert again.rank("q", PASSAGES, top_k=1, scale="raw") == [Hit(1, 3.0)]


@pytest.mark.parametrize("backend", ["packed", "onnx"])
def test_what_stays_in_its_process_is_not_pickled(backend: str, tmp_path: Path) -> None:
    folder = save_cross_encoder(tmp_path / "model")
    with pytest.raises(ConfigurationError, match=rf"Reranker '{folder}\|.*' was to be pickled or copied.* Give its"):
        pickle.dumps(Opened(rankwright.load(folder, backend=backend), {}))
    by_name = Opened(folder, {"backend": backend})
    expected = by_name.rank("rain", PASSAGES, top_k=None, scale="raw")
    assert pickle.loads(pickle.dumps(by_name)).rank("rain", PASSAGES, top_k=None, scale="raw") == expected


def test_a_file_can_only_hold_a_name() -> None:
    assert Opened(Path("runs") / "mine", {}).named("a file") == str(Path("runs") / "mine")
    with pytest.raises(ConfigurationError, match=r"Reranker 'written' was given open to a file; .* Save"):
        Opened(Written(), {}).named("a file")


# --- absent libraries --------------------------------------------------------------------------------------------

MODULES = {
    "langchain": ("langchain_core", "langchain"),
    "llama_index": ("llama_index", "llama-index"),
    "haystack": ("haystack", "haystack"),
    "pyterrier": ("pyterrier", "pyterrier"),
    "mteb": ("mteb", "mteb"),
    "sentence_transformers": ("sentence_transformers", "interop"),
}
"""Module of rankwright.integrations -> the library that it needs, and the extra that brings it."""


def test_every_integration_is_on_the_list() -> None:
    files = {path.stem for path in (ROOT / "rankwright" / "integrations").glob("*.py")}
    assert files - {"__init__", "opened"} == MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_an_absent_library_is_answered_with_the_command_that_installs_it(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, extra = MODULES[module]
    for name in [n for n in sys.modules if n.split(".")[0] == library or n == f"rankwright.integrations.{module}"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)  # Python's own way to say that there is none
    with pytest.raises(MissingDependencyError, match=rf'run pip install "rankwright\[{extra}\]"') as caught:
        importlib.import_module(f"rankwright.integrations.{module}")
    assert str(caught.value.name).split(".")[0] == library
