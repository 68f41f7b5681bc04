"""What a load report says of a batch, and what it leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

from test_priority_scheduling import BLOCK_TOKENS, Engine
from vllm.sampling_params import SamplingParams

from llumnix.engine.vllm.instance.snapshot import instance_snapshot
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.virtual_usage import room_blocks
from llumnix.types import InstanceId, InstanceState


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.close()


def report(engine: Engine, **said: Any) -> InstanceSnapshot:
    usual: dict[str, Any] = {"id": InstanceId("i0"), "at": 0.0, "seq": 1, "state": InstanceState.RUNNING}
    counts = ("incoming", "outgoing", "migrations_in", "migrations_out", "ended")
    counts += ("preemptions_avoided", "recompute_tokens_saved")
    flags = ("drain_keep", "asked_to_end", "pinned")
    usual |= dict.fromkeys(counts, 0) | dict.fromkeys(flags, False) | {"dispatches_seen": (0,)}
    return instance_snapshot(engine.scheduler, usual | said, 16)  # type: ignore[arg-type]


def test_queue_is_told_by_its_sums_and_its_first(engine: Engine) -> None:
    engine.add("runs", 0, 8 * BLOCK_TOKENS)
    engine.step()
    engine.add("long", 0, 6 * BLOCK_TOKENS)
    engine.add("top", -1, 5 * BLOCK_TOKENS)
    told = report(engine)
    assert (told.running, told.waiting, told.high_waiting, told.preempted) == (1, 2, 1, 0)
    assert (told.head_of_line_blocks, told.queued_blocks) == (5, 11)


def test_shortest_running_one_is_one_that_may_move(engine: Engine) -> None:
    """Not one of high priority, which stays where its headroom is, nor one that is pinned."""
    engine.add("high", -1, BLOCK_TOKENS - 2)
    engine.add("pinned", 0, BLOCK_TOKENS - 2)
    engine.add("normal", 0, 4 * BLOCK_TOKENS - 2)
    engine.scheduler.requests["pinned"].sampling_params = SamplingParams(prompt_logprobs=1)
    engine.step()
    engine.scheduler.requests["pinned"]._output_token_ids.clear()
    assert report(engine).smallest_running_blocks == 4
    assert report(engine, pinned=True).smallest_running_blocks == 0


def test_slot_kept_for_an_arrival_is_taken_once(engine: Engine) -> None:
    engine.scheduler.max_num_running_reqs = 8
    for name in ("a", "b"):
        engine.add(name, 0, 4)
    engine.step()
    engine.scheduler.slots_for_arrivals = 3
    told = report(engine, incoming=3)
    assert (told.running, told.incoming) == (2, 3)
    assert room_blocks(told) > 0, "three of eight slots are free"
    engine.scheduler.slots_for_arrivals = 6
    assert room_blocks(report(engine, incoming=6)) == 0
