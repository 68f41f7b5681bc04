"""What the instances would do with a request that waits."""

from __future__ import annotations

from typing import Any

import pytest

from llumnix.config import PolicyConfig
from llumnix.control.front_end import FrontEndMachine
from llumnix.control.front_end_events import Arrived, Closed, Equipped, NeededAdapter, PrefixesTold, Reported
from llumnix.control.openings import AHEAD, ROOM_STEPS, DispatchOpenings, Opening
from llumnix.control.prefix_table import PrefixNews
from llumnix.policy.prefix import chunk_ids
from llumnix.policy.snapshot import InstanceSnapshot, StepCost
from llumnix.types import HIGH, NORMAL, InstanceId, Priority, RequestId

COST = StepCost(fixed_ms=10.0, prefill_token_us=1000.0, request_us=0.0, context_token_us=0.0)


def openings(*waiting: int, **load: Any) -> tuple[DispatchOpenings, FrontEndMachine]:
    machine = FrontEndMachine(PolicyConfig())
    for number, count in enumerate(waiting):
        said = {"free_blocks": 100, "step_tokens": 4096, **load}
        snapshot = InstanceSnapshot(
            id=InstanceId(f"i{number}"), at=0.0, seq=1, total_blocks=100, waiting=count, queued_blocks=count, **said
        )
        machine.handle(Reported(0.0, snapshot))
    return DispatchOpenings(machine), machine


def asked(tokens: int, priority: Priority = NORMAL, **more: Any) -> Arrived:
    return Arrived(0.0, RequestId("r"), tokens, priority, **more)


def test_a_request_begins_soon_where_fewer_wait_than_are_kept_ready() -> None:
    assert openings(AHEAD - 1, AHEAD)[0].look(asked(10), 0.0).begins_soon
    assert not openings(AHEAD, AHEAD)[0].look(asked(10), 0.0).begins_soon


def test_what_is_on_its_way_counts_and_looking_books_nothing() -> None:
    there, machine = openings(0)
    for number in range(AHEAD):
        assert there.look(asked(10), 0.0).begins_soon
        assert there.look(asked(10), 0.0).begins_soon
        machine.handle(Arrived(0.0, RequestId(f"r{number}"), 10))
    assert not there.look(asked(10), 0.0).begins_soon


def test_a_request_is_held_until_memory_lasts_for_some_steps_of_all_who_are_there() -> None:
    prompt_blocks, of_ten_blocks = 2, 10 * ROOM_STEPS // 16
    short, enough = (
        openings(0, free_blocks=free, running=9)[0].look(asked(prompt_blocks * 16), 0.0)
        for free in (prompt_blocks + of_ten_blocks - 1, prompt_blocks + of_ten_blocks)
    )
    assert not short.begins_soon
    assert enough.begins_soon


def test_where_requests_grow_in_two_kinds_of_blocks_twice_the_memory_must_last() -> None:
    both = {"kv_groups": ((16, 0), (16, 0)), "running": 9}
    needed = 2 * 2 + 2 * (10 * ROOM_STEPS // 16)
    short, enough = (openings(0, free_blocks=free, **both)[0].look(asked(32), 0.0) for free in (needed - 1, needed))
    assert not short.begins_soon
    assert enough.begins_soon


def test_a_request_of_high_priority_is_not_held_for_memory_that_others_leave_to_it() -> None:
    assert openings(0, free_blocks=0, running=9)[0].look(asked(32, HIGH), 0.0).begins_soon


def test_a_request_that_needs_half_of_an_instance_is_not_kept_out_by_smaller_ones() -> None:
    assert openings(0, free_blocks=10, running=9)[0].look(asked(51 * 16), 0.0).begins_soon


def test_what_no_instance_can_ever_have_is_let_by_to_be_told_so() -> None:
    assert openings(AHEAD)[0].look(asked(10**6), 0.0).begins_soon
    there, machine = openings(AHEAD)
    machine.handle(Equipped(0.0, InstanceId("i0"), lacks=(7,)))
    assert there.look(asked(10, adapter=NeededAdapter(7, "legal")), 0.0).begins_soon


def test_while_there_is_no_instance_everybody_is_held_for_the_next() -> None:
    there, machine = openings(0)
    machine.handle(Closed(0.0, InstanceId("i0")))
    assert there.look(asked(10), 0.0) == Opening(begins_soon=False)


def test_first_token_is_foreseen_behind_the_part_of_this_instance_of_what_is_held() -> None:
    there, _ = openings(0, 0, step_cost=COST)
    assert there.look(asked(100), 0.0).first_token_s == pytest.approx(0.11)
    assert there.look(asked(100), 400.0).first_token_s == pytest.approx(0.31)


def test_what_is_cached_where_it_would_go_need_not_be_computed() -> None:
    prompt = list(range(1000))
    names = tuple(chunk_ids(prompt, 100))
    there, machine = openings(0, 0, step_cost=COST, prefix_chunk_tokens=100)
    news = PrefixNews(1, tuple(names), whole=True)
    machine.handle(PrefixesTold(0.0, InstanceId("i1"), news))
    assert there.look(asked(1000), 0.0).first_token_s == pytest.approx(1.01)
    assert there.look(asked(1000, chunks=names), 0.0).first_token_s == pytest.approx(0.011, abs=0.1)


def test_a_request_that_says_where_it_is_to_begin_is_foreseen_there() -> None:
    there, _ = openings(0, AHEAD)
    anywhere, only_there = asked(10), asked(10, only_on=(InstanceId("i1"),))
    assert there.look(anywhere, 0.0) == Opening(True, where=InstanceId("i0"))
    assert there.look(only_there, 0.0) == Opening(False, where=InstanceId("i1"), is_particular=True)
