"""Simulations of a recorded run, as it was and otherwise: each several times, in several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import lcm
from random import Random

import msgspec

from llumnix.processes import results_of
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.profiles.cost_model import Profile
from llumnix.sim.setup import RunSetup
from llumnix.whatif.alternatives import Alternative
from llumnix.whatif.metrics import RunNumbers, numbers_of
from llumnix.workload.workload import Workload

JITTER_S = 0.05
"""By so much at most is each arrival earlier or later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One run."""

    workload: Workload
    setup: RunSetup
    seed: int
    kept: frozenset[str]
    """Ids of the requests that count."""


def setup_of(alternative: Alternative, profile: Profile, workload: Workload) -> RunSetup:
    hashed = workload.hashed_tokens
    return RunSetup(
        instances=alternative.instances,
        profile=profile,
        policy=alternative.policy,
        migration=alternative.migration,
        unit_tokens=lcm(hashed, profile.memory.block_tokens) if hashed else 0,
    )


def simulated(task: Task) -> RunNumbers:
    """The same arrivals for the same seed, whatever the setup."""
    jitter = Random(task.seed)
    moved = [
        msgspec.structs.replace(request, arrival_s=max(0.0, request.arrival_s + jitter.uniform(-JITTER_S, JITTER_S)))
        for request in task.workload.requests
    ]
    workload = replace(task.workload, requests=tuple(sorted(moved, key=lambda each: (each.arrival_s, each.id))))
    outcome = simulate(sim_requests(workload, task.setup.unit_tokens), task.setup)
    return numbers_of(outcome.records().requests, task.kept)


def run_all(tasks: Sequence[Task], jobs: int, one_done: Callable[[], None]) -> list[RunNumbers]:
    """In order of the tasks. `one_done` is called for each that has ended."""
    results: dict[int, RunNumbers] = {}
    for number, found in results_of(simulated, tasks, jobs):
        results[number] = found
        one_done()
    return [results[number] for number in range(len(tasks))]
