"""When the steps of an engine begin and end.

Time passes in *segments*: either a run of decode steps in which nothing happens, skipped as one (see
sim/engine/batch.py), or one step that prefills. What comes from outside cuts a run of steps at the end of the step in
flight, which is where a real engine would notice it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Protocol

from llumnix.control.latest_steps import LatestSteps
from llumnix.sim.engine.batch import DecodeBatch
from llumnix.sim.engine.flight import Flight, Segment
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.kernel import Kernel, Timer
from llumnix.sim.profiles.cost_model import Profile

WATCHED_S = 0.25
"""While an engine is slower than it should be, or is thought to be, no run of steps is longer: it is to be told of."""


class StepOwner(Protocol):
    """Whose steps they are."""

    def plan(self) -> Segment | None:
        """The next segment; None if there is nothing to run."""

    def landed(self) -> None:
        """The segment in flight is over: what it computed is there."""

    def went_on(self) -> None:
        """And the next one has begun, if there is one."""


class StepClock:
    """Runs one segment after the other. All methods act at `kernel.now`."""

    def __init__(self, kernel: Kernel, profile: Profile, batch: DecodeBatch, owner: StepOwner) -> None:
        self.flight = Flight()
        self.stalled_until_s = 0.0
        self.token_s = profile.decode.per_context_token_ms / 1e3
        sizes = range(1, profile.scheduler.max_num_seqs + 1)
        self.overhead_s = [0.0, *(profile.host.overhead_s(size) for size in sizes)]
        """Of a step between two computations, by the number of requests."""
        self.batch_s = [0.0, *(profile.decode.batch_step_ms(size) / 1e3 + self.overhead_s[size] for size in sizes)]
        """Of a decode step, by the number of requests; `token_s` for each token of context comes on top."""
        self._kernel = kernel
        self._prefill = profile.prefill
        self._batch = batch
        self._owner = owner
        self._at_boundary: list[Callable[[], object]] = []
        self._slowdown = 0.0
        self._drag = 1.0
        self._latest = LatestSteps()
        self._busy = False
        self._stopped = False
        self._timer: Timer | None = None
        self._plans_at_s = inf

    @property
    def idle(self) -> bool:
        """No step is in flight."""
        return self._timer is None

    def decode_s(self) -> float:
        """Duration of a decode step of the batch as it is, between two steps."""
        return self.batch_s[len(self._batch.members)] + self.token_s * self._batch.tokens

    def end_s(self) -> float:
        """When the step in flight ends; now, if there is none."""
        if self._timer is None:
            return self._kernel.now
        flight, now = self.flight, self._kernel.now
        return flight.end_s if flight.steps <= 1 else max(flight.end_of_s(flight.steps_done(now) + 1), now)

    def at_boundary(self, action: Callable[[], object]) -> None:
        """Runs `action` when no step is in flight: now, or at the end of the one that is."""
        self._at_boundary.append(action)
        self.plan_soon()

    def plan_soon(self) -> None:
        """The next plan is made as soon as no step is in flight."""
        if self._timer is None:
            self._boundary()
        else:
            self.cut()

    def plan_at(self, at_s: float) -> None:
        """The same from `at_s` on, or from an earlier time that was asked for."""
        if at_s < self._plans_at_s:
            self._plans_at_s = at_s
            self._kernel.at(at_s, self._plan_now)

    def _plan_now(self) -> None:
        self._plans_at_s = inf
        self.plan_soon()

    def cut(self) -> None:
        """Ends a run of decode steps with the one in flight."""
        if self._timer is not None and self.flight.cut(self._kernel.now):
            self._kernel.cancel(self._timer)
            self._timer = self._kernel.at(self.flight.end_s, self._finish)

    def set_slowdown(self, slowdown: float) -> None:
        """From the next step on, steps take (1 + slowdown) times as long (a copy runs)."""
        if slowdown != self._slowdown:
            self._slowdown = slowdown
            self.cut()

    def set_drag(self, drag: float) -> None:
        """From the next step on, steps take so many times as long as they should (a fault)."""
        self._drag = drag
        self.cut()

    def lateness(self) -> float:
        """How many times as long as they should steps take, as an instance can tell."""
        return self._latest.slowdown(self._kernel.now)

    def stall(self, seconds: float) -> None:
        """Nothing is done for so long, from the end of the step in flight (a fault)."""
        self.stalled_until_s = max(self.stalled_until_s, self._kernel.now + seconds)
        self.cut()

    def crash(self) -> None:
        """Nothing comes of the step in flight, and no other follows; the tokens of those before had gone out."""
        if self._timer is not None:
            self._kernel.cancel(self._timer)
            self._timer = None
        flight = self.flight
        done = flight.steps_done(self._kernel.now)
        if done:
            end = flight.end_of_s(done)
            self._batch.advance(done, flight.first_end_s(), flight.step_s(done), end, end - flight.begin_s)
        self._stopped = True

    def _finish(self) -> None:
        self._timer = None
        self._busy = True
        self._owner.landed()
        self._look_back()
        self.flight.land()
        self._busy = False
        self._boundary()
        self._owner.went_on()

    def _look_back(self) -> None:
        flight, now = self.flight, self._kernel.now
        took_s = now - flight.begin_s
        self._latest.add(now, took_s, (took_s - flight.lead_s) / flight.drag)

    def _boundary(self) -> None:
        """No step is in flight: carries out what waited for that, and begins the next segment."""
        if self._busy or self._stopped:
            return
        self._busy = True
        segment = None
        while segment is None:
            while self._at_boundary:
                actions, self._at_boundary = self._at_boundary, []
                for action in actions:
                    action()
            segment = self._owner.plan()
            if not self._at_boundary:
                break
        self._busy = False
        if segment is not None and not self._stopped:
            # A preemption may have made somebody ask for the next boundary.
            self._begin(Segment(1) if self._at_boundary and segment.steps > 1 else segment)

    def _begin(self, segment: Segment) -> None:
        now = self._kernel.now
        batch = self._batch
        pace = (1.0 + self._slowdown) * self._drag
        size = len(batch.members)
        chunk_s = self._chunks_s(segment.chunks, alone=not segment.steps) if segment.chunks else 0.0
        first_s, growth_s = chunk_s * pace, 0.0
        if segment.steps:
            first_s = (self.batch_s[size] + self.token_s * batch.tokens + chunk_s) * pace
            growth_s = self.token_s * size * pace
        if segment.steps > 1 and (self._drag != 1 or self.lateness() != 1):
            segment = Segment(min(segment.steps, 1 + int(WATCHED_S / first_s)), segment.chunks)
        self.flight.begin(segment, now, max(0.0, self.stalled_until_s - now), first_s, growth_s)
        self.flight.drag = self._drag
        self._timer = self._kernel.at(self.flight.end_s, self._finish)

    def _chunks_s(self, chunks: tuple[tuple[SimRequest, int], ...], alone: bool) -> float:
        compute_ms = self._prefill.base_ms if alone else 0.0
        for request, tokens in chunks:
            compute_ms += self._prefill.compute_ms(tokens, request.prefilled)
        return compute_ms / 1e3 + (self.overhead_s[len(chunks)] if alone else 0.0)
