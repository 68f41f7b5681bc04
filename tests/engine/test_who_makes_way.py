"""When somebody makes way, and when it would be for nothing."""

from __future__ import annotations

from time import time

import pytest

pytest.importorskip("vllm")

from small_engine import BLOCK_TOKENS, FULL, SmallEngine
from test_load_report import report
from vllm.config import LoRAConfig
from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.kv_cache_interface import SlidingWindowSpec
from vllm.v1.request import RequestStatus

from llumnix.config import PolicyConfig
from llumnix.control.changes_of_turn import LEAST_TURN_S, LONGEST_PAUSE_S
from llumnix.engine.vllm.instance.state import passport_of
from llumnix.policy.snapshot import StepCost


def three_fill_the_memory(engine: SmallEngine) -> None:
    for name in ("old", "middle", "new"):
        engine.add(name, 0, prompt_tokens=4 * BLOCK_TOKENS - 8)
    engine.step()
    assert engine.free_blocks == 0
    engine.scheduler.obey(PolicyConfig())


def test_nobody_makes_way_while_nobody_from_the_queue_may_start(engine: SmallEngine) -> None:
    three_fill_the_memory(engine)
    engine.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    engine.add("high", -1, prompt_tokens=2 * BLOCK_TOKENS)
    engine.step()
    assert (engine.preempted, engine.running) == ([], ["old", "middle", "new"])
    engine.scheduler.set_pause_state(PauseState.UNPAUSED)
    engine.step()
    assert (engine.preempted, engine.running) == (["new"], ["old", "middle", "high"])


@pytest.mark.parametrize(("adapter", "preempted"), [("theirs", ["new"]), ("another", [])])
def test_nobody_makes_way_for_one_whose_adapter_has_no_place(
    engine: SmallEngine, adapter: str, preempted: list[str]
) -> None:
    engine.scheduler.lora_config = LoRAConfig(max_loras=1)
    adapters = {name: LoRARequest(name, number, "/none") for number, name in enumerate(("theirs", "another"), 1)}
    three_fill_the_memory(engine)
    for request in engine.scheduler.running:
        request.lora_request = adapters["theirs"]
    engine.add("high", -1, prompt_tokens=2 * BLOCK_TOKENS)
    engine.scheduler.requests["high"].lora_request = adapters[adapter]
    engine.step()
    assert engine.preempted == preempted


def test_nobody_makes_way_for_one_whose_prompt_is_cached_and_held() -> None:
    engine = SmallEngine(prefix_caching=True)
    engine.scheduler.obey(PolicyConfig())
    engine.add("old", 0, prompt_tokens=9 * BLOCK_TOKENS + 1)
    engine.step()
    assert engine.free_blocks == 2
    engine.add("high", -1, prompt_tokens=9 * BLOCK_TOKENS + 8)
    engine.step()
    assert (engine.preempted, engine.running) == ([], ["old", "high"])
    engine.close()


def test_nobody_makes_way_whose_blocks_others_hold_too() -> None:
    """Both together would free enough; but each is counted with what it would free by itself."""
    engine = SmallEngine(prefix_caching=True)
    engine.scheduler.obey(PolicyConfig())
    for name in ("old", "new"):
        engine.add(name, 0, prompt_tokens=9 * BLOCK_TOKENS + 1)
    engine.step()
    engine.step()
    assert engine.free_blocks == 1
    engine.add("high", -1, prompt_tokens=4 * BLOCK_TOKENS)
    engine.scheduler.requests["high"].skip_reading_prefix_cache = True
    engine.step()
    assert (engine.preempted, engine.running) == ([], ["old", "new"])
    engine.close()


def test_blocks_of_all_kinds_are_made_room_for() -> None:
    window = SlidingWindowSpec(
        block_size=BLOCK_TOKENS, num_kv_heads=2, head_size=64, dtype=FULL.dtype, sliding_window=64
    )
    engine = SmallEngine(kinds=(FULL, window))
    engine.scheduler.obey(PolicyConfig())
    for name in ("old", "new"):
        engine.add(name, 0, prompt_tokens=2 * BLOCK_TOKENS - 8)
    engine.step()
    assert engine.free_blocks == 12 - 2 * 4
    engine.add("high", -1, prompt_tokens=3 * BLOCK_TOKENS)
    engine.step()
    assert (engine.preempted, engine.running) == (["new"], ["old", "high"]), "it needs six blocks"
    engine.close()


def test_who_makes_way_has_nothing_left_to_hand_on(engine: SmallEngine) -> None:
    """Where a connector hands KV on, what comes of a step in flight belongs to KV that is gone."""
    three_fill_the_memory(engine)
    engine.scheduler.requires_kv_delivery = True
    engine.add("high", -1, prompt_tokens=2 * BLOCK_TOKENS)
    engine.scheduler.schedule()
    assert engine.scheduler.requests["new"].drop_stale_output


def test_place_that_vllm_keeps_from_all_is_no_place(engine: SmallEngine) -> None:
    engine.scheduler.max_num_active_reqs = 1
    engine.add("runs", 0, prompt_tokens=4)
    engine.step()
    assert not engine.scheduler.places.has_slot()


def test_room_to_grow_is_left_by_those_behind_an_important_one(engine: SmallEngine) -> None:
    engine.scheduler.obey(PolicyConfig())
    for name in ("old", "new"):
        engine.add(name, 0, prompt_tokens=3 * BLOCK_TOKENS - 2)
    engine.step()
    assert engine.free_blocks == 6
    engine.add("high", -1, prompt_tokens=2 * BLOCK_TOKENS - 4)
    engine.add("waits", 0, prompt_tokens=3 * BLOCK_TOKENS - 4)
    engine.step()
    assert engine.running == ["old", "new", "high"]


def test_order_of_arrival_knows_none_of_it() -> None:
    engine = SmallEngine(scheduling_policy="fcfs")
    engine.scheduler.obey(PolicyConfig())
    for name in ("old", "new"):
        engine.add(name, 0, prompt_tokens=3 * BLOCK_TOKENS - 2)
    engine.step()
    engine.add("fits", 0, prompt_tokens=6 * BLOCK_TOKENS - 4)
    assert report(engine).spared_blocks == 0
    engine.step()
    assert engine.running == ["old", "new", "fits"]
    engine.close()


def test_one_that_comes_to_wait_stands_still_since_it_did_before(engine: SmallEngine) -> None:
    """Where it was preempted, or since its instance died, though it is preempted once more before it makes a token."""
    engine.scheduler.obey(PolicyConfig())
    engine.replay("robbed", prompt_tokens=BLOCK_TOKENS)
    before = engine.scheduler.turns.longest_stopped()
    request = engine.scheduler.requests["robbed"]
    engine.scheduler.schedule()
    engine.scheduler.running.remove(request)
    engine.scheduler._preempt_request(request, 0.0)
    assert engine.scheduler.turns.longest_stopped() == before
    assert passport_of(request).preempted_s is None, "it lets nobody pass"


def test_pause_goes_on_where_a_preempted_one_makes_no_token_before_it_is_preempted_again(engine: SmallEngine) -> None:
    engine.scheduler.obey(PolicyConfig())
    engine.add("one", 0, prompt_tokens=BLOCK_TOKENS)
    engine.step()
    request = engine.scheduler.requests["one"]
    since = []
    for made_between in (True, False, True):
        if made_between:
            engine.step()
        else:
            engine.scheduler.schedule()
        engine.scheduler.running.remove(request)
        engine.scheduler._preempt_request(request, 0.0)
        request.num_stale_output_tokens = 0
        since.append(passport_of(request).preempted_s)
        assert engine.scheduler.turns.longest_stopped() == [(since[-1], request)]
    assert since[0] == since[1] != since[2]


@pytest.mark.parametrize("with_large", [False, True])
def test_one_whose_turn_cannot_come_keeps_nobody_else_waiting(engine: SmallEngine, with_large: bool) -> None:
    """A large one needs more than anybody who runs holds."""
    scheduler = engine.scheduler
    scheduler.obey(PolicyConfig())
    scheduler.way._cost = lambda: StepCost(fixed_ms=10, prefill_token_us=20, request_us=1, context_token_us=0)
    for name in "abcd":
        engine.add(name, 0, prompt_tokens=2 * BLOCK_TOKENS + 2)
    engine.step()
    for request in scheduler.running:
        passport_of(request).began_s -= 2 * LEAST_TURN_S
    if with_large:
        replay_that_stood_still(engine, "large", 5 * BLOCK_TOKENS, 3 * LONGEST_PAUSE_S)
    replay_that_stood_still(engine, "small", 2 * BLOCK_TOKENS + 2, 2 * LONGEST_PAUSE_S)
    engine.step()
    assert engine.preempted == ["d"]
    assert engine.running == ["a", "b", "c", "small"]


def replay_that_stood_still(engine: SmallEngine, name: str, prompt_tokens: int, paused_s: float) -> None:
    request = engine.make(name, 0, prompt_tokens)
    request.append_output_token_ids([7])
    passport_of(request).robbed_s = time() - paused_s
    engine.scheduler.adopt(request, computed_tokens=0)


def test_one_whose_first_token_is_in_flight_stands_still_when_it_is_preempted(engine: SmallEngine) -> None:
    engine.scheduler.obey(PolicyConfig())
    engine.add("one", 0, prompt_tokens=BLOCK_TOKENS)
    engine.scheduler.schedule()
    request = engine.scheduler.requests["one"]
    request.num_output_placeholders = 1  # as asynchronous scheduling has it
    engine.scheduler.running.remove(request)
    engine.scheduler._preempt_request(request, 0.0)
    ((_, stopped),) = engine.scheduler.turns.longest_stopped()
    assert stopped is request


def test_report_says_since_when_the_first_of_the_queue_is_that(engine: SmallEngine) -> None:
    three_fill_the_memory(engine)
    assert report(engine, at=1.0).head_of_line_s == 0.0
    engine.add("first", 0, prompt_tokens=4 * BLOCK_TOKENS)
    assert report(engine, at=2.0).head_of_line_s == 0.0
    assert report(engine, at=7.0).head_of_line_s == 5.0
    engine.scheduler.turns.call(engine.scheduler.requests["first"])
    assert report(engine, at=8.0).head_of_line_s == 6.0, "it is the same one"
    engine.scheduler.finish_requests(["old", "middle", "new"], RequestStatus.FINISHED_ABORTED)
    engine.step()
    assert engine.running == ["first"]
    request = engine.scheduler.requests["first"]
    engine.scheduler.running.remove(request)
    engine.scheduler._preempt_request(request, 0.0)
    assert report(engine, at=9.0).head_of_line_s == 0.0, "it ran in between"
