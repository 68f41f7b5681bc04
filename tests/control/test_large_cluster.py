"""What a report, an answer or a round costs in a cluster of a thousand instances, counted in what is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llumnix.config import PolicyConfig, ScalingConfig
from llumnix.control.cluster_view import ClusterView
from llumnix.control.scheduler import GlobalScheduler
from llumnix.control.scheduler_events import DrainRequested, InstanceLost, LoadReported, MigrationEnded, MoveRequest
from llumnix.policy import autoscaling, defragmentation
from llumnix.policy.autoscaling import ScaleOut, ScalingState, scale
from llumnix.policy.pairing import PairingTerms
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot
from llumnix.types import InstanceId, InstanceState
from move_outcomes import outcome

INSTANCES = 1024
FREE = {"free_blocks": 500, "running": 10, "smallest_running_blocks": 10}
SHORT = {"free_blocks": 3, "running": 40, "smallest_running_blocks": 10, "short_blocks": 5}


def load(number: int, seq: int = 1, **facts: object) -> InstanceSnapshot:
    usual = {"id": InstanceId(f"i{number:04d}"), "at": 0.0, "seq": seq, "total_blocks": 1000}
    return InstanceSnapshot(**{**usual, **facts})  # type: ignore[arg-type]


def report(scheduler: GlobalScheduler, at: float, snapshot: InstanceSnapshot) -> list[MoveRequest]:
    commands = scheduler.handle(LoadReported(at=at, snapshot=snapshot))
    return [command for command in commands if isinstance(command, MoveRequest)]


@pytest.fixture
def cluster() -> GlobalScheduler:
    scheduler = GlobalScheduler(PolicyConfig(), 10.0)
    for number in range(INSTANCES):
        report(scheduler, 0.0, load(number, **FREE))
    return scheduler


class Counted:
    """How often a method or a function was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.calls = 0
        original: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Looks at the whole cluster."""
    return Counted(monkeypatch, ClusterView, "snapshot")


@pytest.fixture
def single(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Looks at one instance."""
    return Counted(monkeypatch, ClusterView, "look")


def test_relief_looks_at_the_freest_few(cluster: GlobalScheduler, whole: Counted, single: Counted) -> None:
    (move,) = report(cluster, 0.01, load(7, seq=2, **SHORT))
    assert move.order.wanted.urgent
    assert move.order.target == "i0000"
    assert whole.calls == 0
    assert single.calls <= 40


def test_relief_of_one_that_gives_already_looks_at_nobody(
    cluster: GlobalScheduler, whole: Counted, single: Counted
) -> None:
    for seq in (2, 3):
        assert report(cluster, 0.01, load(7, seq=seq, **SHORT))
    single.calls = 0
    assert report(cluster, 0.01, load(7, seq=4, **SHORT)) == []
    assert (whole.calls, single.calls) == (0, 1)


def test_relief_where_all_are_short_gives_up_soon(cluster: GlobalScheduler, whole: Counted, single: Counted) -> None:
    for number in range(INSTANCES):
        report(cluster, 0.01, load(number, seq=2, **SHORT))
    single.calls = 0
    assert report(cluster, 0.02, load(7, seq=3, **SHORT)) == []
    assert (whole.calls, single.calls <= 40) == (0, True)


def test_drained_instance_finds_its_next_targets_among_the_freest(
    cluster: GlobalScheduler, whole: Counted, single: Counted
) -> None:
    leaver = InstanceId("i0007")
    cluster.handle(DrainRequested(at=0.01, instance=leaver))
    report(cluster, 0.02, load(7, seq=2, state=InstanceState.DRAINING, **FREE))
    whole.calls = single.calls = 0
    ended = MigrationEnded(at=0.03, outcome=outcome(leaver, "i0000"))
    (next_move,) = cluster.handle(ended)
    assert isinstance(next_move, MoveRequest)
    assert (whole.calls, single.calls <= 10) == (0, True)


def test_instance_that_is_gone_takes_nothing(cluster: GlobalScheduler) -> None:
    cluster.handle(InstanceLost(at=0.01, instance=InstanceId("i0000"), why="killed"))
    (move,) = report(cluster, 0.02, load(7, seq=2, **SHORT))
    assert move.order.target == "i0001"


def test_room_for_every_queue_is_sought_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = {"free_blocks": 100, "running": 50, "smallest_running_blocks": 10}
    queue = {"waiting": 3, "head_of_line_blocks": 150, "queued_blocks": 300}
    instances = tuple(load(number, **blocked, **queue) for number in range(INSTANCES))
    spare, missing = (Counted(monkeypatch, defragmentation, name) for name in ("spare_blocks", "missing_blocks"))
    terms = PairingTerms(migrate_out_freeness=3.0, migrate_in_freeness=3.0)
    made = defragmentation.pair_and_make_room(ClusterSnapshot(at=0.0, instances=instances), terms)
    assert len(made.pairs) == INSTANCES // 2
    assert spare.calls + missing.calls < 10 * INSTANCES


def test_hundreds_of_missing_instances_are_counted_with_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = Counted(monkeypatch, autoscaling, "_mean_capacity_blocks")
    full = tuple(load(number, free_blocks=0, running=50) for number in range(INSTANCES))
    config = ScalingConfig(max_instances=4096)
    decision, _ = scale(ClusterSnapshot(at=100.0, instances=full), 0, ScalingState(low_since_s=0.0), config)
    assert decision == ScaleOut(512, "freeness 0 below 10 for 10 s; 10 with 512 more")
    assert sums.calls < 4
