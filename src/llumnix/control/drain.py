"""How one instance is emptied: the orders that it gets, the deadline, and the report at the end.

The moves that empty it are the scheduler's (`policy/draining.py` says where to). This holds only what was ordered and
when. An order that shows no effect is repeated, since the message may have been lost.

What cannot move by the deadline is replayed: the front ends start it anew elsewhere with the tokens so far. What cannot
be replayed exactly either may finish for `grace_s`; then the instance is ended under it. As long as no other instance
serves, nobody is driven out: the requests would have nowhere to go.

Until the instance is told to end, the drain can be withdrawn: it is over when a report says so.
"""

from __future__ import annotations

import msgspec

from llumnix.config import ClusterConfig, MigrationConfig
from llumnix.control.scheduler_events import (
    DrainFinished,
    DrainOutcome,
    DrainReport,
    DrainRequested,
    ReplayRest,
    SchedulerCommand,
    SetDraining,
    StopInstance,
)
from llumnix.policy.figures import figures
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, InstanceState, RequestId

SETTLE_S = 0.25
"""An empty instance is watched this long before it is stopped: a request that a front end sent before it heard of the
drain may still be on its way."""

REPLAY_AGAIN_S = 1.0
"""Past the deadline the front ends are asked this often to replay what is left: something may have been on the move."""


class DrainLimits(msgspec.Struct, frozen=True, kw_only=True):
    timeout_s: float = ClusterConfig().drain_timeout_s
    """From the order to drain until what is left is replayed."""
    grace_s: float = ClusterConfig().shutdown_timeout_s
    """After that, for what can be neither moved nor replayed."""
    moves: int = 4
    """Requests that are on their way out at once, and that one target takes at once."""
    repeat_s: float = ClusterConfig().instance_timeout_s
    """How long an order may show no effect before it is given again."""


def drain_limits(cluster: ClusterConfig, migration: MigrationConfig) -> DrainLimits:
    """As configured."""
    return DrainLimits(
        timeout_s=cluster.drain_timeout_s,
        grace_s=cluster.shutdown_timeout_s,
        moves=min(migration.max_outgoing, migration.max_incoming),
        repeat_s=cluster.instance_timeout_s,
    )


class Drain:
    """From the order to empty it until the instance is gone."""

    def __init__(self, order: DrainRequested, limits: DrainLimits) -> None:
        self.order = order
        self._grace_s = limits.grace_s
        self._set_deadline(order.at, limits.timeout_s if order.timeout_s is None else order.timeout_s)
        self._is_given = order.timeout_s is not None
        self._alone_since_s: float | None = None
        self._repeat_s = limits.repeat_s
        self._ordered_s: float | None = None
        self._replay_ordered_s: float | None = None
        self._empty_since_s: float | None = None
        self._finished_s: float | None = None
        self._outcome = DrainOutcome.DRAINING
        self._first: InstanceSnapshot | None = None
        self._last: InstanceSnapshot | None = None
        self._replayed = 0
        self.where_cached: dict[RequestId, InstanceId] = {}
        """Requests whose prompts other instances have, as far as front ends have said."""
        self.any_from_s = order.at
        """From then on any request may leave, to any instance: before that, front ends may still be about to say."""
        self._said = 0
        """Front ends that have."""

    def said_where_cached(self, at: float, where: dict[RequestId, InstanceId], front_ends: int) -> None:
        """A front end did, of so many."""
        self.where_cached |= where
        self._said += 1
        if self._said >= front_ends:
            self.any_from_s = at

    def _set_deadline(self, at: float, timeout_s: float) -> None:
        self._deadline_s = at + timeout_s
        self._cut_off_s = self._deadline_s + self._grace_s

    def hurry(self, at: float, timeout_s: float) -> None:
        """It was ordered once more, with a deadline."""
        self._is_given = True
        self._set_deadline(at, timeout_s)

    def time_passes(self, at: float, others_serve: bool) -> None:
        """Not as long as nobody else could take what it has: then deadlines are put off by as much. One that somebody
        asked for stands, and only the grace for what can neither move nor be replayed is put off."""
        if self._alone_since_s is not None:
            self._prolong(at - self._alone_since_s)
        self._alone_since_s = None if others_serve else at

    def stood_still(self, seconds: float) -> None:
        """Nobody moved anything for so long, and that was no fault of its own."""
        if self._alone_since_s is None:  # else it does not count anyhow
            self._prolong(seconds)

    def _prolong(self, seconds: float) -> None:
        self._cut_off_s += seconds
        self._deadline_s += 0.0 if self._is_given else seconds

    def past_deadline(self, at: float) -> bool:
        """From here on nothing is moved any more."""
        return at >= self._deadline_s

    def make_firm(self) -> None:
        self.order = msgspec.structs.replace(self.order, firm=True)

    @property
    def ends(self) -> bool:
        """The instance was told to end."""
        return self._outcome is DrainOutcome.CUT_OFF or (self._finished_s is not None and not self.order.keep)

    def why_not_withdrawn(self, snapshot: InstanceSnapshot | None) -> str:
        """Why there is no way back (yet), by the last report; empty if there is one."""
        if self.order.firm or (snapshot is not None and snapshot.asked_to_end):
            return "its process was asked to end, or its node goes"
        if self.ends:
            return "it is being stopped already"
        if snapshot is None or snapshot.state is not InstanceState.DRAINING:
            return "it has not begun to drain; try again in a moment"  # else its next report could mean either order
        return ""

    @property
    def withdrawn(self) -> bool:
        return self._outcome is DrainOutcome.WITHDRAWN

    def withdraw(self, at: float) -> None:
        """The instance is to take requests again. Only if nothing says `why_not_withdrawn`."""
        self._outcome, self._empty_since_s, self._ordered_s = DrainOutcome.WITHDRAWN, at, None

    def replayed(self, count: int) -> None:
        """A front end started so many of its requests anew elsewhere."""
        self._replayed += count

    def orders(
        self, at: float, snapshot: InstanceSnapshot | None, moves_in_flight: int, others_serve: bool
    ) -> list[SchedulerCommand]:
        """What to tell the instance, its launcher and the front ends now, by the last report (None: it never reported).
        `others_serve`: there is an instance that could take what it has."""
        if snapshot is not None:
            self._look_at(snapshot)
        if self._outcome is DrainOutcome.CUT_OFF:
            return []
        if self.withdrawn:
            return self._order_back(at)
        if snapshot is None or snapshot.state is not InstanceState.DRAINING or snapshot.drain_keep != self.order.keep:
            return self._order_to_drain(at, snapshot)
        left = snapshot.running + snapshot.waiting + snapshot.incoming + max(snapshot.outgoing, moves_in_flight)
        if left:
            self._empty_since_s = self._finished_s = None
            self._outcome = DrainOutcome.DRAINING
            return (
                self._drive_out(at, snapshot.running + snapshot.waiting)
                if others_serve and self.past_deadline(at)
                else []
            )
        if self._empty_since_s is None:
            self._empty_since_s = at
        return self._order_to_end(at) if at >= self._empty_since_s + SETTLE_S else []

    def lost(self, at: float) -> list[SchedulerCommand]:
        """The instance is gone: nothing if it was empty."""
        if self._finished_s is not None:
            return []
        self._empty_since_s = at
        self._outcome = DrainOutcome.LOST
        return [DrainFinished(report=self.report(at), reason="the instance ended before it was empty")]

    def report(self, at: float) -> DrainReport:
        """How it stands."""
        first, last = self._first, self._last
        until_s = at if self._empty_since_s is None else self._empty_since_s
        if first is None or last is None:
            return self._report(until_s, 0, 0, 0, 0)
        moved = last.migrations_out - first.migrations_out
        finished = max(0, last.ended - first.ended - self._replayed)
        return self._report(until_s, first.running + first.waiting, moved, finished, last.running + last.waiting)

    def _look_at(self, snapshot: InstanceSnapshot) -> None:
        if snapshot.asked_to_end:
            if self.order.keep or self.withdrawn:
                self._outcome, self._empty_since_s, self._finished_s = DrainOutcome.DRAINING, None, None
            self.order = msgspec.structs.replace(self.order, keep=False, firm=True)
        self._first = self._first or snapshot
        self._last = snapshot

    def _report(self, until_s: float, requests: int, moved: int, finished: int, left: int) -> DrainReport:
        return DrainReport(
            instance=self.order.instance,
            keep=self.order.keep,
            why=self.order.why,
            outcome=self._outcome,
            requests=requests,
            moved=moved,
            replayed=self._replayed,
            finished=finished,
            left=left,
            seconds=until_s - self.order.at,
        )

    def _is_due(self, at: float) -> bool:
        """An order was not given yet, or has shown no effect for too long."""
        return self._ordered_s is None or at >= self._ordered_s + self._repeat_s

    def _order_to_drain(self, at: float, snapshot: InstanceSnapshot | None) -> list[SchedulerCommand]:
        if not self._is_due(at):
            return []
        self._ordered_s = at
        then = "stays, empty" if self.order.keep else "stops when empty"
        holds = f"{snapshot.running} running, {snapshot.waiting} waiting; " if snapshot is not None else ""
        reason = f"drain {self.order.why}: {holds}it {then}"
        return [SetDraining(instance=self.order.instance, keep=self.order.keep, reason=reason)]

    def _order_back(self, at: float) -> list[SchedulerCommand]:
        if not self._is_due(at):
            return []
        self._ordered_s = at
        reason = "it takes requests again"
        return [SetDraining(instance=self.order.instance, keep=False, reason=reason, draining=False)]

    def _drive_out(self, at: float, left: int) -> list[SchedulerCommand]:
        if at >= self._cut_off_s and not self.order.keep:
            self._outcome, self._empty_since_s, self._finished_s = DrainOutcome.CUT_OFF, at, at
            reason = f"drained for {self._lasted(at)}: {left} requests can be neither moved nor replayed"
            report = self.report(at)
            stop = StopInstance(instance=self.order.instance, reason=reason, kill=True)
            return [DrainFinished(report=report, reason=reason), stop]
        if self._replay_ordered_s is not None and at < self._replay_ordered_s + REPLAY_AGAIN_S:
            return []
        self._replay_ordered_s = at
        reason = f"{self.order.instance} drains for {self._lasted(at)}, {left} left"
        return [ReplayRest(instance=self.order.instance, reason=reason)]

    def _lasted(self, at: float) -> str:
        return f"{figures(at - self.order.at, 3)} s"

    def _order_to_end(self, at: float) -> list[SchedulerCommand]:
        if self._finished_s is not None and (self.order.keep or not self._is_due(at)):
            return []
        first_time = self._finished_s is None
        if first_time:
            self._finished_s = at
            self._outcome = DrainOutcome.EMPTY
        report = self.report(at)
        what_became = f"{report.moved} moved, {report.replayed} replayed, {report.finished} finished"
        reason = f"empty after {report.seconds:.2f} s, {what_became}"
        commands: list[SchedulerCommand] = [DrainFinished(report=report, reason=reason)] if first_time else []
        self._ordered_s = at
        if not self.order.keep:
            commands.append(StopInstance(instance=self.order.instance, reason=reason))
        return commands
