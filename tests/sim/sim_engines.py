"""Helpers for tests of the simulated engine: small profiles, and engines with and without skipping of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llumnix.sim.engine.engine import EngineModel, Scheduler
from llumnix.sim.engine.flight import Segment
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.engine.vllm01 import PrefillFirst
from llumnix.sim.engine.vllm1 import TokenBudget
from llumnix.sim.kernel import Kernel
from llumnix.sim.profiles.cost_model import Profile, step_cost
from llumnix.sim.profiles.file import load_profile


def small_profile(kind: str, blocks: int, **scheduler: object) -> Profile:
    """LLaMA-7B on a device with few blocks, so that memory runs out quickly."""
    profile = load_profile("a10-llama-7b").with_scheduler(kind=kind, **scheduler)
    return replace(profile, memory=replace(profile.memory, total_blocks=blocks))


class StepByStep:
    """A local scheduler that never lets the engine skip: every decode step is a segment of its own."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.small_first = scheduler.small_first

    def plan(self, engine: EngineModel) -> Segment | None:
        segment = self._scheduler.plan(engine)
        return segment if segment is None else Segment(min(segment.steps, 1), segment.chunks)

    def could_admit(self, engine: EngineModel, request: SimRequest) -> bool:
        return self._scheduler.could_admit(engine, request)


@dataclass
class Watcher:
    """A listener that counts."""

    finished: list[SimRequest] = field(default_factory=list)
    settled: list[tuple[str, str]] = field(default_factory=list)

    def on_queued(self) -> None: ...

    def on_changed(self) -> None: ...

    def on_finished(self, request: SimRequest) -> None:
        self.finished.append(request)

    def on_watched(self, request: SimRequest) -> None:
        self.settled.append((request.id, request.state))


def new_engine(
    profile: Profile,
    *,
    skip: bool = True,
    unit_tokens: int = 0,
    displaces: bool = False,
    small_first: bool = False,
    target_s: float = 0.0,
) -> tuple[Kernel, EngineModel, Watcher]:
    kernel, watcher = Kernel(), Watcher()
    scheduler: Scheduler = (
        PrefillFirst() if profile.scheduler.kind == "vllm-0.1" else TokenBudget(displaces, small_first)
    )
    engine = EngineModel(kernel, profile, scheduler if skip else StepByStep(scheduler), watcher, unit_tokens)
    engine.step_cost, engine.tpot_target_s = step_cost(profile), target_s
    return kernel, engine, watcher


def run_engine(
    profile: Profile,
    rows: Sequence[tuple[Any, ...]],
    *,
    skip: bool = True,
    displaces: bool = False,
    small_first: bool = False,
    target_s: float = 0.0,
) -> list[SimRequest]:
    """Runs (arrival_s, prompt_tokens, output_tokens[, priority]) rows to the end; checks that every block came back."""
    kernel, engine, watcher = new_engine(
        profile, skip=skip, displaces=displaces, small_first=small_first, target_s=target_s
    )
    requests = [SimRequest(index, *row) for index, row in enumerate(rows)]
    for request in requests:
        request.order = (request.priority, request.arrival_s, request.index)
        kernel.at(request.arrival_s, engine.add, request)
    kernel.run()
    assert len(watcher.finished) == len(requests)
    assert engine.pool.free == engine.pool.total
    assert (engine.queue.blocks, engine.queue.preempted, engine.running) == (0, 0, 0)
    return requests
