"""Simulated requests of several tenants under `--classes`: the waiting room that serves live, in virtual time."""

from __future__ import annotations

import numpy as np

from llumnix.policy.classes import Classes, ServiceClass
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.faults import Fault, FaultKind
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import RunSetup
from llumnix.workload.workload import load_workload
from service_classes import classes_of, tenant

A10 = load_profile("a10-llama-7b")


def requests_of(name: str, rate: float, count: int, seed: int = 1) -> list[SimRequest]:
    made = sim_requests(load_workload(f"poisson:rate={rate},prompt=exp200,output=exp100,requests={count},seed={seed}"))
    for request in made:
        request.id = request.client_id = f"{name}-{request.id}"
        request.tenant = name
    return made


def run(*tenants: list[SimRequest], classes: Classes | None, faults: tuple[Fault, ...] = ()) -> None:
    together = sorted((one for each in tenants for one in each), key=lambda one: one.arrival_s)
    for index, request in enumerate(together):
        request.index = index
        request.order = (0, request.arrival_s, index)
    simulate(together, RunSetup(instances=2, profile=A10, classes=classes, faults=faults))


def p99_ttft_s(requests: list[SimRequest]) -> float:
    return float(np.percentile([one.first_token_s - one.arrival_s for one in requests], 99))


def test_tenant_who_asks_ten_times_as_much_does_not_make_the_other_wait() -> None:
    alone = requests_of("quiet", 0.7, 100)
    run(alone, classes=None)
    quiet, loud = requests_of("quiet", 0.7, 100), requests_of("loud", 14.0, 1500, seed=2)
    patient = ServiceClass(name="c", max_hold_s=1e6, max_held=10**6)
    run(quiet, loud, classes=classes_of(tenant("quiet"), tenant("loud"), classes=(patient,)))
    assert all(one.generated == one.output_tokens for one in (*quiet, *loud))
    fair_s = p99_ttft_s(quiet)
    quiet, loud = requests_of("quiet", 0.7, 100), requests_of("loud", 14.0, 1500, seed=2)
    run(quiet, loud, classes=None)
    assert fair_s < p99_ttft_s(quiet) / 10, "without classes it waits behind the other's queue"
    assert fair_s < p99_ttft_s(alone) + 5.0


def test_requests_that_are_declined_are_over_and_say_why() -> None:
    asked = requests_of("t", 2.0, 60)
    run(asked, classes=classes_of(tenant("t", requests_per_minute=30.0)))
    declined = [one for one in asked if one.declined]
    assert 0 < len(declined) < 60 - 25
    assert all("may have 30 requests a minute" in one.declined for one in declined)
    assert all(one.generated == one.output_tokens for one in asked if not one.declined)


def test_beyond_capacity_those_who_are_served_are_served_in_time() -> None:
    """A goal of 5 s, of which 2.5 may be waited for."""
    asked = requests_of("t", 16.0, 1500)
    run(asked, classes=classes_of(tenant("t"), classes=(ServiceClass(name="c", ttft_s=5.0, max_hold_s=2.5),)))
    served = [one for one in asked if not one.declined]
    assert len(served) < 1400
    assert sum(one.first_token_s - one.arrival_s <= 5.0 for one in served) > 0.9 * len(served)


def test_held_requests_outlive_the_instances() -> None:
    """Both die while many are held: these go on when others have come."""
    asked = requests_of("t", 16.0, 300)
    faults = tuple(Fault(FaultKind.CRASH, 10.0, instance=number) for number in range(2))
    run(asked, classes=classes_of(tenant("t"), classes=(ServiceClass(name="c", max_hold_s=1e4),)), faults=faults)
    assert all(one.generated == one.output_tokens for one in asked)
    assert any(one.replays for one in asked)
