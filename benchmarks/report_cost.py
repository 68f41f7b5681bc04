"""What an instance's engine pays, between two steps, for telling how it is and for being asked to give a request away.

    python benchmarks/report_cost.py

vLLM's scheduler, with ours around it, holds a full batch and a queue; no model runs. Every figure is the median of
several repetitions on one core. A report is due every 20 ms under load, an order ten times a second at most; the list
of all requests is made a few rows at a time, so its whole cost is no pause. What a report costs by the size of a small
batch, encoded as it is sent, is what figure 16 takes (`src/llumnix/paper/stall.py`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import torch
from frame.arguments import at_least_one
from frame.verdict import Figure, at_most, conclude
from vllm.config import set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from llumnix import tiny_model
from llumnix.engine.vllm.instance.scheduler import LlumnixScheduler
from llumnix.engine.vllm.instance.snapshot import instance_snapshot, request_rows, request_snapshots
from llumnix.engine.vllm.instance.state import stamp
from llumnix.types import InstanceId, InstanceState

BLOCK_TOKENS = 16
BLOCKS = 40_000
REPETITIONS = 50
GOAL_QUEUED = 10_000
GOAL_MS = 0.2
SMALL_BATCHES = (1, 4, 8, 16, 32, 64)


def make_scheduler(running: int) -> LlumnixScheduler:
    arguments = EngineArgs(
        model=str(tiny_model.ensure()),
        enforce_eager=True,
        max_model_len=2048,
        block_size=BLOCK_TOKENS,
        max_num_seqs=running,
        max_num_batched_tokens=8192,
        scheduling_policy="priority",
        async_scheduling=False,
        enable_prefix_caching=False,
    )
    config = arguments.create_engine_config()
    config.cache_config.num_gpu_blocks = BLOCKS
    set_current_vllm_config(config).__enter__()
    kind = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=2, head_size=64, dtype=torch.float32)
    return LlumnixScheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer"], kind)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_TOKENS,
        log_stats=False,
    )


def add(scheduler: LlumnixScheduler, number: int) -> None:
    original = EngineCoreRequest(
        request_id=f"request-{number:06}",
        prompt_token_ids=[1 + number % 100] * (100 + number % 200),
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=1000, ignore_eos=True),
        pooling_params=None,
        arrival_time=float(number),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    request = Request.from_engine_core_request(original, None)
    stamp(request, original)
    scheduler.add_request(request)


def step(scheduler: LlumnixScheduler) -> None:
    output = scheduler.schedule()
    names = list(output.num_scheduled_tokens)
    sampled = [[] if scheduler.requests[name].is_prefill_chunk else [7] for name in names]
    scheduler.update_from_output(output, ModelRunnerOutput(names, {name: n for n, name in enumerate(names)}, sampled))


def median_ms(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def least_cpu_us(work: Callable[[], object]) -> float:
    """As `message_cost.py` measures: of a few rounds, the mean of the best."""
    rounds = []
    for _ in range(3):
        began = time.thread_time()
        for _ in range(3000):
            work()
        rounds.append((time.thread_time() - began) / 3000)
    return 1e6 * min(rounds)


def fixed() -> Any:
    ended = ("migrations_in", "migrations_out", "ended", "preemptions_avoided", "recompute_tokens_saved")
    counts = ("incoming", "outgoing", *ended)
    told = {"id": InstanceId("i0"), "at": 0.0, "seq": 1, "state": InstanceState.RUNNING, "drain_keep": False}
    return told | {"pinned": False, "dispatches_seen": (0,)} | dict.fromkeys(counts, 0)


def small_batches() -> list[Figure]:
    """CPU time of a report that is made and encoded: what it is in any case, and more for each request that runs."""
    scheduler, encoder = make_scheduler(SMALL_BATCHES[-1]), msgspec.msgpack.Encoder()
    costs_us: list[float] = []
    for batch in SMALL_BATCHES:
        for number in range(len(scheduler.requests), batch):
            add(scheduler, number)
        for _ in range(20):
            step(scheduler)
        assert len(scheduler.running) == batch
        costs_us.append(least_cpu_us(lambda: encoder.encode(instance_snapshot(scheduler, fixed(), 16))))
        print(f"batch of {batch:3}: {costs_us[-1]:6.1f} us")
    slope, base = np.polyfit(SMALL_BATCHES, costs_us, 1)
    return [
        Figure("report, made and encoded, in any case", base, unit="us"),
        Figure("and for each request that runs", slope, unit="us"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--running", type=at_least_one, default=256, help="requests in the batch (default 256)")
    running = parser.parse_args().running
    scheduler = make_scheduler(running)
    queued, figures = 0, []
    print(f"on the engine's main thread, {running} running")
    for wanted in (0, 100, 1_000, GOAL_QUEUED):
        while queued < wanted + running:
            add(scheduler, queued)
            queued += 1
        for _ in range(20):
            step(scheduler)
        assert (len(scheduler.running), len(scheduler.waiting)) == (running, wanted)
        report_ms = median_ms(lambda: instance_snapshot(scheduler, fixed(), 16))
        order_ms = median_ms(lambda: request_snapshots(scheduler, "", exact=False))
        rows_ms = median_ms(lambda: list(request_rows(scheduler, "")))
        figures += [
            Figure(f"report, {wanted:,} queued", report_ms, at_most(GOAL_MS), "ms"),
            Figure(f"order, {wanted:,} queued", order_ms, unit="ms"),
            Figure(f"all rows, {wanted:,} queued", rows_ms, unit="ms"),
        ]
    return conclude(*figures, *small_batches())


if __name__ == "__main__":
    sys.exit(main())
