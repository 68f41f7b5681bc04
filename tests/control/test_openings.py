"""What the instances would do with a request that waits."""

from __future__ import annotations

import pytest

from llumnix.config import PolicyConfig
from llumnix.control.dispatcher import Dispatcher
from llumnix.control.openings import AHEAD, ROOM_STEPS, DispatchOpenings, Opening
from llumnix.policy.dispatch import DispatchRequest
from llumnix.policy.snapshot import InstanceSnapshot, StepCost
from llumnix.types import HIGH, NORMAL, InstanceId, RequestId

COST = StepCost(fixed_ms=10.0, prefill_token_us=1000.0, request_us=0.0, context_token_us=0.0)


def openings(
    *waiting: int, cost: StepCost | None = None, free_blocks: int = 100, running: int = 0
) -> tuple[DispatchOpenings, Dispatcher]:
    dispatcher = Dispatcher(PolicyConfig())
    for number, count in enumerate(waiting):
        load = InstanceSnapshot(
            id=InstanceId(f"i{number}"),
            at=0.0,
            seq=1,
            total_blocks=100,
            free_blocks=free_blocks,
            running=running,
            waiting=count,
            queued_blocks=count,
            step_tokens=4096,
            step_cost=cost,
        )
        dispatcher.on_report(load)
    return DispatchOpenings(dispatcher), dispatcher


def test_a_request_begins_soon_where_fewer_wait_than_are_kept_ready() -> None:
    assert openings(AHEAD - 1, AHEAD)[0].look(10, NORMAL, 0.0) == Opening(begins_soon=True)
    assert openings(AHEAD, AHEAD)[0].look(10, NORMAL, 0.0) == Opening(begins_soon=False)


def test_what_is_on_its_way_counts_and_looking_books_nothing() -> None:
    there, dispatcher = openings(0)
    for number in range(AHEAD):
        assert there.look(10, NORMAL, 0.0).begins_soon
        assert there.look(10, NORMAL, 0.0).begins_soon
        dispatcher.dispatch(DispatchRequest(RequestId(f"r{number}"), 10, NORMAL))
    assert not there.look(10, NORMAL, 0.0).begins_soon


def test_a_request_is_held_until_memory_lasts_for_some_steps_of_all_who_are_there() -> None:
    prompt_blocks, of_ten_blocks = 2, 10 * ROOM_STEPS // 16
    short, enough = (
        openings(0, free_blocks=free, running=9)[0].look(prompt_blocks * 16, NORMAL, 0.0)
        for free in (prompt_blocks + of_ten_blocks - 1, prompt_blocks + of_ten_blocks)
    )
    assert not short.begins_soon
    assert enough.begins_soon


def test_a_request_of_high_priority_is_not_held_for_memory_that_others_leave_to_it() -> None:
    assert openings(0, free_blocks=0, running=9)[0].look(32, HIGH, 0.0).begins_soon


def test_a_request_that_needs_half_of_an_instance_is_not_kept_out_by_smaller_ones() -> None:
    assert openings(0, free_blocks=10, running=9)[0].look(51 * 16, NORMAL, 0.0).begins_soon


def test_what_no_instance_can_ever_have_is_let_by_to_be_told_so() -> None:
    assert openings()[0].look(10, NORMAL, 0.0).begins_soon
    assert openings(AHEAD)[0].look(10**6, NORMAL, 0.0).begins_soon


def test_first_token_is_foreseen_behind_the_part_of_this_instance_of_what_is_held() -> None:
    there, _ = openings(0, 0, cost=COST)
    assert there.look(100, NORMAL, 0.0).first_token_s == pytest.approx(0.11)
    assert there.look(100, NORMAL, 400.0).first_token_s == pytest.approx(0.31)
