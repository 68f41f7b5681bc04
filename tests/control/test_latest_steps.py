"""Whether an engine is slower than it was: seconds of it are believed, one step is not, and it is forgotten again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.control.latest_steps import FORGOTTEN_S, MOST, NOTICED, OVER_S, LatestSteps

STEP_S = 0.02


class Engine:
    """Steps that should take `STEP_S` each, one after the other."""

    def __init__(self) -> None:
        self.latest = LatestSteps()
        self.now = 100.0

    def run(self, for_s: float, times: float = 1.0) -> float:
        """They take so many times as long. Returns what is said then."""
        end_s = self.now + for_s
        while self.now < end_s:
            self.step(STEP_S * times)
        return self.said

    def step(self, took_s: float) -> None:
        self.now += took_s
        self.latest.add(self.now, took_s, STEP_S)

    @property
    def said(self) -> float:
        return self.latest.slowdown(self.now)


def test_engine_as_fast_as_expected_is_not_slow() -> None:
    assert Engine().run(60) == 1.0


def test_noise_is_no_slowdown() -> None:
    engine = Engine()
    assert engine.run(60, times=1.2) == 1.0
    assert engine.run(60, times=0.85) == 1.0


@pytest.mark.parametrize("times", [1.5, 2.0, 4.0, 0.5])
def test_steps_that_take_longer_for_some_seconds_are_believed(times: float) -> None:
    engine = Engine()
    engine.run(60)
    assert engine.run(5 * OVER_S, times) == pytest.approx(times, rel=0.02)


def test_half_of_the_time_lost_in_long_steps_is_as_bad_as_in_all_of_them() -> None:
    engine = Engine()
    engine.run(60)
    for _ in range(15):
        engine.run(0.5)
        engine.step(0.5 + STEP_S)
    assert engine.said == pytest.approx(2.0, rel=0.15)


def test_one_long_step_is_no_slow_engine() -> None:
    engine = Engine()
    engine.run(60)
    engine.step(0.5)
    assert engine.said == 1.0


def test_after_an_hour_without_a_step_in_between_it_is_fast_again_within_seconds() -> None:
    engine = Engine()
    engine.run(60)
    engine.step(3600)
    assert NOTICED < engine.said <= MOST
    assert engine.run(5 * OVER_S) == 1.0


def test_idle_engine_keeps_its_name_for_a_while_and_is_tried_again_then() -> None:
    engine = Engine()
    slow = engine.run(60, times=2)
    engine.now += FORGOTTEN_S / 2
    assert engine.said == slow
    engine.now += FORGOTTEN_S
    assert engine.said == 1.0
    engine.step(2 * STEP_S)
    assert engine.said == 1.0, "what was before the rest does not count"


def test_clock_that_stands_still_changes_nothing() -> None:
    latest = LatestSteps()
    latest.add(1.0, 0.0, STEP_S)
    assert (latest.slowdown(1.0), latest.mean_s(1.0), latest.shortest_s) == (1.0, None, None)


def test_mean_of_the_last_seconds_is_of_time_and_not_of_steps() -> None:
    engine = Engine()
    engine.run(60, times=2)
    assert engine.latest.mean_s(engine.now) == pytest.approx(2 * STEP_S, rel=0.01)
    for _ in range(20):
        engine.step(0.5)
        engine.run(0.5)
    assert engine.latest.mean_s(engine.now) == pytest.approx(1.0 / 26, rel=0.2), "26 steps a second"
    engine.now += 2 * FORGOTTEN_S
    assert engine.latest.mean_s(engine.now) is None


def test_short_steps_are_remembered_for_some_hundreds() -> None:
    engine = Engine()
    for _ in range(10):
        engine.run(1.0)
        engine.run(1.0, times=4)
    assert engine.latest.shortest_s == pytest.approx(STEP_S, rel=0.25)
    engine.run(1000 * STEP_S * 4, times=4)
    assert engine.latest.shortest_s == pytest.approx(4 * STEP_S, rel=0.1)


@given(st.lists(st.tuples(st.just(0.0) | st.floats(1e-6, 1e4), st.none() | st.floats(0, 1e4)), max_size=30))
def test_it_is_never_absurd(steps: list[tuple[float, float | None]]) -> None:
    latest, now = LatestSteps(), 0.0
    for took_s, expected_s in steps:
        now += took_s
        latest.add(now, took_s, expected_s)
        assert latest.slowdown(now) * (1 + 1e-9) >= 1 / MOST
        assert latest.slowdown(now) <= MOST * (1 + 1e-9)
        assert (latest.mean_s(now) or 1) > 0
        assert (latest.shortest_s or 1) > 0
