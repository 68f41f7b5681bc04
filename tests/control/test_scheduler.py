"""The global scheduler: rounds, moves in flight, drains, silence, restart."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from llumnix.config import PolicyConfig
from llumnix.control.at_once import TARGETS_TRIED
from llumnix.control.back_off import FIRST_BACK_OFF_S, LONGEST_BACK_OFF_S
from llumnix.control.drain import DrainLimits
from llumnix.control.gone import REMEMBERED
from llumnix.control.moves import MOVE_DEADLINE_S
from llumnix.control.orders import MoveCause, MoveId, MoveOrder, StayCause
from llumnix.control.scaling import Autoscaler
from llumnix.control.scheduler import GlobalScheduler
from llumnix.control.scheduler_events import (
    DeclareLost,
    DrainRequested,
    InstanceLost,
    InstanceStarted,
    LoadReported,
    MigrationEnded,
    MoveRequest,
    RoleWanted,
    RoundAt,
    RoundDue,
    SchedulerCommand,
    SchedulerEvent,
    SetRole,
    StartInstances,
    StartRequested,
)
from llumnix.policy.snapshot import STANDING_S, InstanceSnapshot
from llumnix.policy.victim import Wanted
from llumnix.types import InstanceId, Role
from move_outcomes import outcome

TIMEOUT_S = 1000.0
FULL = {"free_blocks": 20, "running": 40, "smallest_running_blocks": 5}
FREE = {"free_blocks": 900, "running": 5, "smallest_running_blocks": 20}


class Body:
    """Drives the scheduler: reports, and the timer when it asked for it."""

    def __init__(
        self,
        timeout_s: float = TIMEOUT_S,
        limits: DrainLimits | None = None,
        autoscaler: Autoscaler | None = None,
        step_timeout_s: float = TIMEOUT_S,
        **knobs: object,
    ) -> None:
        config = PolicyConfig(**{"pairing_interval_s": 1.0, **knobs})  # type: ignore[arg-type]
        limits = replace(limits or DrainLimits(), repeat_s=timeout_s)
        self.scheduler = GlobalScheduler(config, timeout_s, limits, autoscaler, step_timeout_s)
        self.at = 0.0
        self.wake_at: float | None = None
        self.seq = 0

    def tell(self, event: SchedulerEvent) -> list[SchedulerCommand]:
        commands = self.scheduler.handle(event)
        for command in commands:
            if isinstance(command, RoundAt):
                self.wake_at = command.at
        return [command for command in commands if not isinstance(command, RoundAt)]

    def report(self, id: str, **facts: object) -> list[SchedulerCommand]:
        self.seq += 1
        usual = {"id": InstanceId(id), "at": self.at, "seq": self.seq, "total_blocks": 1000, "free_blocks": 1000}
        return self.tell(LoadReported(at=self.at, snapshot=InstanceSnapshot(**{**usual, **facts})))  # type: ignore[arg-type]

    def wait(self, seconds: float) -> list[SchedulerCommand]:
        """All that comes out while the time passes."""
        end, commands = self.at + seconds, []
        while self.wake_at is not None and self.wake_at <= end:
            self.at, self.wake_at = self.wake_at, None
            commands += self.tell(RoundDue(at=self.at))
        self.at = end
        return commands

    def end(
        self, source: str, target: str, ok: bool = True, request: str | None = "r", why: str = ""
    ) -> list[SchedulerCommand]:
        return self.tell(
            MigrationEnded(at=self.at, outcome=outcome(source, target, request, None if ok else why or "refused"))
        )

    def lose(self, id: str, why: str = "killed") -> list[SchedulerCommand]:
        return self.tell(InstanceLost(at=self.at, instance=InstanceId(id), why=why))

    def drain(self, id: str, keep: bool = False, timeout_s: float | None = None) -> list[SchedulerCommand]:
        return self.tell(DrainRequested(at=self.at, instance=InstanceId(id), keep=keep, timeout_s=timeout_s))


def body(**knobs: object) -> Body:
    made = Body(**knobs)  # type: ignore[arg-type]
    made.report("a", **FULL)
    made.report("b", **FREE)
    return made


def moves(commands: list[SchedulerCommand]) -> list[tuple[str, str, int]]:
    return [(one.source, one.order.target, one.order.wanted.count) for one in commands if isinstance(one, MoveRequest)]


def kinds(commands: list[SchedulerCommand]) -> list[str]:
    return [type(command).__name__ for command in commands]


# rounds


def test_round_moves_a_request_and_says_why() -> None:
    b = body()
    assert b.wait(1.0) == [
        MoveRequest(
            source=InstanceId("a"),
            order=MoveOrder(
                move_id=MoveId("scheduler-1"),
                target=InstanceId("b"),
                cause=MoveCause.BALANCE,
                reason="freeness 0.5 against 180; 0.641 and 149.2 after the move",
                wanted=Wanted(room_blocks=900),
            ),
        )
    ]


def test_nothing_happens_between_rounds() -> None:
    b = body()
    assert b.wait(0.99) == []
    assert b.report("c", **FREE) == []


def test_timer_runs_only_while_there_are_instances() -> None:
    b = Body()
    assert b.wake_at is None
    b.report("a")
    assert b.wake_at == 1.0
    b.lose("a")
    assert b.wait(5.0) == []
    assert b.wake_at is None
    b.report("b")
    assert b.wake_at == 6.0


def test_timer_that_fires_early_is_asked_for_again() -> None:
    b = body()
    assert b.scheduler.handle(RoundDue(at=0.5)) == [RoundAt(at=1.0)]
    assert moves(b.wait(1.0)) == [("a", "b", 1)]


def test_timer_that_nobody_asked_for_is_ignored() -> None:
    assert Body().tell(RoundDue(at=5.0)) == []


@pytest.mark.parametrize("knobs", [{"migration": False}, {"policy": "round-robin"}, {"policy": "infaas++"}])
def test_no_pairing_when(knobs: dict[str, Any]) -> None:
    assert body(**knobs).wait(3.0) == []


def test_paper_policy_pairs_by_its_own_threshold() -> None:
    b = Body(policy="llumnix-paper")
    b.report("a", free_blocks=350, running=40)
    b.report("b", free_blocks=900, running=5)
    assert moves(b.wait(1.0)) == []
    b.report("a", free_blocks=100, running=40)
    assert moves(b.wait(1.0)) == [("a", "b", 1)]


def test_rejections_are_kept_for_display() -> None:
    b = Body()
    b.report("a", **FULL)
    b.wait(1.0)
    assert [str(no) for no in b.scheduler.last_round.rejected] == ["a: no instance is free enough"]


# moves in flight


def test_busy_instances_wait_for_the_answer() -> None:
    b = body()
    assert moves(b.wait(1.0)) == [("a", "b", 1)]
    b.report("c", **FREE)
    assert b.wait(3.0) == []
    b.end("a", "b")
    assert moves(b.wait(1.0)) == [("a", "b", 1)]


def test_limit_of_two_lets_an_instance_make_two() -> None:
    b = body(max_migrations_per_instance=2)
    assert moves(b.wait(3.0)) == [("a", "b", 1), ("a", "b", 1)]
    b.end("a", "b")
    assert moves(b.wait(1.0)) == [("a", "b", 1)]


def test_moves_that_reports_count_count_once() -> None:
    b = body(max_migrations_per_instance=2)
    b.wait(1.0)
    b.report("a", **FULL, outgoing=1)
    b.report("b", **FREE, incoming=1)
    assert moves(b.wait(1.0)) == [("a", "b", 1)]
    assert moves(b.wait(1.0)) == []


def test_lost_answer_blocks_nobody_for_ever() -> None:
    b = body()
    b.wait(1.0)
    assert b.wait(MOVE_DEADLINE_S - 0.5) == []
    assert moves(b.wait(1.0 + FIRST_BACK_OFF_S)) == [("a", "b", 1)]
    assert len(b.scheduler.moves) == 1


def test_answer_that_comes_after_the_deadline_changes_nothing() -> None:
    b = body(migration=False)
    b.end("a", "b")
    b.end("x", "y", ok=False)
    assert b.scheduler.ignored == {"answer to a move that is not in flight": 2}


def test_refused_pair_is_left_alone_twice_as_long_each_time() -> None:
    b = body(pairing_interval_s=0.125)
    b.wait(0.125)
    for wait_s in (FIRST_BACK_OFF_S, 2 * FIRST_BACK_OFF_S, 4 * FIRST_BACK_OFF_S):
        b.end("a", "b", ok=False, why="no room")
        assert b.wait(wait_s - 0.125) == []
        assert moves(b.wait(0.125)) == [("a", "b", 1)]
    b.end("a", "b")
    b.wait(0.125)
    b.end("a", "b", ok=False)
    assert moves(b.wait(FIRST_BACK_OFF_S)) == [("a", "b", 1)]


def test_refusal_by_one_target_leaves_the_others() -> None:
    b = body()
    b.report("c", **FREE | {"free_blocks": 800})
    assert moves(b.wait(1.0)) == [("a", "b", 1)]
    for _ in range(3):
        b.end("a", "b", ok=False, why="no room")
        b.wait(1.0)
        b.end("a", "c", ok=False, why="no room")
        b.wait(1.0)
    assert len(b.scheduler._back_off) == 2


def test_source_with_nothing_to_give_is_left_alone_with_all_targets() -> None:
    b = body(pairing_interval_s=0.125)
    b.report("c", **FREE)
    b.wait(0.125)
    b.end("a", "b", ok=False, request=None, why="all moved a moment ago")
    assert b.wait(FIRST_BACK_OFF_S - 0.125) == []
    assert moves(b.wait(0.125)) == [("a", "b", 1)]


def test_target_without_a_place_for_an_adapter_is_still_asked_to_take_requests_that_have_none() -> None:
    b = body(pairing_interval_s=0.125)
    b.wait(0.125)
    b.tell(MigrationEnded(at=b.at, outcome=outcome("a", "b", why_not="no place", stayed=StayCause.NO_ADAPTER)))
    (order,) = [one.order for one in b.wait(0.125) if isinstance(one, MoveRequest)]
    assert order.wanted.without_adapter
    b.tell(MigrationEnded(at=b.at, outcome=outcome("a", "b", wanted=order.wanted)))
    b.wait(FIRST_BACK_OFF_S - 0.25)
    b.end("a", "b")
    (order,) = [one.order for one in b.wait(0.125) if isinstance(one, MoveRequest)]
    assert not order.wanted.without_adapter


def test_source_that_has_requests_with_adapters_only_goes_on_giving_to_others() -> None:
    b = body(pairing_interval_s=0.125)
    b.report("c", **FREE | {"free_blocks": 800})
    b.wait(0.125)
    b.tell(MigrationEnded(at=b.at, outcome=outcome("a", "b", why_not="no place", stayed=StayCause.NO_ADAPTER)))
    (order,) = [one.order for one in b.wait(0.125) if isinstance(one, MoveRequest)]
    nothing = outcome("a", "b", None, "nothing to give", StayCause.NOT_STARTED, order.wanted)
    b.tell(MigrationEnded(at=b.at, outcome=nothing))
    (order,) = [one.order for one in b.wait(0.125) if isinstance(one, MoveRequest)]
    assert (order.target, order.wanted.without_adapter) == ("c", False)


def test_old_refusals_are_forgotten() -> None:
    b = body(migration=False)
    b.scheduler._back_off.refused(b.at, outcome("a", "b", why_not="refused"))
    b.wait(FIRST_BACK_OFF_S + LONGEST_BACK_OFF_S + 1.0)
    assert len(b.scheduler._back_off) == 0


# losses


def test_silent_instance_is_declared_lost() -> None:
    b = Body(timeout_s=10.0)
    b.report("a")
    b.report("b")
    b.wait(6.0)
    b.report("b")
    (command,) = b.wait(5.0)
    assert command == DeclareLost(instance=InstanceId("a"), why="no heartbeat for 11 s (limit 10 s)")
    assert [one.id for one in b.scheduler.snapshot(b.at).instances] == ["b"]


def test_nothing_is_asked_of_an_engine_that_stands_still_nor_given_to_it() -> None:
    """It would not answer, and keep others from what it was promised."""
    b = body()
    b.report("a", **(FULL | {"free_blocks": 0}))
    b.report("b", **FREE)
    b.report("c", **FULL)
    hung = replace(b.scheduler.snapshot(b.at).instances[0], standing_s=STANDING_S)
    b.tell(LoadReported(at=b.at, snapshot=hung))
    assert moves(b.wait(1.0)) == [("c", "b", 1)]
    b.end("c", "b", ok=False)
    hung = replace(b.scheduler.snapshot(b.at).instances[1], standing_s=STANDING_S)
    b.tell(LoadReported(at=b.at, snapshot=hung))
    assert moves(b.wait(LONGEST_BACK_OFF_S)) == []


def test_who_did_not_answer_at_all_is_not_asked_again_before_others() -> None:
    b = body()
    b.report("a", **(FULL | {"free_blocks": 0}))
    b.report("b", **FREE)
    b.report("c", **FULL)
    assert moves(b.wait(1.0)) == [("a", "b", 1)]
    assert b.wait(MOVE_DEADLINE_S - 0.5) == []
    assert moves(b.wait(0.5)) == [("c", "b", 1)]


class Beats:
    """A heartbeat each second of one instance, whose engine has done nothing for `standing_s` at first."""

    def __init__(self, step_timeout_s: float, standing_s: float = 0.0, **load: Any) -> None:
        self.body = Body(timeout_s=3.0, step_timeout_s=step_timeout_s)
        self.body.report("a", **load)
        self.last = InstanceSnapshot(
            id=InstanceId("a"),
            at=0.0,
            seq=self.body.seq,
            total_blocks=1000,
            free_blocks=1000,
            standing_s=standing_s,
            **load,
        )

    def go_on(self, seconds: int, progress: bool, unread: int = 0) -> list[SchedulerCommand]:
        """What the scheduler says."""
        said: list[SchedulerCommand] = []
        for _ in range(seconds):
            said += self.body.wait(1.0)
            self.last = replace(self.last, standing_s=0.0 if progress else self.last.standing_s + 1.0, unread=unread)
            said += self.body.tell(LoadReported(at=self.body.at, snapshot=self.last))
        return said


def test_instance_that_beats_but_does_nothing_about_its_work_is_declared_lost() -> None:
    beats = Beats(20.0, running=3, waiting=1)
    assert beats.go_on(20, progress=False) == []
    assert beats.body.scheduler.ignored == {}, "a heartbeat is no report that comes late"
    (command,) = beats.go_on(2, progress=False)
    why = "it lives, but its engine did nothing for 21 s, with 3 running, 1 waiting, 0 unread (limit 20 s)"
    assert command == DeclareLost(instance=InstanceId("a"), why=why)


def test_engine_that_hung_before_the_scheduler_was_restarted_is_lost_with_its_first_word() -> None:
    """Else a scheduler that is killed again and again would never see it."""
    beats = Beats(20.0, standing_s=19.0, running=3)
    assert beats.go_on(1, progress=False) == []
    assert kinds(beats.go_on(2, progress=False)) == ["DeclareLost"]


def test_instance_without_work_whose_heartbeats_are_late_is_not_hung() -> None:
    beats = Beats(1.0)
    assert beats.go_on(3, progress=False) + beats.body.wait(2.5) == []


def test_busy_instance_that_falls_silent_is_not_taken_for_hung() -> None:
    """Its last word told of progress; for silence there is a limit of its own."""
    beats = Beats(2.0, running=3)
    assert beats.go_on(10, progress=True) + beats.body.wait(2.5) == []


def test_instance_without_work_beats_on() -> None:
    assert Beats(20.0).go_on(3600, progress=True) == []


def test_instance_with_work_that_rests_beats_on() -> None:
    """Such as one that is paused, or whose only session waits for more input."""
    assert Beats(20.0, waiting=1).go_on(3600, progress=True) == []


def test_idle_instance_that_reads_nothing_any_more_is_declared_lost() -> None:
    beats = Beats(20.0)
    assert beats.go_on(100, progress=True) == []
    assert kinds(beats.go_on(22, progress=False, unread=1)) == ["DeclareLost"]


def test_long_step_is_no_hang() -> None:
    beats = Beats(20.0, running=3)
    for _ in range(10):
        assert beats.go_on(15, progress=False) == []
        assert beats.go_on(1, progress=True) == []


def test_started_instance_that_never_reports_is_declared_lost() -> None:
    b = Body(timeout_s=10.0)
    b.tell(InstanceStarted(at=0.0, instance=InstanceId("a")))
    assert kinds(b.wait(11.0)) == ["DeclareLost"]


def test_lost_instance_does_not_come_back_with_a_late_report() -> None:
    b = body()
    b.lose("b")
    b.report("b", **FREE)
    b.tell(InstanceStarted(at=b.at, instance=InstanceId("b")))
    assert moves(b.wait(2.0)) == []
    assert b.scheduler.ignored == {"word of a lost instance": 2}


def test_loss_ends_the_moves_of_the_instance() -> None:
    b = body()
    b.wait(1.0)
    b.report("c", **FREE)
    b.lose("b")
    assert len(b.scheduler.moves) == 0
    assert moves(b.wait(1.0)) == [("a", "c", 1)]


def test_own_pause_is_not_taken_for_everybodys_silence() -> None:
    b = Body(timeout_s=10.0)
    b.report("a")
    b.report("b")
    b.at, b.wake_at = 100.0, None
    assert b.tell(RoundDue(at=100.0)) == []
    b.wait(5.0)
    b.report("a")
    assert [command.instance for command in b.wait(6.0) if isinstance(command, DeclareLost)] == ["b"]


def test_older_report_changes_nothing() -> None:
    b = body()
    stale = InstanceSnapshot(id=InstanceId("a"), at=0.0, seq=0, total_blocks=1000, free_blocks=1000)
    b.tell(LoadReported(at=0.0, snapshot=stale))
    assert moves(b.wait(1.0)) == [("a", "b", 1)]


def test_memory_of_lost_instances_is_bounded() -> None:
    b = Body()
    for k in range(REMEMBERED + 10):
        b.lose(f"i{k}")
    assert len(b.scheduler._view._lost) == REMEMBERED


def test_start_is_passed_on() -> None:
    assert Body().tell(StartRequested(at=0.0, count=2)) == [StartInstances(count=2, reason="2 more asked for", order=1)]
    one = InstanceId("a")
    assert Body().tell(StartRequested(at=0.0, count=1, replaces=one)) == [
        StartInstances(count=1, reason="1 more asked for, with the role of a", order=1, replaces=one)
    ]


def test_restarted_scheduler_needs_only_the_next_reports() -> None:
    b = body()
    b.wait(1.0)
    b.report("a", **FULL, outgoing=1)
    b.report("b", **FREE, incoming=1)
    again = Body()
    again.report("a", **FULL, outgoing=1)
    again.report("b", **FREE, incoming=1)
    assert again.wait(1.0) == b.wait(1.0) == []
    again.report("a", **FULL)
    again.report("b", **FREE)
    assert moves(again.wait(1.0)) == [("a", "b", 1)]


def test_instance_that_is_about_to_run_out_of_blocks_does_not_wait_for_the_round() -> None:
    b = Body()
    b.report("b", **FREE)
    (move,) = b.report("a", **FULL, short_blocks=7)
    assert isinstance(move, MoveRequest)
    assert (move.source, move.order.target, move.order.wanted.urgent) == ("a", "b", True)
    assert move.order.reason.startswith("7 blocks short within 16 steps; freeness 0.5 against 180")
    assert moves(b.report("a", **FULL, short_blocks=7)) == [("a", "b", 1)]
    assert b.report("a", **FULL, short_blocks=7) == [], "two at once are enough"


@pytest.mark.parametrize("knobs", [{"migration": False}, {"policy": "infaas++"}])
def test_nobody_is_relieved_where_nothing_moves(knobs: dict[str, object]) -> None:
    b = Body(**knobs)  # type: ignore[arg-type]
    b.report("b", **FREE)
    assert b.report("a", **FULL, short_blocks=7) == []


FOR_PROMPTS = {"role": Role.PREFILL, "running": 2, "to_decode": 2, "to_decode_blocks": 40}


def leaving(commands: list[SchedulerCommand]) -> list[tuple[str, str, int, bool]]:
    moves = [command for command in commands if isinstance(command, MoveRequest)]
    return [(each.source, each.order.target, each.order.wanted.count, each.order.wanted.to_decode) for each in moves]


def test_requests_leave_an_instance_for_prompts_as_soon_as_it_reports_them() -> None:
    b = Body()
    b.report("d", role=Role.DECODE)
    commands = b.report("p", **FOR_PROMPTS)
    assert leaving(commands) == [("p", "d", 2, True)]
    assert [each.order.cause for each in commands if isinstance(each, MoveRequest)] == [MoveCause.DECODE]


def test_request_is_not_asked_to_leave_twice() -> None:
    b = Body()
    b.report("d", role=Role.DECODE)
    b.report("p", **FOR_PROMPTS)
    assert leaving(b.report("p", **FOR_PROMPTS)) == [], "both are asked for, and the report does not know it yet"
    moving = {**FOR_PROMPTS, "running": 3, "to_decode": 1, "to_decode_blocks": 20, "outgoing": 2}
    assert leaving(b.report("p", **moving)) == [("p", "d", 1, True)], "one more has come"


def test_those_that_are_not_asked_for_yet_are_as_large_as_they_are() -> None:
    b = Body()
    three = {**FOR_PROMPTS, "running": 3, "to_decode": 3, "to_decode_blocks": 60}
    b.report("d", role=Role.DECODE, free_blocks=25)
    assert leaving(b.report("p", **three)) == [("p", "d", 1, True)]
    b.report("d", role=Role.DECODE, free_blocks=5, incoming=1)
    b.report("e", role=Role.DECODE, free_blocks=25)
    assert leaving(b.report("p", **three)) == [("p", "e", 1, True)], "each has 20 blocks"


def test_request_that_leaves_in_need_is_not_asked_to_leave_twice() -> None:
    b = Body()
    b.report("d", role=Role.DECODE, **FREE)
    short = {**FOR_PROMPTS, **FULL, "short_blocks": 7}
    assert leaving(b.report("p", **short)) == [("p", "d", 1, False), ("p", "d", 1, True)], "it has two"


def test_one_for_tokens_is_found_behind_any_number_for_prompts() -> None:
    b = Body()
    b.report("d", role=Role.DECODE, **FREE)
    for n in range(TARGETS_TRIED):
        b.report(f"p{n}", role=Role.PREFILL)
    assert leaving(b.report("p", **FOR_PROMPTS)) == [("p", "d", 2, True)]
    b.report("p0", role=Role.MIXED)
    assert moves(b.report("a", **FULL, short_blocks=7)) == [("a", "p0", 1)], "it is among the freest again"


def test_one_that_has_just_ended_keeps_nobody_else_waiting() -> None:
    b = Body()
    b.report("d", role=Role.DECODE)
    (order,) = [each.order for each in b.report("p", **FOR_PROMPTS) if isinstance(each, MoveRequest)]
    gone = outcome("p", "d", request=None, why_not="nothing to give: no requests")
    b.tell(MigrationEnded(at=b.at, outcome=replace(gone, order=order)))
    assert leaving(b.report("p", **FOR_PROMPTS)) == [("p", "d", 2, True)]
    b.tell(MigrationEnded(at=b.at, outcome=replace(gone, order=order)))
    drain = b.tell(DrainRequested(at=b.at, instance=InstanceId("p")))
    assert any(isinstance(command, MoveRequest) for command in drain), "it is not taken to have nothing to give"


def test_role_is_the_instances_to_take() -> None:
    b = Body()
    b.report("a")
    wanted = RoleWanted(at=b.at, instance=InstanceId("a"), role=Role.DECODE)
    assert b.tell(wanted) == [SetRole(instance=InstanceId("a"), role=Role.DECODE, reason="asked for")]
    assert b.tell(replace(wanted, instance=InstanceId("x"))) == []
    assert b.scheduler.ignored == {"role of an unknown instance": 1}
