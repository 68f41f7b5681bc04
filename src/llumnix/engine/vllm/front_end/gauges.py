"""What a front end knows of the whole server, in `GET /metrics`: made when somebody asks, from what is known then.

The label is `instance_id`: Prometheus itself calls the place that it asks `instance`. An instance that takes no
requests has no freeness; one that is gone is not there, whatever it said before; and what only the scheduler knows of
now is left out while it is silent. What it has counted stays as it told last, so that no rate has a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from time import monotonic

import vllm
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llumnix import __version__
from llumnix.engine.vllm.front_end.switchboard import Switchboard
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.step_cost import token_s
from llumnix.policy.virtual_usage import migration_freeness
from llumnix.types import InstanceState, by_number
from llumnix.wire.base import InstanceInfo
from llumnix.wire.to_front_end import ScalingStatus

LABEL = "instance_id"


def freeness_of(load: InstanceSnapshot) -> float | None:
    """Without headroom for priorities: the plain number. None (JSON has no infinity) when it takes no requests."""
    freeness = migration_freeness(load, None)
    return freeness if isfinite(freeness) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSeen:
    """An instance as a front end sees it."""

    info: InstanceInfo
    load: InstanceSnapshot
    report_age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSeen:
    """The server as one front end sees it at one moment."""

    instances: tuple[InstanceSeen, ...] = ()
    """By number."""
    starting: int = 0
    scheduler_up: bool = True
    scheduler_late_messages: int = 0
    scaling: ScalingStatus | None = None
    """As the scheduler told last; None: it never did."""


def seen_by(board: Switchboard) -> ServerSeen:
    """On the event loop; what is made of it may be made elsewhere."""
    now, members = monotonic(), board.client.members
    return ServerSeen(
        instances=tuple(
            InstanceSeen(info=member.info, load=member.snapshot, report_age_s=now - member.heard_s)
            for _, member in sorted(members.by_id.items(), key=lambda known: by_number(known[0]))
        ),
        starting=len(board.strangers.starting.keys() | members.courted.keys()),
        scheduler_up=board.scheduler_state == "running",
        scheduler_late_messages=board.scheduler_late_messages,
        scaling=board.scaling,
    )


_GAUGES: dict[str, tuple[str, Callable[[InstanceSeen], float | None]]] = {
    "llumnix_freeness": (
        "Free blocks per request; none while it takes no requests.",
        lambda seen: freeness_of(seen.load),
    ),
    "llumnix_free_blocks": (
        "Free blocks of its KV cache, evictable ones included.",
        lambda seen: seen.load.free_blocks,
    ),
    "llumnix_total_blocks": ("Blocks of its KV cache.", lambda seen: seen.load.total_blocks),
    "llumnix_waiting": ("Requests queued on the instance.", lambda seen: seen.load.waiting),
    "llumnix_running": ("Requests running on the instance.", lambda seen: seen.load.running),
    "llumnix_token_seconds": (
        "Seconds between two tokens of a request there, by what its steps take; none while that is not known.",
        lambda seen: token_s(seen.load),
    ),
    "llumnix_slowdown": (
        "How many times as long as its steps cost the latest of them took.",
        lambda seen: seen.load.slowdown,
    ),
    "llumnix_report_age_seconds": ("Time since its last load report.", lambda seen: seen.report_age_s),
}

_COUNTERS: dict[str, tuple[str, Callable[[InstanceSnapshot], float]]] = {
    "llumnix_preemptions": ("Requests that were thrown out and computed twice.", lambda load: load.preemptions),
    "llumnix_preemptions_avoided": (
        "Requests that left an instance in time, so that none had to be preempted.",
        lambda load: load.preemptions_avoided,
    ),
    "llumnix_recompute_tokens_saved": (
        "Tokens of those requests, which would have been computed twice.",
        lambda load: load.recompute_tokens_saved,
    ),
    "llumnix_late_messages": (
        "Messages about migrations that came twice, too late, or for an attempt that was over; they change nothing.",
        lambda load: load.late_messages,
    ),
    "llumnix_dispatches": ("Requests sent to an instance.", lambda load: sum(load.dispatches_seen)),
}


class ServerMetrics(Collector):
    def __init__(self, seen: ServerSeen) -> None:
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("llumnix_build_info", "Versions; always 1.", labels=["version", "vllm"])
        build.add_metric([__version__, vllm.__version__], 1)
        yield build
        yield from self._of_instances()
        yield GaugeMetricFamily(
            "llumnix_scheduler_up", "Whether the scheduler was heard a moment ago.", value=self._seen.scheduler_up
        )
        yield CounterMetricFamily(
            "llumnix_scheduler_late_messages",
            "Messages to the scheduler about what was over, or gone, by then; they change nothing.",
            value=self._seen.scheduler_late_messages,
        )
        yield self._by_state()
        if self._seen.scaling is not None:
            yield from _scaling(self._seen.scaling)

    def _of_instances(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "llumnix_engine_info",
            "Joins our label with vLLM's, `engine`; always 1.",
            labels=[LABEL, "engine", "node", "state"],
        )
        for each in self._seen.instances:
            info.add_metric([each.info.id, str(each.info.slot), each.info.node, each.load.state], 1)
        yield info
        role = GaugeMetricFamily("llumnix_role", "What it is preferred for; always 1.", labels=[LABEL, "role"])
        for each in self._seen.instances:
            role.add_metric([each.info.id, each.load.role], 1)
        yield role
        for name, (text, value_of) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=[LABEL])
            for each in self._seen.instances:
                if (value := value_of(each)) is not None:
                    gauge.add_metric([each.info.id], value)
            yield gauge
        for name, (text, count_of) in _COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=[LABEL])
            for each in self._seen.instances:
                counter.add_metric([each.info.id], count_of(each.load))
            yield counter

    def _by_state(self) -> Metric:
        states = [each.load.state for each in self._seen.instances]
        counts = {
            "serving": states.count(InstanceState.RUNNING),
            "draining": states.count(InstanceState.DRAINING),
            "starting": self._seen.starting,
        }
        if self._seen.scaling is not None and self._seen.scheduler_up:
            counts["failing"] = self._seen.scaling.failing
        family = GaugeMetricFamily("llumnix_instances", "Instances by state.", labels=["state"])
        for state, count in counts.items():
            family.add_metric([state], count)
        return family


def _scaling(status: ScalingStatus) -> Iterator[Metric]:
    """Counted by the scheduler: a new one begins anew, as Prometheus expects of counters."""
    yield CounterMetricFamily(
        "llumnix_instance_seconds",
        "Sum of the times that instances existed since the scheduler began: the machines' time.",
        value=status.instance_seconds,
    )
    decisions = CounterMetricFamily(
        "llumnix_scaling_decisions",
        "Instances that auto-scaling started or drained (in advise mode: would have).",
        labels=["action"],
    )
    decisions.add_metric(["start"], status.starts)
    decisions.add_metric(["drain"], status.drains)
    yield decisions
