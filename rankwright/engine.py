"""A queue in front of scoring: documents of several requests share a batch, nobody waits for ever, nobody is half done.

One thread scores; where the model is a TokenScorer another one tokenises before. Both work in turns, so that a request
of a thousand documents does not keep one of five waiting. Batches are as large as about half a second of work: what was
cancelled, or is too late, costs at most the batch that is running. A third thread answers what is too late, and so does
not depend on the other two.

    engine = Engine(lambda: {"mine": rankwright.load("runs/mine/model")})
    engine.start()
    reply = engine.submit("mine", [RerankRequest(query, documents)]).result()
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

from rankwright.batching import says_out_of_memory
from rankwright.errors import (
    ConfigurationError,
    DeadlineError,
    OutOfMemoryError,
    OverloadedError,
    QuestionTooLongError,
    RankwrightError,
    ScorerError,
    UnavailableError,
)
from rankwright.rerankers.ranking import Scorer
from rankwright.rerankers.tokens import Pair, TokenScorer
from rankwright.rerankers.windows import Spanning, shortened, tells_spans
from rankwright.types import Document, Query, RerankRequest, Scored

log = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 4
"""How tokens are guessed before a text is tokenised. The pace of scoring is measured in guesses too."""
_TOKENS_OF_A_CHARACTER = 4
"""At most, in tokenizers that fall back on bytes: a question of fewer characters fits without being looked at."""
OUT_OF_MEMORY = "out of memory"
_NAN = float("nan")
_PROBE = RerankRequest(Query("probe", "Is it well?"), (Document("0", "It is well."), Document("1", "No.")))
_WARM_UP_WORDS = (1, 8, 64, 64, 128)
_READ_AT_ONCE = 200_000
"""Characters that are tokenised at once: about half a second of it, however few tokens of them the model reads."""
_TICK = 0.1
"""Seconds between looks at who has waited too long."""


@dataclass(frozen=True)
class EngineSettings:
    """How much may wait, how much is scored at once, and when scoring counts as hung."""

    max_waiting: int = 2048
    """Documents that may wait or be scored; a request that does not fit is refused whole."""
    max_waiting_characters: int = 32_000_000
    """The same in characters, so that long documents cannot fill the memory."""
    batch_documents: int = 64
    batch_tokens: int = 32_768
    """Guessed tokens of a batch."""
    batch_seconds: float = 0.5
    """Work of one batch, by the pace so far; a batch has at least one document."""
    turn: int = 32
    """Documents of a request that a batch takes before it comes to the next request. A request of no more is served in
    the order of arrival; a longer one goes to the end of the queue with what is left of it."""
    timeout: float = 30.0
    """Seconds until a request is too late."""
    patience: float = 4.0
    """Seconds of one batch, or of one turn of tokenising, after which it counts as hung."""
    give_up: float = 60.0
    """Seconds after which what hangs is given up."""
    mend: float = 8.0
    """Seconds for which a scorer that fails even on the probe is tried again before it is given up."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigurationError(f"Setting {name} of the engine is {value}; wanted more than 0.")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request got."""

    scored: tuple[Scored, ...]
    """One a request, in order. A document that could not be scored has NaN, and stands in `failed`."""
    failed: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """(request, document) -> why it has no score."""
    waited: float = 0.0
    """Seconds until its first batch."""
    worked: float = 0.0
    """Seconds from its first batch to its last."""


@dataclass(frozen=True)
class Health:
    """Whether requests are taken, and if not, why."""

    ready: bool
    reason: str = ""
    lost: bool = False
    """True where only a new process can help."""


@dataclass
class _Room:
    """What a batch has room for."""

    documents: int
    tokens: float
    """Guessed ones."""
    characters: int = _READ_AT_ONCE
    """To be tokenised while it is scored."""


class _Job:
    """A submitted request: what has been tokenised, what has been given out, and what has come back."""

    def __init__(
        self, model: str, requests: Sequence[RerankRequest], now: float, deadline: float, document_tokens: int | None
    ) -> None:
        self.model, self.requests, self.deadline = model, requests, deadline
        self.document_tokens = document_tokens
        self.places = [(r, d) for r, request in enumerate(requests) for d in range(len(request.documents))]
        self.characters = sum(_characters(request.query, d) for request in requests for d in request.documents)
        self.given = 0
        self.queued = False
        self.pairs: list[Pair] | None = []
        """Of the first places; None where texts are scored."""
        self.short: set[tuple[int, int]] = set()
        """Places of documents that were cut to `document_tokens` before they were tokenised."""
        self.left = len(self.places)
        self.found = [
            ([_NAN] * len(request.documents), [0] * len(request.documents), [False] * len(request.documents))
            for request in requests
        ]
        self.failed: dict[tuple[int, int], str] = {}
        self.submitted, self.started = now, 0.0
        self.future: Future[Reply] = Future()

    @property
    def ready(self) -> int:
        """So many of the first places can be scored."""
        pairs = self.pairs
        return len(self.places) if pairs is None else len(pairs)

    def texts(self, place: tuple[int, int]) -> tuple[Query, Document]:
        """What stands there."""
        request = self.requests[place[0]]
        return request.query, request.documents[place[1]]

    def take(self, room: _Room, turn: int, reach: float) -> int:
        """The number of next documents that fit; their room is taken."""
        taken = 0
        for place in itertools.islice(self.places, self.given, min(self.given + turn, self.ready)):
            tokens = _guess(*self.texts(place), reach)
            characters = _characters(*self.texts(place)) if self.pairs is None else 0
            if taken == room.documents or tokens > room.tokens or characters > room.characters:
                break
            taken, room.tokens, room.characters = taken + 1, room.tokens - tokens, room.characters - characters
        return taken

    def turn(self, most: int) -> int:
        """Where the next turn of tokenising ends: after so many documents, or as many as are read at once."""
        stop, left = self.ready, _READ_AT_ONCE
        for place in itertools.islice(self.places, self.ready, self.ready + most):
            left -= _characters(*self.texts(place))
            if left < 0 and stop > self.ready:
                break
            stop += 1
        return stop

    def put(self, place: tuple[int, int], score: float, tokens: int, cut: bool) -> None:
        """Takes note of one document's score."""
        scores, lengths, cuts = self.found[place[0]]
        scores[place[1]], lengths[place[1]], cuts[place[1]] = score, tokens, cut
        self.left -= 1

    def reply(self, now: float) -> Reply:
        """All of it."""
        scored = tuple(Scored(tuple(s), tuple(t), tuple(c)) for s, t, c in self.found)
        return Reply(scored, self.failed, self.started - self.submitted, now - self.started)


@dataclass(frozen=True)
class _Slice:
    """Documents of a job, by their places in it."""

    job: _Job
    start: int
    stop: int

    def requests(self) -> Iterator[tuple[RerankRequest, list[tuple[int, int]]]]:
        """What the scorer is given, with the places that it is for."""
        places = self.job.places[self.start : self.stop]
        for number, group in itertools.groupby(places, key=lambda place: place[0]):
            there, whole = list(group), self.job.requests[number]
            documents = whole.documents[there[0][1] : there[-1][1] + 1]
            yield RerankRequest(whole.query, documents), there


class _Row(NamedTuple):
    """What one document got."""

    job: _Job
    place: tuple[int, int]
    score: float
    tokens: int
    cut: bool


class _Turn(NamedTuple):
    """What came of tokenising documents."""

    pairs: list[Pair] | None = None
    """None where the scorer takes texts, and where tokenising fails."""
    short: Set[tuple[int, int]] = frozenset()
    """Places of documents that were shortened before."""
    overlong: Query | None = None
    """A question that leaves no room for them."""


class Engine:
    """Scores what is submitted, in a thread of its own.

    Args:
        opener: gives the models by name; it runs in the scoring thread.
        settings: limits.
    """

    def __init__(self, opener: Callable[[], Mapping[str, Scorer]], settings: EngineSettings | None = None) -> None:
        self.settings = settings or EngineSettings()
        self.scorers: Mapping[str, Scorer] = {}
        self.counts: Counter[str] = Counter()
        """batches, pairs, tokens, cut, cancelled, expired, splits, failures: since the start, probes included."""
        self.error: BaseException | None = None
        """Why the models could not be opened, or what the last one was lost to."""
        self.on_batch: Callable[[int, float], None] | None = None
        """Told documents and seconds after each batch, in the scoring thread."""
        self._opener = opener
        self._jobs: deque[_Job] = deque()
        """Those with documents that are ready and not given out."""
        self._raw: deque[_Job] = deque()
        """Those with documents to be tokenised."""
        self._live: set[_Job] = set()
        self._waiting = self._characters = 0
        self._changed = threading.Condition()
        self._opened = threading.Event()
        self._trouble, self._draining, self._ended = "", False, False
        self._closed = threading.Event()
        self._scoring_since = self._tokenising_since = 0.0
        """From when on patience counts; 0 where the thread is at rest."""
        self._pace = 0.0
        self._documents_per_second = 0.0
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)
        self._tokeniser = threading.Thread(target=self._tokenise, name="tokenising", daemon=True)
        self._timekeeper = threading.Thread(target=self._keep_time, name="timekeeping", daemon=True)
        self._threads = (self._thread, self._tokeniser, self._timekeeper)

    # --- for everybody -----------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Documents that wait or are being scored."""
        return self._waiting

    @property
    def requests(self) -> int:
        """Requests that have not been answered."""
        return len(self._live)

    def start(self) -> None:
        """Opens the models and warms them up, in the scoring thread; `health` says when they are ready."""
        self._thread.start()

    def opened(self, timeout: float | None = None) -> bool:
        """Waits until the models are open or have failed to open; raises why they could not be opened."""
        there = self._opened.wait(timeout)
        if there and self.error is not None:
            raise self.error
        return there

    def health(self) -> Health:
        """Looked at from outside of the engine's threads, so it is right where one hangs or has died."""
        if not self._opened.is_set():
            return Health(False, "the model is being loaded")
        for thread in self._threads:
            if not thread.is_alive():
                return Health(False, f"the {thread.name} thread has ended", lost=not self._closed.is_set())
        # Each is read once: it may become 0 at any time.
        for what, since in (("scoring", self._scoring_since), ("tokenising", self._tokenising_since)):
            busy = time.monotonic() - since if since else 0.0
            if busy > self.settings.patience:
                return Health(False, f"{what} hangs", lost=busy > self.settings.give_up)
        if self._trouble:
            return Health(False, self._trouble)
        return Health(False, "the server is ending") if self._draining else Health(True)

    def submit(
        self,
        model: str,
        requests: Sequence[RerankRequest],
        timeout: float | None = None,
        *,
        document_tokens: int | None = None,
    ) -> Future[Reply]:
        """Queues all documents of the requests, or none. Cancelling the future takes out what is not being scored. Its
        error is QuestionTooLongError where a question leaves no room for a document, which is found out first.

        Args:
            model: a name of `scorers`; KeyError with another.
            requests: answered together.
            timeout: seconds from now; by default that of the settings.
            document_tokens: longer documents are cut to so many, title included, and counted as cut; for a Scorer that
                tells where its tokens stand (`rerankers.windows.tells_spans`).

        Raises:
            OverloadedError: the queue has no room for them.
            UnavailableError: nothing is scored at the moment.
        """
        health, now = self.health(), time.monotonic()
        if not health.ready:
            raise UnavailableError(f"Nothing is scored at the moment: {health.reason}. Try again later.")
        job = _Job(model, requests, now, now + (timeout or self.settings.timeout), document_tokens)
        with self._changed:
            self._admit(job)
        job.future.add_done_callback(lambda _: self._forget(job))
        if not job.places:
            _settle(job, job.reply(now))
        return job.future

    def drain(self) -> None:
        """From now on requests are refused; those that were admitted are answered."""
        self._draining = True

    def close(self, timeout: float = 1.0) -> bool:
        """Ends the threads, scoring after its batch, and fails what is left; False where one is still busy."""
        with self._changed:
            self._draining = True
            self._closed.set()
            self._changed.notify_all()
        end = time.monotonic() + timeout
        threads = [thread for thread in self._threads if thread.is_alive()]
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        self._fail_all(UnavailableError("The server is ending; try again later."))
        return not any(thread.is_alive() for thread in threads)

    # --- admission ---------------------------------------------------------------------------------------------------

    def _admit(self, job: _Job) -> None:
        if self._closed.is_set() or self._ended:  # since health was asked: who came now would wait in vain
            raise UnavailableError("Nothing is scored any more. Try again later.")
        settings, scorer = self.settings, self.scorers[job.model]
        full = self._waiting + len(job.places) > settings.max_waiting
        if full or self._characters + job.characters > settings.max_waiting_characters:
            raise OverloadedError(
                f"The queue holds {self._waiting} documents and has no room for {len(job.places)} more; at most "
                f"{settings.max_waiting} documents and {settings.max_waiting_characters} characters wait. Try again "
                "after the seconds of Retry-After.",
                self._time_to_room(len(job.places)),
            )
        self._waiting += len(job.places)
        self._characters += job.characters
        self._live.add(job)
        if job.places:
            if isinstance(scorer, TokenScorer):
                self._raw.append(job)
                self._changed.notify_all()
            else:
                self._give_texts(job)

    def _time_to_room(self, documents: int) -> float:
        """Seconds until so many documents are done, at the pace so far, spread so that clients do not come at once."""
        seconds = min(30.0, max(1.0, documents / self._documents_per_second if self._documents_per_second else 1.0))
        return seconds * random.uniform(1, 2)

    def _forget(self, job: _Job) -> None:
        """A job was answered, cancelled or failed."""
        with self._changed:
            if job not in self._live:
                return
            self._live.discard(job)
            self._waiting -= len(job.places)
            self._characters -= job.characters
            if job.future.cancelled():
                self.counts["cancelled"] += 1
            elif isinstance(job.future.exception(), DeadlineError):
                self.counts["expired"] += 1
            for queue in (self._raw, self._jobs):
                with suppress(ValueError):
                    queue.remove(job)

    # --- the scoring thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            scorers = dict(self._opener())
            self._warm_up(scorers)
            self.scorers = scorers
            self._tokeniser.start()
            self._timekeeper.start()
        except BaseException as error:
            self.error = _without_memory(error) if is_memory_error(error) else error
            self._opened.set()
            return
        self._opened.set()
        try:
            while not self._closed.is_set():
                try:
                    self._score(self._next_batch())
                except Exception as error:  # a fault of the engine's own: nobody may wait for an answer for ever
                    self._fail_itself(error)
        except BaseException as error:  # health says that the thread has ended; the process is ended by its main thread
            self.error = error
            log.critical("Scoring has ended: %s", error, exc_info=error)
        finally:
            self._scoring_since = 0.0
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            self._fail_all(UnavailableError("Scoring has ended; try again later."))

    def _warm_up(self, scorers: Mapping[str, Scorer]) -> None:
        """What is slow the first time is done before the first request, and the pace is measured."""
        words = [Document(str(i), "word " * n) for i, n in enumerate(_WARM_UP_WORDS)]
        request = RerankRequest(Query("warm-up", "which word?"), tuple(words))
        for name, scorer in scorers.items():
            _refuse_one_prompt(name, scorer)
            scorer.score_batch([request])
            begun = time.monotonic()
            (scored,) = scorer.score_batch([request])
            seconds = time.monotonic() - begun
            tokens = sum(_guess(request.query, document, scorer.reach) for document in words)
            self._note_pace(tokens, len(words), seconds)
            if not all(map(math.isfinite, scored.scores)):
                raise ScorerError(f"Model '{name}' gives scores that are not finite; use an earlier checkpoint.")

    def _note_pace(self, tokens: float, documents: int, seconds: float) -> None:
        """Keeps a moving mean of guessed tokens and documents a second."""
        seconds, share = max(seconds, 1e-6), 0.3 if self._pace else 1.0
        self._pace += share * (tokens / seconds - self._pace)
        self._documents_per_second += share * (documents / seconds - self._documents_per_second)

    def _next_batch(self) -> list[_Slice]:
        """Waits for work; empty where there is none after all."""
        with self._changed:
            while not self._jobs and not self._closed.is_set():
                self._changed.wait()
        self._expire()  # outside of the lock, which callbacks take
        with self._changed:
            return self._fill() if self._jobs and not self._closed.is_set() else []

    def _expire(self) -> None:
        """Answers those who have waited too long, whatever has become of their documents."""
        now = time.monotonic()
        with self._changed:
            late = [job for job in self._live if job.deadline <= now]
        for job in late:
            _settle(job, DeadlineError("The request's time was over before all of its documents were scored."))

    def _keep_time(self) -> None:
        """Answers who has waited too long, whatever hangs."""
        while not self._closed.wait(_TICK):
            self._expire()

    def _fill(self) -> list[_Slice]:
        """Turns of `turn` documents, oldest request first, until the batch is full; all of one model."""
        settings, model = self.settings, self._jobs[0].model
        reach = self.scorers[model].reach
        # Two paces, because short documents cost by their number and long ones by their length.
        documents = min(settings.batch_documents, math.ceil(self._documents_per_second * settings.batch_seconds))
        room = _Room(documents, min(settings.batch_tokens, self._pace * settings.batch_seconds))
        slices: list[_Slice] = []
        others = [job for job in self._jobs if job.model != model]
        ours = deque(job for job in self._jobs if job.model == model)
        while ours:
            job = ours.popleft()
            taken = job.take(room, settings.turn, reach)
            if not taken and not slices:
                taken = 1  # dearer than a whole batch, and has to be scored all the same
            if not taken:
                ours.appendleft(job)
                break
            slices.append(_Slice(job, job.given, job.given + taken))
            job.given += taken
            room.documents -= taken
            job.queued = job.given < job.ready
            if job.queued:
                if taken < settings.turn:  # the batch is full, not its turn over
                    ours.appendleft(job)
                    break
                ours.append(job)
        self._jobs = deque([*others, *ours])
        return slices

    def _score(self, slices: Sequence[_Slice]) -> None:
        """Scores a batch; what fails is narrowed down, so that it fails alone."""
        slices = [part for part in slices if not part.job.future.done()]
        if not slices:
            return
        begun = time.monotonic()
        for part in slices:
            part.job.started = part.job.started or begun
        too_much = False
        try:
            self._score_at_once(slices, begun)
        except Exception as error:
            if is_memory_error(error):
                too_much = True  # halved below: in here the error keeps all alive that the failed batch holds
            elif len({part.job for part in slices}) > 1:
                for _, group in itertools.groupby(slices, key=lambda part: part.job):
                    self._score(list(group))
            elif isinstance(error, QuestionTooLongError):
                _settle(slices[0].job, error)
            else:
                self._fail(slices[0].job, error)
        finally:
            self._scoring_since = 0.0
        if too_much:
            self._score_halves(slices)

    def _score_at_once(self, slices: Sequence[_Slice], begun: float) -> None:
        model = slices[0].job.model
        scorer = self.scorers[model]
        self._scoring_since = begun + self._beyond_a_batch(slices, scorer)
        rows = _by_tokens(scorer, slices) or _by_texts(scorer, slices)
        seconds = time.monotonic() - begun
        self._refuse_unread(slices, rows)
        self._scoring_since = 0.0
        if not all(math.isfinite(row.score) for row in rows):
            raise ScorerError(f"Model '{model}' gave scores that are not finite.")
        for row in rows:
            row.job.put(row.place, row.score, row.tokens, row.cut)
        self._note_pace(sum(_guess(*row.job.texts(row.place), scorer.reach) for row in rows), len(rows), seconds)
        self._count(rows, seconds)
        for job in dict.fromkeys(part.job for part in slices):
            self._finish(job)

    def _refuse_unread(self, slices: Sequence[_Slice], rows: Sequence[_Row]) -> None:
        """Refuses jobs with a question that leaves no room, where only scoring told that their documents were cut."""
        left = iter(rows)
        for part in slices:
            cuts = [row.cut for row in itertools.islice(left, part.stop - part.start)]
            query = _overlong(self.scorers[part.job.model], part, cuts) if part.job.pairs is None else None
            if query is not None:
                self._refuse(part.job, query)

    def _refuse(self, job: _Job, query: Query) -> None:
        longest = self.scorers[job.model].max_length
        _settle(
            job,
            QuestionTooLongError(
                f"Question '{query.query_id}' has more tokens than the {longest} that model '{job.model}' reads of "
                "question and document together; wanted room for a document. Shorten it."
            ),
        )

    def _beyond_a_batch(self, slices: Sequence[_Slice], scorer: Scorer) -> float:
        """Seconds that these documents may take beyond `batch_seconds`: one that is read in windows may be dearer than
        any batch, and of dense scripts a guess is a fourth of the tokens."""
        places = (part.job.texts(place) for part in slices for place in part.job.places[part.start : part.stop])
        seconds = sum(_guess(*texts, scorer.reach) for texts in places) / self._pace if self._pace else 0.0
        return 4 * max(0.0, seconds - self.settings.batch_seconds)

    def _count(self, rows: Sequence[_Row], seconds: float) -> None:
        tokens, cut = sum(row.tokens for row in rows), sum(row.cut for row in rows)
        self.counts.update({"batches": 1, "pairs": len(rows), "tokens": tokens, "cut": cut})
        if self.on_batch is not None:
            self.on_batch(len(rows), seconds)

    # --- the tokenising thread ---------------------------------------------------------------------------------------

    def _tokenise(self) -> None:
        """Makes documents ready, in turns of `turn`."""
        try:
            while (part := self._next_raw()) is not None:
                self._give(part)
        except BaseException as error:  # health says that the thread has ended
            self.error = error
            log.critical("Tokenising has ended: %s", error, exc_info=error)
            with self._changed:
                self._ended = True  # who came behind those that fail now would wait in vain
            self._fail_all(UnavailableError("Tokenising has ended; try again later."))

    def _next_raw(self) -> _Slice | None:
        """Waits for documents to be tokenised; None when there will be none."""
        with self._changed:
            while not self._raw and not (self._closed.is_set() or self._ended):
                self._changed.wait()
            if self._closed.is_set() or self._ended:
                return None
            job = self._raw.popleft()
            return _Slice(job, job.ready, job.turn(self.settings.turn))

    def _give(self, part: _Slice) -> None:
        """Tokenises a turn and hands it on; what fails is left to scoring, where a fault is narrowed down."""
        job = part.job
        self._tokenising_since = time.monotonic()
        try:
            turn = _attempted(self.scorers[job.model], part)
        finally:
            self._tokenising_since = 0.0
        if turn.overlong is not None:
            self._refuse(job, turn.overlong)
            return
        with self._changed:
            if job.future.done():
                return
            if turn.pairs is None or job.pairs is None:
                self._give_texts(job)
                return
            job.pairs += turn.pairs
            job.short |= turn.short
            if job.ready < len(job.places):
                self._raw.append(job)
            self._queue(job)

    def _give_texts(self, job: _Job) -> None:
        """All of the job is ready, to be scored from its texts."""
        job.pairs = None
        self._queue(job)

    def _queue(self, job: _Job) -> None:
        """Something of the job is ready."""
        if not job.queued:
            job.queued = True
            self._jobs.append(job)
        self._changed.notify_all()

    # --- what comes of it --------------------------------------------------------------------------------------------

    def _finish(self, job: _Job) -> None:
        if not job.left:
            _settle(job, job.reply(time.monotonic()))

    def _score_halves(self, slices: Sequence[_Slice]) -> None:
        """After memory ran out: half as much at once, down to one document, which then has no score."""
        size = sum(part.stop - part.start for part in slices)
        if size == 1:
            (part,) = slices
            place = part.job.places[part.start]
            part.job.failed[place] = OUT_OF_MEMORY
            part.job.put(place, _NAN, 0, False)
            self.counts["failures"] += 1
            self._finish(part.job)
            return
        self.counts["splits"] += 1
        for half in _halves(slices, size // 2):
            self._score(half)

    def _fail(self, job: _Job, error: Exception) -> None:
        """The model failed on one request alone. Whether it is the model's fault or the request's, the probe says."""
        self.counts["failures"] += 1
        log.error("Scoring failed", exc_info=error)
        self._trouble = "the model failed, and is tried"
        failure = ScorerError(f"Model '{job.model}' failed on this request.")
        failure.__cause__ = error
        _settle(job, failure)
        self._mend([job.model])

    def _fail_itself(self, error: Exception) -> None:
        """A fault of the engine's own: nobody may wait for ever, and nothing is taken until a batch succeeds again."""
        log.error("The engine failed", exc_info=error)
        self._trouble = "the engine failed, and is tried"
        self._fail_all(ScorerError("The engine failed on this batch."), error)
        self._mend(list(self.scorers))

    def _mend(self, models: Sequence[str]) -> None:
        """Tries the probe until it succeeds; gives up, by ending the thread, where it does not in time."""
        end = time.monotonic() + self.settings.mend
        while (error := next(filter(None, map(self._probed, models)), None)) is not None:
            self._fail_all(UnavailableError("The model has failed; try again later."))
            if time.monotonic() > end or self._closed.is_set():
                raise SystemExit(f"Model '{', '.join(models)}' fails on every request") from error
            time.sleep(min(0.2, self.settings.mend / 10))
        self._trouble = ""

    def _probed(self, model: str) -> Exception | None:
        """Why a short question with two short passages comes to nothing on the way that all take, but in a batch of its
        own; None where it is well."""
        now = time.monotonic()
        probe = _Job(model, [_PROBE], now, now + self.settings.timeout, None)
        self._scoring_since = now
        try:
            probe.pairs = _attempted(self.scorers[model], _Slice(probe, 0, len(probe.places))).pairs
            with self._changed:
                others, self._jobs = self._jobs, deque([probe])
                try:
                    slices = self._fill()
                finally:
                    self._jobs = others
            self._score_at_once(slices, now)
            return None
        except Exception as error:
            return error
        finally:
            self._scoring_since = 0.0

    def _fail_all(self, failure: RankwrightError, cause: Exception | None = None) -> None:
        failure.__cause__ = cause
        with self._changed:
            live = list(self._live)
        for job in live:
            _settle(job, failure)


def _without_memory(error: BaseException) -> OutOfMemoryError:
    found = OutOfMemoryError(
        "Memory ran out while the models were opened and warmed up; wanted room for them and for a batch. Serve fewer "
        "or smaller ones, lower --max-length, or free memory."
    )
    found.__cause__ = error
    return found


def is_memory_error(error: BaseException) -> bool:
    """Whether memory ran out: Python's error, or what PyTorch says."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError | OSError) and says_out_of_memory(error))


def _refuse_one_prompt(name: str, scorer: Scorer) -> None:
    if getattr(scorer, "window", None) is not None:
        raise ConfigurationError(
            f"Model '{name}' reads all documents of a list in one prompt, where scores compare with each other alone; "
            "wanted one that scores each document by itself, because the engine divides lists and mixes them. Rerank "
            "with it by rankwright rerank, or serve a model of kind yes-no or integer."
        )


def _attempted(scorer: Scorer, part: _Slice) -> _Turn:
    """A turn tokenised; without pairs where the scorer takes texts, and where tokenising fails."""
    if isinstance(scorer, TokenScorer):
        try:
            return _tokenised(scorer, part)
        except Exception:  # no score comes of it: scoring meets the fault again, or is well without
            log.warning("Tokenising failed; the request is scored from its texts", exc_info=True)
    return _Turn()


def _tokenised(scorer: TokenScorer, part: _Slice) -> _Turn:
    """The pairs of a turn, and what else there is to say of it."""
    pairs: list[Pair] = []
    short: set[tuple[int, int]] = set()
    for request, places in part.requests():
        cut, those = _shortened(scorer, request, places, part.job.document_tokens)
        found = scorer.tokenise([cut])
        if len(found) != len(places):  # or others would get the scores of theirs
            raise ScorerError(f"Model '{scorer.name}' gave {len(found)} pairs of tokens for {len(places)} documents.")
        pairs += found
        short |= those
    return _Turn(pairs, short, _overlong(scorer, part, [pair.cut for pair in pairs]))


def _overlong(scorer: Scorer, part: _Slice, cuts: Sequence[bool]) -> Query | None:
    """A question that leaves no room for a document, so that nothing is read of any. All of its documents are then cut;
    where the first ones are, it is looked at alone, in the few cases where it may be so long."""
    left, suspects = iter(cuts), list[Query]()
    for request, places in part.requests():
        all_cut = all([*itertools.islice(left, len(places))])
        may_be = _TOKENS_OF_A_CHARACTER * len(request.query.text) >= scorer.max_length
        if all_cut and may_be and places[0][1] == 0:
            suspects.append(request.query)
    cut = _cut_alone(scorer, suspects) if suspects else []
    return next(itertools.compress(suspects, cut), None)


def _cut_alone(scorer: Scorer, queries: Sequence[Query]) -> list[bool]:
    """Whether each question is too long even for an empty document."""
    alone = [RerankRequest(query, (Document("0", ""),)) for query in queries]
    if isinstance(scorer, TokenScorer):
        return [pair.cut for pair in scorer.tokenise(alone)]
    return [scored.cut[0] for scored in scorer.score_batch(alone)]


def _by_tokens(scorer: Scorer, slices: Sequence[_Slice]) -> list[_Row]:
    """Scores of documents that are tokenised; empty where some are not."""
    pairs: list[Pair] = []
    for part in slices:
        found = part.job.pairs
        if found is None:
            return []
        pairs += found[part.start : part.stop]
    places = [(part.job, place) for part in slices for place in part.job.places[part.start : part.stop]]
    return [
        _Row(job, place, score, len(pair.ids_T), pair.cut or place in job.short)
        for (job, place), pair, score in zip(places, pairs, cast(TokenScorer, scorer).score_pairs(pairs), strict=True)
    ]


def _by_texts(scorer: Scorer, slices: Sequence[_Slice]) -> list[_Row]:
    """Scores of documents from their texts."""
    asked = [
        (*_shortened(scorer, request, places, part.job.document_tokens), places, part.job)
        for part in slices
        for request, places in part.requests()
    ]
    found = scorer.score_batch([request for request, _, _, _ in asked])
    if [len(scored.scores) for scored in found] != [len(places) for _, _, places, _ in asked]:
        raise ScorerError(f"Model '{scorer.name}' gave another number of scores than it was given documents.")
    return [
        _Row(job, place, score, tokens, cut or place in short)
        for scored, (_, short, places, job) in zip(found, asked, strict=True)
        for place, score, tokens, cut in zip(places, scored.scores, scored.tokens, scored.cut, strict=True)
    ]


def _shortened(
    scorer: Scorer, request: RerankRequest, places: Sequence[tuple[int, int]], most: int | None
) -> tuple[RerankRequest, set[tuple[int, int]]]:
    """The request with documents of at most so many tokens, and the places of those that were longer."""
    if most is None or not tells_spans(scorer):
        return request, set()
    documents = shortened(cast(Spanning, scorer), request.documents, most)
    changed = zip(places, request.documents, documents, strict=True)
    return replace(request, documents=tuple(documents)), {place for place, old, new in changed if new is not old}


def _characters(query: Query, document: Document) -> int:
    return len(query.text) + len(document.title) + len(document.text)


def _guess(query: Query, document: Document, reach: float) -> float:
    """Tokens that are read of a pair, without a tokenizer."""
    return min(reach, _characters(query, document) // CHARACTERS_PER_TOKEN + 4)


def _halves(slices: Sequence[_Slice], first: int) -> tuple[list[_Slice], list[_Slice]]:
    """The first so many documents, and the rest."""
    left: list[_Slice] = []
    right: list[_Slice] = []
    for part in slices:
        middle = min(part.stop, part.start + first)
        first -= middle - part.start
        if middle > part.start:
            left.append(_Slice(part.job, part.start, middle))
        if middle < part.stop:
            right.append(_Slice(part.job, middle, part.stop))
    return left, right


def _settle(job: _Job, outcome: Reply | RankwrightError) -> None:
    """Answers a job that may have been cancelled in this moment."""
    with suppress(InvalidStateError):
        if isinstance(outcome, Reply):
            job.future.set_result(outcome)
        else:
            job.future.set_exception(outcome)
