"""A cache around a reader that computes its answers itself. (Around a language model the cache is CachedLLM.)"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from rankwright.errors import ReaderError
from rankwright.llms.cache import LedgerEntry, ReadStore, content_key
from rankwright.types import Answer, Context, ReadFailed, ReadResult

CONTEXTS_PER_CHUNK = 256
"""Answers are stored after each chunk, in one transaction; a kill loses at most one chunk."""


class KeyedReader(Protocol):
    """A reader that can say on what its answer to a context depends."""

    @property
    def name(self) -> str: ...

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        """One result per context, in order."""
        ...

    def cache_key(self, context: Context) -> str:
        """Differs wherever the answer may differ: weights, question, passages as cut, in order."""
        ...


class CachedReader:
    """A reader that asks the store first and the reader behind it only for what is new.

    Equal contexts of one batch are read once. Failed reads are not stored. The ledger enters every read at a price of
    0, which is known: it was made on this machine. Counts over its lifetime: `paid` answers of the reader, `hits`
    answered without it, `failed` reads. `reader` is the one behind it.

    Args:
        reader: the one that is asked for what is new.
        store: where answers are kept.
        run: under which name reads stand in the ledger.
        rereads: of the stored answers, so many of the first are read again and compared (`stale_share`); neither the
            ledger nor the counts know of that. Only for a reader that costs no money and answers the same again.
    """

    def __init__(self, reader: KeyedReader, store: ReadStore, *, run: str = "", rereads: int = 0):
        self.reader = reader
        self._store = store
        self._run = run
        self._rereads = rereads
        self._reread = 0
        self._stale = 0
        self.paid = 0
        self.hits = 0
        self.failed = 0

    @property
    def name(self) -> str:
        return self.reader.name

    @property
    def share_cut(self) -> float:
        """Share of passage tokens that the reader behind had to cut away; 0 for one that does not count them."""
        return getattr(self.reader, "share_cut", 0.0)

    @property
    def stale_share(self) -> float:
        """Share of the stored answers read again that came out otherwise; NaN where none was."""
        return self._stale / self._reread if self._reread else math.nan

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        """One result per context, in order; `paid` is False for what the store or an equal context answered."""
        keys = [self._key(context) for context in contexts]
        results: dict[str, ReadResult] = {
            key: Answer(value["text"], paid=False) for key, value in self._store.get_many(keys).items()
        }
        new = {key: context for key, context in zip(keys, contexts, strict=True) if key not in results}
        if self._reread < self._rereads:
            stored = {key: context for key, context in zip(keys, contexts, strict=True) if key in results}
            self._compare(stored, results)
        fresh = list(new)
        for start in range(0, len(fresh), CONTEXTS_PER_CHUNK):
            chunk = fresh[start : start + CONTEXTS_PER_CHUNK]
            results.update(self._read(chunk, [new[key] for key in chunk]))
        return [self._counted(results, key, new) for key in keys]

    def unanswered(self, contexts: Sequence[Context]) -> list[Context]:
        """Those that would be read, equal ones once: what the store does not answer."""
        asked = {self._key(context): context for context in contexts}
        known = self._store.get_many(asked)
        return [context for key, context in asked.items() if key not in known]

    def _key(self, context: Context) -> str:
        return content_key("answer", {"reader_key": self.reader.cache_key(context)})

    def _compare(self, stored: Mapping[str, Context], results: Mapping[str, ReadResult]) -> None:
        """Reads some of what the store answered again."""
        keys = list(stored)[: self._rereads - self._reread]
        for key, again in zip(keys, self.reader.answer([stored[key] for key in keys]) if keys else [], strict=True):
            before = results[key]
            if isinstance(again, Answer) and isinstance(before, Answer):
                self._reread += 1
                self._stale += again.text != before.text

    def _read(self, keys: Sequence[str], contexts: Sequence[Context]) -> dict[str, ReadResult]:
        results = self.reader.answer(contexts)
        if len(results) != len(contexts):
            raise ReaderError(
                f"Reader {self.name} gave {len(results)} results for {len(contexts)} contexts; wanted one for each. "
                "Return ReadFailed for a context that has no answer."
            )
        read = dict(zip(keys, results, strict=True))
        answers = {key: {"text": result.text} for key, result in read.items() if isinstance(result, Answer)}
        self._store.put_many(answers, [self._entry(result) for result in results])
        self.paid += len(answers)
        self.failed += len(results) - len(answers)
        return read

    def _entry(self, result: ReadResult) -> LedgerEntry:
        outcome = result.reason if isinstance(result, ReadFailed) else "ok"
        return LedgerEntry(self._run, self.name, outcome, input_tokens=0, output_tokens=0, price=0.0)

    def _counted(self, results: dict[str, ReadResult], key: str, new: dict[str, Context]) -> ReadResult:
        """The result for one context; all but the first context of a new key cost nothing."""
        result = results[key]
        if new.pop(key, None) is not None:
            return result
        self.hits += isinstance(result, Answer)
        return replace(result, paid=False)
