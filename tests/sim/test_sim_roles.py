"""Instances for prompts and for tokens, simulated: who computes what, and what it is worth."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
from sim_cluster import assert_all_served

from llumnix.config import PolicyConfig
from llumnix.errors import UsageError
from llumnix.journal.entries import JournalEntry, RoleNoted
from llumnix.roles_config import RolesConfig
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.faults import parse_fault
from llumnix.sim.instance import SimInstance
from llumnix.sim.outcome import Outcome
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import RunSetup, instance_name
from llumnix.types import Role
from llumnix.workload.workload import load_workload

A100 = load_profile("a100-llama-7b")
WORKLOAD = "azure-conv?rate=12&requests=400&seed=3"


def run(
    roles: RolesConfig, workload: str = WORKLOAD, faults: tuple[str, ...] = (), between_steps: bool = False
) -> Outcome:
    setup = RunSetup(
        instances=4,
        profile=A100,
        policy=PolicyConfig(roles=roles),
        faults=tuple(parse_fault(text) for text in faults),
        reads_between_steps=between_steps,
    )
    outcome = simulate(sim_requests(load_workload(workload)), setup)
    assert_all_served(outcome)
    return outcome


def test_prompts_are_computed_on_some_and_tokens_made_on_the_others() -> None:
    outcome = run(RolesConfig(prefill_instances=2, decode_instances=2))
    first = {instance_name(0), instance_name(1)}
    assert {request.instances[0] for request in outcome.requests} == first
    away = [request.instances[-1] not in first for request in outcome.requests if request.output_tokens > 1]
    assert fmean(away) > 0.9
    assert any(each.reason.startswith("tokens are made elsewhere: ") for each in outcome.migrations)


@pytest.mark.parametrize(("between_steps", "ratio"), [(False, 0.6), (True, 0.53)])
def test_tokens_come_in_time_where_prompts_are_not_in_the_way(between_steps: bool, ratio: float) -> None:
    """Also where instances read their mail between two steps, as live: an order that waited for a report would come
    some of these long steps after the first token (0.57)."""

    def longest_gap_s(roles: RolesConfig) -> float:
        gaps = sorted(request.largest_gap_s for request in run(roles, between_steps=between_steps).requests)
        return gaps[len(gaps) // 2]

    assert longest_gap_s(RolesConfig(prefill_instances=2, decode_instances=2)) < ratio * longest_gap_s(RolesConfig())


def test_instances_for_tokens_take_prompts_as_far_as_the_target_leaves_time() -> None:
    outcome = run(RolesConfig(prefill_instances=1, decode_instances=3, tpot_target_ms=60))
    elsewhere = [request for request in outcome.requests if request.instances[0] != instance_name(0)]
    assert 0 < len(elsewhere) < len(outcome.requests)


@pytest.fixture
def roles_at_the_end(monkeypatch: pytest.MonkeyPatch) -> dict[str, Role]:
    seen: dict[str, Role] = {}
    report = SimInstance.on_changed

    def on_changed(self: SimInstance) -> None:
        seen[self.id] = self.account.role
        report(self)

    monkeypatch.setattr(SimInstance, "on_changed", on_changed)
    return seen


def test_successor_of_a_dead_instance_has_its_role(roles_at_the_end: dict[str, Role]) -> None:
    roles = RolesConfig(prefill_instances=2, decode_instances=1)
    run(roles, "azure-conv?rate=12&requests=600&seed=3", ("crash@2:1",))
    assert roles_at_the_end == {
        instance_name(0): Role.PREFILL,
        instance_name(1): Role.PREFILL,
        instance_name(2): Role.DECODE,
        instance_name(3): Role.MIXED,
        instance_name(4): Role.PREFILL,
    }


@pytest.mark.parametrize(
    ("roles", "sentence"),
    [
        ({"prefill_instances": 4}, "--prefill-instances 4 is too many for --instances 4: others are to make tokens."),
        ({"prefill_instances": 2, "decode_instances": 3}, "--prefill-instances 2 --decode-instances 3 is too many for"),
        (
            {"decode_instances": 1},
            "--decode-instances is for requests that leave --prefill-instances, and there are none.",
        ),
        ({"prefill_instances": -1}, "--prefill-instances and --decode-instances must not be negative."),
    ],
)
def test_somebody_is_left_to_make_tokens(roles: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        RunSetup(instances=4, profile=A100, policy=PolicyConfig(roles=RolesConfig(**roles)))
    assert str(error.value).startswith(sentence)


def test_adaptive_roles_change_by_themselves_and_say_why() -> None:
    entries: list[JournalEntry] = []
    roles = RolesConfig(roles="adaptive", ttft_target_ms=1000, tpot_target_ms=30)
    setup = RunSetup(instances=4, profile=A100, policy=PolicyConfig(roles=roles))
    requests = sim_requests(load_workload("azure-conv?rate=20&requests=900&seed=3"))
    outcome = simulate(requests, setup, listener=entries.append)
    assert_all_served(outcome)
    given = [entry for entry in entries if isinstance(entry.what, RoleNoted)]
    assert given
    assert all("for prompts" in entry.why for entry in given)


def test_advice_changes_nothing() -> None:
    def finishes(roles: RolesConfig) -> tuple[list[float], int]:
        entries: list[JournalEntry] = []
        setup = RunSetup(instances=4, profile=A100, policy=PolicyConfig(roles=roles))
        requests = sim_requests(load_workload("azure-conv?rate=20&requests=900&seed=3"))
        simulate(requests, setup, listener=entries.append)
        advised = [entry for entry in entries if isinstance(entry.what, RoleNoted) and not entry.what.carried_out]
        return [request.finish_s for request in requests], len(advised)

    advised, said = finishes(RolesConfig(roles="advise", ttft_target_ms=1000, tpot_target_ms=30))
    silent, nothing = finishes(RolesConfig(tpot_target_ms=30))
    assert advised == silent
    assert (said > 0, nothing) == (True, 0)


@pytest.mark.parametrize(
    ("roles", "sentence"),
    [
        ({"roles": "adaptive"}, "--roles adaptive needs --ttft-target-ms and --tpot-target-ms."),
        ({"roles": "advise", "tpot_target_ms": 30}, "--roles advise needs --ttft-target-ms and --tpot-target-ms."),
        ({"ttft_target_ms": 30}, "--ttft-target-ms is for --roles adaptive or advise."),
        ({"roles": "dynamic"}, "--roles must be static, adaptive or advise, not dynamic."),
        (
            {"roles": "adaptive", "ttft_target_ms": 1, "tpot_target_ms": 1, "prefill_instances": 1},
            "--prefill-instances is for --roles static or advise: adaptive ones are the scheduler's to say.",
        ),
    ],
)
def test_roles_that_adapt_need_to_know_to_what(roles: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        RolesConfig(**roles)
    assert str(error.value) == sentence
