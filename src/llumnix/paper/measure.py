"""Carries out one run of a figure and takes its measures, by the paper's definitions.

Where the artifact measured something else than it says (docs/measure/reproduce.md lists it), what it says is measured:
instances are averaged over time, not over steps, and the preemption loss counts the tokens that were lost when the
request was preempted, prompt included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from llumnix.config import ClusterConfig, PolicyConfig, ScalingConfig
from llumnix.paper.experiments import PAPER_PAIRING_INTERVAL_S, POLICY_OF, Run
from llumnix.paper.points import LLUMNIX, OURS
from llumnix.paper.stall import batch_size, central_stall_s, report_stall_s
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.outcome import mean_gap_s
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import PlannedMove, RunSetup
from llumnix.types import is_high
from llumnix.workload.workload import load_workload

Measures = list[tuple[str, str, float, float]]
"""(trace, metric, x, y) of the points that a run gives."""


def measure(run: Run) -> Measures:
    """Simulates `run` and returns its points."""
    return _KINDS[run.kind](run)


def setup_of(run: Run) -> RunSetup:
    """The cluster of a serving run: the paper's for its policies, the product's defaults for ours."""
    options = run.options
    profile = load_profile("a10-llama-7b").with_scheduler(max_num_batched_tokens=options["batched_tokens"])
    ours = run.policy == OURS
    scaling = ScalingConfig(**options["scaling"]) if "scaling" in options else None
    if ours:
        return RunSetup(instances=run.instances, profile=profile, policy=PolicyConfig(), scaling=scaling, seed=run.seed)
    policy = PolicyConfig(
        policy=POLICY_OF[run.policy],
        migrate_out_freeness=options["threshold"],
        migrate_in_freeness=options["threshold"],
        pairing_interval_s=PAPER_PAIRING_INTERVAL_S,
        request_cooldown_s=0.0,
    )
    # The artifact's local queue does not look at priorities: a high request gains by headroom alone.
    profile = profile.with_scheduler(priorities=False)
    return RunSetup(
        instances=run.instances, profile=profile, policy=policy, scaling=scaling, seed=run.seed, paper_body=True
    )


def _serving(run: Run) -> Measures:
    requests = sim_requests(load_workload(run.workload))
    outcome = simulate(requests, setup_of(run))
    if run.options.get("by_priority"):
        classes = {
            "Normal": [request for request in requests if request.priority >= 0],
            "High Priority": [request for request in requests if is_high(request.priority)],
        }
        return [
            (name, metric, run.x, y)
            for name, members in classes.items()
            for metric, y in (latencies(members) | {"Decode Execution Time": _mean(_execution_s(members))}).items()
        ]
    cost = outcome.mean_instances
    if run.figure == 15:
        return [(run.trace, "Prefill P99", cost, latencies(requests)["Prefill P99"])]
    last = {"Resource Cost": cost} if run.figure == 14 else {"Preemption Loss": _mean([r.lost_s for r in requests])}
    return [(run.trace, metric, run.x, y) for metric, y in (latencies(requests) | last).items()]


def latencies(requests: Sequence[SimRequest]) -> dict[str, float]:
    """The six latencies of the paper's figures, in seconds; P99 is over requests, interpolated linearly."""
    columns = {
        "Request": [request.finish_s - request.arrival_s for request in requests],
        "Prefill": [request.first_token_s - request.arrival_s for request in requests],
        "Decode": [mean_gap_s(request) for request in requests],
    }
    return {
        f"{name} {how}": value
        for name, values in columns.items()
        for how, value in (("P99", float(np.percentile(values, 99))), ("Mean", _mean(values)))
    }


def _execution_s(requests: Sequence[SimRequest]) -> list[float]:
    return [request.exec_s for request in requests]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


# ---------------------------------------------------------------------- figure 10


BATCH_TOKENS = 8192
"""All sequences of figure 10's batch together."""

MOVE_AFTER_S = 1.0
"""When the migration is ordered: so long after the last prompt of the batch was computed."""


def _migration(run: Run) -> Measures:
    """A batch of 8k tokens on one instance, of which one request moves to an idle one.

    Recompute, blocking copy and decode latency are the cost profile's own: they show its fit. The
    downtime of a migration is simulated: out of the source's batch to in the target's.
    """
    profile = load_profile(run.options["profile"])
    memory, length = profile.memory, int(run.x)
    count = BATCH_TOKENS // length
    step_ms = profile.decode.step_ms(count, BATCH_TOKENS)
    if run.policy == "Recompute":
        return [(run.trace, "Downtime", run.x, profile.prefill.step_ms(length))]
    if run.policy == "Blocking copy":
        return [(run.trace, "Downtime", run.x, profile.copy_s(-(-length // memory.block_tokens)) * 1e3)]
    if run.policy == "Normal":
        return [(run.trace, "Decode Latency", run.x, step_ms)]
    requests = [SimRequest(index, 0.0, length - 8, 256) for index in range(count)]
    ready_s = count * profile.prefill.step_ms(length) / 1e3 + MOVE_AFTER_S
    outcome = simulate(
        requests,
        RunSetup(
            instances=2,
            # Room for the batch to grow while the copy runs; the paper's had that, its blocks are not published.
            profile=replace(profile, memory=replace(memory, total_blocks=2 * BATCH_TOKENS // memory.block_tokens)),
            policy=PolicyConfig(policy="round-robin"),
            place_on=0,
            moves=(PlannedMove(ready_s, requests[-1].id, 0, 1),),
        ),
    )
    downtime_ms = outcome.migrations[0].handover_ms
    assert downtime_ms is not None, f"the migration of {run.key} failed: {outcome.migrations[0].outcome}"
    return [
        (run.trace, "Downtime", run.x, downtime_ms),
        (run.trace, "Decode Latency", run.x, step_ms * (1 + profile.migration.slowdown)),
    ]


# ---------------------------------------------------------------------- figure 12


def _fragmentation(run: Run) -> Measures:
    requests = sim_requests(load_workload(run.workload))
    outcome = simulate(requests, replace(setup_of(run), sample_interval_s=1.0))
    arriving_s = requests[-1].arrival_s
    return [(run.trace, "Fragmentation", at_s, y) for at_s, y in outcome.fragmentation if at_s <= arriving_s]


# ---------------------------------------------------------------------- figure 16


def _stall(run: Run) -> Measures:
    profile, tokens = load_profile("a10-llama-7b"), run.options["tokens"]
    if run.policy == LLUMNIX:
        size, step_s = batch_size(profile, run.x, run.instances, tokens, 0.0)
        stall_s = report_stall_s(size, step_s, ClusterConfig().report_interval_s)
    else:
        stall_s = central_stall_s(profile, run.x, run.instances, tokens)
    return [(run.trace, "Scheduling Stall", run.x, stall_s * 1e3)]


_KINDS: dict[str, Callable[[Run], Measures]] = {
    "serving": _serving,
    "migration": _migration,
    "fragmentation": _fragmentation,
    "stall": _stall,
}
