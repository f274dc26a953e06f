"""A scorer that takes a known time and fails on command, a reader, and a server around it in a process of its own:
`python -m tests.stub_scorer FOLDER --port N`.

What it is to do stands in FOLDER/mode (`well` where there is none), so that a test can change it while it runs; what it
did stands in FOLDER/ledger, a line a batch.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.rerankers.ranking import Scorer
from rankwright.rerankers.tokens import Pair, TokenScorer
from rankwright.types import Answer, Context, ReadResult, RerankRequest, Scored

MAX_LENGTH = 64


def words(text: str) -> list[str]:
    return text.lower().split()


def score_of(query: str, text: str) -> float:
    """How many words of the query the text has, less a thousandth of its words: a score that a test can work out."""
    return float(len(set(words(query)) & set(words(text)))) - 0.001 * len(words(text))


def obeyed(mode: Callable[[], str], half: str, texts: Sequence[str]) -> tuple[str, str]:
    """Does what the mode says for this half; what it says of scores comes back, for the scorer to do.

    Modes: "well", "raise", "die", "hang SECONDS", "hold" (until the mode is another), "nan", "short" (one score too
    few), "memory N" (more than N documents are too many at once), "nan on WORD" and "raise on WORD" (of a document),
    "memory on WORD". They are for scoring, or with " in tokenising" behind them for that half of StubHalves.
    """
    while (said := mode()) == "hold":
        time.sleep(0.01)
    said, _, where = said.partition(" in ")
    if (where or "scoring") != half:
        return "well", ""
    what, _, how = said.partition(" ")
    spoiled = how.removeprefix("on ") in " ".join(texts).split() if how.startswith("on ") else True
    if what == "hang":
        time.sleep(float(how))
    if what == "die":
        sys.exit(3)
    if what == "raise" and spoiled:
        raise ValueError("the stub was told to fail")
    if what == "memory" and (spoiled if how.startswith("on ") else len(texts) > int(how)):
        raise MemoryError
    return what, how


def spoiled_score(query: str, text: str, what: str, how: str) -> float:
    """The score, or NaN where the mode says so for a document like this one."""
    bad = how.removeprefix("on ")
    return float("nan") if what == "nan" and (not how or bad in words(text)) else score_of(query, text)


def well() -> str:
    return "well"


def ignored(texts: Sequence[str]) -> None:
    pass


class Told:
    """What a stub is told.

    Args:
        seconds: for one document.
        mode: says before each batch what is to happen (`obeyed`).
        note: is told each batch's texts.
    """

    def __init__(
        self,
        seconds: float = 0.0,
        mode: Callable[[], str] = well,
        note: Callable[[Sequence[str]], None] = ignored,
    ) -> None:
        self.seconds, self.mode, self.note = seconds, mode, note


class StubScorer(Told, Scorer):
    """Scores by `score_of`."""

    @property
    def name(self) -> str:
        return "stub|stub"

    @property
    def max_length(self) -> int:
        return MAX_LENGTH

    def score_batch(self, requests: Sequence[RerankRequest]) -> list[Scored]:
        texts = [document.text for request in requests for document in request.documents]
        self.note(texts)
        what, how = obeyed(self.mode, "scoring", texts)
        time.sleep(self.seconds * len(texts))
        return [self._scored(request, what, how) for request in requests]

    def _scored(self, request: RerankRequest, what: str, how: str) -> Scored:
        documents = request.documents[: -1 if what == "short" else None]
        scores = [spoiled_score(request.query.text, d.text, what, how) for d in documents]
        lengths = [len(words(request.query.text)) + len(words(d.text)) for d in documents]
        tokens = tuple(min(length, MAX_LENGTH) for length in lengths)
        return Scored(tuple(scores), tokens, tuple(length > MAX_LENGTH for length in lengths))


class StubHalves(Told, TokenScorer):
    """The same in two halves: the first takes a tenth of the second's time."""

    def __init__(self, *told: Any, **named: Any) -> None:
        super().__init__(*told, **named)
        self._template, self._max_length = "{title}: {text}", MAX_LENGTH
        self.texts: list[tuple[str, str]] = []
        """What was tokenised; the tokens of a pair are its place here, as often as it has words."""
        self._places: dict[tuple[str, str], int] = {}
        self._one_at_a_time = threading.Lock()

    @property
    def name(self) -> str:
        return "stub|halves"

    def tokenise(self, requests: Sequence[RerankRequest]) -> list[Pair]:
        texts = [(request.query.text, document.text) for request in requests for document in request.documents]
        obeyed(self.mode, "tokenising", [text for _, text in texts])
        time.sleep(self.seconds / 10 * len(texts))
        return [self._pair(*text) for text in texts]

    def _pair(self, query: str, text: str) -> Pair:
        with self._one_at_a_time:
            place = self._places.setdefault((query, text), len(self.texts))
            if place == len(self.texts):
                self.texts.append((query, text))
        length = len(words(query)) + len(words(text))
        row = np.full(min(length, MAX_LENGTH), place, np.int32)
        return Pair(row, row, length > MAX_LENGTH)

    def score_tokens(self, pairs: Sequence[Pair]) -> list[float]:
        asked = [self.texts[pair.ids_T[0]] for pair in pairs]
        texts = [text for _, text in asked]
        self.note(texts)
        what, how = obeyed(self.mode, "scoring", texts)
        time.sleep(self.seconds * len(texts))
        return [spoiled_score(query, text, what, how) for query, text in asked[: -1 if what == "short" else None]]

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [[word.span() for word in re.finditer(r"\S+", text)] for text in texts]


class StubReader:
    """Says the first passage.

    Args:
        mode: as of StubScorer; "hang SECONDS" is all that it knows.
    """

    name = "stub-reader"

    def __init__(self, mode: Callable[[], str] = well) -> None:
        self.mode = mode

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        what, _, how = self.mode().partition(" ")
        if what == "hang":
            time.sleep(float(how))
        return [Answer(context.documents[0].text) for context in contexts]


def main() -> None:
    from rankwright.engine import Engine, EngineSettings
    from rankwright.server.answers import ServedReader
    from rankwright.server.app import create_app
    from rankwright.server.run import bound_socket, run
    from rankwright.server.settings import KEY_VARIABLE, ServerSettings, keys_of

    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path)
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--seconds", type=float, default=0.0)
    options.add_argument("--max-waiting", type=int, default=2048)
    options.add_argument("--batch-documents", type=int, default=64)
    options.add_argument("--timeout", type=float, default=30.0)
    options.add_argument("--give-up", type=float, default=60.0)
    options.add_argument("--drain", type=float, default=8.0)
    options.add_argument("--reader", action="store_true")
    options.add_argument("--halves", action="store_true", help="a stub in two halves, of which the first tokenises")
    given = options.parse_args()
    mode, ledger = given.folder / "mode", (given.folder / "ledger").open("a", buffering=1, encoding="utf-8")

    def note(texts: Sequence[str]) -> None:
        ledger.write(f"{time.monotonic()} {len(texts)} {' '.join(texts)[:200]!r}\n")

    def said() -> str:
        return mode.read_text("utf-8").strip() if mode.exists() else "well"

    settings = ServerSettings(
        port=given.port,
        keys=keys_of(os.environ.get(KEY_VARIABLE, "")),
        timeout=given.timeout,
        drain=given.drain,
    )
    limits = EngineSettings(
        max_waiting=given.max_waiting,
        batch_documents=given.batch_documents,
        timeout=given.timeout,
        give_up=given.give_up,
    )
    scorer = (StubHalves if given.halves else StubScorer)(given.seconds, said, note)

    class StubEngine(Engine):
        """Fails itself in the mode "raise in batching", on which the stub does nothing."""

        def _fill(self) -> Any:
            if said() == "raise in batching":
                raise KeyError("the engine was told to fail")
            return super()._fill()

    engine = StubEngine(lambda: {"stub": scorer}, limits)
    app = create_app(engine, settings, reader=ServedReader(StubReader(said)) if given.reader else None)
    run(app, engine, settings, bound_socket("127.0.0.1", given.port))


if __name__ == "__main__":
    from rankwright.errors import RankwrightError

    try:
        main()
    except RankwrightError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
