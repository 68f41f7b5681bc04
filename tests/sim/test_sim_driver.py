"""Whole runs: the live scheduler, dispatcher and llumlets on simulated instances, with and without faults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sim_cluster import assert_all_served

from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig, ScalingConfig
from llumnix.control.latest_steps import FORGOTTEN_S
from llumnix.control.orders import MoveCause, StayCause
from llumnix.control.scheduler_events import DrainRequested, DrainWithdrawn
from llumnix.errors import UsageError
from llumnix.policy.catalogue import POLICIES
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.report.records import MOVED, MigrationRecord
from llumnix.sim import driver
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.faults import Fault, FaultKind, draw_victims, parse_fault
from llumnix.sim.instance import SimInstance
from llumnix.sim.outcome import InstanceLife, Outcome
from llumnix.sim.profiles.cost_model import Profile
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import PlannedMove, RunSetup, instance_name
from llumnix.workload.workload import load_workload

A10 = load_profile("a10-llama-7b")
CROWDED = "L-L?rate=0.8&requests=300&seed=1"


def run(workload: str = CROWDED, **setup: Any) -> Outcome:
    options: dict[str, Any] = {"instances": 4, "profile": A10, "policy": PolicyConfig(policy="llumnix")} | setup
    return simulate(sim_requests(load_workload(workload)), RunSetup(**options))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["vllm-0.1", "vllm-1"])
def test_every_request_gets_every_token_and_every_block_comes_back(
    policy: str, kind: str, instances: list[SimInstance]
) -> None:
    outcome = run(profile=A10.with_scheduler(kind=kind), policy=PolicyConfig(policy=policy))
    assert_all_served(outcome)
    moved = sum(row.outcome == MOVED for row in outcome.migrations)
    assert sum(request.migrations for request in outcome.requests) == moved
    assert (moved > 0) == (POLICIES[policy].pairing is not None)
    for instance in instances:
        held = sum(request.blocks for request in instance.engine.waiting)
        assert (instance.engine.running, held) == (0, 0)
        assert instance.engine.pool.total - instance.engine.pool.free == instance.body.arrivals.reserved_blocks


def run_one(request: SimRequest, **setup: Any) -> Outcome:
    return simulate([request], RunSetup(instances=2, profile=A10, place_on=0, **setup))


def test_migration_helps_where_it_should() -> None:
    with_it, without = run(), run(policy=PolicyConfig(migration=False))
    lost_s, lost_without_s = (sum(request.lost_s for request in one.requests) for one in (with_it, without))
    assert lost_s < lost_without_s / 2
    assert not without.migrations


def test_instances_that_look_after_each_step_tell_more_and_less_where_only_what_matters_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[InstanceSnapshot] = []

    class Counting(driver._Run):
        def _take_report(self, snapshot: InstanceSnapshot) -> None:
            told.append(snapshot)
            super()._take_report(snapshot)

    def reports(looks_each_step: bool, quiet_s: float) -> int:
        told.clear()
        cluster = ClusterConfig(quiet_report_interval_s=quiet_s)
        run("S-S?rate=2&requests=50&seed=1", cluster=cluster, looks_each_step=looks_each_step)
        return len(told)

    monkeypatch.setattr(driver, "_Run", Counting)
    usual, each_step, quiet = reports(False, 0.1), reports(True, 0.0), reports(True, 0.1)
    assert reports(False, 0.0) == usual
    assert usual < quiet < each_step / 2


def test_two_runs_are_equal() -> None:
    first, second = run(), run()
    assert first.records() == second.records()
    assert first.events == second.events


def test_a_move_by_hand_goes_where_it_was_told_and_decoding_goes_on_meanwhile() -> None:
    request = SimRequest(0, 0.0, 4000, 200)
    outcome = simulate(
        [request],
        RunSetup(instances=2, profile=A10, place_on=0, moves=(PlannedMove(3.0, "r0", 0, 1),)),
    )
    (move,) = outcome.migrations
    assert move.outcome == MOVED
    assert request.instances == ["i0000", "i0001"]
    assert move.stages >= 2
    assert move.bytes >= 4000 // 16 * A10.memory.block_bytes
    copying_s = A10.copy_s(250)
    assert move.copy_ms is not None
    assert move.copy_ms / 1e3 > copying_s
    assert request.largest_gap_s < 0.3 < copying_s
    assert move.downtime_ms is not None
    assert 0 < move.downtime_ms < 100


def test_a_copy_slows_both_sides_down() -> None:
    def finish(moves: tuple[PlannedMove, ...]) -> list[float]:
        requests = [SimRequest(0, 0.0, 4000, 400), SimRequest(1, 0.5, 64, 400)]
        slow = replace(A10, migration=replace(A10.migration, slowdown=0.5))
        simulate(requests, RunSetup(instances=2, profile=slow, place_on=0, moves=moves))
        return [request.finish_s for request in requests]

    still, moved = finish(()), finish((PlannedMove(3.0, "r0", 0, 1),))
    # The one that stays has the instance for itself afterwards, but pays for the copy before.
    assert moved[0] > still[0] - 10
    assert moved != still


def test_a_move_to_a_full_instance_is_refused_and_the_request_stays() -> None:
    big = [SimRequest(0, 0.0, 7000, 300), SimRequest(1, 0.0, 7000, 300)]
    setup = RunSetup(
        instances=2,
        profile=A10,
        policy=PolicyConfig(policy="round-robin"),
        moves=(PlannedMove(8.0, "r0", 0, 1),),
    )
    outcome = simulate(big, setup)
    stayed = outcome.migrations[0]
    assert (stayed.cause, stayed.reason, stayed.stayed_by) == (MoveCause.BY_HAND, "asked for", StayCause.REFUSED)
    assert stayed.outcome == "stayed: refused: not enough free blocks"
    assert [request.instances for request in big] == [["i0000"], ["i0001"]]
    assert_all_served(outcome)


def test_a_crash_costs_time_and_no_token() -> None:
    fault = Fault(FaultKind.CRASH, 120.0, instance=1)
    outcome = run(faults=(fault,))
    assert_all_served(outcome)
    replayed = [request for request in outcome.requests if request.replays]
    assert replayed
    assert all(len(request.instances) > 1 for request in replayed)
    assert len(outcome.lives) == 5, "a new instance took the dead one's place"


@pytest.mark.parametrize("at_s", [60.0, 90.0, 120.0, 150.0, 180.0, 210.0, 240.0])
def test_a_crash_at_any_moment_of_a_busy_run_loses_nothing(at_s: float) -> None:
    faults = tuple(Fault(FaultKind.CRASH, at_s + 0.37 * number, instance=number) for number in range(3))
    assert_all_served(run("S-S?rate=10&requests=2500&seed=2", faults=faults))


def test_a_short_stall_is_waited_out_and_a_long_one_is_a_loss() -> None:
    short = run(faults=(Fault(FaultKind.STALL, 100.0, 3.0, instance=0),))
    long = run(faults=(Fault(FaultKind.STALL, 100.0, 60.0, instance=0),))
    assert_all_served(short)
    assert_all_served(long)
    assert not any(request.replays for request in short.requests)
    assert any(request.replays for request in long.requests)


def test_an_engine_that_hangs_while_its_process_beats_is_lost_too() -> None:
    limit = ClusterConfig(step_timeout_s=20.0)
    hang = Fault(FaultKind.HANG, 100.0, 400.0, instance=0)
    outcome = run(faults=(hang,), cluster=limit)
    assert_all_served(outcome)
    lost_s = outcome.lives[0].ended_s
    assert lost_s is not None
    assert 119.5 <= lost_s < 122.0
    assert any(request.replays for request in outcome.requests)
    assert len(outcome.lives) == 5
    patient = run(faults=(hang,), cluster=ClusterConfig(step_timeout_s=1000.0))
    assert_all_served(patient)
    assert patient.lives[0].ended_s is None


@pytest.mark.parametrize(("policy", "most"), [("llumnix", 2), ("llumnix-paper", 10)])
def test_an_engine_that_hangs_gets_no_new_requests_where_others_can_take_them(policy: str, most: int) -> None:
    hang = Fault(FaultKind.HANG, 100.0, 400.0, instance=0)
    outcome = run("M-M?rate=1&requests=250&seed=2", faults=(hang,), policy=PolicyConfig(policy=policy))
    assert_all_served(outcome)
    sent = [one for one in outcome.requests if 100.0 < one.arrival_s < 200.0 and one.instances[0] == "i0000"]
    assert (len(sent) > 2, len(sent) <= most) == (policy == "llumnix-paper", True), len(sent)


def test_an_engine_that_hangs_with_nothing_to_do_is_lost_once_it_is_sent_something() -> None:
    requests = [SimRequest(0, 60.0, 100, 10), SimRequest(1, 60.0, 100, 400)]
    hang = Fault(FaultKind.HANG, 10.0, 1000.0, instance=0)
    outcome = simulate(requests, RunSetup(instances=2, profile=A10, faults=(hang,), restart_instances=False))
    assert_all_served(outcome)
    limit_s = ClusterConfig().step_timeout_s
    lost_s = outcome.lives[0].ended_s
    assert lost_s is not None
    assert 60.0 + limit_s <= lost_s < 62.0 + limit_s
    assert [request.instances for request in requests] == [["i0000", "i0001"], ["i0001"]]


def test_a_stalled_instance_answers_nobody_until_it_goes_on() -> None:
    request = SimRequest(0, 0.0, 100, 400)
    stall = Fault(FaultKind.STALL, 1.0, 4.0, instance=1)
    move = PlannedMove(2.0, "r0", 0, 1)
    config = MigrationConfig(prepare_timeout_s=1.0)
    (too_long,) = run_one(request, faults=(stall,), moves=(move,), migration=config).migrations
    assert too_long.outcome != MOVED
    assert 3.0 <= too_long.at_s < 3.1
    request = SimRequest(0, 0.0, 100, 400)
    (waited,) = run_one(request, faults=(stall,), moves=(move,), migration=MigrationConfig()).migrations
    assert waited.outcome == MOVED
    assert 5.0 <= waited.at_s < 5.2


def test_a_newcomer_is_greeted_by_the_front_end_before_it_is_sent_anything() -> None:
    """A message takes 0.2 s here: two for the greeting, then the request itself."""
    faults = (Fault(FaultKind.CRASH, 5.0, instance=0), Fault(FaultKind.SLOW_LINK, 6.0, 60.0, factor=1000.0))
    message_s, serves_s = 1000 * A10.host.message_ms / 1e3, 5.0 + A10.host.start_up_s
    greeted_s = serves_s + 2 * message_s
    arrivals_s = (4.99, greeted_s - 0.1, greeted_s + 0.1)  # the first lost its instance before it said anything
    before, early, after = requests = [SimRequest(index, at_s, 16, 2) for index, at_s in enumerate(arrivals_s)]
    simulate(requests, RunSetup(instances=1, profile=A10, faults=faults))
    assert before.first_token_s - serves_s > 3 * message_s
    assert early.declined is not None
    assert after.first_token_s - after.arrival_s < 2 * message_s


def test_a_link_so_slow_that_commits_are_doubted_doubles_no_request() -> None:
    outcome = run(faults=(Fault(FaultKind.SLOW_LINK, 20.0, 2000.0, factor=150.0),))
    assert_all_served(outcome)
    assert any(row.outcome != MOVED for row in outcome.migrations)


def test_scaling_follows_the_load_and_empties_what_it_stops() -> None:
    scaling = ScalingConfig(scale_out_freeness=10, scale_in_freeness=60, min_instances=1, max_instances=8)
    outcome = run("L-L?rate=0.8&requests=400&seed=3", instances=2, scaling=scaling)
    assert_all_served(outcome)
    assert len(outcome.lives) > 2
    assert any(life.ended_s is not None for life in outcome.lives)
    assert 1 < outcome.mean_instances < 8
    assert not any(request.replays for request in outcome.requests)


def test_high_priority_is_faster_under_the_policy_that_knows_it() -> None:
    def ttft(policy: str) -> float:
        outcome = run("S-S?rate=7&cv=4&high=0.1&requests=2000&seed=1", policy=PolicyConfig(policy=policy))
        high = [r.first_token_s - r.arrival_s for r in outcome.requests if r.priority < 0]
        return sum(high) / len(high)

    assert ttft("llumnix") < 0.8 * ttft("llumnix-base")


def test_a_shared_prefix_is_computed_once() -> None:
    def ttft(unit_tokens: int) -> float:
        rows = [SimRequest(i, 2.0 * i, 4096, 20, hashes=tuple(range(8))) for i in range(20)]
        profile = A10.with_scheduler(kind="vllm-1", max_num_batched_tokens=8192)
        simulate(rows, RunSetup(instances=1, profile=profile, unit_tokens=unit_tokens))
        return rows[-1].first_token_s - rows[-1].arrival_s

    assert ttft(512) < 0.3 * ttft(0)


def test_a_request_that_no_instance_can_hold_is_named() -> None:
    with pytest.raises(UsageError, match=r"Request r7 has 13000 \+ 5 tokens"):
        simulate([SimRequest(7, 0.0, 13000, 5)], RunSetup(instances=1, profile=A10))


def test_nothing_to_do_is_done_at_once() -> None:
    assert simulate([], RunSetup(instances=3, profile=A10)).end_s == 0


def test_instances_are_averaged_over_time() -> None:
    outcome = Outcome(requests=[], end_s=100.0)
    outcome.lives = [InstanceLife("a", 0.0), InstanceLife("b", 50.0, 75.0)]
    assert outcome.mean_instances == 1.25


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("crash@60", Fault(FaultKind.CRASH, 60.0)),
        ("crash@6.5:3", Fault(FaultKind.CRASH, 6.5, instance=3)),
        ("stall@60+5:3", Fault(FaultKind.STALL, 60.0, 5.0, 3)),
        ("hang@60+300:3", Fault(FaultKind.HANG, 60.0, 300.0, 3)),
        ("slow@60+30x2.5", Fault(FaultKind.SLOW, 60.0, 30.0, factor=2.5)),
        ("slow@60+30x2:3", Fault(FaultKind.SLOW, 60.0, 30.0, 3, factor=2.0)),
        ("slow-link@60+30:10", Fault(FaultKind.SLOW_LINK, 60.0, 30.0, factor=10.0)),
    ],
)
def test_faults_are_read_as_written(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    "text",
    [
        *(
            "crash",
            "crash@",
            "crash@1+2",
            "stall@3",
            "slow-link@1+2",
            "melt@1",
            "crash@1:1.5",
            "crash@1x2",
            "hang@1+2x2",
        ),
        *("slow@1+2", "slow@1x2", "slow@1+2x0.5", "slow@1+2x", "slow@1+2x2:0.5", "slow@1+2x..", "slow-link@1+2x2:2"),
    ],
)
def test_a_fault_that_makes_no_sense_gets_one_sentence(text: str) -> None:
    with pytest.raises(UsageError, match=r"crash@60|slow-link|slow@60"):
        parse_fault(text)


def test_victims_are_drawn_from_the_seed_and_named_ones_must_exist() -> None:
    faults = (Fault(FaultKind.CRASH, 2.0), Fault(FaultKind.CRASH, 1.0))
    assert draw_victims(faults, 8, seed=5) == draw_victims(faults, 8, seed=5)
    assert [fault.at_s for fault in draw_victims(faults, 8, seed=5)] == [1.0, 2.0]
    with pytest.raises(UsageError, match="no instance 9"):
        draw_victims((Fault(FaultKind.CRASH, 1.0, instance=9),), 8, seed=0)


def test_an_unbalanced_llumlet_config_still_ends() -> None:
    outcome = run(migration=MigrationConfig(max_stages=1, last_stage_max_blocks=0))
    assert_all_served(outcome)


def test_an_instance_that_runs_out_of_blocks_gives_a_request_away_in_time(
    instances: list[SimInstance],
) -> None:
    ours = run()
    assert any(row.cause is MoveCause.RELIEF for row in ours.migrations if row.outcome == MOVED)
    assert sum(instance.account.preemptions_avoided for instance in instances) > 0
    assert sum(instance.account.recompute_tokens_saved for instance in instances) > 0


WITH_ROOM = "poisson:rate=2,prompt=exp100,output=exp600,requests=200"
A_SLOW_ONE = (Fault(FaultKind.SLOW, 20.0, 60.0, 1, factor=3.0),)


def test_requests_leave_an_engine_that_has_become_slow_and_new_ones_avoid_it() -> None:
    ours = run(WITH_ROOM, faults=A_SLOW_ONE)
    stays = run(WITH_ROOM, faults=A_SLOW_ONE, policy=PolicyConfig(pace_gain=0.0))
    left = [row for row in ours.migrations if row.cause is MoveCause.PACE]
    assert left
    assert {row.source for row in left if row.at_s < 80} == {instance_name(1)}
    assert min(row.at_s for row in left) < 25, "it is noticed within seconds"
    assert not [row for row in stays.migrations if row.cause is MoveCause.PACE]
    slowest, slowest_of_stays = (sorted(map(_token_s, one.requests))[-3] for one in (ours, stays))
    assert slowest < 0.85 * slowest_of_stays
    assert_all_served(ours)


def test_engine_that_was_slow_is_used_again() -> None:
    faults = (Fault(FaultKind.SLOW, 5.0, 15.0, 1, factor=3.0),)
    outcome = run(WITH_ROOM.replace("requests=200", "requests=500"), faults=faults)
    later = [request for request in outcome.requests if request.arrival_s > 20 + FORGOTTEN_S + 10]
    assert any(instance_name(1) in request.instances for request in later)


def test_nobody_leaves_for_pace_where_all_are_alike() -> None:
    assert not [row for row in run(WITH_ROOM).migrations if row.cause is MoveCause.PACE]


def _token_s(request: SimRequest) -> float:
    return (request.finish_s - request.first_token_s) / max(1, request.output_tokens - 1)


def test_a_piece_of_memory_is_traded_for_the_first_of_a_queue() -> None:
    moved = [row for row in run().migrations if row.outcome == MOVED]
    assert any(row.cause is MoveCause.ROOM for row in moved)


def test_instance_that_was_emptied_and_kept_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody plans that in a simulation; but what the scheduler orders is carried out there, too."""
    name = instance_name(1)
    seen: list[Any] = []

    class Returning(driver._Run):
        def run(self) -> Outcome:
            self.kernel.after(
                60.0, lambda: self._schedule(DrainRequested(at=self.kernel.now, instance=name, keep=True))
            )
            self.kernel.after(120.0, lambda: seen.append(self._instances[name].engine.running))
            self.kernel.after(121.0, lambda: self._schedule(DrainWithdrawn(at=self.kernel.now, instance=name)))
            self.kernel.after(180.0, lambda: seen.append(self._instances[name].engine.running))
            return super().run()

    monkeypatch.setattr(driver, "_Run", Returning)
    assert_all_served(run())
    assert seen[0] == 0
    assert seen[1] > 0


HYBRID = replace(A10, memory=replace(A10.memory, state_blocks=5))


@pytest.mark.parametrize("kind", ["vllm-0.1", "vllm-1"])
def test_states_of_hybrids_are_held_moved_and_given_back(kind: str, instances: list[SimInstance]) -> None:
    outcome = run(profile=HYBRID.with_scheduler(kind=kind), migration=MigrationConfig())
    assert_all_served(outcome)
    assert any(row.outcome == MOVED for row in outcome.migrations)
    for instance in instances:
        assert instance.engine.pool.total - instance.engine.pool.free == instance.body.arrivals.reserved_blocks


def test_a_hybrids_move_copies_its_state_once_and_frees_it() -> None:
    def move(profile: Profile) -> MigrationRecord:
        setup = RunSetup(instances=2, profile=profile, place_on=0, moves=(PlannedMove(3.0, "r0", 0, 1),))
        return simulate([SimRequest(0, 0.0, 4000, 200)], setup).migrations[0]

    plain, hybrid = move(A10), move(HYBRID)
    assert hybrid.stages == plain.stages
    assert hybrid.bytes - plain.bytes == 5 * A10.memory.block_bytes
