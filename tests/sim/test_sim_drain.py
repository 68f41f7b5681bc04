"""Simulated instances that are to be empty: past the deadline, as live; without one, as in the paper's experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sim_cluster import assert_all_served

from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig
from llumnix.control.scheduler_events import DrainOutcome
from llumnix.recording import RECORD, differences
from llumnix.sim.driver import simulate
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.faults import Fault, FaultKind
from llumnix.sim.instance import SimInstance
from llumnix.sim.outcome import Outcome
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import PlannedDrain, PlannedMove, RunSetup

A10 = load_profile("a10-llama-7b")
ORDERED_S = 5.0
DEADLINE_S = ORDERED_S + ClusterConfig().drain_timeout_s
WITHOUT_MOVES = PolicyConfig(policy="infaas++")


def drained(requests: list[SimRequest], **setup: Any) -> Outcome:
    """What came of it that the first instance was ordered to drain."""
    usual: dict[str, Any] = {"instances": 2, "profile": A10, "policy": WITHOUT_MOVES}
    drains = (PlannedDrain(ORDERED_S, 0),)
    outcome = simulate(requests, RunSetup(**{**usual, "drains": drains, **setup}))
    assert_all_served(outcome)
    return outcome


def long_ones(count: int = 6) -> list[SimRequest]:
    """Each takes more than a minute."""
    return [SimRequest(index, 0.1 * index, 200, 3000) for index in range(count)]


def ended_s(outcome: Outcome) -> float:
    """When the first instance was gone."""
    life = outcome.lives[0]
    assert life.ended_s is not None
    return life.ended_s


def test_a_drain_past_its_deadline_is_replayed_as_live() -> None:
    requests = long_ones()
    outcome = drained(requests)
    there = [request for request in requests if request.instances[0] == "i0000"]
    assert [request.instances for request in there] == [["i0000", "i0001"]] * 3
    assert [request.replays for request in requests] == [int(request in there) for request in requests]
    assert DEADLINE_S < ended_s(outcome) < DEADLINE_S + 2.0
    (report,) = outcome.drains
    assert (report.outcome, report.requests, report.replayed, report.left) == (DrainOutcome.EMPTY, 3, 3, 0)


def test_what_is_driven_out_goes_on_with_the_tokens_it_has() -> None:
    driven, stayed = requests = long_ones(2)
    drained(requests)
    assert driven.replays == 1
    # To compute the tokens so far takes a second as a prompt, half a minute as output.
    assert 0.0 < driven.largest_gap_s < 2.0
    assert driven.finish_s < stayed.finish_s + 10.0


def test_the_deadline_is_the_configured_one() -> None:
    outcome = drained(long_ones(), cluster=ClusterConfig(drain_timeout_s=4.0))
    assert ORDERED_S + 4.0 < ended_s(outcome) < ORDERED_S + 6.0


def test_queued_and_half_computed_requests_are_driven_out_too() -> None:
    profile = A10.with_scheduler(kind="vllm-1", max_num_batched_tokens=512, max_num_seqs=4)
    requests = [SimRequest(index, 0.4 * index, 3000, 900) for index in range(12)]
    outcome = drained(requests, profile=profile, cluster=ClusterConfig(drain_timeout_s=1.0))
    assert outcome.drains[0].replayed == sum(request.replays for request in requests) == 6
    assert ended_s(outcome) < ORDERED_S + 3.0


def test_nobody_is_driven_out_of_the_last_instance() -> None:
    requests = long_ones(2)
    outcome = drained(requests, instances=1)
    assert [request.instances for request in requests] == [["i0000"]] * 2
    assert outcome.end_s > DEADLINE_S


def test_in_the_papers_body_a_drain_waits_until_all_have_ended() -> None:
    requests = [*long_ones(), SimRequest(6, 30.0, 200, 3600)]
    outcome = drained(requests, paper_body=True)
    there = [request for request in requests if request.instances[0] == "i0000"]
    assert not any(request.replays for request in requests)
    assert ended_s(outcome) >= max(request.finish_s for request in there) > DEADLINE_S + 60.0
    assert (outcome.drains[0].replayed, outcome.drains[0].finished) == (0, len(there))


@pytest.mark.parametrize("early_s", [0.01, 0.3, 0.6, 0.9, 1.2, 1.5])
def test_a_request_on_its_way_out_when_the_deadline_comes_is_neither_lost_nor_doubled(
    early_s: float, instances: list[SimInstance]
) -> None:
    requests = [SimRequest(0, 0.0, 5000, 3000), *(SimRequest(index, 0.1 * index, 200, 3000) for index in (1, 2))]
    outcome = drained(requests, moves=(PlannedMove(DEADLINE_S - early_s, "r0", 0, 1),))
    assert len(requests[0].instances) == 2
    assert ended_s(outcome) < DEADLINE_S + 3.0
    assert instances[0].engine.pool.free == instances[0].engine.pool.total
    assert not instances[1].body.arrivals.reserved_blocks


def test_a_drain_over_slow_links_loses_nothing(instances: list[SimInstance]) -> None:
    requests = [SimRequest(index, 0.1 * index, 900, 1500) for index in range(24)]
    slow = (Fault(FaultKind.SLOW_LINK, ORDERED_S, 60.0, factor=200.0),)
    drained(requests, instances=3, policy=PolicyConfig(), faults=slow, cluster=ClusterConfig(drain_timeout_s=3.0))
    for instance in instances:
        assert instance.engine.pool.free == instance.engine.pool.total


@pytest.mark.parametrize("paper_body", [False, True])
def test_such_a_drain_can_be_replayed_from_its_recording(
    paper_body: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RECORD, str(tmp_path))
    drained(long_ones(), paper_body=paper_body)
    assert differences(tmp_path / "scheduler.jsonl") == []


def test_those_that_would_stay_longest_leave_a_draining_instance_first() -> None:
    """Live, an instance knows what each request may still make; in the paper's artifact nobody does."""
    config = MigrationConfig(max_outgoing=1, max_incoming=1)
    for paper_body, order in ((False, ["r1", "r2", "r0"]), (True, ["r0", "r1", "r2"])):
        requests = [SimRequest(index, 0.1 * index, 200, tokens) for index, tokens in enumerate((500, 2500, 1500))]
        without = PolicyConfig(migration=False)
        outcome = drained(requests, policy=without, migration=config, place_on=0, paper_body=paper_body)
        assert [move.request_id for move in outcome.migrations] == order
