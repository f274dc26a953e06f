"""The door of the loaders: one function, one table of formats."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from rankwright.data import beir, dpr, jsonl, multihop, rank_llm
from rankwright.data.corpus import read_corpus
from rankwright.data.files import AnyPath, file_problem
from rankwright.data.intake import Dataset, Intake, Sources
from rankwright.data.rows import RowFormat, take_rows
from rankwright.data.squad import take_questions
from rankwright.data.trec import load_trec, read_qrels
from rankwright.errors import ConfigurationError, DataError
from rankwright.types import Document

Loader = Callable[[Sources, Intake], None]


def load_examples(
    path: str | Path,
    format: str,
    *,
    qrels: str | Path | None = None,
    corpus: str | Path | Sequence[Document] | None = None,
    topics: str | Path | None = None,
    on_bad_row: Literal["error", "skip"] | str = "error",
    need_answers: bool = False,
    need_candidates: bool = False,
) -> Dataset:
    """Read a data set in one of the known formats.

    Args:
        path: The file (for beir also the folder or zip, for trec a run or topics). gzip is opened transparently.
        format: A name in FORMATS.
        qrels: Relevance labels, TREC or BEIR. They replace labels of the rows; questions they do not know are left out
            (counted in Dataset.unjudged).
        corpus: The passages to retrieve from, as JSON lines or `doc_id TAB text`, or loaded already.
        topics: For trec, the questions of a run; else topics* or queries* beside it.
        on_bad_row: "error" stops at the first bad row, "skip" leaves bad rows out and counts them.
        need_answers: True where a reader will be asked: a question without answers is then a bad row.
        need_candidates: True where no retriever will run: a question without candidates is then a bad row.

    Returns:
        The examples with everything the source knows: candidates best first, answers, relevance. A doc_id means the
        same passage everywhere in the data set; sources without ids get a hash of title and text.

    Raises:
        ConfigurationError: Unknown format or option.
        ResourceNotFoundError: A file does not exist.
        DataError: A bad row (with file and line) while on_bad_row is "error"; a damaged file; no usable row.
    """
    dataset = read_dataset(
        path,
        format,
        qrels=qrels,
        corpus=corpus,
        topics=topics,
        on_bad_row=on_bad_row,
        need_answers=need_answers,
        need_candidates=need_candidates,
    )
    if not dataset.examples:
        raise file_problem(path, *_nothing_left(dataset))
    return dataset


def read_dataset(
    path: str | Path,
    format: str,
    *,
    qrels: str | Path | None,
    corpus: str | Path | Sequence[Document] | None,
    topics: str | Path | None,
    on_bad_row: str,
    need_answers: bool,
    need_candidates: bool = False,
) -> Dataset:
    """load_examples without its last check: the data set may come out empty."""
    if format not in FORMATS:
        raise ConfigurationError(f"Format {format!r} is unknown; wanted one of {', '.join(FORMATS)}. {_guess(format)}")
    if on_bad_row not in ("error", "skip"):
        raise ConfigurationError(f"on_bad_row is {on_bad_row!r}; wanted 'error' or 'skip'. Choose one of them.")
    if topics is not None and format != "trec":
        raise ConfigurationError(f"topics were given with format {format}; wanted format trec. Leave them out.")
    intake = Intake(skip_bad_rows=on_bad_row == "skip", need_answers=need_answers, need_candidates=need_candidates)
    passages = _path(corpus) if corpus is None or isinstance(corpus, str | Path) else corpus
    sources = Sources(Path(path), _path(qrels), passages, _path(topics))
    FORMATS[format](sources, intake)
    return intake.dataset(Path(path))


def _rows(row_format: RowFormat) -> Loader:
    """The loader of a format whose rows are questions."""

    def load(sources: Sources, intake: Intake) -> None:
        _take_side_files(sources, intake)
        take_rows(sources.path, row_format, intake)

    return load


def _load_beir(sources: Sources, intake: Intake) -> None:
    _rows(beir.FORMAT)(beir.resolve(sources), intake)


def _load_trec(sources: Sources, intake: Intake) -> None:
    _take_side_files(sources, intake)
    load_trec(sources, intake)


def _load_squad(sources: Sources, intake: Intake) -> None:
    _take_side_files(sources, intake)
    take_questions(sources.path, intake)


def _take_side_files(sources: Sources, intake: Intake) -> None:
    if isinstance(sources.corpus, AnyPath):
        intake.give_corpus(read_corpus(sources.corpus, intake))
    elif sources.corpus is not None:
        intake.give_corpus(_by_id(sources.corpus))
    if sources.qrels is not None:
        intake.relevance = read_qrels(sources.qrels, intake)


def _by_id(documents: Sequence[Document]) -> dict[str, Document]:
    """A corpus that is loaded already, with what holds for a file of one."""
    found = {document.doc_id: document for document in documents}
    if not found:
        raise DataError("The corpus given has no document; wanted at least one. Leave it out, or name a file.")
    if len(found) < len(documents):
        twice, times = Counter(document.doc_id for document in documents).most_common(1)[0]
        raise DataError(f"doc_id '{twice}' stands {times} times in the corpus given; wanted every doc_id once.")
    return found


ROW_FORMATS: Mapping[str, RowFormat] = MappingProxyType(
    {
        "jsonl": jsonl.FORMAT,
        "hotpotqa": multihop.HOTPOTQA,
        "2wiki": multihop.HOTPOTQA,
        "musique": multihop.MUSIQUE,
        "dpr": dpr.FORMAT,
        "rank_llm": rank_llm.FORMAT,
    }
)
"""Formats whose rows are questions with their candidates."""
FORMATS: Mapping[str, Loader] = MappingProxyType(
    {
        "jsonl": _rows(jsonl.FORMAT),
        "hotpotqa": _rows(multihop.HOTPOTQA),
        "2wiki": _rows(multihop.HOTPOTQA),
        "musique": _rows(multihop.MUSIQUE),
        "dpr": _rows(dpr.FORMAT),
        "squad": _load_squad,
        "beir": _load_beir,
        "trec": _load_trec,
        "rank_llm": _rows(rank_llm.FORMAT),
    }
)
"""Every format by the name that --format takes."""


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _guess(format: str) -> str:
    names = difflib.get_close_matches(str(format), FORMATS, n=1, cutoff=0.5)
    return f"Did you mean '{names[0]}'?" if names else "Choose the one that the file is written in."


def _nothing_left(dataset: Dataset) -> tuple[str, str, str]:
    """Found, wanted, next step for a data set without examples."""
    if dataset.problems:
        found = f"no usable question, {dataset.skipped} bad row(s) skipped (the first: {dataset.problems[0]})"
        return found, "at least one question", "Check that the format is the one of the file."
    if dataset.unjudged:
        found = f"no question with relevance labels, {dataset.unjudged} without"
        return found, "labels for the same query_ids", "Check that the qrels belong to these questions."
    return "no question", "at least one", "Check that the format is the one of the file."
