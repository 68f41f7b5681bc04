"""The scheduler process, alone with a test that plays launcher, front end and two instances."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec
import pytest
from frame.server import wait_for

from llumnix.cluster.scheduler_process import SchedulerSpec
from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig, ScalingConfig
from llumnix.control.fleet import Fleet
from llumnix.control.scheduler_events import (
    AskWhereCached,
    DeclareLost,
    ReplayRest,
    SetDraining,
    SetRole,
    StartInstances,
    StopInstance,
)
from llumnix.decision_log import read_log
from llumnix.journal.journal import ALL_ENTRIES
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.recording import RECORD, differences
from llumnix.types import InstanceId, RequestId, Role
from llumnix.wire.addresses import on_one_machine
from llumnix.wire.base import InstanceInfo
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import InstanceGone, InstanceStarting, ReadJournal, Report
from llumnix.wire.outbox import Mail
from llumnix.wire.to_front_end import FRONT_END_MAIL, Answer, DrainReports, JournalRead, SchedulerAlive
from llumnix.wire.to_instance import INSTANCE_MAIL, ClusterSize, MoveOut
from llumnix.wire.to_launcher import LAUNCHER_MAIL, SchedulerLives
from llumnix.wire.to_scheduler import (
    AddInstances,
    DrainInstance,
    FleetChanged,
    FoundCached,
    GiveRole,
    InstanceServing,
    ListDrains,
    OperatorOrder,
    ReplayedElsewhere,
    UndrainInstance,
)

pytestmark = pytest.mark.live

WAIT_S = 60.0
I0, I1 = InstanceId("i0"), InstanceId("i1")

Message = TypeVar("Message", bound=Mail)


class World:
    """Everybody but the scheduler."""

    def __init__(self, run_dir: Path, scaling: str = "off", instance_timeout_s: float = 5.0) -> None:
        self.recordings = run_dir / "recordings"
        self.decisions = run_dir / "decisions"
        self.book = on_one_machine(run_dir)
        self.launcher = self._listen(self.book.launcher, LAUNCHER_MAIL)
        self.front_end = self._listen(self.book.front_end(0), FRONT_END_MAIL)
        self.instances = {instance: self._listen(self.book.instance(instance), INSTANCE_MAIL) for instance in (I0, I1)}
        self.spec = SchedulerSpec(
            book=self.book,
            policy=PolicyConfig(pairing_interval_s=0.05),
            migration=MigrationConfig(),
            cluster=ClusterConfig(
                heartbeat_interval_s=0.1,
                instance_timeout_s=instance_timeout_s,
                scaling=scaling,
                drain_timeout_s=0.2,
                shutdown_timeout_s=0.5,
                decision_log=str(self.decisions),
            ),
            scaling=ScalingConfig(min_instances=1, max_instances=4, scale_window_s=0.3),
        )
        self.process = self._start()
        self._seq = 0

    def _listen(self, address: str, decoder: Any) -> tuple[Mailbox[Any], queue.SimpleQueue[Any]]:
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        mailbox = Mailbox(address, decoder, inbox.put)
        mailbox.start()
        return mailbox, inbox

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "llumnix.cluster.scheduler_process", str(os.getpid())]
        variables = {**os.environ, RECORD: str(self.recordings)}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=variables)
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(msgspec.json.encode(self.spec))
        return process

    def tell(self, message: Mail) -> None:
        self.launcher[0].post(self.book.scheduler, message)

    def report(self, instance: InstanceId, **load: Any) -> None:
        self._seq += 1
        info = InstanceInfo(
            id=instance, index=0, slot=0, pid=1, node="here", control=self.book.instance(instance), data="none"
        )
        facts = {"total_blocks": 100, "free_blocks": 100} | load
        snapshot = InstanceSnapshot(id=instance, at=time.monotonic(), seq=self._seq, **facts)
        self.tell(Report(info=info, snapshot=snapshot))

    def wait_for(self, inbox: queue.SimpleQueue[Any], kind: type[Message], meanwhile: Callable[[], None]) -> Message:
        """The next message of a kind; `meanwhile` keeps those alive who should be."""
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            meanwhile()
            try:
                message = inbox.get(timeout=0.1)
            except queue.Empty:
                continue
            if isinstance(message, kind):
                return message
        raise AssertionError(f"no {kind.__name__} in {WAIT_S:g} s")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for mailbox, _ in (self.launcher, self.front_end, *self.instances.values()):
            mailbox.close()


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[World]:
    """`indirect` parameter: what is not as usual. Whatever happened, it comes out the same when it is replayed."""
    world = World(tmp_path_factory.mktemp("w"), **getattr(request, "param", {}))
    yield world
    world.close()
    (recording,) = world.recordings.iterdir()
    assert differences(recording) == []


def nothing() -> None:
    pass


def test_front_ends_and_the_launcher_hear_that_it_lives(world: World) -> None:
    assert world.wait_for(world.front_end[1], SchedulerAlive, nothing).pid == world.process.pid
    world.wait_for(world.launcher[1], SchedulerLives, nothing)


def test_front_ends_hear_how_much_came_too_late(world: World) -> None:
    world.tell(ReplayedElsewhere(instance=I0, count=1))
    while not (alive := world.wait_for(world.front_end[1], SchedulerAlive, nothing)).late_messages:
        pass
    assert alive.late_messages == 1


def test_loaded_instance_is_told_to_give_to_the_free_one(world: World) -> None:
    def load() -> None:
        world.report(I0, free_blocks=5, running=20, smallest_running_blocks=2, preempted=1)
        world.report(I1, free_blocks=95, running=1, smallest_running_blocks=5)

    order = world.wait_for(world.instances[I0][1], MoveOut, load)
    assert order.target.id == "i1"
    assert order.reply_to == world.book.scheduler
    assert order.order.reason


@pytest.mark.parametrize("world", [{"instance_timeout_s": 0.5}], indirect=True)
def test_silent_instance_is_fenced_and_killed(world: World) -> None:
    world.report(I1)
    lost = world.wait_for(world.launcher[1], DeclareLost, lambda: world.report(I0))
    assert lost.instance == "i1"
    assert "no heartbeat" in lost.why
    gone = world.wait_for(world.front_end[1], InstanceGone, lambda: world.report(I0))
    assert (gone.instance, gone.expected) == ("i1", False)


@pytest.mark.parametrize("world", [{"instance_timeout_s": 0.5}], indirect=True)
def test_instance_that_was_never_heard_of_is_missed_too(world: World) -> None:
    world.tell(InstanceServing(instance=I1))
    assert world.wait_for(world.launcher[1], DeclareLost, nothing).instance == "i1"


def test_drain_is_passed_on_and_ends_with_a_stop(world: World) -> None:
    def idle() -> None:
        world.report(I0, state="draining" if draining else "running")
        world.report(I1)

    draining = False
    idle()
    world.tell(FleetChanged(fleet=Fleet(serving=2, starting=0)))
    world.tell(DrainInstance(instance=I0, keep=False, query=7, reply_to=world.book.front_end(0)))
    answer = world.wait_for(world.front_end[1], Answer, idle)
    assert (answer.query, answer.ok) == (7, True)
    order = world.wait_for(world.instances[I0][1], SetDraining, idle)
    assert (order.draining, order.keep) == (True, False)
    draining = True
    stop = world.wait_for(world.launcher[1], StopInstance, idle)
    assert (stop.instance, stop.kill) == ("i0", False)
    world.tell(ListDrains(query=8, reply_to=world.book.front_end(0)))
    (report,) = world.wait_for(world.front_end[1], DrainReports, idle).reports
    assert (report.instance, report.outcome, report.requests) == ("i0", "empty", 0)
    assert noted(world, idle) == [
        *(("instance", "i0"), ("instance", "i1"), ("drain", "i0"), ("drain", "i0")),
    ]


def noted(world: World, meanwhile: Callable[[], None]) -> list[tuple[str, InstanceId | None]]:
    """Its journal, as a front end is told it, but for rounds; the log that it writes says the same."""
    world.tell(ReadJournal(query=9, reply_to=world.book.front_end(0), places={}, limit=100, wanted=ALL_ENTRIES))
    entries = world.wait_for(world.front_end[1], JournalRead, meanwhile).part.entries
    wait_for(lambda: len(read_log(world.decisions)) >= len(entries), "all of it in the log")
    assert tuple(read_log(world.decisions)[: len(entries)]) == entries
    return [(entry.kind, entry.instance) for entry in entries if entry.kind != "round"]


def test_what_is_left_after_the_deadline_is_replayed_and_what_then_is_left_is_cut_off(world: World) -> None:
    def busy() -> None:
        world.report(I0, state="draining", running=3, free_blocks=70)
        world.report(I1, free_blocks=1, running=9)  # no room there

    busy()
    replay = world.wait_for(world.front_end[1], ReplayRest, busy)
    assert replay.instance == "i0"
    world.tell(ReplayedElsewhere(instance=I0, count=2))
    stop = world.wait_for(world.launcher[1], StopInstance, busy)
    assert (stop.instance, stop.kill) == ("i0", True)
    world.tell(ListDrains(query=8, reply_to=world.book.front_end(0)))
    (report,) = world.wait_for(world.front_end[1], DrainReports, busy).reports
    assert (report.outcome, report.replayed, report.left) == ("cut off", 2, 3)


def test_request_whose_prompt_is_cached_elsewhere_is_told_to_go_there(world: World) -> None:
    def idle() -> None:
        world.report(I0, running=3, free_blocks=70, prefix_chunk_tokens=512)
        world.report(I1, running=1, free_blocks=95, prefix_chunk_tokens=512)

    idle()
    world.tell(DrainInstance(instance=I0))
    assert world.wait_for(world.front_end[1], AskWhereCached, idle).instance == I0
    world.tell(FoundCached(instance=I0, where={RequestId("r"): I1}, front_ends=1))

    def named() -> MoveOut:
        return world.wait_for(world.instances[I0][1], MoveOut, idle)

    assert "r" in {named().order.request, named().order.request}, "others may have had their turn before"


@pytest.mark.parametrize("world", [{"scaling": "on"}], indirect=True)
def test_auto_scaling_starts_one_when_all_are_full(world: World) -> None:
    def full() -> None:
        world.report(I0, free_blocks=5, running=20, smallest_running_blocks=4)

    world.tell(FleetChanged(fleet=Fleet(serving=1, starting=0)))
    start = world.wait_for(world.launcher[1], StartInstances, full)
    assert (start.count, start.order) == (2, 1)
    assert start.reason.startswith("auto-scaling: freeness 0.25 below 10 for 0.3 s")
    world.tell(FleetChanged(fleet=Fleet(serving=1, starting=2, last_order=1)))
    alive = world.wait_for(world.front_end[1], SchedulerAlive, full)
    while alive.scaling is None or not alive.scaling.starts:
        alive = world.wait_for(world.front_end[1], SchedulerAlive, full)
    status = alive.scaling
    assert (status.mode, status.serving, status.starting, status.max_instances) == ("on", 1, 2, 4)
    assert status.last is not None
    assert (status.last.start, status.last.carried_out) == (2, True)


@pytest.mark.parametrize("world", [{"scaling": "on"}], indirect=True)
def test_auto_scaling_drains_one_when_all_are_idle(world: World) -> None:
    def idle() -> None:
        world.report(I0, free_blocks=90, running=1)
        world.report(I1)

    world.tell(FleetChanged(fleet=Fleet(serving=2, starting=0)))
    order = world.wait_for(world.instances[I1][1], SetDraining, idle)
    assert order.draining
    assert "drain by auto-scaling: freeness" in order.reason


@pytest.mark.parametrize("world", [{"scaling": "advise"}], indirect=True)
def test_advice_is_told_to_the_front_ends_and_not_carried_out(world: World) -> None:
    def full() -> None:
        world.report(I0, free_blocks=5, running=20, smallest_running_blocks=4)

    world.tell(FleetChanged(fleet=Fleet(serving=1, starting=0)))
    alive = world.wait_for(world.front_end[1], SchedulerAlive, full)
    while alive.scaling is None or alive.scaling.last is None:
        alive = world.wait_for(world.front_end[1], SchedulerAlive, full)
    assert (alive.scaling.mode, alive.scaling.last.start, alive.scaling.last.carried_out) == ("advise", 2, False)
    heard = [world.launcher[1].get_nowait() for _ in range(world.launcher[1].qsize())]
    assert {type(message) for message in heard} == {SchedulerLives}


def test_launchers_order_to_drain_waits_for_the_first_report_that_a_new_scheduler_hears(world: World) -> None:
    world.tell(DrainInstance(instance=I0, timeout_s=60.0, why="its machine goes"))
    world.tell(DrainInstance(instance=I1, timeout_s=60.0, why="its machine goes"))
    world.tell(InstanceGone(instance=I1, index=1, why="its node was lost", expected=False))
    world.wait_for(world.front_end[1], SchedulerAlive, nothing)
    order = world.wait_for(world.instances[I0][1], SetDraining, lambda: world.report(I0))
    assert (order.draining, order.keep) == (True, False)
    assert "its machine goes" in order.reason
    world.report(I1)
    with pytest.raises(queue.Empty):
        world.instances[I1][1].get(timeout=0.3)


def test_instances_are_told_how_many_they_are_once_that_is_not_what_was_configured(world: World) -> None:
    def idle() -> None:
        world.report(I0)

    world.tell(FleetChanged(fleet=Fleet(serving=2, starting=0)))
    world.wait_for(world.front_end[1], SchedulerAlive, idle)
    world.tell(FleetChanged(fleet=Fleet(serving=700, starting=300)))
    assert world.wait_for(world.instances[I0][1], ClusterSize, idle).instances == 1000
    world.report(I1)
    assert world.wait_for(world.instances[I1][1], ClusterSize, idle).instances == 1000, "it has just come"


def test_drain_of_an_instance_that_is_not_there_is_refused_with_the_reason(world: World) -> None:
    world.tell(InstanceStarting(instance=I1, pid=1, node="here"))
    for instance, why in ((I0, "there is no instance i0"), (I1, "i1 is still starting")):
        world.tell(DrainInstance(instance=instance, keep=False, query=8, reply_to=world.book.front_end(0)))
        answer = world.wait_for(world.front_end[1], Answer, nothing)
        assert (answer.ok, answer.why) == (False, why)


def test_last_instance_is_drained_only_by_force_and_can_come_back(world: World) -> None:
    def alone() -> None:
        world.report(I0)

    def kept() -> None:
        world.report(I0, state="draining", drain_keep=True)

    front_end = world.book.front_end(0)
    alone()
    world.tell(DrainInstance(instance=I0, keep=True, query=8, reply_to=front_end, spare_last=True))
    answer = world.wait_for(world.front_end[1], Answer, alone)
    assert (answer.ok, "the last instance that takes requests" in answer.why) == (False, True)
    world.tell(DrainInstance(instance=I0, keep=True, query=9, reply_to=front_end))
    assert world.wait_for(world.front_end[1], Answer, alone).ok
    assert world.wait_for(world.instances[I0][1], SetDraining, alone).draining
    kept()
    world.tell(UndrainInstance(instance=I0, query=10, reply_to=front_end))
    assert world.wait_for(world.front_end[1], Answer, kept).ok
    assert not world.wait_for(world.instances[I0][1], SetDraining, kept).draining
    alone()
    world.tell(UndrainInstance(instance=I0, query=11, reply_to=front_end))
    answer = world.wait_for(world.front_end[1], Answer, alone)
    assert (answer.ok, answer.why) == (False, "i0 does not drain")


def test_more_instances_are_asked_of_the_launcher(world: World) -> None:
    world.tell(AddInstances(count=2, query=9, reply_to=world.book.front_end(0)))
    assert world.wait_for(world.launcher[1], StartInstances, nothing).count == 2
    assert world.wait_for(world.front_end[1], Answer, nothing).ok


def test_one_more_is_to_replace_somebody_who_is_there(world: World) -> None:
    world.report(I0)
    world.tell(AddInstances(count=1, replaces=I0, query=9, reply_to=world.book.front_end(0)))
    assert world.wait_for(world.launcher[1], StartInstances, nothing).replaces == I0
    assert world.wait_for(world.front_end[1], Answer, nothing).ok
    world.tell(AddInstances(count=1, replaces=InstanceId("i7"), query=10, reply_to=world.book.front_end(0)))
    answer = world.wait_for(world.front_end[1], Answer, nothing)
    assert (answer.ok, answer.why) == (False, "there is no instance i7")


def test_role_is_told_to_the_instance_and_to_the_launcher_for_whoever_comes_after_it(world: World) -> None:
    world.report(I0)
    world.tell(GiveRole(instance=I0, role=Role.PREFILL, query=9, reply_to=world.book.front_end(0)))
    for inbox in (world.instances[I0][1], world.launcher[1]):
        order = world.wait_for(inbox, SetRole, nothing)
        assert (order.instance, order.role) == (I0, Role.PREFILL)


def test_order_that_comes_after_its_answer_was_due_is_not_carried_out(world: World) -> None:
    """Who gave it was told that the scheduler does not answer, and may have given it again."""
    front_end, late_s = world.book.front_end(0), time.monotonic()
    about: dict[str, Any] = {"query": 9, "reply_to": front_end, "until_s": late_s}
    late: list[OperatorOrder] = [
        DrainInstance(instance=I0, **about),
        UndrainInstance(instance=I0, **about),
        GiveRole(instance=I0, role=Role.PREFILL, **about),
        AddInstances(count=3, **about),
    ]
    assert {type(order) for order in late} == set(get_args(OperatorOrder))
    world.report(I0)
    for order in late:
        world.tell(order)
    world.tell(AddInstances(count=2, query=10, reply_to=front_end, until_s=late_s + 3600))
    assert world.wait_for(world.front_end[1], Answer, nothing).query == 10
    assert world.wait_for(world.launcher[1], StartInstances, nothing).count == 2
    instance = world.instances[I0][1]
    assert not any(isinstance(instance.get(), SetDraining | SetRole) for _ in range(instance.qsize()))


def test_impossible_count_is_refused(world: World) -> None:
    world.tell(AddInstances(count=0, query=9, reply_to=world.book.front_end(0)))
    answer = world.wait_for(world.front_end[1], Answer, nothing)
    assert (answer.ok, answer.why) == (False, "count must be between 1 and 64, not 0")


def test_more_instances_than_there_are_gpus_for_are_refused_with_how_many_fit(world: World) -> None:
    front_end = world.book.front_end(0)
    world.tell(FleetChanged(fleet=Fleet(serving=1, starting=0, room=1)))
    world.tell(AddInstances(count=2, query=9, reply_to=front_end))
    answer = world.wait_for(world.front_end[1], Answer, nothing)
    assert not answer.ok
    assert answer.why.startswith("this machine has GPUs for 1 more;")
    world.tell(AddInstances(count=1, query=10, reply_to=front_end))
    assert world.wait_for(world.front_end[1], Answer, nothing).ok
    world.tell(AddInstances(count=1, query=11, reply_to=front_end))
    assert "GPUs for none more" in world.wait_for(world.front_end[1], Answer, nothing).why


def test_sigterm_ends_it_cleanly(world: World) -> None:
    world.wait_for(world.front_end[1], SchedulerAlive, nothing)
    world.process.send_signal(signal.SIGTERM)
    assert world.process.wait(WAIT_S) == 0
