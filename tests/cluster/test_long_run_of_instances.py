"""Thousands of instances that come and go: what the launcher and the scheduler's process hold in the end."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path

import pytest
from test_supervisor import Server

from containers import larger_than, sizes
from llumnix.cluster import scheduler_process
from llumnix.cluster.scheduler_process import SchedulerProcess, SchedulerSpec
from llumnix.cluster.supervision import (
    FrontEndServes,
    InstanceServes,
    SchedulerExited,
    TimePassed,
)
from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig, ScalingConfig
from llumnix.control import drains, gone
from llumnix.control.scheduler_events import StartInstances, StopInstance
from llumnix.journal import journal
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId
from llumnix.wire.addresses import on_one_machine
from llumnix.wire.base import InstanceInfo
from llumnix.wire.news import InstanceGone, InstanceStarting, Report
from llumnix.wire.outbox import Mail
from llumnix.wire.to_scheduler import DrainInstance

FEW = 64
ALIVE = 8
BOUNDS = {
    "GoneIds._ids": gone.REMEMBERED,
    "Drains._ended": drains.REMEMBERED_DRAINS,
    "Journal._entries": journal.KEPT,
}


def test_supervisor_holds_the_processes_that_run() -> None:
    rng = random.Random(1)
    server = Server(instances=4, front_ends=2)
    server.serve()
    at = 1.0
    for _ in range(2_000):
        at += 100.0
        child = rng.choice(server.running)
        if child.startswith("i") and rng.random() < 0.3:
            server.handle(StopInstance(instance=InstanceId(child), reason="drained"), at)
            server.handle(StartInstances(count=1, reason="for it", order=0), at)
        server.exit(child, at)
        if rng.random() < 0.1:
            server.handle(SchedulerExited("it broke"), at)
        at += 50.0
        server.handle(TimePassed(), at)
        for instance in server.supervisor.instances:
            server.handle(InstanceServes(instance, f"ipc://{instance}"), at)
        server.handle(FrontEndServes("serving"), at)
    assert len(server.supervisor.instances) == 4
    assert larger_than(FEW, {}, server.supervisor) == {}


class Mailbox:
    """Writes to nobody, and knows to whom there is a way."""

    def __init__(self, *_: object) -> None:
        self.ways: set[str] = set()

    def post(self, address: str, _message: Mail) -> None:
        self.ways.add(address)

    def forget(self, address: str) -> None:
        self.ways.discard(address)


class Reporter:
    def __init__(self, process: SchedulerProcess) -> None:
        self._process = process
        self._numbers = itertools.count(1)

    def report(self, number: int) -> None:
        name = InstanceId(f"i{number}")
        info = InstanceInfo(id=name, index=number, slot=0, pid=1, node="", control=f"ipc://{name}", data="")
        load = InstanceSnapshot(
            id=name, at=time.monotonic(), seq=next(self._numbers), total_blocks=100, free_blocks=90, running=3
        )
        self._process._on_message(Report(info=info, snapshot=load))


def test_scheduler_process_holds_who_is_there_although_last_words_come_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_process, "Mailbox", Mailbox)
    process = SchedulerProcess(
        SchedulerSpec(
            book=on_one_machine(tmp_path),
            policy=PolicyConfig(),
            migration=MigrationConfig(),
            cluster=ClusterConfig(),
            scaling=ScalingConfig(),
        )
    )
    reporter = Reporter(process)
    for number in range(gone.REMEMBERED + 100):
        name, leaver = InstanceId(f"i{number}"), InstanceId(f"i{number - ALIVE}")
        starting = InstanceStarting(instance=name, pid=1, node="")
        process._on_message(starting)
        for each in range(max(0, number - ALIVE), number + 1):
            reporter.report(each)
        if number % 2:
            process._on_message(DrainInstance(instance=leaver))
        process._on_message(InstanceGone(instance=leaver, index=0, why="it ended", expected=True))
        reporter.report(max(0, number - ALIVE))
        process._on_message(DrainInstance(instance=leaver))
        process._on_message(InstanceStarting(instance=leaver, pid=1, node=""))
    mailbox: Mailbox = process._mailbox  # type: ignore[assignment]
    assert larger_than(FEW, BOUNDS, process) == {}
    assert len(mailbox.ways) <= FEW
    assert sizes(process)["GoneIds._ids"] == gone.REMEMBERED, "it did not run long enough"
