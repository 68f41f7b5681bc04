"""Whether dispatch stays as good when instances report less often, as they do in a large cluster.

    python benchmarks/report_pace.py                                  16 and 64 instances, some ten minutes of one core
    python benchmarks/report_pace.py --instances 1024 --traces S-S    as in a large cluster

Simulated, the same requests twice: with a report every 20 ms, and with as many as 1,024 instances may send each (in a
smaller cluster the budget of reports is cut to that interval). Ratios are paced / 20 ms: below 1, paced is better. Exit
code 1 if P99 prefill, as the geometric mean over all runs of a size, is more than 5 % worse.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import msgspec
from frame.verdict import Figure, at_most, conclude

from llumnix.config import ClusterConfig
from llumnix.control.pace import pace_of
from llumnix.paper.measure import latencies
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import RunSetup
from llumnix.workload.workload import load_workload

GOAL = 1.05
LARGE = 1024
RATES = {"S-S": 2.2, "M-M": 0.5, "L-L": 0.17, "S-L": 0.25, "L-S": 1.1, "ShareGPT": 0.47}
"""Requests per second and instance: busy, and now and then full."""
METRICS = ("Prefill P99", "Prefill Mean", "Decode P99", "Request Mean")


class Run(msgspec.Struct, frozen=True):
    trace: str
    instances: int
    seed: int
    paced: bool
    requests: int


class Result(msgspec.Struct, frozen=True):
    run: Run
    latencies: dict[str, float]
    preemptions: int
    moves: int
    cpu_s: float


def cluster_of(run: Run) -> ClusterConfig:
    usual = ClusterConfig()
    budget = usual.max_reports_per_s * run.instances / LARGE if run.paced else 1e9
    return ClusterConfig(instances=run.instances, max_reports_per_s=budget)


def measure(run: Run) -> Result:
    rate = RATES[run.trace] * run.instances
    load = sim_requests(load_workload(f"{run.trace}?rate={rate:g}&seed={run.seed}&requests={run.requests}"))
    began_s = time.process_time()
    simulate(load, RunSetup(instances=run.instances, profile=load_profile("a10-llama-7b"), cluster=cluster_of(run)))
    return Result(
        run,
        latencies(load),
        sum(request.preemptions for request in load),
        sum(request.migrations for request in load),
        time.process_time() - began_s,
    )


def tell(results: Sequence[Result], instances: int) -> float:
    """Prints the ratios of one size; returns that of P99 prefill, the geometric mean."""
    by_run = {result.run: result for result in results}
    interval_ms = pace_of(cluster_of(next(run for run in by_run if run.paced)), instances).report_s * 1e3
    print(f"\n{instances} instances, a report every {interval_ms:.0f} ms at most (urgent ones besides) / every 20 ms")
    print(f"{'trace':10} {'seed':>4} " + "".join(f"{name:>14}" for name in METRICS) + "  preemptions       moves")
    logs: list[float] = []
    for run, paced in by_run.items():
        if not run.paced:
            continue
        usual = by_run[msgspec.structs.replace(run, paced=False)]
        ratios = [paced.latencies[name] / usual.latencies[name] for name in METRICS]
        logs.append(math.log(ratios[0]))
        print(
            f"{run.trace:10} {run.seed:4} "
            + "".join(f"{ratio:14.3f}" for ratio in ratios)
            + f"  {paced.preemptions:5}/{usual.preemptions:5} {paced.moves:5}/{usual.moves:5}"
            + f"   P99 prefill {paced.latencies['Prefill P99']:.3f} s, {paced.cpu_s:.0f} s of CPU"
        )
    return math.exp(sum(logs) / len(logs))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--instances", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--traces", nargs="+", choices=RATES, default=["S-S", "M-M", "L-S", "ShareGPT"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=400, help="Per instance; at most 100,000 in all. Default: 400.")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    figures = []
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        for instances in args.instances:
            requests = min(100_000, args.requests * instances)
            runs = [
                Run(trace, instances, seed, paced, requests)
                for trace in args.traces
                for seed in range(args.seeds)
                for paced in (True, False)
            ]
            mean = tell(list(pool.map(measure, runs)), instances)
            figures.append(Figure(f"P99 prefill, paced / 20 ms, {instances} instances", mean, at_most(GOAL)))
    return conclude(*figures)


if __name__ == "__main__":
    sys.exit(main())
