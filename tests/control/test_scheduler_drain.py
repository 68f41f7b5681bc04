"""Draining an instance: orders, moves, the end, and what can go wrong."""

from __future__ import annotations

import pytest
from test_scheduler import Body, kinds, moves

from llumnix.config import ClusterConfig, MigrationConfig
from llumnix.control.drain import DrainLimits, drain_limits
from llumnix.control.orders import MoveOrder, MoveOutcome
from llumnix.control.scheduler_events import (
    DrainFinished,
    DrainOutcome,
    InstanceStarted,
    MigrationEnded,
    MoveRequest,
    RequestsReplayed,
    RoundDue,
    SchedulerCommand,
    SetDraining,
    StopInstance,
)
from llumnix.types import InstanceId, InstanceState

LEAVING = {"state": InstanceState.DRAINING}
A = InstanceId("a")


def body(running: int = 10, **knobs: object) -> Body:
    made = Body(**knobs)  # type: ignore[arg-type]
    made.report("a", free_blocks=1000 - 20 * running, running=running, smallest_running_blocks=20)
    made.report("b", free_blocks=900, running=5)
    made.report("c", free_blocks=800, running=5)
    return made


def test_drain_starts_at_once_with_several_moves() -> None:
    order, *rest = body().drain("a")
    assert order == SetDraining(
        instance=A, keep=False, reason="drain asked for: 10 running, 0 waiting; it stops when empty"
    )
    assert moves(rest) == [("a", "b", 2), ("a", "c", 2)]
    assert isinstance(rest[0], MoveRequest)
    assert rest[0].order.reason == "a drains, 10 left; freeness 180, room for 900 blocks"


def test_each_answer_is_followed_by_the_next_move() -> None:
    b = body()
    b.drain("a")
    assert moves(b.end("a", "b")) == [("a", "b", 1)]


def test_no_more_moves_than_requests() -> None:
    b = body(running=1)
    assert moves(b.drain("a")) == [("a", "b", 1)]
    assert moves(b.wait(2.0)) == []
    assert b.end("a", "b") == []
    assert moves(b.wait(2.0)) == []


def test_empty_instance_is_watched_and_then_stopped_once() -> None:
    b = body(running=4)
    b.drain("a")
    for target in "bbcc":
        b.end("a", target)
    b.report("a", **LEAVING)
    assert b.wait(1.0) == []
    why = "empty after 1.00 s, 0 moved, 0 replayed, 0 finished"
    finished, stop = b.wait(1.0)
    assert isinstance(finished, DrainFinished)
    assert (finished.report.outcome, finished.reason) == (DrainOutcome.EMPTY, why)
    assert stop == StopInstance(instance=A, reason=why)
    assert b.wait(9.0) == []


def test_kept_instance_is_reported_empty_once_and_never_stopped() -> None:
    b = body(running=0)
    b.drain("a", keep=True)
    b.report("a", **LEAVING, drain_keep=True)
    assert [type(command) for command in b.wait(30.0)] == [DrainFinished]


def test_instance_is_not_stopped_before_it_says_that_it_drains() -> None:
    b = body(running=0)
    b.drain("a")
    assert b.wait(5.0) == []


@pytest.mark.parametrize(
    ("situation", "facts"),
    [
        ("a request came late", {"running": 1, "free_blocks": 980}),
        ("a request waits", {"waiting": 1, "queued_blocks": 5, "head_of_line_blocks": 5}),
        ("something moves in", {"incoming": 1}),
        ("something still moves out", {"outgoing": 1}),
    ],
)
def test_instance_is_not_stopped_while(situation: str, facts: dict[str, int]) -> None:
    b = body(running=0)
    b.drain("a")
    b.report("a", **LEAVING)
    b.wait(1.0)
    b.report("a", **LEAVING, **facts)
    assert "StopInstance" not in kinds(b.wait(5.0)), situation


def test_request_that_comes_late_is_moved_away_and_the_watch_starts_anew() -> None:
    b = body(running=0)
    b.drain("a")
    b.report("a", **LEAVING)
    b.wait(1.0)
    b.report("a", **LEAVING, running=1, free_blocks=990, smallest_running_blocks=10)
    assert moves(b.wait(1.0)) == [("a", "b", 1)]
    b.end("a", "b")
    b.report("a", **LEAVING)
    assert kinds(b.wait(2.0)) == ["DrainFinished", "StopInstance"]


def test_order_shows_no_effect_for_as_long_as_an_instance_may_be_silent() -> None:
    cluster = ClusterConfig(instance_timeout_s=4.0)
    assert drain_limits(cluster, MigrationConfig()).repeat_s == 4.0


def test_orders_without_effect_are_repeated() -> None:
    b = body(running=0, timeout_s=10.0)
    b.drain("a")

    def pass_time(seconds: int, **facts: object) -> list[str]:
        seen = []
        for _ in range(seconds):
            for name in "bc":
                b.report(name)
            b.report("a", **facts)
            seen += kinds(b.wait(1.0))
        return seen

    assert pass_time(9) == []
    assert pass_time(2) == ["SetDraining"]
    assert pass_time(3, **LEAVING) == ["DrainFinished", "StopInstance"]
    assert pass_time(8, **LEAVING) == []
    assert pass_time(2, **LEAVING) == ["StopInstance"]


def test_drain_moves_though_migration_is_off() -> None:
    assert moves(body(migration=False).drain("a")) != []


def test_policy_that_never_migrates_lets_the_requests_finish() -> None:
    b = body(policy="round-robin")
    assert kinds(b.drain("a")) == ["SetDraining"]
    b.report("a", **LEAVING)
    assert kinds(b.wait(2.0)) == ["DrainFinished", "StopInstance"]


def test_refused_move_goes_to_another_target() -> None:
    b = body()
    b.drain("a")
    commands = b.end("a", "b", ok=False, why="no room")
    assert moves(commands) == [("a", "c", 1)]


def test_drain_pauses_when_nothing_can_move() -> None:
    b = body()
    b.drain("a")
    b.end("a", "c", ok=False, request=None, why="nothing to give: 10 pinned")
    assert b.end("a", "b", ok=False, request=None, why="nothing to give: 10 pinned") == []
    b.wait(0.9)
    assert moves(b.wait(1.0)) != []


def ordered(b: Body) -> MoveOrder:
    """The first order of a drain: two are to go to `b`."""
    (order, _) = (one.order for one in b.drain("a") if isinstance(one, MoveRequest))
    assert (order.target, order.wanted.count) == ("b", 2)
    return order


def started_fewer(b: Body, order: MoveOrder, not_started: int | None) -> list[SchedulerCommand]:
    """The source says that it gave fewer than that order wants."""
    fewer = MoveOutcome(order=order, source=A, request=None, not_started=not_started, why_not="1 do not fit")
    return b.tell(MigrationEnded(at=b.at, outcome=fewer))


def test_those_that_a_source_did_start_stay_in_flight_and_the_drain_goes_on() -> None:
    b = body()
    more = started_fewer(b, ordered(b), 1)
    assert [(source, count) for source, _, count in moves(more)] == [("a", 1)]
    assert b.scheduler.moves.outgoing(A) == 4
    b.end("a", "b")
    assert b.scheduler.ignored == {}


def test_those_that_a_source_did_start_may_take_all_that_was_promised_to_them() -> None:
    b = body()
    order = ordered(b)
    b.report("c", free_blocks=0, running=5)
    b.report("b", free_blocks=50, running=5)
    promised = b.scheduler.moves.promised_blocks(order.target, 0)
    assert started_fewer(b, order, 1) == []
    assert b.scheduler.moves.promised_blocks(order.target, 0) == promised


@pytest.mark.parametrize("not_started", [2, None])
def test_order_of_which_nothing_was_started_ends_and_the_drain_pauses(not_started: int | None) -> None:
    """An older instance does not say how many."""
    b = body()
    assert started_fewer(b, ordered(b), not_started) == []
    assert b.scheduler.moves.outgoing(A) == 2
    assert moves(b.wait(1.0)) != []


def test_no_room_anywhere_then_room() -> None:
    b = body()
    b.report("b", free_blocks=5, running=5)
    b.report("c", free_blocks=5, running=5)
    assert kinds(b.drain("a")) == ["SetDraining"]
    b.report("c", free_blocks=500, running=5)
    assert moves(b.wait(1.0)) == [("a", "c", 4)]


def test_asking_twice_is_asking_once_and_keep_can_be_changed() -> None:
    b = body(running=0)
    assert kinds(b.drain("a")) == ["SetDraining"]
    assert b.drain("a") == []
    assert [command.keep for command in b.drain("a", keep=True) if isinstance(command, SetDraining)] == [True]


def test_drain_of_an_unknown_instance_changes_nothing() -> None:
    b = Body()
    assert b.drain("nobody") == []
    assert b.scheduler.ignored == {"drain of an unknown instance": 1}


def test_drain_of_one_that_never_reported_waits_for_its_report() -> None:
    b = body()
    b.tell(InstanceStarted(at=b.at, instance=InstanceId("d")))
    (order,) = b.drain("d")
    assert order == SetDraining(instance=InstanceId("d"), keep=False, reason="drain asked for: it stops when empty")


def test_restarted_scheduler_goes_on_with_a_drain_that_it_finds() -> None:
    b = Body()
    b.report("a", **LEAVING, running=1, free_blocks=980, smallest_running_blocks=20)
    b.report("k", **LEAVING, drain_keep=True)
    b.report("b", free_blocks=900, running=5)
    first = b.wait(1.0)
    assert moves(first) == [("a", "b", 1)]
    assert sorted(kinds(first)) == ["DrainFinished", "MoveRequest"]
    b.end("a", "b")
    b.report("a", **LEAVING)
    assert kinds(b.wait(3.0)) == ["DrainFinished", "StopInstance"]


def test_two_drains_share_the_targets_limits() -> None:
    b = body()
    b.report("d", free_blocks=800, running=10, smallest_running_blocks=20)
    b.report("c", free_blocks=0, running=50)
    first, second = b.drain("a"), b.drain("d")
    assert moves(first) == [("a", "b", 4)]
    assert moves(second) == []


def test_lost_while_draining_is_in_the_report() -> None:
    b = body()
    b.drain("a")
    b.wait(2.0)
    (finished,) = b.lose("a")
    assert isinstance(finished, DrainFinished)
    assert (finished.report.outcome, finished.report.left, finished.report.seconds) == (DrainOutcome.LOST, 10, 2.0)
    assert b.wait(5.0) == []
    assert b.scheduler.drains.reports(b.at) == [finished.report]


def test_end_of_a_stopped_instance_is_no_loss() -> None:
    b = body(running=0)
    b.drain("a")
    b.report("a", **LEAVING)
    b.wait(2.0)
    assert b.lose("a") == []
    assert [report.outcome for report in b.scheduler.drains.reports(b.at)] == [DrainOutcome.EMPTY]


def test_report_counts_what_moved_what_was_replayed_and_what_ended_there() -> None:
    b = body(limits=DrainLimits(timeout_s=5.0, moves=4))
    b.drain("a")
    b.report("a", **LEAVING, running=4, free_blocks=920, migrations_out=5, ended=1)
    assert "ReplayRest" in kinds(b.wait(5.0))
    for target in "bc":
        b.end("a", target, ok=False, request=None)
    b.tell(RequestsReplayed(at=b.at, instance=A, count=3))
    b.report("a", **LEAVING, running=0, migrations_out=5, ended=5)
    (finished,) = (command for command in b.wait(2.0) if isinstance(command, DrainFinished))
    report = finished.report
    assert (report.requests, report.moved, report.replayed, report.finished, report.left) == (10, 5, 3, 2, 0)
    assert (report.why, report.keep, report.seconds) == ("asked for", False, 6.0)


def test_past_the_deadline_what_is_left_is_replayed_and_nothing_moves_any_more() -> None:
    b = body(limits=DrainLimits(timeout_s=5.0, grace_s=5.0))
    b.drain("a")
    b.end("a", "b", ok=False, request=None, why="nothing to give: 10 pinned")
    b.end("a", "c", ok=False, request=None, why="nothing to give: 10 pinned")
    b.report("a", **LEAVING, running=10, free_blocks=800)
    assert "ReplayRest" not in kinds(b.wait(4.0))
    assert kinds(b.wait(1.0)) == ["ReplayRest"]
    assert kinds(b.wait(2.0)) == ["ReplayRest", "ReplayRest"], "in case that something was on its way"


def test_what_can_neither_move_nor_be_replayed_is_cut_off_in_the_end() -> None:
    b = body(limits=DrainLimits(timeout_s=1.0, grace_s=3.0))
    b.drain("a")
    b.report("a", **LEAVING, running=2, free_blocks=960)
    commands = b.wait(4.0)
    assert kinds(commands) == ["ReplayRest", "ReplayRest", "ReplayRest", "DrainFinished", "StopInstance"]
    stop = commands[-1]
    assert isinstance(stop, StopInstance)
    assert stop.kill
    assert stop.reason == "drained for 4 s: 2 requests can be neither moved nor replayed"
    assert b.wait(20.0) == []
    assert b.lose("a") == []
    assert [(report.outcome, report.left) for report in b.scheduler.drains.reports(b.at)] == [(DrainOutcome.CUT_OFF, 2)]


@pytest.mark.parametrize("others", ["bc", ""])
def test_time_in_which_everybody_was_frozen_is_none_of_a_drain(others: str) -> None:
    b = Body(limits=DrainLimits(timeout_s=2.0, grace_s=3.0), timeout_s=10.0)
    for name in others:
        b.report(name, free_blocks=900, running=5)
    b.report("a", running=2, free_blocks=960)
    b.drain("a")
    b.report("a", **LEAVING, running=2, free_blocks=960)
    b.wait(0.5)
    assert b.wake_at is not None
    b.at = b.wake_at + 150.0
    b.wake_at = None
    assert not {"ReplayRest", "StopInstance", "DeclareLost"} & {*kinds(b.tell(RoundDue(at=b.at)))}
    b.report("b", free_blocks=900, running=5)
    assert "StopInstance" not in kinds(b.wait(2.5))
    assert "StopInstance" in kinds(b.wait(4.0))


def test_kept_instance_is_never_cut_off() -> None:
    b = body(limits=DrainLimits(timeout_s=1.0, grace_s=3.0))
    b.drain("a", keep=True)
    b.report("a", **LEAVING, drain_keep=True, running=2, free_blocks=960)
    assert set(kinds(b.wait(20.0))) == {"ReplayRest"}


def test_nobody_is_driven_out_of_the_last_instance() -> None:
    b = Body(limits=DrainLimits(timeout_s=1.0, grace_s=3.0))
    b.report("a", running=2, free_blocks=960)
    b.drain("a")
    b.report("a", **LEAVING, running=2, free_blocks=960)
    assert b.wait(20.0) == []
    b.report("b", running=5, free_blocks=900)
    assert kinds(b.wait(3.0)) == ["MoveRequest", "ReplayRest", "ReplayRest"], "its time begins when another one serves"
    assert kinds(b.wait(2.5))[-2:] == ["DrainFinished", "StopInstance"]


def test_deadline_that_was_asked_for_stands_in_the_last_instance_but_nobody_is_cut_off_unasked() -> None:
    b = Body(limits=DrainLimits(timeout_s=1.0, grace_s=3.0))
    b.report("a", running=2, free_blocks=960)
    b.drain("a", timeout_s=0.0)
    b.report("a", **LEAVING, running=2, free_blocks=960)
    assert b.wait(20.0) == []
    b.report("b", running=5, free_blocks=900)
    assert set(kinds(b.wait(2.0))) == {"ReplayRest"}
    assert kinds(b.wait(2.0))[-2:] == ["DrainFinished", "StopInstance"]


def test_deadline_of_one_order_is_its_own() -> None:
    b = body()
    b.drain("a", timeout_s=0.0)
    b.report("a", **LEAVING, running=10, free_blocks=800)
    assert "ReplayRest" in kinds(b.wait(1.0))


def test_asking_again_with_a_deadline_hurries_it() -> None:
    b = body()
    b.drain("a")
    b.report("a", **LEAVING, running=10, free_blocks=800)
    assert "ReplayRest" in kinds(b.drain("a", timeout_s=0.0))


def test_instance_that_drains_by_its_own_will_is_emptied_at_once() -> None:
    b = body()
    commands = b.report("a", **LEAVING, running=10, free_blocks=800, smallest_running_blocks=20)
    assert moves(commands) == [("a", "b", 2), ("a", "c", 2)]


def test_replay_of_what_drains_no_more_changes_nothing() -> None:
    b = body()
    assert b.tell(RequestsReplayed(at=b.at, instance=A, count=3)) == []
    assert b.scheduler.ignored == {"replay of what drains no more": 1}

    assert len(b.scheduler.moves) == 0


def test_drains_are_listed_as_people_count() -> None:
    b = Body()
    for name in ("i2", "i10", "i1"):
        b.report(name)
    for name in ("i10", "i2"):
        b.drain(name, keep=True)
    assert [report.instance for report in b.scheduler.drains.reports(b.at)] == ["i2", "i10"]
