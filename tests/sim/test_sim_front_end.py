"""Simulated requests whose instances die, drain or hear of each other late: the front end says how they go on."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from sim_cluster import assert_all_served

from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig
from llumnix.recording import RECORD, differences
from llumnix.report.summary import summarize
from llumnix.sim.driver import simulate
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.faults import Fault, FaultKind
from llumnix.sim.instance import SimInstance
from llumnix.sim.outcome import Outcome
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import PlannedDrain, PlannedMove, RunSetup

A10 = load_profile("a10-llama-7b")
FAR = replace(A10, host=replace(A10.host, message_ms=200.0))
"""Where messages take longer than a death to be noticed."""
ADOPTED_S, MOVED_S = 6.09, 6.19
"""When the target of `moved_under` has the request, and when the source knows."""


def moved_under(*faults: Fault, drains: tuple[PlannedDrain, ...] = ()) -> tuple[SimRequest, Outcome]:
    """A request moves from the first instance to the second, from 5 s to 6.4 s."""
    request = SimRequest(0, 0.0, 60, 900)
    setup = RunSetup(
        instances=2,
        profile=FAR,
        policy=PolicyConfig(policy="round-robin"),
        cluster=ClusterConfig(drain_timeout_s=1.0),
        moves=(PlannedMove(5.0, "r0", 0, 1),),
        drains=drains,
        faults=faults,
    )
    outcome = simulate([request], setup)
    assert_all_served(outcome)
    return request, outcome


def crash(at_s: float, instance: int) -> Fault:
    return Fault(FaultKind.CRASH, at_s, instance=instance)


def assert_no_block_is_lost(instances: list[SimInstance]) -> None:
    """All are free, or reserved for a source that died while it was asking."""
    for instance in instances:
        if instance.account.alive:
            pool = instance.engine.pool
            assert pool.free + instance.body.arrivals.reserved_blocks == pool.total, instance.id


def test_target_of_a_move_goes_on_when_the_source_dies_after_it_adopted() -> None:
    request, _ = moved_under(crash(ADOPTED_S + 0.05, 0))
    assert (request.instances, request.replays) == (["i0000", "i0001"], 0)


def test_request_begins_anew_when_the_target_dies_that_has_just_taken_it(instances: list[SimInstance]) -> None:
    """Its source has not been told yet, and frees it."""
    request, _ = moved_under(crash(ADOPTED_S + 0.05, 1))
    assert (request.instances[:2], request.replays) == (["i0000", "i0001"], 1)
    assert_no_block_is_lost(instances)


def test_request_begins_anew_when_its_owner_dies_and_nobody_else_has_it() -> None:
    before, _ = moved_under(crash(ADOPTED_S - 0.5, 0))
    after, _ = moved_under(crash(MOVED_S + 1.0, 1))
    assert (before.replays, after.replays) == (1, 1)
    assert before.id == after.id == "r0~1"


@pytest.mark.parametrize("dies", [0, 1])
def test_an_end_of_a_move_dies_at_any_moment(dies: int, instances: list[SimInstance]) -> None:
    for number in range(40):
        request, _ = moved_under(crash(5.01 + 0.05 * number, dies))
        assert len(request.instances) <= 3
    assert_no_block_is_lost(instances)


@pytest.mark.parametrize("drained", [0, 1])
def test_an_end_of_a_move_is_driven_out_at_any_moment(drained: int, instances: list[SimInstance]) -> None:
    """Whichever of the two has the request then, it begins anew at the other, or stays where it has moved to."""
    for number in range(40):
        ordered_s = 3.5 + 0.07 * number
        request, outcome = moved_under(drains=(PlannedDrain(ordered_s, drained),))
        assert request.instances[-1] == ("i0001", "i0000")[drained]
        assert outcome.drains[0].left == 0
    assert_no_block_is_lost(instances)


def test_client_is_not_told_of_replays_in_its_id() -> None:
    request, outcome = moved_under(crash(5.1, 0))
    assert request.id == "r0~1"
    assert [record.id for record in outcome.records().requests] == ["r0"]


def test_request_whose_instances_die_before_it_says_anything_is_given_up() -> None:
    """As live: it may be what ends instances."""
    request = SimRequest(0, 0.0, 6000, 50)
    deaths = tuple(crash(0.3 + 0.4 * number, number) for number in range(5))
    far_slower = replace(A10, prefill=replace(A10.prefill, base_ms=60_000.0))
    outcome = simulate([request], RunSetup(instances=8, profile=far_slower, faults=deaths))
    (record,) = outcome.records().requests
    assert (request.replays, record.error) == (3, "not finished")


def test_while_no_instance_is_left_new_requests_are_refused_and_running_ones_wait() -> None:
    """As live."""
    requests = [SimRequest(index, at_s, 60, 200) for index, at_s in enumerate((0.0, 2.0, 9.0))]
    outcome = simulate(requests, RunSetup(instances=1, profile=A10, faults=(crash(1.0, 0),)))
    before, meanwhile, after = outcome.records().requests
    assert (meanwhile.error, meanwhile.output_tokens, meanwhile.ttft_s) == ("refused with 503", 0, None)
    for served in (before, after):
        assert (served.error, served.output_tokens) == ("", 200)
    assert before.instances == ("i0000", "i0001")
    assert summarize(outcome.records()).errors == {"refused with 503": 1}


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_no_token_is_lost_and_the_front_end_answers_its_recording_alike(
    seed: int, instances: list[SimInstance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crashes, stalls, drains and moves in a small, busy cluster whose messages are slow."""
    monkeypatch.setenv(RECORD, str(tmp_path))
    rng = random.Random(seed)
    requests = [SimRequest(n, 0.12 * n, rng.randint(10, 900), rng.randint(1, 400)) for n in range(120)]
    kinds = [FaultKind.CRASH, FaultKind.CRASH, FaultKind.STALL, FaultKind.HANG]
    setup = RunSetup(
        instances=5,
        profile=rng.choice((A10, FAR)),
        policy=PolicyConfig(policy="llumnix"),
        migration=MigrationConfig(max_outgoing=4, max_incoming=4),
        cluster=ClusterConfig(drain_timeout_s=1.0, step_timeout_s=5.0),
        faults=tuple(Fault(rng.choice(kinds), rng.uniform(1, 20), 3.0, instance=rng.randrange(5)) for _ in range(5)),
        drains=tuple(PlannedDrain(rng.uniform(3, 20), rng.randrange(1, 5)) for _ in range(2)),
    )
    outcome = simulate(requests, setup)
    assert_all_served(outcome)
    assert_no_block_is_lost(instances)
    assert any(request.replays for request in requests)
    for recording in tmp_path.iterdir():
        assert differences(recording) == [], recording.name
