"""What an engine does between two looks of its scheduler: a run of decode steps, or one step that prefills.

A run is skipped as one, so while it is in flight somebody has to say how far it is: each step takes a little longer
than the one before (every member has grown by a token), and the sum has a closed form.
"""

from __future__ import annotations

from math import floor, sqrt
from typing import NamedTuple

from llumnix.sim.engine.request import SimRequest


class Segment(NamedTuple):
    """What the scheduler decided: `steps` decode steps of the batch, or one step that computes `chunks`."""

    steps: int
    """Decode steps; 0 if the batch stands still while the chunks are computed."""
    chunks: tuple[tuple[SimRequest, int], ...] = ()
    """Prompts, or parts of prompts, computed in this step: (request, tokens)."""


NO_SEGMENT = Segment(0)


class Flight:
    """The segment in flight: it began at `begin_s`, its first step lasts `first_s`, each further one `growth_s` more.
    `lead_s`: the engine did nothing for so long at the beginning; `drag`: its steps take so many times as long as they
    should (faults)."""

    __slots__ = ("begin_s", "chunks", "drag", "end_s", "first_s", "growth_s", "lead_s", "steps")

    def __init__(self) -> None:
        self.steps = 0
        self.chunks: tuple[tuple[SimRequest, int], ...] = ()
        self.begin_s = self.lead_s = self.first_s = self.growth_s = self.end_s = 0.0
        self.drag = 1.0

    def begin(self, segment: Segment, now_s: float, lead_s: float, first_s: float, growth_s: float) -> None:
        self.steps, self.chunks = segment
        self.begin_s, self.lead_s, self.first_s, self.growth_s = now_s, lead_s, first_s, growth_s
        self.end_s = now_s + lead_s + (self.duration_s(self.steps) if self.steps else first_s)

    def land(self) -> None:
        """It is over."""
        self.steps, self.chunks = NO_SEGMENT

    def duration_s(self, steps: int) -> float:
        """Of the first `steps` steps."""
        return steps * self.first_s + self.growth_s * (steps * (steps - 1) // 2)

    def first_end_s(self) -> float:
        """When the first step ends."""
        return self.begin_s + self.lead_s + self.first_s

    def step_s(self, step: int) -> float:
        """Duration of the `step`-th step, from 1."""
        return self.first_s + self.growth_s * (step - 1)

    def end_of_s(self, steps: int) -> float:
        """When the `steps`-th step ends."""
        return self.begin_s + self.lead_s + self.duration_s(steps)

    def steps_done(self, now_s: float) -> int:
        """Decode steps that are complete."""
        steps = self.steps
        if steps <= 1:
            return 0
        elapsed = now_s - self.begin_s - self.lead_s
        growth, first = self.growth_s, self.first_s
        if elapsed < first:
            return 0
        if growth > 0:
            slope = first - growth / 2
            done = floor((sqrt(slope * slope + 2 * growth * elapsed) - slope) / growth)
        else:
            done = floor(elapsed / first)
        while done > 0 and self.duration_s(done) > elapsed:
            done -= 1
        while self.duration_s(done + 1) <= elapsed:
            done += 1
        return min(done, steps)

    def steps_started(self, now_s: float) -> int:
        """Decode steps that have begun."""
        return min(self.steps_done(now_s) + 1, self.steps) if self.steps else 0

    def cut(self, now_s: float) -> bool:
        """Ends a run of decode steps with the one in flight; False if that is the last one anyway."""
        if self.steps <= 1:
            return False
        steps = self.steps_done(now_s) + 1
        if steps >= self.steps:
            return False
        self.steps, self.chunks = steps, ()
        self.end_s = max(self.end_of_s(steps), now_s)
        return True
