"""TREC files: runs (`query_id Q0 doc_id rank score tag`), relevance labels (qrels) and topics."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rankwright.data import jsonl
from rankwright.data.fields import Row, answers_field, checked_text, identifier, required_id, shown, text_field
from rankwright.data.files import AnyPath, first_line, write_lines
from rankwright.data.intake import Intake, Sources
from rankwright.data.problems import OR_SKIP, Problem, RowError
from rankwright.data.rows import json_rows, text_rows
from rankwright.errors import ConfigurationError, DataError
from rankwright.types import Document, Example, Query, Ranking

_RUN_COLUMNS = "six columns: query_id Q0 doc_id rank score tag"
_QRELS_COLUMNS = "query_id 0 doc_id grade (TREC) or query-id TAB corpus-id TAB score (BEIR)"
_FIX_LINE = f"Correct the line{OR_SKIP}."
_TOPIC_NAMES = ("topics*", "queries*")


@dataclass(frozen=True, slots=True)
class RunLine:
    """One line of a run."""

    query_id: str
    doc_id: str
    rank: int
    score: float


def parse_run_line(line: str) -> RunLine:
    """One line of a run. The tag may be missing."""
    columns = line.split()
    if len(columns) not in (5, 6):
        raise RowError(f"{shown(line)} has {len(columns)} column(s)", _RUN_COLUMNS, _FIX_LINE)
    query_id, _, doc_id, rank, score = columns[:5]
    try:
        found = RunLine(query_id, doc_id, int(rank), float(score))
    except ValueError:
        raise RowError(
            f"rank {shown(rank)} and score {shown(score)}", "a whole number and a number", _FIX_LINE
        ) from None
    if math.isnan(found.score):
        raise RowError(f"the score of '{doc_id}' is not a number", "a number to sort by", _FIX_LINE)
    return found


def parse_qrels_line(line: str) -> tuple[str, str, int]:
    """(query_id, doc_id, grade) of one line of TREC qrels or of BEIR's tab-separated qrels."""
    columns = line.split()
    if len(columns) not in (3, 4):
        raise RowError(f"{shown(line)} has {len(columns)} column(s)", _QRELS_COLUMNS, _FIX_LINE)
    try:
        return columns[0], columns[-2], int(columns[-1])
    except ValueError:
        raise RowError(f"grade {shown(columns[-1])}", "a whole number", _FIX_LINE) from None


def read_qrels(path: AnyPath, intake: Intake) -> dict[str, dict[str, int]]:
    """query_id -> doc_id -> grade. BEIR's header line is passed over; the same pair with two grades is a bad row."""
    first_line(path)  # an empty file is an error
    relevance: dict[str, dict[str, int]] = defaultdict(dict)
    first = True
    for line, text in text_rows(path, intake):
        header, first = first and text.split()[-1:] == ["score"], False
        if header:
            continue
        with intake.row(path, line):
            query_id, doc_id, grade = parse_qrels_line(text)
            if relevance[query_id].setdefault(doc_id, grade) != grade:
                raise RowError(
                    f"'{doc_id}' has grade {grade} for query '{query_id}' and {relevance[query_id][doc_id]} before",
                    "one grade for a pair",
                    _FIX_LINE,
                )
    return dict(relevance)


def read_trec_run(path: str | Path) -> list[Ranking]:
    """The rankings of a run in the order in which the queries first appear; a line that is not a run's is a DataError.

    The score decides the order, as in trec_eval; equal scores stay in the order of the rank column.
    """
    intake = Intake(skip_bad_rows=False, need_answers=False)
    by_query: dict[str, list[RunLine]] = defaultdict(list)
    for _, found in _run_lines(Path(path), intake):
        by_query[found.query_id].append(found)
    return [ranking_of(query_id, lines) for query_id, lines in by_query.items()]


def write_trec_run(path: str | Path, rankings: Iterable[Ranking], tag: str = "rankwright") -> None:
    """Write rankings as a TREC run (gzip where the name ends in .gz), each as `trec_run_lines` says.

    Raises DataError for an id or a tag with white space, StorageError where the file cannot be written.
    """
    write_lines(path, (line for ranking in rankings for line in trec_run_lines(ranking, tag)))


def trec_run_lines(ranking: Ranking, tag: str = "rankwright") -> Iterator[str]:
    """The lines of one ranking in a TREC run.

    Evaluation tools sort a run by score and break ties in ways of their own. So the raw scores are written where they
    fall strictly from line to line, and n, n - 1, ..., 1 where they do not: the run always reads back in the order of
    the ranking. Raises DataError for an id or a tag with white space.
    """
    for value in (ranking.query_id, tag, *ranking.doc_ids):
        if value.split() != [value]:
            raise DataError(f"{shown(value)} cannot stand in a TREC run; wanted an id without white space. Rename it.")
    falling = all(a > b for a, b in zip(ranking.scores, ranking.scores[1:], strict=False))
    count = len(ranking.doc_ids)
    for rank, (doc_id, score) in enumerate(zip(ranking.doc_ids, ranking.scores, strict=True), start=1):
        yield f"{ranking.query_id} Q0 {doc_id} {rank} {float(score) if falling else count + 1 - rank} {tag}"


def load_trec(sources: Sources, intake: Intake) -> None:
    """Questions from topics, candidates from a run (if one is given), passages from the corpus.

    The path is a run or a topics file. With a run, the topics are named or stand in its folder as topics* or queries*.
    The run chooses the questions: a topics file, and labels, often serve several runs.
    """
    run, topics = _run_and_topics(sources)
    if run is not None:
        _load_run(run, topics, intake)
        return
    for line, parse in topics_of(topics, intake):
        with intake.row(topics, line):
            intake.add(parse(), line)


def _load_run(run: AnyPath, topics: AnyPath, intake: Intake) -> None:
    candidates = _candidates(run, intake)
    seen: set[str] = set()
    for line, parse in topics_of(topics, intake):
        with intake.row(topics, line):
            example = parse()
            query_id = example.query.query_id
            seen.add(query_id)
            if query_id in candidates:
                documents, first_stage = candidates[query_id]
                intake.add(replace(example, candidates=documents, first_stage=first_stage), line)
    _warn_of_partners(run, topics, candidates.keys(), seen, intake)


def _warn_of_partners(run: AnyPath, topics: AnyPath, in_run: Set[str], in_topics: Set[str], intake: Intake) -> None:
    """Says which queries of the run have no topic, and which topics have no line in the run: left out unseen, they
    would change the mean of every metric."""
    untold = sorted(in_run - in_topics)
    if untold:
        intake.warn(
            Problem(
                str(run),
                0,
                f"{len(untold)} of {len(in_run)} queries, for example '{untold[0]}', have no topic",
                f"a topic in '{topics}' for every query of the run",
                "Check that run and topics belong together; these queries are left out.",
            )
        )
    wanted = in_topics if intake.relevance is None else in_topics & intake.relevance.keys()
    unranked = sorted(wanted - in_run)
    if unranked:
        kind = "topics" if intake.relevance is None else "topics with labels"
        intake.warn(
            Problem(
                str(topics),
                0,
                f"{len(unranked)} of {len(wanted)} {kind}, for example '{unranked[0]}', have no usable line in the "
                f"run '{run}'",
                "candidates for every one of them",
                "Check that the files belong together; these topics are left out, and no mean counts them.",
            )
        )


def _run_lines(path: AnyPath, intake: Intake) -> Iterator[tuple[int, RunLine]]:
    """(line, content) of every good line; the same passage twice for one query is a bad row."""
    first_line(path)
    seen: set[tuple[str, str]] = set()
    for line, text in text_rows(path, intake):
        found: RunLine | None = None
        with intake.row(path, line):
            parsed = parse_run_line(text)
            if (parsed.query_id, parsed.doc_id) in seen:
                raise RowError(
                    f"doc_id '{parsed.doc_id}' stands twice for query '{parsed.query_id}'",
                    "every passage once",
                    _FIX_LINE,
                )
            found = parsed
        if found is not None:
            seen.add((found.query_id, found.doc_id))
            yield line, found


def ranking_of(query_id: str, lines: Sequence[RunLine]) -> Ranking:
    """The lines of one query in order: by falling score, equal scores by rank."""
    ordered = sorted(lines, key=lambda line: (-line.score, line.rank))
    return Ranking(query_id, tuple(line.doc_id for line in ordered), tuple(line.score for line in ordered))


def _candidates(run: AnyPath, intake: Intake) -> dict[str, tuple[tuple[Document, ...], dict[str, float]]]:
    """Passages of every query of the run, best first, and their scores by doc_id."""
    corpus = intake.corpus
    if corpus is None:
        raise ConfigurationError(
            f"The run '{run}' names passages, and no corpus was given; wanted a file with their texts. "
            "Give it (corpus=..., --corpus FILE)."
        )
    by_query: dict[str, list[RunLine]] = defaultdict(list)
    for line, found in _run_lines(run, intake):
        with intake.row(run, line):
            if found.doc_id not in corpus:
                raise RowError(
                    f"doc_id '{found.doc_id}' of query '{found.query_id}' is not in the corpus",
                    f"one of its {len(corpus)} passages",
                    "Give the corpus that the run was made from (corpus=..., --corpus FILE).",
                )
            by_query[found.query_id].append(found)
    rankings = [ranking_of(query_id, lines) for query_id, lines in by_query.items()]
    return {
        found.query_id: (
            tuple(corpus[doc_id] for doc_id in found.doc_ids),
            dict(zip(found.doc_ids, found.scores, strict=True)),
        )
        for found in rankings
    }


def topics_of(path: AnyPath, intake: Intake) -> Iterator[tuple[int, Callable[[], Example]]]:
    """(line, parser of that line) of `query_id TAB text`, of BEIR's JSON lines, or of ours."""
    if first_line(path).lstrip()[:1] in (b"{", b"["):
        for line, row in json_rows(path, intake):
            yield line, partial(parse_topic, row)
    else:
        for line, text in text_rows(path, intake):
            yield line, partial(_tab_topic, text)


def _tab_topic(line: str) -> Example:
    query_id, tab, text = line.partition("\t")
    if not tab or not text.strip():
        raise RowError(
            f"{shown(line)} is no topic",
            "query_id TAB question",
            "Write topics as two columns with a tab between them.",
        )
    return Example(Query(identifier(query_id, "query_id"), checked_text(text, "question")))


def parse_topic(row: Row) -> Example:
    """One line of BEIR's queries.jsonl, or of a file of questions; `answers` is read where somebody added it."""
    if "question" in row:
        return replace(jsonl.parse_row(row), candidates=())
    query_id = required_id(row, "_id", "id", "query_id")
    return Example(Query(query_id, text_field(row, "text")), answers=answers_field(row, "answers"))


def _run_and_topics(sources: Sources) -> tuple[AnyPath | None, AnyPath]:
    if sources.topics is None and not _is_run(sources.path):
        return None, sources.path
    return sources.path, sources.topics or topics_beside(sources.path)


def _is_run(path: AnyPath) -> bool:
    try:
        parse_run_line(first_line(path).decode(errors="replace"))
    except RowError:
        return False
    return True


def topics_beside(run: AnyPath) -> AnyPath:
    """The one file topics* or queries* in the folder of a run."""
    folder = Path(str(run)).parent
    found = sorted({path for name in _TOPIC_NAMES for path in folder.glob(name) if path.is_file()})
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ConfigurationError(
            f"The run '{run}' needs its questions; found {names} in its folder, wanted one file topics* or queries*. "
            "Name it (topics=..., --topics FILE) or put it beside the run."
        )
    return found[0]
