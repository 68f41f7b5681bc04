"""Simulated requests of several tenants under `--classes`: the waiting room that serves live, in virtual time."""

from __future__ import annotations

import numpy as np

from llumnix.policy.classes import Classes, ServiceClass
from llumnix.sim.class_summary import summarize_classes
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.faults import Fault, FaultKind
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import RunSetup
from llumnix.types import HIGH, NORMAL
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
    assert all("may have 30 requests a minute" in one.declined.why for one in declined if one.declined)
    assert all(one.generated == one.output_tokens for one in asked if not one.declined)


def test_beyond_capacity_those_who_are_served_are_served_in_time() -> None:
    """A goal of 5 s, of which 2.5 may be waited for."""
    asked = requests_of("t", 16.0, 1500)
    run(asked, classes=classes_of(tenant("t"), classes=(ServiceClass(name="c", ttft_s=5.0, max_hold_s=2.5),)))
    served = [one for one in asked if not one.declined]
    assert len(served) < 1400
    assert sum(one.first_token_s - one.arrival_s <= 5.0 for one in served) > 0.9 * len(served)


def test_class_says_which_requests_go_before_others_on_an_instance() -> None:
    asked = requests_of("t", 16.0, 200)
    for request in asked[::10]:
        request.service_class = "first"
    classes = (ServiceClass(name="c"), ServiceClass(name="first", priority=HIGH))
    run(asked, classes=classes_of(tenant("t", "c", "first"), classes=classes))
    assert {one.order[0] for one in asked[::10]} == {HIGH}
    assert {one.order[0] for one in asked[1::10]} == {NORMAL}
    assert max(one.first_token_s - one.arrival_s for one in asked[::10]) < p99_ttft_s(asked[1::10])


def test_run_says_how_each_class_and_tenant_fared() -> None:
    fast, slow = requests_of("a", 1.0, 40), requests_of("b", 1.0, 40, seed=2)
    eve = requests_of("eve", 1.0, 3, seed=3)
    for request in slow[:5]:
        request.service_class = "none"
    promised = ServiceClass(name="c", ttft_s=60.0, tpot_s=1e-6)
    classes = classes_of(tenant("a"), tenant("b", "d"), classes=(promised, ServiceClass(name="d")))
    run(fast, slow, eve, classes=classes)
    of_eve, a, of_d, of_none = summarize_classes([*fast, *slow, *eve], classes)
    assert (of_eve.cls, of_eve.tenant, of_eve.refused, of_eve.ttft_s) == ("", "eve", {"403": 3}, None)
    assert (a.cls, a.tenant, a.requests, a.refused, a.ttft_met, a.ttft_missed) == ("c", "a", 40, {}, 40, 0)
    assert (a.tpot_met, a.tpot_missed) == (0, sum(one.output_tokens > 1 for one in fast))
    assert a.tokens == sum(one.prompt_tokens + one.output_tokens for one in fast)
    assert a.ttft_s is not None
    assert a.ttft_s.count == 40
    assert (of_d.cls, of_d.requests, of_d.ttft_met, of_d.ttft_missed) == ("d", 35, 0, 0)
    assert (of_none.cls, of_none.refused) == ("none", {"400": 5})


def test_held_requests_outlive_the_instances() -> None:
    """Both die while many are held: these go on when others have come."""
    asked = requests_of("t", 16.0, 300)
    faults = tuple(Fault(FaultKind.CRASH, 10.0, instance=number) for number in range(2))
    run(asked, classes=classes_of(tenant("t"), classes=(ServiceClass(name="c", max_hold_s=1e4),)), faults=faults)
    before = [one for one in asked if one.arrival_s < 10.0]
    assert not any(one.declined for one in before)
    assert {one.declined.status for one in asked if one.declined} == {503}, "as live, who comes meanwhile is not held"
    assert all(one.generated == one.output_tokens for one in asked if not one.declined)
    assert any(one.replays for one in asked)
