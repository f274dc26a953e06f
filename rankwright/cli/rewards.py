"""The reward that a run's settings name, with its options."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from rankwright.cli.common import say
from rankwright.cli.settings import RunSettings, validated
from rankwright.errors import ConfigurationError
from rankwright.rewards import (
    RANKING_REWARDS,
    answer_reward,
    completion_reward,
    function_reward,
    needs_reader,
    ranking_reward,
    resolve_reward,
)
from rankwright.types import Reader, Reward

PREFIX = "reward_options."
OF_THE_READER_REWARD = ("anchored", "ladder", "tags")
"""Options of the reward `reader` that a run may set; who reads, and how much, it says elsewhere."""
REFERENCE = "reference"
"""Option of the reward erank: here the file with the scores, which `rerank --output json` printed."""


def check_reward(settings: RunSettings) -> None:
    """Whether the reward of a run is known and has such options; imports nothing heavy, and not the user's function.

    Raises:
        ConfigurationError: it is not, or has not.
    """
    name = settings.reward
    if settings.method not in ("rrpo", "grpo") or ":" in name:
        return
    if needs_reader(name):
        _answer_reward(name, _split(settings)[1])
        _checked("reader", _split(settings)[0])
    elif settings.method == "grpo":
        if _known(name) not in RANKING_REWARDS or _known(name) == "reader":
            raise ConfigurationError(
                f"Reward '{name}' is unknown; wanted one of "
                f"{', '.join(known for known in RANKING_REWARDS if known != 'reader')}, an answer metric (f1, em, "
                "sub_em, rouge_l), or package.module:function."
            )
        ranking_reward(name, **_checked(_known(name), settings.reward_options))


def answer_reward_of(settings: RunSettings) -> Reward:
    """What a reader's answer is worth.

    Raises:
        ConfigurationError: no such reward, or no such option.
    """
    return _answer_reward(settings.reward, _split(settings)[1])


def written_reward_of(settings: RunSettings, reader: Reader | None) -> Reward:
    """What a written judgement is worth: to a reader, where there is one.

    Raises:
        ConfigurationError: no such reward, or no such option.
    """
    if reader is not None:
        options = _checked("reader", _split(settings)[0])
        return ranking_reward(
            "reader", reader=reader, reward=answer_reward_of(settings), depth=settings.top_k, **options
        )
    if ":" in settings.reward:
        return completion_reward(settings.reward, settings.reward_options)
    return ranking_reward(settings.reward, **_checked(_known(settings.reward), settings.reward_options))


def _known(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _split(settings: RunSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the reward `reader`, where a written judgement is read, and those of what prices the answer."""
    writes = settings.method == "grpo"
    options = settings.reward_options
    own = {name: value for name, value in options.items() if writes and name in OF_THE_READER_REWARD}
    return own, {name: value for name, value in options.items() if name not in own}


def _answer_reward(name: str, options: Mapping[str, Any]) -> Reward:
    if ":" in name:
        return function_reward(name, options)
    if not options:
        return resolve_reward(name)
    known = [option for option in inspect.signature(answer_reward).parameters if option != "name"]
    _require_known(name, options, known)
    return answer_reward(name.strip().lower().replace("-", "_"), **_typed(options, get_type_hints(answer_reward)))


def _checked(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a ranking reward, each of the kind that its field wants."""
    kind = RANKING_REWARDS[name]
    known = [field.name for field in dataclasses.fields(kind)]
    if name == "reader":
        known = [option for option in known if option in OF_THE_READER_REWARD]
    _require_known(name, options, [*dict.fromkeys((*known, "tags"))])
    taken = {"tags": options["tags"]} if "tags" in options else {}
    if options.get(REFERENCE) is not None:
        taken[REFERENCE] = _scores_in(options[REFERENCE])
    rest = {option: value for option, value in options.items() if option not in taken}
    return _typed(rest, get_type_hints(kind)) | taken


def reference_file(settings: RunSettings) -> Path | None:
    """The file of scores that a reward is held against."""
    given = settings.reward_options.get(REFERENCE)
    return Path(given) if isinstance(given, str) else None


def _scores_in(given: object) -> dict[tuple[str, str], float]:
    """(query_id, doc_id) -> score.

    Raises:
        ConfigurationError: no such file, or something else stands in it.
    """
    try:
        path = Path(given) if isinstance(given, str) else Path()
        return _read_scores(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigurationError(
            f"Option {REFERENCE} is '{str(given)[:80]}' ({type(error).__name__}: {str(error)[:80]}); wanted the file "
            "that rankwright rerank --strategy pointwise --data FILE --output json printed for these questions."
        ) from None


@lru_cache(maxsize=1)
def _read_scores(path: Path, changed: int) -> dict[tuple[str, str], float]:
    """What stands in the file; it is read once as long as it was not `changed`, and what it lacks is said once."""
    found = json.loads(path.read_text("utf-8"))
    unread = found["outcomes"]["malformed"]
    if unread:
        say(f"{unread} scores of {path} could not be read; their passages count as the lowest of their question.")
    return {
        (str(row["query_id"]), str(doc_id)): _finite(score)
        for row in found["rankings"]
        for doc_id, score in zip(row["doc_ids"], row["scores"], strict=True)
    }


def _finite(score: object) -> float:
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(f"a score is {score!r}")
    return float(score)


def _require_known(reward: str, options: Mapping[str, Any], known: list[str]) -> None:
    wrong = next((option for option in options if option not in known), None)
    if wrong is None:
        return
    raise ConfigurationError(
        f"Reward '{reward}' was given the option '{wrong}'; its options are {', '.join(known)}. See "
        "docs/ranking-rewards.md."
    )


def _typed(options: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    return {name: validated(TypeAdapter(hints[name]), value, PREFIX + name) for name, value in options.items()}
