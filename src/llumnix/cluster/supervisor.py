"""Who lives, who is replaced, and who ends when: the launcher's mind, without its hands.

`handle(event, at)` returns commands; the launcher (launcher.py) carries them out and calls `handle` again with
what happened. `next_wake_s` says when to send a `TimePassed` if nothing else happens. No I/O and no clock, so every
rule below is a test that takes no time.

Rules: an instance that dies is replaced under a new id, at once the first time and with growing pauses when it
keeps dying; if nothing ever served and every first instance failed, nothing will ever work, and the server ends. One
that was asked for later and does not start is given up after a few attempts. One whose machine is being taken away is
drained while another one starts for it. One that drains to go away stays away, however it ends. One that SIGKILL does
not end is as good as dead, but it keeps its GPUs. Whoever starts for
another one has its role. The scheduler is told of every change in the number of instances.
"""

from __future__ import annotations

from typing import assert_never

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
from llumnix.cluster.roster import FrontEndProcess, Instance, Leave, Retries, Roster, Watch
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
from llumnix.config import ClusterConfig
from llumnix.control.fleet import Fleet
from llumnix.control.scheduler_events import DeclareLost, SetRole, StartInstances, StopInstance
from llumnix.roles_config import RolesConfig
from llumnix.types import InstanceId
from llumnix.wire.news import FrontEndLost, InstanceGone, InstanceStarting
from llumnix.wire.to_launcher import FrontEndLives, SchedulerLives
from llumnix.wire.to_scheduler import DrainInstance, FleetChanged, InstanceServing

_STOP_TIMEOUT_S = 10.0  # between SIGTERM and SIGKILL for a process that has nothing left to finish
_KILL_TIMEOUT_S = 10.0  # after SIGKILL; whatever is left then only the kernel keeps, in a driver
_REPLAY_S = 5.0  # of the time that a leaving machine has left: for what did not move in the rest of it
_SILENT_S = 30.0  # after that, at the earliest, something hangs; where cores are short a start may take some seconds
_FRONT_END_GRACE_S = 5.0  # beyond the time that running requests get
_FIRST_FRONT_END_ATTEMPTS = 3
_EXTRA_INSTANCE_ATTEMPTS = 3

_NOBODY_LEFT = Say("no instance is left, so requests get 503; `llumnix start` starts one", warning=True)


class Supervisor:
    """`parallel_starts` instances start at once; more would only take each other's cores."""

    def __init__(
        self,
        config: ClusterConfig,
        node: str,
        front_ends: int,
        parallel_starts: int,
        most: int | None = None,
        roles: RolesConfig | None = None,
    ) -> None:
        """`most`: instances that there are devices for; None if nobody knows."""
        self._config = config
        self._node = node
        self._parallel_starts = parallel_starts
        self._roster = Roster(config.instances, front_ends, config.instances_per_gpu, most, roles)
        self._scheduler_attempts = Retries()
        self._scheduler_started_s: float | None = None
        self._scheduler_watch = Watch(_SILENT_S)
        self._last_order = 0
        self._told_fleet: Fleet | None = None
        self._instance_ever_served = False
        self._ever_served = False
        self._stopping = False
        self._last_start_lacks_a_place = False
        self._end_at_s: float | None = None
        self._finished = False

    @property
    def instances(self) -> tuple[InstanceId, ...]:
        """All that have a process, for messages to everybody."""
        return tuple(instance.id for instance in self._roster.instances)

    @property
    def processes(self) -> tuple[str, ...]:
        """All front ends and instances that run, by their names."""
        return tuple(process.name for process in self._roster.processes)

    @property
    def mailboxes(self) -> tuple[str, ...]:
        """Of all instances that serve."""
        return tuple(instance.control for instance in self._roster.instances if instance.control)

    def knows(self, said: InstanceServes) -> bool:
        """Whether it is known to serve, and to go or to stay, so that this is no news. Any thread may ask."""
        known = self._roster.instance(said.instance)
        if known is None or known.starting:
            return False
        return (known.goes, known.drains) == (said.goes, said.drains)

    @property
    def next_wake_s(self) -> float | None:
        """When the next deadline or pause ends; None if there is nothing to wait for."""
        roster = self._roster
        times = [process.kill_at_s for process in roster.processes] + [self._end_at_s]
        if not self._stopping:
            times += [watch.due_s for watch in self._watches]
            times += [i.killed_s + _KILL_TIMEOUT_S for i in roster.instances if i.killed_s is not None]
            places = list(roster.front_end_places.values())
            times += [place.attempts.not_before_s for place in places if place.process is None]
            if roster.starting < self._parallel_starts:
                times += [slot.attempts.not_before_s for slot in roster.usable_slots.values()]
            if self._scheduler_started_s is None:
                times.append(self._scheduler_attempts.not_before_s)
        return min((time for time in times if time is not None), default=None)

    @property
    def _watches(self) -> list[Watch]:
        return [self._scheduler_watch, *(front_end.watch for front_end in self._roster.front_ends)]

    def handle(self, event: SupervisorEvent, at: float) -> list[SupervisorCommand]:
        if self._finished or (isinstance(event, InstanceServes) and self.knows(event)):
            return []
        commands = self._react(event, at) + self._enforce_deadlines(at) + self._start_what_is_due(at)
        return commands + self._tell_fleet()

    def _react(self, event: SupervisorEvent, at: float) -> list[SupervisorCommand]:
        match event:
            case TimePassed():
                return []
            case Forked() | Waiting() | HasRoom() | Leaving() | Exited() | Cleared():
                return self._on_news_of_child(event, at)
            case InstanceServes():
                return self._on_instance_serves(event, at)
            case FrontEndServes() | FrontEndLives():
                return self._on_news_of_front_end(event, at)
            case SchedulerLives() | SchedulerExited():
                return self._on_news_of_scheduler(event, at)
            case StartInstances():
                return self._on_start_requested(event)
            case StopInstance():
                return self._on_stop_requested(event, at)
            case SetRole():
                return self._on_role_given(event)
            case DeclareLost():
                return self._kill(event.instance, event.why, at, replace=True)
            case Terminate():
                return self._on_terminate(at)
            case NurseryEnded():
                return self._finish(1, f"The parent of all engine processes ended ({event.how}), and so did they.")
            case _:
                assert_never(event)

    def _on_news_of_child(
        self, event: Forked | Waiting | HasRoom | Leaving | Exited | Cleared, at: float
    ) -> list[SupervisorCommand]:
        match event:
            case Forked():
                return self._on_forked(event, at)
            case Waiting():
                return self._on_waits(event)
            case HasRoom():
                return self._on_has_room(event, at)
            case Leaving():
                return self._on_leaves(event, at)
            case Exited():
                return self._on_exited(event, at)
            case Cleared():
                return self._on_cleared(event, at)
            case _:
                assert_never(event)

    # starting

    def _start_what_is_due(self, at: float) -> list[SupervisorCommand]:
        if self._stopping or self._finished:
            return []
        commands: list[SupervisorCommand] = []
        if self._scheduler_started_s is None and self._scheduler_attempts.not_before_s <= at:
            self._scheduler_started_s = at
            self._scheduler_watch.heard(at)
            self._last_order, self._told_fleet = 0, None  # it numbers its orders anew
            commands += [SpawnScheduler(), *self._introduce_the_starting()]
            serving = [instance.id for instance in self._roster.instances if not instance.starting]
            commands += [Announce(InstanceServing(instance=instance), Audience.SCHEDULER) for instance in serving]
            commands += [self._order_drain(i, at) for i in self._roster.instances if i.leaves is not None]
        for index, place in self._roster.front_end_places.items():
            if place.due(at):
                self._roster.place_front_end(index, at, max(_SILENT_S, self._config.step_timeout_s))
                commands += [ForkFrontEnd(index=index), *self._introduce_the_starting()]
                self._expect_front_ends(at)
        return commands + self._start_instances(at)

    def _start_instances(self, at: float) -> list[SupervisorCommand]:
        may_start = self._parallel_starts - self._roster.starting
        if may_start <= 0:
            return []
        due = [number for number, slot in self._roster.usable_slots.items() if slot.due(at)]
        commands: list[SupervisorCommand] = []
        for number in self._roster.one_for_each_gpu(due)[:may_start]:
            instance = self._roster.place_instance(number, at, kill_at_s=at + self._config.start_timeout_s)
            role = self._roster.slots[number].role
            commands.append(ForkInstance(id=instance.id, index=instance.index, slot=number, role=role))
        return commands

    def _on_waits(self, event: Waiting) -> list[SupervisorCommand]:
        process = self._roster.find(event.child)
        if process is None or process.end:
            return []
        process.kill_at_s = None  # its time to start begins when it has a place
        return [Say(f"{event.child} waits for room: {event.why}", warning=True)]

    def _on_has_room(self, event: HasRoom, at: float) -> list[SupervisorCommand]:
        instance = self._roster.instance(InstanceId(event.child))
        if instance is not None and instance.waits_for_room:
            instance.forked_s = at
            instance.kill_at_s = at + self._config.start_timeout_s
        return []

    def _on_forked(self, event: Forked, at: float) -> list[SupervisorCommand]:
        process = self._roster.find(event.child)
        if process is None:
            return []
        process.pid = event.pid
        if not isinstance(process, Instance):
            return []
        process.node = event.node or self._node
        if not process.starting:  # what it says itself was faster than what is said of it
            return []
        return [self._introduce(process)]

    def _introduce(self, instance: Instance) -> SupervisorCommand:
        assert instance.pid is not None
        starting = InstanceStarting(instance=instance.id, pid=instance.pid, node=instance.node)
        return Announce(starting, Audience.DECIDING)

    def _introduce_the_starting(self) -> list[SupervisorCommand]:
        """For a listener that is new itself: instances that serve introduce themselves, these cannot yet."""
        return [self._introduce(i) for i in self._roster.instances if i.starting and i.pid is not None]

    def _tell_fleet(self) -> list[SupervisorCommand]:
        """At each change; that the server ends is the last of them."""
        if self._finished or self._scheduler_started_s is None or (self._told_fleet and self._told_fleet.ending):
            return []
        fleet = self._roster.fleet(self._last_order, ending=self._stopping)
        if fleet == self._told_fleet:
            return []
        self._told_fleet = fleet
        return [Announce(FleetChanged(fleet=fleet), Audience.SCHEDULER)]

    # serving

    def _on_instance_serves(self, event: InstanceServes, at: float) -> list[SupervisorCommand]:
        instance = self._roster.instance(event.instance)
        if instance is None or instance.end:
            return []
        instance.goes, instance.drains = event.goes, event.drains
        if not instance.starting:
            return []
        instance.served_since_s = at
        instance.control = event.control
        instance.kill_at_s = None
        self._roster.slots[instance.slot].extra = False
        self._instance_ever_served = True
        self._expect_front_ends(at)
        ready = Say(f"{instance.id} ready in {at - instance.forked_s:.1f} s")
        return [ready, Announce(InstanceServing(instance=instance.id), Audience.SCHEDULER)]

    def _on_news_of_front_end(self, event: FrontEndServes | FrontEndLives, at: float) -> list[SupervisorCommand]:
        if isinstance(event, FrontEndServes):
            return [Say(event.sentence)]
        self._ever_served = True  # whoever answers at the address need not be a front end of ours
        front_end = self._roster.front_end_places[event.front_end].process
        if front_end is not None and front_end.pid == event.pid and not front_end.end:
            if front_end.watch.due_s is None and not self._stopping:
                front_end.kill_at_s = None
            front_end.watch.heard(at)
        return []

    def _expect_front_ends(self, at: float) -> None:
        """The first heartbeat of each that was not heard yet: it begins to serve when there is an instance."""
        if all(instance.starting for instance in self._roster.instances):
            return
        for front_end in self._roster.front_ends:
            if front_end.watch.due_s is None and front_end.kill_at_s is None and not front_end.end:
                front_end.kill_at_s = at + self._config.start_timeout_s

    def _on_start_requested(self, event: StartInstances) -> list[SupervisorCommand]:
        if self._stopping:
            return []
        replaced = None if event.replaces is None else self._roster.instance(event.replaces)
        self._roster.add_slots(event.count, instead_of=replaced)
        self._last_order = max(self._last_order, event.order)
        return [Say(f"starting more instances: {event.reason}")]

    def _on_role_given(self, event: SetRole) -> list[SupervisorCommand]:
        """The scheduler has told the instance, too."""
        instance = self._roster.instance(event.instance)
        if instance is not None:
            self._roster.give_role(instance, event.role)
        return []

    # ending

    def _on_leaves(self, event: Leaving, at: float) -> list[SupervisorCommand]:
        """One that serves is drained in the time that is left, and another one starts for it; one that does not serve
        yet starts elsewhere. None starts for one that was to go anyhow."""
        instance = self._roster.instance(InstanceId(event.child))
        if instance is None or self._stopping or instance.end or instance.leaves is not None:
            return []
        said = Say(f"{instance.id} moves out: {event.why}" + ("" if instance.goes else "; another starts for it"))
        if not instance.goes:
            self._roster.add_slots(1, extra=self._roster.slots[instance.slot].extra, instead_of=instance)
        if instance.starting:  # that says nothing of whether it would start
            instance.end, instance.replace, instance.killed_s = event.why, False, at
            return [said, Signal(instance.id, kill=True)]
        timeout_s = self._config.drain_timeout_s
        if event.left_s is not None:
            timeout_s = min(timeout_s, max(0.0, event.left_s - _REPLAY_S))
        instance.leaves = Leave(event.why, by_s=at + timeout_s)
        return [said, self._order_drain(instance, at)]

    def _order_drain(self, instance: Instance, at: float) -> SupervisorCommand:
        """Once to each scheduler: one that dies may take the order with it."""
        assert instance.leaves is not None
        timeout_s = max(0.0, instance.leaves.by_s - at)
        drain = DrainInstance(instance=instance.id, timeout_s=timeout_s, why=instance.leaves.why, firm=True)
        return Announce(drain, Audience.SCHEDULER)

    def _on_stop_requested(self, event: StopInstance, at: float) -> list[SupervisorCommand]:
        if event.kill:
            return self._kill(event.instance, event.reason, at, replace=False)
        instance = self._roster.instance(event.instance)
        if instance is None or instance.end:
            return []
        instance.end, instance.replace = event.reason, False
        instance.kill_at_s = at + _STOP_TIMEOUT_S
        return [Signal(instance.id)]

    def _kill(self, name: InstanceId, why: str, at: float, *, replace: bool) -> list[SupervisorCommand]:
        instance = self._roster.instance(name)
        if instance is None or instance.end:
            return []
        instance.end, instance.replace, instance.killed_s = why, replace, at
        return [Say(f"{instance.id} is killed: {why}", warning=True), Signal(instance.id, kill=True)]

    def _on_exited(self, event: Exited, at: float) -> list[SupervisorCommand]:
        commands: list[SupervisorCommand] = []
        match self._roster.find(event.child):
            case Instance() as instance:
                commands = self._on_instance_exited(instance, event, at)
            case FrontEndProcess() as front_end:
                commands = self._on_front_end_exited(front_end, event, at)
            case None:
                if self._roster.ends_at_last(event.child, event.remains):
                    commands = [Say(f"{event.child} ended at last: {event.how}")]
            case unknown:
                assert_never(unknown)
        return commands + (self._proceed_with_stopping(at) if self._stopping else [])

    def _on_cleared(self, event: Cleared, at: float) -> list[SupervisorCommand]:
        said: list[SupervisorCommand] = []
        if event.stuck:
            pids = ", ".join(map(str, event.stuck))
            what = f"{event.child} left processes that do not end although they were killed ({pids})"
            said.append(Say(f"{what}; they may hold its memory", warning=True))
        self._roster.cleared(event.child)
        return said + (self._start_last(at) if self._last_start_lacks_a_place else [])

    def _on_instance_exited(self, instance: Instance, event: Exited, at: float) -> list[SupervisorCommand]:
        slot = self._roster.slots[instance.slot]
        self._roster.gone(instance)
        if event.remains:
            self._roster.littered[instance.slot] = instance.id
        expected = self._stopping or (bool(instance.end) and not instance.replace)
        why = instance.end or event.how
        gone: list[SupervisorCommand] = [
            Announce(InstanceGone(instance=instance.id, index=instance.index, why=why, expected=expected)),
            Forget(instance.control),
        ]
        if self._stopping:
            return [] if self._end_at_s is not None else gone  # then all have been told to end
        if expected or instance.goes or instance.leaves is not None:
            del self._roster.slots[instance.slot]
            said = Say(f"{instance.id} {'stopped' if expected else 'died'}: {why}", warning=not expected)
            return [*gone, said, *self._who_is_left()]
        slot.attempts.failed(at, instance.served_s(at))
        slots = self._roster.slots.values()
        if not self._instance_ever_served and all(slot.attempts.failures > 0 for slot in slots):
            return [*gone, *self._finish(2, f"No instance starts: {why}")]
        if slot.extra and slot.attempts.failures >= _EXTRA_INSTANCE_ATTEMPTS:
            del self._roster.slots[instance.slot]
            tries = slot.attempts.failures
            said = Say(f"{instance.id} did not start: {why}; given up after {tries} attempts", warning=True)
            return [*gone, said, *self._who_is_left()]
        return [*gone, self._mourn(instance, slot.attempts.not_before_s - at, why), *self._who_is_left()]

    def _who_is_left(self) -> list[SupervisorCommand]:
        return [] if self._roster.slots else [_NOBODY_LEFT]

    def _mourn(self, instance: Instance, pause_s: float, why: str) -> SupervisorCommand:
        what = "did not start" if instance.starting else "died"
        if not self._config.restart_instances:
            del self._roster.slots[instance.slot]
            return Say(f"{instance.id} {what}: {why}", warning=True)
        then = "another takes its place" + (f" in {pause_s:g} s" if pause_s > 0 else "")
        return Say(f"{instance.id} {what}: {why}; {then}", warning=True)

    def _on_front_end_exited(self, front_end: FrontEndProcess, event: Exited, at: float) -> list[SupervisorCommand]:
        place = self._roster.front_end_places[front_end.index]
        self._roster.gone(front_end)
        lost = Announce(FrontEndLost(front_end=front_end.index, until_unix_s=event.heard_unix_s), Audience.SERVING)
        if self._stopping:
            return [lost]
        place.attempts.failed(at, at - front_end.forked_s)
        if not self._ever_served and place.attempts.failures >= _FIRST_FRONT_END_ATTEMPTS:
            return self._finish(2, f"The front end does not start: {event.how}")
        return [
            lost,
            Say(f"{front_end.name} died: {front_end.end or event.how}; another takes its place", warning=True),
        ]

    def _on_news_of_scheduler(self, event: SchedulerLives | SchedulerExited, at: float) -> list[SupervisorCommand]:
        if isinstance(event, SchedulerLives):
            if self._scheduler_watch.due_s is not None:
                self._scheduler_watch.heard(at)
            return []
        assert self._scheduler_started_s is not None, "an exit of a scheduler that does not run"
        lived_s = at - self._scheduler_started_s
        self._scheduler_started_s = self._scheduler_watch.due_s = None
        if self._stopping:
            return self._proceed_with_stopping(at)
        self._scheduler_attempts.failed(at, lived_s)
        return [Say(f"the scheduler died: {event.why}; it is restarted, serving goes on", warning=True)]

    # the end of everything

    def _on_terminate(self, at: float) -> list[SupervisorCommand]:
        if self._stopping:
            return self._finish(0, "")
        self._stopping = True
        limit_s = self._config.shutdown_timeout_s
        commands: list[SupervisorCommand] = [
            Say(f"stopping; running requests have up to {limit_s:g} s (once more stops at once)"),
            StopListening(),
        ]
        for front_end in self._roster.front_ends:
            front_end.kill_at_s = at + limit_s + _FRONT_END_GRACE_S
            commands.append(Signal(front_end.name))
        if not self._streams_may_be_parked:
            commands += [Signal(instance.id, kill=True) for instance in self._roster.instances if instance.starting]
        else:
            commands += self._start_last(at)
        return commands + self._proceed_with_stopping(at)

    def _start_last(self, at: float) -> list[SupervisorCommand]:
        """The one whose turn is next, without a pause, for there is no later any more: at most its place has first to
        be cleared."""
        self._last_start_lacks_a_place = False
        if self._roster.starting or not self._streams_may_be_parked:
            return []
        waiting = [slot.attempts for slot in self._roster.usable_slots.values()]
        if waiting:
            min(waiting, key=lambda attempts: attempts.not_before_s).not_before_s = at
        self._last_start_lacks_a_place = not waiting
        return self._start_instances(at)

    @property
    def _streams_may_be_parked(self) -> bool:
        """Front ends have requests that nobody can finish but an instance that starts."""
        stays = [i for i in self._roster.instances if not (i.end or i.drains or i.leaves)]
        serving = any(not instance.starting for instance in stays)
        return self._instance_ever_served and not serving and bool(self._roster.front_ends)

    def _proceed_with_stopping(self, at: float) -> list[SupervisorCommand]:
        """Front ends first, for they have clients; then instances and scheduler; then the end. An instance that still
        starts has nothing to finish."""
        if self._roster.front_ends:
            return []
        if not self._roster.instances and self._scheduler_started_s is None:
            return self._finish(0, "")
        if self._end_at_s is not None:
            return []
        self._end_at_s = at + _STOP_TIMEOUT_S
        commands: list[SupervisorCommand] = [Signal(i.id, kill=i.starting) for i in self._roster.instances]
        return [*commands, StopScheduler()] if self._scheduler_started_s is not None else commands

    def _finish(self, exit_code: int, sentence: str) -> list[SupervisorCommand]:
        self._finished = True
        return [Finish(exit_code, sentence)]

    def _enforce_deadlines(self, at: float) -> list[SupervisorCommand]:
        if self._finished:
            return []
        if self._end_at_s is not None and self._end_at_s <= at:
            return self._finish(0, "")
        commands: list[SupervisorCommand] = []
        if not self._stopping:
            commands += self._end_what_hangs(at) + self._give_up_what_does_not_end(at)
        for process in self._roster.processes:
            if process.kill_at_s is not None and process.kill_at_s <= at:
                process.kill_at_s, process.killed_s = None, at
                process.end = process.end or f"it did not start within {self._config.start_timeout_s:g} s"
                commands.append(Signal(process.name, kill=True))
        return commands

    def _end_what_hangs(self, at: float) -> list[SupervisorCommand]:
        commands: list[SupervisorCommand] = []
        if self._scheduler_watch.finds_it_hanging(at):
            said = Say(f"the scheduler hangs: not heard for {_SILENT_S:g} s; it is killed", warning=True)
            commands += [said, StopScheduler(kill=True)]
        for front_end in self._roster.front_ends:
            if front_end.watch.finds_it_hanging(at):
                front_end.end = f"it hung for {front_end.watch.patience_s:g} s"
                commands.append(Signal(front_end.name, kill=True))
        return commands

    def _give_up_what_does_not_end(self, at: float) -> list[SupervisorCommand]:
        commands: list[SupervisorCommand] = []
        for instance in self._roster.instances:
            if instance.killed_s is None or instance.killed_s + _KILL_TIMEOUT_S > at or self._finished:
                continue
            pid = f"process {instance.pid}" if instance.pid is not None else "its process"
            instance.end = f"{instance.end}; {pid} was killed and does not end, and may hold its memory"
            commands += self._on_instance_exited(instance, Exited(child=instance.name, how=instance.end), at)
            self._roster.strand(instance)
        return commands
