"""Whether dispatch stays as good when instances report less often, as they do in a large cluster.

    python benchmarks/report_pace.py                                  16 and 64 instances, some ten minutes of one core
    python benchmarks/report_pace.py --instances 1024 --traces S-S    as in a large cluster
    python benchmarks/report_pace.py --quiet                          as in a small one

Simulated, the same requests twice: with a report every 20 ms, and with as many as 1,024 instances may send each (in a
smaller cluster the budget of reports is cut to that interval). Ratios are paced / 20 ms: below 1, paced is better. Exit
code 1 if P99 prefill, as the geometric mean over all runs of a size, is more than 5 % worse.

With `--quiet` instances look at themselves after each step, as live ones do, and tell all that they see, or only what
matters (--quiet-report-interval-s). Goal: the mean prefill no more than 1 % worse, P99 no more than 5 %.
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
from frame.arguments import at_least_one
from frame.verdict import Figure, at_most, conclude

from llumnix.config import ClusterConfig
from llumnix.control.pace import pace_of
from llumnix.paper.measure import latencies
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import RunSetup
from llumnix.workload.workload import load_workload

GOAL = 1.05
QUIET_GOAL = 1.01
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
    quiet: bool
    """Both runs are of a small cluster, and the paced one keeps quiet of what does not matter."""


class Result(msgspec.Struct, frozen=True):
    run: Run
    latencies: dict[str, float]
    preemptions: int
    moves: int
    cpu_s: float


def cluster_of(run: Run) -> ClusterConfig:
    usual = ClusterConfig()
    budget = usual.max_reports_per_s * run.instances / LARGE if run.paced and not run.quiet else 1e9
    quiet_s = usual.quiet_report_interval_s if run.paced else 0.0
    return ClusterConfig(instances=run.instances, max_reports_per_s=budget, quiet_report_interval_s=quiet_s)


def measure(run: Run) -> Result:
    rate = RATES[run.trace] * run.instances
    load = sim_requests(load_workload(f"{run.trace}?rate={rate:g}&seed={run.seed}&requests={run.requests}"))
    began_s = time.process_time()
    profile = load_profile("a10-llama-7b")
    setup = RunSetup(instances=run.instances, profile=profile, cluster=cluster_of(run), looks_each_step=run.quiet)
    simulate(load, setup)
    return Result(
        run,
        latencies(load),
        sum(request.preemptions for request in load),
        sum(request.migrations for request in load),
        time.process_time() - began_s,
    )


def tell(results: Sequence[Result], instances: int) -> tuple[float, float]:
    """Prints the ratios of one size; returns those of P99 and mean prefill, the geometric means."""
    by_run = {result.run: result for result in results}
    paced_run = next(run for run in by_run if run.paced)
    interval_ms = pace_of(cluster_of(paced_run), instances).report_s * 1e3
    what = "only of what matters" if paced_run.quiet else f"every {interval_ms:.0f} ms at most (urgent ones besides)"
    print(f"\n{instances} instances, a report {what} / every 20 ms")
    print(f"{'trace':10} {'seed':>4} " + "".join(f"{name:>14}" for name in METRICS) + "  preemptions       moves")
    logs: list[tuple[float, float]] = []
    for run, paced in by_run.items():
        if not run.paced:
            continue
        usual = by_run[msgspec.structs.replace(run, paced=False)]
        ratios = [paced.latencies[name] / usual.latencies[name] for name in METRICS]
        logs.append((math.log(ratios[0]), math.log(ratios[1])))
        print(
            f"{run.trace:10} {run.seed:4} "
            + "".join(f"{ratio:14.3f}" for ratio in ratios)
            + f"  {paced.preemptions:5}/{usual.preemptions:5} {paced.moves:5}/{usual.moves:5}"
            + f"   P99 prefill {paced.latencies['Prefill P99']:.3f} s, {paced.cpu_s:.0f} s of CPU"
        )
    p99, mean = (math.exp(sum(logs_of_one) / len(logs)) for logs_of_one in zip(*logs, strict=True))
    return p99, mean


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--instances", type=at_least_one, nargs="+", default=[16, 64])
    parser.add_argument("--traces", nargs="+", choices=RATES, default=["S-S", "M-M", "L-S", "ShareGPT"])
    parser.add_argument("--seeds", type=at_least_one, default=3)
    parser.add_argument(
        "--requests", type=at_least_one, default=400, help="Per instance; at most 100,000 in all. Default: 400."
    )
    parser.add_argument("--quiet", action="store_true", help="As in a small cluster.")
    parser.add_argument("--jobs", type=at_least_one, default=1)
    args = parser.parse_args()
    figures = []
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        for instances in args.instances:
            requests = min(100_000, args.requests * instances)
            runs = [
                Run(trace, instances, seed, paced, requests, args.quiet)
                for trace in args.traces
                for seed in range(args.seeds)
                for paced in (True, False)
            ]
            p99, mean = tell(list(pool.map(measure, runs)), instances)
            figures.append(Figure(f"P99 prefill, paced / 20 ms, {instances} instances", p99, at_most(GOAL)))
            if args.quiet:
                figures.append(Figure(f"mean prefill, the same, {instances} instances", mean, at_most(QUIET_GOAL)))
    return conclude(*figures)


if __name__ == "__main__":
    sys.exit(main())
