"""Whether an instance's engine gets anything done, as far as its reports tell whoever listens."""

from __future__ import annotations

from math import inf

from llumnix.policy.snapshot import InstanceSnapshot


class EngineWatch:
    """A report is news of the engine; a heartbeat repeats the last one, and dates it. Times are the listener's."""

    __slots__ = ("_dated_s", "_seen_s", "_seq", "heard_s")

    def __init__(self, at: float) -> None:
        self.heard_s = at
        self._seen_s = at
        """When the engine was last seen to do something, or to have nothing to do."""
        self._dated_s = -inf
        """By the instance's own clock, the latest time that a report names."""
        self._seq = -1

    @property
    def standing_s(self) -> float:
        """How long the engine has done nothing although it has work, by the last that was heard of it: who falls silent
        says nothing of his engine."""
        return self.heard_s - self._seen_s

    def look_at(self, at: float, report: InstanceSnapshot) -> None:
        self.heard_s = at
        if report.seq > self._seq:
            self._seq = report.seq
        elif report.at <= self._dated_s and (report.running or report.waiting or report.unread):
            return
        self._seen_s = at
        if report.at > self._dated_s:
            self._dated_s = report.at

    def excuse(self, at: float) -> None:
        """The listener was deaf himself."""
        self.heard_s = self._seen_s = at
