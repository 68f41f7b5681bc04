"""The way back from a drain: when there is one, what is ordered, and what a late or lost word does."""

from __future__ import annotations

from test_scheduler import Body, kinds, moves

from llumnix.control.drain import DrainLimits
from llumnix.control.scheduler_events import (
    DrainFinished,
    DrainOutcome,
    DrainRequested,
    DrainWithdrawn,
    SchedulerCommand,
    SetDraining,
)
from llumnix.types import InstanceId, InstanceState

LEAVING = {"state": InstanceState.DRAINING}
ENDING = LEAVING | {"asked_to_end": True}
KEPT = {"state": InstanceState.DRAINING, "drain_keep": True}
A = InstanceId("a")
BACK = SetDraining(instance=A, keep=False, reason="it takes requests again", draining=False)


def body(running: int = 10, timeout_s: float = 1000.0, **knobs: object) -> Body:
    made = Body(timeout_s, **knobs)  # type: ignore[arg-type]
    made.report("a", free_blocks=1000 - 20 * running, running=running, smallest_running_blocks=20)
    made.report("b", free_blocks=900, running=5)
    return made


def undrain(b: Body) -> list[SchedulerCommand]:
    assert b.scheduler.drains.why_not_withdrawn(A) == ""
    return b.tell(DrainWithdrawn(at=b.at, instance=A))


def why_not(b: Body) -> str:
    return b.scheduler.drains.why_not_withdrawn(A)


def test_kept_instance_comes_back_and_is_used_again() -> None:
    b = body(running=0)
    b.drain("a", keep=True)
    b.report("a", **KEPT)
    b.wait(2.0)
    assert undrain(b) == [BACK]
    assert b.scheduler.snapshot(b.at).instances[0].state is not InstanceState.RUNNING
    (finished,) = b.report("a", free_blocks=1000)
    assert isinstance(finished, DrainFinished)
    assert finished.report.outcome is DrainOutcome.WITHDRAWN
    assert b.scheduler.snapshot(b.at).instances[0].state is InstanceState.RUNNING
    assert why_not(b) == "a does not drain"


def test_instance_that_still_empties_keeps_what_it_has() -> None:
    b = body()
    assert moves(b.drain("a"))
    b.report("a", **LEAVING, running=8, free_blocks=840)
    assert undrain(b) == [BACK]
    b.end("a", "b")  # a move that was under way
    assert b.wait(50.0) == []  # no move, no replay, no stop
    assert kinds(b.report("a", running=7, free_blocks=860)) == ["DrainFinished"]


def test_report_from_before_the_order_does_not_begin_the_drain_anew() -> None:
    b = body(running=0)
    b.drain("a", keep=True)
    b.report("a", **KEPT)
    undrain(b)
    assert b.report("a", **KEPT) == []
    b.report("a")
    b.wait(1.0)
    assert b.wait(20.0) == []


def test_order_that_was_lost_is_repeated() -> None:
    b = body(running=0, timeout_s=10.0)
    b.drain("a", keep=True)
    b.report("a", **KEPT)
    b.wait(1.0)
    undrain(b)
    again: list[SchedulerCommand] = []
    for _ in range(3):
        b.at += 4.0
        b.report("b")
        b.report("a", **KEPT)
        again += b.wait(1.0)
    assert [command for command in again if isinstance(command, SetDraining)] == [BACK]


def test_asking_twice_changes_nothing() -> None:
    b = body(running=0)
    b.drain("a", keep=True)
    b.report("a", **KEPT)
    undrain(b)
    assert undrain(b) == []


def test_drain_may_follow_on_the_way_back() -> None:
    b = body(running=0)
    b.drain("a", keep=True)
    b.report("a", **KEPT)
    undrain(b)
    b.drain("a", keep=True)
    b.report("a")  # the way back has arrived
    order = next(command for command in b.wait(1.0) if isinstance(command, SetDraining))
    assert (order.draining, order.keep) == (True, True)


def test_no_way_back_before_the_instance_has_heard_of_the_drain() -> None:
    b = body()
    b.drain("a")
    assert "has not begun to drain" in why_not(b)
    assert b.tell(DrainWithdrawn(at=b.at, instance=A)) == []  # whoever did not ask changes nothing


def test_no_way_back_once_it_is_told_to_stop() -> None:
    b = body(running=0)
    b.drain("a")
    b.report("a", **LEAVING)
    assert "StopInstance" in kinds(b.wait(2.0))
    assert "is being stopped already" in why_not(b)
    b.drain("a", keep=True)
    assert "is being stopped already" in why_not(b)


def test_no_way_back_once_it_was_cut_off() -> None:
    b = body(limits=DrainLimits(timeout_s=1.0, grace_s=1.0))
    b.drain("a")
    b.report("a", **LEAVING, running=10, free_blocks=800)
    assert "StopInstance" in kinds(b.wait(5.0))
    assert "is being stopped already" in why_not(b)


def test_no_way_back_when_its_process_was_asked_to_end() -> None:
    b = body()
    b.report("a", **ENDING, running=10, free_blocks=800)
    assert "its process was asked to end" in why_not(b)


def test_no_way_back_when_its_process_is_asked_to_end_while_it_drains_by_order() -> None:
    b = body()
    b.drain("a")
    b.report("a", **LEAVING, running=10, free_blocks=800)
    assert why_not(b) == ""
    b.report("a", **ENDING, running=10, free_blocks=800)
    assert "its process was asked to end" in why_not(b)
    assert b.tell(DrainWithdrawn(at=b.at, instance=A)) == []


def test_process_that_is_asked_to_end_on_its_way_back_stops() -> None:
    b = body(running=0)
    b.drain("a")
    b.report("a", **LEAVING)
    undrain(b)
    b.report("a", **ENDING)
    assert "its process was asked to end" in why_not(b)
    assert "StopInstance" in kinds(b.wait(5.0))


def test_restarted_scheduler_lets_one_come_back_that_drains_by_the_order_of_the_one_before() -> None:
    b = body(running=3)
    b.report("a", **LEAVING, running=3, free_blocks=940)
    assert undrain(b) == [BACK]


def test_kept_instance_whose_process_is_asked_to_end_stops() -> None:
    b = body(running=0)
    b.drain("a", keep=True)
    b.report("a", **KEPT)
    assert kinds(b.wait(2.0)) == ["DrainFinished"]
    b.report("a", **ENDING)
    assert "SetDraining" not in kinds(b.wait(0.2))  # or it would stay after all
    assert "StopInstance" in kinds(b.wait(5.0))
    assert "its process was asked to end" in why_not(b)


def test_kept_instance_whose_process_is_asked_to_end_on_its_way_back_stops() -> None:
    b = body(running=0)
    b.drain("a", keep=True)
    b.report("a", **KEPT)
    undrain(b)
    b.report("a", **ENDING)
    assert "StopInstance" in kinds(b.wait(5.0))


def test_no_way_back_when_its_node_goes_even_if_it_drained_before() -> None:
    b = body()
    b.drain("a", keep=True)
    b.report("a", **KEPT, running=10, free_blocks=800)
    assert why_not(b) == ""
    b.tell(DrainRequested(at=b.at, instance=A, keep=False, why="the node goes", firm=True))
    b.report("a", **LEAVING, running=10, free_blocks=800)
    assert "its node goes" in why_not(b)
    b.drain("a", keep=True)
    assert "its node goes" in why_not(b)


def test_restarted_scheduler_lets_a_kept_instance_come_back() -> None:
    b = body(running=0)
    b.report("a", **KEPT)
    assert undrain(b) == [BACK]


def test_unknown_instance_cannot_come_back() -> None:
    b = Body()
    assert why_not(b) == "there is no instance a"
    assert b.tell(DrainWithdrawn(at=0.0, instance=A)) == []


def test_last_one_is_the_one_without_which_nobody_takes_requests() -> None:
    b = body()
    assert not b.scheduler.is_last(A)
    b.drain("b")
    assert b.scheduler.is_last(A)
    b.report("b", **LEAVING)
    assert b.scheduler.is_last(A)
    assert not b.scheduler.is_last(InstanceId("b"))  # it takes none already
    b.report("c")
    assert not b.scheduler.is_last(A)
