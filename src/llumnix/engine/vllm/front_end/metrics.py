"""`llumnix_*` in `GET /metrics` that a front end counts itself; those of all front ends are added up (gauges.py)."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from llumnix.control.front_end_events import ReplayAt
from llumnix.control.orders import MoveCause, MoveOutcome

_DOWNTIME_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_WHY_REPLAYED = {False: "lost", True: "asked_for"}
_LAG_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_AS_THEY_STAND = {
    "refused": (
        "llumnix_refused_connections",
        "Attempts to connect from elsewhere without the keys of this server.",
    ),
    "malformed": (
        "llumnix_malformed_messages",
        "Control messages that a front end could not read or that were not for it.",
    ),
    "unsent": (
        "llumnix_unsent_messages",
        "Control messages of a front end that were dropped, as whom they were for reads none or cannot be reached.",
    ),
    "late_outputs": (
        "llumnix_late_outputs",
        "Outputs of instances that were not to send them any more: their request is over, or goes on elsewhere.",
    ),
}
"""Name and meaning of what is counted elsewhere and asked for now and then."""


class Metrics:
    """One per front-end process, in its only registry but for tests. Counters with labels begin at zero, else the
    first of each could not be seen to grow."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.replays = _replays(registry)
        self.given_up = Counter(
            "llumnix_given_up_requests",
            "Requests that could not go on: their clients got an error that says why.",
            registry=registry,
        )
        self.migrations = Counter(
            "llumnix_migrations",
            "Attempts to move a request: which rule asked (cause), and why those that stayed did (stayed_why).",
            ["outcome", "cause", "stayed_why"],
            registry=registry,
        )
        for cause in MoveCause:
            self.migrations.labels(outcome="moved", cause=cause, stayed_why="")
        self.bytes_copied = Counter("llumnix_migrated_bytes", "KV bytes copied by migrations.", registry=registry)
        self.downtime = Histogram(
            "llumnix_migration_downtime_seconds",
            "Gap in a token stream at a hand-over, less one normal decode step.",
            buckets=_DOWNTIME_BUCKETS_S,
            registry=registry,
        )
        self.loop_lag = Histogram(
            "llumnix_event_loop_lag_seconds",
            "How late the event loop of a front end, which passes on every token, was to a task that was due.",
            buckets=_LAG_BUCKETS_S,
            registry=registry,
        )
        self._stand = {what: Counter(name, told, registry=registry) for what, (name, told) in _AS_THEY_STAND.items()}
        self._stood = dict.fromkeys(self._stand, 0)

    def replay(self, replay: ReplayAt) -> None:
        self.replays.labels(_WHY_REPLAYED[replay.asked_for]).inc()

    def migration(self, outcome: MoveOutcome, downtime_s: float | None) -> None:
        self.migrations.labels(
            outcome="moved" if outcome.ok else "stayed", cause=outcome.order.cause, stayed_why=outcome.stayed or ""
        ).inc()
        self.bytes_copied.inc(outcome.figures.bytes_copied)
        if downtime_s is not None:
            self.downtime.observe(downtime_s)

    def stand_at(self, *, refused: int, malformed: int, unsent: int, late_outputs: int) -> None:
        """All as they stand now, since this front end began."""
        now = {"refused": refused, "malformed": malformed, "unsent": unsent, "late_outputs": late_outputs}
        for what, count in now.items():
            self._stand[what].inc(count - self._stood[what])
        self._stood = now


def _replays(registry: CollectorRegistry) -> Counter:
    counter = Counter(
        "llumnix_replays",
        "Requests that went on elsewhere by token replay, because their instance was lost or it was asked for.",
        ["cause"],
        registry=registry,
    )
    for cause in _WHY_REPLAYED.values():
        counter.labels(cause)
    return counter
