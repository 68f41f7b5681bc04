"""What steps in flight, and drafters behind them, may still read and write."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from llumnix.engine.vllm.instance.steps import StepsInFlight


def test_blocks_freed_in_a_step_are_touched_after_it() -> None:
    steps = StepsInFlight()
    steps.begins()
    steps.still_use([3])
    assert steps.may_touch([3, 4])
    assert not steps.may_touch([4])
    steps.ends({"r": 1})
    assert not steps.may_touch([3])
    assert steps.drafting == {}


def test_drafter_is_at_work_until_the_next_step_ends() -> None:
    steps = StepsInFlight(drafts_follow=True)
    steps.begins()
    steps.begins()
    steps.ends({"r": 4})
    assert (steps.done, steps.drafting, steps.idle) == (0, {"r": 4}, False)
    steps.still_use([3])  # of `r`, which has just ended, by the first step
    steps.ends({"s": 1})
    assert (steps.done, steps.drafting, steps.idle) == (1, {"s": 1}, True)
    assert steps.may_touch([3])  # freed while the second was in flight: nobody knows of whom it is


def test_drafter_of_the_last_step_of_all_ends_when_the_device_rests() -> None:
    steps = StepsInFlight(drafts_follow=True)
    steps.begins()
    steps.ends({"r": 4})
    steps.still_use([3])
    assert steps.idle
    assert steps.may_touch([3])
    steps.drafter_ended()
    assert not steps.may_touch([3])
    assert (steps.done, steps.drafting) == (1, {})
