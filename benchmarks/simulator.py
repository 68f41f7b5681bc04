"""How fast the simulator is, and how that grows.

    python benchmarks/simulator.py            the usual workload, growth with instances and with requests
    python benchmarks/simulator.py --large    besides, 1,000 instances and 100,000 requests
    python benchmarks/simulator.py --against PATH    as fast as another checkout? Both in alternation, 15 rounds

The usual workload is the one that other simulators of LLM clusters are timed with: Azure conversation lengths, Poisson
arrivals at 32 requests/s, 16 replicas, 4,096 requests, no metrics written. Requests per second of CPU time
of one core; reading the workload is not counted, building the requests is.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from frame.arguments import at_least_one
from frame.verdict import ROOT, Figure, Goal, at_least, conclude

from llumnix.config import PolicyConfig
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import RunSetup
from llumnix.workload.arrivals import poisson
from llumnix.workload.workload import Workload, load_workload

GOAL_REQUESTS_PER_S = 5000
GOAL_AGAINST = 0.95
"""Times the speed of the other checkout."""

POLICIES = ("round-robin", "least-requests", "llumnix")


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


def against(other: Path, rounds: int) -> list[Figure]:
    """How fast this checkout is beside another one: each round times both, in turn first; best of all rounds."""
    figures = []
    with ExitStack() as stack:
        probes = [stack.enter_context(_probe(checkout)) for checkout in (ROOT, other)]
        for policy in POLICIES:
            ours: list[float] = []
            theirs: list[float] = []
            for number in range(rounds):
                for probe, taken_s in list(zip(probes, (ours, theirs), strict=True))[:: 1 if number % 2 else -1]:
                    taken_s.append(_ask(probe, f"{policy} 16 2048"))
            ratios = [there / here for here, there in zip(ours, theirs, strict=True)]
            print(f"{policy}: best {min(ours):.3f} s here, {min(theirs):.3f} s there")
            figures.append(Figure(f"{policy}, best of {rounds}", min(theirs) / min(ours), at_least(GOAL_AGAINST), "×"))
            figures.append(Figure(f"{policy}, median", statistics.median(ratios), None, "×", min(ratios), max(ratios)))
        for probe in probes:
            assert probe.stdin is not None
            probe.stdin.close()
    return figures


def _probe(checkout: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, str(Path(__file__).with_name("_simulator_probe.py")), str(checkout)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(probe: subprocess.Popen[str], what: str) -> float:
    assert probe.stdin is not None
    assert probe.stdout is not None
    print(what, file=probe.stdin, flush=True)
    return float(probe.stdout.readline())


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the simulator.")
    parser.add_argument("--large", action="store_true", help="also 1,000 instances and 100,000 requests")
    parser.add_argument("--against", type=Path, metavar="PATH", help="another checkout, side by side with this one")
    parser.add_argument("--rounds", type=at_least_one, default=15, help="of --against")
    args = parser.parse_args()
    if args.against:
        return conclude(*against(args.against.resolve(), args.rounds))
    usual = azure(4096, 32.0)
    figures = [timed(usual, 16, policy) for policy in POLICIES[:2]]
    figures.append(timed(usual, 16, "llumnix", at_least(GOAL_REQUESTS_PER_S)))
    figures += [timed(azure(count, 32.0), 16, "llumnix") for count in (1_000, 4_000, 16_000)]
    for instances in (4, 16, 64, 256):  # two requests a second each
        figures.append(timed(azure(max(2_000, 20 * instances), 2.0 * instances), instances, "llumnix"))
    if args.large:
        figures.append(timed(azure(100_000, 2_000.0), 1000, "llumnix"))
    return conclude(*figures)


if __name__ == "__main__":
    sys.exit(main())
