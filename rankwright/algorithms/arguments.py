"""TrainingArguments that a run may set, and what each takes; imports no torch, so that the command line can refuse a
wrong one before anything is loaded.

Which optimizers and schedules there are only transformers knows: `rankwright.training` looks at those names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rankwright.errors import ConfigurationError


class Argument(NamedTuple):
    """What a TrainingArgument takes."""

    wanted: str
    """In words."""
    read: Callable[[Any], Any]
    """Gives the value as the Trainer wants it, or raises a ValueError."""


def _number(value: Any) -> float:
    """A finite number; of text too, because YAML 1.1 reads 1e-4 as text."""
    number = float(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not -math.inf < number < math.inf:
        raise ValueError
    return number


def _number_where(good: Callable[[float], bool], wanted: str) -> Argument:
    def read(value: Any) -> float:
        number = _number(value)
        if not good(number):
            raise ValueError
        return number

    return Argument(wanted, read)


def _whole_from(smallest: int) -> Argument:
    def read(value: Any) -> int:
        number = _number(value)
        if number != int(number) or number < smallest:
            raise ValueError
        return int(number)

    return Argument(f"a whole number, {smallest} or more", read)


def _or_none(argument: Argument) -> Argument:
    return Argument(f"{argument.wanted}, or null", lambda value: None if value is None else argument.read(value))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _texts(value: Any) -> str | list[str]:
    return [_text(part) for part in value] if isinstance(value, list | tuple) else _text(value)


def _settings(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError
    return {_text(name): _number_if_it_is_one(part) for name, part in value.items()}


def _number_if_it_is_one(value: Any) -> Any:
    try:
        return _number(value)
    except ValueError:
        return value


FLAG = Argument("true or false", _flag)
DECAY = _number_where(lambda number: 0 <= number < 1, "a number from 0 to below 1")
FROM_ZERO = _number_where(lambda number: number >= 0, "a number, 0 or more")
ABOVE_ZERO = _number_where(lambda number: number > 0, "a number above 0")
ARGUMENTS: Mapping[str, Argument] = {
    "adam_beta1": DECAY,
    "adam_beta2": DECAY,
    "adam_epsilon": ABOVE_ZERO,
    "bf16": FLAG,
    "dataloader_num_workers": _whole_from(0),
    "fp16": FLAG,
    "lr_scheduler_kwargs": Argument("settings by name, like {num_cycles: 2}", _settings),
    "lr_scheduler_type": Argument("the name of a schedule", _text),
    "max_grad_norm": FROM_ZERO,
    "max_steps": _whole_from(-1),
    "optim": Argument("the name of an optimizer", _text),
    "report_to": Argument("the name of a tracker, a list of names, or none", _texts),
    "run_name": Argument("text (a number in quotes)", _text),
    "save_total_limit": _or_none(_whole_from(0)),
    "use_cpu": FLAG,
    "warmup_steps": FROM_ZERO,
    "weight_decay": FROM_ZERO,
}
SUPPORTED_ARGUMENTS = frozenset(ARGUMENTS)
"""TrainingArguments that `TrainConfig.trainer` may set; the others are set from TrainConfig or make no sense here."""


def checked_arguments(given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """TrainingArguments as the Trainer takes them: numbers that came as text are numbers.

    Args:
        given: name -> value.
        prefix: what stands before a name where the user sets it, for the message.

    Raises:
        ConfigurationError: a name that cannot be set, or a value of the wrong kind or out of range.
    """
    unknown = sorted(str(name) for name in given if name not in ARGUMENTS)
    if unknown:
        raise ConfigurationError(
            f"TrainingArguments {', '.join(unknown)} cannot be set; wanted some of {', '.join(ARGUMENTS)}. "
            "Epochs, batch size, learning rate, evaluation and seed have settings of their own."
        )
    return {name: _checked(name, value, prefix) for name, value in given.items()}


def _checked(name: str, value: Any, prefix: str) -> Any:
    try:
        return ARGUMENTS[name].read(value)
    except ValueError:
        raise ConfigurationError(
            f"Setting {prefix}{name} is {value!r}; wanted {ARGUMENTS[name].wanted}. See docs/settings.md."
        ) from None
