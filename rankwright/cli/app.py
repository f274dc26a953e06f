"""The typer application and how errors end it."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from pydantic import ValidationError

import rankwright
from rankwright import processes
from rankwright.cli import (
    calibrate,
    compare,
    data,
    diagnose,
    evaluate,
    export,
    manage,
    prepare,
    prompts,
    rerank,
    serve,
    train,
)
from rankwright.cli.common import as_command, console, harmless, silence, write_out
from rankwright.errors import ConfigurationError, MissingDependencyError, RankwrightError, StorageError

app = typer.Typer(
    name="rankwright",
    help="Train, evaluate and use rerankers that learn from a reader's answers.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (diagnose, train, evaluate, compare, rerank, export, calibrate, serve, prompts, data, prepare, manage):
    module.register(app)


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        write_out(f"{rankwright.__version__}\n")
        raise typer.Exit
    verb, started = context.invoked_subcommand, processes.started()
    if started > 1 and verb not in (None, "doctor", *SHARED):
        with processes.alike():
            raise ConfigurationError(
                f"rankwright {verb} was started in {started} processes (WORLD_SIZE), each of which would do and pay "
                f"for all of it; wanted one. Only {' and '.join(SHARED)} share their work: leave the launcher out, or "
                "unset WORLD_SIZE where there is none."
            )


SHARED = ("train", "demo")
"""Verbs whose work several processes share."""
INTERRUPTED = "Interrupted. What was read and saved is kept; "
GO_ON = {
    "train": "the same command with --resume goes on, and without it where training had not begun.",
    "rerank": "with --out the same command goes on, and scores the batch in work again.",
}
"""Verb -> what to do after Ctrl-C."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; errors made for users are one line, others a traceback. Of several
    processes that a launcher started the first one speaks for all, and another only of what ended it alone."""
    try:
        if processes.rank():
            console.quiet, sys.stdout = True, None
        result = app(list(arguments) if arguments is not None else None, standalone_mode=False)
        if result == 130:  # what Typer makes of Ctrl-C
            return _interrupted(arguments)
        write_out("")  # what others printed is still buffered
        return result if isinstance(result, int) else 0
    except RankwrightError as error:
        return _fail(as_command(str(error)), error.exit_code, told=error.told_by_first)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("rankwright"):
            raise
        missing = MissingDependencyError(
            f'Package {error.name} is not installed; run pip install "rankwright[train,embedded]".'
        )
        return _fail(str(missing), missing.exit_code)
    except KeyboardInterrupt:
        return _interrupted(arguments)
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        return _fail("Nothing was done: the question was not answered with yes. Give --yes where nobody can answer.", 2)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # the reader of a pipe has gone, as in `--help | head`
            silence()
            return 0
        raise
    except OSError as error:
        silence()
        return _fail(
            f"Reading or writing {error.filename or 'a file'} failed ({error.strerror or error}); wanted a place that "
            "can be read and written and has free space. Check it and run the command again.",
            StorageError.exit_code,
        )
    except Exception as error:
        # Typer's own usage errors know how to show themselves.
        show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if callable(show) and isinstance(code, int):
            _name_value(error)
            show()
            return code
        traceback.print_exc()
        return _fail(f"Unexpected {type(error).__name__}: {error}. Please report it with the lines above.", 6)


def _name_value(error: Any) -> None:
    """Puts the value found before what Typer says of the one wanted: pydantic's sentence, most often without it."""
    if isinstance(error.__cause__, ValidationError):
        found = repr(error.__cause__.errors()[0]["input"])
        error.message = error.message if found in error.message else f"{found}. {error.message}"


def _interrupted(arguments: Sequence[str] | None) -> int:
    verb = next(iter(sys.argv[1:] if arguments is None else arguments), "")
    go_on = GO_ON.get(verb, "the same command begins again, with every answer that is in the cache.")
    return _fail(INTERRUPTED + go_on, 130, told=True)


def _fail(message: str, code: int, *, told: bool = False) -> int:
    """Tells how the command ended.

    Args:
        message: for people.
        code: to end with.
        told: whether the first of several processes says the same.
    """
    number = 0
    with contextlib.suppress(ConfigurationError):  # which is then what the message is about
        number = processes.rank()
    if number and told:
        return code
    with contextlib.suppress(OSError):  # nobody may be listening any more
        print(f"rankwright: {f'process {number}: ' if number else ''}{harmless(message)}", file=sys.stderr)
    return code
