"""vLLM's scheduler with a target for the time between two tokens: how much of a prompt it plans beside who decodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("vllm")

from small_engine import BLOCK_TOKENS, SmallEngine
from test_load_report import report

from llumnix.control.step_fit import StepFit
from llumnix.policy.snapshot import StepCost
from llumnix.policy.step_cost import FEWEST_PROMPT_TOKENS

COST = StepCost(fixed_ms=10.0, prefill_token_us=100.0, request_us=0.0, context_token_us=0.0)
LIMIT = 140
"""Of the engine, in tokens a step."""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallEngine]:
    monkeypatch.setattr(StepFit, "add", lambda *_: None)  # of what these steps take nothing follows
    made = SmallEngine()
    made.scheduler.max_num_scheduled_tokens = LIMIT
    made.scheduler.watch._fit.cost = COST
    yield made
    made.close()


def planned(engine: SmallEngine) -> dict[str, int]:
    """Tokens of each request in the next step, which ends."""
    output = engine.scheduler.schedule()
    engine.finish(output)
    return dict(output.num_scheduled_tokens)


def begin(engine: SmallEngine, target_ms: float) -> None:
    """One that decodes, and a long prompt behind it."""
    engine.scheduler.limits.target_s = target_ms / 1e3
    engine.add("decodes", 0, prompt_tokens=BLOCK_TOKENS)
    engine.step()
    engine.add("long", 0, prompt_tokens=9 * BLOCK_TOKENS)


def test_prompt_gets_what_is_left_of_the_target(engine: SmallEngine) -> None:
    begin(engine, target_ms=18.9)
    assert report(engine).step_tokens == 71, "who places requests is told"
    assert planned(engine) == {"decodes": 1, "long": 70}
    assert planned(engine) == {"decodes": 1, "long": 70}


@pytest.mark.parametrize(("target_ms", "of_prompts"), [(18.9, 70), (0, LIMIT - 4)])
def test_what_drafts_leave_to_prompts_is_told(engine: SmallEngine, target_ms: float, of_prompts: int) -> None:
    begin(engine, target_ms)
    engine.scheduler.num_spec_tokens = 3
    told = report(engine)
    assert (told.decoding, told.step_tokens - told.decoding) == (1, of_prompts)


@pytest.mark.parametrize(
    ("flag", "value", "next_step"),
    [
        ("enable_chunked_prefill", False, {"decodes": 1}),
        ("disable_chunked_mm_input", True, {"decodes": 1, "long": LIMIT - 1}),
    ],
)
def test_target_cuts_nothing_where_vllm_computes_prompts_or_images_as_a_whole(
    engine: SmallEngine, caplog: pytest.LogCaptureFixture, flag: str, value: bool, next_step: dict[str, int]
) -> None:
    setattr(engine.scheduler.scheduler_config, flag, value)
    begin(engine, target_ms=18.9)
    assert report(engine).step_tokens == LIMIT
    assert planned(engine) == next_step
    assert "does nothing here" in caplog.text


def test_prompt_goes_on_under_a_target_that_cannot_be_met(engine: SmallEngine) -> None:
    begin(engine, target_ms=5)
    assert planned(engine) == {"decodes": 1, "long": FEWEST_PROMPT_TOKENS}


@pytest.mark.parametrize("target_ms", [0, 1000])
def test_without_a_target_or_with_a_loose_one_the_engines_limit_holds(engine: SmallEngine, target_ms: float) -> None:
    begin(engine, target_ms)
    assert report(engine).step_tokens == LIMIT
    assert planned(engine) == {"decodes": 1, "long": LIMIT - 1}


def test_whole_limit_is_a_prompts_where_nobody_decodes(engine: SmallEngine) -> None:
    engine.scheduler.limits.target_s = 0.005
    engine.add("long", 0, prompt_tokens=9 * BLOCK_TOKENS)
    assert planned(engine) == {"long": LIMIT}


def test_one_that_decodes_behind_a_prompt_gets_its_token(engine: SmallEngine) -> None:
    """As those are that came by migration while the prompt was computed."""
    begin(engine, target_ms=18.9)
    planned(engine)
    engine.scheduler.running.reverse()
    assert planned(engine) == {"long": 70, "decodes": 1}


def test_limits_are_vllms_own_again_after_each_step(engine: SmallEngine) -> None:
    begin(engine, target_ms=18.9)
    config = engine.scheduler.scheduler_config
    config.long_prefill_token_threshold = 66
    assert planned(engine) == {"decodes": 1, "long": 66}, "the smaller one holds"
    assert engine.scheduler.max_num_scheduled_tokens == LIMIT
    assert config.long_prefill_token_threshold == 66
