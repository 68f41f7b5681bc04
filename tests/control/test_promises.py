"""Room that is promised to requests on their way counts as taken, before anybody has reserved it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_scheduler import Body, moves

from llumnix.control.drain import DrainLimits
from llumnix.control.scheduler_events import CachedElsewhere, MoveRequest, SchedulerCommand
from llumnix.policy.virtual_usage import room_blocks
from llumnix.types import InstanceId, RequestId, Role

pytestmark = pytest.mark.pure

LIMITS = DrainLimits(moves=4)
DECODES = {"role": Role.DECODE, "total_blocks": 500}


def promised(commands: list[SchedulerCommand]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for command in commands:
        if isinstance(command, MoveRequest):
            target, room = command.order.target, command.order.wanted.room_blocks
            assert room is not None
            sums[target] = sums.get(target, 0) + room
    return sums


def gives(b: Body, name: str, blocks: int, count: int = 1) -> list[SchedulerCommand]:
    """An instance for prompts reports requests that are to make their tokens elsewhere."""
    return b.report(name, role=Role.PREFILL, running=count, to_decode=count, to_decode_blocks=blocks * count)


def test_room_goes_to_who_asks_first_and_the_next_one_goes_elsewhere_or_waits() -> None:
    b = Body(limits=LIMITS)
    b.report("d0", **DECODES, free_blocks=100)
    assert promised(gives(b, "p0", 70)) == {"d0": 70}
    assert promised(gives(b, "p1", 70)) == {}, "30 are left"
    b.report("d1", **DECODES, free_blocks=80)
    assert promised(gives(b, "p1", 70)) == {"d1": 70}
    assert promised(gives(b, "p2", 30)) == {"d0": 30}


def test_what_is_reserved_is_no_promise_any_more() -> None:
    b = Body(limits=LIMITS)
    b.report("d0", **DECODES, free_blocks=100)
    gives(b, "p0", 20, count=2)
    b.report("d0", **DECODES, free_blocks=80, incoming=1)
    assert promised(gives(b, "p1", 61)) == {}, "one of them is still to come"
    assert promised(gives(b, "p1", 60)) == {"d0": 60}


def test_what_did_not_come_is_no_promise_any_more() -> None:
    b = Body(limits=LIMITS)
    b.report("d0", **DECODES, free_blocks=100)
    gives(b, "p0", 35, count=2)
    b.end("p0", "d0", ok=False, request=None)
    assert promised(gives(b, "p1", 10)) == {"d0": 10}
    assert promised(gives(b, "p2", 90)) == {"d0": 90}


def test_instances_that_drain_at_once_do_not_promise_the_same_room() -> None:
    b = Body(limits=LIMITS)
    full = {"free_blocks": 800, "running": 3, "smallest_running_blocks": 20}
    b.report("t", free_blocks=300, running=5)
    b.report("a", **full)
    assert promised(b.drain("a")) == {"t": 203}, "all that it has, and a block more for each that runs"
    b.report("b", **full)
    assert promised(b.drain("b")) == {"t": 97}


def test_who_goes_where_its_prompt_is_cached_is_promised_its_room_before_the_others() -> None:
    b = Body(limits=LIMITS)
    b.report("t", free_blocks=70, running=5)
    b.report("a", free_blocks=940, running=3, smallest_running_blocks=20, prefix_chunk_tokens=512)
    assert promised(b.drain("a")) == {}
    b.at += 1.0
    where = {RequestId("r"): InstanceId("t")}
    commands = b.tell(CachedElsewhere(at=b.at, instance=InstanceId("a"), where=where))
    assert [command.order.request for command in commands if isinstance(command, MoveRequest)] == ["r", None]
    assert promised(commands) == {"t": 70}


def test_who_runs_short_is_relieved_though_the_room_of_the_freest_is_promised_to_those_that_leave() -> None:
    b = Body(limits=LIMITS)
    b.report("t", free_blocks=810, running=5)
    b.report("u", free_blocks=150, running=5)
    b.report("a", free_blocks=200, running=4, smallest_running_blocks=200)
    assert promised(b.drain("a")) == {"t": 804}
    short = b.report("s", free_blocks=20, running=10, smallest_running_blocks=5, short_blocks=3)
    assert moves(short) == [("s", "u", 1)]


TARGETS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 20), st.integers(0, 50)), min_size=1, max_size=4)
SOURCES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 60), st.booleans()), min_size=1, max_size=8)


@given(targets=TARGETS, sources=SOURCES)
def test_no_more_is_promised_than_there_is_whoever_asks(
    targets: list[tuple[int, int, int]], sources: list[tuple[int, int, bool]]
) -> None:
    """Of all that is planned between two reports of a target."""
    b = Body(limits=LIMITS)
    for number, (free, running, queued) in enumerate(targets):
        waiting = {"waiting": 1, "queued_blocks": queued, "head_of_line_blocks": queued} if queued else {}
        b.report(f"t{number}", **DECODES, free_blocks=free, running=running, **waiting)
    room = {each.id: room_blocks(each) for each in b.scheduler.snapshot(b.at).instances}
    sums: dict[str, int] = dict.fromkeys(room, 0)
    for number, (count, blocks, drains) in enumerate(sources):
        name = f"s{number}"
        if drains:
            b.report(name, free_blocks=1000 - count * blocks, running=count, smallest_running_blocks=blocks)
            commands = b.drain(name)
        else:
            commands = gives(b, name, blocks, count) + gives(b, name, blocks, count)
        for target, blocks_there in promised(commands).items():
            if target in sums:
                sums[target] += blocks_there
    assert {name: sums[name] for name in room if sums[name] > room[name]} == {}
