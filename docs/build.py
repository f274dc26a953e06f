"""`make docs`: writes the pages that come from code (api, cli, settings) and the tables of recipes inside of others,
and checks what the other pages say of files.

Plain Markdown is read where it lies, so there is no site to build. tests/test_docs.py calls the same functions.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import rankwright

ROOT = Path(__file__).resolve().parent.parent
API_PAGE = ROOT / "docs" / "api.md"
CLI_PAGE = ROOT / "docs" / "cli.md"
SETTINGS_PAGE = ROOT / "docs" / "settings.md"
README = ROOT / "README.md"
RECIPES = ROOT / "rankwright" / "recipes"
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]*))?\)")  # target and anchor; absolute URLs are left out
LINE_LINK = re.compile(r"\[`([\w.]+)`\]\(([^)#\s]+\.py)#L(\d+)\)")  # a name of code, its file, its line
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)
RECIPE = re.compile(r"(<!-- recipe ([\w-]+) -->\n).*?(<!-- end of recipe -->)", re.DOTALL)
COMMAND = re.compile(r"^\s*(?:\$ |\w+=\S+ |cat \S+ \| )*(?:rankwright|curl|docker|git|make|pip|python|torchrun) ")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
NOT_OURS = {("runs",), ("benchmarks", "work"), ("build",), ("dist",)}
"""Folders of outputs."""

TRAINING_ARGUMENTS: Mapping[str, str] = {
    "adam_beta1": "Decay of Adam's mean.",
    "adam_beta2": "Decay of Adam's variance.",
    "adam_epsilon": "Added to Adam's denominator.",
    "bf16": "bfloat16 autocast in the policy's forward pass; weights stay fp32.",
    "dataloader_num_workers": "Processes that prepare batches of questions.",
    "fp16": "fp16 autocast; needs a GPU.",
    "lr_scheduler_kwargs": "Further settings of the schedule.",
    "lr_scheduler_type": "How the learning rate goes down after the warm-up.",
    "max_grad_norm": "Longer gradients are shortened to this; 0 leaves them as they are.",
    "max_steps": "Optimizer steps in all; overrides epochs where it is above 0.",
    "optim": "The optimizer.",
    "report_to": "A tracker that gets the log too, for example tensorboard.",
    "run_name": "What the tracker calls the run.",
    "save_total_limit": "Newest checkpoints kept, besides the best one; 0 or null keeps all.",
    "use_cpu": "Stay on the CPU; by default so where `model.device` is cpu.",
    "warmup_steps": "Steps (a whole number) or share of all steps (below 1) with a rising learning rate.",
    "weight_decay": "AdamW's weight decay.",
}


# --- api.md


def _signature(thing: Any) -> str:
    try:
        # A default path below this checkout is printed as it lies in the package, the same on every machine.
        return re.sub(rf"\w*Path\('{re.escape(str(ROOT))}/([^']*)'\)", r"Path('\1')", str(inspect.signature(thing)))
    except (TypeError, ValueError):
        return ""  # exceptions and protocols have none worth printing


def _methods(thing: Any) -> Iterator[tuple[str, Any]]:
    for name, member in vars(thing).items():
        if not name.startswith("_") and inspect.isfunction(member) and member.__doc__:
            yield name, member


def api_page() -> str:
    """The reference of all public names, in the order of `rankwright.__all__`.

    Raises:
        SystemExit: a public name has no docstring.
    """
    parts = [
        "# API",
        "Written by `make docs` from the docstrings; every name imports from `rankwright`.",
        "The verbs of the command line are functions of the same names.",
    ]
    for name in rankwright.__all__:
        thing = getattr(rankwright, name)
        if isinstance(thing, str):
            continue  # __version__
        text = inspect.getdoc(thing)
        if not text:
            raise SystemExit(f"Public name 'rankwright.{name}' has no docstring; describe it in {thing.__module__}.")
        parts += [f"## {name}", f"```python\n{thing.__module__}.{name}{_signature(thing)}\n```", text]
        if inspect.isclass(thing):
            for method, function in _methods(thing):
                parts += [f"```python\n{name}.{method}{_signature(function)}\n```", inspect.getdoc(function) or ""]
    return "\n\n".join(parts) + "\n"


# --- cli.md


def cli_page() -> str:
    """Every verb with what its `--help` says: purpose, arguments, options with their defaults, examples."""
    import typer.main

    import rankwright.cli
    from rankwright.cli.app import app

    root = typer.main.get_command(app)
    parts = [
        "# Command line",
        "Written by `make docs` from what `rankwright VERB --help` prints.",
        inspect.getdoc(rankwright.cli) or "",
        *_command_parts(root, "rankwright", 1),
    ]
    return "\n\n".join(parts) + "\n"


def _command_parts(command: Any, path: str, level: int) -> Iterator[str]:
    """A command and its sub-commands, each with a heading; the root is the page itself."""
    if level > 1:
        yield f"{'#' * level} {path}"
        yield inspect.cleandoc(command.help or "")
    context = command.make_context(path, [], resilient_parsing=True)
    records = [(p.param_type_name, p.get_help_record(context)) for p in command.params]
    for kind in ("argument", "option"):
        rows = [
            (f"`{names}`", " ".join(text.split()))
            for of, (names, text) in filter(_shown_in_help, records)
            if of == kind
        ]
        if rows:
            yield _table((kind, "meaning"), rows)
    if command.epilog:
        yield inspect.cleandoc(command.epilog)
    for name, verb in getattr(command, "commands", {}).items():
        yield from _command_parts(verb, f"{path} {name}", level + 1)


def _shown_in_help(record: tuple[str, Any]) -> bool:
    return record[1] is not None


# --- settings.md


class Field(NamedTuple):
    """One field of a settings class, as its source shows it."""

    kind: str
    text: str
    """The docstring under the field; empty where there is none."""


def fields_of(source: Path, class_name: str) -> dict[str, Field]:
    """The annotated fields of a class in order, with the docstrings that stand under them."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name).body
    found: dict[str, Field] = {}
    for node, following in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if node.target.id.startswith("_"):
            continue  # pydantic's own
        found[node.target.id] = Field(_kind(node.annotation), _docstring(following))
    return found


def _kind(annotation: ast.expr) -> str:
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        return " or ".join(ast.unparse(value).strip("'") for value in ast.walk(annotation) if _is_text(value))
    return ast.unparse(annotation).replace(" | ", " or ")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _docstring(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and _is_text(node.value):
        return " ".join(ast.literal_eval(node.value).split())
    return ""


def settings_page() -> str:
    """Every setting of a run: name, kind, default, meaning.

    Raises:
        SystemExit: a setting has no description.
    """
    from rankwright.cli.settings import RunSettings

    own = ROOT / "rankwright/cli/settings.py"
    config = ROOT / "rankwright/algorithms/config.py"
    generating = ROOT / "rankwright/algorithms/generating.py"
    defaults = RunSettings()
    parts = [SETTINGS_INTRODUCTION, "## Run", _settings_table("", fields_of(own, "RunSettings"), defaults)]
    groups = (
        ("data", "Data", fields_of(own, "DataSettings")),
        ("model", "Model", fields_of(own, "ModelSettings")),
        ("reader", "Reader", fields_of(own, "ReaderSettings")),
        ("expansion", "Expansion", fields_of(own, "ExpansionSettings")),
        ("loop", "Loop", fields_of(config, "TrainConfig")),
        ("rrpo", "RRPO", fields_of(config, "RRPOConfig")),
        ("generating", "Generating", fields_of(generating, "GeneratingConfig")),
        ("grpo", "GRPO", fields_of(generating, "GRPOConfig")),
        ("sft", "SFT", fields_of(generating, "SFTConfig")),
        ("budget", "Budget", fields_of(ROOT / "rankwright/budget.py", "BudgetConfig")),
    )
    for prefix, title, fields in groups:
        parts += [f"## {title}", _settings_table(f"{prefix}.", fields, getattr(defaults, prefix))]
    parts += ["## Training arguments", ARGUMENTS_INTRODUCTION, _arguments_table()]
    return "\n\n".join(parts) + "\n"


SETTINGS_INTRODUCTION = """# Settings

Written by `make docs` from the docstrings under the fields of `rankwright/cli/settings.py`, `algorithms/config.py`,
`algorithms/generating.py` and `budget.py`.

A run is decided by one tree of settings. Four things fill it, the later wins: a paper's recipe (`--recipe NAME`), a
YAML file (`--config FILE`), the flags of [`rankwright train`](cli.md#rankwright-train), and `--set NAME=VALUE` with the
names below, which may be repeated.

```yaml
method: rrpo
data: {train: questions.jsonl, corpus: passages.jsonl, depth: 10}
rrpo: {samples: 8, beta: 0.05}
```

The same as flags: `--data questions.jsonl --corpus passages.jsonl --depth 10 --set rrpo.samples=8 --set rrpo.beta=0.05`

A name that is not in these tables is an error, so that a misspelt setting is not ignored. The run folder keeps the
whole tree in `config.json`. `--resume` wants the same settings again, except those of reader and expansion that decide
how fast answers come and not which (`cache`, `concurrency`, `requests_per_minute`, `tokens_per_minute`, `api_key_env`,
`price_input`, `price_output`, `deadline`, `attempt_timeout`, `max_retries`), `max_failed_reads`,
`rrpo.max_failed_reads`, `expansion.max_failed`, `loop.stop_on_alarm`, of GRPO `completions_per_pass`,
`completions_at_once`, `generation` and `max_failed_rewards`, and all of `budget`."""

ARGUMENTS_INTRODUCTION = """`loop.trainer` takes these arguments of
[transformers.TrainingArguments](https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments),
for example `--set loop.trainer.weight_decay=0.1`. Any other argument is refused with this list: epochs, batch size,
accumulation, learning rate, evaluation, checkpoints and seed have settings of their own. Defaults are those of
transformers, unless the table names one."""


def _settings_table(prefix: str, fields: Mapping[str, Field], defaults: Any) -> str:
    rows = []
    for name, field in fields.items():
        default = getattr(defaults, name)
        if dataclasses.is_dataclass(default):
            continue  # a group with a table of its own
        if not field.text:
            raise SystemExit(f"Setting '{prefix}{name}' has no docstring under it; say what it does.")
        rows.append((f"`{prefix}{name}`", field.kind, _shown(default), field.text))
    return _table(("setting", "value", "default", "meaning"), rows)


def _shown(value: Any) -> str:
    if value in ("", None, {}):
        return "none"
    return f"`{value}`"


def _arguments_table() -> str:
    """The supported arguments; a default is printed where ours differs from that of transformers."""
    from transformers import TrainingArguments

    from rankwright.algorithms.config import TrainConfig
    from rankwright.training import SUPPORTED_ARGUMENTS, _training_arguments

    undescribed = sorted(SUPPORTED_ARGUMENTS - TRAINING_ARGUMENTS.keys())
    if undescribed:
        raise SystemExit(f"Training arguments {', '.join(undescribed)} are not described in docs/build.py; add them.")
    ours = _training_arguments(TrainConfig(), ROOT / "runs", has_dev=True)
    theirs = TrainingArguments(output_dir=str(ROOT / "runs"))
    rows = []
    for name in sorted(SUPPORTED_ARGUMENTS):
        # use_cpu depends on the machine that writes the page
        differs = name != "use_cpu" and getattr(ours, name) != getattr(theirs, name)
        default = getattr(ours, name)
        rows.append(
            (f"`{name}`", _shown(getattr(default, "value", default)) if differs else "", TRAINING_ARGUMENTS[name])
        )
    return _table(("argument", "our default", "meaning"), rows)


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


# --- recipes, inside of docs/systems/*.md


def recipe_table(name: str) -> str:
    """Every value of a shipped recipe with its source, those of all stages first."""
    tree = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    rows = [
        (f"`{key}`", stage, f"`{json.dumps(given['value'])}`", given["source"], given["where"])
        for stage, settings in {"all": tree["settings"], **tree["stages"]}.items()
        for key, given in settings.items()
    ]
    return _table(("setting", "stage", "value", "source", "where, or why"), rows)


def with_recipes(text: str) -> str:
    """A page's text with each recipe's values anew between `<!-- recipe NAME -->` and `<!-- end of recipe -->`."""
    return RECIPE.sub(lambda mark: f"{mark[1]}{recipe_table(mark[2])}\n{mark[3]}", text)


# --- checks


def pages() -> list[Path]:
    """Markdown pages of the project, outside hidden folders and outputs."""
    found = (p.relative_to(ROOT) for p in ROOT.rglob("*.md"))
    ours = (p for p in found if not any(x.startswith(".") for x in p.parts))
    return [ROOT / p for p in sorted(ours) if not NOT_OURS & {p.parts[:1], p.parts[:2]}]


def anchors(text: str) -> set[str]:
    """Anchors that forges give to the headings of a page: lower case, punctuation dropped, spaces to hyphens."""
    without_blocks = CODE.sub(lambda code: "" if "\n" in code.group() else code.group().strip("`"), text)
    titles = HEADING.findall(without_blocks)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page whose file or anchor does not exist, each as `page: link`."""
    text = page.read_text(encoding="utf-8")
    broken: list[str] = []
    for target, anchor in LINK.findall(CODE.sub("", text)):
        linked = (page.parent / target) if target else page
        missing_anchor = anchor and linked.suffix == ".md" and linked.is_file()
        if not linked.exists() or (missing_anchor and anchor not in anchors(linked.read_text(encoding="utf-8"))):
            broken.append(f"{page.name}: {target}{'#' + anchor if anchor else ''}")
    return broken


def unjoined_commands(text: str) -> list[str]:
    """Lines of commands that go on in the next line, as deeper indentation or an option there shows, and do not end in
    a backslash: pasted, the first line would run alone."""
    lines, broken, goes_on = text.splitlines(), [], False
    for line, following in itertools.pairwise(lines):
        deeper = len(following) - len(following.lstrip()) > len(line) - len(line.lstrip())
        option = following.strip().startswith("-")
        if line.endswith("\\"):
            goes_on = goes_on or COMMAND.match(line) is not None
            continue
        if following.strip() and ((COMMAND.match(line) and (deeper or option)) or (goes_on and option)):
            broken.append(line.strip())
        goes_on = False
    return broken


def definitions(source: str) -> dict[str, tuple[int, int]]:
    """First and last line of every class, function, method and module constant, by dotted name."""
    found: dict[str, tuple[int, int]] = {}

    def visit(nodes: list[ast.stmt], prefix: str) -> None:
        for node in nodes:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found[prefix + node.name] = (node.lineno, node.end_lineno or node.lineno)
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Name):
                        found[prefix + target.id] = (node.lineno, node.end_lineno or node.lineno)

    visit(ast.parse(source).body, "")
    return found


def astray_lines(page: Path) -> list[str]:
    """Links of the form [`name`](file.py#L12) whose line does not lie in the definition of that name."""
    astray: list[str] = []
    for name, target, line in LINE_LINK.findall(page.read_text(encoding="utf-8")):
        file = page.parent / target
        first, last = definitions(file.read_text(encoding="utf-8")).get(name, (0, 0)) if file.is_file() else (0, 0)
        if not first <= int(line) <= last:
            astray.append(f"{page.name}: {name} in {target}, line {line}")
    return astray


def with_lines(page: Path) -> str:
    """The page's text with the line of every such link set to where the definition begins now."""

    def renewed(link: re.Match[str]) -> str:
        file = page.parent / link[2]
        known = definitions(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return f"[`{link[1]}`]({link[2]}#L{known[link[1]][0]})" if link[1] in known else link[0]

    return LINE_LINK.sub(renewed, page.read_text(encoding="utf-8"))


def tree_paths(text: str) -> set[str]:
    """Paths of the tree that a page draws: the fenced block that begins with `rankwright/`, two blanks a level."""
    block = re.search(r"^```\nrankwright/\s.*?^```", text, re.MULTILINE | re.DOTALL)
    paths: set[str] = set()
    parents: list[str] = []
    for line in block.group().splitlines()[1:-1] if block else ():
        name = line.split()[0]
        level = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:level], name.rstrip("/")]
        paths.add("/".join(parents) + ("/" if name.endswith("/") else ""))
    return paths


def tree_differences(page: Path = README) -> list[str]:
    """What the drawn tree leaves out or invents. A folder that is drawn without entries stands for all below it."""
    drawn = tree_paths(page.read_text(encoding="utf-8"))
    whole = tuple(
        path for path in drawn if path.endswith("/") and not any(p.startswith(path) and p != path for p in drawn)
    )
    package = (p for p in (ROOT / "rankwright").rglob("*") if "__pycache__" not in p.parts)
    top = (p for p in ROOT.iterdir() if not p.name.startswith(".") and (p.name,) not in NOT_OURS)
    there = {str(p.relative_to(ROOT)) + ("/" if p.is_dir() else "") for p in (*package, *top)}
    missing = sorted(path for path in there - drawn if not path.startswith(whole))
    invented = sorted(path for path in drawn if not (ROOT / path).exists())
    return [f"{page.name} leaves out {path}" for path in missing] + [f"{page.name} invents {path}" for path in invented]


def main() -> None:
    """Write the pages, renew lines in links and tables of recipes, then end with an error where a link or a path leads
    nowhere."""
    for path, content in ((API_PAGE, api_page()), (CLI_PAGE, cli_page()), (SETTINGS_PAGE, settings_page())):
        path.write_text(content, encoding="utf-8")
    for page in pages():
        page.write_text(with_recipes(with_lines(page)), encoding="utf-8")
    wrong = [line for page in pages() for line in (*broken_links(page), *astray_lines(page))] + tree_differences()
    wrong += [f"{page.name}: {line}" for page in pages() for line in unjoined_commands(page.read_text("utf-8"))]
    if wrong:
        sys.exit("Pages that do not fit the files; correct them:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
