"""What a load report says of a batch, and what it leaves out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from small_engine import BLOCK_TOKENS, FULL, SmallEngine
from vllm.v1.kv_cache_interface import SlidingWindowSpec

from llumnix.config import PolicyConfig
from llumnix.control.dispatcher import Dispatcher
from llumnix.control.step_fit import FEWEST_STEPS
from llumnix.engine.vllm.instance.snapshot import instance_snapshot
from llumnix.policy.demand import queued_demand_blocks
from llumnix.policy.dispatch import DispatchRequest
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.step_cost import step_s
from llumnix.policy.virtual_usage import room_blocks
from llumnix.types import InstanceId, InstanceState, Priority, RequestId
from llumnix.wire.base import encode


def report(engine: SmallEngine, **said: Any) -> InstanceSnapshot:
    usual: dict[str, Any] = {"id": InstanceId("i0"), "at": 0.0, "seq": 1, "state": InstanceState.RUNNING}
    ended = ("migrations_in", "migrations_out", "ended", "preemptions_avoided", "recompute_tokens_saved")
    counts = ("incoming", "outgoing", "late_messages", *ended)
    flags = ("drain_keep", "asked_to_end", "pinned")
    usual |= dict.fromkeys(counts, 0) | dict.fromkeys(flags, False) | {"dispatches_seen": (0,)}
    return instance_snapshot(engine.scheduler, usual | said, 16)  # type: ignore[arg-type]


def test_queue_is_told_by_its_sums_and_its_first(engine: SmallEngine) -> None:
    engine.add("runs", 0, 8 * BLOCK_TOKENS)
    engine.step()
    engine.add("long", 0, 6 * BLOCK_TOKENS)
    engine.add("top", -1, 5 * BLOCK_TOKENS)
    told = report(engine)
    assert (told.running, told.waiting, told.high_waiting, told.preempted) == (1, 2, 1, 0)
    assert (told.head_of_line_blocks, told.queued_blocks) == (5, 11)


def test_front_end_counts_a_prompt_as_the_instance_does() -> None:
    window = SlidingWindowSpec(
        block_size=BLOCK_TOKENS, num_kv_heads=2, head_size=64, dtype=FULL.dtype, sliding_window=64
    )
    for kinds, blocks in (((FULL,), 3), ((FULL, window), 3 + 3)):
        engine = SmallEngine(kinds=kinds)
        told = report(engine)
        assert queued_demand_blocks(40, told) == blocks
        engine.add("waits", 0, prompt_tokens=40)
        assert report(engine).queued_blocks == blocks
        engine.close()


def test_what_those_that_run_will_take_is_told_while_somebody_waits_for_it(engine: SmallEngine) -> None:
    engine.scheduler.obey(PolicyConfig())
    for name in ("old", "new"):
        engine.add(name, 0, 3 * BLOCK_TOKENS - 2)
    engine.step()
    assert report(engine).spared_blocks == 0
    engine.add("long", 0, 6 * BLOCK_TOKENS)
    assert report(engine).spared_blocks == 2
    engine.add("top", -1, 5 * BLOCK_TOKENS)
    assert report(engine).spared_blocks == 0, "the first is important"


def test_what_is_still_to_be_computed_is_told_beside_those_that_decode(engine: SmallEngine) -> None:
    engine.scheduler.max_num_scheduled_tokens = 64
    engine.add("decodes", 0, 3 * BLOCK_TOKENS)
    engine.step()
    engine.add("computes", 0, 6 * BLOCK_TOKENS)
    engine.step()
    engine.add("waits", 0, 5 * BLOCK_TOKENS)
    told = report(engine)
    assert (told.decoding, told.context_tokens, told.step_tokens) == (1, 3 * BLOCK_TOKENS + 2, 64)
    partly = engine.scheduler.requests["computes"]
    assert 0 < partly.num_computed_tokens < 64
    assert told.prefill_tokens == (partly.num_tokens - partly.num_computed_tokens) + 5 * BLOCK_TOKENS
    assert (told.running, told.waiting, told.step_cost) == (2, 1, None)


def test_what_steps_cost_is_told_once_there_were_enough(engine: SmallEngine) -> None:
    for k in range(FEWEST_STEPS // 2 + 1):
        engine.add(f"r{k}", 0, (1 + k % 5) * BLOCK_TOKENS, output_tokens=2)
        engine.step()
        engine.step()
    told = report(engine)
    assert told.step_cost is not None
    assert 0 < step_s(told.step_cost, 0, 1, 2 * BLOCK_TOKENS) < 1
    assert len(encode(told)) < 1024


def test_shortest_running_one_is_one_that_may_move(engine: SmallEngine) -> None:
    """Not one of high priority, which stays where its headroom is, nor one that is pinned."""
    engine.add("high", -1, BLOCK_TOKENS - 2)
    engine.add("pinned", 0, BLOCK_TOKENS - 2)
    engine.add("normal", 0, 4 * BLOCK_TOKENS - 2)
    engine.step()
    engine.scheduler.requests["pinned"].resumable = True
    assert report(engine).smallest_running_blocks == 4
    assert report(engine, pinned=True).smallest_running_blocks == 0


def test_slot_kept_for_an_arrival_is_taken_once(engine: SmallEngine) -> None:
    engine.scheduler.max_num_active_reqs = 8
    for name in ("a", "b"):
        engine.add(name, 0, 4)
    engine.step()
    arriving = [engine.make(f"arrives {n}", 0, 4) for n in range(6)]
    engine.scheduler.places.arriving |= {each.request_id: each for each in arriving[:3]}
    told = report(engine, incoming=3)
    assert (told.running, told.incoming) == (2, 3)
    assert room_blocks(told) > 0, "three of eight slots are free"
    engine.scheduler.places.arriving |= {each.request_id: each for each in arriving}
    assert room_blocks(report(engine, incoming=6)) == 0


def test_engine_without_a_kv_cache_has_the_room_of_its_batch(engine: SmallEngine) -> None:
    """An encoder: without blocks it would seem to have no room for any request."""
    scheduler = engine.scheduler
    scheduler.max_num_running_reqs, scheduler.max_model_len = 4, 2 * BLOCK_TOKENS
    scheduler.kv_cache_config = SimpleNamespace(kv_cache_groups=[])  # type: ignore[assignment]
    dispatcher = Dispatcher(PolicyConfig())
    dispatcher.on_report(report(engine))
    asked = DispatchRequest(id=RequestId("r"), prompt_tokens=2 * BLOCK_TOKENS, priority=Priority(0))
    assert dispatcher.dispatch(asked) is not None
    engine.add("runs", 0, BLOCK_TOKENS)
    engine.step()
    told = report(engine, pinned=True)
    assert (told.total_blocks, told.running, told.free_blocks, told.short_blocks) == (8, 1, 6, 0)
