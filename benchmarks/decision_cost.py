"""What a decision costs: one dispatch and one report at the front end, one round of pairing at the scheduler.

    python benchmarks/decision_cost.py

Every figure is the median of several repetitions on one core. A dispatch includes booking its cost; between two
dispatches a report arrives and is timed apart. Long prompts whose beginnings are cached on many instances are told
apart: there naming the beginning counts, too, as at a front end. In the pairing round a third of the cluster is full
and a third is free.
"""

from __future__ import annotations

import random
import statistics
import sys
import time

import msgspec
from frame.verdict import Figure, at_most, conclude

from llumnix.config import PolicyConfig
from llumnix.control.dispatcher import Dispatcher
from llumnix.control.prefix_table import PrefixNews
from llumnix.policy.catalogue import find_policy
from llumnix.policy.dispatch import DispatchRequest
from llumnix.policy.prefix import chunk_ids
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot, StepCost
from llumnix.types import HIGH, NORMAL, InstanceId, RequestId

POLICIES = ("llumnix", "llumnix-paper", "infaas++", "round-robin", "least-requests", "vllm-dp")
SIZES = (16, 64, 256, 1024)
ROUND_SIZES = (64, 1024)
PREFIX_SIZES = (64,)
DISPATCHES = 2000
REPETITIONS = 5
GOAL_DISPATCH_US = {64: 20, 1024: 100}
GOAL_ROUND_MS = 5
PROMPT_TOKENS, CHUNK_TOKENS, CONTEXTS = 8192, 512, 200
GOAL_PREFIX_P50_US, GOAL_PREFIX_P99_US = 60, 250
COST = StepCost(fixed_ms=8.0, prefill_token_us=150.0, request_us=80.0, context_token_us=0.2)


def report(rng: random.Random, number: int, seq: int, free_blocks: int, seen: int = 0) -> InstanceSnapshot:
    running = rng.randint(5, 60)
    return InstanceSnapshot(
        id=InstanceId(f"instance-{number:04}"),
        at=0.0,
        seq=seq,
        total_blocks=2000,
        free_blocks=free_blocks,
        running=running,
        smallest_running_blocks=(2000 - free_blocks) // running // 2 + 1,
        dispatches_seen=(seen,),
        decoding=running,
        step_tokens=2048,
        step_cost=COST,  # without it the default rule is out of force, and its fallback would be timed
    )


def time_dispatch(policy: str, instances: int) -> tuple[float, float]:
    """µs per dispatch and µs per report, one in ten requests of high priority."""
    rng = random.Random(instances)
    dispatcher = Dispatcher(PolicyConfig(policy=policy))
    for number in range(instances):
        dispatcher.on_report(report(rng, number, 1, rng.randint(0, 2000)))
    sent = [0] * instances
    dispatch_ns = report_ns = 0
    for k in range(DISPATCHES):
        request = DispatchRequest(RequestId(f"r{k}"), rng.randint(1, 4000), HIGH if k % 10 == 0 else NORMAL)
        began = time.perf_counter_ns()
        dispatch = dispatcher.dispatch(request)
        dispatch_ns += time.perf_counter_ns() - began
        assert dispatch is not None
        sent[int(dispatch.instance[-4:])] += 1
        number = rng.randrange(instances)
        news = report(rng, number, k + 2, rng.randint(0, 2000), sent[number])
        began = time.perf_counter_ns()
        dispatcher.on_report(news)
        report_ns += time.perf_counter_ns() - began
    return dispatch_ns / DISPATCHES / 1e3, report_ns / DISPATCHES / 1e3


def time_prefixes(instances: int) -> list[float]:
    """µs of each dispatch of a long prompt, its naming included, where every instance holds a third of the contexts."""
    rng = random.Random(instances)
    dispatcher = Dispatcher(PolicyConfig())
    contexts = [[rng.randrange(100_000) for _ in range(PROMPT_TOKENS)] for _ in range(CONTEXTS)]
    names = [chunk_ids(context, CHUNK_TOKENS) for context in contexts]
    for number in range(instances):
        load = report(rng, number, 1, rng.randint(0, 2000))
        known = msgspec.structs.replace(load, prefix_chunk_tokens=CHUNK_TOKENS)
        dispatcher.on_report(known)
        held = [chunk for each in rng.sample(names, CONTEXTS // 3) for chunk in each[: rng.randint(1, len(each))]]
        dispatcher.on_prefixes(known.id, PrefixNews(1, tuple(held), whole=True))
    took_us = []
    for k in range(DISPATCHES):
        prompt = rng.choice(contexts)
        began = time.perf_counter_ns()
        chunks = chunk_ids(prompt, CHUNK_TOKENS)
        request = DispatchRequest(RequestId(f"r{k}"), PROMPT_TOKENS, NORMAL, chunks)
        dispatch = dispatcher.dispatch(request)
        took_us.append((time.perf_counter_ns() - began) / 1e3)
        assert dispatch is not None
        dispatcher.forget(dispatch.request, dispatch.instance)
    return took_us


def time_round(policy: str, instances: int) -> tuple[float, int]:
    """ms per pairing round, and the pairs that it found."""
    rng = random.Random(instances)
    free_blocks = (lambda: rng.randint(0, 50), lambda: rng.randint(400, 900), lambda: rng.randint(1500, 2000))
    cluster = ClusterSnapshot(
        at=0.0, instances=tuple(report(rng, number, 1, free_blocks[number % 3]()) for number in range(instances))
    )
    found = find_policy(policy)
    assert found.pairing is not None
    terms = found.pairing_terms(PolicyConfig(policy=policy))
    began = time.perf_counter_ns()
    paired = found.pairing(cluster, terms)
    return (time.perf_counter_ns() - began) / 1e6, len(paired.pairs)


def main() -> int:
    figures: list[Figure] = []
    print("µs per dispatch / µs per report")
    print(f"{'instances':16}" + "".join(f"{size:>16}" for size in SIZES))
    for policy in POLICIES:
        cells = []
        for size in SIZES:
            costs = [time_dispatch(policy, size) for _ in range(REPETITIONS)]
            dispatch_us, report_us = (statistics.median(cost) for cost in zip(*costs, strict=True))
            cells.append(f"{dispatch_us:7.1f} /{report_us:7.1f}")
            if size in GOAL_DISPATCH_US:
                goal = at_most(GOAL_DISPATCH_US[size])
                figures.append(Figure(f"dispatch, {policy}, {size} instances", dispatch_us, goal, "µs"))
        print(f"{policy:16}" + "".join(f"{cell:>16}" for cell in cells), flush=True)
    print("\nµs per dispatch of 8,192 tokens, cached in part on many instances")
    for size in PREFIX_SIZES:
        took_us = sorted(us for _ in range(REPETITIONS) for us in time_prefixes(size))
        p50, p99 = took_us[len(took_us) // 2], took_us[len(took_us) * 99 // 100]
        print(f"{size:4} instances: P50 {p50:.1f}, P99 {p99:.1f}", flush=True)
        figures.append(Figure(f"long prompt, {size} instances, P50", p50, at_most(GOAL_PREFIX_P50_US), "µs"))
        figures.append(Figure(f"long prompt, {size} instances, P99", p99, at_most(GOAL_PREFIX_P99_US), "µs"))
    print("\nms per pairing round")
    print(f"{'instances':16}" + "".join(f"{size:>20}" for size in ROUND_SIZES))
    for policy in ("llumnix", "llumnix-paper"):
        cells = []
        for size in ROUND_SIZES:
            costs = [time_round(policy, size) for _ in range(3 * REPETITIONS)]
            round_ms = statistics.median(ms for ms, _ in costs)
            cells.append(f"{round_ms:.2f} ({costs[0][1]} pairs)")
        print(f"{policy:16}" + "".join(f"{cell:>20}" for cell in cells), flush=True)
        figures.append(Figure(f"pairing round, {policy}, {size} instances", round_ms, at_most(GOAL_ROUND_MS), "ms"))
    return conclude(*figures)


if __name__ == "__main__":
    sys.exit(main())
