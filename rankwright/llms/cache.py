"""Answers are kept: one SQLite file, shared by all runs, that holds every answer once and a ledger of every call.

Exact match only. A key is the sha256 of everything that can change the answer; a value is JSON with a checksum that
binds it to its key, so a damaged row is a miss and never a wrong answer. A damaged call of the ledger is counted beside
the sums. Failures, refusals and texts cut at the length limit are not answers and are not stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from rankwright.errors import ReaderError, StorageError
from rankwright.llms.calls import Call, CallsReport, IncrementalLLM, SuspiciousLLM, price_text
from rankwright.llms.logprobs import NO_LOGPROBS, wants_logprobs
from rankwright.llms.replies import EMPTY_TEXT
from rankwright.types import LLM, Completion, CompletionFailed, CompletionResult, LLMRequest

log = logging.getLogger(__name__)

Result = TypeVar("Result")

BUSY_SECONDS = 60.0
"""How long a process waits for its turn to write. Transactions take milliseconds; this is for dozens of writers."""
JUST_BEGUN = 10.0
"""Seconds in which a new file may be empty: another process is about to make its tables."""
KEYS_PER_QUERY = 500
REQUESTS_PER_CHUNK = 64
"""For an LLM that reports only whole batches: so many answers are at risk when the process is killed."""

LEDGER_COLUMNS = "time, run, model, attempts, input_tokens, output_tokens, price, outcome"
LEDGER_CHECKSUM = "checksum TEXT NOT NULL DEFAULT ''"
BEFORE_CHECKSUMS = {
    "answers": "CREATE TABLE answers (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum TEXT NOT NULL)",
    "ledger": (
        "CREATE TABLE ledger (id INTEGER PRIMARY KEY, time TEXT NOT NULL, run TEXT NOT NULL, model TEXT NOT NULL, "
        "attempts INTEGER NOT NULL, input_tokens INTEGER, output_tokens INTEGER, price REAL, outcome TEXT NOT NULL)"
    ),
}
"""Of files that were begun when the calls of the ledger had no checksums."""
TABLES = {**BEFORE_CHECKSUMS, "ledger": f"{BEFORE_CHECKSUMS['ledger'][:-1]}, {LEDGER_CHECKSUM})"}


def content_key(kind: str, content: Mapping[str, Any]) -> str:
    """sha256 of canonical JSON (sorted names, no spaces): equal content has one key, whatever its order of names."""
    text = json.dumps({"kind": kind, **content}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def request_key(llm_name: str, request: LLMRequest) -> str:
    """Key of a completion: model and endpoint, messages, all sampling parameters, version of the prompt."""
    return content_key(
        "completion",
        {
            "llm": llm_name,
            "messages": [list(message) for message in request.messages],
            "sampling": dict(request.sampling),
            "prompt_version": request.prompt_version,
        },
    )


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One call as it stands in the ledger."""

    run: str
    model: str
    outcome: str
    """"ok" or the reason of the failure."""
    attempts: int = 1
    input_tokens: int | None = None
    output_tokens: int | None = None
    price: float | None = None


@dataclass(frozen=True, slots=True)
class LedgerTotals:
    """Sums over the ledger. What is not known is counted beside the sum, never taken for 0."""

    calls: int
    attempts: int
    failed: int
    input_tokens: int
    output_tokens: int
    uncounted_calls: int
    """Calls whose tokens are not known; they are missing in the token sums."""
    known_price: float
    unpriced_calls: int
    """Calls whose price is not known; they are missing in `known_price`."""
    unpriced_attempts: int
    """Requests that were sent for them; each may have been billed."""
    highest_price: float
    """Of one call, among those whose price is known; 0 where there are none."""
    damaged: int = 0
    """Rows of the whole ledger that are not as they were written: calls, of this run or another, that are in no sum."""

    @property
    def price(self) -> float | None:
        """The whole price, or None if it is not known of every call."""
        return None if self.unpriced_calls or self.damaged else self.known_price

    @property
    def price_record(self) -> dict[str, float | int | None]:
        """For machines: the whole price, or None; what is known of it; and of how many calls it is not known, rows that
        are damaged among them."""
        return {
            "price": self.price,
            "known_price": self.known_price,
            "unpriced_calls": self.unpriced_calls + self.damaged,
        }

    @property
    def price_text(self) -> str:
        """For people: "0.0150", "unknown", "0.0150 + unknown price of 3 calls", or "... of 3 calls and 1 damaged"."""
        unknown = [f"{self.unpriced_calls} calls"] * bool(self.unpriced_calls)
        unknown += [f"{self.damaged} damaged"] * bool(self.damaged)
        if unknown and (self.known_price or self.damaged):
            return f"{price_text(self.known_price)} + unknown price of {' and '.join(unknown)}"
        return price_text(self.price)


class ReadStore:
    """The file behind every cached reader. Open it as often as you like, from as many processes as you like.

    A missing file is created with its folders. A damaged file is renamed aside with one warning and a new one begun.
    `damaged` counts rows whose checksum did not fit. Raises StorageError where the place cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.damaged = 0
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._owner = 0
        self._inode: int | None = None
        self.ledger = Ledger(self)
        self.write(lambda connection: None)  # tells now, not after the first paid answer, if this cannot work

    def __enter__(self) -> ReadStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of stored answers."""
        return self.read("SELECT COUNT(*) FROM answers")[0][0]

    def get_many(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The stored values of these keys; keys without a sound row are left out."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, dict[str, Any]] = {}
        for start in range(0, len(wanted), KEYS_PER_QUERY):
            part = wanted[start : start + KEYS_PER_QUERY]
            marks = ", ".join("?" * len(part))
            rows = self.read(f"SELECT key, value, checksum FROM answers WHERE key IN ({marks})", part)
            for key, value, checksum in rows:
                if checksum == _checksum(key, value):
                    found[key] = json.loads(value)
                else:
                    self.damaged += 1
        return found

    def put_many(self, rows: Mapping[str, Mapping[str, Any]], calls: Sequence[LedgerEntry] = ()) -> None:
        """Stores values by key and enters the calls that made them, all in one transaction.

        Raises StorageError if the file cannot be written; nothing of the batch is stored then.
        """
        texts = {key: json.dumps(dict(value), sort_keys=True, allow_nan=False) for key, value in rows.items()}

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT OR REPLACE INTO answers (key, value, checksum) VALUES (?, ?, ?)",
                [(key, text, _checksum(key, text)) for key, text in texts.items()],
            )
            self.ledger.write(connection, calls)

        if texts or calls:
            self.write(write)

    def close(self) -> None:
        """Closes the connection; the next use opens it again."""
        with self._lock:
            if self._connection is not None and self._owner == os.getpid():
                self._connection.close()
            self._connection = None

    def read(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of one query."""
        return self.look(lambda connection: connection.execute(query, values).fetchall())

    def look(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """What `work` reads; it may be done twice, where the file turns out to be damaged."""
        return self._guarded(work)

    def write(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Runs `work` in one transaction: all of it is stored, or nothing."""
        self._guarded(lambda connection: _in_transaction(connection, work))

    def _guarded(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Runs `work`; if the file turns out to be damaged, sets it aside and runs `work` again on a new one."""
        with self._lock:
            try:
                return work(self._connected())
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if not _means_damage(error, self.path):
                    raise self._cannot_use(error) from error
                if not _may_be_a_database(self.path):
                    raise StorageError(
                        f"File '{self.path}' is no database; wanted a read cache, or the name of a new one. Name "
                        "another file with --cache."
                    ) from error
                self._set_aside(str(error))
            try:
                return work(self._connected())
            except sqlite3.DatabaseError as error:
                raise self._cannot_use(error) from error

    def _connected(self) -> sqlite3.Connection:
        """The open connection, if it belongs to this process and to the file that has the name now.

        A forked child must not use its parent's connection. And a file that another process has set aside must not be
        written any more, because its journal has the name of the new file's journal.
        """
        if self._connection is not None and (self._owner, self._inode) == (os.getpid(), _inode(self.path)):
            return self._connection
        self.close()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._cannot_use(error) from error
        if _was_emptied(self.path):
            log.warning(
                "Read cache '%s' is there and holds nothing (0 bytes): answers and calls that it had are gone. A "
                "new one begins; put a copy of the old one back, if there is one.",
                self.path,
            )
        self._inode = _inode(self.path)
        self._connection = self._opened()
        self._owner = os.getpid()
        self._inode = _inode(self.path)
        return self._connection

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")  # a flipped bit may leave no UTF-8
            # A rollback journal, not WAL: WAL can corrupt the file when two processes write and checkpoint at the same
            # moment, in every SQLite before 3.51.3 (https://sqlite.org/wal.html, the WAL-reset bug). Most Pythons link
            # an older one, and all processes that share a file must agree. Also safe on network file systems.
            mode = connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
            if mode.lower() != "delete":
                raise StorageError(
                    f"Read cache '{self.path}' is in journal mode '{mode}' and cannot leave it; wanted 'delete'. "
                    "End the other programs that have it open."
                )
            # FULL: a power failure in mid-commit may not cost the file. One commit takes some 1 to 3 ms on an SSD, and
            # stands beside a call of a language model that takes a hundred times as long.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA trusted_schema = OFF")
            self._ensure_tables(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _ensure_tables(self, connection: sqlite3.Connection) -> None:
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        found: dict[str, str] = {}

        def create_if_empty(connection: sqlite3.Connection) -> None:
            found.update(connection.execute(query).fetchall())
            for statement in () if found else TABLES.values():
                connection.execute(statement)
            if found == BEFORE_CHECKSUMS:
                add_checksums(connection)

        # In one write transaction, so that of many processes opening a new file exactly one creates the tables. It also
        # tells at once whether the file can be written at all.
        _in_transaction(connection, create_if_empty)
        if found and found not in (TABLES, BEFORE_CHECKSUMS):
            if TABLES.keys().isdisjoint(found):
                raise StorageError(
                    f"File '{self.path}' is a database of another program (tables {', '.join(sorted(found))}); "
                    "wanted a read cache. Name another file with --cache."
                )
            raise _Damaged("table definitions do not fit")

    def _set_aside(self, reason: str) -> None:
        """Renames the damaged file, unless another process has done so already."""
        self.close()
        inode = _inode(self.path)
        if inode is None or inode != self._inode:
            return
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        try:
            # The journal first: left behind, SQLite would roll it back into the new file.
            for ending in ("-journal", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self.path}{ending}").replace(f"{aside}{ending}")
            with contextlib.suppress(FileNotFoundError):
                self.path.replace(aside)
        except OSError as error:
            raise self._cannot_use(error) from error
        log.warning(
            "Read cache '%s' is damaged (%s); it is kept as '%s' and a new one begins.", self.path, reason, aside
        )

    def _cannot_use(self, error: Exception) -> StorageError:
        return StorageError(
            f"Read cache '{self.path}' cannot be used ({error}); wanted a writable place with free space. "
            "Free the disk, check the permissions, or name another file with --cache."
        )


class Ledger:
    """Every call that was made, for whom, and what it cost."""

    def __init__(self, store: ReadStore):
        self._store = store
        self._checked: sqlite3.Connection | None = None
        self._damaged = 0

    def write(self, connection: sqlite3.Connection, entries: Sequence[LedgerEntry]) -> None:
        """Enters calls within an open transaction."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        rows = [
            (now, e.run, e.model, e.attempts, e.input_tokens, e.output_tokens, _as_stored(e.price), e.outcome)
            for e in entries
        ]
        connection.executemany(
            f"INSERT INTO ledger ({LEDGER_COLUMNS}, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(*row, _digits(row)) for row in rows],
        )

    def runs(self) -> list[str]:
        """Names of the runs in the ledger, in order of their first call."""
        return self._store.look(lambda connection: list(dict.fromkeys(row[1] for row in self._sound_rows(connection))))

    def totals(self, run: str | None = None) -> LedgerTotals:
        """Sums over one run, or over all."""
        return self._store.look(lambda connection: _summed(self._sound_rows(connection, run), self._damaged))

    def _sound_rows(self, connection: sqlite3.Connection, run: str | None = None) -> list[tuple[Any, ...]]:
        """Rows that are as they were written, in order of time; what is damaged is counted and told once."""
        if self._checked is not connection:
            # A checksum guards what stands in a row, and this the rows that the pages no longer point to.
            (found,) = connection.execute("PRAGMA quick_check(ledger)").fetchone()
            if found != "ok":
                raise _Damaged(found)
            self._damaged = sum(not _fits(row) for row in connection.execute(_LEDGER_ROWS))
            self._checked = connection
            if self._damaged:
                log.warning(
                    "Ledger of read cache '%s' has %d damaged rows; they are in no sum, so there were more calls.",
                    self._store.path,
                    self._damaged,
                )
        where, values = ("", ()) if run is None else (" WHERE run = ?", (run,))
        return [row for row in connection.execute(f"{_LEDGER_ROWS}{where} ORDER BY id", values) if _fits(row)]


_LEDGER_ROWS = f"SELECT {LEDGER_COLUMNS}, checksum FROM ledger"


def add_checksums(connection: sqlite3.Connection) -> None:
    """Gives the calls of a ledger that has none their checksums, as they stand there."""
    connection.execute(f"ALTER TABLE ledger ADD COLUMN {LEDGER_CHECKSUM}")
    rows = connection.execute(f"SELECT id, {LEDGER_COLUMNS} FROM ledger").fetchall()
    connection.executemany("UPDATE ledger SET checksum = ? WHERE id = ?", [(_digits(row), id) for id, *row in rows])


def _fits(row: Sequence[Any]) -> bool:
    return row[-1] == _digits(row[:-1])


def _digits(row: Sequence[Any]) -> str:
    """Of the checksum as many as tell damage, since a ledger has many short rows."""
    return _checksum(*row)[:16]


def _as_stored(price: float | None) -> float | None:
    """Of a price of 1 SQLite keeps 1.0, which has another checksum."""
    return None if price is None else float(price)


def _summed(rows: Iterable[tuple[Any, ...]], damaged: int) -> LedgerTotals:
    calls = attempts = failed = inputs = outputs = uncounted = unpriced = unpriced_attempts = 0
    known = highest = 0.0
    for _, _, _, sent, read, written, price, outcome, _ in rows:
        calls += 1
        attempts += sent
        failed += outcome != "ok"
        inputs += read or 0
        outputs += written or 0
        uncounted += read is None or written is None
        unpriced += price is None
        unpriced_attempts += sent * (price is None)
        known += price or 0.0
        highest = max(highest, price or 0.0)
    return LedgerTotals(
        calls, attempts, failed, inputs, outputs, uncounted, known, unpriced, unpriced_attempts, highest, damaged
    )


class CachedLLM:
    """An LLM that asks the store first and the LLM behind it only for what is new.

    Identical requests of one batch are sent once; the others share the answer, also where the sampling is random. Every
    new answer is stored as soon as it is there. A text that `accepts` turns down (by default none but blank ones) is no
    answer: it fails, is not stored, and is asked again. Of a request for log probabilities they are the answer,
    whatever the text, and without them there is none. Counts over its lifetime: `paid` answers of the LLM, `hits`
    answered without a call, `failed` calls.
    """

    def __init__(self, llm: LLM, store: ReadStore, *, run: str = "", accepts: Callable[[str], object] = str.strip):
        self._llm = llm
        self._store = store
        self._run = run
        self._accepts = accepts
        self.paid = 0
        self.hits = 0
        self.failed = 0

    @property
    def name(self) -> str:
        return self._llm.name

    def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
        """One result per request, in order; `paid` is False for what cost no call."""
        keys = [request_key(self.name, request) for request in requests]
        asked = dict(zip(keys, requests, strict=True))
        results: dict[str, CompletionResult] = {**self._known(asked)}
        if results and isinstance(self._llm, SuspiciousLLM):  # new may be only what fails again and again
            self._llm.answered_before()
        new = {key: request for key, request in asked.items() if key not in results}
        new_keys = list(new)

        def keep(made: Sequence[Call]) -> None:
            calls = [self._judged(new[new_keys[call.index]], call) for call in made]
            results.update((new_keys[call.index], call.told) for call in calls)
            self._keep(new_keys, calls)

        complete_each(self._llm, list(new.values()), keep)
        finished = list(_paid_once(keys, results))
        self.hits += sum(isinstance(result, Completion) and not result.paid for result in finished)
        return finished

    def unanswered(self, requests: Sequence[LLMRequest]) -> list[LLMRequest]:
        """Those that would be calls, equal ones once: what the store does not answer."""
        asked = {request_key(self.name, request): request for request in requests}
        known = self._known(asked)
        return [request for key, request in asked.items() if key not in known]

    def _known(self, asked: Mapping[str, LLMRequest]) -> dict[str, Completion]:
        """Key -> what the store answers."""
        stored = {key: _restored(value) for key, value in self._store.get_many(asked).items()}
        return {key: completion for key, completion in stored.items() if not self._lack(asked[key], completion)}

    def _judged(self, request: LLMRequest, call: Call) -> Call:
        """The call, failed where it brought no answer."""
        lack = self._lack(request, call.result) if isinstance(call.result, Completion) else None
        return replace(call, result=CompletionFailed(lack)) if lack else call

    def _lack(self, request: LLMRequest, completion: Completion) -> str | None:
        """Why a completion is no answer to the request; None where it is one."""
        if wants_logprobs(request):
            return None if completion.top_logprobs else NO_LOGPROBS
        return None if self._accepts(completion.text) else EMPTY_TEXT

    def _keep(self, keys: Sequence[str], calls: Sequence[Call]) -> None:
        answers = {keys[call.index]: _row(call.result) for call in calls if isinstance(call.result, Completion)}
        self._store.put_many(answers, [self._entry(call) for call in calls if call.attempts])
        answered = sum(isinstance(call.result, Completion) for call in calls)
        self.paid += answered
        self.failed += len(calls) - answered

    def _entry(self, call: Call) -> LedgerEntry:
        outcome = "ok" if isinstance(call.result, Completion) else call.result.reason
        return LedgerEntry(
            self._run, self.name, outcome, call.attempts, call.input_tokens, call.output_tokens, call.price
        )


def _row(completion: Completion) -> dict[str, Any]:
    """What is stored of a completion."""
    row: dict[str, Any] = {
        "text": completion.text,
        "input_tokens": completion.input_tokens,
        "output_tokens": completion.output_tokens,
    }
    if completion.top_logprobs:  # as pairs: the first is the token written, and the store sorts names
        row["top_logprobs"] = [list(map(list, tokens.items())) for tokens in completion.top_logprobs]
    return row


def _restored(row: Mapping[str, Any]) -> Completion:
    logprobs = tuple(dict(pairs) for pairs in row.get("top_logprobs", ()))
    return Completion(row["text"], row["input_tokens"], row["output_tokens"], paid=False, top_logprobs=logprobs)


def complete_each(llm: LLM, requests: Sequence[LLMRequest], on_calls: CallsReport) -> None:
    """`complete_each` of any LLM: its own where it has one, else `complete` in chunks."""
    if not requests:
        return
    if isinstance(llm, IncrementalLLM):
        llm.complete_each(requests, on_calls)
        return
    for start in range(0, len(requests), REQUESTS_PER_CHUNK):
        chunk = requests[start : start + REQUESTS_PER_CHUNK]
        results = llm.complete(chunk)
        if len(results) != len(chunk):
            raise ReaderError(
                f"{llm.name} gave {len(results)} results for {len(chunk)} requests; wanted one for each. "
                "Return CompletionFailed for a request that has no answer."
            )
        on_calls([_plain_call(start + offset, result) for offset, result in enumerate(results)])


def _plain_call(index: int, result: CompletionResult) -> Call:
    if isinstance(result, Completion):
        return Call(index, result, input_tokens=result.input_tokens, output_tokens=result.output_tokens)
    return Call(index, result)


def _paid_once(keys: Sequence[str], results: Mapping[str, CompletionResult]) -> Iterator[CompletionResult]:
    seen: set[str] = set()
    for key in keys:
        result = results[key]
        yield replace(result, paid=False) if key in seen else result
        seen.add(key)


_HEADER = b"SQLite format 3\0"


class _Damaged(sqlite3.DatabaseError):
    """The file is a read cache whose content SQLite accepts and we do not."""


def _means_damage(error: sqlite3.DatabaseError | UnicodeDecodeError, path: Path) -> bool:
    # Messages of SQLite repeat the table definitions, and Python cannot raise one that is no UTF-8.
    if isinstance(error, _Damaged | UnicodeDecodeError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return False
    # Our statements are fixed and right, so a table or column that is missing was lost to damage; and so is the
    # number of a schema format that SQLite does not have.
    lost = code == sqlite3.SQLITE_ERROR and str(error).startswith(("no such ", "unsupported file format"))
    if code & 0xFF == sqlite3.SQLITE_READONLY:
        return _says_it_is_newer(path)
    return lost or code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)


def _says_it_is_newer(path: Path) -> bool:
    """Whether the header's write version is neither of the two that there are (byte 18,
    https://sqlite.org/fileformat.html): SQLite then takes the file for one of a later version, and only reads it."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        return stream.read(19)[18:] not in (b"", b"\1", b"\2")
    return False


def _may_be_a_database(path: Path) -> bool:
    """By its name, or by its first bytes where damage has not reached them: any other file is somebody's work."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        return path.suffix in (".sqlite", ".sqlite3", ".db") or stream.read(len(_HEADER)) == _HEADER
    return True


def _in_transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], None]) -> None:
    # IMMEDIATE: take the write lock now. A transaction that starts by reading and then wants to write can meet another
    # of its kind, and SQLite ends such a pair with an error that no waiting avoids.
    connection.execute("BEGIN IMMEDIATE")
    try:
        work(connection)
        connection.execute("COMMIT")
    except BaseException:  # Ctrl-C too: an open transaction would lock out every other process
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _checksum(*values: Any) -> str:
    return hashlib.sha256("\n".join(map(str, values)).encode("utf-8", "replace")).hexdigest()


def _was_emptied(path: Path) -> bool:
    """Whether it is a file of no bytes, which SQLite takes for a new one, and no other process is just beginning it."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_size == 0 and time.time() - found.st_mtime > JUST_BEGUN
    return False


def _inode(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return path.stat().st_ino
    return None
