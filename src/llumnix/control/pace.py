"""How often instances report and beat, so that who hears all of them is not drowned in a large cluster.

A listener (the scheduler, each front end) takes so many reports a second, `max_reports_per_s`, which all instances
share. In a cluster of some tens that is no bound, but each report holds the engine up: so an instance that looks at
itself after each step tells at once what a decision may depend on (`matters`), and that those that are there grow,
which is known beforehand, now and then. In a larger one it has to choose: a report is worth its place when a request
came or went, and what calls for action (`is_urgent`) goes out at once, on credit if need be.
"""

from __future__ import annotations

import msgspec

from llumnix.config import ClusterConfig
from llumnix.policy.snapshot import InstanceSnapshot

SAVED_REPORTS = 3.0
"""That an instance may save up, for when much happens at once."""

CREDIT_REPORTS = 3.0
"""Beyond that, for urgent ones."""

_WHOLE = 1 - 1e-6  # report: sums of fractions fall short of it

FREE_CHANGE = 1 / 64
"""Of an instance's blocks: that so many more or fewer are free than it said is worth a report."""

SIZE_CHANGE = 0.25
"""Instances are told anew when there are so many more, or fewer, in proportion."""

TOLD_LAUNCHER_S = 1.0
"""Between two heartbeats to the launcher, which only has to learn once that an instance serves; that one is to go
it hears at once."""


class Pace(msgspec.Struct, frozen=True):
    """Of one instance, towards each listener."""

    report_s: float
    """An instance may send a report in so many seconds, on average."""
    heartbeat_s: float
    """It sends at least one in so many seconds."""


def pace_of(config: ClusterConfig, instances: int) -> Pace:
    """Of each instance, where there are so many. Heartbeats leave half of the reports for news, but come often enough
    that a lost one kills nobody."""
    report_s = max(config.report_interval_s, instances / config.max_reports_per_s)
    longest_s = max(config.heartbeat_interval_s, config.instance_timeout_s / 4)
    return Pace(report_s, min(longest_s, max(config.heartbeat_interval_s, 2 * report_s)))


def is_news(sent: InstanceSnapshot, load: InstanceSnapshot) -> bool:
    """A request came, started or went since the last report."""
    return (load.running, load.waiting, load.ended, load.dispatches_seen) != (
        sent.running, sent.waiting, sent.ended, sent.dispatches_seen
    )  # fmt: skip


def is_urgent(sent: InstanceSnapshot, load: InstanceSnapshot) -> bool:
    """Something happened since the last report on which others act at once."""
    return (
        load.state is not sent.state
        or load.drain_keep != sent.drain_keep
        or load.asked_to_end != sent.asked_to_end
        or load.preemptions > sent.preemptions
        or (load.short_blocks > 0 and not sent.short_blocks)
        or (load.waiting > 0 and not sent.waiting)
        or load.to_decode > sent.to_decode
        or (not (load.running or load.waiting) and sent.running + sent.waiting > 0)
    )


def matters(sent: InstanceSnapshot, load: InstanceSnapshot) -> bool:
    """A decision may depend on what is different from the last report, or asks for each report to try again."""
    return (
        is_news(sent, load)
        or is_urgent(sent, load)
        or load.short_blocks + sent.short_blocks > 0
        or load.to_decode + sent.to_decode > 0
        or (load.slowdown == 1) != (sent.slowdown == 1)
        or load.prefill_tokens != sent.prefill_tokens
        or (load.incoming, load.outgoing, load.role) != (sent.incoming, sent.outgoing, sent.role)
        or abs(load.free_blocks - sent.free_blocks) > FREE_CHANGE * load.total_blocks
    )


class ReportPace:
    """Which of an instance's looks at its own load goes out as a report. Times must not go backwards."""

    def __init__(self, config: ClusterConfig, instances: int, quiet_s: float = 0.0) -> None:
        """`quiet_s`: so long a look of which nothing matters waits in a small cluster; 0 for whoever looks only when
        something has changed."""
        self._config = config
        self._quiet_s = quiet_s
        self._instances = -1
        self.set_size(instances)
        self._sent: InstanceSnapshot | None = None
        self._sent_s = self._counted_until_s = 0.0
        self._saved = 0.0

    def set_size(self, instances: int) -> None:
        """There are so many now."""
        if instances != self._instances:
            self._instances = instances
            self.pace = pace_of(self._config, instances)
            self._is_unpaced = self.pace.report_s <= self._config.report_interval_s

    def sends(self, at: float, load: InstanceSnapshot) -> bool:
        """Whether this one goes out now."""
        self._saved = min(SAVED_REPORTS, self._saved + (at - self._counted_until_s) / self.pace.report_s)
        self._counted_until_s = at
        if not self._is_worth_it(at, load):
            return False
        self._saved = max(0.0, self._saved - 1) if self._is_unpaced else self._saved - 1
        self._sent, self._sent_s = load, at
        return True

    def beats(self, at: float) -> None:
        """A heartbeat has said what there is to say. May be called from another thread."""
        self._sent_s = at

    def next_s(self, load: InstanceSnapshot) -> float:
        """When this one, which did not go out, would."""
        assert self._sent is not None, "the first one goes out"
        beat_s = self._sent_s + self.pace.heartbeat_s
        if not is_news(self._sent, load):
            return beat_s
        return min(beat_s, self._counted_until_s + (1 - self._saved) * self.pace.report_s)

    def _is_worth_it(self, at: float, load: InstanceSnapshot) -> bool:
        sent = self._sent
        if sent is None or at >= self._sent_s + self.pace.heartbeat_s:
            return True
        if self._is_unpaced:
            return at >= self._sent_s + self._quiet_s or matters(sent, load)
        if self._saved >= _WHOLE:
            return is_news(sent, load) or is_urgent(sent, load)
        return self._saved >= _WHOLE - CREDIT_REPORTS and is_urgent(sent, load)


class SizeTold:
    """Whether instances have to be told how many they are: they begin with the number that was configured."""

    def __init__(self, configured: int) -> None:
        self._configured = configured
        self.instances = configured

    def changes(self, instances: int) -> bool:
        """There are so many now; true if all are to be told."""
        if abs(instances - self.instances) <= SIZE_CHANGE * self.instances or instances < 1:
            return False
        self.instances = instances
        return True

    @property
    def newcomers_ask(self) -> bool:
        """One that has just come believes something else."""
        return self.instances != self._configured
