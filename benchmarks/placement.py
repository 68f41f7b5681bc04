"""What placing by time and by cached prefix is worth: in the simulator, beside other rules for the same requests.

    python benchmarks/placement.py

Mooncake's conversations and contexts that many requests share (both with prefixes), on 8 instances of an 8B model with
grouped queries on an A100; and the traces without prefixes of policy_comparison.py on 16 A10. `freeness` is the default
policy with the rule that it had before, `blind` with the new one and no prefixes; the others are routers' rules, which
move nothing. Ratios are llumnix / other, below 1: llumnix is better; geometric means over the seeds. A seed is a part
of its own of Mooncake's trace, and a draw of its own elsewhere.

Exit code 1 if the default became worse than it was by more than 5 % where nothing has a prefix (geometric means over
seeds), or if it is not the best or within 5 % of the best, by mean TTFT, where prompts have them.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from statistics import geometric_mean

import msgspec
import numpy as np
from frame.verdict import Figure, at_most, conclude
from policy_comparison import workload

from llumnix.config import PolicyConfig
from llumnix.paper.measure import latencies
from llumnix.policy.catalogue import POLICIES
from llumnix.policy.dispatch import FREENESS
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.profiles.cost_model import Profile
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import RunSetup
from llumnix.workload.workload import Workload, load_workload

OURS, BEFORE, BLIND = "llumnix", "freeness", "blind"
ROUTERS = ("dynamo-kv", "llm-d-prefix", "lmetric", "cache-aware", "round-robin")
UNIT_TOKENS = 512
PREFIXED = {"mooncake": (3.0, 3.5), "contexts": (6.0, 9.0, 12.0)}
PLAIN = {
    "ShareGPT": (8.0,), "BurstGPT": (9.0,), "S-S": (40.0,), "M-M": (8.4,), "L-L": (3.0,), "S-L": (4.2,), "L-S": (14.0,),
    "azure-conv": (7.6,), "azure-code": (2.5,),
}  # fmt: skip
CUSTOMERS, SHARED_UNITS, OWN_TOKENS = 150, 11, 1500
PLAIN_METRICS = ("Prefill Mean", "Prefill P99", "Decode Mean", "Decode P99", "Request Mean")
MOST_WORSE = 1.05


class Run(msgspec.Struct, frozen=True):
    trace: str
    rate: float
    seed: int
    policy: str
    requests: int


class Result(msgspec.Struct, frozen=True):
    run: Run
    values: dict[str, float]


def grouped_queries(blocks: int) -> Profile:
    """The A100 with an 8B model: 2 MiB a block, 0.09 µs for each token of context."""
    profile = load_profile("a100-llama-7b")
    return replace(
        profile,
        memory=replace(profile.memory, total_blocks=blocks, block_bytes=2 << 20),
        decode=replace(profile.decode, per_context_token_ms=0.00009),
    )


def conversations(rate: float, seed: int, requests: int) -> list[SimRequest]:
    """The `seed`-th part of Mooncake's trace, in its own time, squeezed to the rate."""
    rows = load_workload("mooncake-conv?total=120000").requests
    part = rows[seed * requests : (seed + 1) * requests]
    factor = (len(part) - 1) / rate / (part[-1].arrival_s - part[0].arrival_s)
    moved = (msgspec.structs.replace(r, arrival_s=round((r.arrival_s - part[0].arrival_s) * factor, 9)) for r in part)
    return sim_requests(Workload(name="mooncake", requests=tuple(moved)), UNIT_TOKENS)


def contexts(rate: float, seed: int, requests: int) -> list[SimRequest]:
    """Each asks something of its own behind one of many long contexts (llm-d's published case)."""
    rng = random.Random(seed)
    at_s = 0.0
    rows = []
    for index in range(requests):
        at_s += rng.expovariate(rate)
        customer = rng.randrange(CUSTOMERS)
        hashes = tuple(customer * SHARED_UNITS + unit for unit in range(SHARED_UNITS))
        tokens = UNIT_TOKENS * SHARED_UNITS + rng.randint(OWN_TOKENS // 2, 3 * OWN_TOKENS // 2)
        rows.append(SimRequest(index, at_s, tokens, 1 + int(rng.expovariate(1 / 150)), hashes=hashes))
    return rows


def measure(run: Run) -> Result:
    POLICIES.setdefault(BEFORE, replace(POLICIES[OURS], dispatch=FREENESS))  # of this process, which measures only
    prefixed = run.trace in PREFIXED
    policy = PolicyConfig(policy=OURS if run.policy == BLIND else run.policy, prefix=run.policy != BLIND)
    if run.trace == "mooncake":
        load, profile, instances = conversations(run.rate, run.seed, run.requests), grouped_queries(24_000), 8
    elif run.trace == "contexts":
        load, profile, instances = contexts(run.rate, run.seed, run.requests), grouped_queries(9000), 8
    else:
        load = sim_requests(workload(run.trace, run.rate, run.seed, run.requests))
        profile, instances = load_profile("a10-llama-7b"), 16
    unit_tokens = UNIT_TOKENS if prefixed else 0
    simulate(load, RunSetup(instances=instances, profile=profile, policy=policy, unit_tokens=unit_tokens))
    first_s = np.array([request.first_token_s - request.arrival_s for request in load])
    p50, p90, p99 = np.percentile(first_s, [50, 90, 99])
    hits = sum(request.hit_tokens for request in load) / sum(request.prompt_tokens for request in load)
    seen = {"mean": float(first_s.mean()), "P50": float(p50), "P90": float(p90), "P99": float(p99), "hits": hits}
    return Result(run, seen | latencies(load))


class Table:
    def __init__(self, results: Sequence[Result]) -> None:
        self._by_run = {(r.run.trace, r.run.rate, r.run.seed, r.run.policy): r.values for r in results}
        self.points = list(dict.fromkeys((r.run.trace, r.run.rate) for r in results))
        self.seeds = sorted({r.run.seed for r in results})

    def policies(self, point: tuple[str, float]) -> list[str]:
        return list(dict.fromkeys(key[3] for key in self._by_run if key[:2] == point))

    def value(self, point: tuple[str, float], policy: str, name: str) -> float:
        return float(np.mean([self._by_run[(*point, seed, policy)][name] for seed in self.seeds]))

    def ratio(self, point: tuple[str, float], other: str, name: str) -> float:
        pairs = [(self._by_run[(*point, s, OURS)], self._by_run[(*point, s, other)]) for s in self.seeds]
        return geometric_mean(ours[name] / theirs[name] for ours, theirs in pairs)


def show_prefixed(table: Table, point: tuple[str, float]) -> Figure:
    print(f"\n{point[0]} at {point[1]:g}/s: TTFT in s, mean over seeds; llumnix / other of mean and P90")
    for policy in table.policies(point):
        cells = "".join(f"{name} {table.value(point, policy, name):8.3f}  " for name in ("mean", "P50", "P90", "P99"))
        ratios = f"{table.ratio(point, policy, 'mean'):.2f} {table.ratio(point, policy, 'P90'):.2f}"
        print(f"  {policy:14}{cells}hits {table.value(point, policy, 'hits'):.3f}   {ratios}")
    worst = max(table.ratio(point, other, "mean") for other in table.policies(point) if other != OURS)
    return Figure(f"{point[0]} {point[1]:g}/s, mean TTFT, llumnix / best other", worst, at_most(MOST_WORSE))


def show_plain(table: Table, point: tuple[str, float]) -> list[float]:
    ratios = [table.ratio(point, BEFORE, name) for name in PLAIN_METRICS]
    print(f"  {point[0]:11}{point[1]:5g}" + "".join(f"{ratio:14.3f}" for ratio in ratios), flush=True)
    return ratios


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--traces", nargs="+", default=[*PREFIXED, *PLAIN], choices=[*PREFIXED, *PLAIN])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=1500, help="Of a run with prefixes; others have twice as many.")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    runs = [
        Run(trace, rate, seed, policy, arguments.requests * (1 if trace in PREFIXED else 2))
        for trace in arguments.traces
        for rate in (PREFIXED | PLAIN)[trace]
        for policy in ((OURS, BLIND, BEFORE, *ROUTERS) if trace in PREFIXED else (OURS, BEFORE))
        for seed in range(arguments.seeds)
    ]
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        table = Table(list(pool.map(measure, runs)))
    figures = [show_prefixed(table, point) for point in table.points if point[0] in PREFIXED]
    plain = [point for point in table.points if point[0] in PLAIN]
    if plain:
        print("\nwithout prefixes: llumnix / freeness" + "".join(f"{name:>14}" for name in PLAIN_METRICS))
        rows = [show_plain(table, point) for point in plain]
        for name, column in zip(PLAIN_METRICS, zip(*rows, strict=True), strict=True):
            figures.append(
                Figure(f"without prefixes, {name}, llumnix / before", geometric_mean(column), at_most(MOST_WORSE))
            )
    return conclude(*figures)


if __name__ == "__main__":
    sys.exit(main())
