"""Compare rerankers on the same questions and candidates: values per question, intervals, tests, a signature.

    evaluation = evaluate({"reference": reference, "mine": mine}, examples, reader=reader, baseline="reference")
    test = evaluation.headline_test()
    print(verdict(test), test.delta, evaluation.signature)

Everything arrives as an object: this module imports no model code and no torch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

import rankwright
from rankwright.data.files import replace_text
from rankwright.errors import (
    ConfigurationError,
    DataError,
    ModelError,
    ReaderError,
    ResourceNotFoundError,
    StorageError,
)
from rankwright.metrics.answer import NORMALISER, contains_answer, exact_match, f1, sub_em
from rankwright.metrics.ranking import has_relevant, queries_without_relevant, ranking_metrics
from rankwright.metrics.significance import bootstrap_interval, holm, paired_permutation_test
from rankwright.reading import MAX_FAILED_READS
from rankwright.types import (
    Answer,
    Context,
    Document,
    Example,
    Query,
    Ranking,
    Reader,
    ReadFailed,
    ReadResult,
    Reranker,
    RerankRequest,
    as_documents,
    as_query,
)

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much there is."""

ANSWER_METRICS: Mapping[str, Callable[[str, Sequence[str]], float]] = {"EM": exact_match, "F1": f1, "sub-EM": sub_em}
LABEL_METRICS = ("nDCG@10", "RR@10", "recall@10", "recall@20")

_SIGNIFICANT = 0.05
_REQUESTS_AT_ONCE = 64
READS_AT_ONCE = 256
_FORMAT = "rankwright-evaluation/1"


class _FixedOrder:
    """Orders that need no model, with descending places as scores."""

    name: str

    def _ordered(self, request: RerankRequest) -> Iterable[Document]:
        raise NotImplementedError

    def rerank_batch(self, requests: Sequence[RerankRequest]) -> list[Ranking]:
        """One ranking per request, in order."""
        return [self._ranking(request) for request in requests]

    def rerank(self, query: str | Query, documents: Sequence[str | Document], top_k: int | None = None) -> Ranking:
        """The ranking of one query, cut after `top_k` documents."""
        ranking = self._ranking(RerankRequest(as_query(query), as_documents(documents)))
        return ranking.best(top_k)

    def _ranking(self, request: RerankRequest) -> Ranking:
        doc_ids = tuple(document.doc_id for document in self._ordered(request))
        return Ranking(request.query.query_id, doc_ids, tuple(float(len(doc_ids) - i) for i in range(len(doc_ids))))


class FirstStage(_FixedOrder):
    """Leaves the candidates in the order that they came in: what reranking has to improve on."""

    name = "first-stage"

    def _ordered(self, request: RerankRequest) -> Iterable[Document]:
        return request.documents


class KnownOrder(_FixedOrder):
    """Gives again what a model has ordered before.

    Args:
        name: of the model.
        orders: query_id -> doc_ids, best first.
    """

    def __init__(self, name: str, orders: Mapping[str, Sequence[str]]) -> None:
        self.name = name
        self._orders = orders

    def _ordered(self, request: RerankRequest) -> Iterable[Document]:
        document_of = {document.doc_id: document for document in request.documents}
        return [document_of[doc_id] for doc_id in self._orders[request.query.query_id]]


class GoldFirst(_FixedOrder):
    """Puts labelled documents first, higher grades before lower, and keeps the given order otherwise.

    An orientation mark, no upper bound: the best order for a reader may differ from the best order by label.
    """

    name = "gold-first"

    def __init__(self, examples: Iterable[Example]) -> None:
        self._relevance = {example.query.query_id: example.relevance for example in examples}
        if not any(map(has_relevant, self._relevance.values())):
            raise ConfigurationError(
                f"The order 'gold-first' was asked for {len(self._relevance)} questions, of which none has a relevant "
                "document; give labels (--qrels) or leave it out."
            )

    def _ordered(self, request: RerankRequest) -> Iterable[Document]:
        grades = self._relevance.get(request.query.query_id, {})
        return sorted(request.documents, key=lambda document: -max(0, grades.get(document.doc_id, 0)))


class Score(NamedTuple):
    """Mean of one metric of one model with its bootstrap interval (95 %, percentile)."""

    mean: float
    ci_low: float
    ci_high: float
    n: int
    """Questions behind the mean: those where the metric is defined and the read did not fail."""


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Model a against model b in one metric, on the questions where both have a value."""

    a: str
    b: str
    """The baseline, or of two models the one given first."""
    metric: str
    n: int
    """Questions compared."""
    delta: float
    """Mean of a minus b: above 0 where a is better."""
    ci_low: float
    ci_high: float
    """Bootstrap interval of delta (95 %, percentile)."""
    p: float
    """Two-sided paired permutation test."""
    p_holm: float
    """p corrected for all pairs of models tested in this metric."""


@dataclass(frozen=True, slots=True)
class ModelResult:
    """What one model did with every question."""

    rankings: Mapping[str, Ranking]
    """query_id -> all candidates in the order of the model."""
    reads: Mapping[str, ReadResult]
    """query_id -> what the reader said to the first documents; empty without a reader."""
    values: Mapping[str, Mapping[str, float]]
    """metric -> query_id -> value. Failed reads and questions where a metric is undefined have no entry."""

    @property
    def n_failed(self) -> int:
        """Questions whose read failed."""
        return sum(isinstance(read, ReadFailed) for read in self.reads.values())

    @property
    def n_ok(self) -> int:
        """Questions whose read gave an answer."""
        return len(self.reads) - self.n_failed


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """Everything that a score depends on beside models and questions; the parts of the signature."""

    set_name: str
    retriever: str
    """What made the candidates, `given` where they came with the data."""
    depth: int
    """Candidates per question."""
    top_k: int
    """Documents that the reader sees."""
    reader: str = "none"
    """Name of the reader."""
    data: str = ""
    """`digest_of` the questions; empty in files of before."""
    baseline: str | None = None
    """The model that all others are tested against; None tests all pairs."""
    skipped: int = 0
    """Bad rows of the data that were left out."""
    seed: int = 0
    resamples: int = 1_000
    """Bootstrap resamples."""
    permutations: int = 10_000
    """Sign patterns of the permutation test."""
    version: str = field(default_factory=lambda: rankwright.__version__)


@dataclass(frozen=True)
class Evaluation:
    """The outcome of `evaluate`: all that a table, a JSON line or a report needs."""

    settings: EvaluationSettings
    examples: tuple[Example, ...]
    """The questions, with the candidates that were ranked."""
    models: Mapping[str, ModelResult]
    """In the order given."""
    scores: Mapping[str, Mapping[str, Score]]
    """model -> metric -> mean; metrics without a single value are left out."""
    tests: tuple[PairedTest, ...]
    taken: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """model -> what its rankings took, where it is a language model: calls, sequential depth, tokens, outcomes."""
    computed: Mapping[str, str] = field(default_factory=dict)
    """model -> the full name of its reranker, where that says how it was computed: `model|packed-fp32`."""

    @property
    def n(self) -> int:
        """Questions evaluated."""
        return len(self.examples)

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that at least one model has a mean of, in table order."""
        order = (*ANSWER_METRICS, f"hit@{self.settings.top_k}", *LABEL_METRICS)
        return tuple(metric for metric in order if any(metric in row for row in self.scores.values()))

    @property
    def headline_metric(self) -> str:
        """F1 where a reader answered, else nDCG@10 where there are labels, else hit@k."""
        wanted = ("F1", "nDCG@10", f"hit@{self.settings.top_k}")
        return next(metric for metric in (*wanted, *self.metrics) if metric in self.metrics)

    @property
    def signature(self) -> str:
        """Signature of the headline metric."""
        return self.signature_of(self.headline_metric)

    def signature_of(self, metric: str) -> str:
        """The settings that two scores of this metric must share before they may be compared."""
        read, text = metric in ANSWER_METRICS, metric in ANSWER_METRICS or metric.startswith("hit@")
        parts = {
            "set": self.settings.set_name,
            "retriever": self.settings.retriever,
            "depth": self.settings.depth,
            "reader": self.settings.reader if read else None,
            "queries": max(row[metric].n for row in self.scores.values() if metric in row),
            "data": self.settings.data[:8] or None,
            "bs": self.settings.resamples,
            "seed": self.settings.seed,
            "norm": NORMALISER if text else None,
            "v": self.settings.version,
        }
        name = f"{metric}@{self.settings.top_k}" if read else metric
        # A bar inside a name would look like the next part.
        written = [f"{key}:{str(value).replace('|', '/')}" for key, value in parts.items() if value is not None]
        return "|".join([name, *written])

    def test(self, a: str, b: str, metric: str) -> PairedTest | None:
        """The test of model a minus model b, if there is one."""
        return next((t for t in self.tests if (t.a, t.b, t.metric) == (a, b, metric)), None)

    def headline_test(self) -> PairedTest | None:
        """The last model given that is no fixed order, against the baseline (or the first model), in the headline
        metric.

        None where only one model was evaluated or no question can be compared.
        """
        b = self.settings.baseline or next(iter(self.models))
        others = [name for name in self.models if name != b]
        trained = [name for name in others if name not in (FirstStage.name, GoldFirst.name)]
        if not others:
            return None
        return self.test((trained or others)[-1], b, self.headline_metric)

    def table(self) -> list[dict[str, Any]]:
        """One row per model: `model`, with a reader `n_ok` and `n_failed`, and a Score under each metric's name."""
        rows = []
        for name, result in self.models.items():
            reads = {"n_ok": result.n_ok, "n_failed": result.n_failed} if result.reads else {}
            rows.append({"model": name, **reads, **self.scores[name]})
        return rows

    def counted_reads(self) -> dict[str, dict[str, int]]:
        """`n_ok` and `n_failed` of the models whose rankings were read, by name."""
        read = {name: result for name, result in self.models.items() if result.reads}
        return {
            "n_ok": {name: result.n_ok for name, result in read.items()},
            "n_failed": {name: result.n_failed for name, result in read.items()},
        }

    def to_json(self) -> dict[str, Any]:
        """The object that `rankwright eval --output json` prints as one line."""
        return {
            "set": self.settings.set_name,
            "n": self.n,
            "skipped": self.settings.skipped,
            "signature": self.signature,
            "models": {name: {metric: row[metric].mean for metric in row} for name, row in self.scores.items()},
            "tests": [asdict(test) | {"verdict": verdict(test)} for test in self.tests],
            "delta_is": "a minus b",
            "baseline": self.settings.baseline,
            "intervals": {
                name: {metric: [row[metric].ci_low, row[metric].ci_high] for metric in row}
                for name, row in self.scores.items()
            },
            "n_labelled": self.n - len(queries_without_relevant(*_labels(self.examples))),
            **self.counted_reads(),
            **({"taken": {name: dict(counts) for name, counts in self.taken.items()}} if self.taken else {}),
            **({"computed": dict(self.computed)} if self.computed else {}),
        }

    def save(self, path: str | Path) -> None:
        """Write everything as one JSON file, from which `load` makes an equal object; complete or not at all."""
        write_whole(Path(path), json.dumps(_packed(self)), "Evaluation")

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            ResourceNotFoundError: no such file.
            DataError: the file is something else, damaged, or of another version.
        """
        try:
            packed = json.loads(Path(path).read_text(encoding="utf-8"))
            if packed["format"] != _FORMAT:
                raise DataError(f"File {path} has format '{packed['format']}'; this version reads '{_FORMAT}'.")
            return _unpacked(packed)
        except FileNotFoundError as error:
            raise ResourceNotFoundError(f"There is no evaluation file {path}; run rankwright eval first.") from error
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise DataError(
                f"File {path} is not an evaluation or is damaged ({error!r}); wanted what rankwright eval --save or "
                "a run wrote. Make it again; a file of questions has a --format of its own."
            ) from error


def write_whole(path: Path, text: str, what: str) -> None:
    """Write a file so that a reader finds the old one or the new one, never a piece; folders are made.

    Raises:
        StorageError: the place cannot be written; the sentence begins with `what`.
    """
    if not path.name:
        raise StorageError(f"{what} cannot be written to '{path}'; wanted the name of a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text)
    except OSError as error:
        raise StorageError(
            f"{what} cannot be written to {path}: {error.strerror}. Free space or name another place."
        ) from error


def digest_of(examples: Sequence[Example]) -> str:
    """First digits of a hash of questions, answers, labels and candidates in their order."""
    rows = [
        (
            e.query.query_id,
            e.query.text,
            e.answers,
            dict(e.relevance),
            [(d.doc_id, d.title, d.text) for d in e.candidates],
        )
        for e in examples
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def verdict(test: PairedTest) -> str:
    """`better` where the interval of a minus b lies above 0 and p is below 0.05, `worse` where it lies below 0 and p is
    below 0.05, and `not shown` otherwise. p is the uncorrected one: a verdict is about one pair chosen beforehand.
    """
    if test.p < _SIGNIFICANT and test.ci_low > 0.0:
        return "better"
    if test.p < _SIGNIFICANT and test.ci_high < 0.0:
        return "worse"
    return "not shown"


def paired_test(
    a: str,
    b: str,
    metric: str,
    values_a: Mapping[str, float],
    values_b: Mapping[str, float],
    *,
    seed: int = 0,
    resamples: int = 1_000,
    permutations: int = 10_000,
) -> PairedTest | None:
    """Model a against model b over the questions where both have a value; None without any. p_holm is p: there is one
    pair.

    Args:
        a: name of a model.
        b: that of the other.
        metric: what the values are of.
        values_a: query_id -> value of a.
        values_b: likewise of b.
        seed: of interval and test.
        resamples: of the bootstrap.
        permutations: of the test.
    """
    differences = np.array([values_a[query_id] - values_b[query_id] for query_id in values_a if query_id in values_b])
    if differences.size == 0:
        return None
    low, high = bootstrap_interval(differences, seed=seed, resamples=resamples)
    p = paired_permutation_test(differences, seed=seed, permutations=permutations)
    return PairedTest(a, b, metric, differences.size, float(differences.mean()), low, high, p, p_holm=p)


def evaluate(
    rankers: Mapping[str, Reranker],
    examples: Sequence[Example],
    *,
    reader: Reader | None = None,
    top_k: int = 3,
    depth: int = 20,
    baseline: str | None = None,
    seed: int = 0,
    set_name: str = "unnamed",
    retriever: str = "given",
    skipped: int = 0,
    resamples: int = 1_000,
    permutations: int = 10_000,
    max_failed: float = MAX_FAILED_READS,
    may_read: Callable[[Sequence[Context]], None] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Rank the first `depth` candidates of every question with every model, read the first `top_k`, score and test.

    With a reader: EM, F1 and sub-EM of its answers. With accepted answers: hit@k, an answer stands in the text of one
    of the first `top_k` passages. With labels: nDCG@10, RR@10, recall@10 and recall@20 over the questions that have a
    relevant document; documents beyond `depth` count as not found.

    Models that put the same passages in the same order in front of the reader share one read. A failed read has no
    score: it is missing from the model's mean, and a pair is compared on the questions that both could answer.

    Args:
        rankers: Name as it shall be printed -> model.
        examples: Questions with candidates, best first.
        baseline: The model that the others are tested against; None tests every pair, the later minus the earlier.
        set_name, retriever: Parts of the signature that only the caller knows.
        skipped: Rows that were left out before, printed with the result.
        max_failed: Largest share of failed reads that still counts as an evaluation.
        may_read: Told what the reader will be asked, each context once, before the first call; raises where it may not.

    Raises:
        ConfigurationError: settings that do not fit each other.
        DataError: no questions, repeated ids, a question without candidates, or without answers where a reader is
        asked. ModelError: a model returned scores that are not finite or a ranking that is not one of the candidates.
        ReaderError: more reads failed than `max_failed` allows.
    """
    cut = tuple(_cut(example, depth) for example in examples)
    settings = EvaluationSettings(
        set_name=set_name,
        data=digest_of(cut),
        retriever=retriever,
        depth=depth,
        top_k=top_k,
        reader="none" if reader is None else reader.name,
        baseline=baseline,
        skipped=skipped,
        seed=seed,
        resamples=resamples,
        permutations=permutations,
    )
    _check_settings(settings, rankers, max_failed)
    check_examples(cut, with_answers=reader is not None)
    told = progress or tell_nobody
    rankings = {name: rank_with(name, ranker, cut, told) for name, ranker in rankers.items()}
    contexts = _contexts(rankings, cut, top_k) if reader else {}
    if may_read is not None:
        may_read(list(contexts.values()))
    reads = _read(rankings, contexts, reader, top_k, max_failed, told) if reader else {name: {} for name in rankers}
    values = _values(rankings, reads, cut, top_k)
    models = {name: ModelResult(rankings[name], reads[name], values[name]) for name in rankers}
    return Evaluation(settings, cut, models, _scores(values, settings, told), _tests(values, settings, told))


def tell_nobody(what: str, done: int, total: int) -> None:
    """Progress of a caller that asked for none."""


def _check_settings(settings: EvaluationSettings, rankers: Mapping[str, Reranker], max_failed: float) -> None:
    if not rankers:
        raise ConfigurationError("Evaluation was given no model; name at least one.")
    if settings.baseline is not None and settings.baseline not in rankers:
        raise ConfigurationError(
            f"Baseline '{settings.baseline}' is not among the models {', '.join(rankers)}; name one of them."
        )
    for name, value in (("depth", settings.depth), ("top_k", settings.top_k)):
        if value < 1:
            raise ConfigurationError(f"Evaluation has {name} {value}; it needs at least 1.")
    if settings.top_k > settings.depth:
        raise ConfigurationError(
            f"Evaluation has top_k {settings.top_k} above depth {settings.depth}; the reader can only see candidates."
        )
    if not 0.0 <= max_failed <= 1.0:
        raise ConfigurationError(f"max_failed is {max_failed}; give the allowed share of failed reads, from 0 to 1.")


def _cut(example: Example, depth: int) -> Example:
    return replace(example, candidates=example.candidates[:depth])


def check_examples(examples: Sequence[Example], *, with_answers: bool) -> None:
    """Refuses questions that nothing can be measured on.

    Raises:
        DataError: no questions, a repeated id, no candidates or a repeated one, or (`with_answers`) no accepted answer.
    """
    if not examples:
        raise DataError("There are no questions; check the data file and the rows that were skipped.")
    query_id, times = Counter(example.query.query_id for example in examples).most_common(1)[0]
    if times > 1:
        raise DataError(f"Query id '{query_id}' occurs {times} times; give every question its own id.")
    for example in examples:
        query_id = example.query.query_id
        if not example.candidates:
            raise DataError(
                f"Candidate list of query '{query_id}' is empty; retrieval returned 0 documents. "
                "Raise --depth or check the index path."
            )
        doc_id, times = Counter(document.doc_id for document in example.candidates).most_common(1)[0]
        if times > 1:
            raise DataError(
                f"Candidate list of query '{query_id}' names document '{doc_id}' {times} times; remove the repetitions."
            )
        if with_answers and not example.answers:
            raise DataError(
                f"Question '{query_id}' has no accepted answer, which scoring the reader needs. "
                "Add answers, leave the row out, or evaluate with --reader none."
            )
    if not any(example.answers or has_relevant(example.relevance) for example in examples):
        raise DataError(
            f"None of {len(examples)} questions has an accepted answer or a relevant document, so there is nothing to "
            "measure; add answers or labels (--qrels)."
        )


def rank_with(name: str, ranker: Reranker, examples: Sequence[Example], progress: Progress) -> dict[str, Ranking]:
    """query_id -> the model's order of all candidates, in batches.

    Raises:
        ModelError: scores that are not finite, or a ranking that does not hold each candidate once.
    """
    requests = [RerankRequest(example.query, example.candidates, example.first_stage) for example in examples]
    rankings: dict[str, Ranking] = {}
    for start in range(0, len(requests), _REQUESTS_AT_ONCE):
        batch = requests[start : start + _REQUESTS_AT_ONCE]
        ranked = ranker.rerank_batch(batch)
        if len(ranked) != len(batch):
            raise ModelError(
                f"Model '{name}' returned {len(ranked)} rankings for {len(batch)} requests; one each is due."
            )
        for request, ranking in zip(batch, ranked, strict=True):
            _check_ranking(name, request, ranking)
            rankings[ranking.query_id] = ranking
        progress(f"rank with {name}", len(rankings), len(requests))
    return rankings


def _check_ranking(name: str, request: RerankRequest, ranking: Ranking) -> None:
    query_id = request.query.query_id
    wanted = sorted(document.doc_id for document in request.documents)
    if ranking.query_id != query_id or sorted(ranking.doc_ids) != wanted:
        raise ModelError(
            f"Model '{name}' ranked {len(ranking.doc_ids)} documents of query '{ranking.query_id}' where the "
            f"{len(wanted)} candidates of query '{query_id}' were asked for; a ranking holds each candidate once."
        )
    for doc_id, score in zip(ranking.doc_ids, ranking.scores, strict=True):
        if not math.isfinite(score):
            raise ModelError(
                f"Model '{name}' gave document '{doc_id}' of query '{query_id}' the score {score}; "
                "scores must be finite. Its weights are damaged or overflow in this precision: try fp32."
            )


def _contexts(
    rankings: Mapping[str, Mapping[str, Ranking]], examples: Sequence[Example], top_k: int
) -> dict[tuple[str, ...], Context]:
    """What the reader sees of all models, each context once."""
    contexts: dict[tuple[str, ...], Context] = {}
    for example in examples:
        for ranked in rankings.values():
            ranking = ranked[example.query.query_id]
            read = ranking.best(top_k).documents(example.candidates)
            contexts[_context_key(ranking, top_k)] = Context(example.query, read)
    return contexts


def _read(
    rankings: Mapping[str, Mapping[str, Ranking]],
    contexts: Mapping[tuple[str, ...], Context],
    reader: Reader,
    top_k: int,
    max_failed: float,
    progress: Progress,
) -> dict[str, dict[str, ReadResult]]:
    """Reads of all models, asked for together so that equal contexts cost one call."""
    keys, asked = list(contexts), list(contexts.values())
    results: dict[tuple[str, ...], ReadResult] = {}
    for start in range(0, len(asked), READS_AT_ONCE):
        batch = asked[start : start + READS_AT_ONCE]
        answers = reader.answer(batch)
        if len(answers) != len(batch):
            raise ReaderError(
                f"Reader '{reader.name}' gave {len(answers)} results for {len(batch)} contexts; one each is due."
            )
        results.update(zip(keys[start : start + len(batch)], answers, strict=True))
        _check_failures(reader.name, results.values(), len(asked), max_failed)
        progress("read", len(results), len(asked))
    return {
        name: {query_id: results[_context_key(ranking, top_k)] for query_id, ranking in ranked.items()}
        for name, ranked in rankings.items()
    }


def _context_key(ranking: Ranking, top_k: int) -> tuple[str, ...]:
    return (ranking.query_id, *ranking.doc_ids[:top_k])


def _check_failures(reader_name: str, results: Iterable[ReadResult], total: int, max_failed: float) -> None:
    reasons = Counter(result.reason for result in results if isinstance(result, ReadFailed))
    if reasons.total() <= max_failed * total:
        return
    reason, times = reasons.most_common(1)[0]
    raise ReaderError(
        f"Reader '{reader_name}' failed on {reasons.total()} of {total} contexts, most often with '{reason}' "
        f"({times} times); at most {max_failed:.0%} may fail. "
        "Correct the cause and run again: answers in the cache are kept."
    )


_Values = dict[str, dict[str, dict[str, float]]]


def _values(
    rankings: Mapping[str, Mapping[str, Ranking]],
    reads: Mapping[str, Mapping[str, ReadResult]],
    examples: Sequence[Example],
    top_k: int,
) -> _Values:
    """model -> metric -> query_id -> value, without entries where a metric is undefined."""
    relevance = _labels(examples)[1]
    with_answers = {e.query.query_id: _documents_with_answer(e) for e in examples if e.answers}
    values: _Values = {}
    for name, ranked in rankings.items():
        answers = {
            metric: {
                example.query.query_id: score(read.text, example.answers)
                for example in examples
                if isinstance(read := reads[name].get(example.query.query_id), Answer)
            }
            for metric, score in ANSWER_METRICS.items()
        }
        hits = {
            query_id: float(any(doc_id in found for doc_id in ranked[query_id].doc_ids[:top_k]))
            for query_id, found in with_answers.items()
        }
        values[name] = answers | {f"hit@{top_k}": hits} | ranking_metrics(ranked.values(), relevance, LABEL_METRICS)
    return values


def _documents_with_answer(example: Example) -> set[str]:
    return {document.doc_id for document in example.candidates if contains_answer(document.text, example.answers)}


def _labels(examples: Sequence[Example]) -> tuple[list[str], dict[str, Mapping[str, int]]]:
    return [e.query.query_id for e in examples], {e.query.query_id: e.relevance for e in examples}


def _scores(values: _Values, settings: EvaluationSettings, progress: Progress) -> dict[str, dict[str, Score]]:
    scores: dict[str, dict[str, Score]] = {}
    for done, (name, metrics) in enumerate(values.items(), start=1):
        scores[name] = {}
        for metric, per_query in metrics.items():
            if per_query:
                numbers = np.fromiter(per_query.values(), dtype=np.float64)
                interval = bootstrap_interval(numbers, seed=settings.seed, resamples=settings.resamples)
                scores[name][metric] = Score(float(numbers.mean()), *interval, len(per_query))
        progress("intervals", done, len(values))
    return scores


def _tests(values: _Values, settings: EvaluationSettings, progress: Progress) -> tuple[PairedTest, ...]:
    if settings.baseline is None:
        pairs = [(later, earlier) for earlier, later in itertools.combinations(values, 2)]
    else:
        pairs = [(name, settings.baseline) for name in values if name != settings.baseline]
    metrics = list(next(iter(values.values())))
    tests: list[PairedTest] = []
    for done, metric in enumerate(metrics, start=1):
        compared = [_compare(a, b, metric, values, settings) for a, b in pairs]
        family = [test for test in compared if test is not None]
        for test, p_holm in zip(family, holm([test.p for test in family]), strict=True):
            tests.append(replace(test, p_holm=p_holm))
        progress("tests", done, len(metrics))
    return tuple(tests)


def _compare(a: str, b: str, metric: str, values: _Values, settings: EvaluationSettings) -> PairedTest | None:
    of_both = values[a][metric], values[b][metric]
    draws = {"resamples": settings.resamples, "permutations": settings.permutations}
    return paired_test(a, b, metric, *of_both, seed=settings.seed, **draws)


def _packed(evaluation: Evaluation) -> dict[str, Any]:
    """JSON of an evaluation. Each distinct passage is written once and named by its place in `documents`."""
    places: dict[Document, int] = {}
    examples = [
        {
            "query": [example.query.query_id, example.query.text],
            "candidates": [places.setdefault(document, len(places)) for document in example.candidates],
            "answers": list(example.answers),
            "relevance": dict(example.relevance),
            "first_stage": dict(example.first_stage),
        }
        for example in evaluation.examples
    ]
    return {
        "format": _FORMAT,
        "settings": asdict(evaluation.settings),
        "documents": [[document.doc_id, document.text, document.title] for document in places],
        "examples": examples,
        "models": {name: _packed_model(result) for name, result in evaluation.models.items()},
        "scores": evaluation.scores,
        "tests": [asdict(test) for test in evaluation.tests],
        "taken": {name: dict(counts) for name, counts in evaluation.taken.items()},
        "computed": dict(evaluation.computed),
    }


def _packed_model(result: ModelResult) -> dict[str, Any]:
    return {
        "rankings": {query_id: [ranking.doc_ids, ranking.scores] for query_id, ranking in result.rankings.items()},
        "reads": {
            query_id: {"failed": read.reason, "paid": read.paid}
            if isinstance(read, ReadFailed)
            else {"text": read.text, "paid": read.paid}
            for query_id, read in result.reads.items()
        },
        "values": result.values,
    }


def _unpacked(packed: Mapping[str, Any]) -> Evaluation:
    scores, tests = TypeAdapter(Score), TypeAdapter(PairedTest)
    documents = [Document(*fields) for fields in packed["documents"]]
    examples = tuple(
        Example(
            Query(*row["query"]),
            tuple(documents[place] for place in row["candidates"]),
            tuple(row["answers"]),
            {doc_id: int(grade) for doc_id, grade in row["relevance"].items()},
            {doc_id: float(score) for doc_id, score in row.get("first_stage", {}).items()},
        )
        for row in packed["examples"]
    )
    return Evaluation(
        settings=EvaluationSettings(**{n: value for n, value in packed["settings"].items() if n != "prompt"}),
        examples=examples,
        models={name: _unpacked_model(model) for name, model in packed["models"].items()},
        scores={
            name: {metric: scores.validate_python(score) for metric, score in row.items()}
            for name, row in packed["scores"].items()
        },
        tests=tuple(tests.validate_python(test) for test in packed["tests"]),
        taken=dict(packed.get("taken", {})),
        computed=dict(packed.get("computed", {})),
    )


def _unpacked_model(model: Mapping[str, Any]) -> ModelResult:
    return ModelResult(
        rankings={
            query_id: Ranking(query_id, tuple(doc_ids), tuple(scores))
            for query_id, (doc_ids, scores) in model["rankings"].items()
        },
        reads={
            query_id: ReadFailed(read["failed"], read.get("paid", True))
            if "failed" in read
            else Answer(read["text"], read["paid"])
            for query_id, read in model["reads"].items()
        },
        values={
            metric: {query_id: float(value) for query_id, value in per.items()}
            for metric, per in model["values"].items()
        },
    )
