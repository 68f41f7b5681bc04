"""What the scheduler notes of its life: news, and each of it once."""

from __future__ import annotations

from admin_answers import drained
from llumnix.config import PolicyConfig
from llumnix.control import scheduler_events as control
from llumnix.control.orders import MoveCause, MoveId, MoveOrder
from llumnix.control.scaling import ScalingStep
from llumnix.control.scheduler import GlobalScheduler
from llumnix.journal import of_cluster
from llumnix.journal.entries import DrainNoted, RoundNoted
from llumnix.journal.journal import Journal
from llumnix.journal.of_cluster import ClusterNotes
from llumnix.journal.words import sentence
from llumnix.policy.pairing import PairingRound, Rejection, Why
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, Role

I0, I1 = InstanceId("i0"), InstanceId("i1")
NOTHING = PairingRound((), ())


def noted(notes: ClusterNotes) -> list[tuple[str, str | None, str]]:
    return [(entry.kind, entry.instance, entry.why) for entry in notes.journal.after(0).entries]


def notes_of(*told: tuple[control.SchedulerEvent, list[control.SchedulerCommand]]) -> ClusterNotes:
    notes = ClusterNotes(Journal("s"))
    for event, commands in told:
        notes.handled(event, commands, NOTHING)
    return notes


def report(instance: InstanceId, at: float) -> control.LoadReported:
    load = InstanceSnapshot(id=instance, at=at, seq=int(at), total_blocks=100, free_blocks=100)
    return control.LoadReported(at=at, snapshot=load)


def test_an_instance_comes_once_and_goes_once_whoever_tells_it() -> None:
    notes = notes_of(
        (control.InstanceStarted(at=1.0, instance=I0), []),
        (report(I0, 2.0), []),
        (report(I1, 2.0), []),  # of a scheduler before this one
        (control.RoundDue(at=3.0), [control.DeclareLost(instance=I0, why="silent for 10 s")]),
        (control.InstanceLost(at=4.0, instance=I0, why="killed"), []),
        (report(I0, 5.0), []),  # it was on its way
    )
    assert noted(notes) == [("instance", I0, ""), ("instance", I1, ""), ("instance", I0, "silent for 10 s")]
    assert [entry.what.serves for entry in notes.journal.after(0).entries] == [True, True, False]  # type: ignore[union-attr]


def test_a_drain_begins_once_however_often_it_is_told_and_ends_with_its_report() -> None:
    order = control.SetDraining(instance=I0, keep=False, reason="drain asked for: 4 running, 0 waiting")
    report = drained("i0", each=1)
    ended = control.DrainFinished(report=report, reason="empty after 0.5 s")
    back = control.SetDraining(instance=I0, keep=False, reason="it takes requests again", draining=False)
    round_due = control.RoundDue(at=2.0)
    notes = notes_of((round_due, [order]), (round_due, [order]), (round_due, [ended]), (round_due, [back]))
    assert noted(notes) == [
        ("drain", I0, "drain asked for: 4 running, 0 waiting"),
        ("drain", I0, "empty after 0.5 s"),
    ]
    assert [entry.what for entry in notes.journal.after(0).entries] == [DrainNoted(None), DrainNoted(report)]


def test_a_step_of_auto_scaling_and_not_the_orders_that_follow_from_it() -> None:
    step = ScalingStep(at=1.0, reason="freeness 3 below 10 for 10 s", start=1, carried_out=True)
    started = control.StartInstances(count=1, reason="auto-scaling", order=1)
    move = control.MoveRequest(
        source=I0, order=MoveOrder(move_id=MoveId("m"), target=I1, cause=MoveCause.BALANCE, reason="balance")
    )
    notes = notes_of((control.RoundDue(at=1.0), [control.ScalingDecided(step=step), started, move]))
    assert noted(notes) == [("scale", None, "freeness 3 below 10 for 10 s")]


def test_a_round_is_news_only_if_others_are_turned_down_or_for_another_reason() -> None:
    notes = ClusterNotes(Journal("s"))
    rounds: tuple[list[Rejection], ...] = (
        [Rejection(I0, I1, Why.NO_BENEFIT, 1.0, 0.5)],
        [Rejection(I0, I1, Why.NO_BENEFIT, 1.1, 0.4)],  # other numbers
        [Rejection(I0, InstanceId("i2"), Why.NO_BENEFIT, 1.1, 0.4)],  # of another of the freest
        [Rejection(I0, I1, Why.NO_ROOM, 4, 3)],
        [],
        [],
    )
    for number, rejected in enumerate(rounds):
        notes.handled(control.RoundDue(at=float(number)), [], PairingRound((), tuple(rejected)))
    assert [entry.at_s for entry in notes.journal.after(0).entries] == [0.0, 3.0, 4.0]


def test_a_round_that_turns_down_very_many_says_how_many_more() -> None:
    notes = ClusterNotes(Journal("s"))
    count = of_cluster.MOST_REJECTIONS + 5
    rejected = tuple(Rejection(InstanceId(f"i{number}"), None, Why.NO_TARGET) for number in range(count))
    notes.handled(control.RoundDue(at=0.0), [], PairingRound((), rejected))
    (entry,) = notes.journal.after(0).entries
    assert isinstance(entry.what, RoundNoted)
    assert (len(entry.what.rejected), entry.what.left_out) == (of_cluster.MOST_REJECTIONS, 5)


def test_the_scheduler_that_serves_is_told_of_as_it_answers() -> None:
    """A full instance without anywhere to give: that is what keeps its requests where they are."""
    scheduler, notes = GlobalScheduler(PolicyConfig(), 10.0), ClusterNotes(Journal("s"))
    full = InstanceSnapshot(id=I0, at=0.0, seq=1, total_blocks=100, free_blocks=1, running=9, smallest_running_blocks=9)
    for event in (control.LoadReported(at=0.0, snapshot=full), control.RoundDue(at=0.2)):
        notes.handled(event, scheduler.handle(event), scheduler.last_round)
    served, turned_down = notes.journal.after(0).entries
    assert (served.kind, turned_down.kind) == ("instance", "round")
    assert turned_down.what == RoundNoted((Rejection(I0, None, Why.NO_TARGET),))


def test_role_is_noted_and_told_in_words() -> None:
    given = control.SetRole(instance=I1, role=Role.DECODE, reason="asked for")
    notes = notes_of((control.RoleWanted(at=1.0, instance=I1, role=Role.DECODE), [given]))
    assert noted(notes) == [("role", I1, "asked for")]
    (entry,) = notes.journal.after(0).entries
    assert sentence(entry) == "i1 is for tokens from now on: asked for"


def test_advice_is_noted_as_what_would_be() -> None:
    advice = control.RolesAdvised(changes={I0: Role.PREFILL, I1: Role.DECODE}, reason="1 more for prompts")
    notes = notes_of((control.RoundDue(at=1.0), [advice]))
    assert [sentence(entry) for entry in notes.journal.after(0).entries] == [
        "i0 would be for prompts from now on: 1 more for prompts",
        "i1 would be for tokens from now on: 1 more for prompts",
    ]
    assert str(advice) == "roles would change: i0 prefill, i1 decode (1 more for prompts)"
