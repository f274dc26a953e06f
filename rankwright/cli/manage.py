"""Verbs `report`, `push`, `cache` and `doctor`."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

import rankwright
from rankwright.cli.common import OutputKind, emit, print_out, read_text, say
from rankwright.errors import ConfigurationError, DataError, ResourceNotFoundError

if TYPE_CHECKING:
    from rankwright.evaluation import Evaluation
    from rankwright.llms.cache import LedgerTotals, ReadStore

MISSING_EXIT_CODE = 3
CACHE = typer.Option(Path("runs/reads.sqlite"), "--cache", help="SQLite file of all answers.")

REPORT_EXAMPLES = """
**Examples**

    rankwright report runs/first

    rankwright report comparison.json --out comparison.html
"""

PUSH_EXAMPLES = """
**Examples**

What would be uploaded, without asking the hub:

    rankwright push runs/first my-name/my-reranker --dry-run

    HF_TOKEN=... rankwright push runs/first my-name/my-reranker --private
"""

INFO_EXAMPLES = """
**Examples**

    rankwright cache info

    rankwright cache info --cache elsewhere.sqlite --output json
"""

RUNS_EXAMPLES = """
**Examples**

    rankwright cache runs

    rankwright cache runs --cache elsewhere.sqlite --output json
"""

CLEAR_EXAMPLES = """
**Examples**

    rankwright cache clear

Without a question, and the record of calls too:

    rankwright cache clear --yes --ledger
"""

CACHE_EXAMPLES = """
**Examples**

    rankwright cache info

    rankwright cache runs
"""

DOCTOR_EXAMPLES = """
**Examples**

    rankwright doctor

    rankwright doctor --output json
"""


def register(app: typer.Typer) -> None:
    """Adds the verbs."""
    app.command(epilog=REPORT_EXAMPLES)(report)
    app.command(epilog=PUSH_EXAMPLES)(push)
    cache = typer.Typer(help="Answers of readers that are kept, and what they cost.", no_args_is_help=True)
    cache.command("info", epilog=INFO_EXAMPLES)(cache_info)
    cache.command("runs", epilog=RUNS_EXAMPLES)(cache_runs)
    cache.command("clear", epilog=CLEAR_EXAMPLES)(cache_clear)
    app.add_typer(cache, name="cache", epilog=CACHE_EXAMPLES)
    app.command(epilog=DOCTOR_EXAMPLES)(doctor)


# --- report ------------------------------------------------------------------------------------------------------


def report(
    source: Path = typer.Argument(..., help="A run folder, or a file that eval --save has written."),
    out: Path | None = typer.Option(None, help="HTML file; by default report.html of the run, or beside the file."),
    output: OutputKind = typer.Option(OutputKind.text, help="json prints one line on standard output."),
) -> None:
    """Make report.html again from what a run or an evaluation has stored."""
    path = written_report(source, out)
    if output is OutputKind.json:
        emit({"source": str(source), "report": str(path)})
    else:
        say(f"Report {path}")


def written_report(source: Path, out: Path | None) -> Path:
    """The page of a run folder or of a saved evaluation, written to `out` or beside its source."""
    from rankwright.reporting import write_report

    evaluation = stored_evaluation(source)
    if not source.is_dir():
        title = f"Comparison on {evaluation.settings.set_name}"
        return write_report(out or source.with_suffix(".html"), evaluation, title=title)
    run = {name: _json_object(source / f"{name}.json") for name in ("config", "environment", "result")}
    return write_report(
        out or source / "report.html",
        evaluation,
        title=f"Run {source.resolve().name}",
        run={"folder": str(source), **{name: values for name, values in run.items() if values}},
        metrics=_metrics(source / "metrics.jsonl"),
    )


def stored_evaluation(source: Path) -> Evaluation:
    """What a run folder or a file of `eval --save` holds.

    Raises:
        ResourceNotFoundError: there is none; DataError: it is damaged.
    """
    from rankwright.cli.run import damaged_records
    from rankwright.evaluation import Evaluation
    from rankwright.manifests import GO_ON, MANIFEST

    if not source.exists():
        raise ResourceNotFoundError(
            f"There is no run folder {source}; wanted one that rankwright train has written, or a file of rankwright "
            f"eval --save.{_runs_beside(source)}"
        )
    if not source.is_dir():
        return Evaluation.load(source)
    if not (source / "evaluation.json").is_file() and _json_object(source / "result.json").get("delta", 0) is None:
        raise ResourceNotFoundError(
            f"Run {source} is finished and was not scored, because no test question has labels or its prompt's answer "
            f"is no text, so it holds no evaluation.json; wanted one. Make it: rankwright eval --llm {source} --data "
            "FILE --save FILE."
        )
    if not (source / "evaluation.json").is_file():
        raise ResourceNotFoundError(
            f"Folder {source} holds no evaluation.json; wanted the folder of a finished run. Finish it with {GO_ON}."
        )
    if damaged := damaged_records(source):
        raise DataError(
            f"{', '.join(damaged)} in {source} is not as the run left it; wanted the files that {MANIFEST} lists. Make "
            f"them again with {GO_ON}, or remove {MANIFEST} to take them as they are."
        )
    return Evaluation.load(source / "evaluation.json")


def _runs_beside(source: Path) -> str:
    """The finished runs in the folder where one was sought."""
    found = sorted(run.parent.name for run in source.parent.glob("*/evaluation.json"))
    return f" Finished runs beside it: {', '.join(found[:10])}." if found else " Check the path."


def _json_object(path: Path) -> Mapping[str, Any]:
    """The object in a file of a run folder; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"File {path} is damaged ({error}); wanted JSON. Remove it, or train again.") from error
    if not isinstance(found, dict):
        raise DataError(f"File {path} holds a {type(found).__name__}; wanted an object. Remove it, or train again.")
    return found


def _metrics(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        return []
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: broken JSON ({error}); wanted one object. Remove it.") from error
    return rows


# --- push --------------------------------------------------------------------------------------------------------


def push(
    folder: Path = typer.Argument(..., help="A run folder (its model/ is taken) or a model folder."),
    repo_id: str = typer.Argument(..., help="OWNER/NAME on the hub; made where it does not exist."),
    private: bool = typer.Option(False, "--private", help="Refuse to upload unless the repository is private."),
    dry_run: bool = typer.Option(False, "--dry-run", help="List the files and stop; needs neither token nor network."),
    output: OutputKind = typer.Option(OutputKind.text, help="json prints one line on standard output."),
) -> None:
    """Upload a model with its card to the Hugging Face hub (HF_TOKEN, HF_ENDPOINT)."""
    from rankwright.cli import hub

    model = hub.model_folder(folder)
    files = hub.files_of(model)
    hub.check_repo_id(repo_id)
    if "README.md" not in files:
        say(f"Warning: {model} holds no README.md, so the model will have no card.")
    if hub.verdict_of_run(model) == "worse":
        say("Warning: result.json of this run says that the trained model is WORSE than its reference.")
    where = None if dry_run else hub.upload(model, list(files), repo_id, private=private)
    if output is OutputKind.json:
        listed = [{"name": name, "bytes": size} for name, size in files.items()]
        emit({"repo_id": repo_id, "folder": str(model), "url": where, "files": listed})
        return
    for name, size in files.items():
        print_out(f"{size:>12,}  {name}")
    print_out(f"Nothing was uploaded (--dry-run); it would go to {repo_id}." if dry_run else f"Uploaded to {where}")


# --- cache -------------------------------------------------------------------------------------------------------


def cache_info(
    cache: Path = CACHE,
    output: OutputKind = typer.Option(OutputKind.text, help="json prints one line on standard output."),
) -> None:
    """How many answers are kept, and what all calls so far came to."""
    with _opened(cache) as store:
        totals = store.ledger.totals()
        record = {"path": str(cache), "bytes": cache.stat().st_size, "answers": len(store), **_sums(totals)}
    if output is OutputKind.json:
        emit({**record, **totals.price_record})
        return
    table = Table(show_header=False)
    for name, value in {**record, "price": totals.price_text}.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    print_out(table)
    if totals.uncounted_calls:
        print_out(f"The tokens of {totals.uncounted_calls} calls are unknown and missing from the sums.")


def cache_runs(
    cache: Path = CACHE,
    output: OutputKind = typer.Option(OutputKind.text, help="json prints one line on standard output."),
) -> None:
    """Calls, tokens and price of every run, the earliest first."""
    with _opened(cache) as store:
        runs = {run: store.ledger.totals(run) for run in store.ledger.runs()}
    if output is OutputKind.json:
        rows = [{"run": run, **_sums(totals), **totals.price_record} for run, totals in runs.items()]
        emit({"path": str(cache), "runs": rows})
        return
    if not runs:
        print_out(f"The ledger of {cache} is empty.")
        return
    table = Table()
    table.add_column("run", overflow="fold")
    for name in (*_sums(next(iter(runs.values()))), "price"):
        table.add_column(name.replace("_", " "), justify="right")
    for run, totals in runs.items():
        table.add_row(run, *(f"{value:,}" for value in _sums(totals).values()), totals.price_text)
    print_out(table)


def cache_clear(
    cache: Path = CACHE,
    ledger: bool = typer.Option(False, "--ledger", help="Forget the calls and prices too."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
    output: OutputKind = typer.Option(OutputKind.text, help="json prints one line on standard output."),
) -> None:
    """Forget all answers; the record of calls stays unless --ledger is given. Runs to come pay for them again."""
    with _opened(cache) as store:
        answers = len(store)
        if not yes and (sys.stdin is None or not typer.confirm(f"Forget {answers} answers in {cache}?", err=True)):
            raise ConfigurationError("Nothing was forgotten; say y, or give --yes where nobody can answer.")

        def forget(connection: Any) -> None:
            connection.execute("DELETE FROM answers")
            if ledger:
                connection.execute("DELETE FROM ledger")

        store.write(forget)
        store.read("VACUUM")  # gives the space back; not possible inside a transaction
    if output is OutputKind.json:
        emit(
            {
                "path": str(cache),
                "bytes": cache.stat().st_size,
                "answers_forgotten": answers,
                "ledger_forgotten": ledger,
            }
        )
        return
    print_out(
        f"{answers} answers forgotten{', and the ledger' if ledger else ''}; {cache} is {cache.stat().st_size:,} bytes."
    )


def _opened(path: Path) -> ReadStore:
    """The store of a file that exists; looking must not make one."""
    from rankwright.llms.cache import ReadStore

    if not path.is_file():
        raise ResourceNotFoundError(
            f"There is no read cache {path}; wanted the file that runs wrote. Give --cache FILE."
        )
    return ReadStore(path)


def _sums(totals: LedgerTotals) -> dict[str, int]:
    """All but the price, which has words for people and numbers for machines."""
    return {
        "calls": totals.calls,
        "attempts": totals.attempts,
        "failed": totals.failed,
        "input_tokens": totals.input_tokens,
        "output_tokens": totals.output_tokens,
        "uncounted_calls": totals.uncounted_calls,
    }


# --- doctor ------------------------------------------------------------------------------------------------------


def doctor(
    cache: Path = CACHE,
    output: OutputKind = typer.Option(OutputKind.text, help="json prints one line on standard output."),
) -> int:
    """What is installed here and works, what is missing and how to get it, and what was never tested."""
    from rankwright.cli.examination import TESTED, UNTESTED, examine, lacking

    checks = examine(cache)
    ok = all(check.ok or not check.required for check in checks)
    python, machine = sys.version.split()[0], platform.platform()
    if output is OutputKind.json:
        emit(
            {
                "ok": ok,
                "rankwright": rankwright.__version__,
                "python": python,
                "platform": machine,
                "checks": [asdict(check) for check in checks],
                "tested": list(TESTED),
                "untested": list(UNTESTED),
            }
        )
        return 0 if ok else MISSING_EXIT_CODE
    print_out(f"rankwright {rankwright.__version__}, Python {python}, {machine}")
    table = Table()
    for heading in ("", "what", "found", "next step"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        mark = "ok" if check.ok else "MISSING" if check.required else "optional"
        table.add_row(mark, check.name, check.found, check.next_step)
    print_out(table)
    print_out("Run in the project's own tests:")
    for line in TESTED:
        print_out(f"  {line}")
    print_out("Untested here:")
    for line in UNTESTED:
        print_out(f"  {line}")
    missing = [check.name for check in checks if check.required and not check.ok]
    lines = list(lacking(checks))
    if lines:
        print_out("Not possible here yet:")
    for line in lines:
        print_out(f"  {line}")
    enough = "demo, train, eval and rerank need by default" if lines else "the verbs need"
    print_out(f"Missing: {', '.join(missing)}." if missing else f"Everything that {enough} is here.")
    return 0 if ok else MISSING_EXIT_CODE
