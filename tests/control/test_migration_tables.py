"""Every edge of both transition tables is a situation with a name; every other event is illegal and changes nothing."""

# Ids are plain strings here, and of what class a command is, the test itself shows.
# mypy: disable-error-code="arg-type, type-arg, union-attr"
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from llumnix.config import MigrationConfig
from llumnix.control import commands as do
from llumnix.control import events as ev
from llumnix.control import messages as say
from llumnix.control.migration import SOURCE, TARGET
from llumnix.control.migration_source import MigrationSource
from llumnix.control.migration_target import MigrationTarget, TargetState
from llumnix.control.orders import MoveCause, MoveFigures, MoveOrder, MoveOutcome, StayCause
from llumnix.control.source_state import SourceState
from llumnix.control.transitions import Expired, Machine, Table, follow
from llumnix.errors import IllegalEvent

CONFIG = MigrationConfig(max_stages=3, last_stage_max_blocks=2)
ID = {"request": "r", "epoch": 5}
FROM_TARGET = {**ID, "sender": "b"}
FROM_SOURCE = {**ID, "sender": "a"}


def progress(settled: int, *, decoding: bool = True, queued: bool = False) -> ev.Progress:
    return ev.Progress(1.0, "r", settled, settled + 1, 7, decoding, queued)


def verdict(owner: str) -> say.Verdict:
    return say.Verdict(**ID, sender=say.FRONT_END, owner=owner)


PREPARED = say.Prepared(**FROM_TARGET, skip_blocks=0)
COPIED_1 = say.Copied(**FROM_TARGET, stage=1, bytes_read=100)
COMMITTED = say.Committed(**FROM_TARGET, bytes_read=30)
REFUSED = say.Refused(**FROM_TARGET, reason="no room")
DETACHED = ev.Detached(2.0, "r", 12, 9)
PREEMPTED = ev.Preempted(2.0, "r")
GONE = ev.Gone(2.0, "r", "aborted")
PREPARE = say.Prepare(**FROM_SOURCE, blocks=10)
COPY_1 = say.Copy(**FROM_SOURCE, stage=1, first_block=0, blocks=8)
COPY_2 = say.Copy(**FROM_SOURCE, stage=2, first_block=8, blocks=4)
COPY_WITH_A_GAP = say.Copy(**FROM_SOURCE, stage=1, first_block=3, blocks=8)
COMMIT_1 = say.Commit(**FROM_SOURCE, stage=1, first_block=0, blocks=3)
COMMIT_2 = say.Commit(**FROM_SOURCE, stage=2, first_block=8, blocks=3)
COMMIT_NOTHING = say.Commit(**FROM_SOURCE, stage=1, first_block=0, blocks=0)
CANCEL = say.Cancel(**FROM_SOURCE, reason="finished")
RESERVED = ev.Reserved(1.0, "r", 5, 0)
RESERVE_FAILED = ev.ReserveFailed(1.0, "r", 5, "no room")
PULLED_1 = ev.Pulled(1.0, "r", 5, 1, 100)
PULL_FAILED = ev.PullFailed(1.0, "r", 5, 1, "connection lost")
INSTALLED = ev.Installed(1.0, "r", 5, 9)
INSTALL_FAILED = ev.InstallFailed(1.0, "r", 5, "no slot")
LOST = ev.PeerLost(2.0, "x")


@dataclass(frozen=True)
class Situation:
    name: str
    past: Sequence[object]
    event: object
    state: SourceState | TargetState
    commands: list[str]
    queued: bool = False
    """No room was asked for."""


S, T = SourceState, TargetState
PREPARING: list[object] = []
COPYING = [progress(8), PREPARED]
WAITING = [progress(0, decoding=False), PREPARED]
DETACHING = [progress(2), PREPARED]
COMMITTING = [*DETACHING, DETACHED]
DOUBT = [*COMMITTING, Expired()]
COPY = ["PinBlocks", "Send Copy"]
DETACH = ["Unwatch", "Detach"]
STAYS = ["Notify Stayed", "AnswerMove"]

OF_SOURCE = [
    Situation("settled blocks are there when the target has room", [progress(8)], PREPARED, S.COPYING, COPY),
    Situation("target has room before the prefill has begun", PREPARING, PREPARED, S.WAITING, []),
    Situation("target has room and little is settled", [progress(2)], PREPARED, S.DETACHING, DETACH),
    Situation("steps go on while the target is asked", PREPARING, progress(3), S.PREPARING, []),
    Situation(
        "prompt begins while the target is asked to queue it",
        [progress(1, decoding=False)],
        PREPARED,
        S.STAYED,
        ["Unwatch", "Send Cancel", *STAYS],
        queued=True,
    ),
    Situation("target has no room", PREPARING, REFUSED, S.STAYED, ["Unwatch", *STAYS]),
    Situation(
        "preempted while the target is asked", PREPARING, PREEMPTED, S.STAYED, ["Unwatch", "Send Cancel", *STAYS]
    ),
    Situation("ends while the target is asked", PREPARING, GONE, S.STAYED, ["Unwatch", "Send Cancel", "AnswerMove"]),
    Situation("target lost while it is asked", PREPARING, LOST, S.STAYED, ["Unwatch", *STAYS]),
    Situation("target does not answer", PREPARING, Expired(), S.STAYED, ["Unwatch", "Send Cancel", *STAYS]),
    Situation(
        "much was settled during the first stage",
        [*COPYING, progress(12)],
        COPIED_1,
        S.COPYING,
        ["UnpinBlocks", *COPY],
    ),
    Situation(
        "prefill goes on after a stage", [progress(8, decoding=False), PREPARED], COPIED_1, S.WAITING, ["UnpinBlocks"]
    ),
    Situation("little was settled during the stage", COPYING, COPIED_1, S.DETACHING, ["UnpinBlocks", *DETACH]),
    Situation("an acknowledgement comes twice", [*COPYING, progress(12), COPIED_1], COPIED_1, S.COPYING, []),
    Situation("steps go on during a stage", COPYING, progress(9), S.COPYING, []),
    Situation("the target's yes comes twice", COPYING, PREPARED, S.COPYING, []),
    Situation("target gives up during a stage", COPYING, REFUSED, S.STAYED, ["UnpinBlocks", "Unwatch", *STAYS]),
    Situation(
        "preempted during a stage", COPYING, PREEMPTED, S.STAYED, ["UnpinBlocks", "Unwatch", "Send Cancel", *STAYS]
    ),
    Situation("ends during a stage", COPYING, GONE, S.STAYED, ["UnpinBlocks", "Unwatch", "Send Cancel", "AnswerMove"]),
    Situation("target lost during a stage", COPYING, LOST, S.STAYED, ["UnpinBlocks", "Unwatch", *STAYS]),
    Situation(
        "a stage takes too long", COPYING, Expired(), S.STAYED, ["UnpinBlocks", "Unwatch", "Send Cancel", *STAYS]
    ),
    Situation("a piece of the prefill is too small", WAITING, progress(1, decoding=False), S.WAITING, []),
    Situation("a piece of the prefill is worth a stage", WAITING, progress(6, decoding=False), S.COPYING, COPY),
    Situation("a short prefill is over", WAITING, progress(2), S.DETACHING, DETACH),
    Situation("back in the queue without a word", WAITING, progress(0, queued=True), S.DETACHING, DETACH),
    Situation("target gives up during the prefill", WAITING, REFUSED, S.STAYED, ["Unwatch", *STAYS]),
    Situation("preempted during the prefill", WAITING, PREEMPTED, S.STAYED, ["Unwatch", "Send Cancel", *STAYS]),
    Situation("aborted during the prefill", WAITING, GONE, S.STAYED, ["Unwatch", "Send Cancel", "AnswerMove"]),
    Situation("target lost during the prefill", WAITING, LOST, S.STAYED, ["Unwatch", *STAYS]),
    Situation("the prefill takes too long", WAITING, Expired(), S.STAYED, ["Unwatch", "Send Cancel", *STAYS]),
    Situation("the target's yes comes twice during the prefill", WAITING, PREPARED, S.WAITING, []),
    Situation(
        "an acknowledgement comes twice during the prefill",
        [progress(8, decoding=False), PREPARED, COPIED_1],
        COPIED_1,
        S.WAITING,
        [],
    ),
    Situation("out of the batch", DETACHING, DETACHED, S.COMMITTING, ["PinBlocks", "Send Commit"]),
    Situation("target gives up while it leaves the batch", DETACHING, REFUSED, S.STAYED, ["Reattach", *STAYS]),
    Situation("its last step ends it", DETACHING, GONE, S.STAYED, ["Send Cancel", "AnswerMove"]),
    Situation("target lost while it leaves the batch", DETACHING, LOST, S.STAYED, ["Reattach", *STAYS]),
    Situation("the engine does not let go", DETACHING, Expired(), S.STAYED, ["Send Cancel", "Reattach", *STAYS]),
    Situation("the target's yes comes twice at the hand-over", DETACHING, PREPARED, S.DETACHING, []),
    Situation("an acknowledgement comes twice at the hand-over", [*COPYING, COPIED_1], COPIED_1, S.DETACHING, []),
    Situation(
        "target has it", COMMITTING, COMMITTED, S.MOVED, ["UnpinBlocks", "Notify Moved", "Release", "AnswerMove"]
    ),
    Situation("target gives up at the commit", COMMITTING, REFUSED, S.STAYED, ["UnpinBlocks", "Reattach", *STAYS]),
    Situation("client aborts at the commit", COMMITTING, GONE, S.STAYED, ["UnpinBlocks", "Send Cancel", "AnswerMove"]),
    Situation("target lost at the commit", COMMITTING, LOST, S.DOUBT, ["SendToFrontEnd Doubt"]),
    Situation("no answer to the commit", COMMITTING, Expired(), S.DOUBT, ["SendToFrontEnd Doubt"]),
    Situation("the target's yes comes twice after the commit", COMMITTING, PREPARED, S.COMMITTING, []),
    Situation(
        "an acknowledgement comes twice after the commit", [*COPYING, COPIED_1, DETACHED], COPIED_1, S.COMMITTING, []
    ),
    Situation("front end lets it stay", DOUBT, verdict("a"), S.STAYED, ["UnpinBlocks", "Reattach", *STAYS]),
    Situation(
        "front end gives it to the target",
        DOUBT,
        verdict("b"),
        S.MOVED,
        ["UnpinBlocks", "Notify Moved", "Release", "AnswerMove"],
    ),
    Situation(
        "front end has no such request any more",
        DOUBT,
        verdict(say.NOBODY),
        S.STAYED,
        ["UnpinBlocks", "Release", "AnswerMove"],
    ),
    Situation("client aborts in doubt", DOUBT, GONE, S.STAYED, ["UnpinBlocks", "Send Cancel", "AnswerMove"]),
    Situation("front end does not answer", DOUBT, Expired(), S.DOUBT, ["SendToFrontEnd Doubt"]),
    Situation("target lost in doubt", DOUBT, LOST, S.DOUBT, []),
    Situation("the target's yes comes twice in doubt", DOUBT, PREPARED, S.DOUBT, []),
    Situation("an acknowledgement comes twice in doubt", DOUBT, COPIED_1, S.DOUBT, []),
    Situation("target answers the commit in doubt", DOUBT, COMMITTED, S.DOUBT, []),
    Situation("target refuses the commit in doubt", DOUBT, REFUSED, S.DOUBT, []),
]

RESERVING: list[object] = []
READY = [RESERVED]
PULLING = [RESERVED, COPY_1]
PULLING_THE_LAST = [RESERVED, COMMIT_1]
INSTALLING = [*PULLING_THE_LAST, PULLED_1]
ADOPTED = [*INSTALLING, INSTALLED]
REFUSES = ["Drop", "Send Refused"]

OF_TARGET = [
    Situation("engine has room", RESERVING, RESERVED, T.READY, ["Send Prepared"]),
    Situation("engine has no room", RESERVING, RESERVE_FAILED, T.DROPPED, ["Send Refused"]),
    Situation("cancelled before the engine answers", RESERVING, CANCEL, T.DROPPED, ["Drop"]),
    Situation("judged before the engine answers", RESERVING, verdict("a"), T.DROPPED, ["Drop"]),
    Situation("source lost before the engine answers", RESERVING, LOST, T.DROPPED, ["Drop"]),
    Situation("engine does not answer", RESERVING, Expired(), T.DROPPED, REFUSES),
    Situation("a stage of an earlier reservation", RESERVING, COPY_2, T.DROPPED, REFUSES),
    Situation("a commit to an earlier reservation", RESERVING, COMMIT_2, T.DROPPED, REFUSES),
    Situation("asked twice before the engine answers", RESERVING, PREPARE, T.RESERVING, []),
    Situation("the first stage", READY, COPY_1, T.PULLING, ["Pull"]),
    Situation("a stage comes twice", [*PULLING, PULLED_1], COPY_1, T.READY, []),
    Situation("a stage does not begin where the blocks end", READY, COPY_WITH_A_GAP, T.DROPPED, REFUSES),
    Situation("the commit names blocks", READY, COMMIT_1, T.PULLING, ["Pull"]),
    Situation("the commit of a queued request", READY, COMMIT_NOTHING, T.INSTALLING, ["Install"]),
    Situation("a commit after a stage that never came", READY, COMMIT_2, T.DROPPED, REFUSES),
    Situation("cancelled between stages", READY, CANCEL, T.DROPPED, ["Drop"]),
    Situation("judged between stages", READY, verdict("a"), T.DROPPED, ["Drop"]),
    Situation("source lost between stages", READY, LOST, T.DROPPED, ["Drop"]),
    Situation("nothing more is heard of the source", READY, Expired(), T.DROPPED, REFUSES),
    Situation("asked twice", READY, PREPARE, T.READY, ["Send Prepared"]),
    Situation("a stage is here", PULLING, PULLED_1, T.READY, ["Send Copied"]),
    Situation("the last blocks are here", PULLING_THE_LAST, PULLED_1, T.INSTALLING, ["Install"]),
    Situation("blocks cannot be read", PULLING, PULL_FAILED, T.DROPPED, REFUSES),
    Situation("cancelled during a stage", PULLING, CANCEL, T.DROPPED, ["Drop"]),
    Situation("judged during the last stage", PULLING_THE_LAST, verdict("a"), T.DROPPED, ["Drop"]),
    Situation("source lost during a stage", PULLING, LOST, T.DROPPED, ["Drop"]),
    Situation("reading takes too long", PULLING, Expired(), T.DROPPED, REFUSES),
    Situation("a stage comes twice while it is read", PULLING, COPY_1, T.PULLING, []),
    Situation("a stage comes before the one before is here", PULLING, COPY_2, T.DROPPED, REFUSES),
    Situation("the commit comes twice while it is read", PULLING_THE_LAST, COMMIT_1, T.PULLING, []),
    Situation("a commit comes before the stage is here", PULLING, COMMIT_2, T.DROPPED, REFUSES),
    Situation("asked twice, the second time during a stage", PULLING, PREPARE, T.PULLING, []),
    Situation("engine runs it", INSTALLING, INSTALLED, T.ADOPTED, ["Notify Adopted", "Send Committed"]),
    Situation("engine cannot run it", INSTALLING, INSTALL_FAILED, T.DROPPED, REFUSES),
    Situation("aborted at the source while it is installed", INSTALLING, CANCEL, T.DROPPED, ["Drop"]),
    Situation("judged while it is installed", INSTALLING, verdict("a"), T.DROPPED, ["Drop"]),
    Situation("engine takes too long to install it", INSTALLING, Expired(), T.DROPPED, REFUSES),
    Situation("source lost when everything is here", INSTALLING, LOST, T.INSTALLING, []),
    Situation("asked twice, the second time after the commit", INSTALLING, PREPARE, T.INSTALLING, []),
    Situation("a stage comes twice after the commit", INSTALLING, COPY_1, T.INSTALLING, []),
    Situation("the commit comes twice while it is installed", INSTALLING, COMMIT_1, T.INSTALLING, []),
    Situation("front end confirms", ADOPTED, verdict("b"), T.SETTLED, []),
    Situation("front end fences", ADOPTED, verdict("a"), T.DROPPED, ["Notify Fenced", "Release"]),
    Situation("ends before the front end confirms", ADOPTED, GONE, T.SETTLED, []),
    Situation("front end says nothing", ADOPTED, Expired(), T.ADOPTED, ["SendToFrontEnd Doubt"]),
    Situation("the commit comes twice", ADOPTED, COMMIT_1, T.ADOPTED, ["Send Committed"]),
    Situation("source cancels what it forgot", ADOPTED, CANCEL, T.ADOPTED, []),
    Situation("source lost after the hand-over", ADOPTED, LOST, T.ADOPTED, []),
    Situation("asked twice, the second time after all was over", ADOPTED, PREPARE, T.ADOPTED, []),
    Situation("a stage comes twice after all was over", ADOPTED, COPY_1, T.ADOPTED, []),
]


ORDER = MoveOrder(move_id="m1", target="b", cause=MoveCause.BALANCE, reason="balance")


def a_source(*, queued: bool = False) -> MigrationSource:
    source = MigrationSource(me="a", order=ORDER, request="r", epoch=5, config=CONFIG, queued=queued)
    source.start(0.0, blocks=0 if queued else 10)
    return source


def a_target() -> MigrationTarget:
    target = MigrationTarget(me="b", source="a", request="r", epoch=5, config=CONFIG)
    target.start(0.0, PREPARE)
    return target


def shape(command: do.AnyCommand) -> str:
    message = getattr(command, "message", None)
    says = isinstance(command, do.Send | do.SendToFrontEnd | do.Notify)
    return f"{type(command).__name__} {type(message).__name__}" if says else type(command).__name__


def drive(table: Table, machine: Any, situation: Situation) -> list[do.AnyCommand]:
    for event in situation.past:
        follow(table, machine, 1.0, event)
        machine.validate()
    commands = follow(table, machine, 2.0, situation.event)
    machine.validate()
    return commands


def named(situation: Situation) -> str:
    return situation.name


@pytest.mark.parametrize("situation", OF_SOURCE, ids=named)
def test_source(situation: Situation) -> None:
    source = a_source(queued=situation.queued)
    commands = drive(SOURCE, source, situation)
    assert (source.state, [shape(each) for each in commands]) == (situation.state, situation.commands)


@pytest.mark.parametrize("situation", OF_TARGET, ids=named)
def test_target(situation: Situation) -> None:
    target = a_target()
    commands = drive(TARGET, target, situation)
    assert (target.state, [shape(each) for each in commands]) == (situation.state, situation.commands)


@pytest.mark.parametrize(
    ("table", "new", "situations"),
    [(SOURCE, lambda one: a_source(queued=one.queued), OF_SOURCE), (TARGET, lambda _: a_target(), OF_TARGET)],
    ids=["source", "target"],
)
def test_every_edge_has_a_situation(table: Table, new: Callable[[Situation], Any], situations: list[Situation]) -> None:
    seen = set()
    for situation in situations:
        machine = new(situation)
        for event in situation.past:
            follow(table, machine, 1.0, event)
        seen.add((machine.state, type(situation.event), situation.state))
    edges = {(state, event, to) for state, row in table.items() for event, edge in row.items() for to in edge.to}
    assert edges - seen == set()
    assert seen - edges == set()


EXAMPLES_FOR_SOURCE = [
    progress(8), PREPARED, COPIED_1, COMMITTED, REFUSED, verdict("a"), DETACHED, PREEMPTED, GONE, LOST, Expired(),
]  # fmt: skip
EXAMPLES_FOR_TARGET = [
    PREPARE, COPY_1, COMMIT_1, CANCEL, verdict("a"), RESERVED, RESERVE_FAILED, PULLED_1, PULL_FAILED, INSTALLED,
    INSTALL_FAILED, GONE, LOST, Expired(),
]  # fmt: skip


def illegal(table: Table, examples: list[object], ways: dict[object, Sequence[object]]) -> list[object]:
    return [
        pytest.param(past, event, id=f"{type(event).__name__} while {state}")
        for state, past in ways.items()
        for event in examples
        if type(event) not in table[state]
    ]


WAYS_OF_SOURCE = {
    S.PREPARING: PREPARING,
    S.COPYING: COPYING,
    S.WAITING: WAITING,
    S.DETACHING: DETACHING,
    S.COMMITTING: COMMITTING,
    S.DOUBT: DOUBT,
    S.MOVED: [*COMMITTING, COMMITTED],
    S.STAYED: [REFUSED],
}
WAYS_OF_TARGET = {
    T.RESERVING: RESERVING,
    T.READY: READY,
    T.PULLING: PULLING,
    T.INSTALLING: INSTALLING,
    T.ADOPTED: ADOPTED,
    T.SETTLED: [*ADOPTED, verdict("b")],
    T.DROPPED: [CANCEL],
}


@pytest.mark.parametrize(("past", "event"), illegal(SOURCE, EXAMPLES_FOR_SOURCE, WAYS_OF_SOURCE))
def test_source_takes_nothing_else(past: list[object], event: object) -> None:
    refuse(SOURCE, a_source(), past, event)


@pytest.mark.parametrize(("past", "event"), illegal(TARGET, EXAMPLES_FOR_TARGET, WAYS_OF_TARGET))
def test_target_takes_nothing_else(past: list[object], event: object) -> None:
    refuse(TARGET, a_target(), past, event)


def refuse(table: Table, machine: Machine, past: list[object], event: object) -> None:
    for each in past:
        follow(table, machine, 1.0, each)
    before = msgspec.json.encode(machine)
    with pytest.raises(IllegalEvent, match="epoch 5"):
        follow(table, machine, 2.0, event)
    assert msgspec.json.encode(machine) == before


@pytest.mark.parametrize(
    ("table", "ways", "examples"),
    [(SOURCE, WAYS_OF_SOURCE, EXAMPLES_FOR_SOURCE), (TARGET, WAYS_OF_TARGET, EXAMPLES_FOR_TARGET)],
    ids=["source", "target"],
)
def test_every_state_and_event_is_looked_at(table: Table, ways: dict, examples: list[object]) -> None:
    assert set(ways) == set(table)
    assert {event for row in table.values() for event in row} == {type(event) for event in examples}


# what the table cannot say


def test_acknowledgement_of_a_stage_that_was_never_sent_is_illegal() -> None:
    source = a_source()
    for event in COPYING:
        follow(SOURCE, source, 1.0, event)
    with pytest.raises(IllegalEvent, match="before it was sent"):
        follow(SOURCE, source, 1.0, say.Copied(**FROM_TARGET, stage=2, bytes_read=1))


def test_blocks_that_were_not_asked_for_are_illegal() -> None:
    target = a_target()
    for event in PULLING:
        follow(TARGET, target, 1.0, event)
    with pytest.raises(IllegalEvent, match="not being read"):
        follow(TARGET, target, 1.0, ev.Pulled(1.0, "r", 5, 2, 1))


def test_verdict_for_a_target_that_never_adopted_is_illegal() -> None:
    target = a_target()
    with pytest.raises(IllegalEvent, match="never adopted"):
        follow(TARGET, target, 1.0, verdict("b"))


def test_hand_over_is_forced_after_max_stages_of_decoding() -> None:
    source = a_source()
    follow(SOURCE, source, 1.0, progress(10))
    follow(SOURCE, source, 1.0, PREPARED)
    for stage in (1, 2, 3):
        assert source.state is S.COPYING
        follow(SOURCE, source, 1.0, progress(10 + 10 * stage))
        follow(SOURCE, source, 1.0, say.Copied(**FROM_TARGET, stage=stage, bytes_read=1))
    assert source.state is S.DETACHING


def test_stages_of_the_prefill_do_not_count_towards_max_stages() -> None:
    source = a_source()
    follow(SOURCE, source, 1.0, progress(10, decoding=False))
    follow(SOURCE, source, 1.0, PREPARED)
    for stage in range(1, 7):
        follow(SOURCE, source, 1.0, progress(10 + 10 * stage, decoding=False))
        follow(SOURCE, source, 1.0, say.Copied(**FROM_TARGET, stage=stage, bytes_read=1))
        assert source.state is S.COPYING


def test_blocks_in_the_prefix_cache_of_the_target_are_not_copied() -> None:
    source = a_source()
    follow(SOURCE, source, 1.0, progress(10))
    pin, send = follow(SOURCE, source, 1.0, say.Prepared(**FROM_TARGET, skip_blocks=6))
    assert pin == do.PinBlocks("r", 5, 6, 4)
    assert send == do.Send("b", say.Copy(**FROM_SOURCE, stage=1, first_block=6, blocks=4))


def test_target_has_more_cached_than_the_source_has_computed() -> None:
    source = a_source()
    follow(SOURCE, source, 1.0, progress(2, decoding=False))
    assert follow(SOURCE, source, 1.0, say.Prepared(**FROM_TARGET, skip_blocks=6)) == []
    assert source.state is S.WAITING


def test_figures_of_a_move() -> None:
    source = a_source()
    follow(SOURCE, source, 1.0, progress(10))
    follow(SOURCE, source, 2.0, say.Prepared(**FROM_TARGET, skip_blocks=3))
    follow(SOURCE, source, 5.0, COPIED_1)
    follow(SOURCE, source, 5.5, DETACHED)
    commands = follow(SOURCE, source, 6.0, COMMITTED)
    figures = MoveFigures(stages=2, bytes_copied=130, blocks_skipped=3, held_blocks=12, copy_s=3.0, handover_s=1.0)
    outcome = MoveOutcome(order=ORDER, source="a", request="r", figures=figures)
    assert commands[-1] == do.AnswerMove(outcome)
    assert commands[1].message.outcome == outcome, "the front end is told the same"


def test_state_is_read_although_all_blocks_are_there_already() -> None:
    source, target = a_source(), a_target()
    follow(SOURCE, source, 1.0, progress(10))
    follow(SOURCE, source, 1.0, say.Prepared(**FROM_TARGET, skip_blocks=10))
    (send,) = follow(SOURCE, source, 1.0, ev.Detached(1.0, "r", 10, 9, 2))
    assert send.message == say.Commit(**FROM_SOURCE, stage=1, first_block=10, blocks=0, state_blocks=2)
    follow(TARGET, target, 1.0, ev.Reserved(1.0, "r", 5, 10))
    assert follow(TARGET, target, 1.0, send.message) == [do.Pull("r", 5, 1, send.message)]
    commands = follow(SOURCE, source, 1.0, COMMITTED)
    assert commands[-1].outcome.figures.held_blocks == 12


def test_queued_request_moves_without_blocks() -> None:
    source = a_source(queued=True)
    assert follow(SOURCE, source, 1.0, PREPARED) == [do.Unwatch("r"), do.Detach("r")]
    commit = say.Commit(**FROM_SOURCE, stage=1, first_block=0, blocks=0)
    assert follow(SOURCE, source, 1.0, ev.Detached(1.0, "r", 0, 0)) == [do.Send("b", commit)]


def test_queued_request_that_begins_while_the_target_is_asked_stays() -> None:
    """The target keeps no room for what it holds by now. That says nothing of the two instances."""
    source = a_source(queued=True)
    follow(SOURCE, source, 1.0, progress(8))
    answer = follow(SOURCE, source, 1.0, PREPARED)[-1]
    assert (answer.outcome.stayed, answer.outcome.came_late) == (StayCause.BEGAN, True)


def test_bytes_of_a_commit_without_blocks_are_not_those_of_the_stage_before() -> None:
    target = a_target()
    for event in [RESERVED, COPY_1, PULLED_1, say.Commit(**FROM_SOURCE, stage=2, first_block=8, blocks=0)]:
        follow(TARGET, target, 1.0, event)
    notify, send = follow(TARGET, target, 1.0, INSTALLED)
    assert send.message.bytes_read == 0
    assert notify == do.Notify("r", say.Adopted(**FROM_TARGET, source="a", output_tokens=9))


@pytest.mark.parametrize(
    ("past", "why"),
    [
        (PREPARING, "the target did not say in time whether it has room"),
        (COPYING, "its blocks were not copied in time"),
        (WAITING, "too little of it was settled in time"),
        (DETACHING, "it could not leave its batch in time"),
    ],
)
def test_what_took_too_long_is_said(past: list[object], why: str) -> None:
    source = a_source()
    for event in [*past, Expired()]:
        commands = follow(SOURCE, source, 1.0, event)
    assert commands[-1].outcome.why_not == why


@pytest.mark.parametrize(
    ("past", "deadline"),
    [
        (PREPARING, CONFIG.prepare_timeout_s),
        (COPYING, 1 + CONFIG.stage_timeout_s),
        (WAITING, 1 + CONFIG.stage_timeout_s),
        (DETACHING, 1 + CONFIG.detach_timeout_s),
        (COMMITTING, 1 + CONFIG.commit_timeout_s),
        (DOUBT, 1 + CONFIG.verdict_timeout_s),
        ([REFUSED], None),
    ],
)
def test_every_wait_of_the_source_has_a_deadline(past: list[object], deadline: float | None) -> None:
    source = a_source()
    for event in past:
        follow(SOURCE, source, 1.0, event)
    assert source.deadline_s == deadline


@pytest.mark.parametrize(
    ("past", "deadline"),
    [
        (RESERVING, CONFIG.prepare_timeout_s),
        (READY, 1 + CONFIG.stage_timeout_s + CONFIG.detach_timeout_s),
        (PULLING, 1 + CONFIG.stage_timeout_s),
        (INSTALLING, 1 + CONFIG.stage_timeout_s),
        (ADOPTED, 1 + CONFIG.commit_timeout_s),
        ([*ADOPTED, Expired()], 1 + CONFIG.verdict_timeout_s),
        ([CANCEL], None),
    ],
)
def test_every_wait_of_the_target_has_a_deadline(past: list[object], deadline: float | None) -> None:
    target = a_target()
    for event in past:
        follow(TARGET, target, 1.0, event)
    assert target.deadline_s == deadline
