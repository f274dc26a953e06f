"""A reward from the user's own function, called the way TRL's GRPO trainer calls reward functions.

def short_and_right(prompts, completions, answers, **kwargs):
    return [float(c in a) / (1 + len(c.split())) for c, a in zip(completions, answers)]

async def judged(prompts, completions, **kwargs):
    return await asyncio.gather(*map(ask, prompts, completions), return_exceptions=True)
"""

from __future__ import annotations

import asyncio
import atexit
import importlib
import inspect
import logging
import math
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from numbers import Real
from pathlib import Path
from typing import Any

from rankwright.errors import ConfigurationError, RewardError
from rankwright.rewards.judged import check_judged, choice_of, order_of
from rankwright.rewards.ladders import is_whole
from rankwright.types import Answer, Choice, Outcome, Reward, RewardValue

log = logging.getLogger(__name__)

_COMMON = ("prompts", "completions", "answers", "doc_ids")
_OF_ANSWERS = (*_COMMON, "position")
_OF_COMPLETIONS = (*_COMMON, "relevance", "orders", "outcomes")


def function_reward(spec: str, options: Mapping[str, Any] | None = None) -> Reward:
    """The reward computed by a function that is named as `package.module:function`.

    The function is called with keywords only, each a list with one entry per answer: `prompts` (the questions),
    `completions` (the reader's answers), `answers` (lists of accepted answers), `doc_ids` (lists, in reading order) and
    `position` (number of ranking steps whose documents were read). It returns a list of numbers, larger is better, with
    None, or an exception, where it has no reward to give. Failed reads have no value and are not passed on. `options`
    are keywords that every call gets besides.

    An `async def` function is called in the same way and awaited on an event loop that stays the same for the whole
    run, as in TRL: clients with open connections may be kept between calls. It is given everything at once, so that
    asyncio.gather(..., return_exceptions=True) asks for all of it together and loses only what failed.

    A module is looked for among the installed ones and then in the current directory.

    Raises:
        ConfigurationError: the spec, the module, the function or its parameters do not fit.
        RewardError: later, from a call: the function raised or its return value is no list of finite numbers and None.
    """
    return _FunctionReward(spec, _checked_function(spec, options or {}, _OF_ANSWERS))


def completion_reward(spec: str, options: Mapping[str, Any] | None = None) -> Reward:
    """The same for what a language model wrote, which no reader sees: `completions` are its words, `doc_ids` those of
    its prompt in their order, `relevance` their grades by doc_id, `orders` the doc_ids as it ranked them (None where it
    wrote no order in the agreed form), `outcomes` ok or malformed.

    Raises:
        ConfigurationError, RewardError: as `function_reward`.
    """
    return _CompletionReward(spec, _checked_function(spec, options or {}, _OF_COMPLETIONS))


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
            returned = self.function(**self._columns(outcomes))
            if inspect.isawaitable(returned):
                returned = _awaited(returned)
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
        failed = [value for value in returned if isinstance(value, Exception)]
        if failed:
            log.warning(
                "Reward function '%s' failed on %d of %d completions, first with %s: %s. They have no reward.",
                self.name,
                len(failed),
                len(returned),
                type(failed[0]).__name__,
                failed[0],
            )
        return [self._checked(value, outcome) for value, outcome in zip(returned, outcomes, strict=True)]

    def _columns(self, outcomes: Sequence[Outcome]) -> dict[str, list[Any]]:
        return {
            **_common(outcomes, [o.result.text if isinstance(o.result, Answer) else "" for o in outcomes]),
            "position": [outcome.position for outcome in outcomes],
        }

    def _checked(self, value: object, outcome: Outcome) -> float | None:
        if value is None or isinstance(value, Exception):
            return None
        if not isinstance(value, Real) or not math.isfinite(value):
            raise RewardError(
                f"Reward function '{self.name}' returned {value!r} for question '{outcome.example.query.query_id}'; "
                "return a finite number, or None where there is no reward."
            )
        return float(value)


@dataclass(frozen=True)
class _CompletionReward(_FunctionReward):
    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        check_judged(outcomes, self.name)
        return [RewardValue(value) for value in (self._values(outcomes) if outcomes else [])]

    def _columns(self, outcomes: Sequence[Outcome]) -> dict[str, list[Any]]:
        return {
            **_common(outcomes, [outcome.completion for outcome in outcomes]),
            "relevance": [dict(outcome.example.relevance) for outcome in outcomes],
            "orders": [_order(outcome, self.name) for outcome in outcomes],
            "outcomes": [outcome.judgement.outcome if outcome.judgement else "malformed" for outcome in outcomes],
        }


def _common(outcomes: Sequence[Outcome], completions: list[str]) -> dict[str, list[Any]]:
    columns = (
        [outcome.context.query.text for outcome in outcomes],
        completions,
        [list(outcome.example.answers) for outcome in outcomes],
        [[document.doc_id for document in outcome.context.documents] for outcome in outcomes],
    )
    return dict(zip(_COMMON, columns, strict=True))


def _order(outcome: Outcome, reward: str) -> list[str] | None:
    """doc_ids as they were ranked, best first; of a choice the chosen one alone."""
    if not is_whole(outcome.judgement):
        return None
    choice = isinstance(outcome.judgement, Choice)
    places = (choice_of(outcome, reward),) if choice else order_of(outcome, reward)
    return [outcome.context.documents[place].doc_id for place in places]


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop for all async rewards of this process, in a thread of its own: connections that a function keeps
    open belong to their loop, and a new loop for every call would find them closed."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="rankwright-rewards", daemon=True)
    thread.start()

    def stop() -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(1)
        if not loop.is_running():
            loop.close()

    atexit.register(stop)
    return loop


def _awaited(work: Awaitable[Any]) -> Any:
    async def wait() -> Any:
        return await work

    future = asyncio.run_coroutine_threadsafe(wait(), _loop())
    try:
        return future.result()
    except BaseException:  # Ctrl-C must not leave calls behind that cost money
        future.cancel()
        raise


def _checked_function(spec: str, options: Mapping[str, Any], columns: Sequence[str]) -> Callable[..., Any]:
    function = _load(spec)
    _check_parameters(function, spec, (*columns, *options))
    return partial(function, **options) if options else function


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
    if not callable(function):
        raise ConfigurationError(
            f"Reward '{spec}' is of type {type(function).__name__}; name a function that returns a list."
        )
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


def _check_parameters(function: Callable[..., Any], spec: str, columns: Sequence[str]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Functions of compiled modules may not tell their parameters; the first call will show whether they fit.
        return
    try:
        signature.bind(**{column: [] for column in columns})
    except TypeError as error:
        raise ConfigurationError(
            f"Reward function '{spec}' has the parameters {signature}, which do not fit: {error}. "
            f"It is called with the keywords {', '.join(columns)}; add **kwargs for those it does not use."
        ) from error
