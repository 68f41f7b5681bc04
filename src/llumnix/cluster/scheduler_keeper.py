"""That a scheduler lives while the server does: it is replaced when it dies or hangs, and told of the fleet."""

from __future__ import annotations

from llumnix.cluster.processes import SILENT_S, Retries, Watch
from llumnix.cluster.roster import Roster
from llumnix.cluster.supervision import (
    Announce,
    Audience,
    Say,
    SchedulerExited,
    SpawnScheduler,
    StopScheduler,
    SupervisorCommand,
)
from llumnix.control.fleet import Fleet
from llumnix.wire.to_scheduler import FleetChanged


class SchedulerKeeper:
    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._attempts = Retries()
        self._watch = Watch(SILENT_S)
        self._started_s: float | None = None
        self._last_order = 0
        self._told: Fleet | None = None

    @property
    def runs(self) -> bool:
        return self._started_s is not None

    @property
    def wake_times(self) -> list[float | None]:
        return [self._watch.due_s, None if self.runs else self._attempts.not_before_s]

    def start_if_due(self, at: float) -> list[SupervisorCommand]:
        if self.runs or self._attempts.not_before_s > at:
            return []
        self._started_s = at
        self._watch.heard(at)
        self._last_order, self._told = 0, None  # it numbers its orders anew
        return [SpawnScheduler()]

    def lives(self, at: float) -> None:
        if self._watch.due_s is not None:  # else it is being killed
            self._watch.heard(at)

    def carries_out(self, order: int) -> None:
        self._last_order = max(self._last_order, order)

    def tell_fleet(self, *, ending: bool) -> list[SupervisorCommand]:
        """At each change; that the server ends is the last of them."""
        if not self.runs or (self._told and self._told.ending):
            return []
        fleet = self._roster.fleet(self._last_order, ending)
        if fleet == self._told:
            return []
        self._told = fleet
        return [Announce(FleetChanged(fleet=fleet), Audience.SCHEDULER)]

    def kill_if_it_hangs(self, at: float) -> list[SupervisorCommand]:
        if not self._watch.finds_it_hanging(at):
            return []
        said = Say(f"the scheduler hangs: not heard for {SILENT_S:g} s; it is killed", warning=True)
        return [said, StopScheduler(kill=True)]

    def exited(self, event: SchedulerExited, at: float) -> list[SupervisorCommand]:
        assert self._started_s is not None, "an exit of a scheduler that does not run"
        self._attempts.failed(at, at - self._started_s)
        self._started_s = self._watch.due_s = None
        return [Say(f"the scheduler died: {event.why}; it is restarted, serving goes on", warning=True)]
