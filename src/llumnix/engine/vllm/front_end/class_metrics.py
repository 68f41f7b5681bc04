"""`llumnix_*` of `--classes` in `GET /metrics`; without that flag there are none."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from llumnix.policy.classes import ServiceClass

_HOLD_BUCKETS_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class ClassMetrics:
    """One per front-end process, in its only registry but for tests."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.admitted = Counter(
            "llumnix_admitted_requests", "Requests that went to an instance.", ["class"], registry=registry
        )
        self.refused = Counter(
            "llumnix_refused_requests",
            "Requests that were declined, by HTTP status.",
            ["class", "code"],
            registry=registry,
        )
        self.hold = Histogram(
            "llumnix_hold_seconds",
            "How long admitted requests waited.",
            ["class"],
            buckets=_HOLD_BUCKETS_S,
            registry=registry,
        )
        self.held = Gauge(
            "llumnix_held_requests",
            "Requests that wait for their turn.",
            ["class"],
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.targets = Counter(
            "llumnix_class_targets",
            "Ended requests of a class with targets.",
            ["class", "target", "met"],
            registry=registry,
        )

    def came_in(self, cls: ServiceClass, held_s: float) -> None:
        self.admitted.labels(cls.name).inc()
        self.hold.labels(cls.name).observe(held_s)

    def targets_met(self, cls: ServiceClass, met: Mapping[str, bool]) -> None:
        """Of those that were promised."""
        for target, is_met in met.items():
            self.targets.labels(cls.name, target, "yes" if is_met else "no").inc()
