"""The answer that a reader gives from passages in an order, for the page and whoever wants to compare."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import Future
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from rankwright.errors import ReaderError, TooManyPassagesError
from rankwright.server.body import client_left
from rankwright.server.problems import Problem
from rankwright.types import Context, Reader, ReadFailed, ReadResult

log = logging.getLogger("rankwright.server")


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

    A reader that reads cannot be stopped. Its place is free when it is done, and not when whoever asked has left or
    was told that it is too slow, so that it never reads more than `at_once`. A question that still waits is called off
    then, and never asked.

    Args:
        served: the reader; None refuses everything.
        timeout: seconds for a question.
    """

    def __init__(self, served: ServedReader | None, timeout: float) -> None:
        self.served, self._timeout = served, timeout
        self.reading = 0
        """Questions that the reader is busy with, whether or not somebody waits for them."""
        self._waiting: set[asyncio.Task[ReadResult]] = set()
        self._places = asyncio.Semaphore(served.at_once if served else 1)

    async def answer(self, context: Context, request: Request) -> str:
        """The reader's words; an empty text says that it found nothing.

        Raises:
            Problem: 404 without a reader, 422 where it does not read so many passages, 429 where too many ask, 502
                where the reader failed, 504 where it is slow.
            ClientDisconnect: the client of the request left.
        """
        if self.served is None:
            raise Problem(404, "This server has no reader; start it with --reader.")
        if len(self._waiting) + self.reading >= 2 * self.served.at_once:
            raise Problem(429, "The reader is asked too many questions at once; try again.", retry_after=2)
        result = asyncio.create_task(self._read(self.served.reader, context))
        self._waiting.add(result)
        result.add_done_callback(self._waiting.discard)  # where it was called off; else it is none of them any more
        found = await self._found(result, request)
        if isinstance(found, ReadFailed):
            raise Problem(502, f"The reader failed: {found.reason}.")
        return found.text

    async def _found(self, result: asyncio.Task[ReadResult], request: Request) -> ReadResult:
        left = asyncio.create_task(client_left(request))
        try:
            await asyncio.wait({result, left}, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            if left.done():
                raise ClientDisconnect
            raise Problem(504, f"The reader did not answer within {self._timeout:g} seconds.", retry_after=1)
        except ReaderError as error:  # its server is gone, or refuses the key
            log.error("the reader cannot be used: %s", error)
            raise Problem(502, "The reader cannot be used; the log of this server says why.") from None
        except TooManyPassagesError as error:
            raise Problem(422, str(error), param="documents") from None
        finally:
            left.cancel()
            result.cancel()

    async def _read(self, reader: Reader, context: Context) -> ReadResult:
        await self._places.acquire()
        self._waiting -= {asyncio.current_task()}
        self.reading += 1
        try:
            thread = asyncio.wrap_future(_in_thread(reader, context))
        except BaseException:  # no thread can be started: the place is free again
            self._free()
            raise
        thread.add_done_callback(lambda _: self._free())
        return await asyncio.shield(thread)

    def _free(self) -> None:
        self.reading -= 1
        self._places.release()


def _in_thread(reader: Reader, context: Context) -> Future[ReadResult]:
    """What the reader finds, in a thread that is not of asyncio's pool: a process waits for those before it ends."""
    found: Future[ReadResult] = Future()
    found.set_running_or_notify_cancel()  # or it could be cancelled, and the thread would have nowhere to put it

    def read() -> None:
        try:
            (result,) = reader.answer([context])
        except BaseException as error:
            found.set_exception(error)
        else:
            found.set_result(result)

    threading.Thread(target=read, name="reading", daemon=True).start()
    return found
