"""`llumnix_*` in `GET /metrics`, beside vLLM's own."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from llumnix.report.records import MigrationRecord
from llumnix.wire.to_front_end import ScalingStatus

_DOWNTIME_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class Metrics:
    """One per front-end process (the registry is global)."""

    def __init__(self) -> None:
        self.replays = Counter("llumnix_replays", "Requests that went on elsewhere by token replay.")
        self.migrations = Counter("llumnix_migrations", "Attempts to move a request.", ["outcome"])
        self.bytes_copied = Counter("llumnix_migrated_bytes", "KV bytes copied by migrations.")
        self.downtime = Histogram(
            "llumnix_migration_downtime_seconds",
            "Gap in a token stream at a hand-over, less one normal decode step.",
            buckets=_DOWNTIME_BUCKETS_S,
        )
        shared = {"multiprocess_mode": "mostrecent"}
        self.instances = Gauge("llumnix_instances", "Instances by state.", ["state"], **shared)  # type: ignore[arg-type]
        self.instance_seconds = Gauge(
            "llumnix_instance_seconds",
            "Sum of the times that instances existed since the scheduler began: the machines' time.",
            **shared,  # type: ignore[arg-type]
        )
        self.scaling_decisions = Gauge(
            "llumnix_scaling_decisions",
            "Instances that auto-scaling started or drained (in advise mode: would have) since the scheduler began.",
            ["action"],
            **shared,  # type: ignore[arg-type]
        )

        self.refused = Gauge(
            "llumnix_refused_connections",
            "Attempts to connect from elsewhere without the keys of this server, since the front end began.",
            multiprocess_mode="livesum",
        )
        self.malformed = Gauge(
            "llumnix_malformed_messages",
            "Control messages that the front end could not read or that were not for it, since it began.",
            multiprocess_mode="livesum",
        )

    def scaling(self, status: ScalingStatus) -> None:
        counts = {
            "serving": status.serving,
            "draining": status.draining,
            "starting": status.starting,
            "failing": status.failing,
        }
        for state, count in counts.items():
            self.instances.labels(state=state).set(count)
        self.instance_seconds.set(status.instance_seconds)
        self.scaling_decisions.labels(action="start").set(status.starts)
        self.scaling_decisions.labels(action="drain").set(status.drains)

    def migration(self, record: MigrationRecord) -> None:
        self.migrations.labels(outcome=record.outcome.partition(":")[0]).inc()
        self.bytes_copied.inc(record.bytes)
        if record.downtime_ms is not None:
            self.downtime.observe(record.downtime_ms / 1e3)
