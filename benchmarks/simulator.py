"""How fast the simulator is, and how that grows.

    python benchmarks/simulator.py            the usual workload, growth with instances and with requests
    python benchmarks/simulator.py --large    besides, 1,000 instances and 100,000 requests

The usual workload is the one that other simulators of LLM clusters are timed with: Azure conversation lengths, Poisson
arrivals at 32 requests/s, 16 replicas, 4,096 requests, no metrics written. Requests per second of CPU time
of one core; reading the workload is not counted, building the requests is.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import numpy as np
from frame.verdict import Figure, Goal, at_least, conclude

from llumnix.config import PolicyConfig
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import RunSetup
from llumnix.workload.arrivals import poisson
from llumnix.workload.workload import Workload, load_workload

GOAL_REQUESTS_PER_S = 5000


def azure(requests: int, rate: float) -> Workload:
    """Azure conversation lengths, repeated as often as need be, with Poisson arrivals."""
    trace = load_workload("azure-conv?total=16000").requests
    times = poisson(np.random.default_rng(0), requests, rate)
    rows = (trace[index % len(trace)] for index in range(requests))
    made = tuple(
        type(row)(f"r{index:06d}", float(at), row.prompt_tokens, row.output_tokens)
        for index, (row, at) in enumerate(zip(rows, times, strict=True))
    )
    return Workload(name=f"azure lengths, {rate:g}/s", requests=made)


def timed(workload: Workload, instances: int, policy: str, goal: Goal | None = None) -> Figure:
    """Runs once and says how fast that was."""
    setup = RunSetup(instances=instances, profile=load_profile("a100-llama-7b"), policy=PolicyConfig(policy=policy))
    start, cpu = time.perf_counter(), time.process_time()
    outcome = simulate(sim_requests(workload), setup)
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    count = len(workload.requests)
    memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    what = f"{policy}, {instances} instances, {count} requests"
    print(
        f"{what:45}: {cpu_s:6.2f} s of CPU, wall {wall_s:6.2f} s, {outcome.events / count:5.1f} events each, "
        f"peak {memory_mib:,.0f} MiB",
        flush=True,
    )
    return Figure(what, count / cpu_s, goal, "requests/s of CPU")


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the simulator.")
    parser.add_argument("--large", action="store_true", help="also 1,000 instances and 100,000 requests")
    args = parser.parse_args()
    usual = azure(4096, 32.0)
    figures = [timed(usual, 16, policy) for policy in ("round-robin", "least-requests")]
    figures.append(timed(usual, 16, "llumnix", at_least(GOAL_REQUESTS_PER_S)))
    figures += [timed(azure(count, 32.0), 16, "llumnix") for count in (1_000, 4_000, 16_000)]
    for instances in (4, 16, 64, 256):  # two requests a second each
        figures.append(timed(azure(max(2_000, 20 * instances), 2.0 * instances), instances, "llumnix"))
    if args.large:
        figures.append(timed(azure(100_000, 2_000.0), 1000, "llumnix"))
    return conclude(*figures)


if __name__ == "__main__":
    sys.exit(main())
