"""vLLM's scheduler, with our part in it, on a handful of blocks: who waits, who is preempted, who is in need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("vllm")

import torch
from vllm.config import set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from llumnix import tiny_model
from llumnix.config import PolicyConfig
from llumnix.control.changes_of_turn import LONGEST_PAUSE_S
from llumnix.engine.vllm.instance import making_way, state, turn_queue
from llumnix.engine.vllm.instance.scheduler import LlumnixScheduler
from llumnix.engine.vllm.instance.snapshot import growth_blocks
from llumnix.engine.vllm.instance.state import Passport
from llumnix.engine.vllm.instance.step_watch import StepWatch
from llumnix.policy.relief import short_blocks
from llumnix.policy.snapshot import StepCost

BLOCK_TOKENS = 16
BLOCKS = 13  # one of them is vLLM's null block


class Engine:
    """Schedules, and pretends that every request got a token."""

    def __init__(self) -> None:
        arguments = EngineArgs(
            model=str(tiny_model.ensure()),
            enforce_eager=True,
            max_model_len=2048,
            block_size=BLOCK_TOKENS,
            scheduling_policy="priority",
            enable_prefix_caching=False,
            async_scheduling=False,
        )
        config = arguments.create_engine_config()
        config.cache_config.num_gpu_blocks = BLOCKS
        kinds = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=2, head_size=64, dtype=torch.float32)
        self._context = set_current_vllm_config(config)
        self._context.__enter__()
        self.scheduler = LlumnixScheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer"], kinds)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_TOKENS,
            log_stats=False,
        )
        self.arrives_s = 0.0
        """The last one, in seconds; the next comes a second later."""
        self.preempted: list[str] = []

    def close(self) -> None:
        self._context.__exit__(None, None, None)

    def make(self, name: str, priority: int, prompt_tokens: int, output_tokens: int = 500) -> Request:
        self.arrives_s += 1.0
        sampling = SamplingParams(max_tokens=output_tokens, ignore_eos=True)
        request = Request(name, [1] * prompt_tokens, sampling, None, arrival_time=self.arrives_s, priority=priority)
        request._llumnix_passport = Passport(original=None)  # type: ignore[attr-defined, arg-type]
        return request

    def add(self, name: str, priority: int, prompt_tokens: int, output_tokens: int = 500) -> None:
        self.scheduler.add_request(self.make(name, priority, prompt_tokens, output_tokens))

    def replay(self, name: str, prompt_tokens: int) -> None:
        """As `Resumes` has it: it made tokens on an instance that died."""
        request = self.make(name, 0, prompt_tokens)
        request.append_output_token_ids([7, 7, 7])
        self.scheduler.adopt(request, computed_tokens=0)

    def step(self) -> None:
        before = {r.request_id: r.num_preemptions for r in self.scheduler.requests.values()}
        self.finish(self.scheduler.schedule())
        self.preempted += [name for name, r in self.scheduler.requests.items() if r.num_preemptions > before[name]]

    def finish(self, output: SchedulerOutput) -> None:
        names = list(output.num_scheduled_tokens)
        self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(names, {name: n for n, name in enumerate(names)}, [[7]] * len(names)),
        )

    @property
    def running(self) -> list[str]:
        return [request.request_id for request in self.scheduler.running]

    @property
    def free_blocks(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.close()


def test_least_important_one_is_preempted_first_whatever_came_when(engine: Engine) -> None:
    for name, priority in (("batch", 5), ("high", -1), ("normal", 0), ("top", -7)):
        engine.add(name, priority, prompt_tokens=3 * BLOCK_TOKENS - 2)
    engine.step()
    assert sorted(engine.running) == ["batch", "high", "normal", "top"]
    while len(engine.preempted) < 2:
        engine.step()
    assert engine.preempted[:2] == ["batch", "normal"]
    assert {"high", "top"} <= set(engine.running)


def test_queue_is_in_the_order_of_the_classes_and_then_of_arrival(engine: Engine) -> None:
    engine.add("long", 0, prompt_tokens=10 * BLOCK_TOKENS, output_tokens=2)
    engine.step()
    for name, priority in (("late", 3), ("normal-1", 0), ("high", -1), ("normal-2", 0), ("top", -2)):
        engine.add(name, priority, prompt_tokens=10 * BLOCK_TOKENS, output_tokens=1)
    for _ in range(20):
        engine.step()
    ended = [name for name, _ in engine.scheduler.ended]
    assert ended == ["long", "top", "high", "normal-1", "normal-2", "late"]


@pytest.mark.parametrize("policy", ["llumnix", "llumnix-paper"])
def test_small_one_does_not_wait_behind_a_large_one_that_finds_no_room(engine: Engine, policy: str) -> None:
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


def test_preempted_one_waits_since_it_was_preempted(engine: Engine) -> None:
    """It came first and is small; what came since is before it, except what comes a minute and more after."""
    engine.scheduler.obey(PolicyConfig())
    now_s = time.time()
    engine.arrives_s = now_s - 50
    for name in ("old", "new"):
        engine.add(name, 0, prompt_tokens=5 * BLOCK_TOKENS)
    while not engine.preempted:
        engine.step()
    assert engine.preempted == ["new"]
    for name, after_s in (("waited", -10.0), ("later", 120.0)):
        engine.arrives_s = now_s + after_s
        engine.add(name, 0, prompt_tokens=7 * BLOCK_TOKENS)
    assert [request.request_id for request in engine.scheduler.waiting] == ["waited", "new", "later"]


def test_one_whose_instance_died_lets_nobody_pass(engine: Engine) -> None:
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


def preempts_the_last_of_three(engine: Engine) -> None:
    engine.scheduler.obey(PolicyConfig())
    for name in ("old", "middle", "new"):
        engine.add(name, 0, prompt_tokens=4 * BLOCK_TOKENS - 4)
    while not engine.preempted:
        engine.step()
    assert (engine.preempted, engine.running) == (["new"], ["old", "middle"])


def test_who_has_stood_still_for_long_takes_the_place_of_the_last_that_came(
    engine: Engine, later: Callable[[float], None]
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
    engine: Engine, later: Callable[[float], None]
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
    engine: Engine, later: Callable[[float], None]
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
    engine: Engine, later: Callable[[float], None]
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


def test_high_one_that_waits_takes_the_place_of_normal_ones(engine: Engine) -> None:
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


def test_high_one_takes_a_slot_of_a_full_batch(engine: Engine) -> None:
    engine.scheduler.makes_way = True
    engine.scheduler.max_num_running_reqs = engine.scheduler.max_num_active_reqs = 2
    for name in ("a", "b"):
        engine.add(name, 0, prompt_tokens=4)
    engine.step()
    engine.add("high", -1, prompt_tokens=4)
    engine.step()
    assert sorted(engine.running) == ["a", "high"]


def test_nobody_makes_way_for_a_normal_one_or_when_it_is_off(engine: Engine) -> None:
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


def test_shortage_is_seen_before_anybody_is_preempted(engine: Engine) -> None:
    for name in ("a", "b", "c"):
        engine.add(name, 0, prompt_tokens=3 * BLOCK_TOKENS)
    seen_short = 0
    while not engine.preempted:
        growth = growth_blocks(engine.scheduler, 16)
        seen_short += bool(short_blocks(growth, engine.free_blocks))
        engine.step()
    assert seen_short >= 16


def test_batch_that_will_end_in_time_is_not_short(engine: Engine) -> None:
    for name in ("a", "b", "c"):
        engine.add(name, 0, prompt_tokens=4 * BLOCK_TOKENS - 4, output_tokens=4)
    engine.step()
    assert engine.free_blocks == 0
    assert growth_blocks(engine.scheduler, 16) == 0
