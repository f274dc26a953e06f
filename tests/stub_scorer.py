"""A scorer that takes a known time and fails on command, a reader, and a server around it in a process of its own:
`python -m tests.stub_scorer FOLDER --port N`.

What it is to do stands in FOLDER/mode (`well` where there is none), so that a test can change it while it runs; what it
did stands in FOLDER/ledger, a line a batch.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rankwright.rerankers.ranking import Scorer
from rankwright.types import Answer, Context, ReadResult, RerankRequest, Scored

MAX_LENGTH = 64


def words(text: str) -> list[str]:
    return text.lower().split()


def score_of(query: str, text: str) -> float:
    """How many words of the query the text has, less a thousandth of its words: a score that a test can work out."""
    return float(len(set(words(query)) & set(words(text)))) - 0.001 * len(words(text))


class StubScorer(Scorer):
    """Scores by `score_of`.

    Args:
        seconds: for one document.
        mode: says before each batch what is to happen: "well", "raise", "die", "hang SECONDS", "nan", "memory N" (more
            than N documents are too many at once), "nan on WORD" and "raise on WORD" (of a document), "memory on WORD".
        note: is told each batch's texts.
    """

    def __init__(
        self,
        seconds: float = 0.0,
        mode: Callable[[], str] = lambda: "well",
        note: Callable[[Sequence[str]], None] = lambda texts: None,
    ) -> None:
        self.seconds, self.mode, self.note = seconds, mode, note

    @property
    def name(self) -> str:
        return "stub|stub"

    @property
    def max_length(self) -> int:
        return MAX_LENGTH

    def score_batch(self, requests: Sequence[RerankRequest]) -> list[Scored]:
        texts = [document.text for request in requests for document in request.documents]
        what, _, how = self.mode().partition(" ")
        self.note(texts)
        spoiled = how.removeprefix("on ") in " ".join(texts).split() if how.startswith("on ") else True
        if what == "hang":
            time.sleep(float(how))
        if what == "die":
            sys.exit(3)
        if what == "raise" and spoiled:
            raise ValueError("the stub was told to fail")
        if what == "memory" and (spoiled if how.startswith("on ") else len(texts) > int(how)):
            raise MemoryError
        time.sleep(self.seconds * len(texts))
        return [self._scored(request, what == "nan", how) for request in requests]

    def _scored(self, request: RerankRequest, spoil: bool, how: str) -> Scored:
        bad = how.removeprefix("on ")
        scores = [
            float("nan") if spoil and (not how or bad in words(d.text)) else score_of(request.query.text, d.text)
            for d in request.documents
        ]
        lengths = [len(words(request.query.text)) + len(words(d.text)) for d in request.documents]
        tokens = tuple(min(length, MAX_LENGTH) for length in lengths)
        return Scored(tuple(scores), tokens, tuple(length > MAX_LENGTH for length in lengths))


class StubReader:
    """Says the first passage.

    Args:
        mode: as of StubScorer; "hang SECONDS" is all that it knows.
    """

    name = "stub-reader"

    def __init__(self, mode: Callable[[], str] = lambda: "well") -> None:
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
    engine = Engine(lambda: {"stub": StubScorer(given.seconds, said, note)}, limits)
    app = create_app(engine, settings, reader=ServedReader(StubReader(said)) if given.reader else None)
    run(app, engine, settings, bound_socket("127.0.0.1", given.port))


if __name__ == "__main__":
    from rankwright.errors import RankwrightError

    try:
        main()
    except RankwrightError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
