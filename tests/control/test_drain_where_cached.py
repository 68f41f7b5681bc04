"""A drain asks front ends whose prompts other instances have cached, and has those go there first."""

from __future__ import annotations

from typing import Any

import pytest
from test_scheduler import Body, kinds

from llumnix.control.drain import DrainLimits
from llumnix.control.drains import ANSWER_S
from llumnix.control.orders import MoveOutcome, StayCause
from llumnix.control.scheduler_events import (
    AskWhereCached,
    CachedElsewhere,
    DrainFinished,
    MigrationEnded,
    MoveRequest,
    SchedulerCommand,
)
from llumnix.types import InstanceId, InstanceState, RequestId

pytestmark = pytest.mark.pure

A, B = InstanceId("a"), InstanceId("b")
R, S = RequestId("r"), RequestId("s")
TELLS = {"prefix_chunk_tokens": 512, "smallest_running_blocks": 20}


def body(running: int = 3, **knobs: Any) -> Body:
    made = Body(limits=DrainLimits(moves=4), pairing_interval_s=0.1, **knobs)
    made.report("a", **TELLS, free_blocks=1000 - 20 * running, running=running)
    made.report("b", **TELLS, free_blocks=800, running=5)
    made.report("c", **TELLS, free_blocks=800, running=4)
    return made


def ordered(commands: list[SchedulerCommand]) -> list[tuple[str | None, str, int]]:
    moves = [command.order for command in commands if isinstance(command, MoveRequest)]
    return [(order.request, order.target, order.wanted.count) for order in moves]


def told(b: Body, front_ends: int = 2, **where: str) -> list[SchedulerCommand]:
    known = {RequestId(request): InstanceId(there) for request, there in where.items()}
    return b.tell(CachedElsewhere(at=b.at, instance=A, where=known, front_ends=front_ends))


def test_front_ends_are_asked_before_anybody_leaves_and_their_word_counts_at_once() -> None:
    b = body()
    assert kinds(b.drain("a")) == ["AskWhereCached", "SetDraining"]
    commands = told(b, r="b")
    assert ordered(commands) == [(R, B, 1)]
    (move,) = (command for command in commands if isinstance(command, MoveRequest))
    assert move.order.reason.startswith("a drains, 3 left; its prompt is cached there; freeness 160")
    assert ordered(b.wait(ANSWER_S - 0.1)) == []
    assert sum(count for _, _, count in ordered(b.wait(0.2))) == 2, "the others, whose prompts nobody has"


def test_when_all_front_ends_have_said_theirs_the_others_leave_too() -> None:
    b = body()
    b.drain("a")
    assert ordered(told(b, r="b")) == [(R, B, 1)]
    assert ordered(told(b)) == [(None, "c", 1), (None, B, 1)]
    b = body()
    b.drain("a")
    assert ordered(told(b, front_ends=1, r="b")) == [(R, B, 1), (None, "c", 1), (None, B, 1)]


def test_nobody_waits_long_for_front_ends_that_say_nothing() -> None:
    b = body()
    b.drain("a")
    assert ordered(b.wait(ANSWER_S + 0.1)) == [(None, "c", 2), (None, "b", 1)]


def test_each_front_end_says_its_own() -> None:
    b = body()
    b.drain("a")
    assert ordered(told(b, front_ends=3, r="b")) == [(R, B, 1)]
    assert ordered(told(b, front_ends=3)) == []
    assert ordered(told(b, front_ends=3, s="b"))[0] == (S, B, 1)


def test_who_cannot_go_there_yet_goes_when_it_can() -> None:
    b = body()
    b.report("b", **TELLS, free_blocks=800, running=5, incoming=4)
    b.drain("a")
    assert ordered(told(b, r="b")) == []
    b.report("b", **TELLS, free_blocks=800, running=5)
    assert (R, B, 1) in ordered(b.wait(0.1))


def test_request_that_is_not_there_any_more_keeps_nobody_from_going_to_that_instance() -> None:
    b = body(running=1)
    b.drain("a")
    (move,) = (command for command in told(b, r="b", s="b") if isinstance(command, MoveRequest))
    assert move.order.request == R
    why, stayed = "no such request here", StayCause.NOT_STARTED
    outcome = MoveOutcome(order=move.order, source=A, request=R, why_not=why, stayed=stayed)
    assert ordered(b.tell(MigrationEnded(at=b.at, outcome=outcome))) == [(S, B, 1)]


@pytest.mark.parametrize(
    ("facts", "knobs"), [({"prefix_chunk_tokens": 0}, {}), ({}, {"prefix": False}), ({}, {"policy": "llumnix-paper"})]
)
def test_where_nobody_knows_prefixes_nobody_is_asked(facts: dict[str, int], knobs: dict[str, Any]) -> None:
    b = Body(limits=DrainLimits(moves=4), **knobs)
    b.report("a", **{**TELLS, **facts}, free_blocks=940, running=3)
    b.report("b", **TELLS, free_blocks=800, running=5)
    commands = b.drain("a")
    assert not any(isinstance(command, AskWhereCached) for command in commands)
    assert ordered(commands) == [(None, B, 3)]


def test_word_that_comes_when_the_instance_drains_no_more_changes_nothing() -> None:
    b = body(running=0)
    b.drain("a")
    b.report("a", **TELLS, state=InstanceState.DRAINING)
    assert any(isinstance(command, DrainFinished) for command in b.wait(1.0))
    b.lose("a")
    assert told(b, r="b") == []
    assert b.scheduler.ignored == {"word of prompts of what drains no more": 1}
