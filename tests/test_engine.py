"""The queue before the scorer: shared batches, turns, whole admission, deadlines, cancellation, faults."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import Any, cast

import pytest

from rankwright.engine import Engine, EngineSettings, Health, Reply, is_memory_error
from rankwright.errors import (
    ConfigurationError,
    DeadlineError,
    ModelError,
    OutOfMemoryError,
    OverloadedError,
    QuestionTooLongError,
    RankwrightError,
    ScorerError,
    UnavailableError,
)
from rankwright.rerankers.tokens import Pair
from rankwright.types import Document, Query, RerankRequest, Scored
from tests.server_kit import started, until
from tests.stub_scorer import MAX_LENGTH, StubHalves, StubScorer, ignored, score_of


def request(query: str, *texts: str) -> RerankRequest:
    return RerankRequest(Query(query, query), tuple(Document(str(i), text) for i, text in enumerate(texts)))


def many(query: str, count: int) -> RerankRequest:
    return request(query, *(f"{query} {i}" for i in range(count)))


class Gate:
    """Holds a scorer's batches until it is opened, and takes note of them."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.entered, self._opened = threading.Event(), threading.Event()
        self.shut = False

    def note(self, texts: Sequence[str]) -> None:
        self.batches.append(list(texts))
        if self.shut:
            self.entered.set()
            assert self._opened.wait(20)

    def open(self) -> None:
        self._opened.set()


def held(gate: Gate, engine: Engine) -> None:
    """Keeps the scoring thread busy with one document, so that what comes next waits."""
    gate.shut = True
    engine.submit("stub", [request("first", "first")])
    assert gate.entered.wait(10)
    gate.batches.clear()


def test_scores_come_back_in_place_with_tokens_and_cuts() -> None:
    texts = ["red door", "red " * 80, "wall"]
    with started() as engine:
        reply = engine.submit("stub", [request("red door", *texts), request("x")]).result(10)
    first, empty = reply.scored
    assert first.scores == tuple(score_of("red door", text) for text in texts)
    assert first.cut == (False, True, False)
    assert first.tokens == (4, MAX_LENGTH, 3)
    assert empty.scores == ()
    assert engine.counts["pairs"] == 3
    assert engine.counts["cut"] == 1


def test_a_request_without_documents_is_answered_at_once() -> None:
    with started() as engine:
        assert engine.submit("stub", [request("x")]).result(1).scored[0].scores == ()
        assert engine.requests == 0


def test_documents_of_several_requests_share_a_batch() -> None:
    gate = Gate()
    with started(StubScorer(note=gate.note)) as engine:
        held(gate, engine)
        replies = [engine.submit("stub", [many(name, 5)]) for name in "abc"]
        gate.open()
        for name, reply in zip("abc", replies, strict=True):
            expected = tuple(score_of(name, f"{name} {i}") for i in range(5))
            assert reply.result(10).scored[0].scores == expected
    assert len(gate.batches) == 1
    assert len(gate.batches[0]) == 15


def test_requests_take_turns() -> None:
    gate = Gate()
    settings = EngineSettings(batch_documents=10, turn=4)
    with started(StubScorer(note=gate.note), settings) as engine:
        held(gate, engine)
        engine.submit("stub", [many("long", 30)])
        small = engine.submit("stub", [many("small", 6)])
        gate.open()
        small.result(10)
    counts = [[sum(text.startswith(name) for text in batch) for name in ("long", "small")] for batch in gate.batches]
    # Turns of four: long 4, small 4, long 2; then what small has left comes in the next batch at the latest.
    assert counts[0] == [6, 4]
    assert counts[1][1] == 2
    assert all(sum(pair) <= 10 for pair in counts)


def test_a_batch_is_bounded_by_guessed_tokens_but_has_one_document() -> None:
    gate = Gate()
    long = "word " * 40  # 200 characters: 50 tokens and a little more
    with started(StubScorer(note=gate.note), EngineSettings(batch_tokens=120)) as engine:
        held(gate, engine)
        reply = engine.submit("stub", [request("q", *[f"{i} {long}" for i in range(6)])])
        gate.open()
        reply.result(10)
    assert [len(batch) for batch in gate.batches] == [2, 2, 2]
    with started(settings=EngineSettings(batch_tokens=1)) as engine:
        assert len(engine.submit("stub", [many("q", 3)]).result(10).scored[0].scores) == 3


@pytest.mark.parametrize(("reach", "batches"), [(40.0, [3, 3]), (math.inf, [2, 2, 2])])
def test_of_a_document_counts_what_is_read_of_it(reach: float, batches: list[int]) -> None:
    class Reaching(StubScorer):
        @property
        def reach(self) -> float:
            return reach

    gate = Gate()
    long = "word " * 40
    with started(Reaching(note=gate.note), EngineSettings(batch_tokens=120)) as engine:
        held(gate, engine)
        reply = engine.submit("stub", [request("q", *[f"{i} {long}" for i in range(6)])])
        gate.open()
        reply.result(10)
    assert [len(batch) for batch in gate.batches] == batches


def test_batches_are_as_long_as_was_asked_for() -> None:
    gate = Gate()
    settings = EngineSettings(batch_seconds=0.05)
    with started(StubScorer(0.01, note=gate.note), settings) as engine:
        engine.submit("stub", [many("q", 40)]).result(10)
    sizes = [len(batch) for batch in gate.batches[2:]]
    assert sum(sizes) == 40
    assert max(sizes) < 20  # five by the pace of the warm-up, whose documents are longer


class Halves(StubHalves):
    """Takes note of the threads of the first half, and does there what a test wants."""

    def __init__(self, note: Callable[[Sequence[str]], None] = ignored) -> None:
        super().__init__(note=note)
        self.threads: set[str] = set()
        self.instead: Callable[[list[Pair]], list[Pair]] = list
        """Given the pairs in the tokenising thread; what comes back is taken for them."""

    def tokenise(self, requests: Sequence[RerankRequest]) -> list[Pair]:
        name = threading.current_thread().name
        self.threads.add(name)
        found = super().tokenise(requests)
        return self.instead(found) if name == "tokenising" else found

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        self.threads.add(threading.current_thread().name)
        return super().spans(texts)


def raising(fault: BaseException) -> Callable[[list[Pair]], list[Pair]]:
    def instead(found: list[Pair]) -> list[Pair]:
        raise fault

    return instead


def test_what_waits_is_tokenised_while_a_batch_is_scored() -> None:
    gate = Gate()
    scorer = Halves(gate.note)
    with started(scorer, EngineSettings(batch_documents=20, turn=4)) as engine:
        scorer.threads.clear()
        held(gate, engine)
        before = len(scorer.texts)
        both = [[many("long", 30), many("more", 3)], [many("small", 5)]]
        with engine._changed:  # neither is tokenised before both are there
            replies = [engine.submit("stub", requests) for requests in both]
        until(lambda: len(scorer.texts) == before + 38)
        tokenised = [text.split()[0] for _, text in scorer.texts][before:]
        assert tokenised[:13] == ["long"] * 4 + ["small"] * 4 + ["long"] * 4 + ["small"]  # in turns
        gate.open()
        first, small = (reply.result(10).scored for reply in replies)
    assert scorer.threads == {"tokenising"}
    assert first[0].scores == tuple(score_of("long", f"long {i}") for i in range(30))
    assert [first[1].tokens, small[0].tokens] == [(3,) * 3, (3,) * 5]


def test_texts_are_shortened_in_the_thread_that_tokenises() -> None:
    scorer = Halves()
    with started(scorer) as engine:
        scorer.threads.clear()
        waiting = engine.submit("stub", [request("q", "red", "red door red")], document_tokens=2)
        (scored,) = waiting.result(10).scored
    assert (scored.tokens, scored.cut) == ((2, 3), (False, True))
    assert scorer.threads == {"tokenising"}


@pytest.mark.parametrize(("kind", "further"), [(StubScorer, [[""]]), (Halves, [])])
def test_a_question_that_leaves_no_room_is_refused_first(
    kind: type[StubScorer | Halves], further: list[list[str]]
) -> None:
    """Before anything is scored for it where tokens are known, else with its first batch; others lose nothing."""
    gate = Gate()
    with started(kind(note=gate.note), EngineSettings(batch_documents=8, turn=4)) as engine:
        held(gate, engine)
        long, fits = (" ".join(["red"] * count) for count in (MAX_LENGTH + 1, MAX_LENGTH))
        refused = engine.submit("stub", [request(long, *[f"long {i}" for i in range(40)])])
        well = engine.submit("stub", [many("well", 4)])
        gate.open()
        with pytest.raises(QuestionTooLongError, match=f"has more tokens than the {MAX_LENGTH} that"):
            refused.result(10)
        assert well.result(10).scored[0].scores == tuple(score_of("well", f"well {i}") for i in range(4))
        of_long = [f"long {i}" for i in range(4)] if further else []
        assert gate.batches == [[*of_long, *(f"well {i}" for i in range(4))], *further]
        until(lambda: (engine.waiting, engine.requests, engine.health().ready) == (0, 0, True))
        assert engine.submit("stub", [request(fits, "a", "b")]).result(10).scored[0].cut == (True, True)


def test_of_many_questions_the_one_that_is_too_long_is_found() -> None:
    long = " ".join(["red"] * (MAX_LENGTH + 1))
    for kind in (StubScorer, Halves):
        asked = [many("a", 2), RerankRequest(Query("long", long), (Document("0", "x"),)), many("b", 2)]
        with started(kind()) as engine, pytest.raises(QuestionTooLongError, match="Question 'long'"):
            engine.submit("stub", asked).result(10)


FAULTS = {
    "an error": raising(ValueError("not now")),
    "no pairs": lambda found: [],
    "a pair too few": lambda found: found[1:],
    "a pair too many": lambda found: [found[0], *found],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_tokenised_ahead_is_scored_from_its_texts(caplog: pytest.LogCaptureFixture, fault: str) -> None:
    scorer = Halves()
    with started(scorer) as engine:
        scorer.instead = FAULTS[fault]
        (scored,) = engine.submit("stub", [many("q", 3)]).result(10).scored
        assert scored.scores == tuple(score_of("q", f"q {i}") for i in range(3))
        assert engine.health().ready
    assert "Tokenising failed" in caplog.text


@pytest.mark.parametrize("kind", [StubScorer, Halves])
def test_texts_are_tokenised_in_pieces(kind: type[StubScorer | Halves]) -> None:
    """Long ones, of which a model reads little: 400,000 characters take a second, which must not look like a fault."""
    pieces: list[int] = []
    gate = Gate()
    scorer = kind(note=gate.note)
    if isinstance(scorer, Halves):
        scorer.instead = lambda found: [pieces.append(len(found)), found][1]
    with started(scorer) as engine:
        gate.batches.clear()
        texts = [f"{i}" + "x" * 90_000 for i in range(5)] + [f"{i}" for i in range(30)] + ["y" * 210_000, "last"]
        reply = engine.submit("stub", [request("q", *texts)]).result(10)
    assert reply.scored[0].scores == tuple(score_of("q", text) for text in texts)
    pieces = pieces or [len(batch) for batch in gate.batches]
    assert pieces[:3] == [2, 2, 31]
    assert sum(pieces) == len(texts)


def test_a_cancelled_request_is_not_tokenised() -> None:
    gate = Gate()
    scorer = Halves(gate.note)
    with started(scorer) as engine:
        held(gate, engine)
        with engine._changed:  # the thread that tokenises waits for it
            waiting = engine.submit("stub", [many("gone", 40)])
            assert waiting.cancel()
        gate.open()
        assert engine.submit("stub", [many("next", 2)]).result(10)
        assert (engine.waiting, engine.requests) == (0, 0)
        assert not any(text.startswith("gone") for _, text in scorer.texts)


@pytest.mark.filterwarnings("ignore")
def test_the_end_of_the_tokenising_thread_is_told() -> None:
    scorer = Halves()
    with started(scorer) as engine:
        scorer.instead = raising(SystemExit("over"))
        with pytest.raises(UnavailableError, match="Tokenising has ended"):
            engine.submit("stub", [many("q", 3)]).result(10)
        until(lambda: not engine.health().ready)
        assert engine.health().lost
        assert engine.health().reason == "the tokenising thread has ended"


def test_nobody_is_admitted_while_the_tokenising_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, refused = Halves(), list[str]()
    with started(scorer) as engine:
        scorer.instead, fail_all = raising(SystemExit("over")), engine._fail_all

        def just_too_late(*what: Any) -> None:
            fail_all(*what)
            try:
                engine.submit("stub", [many("late", 3)])
            except UnavailableError as error:
                refused.append(str(error))

        monkeypatch.setattr(engine, "_fail_all", just_too_late)
        with pytest.raises(UnavailableError, match="Tokenising has ended"):
            engine.submit("stub", [many("q", 3)]).result(10)
        until(lambda: engine.health().lost)
        assert refused == ["Nothing is scored any more. Try again later."]
        assert engine.requests == 0


def test_models_do_not_share_batches() -> None:
    gates = {"one": Gate(), "two": Gate()}
    engine = Engine(lambda: {name: StubScorer(note=gate.note) for name, gate in gates.items()})
    engine.start()
    assert engine.opened(10)
    gates["one"].shut = True
    engine.submit("one", [request("first", "first")])
    assert gates["one"].entered.wait(10)
    replies = [engine.submit(name, [many(name, 3)]) for name in ("one", "two", "one")]
    gates["one"].open()
    for reply in replies:
        reply.result(10)
    engine.close(5)
    assert all(text.startswith("one") for batch in gates["one"].batches[3:] for text in batch)
    assert [len(batch) for batch in gates["one"].batches[3:]] == [6]
    assert [len(batch) for batch in gates["two"].batches[2:]] == [3]


def test_a_request_is_admitted_whole_or_not_at_all() -> None:
    gate = Gate()
    with started(StubScorer(note=gate.note), EngineSettings(max_waiting=10)) as engine:
        held(gate, engine)
        taken = engine.submit("stub", [many("a", 6)])
        with pytest.raises(OverloadedError, match="holds 7 documents and has no room for 4") as refused:
            engine.submit("stub", [many("b", 4)])
        assert refused.value.retry_after >= 1
        assert engine.waiting == 7
        gate.open()
        taken.result(10)
    assert not [text for batch in gate.batches for text in batch if text.startswith("b ")]


def test_characters_that_wait_are_bounded_too() -> None:
    gate = Gate()
    with started(StubScorer(note=gate.note), EngineSettings(max_waiting_characters=1000)) as engine:
        held(gate, engine)
        with pytest.raises(OverloadedError):
            engine.submit("stub", [request("a", "x" * 1000)])
        gate.open()


def test_what_was_cancelled_is_not_scored() -> None:
    gate = Gate()
    with started(StubScorer(note=gate.note), EngineSettings(batch_documents=4)) as engine:
        held(gate, engine)
        left = engine.submit("stub", [many("left", 40)])
        stays = engine.submit("stub", [many("stays", 4)])
        assert left.cancel()
        assert engine.waiting == 1 + 4
        gate.open()
        stays.result(10)
        with pytest.raises(CancelledError):
            left.result()
        assert engine.counts["cancelled"] == 1
    assert not [text for batch in gate.batches for text in batch if text.startswith("left")]


def test_what_is_cancelled_in_the_middle_costs_no_further_batch() -> None:
    gate = Gate()
    with started(StubScorer(note=gate.note), EngineSettings(batch_documents=4)) as engine:
        gate.shut = True
        left = engine.submit("stub", [many("left", 40)])
        assert gate.entered.wait(10)
        left.cancel()
        gate.open()
        engine.submit("stub", [many("next", 1)]).result(10)
    assert sum(text.startswith("left") for batch in gate.batches for text in batch) == 4


def test_what_is_too_late_is_not_scored() -> None:
    gate = Gate()
    with started(StubScorer(note=gate.note)) as engine:
        held(gate, engine)
        late = engine.submit("stub", [many("late", 3)], timeout=0.01)
        stays = engine.submit("stub", [many("stays", 3)])
        time.sleep(0.05)
        gate.open()
        with pytest.raises(DeadlineError):
            late.result(10)
        assert len(stays.result(10).scored[0].scores) == 3
        until(lambda: engine.counts["expired"] == 1)
    assert not [text for batch in gate.batches for text in batch if text.startswith("late")]


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["raise on poison", "nan on poison"])
def test_a_request_on_which_the_model_fails_fails_alone(fault: str) -> None:
    gate = Gate()
    with started(StubScorer(mode=lambda: fault, note=gate.note)) as engine:
        held(gate, engine)
        well, ill = engine.submit("stub", [many("a", 3)]), engine.submit("stub", [request("b", "x", "poison")])
        gate.open()
        assert well.result(10).scored[0].scores == tuple(score_of("a", f"a {i}") for i in range(3))
        with pytest.raises(ScorerError):
            ill.result(10)
        until(lambda: engine.health().ready)


def test_memory_that_runs_out_halves_the_batch() -> None:
    gate = Gate()
    with started(StubScorer(mode=lambda: "memory 5", note=gate.note)) as engine:
        reply = engine.submit("stub", [many("a", 16)]).result(10)
    assert reply.scored[0].scores == tuple(score_of("a", f"a {i}") for i in range(16))
    assert not reply.failed
    assert [len(batch) for batch in gate.batches[2:]] == [16, 8, 4, 4, 8, 4, 4]


def test_what_a_batch_held_whose_memory_ran_out_is_gone_before_its_halves_are_scored() -> None:
    class Activations(list[float]):
        """May be pointed at."""

    class Greedy(StubScorer):
        held: weakref.ref[Activations] | None = None

        def score_batch(self, requests: Sequence[RerankRequest]) -> list[Scored]:
            assert self.held is None or self.held() is None
            activations = Activations()
            self.held = weakref.ref(activations)
            return super().score_batch(requests)

    with started(Greedy(mode=lambda: "memory 5")) as engine:
        (scored,) = engine.submit("stub", [many("a", 16)]).result(10).scored
    assert scored.scores == tuple(score_of("a", f"a {i}") for i in range(16))


@pytest.mark.parametrize("place", [0, 41, 99])
def test_one_document_that_is_too_much_costs_no_other_its_score(place: int) -> None:
    texts = [f"a {i}" for i in range(100)]
    texts[place] += " poison"
    with started(StubScorer(mode=lambda: "memory on poison")) as engine:
        alone = [engine.submit("stub", [request("a", text)]).result(10).scored[0].scores[0] for text in texts]
        reply: Reply = engine.submit("stub", [request("a", *texts)]).result(10)
    assert list(reply.failed) == [(0, place)]
    found = reply.scored[0].scores
    assert [s for i, s in enumerate(found) if i != place] == [s for i, s in enumerate(alone) if i != place]
    assert found[place] != found[place]


def test_a_model_that_fails_on_everything_answers_all_and_recovers() -> None:
    modes = {"now": "well"}
    with started(StubScorer(mode=lambda: modes["now"]), EngineSettings(mend=30)) as engine:
        modes["now"] = "raise"
        futures = [engine.submit("stub", [many("a", 3)]) for _ in range(1)]
        for future in futures:
            with pytest.raises(RankwrightError):
                future.result(1)
        until(lambda: not engine.health().ready)
        with pytest.raises(UnavailableError, match="failed"):
            engine.submit("stub", [many("a", 3)])
        modes["now"] = "well"
        until(lambda: engine.health().ready)
        engine.submit("stub", [many("a", 3)]).result(10)


@pytest.mark.parametrize("mode", ["raise", "die"])
def test_a_model_that_stays_ill_is_given_up(mode: str) -> None:
    modes = {"now": "well"}
    with started(StubScorer(mode=lambda: modes["now"]), EngineSettings(mend=0.2)) as engine:
        modes["now"] = mode
        with pytest.raises(RankwrightError):
            engine.submit("stub", [many("a", 3)]).result(5)
        until(lambda: engine.health().lost)
        assert engine.requests == 0


@pytest.mark.parametrize("times", [1, 3])
def test_a_fault_of_the_engine_itself_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    with started(settings=EngineSettings(mend=5)) as engine:
        broken, fill = iter([True] * times), engine._fill

        def faulty() -> object:
            if next(broken, False):
                raise KeyError("a fault in the batcher")
            return fill()

        monkeypatch.setattr(engine, "_fill", faulty)
        waiting = engine.submit("stub", [many("a", 3)])
        with pytest.raises(ScorerError, match="engine failed"):
            waiting.result(5)
        until(lambda: engine.health().ready)
        assert next(broken, None) is None  # the probe met the fault too, until it was gone
        assert len(engine.submit("stub", [many("a", 3)]).result(5).scored[0].scores) == 3


def test_an_engine_that_goes_on_failing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty() -> object:
        raise KeyError("a fault in the batcher")

    with started(settings=EngineSettings(mend=0.2)) as engine:
        monkeypatch.setattr(engine, "_fill", faulty)
        with pytest.raises(ScorerError, match="engine failed"):
            engine.submit("stub", [many("a", 3)]).result(5)
        assert not engine.health().ready
        until(lambda: engine.health().lost)
        assert engine.requests == 0


def test_the_probe_is_alone_in_its_batch() -> None:
    gate = Gate()
    settings = EngineSettings(batch_documents=3)
    with started(StubScorer(mode=lambda: "raise on poison", note=gate.note), settings) as engine:
        held(gate, engine)
        asked = [request("a", "poison a"), many("b", 2), request("c", "poison c"), many("d", 2)]
        replies = [engine.submit("stub", [one]) for one in asked]  # while a's fault is looked into, c and d wait
        gate.open()
        assert [len(replies[i].result(10).scored[0].scores) for i in (1, 3)] == [2, 2]
        for i in (0, 2):
            with pytest.raises(ScorerError):
                replies[i].result(10)
    assert gate.batches.count(["It is well.", "No."]) == 2


@pytest.mark.parametrize(("reach", "ready"), [(math.inf, True), (40.0, False)])
def test_a_document_that_is_dearer_than_a_batch_is_waited_for(reach: float, ready: bool) -> None:
    class Reading(StubScorer):
        """Takes its time for all of a text, and says so or not."""

        @property
        def reach(self) -> float:
            return reach

        def score_batch(self, requests: Sequence[RerankRequest]) -> list[Scored]:
            time.sleep(1e-4 * sum(len(document.text) for one in requests for document in one.documents))
            return super().score_batch(requests)

    with started(Reading(), EngineSettings(patience=0.2)) as engine:
        reply = engine.submit("stub", [request("q", "word " * 2_000)])
        seen = set()
        while not reply.done():
            seen.add(engine.health().reason)
            time.sleep(0.01)
        assert ("scoring hangs" not in seen) is ready


def test_the_probe_of_a_scorer_in_two_halves_goes_the_way_of_its_requests() -> None:
    with started(Halves(), EngineSettings(mend=0.2)) as engine:
        scorer = cast(Any, engine.scorers["stub"])

        def broken(pairs: object) -> list[float]:
            raise RuntimeError("no scores of pairs")

        scorer.score_pairs, scorer.score_batch = broken, StubScorer().score_batch
        with pytest.raises(ScorerError):
            engine.submit("stub", [many("a", 3)]).result(5)
        until(lambda: engine.health().lost)


def test_a_model_that_is_not_there_takes_no_room() -> None:
    with started() as engine:
        with pytest.raises(KeyError):
            engine.submit("another", [many("a", 3)])
        assert engine.requests == 0


def test_a_scorer_that_hangs_is_seen_from_outside() -> None:
    gate = Gate()
    settings = EngineSettings(patience=0.1, give_up=0.4)
    with started(StubScorer(note=gate.note), settings) as engine:
        held(gate, engine)
        assert engine.health().ready
        until(lambda: not engine.health().ready)
        assert engine.health().reason == "scoring hangs"
        until(lambda: engine.health().lost)
        with pytest.raises(UnavailableError, match="hangs"):
            engine.submit("stub", [many("a", 1)])
        gate.open()
        until(lambda: engine.health().ready)


def test_a_tokeniser_that_hangs_is_seen_and_its_requests_get_their_answer() -> None:
    hanging, over = threading.Event(), threading.Event()
    scorer = Halves()

    def hang(found: list[Pair]) -> list[Pair]:
        hanging.set()
        assert over.wait(20)
        return found

    with started(scorer, EngineSettings(patience=1.0, give_up=1.6, turn=2)) as engine:
        scorer.instead = hang
        inside = engine.submit("stub", [many("a", 3)], timeout=0.3)
        assert hanging.wait(10)
        behind = engine.submit("stub", [many("b", 3)], timeout=0.3)
        for future in (inside, behind):
            with pytest.raises(DeadlineError):
                future.result(10)
        until(lambda: (engine.waiting, engine.requests, engine.counts["expired"]) == (0, 0, 2))
        until(lambda: not engine.health().ready)
        assert engine.health().reason == "tokenising hangs"
        with pytest.raises(UnavailableError, match="tokenising hangs"):
            engine.submit("stub", [many("c", 1)])
        until(lambda: engine.health().lost)
        over.set()
        until(lambda: engine.health().ready)
        assert engine.submit("stub", [many("d", 3)]).result(10).scored[0].tokens == (3, 3, 3)
    assert not any(text.startswith("b") for _, text in scorer.texts)


def test_who_waits_for_a_scorer_that_hangs_is_answered_at_the_deadline() -> None:
    gate = Gate()
    with started(StubScorer(note=gate.note), EngineSettings(timeout=0.3)) as engine:
        gate.shut = True
        scored = engine.submit("stub", [many("a", 3)])
        assert gate.entered.wait(10)
        waiting = engine.submit("stub", [many("b", 3)])
        for future in (scored, waiting):
            with pytest.raises(DeadlineError):
                future.result(10)
        gate.open()


def test_a_batch_that_ends_while_health_is_asked_is_not_taken_for_a_hung_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.monotonic
    with started() as engine:
        engine._scoring_since = clock()

        def meanwhile() -> float:
            engine._scoring_since = 0.0
            return clock()

        with monkeypatch.context() as patched:
            patched.setattr("rankwright.engine.time.monotonic", meanwhile)
            health = engine.health()
        assert health.ready


def test_nobody_is_admitted_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with started() as engine:
        engine.close(5)
        monkeypatch.setattr(engine, "health", lambda: Health(True))  # what was true a moment before
        with pytest.raises(UnavailableError, match="any more"):
            engine.submit("stub", [many("a", 3)])
        assert engine.requests == 0


def test_draining_answers_what_was_admitted_and_refuses_the_rest() -> None:
    gate = Gate()
    with started(StubScorer(note=gate.note)) as engine:
        held(gate, engine)
        admitted = engine.submit("stub", [many("a", 3)])
        engine.drain()
        with pytest.raises(UnavailableError, match="ending"):
            engine.submit("stub", [many("b", 3)])
        gate.open()
        assert len(admitted.result(10).scored[0].scores) == 3


def test_closing_fails_what_is_left() -> None:
    gate = Gate()
    with started(StubScorer(note=gate.note)) as engine:
        held(gate, engine)
        left = engine.submit("stub", [many("a", 3)])
        assert not engine.close(0.05)
        with pytest.raises(UnavailableError):
            left.result(1)
        gate.open()


def test_a_model_that_cannot_be_opened_says_why() -> None:
    def opener() -> dict[str, StubScorer]:
        raise ModelError("this folder is no reranker")

    engine = Engine(opener)
    assert engine.health().reason == "the model is being loaded"
    engine.start()
    with pytest.raises(ModelError, match="no reranker"):
        engine.opened(10)
    until(lambda: engine.health().lost)


def test_memory_that_runs_out_before_the_first_request_is_told_in_words() -> None:
    engine = Engine(lambda: {"stub": StubScorer(mode=lambda: "memory 0")})
    engine.start()
    with pytest.raises(OutOfMemoryError, match="while the models were opened and warmed up; wanted room"):
        engine.opened(10)


def test_a_model_whose_scores_are_not_finite_is_not_served() -> None:
    engine = Engine(lambda: {"stub": StubScorer(mode=lambda: "nan")})
    engine.start()
    with pytest.raises(ScorerError, match="earlier checkpoint"):
        engine.opened(10)
    assert not engine.scorers


def test_settings_are_positive() -> None:
    with pytest.raises(ConfigurationError, match="batch_documents"):
        EngineSettings(batch_documents=0)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_memory_that_ran_out(error: Exception, memory: bool) -> None:
    assert is_memory_error(error) == memory
