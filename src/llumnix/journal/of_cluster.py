"""What the scheduler notes, of what it hears and decides: the same live and simulated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from llumnix.control.gone import GoneIds
from llumnix.control.scheduler_events import (
    AskWhereCached,
    DeclareLost,
    DrainFinished,
    InstanceLost,
    InstanceStarted,
    LoadReported,
    MoveRequest,
    ReplayRest,
    RolesAdvised,
    RoundAt,
    RoundDue,
    ScalingDecided,
    SchedulerCommand,
    SchedulerEvent,
    SetDraining,
    SetRole,
    StartInstances,
    StopInstance,
)
from llumnix.journal.entries import DrainNoted, InstanceNoted, RoleNoted, RoundNoted, ScalingNoted
from llumnix.journal.journal import Journal
from llumnix.policy.pairing import PairingRound, Rejection
from llumnix.types import InstanceId

MOST_REJECTIONS = 64
"""In one entry."""


class ClusterNotes:
    """Told of each event with the scheduler's answer, once that is known."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._serving: set[InstanceId] = set()
        self._draining: set[InstanceId] = set()
        self._gone = GoneIds()
        self._turned_down: tuple[tuple[InstanceId, str], ...] = ()

    def handled(self, event: SchedulerEvent, commands: list[SchedulerCommand], last_round: PairingRound) -> None:
        if isinstance(event, LoadReported):
            self._serves(event.at, event.snapshot.id)
        elif isinstance(event, InstanceStarted):
            self._serves(event.at, event.instance)
        elif isinstance(event, InstanceLost):
            self._is_gone(event.at, event.instance, event.why)
        elif isinstance(event, RoundDue):
            self._paired(event.at, last_round.rejected)
        for command in commands:
            self._decided(event.at, command)

    def _decided(self, at: float, command: SchedulerCommand) -> None:
        match command:
            case SetDraining():
                self._drains(at, command)
            case DrainFinished():
                report = command.report
                self._draining.discard(report.instance)
                self.journal.note(at, DrainNoted(report), instance=report.instance, why=command.reason)
            case SetRole():
                self.journal.note(at, RoleNoted(command.role), instance=command.instance, why=command.reason)
            case RolesAdvised():
                for instance, role in command.changes.items():
                    self.journal.note(at, RoleNoted(role, carried_out=False), instance=instance, why=command.reason)
            case DeclareLost():
                self._is_gone(at, command.instance, command.why)
            case ScalingDecided():
                step = command.step
                self.journal.note(at, ScalingNoted(step), instance=step.drain, why=step.reason)
            case MoveRequest() | AskWhereCached() | ReplayRest() | StopInstance() | StartInstances() | RoundAt():
                pass
            case _:
                assert_never(command)

    def _serves(self, at: float, instance: InstanceId) -> None:
        if instance not in self._serving and instance not in self._gone:
            self._serving.add(instance)
            self.journal.note(at, InstanceNoted(serves=True), instance=instance)

    def _is_gone(self, at: float, instance: InstanceId, why: str) -> None:
        if instance not in self._gone:
            self._gone.add(instance)
            self._serving.discard(instance)
            self._draining.discard(instance)
            self.journal.note(at, InstanceNoted(serves=False), instance=instance, why=why)

    def _drains(self, at: float, order: SetDraining) -> None:
        """It is told again and again, until it has heard it."""
        if order.draining and order.instance not in self._draining:
            self._draining.add(order.instance)
            self.journal.note(at, DrainNoted(None), instance=order.instance, why=order.reason)

    def _paired(self, at: float, rejected: Sequence[Rejection]) -> None:
        """The numbers change all the time, and which of the four freest targets; that is no news."""
        turned_down = tuple(dict.fromkeys((rejection.source, rejection.why) for rejection in rejected))
        if turned_down != self._turned_down:
            self._turned_down = turned_down
            left_out = max(0, len(rejected) - MOST_REJECTIONS)
            self.journal.note(at, RoundNoted(tuple(rejected[:MOST_REJECTIONS]), left_out))
