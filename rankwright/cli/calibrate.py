"""Verb `calibrate`: a temperature and a threshold for a model's scores."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from rankwright.cli.common import FORMAT_HELP, BadRow, OutputKind, RetrieverKind, emit, print_out
from rankwright.cli.settings import DataSettings
from rankwright.errors import ConfigurationError
from rankwright.llms.endpoint import model_place
from rankwright.types import Example

EXAMPLES = r"""
**Examples**

    rankwright calibrate runs/first --data dev.jsonl --corpus passages.jsonl

    rankwright calibrate exported --data candidates.jsonl --retriever given \
      --output json
"""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog=EXAMPLES)(calibrate)


def calibrate(
    model: str = typer.Argument(..., help="Folder of a model, of a run, or of an export."),
    data: Path = typer.Option(..., "--data", help="Questions not trained on, with labels or answers."),
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
    from rankwright.calibration import calibrate as fitted
    from rankwright.calibration import write_calibration
    from rankwright.cli.build import build_reranker
    from rankwright.rerankers.changes import noted
    from rankwright.rerankers.ranking import Scorer

    folder = Path(model_place(model))
    if not folder.is_dir():
        raise ConfigurationError(
            f"Model {model} is no folder; wanted one, since temperature and threshold are written into it. Save it "
            "first: rankwright export writes a folder of any cross-encoder."
        )
    settings = DataSettings(
        format=format,
        corpus=str(corpus or ""),
        qrels=str(qrels or ""),
        retriever=retriever.value,
        depth=depth,
        on_bad_row=on_bad_row.value,
    )
    scorer = build_reranker(str(folder), device)
    if not isinstance(scorer, Scorer):
        raise ConfigurationError(f"Model {model} gives no scores of its own; wanted a model that does.")
    found = fitted(scorer, _examples(data, settings))
    with noted(folder):
        write_calibration(folder, found, data.name)
    if output is OutputKind.json:
        emit({"folder": str(folder), **asdict(found)})
        return
    print_out(f"{found.pairs} pairs, {found.relevant} relevant, of {found.questions} questions.")
    print_out(f"temperature {found.temperature:.4g}, threshold {found.threshold:.4g}; written into {folder}.")
    print_out(
        f"On the half that the other was fitted without: log loss {found.log_loss_before:.4f} -> "
        f"{found.log_loss_after:.4f}, F1 of the threshold {found.f1:.3f}."
    )


def _examples(data: Path, settings: DataSettings) -> list[Example]:
    from rankwright.cli.build import candidates, load_one

    dataset = load_one(str(data), settings, need_answers=False)
    return candidates(dataset.examples, dataset.corpus, settings.retriever, settings.depth)
