"""Whose turn is first of those that wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llumnix.policy.waiting_order import LETS_PASS_S, turn_s

TOTAL = 1000


def test_small_one_overtakes_large_one_that_came_a_little_earlier_and_not_one_that_came_long_ago() -> None:
    large = turn_s(0.0, 250, TOTAL)
    assert turn_s(60.0, 10, TOTAL) < large < turn_s(80.0, 10, TOTAL)


def test_one_whose_instance_died_lets_nobody_pass_who_came_later() -> None:
    assert turn_s(0.0, 900, TOTAL, made_tokens=3) < turn_s(0.1, 1, TOTAL)


def test_one_that_was_preempted_lets_fewer_pass_and_waits_since_then() -> None:
    never_began, preempted = turn_s(0.0, 250, TOTAL), turn_s(0.0, 250, TOTAL, preempted_s=20.0, made_tokens=3)
    assert turn_s(40.0, 10, TOTAL) < preempted < turn_s(50.0, 10, TOTAL) < never_began


def test_equal_ones_start_as_they_came() -> None:
    assert turn_s(1.0, 40, TOTAL) < turn_s(1.001, 40, TOTAL)


def test_size_hardly_matters_where_there_is_much_memory() -> None:
    assert turn_s(0.0, 65, 24_000) < turn_s(0.9, 1, 24_000)


@given(st.floats(0, 1e4), st.integers(0, 10**6), st.integers(0, 10**5), st.floats(0, 1e4))
def test_nobody_lets_pass_who_comes_later_than_the_bound(at_s: float, needed: int, total: int, later_s: float) -> None:
    assert turn_s(at_s + LETS_PASS_S + 0.01 + later_s, 0, total) > turn_s(at_s, needed, total)
