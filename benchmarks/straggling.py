"""What it is worth that requests leave an engine that has become slow: with `--pace-gain` and without, simulated.

    python benchmarks/straggling.py
    python benchmarks/straggling.py --times 2 3 --gains 1.3 1.5 2

Sixteen instances below saturation, the same requests; the steps of one take so many times as long, for most of the run.
And near saturation, where all are as they should be: there nothing may change. Ratios are with the rule over without
it, geometric means over seeds and loads, so below 1 is better. Exit code 1 if whole requests, or the slowest tokens,
are not better where an engine is slow, or anything is worse where none is.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import msgspec
import numpy as np
from frame.arguments import at_least_one, positive
from frame.parts import refuse_repeats
from frame.verdict import Figure, at_most, conclude
from policy_comparison import workload

from llumnix.config import PolicyConfig
from llumnix.control.orders import MoveCause
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.faults import Fault, FaultKind
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import RunSetup

INSTANCES, REQUESTS = 16, 2000
BELOW = (("ShareGPT", 6.0), ("M-M", 6.0), ("azure-conv", 6.0), ("S-L", 3.0), ("L-L", 2.2))
NEAR = (("ShareGPT", 8.0), ("S-S", 40.0), ("M-M", 8.4), ("L-L", 3.0), ("S-L", 4.2), ("azure-conv", 7.6))
SLOW_FROM_S, SLOW_FOR_S = 60.0, 400.0
NAMES = ("TTFT mean", "TTFT P99", "TPOT P50", "TPOT P99", "latency mean", "latency P99")
BETTER = {"TPOT P99": at_most(0.95), "latency P99": at_most(0.98), "latency mean": at_most(1.0)}
ALIKE = dict.fromkeys(NAMES, at_most(1.02))
"""Where all engines are as they should be."""


class Run(msgspec.Struct, frozen=True):
    load: str
    rate: float
    seed: int
    times: float
    """So many times as long the steps of one engine take."""
    gain: float


class Result(msgspec.Struct, frozen=True):
    run: Run
    figures: tuple[float, ...]
    """Seconds, as `NAMES`."""
    moves: int
    """For the sake of pace."""


def main() -> int:
    arguments = _parse()
    runs = [
        Run(load, rate, seed, times, gain)
        for times in (1.0, *arguments.times)
        for load, rate in (NEAR if times == 1 else BELOW)
        for seed in range(arguments.seeds)
        for gain in (0.0, *arguments.gains)
    ]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        results = {result.run: result for result in pool.map(measure, runs)}
    figures: list[Figure] = []
    for times in (1.0, *arguments.times):
        for gain in arguments.gains:
            compared = [run for run in runs if (run.times, run.gain) == (times, gain)]
            title = "all alike" if times == 1 else f"one {times:g} times as slow"
            _print(f"{title}, {gain:g}", compared, results)
            goals = ALIKE if times == 1 else BETTER
            ratios = _ratios(compared, results)
            figures += [Figure(f"{title}, {gain:g}: {name}", ratios[name], goals.get(name), "×") for name in NAMES]
    return conclude(*figures)


def measure(run: Run) -> Result:
    load = sim_requests(workload(run.load, run.rate, run.seed, REQUESTS))
    slow = Fault(FaultKind.SLOW, SLOW_FROM_S, SLOW_FOR_S, instance=1, factor=run.times)
    outcome = simulate(
        load,
        RunSetup(
            instances=INSTANCES,
            profile=load_profile("a10-llama-7b"),
            policy=PolicyConfig(pace_gain=run.gain),
            faults=() if run.times == 1 else (slow,),
        ),
    )
    moves = sum(row.cause is MoveCause.PACE for row in outcome.migrations)
    return Result(run, _figures(outcome.requests), moves)


def _figures(requests: Sequence[SimRequest]) -> tuple[float, ...]:
    first = [each.first_token_s - each.arrival_s for each in requests]
    token = [(each.finish_s - each.first_token_s) / max(1, each.output_tokens - 1) for each in requests]
    whole = [each.finish_s - each.arrival_s for each in requests]
    at = [float(np.percentile(values, share)) for values, share in ((first, 99), (token, 50), (token, 99), (whole, 99))]
    return statistics.fmean(first), at[0], at[1], at[2], statistics.fmean(whole), at[3]


def _ratios(runs: Iterable[Run], results: dict[Run, Result]) -> dict[str, float]:
    pairs = [(results[run].figures, results[_without(run)].figures) for run in runs]
    logs = [[math.log(ours[n] / theirs[n]) for ours, theirs in pairs] for n in range(len(NAMES))]
    return {name: math.exp(statistics.fmean(each)) for name, each in zip(NAMES, logs, strict=True)}


def _without(run: Run) -> Run:
    return msgspec.structs.replace(run, gain=0.0)


def _print(title: str, runs: Sequence[Run], results: dict[Run, Result]) -> None:
    print(f"\n{title:34}" + "".join(f"{name:>14}" for name in NAMES) + f"{'moves':>8}")
    for load in dict.fromkeys(run.load for run in runs):
        of_load = [run for run in runs if run.load == load]
        ratios = _ratios(of_load, results)
        moves = statistics.fmean(results[run].moves for run in of_load)
        print(f"  {load:32}" + "".join(f"{ratios[name]:14.3f}" for name in NAMES) + f"{moves:8.1f}", flush=True)


def _gain(text: str) -> float:
    number = positive(text)
    if number < 1.1:
        raise argparse.ArgumentTypeError(f"{text} is below 1.1, the least --pace-gain")
    return number


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=positive, nargs="+", default=[2.0, 3.0], help="How slow one engine becomes.")
    parser.add_argument("--gains", type=_gain, nargs="+", default=[1.5], help="Values of --pace-gain.")
    parser.add_argument("--seeds", type=at_least_one, default=3)
    arguments = parser.parse_args()
    refuse_repeats(parser, dict((*BELOW, *NEAR)), REQUESTS, arguments.seeds)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
