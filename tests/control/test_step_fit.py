"""What steps cost, as fitted to them: it comes to the truth, follows it, and says nothing absurd on the way."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.control.step_fit import FEWEST_STEPS, StepFit, StepLoad
from llumnix.policy.snapshot import StepCost
from llumnix.policy.step_cost import step_s

FAST = StepCost(fixed_ms=6.0, prefill_token_us=120.0, request_us=80.0, context_token_us=0.4)
SLOW = StepCost(fixed_ms=20.0, prefill_token_us=400.0, request_us=150.0, context_token_us=1.2)


def loads(rng: Random) -> Iterator[StepLoad]:
    """Of a batch that grows and shrinks, and computes a prompt in a third of its steps."""
    while True:
        decoding = rng.randint(0, 64)
        prompts = rng.randint(1, 2048) if rng.random() < 0.33 or not decoding else 0
        yield StepLoad(prompts, decoding, decoding * rng.randint(100, 3000))


def feed(fit: StepFit, cost: StepCost, steps: int, rng: Random, noise: float = 0.05) -> None:
    for _, load in zip(range(steps), loads(rng), strict=False):
        fit.add(load, step_s(cost, *load) * rng.lognormvariate(0, noise))


def off(fit: StepFit, cost: StepCost) -> float:
    """The largest relative error of what is expected of steps of many kinds."""
    assert fit.cost is not None
    kinds = [load for _, load in zip(range(200), loads(Random(99)), strict=False)]
    return max(abs(step_s(fit.cost, *load) / step_s(cost, *load) - 1) for load in kinds)


@pytest.mark.parametrize("cost", [FAST, SLOW])
def test_noisy_steps_are_fitted_within_a_few_percent(cost: StepCost) -> None:
    for seed in range(5):
        rng, fit = Random(seed), StepFit()
        feed(fit, cost, 200, rng)
        assert off(fit, cost) < 0.1


def test_steps_without_noise_give_the_very_numbers() -> None:
    fit = StepFit()
    feed(fit, FAST, 300, Random(0), noise=0.0)
    assert fit.cost is not None
    for name in FAST.__struct_fields__:
        assert getattr(fit.cost, name) == pytest.approx(getattr(FAST, name), rel=0.02)


def test_device_that_has_become_slower_is_believed_after_a_while() -> None:
    rng, fit = Random(1), StepFit()
    feed(fit, FAST, 1000, rng)
    feed(fit, SLOW, 500, rng)
    assert off(fit, SLOW) < 0.1
    feed(fit, FAST, 500, rng)
    assert off(fit, FAST) < 0.1


def test_steps_that_stood_still_hardly_count() -> None:
    rng, fit = Random(2), StepFit()
    feed(fit, FAST, 300, rng, noise=0.0)
    for _ in range(3):
        fit.add(StepLoad(0, 8, 4000), 30.0)
        fit.add(StepLoad(0, 8, 4000), 0.0)
        feed(fit, FAST, 20, rng, noise=0.0)
    assert off(fit, FAST) < 0.1


def test_nothing_is_said_of_an_engine_that_has_done_little() -> None:
    fit = StepFit()
    feed(fit, FAST, FEWEST_STEPS - 1, Random(3))
    assert fit.cost is None
    feed(fit, FAST, 1, Random(3))
    assert fit.cost is not None


@pytest.mark.parametrize("prompts", [0, 512])
def test_nothing_is_said_while_all_steps_are_alike(prompts: int) -> None:
    """Only decoding, or nothing but full chunks: what a token of a prompt costs cannot be told."""
    rng, fit = Random(4), StepFit()
    for _ in range(500):
        fit.add(StepLoad(prompts, 0, 0), 0.05 * rng.lognormvariate(0, 0.05))
    assert fit.cost is None


def test_what_prompts_cost_is_known_still_after_a_long_time_without() -> None:
    rng, fit = Random(5), StepFit()
    feed(fit, FAST, 300, rng, noise=0.0)
    for k in range(100_000):
        fit.add(StepLoad(0, 8, 4000 + k % 100), step_s(FAST, 0, 8, 4000 + k % 100))
    assert fit.cost is not None
    assert fit.cost.prefill_token_us == pytest.approx(FAST.prefill_token_us, rel=0.1)


def test_a_batch_that_never_changes_is_predicted_though_its_parts_are_not_told_apart() -> None:
    rng, fit = Random(6), StepFit()
    for k in range(300):
        load = StepLoad(256 if k % 5 == 0 else 0, 16, 16_000)
        fit.add(load, step_s(FAST, *load) * rng.lognormvariate(0, 0.05))
    assert fit.cost is not None
    assert step_s(fit.cost, 0, 16, 16_000) == pytest.approx(step_s(FAST, 0, 16, 16_000), rel=0.05)
    assert step_s(fit.cost, 256, 16, 16_000) == pytest.approx(step_s(FAST, 256, 16, 16_000), rel=0.05)


@given(
    st.lists(
        st.tuples(st.integers(0, 1 << 20), st.integers(0, 4096), st.integers(0, 1 << 24), st.floats(0, 1e6)),
        min_size=1,
        max_size=200,
    )
)
def test_no_number_is_ever_negative_or_endless(steps: list[tuple[int, int, int, float]]) -> None:
    fit = StepFit()
    for prompts, decoding, context, took_s in steps:
        fit.add(StepLoad(prompts, decoding, context), took_s)
        numbers = [*fit._s] if fit.cost is None else [getattr(fit.cost, name) for name in fit.cost.__struct_fields__]
        assert all(0 <= number < 1e15 for number in numbers)
