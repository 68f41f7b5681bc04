"""Auto-scaling inside the scheduler: orders, what starts meanwhile, new instances, advice."""

# Ids are plain strings here, and of what class a command is, the test itself shows.
# mypy: disable-error-code="arg-type"
from __future__ import annotations

import pytest
from test_scheduler import Body, kinds, moves

from llumnix.config import ScalingConfig
from llumnix.control.fleet import Fleet
from llumnix.control.scaling import Autoscaler, ScalingMode
from llumnix.control.scheduler_events import (
    DemandHeld,
    FleetReported,
    ScalingDecided,
    SchedulerCommand,
    SetDraining,
    StartInstances,
    StartRequested,
)
from llumnix.types import InstanceState

BUSY = {"free_blocks": 100, "running": 20, "smallest_running_blocks": 40}
IDLE = {"free_blocks": 980, "running": 1, "smallest_running_blocks": 20}


def body(mode: ScalingMode = ScalingMode.ON, serving: int = 2, **config: object) -> Body:
    usual = {"min_instances": 1, "max_instances": 4, "scale_window_s": 5.0}
    made = Body(autoscaler=Autoscaler(ScalingConfig(**{**usual, **config}), mode))
    fleet(made, serving=serving)
    return made


def fleet(b: Body, **counts: int) -> None:
    b.tell(FleetReported(at=b.at, fleet=Fleet(**{"serving": 0, "starting": 0, **counts})))


def pass_time(body: Body, seconds: int, /, **loads: dict[str, object]) -> list[SchedulerCommand]:
    """Every second a report of each."""
    commands: list[SchedulerCommand] = []
    for _ in range(seconds):
        for name, load in loads.items():
            commands += body.report(name, **load)
        commands += body.wait(1.0)
    return commands


def starts(commands: list[SchedulerCommand]) -> list[int]:
    return [command.count for command in commands if isinstance(command, StartInstances)]


def drained(commands: list[SchedulerCommand]) -> list[str]:
    return [command.instance for command in commands if isinstance(command, SetDraining)]


def test_starts_one_when_it_is_full_for_the_window_and_not_twice() -> None:
    b = body()
    assert starts(pass_time(b, 5, a=BUSY, b=BUSY)) == []
    commands = pass_time(b, 1, a=BUSY, b=BUSY)
    assert kinds(commands) == ["ScalingDecided", "StartInstances"]
    (start,) = (command for command in commands if isinstance(command, StartInstances))
    assert start == StartInstances(count=1, order=1, reason="auto-scaling: freeness 5 below 10 for 5 s; 30 with 1 more")
    assert starts(pass_time(b, 10, a=BUSY, b=BUSY)) == [], "the order is on its way"
    fleet(b, serving=2, starting=1, last_order=1)
    assert starts(pass_time(b, 10, a=BUSY, b=BUSY)) == [], "it is starting"


def test_one_that_keeps_failing_to_start_is_no_help() -> None:
    b = body()
    fleet(b, serving=2, starting=0, failing=1)
    assert starts(pass_time(b, 8, a=BUSY, b=BUSY)) == [1]
    fleet(b, serving=2, starting=0, failing=2, last_order=1)
    assert starts(pass_time(b, 20, a=BUSY, b=BUSY)) == [], "no place is left"


def test_drains_the_cheapest_when_it_is_idle_for_the_window() -> None:
    b = body()
    heavier = {**IDLE, "free_blocks": 900}
    assert drained(pass_time(b, 5, a=heavier, b=IDLE)) == []
    commands = pass_time(b, 1, a=heavier, b=IDLE)
    assert drained(commands) == ["b"]
    (order,) = (command for command in commands if isinstance(command, SetDraining))
    assert order.reason.startswith("drain by auto-scaling: freeness")
    assert moves(commands) == [("b", "a", 1)]
    assert b.scheduler.drains.reports(b.at)[0].why.startswith("by auto-scaling")


def test_never_below_the_least_and_a_drain_by_hand_is_made_up_for() -> None:
    b = body(min_instances=2)
    assert drained(pass_time(b, 20, a=IDLE, b=IDLE)) == []
    b.drain("a")
    assert starts(pass_time(b, 2, a={**IDLE, "state": InstanceState.DRAINING}, b=IDLE)) == [1]


def test_nothing_is_decided_before_the_launcher_has_said_what_there_is() -> None:
    b = Body(autoscaler=Autoscaler(ScalingConfig(min_instances=2, max_instances=4, scale_window_s=0.0)))
    assert pass_time(b, 20, a=BUSY) == []
    fleet(b, serving=2)
    assert starts(pass_time(b, 1, a=BUSY)) == [], "the other one has only not been heard yet"


def test_one_that_is_lost_is_replaced_by_the_launcher_alone() -> None:
    b = body(min_instances=2)
    pass_time(b, 1, a=IDLE, b=IDLE)
    b.lose("a")
    assert starts(pass_time(b, 1, b=IDLE)) == [], "the launcher has not said yet what it does about it"
    fleet(b, serving=1, starting=1)
    assert starts(pass_time(b, 10, b=IDLE)) == []


def test_one_that_is_lost_for_good_is_replaced_when_there_are_too_few() -> None:
    b = body(min_instances=2)
    pass_time(b, 1, a=IDLE, b=IDLE)
    b.lose("a")
    fleet(b, serving=1)
    assert starts(pass_time(b, 1, b=IDLE)) == [1]


@pytest.mark.parametrize("load", [BUSY, IDLE])
def test_nothing_is_started_or_drained_while_the_server_ends(load: dict[str, object]) -> None:
    b = body()
    pass_time(b, 5, a=load, b=load)
    fleet(b, serving=2, ending=True)
    commands = pass_time(b, 20, a=load, b=load)
    assert starts(commands) == []
    assert drained(commands) == []
    assert b.scheduler.autoscaler.now == "the server ends"  # type: ignore[union-attr]


def test_start_by_hand_is_numbered_too() -> None:
    b = body()
    (start,) = b.tell(StartRequested(at=b.at, count=1))
    assert isinstance(start, StartInstances)
    assert start.order == 1
    assert starts(pass_time(b, 10, a=BUSY, b=BUSY)) == [], "it counts as coming"


def test_new_instance_gets_requests_that_would_otherwise_stay() -> None:
    comfortable = {"free_blocks": 180, "running": 20, "smallest_running_blocks": 30}  # freeness 9: above 3, below 10
    b = body(serving=1)
    assert moves(pass_time(b, 15, a=comfortable)) == []
    b.report("new")
    assert moves(b.wait(1.0)) == [("a", "new", 1)]


def test_new_instance_gets_several_from_a_queue_at_once() -> None:
    queue = {"free_blocks": 0, "running": 20, "waiting": 9, "queued_blocks": 90, "head_of_line_blocks": 10}
    b = body(serving=1)
    pass_time(b, 11, a=queue)
    b.report("new")
    assert moves(b.wait(1.0)) == [("a", "new", 4)]


def test_after_a_while_it_is_new_no_more() -> None:
    comfortable = {"free_blocks": 180, "running": 20, "smallest_running_blocks": 30}
    b = body(serving=2)
    pass_time(b, 6, a=comfortable)
    pass_time(b, 11, a=comfortable, new={})
    assert moves(pass_time(b, 5, a=comfortable, new={})) == []


def test_restarted_scheduler_takes_none_that_it_finds_for_new() -> None:
    comfortable = {"free_blocks": 180, "running": 20, "smallest_running_blocks": 30}
    b = body(serving=2)
    assert moves(pass_time(b, 2, a=comfortable) + pass_time(b, 12, a=comfortable, b={})) == []


@pytest.mark.parametrize("mode", [ScalingMode.OFF, ScalingMode.ADVISE])
def test_nothing_is_done_when_it_is_not_on(mode: ScalingMode) -> None:
    b = body(mode)
    commands = pass_time(b, 30, a=BUSY, b=BUSY) + pass_time(b, 30, a=IDLE, b=IDLE)
    assert starts(commands) == []
    assert drained(commands) == []


def test_advice_says_what_would_be_done_and_repeats_itself_seldom() -> None:
    b = body(ScalingMode.ADVISE)
    commands = pass_time(b, 28, a=BUSY, b=BUSY)
    advice = [command.step for command in commands if isinstance(command, ScalingDecided)]
    assert [(step.at, step.start, step.carried_out) for step in advice] == [(6.0, 1, False), (18.0, 1, False)]
    assert str(advice[0]) == "start 1: freeness 5 below 10 for 5 s; 30 with 1 more"
    assert b.scheduler.autoscaler is not None
    assert b.scheduler.autoscaler.last == advice[-1]
    assert b.scheduler.autoscaler.starts == 2
    assert b.scheduler.autoscaler.now.startswith("freeness 5")


def hold(b: Body, requests: int, front_end: int = 0) -> None:
    b.tell(DemandHeld(at=b.at, front_end=front_end, requests=requests, tokens=100 * requests))


def test_starts_some_for_what_the_front_ends_hold_while_the_instances_look_idle() -> None:
    b = body()
    for _ in range(6):
        hold(b, 100)
        hold(b, 100, front_end=1)
        commands = pass_time(b, 1, a=IDLE, b=IDLE)
    assert starts(commands) == [2]


def test_what_a_front_end_held_that_says_nothing_any_more_is_forgotten() -> None:
    b = body(scale_window_s=10.0)
    for _ in range(4):
        hold(b, 200)
        pass_time(b, 1, a=IDLE, b=IDLE)
    assert starts(pass_time(b, 20, a=IDLE, b=IDLE)) == []
    for _ in range(4):
        hold(b, 200)
        pass_time(b, 1, a=IDLE, b=IDLE)
    hold(b, 0)
    assert starts(pass_time(b, 20, a=IDLE, b=IDLE)) == []


def test_starts_no_more_than_there_are_gpus_for() -> None:
    b = body()
    fleet(b, serving=2, room=0)
    assert b.scheduler.autoscaler is not None
    for _ in range(12):
        assert starts(pass_time(b, 1, a=BUSY, b=BUSY)) == []
        assert "freeness" in b.scheduler.autoscaler.now
        assert "no GPU is free" in b.scheduler.autoscaler.now
    fleet(b, serving=2, room=1)
    assert starts(pass_time(b, 12, a=BUSY, b=BUSY)) == [1]
