"""How each policy ranks instances for a new request, and how a decision reads."""

from __future__ import annotations

from typing import Any

import pytest

from llumnix.policy.catalogue import POLICIES
from llumnix.policy.demand import ANY_LENGTH, longest_prompt_tokens, queued_demand_blocks, tokens_in
from llumnix.policy.dispatch import DispatchReason, Judged
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId


def load(id: str, **facts: object) -> InstanceSnapshot:
    usual = {"at": 0.0, "seq": 1, "total_blocks": 1000, "free_blocks": 1000}
    return InstanceSnapshot(id=InstanceId(id), **{**usual, **facts})  # type: ignore[arg-type]


ROOMY = load("roomy", free_blocks=900, running=9)
FEW = load("few", free_blocks=300, running=4)
QUEUE = load("queue", free_blocks=800, running=2, waiting=1, head_of_line_blocks=700, queued_blocks=700)
HIGH = load("high", free_blocks=850, running=9, high_running=1)
ALL = [ROOMY, FEW, QUEUE, HIGH]


def best(
    policy: str, instances: list[InstanceSnapshot], high: bool = False, turns: dict[str, int] | None = None
) -> str:
    dispatch = POLICIES[policy].dispatch
    rank = (dispatch.fallback or dispatch).rank
    target = 1600 if POLICIES[policy].priorities else None
    return min(instances, key=lambda one: (*rank(one, high, (turns or {}).get(one.id, 0), target), one.id)).id


@pytest.mark.parametrize(
    ("policy", "high", "chosen"),
    [
        ("llumnix", False, "roomy"),
        ("llumnix", True, "high"),
        ("llumnix-paper", False, "roomy"),
        ("llumnix-paper", True, "high"),
        ("llumnix-base", False, "roomy"),
        ("llumnix-base", True, "roomy"),
        ("infaas++", True, "roomy"),
        ("least-requests", False, "queue"),
        ("vllm-dp", False, "few"),
    ],
)
def test_policy_chooses(policy: str, high: bool, chosen: str) -> None:
    assert best(policy, ALL, high) == chosen


def test_high_request_without_any_headroom_goes_where_least_must_be_evicted() -> None:
    assert best("llumnix", [ROOMY, FEW], high=True) == "roomy"


def test_ours_takes_the_smallest_shortage_where_the_papers_takes_the_most_crowded() -> None:
    a = load("a", free_blocks=0, running=5, waiting=5, head_of_line_blocks=20, queued_blocks=100)
    b = load("b", free_blocks=0, running=50, waiting=50, head_of_line_blocks=10, queued_blocks=500)
    assert best("llumnix", [a, b]) == "a"
    assert best("llumnix-paper", [a, b]) == "b"


def test_equal_freeness_goes_to_the_fewest_requests_then_by_id() -> None:
    two, four = load("two", free_blocks=200, running=2), load("four", free_blocks=400, running=4)
    assert best("llumnix", [four, two]) == "two"
    assert best("llumnix", [load("b"), load("a")]) == "a"


def test_round_robin_serves_whoever_waits_longest_and_does_not_flood_a_new_one() -> None:
    turns = {"roomy": 7, "few": 5, "queue": 6}
    assert best("round-robin", ALL, turns=turns) == "high"
    assert best("round-robin", ALL, turns={**turns, "high": 8}) == "few"


def test_demand_is_in_whole_blocks() -> None:
    assert [queued_demand_blocks(tokens, load("a")) for tokens in (0, 1, 16, 17)] == [1, 1, 1, 2]
    assert queued_demand_blocks(17, load("a", state_blocks=3)) == 5


def test_demand_is_of_all_kinds_of_blocks_and_a_window_has_no_more_than_it_takes() -> None:
    windows = load("a", kv_groups=((16, 0), (16, 4), (32, 4)))
    assert [queued_demand_blocks(tokens, windows) for tokens in (1, 40, 64, 1000)] == [
        3,
        3 + 3 + 2,
        4 + 4 + 2,
        63 + 4 + 4,
    ]


@pytest.mark.parametrize(
    "kinds",
    [
        {},
        {"state_blocks": 3},
        {"kv_groups": ((16, 0), (16, 2)), "state_blocks": 1},
        {"kv_groups": ((48, 0), (32, 2))},
        {"kv_groups": ((16, 2), (16, 1)), "state_blocks": 1},
    ],
)
@pytest.mark.parametrize("blocks", range(-1, 6))
def test_prompt_has_room_in_so_many_blocks_exactly_up_to_the_longest_one(blocks: int, kinds: dict[str, Any]) -> None:
    instance = load("a", **kinds)
    fit = [tokens for tokens in range(300) if queued_demand_blocks(tokens, instance) <= blocks]
    longest = longest_prompt_tokens(blocks, instance)
    assert fit == [tokens for tokens in range(300) if tokens <= longest]


def test_windows_alone_set_no_limit_to_a_prompt_once_they_fit() -> None:
    windows = load("a", kv_groups=((16, 8), (32, 4)), total_blocks=12)
    assert longest_prompt_tokens(12, windows) == ANY_LENGTH
    assert longest_prompt_tokens(11, windows) == 7 * 16
    assert longest_prompt_tokens(12, load("a", kv_groups=((16, 8), (32, 0)))) == 4 * 32


@pytest.mark.parametrize(
    ("kinds", "tokens"),
    [
        ({}, 12 * 16),
        ({"state_blocks": 2}, 10 * 16),
        ({"state_blocks": 12}, 0),
        ({"kv_groups": ((16, 0),) * 4}, 3 * 16),
        ({"kv_groups": ((16, 0), (16, 4))}, 8 * 16),
        ({"kv_groups": ((16, 8), (32, 4))}, 8 * 16),
    ],
)
def test_tokens_of_so_many_blocks_are_those_of_one_request_in_all_kinds_of_them(
    kinds: dict[str, Any], tokens: int
) -> None:
    assert tokens_in(12, load("a", **kinds)) == tokens


def test_reason_is_a_sentence_with_the_numbers() -> None:
    best, next_best = Judged(InstanceId("a"), 12.345), Judged(InstanceId("b"), 3.0, has_room=False)
    reason = DispatchReason("freeness", (best, next_best), 16)
    assert str(reason) == "a has the best freeness of 16: 12.35 (next b: 3)"
    assert reason.chosen == "a"
    timed = DispatchReason("time to a first token", (best, next_best), 16, unit="s")
    assert str(timed) == "a has the best time to a first token of 16: 12.35 s (next b: 3 s)"
    only = DispatchReason("turn", (Judged(InstanceId("a"), 0.0),), 1)
    assert str(only) == "a has the best turn of 1: 0 (the only one that can take it)"


def test_measure_reads_the_way_people_count() -> None:
    assert POLICIES["llumnix-paper"].dispatch.number((-5.0, 1)) == 5.0
    assert POLICIES["vllm-dp"].dispatch.number((5, 0)) == 5
