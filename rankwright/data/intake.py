"""Where rows become a Dataset: the bad-row policy, and everything that must hold across rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rankwright.data.fields import Row, content_id, has_content_id, shown
from rankwright.data.files import AnyPath
from rankwright.data.problems import OR_SKIP, Problem, RowError
from rankwright.errors import DataError
from rankwright.types import Document, Example

logger = logging.getLogger("rankwright.data")


@dataclass(frozen=True, slots=True)
class Dataset:
    """The examples of one file or folder, and the corpus they belong to."""

    name: str
    """File stem; the set's name in signatures."""
    examples: tuple[Example, ...]
    corpus: tuple[Document, ...]
    """The corpus that was given, else the candidates of all questions of the file, also of the unjudged ones, each
    passage once; may be empty."""
    skipped: int
    """Rows left out because they were bad (all files together)."""
    problems: tuple[Problem, ...]
    """Why they were left out, one for each."""
    warnings: tuple[Problem, ...] = ()
    """Noteworthy things that left every row in: unknown fields, a corpus of one passage, labels that point nowhere."""
    unjudged: int = 0
    """Questions left out because the relevance file that was given does not know them."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The files of one data set."""

    path: AnyPath
    qrels: AnyPath | None = None
    corpus: AnyPath | Sequence[Document] | None = None
    topics: AnyPath | None = None


class Intake:
    """Collects the examples of one data set, row by row."""

    def __init__(self, *, skip_bad_rows: bool, need_answers: bool, need_candidates: bool = False) -> None:
        self.relevance: Mapping[str, Mapping[str, int]] | None = None
        """Labels of a qrels file; they replace those of the rows and choose the questions."""
        self._skip_bad_rows = skip_bad_rows
        self._need_answers = need_answers
        self._need_candidates = need_candidates
        self._corpus: dict[str, Document] | None = None
        self._by_content: dict[str, Document] | None = None
        self._pool: dict[str, Document] = {}
        self._examples: list[Example] = []
        self._query_lines: dict[str, int] = {}
        self._unjudged = 0
        self._problems: list[Problem] = []
        self._unknown: dict[str, dict[str, int]] = {}
        self._warnings: list[Problem] = []

    @contextmanager
    def row(self, file: object, line: int) -> Iterator[None]:
        """Work on one row: a RowError inside ends the load with its place, or is counted where bad rows are skipped."""
        try:
            yield
        except RowError as error:
            problem = error.at(file, line)
            if not self._skip_bad_rows:
                raise DataError(str(problem)) from None
            # The advice to leave bad rows out was taken.
            self._problems.append(replace(problem, next_step=problem.next_step.replace(OR_SKIP, "")))

    def note_fields(
        self,
        file: object,
        line: int,
        row: Row,
        known: frozenset[str],
        nested: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        """Remember fields nobody reads, also of the objects that stand in the nested fields, alone or in a list; each
        file gets one warning for all of them."""
        names = [name for name in row if name not in known]
        for field, inner in (nested or {}).items():
            value = row.get(field)
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, dict):
                    names += [f"{field}.{name}" for name in part if name not in inner]
        for name in names:
            self._unknown.setdefault(str(file), {}).setdefault(name, line)

    @property
    def skipped(self) -> int:
        """Bad rows so far."""
        return len(self._problems)

    def warn(self, problem: Problem) -> None:
        """Report something that leaves the rows in."""
        self._warnings.append(problem)
        logger.warning("%s", problem)

    @property
    def corpus(self) -> Mapping[str, Document] | None:
        """The corpus by doc_id; None while none was given."""
        return self._corpus

    def give_corpus(self, documents: dict[str, Document]) -> None:
        """The corpus that candidates are checked against; before the first example."""
        self._corpus = documents

    def add(self, example: Example, line: int) -> None:
        """Take one example. Raises RowError where it contradicts an earlier row or lacks what is needed."""
        query_id = example.query.query_id
        if query_id in self._query_lines:
            named_by_text = query_id == content_id("", example.query.text)
            subject = f"the question {shown(example.query.text)}" if named_by_text else f"query_id '{query_id}'"
            raise RowError(
                f"{subject} stands here and in line {self._query_lines[query_id]}",
                "every question once, or a query_id of its own for each" if named_by_text else "every query_id once",
                "Remove or rename one of them.",
            )
        judged = self.relevance is None or query_id in self.relevance
        if judged:
            self._check_needs(example)
        example = self._with_corpus_ids(example)
        for document in example.candidates:
            self._check_identity(document)
        candidates = tuple(self._pool.setdefault(d.doc_id, self._known(d.doc_id) or d) for d in example.candidates)
        if not judged:  # its passages are there to be found for other questions
            self._unjudged += 1
            return
        relevance = example.relevance if self.relevance is None else self.relevance[query_id]
        self._query_lines[query_id] = line
        self._examples.append(replace(example, candidates=candidates, relevance=relevance))

    def _check_needs(self, example: Example) -> None:
        """Raises RowError where a reader or a reranker would miss something."""
        query_id = example.query.query_id
        if self._need_answers and not example.answers:
            raise RowError(
                f"question '{query_id}' has no answer",
                "at least one accepted answer, because a reader is asked",
                "Add answers, or leave the reader out: eval --reader none, train --method supervised --reader none.",
            )
        if self._need_candidates and not example.candidates:
            raise RowError(
                f"candidate list of query '{query_id}' is empty",
                "at least one passage, because candidates are taken as given",
                "Add passages, or take --retriever bm25.",
            )

    def dataset(self, path: Path) -> Dataset:
        """What was collected, after the checks that need all rows; warnings are logged here."""
        self._warn_of_unknown_fields()
        corpus = tuple((self._pool if self._corpus is None else self._corpus).values())
        if len(corpus) == 1:
            self.warn(
                Problem(str(path), 0, "the corpus holds one passage", "two or more to put in order", "Add passages.")
            )
        self._warn_of_foreign_labels(path)
        if self._problems:
            logger.warning("%d bad row(s) skipped; the first: %s", len(self._problems), self._problems[0])
        if self._unjudged:
            logger.info("%d question(s) without relevance labels left out", self._unjudged)
        return Dataset(
            name=_stem(path),
            examples=tuple(self._examples),
            corpus=corpus,
            skipped=len(self._problems),
            problems=tuple(self._problems),
            warnings=tuple(self._warnings),
            unjudged=self._unjudged,
        )

    def _known(self, doc_id: str) -> Document | None:
        """The document of the corpus or of an earlier row with this id."""
        return (self._corpus or {}).get(doc_id) or self._pool.get(doc_id)

    def _check_identity(self, document: Document) -> None:
        """One id, one passage: labels, caches and runs all rely on it."""
        known = self._known(document.doc_id)
        if known is not None and known != document:
            raise RowError(
                f"doc_id '{document.doc_id}' is {shown(document.text)} here and {shown(known.text)} elsewhere",
                "one id for one passage (title and text)",
                "Give one of the two passages another id.",
            )

    def _with_corpus_ids(self, example: Example) -> Example:
        """Passages without an id of their own take the id of the same passage in the corpus, labels included."""
        if self._corpus is None:
            return example
        renamed = {document.doc_id: self._same_in_corpus(document) for document in example.candidates}
        ids = {old: new.doc_id for old, new in renamed.items()}
        return replace(
            example,
            candidates=tuple(renamed[document.doc_id] for document in example.candidates),
            relevance={ids.get(doc_id, doc_id): grade for doc_id, grade in example.relevance.items()},
            first_stage={ids.get(doc_id, doc_id): score for doc_id, score in example.first_stage.items()},
            order=tuple(dict.fromkeys(ids.get(doc_id, doc_id) for doc_id in example.order)),
        )

    def _same_in_corpus(self, document: Document) -> Document:
        corpus = self._corpus or {}
        if document.doc_id in corpus or not has_content_id(document):
            return document
        if self._by_content is None:  # made late: most data sets bring ids of their own
            self._by_content = {content_id(known.title, known.text): known for known in corpus.values()}
        return self._by_content.get(document.doc_id, document)

    def _warn_of_unknown_fields(self) -> None:
        for file, lines in self._unknown.items():
            names = ", ".join(f"'{name}'" for name in sorted(lines))
            self.warn(
                Problem(
                    file,
                    min(lines.values()),
                    f"unknown field(s) {names}",
                    "only fields of this format",
                    "They are ignored and the rows stay; check the spelling if one should have been read."
                    + _other_format(set(lines)),
                )
            )

    def _warn_of_foreign_labels(self, path: Path) -> None:
        """Labels that all point outside the corpus make every ranking metric 0 without any other sign."""
        labelled = {doc_id for example in self._examples for doc_id in example.relevance}
        if self._corpus is not None and labelled and labelled.isdisjoint(self._corpus):
            self.warn(
                Problem(
                    str(path),
                    0,
                    f"none of the {len(labelled)} labelled doc_ids, for example '{min(labelled)}', is in the corpus",
                    "labels for passages of the corpus",
                    "Check that corpus and labels use the same ids.",
                )
            )


def _stem(path: Path) -> str:
    """`questions` for questions.jsonl.gz; the name itself for a folder."""
    return path.name if path.is_dir() else Path(path.name.removesuffix(".gz")).stem


TELLTALE_FIELDS = {
    "hotpotqa": {"context", "supporting_facts"},
    "musique": {"paragraphs", "question_decomposition"},
    "dpr": {"ctxs"},
    "rank_llm": {"hits"},
}
"""Format -> fields by which its rows are known."""


def _other_format(names: set[str]) -> str:
    """A hint where unknown fields are those of another format."""
    likely = next((format for format, fields in TELLTALE_FIELDS.items() if fields <= names), None)
    return f" Rows with these fields are mostly of the format {likely}: --format {likely}." if likely else ""
