"""What is asked of a cluster, by what its instances report, and when that makes roles change."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest

from llumnix.control.role_keeper import DWELL_S, LOOK_S, DemandWatch, RoleKeeper
from llumnix.control.scheduler_events import RolesAdvised, SetRole
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot, StepCost
from llumnix.roles_config import RolesConfig
from llumnix.types import InstanceId, Role

COST = StepCost(fixed_ms=11.0, prefill_token_us=81.0, request_us=24.0, context_token_us=0.09)


def load(name: str, **facts: Any) -> InstanceSnapshot:
    usual = {"total_blocks": 1000, "free_blocks": 900, "step_cost": COST, "decoding": 20, "context_tokens": 25_000}
    return InstanceSnapshot(id=InstanceId(name), at=0.0, seq=1, **{**usual, **facts})


def cluster(at: float, *instances: InstanceSnapshot) -> ClusterSnapshot:
    return ClusterSnapshot(at=at, instances=instances)


def counted(name: str, prompts: int, computed: int, made: int, waits: int = 0) -> InstanceSnapshot:
    return load(name, dispatches_seen=(prompts, 0), computed_tokens=computed, made_tokens=made, prefill_tokens=waits)


def test_demand_is_what_came_whether_it_is_computed_or_waits() -> None:
    watch = DemandWatch()
    watch.look(cluster(0.0, counted("a", 10, 1000, 50), counted("b", 0, 0, 0)))
    demand = watch.look(cluster(2.0, counted("a", 30, 2000, 150, waits=4000), counted("b", 20, 1000, 300)))
    assert (demand.prompts_per_s, demand.prompt_tokens_per_s, demand.tokens_per_s) == pytest.approx(
        (20.0, 3000.0, 200.0)
    )


def test_instances_that_come_and_go_are_no_demand() -> None:
    watch = DemandWatch()
    watch.look(cluster(0.0, counted("a", 10, 1000, 50), counted("gone", 900, 90_000, 900)))
    demand = watch.look(cluster(1.0, counted("a", 11, 1100, 60), counted("new", 500, 5000, 500)))
    assert (demand.prompts_per_s, demand.prompt_tokens_per_s, demand.tokens_per_s) == pytest.approx((1.0, 100.0, 10.0))


def test_what_was_asked_long_ago_is_forgotten() -> None:
    watch = DemandWatch()
    rate = [10.0] * 60 + [30.0] * 120
    prompts, demand = 0.0, watch.look(cluster(0.0, counted("a", 0, 0, 0)))
    for second, per_s in enumerate(rate, 1):
        prompts += per_s
        demand = watch.look(cluster(float(second), counted("a", int(prompts), 0, 0)))
        if second == 60:
            assert demand.prompts_per_s == pytest.approx(10.0)
    assert 29 < demand.prompts_per_s <= 30


def crowd(at: float) -> ClusterSnapshot:
    """36 requests/s of azure-conv on eight instances."""
    seconds = int(at)
    each = 36 * seconds // 8
    many = (counted(f"i{n}", each, each * 1155, each * 211) for n in range(8))
    return cluster(at, *many)


def told(mode: str, until_s: float) -> list[tuple[float, SetRole | RolesAdvised]]:
    keeper = RoleKeeper(RolesConfig(roles=mode, ttft_target_ms=1000, tpot_target_ms=30))
    commands = []
    at = 0.0
    while at <= until_s:
        if keeper.is_due(at):
            commands += [(at, command) for command in keeper.look(crowd(at))]
        at += 0.1
    return commands


def test_roles_change_once_there_was_time_to_see_what_is_asked() -> None:
    (at, first), *others = told("adaptive", DWELL_S + 2 * LOOK_S)
    assert DWELL_S <= at <= DWELL_S + 2 * LOOK_S
    roles = [command.role for _, command in [(at, first), *others] if isinstance(command, SetRole)]
    assert sorted(roles) == [Role.DECODE] * 7 + [Role.PREFILL]
    assert "for prompts" in first.reason


def test_next_change_waits_for_what_came_of_the_last() -> None:
    times = sorted({at for at, _ in told("adaptive", 3 * DWELL_S + 3 * LOOK_S)})
    assert all(later - sooner >= DWELL_S - 1e-6 for sooner, later in pairwise(times))
    assert len(times) >= 2


def test_advice_is_given_again_when_it_was_not_needed_in_between() -> None:
    keeper = RoleKeeper(RolesConfig(roles="advise", ttft_target_ms=1000, tpot_target_ms=30))
    advice, seconds, at, quiet_s = [], 0.0, 0.0, 60.0
    while at < 180.0:
        busy = not 30.0 <= at < 30.0 + quiet_s
        seconds += LOOK_S if busy else 0.0
        told = keeper.look(msgspec.structs.replace(crowd(seconds), at=at))
        advice += [at for _ in told]
        at += LOOK_S
    first, again = advice
    assert first < 30.0 < 30.0 + quiet_s < again


def test_advice_is_given_once() -> None:
    ((_, advice),) = told("advise", 4 * DWELL_S)
    assert isinstance(advice, RolesAdvised)
    assert sorted(advice.changes.values()) == [Role.DECODE] * 7 + [Role.PREFILL]
