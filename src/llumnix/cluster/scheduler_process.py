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

from llumnix import linux
from llumnix.config import LARGEST_START, ClusterConfig, MigrationConfig, PolicyConfig, ScalingConfig
from llumnix.control import scheduler_events as control
from llumnix.control.drain import drain_limits
from llumnix.control.fleet import Fleet
from llumnix.control.gone import GoneIds
from llumnix.control.pace import SizeTold
from llumnix.control.replay import SchedulerBegin
from llumnix.control.scaling import ScalingMode
from llumnix.recording import recorder
from llumnix.types import InstanceId, InstanceState
from llumnix.wire.addresses import AddressBook
from llumnix.wire.base import InstanceInfo
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import InstanceGone, InstanceStarting, Report
from llumnix.wire.outbox import Mail
from llumnix.wire.to_front_end import Answer, DrainReports, ScalingStatus, SchedulerAlive
from llumnix.wire.to_instance import ClusterSize, MoveOut
from llumnix.wire.to_launcher import SchedulerLives
from llumnix.wire.to_scheduler import (
    SCHEDULER_MAIL,
    AddInstances,
    DrainInstance,
    FleetChanged,
    InstanceServing,
    ListDrains,
    MoveAnswer,
    ReplayedElsewhere,
    ToScheduler,
    UndrainInstance,
    Wish,
)

log = logging.getLogger(__name__)

_ALIVE_INTERVAL_S = 0.5
_WHY_NOT_THE_LAST = (
    "{instance} is the last instance that takes requests: new ones would get 503 until another one runs, and those "
    "that it has could go nowhere. Start another one first (`llumnix start`), or force it (`--force`, `?force=true`): "
    "then it takes no more requests, finishes those that it has and stops, and the server waits for `llumnix start`"
)


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
        self._began_s = time.monotonic()
        self._inbox: queue.SimpleQueue[ToScheduler | None] = queue.SimpleQueue()
        self._mailbox = Mailbox(self._book.scheduler, SCHEDULER_MAIL, self._inbox.put, self._book.keys)
        self._instances: dict[InstanceId, InstanceInfo] = {}
        self._starting: set[InstanceId] = set()
        self._gone = GoneIds()
        self._size = SizeTold(cluster.instances)
        self._early_drains: dict[InstanceId, tuple[float, DrainInstance]] = {}
        """Orders of the launcher's, and when they came, for instances of which no report has come yet: this scheduler
        may be younger than they are."""
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
                    *(order.move_id, outcome.request, what, outcome.source, order.target, why),
                )
                self._handle(control.MigrationEnded(at=at, outcome=outcome))
            case InstanceStarting():
                if message.instance not in self._instances and message.instance not in self._gone:
                    self._starting.add(message.instance)
            case InstanceServing():
                self._handle(control.InstanceStarted(at=at, instance=message.instance))
            case InstanceGone():
                self._forget(message.instance)
                self._handle(control.InstanceLost(at=at, instance=message.instance, why=message.why))
            case FleetChanged():
                self._on_fleet(message.fleet, at)
            case ReplayedElsewhere():
                self._handle(control.RequestsReplayed(at=at, instance=message.instance, count=message.count))
            case DrainInstance() | UndrainInstance() | AddInstances() | ListDrains():
                self._on_wish(message, at)
            case _:
                assert_never(message)

    def _on_wish(self, message: Wish, at: float) -> None:
        match message:
            case DrainInstance():
                self._on_drain(message, at)
            case UndrainInstance():
                why = self._scheduler.drains.why_not_withdrawn(message.instance)
                self._answer(message.reply_to, message.query, why)
                if not why:
                    self._handle(control.DrainWithdrawn(at=at, instance=message.instance))
            case AddInstances():
                self._on_add(message, at)
            case ListDrains():
                drains = DrainReports(query=message.query, reports=tuple(self._scheduler.drains.reports(at)))
                self._mailbox.post(message.reply_to, drains)
            case _:
                assert_never(message)

    def _on_fleet(self, fleet: Fleet, at: float) -> None:
        self._handle(control.FleetReported(at=at, fleet=fleet))
        if self._size.changes(fleet.serving + fleet.starting):
            for instance in self._instances:
                self._tell_size(instance)

    def _on_report(self, report: Report, at: float) -> None:
        instance = report.info.id
        if instance in self._gone:
            return
        self._starting.discard(instance)
        is_new = instance not in self._instances
        self._instances[instance] = report.info
        if is_new and self._size.newcomers_ask:
            self._tell_size(instance)
        self._handle(control.LoadReported(at=at, snapshot=report.snapshot))
        if self._early_drains:
            self._take_up_drain(instance, at)

    def _on_drain(self, message: DrainInstance, at: float) -> None:
        instance = message.instance
        if instance in self._instances and message.spare_last and self._scheduler.is_last(instance):
            self._answer(message.reply_to, message.query, _WHY_NOT_THE_LAST.format(instance=instance))
        elif instance in self._instances:
            self._answer(message.reply_to, message.query)
            self._handle(
                control.DrainRequested(
                    at=at,
                    instance=instance,
                    keep=message.keep,
                    timeout_s=message.timeout_s,
                    why=message.why,
                    firm=message.firm,
                )
            )
        elif instance in self._gone:
            self._answer(message.reply_to, message.query, f"{instance} is gone")
        elif not message.reply_to:
            self._early_drains[instance] = (at, message)
        elif instance in self._starting:
            self._answer(message.reply_to, message.query, f"{instance} is still starting")
        else:
            self._answer(message.reply_to, message.query, f"there is no instance {instance}")

    def _take_up_drain(self, instance: InstanceId, at: float) -> None:
        """Its time has run since the order came."""
        came_s, order = self._early_drains.pop(instance, (at, None))
        if order is not None:
            left_s = None if order.timeout_s is None else max(0.0, order.timeout_s - (at - came_s))
            self._on_drain(msgspec.structs.replace(order, timeout_s=left_s), at)

    def _on_add(self, message: AddInstances, at: float) -> None:
        if not 1 <= message.count <= LARGEST_START:
            why = f"count must be between 1 and {LARGEST_START}, not {message.count}"
            self._answer(message.reply_to, message.query, why)
            return
        self._answer(message.reply_to, message.query)
        self._handle(control.StartRequested(at=at, count=message.count))

    def _answer(self, address: str, query: int, why: str = "") -> None:
        if address:
            self._mailbox.post(address, Answer(query=query, ok=not why, why=why))

    # commands to messages

    def _handle(self, event: control.SchedulerEvent) -> None:
        commands = self._scheduler.handle(event)
        if self._record is not None:
            self._record(event, commands)
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
            case control.ReplayRest():
                log.info("what is left on %s is to be replayed: %s", command.instance, command.reason)
                self._tell_front_ends(command)
            case control.DrainFinished():
                log.info("%s: %s", command.reason, msgspec.json.encode(command.report).decode())
            case control.StartInstances() | control.StopInstance():
                self._mailbox.post(self._book.launcher, command)
            case control.DeclareLost():
                self._declare_lost(command)
            case control.ScalingDecided():
                log.info("auto-scaling %s %s", "does" if command.step.carried_out else "would", command.step)
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

    def _scaling_status(self, at: float) -> ScalingStatus:
        scaler, fleet = self._autoscaler, self._scheduler.fleet
        instances = self._scheduler.snapshot(at).instances
        serving = sum(instance.state is InstanceState.RUNNING for instance in instances)
        return ScalingStatus(
            mode=scaler.mode,
            min_instances=scaler.config.min_instances,
            max_instances=scaler.config.max_instances,
            serving=serving,
            draining=len(instances) - serving,
            starting=fleet.starting(heard=len(instances)),
            failing=fleet.failing,
            now=scaler.now,
            last=scaler.last,
            starts=scaler.starts,
            drains=scaler.drains,
            instance_seconds=fleet.instance_seconds(at),
            watched_s=at - self._began_s,
        )

    def _tell_size(self, instance: InstanceId) -> None:
        self._post_to(instance, ClusterSize(instances=self._size.instances))

    def _post_to(self, instance: InstanceId, message: Mail) -> None:
        info = self._instances.get(instance)
        if info is not None:
            self._mailbox.post(info.control, message)

    def _tell_that_it_lives(self, at: float) -> None:
        self._mailbox.post(self._book.launcher, SchedulerLives())
        self._tell_front_ends(SchedulerAlive(pid=os.getpid(), scaling=self._scaling_status(at)))

    def _tell_front_ends(self, message: Mail) -> None:
        for address in self._book.all_front_ends:
            self._mailbox.post(address, message)

    def _forget(self, instance: InstanceId) -> None:
        """It is gone; what it still had to say, and what is said of it, changes nothing."""
        self._gone.add(instance)
        self._starting.discard(instance)
        self._early_drains.pop(instance, None)
        info = self._instances.pop(instance, None)
        if info is not None:
            self._mailbox.forget(info.control)


def main(arguments: list[str]) -> int:
    """`python -m llumnix.cluster.scheduler_process PARENT`, with a `SchedulerSpec` on stdin."""
    linux.die_with_parent(int(arguments[0]))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    process = SchedulerProcess(msgspec.json.decode(sys.stdin.buffer.read(), type=SchedulerSpec))
    signal.signal(signal.SIGTERM, lambda _signal, _frame: process.stop())
    process.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
