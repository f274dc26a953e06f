"""Verb `prompts`: what generating rerankers ask a language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from rankwright.cli.common import OutputKind, emit, harmless, print_out, say, write_out
from rankwright.errors import ConfigurationError

if TYPE_CHECKING:
    from rankwright.prompts.ranking import RankingPrompt

PROMPTS_EXAMPLES = """
**Examples**

    rankwright prompts list

    rankwright prompts show listwise-1
"""

LIST_EXAMPLES = """
**Examples**

    rankwright prompts list

    rankwright prompts list --output json
"""

SHOW_EXAMPLES = """
**Examples**

    rankwright prompts show setwise-think-1

A file to write your own prompt from, and what rankwright makes of it:

    rankwright prompts show pointwise-integer-1 > mine.yaml

    rankwright prompts show --prompt mine.yaml --output json
"""

RENDER_EXAMPLES = r"""
**Examples**

    rankwright prompts render listwise-1 --query "how long does a flea live" \
      "Fleas live for months." "A flat."

    rankwright prompts render --prompt mine.yaml \
      --query "how long does a flea live" "Fleas live for months."
"""

PROMPT = typer.Option(
    None, "--prompt", help="A prompt file, or a model folder that keeps its prompt, instead of a shipped prompt."
)
OUTPUT = typer.Option(OutputKind.text, "--output", help="json prints one line on standard output.")


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    prompts = typer.Typer(help="Prompts of generating rerankers: shipped ones, and your own.", no_args_is_help=True)
    prompts.command("list", epilog=LIST_EXAMPLES)(list_prompts)
    prompts.command("show", epilog=SHOW_EXAMPLES)(show)
    prompts.command("render", epilog=RENDER_EXAMPLES)(render)
    app.add_typer(
        prompts,
        name="prompts",
        epilog=PROMPTS_EXAMPLES,
    )


def list_prompts(output: OutputKind = OUTPUT) -> None:
    """List the prompts that come with rankwright."""
    from rankwright.prompts.ranking import load_ranking_prompt, shipped_prompts

    found = [load_ranking_prompt(name) for name in shipped_prompts()]
    if output is OutputKind.json:
        emit({"prompts": [_described(prompt) for prompt in found]})
        return
    table = Table(title=f"{len(found)} prompts")
    for column in ("name", "kind", "parser", "what it asks for"):
        table.add_column(column, overflow="fold")
    for prompt in found:
        table.add_row(prompt.version, prompt.kind, prompt.parser, prompt.about)
    print_out(table)


def show(
    name: str | None = typer.Argument(None, help="A shipped prompt; leave it out with --prompt."),
    prompt: Path | None = PROMPT,
    output: OutputKind = OUTPUT,
) -> None:
    """Print the file of a prompt, from which your own can be written."""
    found, _ = _chosen(prompt, [name] if name is not None else [])
    if output is OutputKind.json:
        turns = [{"role": turn.role, "text": turn.text, "each": turn.each} for turn in found.turns]
        emit({**_described(found), "messages": turns})
    else:
        write_out(found.source)  # as it is, so that a copy keeps the version


def render(
    texts: list[str] = typer.Argument(
        ..., metavar="[NAME] PASSAGES...", help="A shipped prompt, unless --prompt is given; then passages."
    ),
    query: str = typer.Option(..., "--query", help="The query."),
    prompt: Path | None = PROMPT,
    output: OutputKind = OUTPUT,
) -> None:
    """Print the messages that a language model is sent, exactly as they are."""
    from rankwright.types import as_documents, as_query

    found, passages = _chosen(prompt, texts)
    if not passages:
        raise ConfigurationError(
            f"Prompt '{found.version}' was given no passage to show; wanted one or more. Put them behind its name."
        )
    rendered = found.rendered(as_query(query), as_documents(passages))
    if output is OutputKind.json:
        messages = [{"role": role, "content": content} for role, content in rendered.messages]
        emit({"name": found.version, "messages": messages, "passages": len(passages), "cut": rendered.cut})
        return
    for role, content in rendered.messages:
        write_out(f"--- {role}\n{harmless(content)}\n")
    if rendered.cut:
        say(f"{rendered.cut} of {len(passages)} passages were cut to {found.shown.limit} {found.shown.unit}.")


def _chosen(prompt: Path | None, texts: list[str]) -> tuple[RankingPrompt, list[str]]:
    """The prompt, and the texts that do not name it."""
    from rankwright.prompts.ranking import load_ranking_prompt

    if prompt is not None:
        return load_ranking_prompt(prompt), texts
    if not texts:
        raise ConfigurationError(
            "Neither the name of a prompt nor --prompt was given; wanted one. `rankwright prompts list` has the names."
        )
    return load_ranking_prompt(texts[0]), texts[1:]


def _described(prompt: RankingPrompt) -> dict[str, Any]:
    return {
        "name": prompt.version,
        "kind": prompt.kind,
        "parser": prompt.parser,
        "identifiers": prompt.identifier_style,
        "max_documents": prompt.most,
        "thinking": prompt.tags.thinking or None,
        "answer": prompt.tags.answer or None,
        "passage_limit": prompt.shown.limit,
        "passage_unit": prompt.shown.unit if prompt.shown.limit else None,
        "logprobs": prompt.needs_logprobs,
        "sampling": dict(prompt.sampling),
        "options": dict(prompt.options),
        "about": prompt.about,
    }
