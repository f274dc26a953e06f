"""Verb `calibrate`: a temperature and a threshold for a model's scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rankwright.cli.common import (
    FORMAT_HELP,
    BadRow,
    OutputKind,
    RetrieverKind,
    emit,
    print_out,
    progress_bars,
    say,
)
from rankwright.cli.settings import DataSettings
from rankwright.errors import ConfigurationError, DataError
from rankwright.llms.endpoint import model_place
from rankwright.manifests import check_model
from rankwright.rerankers import check_named
from rankwright.types import Example

if TYPE_CHECKING:
    from rankwright.calibration import Calibration

EXAMPLES = r"""
**Examples**

    rankwright calibrate runs/first --data dev.jsonl --corpus passages.jsonl

    rankwright calibrate exported --data candidates.jsonl --retriever given \
      --output json

Take it out again:

    rankwright calibrate runs/first --remove
"""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog=EXAMPLES)(calibrate)


def calibrate(
    model: str = typer.Argument(..., help="Folder of a model, of a run, or of an export."),
    data: Path | None = typer.Option(None, "--data", help="Questions not trained on, with labels or answers."),
    remove: bool = typer.Option(False, "--remove", help="Take temperature and threshold out of the folder; no --data."),
    format: str = typer.Option("jsonl", "--format", help=FORMAT_HELP),
    qrels: Path | None = typer.Option(None, help="Relevance labels (TREC or BEIR); they choose the questions."),
    corpus: Path | None = typer.Option(None, help="Passages to retrieve from; without it, those of the data file."),
    retriever: RetrieverKind = typer.Option(
        RetrieverKind.bm25, help="bm25 over the corpus, or given: candidates in the order of the data."
    ),
    depth: int = typer.Option(20, min=2, help="Candidates per question; as many as the model will be given in use."),
    on_bad_row: BadRow = typer.Option(BadRow.error, help="Stop at a bad row, or leave it out and count it."),
    device: str = typer.Option("cpu", help="Torch device."),
    output: OutputKind = typer.Option(OutputKind.text, help="json prints one line on standard output."),
) -> None:
    """Fit what turns a model's scores into numbers between 0 and 1, and write it into its folder; raw scores and orders
    stay as they are."""
    if remove:
        if data is not None:
            raise ConfigurationError("--data was given with --remove, which fits nothing; wanted one of them.")
        _remove(model, output)
        return
    if data is None:
        raise ConfigurationError(
            "--data was not given; wanted labelled questions to fit on. Add --data FILE, or --remove to take what was "
            "fitted out of the folder."
        )
    settings = DataSettings(
        format=format,
        corpus=str(corpus or ""),
        qrels=str(qrels or ""),
        retriever=retriever.value,
        depth=depth,
        on_bad_row=on_bad_row.value,
    )
    _fit(model, data, settings, device, output)


def _fit(model: str, data: Path, settings: DataSettings, device: str, output: OutputKind) -> None:
    from rankwright.calibration import calibrate as fitted
    from rankwright.calibration import write_calibration
    from rankwright.cli.build import build_reranker, tell_of_cut
    from rankwright.rerankers.changes import noted
    from rankwright.rerankers.ranking import Scorer

    folder = _folder(model)
    scorer = build_reranker(str(folder), device)
    if not isinstance(scorer, Scorer):
        raise ConfigurationError(f"Model {model} gives no scores of its own; wanted a model that does.")
    examples = _examples(data, settings)
    with progress_bars() as progress:
        found = fitted(scorer, examples, progress=lambda done, total: progress("score", done, total))
    tell_of_cut(scorer)
    with noted(folder):
        write_calibration(folder, found, data.name)
    if output is OutputKind.json:
        emit({"folder": str(folder), **asdict(found)})
        if found.doubt:
            say(found.doubt)
        return
    for line in _told(found, folder):
        print_out(line)


def _told(found: Calibration, folder: Path) -> Iterator[str]:
    """What was fitted, in lines for people."""
    yield f"{found.pairs} pairs, {found.relevant} relevant, of {found.questions} questions."
    if found.fitted:
        yield f"temperature {found.temperature:.4g}, threshold {found.threshold:.4g}; written into {folder}."
    else:
        scale = f"sigmoid(score / {found.temperature:.4g})"
        yield f"threshold {found.threshold:.4g} of {scale}; written into {folder}, without a temperature."
    yield (
        f"On the half that the other was fitted without: log loss {found.log_loss_before:.4f} -> "
        f"{found.log_loss_after:.4f}, always saying the share of relevant pairs {found.log_loss_share:.4f}; F1 of the "
        f"threshold {found.f1:.3f}."
    )
    if found.doubt:
        yield found.doubt


def _remove(model: str, output: OutputKind) -> None:
    from rankwright.calibration import remove_calibration
    from rankwright.rerankers.changes import noted

    folder = _folder(model)
    check_model(folder)  # else the manifest of a run would take a damaged file for one changed on purpose
    with noted(folder):
        removed = remove_calibration(folder)
    if output is OutputKind.json:
        emit({"folder": str(folder), "removed": removed})
    elif removed:
        print_out(f"Temperature and threshold are taken out of {folder}.")
    else:
        print_out(f"{folder} has neither temperature nor threshold; nothing was changed.")


def _folder(model: str) -> Path:
    """The folder of a model, in which something can be written."""
    check_named(model)
    folder = Path(model_place(model))
    if not folder.is_dir():
        raise ConfigurationError(
            f"Model {model} is no folder; wanted one, since temperature and threshold are written into it. Save it "
            "first: rankwright export writes a folder of any cross-encoder."
        )
    return folder


def _examples(data: Path, settings: DataSettings) -> list[Example]:
    from rankwright.cli.build import candidates, load_one

    dataset = load_one(str(data), settings, need_answers=False)
    if not dataset.corpus and settings.retriever == RetrieverKind.bm25:
        raise DataError(
            f"Questions of {data} have no candidates, and no --corpus was given; wanted one of them. Add --corpus FILE "
            "with passages to retrieve from, or give questions with candidates."
        )
    return candidates(dataset.examples, dataset.corpus, settings.retriever, settings.depth)
