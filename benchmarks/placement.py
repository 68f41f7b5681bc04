"""What placing by time and by cached prefix is worth: in the simulator, beside other rules for the same requests.

    python benchmarks/placement.py
    python benchmarks/placement.py --find-capacity       the rates that `_placement/loads.py` has

Mooncake's conversations and contexts that many requests share (both with prefixes), on 8 instances of an 8B model with
grouped queries on an A100, at shares of the capacity of the best rule that is blind to prefixes; and the traces without
prefixes of policy_comparison.py on 16 A10. A seed is a part of its own of Mooncake's trace, and a draw of its own
elsewhere. With prefixes, some requests come first and are not counted, so that what can be cached is.

`freeness` is the default policy with the rule that it had before, `blind` with the new one and no prefixes, `oracle`
with the new one and its eyes in the caches (`_placement/oracle.py`); the others are routers' rules, which move nothing.
`hits` is the share of the prompts' tokens that was found cached; `pooled` what one cache for all would have had, were
it as large as the memory of all, `boundless` if it held everything. `floor` are first tokens with boundless hits and
nobody else on the instance: no policy can be below. Ratios are llumnix / other, below 1: llumnix is better; geometric
means over the seeds. Goals: `_placement/judged.py`.

*Capacity*: the highest rate, to 2 %, at which the first tokens of the second half of the requests, all counted, take at
most `MOST_GROWTH` times as long as those of the first half (geometric mean over the seeds), for the best of the blind
rules. A queue that grows with time makes it 3.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import geometric_mean

from _placement.judged import Table, judge_plain, judge_prefixed
from _placement.loads import BLOCKS, CAPACITY, LOADS, MOONCAKE, PLAIN, rate_at
from _placement.runs import ARE_BLIND, BEFORE, ORACLE, OURS, ROUND_ROBIN, ROUTERS, Result, Run, measure
from frame.arguments import at_least_one, whole
from frame.parts import refuse_repeats
from frame.verdict import Figure, conclude

MOST_GROWTH = 1.5

Measure = Callable[[list[Run]], list[Result]]


def capacity(trace: str, arguments: argparse.Namespace, measured: Measure) -> float:
    """Near what is believed, by halves of what is left."""
    low, high = 0.8 * CAPACITY[trace], 1.25 * CAPACITY[trace]
    while high > 1.02 * low:
        rate = (low * high) ** 0.5
        stable = any(growth(trace, rate, policy, arguments, measured) <= MOST_GROWTH for policy in ARE_BLIND)
        low, high = (rate, high) if stable else (low, rate)
    return low


def growth(trace: str, rate: float, policy: str, arguments: argparse.Namespace, measured: Measure) -> float:
    count = arguments.warm_up + arguments.requests
    runs = [Run(trace, rate, seed, policy, count) for seed in range(arguments.seeds)]
    by_seed = geometric_mean(result.values["growth"] for result in measured(runs))
    print(f"  {trace} {policy:14}{rate:7.2f}/s: {by_seed:.2f}", flush=True)
    return by_seed


def runs_of(trace: str, arguments: argparse.Namespace) -> list[Run]:
    if trace in PLAIN:
        points = [(PLAIN[trace], policy, 2 * arguments.requests, 0) for policy in (OURS, BEFORE, ROUND_ROBIN)]
    else:
        points = [
            (rate_at(trace, share), policy, arguments.requests, arguments.warm_up)
            for share in LOADS
            for policy in (OURS, ORACLE, *ARE_BLIND, *arguments.routers)
        ]
    return [
        Run(trace, rate, seed, policy, requests, warm_up)
        for rate, policy, requests, warm_up in points
        for seed in range(arguments.seeds)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--traces", nargs="+", default=[*BLOCKS, *PLAIN], choices=[*BLOCKS, *PLAIN])
    parser.add_argument("--routers", nargs="*", default=ROUTERS, choices=ROUTERS, help="Whose rules run, too.")
    parser.add_argument("--seeds", type=at_least_one, default=3)
    parser.add_argument(
        "--requests", type=at_least_one, default=1500, help="Of a run with prefixes; others have twice as many."
    )
    parser.add_argument("--warm-up", type=whole, default=1000, help="Requests before those that are counted.")
    parser.add_argument("--find-capacity", action="store_true", help="Of the best blind rule, and nothing else.")
    parser.add_argument("--jobs", type=at_least_one, default=1)
    arguments = parser.parse_args()
    prefixed = [trace for trace in arguments.traces if trace in BLOCKS]
    plain = [trace for trace in arguments.traces if trace in PLAIN]
    if "mooncake" in prefixed:
        refuse_repeats(parser, [MOONCAKE], arguments.warm_up + arguments.requests, arguments.seeds)
    refuse_repeats(parser, plain, 2 * arguments.requests, arguments.seeds)
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:

        def measured(runs: list[Run]) -> list[Result]:
            return list(pool.map(measure, runs))

        if arguments.find_capacity:
            return conclude(
                *(
                    Figure(f"{t}, capacity without prefixes", capacity(t, arguments, measured), unit="/s")
                    for t in prefixed
                )
            )
        figures = []
        for trace in prefixed:
            figures += judge_prefixed(Table(measured(runs_of(trace, arguments))), trace)
        if plain:
            figures += judge_plain(
                Table(measured([run for trace in plain for run in runs_of(trace, arguments)])), plain
            )
    return conclude(*figures)


if __name__ == "__main__":
    sys.exit(main())
