"""Who is preempted, who is important, and who is in need."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from small_engine import BLOCK_TOKENS, SmallEngine
from vllm.v1.request import RequestStatus

from llumnix.engine.vllm.instance.growth import growth_blocks
from llumnix.policy.relief import short_blocks


def test_least_important_one_is_preempted_first_whatever_came_when(engine: SmallEngine) -> None:
    for name, priority in (("batch", 5), ("high", -1), ("normal", 0), ("top", -7)):
        engine.add(name, priority, prompt_tokens=3 * BLOCK_TOKENS - 2)
    engine.step()
    assert sorted(engine.running) == ["batch", "high", "normal", "top"]
    while len(engine.preempted) < 2:
        engine.step()
    assert engine.preempted[:2] == ["batch", "normal"]
    assert {"high", "top"} <= set(engine.running)


def test_queue_is_in_the_order_of_the_classes_and_then_of_arrival(engine: SmallEngine) -> None:
    engine.add("long", 0, prompt_tokens=10 * BLOCK_TOKENS, output_tokens=2)
    engine.step()
    for name, priority in (("late", 3), ("normal-1", 0), ("high", -1), ("normal-2", 0), ("top", -2)):
        engine.add(name, priority, prompt_tokens=10 * BLOCK_TOKENS, output_tokens=1)
    for _ in range(20):
        engine.step()
    ended = [name for name, _ in engine.scheduler.ended]
    assert ended == ["long", "top", "high", "normal-1", "normal-2", "late"]


def test_high_one_that_waits_takes_the_place_of_normal_ones(engine: SmallEngine) -> None:
    engine.scheduler.makes_way = True
    for name, priority in (("old", 0), ("new", 0), ("batch", 3), ("high", -1)):
        engine.add(name, priority, prompt_tokens=3 * BLOCK_TOKENS - 4)
    engine.step()
    assert engine.free_blocks == 0
    engine.add("top", -2, prompt_tokens=5 * BLOCK_TOKENS)
    engine.step()
    assert sorted(engine.running) == ["high", "old", "top"]
    assert engine.preempted == ["new", "batch"]
    engine.add("another", -1, prompt_tokens=9 * BLOCK_TOKENS)
    engine.step()
    assert sorted(engine.running) == ["high", "old", "top"], "all normal ones together would not be enough for it"


def test_high_one_takes_a_slot_of_a_full_batch(engine: SmallEngine) -> None:
    engine.scheduler.makes_way = True
    engine.scheduler.max_num_active_reqs = 2
    for name in ("a", "b"):
        engine.add(name, 0, prompt_tokens=4)
    engine.step()
    engine.add("high", -1, prompt_tokens=4)
    engine.step()
    assert sorted(engine.running) == ["a", "high"]


def test_nobody_makes_way_for_a_normal_one_or_when_it_is_off(engine: SmallEngine) -> None:
    for name in ("a", "b"):
        engine.add(name, 1, prompt_tokens=6 * BLOCK_TOKENS - 4)
    engine.step()
    engine.add("high", -1, prompt_tokens=2 * BLOCK_TOKENS)
    engine.step()
    assert engine.running == ["a", "b"]
    engine.scheduler.makes_way = True
    engine.scheduler.finish_requests("high", RequestStatus.FINISHED_ABORTED)
    engine.add("normal", 0, prompt_tokens=2 * BLOCK_TOKENS)
    engine.step()
    assert engine.running == ["a", "b"]


def test_shortage_is_seen_before_anybody_is_preempted(engine: SmallEngine) -> None:
    for name in ("a", "b", "c"):
        engine.add(name, 0, prompt_tokens=3 * BLOCK_TOKENS)
    seen_short = 0
    while not engine.preempted:
        growth = growth_blocks(engine.scheduler.running, engine.scheduler.counts, 16)
        seen_short += bool(short_blocks(growth, engine.free_blocks))
        engine.step()
    assert seen_short >= 16


def test_batch_that_will_end_in_time_is_not_short(engine: SmallEngine) -> None:
    for name in ("a", "b", "c"):
        engine.add(name, 0, prompt_tokens=4 * BLOCK_TOKENS - 4, output_tokens=4)
    engine.step()
    assert engine.free_blocks == 0
    assert growth_blocks(engine.scheduler.running, engine.scheduler.counts, 16) == 0
