"""Can training pay here? What a reranker could gain at most, where the rest is lost, and a verdict, before training.

    diagnosis = diagnose(examples, reader, answer_reward("f1"), reference=rankwright.load("reference"))
    print(diagnosis.verdict, diagnosis.reason)

A question that is fully answered earns 1. What it earns now and what is missing add up:

    1 = reference + headroom + lost_to_reader + lost_to_retriever

Everything arrives as an object: this module imports no model code and no torch.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import rankwright
from rankwright.errors import ConfigurationError
from rankwright.evaluation import FirstStage, Progress, Score, check_examples, digest_of, rank_with, tell_nobody
from rankwright.metrics.answer import CLOSED_ANSWERS, contains_answer, normalise
from rankwright.metrics.significance import bootstrap_interval
from rankwright.reading import MAX_FAILED_READS, check_failed_reads, check_missing_rewards, read_prefixes
from rankwright.types import Context, Example, Ranking, Reader, ReadResult, Reranker, Reward

Order = tuple[int, ...]
"""Candidate positions in reading order; empty for a reading without documents."""

Verdict = Literal["training can pay", "limit: retriever", "limit: reader", "limit: data", "undecided"]

MINIMUM_QUESTIONS = 30
"""A share of one half out of fewer questions is uncertain by 0.18 and more: that decides nothing."""
LOW_RECALL = 0.5
"""Below it most questions have nothing that an order could bring to the top, and their reads teach nothing."""
HIGH_CLOSED_BOOK = 0.5
"""From here on most rewards say what the reader knows by heart, not what its passages gave it."""
LOW_READER = 0.3
"""A reader that earned 0.28 from gold passages (HotpotQA) taught nothing, one that earned 0.37 did (the demo)."""
MINIMUM_HEADROOM = 0.02
"""Training on real questions closed 25 % of the gap to gold passages first, with an interval that holds 0
(benchmarks/results/protocol.md); a quarter of less than 0.02 is a gain that thousands of test questions do not show."""
LARGE_LOSS = 0.25
"""A part that costs as much as one question in four is named as the limit where there is no headroom."""
MINIMUM_TEACHING = 0.05
"""Below it not even every second batch of eight questions holds one that can teach."""

NUMBERS: Mapping[str, str] = {
    "found": "recall ceiling: a candidate is labelled relevant or holds an accepted answer (share of questions)",
    "hit": "a candidate holds an accepted answer other than yes and no (share of questions)",
    "relevant_one": "one relevant passage or more is among the candidates (share of labelled questions)",
    "relevant_all": "all relevant passages are among the candidates (share of labelled questions)",
    "no_documents": "reward of the answer without any document",
    "first_stage": "reward with the candidates in the order they came",
    "reference": "reward in the reference's order: what training starts from",
    "gold_first": "reward with the passages first that are labelled relevant, or else hold an answer (questions found)",
    "best_order": "reward of the best order that was read; the true best may be better, and a maximum takes luck along",
    "best_again": "reward of that order when it is read a second time: without the luck of the reader",
    "passage_gain": "gold_first minus no_documents: what good passages give the reader (questions found)",
    "headroom": "best order minus reference: what training could gain at most",
    "gold_headroom": "gold_first minus reference: the same without a search (questions found)",
    "lost_to_reader": "1 minus best_order where a candidate has what is asked for, else 0",
    "lost_to_retriever": "1 minus best_order where no candidate has it, else 0",
    "order_noise": "standard deviation of the reward over orders of the same passages",
    "repeat_noise": "absolute difference of the reward between two reads of the same context",
    "closed_book": "the answer without documents earns something, and no order more (share of questions)",
    "teaching": "the sampled orders do not all earn the same (share of questions): only these teach",
}
"""Every number of a diagnosis, in table order. Means over questions; a question where a read that the number needs has
failed is left out. Rewards are those of the reader's answer from the first `top_k` passages."""

_QUESTIONS_AT_ONCE = 16
_NO_DOCUMENTS: Order = ()


@dataclass(frozen=True, slots=True)
class DiagnosisSettings:
    """Everything that the numbers depend on beside questions and objects."""

    top_k: int
    """Passages that the reader sees."""
    depth: int
    """Candidates per question."""
    orders: int
    """Orders per question that are read in search of the best one."""
    samples: int
    """Orders per question drawn as training draws them."""
    repeats: bool
    """Whether contexts were read a second time."""
    seed: int
    reader: str
    reward: str
    reference: str
    set_name: str
    retriever: str
    data: str = ""
    """`digest_of` the questions that were read."""
    resamples: int = 1_000
    """Bootstrap resamples."""
    version: str = field(default_factory=lambda: rankwright.__version__)

    def reads_per_question(self, candidates: int) -> int:
        """Upper bound of the reader calls for one question with so many candidates."""
        return reads_at_most(candidates, self.top_k, self.orders, self.samples, self.repeats)


def reads_at_most(candidates: int, top_k: int, orders: int, samples: int, repeats: bool) -> int:
    """Upper bound of the reader calls for one question with so many candidates.

    No document, first stage, reference and gold first are one read each, the reference's passages in other orders
    two, then come `samples` and `orders`; no more than there are different orders. Second reads are two.
    """
    k = min(top_k, candidates)
    planned = 4 + min(2, math.factorial(k) - 1) + samples + orders
    return min(planned, 1 + math.perm(candidates, k)) + 2 * repeats


@dataclass(frozen=True)
class Diagnosis:
    """The outcome of `diagnose`."""

    settings: DiagnosisSettings
    values: Mapping[str, Mapping[str, float]]
    """number -> query_id -> value; `NUMBERS` says what each is. Questions where it is undefined have no entry."""
    means: Mapping[str, Score]
    """number -> mean over questions with its bootstrap interval (95 %); numbers without a single value are left out."""
    verdict: Verdict
    reason: str
    """The numbers that decided, and what to do next."""
    best_orders: Mapping[str, tuple[str, ...]]
    """query_id -> doc_ids of the best order that was read."""
    n: int
    """Questions that were read."""
    reader_calls: int
    """Reads that were paid for."""
    cache_hits: int
    failed_reads: int
    """Reads without a reward, left out of all numbers."""
    bound: int
    """Reader calls that were announced beforehand as the most there could be."""

    @property
    def signature(self) -> str:
        """What two diagnoses must share before their numbers may be compared."""
        s = self.settings
        parts = {
            "set": s.set_name,
            "retriever": s.retriever,
            "depth": s.depth,
            "reader": s.reader,
            "reward": s.reward,
            "reference": s.reference,
            "queries": self.n,
            "data": s.data[:8],
            "orders": s.orders,
            "samples": s.samples,
            **({"reads": "repeated"} if s.repeats else {}),
            "bs": s.resamples,
            "seed": s.seed,
            "v": s.version,
        }
        # A bar inside a name would look like the next part.
        written = [f"{key}:{str(value).replace('|', '/')}" for key, value in parts.items()]
        return "|".join([f"diagnose@{s.top_k}", *written])

    def to_json(self) -> dict[str, Any]:
        """The object that `rankwright diagnose --output json` prints as one line."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "set": self.settings.set_name,
            "n": self.n,
            "reference": self.settings.reference,
            "numbers": {name: score._asdict() for name, score in self.means.items()},
            "reader_calls": self.reader_calls,
            "cache_hits": self.cache_hits,
            "failed_reads": self.failed_reads,
            "bound": self.bound,
            "signature": self.signature,
        }


def diagnose(
    examples: Sequence[Example],
    reader: Reader,
    reward: Reward,
    *,
    reference: Reranker | None = None,
    top_k: int = 3,
    depth: int = 10,
    questions: int = 100,
    orders: int = 12,
    samples: int = 4,
    second_reader: Reader | None = None,
    max_reader_calls: int | None = None,
    max_failed: float = MAX_FAILED_READS,
    seed: int = 0,
    set_name: str = "unnamed",
    retriever: str = "given",
    resamples: int = 1_000,
    announce: Callable[[int, int], None] | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Say before training whether it can pay, and if not, which part is the limit: retriever, reader or data.

    Reads a bounded number of orders of `top_k` passages per question. The search for the best one starts from the best
    order known so far and, place by place, puts another candidate there: marked passages (labelled relevant, or else
    with an accepted answer in their text) are tried first, then those of the reference's order; it ends at a reward of
    1. What it finds is a lower bound of the true ceiling, except where a question has no more than `orders` orders in
    all: then each is read. A maximum over noisy reads is also too high; `second_reader` reads the winner again.

    Args:
        examples: questions with candidates, best first, and accepted answers. Take those of training or dev: whoever
            looks at test questions before training has seen them.
        reader: put a cache around it: what it holds is not paid for again, here and in training.
        reward: prices the answers, from 0 to 1; those of one question in several rounds.
        reference: the reranker that training would start from; None takes the order as it came.
        top_k: passages that the reader sees.
        depth: candidates per question.
        questions: how many are read, chosen by `sample_questions`.
        orders: read per question in search of the best one.
        samples: orders per question drawn as RRPO draws them, by Plackett-Luce over the reference's scores.
        second_reader: for a reader that may answer the same context differently: reads the reference's and the best
            order once more. No cache may give it the first answer.
        max_reader_calls: fewer questions are read where all of them could cost more.
        max_failed: largest share of reads that may fail, and of answers that may lack a reward.
        seed: of questions, sampled orders and bootstrap.
        set_name, retriever: parts of the signature that only the caller knows.
        resamples: of the bootstrap.
        announce: told (questions, upper bound of reader calls) before the first one.
        progress: told (what, done, total).

    Raises:
        ConfigurationError: settings that do not fit each other, or a reward outside 0 to 1.
        DataError: no questions, repeated ids, a question without candidates or answers.
        ModelError: the reference's scores are not finite.
        ReaderError: more reads failed than `max_failed` allows.
        RewardError: more answers have no reward than that.
    """
    reference = reference or FirstStage()
    settings = DiagnosisSettings(
        top_k=top_k,
        depth=depth,
        orders=orders,
        samples=samples,
        repeats=second_reader is not None,
        seed=seed,
        reader=reader.name,
        reward=reward.name,
        reference=reference.name,
        set_name=set_name,
        retriever=retriever,
        resamples=resamples,
    )
    _check_settings(settings, questions, max_failed)
    sampled = sample_questions(examples, questions, seed)
    check_examples(sampled, with_answers=True)
    cut = [replace(example, candidates=example.candidates[:depth]) for example in sampled]
    chosen, bound = _affordable(cut, settings, max_reader_calls)
    settings = replace(settings, data=digest_of(chosen))
    if announce is not None:
        announce(len(chosen), bound)
    told = progress or tell_nobody
    # Asked before the ranking, which may take long: a refused key is known at once.
    reads = _Reads(_AskedBefore(reader, Context(chosen[0].query, ())), reward, bound, max_failed)
    rankings = rank_with(reference.name, reference, chosen, told)
    asked = [_Question(example, rankings[example.query.query_id], settings) for example in chosen]
    second = None if second_reader is None else _Reads(second_reader, reward, 2 * len(asked), max_failed)
    for start in range(0, len(asked), _QUESTIONS_AT_ONCE):
        batch = asked[start : start + _QUESTIONS_AT_ONCE]
        _read(batch, top_k, reads, second)
        told("questions read", start + len(batch), len(asked))
    kept = [part for part in (reads, second) if part is not None]
    for part in kept:
        part.check()
    values = _values(asked, reads, second)
    means = _means(values, settings)
    return Diagnosis(
        settings,
        values,
        means,
        *_judged(means, settings),
        best_orders={question.query_id: question.ids_of(reads) for question in asked},
        n=len(asked),
        reader_calls=sum(part.paid for part in kept),
        cache_hits=sum(part.hits for part in kept),
        failed_reads=sum(part.failed for part in kept),
        bound=bound,
    )


def sample_questions(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """So many of the questions, chosen by a hash of seed and query_id: fewer are a part of more, and rows added to a
    file change little, so that a larger diagnosis finds the answers of a smaller one in the cache."""
    return sorted(examples, key=lambda example: _digest(seed, example.query.query_id))[:count]


def _digest(seed: int, query_id: str) -> bytes:
    return hashlib.sha256(f"{seed}|{query_id}".encode("utf-8", "backslashreplace")).digest()


def _check_settings(settings: DiagnosisSettings, questions: int, max_failed: float) -> None:
    wanted = {
        "questions": (questions, 1),
        "depth": (settings.depth, 1),
        "top_k": (settings.top_k, 1),
        "orders": (settings.orders, 0),
        "samples": (settings.samples, 2),
    }
    for name, (value, least) in wanted.items():
        if value < least:
            raise ConfigurationError(f"Diagnosis has {name} {value}; it needs at least {least}.")
    if settings.top_k > settings.depth:
        raise ConfigurationError(
            f"Diagnosis has top_k {settings.top_k} above depth {settings.depth}; the reader can only see candidates. "
            "Raise --depth."
        )
    if not 0.0 <= max_failed <= 1.0:
        raise ConfigurationError(f"max_failed is {max_failed}; give the allowed share of failed reads, from 0 to 1.")


def _affordable(
    examples: Sequence[Example], settings: DiagnosisSettings, limit: int | None
) -> tuple[list[Example], int]:
    """The first questions that cost at most `limit` reader calls together, and what they cost at most."""
    costs = [settings.reads_per_question(len(example.candidates)) for example in examples]
    count = affordable(costs, limit)
    return list(examples[:count]), sum(costs[:count])


def affordable(costs: Sequence[int], limit: int | None) -> int:
    """How many of the questions, from the first one on, cost at most `limit` reader calls together.

    Args:
        costs: reader calls of each question at most.
        limit: None for as many as there are.

    Raises:
        ConfigurationError: not even the first one.
    """
    count = len(costs) if limit is None else sum(total <= limit for total in itertools.accumulate(costs))
    if costs and not count:
        raise ConfigurationError(
            f"--max-reader-calls is {limit}, but one question may cost {costs[0]} reader calls; wanted at least that, "
            f"and about {MINIMUM_QUESTIONS * costs[0]} for a verdict. Raise it, or lower --orders and --samples."
        )
    return count


class _Question:
    """One question, and the orders of its candidates that are read."""

    def __init__(self, example: Example, ranking: Ranking, settings: DiagnosisSettings) -> None:
        place = {document.doc_id: i for i, document in enumerate(example.candidates)}
        self.example = example
        self.query_id = example.query.query_id
        self.candidates = len(place)
        self.k = min(settings.top_k, self.candidates)
        self.budget = settings.orders
        self.ranked = tuple(place[doc_id] for doc_id in ranking.doc_ids)
        self.marks = _marks(example)
        self.first_stage: Order = tuple(range(self.k))
        self.reference: Order = self.ranked[: self.k]
        # Like evaluation.GoldFirst, with answers as marks where there are no labels.
        self.gold_first: Order = tuple(sorted(range(self.candidates), key=self._by_mark)[: self.k])
        self.likely = sorted(self.ranked, key=self._by_mark)
        self.samples = self._sampled(np.array(ranking.scores), settings)
        # Reversed and rotated by one; for two passages both are the same.
        self.shuffles = {self.reference[::-1], self.reference[1:] + self.reference[:1]} - {self.reference}

    def _by_mark(self, position: int) -> int:
        return -self.marks.get(position, 0)

    def _sampled(self, scores_D: NDArray[np.float64], settings: DiagnosisSettings) -> list[Order]:
        """Rankings drawn from Plackett-Luce over the reference's scores, by adding Gumbel noise and sorting."""
        digest = _digest(settings.seed, f"orders of {self.query_id}")
        draw = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        noisy_SD = scores_D + draw.gumbel(size=(settings.samples, self.candidates))
        chosen_SK = np.argsort(-noisy_SD, axis=1, kind="stable")[:, : self.k]
        return [tuple(self.ranked[i] for i in row) for row in chosen_SK.tolist()]

    def orders(self) -> list[Order]:
        """All that is read before the search. The reference comes first: of equally good orders the first is kept."""
        gold = [self.gold_first] if self.marks else []
        return [self.reference, _NO_DOCUMENTS, self.first_stage, *gold, *self.samples, *sorted(self.shuffles)]

    def tries(self, place: int, read: Mapping[Order, float | None]) -> list[Order]:
        """Orders that the search reads next: the best so far, with other candidates at this place."""
        best = self.best(read)
        if place >= self.k or (best is not None and read[best] == 1.0):
            return []
        if math.perm(self.candidates, self.k) <= self.budget:
            return list(itertools.permutations(range(self.candidates), self.k)) if place == 0 else []
        start = best or self.reference
        before, after = start[:place], start[place:]
        others = (i for i in self.likely if i not in before)
        orders = ((*before, i, *(j for j in after if j != i))[: self.k] for i in others)
        share = self.budget // self.k + (place < self.budget % self.k)
        return list(itertools.islice((order for order in orders if order not in read), share))

    def best(self, read: Mapping[Order, float | None]) -> Order | None:
        """The order with the largest reward; the first of equals, None where every read failed."""
        known = {order: value for order, value in read.items() if order and value is not None}
        return max(known, key=lambda order: known[order], default=None)

    def ids_of(self, reads: _Reads) -> tuple[str, ...]:
        """The best order's doc_ids."""
        return tuple(self.example.candidates[i].doc_id for i in self.best(reads.of[self.query_id]) or ())


def _marks(example: Example) -> dict[int, int]:
    """Position -> grade of the candidates that are labelled relevant; where none is, 1 for those that hold an accepted
    answer in their text."""
    grades = {i: example.relevance.get(document.doc_id, 0) for i, document in enumerate(example.candidates)}
    relevant = {i: grade for i, grade in grades.items() if grade >= 1}
    return relevant or dict.fromkeys(_with_answer(example), 1)


def _with_answer(example: Example) -> list[int]:
    """Positions of the candidates that hold an accepted answer; a passage with the word no answers nothing by it."""
    answers = [answer for answer in example.answers if normalise(answer) not in CLOSED_ANSWERS]
    if not answers:
        return []
    return [i for i, document in enumerate(example.candidates) if contains_answer(document.text, answers)]


class _AskedBefore:
    """A reader that has been asked about one context, whose answer waits until it is asked about it."""

    def __init__(self, reader: Reader, context: Context) -> None:
        self.name = reader.name
        self._reader, self._context = reader, context
        (self._result,) = reader.answer([context])

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        """One result per context, in order."""
        others = [context for context in contexts if context != self._context]
        results = iter(self._reader.answer(others) if others else [])
        return [self._result if context == self._context else next(results) for context in contexts]


class _Reads:
    """What every order that was read has earned."""

    def __init__(self, reader: Reader, reward: Reward, bound: int, max_failed: float) -> None:
        self._reader = reader
        self._reward = reward
        self._bound = bound
        self._max_failed = max_failed
        self.of: dict[str, dict[Order, float | None]] = defaultdict(dict)
        """query_id -> order -> reward; None where the read or the reward failed."""
        self.paid = 0
        self.hits = 0
        self.unanswered = 0
        self.failed = 0
        """Those that are not answered, and answers without a reward."""

    def ask(self, wanted: Iterable[tuple[Example, Order]]) -> None:
        """Reads those that were not read yet, all in one call of the reader."""
        new = [(example, order) for example, order in wanted if order not in self.of[example.query.query_id]]
        readings = read_prefixes(new, self._reader, self._reward)
        for (query_id, order), value in readings.rewards.items():
            if value is not None and not 0.0 <= value <= 1.0:
                raise ConfigurationError(
                    f"Reward '{self._reward.name}' gave {value:.4g} for query '{query_id}'; diagnose wants rewards "
                    "from 0 to 1, which its thresholds stand for. Divide the reward by its largest value."
                )
            self.of[query_id][order] = value
        self.paid += readings.paid
        self.hits += readings.hits
        self.unanswered += len(readings.outcomes) - len(readings.valued)
        self.failed += readings.failed
        self._check(self._bound, self._bound, "announced ")

    def check(self) -> None:
        """Raises a ReaderError where too many of the reads that were made failed, a RewardError where too many answers
        have no reward."""
        reads = sum(map(len, self.of.values()))
        self._check(reads, reads - self.unanswered)

    def _check(self, reads: int, answers: int, which: str = "") -> None:
        missing, allowed, again = self.failed - self.unanswered, self._max_failed, "run the same command again"
        more = f"{again} (--max-failed-reads SHARE lets more fail)"
        check_failed_reads(self._reader, self.unanswered, reads, allowed, f"{which}reads", more)
        check_missing_rewards(self._reward, missing, answers, allowed, f"{which}answers", f"Mend it and {again}")


def _read(batch: Sequence[_Question], top_k: int, reads: _Reads, second: _Reads | None) -> None:
    """All reads of some questions; those of one step are asked for together, because readers answer many at once."""
    reads.ask((question.example, order) for question in batch for order in question.orders())
    for place in range(top_k):
        reads.ask((q.example, order) for q in batch for order in q.tries(place, reads.of[q.query_id]))
    if second is not None:
        again = [(q.example, order) for q in batch for order in (q.reference, q.best(reads.of[q.query_id])) if order]
        second.ask(again)


def _values(questions: Sequence[_Question], reads: _Reads, second: _Reads | None) -> dict[str, dict[str, float]]:
    """number -> query_id -> value, without entries where a number is undefined."""
    values: dict[str, dict[str, float]] = {name: {} for name in NUMBERS}
    for question in questions:
        again = {} if second is None else second.of[question.query_id]
        for name, value in {**_recall(question), **_rewards(question, reads.of[question.query_id], again)}.items():
            if value is not None:
                values[name][question.query_id] = float(value)
    return values


def _recall(question: _Question) -> dict[str, float | None]:
    example = question.example
    relevant = {doc_id for doc_id, grade in example.relevance.items() if grade >= 1}
    there = relevant & {document.doc_id for document in example.candidates}
    return {
        "found": bool(question.marks),
        "hit": bool(_with_answer(example)),
        "relevant_one": bool(there) if relevant else None,
        "relevant_all": there == relevant if relevant else None,
    }


def _rewards(
    question: _Question, read: Mapping[Order, float | None], again: Mapping[Order, float | None]
) -> dict[str, float | None]:
    found = bool(question.marks)
    best = question.best(read)
    best_order = None if best is None else read[best]
    best_again = None if best is None else again.get(best)
    reference, no_documents = read[question.reference], read[_NO_DOCUMENTS]
    gold_first = read[question.gold_first] if found else None
    lost = _minus(1.0, best_order)
    spread = _known(read[order] for order in (question.reference, *question.shuffles))
    drawn = _known(read[order] for order in question.samples)
    repeat = _minus(reference, again.get(question.reference))
    return {
        "no_documents": no_documents,
        "first_stage": read[question.first_stage],
        "reference": reference,
        "gold_first": gold_first,
        "best_order": best_order,
        "best_again": best_again,
        "passage_gain": _minus(gold_first, no_documents),
        "headroom": _minus(best_again if again else best_order, reference),
        "gold_headroom": _minus(gold_first, reference),
        "lost_to_reader": lost if found or lost is None else 0.0,
        "lost_to_retriever": lost if not found or lost is None else 0.0,
        "order_noise": float(np.std(spread, ddof=1)) if len(spread) > 1 else None,
        "repeat_noise": None if repeat is None else abs(repeat),
        "closed_book": None if no_documents is None or best_order is None else 0.0 < no_documents >= best_order,
        "teaching": max(drawn) > min(drawn) if len(drawn) > 1 else None,
    }


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _means(values: Mapping[str, Mapping[str, float]], settings: DiagnosisSettings) -> dict[str, Score]:
    means: dict[str, Score] = {}
    for name, by_query in values.items():
        if by_query:
            numbers = np.fromiter(by_query.values(), dtype=np.float64)
            interval = bootstrap_interval(numbers, seed=settings.seed, resamples=settings.resamples)
            means[name] = Score(float(numbers.mean()), *interval, len(by_query))
    return means


def _judged(means: Mapping[str, Score], settings: DiagnosisSettings) -> tuple[Verdict, str]:
    """The verdict with its reason: the first rule that applies. Shares and levels are judged by their mean, with a
    word where their interval leaves it open; headroom by its interval, because it is the difference that a training
    would have to show."""
    n = min((means[name].n if name in means else 0 for name in ("headroom", "closed_book", "teaching")), default=0)
    if n < MINIMUM_QUESTIONS:
        return "undecided", (
            f"only {n} questions were read completely; a verdict wants {MINIMUM_QUESTIONS}. Give more questions, or "
            "allow more reader calls."
        )
    found, closed_book, teaching = means["found"], means["closed_book"], means["teaching"]
    headroom = means["headroom"]
    if found.mean < LOW_RECALL:
        return "limit: retriever", (
            f"only {_shown(found, '.1%')} of the questions have a candidate with what they ask for (wanted "
            f"{LOW_RECALL:.0%}) and no order can bring up what is not there. Raise the depth, or mend the first stage."
            f"{_doubt('found', means)}"
        )
    if closed_book.mean >= HIGH_CLOSED_BOOK:
        return "limit: data", (
            f"{_shown(closed_book, '.1%')} of the questions are answered as well without documents as with the best "
            "order; their rewards say nothing about passages. Take questions that the reader cannot answer by heart."
            f"{_doubt('closed_book', means)}"
        )
    if reason := _weak_reader(means):
        return "limit: reader", reason
    if headroom.ci_low < MINIMUM_HEADROOM:
        why = (
            f"the best order found earns {_shown(headroom)} more than {settings.reference}, which does not show a "
            f"headroom of {MINIMUM_HEADROOM}"
        )
        if headroom.ci_high < MINIMUM_HEADROOM:
            return _largest_loss(means, why)
        return "undecided", f"{why}, and does not rule it out. Read more questions."
    gold = means.get("gold_headroom")
    if gold is not None and gold.ci_low <= 0.0:
        luck = (
            f"the best order found earns {_shown(headroom)} more than {settings.reference}, but marked passages first "
            f"{_shown(gold)}, so that the best may be luck"
        )
        if gold.ci_high < MINIMUM_HEADROOM:
            return _largest_loss(means, luck)
        return "undecided", f"{luck}. Read more questions."
    if teaching.mean < MINIMUM_TEACHING:
        return "limit: data", (
            f"on only {_shown(teaching, '.1%')} of the questions do {settings.samples} sampled orders earn different "
            "rewards; the others teach nothing. Take more candidates, or raise rrpo.samples or rrpo.temperature."
            f"{_doubt('teaching', means)}"
        )
    by_gold = "" if gold is None else f", marked passages first {_shown(gold)}"
    return "training can pay", (
        f"the best order found earns {_shown(headroom)} more than {settings.reference}{by_gold}, and "
        f"{teaching.mean:.0%} of the questions can teach. Some of the headroom is luck of the search, and training "
        "reaches a part of the rest."
    ) + "".join(_doubt(name, means) for name in THRESHOLDS)


def _weak_reader(means: Mapping[str, Score]) -> str:
    """Why this reader cannot teach; empty where it can."""
    gold, gain = means.get("gold_first"), means.get("passage_gain")
    if gold is not None and gold.mean < LOW_READER:
        return (
            f"with good passages first it earns {_shown(gold, '.3f')} (wanted {LOW_READER}); a reader must be able to "
            "use good passages before its answers can teach. Take a stronger reader, or another prompt."
            f"{_doubt('gold_first', means)}"
        )
    if gain is not None and gain.mean < MINIMUM_HEADROOM:
        return (
            f"good passages give it {_shown(gain)} over no document at all (wanted {MINIMUM_HEADROOM}). Take a "
            f"reader or a prompt that answers from the passages.{_doubt('passage_gain', means)}"
        )
    return ""


def _largest_loss(means: Mapping[str, Score], why: str) -> tuple[Verdict, str]:
    """What limits where an order gains nothing: the part that loses most, if it is much, else the data."""
    retriever, reader = means["lost_to_retriever"].mean, means["lost_to_reader"].mean
    if max(retriever, reader) < LARGE_LOSS:
        return "limit: data", (
            f"{why}, and little is lost elsewhere (reader {reader:.3f}, retriever {retriever:.3f}): these "
            "questions are solved as they are. Take harder ones."
        )
    if retriever >= reader:
        return "limit: retriever", (
            f"{why}; {retriever:.3f} is lost on questions without a candidate that has what they ask for. Raise the "
            "depth, or mend the first stage."
        )
    return "limit: reader", (
        f"{why}; {reader:.3f} is lost on questions whose candidates have what they ask for. Take a stronger reader, or "
        "another prompt."
    )


THRESHOLDS = {
    "found": LOW_RECALL,
    "closed_book": HIGH_CLOSED_BOOK,
    "gold_first": LOW_READER,
    "passage_gain": MINIMUM_HEADROOM,
    "teaching": MINIMUM_TEACHING,
}


def _doubt(name: str, means: Mapping[str, Score]) -> str:
    """What a mean on either side of its threshold leaves open."""
    score, threshold = means.get(name), THRESHOLDS[name]
    if score is None or not score.ci_low < threshold < score.ci_high:
        return ""
    return f" The interval of {name} holds {threshold:g}: more questions may say otherwise."


def _shown(score: Score, form: str = "+.3f") -> str:
    """A mean with its interval."""
    return f"{score.mean:{form}} [{score.ci_low:{form}}, {score.ci_high:{form}}]"
