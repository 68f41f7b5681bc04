"""The kernel: order of events, cancelling, and misuse that must not go unnoticed."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest

from llumnix.sim.kernel import Kernel


def test_events_run_by_time_then_rank_then_order_of_asking() -> None:
    kernel = Kernel()
    ran: list[Any] = []
    for name, time, rank in (("d", 2.0, 0), ("c", 1.0, 1), ("a", 1.0, 0), ("b", 1.0, 0)):
        kernel.at(time, ran.append, name, rank=rank)
    kernel.run()
    assert ran == ["a", "b", "c", "d"]
    assert kernel.now == 2.0


def test_a_cancelled_event_does_not_run_and_cancelling_twice_says_so() -> None:
    kernel = Kernel()
    ran: list[Any] = []
    timer = kernel.at(1.0, ran.append, "never")
    assert kernel.cancel(timer)
    assert not kernel.cancel(timer)
    kernel.run()
    assert ran == []
    assert len(kernel) == 0


def test_an_event_that_has_run_cannot_be_cancelled() -> None:
    kernel = Kernel()
    timer = kernel.at(1.0, lambda: None)
    kernel.run()
    assert not kernel.cancel(timer)


def test_run_until_includes_the_last_moment_and_stops_the_clock_there() -> None:
    kernel = Kernel()
    ran: list[Any] = []
    for time in (1.0, 2.0, 3.0):
        kernel.at(time, ran.append, time)
    kernel.run(until_s=2.0)
    assert ran == [1.0, 2.0]
    kernel.run(until_s=2.5)
    assert kernel.now == 2.5
    kernel.run()
    assert ran == [1.0, 2.0, 3.0]


def test_an_action_may_ask_for_more_at_the_same_moment() -> None:
    kernel = Kernel()
    ran: list[Any] = []
    kernel.at(1.0, lambda: kernel.after(0.0, ran.append, kernel.now))  # type: ignore[arg-type]
    kernel.run()
    assert ran == [1.0]


def test_stop_leaves_the_rest_pending() -> None:
    kernel = Kernel()
    ran: list[Any] = []
    kernel.at(1.0, kernel.stop)
    kernel.at(1.0, ran.append, "later")
    kernel.run(until_s=5.0)
    assert (kernel.now, ran, len(kernel)) == (1.0, [], 1)
    kernel.run()
    assert ran == ["later"]


@pytest.mark.parametrize("time", [0.5, nan, inf, -inf])
def test_an_event_that_cannot_be_reached_is_refused(time: float) -> None:
    kernel = Kernel(start_s=1.0)
    with pytest.raises(ValueError, match="cannot be reached"):
        kernel.at(time, lambda: None)


def test_running_backwards_is_refused() -> None:
    kernel = Kernel(start_s=3.0)
    with pytest.raises(ValueError, match="cannot run until"):
        kernel.run(until_s=2.0)


def test_an_action_must_not_run_the_kernel() -> None:
    kernel = Kernel()
    kernel.at(1.0, kernel.run)
    with pytest.raises(RuntimeError, match="action of the same kernel"):
        kernel.run()


def test_an_exception_in_an_action_passes_through_and_the_kernel_goes_on() -> None:
    kernel = Kernel()
    ran: list[Any] = []
    kernel.at(1.0, lambda: 1 // 0)  # type: ignore[arg-type]
    kernel.at(2.0, ran.append, "on")
    with pytest.raises(ZeroDivisionError):
        kernel.run()
    kernel.run()
    assert ran == ["on"]


def test_many_cancelled_events_do_not_pile_up() -> None:
    kernel = Kernel()
    kernel.at(1e9, lambda: None)
    for number in range(10_000):
        kernel.cancel(kernel.at(1.0 + number, lambda: None))
    assert len(kernel) == 1
    assert len(kernel._heap) < 200
