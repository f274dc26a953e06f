"""When the next request may leave: rate limits, waits between attempts, and a pause while a server is down.

Nothing here sends or sleeps; every function answers with seconds, so all of it is tested without a clock.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from rankwright.errors import ConfigurationError

LONGEST_BACKOFF = 8.0
"""Seconds; the ceiling of the wait before a retry, unless the server asks for more."""
SPREAD_IN_BACKOFFS = 4.0
"""Clients that were given the same Retry-After come back spread over this many first backoffs, not all at once."""


def retry_after_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds the server asks us to wait; None if it does not say or says nonsense.

    Reads `retry-after-ms`, then `retry-after` as seconds or as an HTTP date (RFC 9110, 10.2.3). A date in the past is
    0. NaN, infinity and negative numbers count as nonsense. `now` is the time of day in seconds, for the date form.
    """
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    seconds = _seconds(text)
    return seconds if seconds is not None else _seconds_until(text, now)


def _seconds(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _seconds_until(text: str | None, now: float) -> float | None:
    try:
        when = parsedate_to_datetime(text or "")
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        return max(0.0, when.timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None


def retry_wait(attempt: int, asked: float | None, first_backoff: float, rng: random.Random) -> float:
    """Seconds before the next attempt. `attempt` counts from 0.

    Without a request from the server: full jitter, uniform(0, min(8, first_backoff * 2**attempt)) (M. Brooker,
    "Exponential Backoff And Jitter", AWS 2015). With one: never earlier than asked, and spread out behind it.
    """
    if asked is None:
        return rng.uniform(0, min(LONGEST_BACKOFF, first_backoff * 2**attempt))
    return asked + rng.uniform(0, SPREAD_IN_BACKOFFS * first_backoff)


class TokenBucket:
    """A limit per minute, kept by spacing: at most one second's worth leaves at once, so no window exceeds the limit
    by more than that. Reservations may go into debt; whoever does waits it off, in order of arrival.
    """

    def __init__(self, per_minute: float, *, what: str, clock: Callable[[], float] = time.monotonic):
        if not 0 < per_minute < math.inf:
            raise ConfigurationError(
                f"Limit of {what} per minute is {per_minute}; give a number above 0 or leave it out."
            )
        self._per_second = per_minute / 60
        self._capacity = max(1.0, self._per_second)
        self._level = self._capacity
        self._clock = clock
        self._filled_at = clock()
        self._lock = threading.Lock()

    def reserve(self, amount: float) -> float:
        """Takes `amount` and returns the seconds to wait before using it."""
        with self._lock:
            now = self._clock()
            self._level = min(self._capacity, self._level + (now - self._filled_at) * self._per_second)
            self._filled_at = now
            self._level -= amount
            return max(0.0, -self._level / self._per_second)

    def correct(self, reserved: float, used: float) -> None:
        """Replaces an estimate by what was really used."""
        with self._lock:
            self._level += reserved - used


class Breaker:
    """Knows whether a server is reachable.

    After `limit` failures to reach it in a row it is *down*. A server that has answered before is given `patience`
    seconds to come back, with one probe every `probe_every` seconds; one that never answered is given none.
    """

    def __init__(
        self,
        limit: int,
        *,
        patience: float = 60.0,
        probe_every: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.limit = limit
        self.answered = False
        self.failures = 0
        self._patience = patience
        self._probe_every = probe_every
        self._clock = clock
        self._down_since = 0.0
        self._next_probe = 0.0

    @property
    def down(self) -> bool:
        """True after `limit` failures in a row."""
        return self.failures >= self.limit

    def reached(self) -> None:
        """The server gave an HTTP response of any kind."""
        self.answered = True
        self.failures = 0

    def failed(self) -> bool:
        """The server was not reached. True when it is time to give up."""
        self.failures += 1
        now = self._clock()
        if self.failures == self.limit:
            self._down_since = now
            self._next_probe = now + self._probe_every
        return self.down and (not self.answered or now - self._down_since >= self._patience)

    def wait(self) -> float:
        """Seconds until the caller should ask again; 0 means go. While down, one caller per interval is let through."""
        now = self._clock()
        if not self.down:
            return 0.0
        if now < self._next_probe:
            return self._next_probe - now
        self._next_probe = now + self._probe_every
        return 0.0
