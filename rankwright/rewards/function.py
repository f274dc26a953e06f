"""A reward from the user's own function, called the way TRL's GRPO trainer calls reward functions.

def short_and_right(prompts, completions, answers, **kwargs):
    return [float(c in a) / (1 + len(c.split())) for c, a in zip(completions, answers)]
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from rankwright.errors import ConfigurationError, RewardError
from rankwright.types import Answer, Outcome, Reward, RewardValue

_COLUMNS = ("prompts", "completions", "answers", "doc_ids", "position")


def function_reward(spec: str) -> Reward:
    """The reward computed by a function that is named as `package.module:function`.

    The function is called with keywords only, each a list with one entry per answer: `prompts` (the questions),
    `completions` (the reader's answers), `answers` (lists of accepted answers), `doc_ids` (lists, in reading order) and
    `position` (number of ranking steps whose documents were read). It returns a list of numbers, larger is better, with
    None where it has no reward to give. Failed reads have no value and are not passed on.

    A module is looked for among the installed ones and then in the current directory.

    Raises:
        ConfigurationError: the spec, the module, the function or its parameters do not fit.
        RewardError: later, from a call: the function raised or its return value is no list of finite numbers and None.
    """
    function = _load(spec)
    _check_parameters(function, spec)
    return _FunctionReward(spec, function)


@dataclass(frozen=True)
class _FunctionReward:
    name: str
    function: Callable[..., Any]

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        read = [(index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome.result, Answer)]
        values = [RewardValue(None)] * len(outcomes)
        if not read:
            return values
        for (index, _), value in zip(read, self._values([outcome for _, outcome in read]), strict=True):
            values[index] = RewardValue(value)
        return values

    def _values(self, outcomes: Sequence[Outcome]) -> list[float | None]:
        try:
            returned = self.function(**_columns(outcomes))
        except Exception as error:
            raise RewardError(
                f"Reward function '{self.name}' raised {type(error).__name__} ({error}) on {len(outcomes)} answers; "
                "it may return None for an answer that it cannot price. Correct the function."
            ) from error
        if not isinstance(returned, list | tuple):
            raise RewardError(
                f"Reward function '{self.name}' returned {type(returned).__name__}; "
                "return a list with one number or None per completion (for arrays and tensors: .tolist())."
            )
        if len(returned) != len(outcomes):
            raise RewardError(
                f"Reward function '{self.name}' returned {len(returned)} values for {len(outcomes)} completions; "
                "return one per completion, in order."
            )
        return [self._checked(value, outcome) for value, outcome in zip(returned, outcomes, strict=True)]

    def _checked(self, value: object, outcome: Outcome) -> float | None:
        if value is None:
            return None
        if not isinstance(value, Real) or not math.isfinite(value):
            raise RewardError(
                f"Reward function '{self.name}' returned {value!r} for question '{outcome.example.query.query_id}'; "
                "return a finite number, or None where there is no reward."
            )
        return float(value)


def _columns(outcomes: Sequence[Outcome]) -> dict[str, list[Any]]:
    columns = (
        [outcome.context.query.text for outcome in outcomes],
        [outcome.result.text if isinstance(outcome.result, Answer) else "" for outcome in outcomes],
        [list(outcome.example.answers) for outcome in outcomes],
        [[document.doc_id for document in outcome.context.documents] for outcome in outcomes],
        [outcome.position for outcome in outcomes],
    )
    return dict(zip(_COLUMNS, columns, strict=True))


def _load(spec: str) -> Callable[..., Any]:
    module_name, separator, function_name = spec.partition(":")
    if not separator or not module_name or not function_name.isidentifier():
        raise ConfigurationError(f"Reward '{spec}' does not name a function; write package.module:function.")
    module = _import(module_name, spec)
    function = getattr(module, function_name, None)
    if function is None:
        where = getattr(module, "__file__", None) or module_name
        raise ConfigurationError(
            f"Reward '{spec}' names '{function_name}', which {where} does not define; correct the name, "
            "or rename the module if another one of the same name was found first."
        )
    if not callable(function) or inspect.iscoroutinefunction(function):
        found = "an async function" if callable(function) else f"of type {type(function).__name__}"
        raise ConfigurationError(f"Reward '{spec}' is {found}; name a plain function that returns a list.")
    return function


def _import(module_name: str, spec: str) -> Any:
    # Last in line, so that no file of the user's folder can hide an installed package; kept, for imports made later.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"Reward '{spec}' cannot be imported: there is no module '{error.name}'. "
            "Run from the folder that holds it, or install it."
        ) from error
    except Exception as error:
        raise ConfigurationError(
            f"Reward '{spec}' cannot be imported: module '{module_name}' raised {type(error).__name__} ({error}). "
            "Correct the module."
        ) from error


def _check_parameters(function: Callable[..., Any], spec: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Functions of compiled modules may not tell their parameters; the first call will show whether they fit.
        return
    try:
        signature.bind(**{column: [] for column in _COLUMNS})
    except TypeError as error:
        raise ConfigurationError(
            f"Reward function '{spec}' has the parameters {signature}, which do not fit: {error}. "
            f"It is called with the keywords {', '.join(_COLUMNS)}; add **kwargs for those it does not use."
        ) from error
