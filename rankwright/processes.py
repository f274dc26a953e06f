"""Training in several processes (torchrun, accelerate launch): each scores a share of the questions; what costs money
or decides something is done by the first one alone and told to the others.

With one process every function here is what it would be without this module.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from threading import Timer
from typing import TYPE_CHECKING, Any, TypeVar

from rankwright.errors import ConfigurationError, RankwrightError, TrainingError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""The others wait while the first process reads."""

LAST_WORK = 0.2
"""Seconds for the threads of gloo to end their last work; they take a thousandth of that."""

TOLD_AFTER = 20.0
"""Seconds of waiting for the others before that is told: launchers need some."""

LAUNCHER = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What every launcher of several processes sets, beside WORLD_SIZE."""


def meet(device: str) -> None:
    """Joins the processes that the launcher started; one that was started alone has nobody to meet, whatever a
    LOCAL_RANK says that an earlier launcher may have left.

    Raises:
        ConfigurationError: a WORLD_SIZE above 1 without what else a launcher sets.
    """
    if _have_met():
        return
    if started() > 1:
        if missing := [name for name in LAUNCHER if not os.environ.get(name)]:
            raise ConfigurationError(
                f"Environment variable WORLD_SIZE is {os.environ['WORLD_SIZE']!r}, but not set: {', '.join(missing)}; "
                "wanted all that launchers of several processes set (torchrun, accelerate launch). Unset WORLD_SIZE "
                "where there is no launcher."
            )
        from accelerate import PartialState

        with _telling_of_the_wait():
            PartialState(cpu=device == "cpu", timeout=PATIENCE)
        atexit.register(_part)
    elif "MASTER_ADDR" not in os.environ:
        os.environ.pop("LOCAL_RANK", None)  # accelerate would look for others, of whom nothing tells


def _part() -> None:
    """Leaves the others. A thread of gloo that still lets go of its last work, for which it needs Python, would be
    ended in the midst of C++ when Python ends, and that aborts the process, whatever it came to."""
    time.sleep(LAST_WORK)
    if _have_met():
        _distributed().destroy_process_group()


@contextmanager
def _telling_of_the_wait() -> Iterator[None]:
    """Or a process that was started alone, with all that a launcher sets, would wait for days without a word."""
    words = "Waiting for all %s processes of WORLD_SIZE at %s:%s. Where no launcher started them, unset WORLD_SIZE."
    place = (os.environ[name] for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    timer = Timer(TOLD_AFTER, logger.warning, (words, *place))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def started() -> int:
    """Processes that the launcher started, as it says.

    Raises:
        ConfigurationError: it says no number.
    """
    return _number("WORLD_SIZE", "1", least=1)


def _number(variable: str, default: str, least: int) -> int:
    value = os.environ.get(variable, default)
    if value.isdecimal() and int(value) >= least:
        return int(value)
    raise ConfigurationError(
        f"Environment variable {variable} is {value!r}; wanted a whole number from {least}, as launchers of several "
        "processes set it (torchrun, accelerate launch). Unset it where there is no launcher."
    )


def own_device(device: str) -> str:
    """`cuda` means another GPU to each process of a machine."""
    number = os.environ.get("LOCAL_RANK")
    return f"cuda:{number}" if device == "cuda" and number and count() > 1 else device


def count() -> int:
    """Processes that train together; those that have not met yet do not count."""
    return _distributed().get_world_size() if _have_met() else 1


def rank() -> int:
    """Number of this process, from 0; before they have met, as the launcher says. One that was started alone is the
    first, whatever a RANK says that an earlier launcher may have left.

    Raises:
        ConfigurationError: it says no number.
    """
    if _have_met():
        return _distributed().get_rank()
    return _number("RANK", "0", least=0) if started() > 1 else 0


def _have_met() -> bool:
    # Who has not loaded torch has met nobody, and need not load it for the answer.
    return sys.modules.get("torch") is not None and _distributed().is_available() and _distributed().is_initialized()


def _distributed() -> Any:
    from torch import distributed

    return distributed


def share_of(rows: Sequence[T]) -> list[T]:
    """Every n-th row, beginning with that of this process."""
    return list(rows[rank() :: count()]) if count() > 1 else list(rows)


def from_first(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, in all of them; an error made for users is raised in all of them, too.

    Raises:
        RankwrightError: `work` raised it.
        TrainingError: `work` ended otherwise in the first process, which has the traceback.
    """
    if count() == 1:
        return work()
    if rank():
        return heard()
    with telling() as tell:
        result = work()
        tell(result)
    return result


def in_each(work: Callable[[], T]) -> T:
    """What `work` gives in each process; what ends it in the first one is raised in all of them, and told once. What
    ends it in another one alone, whose machine may lack something, is told by that one.

    Raises:
        RankwrightError: `work` raised it, here or in the first process.
        TrainingError: `work` ended otherwise in the first process, which has the traceback.
    """
    results: list[T] = []
    problems: list[Exception] = []
    try:
        results.append(work())
    except Exception as error:
        problems.append(error)

    def raised() -> None:
        for problem in problems:
            raise problem

    from_first(raised)
    raised()
    return results[0]


@contextmanager
def held_by_first(holding: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Something that the first process holds for all of them; where it cannot be had, all of them end."""
    with ExitStack() as stack:
        from_first(lambda: stack.enter_context(holding()))
        yield


@contextmanager
def telling() -> Iterator[Callable[[Any], None]]:
    """In the first process: a function to be called once with what the others are to hear. An error in its stead
    reaches them too."""
    silent = True

    def tell(result: Any) -> None:
        nonlocal silent
        silent = False
        _send(result, None)

    try:
        yield tell
    except BaseException as error:
        if silent:
            known = isinstance(error, RankwrightError)
            words = f"The first process ended with {type(error).__name__}: {error}. See its traceback."
            _send(None, error if known else TrainingError(words))
        raise


def heard() -> Any:
    """In the others: what the first process tells.

    Raises:
        RankwrightError: what ended it instead.
    """
    told: list[Any] = [None, None]
    _distributed().broadcast_object_list(told, src=0)
    if told[1] is not None:
        with alike():
            raise told[1]
    return told[0]


@contextmanager
def alike(kind: type[RankwrightError] = RankwrightError) -> Iterator[None]:
    """Around what all processes do with the same values: the first one alone tells of an error.

    Args:
        kind: errors that are of these values alone; what another one tells of a file may be so on one machine only.
    """
    try:
        yield
    except kind as error:
        error.told_by_first = True
        raise


def _send(result: Any, error: RankwrightError | None) -> None:
    if count() > 1:
        _distributed().broadcast_object_list([result, error], src=0)


def gathered(shares: Tensor, questions: int) -> Tensor:
    """Scores of all questions in their order, without gradient; of several processes, on the CPU.

    Args:
        shares: scores_QD of this process's share, -inf on padding.
        questions: of all processes together.
    """
    if count() == 1:
        return shares.detach()
    import torch

    parts: list[Any] = [None] * count()
    _distributed().all_gather_object(parts, shares.detach().cpu())
    scores_QD = torch.full((questions, max(part.shape[1] for part in parts)), -torch.inf, dtype=shares.dtype)
    for number, part in enumerate(parts):
        rows = range(number, questions, count())
        scores_QD[rows, : part.shape[1]] = part[: len(rows)]
    return scores_QD


def first_of(words: str) -> str:
    """What the first process that has something to say says; empty where none has."""
    if count() == 1:
        return words
    parts: list[Any] = [""] * count()
    _distributed().all_gather_object(parts, words)
    return next(filter(None, parts), "")


def weighted_mean(values: Mapping[str, float], weight: float) -> dict[str, float]:
    """Mean of each value over the processes; all of them have the same names.

    Args:
        values: of this process.
        weight: questions that they are of.
    """
    if count() == 1:
        return dict(values)
    parts: list[Any] = [None] * count()
    _distributed().all_gather_object(parts, (dict(values), weight))
    total = sum(part_weight for _, part_weight in parts)
    return {name: sum(part[name] * w for part, w in parts if w) / total for name in values}
