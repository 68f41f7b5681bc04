"""A request that leaves the batch to be handed over keeps its place there until it is known not to come back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from engine_requests import engine_request
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
from vllm.v1.request import Request, RequestStatus

from llumnix.engine.vllm.instance.scheduler import MigrationSupport
from llumnix.engine.vllm.instance.state import stamp


class StandIn:
    """As much of vLLM's scheduler as the batch slots need."""

    def __init__(self) -> None:
        self.running: list[Any] = [running("a"), running("b"), running("c")]
        self.waiting = create_request_queue(SchedulingPolicy.PRIORITY)
        self.kv_holding_waiting = create_request_queue(SchedulingPolicy.PRIORITY)
        self.max_num_running_reqs = self.max_num_active_reqs = 3
        self.admitted_up_to = 0
        self.block_size = 16
        self.num_spec_tokens = self.num_lookahead_tokens = self.num_prefill_lookahead = 0
        self.use_v2_model_runner = False
        self.lora_config = None
        self.kv_cache_manager = SimpleNamespace(
            coordinator=SimpleNamespace(single_type_managers=(), cache_blocks=None),
            block_pool=SimpleNamespace(num_gpu_blocks=1),
            watermark_blocks=0,
            kv_cache_config=SimpleNamespace(needs_kv_cache_zeroing=False),
        )
        self.kv_cache_config = SimpleNamespace(kv_cache_groups=[])
        self.scheduler_config = SimpleNamespace(enable_chunked_prefill=False)

    def schedule(self, throttle_prefills: bool) -> Any:
        self.admitted_up_to = self.max_num_active_reqs
        return SchedulerOutput.make_empty()

    def _free_request(self, request: Any, delay_free_blocks: bool) -> None:
        pass


class Batch(MigrationSupport, StandIn):  # type: ignore[misc]
    @property
    def admits(self) -> int:
        """Requests of the queue that the next step may take in."""
        self.schedule()
        return self.admitted_up_to - len(self.running)


def running(name: str) -> Any:
    return SimpleNamespace(request_id=name, status=RequestStatus.RUNNING)


def waiting(name: str) -> Any:
    request = Request(name, [1, 2, 3], SamplingParams(max_tokens=4), None)
    stamp(request, engine_request(name))
    return request


@pytest.fixture
def batch() -> Batch:
    return Batch()


def test_nobody_takes_the_place_of_a_lent_request(batch: Batch) -> None:
    lent = batch.running[1]
    batch.lend(lent)
    assert (batch.admits, batch.places.has_slot()) == (0, False)
    batch.take_back(lent)
    assert len(batch.running) == 3
    assert len(batch.places) == 0


def test_place_is_free_once_the_request_has_gone(batch: Batch) -> None:
    lent = batch.running[1]
    batch.lend(lent)
    batch._free_request(lent)
    assert (batch.admits, batch.places.has_slot()) == (1, True)


def test_places_of_arrivals_and_lent_requests_add_up(batch: Batch) -> None:
    batch.running.pop()
    batch.places.arriving["arrives"] = waiting("arrives")
    assert (batch.admits, batch.places.has_slot()) == (0, False)
    batch.lend(batch.running[0])
    assert (batch.admits, len(batch.places)) == (0, 2)
    assert batch.max_num_active_reqs == 3, "the limit is vLLM's own again after the step"


def test_arrived_request_has_its_place_before_it_runs(batch: Batch) -> None:
    """Else a second one would be let in, and stand still once its copy has ended."""
    batch.running.pop()
    assert batch.places.has_slot()
    batch.kv_holding_waiting.add_request(waiting("arrived"))
    assert not batch.places.has_slot()


def test_request_that_waits_without_kv_has_no_place_yet(batch: Batch) -> None:
    """Arrivals go before it."""
    batch.running.pop()
    batch.waiting.add_request(waiting("queued"))
    assert batch.places.has_slot()
