"""Two evaluations against each other, question by question: what may be compared, what became better, what worse.

comparison = compare_sides(Side("before", old, "trained"), Side("after", new, "trained"))
test = comparison.headline_test
print(verdict(test), test.delta, comparison.counts(test.metric))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

from rankwright.errors import ConfigurationError
from rankwright.evaluation import (
    ANSWER_METRICS,
    Evaluation,
    FirstStage,
    GoldFirst,
    ModelResult,
    PairedTest,
    paired_test,
    verdict,
)
from rankwright.types import Example

DECIMALS = 6
"""Values that agree in so many decimals are the same: nDCG of equal rankings may differ in the last bit."""


@dataclass(frozen=True)
class Side:
    """One model of one evaluation."""

    name: str
    """As it is printed."""
    evaluation: Evaluation
    row: str
    """The model's name in the evaluation."""

    @property
    def result(self) -> ModelResult:
        """What the model did."""
        return self.evaluation.models[self.row]


class Difference(NamedTuple):
    """Something in which two evaluations do not agree."""

    what: str
    before: str
    after: str
    reads: bool = False
    """Whether answers of the two say nothing about each other: another reader, or another number of passages read."""


class Counts(NamedTuple):
    """Questions by what became of them."""

    won: int
    same: int
    lost: int


@dataclass(frozen=True)
class Comparison:
    """What `compare_sides` found."""

    before: Side
    after: Side
    questions: tuple[str, ...]
    """Ids of the questions that both evaluated, in the order of the first."""
    metrics: tuple[str, ...]
    """What both measured in a way that may be compared."""
    tests: tuple[PairedTest, ...]
    """After minus before, one for each metric with a question where both have a value."""
    differences: tuple[Difference, ...]
    """In what they do not agree; empty unless the comparison was forced."""

    @property
    def left_out(self) -> int:
        """Questions that only one of the two has, or has in this form."""
        ids = set(self.before_examples) | set(self.after_examples)
        return len(ids) - len(self.questions)

    @cached_property
    def before_examples(self) -> dict[str, Example]:
        """query_id -> the question as the first evaluation has it."""
        return _by_id(self.before.evaluation)

    @cached_property
    def after_examples(self) -> dict[str, Example]:
        """query_id -> the question as the second evaluation has it."""
        return _by_id(self.after.evaluation)

    @property
    def headline_test(self) -> PairedTest:
        """The test of F1, else of nDCG@10, else of the first metric there is."""
        wanted = ("F1", "nDCG@10")
        return next((test for name in wanted for test in self.tests if test.metric == name), self.tests[0])

    def values(self, metric: str) -> dict[str, tuple[float, float]]:
        """query_id -> value before and after, of the questions where both have one."""
        before, after = (side.result.values.get(metric, {}) for side in (self.before, self.after))
        return {
            query_id: (before[query_id], after[query_id])
            for query_id in self.questions
            if query_id in before and query_id in after
        }

    def means(self, metric: str) -> tuple[float, float]:
        """Before and after, over the questions where both have a value."""
        pairs = list(self.values(metric).values())
        return sum(pair[0] for pair in pairs) / len(pairs), sum(pair[1] for pair in pairs) / len(pairs)

    def counts(self, metric: str) -> Counts:
        """How many questions were won, stayed the same, were lost."""
        became = [outcome_of(pair) for pair in self.values(metric).values()]
        return Counts(became.count("won"), became.count("same"), became.count("lost"))

    def table(self) -> list[dict[str, Any]]:
        """One row per metric: means, counts and test."""
        rows = []
        for test in self.tests:
            before, after = self.means(test.metric)
            counts = self.counts(test.metric)._asdict()
            rows.append({**asdict(test), "before": before, "after": after, **counts, "verdict": verdict(test)})
        return rows

    def perquery(self) -> Iterator[dict[str, Any]]:
        """One row per question: values, and in the headline metric what became of it."""
        values = {test.metric: self.values(test.metric) for test in self.tests}
        for query_id in self.questions:
            pairs = {metric: list(of[query_id]) for metric, of in values.items() if query_id in of}
            outcome = outcome_of(pairs.get(self.headline_test.metric))
            yield {"query_id": query_id, "outcome": outcome, "values": pairs}


def outcome_of(pair: Sequence[float] | None) -> str:
    """What became of a question with these values before and after; `not compared` where one of them is missing."""
    if pair is None:
        return "not compared"
    before, after = (round(value, DECIMALS) for value in pair)
    return "won" if after > before else "lost" if after < before else "same"


def trained_row(evaluation: Evaluation) -> str:
    """The model that an evaluation is about: the last one given that is no fixed order."""
    names = list(evaluation.models)
    return next((name for name in reversed(names) if name not in (FirstStage.name, GoldFirst.name)), names[-1])


def compare_sides(before: Side, after: Side, *, metrics: Sequence[str] = (), force: bool = False) -> Comparison:
    """Compare two models that were evaluated apart, on the same questions.

    Args:
        before: What the other is measured against.
        after: The other.
        metrics: Only these; all that both have by default.
        force: Compare what is comparable of evaluations that do not agree: the questions that both have in the same
            form, and without the metrics of answers where reader or passages read are not the same.

    Raises:
        ConfigurationError: they do not agree in questions, reader, passages read, retriever, depth or candidates
            (named, each with both values); with `force`, where nothing comparable is left; a metric not both have.
    """
    shared = _shared_questions(before.evaluation, after.evaluation)
    differences = tuple(_differences(before.evaluation, after.evaluation, shared))
    if differences and not force:
        raise ConfigurationError(_refusal(before, after, differences, shared))
    if not shared:
        raise ConfigurationError(_nothing_shared(before, after))
    tests = _tests(before, after, shared, _measured(before, after, differences, metrics))
    if not tests:
        raise ConfigurationError(
            f"Runs '{before.name}' and '{after.name}' have no metric with a value of both on a question"
            f"{_because(differences)}; wanted at least one. Evaluate both models in one go with rankwright eval."
        )
    return Comparison(before, after, shared, tuple(test.metric for test in tests), tests, differences)


def _tests(before: Side, after: Side, shared: Sequence[str], metrics: Sequence[str]) -> tuple[PairedTest, ...]:
    settings, ours = before.evaluation.settings, set(shared)
    tests = []
    for metric in metrics:
        values_a, values_b = (
            {query_id: value for query_id, value in side.result.values.get(metric, {}).items() if query_id in ours}
            for side in (after, before)
        )
        draws = {"resamples": settings.resamples, "permutations": settings.permutations}
        tests.append(paired_test(after.name, before.name, metric, values_a, values_b, seed=settings.seed, **draws))
    return tuple(test for test in tests if test is not None)


def _by_id(evaluation: Evaluation) -> dict[str, Example]:
    return {example.query.query_id: example for example in evaluation.examples}


def _asked(example: Example) -> tuple[Any, ...]:
    """What makes two questions the same: text, accepted answers and labels."""
    return example.query.text, example.answers, dict(example.relevance)


def _shared_questions(before: Evaluation, after: Evaluation) -> tuple[str, ...]:
    others = _by_id(after)
    return tuple(
        query_id
        for query_id, example in _by_id(before).items()
        if query_id in others and _asked(example) == _asked(others[query_id])
    )


def _differences(before: Evaluation, after: Evaluation, shared: Sequence[str]) -> Iterator[Difference]:
    if not len(shared) == before.n == after.n:
        known = f"{len(shared)} shared"
        yield Difference(
            "test questions",
            f"{before.n} of {before.settings.set_name} ({known})",
            f"{after.n} of {after.settings.set_name} ({known})",
        )
    for what, field, reads in (
        ("reader", "reader", True),
        ("passages read", "top_k", True),
        ("retriever", "retriever", False),
        ("depth", "depth", False),
    ):
        values = [str(getattr(evaluation.settings, field)) for evaluation in (before, after)]
        if values[0] != values[1]:
            yield Difference(what, *values, reads=reads)
    if (before.settings.retriever, before.settings.depth) == (after.settings.retriever, after.settings.depth):
        yield from _other_candidates(before, after, shared)


def _other_candidates(before: Evaluation, after: Evaluation, shared: Sequence[str]) -> Iterator[Difference]:
    """Passages that changed under an unchanged name of the retriever, as those of a corpus that grew do."""
    ours, theirs = _by_id(before), _by_id(after)
    other = sum(set(ours[query_id].candidates) != set(theirs[query_id].candidates) for query_id in shared)
    if other:
        found = f"those of {before.settings.set_name}"
        yield Difference("candidates", found, f"others for {other} of {len(shared)} questions")


def _measured(before: Side, after: Side, differences: Sequence[Difference], wanted: Sequence[str]) -> tuple[str, ...]:
    """Metrics that both have and that may be compared, in table order."""
    apart = any(difference.reads for difference in differences)
    both = [metric for metric in before.evaluation.metrics if metric in after.evaluation.metrics]
    both = [metric for metric in both if not (apart and metric in ANSWER_METRICS)]
    unknown = next((metric for metric in wanted if metric not in both), None)
    if unknown is not None:
        raise ConfigurationError(
            f"Metric '{unknown}' cannot be compared between '{before.name}' and '{after.name}'{_because(differences)}; "
            f"wanted one of {', '.join(both) or 'none'}. Leave it out."
        )
    return tuple(metric for metric in both if not wanted or metric in wanted)


def _because(differences: Sequence[Difference]) -> str:
    apart = [difference.what for difference in differences if difference.reads]
    return f" (answers say nothing about each other where {' and '.join(apart)} differ)" if apart else ""


_IN_ONE_GO = "Evaluate both models in one go with rankwright eval"
_SAME_TEST = (
    "Give both runs the same --test FILE (without one, train draws the test questions by --seed), or evaluate both "
    "models in one go with rankwright eval"
)


def _refusal(before: Side, after: Side, differences: Sequence[Difference], shared: Sequence[str]) -> str:
    found = "; ".join(f"{d.what}: {d.before} against {d.after}" for d in differences)
    if not shared:
        return _nothing_shared(before, after)
    advice = f"--force compares what is left: {len(shared)} questions"
    if any(difference.reads for difference in differences):
        advice += ", without the metrics of answers"
    other_questions = any(difference.what == "test questions" for difference in differences)
    step = _SAME_TEST if other_questions else _IN_ONE_GO
    return (
        f"Runs '{before.name}' and '{after.name}' cannot be compared, because they differ in {found}. Wanted two that "
        f"agree in test questions, reader, passages read, retriever, depth and candidates. {step}; {advice}."
    )


def _nothing_shared(before: Side, after: Side) -> str:
    sets = [f"{side.evaluation.n} of {side.evaluation.settings.set_name}" for side in (before, after)]
    return (
        f"Runs '{before.name}' and '{after.name}' share no test question (same id, text, answers and labels): "
        f"{sets[0]} against {sets[1]}; wanted the same ones. --force cannot help. {_SAME_TEST}."
    )


def to_json(comparison: Comparison) -> Mapping[str, Any]:
    """What `rankwright compare --output json` prints, less the outcome for every question."""
    test = comparison.headline_test
    sides = (comparison.before, comparison.after)
    before, after = comparison.means(test.metric)
    return {
        "names": [side.name for side in sides],
        "models": [side.row for side in sides],
        "questions": len(comparison.questions),
        "left_out": comparison.left_out,
        "metric": test.metric,
        "before": before,
        "after": after,
        "tests": comparison.table(),
        "delta_is": "after minus before",
        "differences": [difference._asdict() for difference in comparison.differences],
        "signatures": [side.evaluation.signature_of(test.metric) for side in sides],
    }
