"""The verbs of the command line as functions. `rankwright.eval` (the same as `evaluate`), `rankwright.diagnose`,
`rankwright.validate` and `rankwright.prepare` come from their own modules."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwright.retrieval import BM25
from rankwright.types import Document, Example, Query, Ranking

if TYPE_CHECKING:
    from rankwright.calibration import Calibration
    from rankwright.cli.examination import Check
    from rankwright.llms.cache import ReadStore
    from rankwright.rerankers.windows import Windows


def demo(
    seed: int = 0, *, shuffle_answers: bool = False, name: str = "demo", device: str = "cpu", resume: bool = False
) -> Mapping[str, Any]:
    """Trains the embedded reranker from the embedded reader on the bundled knowledge base.

    Returns the content of runs/NAME/result.json; an earlier run of that name is replaced, or with `resume` gone on
    with. With `shuffle_answers` it is the control in which nothing may be gained.
    """
    from rankwright.cli.settings import load_settings
    from rankwright.cli.train import DEMO_RECIPE, run_demo

    settings = load_settings(DEMO_RECIPE, [], {"seed": seed, "model.device": device})
    return run_demo(settings, name, shuffle_answers=shuffle_answers, resume=resume).result


def train(
    name: str, settings: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False
) -> Mapping[str, Any]:
    """What `rankwright train` does: trains, compares with the reference on other questions, writes runs/NAME.

    Returns the content of runs/NAME/result.json, verdict included. `rankwright.training.train` is the loop inside, for
    objects of your own.

    Args:
        name: of the run.
        settings: the tree of docs/settings.md, for example {"data": {"train": "questions.jsonl", "corpus":
            "passages.jsonl"}, "seed": 1}.
        resume: go on with the run of this name, under the same settings.
        overwrite: replace a run of this name.

    Raises:
        ConfigurationError: a wrong setting, or a run of this name is there; ResumeError: it cannot be resumed.
        RankwrightError: whatever else ends the command with an exit code of its own.
    """
    from rankwright.cli.run import run_training
    from rankwright.cli.settings import settings_from
    from rankwright.cli.tune import run_tuning

    chosen, command = settings_from(settings), f"rankwright.train({name!r}, ...)"
    if chosen.writes:
        return run_tuning(chosen, name, resume=resume, overwrite=overwrite, command=command)
    return run_training(chosen, name, resume=resume, overwrite=overwrite, command=command).result


def rerank(
    query: str, documents: Sequence[str | Document], *, model: str = "reference", top_k: int | None = None
) -> Ranking:
    """Documents by a model's raw scores, best first; `rankwright.load(model)` once is faster for many queries.

    Args:
        query: the question.
        documents: texts, known by their position, or Documents.
        model: folder, hub name or "reference".
        top_k: how many to keep; None keeps all.
    """
    from rankwright.rerankers import load

    return load(model).rerank(query, documents, top_k)


def retrieve(queries: Sequence[str], documents: Iterable[Document], depth: int = 100) -> list[list[Document]]:
    """BM25's best `depth` documents of each query; an own `rankwright.BM25` is indexed once for many calls."""
    index = BM25(list(documents))
    return [list(found) for found in index.retrieve([Query(str(i), text) for i, text in enumerate(queries)], depth)]


def compare(
    before: str | Path,
    after: str | Path,
    *,
    names: Sequence[str] = (),
    eval_metrics: Sequence[str] = (),
    perquery: bool = False,
    force: bool = False,
    report: str | Path | None = None,
) -> Mapping[str, Any]:
    """What `rankwright compare --output json` prints: two runs on the same questions, with a paired test per metric.

    Args:
        before: a run folder, or a file that `eval --save` or `Evaluation.save` has written.
        after: the same; measured against the first.
        names: what the two are called; by default the runs' names.
        eval_metrics: only these; all that both have by default.
        perquery: add a row for every question.
        force: compare what is comparable of runs that do not agree.
        report: where to write the page with all questions; None writes none.

    Raises:
        ConfigurationError: the two cannot be compared; the message says what differs.
    """
    from rankwright.cli.compare import compared, record
    from rankwright.reporting.compared import write_comparison

    found = compared(Path(before), Path(after), names=names, eval_metrics=eval_metrics, force=force)
    path = None if report is None else write_comparison(report, found)
    return record(found, path, perquery=perquery)


def report(source: str | Path, out: str | Path | None = None) -> Path:
    """Makes the HTML page of a run folder, or of a file that `Evaluation.save` or `eval --save` wrote, and returns its
    path; `rankwright.write_report` makes that of an Evaluation at hand.

    Args:
        source: run folder or file.
        out: where to; by default report.html of the run, or beside the file.

    Raises:
        ResourceNotFoundError: the run is not finished; DataError: a file in it is damaged.
    """
    from rankwright.cli.manage import written_report

    return written_report(Path(source), Path(out) if out else None)


def push(folder: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Uploads a run's or a model's folder to the hub (HF_TOKEN, HF_ENDPOINT) and returns its address.

    Raises:
        ConfigurationError: a bad name, no token, or a public repository where a private one was asked for.
        StorageError: the hub cannot be reached or refuses.
    """
    from rankwright.cli import hub

    model = hub.model_folder(Path(folder))
    hub.check_repo_id(repo_id)
    return hub.upload(model, list(hub.files_of(model)), repo_id, private=private)


def export(
    model: str | Path,
    to: str | Path,
    *,
    forms: Sequence[str] = ("fp32", "int8"),
    examples: Sequence[Example] | None = None,
) -> Mapping[str, Any]:
    """Writes a cross-encoder as ONNX for machines without PyTorch, compared with the model first; returns how the
    scores of each form differ.

    Args:
        model: folder, hub name or "reference".
        to: a new folder, which `rankwright.load` opens.
        forms: "fp32", "int8" or both.
        examples: questions with candidates to compare on; by default bundled ones.

    Raises:
        ModelError: the model cannot be exported, or a form is beyond its bound; nothing is written then.
    """
    from rankwright.rerankers import load
    from rankwright.rerankers.exporting import export as write

    reranker: Any = load(model)
    return write(reranker, Path(to), examples, forms=forms).parity


def calibrate(
    model: str | Path, examples: Sequence[Example], *, source: str = "questions of the caller"
) -> Calibration:
    """Fits a temperature and a threshold on labelled questions that the model was not trained on, and writes them into
    its folder (docs/export.md). `doubt` of what comes back says where the temperature was not worth writing, or is no
    probability.

    Args:
        model: folder of a model, a run or an export.
        examples: questions with candidates and relevance labels or answers.
        source: what the model's card calls them.
    """
    from rankwright.calibration import calibrate as fitted
    from rankwright.calibration import write_calibration
    from rankwright.llms.endpoint import model_place
    from rankwright.rerankers import load
    from rankwright.rerankers.changes import noted

    folder = model_place(str(model))
    found = fitted(load(folder), examples)
    with noted(Path(folder)):
        write_calibration(Path(folder), found, source)
    return found


def serve(
    models: str | Sequence[str],
    *,
    port: int = 8000,
    host: str = "127.0.0.1",
    backend: str = "torch",
    windows: Windows | None = None,
) -> None:
    """Serves rerankers over HTTP until the process is told to stop (SIGTERM or SIGINT), as `rankwright serve` does
    with its defaults; keys come from RANKWRIGHT_API_KEY. Call it in the main thread.

    Args:
        models: folders, hub names or "reference".
        port: 0 takes a free one.
        host: address to listen on; one that others reach needs a key.
        backend: as in `rankwright.load`.
        windows: likewise.

    Raises:
        MissingDependencyError: neither the extra "serve" nor "onnx" is installed.
        ConfigurationError: the port is in use, or others could reach the server without a key.
        ResourceNotFoundError: a model is not there.
    """
    from rankwright.cli import serve as serving

    serving.check_extra()
    from rankwright.engine import Engine
    from rankwright.server.settings import KEY_VARIABLE, ServerSettings, keys_of

    names = [models] if isinstance(models, str) else list(models)
    settings = ServerSettings(host=host, port=port, keys=keys_of(os.environ.get(KEY_VARIABLE, "")))
    serving.listen(names, Engine(serving.opener(names, backend, windows=windows)), settings)


def cache(path: str | Path = "runs/reads.sqlite") -> ReadStore:
    """The store of all answers: `len` counts them, `ledger` has calls and prices. Close it, or use it in `with`."""
    from rankwright.llms.cache import ReadStore

    return ReadStore(path)


def doctor(path: str | Path = "runs/reads.sqlite") -> list[Check]:
    """What is installed here and works, and what is missing; `path` is the cache that is looked at."""
    from rankwright.cli.examination import examine

    return examine(Path(path))
