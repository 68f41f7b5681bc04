"""Metrics of each instance in `GET /metrics`, made when somebody asks, from what the front end knows then.

The label is `instance_id`: Prometheus itself calls the place that it asks `instance`. An instance that takes no
requests has no freeness; one that is gone is not there, whatever it said before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isfinite

from prometheus_client import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.virtual_usage import migration_freeness
from llumnix.types import by_number

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


class InstanceMetrics(Collector):
    def __init__(self, loads: Loads) -> None:
        self._loads = loads

    def collect(self) -> Iterator[Metric]:
        loads = sorted(self._loads().items(), key=lambda load: by_number(load[0]))
        for name, (text, value_of) in _GAUGES.items():
            family = GaugeMetricFamily(name, text, labels=[LABEL])
            for instance, load in loads:
                value = value_of(load)
                if value is not None:
                    family.add_metric([instance], value)
            yield family
        dispatches = CounterMetricFamily("llumnix_dispatches", "Requests sent to an instance.", labels=[LABEL])
        for instance, load in loads:
            dispatches.add_metric([instance], sum(load.dispatches_seen))
        yield dispatches


def exposition(loads: Loads) -> bytes:
    """All metrics of the server, vLLM's own and ours, as Prometheus reads them.

    With several front ends vLLM's come from files that all of them count into. Those are never forgotten there, so what
    is told of instances is not counted that way: each front end knows all of them, and the one that is asked tells.
    """
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    ours = CollectorRegistry(auto_describe=False)
    ours.register(InstanceMetrics(loads))
    return generate_latest(get_prometheus_registry()) + generate_latest(ours)
