"""When instances are added and taken away."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from llumnix.config import ScalingConfig
from llumnix.errors import UsageError
from llumnix.policy.autoscaling import HeldDemand, ScaleIn, ScaleOut, ScalingState, Stay, cluster_freeness, scale
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot
from llumnix.types import InstanceId, InstanceState, Role

CONFIG = ScalingConfig(
    scale_out_freeness=10.0, scale_in_freeness=60.0, scale_window_s=5.0, min_instances=1, max_instances=8
)
AT = 100.0
LONG_LOW = ScalingState(low_since_s=AT - 5.0)
LONG_HIGH = ScalingState(high_since_s=AT - 5.0)


def load(id: str, free: int, running: int, **facts: object) -> InstanceSnapshot:
    usual = {"at": AT, "seq": 1, "total_blocks": 1000}
    return InstanceSnapshot(id=InstanceId(id), free_blocks=free, running=running, **{**usual, **facts})  # type: ignore[arg-type]


def cluster(*instances: InstanceSnapshot) -> ClusterSnapshot:
    return ClusterSnapshot(at=AT, instances=instances)


FULL = cluster(load("a", 100, 20), load("b", 100, 20))
IDLE = cluster(load("a", 900, 2), load("b", 950, 1), load("c", 900, 3))
FINE = cluster(load("a", 600, 20), load("b", 600, 20))


def test_one_idle_instance_does_not_outweigh_full_ones() -> None:
    assert cluster_freeness([load("a", 1000, 0), *(load(f"b{i}", 0, 200) for i in range(9))]) < 1


@pytest.mark.parametrize(
    ("situation", "instances", "starting", "state", "then"),
    [
        ("low for the first time", FULL, 0, ScalingState(), ScalingState(low_since_s=AT)),
        ("low, but not for long", FULL, 0, ScalingState(low_since_s=AT - 4.9), ScalingState(low_since_s=AT - 4.9)),
        ("fine again", FINE, 0, LONG_LOW, ScalingState()),
        ("high for the first time, after low", IDLE, 0, LONG_LOW, ScalingState(high_since_s=AT)),
        ("those that start will do", FULL, 1, LONG_LOW, ScalingState()),
        ("some still start: nobody leaves", IDLE, 1, LONG_HIGH, ScalingState(high_since_s=AT)),
        ("only starting ones", cluster(), 2, ScalingState(), ScalingState()),
        ("one is the least", cluster(load("a", 1000, 0)), 0, LONG_HIGH, ScalingState(high_since_s=AT)),
    ],
)
def test_stays_when(
    situation: str, instances: ClusterSnapshot, starting: int, state: ScalingState, then: ScalingState
) -> None:
    decision, after = scale(instances, starting, state, CONFIG)
    assert isinstance(decision, Stay), situation
    assert after == then, situation


@pytest.mark.parametrize(
    ("instances", "starting", "state", "why"),
    [
        (FINE, 0, ScalingState(), "between 10 and 60 (--scale-out-freeness, --scale-in-freeness)"),
        (FULL, 0, ScalingState(AT - 1.25), "below 10 (--scale-out-freeness), for 1.2 of 5 s (--scale-window-s)"),
        (IDLE, 0, ScalingState(None, AT - 4.0), "above 60 (--scale-in-freeness), for 4.0 of 5 s (--scale-window-s)"),
        (IDLE, 2, LONG_HIGH, "above 60 (--scale-in-freeness), but 2 are starting"),
        (
            cluster(load("a", 1000, 0)),
            0,
            LONG_HIGH,
            "above 60 (--scale-in-freeness), but there are as few as there may be (--min-instances 1)",
        ),
        (
            cluster(*(load(f"a{i}", 0, 100) for i in range(8))),
            0,
            LONG_LOW,
            "below 10 (--scale-out-freeness), but there are as many as there may be (--max-instances 8)",
        ),
    ],
)
def test_whoever_stays_says_what_keeps_him(
    instances: ClusterSnapshot, starting: int, state: ScalingState, why: str
) -> None:
    decision, _ = scale(instances, starting, state, CONFIG)
    assert decision.reason.endswith(f" instances: {why}")


def test_scales_out_when_low_for_the_window() -> None:
    decision, state = scale(FULL, 0, LONG_LOW, CONFIG)
    assert decision == ScaleOut(1, "freeness 5 below 10 for 5 s; 30 with 1 more")
    assert state == ScalingState()


def test_memory_behind_a_full_batch_is_of_no_use_to_those_that_wait() -> None:
    full = [load(name, 500, 8, max_running=8, waiting=20, queued_blocks=100) for name in "ab"]
    assert cluster_freeness(full) == 0
    assert cluster_freeness([*full, load("c", 1000, 0)]) == 1000 / 56
    assert cluster_freeness([load("a", 500, 8, max_running=8)]) == 500 / 8, "nobody waits"


def test_scales_out_by_as_many_as_it_takes() -> None:
    queue = cluster(load("a", 0, 100, waiting=50, queued_blocks=1500, head_of_line_blocks=30))
    decision, _ = scale(queue, 0, LONG_LOW, CONFIG)
    assert isinstance(decision, ScaleOut)
    assert decision.count == 3


def test_scales_out_no_further_than_the_limit() -> None:
    queue = cluster(load("a", 0, 100, waiting=500, queued_blocks=90000, head_of_line_blocks=30))
    decision, _ = scale(queue, 2, LONG_LOW, CONFIG)
    assert isinstance(decision, ScaleOut)
    assert decision.count == 5
    full_house = cluster(*(load(f"a{i}", 0, 100) for i in range(8)))
    assert isinstance(scale(full_house, 0, LONG_LOW, CONFIG)[0], Stay)


def test_scales_out_no_further_than_there_are_devices_and_says_what_comes_of_so_many() -> None:
    queue = cluster(load("a", 0, 100, waiting=50, queued_blocks=1500, head_of_line_blocks=30))
    decision, _ = scale(queue, 0, LONG_LOW, CONFIG, room=2)
    assert isinstance(decision, ScaleOut)
    assert decision.count == 2
    assert decision.reason.endswith(" with 2 more")
    decision, state = scale(queue, 0, LONG_LOW, CONFIG, room=0)
    assert decision.reason.endswith("below 10 (--scale-out-freeness), but no GPU is free for one more")
    assert state == LONG_LOW, "as soon as one is free"
    config = ScalingConfig(min_instances=3, max_instances=4)
    decision, _ = scale(cluster(load("a", 1000, 0)), 1, ScalingState(), config, room=0)
    assert decision == Stay("2 of at least 3 instances, but no GPU is free for one more")


def test_missing_instances_are_replaced_at_once() -> None:
    config = ScalingConfig(min_instances=3, max_instances=4)
    decision, _ = scale(cluster(load("a", 1000, 0)), 1, ScalingState(), config)
    assert decision == ScaleOut(1, "2 of at least 3 instances")


def test_the_instance_that_is_cheapest_to_empty_leaves() -> None:
    decision, state = scale(IDLE, 0, LONG_HIGH, CONFIG)
    assert isinstance(decision, ScaleIn)
    assert decision.instance == "b"
    assert "b is cheapest to empty: 1 running, 50 blocks to copy" in decision.reason
    assert state == ScalingState()


@pytest.mark.parametrize(
    ("situation", "one", "other"),
    [
        ("fewer blocks, though more requests", {"free": 980, "running": 4}, {"free": 900, "running": 1}),
        ("as many blocks, fewer requests", {"free": 900, "running": 1}, {"free": 900, "running": 2}),
        ("nobody of high priority there", {"free": 800, "running": 9}, {"free": 990, "running": 1, "high_running": 1}),
        ("all the same: the id", {"free": 900, "running": 2}, {"free": 900, "running": 2}),
    ],
)
def test_cheapest_to_empty_is(situation: str, one: dict[str, int], other: dict[str, int]) -> None:
    decision, _ = scale(cluster(load("a", **one), load("b", **other)), 0, LONG_HIGH, CONFIG)
    assert isinstance(decision, ScaleIn), situation
    assert decision.instance == "a", situation


def test_what_drains_or_fails_to_start_holds_a_place_but_is_no_capacity() -> None:
    leaving = load("c", 950, 1, state=InstanceState.DRAINING)
    config = ScalingConfig(scale_window_s=5.0, min_instances=1, max_instances=5)
    queue = cluster(
        *(load(name, 0, 100, waiting=500, queued_blocks=90000, head_of_line_blocks=30) for name in "ab"), leaving
    )
    decision, _ = scale(queue, 0, LONG_LOW, config, failing=1)
    assert isinstance(decision, ScaleOut)
    assert decision.count == 1
    assert isinstance(scale(queue, 0, LONG_LOW, config, failing=2)[0], Stay)


def test_no_more_than_the_places_even_to_reach_the_least() -> None:
    config = ScalingConfig(min_instances=2, max_instances=2)
    leaving = load("c", 950, 1, state=InstanceState.DRAINING)
    assert isinstance(scale(cluster(load("a", 900, 1), leaving), 0, ScalingState(), config)[0], Stay)


def test_a_draining_instance_is_no_capacity_and_does_not_leave_twice() -> None:
    leaving = load("b", 950, 0, state=InstanceState.DRAINING)
    decision, _ = scale(cluster(load("a", 900, 2), leaving), 0, LONG_HIGH, CONFIG)
    assert isinstance(decision, Stay)


@pytest.mark.parametrize(
    ("roles", "leaver"),
    [
        ("prefill mixed", None),
        ("decode mixed", None),
        ("prefill decode", None),
        ("prefill decode mixed", "i2"),
        ("prefill mixed mixed", "i1"),
        ("prefill prefill mixed", "i0"),
        ("mixed mixed", "i0"),
        ("prefill prefill", "i0"),
    ],
)
def test_somebody_for_prompts_and_somebody_for_tokens_stays(roles: str, leaver: str | None) -> None:
    there = [load(f"i{number}", 1000, 0, role=Role(role)) for number, role in enumerate(roles.split())]
    decision, _ = scale(cluster(*there), 0, LONG_HIGH, CONFIG)
    assert (decision.instance if isinstance(decision, ScaleIn) else None) == leaver
    if leaver is None:
        assert "is the last for what it is for" in decision.reason


PROMPTS = [load(f"p{number}", 1000, 0, role=Role.PREFILL) for number in range(3)]


def tokens(*free: int, running: int = 3) -> list[InstanceSnapshot]:
    return [load(f"t{number}", blocks, running, role=Role.DECODE) for number, blocks in enumerate(free)]


def test_free_memory_where_only_prompts_are_computed_is_of_no_use_to_tokens() -> None:
    full = tokens(50, 50, running=20)
    assert cluster_freeness([*PROMPTS, *full]) == cluster_freeness(full) == 2.5
    decision, _ = scale(cluster(*PROMPTS, *full), 0, LONG_LOW, CONFIG)
    assert isinstance(decision, ScaleOut)
    assert decision.count == 1, "which has memory for tokens"


def test_what_the_queue_of_an_instance_for_prompts_lacks_is_lacking() -> None:
    queue = load("p", 100, 0, role=Role.PREFILL, waiting=2, queued_blocks=300)
    assert cluster_freeness([queue, *tokens(400, running=2)]) == (400 - 200) / 4


def test_instance_for_prompts_that_leaves_takes_no_memory_for_tokens_along() -> None:
    decision, _ = scale(cluster(*PROMPTS[:2], *tokens(400)), 0, LONG_HIGH, CONFIG)
    assert isinstance(decision, ScaleIn)
    assert decision.instance == "p0"


def test_instance_for_tokens_does_not_leave_for_the_memory_of_those_for_prompts() -> None:
    decision, _ = scale(cluster(PROMPTS[0], *tokens(400, 400)), 0, LONG_HIGH, CONFIG)
    assert isinstance(decision, Stay)
    assert "with one instance less" in decision.reason


def test_nobody_leaves_if_the_others_could_not_carry_the_load() -> None:
    config = ScalingConfig(scale_out_freeness=50.0, scale_in_freeness=60.0, scale_window_s=5.0, max_instances=8)
    decision, state = scale(cluster(load("a", 620, 10), load("b", 620, 10)), 0, LONG_HIGH, config)
    assert isinstance(decision, Stay)
    assert "with one instance less" in decision.reason
    assert state == LONG_HIGH


@pytest.mark.parametrize(
    "facts",
    [
        {"scale_out_freeness": 60.0, "scale_in_freeness": 60.0},
        {"scale_window_s": -1.0},
        {"min_instances": 0},
        {"min_instances": 3, "max_instances": 2},
    ],
)
def test_knobs_that_make_no_sense_are_refused(facts: Any) -> None:
    with pytest.raises(UsageError):
        ScalingConfig(**facts)


@pytest.mark.parametrize(
    ("kinds", "blocks"),
    [({}, 100), ({"state_blocks": 3}, 106), ({"kv_groups": ((16, 0), (16, 4))}, 108)],
)
def test_what_waits_at_the_front_ends_counts_as_if_it_waited_on_an_instance(kinds: dict[str, Any], blocks: int) -> None:
    instance = load("a", 600, 3, **kinds)
    at_the_front_end = cluster_freeness([instance], held=HeldDemand(requests=2, tokens=16 * 100))
    in_the_queue = cluster_freeness([replace(instance, waiting=2, queued_blocks=blocks)])
    assert at_the_front_end == in_the_queue < cluster_freeness([instance])


def test_one_that_comes_to_take_anothers_place_is_there_for_a_whole_window() -> None:
    """However long all was quiet before: a rolling restart has time to drain the old one."""
    state, alone = LONG_HIGH, load("a", 1000, 0)
    _, state = scale(cluster(alone), 0, state, CONFIG)
    _, state = scale(cluster(alone), 1, state, CONFIG)
    both = cluster(alone, load("b", 1000, 0))
    for at in (AT + 0.1, AT + CONFIG.scale_window_s - 0.1):
        decision, state = scale(replace(both, at=at), 0, state, CONFIG)
        assert isinstance(decision, Stay)
    decision, _ = scale(replace(both, at=AT + CONFIG.scale_window_s + 0.1), 0, state, CONFIG)
    assert isinstance(decision, ScaleIn)
