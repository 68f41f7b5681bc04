"""The auto-scaling rule of the paper's published experiments."""

from __future__ import annotations

from llumnix.config import ScalingConfig
from llumnix.policy.autoscaling import ScaleIn, ScaleOut, Stay
from llumnix.policy.autoscaling_paper import paper_scale
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot
from llumnix.types import InstanceId

SCALING = ScalingConfig(scale_out_freeness=10, scale_in_freeness=60, min_instances=1, max_instances=4)


def cluster(*free: int, running: int) -> ClusterSnapshot:
    rows = [
        InstanceSnapshot(id=InstanceId(f"i{n}"), at=0, seq=1, total_blocks=792, free_blocks=blocks, running=running)
        for n, blocks in enumerate(free)
    ]
    return ClusterSnapshot(at=0, instances=tuple(rows))


def test_the_papers_scaling_rule_starts_as_many_as_bring_the_freeness_back() -> None:
    decision = paper_scale(cluster(20, 20, running=40), 0, SCALING)
    assert isinstance(decision, ScaleOut)
    assert decision.count == 1
    assert isinstance(paper_scale(cluster(20, 20, 20, 20, running=40), 0, SCALING), Stay), "the limit is reached"


def test_the_papers_scaling_rule_takes_the_last_one_away_and_one_at_a_time() -> None:
    idle = cluster(790, 790, running=1)
    assert paper_scale(idle, 0, SCALING) == ScaleIn(InstanceId("i1"), "freeness 394 without the last instance")
    assert isinstance(paper_scale(idle, 1, SCALING), Stay)
