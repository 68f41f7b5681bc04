"""What requests are charged, and what is left: each rule of the paper's section 4.4 as a situation."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.policy.priority import headroom_blocks, missing_headroom_blocks
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.virtual_usage import (
    dispatch_freeness,
    dispatch_usage,
    held_blocks,
    migration_freeness,
    migration_usage,
    paper_dispatch_freeness,
    paper_migration_freeness,
    room_blocks,
)
from llumnix.types import InstanceId, InstanceState

TARGET_TOKENS = 1600


def load(**facts: object) -> InstanceSnapshot:
    usual = {"id": InstanceId("a"), "at": 0.0, "seq": 1, "total_blocks": 1000, "free_blocks": 1000}
    return InstanceSnapshot(**{**usual, **facts})  # type: ignore[arg-type]


BUSY = {"free_blocks": 600, "running": 4}
QUEUE = {**BUSY, "waiting": 3, "head_of_line_blocks": 50, "queued_blocks": 120}


@pytest.mark.parametrize(
    ("situation", "instance", "moving", "placing", "placing_high"),
    [
        ("idle: nothing is charged", load(), 1000, 1000, 100),
        ("one request counts once, not per zero", load(free_blocks=900, running=1), 900, 900, 0),
        ("running requests are charged what they hold", load(**BUSY), 150, 150, -300),
        ("the watermark is never free", load(**BUSY, watermark_blocks=20), 145, 145, -320),
        ("first of the queue for moves, all of it for placement", load(**QUEUE), 550 / 5, 480 / 7, -420),
        ("a queue of one", load(**BUSY, waiting=1, head_of_line_blocks=50, queued_blocks=50), 110, 110, -350),
        ("high priority: normals see headroom, high ones do not", load(**BUSY, high_running=1), -300, -300, 150),
        ("a waiting high request has headroom, too", load(**QUEUE, high_waiting=1), -350, -420, 480 / 7),
        ("below the target there is room for normals", load(free_blocks=960, running=2, high_running=1), 30, 30, 480),
        ("over-committed: the shortage is not divided", load(**QUEUE | {"free_blocks": 0}), -50, -120, -1020),
        ("draining", load(**BUSY, state=InstanceState.DRAINING), -inf, -inf, -inf),
        ("stopped, though empty", load(state=InstanceState.STOPPED), -inf, -inf, -inf),
        ("not ready yet, though empty", load(state=InstanceState.STARTING), -inf, -inf, -inf),
        ("a full batch cannot use free blocks for newcomers", load(**BUSY, max_running=4), 150, 0, -300),
        ("a queue behind a full batch is short of a place for each", load(**QUEUE, max_running=4), -3, 0, -420),
        ("a place that is promised is none", load(**QUEUE, max_running=5, incoming=1), -3, 0, -420),
    ],
)
def test_freeness_when(
    situation: str, instance: InstanceSnapshot, moving: float, placing: float, placing_high: float
) -> None:
    assert migration_freeness(instance, TARGET_TOKENS) == pytest.approx(moving), situation
    assert dispatch_freeness(instance, False, TARGET_TOKENS) == pytest.approx(placing), situation
    assert dispatch_freeness(instance, True, TARGET_TOKENS) == pytest.approx(placing_high), situation


@pytest.mark.parametrize(
    ("situation", "instance", "moving", "placing", "placing_high"),
    [
        ("idle", load(), 1000, 1000, 100),
        ("the whole queue is charged to one more member of the batch", load(**QUEUE), 480 / 5, 480 / 7, -420 / 7),
        ("a shortage is divided", load(**BUSY, high_running=1), -300 / 4, -300 / 4, 600 / 4),
        ("draining", load(**BUSY, state=InstanceState.DRAINING), -inf, -inf, -inf),
    ],
)
def test_paper_freeness_when(
    situation: str, instance: InstanceSnapshot, moving: float, placing: float, placing_high: float
) -> None:
    assert paper_migration_freeness(instance, TARGET_TOKENS) == pytest.approx(moving), situation
    assert paper_dispatch_freeness(instance, False, TARGET_TOKENS) == pytest.approx(placing), situation
    assert paper_dispatch_freeness(instance, True, TARGET_TOKENS) == pytest.approx(placing_high), situation


def test_priorities_can_be_ignored() -> None:
    instance = load(**BUSY, high_running=4)
    assert migration_freeness(instance, None) == 150
    assert dispatch_freeness(instance, True, None) == dispatch_freeness(instance, False, None) == 150


def test_headroom_follows_the_block_size_and_never_exceeds_the_instance() -> None:
    assert headroom_blocks(load(high_running=1, block_tokens=32), TARGET_TOKENS) == 950
    assert headroom_blocks(load(high_running=1, total_blocks=64, free_blocks=64), TARGET_TOKENS) == 0
    assert headroom_blocks(load(high_running=1), 0) == 1000


def test_headroom_leaves_what_the_target_takes_of_all_kinds_of_blocks() -> None:
    kinds = ((16, 0), (32, 0))
    assert headroom_blocks(load(high_running=1, kv_groups=kinds), TARGET_TOKENS) == 1000 - 100 - 50
    assert headroom_blocks(load(high_running=1, state_blocks=3), TARGET_TOKENS) == 1000 - 100 - 3


def test_an_instance_either_has_headroom_or_lacks_it() -> None:
    without, with_high = load(running=3), load(running=3, high_running=1)
    assert (headroom_blocks(without, TARGET_TOKENS), missing_headroom_blocks(without, TARGET_TOKENS)) == (0, 900)
    assert (headroom_blocks(with_high, TARGET_TOKENS), missing_headroom_blocks(with_high, TARGET_TOKENS)) == (900, 0)


@pytest.mark.parametrize(
    ("situation", "instance", "room"),
    [
        ("what is free above the watermark", load(free_blocks=300, watermark_blocks=10), 290),
        ("the queue comes first", load(**QUEUE), 480),
        ("nothing if the queue wants it all", load(free_blocks=100, queued_blocks=200, waiting=2), 0),
        ("nothing without a slot in the batch", load(free_blocks=500, running=3, incoming=1, max_running=4), 0),
    ],
)
def test_room_for_a_newcomer(situation: str, instance: InstanceSnapshot, room: int) -> None:
    assert room_blocks(instance) == room, situation


@st.composite
def loads(draw: st.DrawFn) -> InstanceSnapshot:
    total = draw(st.integers(1, 2000))
    running, waiting = draw(st.integers(0, 300)), draw(st.integers(0, 50))
    head = draw(st.integers(1, 400)) if waiting else 0
    return load(
        total_blocks=total,
        free_blocks=draw(st.integers(0, total)),
        watermark_blocks=total // 100,
        running=running,
        waiting=waiting,
        head_of_line_blocks=head,
        queued_blocks=head + (draw(st.integers(0, 4000)) if waiting > 1 else 0),
        high_running=draw(st.integers(0, running)),
        high_waiting=draw(st.integers(0, waiting)),
    )


@given(loads())
def test_running_requests_and_headroom_are_never_charged_more_than_the_instance_has(instance: InstanceSnapshot) -> None:
    assert 0 <= held_blocks(instance) <= instance.total_blocks
    assert 0 <= headroom_blocks(instance, TARGET_TOKENS) <= instance.total_blocks


@given(loads())
def test_placement_charges_at_least_what_migration_charges(instance: InstanceSnapshot) -> None:
    assert dispatch_usage(instance, False, TARGET_TOKENS) >= migration_usage(instance, TARGET_TOKENS)


@given(loads(), st.integers(0, 500))
def test_more_free_blocks_never_make_it_less_free(instance: InstanceSnapshot, more: int) -> None:
    facts = {field: getattr(instance, field) for field in instance.__struct_fields__}
    freer = load(**facts | {"free_blocks": min(instance.total_blocks, instance.free_blocks + more)})
    assert migration_freeness(freer, TARGET_TOKENS) >= migration_freeness(instance, TARGET_TOKENS)
    for high in (False, True):
        assert dispatch_freeness(freer, high, TARGET_TOKENS) >= dispatch_freeness(instance, high, TARGET_TOKENS)
