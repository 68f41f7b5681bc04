"""How soon a request has its first token, and how fast the others follow."""

from __future__ import annotations

from typing import Any

import pytest

from llumnix.policy.snapshot import InstanceSnapshot, StepCost
from llumnix.policy.step_cost import FEWEST_PROMPT_TOKENS, first_token_s, next_step_s, prompt_tokens, step_s, token_s
from llumnix.types import InstanceId

COST = StepCost(fixed_ms=10.0, prefill_token_us=100.0, request_us=500.0, context_token_us=1.0)


def load(**facts: object) -> InstanceSnapshot:
    usual = {"id": InstanceId("i"), "at": 0.0, "seq": 1, "total_blocks": 1000, "free_blocks": 1000, "step_cost": COST}
    return InstanceSnapshot(**{**usual, **facts})  # type: ignore[arg-type]


def test_step_is_the_sum_of_its_parts() -> None:
    assert step_s(COST, 0, 0, 0) == pytest.approx(0.010)
    assert step_s(COST, 200, 4, 3000) == pytest.approx(0.010 + 0.020 + 0.002 + 0.003)


def test_prompt_on_an_idle_instance_takes_its_own_time() -> None:
    assert first_token_s(load(), 1000) == pytest.approx(0.010 + 0.100)


def test_prompts_that_wait_are_computed_before() -> None:
    assert first_token_s(load(prefill_tokens=5000), 1000) == pytest.approx(0.010 + 0.600)


def test_each_step_that_the_budget_takes_carries_the_batch_along() -> None:
    busy = load(prefill_tokens=1000, decoding=20, context_tokens=10_000, step_tokens=520)
    assert first_token_s(busy, 500) == pytest.approx(3 * (0.010 + 0.010 + 0.010) + 0.150)


def test_prompt_behind_a_batch_that_takes_all_of_each_step_is_never_soon() -> None:
    """With nothing left for prompts it waits no less than with one token."""
    seconds = [first_token_s(load(decoding=520 - left, step_tokens=520), 500) for left in (2, 1, 0, -5)]
    assert None not in seconds
    assert seconds[0] < seconds[1] < seconds[2] < seconds[3]  # type: ignore[operator]
    assert first_token_s(load(decoding=520), 500) == pytest.approx(0.010 + 0.260 + 0.050), "the budget is not known"


def test_token_in_between_takes_a_step_of_the_batch() -> None:
    busy = load(running=20, decoding=20, context_tokens=10_000)
    assert token_s(busy) == pytest.approx(0.030)
    assert token_s(busy, more=1, tokens=500) == pytest.approx(0.031)


def test_those_that_will_decode_count_as_if_they_did() -> None:
    """Else a burst would all go where the batch has not grown yet."""
    burst = load(running=20, decoding=18, context_tokens=10_000, waiting=4, prefill_tokens=3000)
    assert token_s(burst) == pytest.approx(0.010 + 24 * 0.0005 + 0.013)


def test_nothing_is_said_of_an_instance_whose_steps_are_not_known() -> None:
    assert first_token_s(load(step_cost=None), 100) is None
    assert token_s(load(step_cost=None)) is None


def test_prompts_get_what_the_batch_leaves_of_the_time_between_two_tokens() -> None:
    batch = {"decoding": 20, "context_tokens": 10_000}  # a step of 30 ms
    assert prompt_tokens(COST, **batch, target_s=0.050, most=2000) == 150
    assert step_s(COST, 150, 20, 10_000) == pytest.approx(0.9 * 0.050), "and something is kept to spare"
    assert prompt_tokens(COST, **batch, target_s=0.050, most=100) == 100, "the engine's own limit"


def test_prompts_go_on_where_tokens_are_late_anyway() -> None:
    late = {"decoding": 200, "context_tokens": 10_000}
    assert prompt_tokens(COST, **late, target_s=0.050, most=2000) == FEWEST_PROMPT_TOKENS
    assert prompt_tokens(COST, **late, target_s=0.050, most=10) == 10


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"target_s": 0.0}, "no target"),
        ({"decoding": 0}, "nobody waits for a token"),
        ({"cost": None}, "nothing is known"),
        ({"cost": StepCost(fixed_ms=10, prefill_token_us=0, request_us=0, context_token_us=0)}, "prompts cost nothing"),
    ],
)
def test_nothing_is_held_back_for_nobody(changed: dict[str, Any], why: str) -> None:
    asked: dict[str, Any] = {"cost": COST, "decoding": 5, "context_tokens": 100, "target_s": 0.020, "most": 2000}
    assert prompt_tokens(**asked) < 2000
    assert prompt_tokens(**(asked | changed)) == 2000, why


def test_first_token_is_later_where_steps_hold_prompts_back() -> None:
    """The report says what a step computes at most, so whoever places requests knows."""
    busy = {"prefill_tokens": 1000, "decoding": 20, "context_tokens": 10_000}
    free, held_back = load(**busy, step_tokens=2048), load(**busy, step_tokens=220)
    assert first_token_s(free, 1000) == pytest.approx(0.030 + 0.200)
    assert first_token_s(held_back, 1000) == pytest.approx(10 * 0.030 + 0.200)


def test_all_takes_as_much_longer_as_the_latest_steps_did() -> None:
    busy = {"running": 20, "decoding": 20, "context_tokens": 10_000, "prefill_tokens": 300, "step_tokens": 520}
    usual, slow = load(**busy), load(**busy, slowdown=2.5)
    for seconds in (token_s, next_step_s, lambda each: first_token_s(each, 100)):
        assert seconds(slow) == pytest.approx(2.5 * (seconds(usual) or 0))
