"""Who lives, who is replaced, and who ends when: the launcher's mind, without its hands.

`handle(event, at)` returns commands; the launcher (launcher.py) carries them out and calls `handle` again with
what happened. `next_wake_s` says when to send a `TimePassed` if nothing else happens. No I/O and no clock, so every
rule is a test that takes no time; it is told seconds in which the launcher ran (awake.py).

Here is who hears of what, and how the server ends. What becomes of instances, front ends and the scheduler while it
lives is in instance_keeper.py, front_end_keeper.py and scheduler_keeper.py.
"""

from __future__ import annotations

from typing import assert_never

from llumnix.cluster.front_end_keeper import FrontEndKeeper
from llumnix.cluster.instance_keeper import InstanceKeeper
from llumnix.cluster.nursery_messages import Cleared, Exited, Forked, HasRoom, Leaving, StopListening, Waiting
from llumnix.cluster.processes import STOP_TIMEOUT_S, FrontEndProcess, Instance
from llumnix.cluster.roster import Roster
from llumnix.cluster.scheduler_keeper import SchedulerKeeper
from llumnix.cluster.supervision import (
    Finish,
    FrontEndServes,
    InstanceServes,
    NurseryEnded,
    Say,
    SchedulerExited,
    Signal,
    StopScheduler,
    SupervisorCommand,
    SupervisorEvent,
    Terminate,
    TimePassed,
)
from llumnix.config import ClusterConfig
from llumnix.control.scheduler_events import DeclareLost, SetRole, StartInstances, StopInstance
from llumnix.roles_config import RolesConfig
from llumnix.types import InstanceId
from llumnix.wire.to_launcher import FrontEndLives, SchedulerLives

_FRONT_END_GRACE_S = 5.0  # beyond the time that running requests get


class Supervisor:
    def __init__(
        self,
        config: ClusterConfig,
        node: str,
        front_ends: int,
        parallel_starts: int,
        most: int | None = None,
        roles: RolesConfig | None = None,
    ) -> None:
        """`parallel_starts`: see `InstanceKeeper`. `most`: instances that there are devices for; None if nobody
        knows."""
        self._config = config
        self._roster = Roster(config.instances, front_ends, config.instances_per_gpu, most, roles)
        self._instances = InstanceKeeper(config, node, self._roster, parallel_starts)
        self._front_ends = FrontEndKeeper(config, self._roster)
        self._scheduler = SchedulerKeeper(self._roster)
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
        times = [process.kill_at_s for process in self._roster.processes] + [self._end_at_s]
        if not self._stopping:
            times += [*self._instances.wake_times, *self._front_ends.wake_times, *self._scheduler.wake_times]
        return min((time for time in times if time is not None), default=None)

    def handle(self, event: SupervisorEvent, at: float) -> list[SupervisorCommand]:
        if self._finished or (isinstance(event, InstanceServes) and self.knows(event)):
            return []
        commands = self._react(event, at)
        for go_on in (self._enforce_deadlines, self._start_what_is_due):
            if not _is_the_end(commands):
                commands += go_on(at)
        self._finished = _is_the_end(commands)
        return commands if self._finished else commands + self._scheduler.tell_fleet(ending=self._stopping)

    def _react(self, event: SupervisorEvent, at: float) -> list[SupervisorCommand]:
        match event:
            case TimePassed():
                return []
            case Forked() | Waiting() | HasRoom() | Leaving() | Exited() | Cleared():
                return self._on_news_of_child(event, at)
            case InstanceServes():
                said = self._instances.serves(event, at)
                self._front_ends.expect(at)
                return said
            case FrontEndServes():
                return [Say(event.sentence)]
            case FrontEndLives() | SchedulerLives():
                return self._on_heartbeat(event, at)
            case SchedulerExited():
                said = self._scheduler.exited(event, at)
                return self._proceed_with_stopping(at) if self._stopping else said
            case StartInstances() | StopInstance() | SetRole() | DeclareLost():
                return self._on_order(event, at)
            case Terminate():
                return self._on_terminate(at)
            case NurseryEnded():
                return [Finish(1, f"The parent of all engine processes ended ({event.how}), and so did they.")]
            case _:
                assert_never(event)

    def _on_news_of_child(
        self, event: Forked | Waiting | HasRoom | Leaving | Exited | Cleared, at: float
    ) -> list[SupervisorCommand]:
        match event:
            case Forked():
                return self._on_forked(event)
            case Waiting():
                return self._instances.waits(event)
            case HasRoom():
                return self._instances.has_room(event, at)
            case Leaving():
                return [] if self._stopping else self._instances.leaves(event, at)
            case Exited():
                return self._on_exited(event, at)
            case Cleared():
                said = self._instances.cleared(event)
                return said + (self._start_last(at) if self._last_start_lacks_a_place else [])
            case _:
                assert_never(event)

    def _on_heartbeat(self, event: FrontEndLives | SchedulerLives, at: float) -> list[SupervisorCommand]:
        if isinstance(event, SchedulerLives):
            self._scheduler.lives(at)
        elif not self._stopping:
            self._front_ends.lives(event, at)
        return []

    def _on_order(
        self, event: StartInstances | StopInstance | SetRole | DeclareLost, at: float
    ) -> list[SupervisorCommand]:
        """Of the scheduler."""
        match event:
            case StartInstances():
                if self._stopping:
                    return []
                self._scheduler.carries_out(event.order)
                return self._instances.start_more(event)
            case StopInstance():
                return self._instances.stop(event, at)
            case SetRole():
                return self._instances.give_role(event)
            case DeclareLost():
                return self._instances.kill(event.instance, event.why, at, replace=True)
            case _:
                assert_never(event)

    def _on_forked(self, event: Forked) -> list[SupervisorCommand]:
        process = self._roster.find(event.child)
        if process is None:
            return []
        process.pid = event.pid
        return self._instances.forked(process, event.node) if isinstance(process, Instance) else []

    def _on_exited(self, event: Exited, at: float) -> list[SupervisorCommand]:
        commands: list[SupervisorCommand] = []
        match self._roster.find(event.child):
            case Instance() as instance if not self._stopping:
                commands = self._instances.exited(instance, event, at)
            case Instance() as instance:
                news = self._instances.gone(instance, event, expected=True)
                commands = news if self._end_at_s is None else []  # else all have been told to end
            case FrontEndProcess() as front_end if not self._stopping:
                commands = self._front_ends.exited(front_end, event, at)
            case FrontEndProcess() as front_end:
                commands = self._front_ends.gone(front_end, event)
            case None:
                if self._roster.ends_at_last(event.child, event.remains):
                    commands = [Say(f"{event.child} ended at last: {event.how}")]
            case unknown:
                assert_never(unknown)
        return commands + (self._proceed_with_stopping(at) if self._stopping else [])

    def _start_what_is_due(self, at: float) -> list[SupervisorCommand]:
        if self._stopping:
            return []
        commands = self._scheduler.start_if_due(at)
        if commands:
            commands += self._instances.introduce_to_scheduler(at)
        for fork in self._front_ends.start_those_due(at):
            commands += [fork, *self._instances.introduce_the_starting()]
        return commands + self._instances.start_those_due(at)

    def _enforce_deadlines(self, at: float) -> list[SupervisorCommand]:
        if self._end_at_s is not None and self._end_at_s <= at:
            return [Finish(0, "")]
        commands: list[SupervisorCommand] = []
        if not self._stopping:
            commands += self._scheduler.kill_if_it_hangs(at) + self._front_ends.kill_those_that_hang(at)
            commands += self._instances.give_up_those_that_do_not_end(at)
        for process in self._roster.processes:
            if process.kill_at_s is not None and process.kill_at_s <= at:
                process.kill_at_s, process.killed_s = None, at
                process.end = process.end or f"it did not start within {self._config.start_timeout_s:g} s"
                commands.append(Signal(process.name, kill=True))
        return commands

    # the end of everything

    def _on_terminate(self, at: float) -> list[SupervisorCommand]:
        if self._stopping:
            return [Finish(0, "")]
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
        """Starts the instance whose turn is next without waiting for the end of its pause: there is no later. If its
        place is not free yet, this is called again when that is cleared."""
        self._last_start_lacks_a_place = False
        if self._roster.starting or not self._streams_may_be_parked:
            return []
        waiting = [slot.attempts for slot in self._roster.usable_slots.values()]
        if waiting:
            min(waiting, key=lambda attempts: attempts.not_before_s).not_before_s = at
        self._last_start_lacks_a_place = not waiting
        return self._instances.start_those_due(at)

    @property
    def _streams_may_be_parked(self) -> bool:
        """Front ends have requests that nobody can finish but an instance that starts."""
        stays = [i for i in self._roster.instances if not (i.end or i.drains or i.leaves)]
        serving = any(not instance.starting for instance in stays)
        return self._instances.ever_served and not serving and bool(self._roster.front_ends)

    def _proceed_with_stopping(self, at: float) -> list[SupervisorCommand]:
        """Front ends first, for they have clients; then instances and scheduler; then the end. An instance that still
        starts has nothing to finish."""
        if self._roster.front_ends:
            return []
        if not self._roster.instances and not self._scheduler.runs:
            return [Finish(0, "")]
        if self._end_at_s is not None:
            return []
        self._end_at_s = at + STOP_TIMEOUT_S
        commands: list[SupervisorCommand] = [Signal(i.id, kill=i.starting) for i in self._roster.instances]
        return [*commands, StopScheduler()] if self._scheduler.runs else commands


def _is_the_end(commands: list[SupervisorCommand]) -> bool:
    return any(isinstance(command, Finish) for command in commands)
