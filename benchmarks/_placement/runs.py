"""One simulated run, and what is measured of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from statistics import fmean

import msgspec
import numpy as np
from policy_comparison import workload

from _placement.loads import BLOCKS, INSTANCES, UNIT_TOKENS, grouped_queries, hits_of_one_cache, prefixed, units_in_all
from _placement.oracle import looking_into_caches
from llumnix.config import PolicyConfig
from llumnix.paper.measure import latencies
from llumnix.policy.catalogue import POLICIES
from llumnix.policy.dispatch import FREENESS
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.profiles.cost_model import Profile
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import RunSetup

OURS, ORACLE, BEFORE, BLIND, ROUND_ROBIN = "llumnix", "oracle", "freeness", "blind", "round-robin"
ARE_BLIND = (BLIND, BEFORE, ROUND_ROBIN)
ROUTERS = ("dynamo-kv", "llm-d-prefix", "lmetric", "cache-aware")


class Run(msgspec.Struct, frozen=True):
    trace: str
    rate: float
    seed: int
    policy: str
    requests: int
    """That are counted."""
    warm_up: int = 0
    """That come before those, and are not."""


class Result(msgspec.Struct, frozen=True):
    run: Run
    values: dict[str, float]


def measure(run: Run) -> Result:
    POLICIES.setdefault(BEFORE, replace(POLICIES[OURS], dispatch=FREENESS))  # of this process, which measures only
    name = OURS if run.policy in (BLIND, ORACLE) else run.policy
    policy = PolicyConfig(policy=name, prefix=run.policy not in ARE_BLIND)
    if run.trace not in BLOCKS:
        load = sim_requests(workload(run.trace, run.rate, run.seed, run.requests))
        simulate(load, RunSetup(instances=16, profile=load_profile("a10-llama-7b"), policy=policy))
        return Result(run, first_tokens(load) | latencies(load))
    load = prefixed(run.trace, run.rate, run.seed, run.warm_up + run.requests)
    profile = grouped_queries(BLOCKS[run.trace])
    with looking_into_caches() if run.policy == ORACLE else nullcontext():
        simulate(load, RunSetup(instances=INSTANCES, profile=profile, policy=policy, unit_tokens=UNIT_TOKENS))
    counted = load[run.warm_up :]
    return Result(run, first_tokens(counted) | of_caches(run, load, profile) | latencies(counted))


def of_caches(run: Run, load: Sequence[SimRequest], profile: Profile) -> dict[str, float]:
    """`hits`: share of the prompts' tokens that was found cached; `pooled`, `boundless`: that one cache for all would
    have, as large as all memory, or however large. `floor`: seconds to a first token, with boundless hits and nobody
    else on the instance."""
    counted = load[run.warm_up :]
    all_tokens = sum(request.prompt_tokens for request in counted)
    boundless = hits_of_one_cache(load)[run.warm_up :]
    alone_s = [
        (profile.prefill.compute_ms(request.prompt_tokens - hit, hit) + profile.host.request_ms) / 1e3
        for request, hit in zip(counted, boundless, strict=True)
    ]
    return {
        "hits": sum(request.hit_tokens for request in counted) / all_tokens,
        "pooled": sum(hits_of_one_cache(load, units_in_all(run.trace))[run.warm_up :]) / all_tokens,
        "boundless": sum(boundless) / all_tokens,
        "floor mean": fmean(alone_s),
        "floor P90": float(np.percentile(alone_s, 90)),
    }


def first_tokens(load: Sequence[SimRequest]) -> dict[str, float]:
    """Seconds; `growth`: by what factor they took longer in the second half."""
    first_s = np.array([request.first_token_s - request.arrival_s for request in load])
    p50, p90, p99 = np.percentile(first_s, [50, 90, 99])
    half = len(load) // 2
    growth = fmean(first_s[half:]) / fmean(first_s[:half])
    return {
        "mean": float(first_s.mean()),
        "P50": float(p50),
        "P90": float(p90),
        "P99": float(p99),
        "growth": float(growth),
    }
