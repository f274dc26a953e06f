"""Reranking on the machines of a Ray cluster: a stage of Ray Data for datasets, ordered actors for `rerank --ray`.

    import ray
    from rankwright.batch import rerank_dataset
    rows = ray.data.read_parquet("s3://.../candidates")          # query_id, question, candidates
    rerank_dataset(rows, "runs/first/model", workers=8).write_parquet("s3://.../reranked")

Every worker is an actor that opens the model once. Ray starts a worker that died anew and gives it again what it had
not answered; results are those of one process.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rankwright.bulk import Batch, Failure, Ranked, check_backend, check_failed, rank_each
from rankwright.data.fields import ID_FIELDS, id_field, object_of, passage
from rankwright.data.jsonl import parse_row
from rankwright.data.problems import RowError
from rankwright.errors import ConfigurationError, MissingDependencyError, RankwrightError
from rankwright.types import Example, Ranking, Reranker, RerankRequest

if TYPE_CHECKING:
    import pyarrow
    from ray.data import Dataset

Make = Callable[[], Reranker]
"""Makes the reranker of a worker; it travels there."""
QUESTIONS_AT_ONCE = 32
RETRIES = 3
"""How often a batch is given to a worker again that died over it: a batch may be what it dies of."""


class Cut(NamedTuple):
    """What a worker could not read whole, so that the one who asked can say so."""

    pairs: int
    cut: int
    first: str
    max_length: int


class RerankStage:
    """What a worker does with its questions. The model is opened at the first of them, once.

    Args:
        model: as `rankwright.load` takes it, reachable from every machine; or what makes a reranker.
        load: further options of `rankwright.load`, such as backend.
        top_k: keep only the best candidates; all for None.
        max_failed: questions that may fail in this worker before it raises.
    """

    def __init__(
        self,
        model: str | Make,
        load: Mapping[str, Any] | None = None,
        *,
        top_k: int | None = None,
        max_failed: int = 10,
    ) -> None:
        self._model, self._load = model, dict(load or {})
        self._top_k, self._max_failed = top_k, max_failed
        self._failed: list[Failure] = []

    @cached_property
    def _reranker(self) -> Reranker:
        if callable(self._model):
            return self._model()
        from rankwright.rerankers import load

        return load(self._model, **self._load)

    def rank(self, requests: Sequence[RerankRequest]) -> tuple[list[Ranked], Cut]:
        """One result for each request, and what was cut to fit."""
        before = self._cut()
        found, after = rank_each(self._reranker, requests), self._cut()
        return found, after._replace(pairs=after.pairs - before.pairs, cut=after.cut - before.cut)

    def _cut(self) -> Cut:
        counts = {"pairs_seen": 0, "pairs_cut": 0, "first_cut": "", "max_length": 0}
        return Cut(*(getattr(self._reranker, name, none) for name, none in counts.items()))

    def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
        """A block of rows in our own format with the candidates of each best first, `score` the reranker's, and a
        column `error`: empty, or why the row has no ranking; its candidates then stay as they are, without scores."""
        fields, rows = _candidate_fields(block), block.to_pylist()
        answers = self._answers(rows)
        failed = [one for one in answers if isinstance(one, Failure)]
        self._failed += failed
        check_failed(len(self._failed), self._max_failed, failed)
        candidates = [self._candidates(row, one) for row, one in zip(rows, answers, strict=True)]
        errors = [one.error if isinstance(one, Failure) else "" for one in answers]
        return _with_results(block, fields, candidates, errors)

    def _answers(self, rows: Sequence[Mapping[str, Any]]) -> list[Ranked]:
        read = [_example(row) for row in rows]
        requests = [RerankRequest(e.query, e.candidates, e.first_stage) for e in read if isinstance(e, Example)]
        found = iter(self.rank(requests)[0] if requests else ())
        return [next(found) if isinstance(one, Example) else one for one in read]

    def _candidates(self, row: Mapping[str, Any], answer: Ranked) -> list[Mapping[str, Any]]:
        if not isinstance(answer, Ranking):
            return [{**candidate, "score": None} for candidate in row.get("candidates") or ()]
        by_id = {passage(candidate).doc_id: candidate for candidate in reversed(row["candidates"])}
        best = answer.best(self._top_k)
        found = zip(best.doc_ids, best.scores, strict=True)
        return [{**_named(by_id[doc_id], doc_id), "score": score} for doc_id, score in found]


def _example(row: Mapping[str, Any]) -> Example | Failure:
    """A row as a question with candidates, or why it is none."""
    known = {
        name: row[name] for name in ("query_id", "_id", "id", "question", "candidates") if row.get(name) is not None
    }
    try:
        for candidate in known.get("candidates", ()):
            object_of(candidate, "candidate")
        example = parse_row(known)
        if example.candidates:
            return example
        raise RowError("field 'candidates' is empty", "at least one passage", "Add passages, or leave the row out.")
    except RowError as error:
        return Failure(str(row.get("query_id") or row.get("_id") or row.get("id") or "?"), str(error))


def _named(candidate: Mapping[str, Any], doc_id: str) -> Mapping[str, Any]:
    if id_field(candidate, *ID_FIELDS) is not None:
        return candidate
    return {**candidate, next((name for name in ID_FIELDS if name in candidate), "doc_id"): doc_id}


def _candidate_fields(block: pyarrow.Table) -> dict[str, Any]:
    """Types of a candidate's fields in the result. They come from the block and not from its values, so that all blocks
    have the same."""
    import pyarrow as pa

    held = block.schema.field("candidates").type if "candidates" in block.schema.names else None
    inner = getattr(held, "value_type", None)
    if inner is None or not pa.types.is_struct(inner):
        raise ConfigurationError(
            f"The dataset has the columns {', '.join(f'{field.name} ({field.type})' for field in block.schema)}; "
            "wanted query_id, question and candidates, a list of objects with text, title and doc_id. Rename or make "
            "them."
        )
    fields = {field.name: field.type for field in inner}
    if not set(ID_FIELDS) & set(fields):
        fields["doc_id"] = pa.string()
    return {**fields, "score": pa.float64()}


def _with_results(
    block: pyarrow.Table,
    fields: Mapping[str, Any],
    candidates: Sequence[Sequence[Mapping[str, Any]]],
    errors: Sequence[str],
) -> pyarrow.Table:
    """The block with these columns; every other one stays as it is."""
    import pyarrow as pa

    column = pa.array(candidates, pa.list_(pa.struct(list(fields.items()))))
    position = block.schema.get_field_index("candidates")
    return block.set_column(position, "candidates", column).append_column("error", pa.array(errors, pa.string()))


def rerank_dataset(
    rows: Dataset,
    model: str | Path | Make = "reference",
    *,
    workers: int = 2,
    top_k: int | None = None,
    max_failed: int = 10,
    questions_at_once: int = QUESTIONS_AT_ONCE,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    **load: Any,
) -> Dataset:
    """A dataset of questions with their candidates reranked, by a stage of Ray Data; nothing runs before it is read.

    Args:
        rows: columns query_id, question and candidates, a list of objects with text, title, doc_id; further columns,
            and further fields of candidates, stay.
        model: as `rankwright.load` takes it, reachable from every machine; or a function that makes a reranker.
        workers: actors, each with the model in its memory.
        top_k: keep only the best candidates; all for None.
        max_failed: questions that may fail in one worker; their rows have the reason in the column `error`.
        questions_at_once: rows that a worker takes at once.
        cpus_per_worker: of the cluster, which gives an actor so many threads.
        gpus_per_worker: of the cluster; with device="cuda".
        load: further options of `rankwright.load`, such as backend, by name and not "auto".

    Returns:
        The dataset with candidates best first, their `score` the reranker's, and a column `error`.

    Raises:
        ConfigurationError: the backend is "auto".
    """
    check_backend(load.get("backend", ""))
    ray = ray_data()
    return rows.map_batches(
        RerankStage,
        fn_constructor_args=(str(model) if isinstance(model, Path) else model, load),
        fn_constructor_kwargs={"top_k": top_k, "max_failed": max_failed},
        batch_format="pyarrow",
        batch_size=questions_at_once,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=cpus_per_worker,
        num_gpus=gpus_per_worker or None,
    )


class RayScore:
    """Scores batches by actors, in the order in which they come: what `rerank --ray` gives to `write_rankings`.

    Each batch goes whole to one actor, so rankings are those of one process. At most four batches of every worker are
    on their way.
    """

    def __init__(self, model: str | Make, workers: int, *, name: str = "reranker", cpus: float = 1) -> None:
        self.name = name
        self.pairs_seen = self.pairs_cut = self.max_length = 0
        self.first_cut = ""
        self._workers, self._model, self._cpus = workers, model, cpus

    @property
    def share_cut(self) -> float:
        """Share of pairs that were cut to fit, as far as workers told of them."""
        return self.pairs_cut / self.pairs_seen if self.pairs_seen else 0.0

    def __call__(self, found: Iterable[Batch]) -> Iterator[Sequence[Ranked]]:
        """The results of each batch."""
        import ray

        made = ray.remote(RerankStage).options(num_cpus=self._cpus, max_restarts=-1, max_task_retries=RETRIES)
        actors: list[Any] = [made.remote(self._model) for _ in range(self._workers)]
        free, running, order = deque(actors * 2), dict[Any, Any](), deque[tuple[Any, Batch]]()
        try:
            for batch in found:
                if not free:
                    (ready, *_), _ = ray.wait([*running])
                    free.append(running.pop(ready))
                actor = free.popleft()
                result = actor.rank.remote(batch.requests)
                order.append((result, batch))
                running[result] = actor
                while order and (len(order) >= 4 * self._workers or order[0][0] not in running):
                    yield self._taken(*order.popleft())
            while order:
                yield self._taken(*order.popleft())
        finally:
            for actor in actors:
                ray.kill(actor)

    def _taken(self, result: Any, batch: Batch) -> Sequence[Ranked]:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        try:
            ranked, cut = ray.get(result)
        except RayTaskError as error:
            raise error.cause from error  # ours, and not Ray's account of it
        except RayActorError as error:
            first, last = batch.examples[0].query.query_id, batch.examples[-1].query.query_id
            raise RankwrightError(
                f"Workers died {RETRIES + 1} times over the questions '{first}' to '{last}' ({batch.pairs} pairs); "
                "wanted one that lives. Look for lack of memory in Ray's logs; ask for fewer workers or a smaller "
                "--depth."
            ) from error
        self.pairs_seen += cut.pairs
        self.pairs_cut += cut.cut
        self.first_cut, self.max_length = self.first_cut or cut.first, cut.max_length
        return ranked


def ray_data() -> Any:
    """The module, or what to install."""
    try:
        import ray.data
    except ImportError as error:
        raise MissingDependencyError('Work on a Ray cluster needs ray; run pip install "rankwright[ray]".') from error
    return ray


def connected(workers: int | None) -> int:
    """Joins the cluster that RAY_ADDRESS names, or starts Ray on this machine alone; how many workers there will be.

    A Ray of our own listens on loopback, shows no dashboard and reports no usage.
    """
    ray = ray_data()
    if not ray.is_initialized():
        if "RAY_ADDRESS" in os.environ:
            ray.init(log_to_driver=False)
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            count = workers or os.cpu_count() or 1
            ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if workers is not None and workers > cpus:
        raise ConfigurationError(
            f"{workers} workers were asked for and the Ray cluster has {cpus} CPUs; wanted at most as many. Ask "
            "for fewer, or add machines."
        )
    return workers or max(1, cpus)
