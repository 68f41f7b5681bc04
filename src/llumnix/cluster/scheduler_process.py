"""The scheduler process: turns messages into events for the global scheduler and carries out what it asks for.

It may die at any moment: dispatch happens in the front ends, instances finish their migrations by themselves, and the
launcher starts it again; it then knows everything that the next reports tell.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import time
from typing import assert_never

import msgspec

from llumnix import linux, text_logs
from llumnix.cluster import json_logs
from llumnix.cluster.scaling_status import scaling_status
from llumnix.cluster.wishes import HeardOf, Wishes
from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig, ScalingConfig
from llumnix.control import scheduler_events as control
from llumnix.control.drain import drain_limits
from llumnix.control.fleet import Fleet
from llumnix.control.pace import SizeTold
from llumnix.control.replay import SchedulerBegin
from llumnix.control.scaling import ScalingMode
from llumnix.decision_log import begin_journal
from llumnix.journal.of_cluster import ClusterNotes
from llumnix.recording import recorder
from llumnix.types import InstanceId
from llumnix.wire.addresses import AddressBook
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import InstanceGone, InstanceStarting, ReadJournal, Report
from llumnix.wire.outbox import Mail
from llumnix.wire.to_front_end import JournalRead, SchedulerAlive
from llumnix.wire.to_instance import ClusterSize, MoveOut
from llumnix.wire.to_launcher import SchedulerLives
from llumnix.wire.to_scheduler import (
    SCHEDULER_MAIL,
    AddInstances,
    DrainInstance,
    FleetChanged,
    FoundCached,
    GiveRole,
    HeldHere,
    InstanceServing,
    ListDrains,
    MoveAnswer,
    ReplayedElsewhere,
    ToScheduler,
    UndrainInstance,
)

log = logging.getLogger("llumnix.cluster.scheduler_process")  # as a process of its own this module is __main__

_ALIVE_INTERVAL_S = 0.5


class SchedulerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the launcher writes to the process's stdin, as JSON."""

    book: AddressBook
    policy: PolicyConfig
    migration: MigrationConfig
    cluster: ClusterConfig
    scaling: ScalingConfig


class SchedulerProcess:
    def __init__(self, spec: SchedulerSpec) -> None:
        self._book = spec.book
        cluster = spec.cluster
        begin = SchedulerBegin(
            policy=spec.policy,
            instance_timeout_s=cluster.instance_timeout_s,
            limits=drain_limits(cluster, spec.migration),
            scaling=spec.scaling,
            mode=ScalingMode(cluster.scaling),
            step_timeout_s=cluster.step_timeout_s,
            name=f"scheduler-{os.getpid()}",
        )
        self._scheduler = begin.make()
        assert self._scheduler.autoscaler is not None
        self._autoscaler = self._scheduler.autoscaler
        self._record = recorder(begin.name, begin)
        journal, self._close_journal = begin_journal("s", cluster.decision_log)
        self._notes = ClusterNotes(journal)
        self._began_s = time.monotonic()
        self._inbox: queue.SimpleQueue[ToScheduler | None] = queue.SimpleQueue()
        self._mailbox = Mailbox(self._book.scheduler, SCHEDULER_MAIL, self._inbox.put, self._book.keys)
        self._heard_of = HeardOf()
        self._instances = self._heard_of.serving
        self._size = SizeTold(cluster.instances)
        self._wishes = Wishes(self._scheduler, self._heard_of, self._handle, self._mailbox.post)
        self._wake_at_s: float | None = None

    def stop(self) -> None:
        """Ends `run`; may be called from a signal handler."""
        self._inbox.put(None)

    def run(self) -> None:
        self._mailbox.start()
        alive_at_s = time.monotonic()
        try:
            while True:
                now = time.monotonic()
                if now >= alive_at_s:
                    self._tell_that_it_lives(now)
                    alive_at_s = now + _ALIVE_INTERVAL_S
                if self._wake_at_s is not None and now >= self._wake_at_s:
                    self._wake_at_s = None
                    self._handle(control.RoundDue(at=now))
                deadline_s = alive_at_s if self._wake_at_s is None else min(alive_at_s, self._wake_at_s)
                try:
                    message = self._inbox.get(timeout=max(0.0, deadline_s - time.monotonic()))
                except queue.Empty:
                    continue
                if message is None:
                    return
                self._on_message(message)
        finally:
            self._close_journal()
            self._mailbox.close()

    # messages to events

    def _on_message(self, message: ToScheduler) -> None:
        at = time.monotonic()
        match message:
            case Report():
                self._on_report(message, at)
            case MoveAnswer():
                outcome, order = message.outcome, message.outcome.order
                what = "moved" if outcome.ok else "did not move"
                why = outcome.why_not or order.reason
                log.info(
                    "%s: %s %s from %s to %s: %s",
                    *(order.move_id, outcome.who, what, outcome.source, order.target, why),
                )
                self._handle(control.MigrationEnded(at=at, outcome=outcome))
            case InstanceStarting():
                if message.instance not in self._instances and message.instance not in self._heard_of.gone:
                    self._heard_of.starting.add(message.instance)
            case InstanceServing():
                self._handle(control.InstanceStarted(at=at, instance=message.instance))
            case InstanceGone():
                self._forget(message.instance)
                self._handle(control.InstanceLost(at=at, instance=message.instance, why=message.why))
            case FleetChanged():
                self._on_fleet(message.fleet, at)
            case ReplayedElsewhere() | FoundCached():
                self._on_word_of_drained(message, at)
            case ReadJournal():
                part = self._notes.journal.read(message.places, message.limit, message.wanted)
                self._mailbox.post(message.reply_to, JournalRead(query=message.query, part=part))
            case HeldHere():
                self._handle(control.DemandHeld(at=at, **msgspec.structs.asdict(message)))
            case DrainInstance() | UndrainInstance() | GiveRole() | AddInstances() | ListDrains():
                self._wishes.take(message, at)
            case _:
                assert_never(message)

    def _on_word_of_drained(self, message: ReplayedElsewhere | FoundCached, at: float) -> None:
        if isinstance(message, FoundCached):
            self._handle(control.CachedElsewhere(at=at, **msgspec.structs.asdict(message)))
        else:
            self._handle(control.RequestsReplayed(at=at, instance=message.instance, count=message.count))

    def _on_fleet(self, fleet: Fleet, at: float) -> None:
        self._handle(control.FleetReported(at=at, fleet=fleet))
        if self._size.changes(fleet.serving + fleet.starting):
            for instance in self._instances:
                self._tell_size(instance)

    def _on_report(self, report: Report, at: float) -> None:
        instance = report.info.id
        if instance in self._heard_of.gone:
            return
        self._heard_of.starting.discard(instance)
        is_new = instance not in self._instances
        self._instances[instance] = report.info
        if is_new and self._size.newcomers_ask:
            self._tell_size(instance)
        self._handle(control.LoadReported(at=at, snapshot=report.snapshot))
        self._wishes.reported(instance, at)

    # commands to messages

    def _handle(self, event: control.SchedulerEvent) -> None:
        commands = self._scheduler.handle(event)
        if self._record is not None:
            self._record(event, commands)
        self._notes.handled(event, commands, self._scheduler.last_round)
        for command in commands:
            self._carry_out(command)

    def _carry_out(self, command: control.SchedulerCommand) -> None:
        match command:
            case control.RoundAt():
                self._wake_at_s = command.at
            case control.MoveRequest():
                self._move(command)
            case control.SetDraining():
                self._post_to(command.instance, command)
            case control.AskWhereCached():
                self._tell_front_ends(command)
            case control.ReplayRest():
                log.info("what is left on %s is to be replayed: %s", command.instance, command.reason)
                self._tell_front_ends(command)
            case control.DrainFinished():
                log.info("%s: %s", command.reason, msgspec.json.encode(command.report).decode())
            case control.StartInstances() | control.StopInstance():
                self._mailbox.post(self._book.launcher, command)
            case control.SetRole():
                self._mailbox.post(self._book.launcher, command)
                self._post_to(command.instance, command)
            case control.DeclareLost():
                self._declare_lost(command)
            case control.ScalingDecided() | control.RolesAdvised():
                log.info("%s", command)
            case _:
                assert_never(command)

    def _move(self, command: control.MoveRequest) -> None:
        order = command.order
        target = self._instances.get(order.target)
        if target is None:  # gone since its last report; the scheduler hears of it in this same batch of messages
            return
        log.info(
            "%s: %s is to give %d to %s: %s",
            *(order.move_id, command.source, order.wanted.count, order.target, order.reason),
        )
        self._post_to(command.source, MoveOut(order=order, target=target, reply_to=self._book.scheduler))

    def _declare_lost(self, command: control.DeclareLost) -> None:
        """Everybody stops talking to it at once; the launcher makes sure that it does not come back."""
        info = self._instances.get(command.instance)
        self._mailbox.post(self._book.launcher, command)
        if info is None:
            return
        gone = InstanceGone(instance=info.id, index=info.index, why=command.why, expected=False)
        self._forget(info.id)
        self._tell_front_ends(gone)
        for instance in self._instances:
            self._post_to(instance, gone)

    def _tell_size(self, instance: InstanceId) -> None:
        self._post_to(instance, ClusterSize(instances=self._size.instances))

    def _post_to(self, instance: InstanceId, message: Mail) -> None:
        info = self._instances.get(instance)
        if info is not None:
            self._mailbox.post(info.control, message)

    def _tell_that_it_lives(self, at: float) -> None:
        self._mailbox.post(self._book.launcher, SchedulerLives())
        self._tell_front_ends(
            SchedulerAlive(
                pid=os.getpid(),
                scaling=scaling_status(self._scheduler, self._autoscaler, at, self._began_s),
                late_messages=sum(self._scheduler.ignored.values()),
            )
        )

    def _tell_front_ends(self, message: Mail) -> None:
        for address in self._book.all_front_ends:
            self._mailbox.post(address, message)

    def _forget(self, instance: InstanceId) -> None:
        """It is gone; what it still had to say, and what is said of it, changes nothing."""
        self._heard_of.gone.add(instance)
        self._heard_of.starting.discard(instance)
        self._wishes.forget(instance)
        info = self._instances.pop(instance, None)
        if info is not None:
            self._mailbox.forget(info.control)


def main(arguments: list[str]) -> int:
    """`python -m llumnix.cluster.scheduler_process PARENT`, with a `SchedulerSpec` on stdin."""
    linux.die_with_parent(int(arguments[0]))
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=SchedulerSpec)
    logs = json_logs if spec.cluster.log_format == "json" else text_logs
    logs.begin("scheduler")
    process = SchedulerProcess(spec)
    signal.signal(signal.SIGTERM, lambda _signal, _frame: process.stop())
    process.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
