"""How to make a run or a comparison again: the commands on its page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwright.evaluation import Evaluation
from rankwright.reading import MAX_FAILED_READS

Record = Mapping[str, Any]

_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET_FLAG = re.compile(r"(--[\w-]*(?:key|token|secret|password)[\"',=\s]+)[^\s\"',]+", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """A command or setting as others may read it."""
    return _SECRET_FLAG.sub(r"\1(not-shown)", _USERINFO.sub("", text))


def begun_with(environment: Record) -> str:
    """The command of an environment.json, with a launcher where there were several processes, and without --resume,
    which fails where there is no run yet."""
    command = environment.get("command") or ""
    text = command if isinstance(command, str) else shlex.join(command)
    text = text.replace(" --resume", "")
    count = environment.get("processes", 1)
    if count > 1 and text.startswith("rankwright "):
        text = f"torchrun --nproc-per-node {count} -m rankwright.cli {text.removeprefix('rankwright ')}"
    return without_secrets(text)


def commands(evaluation: Evaluation, run: Record) -> list[tuple[str, str]]:
    """What is said of each command, and the command.

    Args:
        evaluation: the comparison.
        run: as `write_report` takes it; the commands of a training need its `config` and `folder`.
    """
    environment, config, folder = run.get("environment") or {}, run.get("config") or {}, run.get("folder")
    found = []
    if begun := begun_with(environment):
        count = environment.get("processes", 1)
        where = f" in {count} processes" if count > 1 else ""
        found.append((f"The run behind this page was started{where} with:", begun))
    if config and folder:
        found.append(
            (
                "Train again with the same settings, under another name (paths are as seen from where that was given):",
                _training(environment, folder),
            )
        )
        found.append((_said_before(config), _comparison(evaluation, config, folder)))
    elif config or not begun:  # else it is a comparison, and its command says all
        found.append(
            (
                "Compare the models again, with your data file and reader in place of the capitals:",
                _general(evaluation),
            )
        )
    return found


def _training(environment: Record, folder: str) -> str:
    """The run once more; of the demo, whose questions are its own, by its own verb."""
    command = begun_with({"command": environment.get("command")})
    verb = ["demo"] if command.startswith("rankwright demo") else ["train"]
    if verb == ["demo"] and "--shuffle-answers" in command:
        verb.append("--shuffle-answers")
    name = f"{Path(folder).resolve().name}-again"
    again = ["rankwright", *verb, "--config", f"{folder}/config.json", "--name", name]
    return begun_with({**environment, "command": again})


def _said_before(config: Record) -> str:
    if _writes(config):
        return (
            "Compare the models again, on the same candidates, each covered as the prompt's strategy does (in the run "
            "every question was one prompt or, with a pointwise one, a prompt for each candidate):"
        )
    return "Compare the models again, on the same questions and candidates:"


def _writes(config: Record) -> bool:
    return config.get("method") in ("grpo", "sft")


def _comparison(evaluation: Evaluation, config: Record, folder: str) -> str:
    """`rankwright eval` with all that the comparison of a run depends on."""
    model, settings = config.get("model") or {}, evaluation.settings
    start, trained = str(model.get("name", "reference")), f"{folder}/model"
    place = {"reference": start, "trained": trained}
    failed = config.get("max_failed_reads", MAX_FAILED_READS)
    if _writes(config):
        fixed = [name for name in evaluation.models if name not in place]
        models = [*fixed, "--llm", start, "--llm", trained, "--prompt", trained, "--reader", "none"]
        failed = 1.0  # a start may never end its answers
    else:
        models = [*(place.get(name, name) for name in evaluation.models), "--config", f"{folder}/config.json"]
    wanted = {
        "--data": folder,
        "--format": "evaluation",
        "--baseline": place.get(settings.baseline or "", start),
        "--depth": settings.depth,
        "--top-k": settings.top_k,
        "--seed": settings.seed,
    }
    if failed != MAX_FAILED_READS:
        wanted["--max-failed-reads"] = failed
    if model.get("device", "cpu") != "cpu":
        wanted["--device"] = model["device"]
    given = [str(part) for pair in wanted.items() for part in pair]
    return without_secrets(shlex.join(["rankwright", "eval", *models, *given]))


def _general(evaluation: Evaluation) -> str:
    settings = evaluation.settings
    retriever = "given" if settings.retriever == "given" else "bm25"
    baseline = ["--baseline", settings.baseline] if settings.baseline else []
    rest = shlex.join([*evaluation.models, *baseline])
    reader = "none" if settings.reader == "none" else "READER"
    return (
        f"rankwright eval {rest} --data FILE --retriever {retriever} --depth {settings.depth} "
        f"--top-k {settings.top_k} --reader {reader} --seed {settings.seed}"
    )
