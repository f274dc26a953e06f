"""Waits are numbers: checked without a clock and without a server."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwright.errors import ConfigurationError
from rankwright.llms.calls import Prices, price_text
from rankwright.llms.pacing import (
    LONGEST_BACKOFF,
    SPREAD_IN_BACKOFFS,
    Breaker,
    TokenBucket,
    retry_after_seconds,
    retry_wait,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def date(seconds: float) -> str:
    return format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "86400000"}, 86_400_000.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": date(30)}, 30.0),
        ({"retry-after": date(-30)}, 0.0),
        ({"retry-after": date(30).replace(" GMT", "")}, 30.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "Wed, 99 Foo 2026 99:99:99 GMT"}, None),
    ],
)
def test_retry_after_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers, NOW.timestamp()) == seconds


@given(st.text(max_size=40))
def test_retry_after_of_any_text_is_a_number_or_nothing(text: str) -> None:
    seconds = retry_after_seconds({"retry-after": text, "retry-after-ms": text}, NOW.timestamp())
    assert seconds is None or 0 <= seconds < float("inf")


def test_waits_without_a_request_are_spread_from_zero_to_the_doubled_ceiling() -> None:
    rng = random.Random(1)
    for attempt in range(8):
        waits = [retry_wait(attempt, None, 0.5, rng) for _ in range(400)]
        ceiling = min(LONGEST_BACKOFF, 0.5 * 2**attempt)
        assert 0 <= min(waits) < 0.1 * ceiling
        assert 0.9 * ceiling < max(waits) <= ceiling


def test_a_hundred_clients_with_one_retry_after_come_back_neither_early_nor_together() -> None:
    rng = random.Random(1)
    waits = [retry_wait(0, 3.0, 0.5, rng) for _ in range(100)]
    busiest = max(sum(start <= wait < start + 0.1 for wait in waits) for start in waits)
    assert min(waits) >= 3.0
    assert max(waits) <= 3.0 + SPREAD_IN_BACKOFFS * 0.5
    assert busiest <= 15


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_of_60_a_minute_spaces_requests_by_one_second() -> None:
    bucket = TokenBucket(60, what="requests", clock=Clock())
    assert [bucket.reserve(1) for _ in range(4)] == [0, 1, 2, 3]


def test_a_bucket_fills_with_time_and_never_over_one_second() -> None:
    clock = Clock()
    bucket = TokenBucket(600, what="tokens", clock=clock)  # 10 a second
    assert bucket.reserve(10) == 0
    assert bucket.reserve(5) == pytest.approx(0.5)
    clock.now += 3600
    assert bucket.reserve(10) == 0
    assert bucket.reserve(10) == pytest.approx(1.0)


def test_a_bucket_gives_back_what_was_estimated_too_high() -> None:
    bucket = TokenBucket(600, what="tokens", clock=Clock())
    bucket.reserve(100)
    bucket.correct(100, 20)
    assert bucket.reserve(0) == pytest.approx((20 - 10) / 10)


@given(st.lists(st.floats(0, 3), max_size=80), st.integers(1, 120))
def test_no_minute_sees_more_than_the_limit_and_one_second_more(gaps: list[float], limit: int) -> None:
    clock = Clock()
    bucket = TokenBucket(limit, what="requests", clock=clock)
    sent: list[float] = []
    for gap in gaps:
        clock.now += gap
        sent.append(clock.now + bucket.reserve(1))
    for start in sent:
        assert sum(start <= moment < start + 60 - 1e-6 for moment in sent) <= limit + max(1, limit / 60) + 1e-6


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(ConfigurationError, match="requests per minute"):
        TokenBucket(limit, what="requests")


def test_a_server_that_never_answered_is_given_up_at_the_limit() -> None:
    breaker = Breaker(3, clock=Clock())
    assert [breaker.failed() for _ in range(3)] == [False, False, True]


def test_a_server_that_answered_before_is_probed_and_given_up_after_its_patience() -> None:
    clock = Clock()
    breaker = Breaker(2, patience=60, probe_every=5, clock=clock)
    breaker.reached()
    assert [breaker.failed(), breaker.failed()] == [False, False]
    assert breaker.down
    assert breaker.wait() == 5
    clock.now += 5
    assert [breaker.wait(), breaker.wait(), breaker.wait()] == [0, 5, 5]  # one probe, the others wait for the next
    assert not breaker.failed()
    clock.now += 55
    assert breaker.failed()


def test_one_answer_ends_the_pause() -> None:
    breaker = Breaker(2, clock=Clock())
    breaker.reached()
    breaker.failed()
    breaker.failed()
    breaker.reached()
    assert (breaker.down, breaker.wait()) == (False, 0)


def test_a_price_is_known_only_if_both_counts_are() -> None:
    prices = Prices.from_mapping({"input": 2, "output": 10})
    assert prices is not None
    assert prices.of(500_000, 100_000) == pytest.approx(0.5 * 2 + 0.1 * 10)
    assert prices.of(0, 0) == 0
    assert prices.of(None, 5) is None
    assert prices.of(5, None) is None
    assert Prices.from_mapping(None) is None


def test_an_unknown_price_is_called_so() -> None:
    assert price_text(None) == "unknown"
    assert price_text(0.01234) == "0.0123"
    assert price_text(0.0) == "0.0000"


@pytest.mark.parametrize(
    "prices",
    [{}, {"input": 1}, {"input": 1, "output": 2, "cached": 3}, {"input": -1, "output": 1}, {"input": "1", "output": 1}],
)
def test_a_price_list_with_other_content_is_refused(prices: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=r"[Pp]rice"):
        Prices.from_mapping(prices)
