"""The default policy beside the paper's and beside those that never migrate: same requests, same surroundings.

    python benchmarks/policy_comparison.py --jobs 2                      everything: about an hour of one core
    python benchmarks/policy_comparison.py --traces L-L S-L --seeds 5    some of it
    python benchmarks/policy_comparison.py --records FILE                prints the table of an earlier run

The paper's seven traces at a rate below saturation and at one near it, and the two Azure traces (their own arrivals,
squeezed to the rate; each seed is another part of the trace), on 16 × `a10-llama-7b`. Every policy gets what the
product has: reports when the load changes, the product's thresholds and intervals.

`floor` is the P99 that no policy can beat: every prompt alone on an idle instance, nothing but its own prefill and its
way in. Ratios are other / llumnix, above 1: llumnix is better; over seeds: geometric mean and its 95 % interval.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np
from frame.arguments import at_least_one, file_in_a_folder
from frame.parts import is_recorded, part_of, refuse_repeats
from frame.verdict import Figure, conclude

from llumnix.config import PolicyConfig
from llumnix.paper.measure import latencies
from llumnix.paper.runs import interval
from llumnix.policy.catalogue import POLICIES
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import RunSetup
from llumnix.workload.workload import Workload, load_workload

OURS = "llumnix"
PAPER = "llumnix-paper"
STILL = ("infaas++", "least-requests", "vllm-dp", "round-robin")
"""Policies that never migrate."""

RATES: dict[str, tuple[float, float]] = {
    "ShareGPT": (7.0, 8.0),
    "BurstGPT": (7.5, 9.0),
    "S-S": (32.0, 40.0),
    "M-M": (7.4, 8.4),
    "L-L": (2.6, 3.0),
    "S-L": (3.9, 4.2),
    "L-S": (14.0, 21.0),
    "azure-conv": (6.0, 7.6),
    "azure-code": (2.5, 3.5),
}
"""Requests per second below saturation and near it, by trace."""

METRICS = ("Prefill P99", "Prefill Mean", "Decode P99", "Decode Mean", "Request P99", "Request Mean")


class Run(msgspec.Struct, frozen=True):
    trace: str
    rate: float
    seed: int
    policy: str
    requests: int = 0
    """0: kept before runs said it."""


class Result(msgspec.Struct, frozen=True):
    run: Run
    latencies: dict[str, float]
    floor_s: float
    preemptions: int
    moves: int


def workload(trace: str, rate: float, seed: int, requests: int) -> Workload:
    """Generated anew for each seed; of a recorded trace, its `seed`-th part. Raises ValueError if it has none."""
    if is_recorded(trace):
        return Workload(name=f"{trace} part {seed}", requests=part_of(trace, seed, requests, rate))
    return load_workload(f"{trace}?rate={rate:g}&seed={seed}&requests={requests}")


def measure(run: Run) -> Result:
    profile = load_profile("a10-llama-7b")
    load = sim_requests(workload(run.trace, run.rate, run.seed, run.requests))
    way_s = (profile.host.request_ms + profile.host.message_ms) / 1e3
    alone_s = [way_s + profile.prefill.step_ms(request.prompt_tokens) / 1e3 for request in load]
    simulate(load, RunSetup(instances=16, profile=profile, policy=PolicyConfig(policy=run.policy)))
    return Result(
        run,
        latencies(load),
        float(np.percentile(alone_s, 99)),
        sum(request.preemptions for request in load),
        sum(request.migrations for request in load),
    )


def geometric(values: Iterable[float]) -> tuple[float, str]:
    """Geometric mean, and it with its 95 % interval as text."""
    logs = [math.log(value) for value in values]
    low, high = interval(logs)
    mean = math.exp(sum(logs) / len(logs))
    return (
        mean,
        f"{mean:.2f}" if low is None or high is None else f"{mean:.2f} [{math.exp(low):.2f}–{math.exp(high):.2f}]",
    )


class Table:
    """Results by point, policy and seed."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._by_run = {(r.run.trace, r.run.rate, r.run.seed, r.run.policy): r for r in results}
        present = {(r.run.trace, r.run.rate) for r in results}
        self.points = [(trace, rate) for trace, rates in RATES.items() for rate in rates if (trace, rate) in present]
        self.policies = list(dict.fromkeys(r.run.policy for r in results))
        self.seeds = sorted({r.run.seed for r in results})

    def results(self, point: tuple[str, float], policy: str) -> dict[int, Result]:
        runs = {seed: self._by_run.get((*point, seed, policy)) for seed in self.seeds}
        return {seed: result for seed, result in runs.items() if result is not None}

    def ratios(self, points: Sequence[tuple[str, float]], other: str, metric: str) -> list[float]:
        """other / llumnix by seed, each the geometric mean over the points; `still`: the best that never migrates."""
        by_seed = defaultdict(list)
        for point in points:
            ours = self.results(point, OURS)
            for seed, result in ours.items():
                theirs = [self.results(point, name).get(seed) for name in (STILL if other == "still" else (other,))]
                known = [one.latencies[metric] for one in theirs if one is not None]
                if known:
                    by_seed[seed].append(min(known) / result.latencies[metric])
        return [math.exp(sum(map(math.log, values)) / len(values)) for values in by_seed.values()]

    @property
    def others(self) -> list[str]:
        """What ours is compared with."""
        others = [name for name in (PAPER,) if name in self.policies]
        return [*others, *(["still"] if set(STILL) & set(self.policies) else [])]

    def figures(self) -> list[Figure]:
        """Geometric means over all points and seeds."""
        return [
            Figure(f"{metric}, {other} / {OURS}", geometric(self.ratios(self.points, other, metric))[0])
            for other in self.others
            for metric in METRICS
        ]

    def print(self) -> None:
        print("P99 prefill in s, mean over seeds (moves, preemptions):")
        print(f"{'trace':11}{'rate':>6} {'floor':>6} " + "".join(f"{name:>24}" for name in self.policies))
        for point in self.points:
            cells = []
            for policy in self.policies:
                found = list(self.results(point, policy).values())
                p99 = np.mean([r.latencies["Prefill P99"] for r in found])
                moves, lost = (np.mean([getattr(r, name) for r in found]) for name in ("moves", "preemptions"))
                cells.append(f"{p99:8.2f} ({moves:5.0f}, {lost:5.0f})")
            floor = np.mean([result.floor_s for result in self.results(point, self.policies[0]).values()])
            print(f"{point[0]:11}{point[1]:6g} {floor:6.2f} " + "".join(f"{cell:>24}" for cell in cells))
        print("\nratios to llumnix, [95 % over seeds]:")
        for other in self.others:
            print(f"{other} / llumnix" if other != "still" else "best policy without migration / llumnix")
            print(f"  {'':18}" + "".join(f"{metric:>20}" for metric in METRICS))
            for point in self.points:
                texts = [geometric(self.ratios([point], other, metric))[1] for metric in METRICS]
                print(f"  {point[0]:11}{point[1]:6g} " + "".join(f"{text:>20}" for text in texts))
            below = [(trace, rate) for trace, rate in self.points if rate == RATES[trace][0]]
            near = [point for point in self.points if point not in below]
            for name, points in (("below saturation", below), ("near saturation", near), ("all", self.points)):
                if not points:
                    continue
                texts = [geometric(self.ratios(points, other, metric))[1] for metric in METRICS]
                print(f"  {name:18}" + "".join(f"{text:>20}" for text in texts))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare policies in the simulator.")
    parser.add_argument("--traces", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--policies", nargs="+", default=[OURS, PAPER, *STILL[:3]], choices=list(POLICIES))
    parser.add_argument("--seeds", type=at_least_one, default=3)
    parser.add_argument("--requests", type=at_least_one, default=10_000)
    parser.add_argument("--jobs", type=at_least_one, default=1)
    parser.add_argument(
        "--records", type=file_in_a_folder, help="results: written after each run, and read if they are there"
    )
    arguments = parser.parse_args()
    if OURS not in arguments.policies:
        parser.error(f"--policies must have {OURS}, which the others are compared with")
    refuse_repeats(parser, arguments.traces, arguments.requests, arguments.seeds)
    arguments.done = _kept(parser, arguments.records)
    return arguments


def _kept(parser: argparse.ArgumentParser, path: Path | None) -> list[Result]:
    """None if there is no such file yet."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Result]) if path is not None and path.exists() else []
    except (OSError, msgspec.MsgspecError) as error:
        parser.error(f"--records: {path} is no file of results: {error}")


def _runs(arguments: argparse.Namespace) -> list[Run]:
    return [
        Run(trace, RATES[trace][near], seed, policy, arguments.requests)
        for near in (1, 0)
        for seed in range(arguments.seeds)
        for trace in arguments.traces
        for policy in arguments.policies
    ]


def main() -> int:
    arguments = _parse()
    runs, by_run = _runs(arguments), {result.run: result for result in arguments.done}
    missing = [run for run in runs if run not in by_run]
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        for result in pool.map(measure, missing):
            by_run[result.run] = result
            if arguments.records is not None:
                arguments.records.write_bytes(msgspec.json.encode(list(by_run.values())))
    table = Table([by_run[run] for run in runs])
    table.print()
    return conclude(*table.figures())


if __name__ == "__main__":
    sys.exit(main())
