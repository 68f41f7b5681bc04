"""Who starts next of those that wait, when, and in whose place."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

pytest.importorskip("vllm")

from small_engine import BLOCK_TOKENS, BLOCKS, SmallEngine
from vllm.v1.request import RequestStatus

from llumnix.config import PolicyConfig
from llumnix.control.changes_of_turn import LONGEST_PAUSE_S
from llumnix.engine.vllm.instance import making_way, state, turn_queue
from llumnix.engine.vllm.instance.growth import growth_blocks
from llumnix.engine.vllm.instance.step_watch import StepWatch
from llumnix.policy.snapshot import StepCost
from llumnix.policy.waiting_order import GROWTH_STEPS


@pytest.mark.parametrize("policy", ["llumnix", "llumnix-paper"])
def test_small_one_does_not_wait_behind_a_large_one_that_finds_no_room(engine: SmallEngine, policy: str) -> None:
    engine.scheduler.obey(PolicyConfig(policy=policy))
    engine.add("runs", 0, prompt_tokens=6 * BLOCK_TOKENS, output_tokens=20)
    engine.step()
    for name, blocks in (("large", 9), ("small", 1), ("equal", 9)):
        engine.add(name, 0, prompt_tokens=blocks * BLOCK_TOKENS - 4, output_tokens=2)
    for _ in range(30):
        engine.step()
    ended = [name for name, _ in engine.scheduler.ended]
    assert ended == (
        ["small", "runs", "large", "equal"] if policy == "llumnix" else ["runs", "large", "small", "equal"]
    )


def two_run_that_soon_take_a_block_each(engine: SmallEngine, policy: str = "llumnix") -> None:
    """Six blocks are free, and two of them will not be for long."""
    engine.scheduler.obey(PolicyConfig(policy=policy))
    for name in ("old", "new"):
        engine.add(name, 0, prompt_tokens=3 * BLOCK_TOKENS - 2)
    engine.step()
    assert engine.free_blocks == 6


@pytest.mark.parametrize(
    ("policy", "blocks", "starts"), [("llumnix", 5, False), ("llumnix", 4, True), ("llumnix-paper", 5, True)]
)
def test_whoever_waits_leaves_those_that_run_room_to_grow(
    engine: SmallEngine, policy: str, blocks: int, starts: bool
) -> None:
    two_run_that_soon_take_a_block_each(engine, policy)
    engine.add("waits", 0, prompt_tokens=blocks * BLOCK_TOKENS - 4)
    engine.step()
    assert ("waits" in engine.running) is starts


def test_important_one_starts_where_there_is_no_room_to_grow(engine: SmallEngine) -> None:
    two_run_that_soon_take_a_block_each(engine)
    engine.add("high", -1, prompt_tokens=5 * BLOCK_TOKENS - 4)
    engine.step()
    assert "high" in engine.running


def test_one_that_came_with_its_kv_begins_at_once_where_there_is_no_room_to_grow(engine: SmallEngine) -> None:
    two_run_that_soon_take_a_block_each(engine)
    moved = engine.make("moved", 0, prompt_tokens=4 * BLOCK_TOKENS - 4)
    moved.append_output_token_ids([7])
    assert engine.scheduler.reserve(moved, blocks=4) == 0
    assert engine.free_blocks < growth_blocks(engine.scheduler.running, engine.scheduler.counts, GROWTH_STEPS)
    engine.add("waits", 0, prompt_tokens=4)
    engine.scheduler.adopt(moved, computed_tokens=4 * BLOCK_TOKENS - 4)
    engine.step()
    assert "moved" in engine.running
    assert engine.scheduler.kv_cache_manager.watermark_blocks == 0, "as it was before the step"


def test_watermark_is_for_those_that_are_let_in_and_stops_none_that_have_been(engine: SmallEngine) -> None:
    """Four of twelve blocks are taken; five and a spare one are asked for, which leaves two."""
    engine.scheduler.obey(PolicyConfig())
    manager = engine.scheduler.kv_cache_manager
    manager.watermark_blocks = 2
    engine.add("runs", 0, prompt_tokens=4 * BLOCK_TOKENS - 4)
    engine.step()
    moved = engine.make("moved", 0, prompt_tokens=5 * BLOCK_TOKENS - 4)
    moved.append_output_token_ids([7])
    assert engine.scheduler.reserve(moved, blocks=6) is None, "it would not leave the watermark"
    assert engine.scheduler.reserve(moved, blocks=5) == 0
    assert engine.free_blocks == 2
    assert engine.scheduler.grow(moved, 7 * BLOCK_TOKENS), "it has grown on its way, as one does that runs"
    for _ in range(6):
        engine.step()
    assert engine.free_blocks == 0
    engine.add("waits", 0, prompt_tokens=4)
    engine.scheduler.adopt(moved, computed_tokens=5 * BLOCK_TOKENS - 4)
    engine.step()
    assert engine.running == ["moved", "runs"]
    assert manager.watermark_blocks == 2, "as it was before the step"


def test_one_that_needs_all_starts_when_nobody_runs(engine: SmallEngine) -> None:
    engine.scheduler.obey(PolicyConfig())
    engine.add("large", 0, prompt_tokens=(BLOCKS - 1) * BLOCK_TOKENS - 1, output_tokens=1)
    engine.step()
    assert [name for name, _ in engine.scheduler.ended] == ["large"]


def test_preempted_one_waits_since_it_was_preempted(engine: SmallEngine) -> None:
    """It came before both, and what came two minutes before that is before it."""
    engine.scheduler.obey(PolicyConfig())
    now_s = time.time()
    engine.arrives_s = now_s - 50
    for name in ("old", "new"):
        engine.add(name, 0, prompt_tokens=5 * BLOCK_TOKENS)
    while not engine.preempted:
        engine.step()
    assert engine.preempted == ["new"]
    for name, after_s in (("waited", -130.0), ("later", -10.0)):
        engine.arrives_s = now_s + after_s
        engine.add(name, 0, prompt_tokens=7 * BLOCK_TOKENS)
    assert [request.request_id for request in engine.scheduler.waiting] == ["waited", "new", "later"]


def test_one_whose_instance_died_lets_nobody_pass(engine: SmallEngine) -> None:
    engine.scheduler.obey(PolicyConfig())
    engine.add("runs", 0, prompt_tokens=6 * BLOCK_TOKENS, output_tokens=20)
    engine.step()
    engine.replay("robbed", prompt_tokens=8 * BLOCK_TOKENS)
    engine.add("small", 0, prompt_tokens=BLOCK_TOKENS - 4, output_tokens=2)
    assert [request.request_id for request in engine.scheduler.waiting] == ["robbed", "small"]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets so much time pass for who makes way; what steps cost is known."""
    monkeypatch.setattr(
        StepWatch, "cost", StepCost(fixed_ms=20.0, prefill_token_us=200.0, request_us=200.0, context_token_us=0.0)
    )

    def pass_on(seconds: float) -> None:
        for module in (making_way, state, turn_queue):
            monkeypatch.setattr(module, "time", lambda: time.time() + seconds)
        for module in (making_way, turn_queue):
            monkeypatch.setattr(module, "monotonic", lambda: time.monotonic() + seconds)

    return pass_on


def preempts_the_last_of_three(engine: SmallEngine) -> None:
    engine.scheduler.obey(PolicyConfig())
    for name in ("old", "middle", "new"):
        engine.add(name, 0, prompt_tokens=4 * BLOCK_TOKENS - 4)
    while not engine.preempted:
        engine.step()
    assert (engine.preempted, engine.running) == (["new"], ["old", "middle"])


def test_who_has_stood_still_for_long_takes_the_place_of_the_last_that_came(
    engine: SmallEngine, later: Callable[[float], None]
) -> None:
    preempts_the_last_of_three(engine)
    later(LONGEST_PAUSE_S / 2)
    engine.step()
    assert engine.running == ["old", "middle"]
    later(LONGEST_PAUSE_S + 0.1)
    engine.step()
    assert (engine.preempted, engine.running) == (["new", "middle"], ["old", "new"])
    engine.step()
    assert engine.running == ["old", "new"], "the one that made way has only begun to wait"


def test_nobody_takes_turns_while_much_waits_and_somebody_does_once_it_has_gone(
    engine: SmallEngine, later: Callable[[float], None]
) -> None:
    preempts_the_last_of_three(engine)
    engine.add("more", 0, prompt_tokens=11 * BLOCK_TOKENS)
    later(LONGEST_PAUSE_S + 0.1)
    engine.step()
    assert engine.running == ["old", "middle"]
    engine.scheduler.finish_requests("more", RequestStatus.FINISHED_ABORTED)
    engine.step()
    assert engine.running == ["old", "new"]


def test_stream_of_a_dead_instance_takes_its_turn_before_what_came_since(
    engine: SmallEngine, later: Callable[[float], None]
) -> None:
    engine.scheduler.obey(PolicyConfig())
    for name in ("old", "new"):
        engine.add(name, 0, prompt_tokens=6 * BLOCK_TOKENS - 8)
    engine.step()
    engine.replay("robbed", prompt_tokens=4 * BLOCK_TOKENS)
    engine.step()
    assert engine.running == ["old", "new"]
    later(LONGEST_PAUSE_S + 0.1)
    engine.step()
    assert (engine.preempted, engine.running) == (["new"], ["old", "robbed"])


def test_nobody_takes_turns_under_policies_that_start_requests_as_they_came(
    engine: SmallEngine, later: Callable[[float], None]
) -> None:
    engine.scheduler.obey(PolicyConfig(policy="round-robin"))
    for name in ("old", "new"):
        engine.add(name, 0, prompt_tokens=6 * BLOCK_TOKENS - 8)
    while not engine.preempted:
        engine.step()
    later(60.0)
    for _ in range(3):
        engine.step()
    assert (engine.preempted, engine.running) == (["new"], ["old"])
