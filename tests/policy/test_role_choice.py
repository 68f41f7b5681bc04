"""How many instances are to be for prompts, and whose role changes."""

from __future__ import annotations

from math import isfinite
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from llumnix.policy.role_choice import ENOUGH, Demand, Outlook, RoleTargets, choose_roles, foresee
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot, StepCost
from llumnix.types import InstanceId, InstanceState, Role

SHORT_STEPS = StepCost(fixed_ms=11.0, prefill_token_us=81.0, request_us=24.0, context_token_us=0.09)
"""Of a large model with grouped queries: mostly weights."""
GROWING_STEPS = StepCost(fixed_ms=11.0, prefill_token_us=81.0, request_us=24.0, context_token_us=1.2)
FAST = RoleTargets(ttft_s=1.0, tpot_s=0.030)
EASY = RoleTargets(ttft_s=2.0, tpot_s=0.200)


def asked(prompts: float, prompt: int = 1155, output: int = 211) -> Demand:
    return Demand(prompts_per_s=prompts, prompt_tokens_per_s=prompts * prompt, tokens_per_s=prompts * output)


def wanted(demand: Demand, targets: RoleTargets = FAST, cost: StepCost = SHORT_STEPS, instances: int = 8) -> Outlook:
    """As `choose_roles` would have it, if nobody had a role yet."""
    outlooks = [foresee(k, instances, cost, 1250, demand, targets) for k in range(instances)]
    return next((each for each in outlooks if each.score <= ENOUGH), min(outlooks, key=lambda each: each.score))


def load(name: str, role: Role = Role.MIXED, **facts: Any) -> InstanceSnapshot:
    usual = {"total_blocks": 1000, "free_blocks": 1000, "step_cost": SHORT_STEPS, "decoding": 20, "role": role}
    usual |= {"running": 20, "context_tokens": 25_000}
    return InstanceSnapshot(id=InstanceId(name), at=0.0, seq=1, **{**usual, **facts})


def cluster(*instances: InstanceSnapshot) -> ClusterSnapshot:
    return ClusterSnapshot(at=100.0, instances=instances)


def test_no_instance_is_for_prompts_alone_where_all_is_well() -> None:
    assert wanted(asked(2)).for_prompts == 0
    assert wanted(asked(30), EASY).for_prompts == 0


def test_tokens_that_must_be_fast_call_for_instances_for_prompts() -> None:
    assert 2 <= wanted(asked(36)).for_prompts <= 5


def test_roles_do_not_pay_where_steps_grow_with_the_batch() -> None:
    few = wanted(asked(20), RoleTargets(ttft_s=1.0, tpot_s=0.050), GROWING_STEPS)
    assert few.for_prompts <= 2


@given(prompts=st.floats(1, 100), output=st.integers(10, 400), more=st.floats(1, 3))
def test_more_prompts_never_make_fewer_instances_for_them(prompts: float, output: int, more: float) -> None:
    """While the targets can be met: beyond that it is the least bad choice, of whatever size."""
    base = asked(prompts, output=output)
    denser = Demand(
        prompts_per_s=base.prompts_per_s,
        prompt_tokens_per_s=base.prompt_tokens_per_s * more,
        tokens_per_s=base.tokens_per_s,
    )
    before, after = wanted(base), wanted(denser)
    if after.score <= ENOUGH:
        assert before.score <= ENOUGH
        assert after.for_prompts >= before.for_prompts


@given(
    for_prompts=st.integers(0, 7),
    prompts=st.floats(0.01, 1e4),
    prompt=st.integers(1, 100_000),
    output=st.integers(0, 10_000),
    fixed_ms=st.floats(0, 1000),
)
def test_outlook_is_a_number_whatever_is_asked(
    for_prompts: int, prompts: float, prompt: int, output: int, fixed_ms: float
) -> None:
    cost = StepCost(fixed_ms=fixed_ms, prefill_token_us=81.0, request_us=24.0, context_token_us=0.09)
    outlook = foresee(for_prompts, 8, cost, 1000, asked(prompts, prompt, output), FAST)
    assert isfinite(outlook.score)
    assert outlook.first_token_s >= 0


def test_first_one_begins_with_prompts_and_the_others_are_for_tokens() -> None:
    instances = [load(f"i{n}", free_blocks=900 - n) for n in range(8)]
    choice = choose_roles(cluster(*instances), asked(36), FAST)
    assert choice is not None
    assert choice.changes == {each.id: Role.PREFILL if each.id == "i0" else Role.DECODE for each in instances}, (
        "the one with least to give away begins with prompts"
    )
    assert choice.reason.startswith("1 more for prompts, ")
    assert choice.reason.endswith(" ms (target 30)")


def test_next_change_leaves_the_others_alone() -> None:
    instances = [load("i0", Role.PREFILL, free_blocks=1000)]
    instances += [load(f"i{n}", Role.DECODE, free_blocks=900 - n) for n in range(1, 8)]
    choice = choose_roles(cluster(*instances), asked(36), FAST)
    assert choice is not None
    assert choice.changes == {InstanceId("i1"): Role.PREFILL}


def test_half_of_those_too_many_go_back_to_tokens() -> None:
    instances = [load(f"i{n}", Role.PREFILL, prefill_tokens=1000 - n) for n in range(6)]
    instances += [load(f"i{n}", Role.DECODE) for n in (6, 7)]
    choice = choose_roles(cluster(*instances), asked(36), FAST)
    assert choice is not None
    assert choice.changes == {InstanceId("i4"): Role.DECODE, InstanceId("i5"): Role.DECODE}
    assert choice.reason.startswith("2 fewer for prompts, ")


def test_half_of_those_missing_begin_with_prompts() -> None:
    instances = [load(f"i{n}", free_blocks=900 - n) for n in range(8)]
    choice = choose_roles(cluster(*instances), asked(34, prompt=2000, output=26), FAST)
    assert choice is not None
    assert [name for name, role in choice.changes.items() if role is Role.PREFILL] == ["i0", "i1", "i2"]
    assert choice.reason.startswith("3 more for prompts, 5 are wanted")


def test_prompts_that_wait_are_asked_for_too() -> None:
    """Else who has just as many for prompts as are needed never catches up."""
    instances = [load(f"i{n}", Role.PREFILL, prefill_tokens=80_000) for n in range(4)]
    instances += [load(f"i{n}", Role.DECODE) for n in range(4, 8)]
    assert choose_roles(cluster(*(replace(each, prefill_tokens=0) for each in instances)), asked(28), FAST) is None
    choice = choose_roles(cluster(*instances), asked(28), FAST)
    assert choice is not None
    assert Role.PREFILL in choice.changes.values()


def test_last_one_for_prompts_leaves_all_mixed() -> None:
    instances = [load("i0", Role.PREFILL), load("i1", Role.DECODE)]
    heavy = Demand(prompts_per_s=1.0, prompt_tokens_per_s=100.0, tokens_per_s=2400.0)
    choice = choose_roles(cluster(*instances), heavy, RoleTargets(ttft_s=1.0, tpot_s=0.020))
    assert choice is not None
    assert set(choice.changes.values()) == {Role.MIXED}


@pytest.mark.parametrize(
    ("why", "instances", "demand"),
    [
        ("all is well", [load("a"), load("b")], asked(1)),
        ("nobody asks for anything", [load("a"), load("b")], asked(0)),
        ("nothing is known of steps", [load("a", step_cost=None), load("b", step_cost=None)], asked(99)),
        ("there is only one", [load("a")], asked(99)),
        ("the other one drains", [load("a"), load("b", state=InstanceState.DRAINING)], asked(99)),
    ],
)
def test_nothing_changes_without_a_reason(why: str, instances: list[InstanceSnapshot], demand: Demand) -> None:
    assert choose_roles(cluster(*instances), demand, FAST) is None, why
