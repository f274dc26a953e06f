"""Verb `export`: a cross-encoder for machines without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rankwright.cli.common import FORMAT_HELP, OutputKind, emit, print_out, say
from rankwright.errors import ConfigurationError
from rankwright.rerankers import check_named
from rankwright.rerankers.onnx_folder import is_export
from rankwright.types import Example

if TYPE_CHECKING:
    from rankwright.rerankers.onnx_folder import Manifest

EXAMPLES = r"""
**Examples**

    rankwright export runs/first --to exported --for cpu

    rankwright rerank "who wrote Faust?" "Goethe wrote it." \
      "A fist is a hand." --model exported

Compared on questions of your own, fp32 alone, and the record for a machine:

    rankwright export my-model --to exported --for cpu --form fp32 \
      --data dev.jsonl --output json
"""
DEPTH = 20
CPU = "cpu"
"""The one target."""


class Form(StrEnum):
    """--form."""

    fp32 = "fp32"
    int8 = "int8"


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog=EXAMPLES)(export)


def export(
    model: str = typer.Argument(..., help="reference (embedded), a folder of a model or run, or a hub name."),
    to: Path = typer.Option(..., "--to", help="New folder."),
    target: str = typer.Option(CPU, "--for", help="cpu: ONNX, in fp32 and int8."),
    form: list[Form] = typer.Option([], "--form", help="Only this form (may be repeated); without it both."),
    max_length: int | None = typer.Option(None, min=8, help="Tokens of a pair; by default the model's."),
    data: Path | None = typer.Option(
        None, help="Questions to compare scores on; without it bundled ones. Labels or answers give nDCG."
    ),
    format: str = typer.Option("jsonl", help=f"Format of --data. {FORMAT_HELP}"),
    corpus: Path | None = typer.Option(None, help="Passages of --data; without it, those of the file."),
    questions: int = typer.Option(100, min=1, help="How many questions of --data are taken."),
    output: OutputKind = typer.Option(OutputKind.text, help="json prints one line on standard output."),
) -> None:
    """Write a cross-encoder as ONNX, in fp32 and int8, for a machine without PyTorch; scores are compared first."""
    check_named(model)
    from rankwright.cli.build import build_reranker
    from rankwright.rerankers.exporting import export as write

    if target != CPU:
        raise ConfigurationError(
            f"--for is '{target}'; wanted {CPU}: exports run in ONNX Runtime on a processor. On a GPU PyTorch "
            "scores the model as it is (--device cuda)."
        )
    if is_export(model):
        raise ConfigurationError(f"Model {model} is an export; wanted a model of PyTorch. Name what it was made from.")
    reranker: Any = build_reranker(model)
    if max_length is not None:
        reranker.tokenizer.model_max_length = min(max_length, reranker.max_length)
    examples = None if data is None else _examples(data, format, corpus, questions)
    manifest = write(reranker, to, examples, forms=[f.value for f in form] or [f.value for f in Form], tell=say)
    record = {"folder": str(to), "target": target, **_sizes(to, manifest), "parity": dict(manifest.parity)}
    if output is OutputKind.json:
        emit(record)
        return
    for name, size in record["files"].items():
        print_out(f"{size:>14,}  {name}")
    for name, parity in manifest.parity.items():
        print_out(_parity_line(name, parity))
    print_out(f'Use it with rankwright.load("{to}"); it needs pip install "rankwright[onnx]" alone.')


def _examples(data: Path, format: str, corpus: Path | None, questions: int) -> list[Example]:
    """The first questions of a file, with candidates of their own or else BM25's."""
    from rankwright.data import load_examples
    from rankwright.retrieval import BM25, with_candidates

    dataset = load_examples(data, format, corpus=corpus)
    rows: Sequence[Example] = dataset.examples[:questions]
    if all(example.candidates for example in rows):
        return [replace(example, candidates=example.candidates[:DEPTH]) for example in rows]
    return with_candidates(rows, BM25(dataset.corpus), DEPTH)


def _sizes(folder: Path, manifest: Manifest) -> dict[str, Any]:
    from rankwright.rerankers.onnx_folder import MANIFEST

    names = [*manifest.files, "config.json", MANIFEST]
    return {"files": {name: (folder / name).stat().st_size for name in names}}


def _parity_line(form: str, parity: dict[str, Any]) -> str:
    from rankwright.rerankers.exporting import BOUNDS

    before, after = parity["ndcg_before"], parity["ndcg_after"]
    ndcg = "nDCG@10 unknown (no labels)" if before is None else f"nDCG@10 {before:.4f} -> {after:.4f}"
    share = parity["largest_error"] / (parity["spread"] or 1.0)
    error = f"largest error {share:.2g} standard deviations of the scores (allowed {BOUNDS[form].error:g})"
    pairs = f"{parity['pairs']} pairs of {parity['questions']} questions"
    return f"{form}: {error}, rank correlation {parity['rank_correlation']:.4f}, {ndcg}; {pairs}"
