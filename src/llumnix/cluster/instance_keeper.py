"""Which instances live while the server does: started, replaced when they die, ended when they are to go.

One that dies is replaced under a new id, at once the first time and with growing pauses when it keeps dying; if nothing
ever served and every first one failed, nothing will ever work, and the server ends. One that was asked for later and
does not start is given up after a few attempts. One whose machine is being taken away is drained while another one
starts for it. One that drains to go away stays away, however it ends. One that SIGKILL does not end is as good as dead,
but it keeps its GPUs. Whoever starts for another one has its role.
"""

from __future__ import annotations

from llumnix.cluster.nursery_messages import Cleared, Exited, ForkInstance, HasRoom, Leaving, Waiting
from llumnix.cluster.processes import STOP_TIMEOUT_S, Instance, Leave
from llumnix.cluster.roster import Roster
from llumnix.cluster.supervision import (
    Announce,
    Audience,
    Finish,
    Forget,
    InstanceServes,
    Say,
    Signal,
    SupervisorCommand,
)
from llumnix.config import ClusterConfig
from llumnix.control.scheduler_events import SetRole, StartInstances, StopInstance
from llumnix.types import InstanceId
from llumnix.wire.news import InstanceGone, InstanceStarting
from llumnix.wire.to_scheduler import DrainInstance, InstanceServing

_KILL_TIMEOUT_S = 10.0  # after SIGKILL; whatever is left then only the kernel keeps, in a driver
_REPLAY_S = 5.0  # of the time that a leaving machine has left: for what did not move in the rest of it
_EXTRA_INSTANCE_ATTEMPTS = 3

_NOBODY_LEFT = Say("no instance is left, so requests get 503; `llumnix start` starts one", warning=True)


class InstanceKeeper:
    """`parallel_starts` instances start at once; more would only take each other's cores."""

    def __init__(self, config: ClusterConfig, node: str, roster: Roster, parallel_starts: int) -> None:
        self._config = config
        self._node = node
        self._roster = roster
        self._parallel_starts = parallel_starts
        self.ever_served = False
        """Any of them."""

    @property
    def wake_times(self) -> list[float | None]:
        """When pauses end, and when what was killed is given up."""
        roster = self._roster
        times: list[float | None] = [i.killed_s + _KILL_TIMEOUT_S for i in roster.instances if i.killed_s is not None]
        if roster.starting < self._parallel_starts:
            times += [slot.attempts.not_before_s for slot in roster.usable_slots.values()]
        return times

    # starting

    def start_those_due(self, at: float) -> list[SupervisorCommand]:
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

    def waits(self, event: Waiting) -> list[SupervisorCommand]:
        instance = self._roster.instance(InstanceId(event.child))
        if instance is None or instance.end:
            return []
        instance.kill_at_s = None  # its time to start begins when it has a place
        return [Say(f"{event.child} waits for room: {event.why}", warning=True)]

    def has_room(self, event: HasRoom, at: float) -> list[SupervisorCommand]:
        instance = self._roster.instance(InstanceId(event.child))
        if instance is not None and instance.waits_for_room:
            instance.forked_s = at
            instance.kill_at_s = at + self._config.start_timeout_s
        return []

    def forked(self, instance: Instance, node: str) -> list[SupervisorCommand]:
        """`node`: where, if not on this machine."""
        instance.node = node or self._node
        if not instance.starting:  # what it says itself was faster than what is said of it
            return []
        return [self._introduce(instance)]

    def _introduce(self, instance: Instance) -> SupervisorCommand:
        assert instance.pid is not None
        starting = InstanceStarting(instance=instance.id, pid=instance.pid, node=instance.node)
        return Announce(starting, Audience.DECIDING)

    def introduce_the_starting(self) -> list[SupervisorCommand]:
        """For a listener that is new itself: instances that serve introduce themselves, these cannot yet."""
        return [self._introduce(i) for i in self._roster.instances if i.starting and i.pid is not None]

    def introduce_to_scheduler(self, at: float) -> list[SupervisorCommand]:
        """To a new one: who starts, who serves, and who has to leave, for the last one may have died with the order."""
        instances = self._roster.instances
        serving = [InstanceServing(instance=instance.id) for instance in instances if not instance.starting]
        return [
            *self.introduce_the_starting(),
            *(Announce(each, Audience.SCHEDULER) for each in serving),
            *(self._order_drain(instance, at) for instance in instances if instance.leaves is not None),
        ]

    def serves(self, event: InstanceServes, at: float) -> list[SupervisorCommand]:
        """Empty if it did before, or is being ended."""
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
        self.ever_served = True
        ready = Say(f"{instance.id} ready in {at - instance.forked_s:.1f} s")
        return [ready, Announce(InstanceServing(instance=instance.id), Audience.SCHEDULER)]

    # what the scheduler wants

    def start_more(self, event: StartInstances) -> list[SupervisorCommand]:
        replaced = None if event.replaces is None else self._roster.instance(event.replaces)
        self._roster.add_slots(event.count, instead_of=replaced)
        return [Say(f"starting more instances: {event.reason}")]

    def give_role(self, event: SetRole) -> list[SupervisorCommand]:
        """The scheduler has told the instance, too."""
        instance = self._roster.instance(event.instance)
        if instance is not None:
            self._roster.give_role(instance, event.role)
        return []

    def stop(self, event: StopInstance, at: float) -> list[SupervisorCommand]:
        if event.kill:
            return self.kill(event.instance, event.reason, at, replace=False)
        instance = self._roster.instance(event.instance)
        if instance is None or instance.end:
            return []
        instance.end, instance.replace = event.reason, False
        instance.kill_at_s = at + STOP_TIMEOUT_S
        return [Signal(instance.id)]

    def kill(self, name: InstanceId, why: str, at: float, *, replace: bool) -> list[SupervisorCommand]:
        instance = self._roster.instance(name)
        if instance is None or instance.end:
            return []
        instance.end, instance.replace, instance.killed_s = why, replace, at
        return [Say(f"{instance.id} is killed: {why}", warning=True), Signal(instance.id, kill=True)]

    # ending

    def leaves(self, event: Leaving, at: float) -> list[SupervisorCommand]:
        """One that serves is drained in the time that is left, and another one starts for it; one that does not serve
        yet starts elsewhere. None starts for one that was to go anyhow."""
        instance = self._roster.instance(InstanceId(event.child))
        if instance is None or instance.end or instance.leaves is not None:
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
        assert instance.leaves is not None
        timeout_s = max(0.0, instance.leaves.by_s - at)
        drain = DrainInstance(instance=instance.id, timeout_s=timeout_s, why=instance.leaves.why, firm=True)
        return Announce(drain, Audience.SCHEDULER)

    def exited(self, instance: Instance, event: Exited, at: float) -> list[SupervisorCommand]:
        """While the server lives. May say that it is to end."""
        slot = self._roster.slots[instance.slot]
        expected = bool(instance.end) and not instance.replace
        why = instance.end or event.how
        gone = self.gone(instance, event, expected=expected)
        if expected or instance.goes or instance.leaves is not None:
            del self._roster.slots[instance.slot]
            said = Say(f"{instance.id} {'stopped' if expected else 'died'}: {why}", warning=not expected)
            return [*gone, said, *self._who_is_left()]
        slot.attempts.failed(at, instance.served_s(at))
        slots = self._roster.slots.values()
        if not self.ever_served and all(slot.attempts.failures > 0 for slot in slots):
            return [*gone, Finish(2, f"No instance starts: {why}")]
        if slot.extra and slot.attempts.failures >= _EXTRA_INSTANCE_ATTEMPTS:
            del self._roster.slots[instance.slot]
            tries = slot.attempts.failures
            said = Say(f"{instance.id} did not start: {why}; given up after {tries} attempts", warning=True)
            return [*gone, said, *self._who_is_left()]
        return [*gone, self._mourn(instance, slot.attempts.not_before_s - at, why), *self._who_is_left()]

    def gone(self, instance: Instance, event: Exited, *, expected: bool) -> list[SupervisorCommand]:
        """Its process ended: nobody is to talk to it any more."""
        self._roster.gone(instance)
        if event.remains:
            self._roster.littered[instance.slot] = instance.id
        why = instance.end or event.how
        news = InstanceGone(instance=instance.id, index=instance.index, why=why, expected=expected)
        return [Announce(news), Forget(instance.control)]

    def _who_is_left(self) -> list[SupervisorCommand]:
        return [] if self._roster.slots else [_NOBODY_LEFT]

    def _mourn(self, instance: Instance, pause_s: float, why: str) -> SupervisorCommand:
        what = "did not start" if instance.starting else "died"
        if not self._config.restart_instances:
            del self._roster.slots[instance.slot]
            return Say(f"{instance.id} {what}: {why}", warning=True)
        then = "another takes its place" + (f" in {pause_s:g} s" if pause_s > 0 else "")
        return Say(f"{instance.id} {what}: {why}; {then}", warning=True)

    def cleared(self, event: Cleared) -> list[SupervisorCommand]:
        self._roster.cleared(event.child)
        if not event.stuck:
            return []
        pids = ", ".join(map(str, event.stuck))
        what = f"{event.child} left processes that do not end although they were killed ({pids})"
        return [Say(f"{what}; they may hold its memory", warning=True)]

    def give_up_those_that_do_not_end(self, at: float) -> list[SupervisorCommand]:
        commands: list[SupervisorCommand] = []
        for instance in self._roster.instances:
            if instance.killed_s is None or instance.killed_s + _KILL_TIMEOUT_S > at:
                continue
            pid = f"process {instance.pid}" if instance.pid is not None else "its process"
            instance.end = f"{instance.end}; {pid} was killed and does not end, and may hold its memory"
            commands += self.exited(instance, Exited(child=instance.name, how=instance.end), at)
            self._roster.strand(instance)
            if isinstance(commands[-1], Finish):
                break
        return commands
