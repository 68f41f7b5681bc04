"""A bucket gives what its rate allows, and never more."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.control.token_bucket import TokenBucket

RATES = st.floats(0.0, 1e6)
STEPS = st.lists(st.tuples(st.floats(-1e3, 1e4), st.floats(0.0, 1e5)), max_size=60)


@given(RATES, STEPS)
def test_never_gives_more_than_its_capacity_and_what_came_in_meanwhile_whatever_the_clock_does(
    per_minute: float, steps: list[tuple[float, float]]
) -> None:
    bucket = TokenBucket(per_minute, 0.0)
    now_s = latest_s = given_out = 0.0
    for passed_s, amount in steps:
        now_s += passed_s
        latest_s = max(latest_s, now_s)
        if not bucket.wait_s(amount, now_s):
            bucket.take(amount)
            given_out += amount
        assert bucket.level(now_s) <= bucket.capacity
        assert given_out <= (per_minute + latest_s * per_minute / 60) * (1 + 1e-9)


@given(st.floats(1.0, 1e6), st.lists(st.floats(0.0, 1e5), max_size=20))
def test_what_is_taken_and_given_back_leaves_it_as_it_was(per_minute: float, amounts: list[float]) -> None:
    bucket = TokenBucket(per_minute, 0.0)
    bucket.take(sum(amounts))
    for amount in amounts:
        bucket.take(-amount)
    assert bucket.level(0.0) == pytest.approx(per_minute, abs=1e-6 * max(1.0, sum(amounts)))


@given(st.floats(0.1, 1e6), st.floats(0.0, 2.0), st.floats(0.0, 1.0))
def test_what_it_says_to_wait_is_enough_and_no_less_would_be(per_minute: float, used: float, wanted: float) -> None:
    bucket = TokenBucket(per_minute, 0.0)
    bucket.take(used * per_minute)
    amount = wanted * per_minute
    wait_s = bucket.wait_s(amount, 0.0)
    assert bucket.level(wait_s) >= amount - 1e-6 * per_minute
    if wait_s > 0.01:
        earlier = TokenBucket(per_minute, 0.0)
        earlier.take(used * per_minute)
        assert earlier.level(wait_s * 0.99) < amount


def test_a_debt_is_paid_before_more_is_given() -> None:
    bucket = TokenBucket(60.0, 0.0)
    bucket.take(90.0)
    assert bucket.level(0.0) == -30.0
    assert bucket.wait_s(1.0, 0.0) == 31.0
    assert bucket.wait_s(1.0, 31.0) == 0.0


def test_a_limit_of_zero_gives_nothing_ever_and_more_than_fits_neither() -> None:
    assert TokenBucket(0.0, 0.0).wait_s(1.0, 1e9) == inf
    assert TokenBucket(0.0, 0.0).full_in_s(5.0) == 0.0
    assert TokenBucket(60.0, 0.0).wait_s(61.0, 1e9) == inf


def test_clock_that_jumps_back_gives_nothing_when_it_makes_it_good() -> None:
    bucket = TokenBucket(60.0, 100.0)
    bucket.take(60.0)
    for now_s in (0.0, 100.0, 0.0, 100.0):
        assert bucket.level(now_s) == 0.0
    assert bucket.level(101.0) == 1.0
