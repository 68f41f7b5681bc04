"""The auto-scaling rule of the paper's published experiments. Ours is `autoscaling.py`."""

from __future__ import annotations

from llumnix.config import ScalingConfig
from llumnix.policy.autoscaling import ScaleIn, ScaleOut, ScalingDecision, Stay, cluster_freeness
from llumnix.policy.snapshot import ClusterSnapshot
from llumnix.types import InstanceState

PAPER_CHECK_INTERVAL_S = 10.0


def paper_scale(cluster: ClusterSnapshot, starting: int, config: ScalingConfig) -> ScalingDecision:
    """The rule of the paper's published experiments: one look every 10 s, without a window; out below the one
    threshold, in if the freeness without the last instance is still above the other; always the last instance
    leaves, and only one at a time."""
    serving = [one for one in cluster.instances if one.state is InstanceState.RUNNING]
    draining = len(cluster.instances) - len(serving)
    capacity = len(serving) + starting
    freeness = cluster_freeness(serving, empty_ones=starting)
    most = config.max_instances - capacity - draining
    if freeness < config.scale_out_freeness and most > 0:
        count = 1
        while count < most and cluster_freeness(serving, starting + count) < config.scale_out_freeness:
            count += 1
        return ScaleOut(count, f"freeness {freeness:.4g} below {config.scale_out_freeness:g}")
    without = cluster_freeness(serving, empty_ones=starting - 1)
    if without > config.scale_in_freeness and capacity > config.min_instances and not draining and not starting:
        return ScaleIn(max(one.id for one in serving), f"freeness {without:.4g} without the last instance")
    return Stay(f"freeness {freeness:.4g}, {without:.4g} without the last instance")
