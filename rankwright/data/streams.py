"""Questions with candidates out of files of any size, one at a time and as often as asked, in constant memory.

Rows of JSON lines are read as they come. A TREC run is read query by query, its passages and questions are looked up in
a store on disk (data/store.py). What must hold across rows, every query once, is checked outside of memory too.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from rankwright.data import beir
from rankwright.data.fields import shown
from rankwright.data.files import AnyPath, file_problem, first_line
from rankwright.data.intake import Intake, Sources
from rankwright.data.loading import ROW_FORMATS
from rankwright.data.problems import OR_SKIP, Problem, RowError
from rankwright.data.rows import json_rows, refuse_empty_candidates, text_rows
from rankwright.data.store import PassageStore, SeenIds, file_digest, made_store
from rankwright.data.trec import RunLine, parse_run_line, ranking_of, topics_beside
from rankwright.errors import ConfigurationError, ResourceNotFoundError
from rankwright.types import Example


class ExampleStream:
    """The questions of a file that have candidates, in its order; every `for` is a pass of its own.

    Args:
        path: JSON lines in one of the formats whose rows bring candidates, or a TREC run.
        format: "trec", or a name in ROW_FORMATS.
        corpus: for a run, the passages; a BEIR folder or zip brings the topics too.
        topics: for a run, its questions; else those of the BEIR folder, or topics* or queries* beside the run.
        depth: candidates of a question that are kept; all for None.
        on_bad_row: "error" stops at the first bad row, "skip" leaves bad rows out.
        folder: where the store of a run's passages is kept, or found.

    Raises:
        ConfigurationError: a format that cannot be streamed, or files that do not belong to it.
        DataError: as load_examples; also lines of one query of a run that stand apart.
    """

    def __init__(
        self,
        path: str | Path,
        format: str = "jsonl",
        *,
        folder: str | Path,
        corpus: str | Path | None = None,
        topics: str | Path | None = None,
        depth: int | None = None,
        on_bad_row: str = "error",
    ) -> None:
        self.path, self.format, self.depth = Path(path), format, depth
        self.folder, self._skip = Path(folder), on_bad_row == "skip"
        _check(self.path, format, corpus, topics)
        self._corpus, self._topics = _side_files(self.path, format, corpus, topics)
        self._store: PassageStore | None = None
        self._digests: dict[str, str] | None = None
        self.skipped = 0
        """Bad rows of the last complete pass, and of the files beside it where it made their store."""
        self._told = False

    @property
    def digests(self) -> Mapping[str, str]:
        """What is read: "run" or "data", "corpus", "topics" -> the digest of the file's content."""
        if self._digests is None:
            files = {"run" if self.format == "trec" else "data": self.path}
            files |= {"corpus": self._corpus, "topics": self._topics} if self._corpus and self._topics else {}
            self._digests = {name: file_digest(file) for name, file in files.items()}
        return self._digests

    @property
    def store_path(self) -> Path | None:
        """The store that a pass made or found; None where there is none."""
        return None if self._store is None else self._store.path

    def __iter__(self) -> Iterator[Example]:
        intake = Intake(skip_bad_rows=self._skip, need_answers=False)
        seen = SeenIds()
        try:
            for example in self._run(intake, seen) if self.format == "trec" else self._rows(intake, seen):
                if example.candidates:
                    yield replace(example, candidates=example.candidates[: self.depth])
        finally:
            seen.close()
        self.skipped = intake.skipped
        if not self._told:  # once is enough, and a second pass finds the same
            intake.dataset(self.path)
            self._told = True

    def close(self) -> None:
        """Closes the store; its file stays."""
        if self._store is not None:
            self._store.close()

    def _rows(self, intake: Intake, seen: SeenIds) -> Iterator[Example]:
        form = ROW_FORMATS[self.format]
        for line, row in json_rows(self.path, intake):
            example: Example | None = None
            with intake.row(self.path, line):
                intake.note_fields(self.path, line, row, form.fields, form.nested)
                found = form.parse(row)
                refuse_empty_candidates(row, form, found)
                _check_first(found.query.query_id, seen.before(found.query.query_id, line))
                example = found
            if example is not None:
                yield example

    def _run(self, intake: Intake, seen: SeenIds) -> Iterator[Example]:
        corpus, topics = self._corpus, self._topics
        assert corpus is not None
        assert topics is not None
        if self._store is None:
            key = ("skip" if self._skip else "error", self.digests["corpus"], self.digests["topics"])
            self._store = made_store(self.folder, corpus, topics, key, intake)
        queries, untold, first_untold = 0, 0, ""
        for query_id, lines in _blocks(self.path, intake, seen):
            queries += 1
            example = self._with_passages(query_id, lines, self._store, intake)
            if example is not None:
                yield example
            else:
                untold, first_untold = untold + 1, first_untold or query_id
        if not self._told:
            _warn_of_partners(
                self.path, topics, (queries, untold, first_untold), self._store.topics - queries + untold, intake
            )

    def _with_passages(
        self, query_id: str, lines: list[tuple[int, RunLine]], store: PassageStore, intake: Intake
    ) -> Example | None:
        """The question of these lines with its candidates; None where it has no topic."""
        topic = store.topic(query_id)
        if topic is None:
            return None
        documents = store.documents([found.doc_id for _, found in lines])
        known: list[RunLine] = []
        for line, found in lines:
            with intake.row(self.path, line):
                if found.doc_id not in documents:
                    raise RowError(
                        f"doc_id '{found.doc_id}' of query '{query_id}' is not in the corpus",
                        "one of its passages",
                        "Give the corpus that the run was made from (corpus=..., --corpus FILE).",
                    )
                known.append(found)
        ranking = ranking_of(query_id, known)
        return replace(
            topic,
            candidates=tuple(documents[doc_id] for doc_id in ranking.doc_ids),
            first_stage=dict(zip(ranking.doc_ids, ranking.scores, strict=True)),
        )


def _check(path: Path, format: str, corpus: object, topics: object) -> None:
    if format != "trec" and format not in ROW_FORMATS:
        raise ConfigurationError(
            f"Format is '{format}', whose rows bring no candidates or are one JSON value; wanted one that can be read "
            f"row by row: trec, {', '.join(ROW_FORMATS)}. Give candidates as a run (--run FILE --corpus FILE)."
        )
    given = next((name for name, value in (("corpus", corpus), ("topics", topics)) if value is not None), None)
    if format != "trec" and given is not None:
        raise ConfigurationError(
            f"A {given} file was given with format {format}, whose rows bring their questions and passages; wanted it "
            "with a run. Leave it out."
        )
    if path.exists() and not path.is_file():
        raise ConfigurationError(
            f"'{path}' is not a file that can be read twice; wanted a file on a disk. Write what it gives into one."
        )
    first_line(path)  # a missing or empty file is named before anything else is looked at


def _side_files(
    path: Path, format: str, corpus: str | Path | None, topics: str | Path | None
) -> tuple[AnyPath | None, AnyPath | None]:
    """Corpus and topics of a run."""
    if format != "trec":
        return None, None
    if corpus is None:
        raise ConfigurationError(
            f"The run '{path}' names passages, and no corpus was given; wanted a file with their texts. "
            "Give it (corpus=..., --corpus FILE)."
        )
    place = Path(corpus)
    if not place.exists():
        raise ResourceNotFoundError(f"'{place}' does not exist; wanted a corpus. Check the path.")
    if place.is_dir() or zipfile.is_zipfile(place):
        found = beir.resolve(Sources(place))
        assert isinstance(found.corpus, AnyPath)
        return found.corpus, found.path if topics is None else Path(topics)
    return place, topics_beside(path) if topics is None else Path(topics)


def _check_first(query_id: str, first: int | None) -> None:
    if first is not None:
        raise RowError(
            f"query_id '{query_id}' stands here and in line {first}",
            "every query_id once",
            "Remove or rename one of them.",
        )


def _blocks(path: Path, intake: Intake, seen: SeenIds) -> Iterator[tuple[str, list[tuple[int, RunLine]]]]:
    """(query_id, its lines with their numbers), query by query."""
    first_line(path)
    query_id, block = "", dict[str, tuple[int, RunLine]]()
    for line, text in text_rows(path, intake):
        with intake.row(path, line):
            found = parse_run_line(text)
            if found.query_id != query_id:
                if block:
                    yield query_id, list(block.values())
                query_id, block = found.query_id, {}
                _check_together(path, query_id, seen.before(query_id, line), line)
            if found.doc_id in block:
                raise RowError(
                    f"doc_id '{found.doc_id}' stands twice for query '{query_id}'",
                    "every passage once",
                    f"Correct the line{OR_SKIP}.",
                )
            block[found.doc_id] = (line, found)
    if block:
        yield query_id, list(block.values())


def _check_together(path: Path, query_id: str, first: int | None, line: int) -> None:
    if first is not None:
        raise file_problem(
            path,
            f"query {shown(query_id)} comes back after others; its lines began in line {first}",
            "all lines of a query together",
            "Sort the run by its first column: sort -s -k1,1 RUN > SORTED.",
            line,
        )


def _warn_of_partners(run: Path, topics: AnyPath, of_run: tuple[int, int, str], unranked: int, intake: Intake) -> None:
    """Says which queries of the run have no topic, and how many topics no line in the run: both are left out."""
    queries, untold, first = of_run
    if untold:
        intake.warn(
            Problem(
                str(run),
                0,
                f"{untold} of {queries} queries, for example '{first}', have no topic",
                f"a topic in '{topics}' for every query of the run",
                "Check that run and topics belong together; these queries are left out.",
            )
        )
    if unranked:
        intake.warn(
            Problem(
                str(topics),
                0,
                f"{unranked} topics have no usable line in the run '{run}'",
                "candidates for every one of them",
                "Check that the files belong together; these topics are left out.",
            )
        )
