"""Gauges of each instance in `GET /metrics`, made when somebody asks, from what the front end knows then.

The label is `instance_id`: Prometheus itself calls the place that it asks `instance`. An instance that takes no
requests has no freeness; one that is gone is not there, whatever it said before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from unittest import mock

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.virtual_usage import migration_freeness

LABEL = "instance_id"

Loads = Callable[[], Mapping[str, InstanceSnapshot]]


def freeness_of(load: InstanceSnapshot) -> float | None:
    """Without headroom for priorities: the plain number. None (JSON has no infinity) when it takes no requests."""
    freeness = migration_freeness(load, None)
    return freeness if isfinite(freeness) else None


_GAUGES: dict[str, tuple[str, Callable[[InstanceSnapshot], float | None]]] = {
    "llumnix_freeness": ("Free blocks per request; none while it takes no requests.", freeness_of),
    "llumnix_waiting": ("Requests queued on the instance.", lambda load: load.waiting),
    "llumnix_running": ("Requests running on the instance.", lambda load: load.running),
    "llumnix_preemptions": ("Preemptions since the instance started.", lambda load: load.preemptions),
    "llumnix_preemptions_avoided": (
        "Requests that left an instance in time, so that none had to be preempted.",
        lambda load: load.preemptions_avoided,
    ),
    "llumnix_recompute_tokens_saved": (
        "Tokens of those requests, which would have been computed twice.",
        lambda load: load.recompute_tokens_saved,
    ),
}


class InstanceGauges(Collector):
    def __init__(self, loads: Loads) -> None:
        self._loads = loads

    def collect(self) -> Iterator[Metric]:
        loads = sorted(self._loads().items())
        for name, (text, value_of) in _GAUGES.items():
            family = GaugeMetricFamily(name, text, labels=[LABEL])
            for instance, load in loads:
                value = value_of(load)
                if value is not None:
                    family.add_metric([instance], value)
            yield family


@contextmanager
def in_registry(loads: Loads) -> Iterator[None]:
    """The app that vLLM builds meanwhile serves these gauges beside its own metrics.

    With several front ends it makes a registry of its own, of the files that all of them count into; each front end
    knows all instances, so the one that is asked answers for them.
    """
    from vllm.entrypoints.serve.instrumentator import metrics
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    def with_gauges() -> CollectorRegistry:
        registry = get_prometheus_registry()
        registry.register(InstanceGauges(loads))
        return registry

    with mock.patch.object(metrics, "get_prometheus_registry", with_gauges):
        yield
