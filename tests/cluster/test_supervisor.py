"""Every rule of supervision as a situation; time is an argument, so nothing here takes any."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest

from llumnix.cluster.nursery_messages import (
    Cleared,
    Exited,
    Forked,
    ForkFrontEnd,
    ForkInstance,
    HasRoom,
    Leaving,
    StopListening,
    Waiting,
)
from llumnix.cluster.roster import Roster
from llumnix.cluster.supervision import (
    Announce,
    Audience,
    Finish,
    Forget,
    FrontEndServes,
    InstanceServes,
    NurseryEnded,
    Say,
    SchedulerExited,
    Signal,
    SpawnScheduler,
    StopScheduler,
    SupervisorCommand,
    SupervisorEvent,
    Terminate,
    TimePassed,
)
from llumnix.cluster.supervisor import Supervisor
from llumnix.config import ClusterConfig
from llumnix.control.fleet import Fleet
from llumnix.control.scheduler_events import DeclareLost, StartInstances, StopInstance
from llumnix.roles_config import RolesConfig
from llumnix.types import InstanceId
from llumnix.wire.news import FrontEndLost, InstanceGone, InstanceStarting
from llumnix.wire.to_launcher import FrontEndLives, SchedulerLives
from llumnix.wire.to_scheduler import DrainInstance, FleetChanged, InstanceServing

Kind = TypeVar("Kind")


def only(kind: type[Kind], commands: list[SupervisorCommand]) -> list[Kind]:
    return [command for command in commands if isinstance(command, kind)]


def told(kind: type[Kind], commands: list[SupervisorCommand], to: Audience = Audience.EVERYBODY) -> list[Kind]:
    return [tell.message for tell in only(Announce, commands) if tell.to is to and isinstance(tell.message, kind)]


class Server:
    """A supervisor whose orders are carried out at once."""

    def __init__(
        self,
        instances: int = 2,
        front_ends: int = 1,
        parallel_starts: int = 8,
        most: int | None = None,
        roles: RolesConfig | None = None,
        **config: Any,
    ) -> None:
        cluster = ClusterConfig(instances=instances, **config)
        self.supervisor = Supervisor(cluster, "here", front_ends, parallel_starts, most, roles)
        self.running: list[str] = []
        self.next_pid = 100
        self.pids: dict[str, int] = {}

    def handle(self, event: SupervisorEvent, at: float = 0.0) -> list[SupervisorCommand]:
        """All commands, those that follow from carrying them out included."""
        commands = self.supervisor.handle(event, at)
        for command in list(commands):
            match command:
                case ForkInstance():
                    commands += self._fork(command.id, at)
                case ForkFrontEnd():
                    commands += self._fork(f"front-{command.index}", at)
        return commands

    @property
    def next_wake_s(self) -> float | None:
        """Apart from the next look at whether the scheduler hangs."""
        self.supervisor._scheduler._watch.due_s = None
        return self.supervisor.next_wake_s

    def _fork(self, child: str, at: float) -> list[SupervisorCommand]:
        self.running.append(child)
        self.next_pid += 1
        self.pids[child] = self.next_pid
        return self.handle(Forked(child=child, pid=self.next_pid), at)

    def exit(self, child: str, at: float = 0.0, why: str = "it broke") -> list[SupervisorCommand]:
        self.running.remove(child)
        return self.handle(Exited(child=child, how=why), at)

    def serve(self, at: float = 1.0) -> None:
        """Starts everything."""
        self.handle(TimePassed())
        for instance in self.supervisor.instances:
            self.handle(InstanceServes(instance, f"ipc://{instance}"), at)
        self.handle(FrontEndServes("serving"), at)


def test_scheduler_is_told_how_many_more_there_are_devices_for() -> None:
    commands = Server(instances=2, most=3).handle(TimePassed())
    (changed,) = told(FleetChanged, commands, Audience.SCHEDULER)
    assert changed.fleet.room == 1


def test_first_tick_starts_everything() -> None:
    commands = Server(instances=2, front_ends=2).handle(TimePassed())
    assert only(ForkInstance, commands) == [
        ForkInstance(id=InstanceId("i0"), index=0, slot=0),
        ForkInstance(id=InstanceId("i1"), index=1, slot=1),
    ]
    assert only(ForkFrontEnd, commands) == [ForkFrontEnd(index=0), ForkFrontEnd(index=1)]
    assert only(SpawnScheduler, commands) == [SpawnScheduler()]
    assert [message.instance for message in told(InstanceStarting, commands, Audience.DECIDING)] == ["i0", "i1"]


def test_only_so_many_instances_start_at_once() -> None:
    server = Server(instances=3, parallel_starts=1)
    server.handle(TimePassed())
    assert server.supervisor.instances == ("i0",)
    commands = server.handle(InstanceServes(InstanceId("i0"), "ipc://i0"), 2.0)
    assert commands[0] == Say("i0 ready in 2.0 s")
    assert server.supervisor.instances == ("i0", "i1")  # type: ignore[comparison-overlap]


def test_instances_that_share_a_gpu_start_one_after_the_other() -> None:
    server = Server(instances=5, instances_per_gpu=2)
    assert [fork.slot for fork in only(ForkInstance, server.handle(TimePassed()))] == [0, 2, 4]
    commands = server.handle(InstanceServes(InstanceId("i1"), "ipc://i1"), 2.0)
    assert [fork.slot for fork in only(ForkInstance, commands)] == [3]
    assert only(ForkInstance, server.handle(InstanceServes(InstanceId("i3"), "ipc://i3"), 3.0)) == []


def test_nobody_starts_on_a_gpu_while_workers_of_a_dead_instance_give_its_memory_back() -> None:
    server = Server(instances=2, instances_per_gpu=2)
    server.serve()
    server.handle(InstanceServes(InstanceId("i1"), "ipc://i1"), 2.0)
    left = server.handle(Exited(child="i1", how="killed by SIGKILL", remains=True), 100.0)
    both = server.exit("i0", 100.1)
    assert only(ForkInstance, left + both) == []
    assert len(only(ForkInstance, server.handle(Cleared(child="i1"), 100.2))) == 1


def test_further_reports_of_an_instance_say_nothing() -> None:
    server = Server()
    server.serve()
    assert server.handle(InstanceServes(InstanceId("i0"), "ipc://i0"), 2.0) == []


def test_heartbeat_in_a_large_cluster_is_not_looked_at_by_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(instances=1024, parallel_starts=1024)
    server.serve()
    for scan in ("instances", "processes", "starting"):
        monkeypatch.setattr(Roster, scan, property(lambda _: pytest.fail("the whole roster was read")))
    assert server.supervisor.knows(InstanceServes(InstanceId("i700"), "ipc://i700"))
    assert server.supervisor.handle(InstanceServes(InstanceId("i700"), "ipc://i700"), 2.0) == []


def test_start_of_many_reads_the_roster_once_for_all_that_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def starting(roster: Roster) -> int:
        nonlocal looks
        looks += 1
        return sum(instance.starting for instance in roster.instances)

    monkeypatch.setattr(Roster, "starting", property(starting))
    server = Server(instances=1024, parallel_starts=2)
    assert len(only(ForkInstance, server.supervisor.handle(TimePassed(), 0.0))) == 2
    assert looks == 1


def test_news_reaches_the_mailboxes_of_those_that_serve() -> None:
    server = Server(instances=3)
    server.serve()
    assert server.supervisor.mailboxes == ("ipc://i0", "ipc://i1", "ipc://i2")
    commands = server.exit("i1", at=10.0)
    assert Forget("ipc://i1") in commands
    assert server.supervisor.mailboxes == ("ipc://i0", "ipc://i2"), "i3 in its place does not serve yet"  # type: ignore[comparison-overlap]


def test_dead_instance_is_replaced_at_once_under_a_new_id_in_its_slot() -> None:
    server = Server()
    server.serve()
    commands = server.exit("i0", at=10.0, why="killed by SIGKILL")
    (gone,) = told(InstanceGone, commands)
    assert (gone.instance, gone.index, gone.expected, gone.why) == ("i0", 0, False, "killed by SIGKILL")
    assert only(ForkInstance, commands) == [ForkInstance(id=InstanceId("i2"), index=2, slot=0)]
    assert only(Say, commands) == [Say("i0 died: killed by SIGKILL; another takes its place", warning=True)]


def test_pauses_grow_while_an_instance_keeps_dying() -> None:
    server = Server(instances=2)
    server.serve()
    at = 10.0
    server.exit("i0", at)
    pauses = []
    for index in range(2, 11):
        server.exit(f"i{index}", at)
        wake_s = server.next_wake_s
        assert wake_s is not None
        pauses.append(wake_s - at)
        at = wake_s
        server.handle(TimePassed(), at)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0]


def test_a_long_life_forgives_earlier_failures() -> None:
    server = Server()
    server.serve()
    server.exit("i0", at=10.0)
    server.handle(InstanceServes(InstanceId("i2"), "ipc://i2"), 11.0)
    assert only(ForkInstance, server.exit("i2", at=100.0))


def test_no_replacement_if_restarts_are_off() -> None:
    server = Server(restart_instances=False)
    server.serve()
    commands = server.exit("i0", at=10.0)
    assert only(Say, commands) == [Say("i0 died: it broke", warning=True)]
    server.handle(TimePassed(), 1000.0)
    assert server.supervisor.instances == ("i1",)
    said = only(Say, server.exit("i1", at=1001.0))
    assert [say.text.partition(",")[0] for say in said] == ["i1 died: it broke", "no instance is left"]


def test_server_gives_up_when_every_first_instance_fails() -> None:
    server = Server(instances=2)
    server.handle(TimePassed())
    assert not only(Finish, server.exit("i0", why="ValueError: no room"))
    commands = server.exit("i1", why="ValueError: no room")
    assert only(Finish, commands) == [Finish(2, "No instance starts: ValueError: no room")]


def test_server_does_not_give_up_once_an_instance_served() -> None:
    server = Server(instances=2)
    server.handle(TimePassed())
    server.handle(InstanceServes(InstanceId("i0"), "ipc://i0"), 1.0)
    assert not only(Finish, server.exit("i1", at=2.0))
    assert not only(Finish, server.exit("i0", at=3.0))


def test_instance_that_does_not_start_in_time_is_killed() -> None:
    server = Server(instances=2, start_timeout_s=60)
    server.handle(TimePassed())
    server.handle(InstanceServes(InstanceId("i0"), "ipc://i0"), 1.0)
    assert server.next_wake_s == 60.0
    assert server.handle(TimePassed(), 60.0) == [Signal("i1", kill=True)]
    commands = server.exit("i1", at=60.1)
    assert "did not start within 60 s" in only(Say, commands)[0].text


def test_time_to_start_begins_when_there_is_room() -> None:
    server = Server(instances=1, start_timeout_s=60)
    supervisor = server.supervisor
    supervisor.handle(TimePassed(), 0.0)
    (wait,) = only(Say, supervisor.handle(Waiting(child="i0", why="it needs a GPU"), 1.0))
    assert wait == Say("i0 waits for room: it needs a GPU", warning=True)
    supervisor.handle(SchedulerLives(), 999.0)
    assert supervisor.handle(TimePassed(), 1000.0) == []
    supervisor.handle(HasRoom(child="i0"), 2000.0)
    (starting,) = told(
        InstanceStarting, supervisor.handle(Forked(child="i0", pid=7, node="node-2"), 2010.0), Audience.DECIDING
    )
    assert (starting.pid, starting.node) == (7, "node-2")
    assert server.next_wake_s == 2060.0
    assert supervisor.handle(TimePassed(), 2060.0) == [Signal("i0", kill=True)]


def test_node_that_has_room_and_never_loads_the_engine_is_given_up() -> None:
    server = Server(instances=1, start_timeout_s=60)
    server.supervisor.handle(TimePassed(), 0.0)
    server.supervisor.handle(Waiting(child="i0", why="it needs a GPU"), 1.0)
    server.supervisor.handle(HasRoom(child="i0"), 2000.0)
    assert server.next_wake_s == 2060.0
    assert server.supervisor.handle(TimePassed(), 2060.0) == [Signal("i0", kill=True)]


def test_instance_that_waits_for_room_can_be_stopped() -> None:
    server = Server(instances=1)
    server.handle(TimePassed())
    server.handle(Waiting(child="i0", why="it needs a GPU"), 1.0)
    commands = server.handle(StopInstance(instance=InstanceId("i0"), reason="too many"), 5.0)
    assert only(Signal, commands) == [Signal("i0")]
    assert fleets(commands) == [Fleet(serving=0, starting=0)]
    assert server.handle(Waiting(child="i0", why="it needs a GPU"), 6.0) == []
    assert only(Signal, server.handle(TimePassed(), 15.0)) == [Signal("i0", kill=True)]


def test_drained_instance_stops_for_good() -> None:
    server = Server()
    server.serve()
    assert server.handle(StopInstance(instance=InstanceId("i0"), reason="it is empty"), 5.0) == [Signal("i0")]
    commands = server.exit("i0", at=5.5, why="exit code 0")
    (gone,) = told(InstanceGone, commands)
    assert gone.expected
    assert server.handle(TimePassed(), 29.0) == []
    assert server.supervisor.instances == ("i1",)


def test_end_of_the_last_instance_is_told_with_what_to_do() -> None:
    server = Server()
    server.serve()
    said: list[Say] = []
    for instance in ("i0", "i1"):
        server.handle(StopInstance(instance=InstanceId(instance), reason="empty after 1 s"), 5.0)
        said += only(Say, server.exit(instance, at=5.5, why="exit code 0"))
    assert [each.text for each in said[:2]] == ["i0 stopped: empty after 1 s", "i1 stopped: empty after 1 s"]
    assert [("llumnix start" in each.text, each.warning) for each in said[2:]] == [(True, True)]


def test_instance_that_ignores_the_request_to_stop_is_killed() -> None:
    server = Server()
    server.serve()
    server.handle(StopInstance(instance=InstanceId("i0"), reason="it is empty"), 5.0)
    assert server.handle(TimePassed(), 14.9) == []
    assert server.handle(TimePassed(), 15.0) == [
        Signal("i0", kill=True),
        Announce(FleetChanged(fleet=Fleet(serving=1, starting=0)), Audience.SCHEDULER),
    ]


def test_fenced_instance_is_killed_and_replaced() -> None:
    server = Server()
    server.serve()
    commands = server.handle(DeclareLost(instance=InstanceId("i0"), why="no heartbeat"), 5.0)
    assert only(Signal, commands) == [Signal("i0", kill=True)]
    commands = server.exit("i0", at=5.1, why="killed by SIGKILL")
    (gone,) = told(InstanceGone, commands)
    assert (gone.expected, gone.why) == (False, "no heartbeat")
    assert only(ForkInstance, commands) == [ForkInstance(id=InstanceId("i2"), index=2, slot=0)]


def test_more_instances_take_the_smallest_free_slots() -> None:
    server = Server(instances=3)
    server.serve()
    server.handle(StopInstance(instance=InstanceId("i1"), reason="it is empty"), 5.0)
    server.exit("i1", at=5.1)
    commands = server.handle(StartInstances(count=2, reason="asked for", order=0), 6.0)
    assert [(spawn.id, spawn.slot) for spawn in only(ForkInstance, commands)] == [("i3", 1), ("i4", 3)]


def fleets(commands: list[SupervisorCommand]) -> list[Fleet]:
    return [message.fleet for message in told(FleetChanged, commands, Audience.SCHEDULER)]


def test_scheduler_hears_of_every_change_in_the_number_of_instances() -> None:
    server = Server(instances=2, parallel_starts=1)
    assert fleets(server.handle(TimePassed()))[-1] == Fleet(serving=0, starting=2)
    assert fleets(server.handle(InstanceServes(InstanceId("i0"), "ipc://i0"), 1.0))[-1] == Fleet(serving=1, starting=1)
    server.handle(InstanceServes(InstanceId("i1"), "ipc://i1"), 2.0)
    assert fleets(server.handle(TimePassed(), 3.0)) == []
    commands = server.handle(StartInstances(count=2, reason="auto-scaling", order=7), 4.0)
    assert fleets(commands)[-1] == Fleet(serving=2, starting=2, last_order=7)
    assert fleets(server.exit("i0", at=5.0))[-1] == Fleet(serving=1, starting=3, last_order=7)
    server.handle(StopInstance(instance=InstanceId("i1"), reason="it is empty"), 6.0)
    assert fleets(server.exit("i1", at=6.1))[-1] == Fleet(serving=0, starting=3, last_order=7)


def test_one_that_keeps_failing_or_finds_no_room_is_counted_apart() -> None:
    server = Server(instances=2, front_ends=0)
    server.handle(TimePassed())
    server.handle(InstanceServes(InstanceId("i0"), "ipc://i0"), 1.0)
    assert fleets(server.exit("i1", at=2.0)) == []
    server.handle(TimePassed(), 3.0)
    assert fleets(server.exit("i2", at=4.0))[-1] == Fleet(serving=1, starting=0, failing=1)
    server.handle(TimePassed(), 10.0)
    assert fleets(server.handle(InstanceServes(InstanceId("i3"), "ipc://i3"), 11.0))[-1] == Fleet(serving=2, starting=0)
    server.handle(StartInstances(count=1, reason="asked for", order=1), 12.0)
    commands = server.handle(Waiting(child="i4", why="it needs a GPU"), 13.0)
    assert fleets(commands)[-1] == Fleet(serving=2, starting=0, failing=1, last_order=1)


def test_new_scheduler_numbers_its_orders_anew_and_is_told_all() -> None:
    server = Server(instances=1)
    server.serve()
    server.handle(StartInstances(count=1, reason="auto-scaling", order=9), 2.0)
    commands = server.handle(SchedulerExited("killed by SIGKILL"), 3.0)
    assert fleets(commands)[-1] == Fleet(serving=1, starting=1, last_order=0)


def test_instance_that_was_asked_for_later_is_given_up_after_a_few_attempts() -> None:
    server = Server(instances=1)
    server.serve()
    server.handle(StartInstances(count=1, reason="asked for", order=0), 2.0)
    said: list[Say] = []
    for index, at in ((1, 3.0), (2, 10.0), (3, 20.0)):
        said += only(Say, server.exit(f"i{index}", at, why="ValueError: no room"))
        server.handle(TimePassed(), at + 6.0)
    assert said[-1] == Say("i3 did not start: ValueError: no room; given up after 3 attempts", warning=True)
    assert server.supervisor.instances == ("i0",)


def test_one_that_served_once_is_never_given_up() -> None:
    server = Server(instances=1)
    server.serve()
    server.handle(StartInstances(count=1, reason="asked for", order=0), 2.0)
    server.handle(InstanceServes(InstanceId("i1"), "ipc://i1"), 3.0)
    for index, at in ((1, 4.0), (2, 10.0), (3, 20.0), (4, 40.0)):
        server.exit(f"i{index}", at)
        server.handle(TimePassed(), at + 9.0)
    assert server.supervisor.instances == ("i0", "i5")


def test_instance_that_drains_but_cannot_be_emptied_is_killed_and_not_replaced() -> None:
    server = Server()
    server.serve()
    commands = server.handle(StopInstance(instance=InstanceId("i0"), reason="drained for 60 s", kill=True), 5.0)
    assert only(Signal, commands) == [Signal("i0", kill=True)]
    (gone,) = told(InstanceGone, server.exit("i0", at=5.1, why="killed by SIGKILL"))
    assert gone.expected
    assert server.supervisor.instances == ("i1",)


def test_scheduler_that_died_is_restarted_and_told_who_is_there() -> None:
    server = Server()
    server.serve()
    server.handle(StartInstances(count=1, reason="asked for", order=0), 2.0)
    commands = server.handle(SchedulerExited("killed by SIGKILL"), 3.0)
    assert only(SpawnScheduler, commands)
    assert [message.instance for message in told(InstanceStarting, commands, Audience.DECIDING)] == ["i2"]
    assert [message.instance for message in told(InstanceServing, commands, Audience.SCHEDULER)] == ["i0", "i1"]


def test_scheduler_that_hangs_is_killed_and_replaced() -> None:
    server = Server(front_ends=0)
    server.serve()
    assert only(StopScheduler, server.handle(SchedulerLives(), 20.0)) == []
    assert server.supervisor.next_wake_s == 50.0
    commands = server.handle(TimePassed(), 50.0)
    assert only(StopScheduler, commands) == [StopScheduler(kill=True)]
    assert server.supervisor.next_wake_s is None
    server.handle(SchedulerLives(), 50.1)  # its last word
    assert only(SpawnScheduler, server.handle(SchedulerExited("killed by SIGKILL"), 50.2)) == [SpawnScheduler()]
    assert server.supervisor.next_wake_s == 80.2


def test_front_end_that_hangs_is_killed_and_replaced_and_its_requests_are_aborted() -> None:
    server = Server(front_ends=2, step_timeout_s=60.0)
    server.serve()
    pid = server.pids["front-1"]
    assert server.handle(FrontEndLives(front_end=1, pid=pid), 10.0) == []
    assert server.next_wake_s == 70.0
    server.handle(FrontEndLives(front_end=1, pid=pid), 40.0)
    server.handle(SchedulerLives(), 99.0)
    assert server.handle(TimePassed(), 100.0) == [Signal("front-1", kill=True)]
    assert server.handle(FrontEndLives(front_end=1, pid=pid), 100.1) == [], "its last word"
    commands = server.exit("front-1", at=100.2, why="killed by SIGKILL")
    assert [lost.front_end for lost in told(FrontEndLost, commands, Audience.SERVING)] == [1]
    assert only(ForkFrontEnd, commands) == [ForkFrontEnd(index=1)]
    assert "it hung for 60 s" in only(Say, commands)[0].text
    assert server.handle(FrontEndLives(front_end=1, pid=pid), 100.3) == [], "late news of the old one"
    assert server.next_wake_s == 601.0, "the new one has not begun to serve, nor has the other one"


def test_front_end_that_hangs_before_it_ever_said_that_it_lives_is_killed_and_replaced() -> None:
    """It begins to serve when there is an instance, so its time to start runs from then on."""
    server = Server(front_ends=2, start_timeout_s=60.0)
    server.handle(TimePassed())
    for at in (25.0, 50.0):
        server.handle(SchedulerLives(), at)
    assert server.handle(TimePassed(), 59.0) == []
    server.handle(InstanceServes(InstanceId("i0"), "ipc://i0"), 59.5)
    server.handle(InstanceServes(InstanceId("i1"), "ipc://i1"), 59.9)
    server.handle(FrontEndLives(front_end=1, pid=server.pids["front-1"]), 61.0)
    for at in (75.0, 100.0):
        server.handle(SchedulerLives(), at)
    assert only(Signal, server.handle(TimePassed(), 119.4)) == []
    assert only(Signal, server.handle(TimePassed(), 119.5)) == [Signal("front-0", kill=True)]
    commands = server.exit("front-0", at=119.6, why="killed by SIGKILL")
    assert "it did not start within 60 s" in only(Say, commands)[0].text
    assert only(ForkFrontEnd, commands) == [ForkFrontEnd(index=0)]
    assert only(Signal, server.handle(TimePassed(), 179.7)) == [Signal("front-0", kill=True)]


def test_front_end_that_lets_its_last_requests_finish_has_the_time_for_that_and_no_less() -> None:
    server = Server(step_timeout_s=60.0, shutdown_timeout_s=600.0)
    server.serve()
    server.handle(FrontEndLives(front_end=0, pid=server.pids["front-0"]), 10.0)
    server.handle(Terminate(), 20.0)
    assert server.next_wake_s == 625.0
    assert server.handle(TimePassed(), 80.0) == []


def test_front_end_that_died_is_replaced_and_its_requests_are_aborted() -> None:
    server = Server(front_ends=2)
    server.serve()
    commands = server.handle(Exited(child="front-1", how="it broke", heard_unix_s=1_700_000_000.5), 5.0)
    lost = FrontEndLost(front_end=1, until_unix_s=1_700_000_000.5)
    assert told(FrontEndLost, commands, Audience.SERVING) == [lost], "and not those of its successor"
    assert only(ForkFrontEnd, commands) == [ForkFrontEnd(index=1)]


def test_server_gives_up_when_the_front_end_never_starts() -> None:
    server = Server()
    server.handle(TimePassed())
    finishes: list[Finish] = []
    for at in (1.0, 10.0, 20.0):
        finishes += only(Finish, server.exit("front-0", at, why="ImportError: no app"))
        server.handle(TimePassed(), at + 9.0)
    assert finishes == [Finish(2, "The front end does not start: ImportError: no app")]


def test_front_end_that_served_and_crashes_again_and_again_is_replaced_for_ever() -> None:
    server = Server()
    server.serve()
    for at in (2.0, 10.0, 30.0, 70.0):
        server.handle(FrontEndLives(front_end=0, pid=server.pids["front-0"]), at)
        assert only(Finish, server.exit("front-0", at + 0.1, why="a bad request")) == []
        assert server.running.count("front-0") or only(ForkFrontEnd, server.handle(TimePassed(), at + 9.0))


def test_answer_of_another_program_at_the_address_is_no_sign_that_a_front_end_starts() -> None:
    server = Server()
    server.serve()
    finishes: list[Finish] = []
    for at in (2.0, 10.0, 20.0):
        finishes += only(Finish, server.exit("front-0", at, why="OSError: address already in use"))
        server.handle(TimePassed(), at + 9.0)
    assert finishes == [Finish(2, "The front end does not start: OSError: address already in use")]


def test_server_ends_when_the_nursery_ends() -> None:
    server = Server()
    server.serve()
    (finish,) = only(Finish, server.handle(NurseryEnded("killed by SIGKILL"), 5.0))
    assert finish.exit_code == 1
    assert "killed by SIGKILL" in finish.sentence


def test_shutdown_lets_requests_finish_first_and_stops_the_engines_then() -> None:
    server = Server(shutdown_timeout_s=30)
    server.serve()
    commands = server.handle(Terminate(), 10.0)
    assert only(StopListening, commands)
    assert only(Signal, commands) == [Signal("front-0")]
    commands = server.exit("front-0", at=12.0, why="exit code 0")
    assert only(Signal, commands) == [Signal("i0"), Signal("i1")]
    assert only(StopScheduler, commands)
    server.handle(SchedulerExited("exit code 0"), 12.1)
    assert not only(Finish, server.exit("i0", at=12.2))
    assert only(Finish, server.exit("i1", at=12.3)) == [Finish(0, "")]


def test_scheduler_hears_once_that_the_server_ends_whatever_dies_after_that() -> None:
    server = Server()
    server.serve()
    (changed,) = told(FleetChanged, server.handle(Terminate(), 10.0), Audience.SCHEDULER)
    assert changed.fleet == Fleet(serving=2, starting=0, ending=True)
    assert told(FleetChanged, server.exit("i0", at=11.0), Audience.SCHEDULER) == []


def test_front_end_that_takes_too_long_to_finish_is_killed() -> None:
    server = Server(shutdown_timeout_s=30)
    server.serve()
    server.handle(Terminate(), 10.0)
    assert only(Signal, server.handle(TimePassed(), 45.0)) == [Signal("front-0", kill=True)]


def test_engines_that_do_not_stop_cannot_hold_up_the_end() -> None:
    server = Server()
    server.serve()
    server.handle(Terminate(), 10.0)
    server.exit("front-0", at=11.0)
    assert not only(Finish, server.handle(TimePassed(), 20.9))
    assert only(Finish, server.handle(TimePassed(), 21.0)) == [Finish(0, "")]


def test_nothing_is_restarted_while_stopping() -> None:
    server = Server()
    server.serve()
    server.handle(Terminate(), 10.0)
    commands = server.exit("i0", at=10.5) + server.handle(SchedulerExited("killed"), 10.6)
    commands += server.handle(StartInstances(count=1, reason="asked for", order=0), 10.7)
    assert not only(ForkInstance, commands)
    assert not only(SpawnScheduler, commands)


def test_instances_that_are_still_starting_do_not_delay_the_end() -> None:
    server = Server(instances=1)
    server.handle(TimePassed())
    commands = server.handle(Terminate(), 1.0)
    assert Signal("i0", kill=True) in commands


def parked_on_a_replacement() -> Server:
    """The only instance has died, and another one starts for it."""
    server = Server(instances=1, shutdown_timeout_s=60.0)
    server.serve(at=1.0)
    assert only(ForkInstance, server.exit("i0", at=100.0))
    return server


def test_replacement_that_streams_are_parked_for_goes_on_starting_until_they_are_through() -> None:
    server = parked_on_a_replacement()
    assert only(Signal, server.handle(Terminate(), 101.0)) == [Signal("front-0")]
    server.handle(InstanceServes(InstanceId("i1"), "ipc://i1"), 105.0)
    assert only(Signal, server.exit("front-0", at=110.0)) == [Signal("i1")]
    assert server.exit("i1", at=111.0) == []


def test_replacement_that_does_not_serve_before_the_front_ends_are_through_is_killed_then() -> None:
    server = parked_on_a_replacement()
    server.handle(Terminate(), 101.0)
    assert only(Signal, server.exit("front-0", at=110.0)) == [Signal("i1", kill=True)]


def test_replacement_beside_one_that_is_kept_empty_goes_on_starting_until_the_front_ends_are_through() -> None:
    server = Server(instances=2)
    server.serve(at=1.0)
    server.handle(InstanceServes(InstanceId("i1"), "ipc://i1", goes=False, drains=True), 50.0)
    assert only(ForkInstance, server.exit("i0", at=100.0))
    assert only(Signal, server.handle(Terminate(), 101.0)) == [Signal("front-0")]


def test_replacement_that_streams_are_parked_for_has_no_pause_any_more_when_the_end_comes() -> None:
    server = parked_on_a_replacement()
    assert only(ForkInstance, server.exit("i1", at=101.0)) == []
    (fork,) = only(ForkInstance, server.handle(Terminate(), 101.1))
    server.handle(InstanceServes(fork.id, f"ipc://{fork.id}"), 105.0)
    assert only(ForkInstance, server.exit(fork.id, at=106.0)) == [], "but once"


def test_replacement_that_streams_are_parked_for_starts_after_the_end_came_where_its_place_was_not_cleared() -> None:
    """On Ray each place is cleared some time after who was there has ended."""
    server = Server(instances=1, shutdown_timeout_s=60.0)
    server.serve(at=1.0)
    server.handle(Exited(child="i0", how="killed by SIGKILL", remains=True), 100.0)
    assert only(ForkInstance, server.handle(Terminate(), 100.1)) == []
    (fork,) = only(ForkInstance, server.handle(Cleared(child="i0"), 101.0))
    server.handle(Exited(child=fork.id, how="exit code 1", remains=True), 102.0)
    assert only(ForkInstance, server.handle(Cleared(child=fork.id), 103.0)) == [], "but once"


def test_place_that_is_cleared_after_the_end_came_stays_empty_where_no_stream_is_parked() -> None:
    for front_ends, instances in ((1, 2), (0, 1)):
        server = Server(instances=instances, front_ends=front_ends)
        server.serve(at=1.0)
        server.handle(Exited(child="i0", how="killed by SIGKILL", remains=True), 100.0)
        server.handle(Terminate(), 100.1)
        assert only(ForkInstance, server.handle(Cleared(child="i0"), 101.0)) == []


def test_replacement_of_one_whose_machine_goes_is_not_killed_before_the_front_ends_are_through() -> None:
    server = Server(instances=1, shutdown_timeout_s=60.0)
    server.serve(at=1.0)
    server.handle(Leaving(child="i0", why="its node goes", left_s=50.0), 100.0)
    assert only(Signal, server.handle(Terminate(), 101.0)) == [Signal("front-0")]


def test_replacement_is_killed_at_once_if_another_one_serves_or_no_front_end_is_there() -> None:
    server = Server(instances=2)
    server.serve(at=1.0)
    server.exit("i0", at=100.0)
    assert Signal("i2", kill=True) in server.handle(Terminate(), 101.0)
    lonely = Server(instances=1, front_ends=0)
    lonely.serve(at=1.0)
    lonely.exit("i0", at=100.0)
    assert Signal("i1", kill=True) in lonely.handle(Terminate(), 101.0)


def test_nobody_is_told_of_ends_once_all_are_to_end() -> None:
    server = Server()
    server.serve()
    server.handle(Terminate(), 10.0)
    assert told(InstanceGone, server.exit("i0", at=10.1)), "the front end still serves"
    server.exit("front-0", at=11.0)
    assert told(InstanceGone, server.exit("i1", at=11.1)) == []


def test_second_request_to_stop_ends_at_once() -> None:
    server = Server()
    server.serve()
    server.handle(Terminate(), 10.0)
    assert only(Finish, server.handle(Terminate(), 10.1)) == [Finish(0, "")]


def test_request_to_stop_before_anything_started_ends_at_once() -> None:
    assert only(Finish, Server().handle(Terminate())) == [Finish(0, "")]


@pytest.mark.parametrize(
    "event", [Exited(child="i99", how="gone"), StopInstance(instance=InstanceId("i99"), reason="gone", kill=True)]
)
def test_word_of_an_unknown_instance_changes_nothing(event: SupervisorEvent) -> None:
    server = Server()
    server.serve()
    assert server.handle(event, 5.0) == []


def drains(commands: list[SupervisorCommand]) -> list[DrainInstance]:
    return told(DrainInstance, commands, Audience.SCHEDULER)


def test_instance_whose_machine_is_taken_away_drains_while_another_starts_for_it() -> None:
    server = Server()
    server.serve()
    commands = server.handle(Leaving(child="i0", why="its node is being drained", left_s=None), 10.0)
    assert drains(commands) == [
        DrainInstance(instance=InstanceId("i0"), timeout_s=30.0, why="its node is being drained", firm=True)
    ]
    assert [command.id for command in only(ForkInstance, commands)] == ["i2"]
    assert server.handle(Leaving(child="i0", why="its node is being drained", left_s=None), 11.0) == [], (
        "told once more"
    )
    server.handle(InstanceServes(InstanceId("i2"), "ipc://i2"), 12.0)
    server.handle(StopInstance(instance=InstanceId("i0"), reason="its node is being drained"), 13.0)
    commands = server.exit("i0", at=13.5)
    assert only(Say, commands) == [Say("i0 stopped: its node is being drained")]
    assert only(ForkInstance, commands) == []
    assert server.supervisor.instances == ("i1", "i2")


@pytest.mark.parametrize(("left_s", "timeout_s"), [(120.0, 30.0), (20.0, 15.0), (3.0, 0.0), (-1.0, 0.0)])
def test_drain_of_a_leaving_machine_keeps_some_of_its_time_for_replays(left_s: float, timeout_s: float) -> None:
    server = Server()
    server.serve()
    (drain,) = drains(server.handle(Leaving(child="i0", why="it goes", left_s=left_s), 10.0))
    assert drain.timeout_s == timeout_s


def test_scheduler_that_starts_anew_is_told_of_leaving_machines_and_of_the_time_they_have_left() -> None:
    server = Server()
    server.serve()
    server.handle(Leaving(child="i0", why="it goes", left_s=25.0), 10.0)
    (drain,) = drains(server.handle(SchedulerExited("killed by SIGKILL"), 14.0))
    assert drain == DrainInstance(instance=InstanceId("i0"), timeout_s=16.0, why="it goes", firm=True)
    server.exit("i0", at=15.0)
    assert drains(server.handle(SchedulerExited("killed by SIGKILL"), 20.0) + server.handle(TimePassed(), 60.0)) == []


def test_leaving_machine_that_is_gone_before_its_instance_was_empty() -> None:
    server = Server()
    server.serve()
    server.handle(Leaving(child="i0", why="it goes", left_s=None), 10.0)
    commands = server.exit("i0", at=11.0, why="its node was lost")
    (gone,) = told(InstanceGone, commands)
    assert not gone.expected
    assert only(Say, commands) == [Say("i0 died: its node was lost", warning=True)]
    assert only(ForkInstance, commands) == [], "another one was started before"


def test_instance_that_starts_on_a_leaving_machine_starts_elsewhere() -> None:
    server = Server()
    server.handle(TimePassed())
    commands = server.handle(Leaving(child="i0", why="it goes", left_s=None), 1.0)
    assert only(Signal, commands) == [Signal("i0", kill=True)]
    assert drains(commands) == []
    assert len(only(ForkInstance, commands)) == 1, "at once"
    assert only(ForkInstance, server.exit("i0", at=1.1) + server.handle(TimePassed(), 2.0)) == []


def test_machine_that_leaves_while_the_server_ends() -> None:
    server = Server()
    server.serve()
    server.handle(Terminate(), 5.0)
    assert server.handle(Leaving(child="i0", why="it goes", left_s=None), 6.0) == []


def going(server: Server, instance: str, goes: bool = True, at: float = 5.0) -> None:
    """It says that it drains and is not kept; or that it takes requests again."""
    server.handle(InstanceServes(InstanceId(instance), f"ipc://{instance}", goes, drains=goes), at)


def test_instance_that_is_to_go_and_dies_before_it_is_empty_stays_away() -> None:
    server = Server()
    server.serve()
    going(server, "i0")
    commands = server.exit("i0", at=6.0)
    (gone,) = told(InstanceGone, commands)
    assert not gone.expected
    assert only(Say, commands) == [Say("i0 died: it broke", warning=True)]
    assert told(FleetChanged, commands, Audience.SCHEDULER)[-1].fleet == Fleet(serving=1, starting=0)
    assert only(ForkInstance, commands + server.handle(TimePassed(), 60.0)) == []


def test_instance_that_is_to_go_and_is_declared_lost_stays_away() -> None:
    server = Server()
    server.serve()
    going(server, "i0")
    commands = server.handle(DeclareLost(instance=InstanceId("i0"), why="silent"), 6.0)
    assert Signal("i0", kill=True) in commands
    commands = server.exit("i0", at=6.1) + server.handle(TimePassed(), 60.0)
    assert [gone.expected for gone in told(InstanceGone, commands)] == [False]
    assert only(ForkInstance, commands) == []


def test_instance_that_takes_requests_again_is_replaced_when_it_dies() -> None:
    server = Server()
    server.serve()
    going(server, "i0")
    going(server, "i0", goes=False, at=6.0)
    assert [fork.id for fork in only(ForkInstance, server.exit("i0", at=200.0))] == ["i2"]


def test_instance_that_is_to_go_says_so_a_thousand_times_and_it_is_news_once() -> None:
    server = Server()
    server.serve()
    said = InstanceServes(InstanceId("i0"), "ipc://i0", True)
    assert not server.supervisor.knows(said)
    server.handle(said, 5.0)
    assert server.supervisor.knows(said)


def test_machine_that_is_taken_away_from_an_instance_that_is_to_go_anyhow() -> None:
    server = Server()
    server.serve()
    going(server, "i0")
    commands = server.handle(Leaving(child="i0", why="it goes", left_s=None), 6.0)
    assert len(drains(commands)) == 1, "by when it has to be empty"
    assert only(ForkInstance, commands + server.exit("i0", at=7.0) + server.handle(TimePassed(), 60.0)) == []


# what the dead leave behind


def test_place_is_not_used_while_workers_of_the_dead_one_hold_its_memory() -> None:
    server = Server(instances=2, front_ends=0)
    server.serve()
    commands = server.handle(Exited(child="i0", how="killed by SIGKILL", remains=True), 5.0)
    assert [gone.instance for gone in told(InstanceGone, commands)] == ["i0"], "everybody hears of it at once"
    assert only(ForkInstance, commands) == []
    assert server.next_wake_s is None
    assert only(ForkInstance, server.handle(TimePassed(), 5.5)) == []
    assert only(ForkInstance, server.handle(Cleared(child="i0"), 6.0)) == [
        ForkInstance(id=InstanceId("i2"), index=2, slot=0)
    ]


def test_place_of_one_that_was_stopped_waits_too_for_whoever_is_started_next() -> None:
    server = Server(instances=2)
    server.serve()
    server.handle(StopInstance(instance=InstanceId("i0"), reason="drained"), 5.0)
    server.handle(Exited(child="i0", how="exit code 0", remains=True), 5.1)
    assert only(ForkInstance, server.handle(StartInstances(count=1, reason="more", order=1), 5.2)) == []
    assert only(ForkInstance, server.handle(Cleared(child="i0"), 6.0)) == [
        ForkInstance(id=InstanceId("i2"), index=2, slot=0)
    ]


def test_processes_that_do_not_end_are_told_and_the_place_is_used_all_the_same() -> None:
    server = Server(instances=1)
    server.serve()
    server.handle(Exited(child="i0", how="killed by SIGKILL", remains=True), 5.0)
    commands = server.handle(Cleared(child="i0", stuck=(71, 72)), 15.0)
    assert only(ForkInstance, commands) == [ForkInstance(id=InstanceId("i1"), index=1, slot=0)]
    (said,) = only(Say, commands)
    assert said.warning
    assert "71, 72" in said.text


def test_front_end_is_replaced_at_once_whatever_the_dead_one_left() -> None:
    server = Server()
    server.serve()
    assert only(ForkFrontEnd, server.handle(Exited(child="front-0", how="broke", remains=True), 5.0)) == [
        ForkFrontEnd(index=0)
    ]
    assert server.handle(Cleared(child="front-0"), 6.0) == []


# one that SIGKILL does not end


def stuck(server: Server, at: float = 5.0) -> list[SupervisorCommand]:
    """`i0` is killed then, and the kernel does not let it end."""
    commands = server.handle(DeclareLost(instance=InstanceId("i0"), why="no heartbeat"), at)
    assert only(ForkInstance, commands) == []
    assert server.next_wake_s == at + 10.0
    return commands + server.handle(TimePassed(), at + 10.0)


def test_instance_that_is_killed_does_not_count_as_serving_though_it_has_not_ended_yet() -> None:
    server = Server(instances=2)
    server.serve()
    commands = server.handle(DeclareLost(instance=InstanceId("i0"), why="no heartbeat"), 5.0)
    assert told(FleetChanged, commands, Audience.SCHEDULER)[-1].fleet == Fleet(serving=1, starting=1)
    commands = server.handle(StopInstance(instance=InstanceId("i1"), reason="drained", kill=True), 5.0)
    assert told(FleetChanged, commands, Audience.SCHEDULER)[-1].fleet == Fleet(serving=0, starting=1)


def test_instance_that_sigkill_does_not_end_is_told_of_as_gone_and_another_takes_its_place() -> None:
    server = Server(instances=2)
    server.serve()
    commands = stuck(server)
    (gone,) = told(InstanceGone, commands)
    assert (gone.instance, gone.expected) == ("i0", False)
    sentence = f"no heartbeat; process {server.pids['i0']} was killed and does not end, and may hold its memory"
    assert gone.why == sentence
    assert [said.text for said in only(Say, commands)][-1] == f"i0 died: {sentence}; another takes its place"
    assert only(ForkInstance, commands) == [ForkInstance(id=InstanceId("i2"), index=2, slot=0)]
    assert server.supervisor.instances == ("i2", "i1")
    assert server.handle(InstanceServes(InstanceId("i0"), "ipc://i0"), 16.0) == [], "whatever it says"
    assert server.exit("i0", at=30.0) == [Say("i0 ended at last: it broke")]


def test_place_of_an_instance_that_sigkill_does_not_end_is_used_on_other_gpus_if_there_are_any() -> None:
    server = Server(instances=2, most=3)
    server.serve()
    commands = stuck(server)
    assert only(ForkInstance, commands) == [ForkInstance(id=InstanceId("i2"), index=2, slot=2)]
    assert told(FleetChanged, commands, Audience.SCHEDULER)[-1].fleet == Fleet(serving=1, starting=1, room=0)
    assert told(FleetChanged, server.exit("i0", at=900.0), Audience.SCHEDULER)[-1].fleet.room == 1


def test_place_of_an_instance_that_sigkill_does_not_end_waits_for_its_gpus_where_there_are_no_others() -> None:
    server = Server(instances=2, front_ends=0, most=2)
    server.serve()
    commands = stuck(server)
    assert only(ForkInstance, commands) == []
    assert told(FleetChanged, commands, Audience.SCHEDULER)[-1].fleet == Fleet(serving=1, starting=0, failing=1, room=0)
    assert server.next_wake_s is None, "nobody waits for it again and again"
    server.running.remove("i0")
    left = server.handle(Exited(child="i0", how="killed by SIGKILL", remains=True), 900.0)
    assert only(ForkInstance, left) == [], "its workers hold them still"
    assert only(ForkInstance, server.handle(Cleared(child="i0"), 901.0)) == [
        ForkInstance(id=InstanceId("i2"), index=2, slot=0)
    ]


def test_another_instance_is_not_started_on_gpus_of_a_stopped_one_that_sigkill_does_not_end() -> None:
    server = Server(instances=2, most=3)
    server.serve()
    server.handle(StopInstance(instance=InstanceId("i0"), reason="drained", kill=True), 5.0)
    server.handle(TimePassed(), 15.0)
    commands = server.handle(StartInstances(count=1, reason="more", order=1), 16.0)
    assert only(ForkInstance, commands) == [ForkInstance(id=InstanceId("i2"), index=2, slot=2)]
    fleet = Fleet(serving=1, starting=1, last_order=1, room=0)
    assert told(FleetChanged, commands, Audience.SCHEDULER)[-1].fleet == fleet, "it has its GPU still"


def test_server_that_ends_does_not_wait_for_an_instance_that_sigkill_does_not_end() -> None:
    server = Server(instances=2)
    server.serve()
    server.handle(DeclareLost(instance=InstanceId("i0"), why="no heartbeat"), 5.0)
    server.handle(Terminate(), 6.0)
    server.exit("front-0", at=7.0)
    assert server.next_wake_s == 17.0
    assert only(Finish, server.handle(TimePassed(), 17.0)) == [Finish(0, "")]


# news that overtake each other, and machines that go before anything runs there


def test_instance_whose_report_overtakes_the_news_of_its_start_is_not_killed_when_its_time_to_start_is_over() -> None:
    """Reports come straight from it; what is said of it comes by way of the nursery, or of Ray."""
    server = Server(instances=1, front_ends=0, start_timeout_s=60.0)
    server.supervisor.handle(TimePassed(), 0.0)
    server.handle(InstanceServes(InstanceId("i0"), "ipc://i0"), 1.0)
    commands = server.handle(Forked(child="i0", pid=101, node="there"), 2.0)
    assert told(InstanceStarting, commands, Audience.DECIDING) == []
    assert server.next_wake_s is None
    assert only(Signal, server.handle(TimePassed(), 100.0)) == []


def test_only_instance_whose_machine_goes_while_it_starts_is_no_reason_to_give_up() -> None:
    server = Server(instances=1)
    server.handle(TimePassed())
    commands = server.handle(Leaving(child="i0", why="node-a is being drained", left_s=30.0), 1.0)
    assert Signal("i0", kill=True) in commands
    assert only(ForkInstance, commands) == [ForkInstance(id=InstanceId("i1"), index=1, slot=1)], "elsewhere, at once"
    commands = server.exit("i0", 1.1)
    assert only(Finish, commands) == []
    server.handle(InstanceServes(InstanceId("i1"), "ipc://i1"), 2.0)
    assert server.supervisor.instances == ("i1",)
