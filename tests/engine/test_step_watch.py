"""From when to when a step lasts, and what of it is prompts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from small_engine import SmallEngine
from vllm.v1.request import RequestStatus

from llumnix.control.step_fit import StepFit, StepLoad
from llumnix.engine.vllm.instance import step_watch
from llumnix.engine.vllm.instance.core import LlumnixEngineCore
from llumnix.engine.vllm.instance.step_watch import StepWatch, load_of

LOAD = StepLoad(10, 1, 100)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def lasted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the steps lasted that were taken note of."""
    seen: list[float] = []
    monkeypatch.setattr(StepFit, "add", lambda _, load, took_s: seen.append(round(took_s, 6)))
    return seen


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(step_watch, "monotonic", made)
    return made


def test_step_after_a_rest_lasts_from_when_it_was_given_out(clock: Clock, lasted: list[float]) -> None:
    watch = StepWatch()
    watch.begins(LOAD)
    clock.now_s += 0.02
    watch.ends()
    watch.rests()
    clock.now_s += 5
    watch.begins(LOAD)
    clock.now_s += 0.03
    watch.ends()
    assert lasted == [0.02, 0.03]


def test_what_the_host_does_between_two_steps_counts(clock: Clock, lasted: list[float]) -> None:
    watch = StepWatch()
    watch.begins(LOAD)
    clock.now_s += 0.02
    watch.ends()
    clock.now_s += 0.004
    watch.begins(LOAD)
    clock.now_s += 0.02
    watch.ends()
    assert lasted == [0.02, 0.024]


def test_step_that_was_given_out_while_another_ran_lasts_from_the_end_of_that(
    clock: Clock, lasted: list[float]
) -> None:
    watch = StepWatch()
    watch.begins(LOAD)
    clock.now_s += 0.001
    watch.begins(LOAD)
    clock.now_s += 0.019
    watch.ends()
    clock.now_s += 0.02
    watch.ends()
    assert lasted == [0.02, 0.02]


def test_step_in_flight_lasts_from_the_end_of_the_one_before_though_nothing_follows_it(
    clock: Clock, lasted: list[float]
) -> None:
    watch = StepWatch()
    watch.begins(LOAD)
    watch.begins(LOAD)
    clock.now_s += 0.02
    watch.ends()
    watch.rests()
    clock.now_s += 0.03
    watch.ends()
    assert lasted == [0.02, 0.03]


def step(engine: SmallEngine, clock: Clock) -> None:
    """Of 20 ms, if there is anything to compute."""
    output = engine.scheduler.schedule()
    if output.total_num_scheduled_tokens:
        clock.now_s += 0.02
    engine.finish(output)


def test_waiting_for_a_grammar_is_no_step(engine: SmallEngine, clock: Clock, lasted: list[float]) -> None:
    engine.add("over", 0, prompt_tokens=16, output_tokens=1)
    waits = engine.make("waits", 0, prompt_tokens=16)
    waits.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    engine.scheduler.add_request(waits)
    for _ in range(3):
        step(engine, clock)
    clock.now_s += 5
    waits.status = RequestStatus.WAITING
    step(engine, clock)
    assert engine.running == ["waits"]
    assert lasted == [0.02, 0.02]


def test_pause_is_no_step(engine: SmallEngine, clock: Clock, lasted: list[float]) -> None:
    """It comes between two steps, and the engine falls asleep."""
    engine.add("runs", 0, prompt_tokens=16)
    step(engine, clock)
    core: Any = object.__new__(LlumnixEngineCore)
    core.scheduler = engine.scheduler
    core._office = SimpleNamespace(stillness=SimpleNamespace(now=False), before_sleep=lambda: None)
    core._notify_idle_state_callbacks()
    clock.now_s += 5
    step(engine, clock)
    assert lasted == [0.02, 0.02]


def test_engine_whose_steps_have_become_longer_says_so(clock: Clock) -> None:
    watch = StepWatch()

    def steps(count: int, times: float) -> float:
        for n in range(count):
            load = StepLoad(200 if n % 3 == 0 else 0, 8, 800)
            watch.begins(load)
            clock.now_s += times * (0.02 + 1e-4 * load.prefill_tokens)
            watch.ends()
        return watch.latest.slowdown(clock.now_s)

    assert steps(20, times=3.0) == 1.0, "nothing is known yet"
    assert steps(500, times=3.0) == 1.0
    assert steps(20, times=1.0) < 1.0, "faster than believed"
    assert steps(1000, times=1.0) == 1.0, "believed by now"
    assert steps(50, times=2.0) > 1.3
    assert steps(1000, times=2.0) == 1.0, "that is what its steps cost now"


def request(prompt: int, made: int, computed: int) -> Any:
    return SimpleNamespace(num_tokens=prompt + made, num_computed_tokens=computed)


def test_load_of_a_step() -> None:
    """Of the planned ones vLLM counts the tokens as computed already. What was preempted computes its output anew."""
    requests = {
        "decodes": request(50, made=7, computed=57),
        "token on its way": request(30, made=3, computed=34),
        "last chunk": request(100, made=0, computed=100),
        "a chunk": request(5000, made=0, computed=900),
        "again": request(20, made=40, computed=60),
        "waits": request(9, made=0, computed=0),
    }
    tokens = {"decodes": 1, "token on its way": 1, "last chunk": 36, "a chunk": 500, "again": 60}
    assert load_of(requests, tokens) == StepLoad(36 + 500 + 60, 2, 57 + 33)
