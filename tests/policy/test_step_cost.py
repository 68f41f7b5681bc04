"""How soon a request has its first token, and how fast the others follow."""

from __future__ import annotations

import pytest

from llumnix.policy.snapshot import InstanceSnapshot, StepCost
from llumnix.policy.step_cost import first_token_s, step_s, token_s
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
    assert first_token_s(load(prefill_tokens=1000, decoding=520, step_tokens=520), 500) is not None, "no budget left"


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
