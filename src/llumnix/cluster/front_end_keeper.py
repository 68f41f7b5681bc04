"""Which front ends live while the server does: started, and replaced when they die or hang. If none was ever heard and
one fails again and again, the server ends."""

from __future__ import annotations

from llumnix.cluster.nursery_messages import Exited, ForkFrontEnd
from llumnix.cluster.processes import SILENT_S, FrontEndProcess
from llumnix.cluster.roster import Roster
from llumnix.cluster.supervision import Announce, Audience, Finish, Say, Signal, SupervisorCommand
from llumnix.config import ClusterConfig
from llumnix.wire.news import FrontEndLost
from llumnix.wire.to_launcher import FrontEndLives

_FIRST_ATTEMPTS = 3


class FrontEndKeeper:
    def __init__(self, config: ClusterConfig, roster: Roster) -> None:
        self._start_timeout_s = config.start_timeout_s
        self._patience_s = max(SILENT_S, config.step_timeout_s)
        self._roster = roster
        self._ever_heard = False
        """Any of them: whoever answers at the server's address need not be a front end of ours."""

    @property
    def wake_times(self) -> list[float | None]:
        """When pauses end, and when the next heartbeats are due."""
        pauses = [p.attempts.not_before_s for p in self._roster.front_end_places.values() if p.process is None]
        return [*pauses, *(front_end.watch.due_s for front_end in self._roster.front_ends)]

    def start_those_due(self, at: float) -> list[ForkFrontEnd]:
        due = [index for index, place in self._roster.front_end_places.items() if place.due(at)]
        for index in due:
            self._roster.place_front_end(index, at, self._patience_s)
        if due:
            self.expect(at)
        return [ForkFrontEnd(index=index) for index in due]

    def expect(self, at: float) -> None:
        """The first heartbeat of each that was not heard yet: it begins to serve when there is an instance."""
        if all(instance.starting for instance in self._roster.instances):
            return
        for front_end in self._roster.front_ends:
            if front_end.watch.due_s is None and front_end.kill_at_s is None and not front_end.end:
                front_end.kill_at_s = at + self._start_timeout_s

    def lives(self, event: FrontEndLives, at: float) -> None:
        self._ever_heard = True
        front_end = self._roster.front_end_places[event.front_end].process
        if front_end is not None and front_end.pid == event.pid and not front_end.end:
            if front_end.watch.due_s is None:
                front_end.kill_at_s = None
            front_end.watch.heard(at)

    def kill_those_that_hang(self, at: float) -> list[SupervisorCommand]:
        hanging = [front_end for front_end in self._roster.front_ends if front_end.watch.finds_it_hanging(at)]
        for front_end in hanging:
            front_end.end = f"it hung for {front_end.watch.patience_s:g} s"
        return [Signal(front_end.name, kill=True) for front_end in hanging]

    def exited(self, front_end: FrontEndProcess, event: Exited, at: float) -> list[SupervisorCommand]:
        """While the server lives. May say that it is to end."""
        lost = self.gone(front_end, event)
        attempts = self._roster.front_end_places[front_end.index].attempts
        attempts.failed(at, at - front_end.forked_s)
        if not self._ever_heard and attempts.failures >= _FIRST_ATTEMPTS:
            return [Finish(2, f"The front end does not start: {event.how}")]
        how = front_end.end or event.how
        return [*lost, Say(f"{front_end.name} died: {how}; another takes its place", warning=True)]

    def gone(self, front_end: FrontEndProcess, event: Exited) -> list[SupervisorCommand]:
        """Its process ended."""
        self._roster.gone(front_end)
        lost = FrontEndLost(front_end=front_end.index, until_unix_s=event.heard_unix_s)
        return [Announce(lost, Audience.SERVING)]
