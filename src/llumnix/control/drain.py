"""The orders that one draining instance gets: drain; and once it is empty for good, stop, or stay as it is.

The moves that empty it are the scheduler's (`policy/draining.py` says where to). This holds only what was ordered and
when. An order that shows no effect is repeated, since the message may have been lost.
"""

from __future__ import annotations

from llumnix.control.scheduler_events import Command, DrainFinished, SetDraining, StopInstance
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, InstanceState

SETTLE_S = 0.25
"""An empty instance is watched this long before it is stopped: a request that a front end sent before it heard of the
drain may still be on its way."""


class Drain:
    """`repeat_s`: how long an order may show no effect before it is given again."""

    __slots__ = ("_empty_since_s", "_finished", "_instance", "_ordered_s", "_repeat_s", "keep")

    def __init__(self, instance: InstanceId, keep: bool, repeat_s: float) -> None:
        self.keep = keep
        self._instance = instance
        self._repeat_s = repeat_s
        self._ordered_s: float | None = None
        self._empty_since_s: float | None = None
        self._finished = False

    def orders(self, at: float, snapshot: InstanceSnapshot | None, moves_in_flight: int) -> list[Command]:
        """What to tell the instance and its launcher now, by the last report (None: it never reported)."""
        if snapshot is None or snapshot.state is not InstanceState.DRAINING or snapshot.drain_keep != self.keep:
            return self._order_to_drain(at, snapshot)
        left = snapshot.running + snapshot.waiting + snapshot.incoming + max(snapshot.outgoing, moves_in_flight)
        if left:
            self._empty_since_s = None
            self._finished = False
            return []
        if self._empty_since_s is None:
            self._empty_since_s = at
        return self._order_to_end(at) if at >= self._empty_since_s + SETTLE_S else []

    def _order_to_drain(self, at: float, snapshot: InstanceSnapshot | None) -> list[Command]:
        if self._ordered_s is not None and at < self._ordered_s + self._repeat_s:
            return []
        self._ordered_s = at
        then = "stays, empty" if self.keep else "stops when empty"
        holds = f"{snapshot.running} running, {snapshot.waiting} waiting; " if snapshot is not None else ""
        return [SetDraining(instance=self._instance, keep=self.keep, reason=f"drain asked for: {holds}it {then}")]

    def _order_to_end(self, at: float) -> list[Command]:
        if self._finished and (self.keep or (self._ordered_s is not None and at < self._ordered_s + self._repeat_s)):
            return []
        self._finished = True
        self._ordered_s = at
        reason = f"drained: 0 requests and 0 migrations for {SETTLE_S:g} s"
        if self.keep:
            return [DrainFinished(instance=self._instance, reason=reason)]
        return [StopInstance(instance=self._instance, reason=reason)]
