"""Reading orders of candidates: what was chosen -> contexts -> answers -> rewards. Training and `diagnose` read so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rankwright.errors import ReaderError
from rankwright.types import Context, Example, Outcome, Reader, ReadFailed, Reward

MINIMUM_READS = 50
"""Fewer reads say little about the share that fails."""


@dataclass(frozen=True)
class Readings:
    """Rewards of all prefixes that were asked for, each distinct one read once."""

    rewards: dict[tuple[str, tuple[int, ...]], float | None]
    """(query_id, candidate positions in reading order) -> reward; None where the read or the reward failed."""
    paid: int
    """Reader calls made."""
    hits: int
    """Answers that came from the cache."""
    failed: int
    """Readings without a reward."""
    asked: tuple[bool, ...]
    """Of each reading that no cache answered: whether it has a reward."""


def read_prefixes(prefixes: Iterable[tuple[Example, tuple[int, ...]]], reader: Reader, reward: Reward) -> Readings:
    """Asks the reader about each distinct prefix and prices the answers.

    Args:
        prefixes: example and the candidate positions read, in order; the empty prefix is a reading without documents.
        reader: asked once, with all contexts together.
        reward: is given all readings of a question together.
    """
    distinct = {(example.query.query_id, chosen): example for example, chosen in prefixes}
    contexts = [
        Context(example.query, tuple(example.candidates[i] for i in chosen))
        for (_, chosen), example in distinct.items()
    ]
    results = reader.answer(contexts) if contexts else []
    outcomes = [
        Outcome(example, context, result, len(chosen), query_id)
        for ((query_id, chosen), example), context, result in zip(distinct.items(), contexts, results, strict=True)
    ]
    values = reward(outcomes) if outcomes else []
    uncached = [isinstance(result, ReadFailed) or result.paid for result in results]
    return Readings(
        {key: value.value for key, value in zip(distinct, values, strict=True)},
        paid=sum(result.paid for result in results),
        hits=len(results) - sum(uncached),
        failed=sum(value.value is None for value in values),
        asked=tuple(value.value is not None for value, new in zip(values, uncached, strict=True) if new),
    )


def check_failed_reads(
    reader: Reader, failed: int, reads: int, allowed: float, kind: str, go_on: str = "go on with --resume"
) -> None:
    """Stops the run where a larger share than allowed failed; `kind` tells the user which reads were counted, `go_on`
    what to do when the reader is mended.

    Raises:
        ReaderError: too many failed.
    """
    if failed > allowed * reads:
        raise ReaderError(
            f"Reader '{reader.name}' failed on {failed} of {reads} {kind}; at most {allowed:.0%} may fail. Mend the "
            f"reader and {go_on}: all answers are kept."
        )
