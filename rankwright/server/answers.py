"""The answer that a reader gives from passages in an order, for the page and whoever wants to compare."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from rankwright.server.problems import Problem
from rankwright.types import Context, Reader, ReadFailed


@dataclass(frozen=True)
class ServedReader:
    """A reader, and how much it is shown."""

    reader: Reader
    top_k: int = 3
    """Passages of a ranking that the page shows to it."""
    at_once: int = 4
    """Questions that it reads at the same time; as many again wait, and more are refused."""


class Answers:
    """Asks a reader, which takes long and may cost money, a few questions at a time.

    Args:
        served: the reader; None refuses everything.
        timeout: seconds for a question.
    """

    def __init__(self, served: ServedReader | None, timeout: float) -> None:
        self.served, self._timeout = served, timeout
        self._asked = 0
        self._slots = asyncio.Semaphore(served.at_once if served else 1)

    async def answer(self, context: Context) -> str:
        """The reader's words; an empty text says that it found nothing.

        Raises:
            Problem: 404 without a reader, 429 where too many ask, 502 where the reader failed, 504 where it is slow.
        """
        if self.served is None:
            raise Problem(404, "This server has no reader; start it with --reader.")
        if self._asked >= 2 * self.served.at_once:
            raise Problem(429, "The reader is asked too many questions at once; try again.", retry_after=2)
        self._asked += 1
        try:
            async with asyncio.timeout(self._timeout), self._slots:
                (result,) = await asyncio.to_thread(self.served.reader.answer, [context])
        except TimeoutError:
            raise Problem(504, f"The reader did not answer within {self._timeout:g} seconds.", retry_after=1) from None
        finally:
            self._asked -= 1
        if isinstance(result, ReadFailed):
            raise Problem(502, f"The reader failed: {result.reason}.")
        return result.text
