"""Verb `compare`: two runs that were evaluated apart, on the same questions."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from rankwright.cli.common import WORSE_EXIT_CODE, OutputKind, emit, print_out, say
from rankwright.cli.evaluate import sentence
from rankwright.cli.manage import stored_evaluation
from rankwright.cli.run import tested
from rankwright.comparison import Comparison, Side, compare_sides, to_json, trained_row
from rankwright.errors import ConfigurationError
from rankwright.evaluation import Evaluation, verdict

EXAMPLES = r"""
**Examples**

Is the second run's model better than the first one's? Table here, question by question on the page:

    rankwright compare runs/first runs/second

Two files that `eval --save` has written, in one metric, with a row for every question:

    rankwright compare before.json after.json --eval-metrics nDCG@10 \
      --perquery --output json

What one run did to its starting point:

    rankwright compare runs/first runs/first --before-model reference \
      --report first.html
"""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("compare", epilog=EXAMPLES)(compare)


def compare(
    before: Path = typer.Argument(..., metavar="RUN", help="A run folder, or a file that eval --save has written."),
    after: Path = typer.Argument(..., metavar="RUN", help="The same, of what the first one is measured against."),
    names: list[str] = typer.Option([], "--names", help="What the two are called; give it twice."),
    eval_metrics: list[str] = typer.Option(
        [], "--eval-metrics", help="Only this metric; may be given several times. By default all that both have."
    ),
    perquery: bool = typer.Option(False, "--perquery", help="Print a row for every question too."),
    before_model: str | None = typer.Option(
        None, help="Which model of the first evaluation; by default the last one that is no fixed order (trained)."
    ),
    after_model: str | None = typer.Option(None, help="The same for the second."),
    force: bool = typer.Option(
        False,
        "--force",
        help="Compare what is comparable of runs that do not agree: shared questions, and no metrics of answers where "
        "the reader is another one.",
    ),
    report: Path | None = typer.Option(
        None, help="HTML file; by default compare-with-NAME.html in the second run's folder."
    ),
    output: OutputKind = typer.Option(OutputKind.text, help="json prints one line on standard output."),
) -> int:
    """Compare two runs: paired tests as a table, and a page with every question before and after.

    Exit code 8 where the second is worse than the first.
    """
    comparison = compared(
        before,
        after,
        names=names,
        eval_metrics=eval_metrics,
        before_model=before_model,
        after_model=after_model,
        force=force,
    )
    path = report or page_path(after, comparison)
    # Printed first, for a result that cannot be written; a reader of the pipe that has gone changes nothing either.
    with contextlib.suppress(typer.Exit):
        if output is OutputKind.json:
            emit(record(comparison, path, perquery=perquery))
        else:
            _print_text(comparison, perquery=perquery)
    _write_page(path, comparison)
    test = comparison.headline_test
    with contextlib.suppress(typer.Exit):
        (say if output is OutputKind.json else print_out)(sentence(test))
    return WORSE_EXIT_CODE if verdict(test) == "worse" else 0


def compared(
    before: Path,
    after: Path,
    *,
    names: Sequence[str] = (),
    eval_metrics: Sequence[str] = (),
    before_model: str | None = None,
    after_model: str | None = None,
    force: bool = False,
) -> Comparison:
    """The comparison of what two run folders or files hold."""
    first, second = stored_evaluation(before), stored_evaluation(after)
    rows = [_row(before, first, before_model), _row(after, second, after_model)]
    called = _names((before, after), (first, second), rows, names)
    sides = [Side(name, found, row) for name, found, row in zip(called, (first, second), rows, strict=True)]
    return compare_sides(sides[0], sides[1], metrics=eval_metrics, force=force)


def _row(source: Path, evaluation: Evaluation, wanted: str | None) -> str:
    if wanted is not None and wanted not in evaluation.models:
        raise ConfigurationError(
            f"The evaluation of {source} has no model '{wanted}'; wanted one of {', '.join(evaluation.models)}. "
            "Name one of these."
        )
    return wanted or trained_row(evaluation)


def _names(
    sources: Sequence[Path], evaluations: Sequence[Evaluation], rows: Sequence[str], given: Sequence[str]
) -> Sequence[str]:
    """What the two are called: as given, else the runs' names, with the models' where that is not enough."""
    if given:
        if len(given) == 2 and given[0] != given[1]:
            return given
        raise ConfigurationError(
            f"--names was given {len(given)} times ({', '.join(given)}); wanted two different names, the first for the "
            "first run. Give it twice, or leave it out."
        )
    short = [_name_of(source) for source in sources]
    named = [
        name if row == trained_row(evaluation) else f"{name}: {row}"
        for name, evaluation, row in zip(short, evaluations, rows, strict=True)
    ]
    if named[0] != named[1]:
        return named
    if sources[0].resolve() == sources[1].resolve():
        raise ConfigurationError(
            f"Model '{rows[0]}' of {sources[0]} was to be compared with itself; wanted two runs, or two models of one "
            "(--before-model, --after-model)."
        )
    return [str(source) for source in sources]


def _name_of(source: Path) -> str:
    whole = source.resolve()
    return whole.parent.name if whole.name == "evaluation.json" else whole.name if whole.is_dir() else whole.stem


def page_path(after: Path, comparison: Comparison) -> Path:
    """Where the page goes that nobody named a place for."""
    name = re.sub(r"[^\w.-]+", "-", comparison.before.name).strip("-.") or "another"
    folder = after if after.is_dir() else after.parent
    return folder / f"compare-with-{name}.html"


def _write_page(path: Path, comparison: Comparison) -> None:
    from rankwright.reporting.compared import write_comparison

    write_comparison(path, comparison)
    say(f"Page {path}")


def record(comparison: Comparison, path: Path | None, *, perquery: bool = False) -> dict[str, Any]:
    """The object that `--output json` prints as one line."""
    found = {**to_json(comparison), **tested(comparison.headline_test), "report": str(path) if path else None}
    return {**found, "perquery": list(comparison.perquery())} if perquery else found


def _print_text(comparison: Comparison, *, perquery: bool) -> None:
    names = (comparison.before.name, comparison.after.name)
    table = Table(title=f"{names[0]} -> {names[1]}: {len(comparison.questions)} questions")
    table.add_column("metric")
    for heading in ("n", "before", "after", "delta [95 % interval]", "p", "won", "same", "lost"):
        table.add_column(heading, justify="right")
    table.add_column("after is")
    for row in comparison.table():
        delta = f"{row['delta']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
        means, counts = (f"{row['before']:.3f}", f"{row['after']:.3f}"), (row["won"], row["same"], row["lost"])
        table.add_row(row["metric"], str(row["n"]), *means, delta, f"{row['p']:.4f}", *map(str, counts), row["verdict"])
    print_out(table)
    if perquery:
        _print_questions(comparison)
    if comparison.left_out:
        print_out(f"{comparison.left_out} questions that not both have in the same form were left out.")
    for found in comparison.differences:
        print_out(f"Forced, though they differ in {found.what}: {found.before} against {found.after}.")


def _print_questions(comparison: Comparison) -> None:
    table, metric = Table(title=f"{comparison.headline_test.metric} of every question"), comparison.headline_test.metric
    table.add_column("question", overflow="fold")
    for heading in ("before", "after"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in comparison.perquery():
        pair = row["values"].get(metric)
        table.add_row(
            row["query_id"], *(f"{value:.3f}" for value in pair or ()), *([] if pair else ["", ""]), row["outcome"]
        )
    print_out(table)
