"""Who runs where tokens come slowly goes to where they come faster, if there is room for it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from llumnix.config import PolicyConfig
from llumnix.policy.catalogue import find_policy
from llumnix.policy.pairing import Load, Pair, PairingTerms, Why, with_added, without
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot, StepCost
from llumnix.policy.step_cost import token_s
from llumnix.policy.straggling import pair_by_pace, stragglers
from llumnix.types import InstanceId, InstanceState, Role

COST = StepCost(fixed_ms=20.0, prefill_token_us=100.0, request_us=200.0, context_token_us=0.0)
TERMS = PairingTerms(migrate_out_freeness=3.0, migrate_in_freeness=3.0, pace_gain=1.5)


def load(id: str, **facts: Any) -> InstanceSnapshot:
    usual: dict[str, Any] = {
        "id": InstanceId(id),
        "at": 0.0,
        "seq": 1,
        "total_blocks": 1000,
        "free_blocks": 600,
        "running": 10,
        "smallest_running_blocks": 20,
        "step_cost": COST,
    }
    return InstanceSnapshot(**(usual | facts))


def pairs(*instances: InstanceSnapshot, terms: PairingTerms = TERMS, busy: tuple[str, ...] = ()) -> list[str]:
    found = pair_by_pace(ClusterSnapshot(at=0.0, instances=instances), terms, {InstanceId(name) for name in busy})
    return [f"{pair.source} {pair.target}" for pair in found.pairs]


def test_slow_engine_gives_to_one_that_is_not() -> None:
    assert pairs(load("a", slowdown=2.0), load("b")) == ["a b"]


def test_weaker_device_gives_to_a_better_one() -> None:
    weaker = StepCost(fixed_ms=40.0, prefill_token_us=200.0, request_us=400.0, context_token_us=0.0)
    assert pairs(load("a", step_cost=weaker), load("b")) == ["a b"]


def test_large_batch_gives_to_a_small_one_though_there_is_memory() -> None:
    assert pairs(load("a", running=100, smallest_running_blocks=1), load("b", running=2)) == ["a b"]


def test_what_one_more_costs_there_is_told_by_all_kinds_of_its_blocks() -> None:
    """It is 320 tokens long in four kinds of blocks: too long to be faster there, if each were one of tokens."""
    cost = StepCost(fixed_ms=20.0, prefill_token_us=100.0, request_us=0.0, context_token_us=10.0)
    usual: dict[str, Any] = {"step_cost": cost, "smallest_running_blocks": 80}
    assert pairs(load("a", slowdown=2.0, **usual), load("b", **usual)) == []
    usual["kv_groups"] = ((16, 0),) * 4
    assert pairs(load("a", slowdown=2.0, **usual), load("b", **usual)) == ["a b"]


def test_all_alike_keep_what_they_have() -> None:
    assert pairs(load("a"), load("b", running=30), load("c", slowdown=1.3)) == []


def test_all_slow_alike_keep_what_they_have() -> None:
    assert pairs(load("a", slowdown=2.0), load("b", slowdown=2.0)) == []


def test_slowest_gives_to_the_fastest_and_each_takes_one() -> None:
    slow = load("a", slowdown=2.0), load("b", slowdown=3.0), load("c", slowdown=2.5)
    assert pairs(*slow, load("d", running=5), load("e", running=1)) == ["b e", "c d"]


def test_who_takes_one_in_this_round_gives_none() -> None:
    """The fastest has no room for what the slowest gives."""
    slowest, slow = load("a", slowdown=8.0), load("b", slowdown=2.0, smallest_running_blocks=1)
    assert pairs(slowest, slow, load("c", free_blocks=19, running=1)) == ["a b"]


def test_those_that_exchange_requests_already_are_left_alone() -> None:
    assert pairs(load("a", slowdown=2.0), load("b"), load("c", running=12), busy=("b",)) == ["a c"]
    assert pairs(load("a", slowdown=2.0), load("b"), busy=("a",)) == []


def test_without_a_gain_to_look_for_nothing_moves() -> None:
    terms = PairingTerms(migrate_out_freeness=3.0, migrate_in_freeness=3.0)
    assert pairs(load("a", slowdown=9.0), load("b"), terms=terms) == []


@pytest.mark.parametrize(
    ("situation", "giver", "taker"),
    [
        ("nothing is known of its steps", {"step_cost": None}, {}),
        ("nothing is known of the other's", {}, {"step_cost": None}),
        ("it drains", {"state": InstanceState.DRAINING}, {}),
        ("the other drains", {}, {"state": InstanceState.DRAINING}),
        ("it is for prompts", {"role": Role.PREFILL}, {}),
        ("the other is for prompts", {}, {"role": Role.PREFILL}),
        ("nothing of it can move", {"pinned": True}, {}),
        ("it gives one already", {"outgoing": 1}, {}),
        ("the other takes one already", {}, {"incoming": 1}),
        ("the other has preempted", {}, {"preempted": 1, "waiting": 1}),
        ("no room", {}, {"free_blocks": 19}),
        ("all slots taken", {}, {"max_running": 10}),
        ("the other would be short of memory", {}, {"free_blocks": 50}),
        ("with it tokens would not come that much faster", {}, {"running": 46}),
    ],
)
def test_it_stays_when(situation: str, giver: dict[str, Any], taker: dict[str, Any]) -> None:
    assert pairs(load("a", slowdown=2.0), load("b", running=45)) == ["a b"], "else this shows nothing"
    assert pairs(load("a", **{"slowdown": 2.0} | giver), load("b", **taker)) == [], situation


def test_important_ones_leave_too_where_there_is_room_for_what_all_hold() -> None:
    important = load("a", slowdown=2.0, high_running=10, smallest_running_blocks=0)
    cluster = ClusterSnapshot(at=0.0, instances=(important, load("b")))
    (pair,) = pair_by_pace(cluster, TERMS, set()).pairs
    assert (pair.target, pair.wanted.by_pace) == ("b", True)
    assert pairs(important, load("b", free_blocks=39)) == [], "they hold 40 blocks each"


def test_stragglers_are_those_where_one_more_would_wait_so_much_longer() -> None:
    instances = load("a", slowdown=2.0), load("b"), load("c", running=0), load("d", step_cost=None)
    assert stragglers(instances, 1.5) == {"a"}
    assert stragglers(instances, 1.05) == {"a", "b"}
    assert stragglers(instances, 0.0) == stragglers([], 1.5) == set()


def test_what_was_seen_bounds_what_is_believed() -> None:
    """Where all batches were alike the split of a fit is any: one of nothing but requests says that an idle engine is
    fast, one of nothing but a constant that a large batch is."""
    by_request = StepCost(fixed_ms=0.0, prefill_token_us=100.0, request_us=4000.0, context_token_us=0.0)
    idle = load("b", running=0, smallest_running_blocks=0, step_cost=by_request)
    assert pairs(load("a"), idle) == ["a b"]
    assert pairs(load("a"), replace(idle, shortest_step_s=0.021)) == []
    assert pairs(load("a", step_cost=by_request), load("b", running=2)) == ["a b"]
    assert pairs(load("a", step_cost=by_request, step_s=0.025), load("b", running=2)) == []


def test_refused_pairs_and_those_with_nothing_to_give_wait() -> None:
    a, b = InstanceId("a"), InstanceId("b")
    backing_off = PairingTerms(
        migrate_out_freeness=3.0, migrate_in_freeness=3.0, pace_gain=1.5, backing_off=frozenset({(a, b)})
    )
    assert pairs(load("a", slowdown=2.0), load("b"), load("c", running=12), terms=backing_off) == ["a c"]
    empty = PairingTerms(migrate_out_freeness=3.0, migrate_in_freeness=3.0, pace_gain=1.5, empty_handed={a})
    assert pairs(load("a", slowdown=2.0), load("b"), terms=empty) == []


def test_why_is_said_in_both_cases() -> None:
    cluster = ClusterSnapshot(at=0.0, instances=(load("a", slowdown=2.0), load("b"), load("c", slowdown=2.0)))
    found = pair_by_pace(cluster, TERMS, set())
    assert [str(pair) for pair in found.pairs] == ["a token every 44 ms, and every 22.2 ms with it there"]
    full = ClusterSnapshot(at=0.0, instances=(load("a", slowdown=2.0), load("b", free_blocks=10)))
    (no,) = pair_by_pace(full, TERMS, set()).rejected
    assert (no.why, str(no)) == (Why.NO_ROOM, "a to b: the target has no room for the request (20, then 10)")


def test_memory_comes_first_and_the_paper_knows_nothing_of_it() -> None:
    tight = load("a", free_blocks=20), load("b", free_blocks=990, running=0), load("c", slowdown=3.0)
    config = PolicyConfig()
    ours = find_policy("llumnix")
    assert ours.pairing is not None
    found = ours.pairing(ClusterSnapshot(at=0.0, instances=tight), ours.pairing_terms(config))
    assert [(pair.source, pair.wanted.by_pace) for pair in found.pairs] == [("a", False)], "b is taken"
    assert find_policy("llumnix-paper").pairing_terms(config).pace_gain == 0


facts = st.fixed_dictionaries(
    {
        "running": st.integers(1, 100),
        "slowdown": st.sampled_from([1.0, 1.3, 2.0, 8.0]),
        "free_blocks": st.integers(0, 1000),
        "smallest_running_blocks": st.integers(0, 30),
        "context_tokens": st.integers(0, 100_000),
    }
)


@given(st.lists(facts, min_size=2, max_size=6))
def test_no_move_calls_for_its_way_back(all_facts: list[dict[str, Any]]) -> None:
    cost = StepCost(fixed_ms=20.0, prefill_token_us=100.0, request_us=200.0, context_token_us=0.3)
    instances = {InstanceId(f"i{n}"): load(f"i{n}", step_cost=cost, **each) for n, each in enumerate(all_facts)}
    found = pair_by_pace(ClusterSnapshot(at=0.0, instances=tuple(instances.values())), TERMS, set())
    assert len({end for pair in found.pairs for end in (pair.source, pair.target)}) == 2 * len(found.pairs)
    for pair in found.pairs:
        giver, taker = instances[pair.source], instances[pair.target]
        moved = Load(giver.smallest_running_blocks, queued=False)
        back = pair_by_pace(
            ClusterSnapshot(at=0.0, instances=(without(giver, moved), with_added(taker, moved))), TERMS, set()
        )
        assert not any(_is_back(pair, each) for each in back.pairs)
        here_s, there_s = token_s(giver), token_s(with_added(taker, moved))
        assert here_s is not None
        assert there_s is not None
        assert there_s < here_s


def _is_back(pair: Pair, other: Pair) -> bool:
    return (other.source, other.target) == (pair.target, pair.source)
