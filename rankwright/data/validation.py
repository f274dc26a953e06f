"""Look at a data set before anything is spent on it: counts, problems, lengths, and whether answers can be found."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rankwright.data.intake import Dataset
from rankwright.data.loading import read_dataset
from rankwright.data.problems import Problem
from rankwright.metrics.answer import contains_answer
from rankwright.metrics.ranking import has_relevant
from rankwright.types import Example


@dataclass(frozen=True, slots=True)
class Lengths:
    """Smallest, median and largest of some whole numbers; all 0 where there are none."""

    smallest: int
    median: float
    largest: int


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What `rankwright validate` prints."""

    name: str
    questions: int
    """Good rows."""
    skipped: int
    """Bad rows; `problems` says why, one for each."""
    unjudged: int
    """Questions left out because the qrels do not know them."""
    passages: int
    """Size of the corpus, given or pooled."""
    with_candidates: int
    """Questions that bring a candidate list."""
    with_answers: int
    with_labels: int
    """Questions with at least one relevant passage (grade 1 or more)."""
    labels_outside_corpus: int
    """Labelled passages, relevant or not, that the corpus does not hold."""
    answerable_share: float | None
    """Of the questions with answers and candidates, the share with an answer string in one; None if there are none."""
    candidates: Lengths
    """Candidates of a question, over questions that have any."""
    question_words: Lengths
    passage_words: Lengths
    """Words of title and text."""
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """True where at least one question is usable and no row is bad."""
        return self.questions > 0 and not self.problems

    @property
    def unchecked(self) -> str:
        """What could not be checked, and the next step; empty where all was."""
        if self.passages or not self.questions:
            return ""
        return (
            "There are no passages: they could not be checked, nor whether answers and labels are among them. Give "
            "--corpus FILE."
        )

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON output."""
        return {"ok": self.ok, "unchecked": self.unchecked, **dataclasses.asdict(self)}


def validate(
    path: str | Path,
    format: str,
    *,
    qrels: str | Path | None = None,
    corpus: str | Path | None = None,
    topics: str | Path | None = None,
    need_answers: bool = False,
) -> ValidationReport:
    """Read the whole data set, past every bad row, and describe it. Arguments as in load_examples.

    Raises:
        ConfigurationError: Unknown format or option.
        ResourceNotFoundError: A file does not exist.
        DataError: A file is damaged as a whole (empty, broken array, not UTF-8 in one piece).
    """
    dataset = read_dataset(
        path, format, qrels=qrels, corpus=corpus, topics=topics, on_bad_row="skip", need_answers=need_answers
    )
    return describe(dataset)


def describe(dataset: Dataset) -> ValidationReport:
    """The report of a data set that is already loaded."""
    examples = dataset.examples
    known = {document.doc_id for document in dataset.corpus}
    labelled = {doc_id for example in examples for doc_id in example.relevance}
    return ValidationReport(
        name=dataset.name,
        questions=len(examples),
        skipped=dataset.skipped,
        unjudged=dataset.unjudged,
        passages=len(dataset.corpus),
        with_candidates=sum(bool(example.candidates) for example in examples),
        with_answers=sum(bool(example.answers) for example in examples),
        with_labels=sum(has_relevant(example.relevance) for example in examples),
        labels_outside_corpus=len(labelled - known),
        answerable_share=_answerable_share(examples),
        candidates=_lengths(len(example.candidates) for example in examples if example.candidates),
        question_words=_lengths(len(example.query.text.split()) for example in examples),
        passage_words=_lengths(len(f"{document.title} {document.text}".split()) for document in dataset.corpus),
        problems=dataset.problems,
        warnings=dataset.warnings,
    )


def _answerable_share(examples: Iterable[Example]) -> float | None:
    found = [
        any(contains_answer(document.text, example.answers) for document in example.candidates)
        for example in examples
        if example.answers and example.candidates
    ]
    return statistics.fmean(found) if found else None


def _lengths(values: Iterable[int]) -> Lengths:
    numbers = list(values)
    return Lengths(min(numbers), statistics.median(numbers), max(numbers)) if numbers else Lengths(0, 0, 0)
