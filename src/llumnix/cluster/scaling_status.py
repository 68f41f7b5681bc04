"""What front ends are told of the size of the cluster, and of what auto-scaling makes of it."""

from __future__ import annotations

from llumnix.control.scaling import Autoscaler
from llumnix.control.scheduler import GlobalScheduler
from llumnix.types import InstanceState
from llumnix.wire.to_front_end import ScalingStatus


def scaling_status(scheduler: GlobalScheduler, scaler: Autoscaler, at: float, began_s: float) -> ScalingStatus:
    """As of `at`; instances are counted, and paid for, since `began_s`."""
    fleet, instances = scheduler.fleet, scheduler.snapshot(at).instances
    serving = sum(instance.state is InstanceState.RUNNING for instance in instances)
    return ScalingStatus(
        mode=scaler.mode,
        min_instances=scaler.config.min_instances,
        max_instances=scaler.config.max_instances,
        serving=serving,
        draining=len(instances) - serving,
        starting=fleet.starting(heard=len(instances)),
        failing=fleet.failing,
        now=scaler.now,
        last=scaler.last,
        starts=scaler.starts,
        drains=scaler.drains,
        instance_seconds=fleet.instance_seconds(at),
        watched_s=at - began_s,
    )
