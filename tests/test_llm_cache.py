"""Answers are kept: exact keys, damage, kills, many processes, a full disk, and the ledger."""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from chaos_reader import ChaosReader
from hypothesis import assume, given
from hypothesis import strategies as st

from rankwright.errors import ReaderError, StorageError
from rankwright.llms.cache import (
    BEFORE_CHECKSUMS,
    LEDGER_COLUMNS,
    CachedLLM,
    LedgerEntry,
    ReadStore,
    content_key,
    request_key,
)
from rankwright.llms.calls import Call, CallsReport, collect
from rankwright.llms.http import HTTPLLM
from rankwright.types import Completion, CompletionFailed, CompletionResult, LLMRequest

TESTS = Path(__file__).parent


def ask(question: str) -> LLMRequest:
    return LLMRequest((("user", question),), (("max_tokens", 8),), "p1")


class Echo:
    """An LLM that answers with the question, fails on "fail ...", and remembers what it was asked."""

    name = "echo"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
        questions = [request.messages[0][1] for request in requests]
        self.asked += questions
        return [CompletionFailed(q[5:]) if q.startswith("fail ") else Completion(f"re: {q}", 7, 2) for q in questions]


class StepwiseEcho(Echo):
    """The same, reporting call by call; dies at "die"."""

    def complete_each(self, requests: Sequence[LLMRequest], on_calls: CallsReport) -> None:
        for index, request in enumerate(requests):
            if request.messages[0][1] == "die":
                raise ReaderError("dead")
            (result,) = Echo.complete(self, [request])
            on_calls([Call(index, result, 2, 7, 2, 0.5)])

    def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
        return collect(self, requests)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "reads.sqlite"


# --- keys ---------------------------------------------------------------------------------------------------------

TEXTS = st.text(max_size=8)
REQUESTS = st.builds(
    LLMRequest,
    messages=st.lists(st.tuples(st.sampled_from(["user", "system"]), TEXTS), min_size=1, max_size=3).map(tuple),
    sampling=st.dictionaries(
        st.sampled_from(["max_tokens", "temperature", "seed", "top_p", "stop"]), st.integers(0, 3) | TEXTS
    ).map(lambda sampling: tuple(sampling.items())),
    prompt_version=TEXTS,
)


@given(REQUESTS, REQUESTS, TEXTS, TEXTS)
def test_two_requests_share_a_key_exactly_if_they_are_the_same(
    a: LLMRequest, b: LLMRequest, name_a: str, name_b: str
) -> None:
    same = (name_a, a.messages, dict(a.sampling), a.prompt_version) == (
        name_b,
        b.messages,
        dict(b.sampling),
        b.prompt_version,
    )
    assert (request_key(name_a, a) == request_key(name_b, b)) is same


@given(REQUESTS, st.sampled_from(["messages", "sampling", "prompt_version"]), TEXTS)
def test_a_change_in_any_field_changes_the_key(request_: LLMRequest, field: str, text: str) -> None:
    changed = {
        "messages": (*request_.messages, ("user", text)),
        "sampling": (*request_.sampling, ("new", text)),
        "prompt_version": request_.prompt_version + text,
    }
    other = replace(request_, **{field: changed[field]})
    assume(other != request_)
    assert request_key("m", other) != request_key("m", request_)
    assert request_key("m2", request_) != request_key("m", request_)


@given(REQUESTS)
def test_the_order_of_the_sampling_parameters_does_not_matter(request_: LLMRequest) -> None:
    assert request_key("m", replace(request_, sampling=request_.sampling[::-1])) == request_key("m", request_)


def test_text_cannot_move_between_messages() -> None:
    a = LLMRequest((("user", "x"), ("user", "y")))
    b = LLMRequest((("user", 'x"],["user","y'),))
    assert request_key("m", a) != request_key("m", b)


def test_a_key_covers_its_kind() -> None:
    assert content_key("answer", {"x": 1}) != content_key("completion", {"x": 1})


# --- the store ----------------------------------------------------------------------------------------------------


def test_what_was_put_is_got_also_by_another_process_and_over_many_keys(path: Path) -> None:
    rows = {f"key{number}": {"text": f"ä\ud800\0{number}", "input_tokens": None} for number in range(1200)}
    with ReadStore(path) as store:
        store.put_many(rows)
        assert store.get_many(["missing"]) == {}
    with ReadStore(path) as again:
        assert again.get_many(rows) == rows
        assert (len(again), again.damaged) == (1200, 0)


def test_a_later_value_replaces_an_earlier_one(path: Path) -> None:
    with ReadStore(path) as store:
        store.put_many({"k": {"text": "old"}})
        store.put_many({"k": {"text": "new"}})
        assert store.get_many(["k", "k"]) == {"k": {"text": "new"}}


def test_the_file_has_a_rollback_journal_and_full_sync_even_if_it_had_a_wal(path: Path) -> None:
    path.parent.mkdir()
    for mode in ("wal", "delete"):
        with sqlite3.connect(path) as connection:
            connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.close()
        with ReadStore(path) as store:
            store.put_many({mode: {"text": mode}})
            assert store.read("PRAGMA journal_mode") == [("delete",)]
            assert store.read("PRAGMA synchronous") == [(2,)]
    assert sorted(file.name for file in path.parent.iterdir()) == ["reads.sqlite"]


def test_a_batch_is_stored_whole_or_not_at_all(path: Path) -> None:
    with ReadStore(path) as store:
        with pytest.raises(StorageError):
            store.put_many({"k": {"text": "x"}}, [LedgerEntry("r", "m", "ok", attempts=None)])  # pyright: ignore[reportArgumentType]
        assert (len(store), store.ledger.totals().calls) == (0, 0)
        store.put_many({"k": {"text": "x"}})  # and the store goes on
        assert len(store) == 1


def test_an_interrupt_inside_a_transaction_releases_the_file(path: Path) -> None:
    def interrupted(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM answers")
        raise KeyboardInterrupt

    with ReadStore(path) as store, ReadStore(path) as other:
        store.put_many({"k": {"text": "x"}})
        with pytest.raises(KeyboardInterrupt):
            store.write(interrupted)
        other.put_many({"l": {"text": "y"}})
        assert store.get_many("kl") == {"k": {"text": "x"}, "l": {"text": "y"}}


def test_threads_may_share_a_store(path: Path) -> None:
    with ReadStore(path) as store:
        threads = [
            threading.Thread(target=lambda n=n: [store.put_many({f"{n}-{i}": {"n": i}}) for i in range(20)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store) == 80


# --- damage -------------------------------------------------------------------------------------------------------


def test_a_row_whose_checksum_does_not_fit_is_a_miss_and_counted(path: Path) -> None:
    with ReadStore(path) as store:
        store.put_many({"a": {"text": "right"}, "b": {"text": "right"}, "c": {"text": "right"}})
        store.write(lambda c: c.execute("UPDATE answers SET value = '{\"text\": \"wrong\"}' WHERE key = 'a'") and None)
        store.write(lambda c: c.execute("UPDATE answers SET key = 'd' WHERE key = 'b'") and None)
        assert store.get_many("abcd") == {"c": {"text": "right"}}
        assert store.damaged == 2


def test_a_call_whose_checksum_does_not_fit_is_in_no_sum_and_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls = [LedgerEntry(run, "m", "ok", 1, 10, 2, 1) for run in "abab"]
    with ReadStore(path) as store:
        store.put_many({"k": {"text": "x"}}, calls)
        assert store.ledger.totals().price_text == "4.0000"
        store.write(lambda c: c.execute("UPDATE ledger SET price = 0.5 WHERE id = 1") and None)
        store.write(lambda c: c.execute("UPDATE ledger SET run = 'c' WHERE id = 4") and None)
    with ReadStore(path) as store:
        a, b, both = (store.ledger.totals(run) for run in ("a", "b", None))
        assert store.ledger.runs() == ["b", "a"]
        assert [(found.calls, found.known_price, found.damaged) for found in (a, b, both)] == [
            (1, 1.0, 2),
            (1, 1.0, 2),
            (2, 2.0, 2),
        ]
        assert (a.price, a.price_text) == (None, "1.0000 + unknown price of 2 damaged")
        assert a.price_record == {"price": None, "known_price": 1.0, "unpriced_calls": 2}
        assert store.get_many("k") == {"k": {"text": "x"}}
        store.put_many({}, calls)
        assert store.ledger.totals("a").calls == 3
    (warning,) = caplog.records
    assert "has 2 damaged rows; they are in no sum" in warning.getMessage()


def test_a_ledger_that_has_lost_rows_is_damage(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a page's header does that names fewer rows; the checksums of the others fit."""
    with ReadStore(path) as store:
        store.put_many({}, [LedgerEntry("a", "m", "ok", 1, 10, 2, 0.5) for _ in range(12)])
        ((page,),) = store.read("SELECT rootpage FROM sqlite_master WHERE name = 'ledger'")
    raw = bytearray(path.read_bytes())
    raw[(page - 1) * 4096 + 4] ^= 4  # 12 rows, says the header, and then 8
    path.write_bytes(raw)
    with ReadStore(path) as store:
        assert store.ledger.totals().calls == 0
    (warning,) = caplog.records
    assert "is damaged (" in warning.getMessage()
    (aside,) = path.parent.glob("reads.sqlite.damaged-*")
    assert aside.read_bytes() == bytes(raw)


def test_a_ledger_of_before_checksums_counts_as_it_stands(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        for statement in BEFORE_CHECKSUMS.values():
            connection.execute(statement)
        row = ("2026-01-01T00:00:00.000+00:00", "a", "m", 2, 10, None, 1, "ok")
        connection.execute(f"INSERT INTO ledger ({LEDGER_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    connection.close()
    for calls in (1, 2):  # opened for the first time, and again
        with ReadStore(path) as store:
            found = store.ledger.totals("a")
            assert (found.calls, found.known_price, found.damaged) == (calls, 1.0, 0)
            store.put_many({}, [LedgerEntry("a", "m", "ok")])
    assert [file.name for file in path.parent.iterdir()] == ["reads.sqlite"]
    with ReadStore(path) as store:
        store.write(lambda c: c.execute("UPDATE ledger SET attempts = 1 WHERE id = 1") and None)
        assert store.ledger.totals("a").damaged == 1


@pytest.mark.parametrize("bit", range(8))
def test_table_definitions_with_a_flipped_bit_are_damage(path: Path, bit: int) -> None:
    """With the highest one the message of SQLite is no UTF-8."""
    with ReadStore(path) as store:
        store.put_many({"k": {"text": "x"}})
    whole = path.read_bytes()
    for place in range(whole.index(b"CREATE TABLE ledger"), 4096, 9):
        raw = bytearray(whole)
        raw[place] ^= 1 << bit
        path.write_bytes(raw)
        with ReadStore(path) as store:
            store.put_many({"new": {"text": "y"}})
            found = store.get_many(["k", "new"])
            assert (found.pop("new"), found.pop("k", {"text": "x"}), found) == ({"text": "y"}, {"text": "x"}, {})
    assert list(path.parent.glob("reads.sqlite.damaged-*"))


def test_a_file_of_another_kind_stays_as_it_is(tmp_path: Path) -> None:
    mine = tmp_path / "questions.jsonl"
    mine.write_bytes(b'{"question": "Where?"}\n' * 400)
    with pytest.raises(StorageError, match=r"questions\.jsonl' is no database.*--cache"), ReadStore(mine) as store:
        store.get_many("k")
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("questions.jsonl", 23 * 400)]


@pytest.mark.parametrize("content", [b"this is no database, " * 400, b"SQLite format 3\0" + b"\xff" * 9000])
def test_a_file_that_is_no_database_is_set_aside_with_one_warning(
    path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with ReadStore(path) as store:
        store.put_many({"k": {"text": "x"}})
        assert store.get_many("k") == {"k": {"text": "x"}}
    (warning,) = caplog.records
    (aside,) = path.parent.glob("reads.sqlite.damaged-*")
    assert aside.read_bytes() == content
    assert str(aside) in warning.getMessage()


def test_a_journal_is_set_aside_with_its_file(path: Path) -> None:
    with ReadStore(path) as store:
        Path(f"{path}-journal").write_bytes(b"journal")  # left behind, SQLite would roll it back into the new file
        store._set_aside("test")
        assert sorted(file.name.split("-")[-1] for file in path.parent.iterdir())[-1] == "journal"
        assert not Path(f"{path}-journal").exists()


def test_damage_that_shows_in_the_middle_of_a_run_does_not_end_it(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ReadStore(path) as store:
        store.put_many({f"k{number}": {"text": "x" * 300} for number in range(100)})
        raw = bytearray(path.read_bytes())
        raw[4096 * 2 : 4096 * 6] = b"\xa5" * 4096 * 4
        path.write_bytes(raw)
        store.close()
        store.get_many(f"k{number}" for number in range(100))
        store.put_many({"new": {"text": "y"}})
        assert store.get_many(["new"]) == {"new": {"text": "y"}}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_no_truncation_and_no_flipped_bit_gives_a_wrong_value_or_an_error(path: Path) -> None:
    rows = {f"key{number}": {"text": f"answer {number} " * 20} for number in range(40)}
    with ReadStore(path) as store:
        store.put_many(rows)
    whole = path.read_bytes()
    rng = random.Random(7)
    damaged = [whole[: rng.randrange(len(whole))] for _ in range(60)]
    for _ in range(140):
        raw = bytearray(whole)
        place = (
            rng.randrange(len(whole)) if rng.random() < 0.7 else rng.randrange(200)
        )  # the header is small and matters
        raw[place] ^= 1 << rng.randrange(8)
        damaged.append(bytes(raw))
    missed = 0
    for number, raw in enumerate(damaged):
        copy = path.with_name(f"copy{number}.sqlite")
        copy.write_bytes(raw)
        with ReadStore(copy) as store:
            found = store.get_many(rows)
            assert (
                found.items() <= rows.items() if not found else all(rows[key] == value for key, value in found.items())
            )
            missed += found != rows
            store.put_many({"new": {"text": "y"}})
            assert store.get_many(["new"]) == {"new": {"text": "y"}}
    assert missed > 60  # the damage was real


@pytest.mark.parametrize("place", [18, 19, 44, 47])
@pytest.mark.parametrize("bit", range(8))
def test_a_header_that_claims_another_version_is_damage(path: Path, place: int, bit: int) -> None:
    """Bytes of the header: write and read version, schema format."""
    with ReadStore(path) as store:
        store.put_many({"k": {"text": "x"}})
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << bit
    path.write_bytes(raw)
    with ReadStore(path) as store:
        store.put_many({"new": {"text": "y"}})
        assert store.get_many(["new"]) == {"new": {"text": "y"}}


def test_a_database_of_another_program_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"another program \(tables songs\).*--cache"):
        ReadStore(path)
    assert path.read_bytes() == before


def test_tables_that_do_not_fit_are_damage(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE answers (other TEXT)")
    connection.close()
    with ReadStore(path) as store:
        assert len(store) == 0
    assert len(list(path.parent.glob("*damaged*"))) == 1


def test_a_store_follows_when_another_process_sets_the_file_aside(path: Path) -> None:
    with ReadStore(path) as store:
        store.put_many({"k": {"text": "x"}})
        path.rename(path.with_name("aside"))
        with ReadStore(path) as other:
            other.put_many({"l": {"text": "y"}})
        store.put_many({"m": {"text": "z"}})
        assert store.get_many("klm") == {"l": {"text": "y"}, "m": {"text": "z"}}


# --- places that cannot be written --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["file/reads.sqlite", "folder", "x" * 300 + "/reads.sqlite"])
def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"Read cache .* cannot be used .*--cache"):
        ReadStore(tmp_path / name)


def test_an_emptied_file_is_told_and_one_that_is_just_begun_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, began in (("new", None), ("old", (0, 0))):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, began)
        with ReadStore(tmp_path / name) as store:
            assert store.get_many(["key"]) == {}
    with ReadStore(tmp_path / "old"):
        pass  # it holds tables now
    assert [record.args for record in caplog.records] == [(tmp_path / "old",)]
    assert "is there and holds nothing (0 bytes)" in caplog.text


FULL_DISK = """
import resource, signal, sys
from rankwright.errors import StorageError
from rankwright.llms.cache import ReadStore

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = ReadStore(sys.argv[1])
store.put_many({"kept": {"text": "x"}})
resource.setrlimit(resource.RLIMIT_FSIZE, (64_000, 64_000))
try:
    store.put_many({"lost": {"text": "y" * 200_000}})
except StorageError as error:
    print(error)
print(sorted(store.get_many(["kept", "lost"])))
"""


def test_a_full_disk_is_told_and_what_was_stored_stays(path: Path) -> None:
    out = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], cwd=TESTS.parent, capture_output=True, text=True, check=True
    )
    message, keys = out.stdout.splitlines()
    assert "Free the disk" in message
    assert keys == "['kept']"
    with ReadStore(path) as store:
        assert store.get_many(["kept", "lost"]) == {"kept": {"text": "x"}}


# --- many processes, kills ----------------------------------------------------------------------------------------

OPEN_AT_ONCE = """
import sys, time
from rankwright.llms.cache import ReadStore

time.sleep(max(0.0, float(sys.argv[2]) - time.time()))
store = ReadStore(sys.argv[1])
for number in range(3):
    store.put_many({f"{sys.argv[3]}-{number}": {"n": number}})
"""


def test_many_processes_may_open_a_fresh_file_at_once(path: Path) -> None:
    import time

    start = str(time.time() + 1.5)
    command = [sys.executable, "-c", OPEN_AT_ONCE, str(path), start]
    jobs = [
        subprocess.Popen([*command, str(number)], cwd=TESTS.parent, stderr=subprocess.PIPE, text=True)
        for number in range(12)
    ]
    errors = [job.communicate(timeout=120)[1] for job in jobs]
    assert errors == [""] * 12
    with ReadStore(path) as store:
        assert len(store) == 36


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_opens_its_own_connection(path: Path) -> None:
    store = ReadStore(path)
    store.put_many({"parent": {"n": 1}})
    program = (
        "import os, sys; from rankwright.llms.cache import ReadStore\n"
        "store = ReadStore(sys.argv[1]); mine = store._connected()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    store.put_many({'child': {'n': 2}}); os._exit(0 if store._connected() is not mine else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], cwd=TESTS.parent, check=True)
    assert store.get_many(["parent", "child"]) == {"parent": {"n": 1}, "child": {"n": 2}}
    store.close()


ASK_ALL = """
import sys
from rankwright.llms.cache import CachedLLM, ReadStore
from rankwright.llms.http import HTTPLLM
from rankwright.types import LLMRequest

llm = CachedLLM(HTTPLLM("m", sys.argv[2], concurrency=4), ReadStore(sys.argv[1]), run="kill")
requests = [LLMRequest((("user", f"q{number}"),)) for number in range(60)]
print([result.text for result in llm.complete(requests)])
"""


def test_a_killed_job_repeats_no_more_calls_than_were_in_flight(path: Path) -> None:
    kills = (7, 25, 40)
    with ChaosReader(seconds=0.05) as server:
        command = [sys.executable, "-c", ASK_ALL, str(path), server.base_url]
        for kill_at in kills:
            job = subprocess.Popen(command, cwd=TESTS.parent, stdout=subprocess.DEVNULL)
            while len(server.ledger) < kill_at:
                assert job.poll() is None
                threading.Event().wait(0.01)
            job.kill()
            job.wait()
        out = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=True).stdout
        repeats = len(server.ledger) - 60
    assert out.strip() == str([f"answer to q{number}" for number in range(60)])
    assert 0 <= repeats <= 4 * len(kills)


# --- CachedLLM ----------------------------------------------------------------------------------------------------


def test_the_second_time_nothing_is_asked(path: Path) -> None:
    with ReadStore(path) as store:
        first = CachedLLM(Echo(), store)
        assert first.complete([ask("a"), ask("b")]) == [Completion("re: a", 7, 2), Completion("re: b", 7, 2)]
        assert (first.paid, first.hits, first.failed) == (2, 0, 0)
    with ReadStore(path) as store:
        llm = Echo()
        second = CachedLLM(llm, store)
        assert second.complete([ask("b"), ask("c"), ask("a")]) == [
            Completion("re: b", 7, 2, paid=False),
            Completion("re: c", 7, 2),
            Completion("re: a", 7, 2, paid=False),
        ]
        assert llm.asked == ["c"]
        assert (second.paid, second.hits, second.failed, second.name) == (1, 2, 0, "echo")


def test_equal_requests_of_a_batch_are_asked_once(path: Path) -> None:
    llm = Echo()
    with ReadStore(path) as store:
        cached = CachedLLM(llm, store)
        results = cached.complete([ask("a"), ask("fail x"), ask("a"), ask("fail x")])
    assert llm.asked == ["a", "fail x"]
    unpaid = [Completion("re: a", 7, 2, paid=False), CompletionFailed("x", paid=False)]
    assert results == [Completion("re: a", 7, 2), CompletionFailed("x"), *unpaid]
    assert (cached.paid, cached.hits, cached.failed) == (1, 1, 1)


def test_failures_are_entered_but_not_stored(path: Path) -> None:
    llm = Echo()
    with ReadStore(path) as store:
        cached = CachedLLM(llm, store, run="r1")
        for _ in range(2):
            assert cached.complete([ask("fail length")]) == [CompletionFailed("length")]
        assert (len(llm.asked), len(store), cached.failed) == (2, 0, 2)
        totals = store.ledger.totals("r1")
        assert (totals.calls, totals.failed, totals.uncounted_calls) == (2, 2, 2)


def test_a_blank_text_is_not_stored(path: Path) -> None:
    class Blank(Echo):
        def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
            return [Completion(" \n") for _ in requests]

    with ReadStore(path) as store:
        CachedLLM(Blank(), store).complete([ask("a")])
        assert len(store) == 0


def test_answers_before_a_stop_are_kept(path: Path) -> None:
    with ReadStore(path) as store:
        with pytest.raises(ReaderError):
            CachedLLM(StepwiseEcho(), store).complete([ask("a"), ask("b"), ask("die"), ask("c")])
        assert (len(store), store.ledger.totals().attempts) == (2, 4)
        llm = StepwiseEcho()
        CachedLLM(llm, store).complete([ask("a"), ask("b"), ask("c")])
        assert llm.asked == ["c"]


def test_failures_alone_beside_kept_answers_are_values_however_many(path: Path) -> None:
    """A command that is repeated asks only for what failed before."""
    failing = [f"f{number}" for number in range(40)]
    requests = [ask("good"), *(ask(question) for question in failing)]
    with ReadStore(path) as store, ChaosReader({question: ["400"] * 9 for question in failing}) as server:
        for _ in range(2):
            llm = HTTPLLM("m", server.base_url, stop_after=5, concurrency=1)
            results = CachedLLM(llm, store).complete(requests)
            assert [type(result) for result in results] == [Completion] + [CompletionFailed] * len(failing)
        with pytest.raises(ReaderError, match="first 5 calls"):  # nothing here is known of this model
            CachedLLM(HTTPLLM("n", server.base_url, stop_after=5, concurrency=1), store).complete(requests[1:])


def test_an_llm_that_reports_whole_batches_is_asked_in_chunks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Sized(Echo):
        def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
            sizes.append(len(requests))
            return super().complete(requests)

    monkeypatch.setattr("rankwright.llms.cache.REQUESTS_PER_CHUNK", 3)
    with ReadStore(path) as store:
        results = CachedLLM(Sized(), store).complete([ask(f"q{number}") for number in range(8)])
    assert sizes == [3, 3, 2]
    assert [result.text for result in results if isinstance(result, Completion)] == [f"re: q{n}" for n in range(8)]


def test_an_llm_with_too_few_results_is_an_error(path: Path) -> None:
    class Short(Echo):
        def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
            return super().complete(requests)[1:]

    with ReadStore(path) as store, pytest.raises(ReaderError, match="echo gave 1 results for 2 requests"):
        CachedLLM(Short(), store).complete([ask("a"), ask("b")])


def test_over_http_answers_prices_and_faults_reach_the_ledger(path: Path) -> None:
    script = {"q1": ["503"], "q2": ["length"], "q3": ["400"], "q4": ["refusal"]}
    with ChaosReader(script) as server, ReadStore(path) as store:
        llm = HTTPLLM("m", server.base_url, first_backoff=0.005, prices={"input": 100.0, "output": 1000.0})
        cached = CachedLLM(llm, store, run="r")
        cached.complete([ask(f"q{number}") for number in range(5)])
        assert (cached.paid, cached.failed, len(store)) == (2, 3, 2)
        totals = store.ledger.totals("r")
    assert (totals.calls, totals.attempts, totals.failed) == (5, 6, 3)
    assert (totals.input_tokens, totals.output_tokens) == (4 * 10, 4 * 3)  # the 400 was not billed
    assert totals.price == pytest.approx(4 * (10 * 100 + 3 * 1000) / 1e6)


# --- ledger -------------------------------------------------------------------------------------------------------


def test_totals_by_run_and_over_all(path: Path) -> None:
    with ReadStore(path) as store:
        store.put_many(
            {}, [LedgerEntry("a", "m", "ok", 1, 10, 2, 0.5), LedgerEntry("a", "m", "timeout", 3, 20, 4, 0.25)]
        )
        store.put_many({}, [LedgerEntry("b", "m", "ok", 1, 5, 1, 0.0)])
        a, b, both, none = (store.ledger.totals(run) for run in ("a", "b", None, "c"))
        assert store.ledger.runs() == ["a", "b"]
    assert (a.calls, a.attempts, a.failed, a.input_tokens, a.output_tokens, a.price) == (2, 4, 1, 30, 6, 0.75)
    assert (b.calls, b.price, b.price_text) == (1, 0.0, "0.0000")
    assert (both.calls, both.price) == (3, 0.75)
    assert (none.calls, none.price) == (0, 0.0)


def test_an_unknown_price_is_never_zero(path: Path) -> None:
    with ReadStore(path) as store:
        store.put_many(
            {}, [LedgerEntry("a", "m", "ok"), LedgerEntry("b", "m", "ok", 1, 1, 1, 0.5), LedgerEntry("b", "m", "ok")]
        )
        a, b = store.ledger.totals("a"), store.ledger.totals("b")
    assert (a.price, a.price_text, a.uncounted_calls) == (None, "unknown", 1)
    assert (b.price, b.known_price, b.price_text) == (None, 0.5, "0.5000 + unknown price of 1 calls")
