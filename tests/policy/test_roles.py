"""Instances for prompts and for tokens: who takes what, and where a request makes its tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.config import PolicyConfig, ScalingConfig
from llumnix.control.dispatcher import Dispatch, Dispatcher
from llumnix.policy.autoscaling import ScaleIn, ScalingState, Stay, scale
from llumnix.policy.defragmentation import pair_and_make_room
from llumnix.policy.dispatch import DispatchRequest
from llumnix.policy.pairing import PairingTerms
from llumnix.policy.relief import find_relief
from llumnix.policy.roles import HomeTerms, find_homes
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot, StepCost
from llumnix.policy.step_cost import token_s
from llumnix.policy.virtual_usage import room_blocks
from llumnix.types import HIGH, NORMAL, InstanceId, InstanceState, RequestId, Role

COST = StepCost(fixed_ms=10.0, prefill_token_us=100.0, request_us=500.0, context_token_us=1.0)
TERMS = HomeTerms(moves=16, max_incoming=16)
PAIRING = PairingTerms(migrate_out_freeness=3.0, migrate_in_freeness=3.0)


def load(name: str, role: Role = Role.MIXED, **facts: Any) -> InstanceSnapshot:
    usual = {"total_blocks": 1000, "free_blocks": 1000, "step_cost": COST, "step_tokens": 2048, "role": role}
    return InstanceSnapshot(id=InstanceId(name), at=0.0, seq=1, **{**usual, **facts})


def prompts(name: str = "p", **facts: Any) -> InstanceSnapshot:
    return load(name, Role.PREFILL, **facts)


def tokens(name: str = "d", running: int = 0, **facts: Any) -> InstanceSnapshot:
    usual = {"running": running, "decoding": running, "context_tokens": 500 * running, "tpot_target_s": 0.030}
    return load(name, Role.DECODE, **{**usual, **facts})


LEAVING = prompts(running=1, to_decode=1, to_decode_blocks=20, prefill_tokens=3000)


def dealt(giver: InstanceSnapshot, *takers: InstanceSnapshot, terms: HomeTerms = TERMS) -> dict[str, int]:
    return {home.target: home.wanted.count for home in find_homes(giver, takers, terms)}


# where tokens are made


def test_request_makes_its_tokens_where_they_come_fastest() -> None:
    (home,) = find_homes(LEAVING, (tokens("full", 20), tokens("empty", 2), prompts("other")), TERMS)
    assert home.wanted.to_decode
    assert str(home) == "tokens are made elsewhere: 12.8 ms a token at empty, 215 ms a step here"


def test_requests_are_dealt_out_one_by_one() -> None:
    many = prompts(running=4, to_decode=4, to_decode_blocks=80)
    assert dealt(many, tokens("a", 3), tokens("b", 4)) == {"a": 3, "b": 1}
    assert dealt(many, tokens("a", 3, incoming=9), tokens("b", 4)) == {"b": 4}, "those on their way in count"
    assert dealt(many, tokens("a", 3), terms=HomeTerms(moves=3, max_incoming=16)) == {"a": 3}
    assert dealt(many, tokens("a", 3, incoming=1), terms=HomeTerms(moves=9, max_incoming=3)) == {"a": 2}


def test_mixed_one_takes_whom_no_instance_for_tokens_can() -> None:
    assert dealt(LEAVING, load("mixed"), tokens("d", 5)) == {"d": 1}
    assert dealt(LEAVING, load("mixed"), tokens("d", 5, free_blocks=24)) == {"mixed": 1}


@pytest.mark.parametrize(
    ("why", "taker"),
    [
        ("its tokens would be late", tokens(running=40)),
        ("a block for each of its own is to be left", tokens(running=9, free_blocks=28)),
        ("it has preempted somebody", tokens(preempted=1)),
        ("it runs short itself", tokens(short_blocks=1)),
        ("its batch is full", tokens(running=5, max_running=5)),
        ("it drains", tokens(state=InstanceState.DRAINING)),
        ("it is for prompts, too", prompts("other")),
    ],
)
def test_whom_nobody_can_take_stays(why: str, taker: InstanceSnapshot) -> None:
    assert dealt(LEAVING, taker) == {}, why
    assert dealt(LEAVING, taker, tokens("other")) == {"other": 1}


def test_refused_pair_is_left_alone_for_a_while() -> None:
    terms = HomeTerms(moves=1, max_incoming=1, backing_off={(InstanceId("p"), InstanceId("d"))})
    assert dealt(LEAVING, tokens("d"), terms=terms) == {}


def test_of_those_of_whose_steps_nothing_is_known_the_one_with_the_fewest_requests_takes_it() -> None:
    unknown: dict[str, Any] = {"step_cost": None}
    many = prompts(running=4, to_decode=4, to_decode_blocks=80, **unknown)
    assert dealt(many, tokens("a", 9, **unknown), tokens("b", 3, **unknown)) == {"b": 4}
    assert dealt(many, tokens("a", 3, **unknown), tokens("b", 4, **unknown)) == {"a": 3, "b": 1}
    assert dealt(many, tokens("a", 3, incoming=2, **unknown), tokens("b", 4, **unknown)) == {"a": 2, "b": 2}


def test_one_of_whose_steps_nothing_is_known_is_taken_to_be_like_the_others() -> None:
    """Such as one that never computes a prompt."""
    assert dealt(LEAVING, tokens("a", 20, step_cost=None), tokens("b", 2)) == {"b": 1}
    assert dealt(LEAVING, tokens("a", 2), tokens("b", 20, step_cost=None)) == {"a": 1}
    longer: dict[str, Any] = {"step_cost": None, "context_tokens": 9000}
    assert dealt(LEAVING, tokens("a", 2, **longer), tokens("b", 3, step_cost=None)) == {"b": 1}, "as the giver says"
    late = tokens("a", 60, step_cost=None)
    assert dealt(LEAVING, late) == {"a": 1}, "its target counts once it knows"


def test_length_of_who_comes_is_told_by_all_kinds_of_its_blocks() -> None:
    """It is 320 tokens long: with them a token takes 10.82 ms, with 80 blocks of tokens it would take 11.78."""
    kinds: dict[str, Any] = {"kv_groups": ((16, 0),) * 4}
    leaving = prompts(running=1, to_decode=1, to_decode_blocks=80, **kinds)
    assert dealt(leaving, tokens("d", tpot_target_s=0.0109, **kinds)) == {"d": 1}
    assert dealt(leaving, tokens("d", tpot_target_s=0.0108, **kinds)) == {}


def test_nothing_is_known_of_steps_yet_and_room_decides() -> None:
    (home,) = find_homes(LEAVING, (tokens(step_cost=None),), TERMS)
    assert str(home) == "tokens are made at d, where 20 blocks are kept for them"


@given(
    leaving=st.integers(1, 12),
    blocks=st.integers(1, 40),
    takers=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 300), st.integers(0, 3)), max_size=5),
)
def test_nobody_is_given_more_than_fits_and_comes_in_time(
    leaving: int, blocks: int, takers: list[tuple[int, int, int]]
) -> None:
    giver = prompts(running=leaving, to_decode=leaving, to_decode_blocks=leaving * blocks)
    known = {
        f"d{n}": tokens(f"d{n}", running, free_blocks=free, incoming=incoming)
        for n, (running, free, incoming) in enumerate(takers)
    }
    homes = find_homes(giver, known.values(), TERMS)
    assert sum(home.wanted.count for home in homes) <= leaving
    for home in homes:
        taker, count = known[home.target], home.wanted.count
        assert home.wanted.room_blocks is not None
        assert count * blocks <= home.wanted.room_blocks <= room_blocks(taker) - taker.running
        more = count + taker.incoming
        later_s = token_s(taker, more=more, tokens=more * blocks * taker.block_tokens)
        assert later_s is not None
        assert later_s <= 0.030


# who takes prompts


def dispatched(request: int, *instances: InstanceSnapshot, priority: int = NORMAL) -> Dispatch:
    dispatcher = Dispatcher(PolicyConfig())
    for each in instances:
        dispatcher.on_report(each)
    made = dispatcher.dispatch(DispatchRequest(RequestId("r"), request, priority))  # type: ignore[arg-type]
    assert made is not None
    return made


def placed(request: int, *instances: InstanceSnapshot, priority: int = NORMAL) -> str:
    return dispatched(request, *instances, priority=priority).instance


HELD_BACK = tokens(running=4, step_tokens=204)
"""It computes 200 tokens of prompts a step."""
BUSY = prompts(prefill_tokens=20_000, waiting=9)


def test_prompt_goes_to_an_instance_for_prompts_however_many_decode_there() -> None:
    crowded = prompts(running=30, decoding=30, context_tokens=3000)
    assert placed(900, crowded, load("mixed", prefill_tokens=500)) == "p"


def test_prompt_goes_to_an_instance_for_tokens_that_is_sooner_with_what_its_target_leaves() -> None:
    """It computes 1,000 tokens in five steps of some 36 ms; who computes prompts takes 100 ms, if nobody waits."""
    assert placed(1000, prompts(prefill_tokens=300), HELD_BACK) == "p"
    assert placed(1000, prompts(prefill_tokens=1500), HELD_BACK) == "d"
    assert placed(4000, prompts(prefill_tokens=1500), HELD_BACK) == "p"


def test_instance_for_tokens_without_a_target_takes_no_prompts() -> None:
    made = dispatched(10, BUSY, tokens(tpot_target_s=0.0))
    assert made.instance == "p"
    assert str(made.reason) == "p has the best time to a first token of 2: 2.101 s (next d: 0.011 s, for tokens)"


UNAIMED = tokens(tpot_target_s=0.0)
"""It takes prompts only where no other can."""


def test_prompt_waits_for_memory_rather_than_go_to_an_instance_for_tokens_that_has_room() -> None:
    made = dispatched(1000, prompts("p", free_blocks=10), prompts("q", free_blocks=20), UNAIMED)
    assert str(made.reason) == "q has the best freeness of 3: 20 (next p: 10)"
    told = [(one.instance, one.has_room, one.for_tokens) for one in made.reason.candidates]
    assert told == [("q", False, False), ("p", False, False), ("d", True, True)]
    assert placed(1000, load("mixed", free_blocks=10), UNAIMED) == "mixed"
    assert placed(1000, load("mixed", total_blocks=60, free_blocks=60), UNAIMED) == "d", "it fits nowhere else"


def test_prompt_does_not_go_to_an_instance_for_tokens_while_nothing_is_known_of_steps() -> None:
    unknown: dict[str, Any] = {"step_cost": None}
    free = [tokens(f"d{number}", tpot_target_s=0.0, **unknown) for number in range(40)]
    made = dispatched(10, prompts(free_blocks=100, **unknown), *free)
    assert str(made.reason) == "p has the best freeness of 41: 100 (next d0: 1000, for tokens)"
    assert placed(1000, prompts(free_blocks=10, **unknown), *free) == "p", "it waits for memory"
    assert placed(10, *free) == "d0"
    aimed = tokens(free_blocks=200, **unknown)
    assert placed(10, prompts(free_blocks=100, **unknown), aimed) == "d", "its target leaves time for it"
    assert placed(10, prompts(free_blocks=100, **unknown), aimed, priority=HIGH) == "p"


def test_important_one_is_not_kept_waiting_by_a_target() -> None:
    made = dispatched(3000, prompts(free_blocks=500), HELD_BACK, priority=HIGH)
    assert made.instance == "p"
    assert str(made.reason).endswith(" (next d: 25, for tokens)")


def test_instances_for_tokens_take_all_where_there_are_no_others() -> None:
    assert placed(3000, HELD_BACK) == "d"
    assert placed(3000, HELD_BACK, priority=HIGH) == "d"


# what else moves


def cluster(*instances: InstanceSnapshot) -> ClusterSnapshot:
    return ClusterSnapshot(at=100.0, instances=instances)


FULL: dict[str, Any] = {"free_blocks": 20, "running": 40, "smallest_running_blocks": 5}


def test_requests_are_not_paired_with_instances_for_prompts() -> None:
    full = load("full", **FULL)
    free: dict[str, Any] = {"free_blocks": 900, "running": 5}
    assert [pair.target for pair in pair_and_make_room(cluster(full, load("x", **free)), PAIRING).pairs] == ["x"]
    assert pair_and_make_room(cluster(full, prompts("x", **free)), PAIRING).pairs == ()
    blocked: dict[str, Any] = {
        "free_blocks": 60,
        "running": 20,
        "waiting": 2,
        "head_of_line_blocks": 90,
        "queued_blocks": 100,
    }
    blocked["smallest_running_blocks"] = 300
    piece: dict[str, Any] = {"free_blocks": 80, "running": 25}
    assert pair_and_make_room(cluster(load("full", **blocked), load("x", **piece)), PAIRING).pairs
    assert pair_and_make_room(cluster(load("full", **blocked), prompts("x", **piece)), PAIRING).pairs == ()


def test_relief_does_not_come_from_instances_for_prompts() -> None:
    short = load("full", **FULL, short_blocks=3)
    pair = find_relief(short, (prompts("p"), load("mixed", free_blocks=900, running=3)), PAIRING)
    assert pair is not None
    assert pair.target == "mixed"
    assert find_relief(short, (prompts("p"),), PAIRING) is None


@pytest.mark.parametrize(
    ("instances", "leaver"),
    [
        ((prompts("p"), tokens("d", 5), load("m", running=9)), "m"),
        ((prompts("p"), tokens("d1", 5), tokens("d2", 6)), "d1"),
        ((prompts("p"), tokens("d", 5)), None),
    ],
)
def test_scaling_in_leaves_one_of_each_role(instances: tuple[InstanceSnapshot, ...], leaver: str | None) -> None:
    config = ScalingConfig(scale_window_s=5.0, min_instances=1, max_instances=8)
    decision, _ = scale(cluster(*instances), 0, ScalingState(high_since_s=95.0), config)
    assert isinstance(decision, Stay if leaver is None else ScaleIn)
    assert leaver is None or (isinstance(decision, ScaleIn) and decision.instance == leaver)
