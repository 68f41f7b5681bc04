"""One inference engine, by arithmetic: continuous batching over an exact count of KV blocks.

The local scheduler (sim/engine/vllm01.py, sim/engine/vllm1.py) plans the segments, sim/engine/steps.py lets them pass;
here is who waits, who runs, and what each holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Protocol

from llumnix.policy.relief import short_blocks
from llumnix.policy.snapshot import StepCost
from llumnix.sim.engine.batch import DecodeBatch
from llumnix.sim.engine.blocks import BlockPool, PrefixCache
from llumnix.sim.engine.flight import Segment
from llumnix.sim.engine.listener import Listener
from llumnix.sim.engine.request import ABORTED, DECODING, DETACHED, FINISHED, NEW, PREFILLING, WAITING, SimRequest
from llumnix.sim.engine.steps import StepClock
from llumnix.sim.engine.waiting import WaitingQueue
from llumnix.sim.kernel import Kernel
from llumnix.sim.profiles.cost_model import Profile
from llumnix.types import is_high

_ORDER = attrgetter("order")


class Scheduler(Protocol):
    """The local scheduler: plans, admits, preempts by `EngineModel.preempt`. `small_first`: policy/waiting_order.py."""

    small_first: bool

    def plan(self, engine: EngineModel) -> Segment | None:
        """The next segment, None if there is nothing to run. Takes the blocks of admitted requests."""

    def could_admit(self, engine: EngineModel, request: SimRequest) -> bool:
        """False only if `request`, first in the queue, certainly cannot start at the next step."""


class EngineModel:
    """A local scheduler, its queue, batch and blocks, on a kernel. All methods act at `kernel.now`."""

    def __init__(self, kernel: Kernel, profile: Profile, scheduler: Scheduler, listener: Listener,
                 unit_tokens: int) -> None:  # fmt: skip
        """`unit_tokens`: size of the prefix cache's units; 0 for no prefix cache."""
        self.kernel = kernel
        self.profile = profile
        block_tokens = profile.memory.block_tokens
        cache = PrefixCache(unit_tokens, block_tokens) if unit_tokens else None
        self.pool = BlockPool(profile.memory.total_blocks, profile.watermark_blocks, cache)
        self.state_blocks = profile.memory.state_blocks  # in all that a request is said to hold
        self.batch = DecodeBatch(block_tokens, self.state_blocks)
        self.queue = WaitingQueue(block_tokens, self.state_blocks, self.pool.total if scheduler.small_first else 0)
        self.waiting = self.queue.requests
        """Sorted: who is to start first comes first."""
        self.prefilling: list[SimRequest] = []
        self.watched: set[str] = set()
        """Ids of requests whose changes the listener wants to hear of."""
        self.step_cost: StepCost | None = None
        self.tpot_target_s = 0.0
        """Prompts leave so much between two tokens, by what its steps are believed to cost; 0: any time."""
        self.preemptions = self.computed_tokens = self.high_running = 0
        self._scheduler = scheduler
        self._listener = listener
        self.steps = StepClock(kernel, profile, self.batch, self)
        self._flight = self.steps.flight

    # ------------------------------------------------------------------ from outside

    def blocks_of(self, tokens: int) -> int:
        return -(-tokens // self.profile.memory.block_tokens) + self.state_blocks

    def add(self, request: SimRequest) -> None:
        """Puts a request into the queue (a new one, or one that moves without its KV)."""
        self.queue.add(request)
        if self.steps.idle or (self.waiting[0] is request and self._scheduler.could_admit(self, request)):
            self.steps.plan_soon()
        self._listener.on_queued()

    def abort(self, request: SimRequest) -> None:
        """Ends a request at the next step boundary; a queued one at once."""
        if request.state is WAITING:
            self.abort_now(request)
        elif request.state in (DECODING, PREFILLING):
            self.steps.at_boundary(lambda: self.abort_now(request))

    def abort_now(self, request: SimRequest) -> bool:
        """The same when no step is in flight; False if it is not here (any more)."""
        if request.state is WAITING and request in self.waiting:
            self.queue.remove(request)
        elif request.batch is self.batch or request in self.prefilling:
            self._take_out(request)
            self._count_running(request, -1)
            self._free(request)
        else:
            return False
        request.state = ABORTED
        request.prefilled = 0
        self._listener.on_changed()
        return True

    def detach(self, request: SimRequest) -> bool:
        """At a boundary: takes a decoding request out of the batch; its blocks stay taken."""
        if request.batch is not self.batch:
            return False
        self.batch.leave(request, DETACHED)
        self._count_running(request, -1)
        self._listener.on_changed()
        return True

    def attach(self, request: SimRequest) -> None:
        """At a boundary: makes a detached or migrated request, whose blocks are taken, a running one."""
        self.batch.join(request)
        self._count_running(request, 1)
        self._listener.on_changed()

    def withdraw(self, request: SimRequest) -> bool:
        """Takes a queued request out of the queue (it moves on without KV)."""
        if request.state is not WAITING or request not in self.waiting:
            return False
        self.queue.remove(request)
        request.state = DETACHED
        self._listener.on_changed()
        return True

    def release(self, blocks: int, cached_units: int = 0, hashes: tuple[int, ...] = ()) -> None:
        """Gives back what a detached request held here, or a reservation, or a part of one: blocks, the cached units of
        its prefix among them."""
        self.pool.release(blocks, cached_units, hashes)
        self._listener.on_changed()
        self._look_again()

    def reserve(self, blocks: int, shared: Sequence[int] = ()) -> bool:
        """Takes blocks for one that moves in, beside cached units that it shares; False if the batch needs them now."""
        spare = self.pool.free - self._taken_in_flight()
        if blocks + self.pool.idle_blocks(shared) + self.pool.watermark > spare:
            return False
        self.steps.cut()
        self.pool.share(shared)
        self.pool.take(blocks)
        self._listener.on_changed()
        return True

    def crash(self) -> list[SimRequest]:
        """The engine is gone. Returns its queued and running requests with the tokens that had gone out by now."""
        self.steps.crash()
        lost = [*self.batch.members, *self.prefilling, *self.waiting]
        for request in list(self.batch.members):
            self.batch.leave(request, NEW)
        for request in lost:
            request.state = NEW
            request.blocks = request.cached_units = request.prefilled = 0
        return lost

    # ------------------------------------------------------------------ what a report needs

    @property
    def running(self) -> int:
        return len(self.batch.members) + len(self.prefilling)

    def steps_started(self) -> int:
        """Decode steps of the current segment that have begun."""
        return self._flight.steps_started(self.kernel.now)

    def free_blocks(self) -> int:
        """Free blocks now: what the step in flight took is gone."""
        return self.pool.free - self._taken_in_flight()

    def short_blocks(self, steps: int, free: int) -> int:
        """Blocks that the batch will take within `steps` more decode steps beyond `free` ones, as if nobody ended until
        then; 0 for no look ahead."""
        batch = self.batch
        if not steps or free >= len(batch.members) * (1 + steps // batch.block_tokens):
            return 0
        started = self.steps_started()
        return short_blocks(batch.blocks_for(started + steps) - batch.blocks_for(started), free)

    def tokens_of(self, request: SimRequest) -> int:
        """Length of a request's sequence now."""
        return request.prompt_tokens + self.generated_of(request)

    def generated_of(self, request: SimRequest) -> int:
        if request.batch is self.batch:
            return self.batch.generated(request, self._flight.steps_done(self.kernel.now))
        return request.generated

    def held_blocks(self, request: SimRequest) -> int:
        """Blocks that a request holds now."""
        if request.batch is not self.batch:
            return request.blocks
        length = request.prompt_tokens + self.batch.generated(request, self.steps_started())
        return self.blocks_of(length - 1)

    def running_requests(self) -> list[SimRequest]:
        """Every running request, first victim last."""
        return sorted(self.batch.members + self.prefilling, key=_ORDER) if self.prefilling else self.batch.members

    # ------------------------------------------------------------------ for the scheduler

    def start(self, request: SimRequest, blocks: int) -> None:
        """Takes the first request out of the queue and makes it a prefilling one that holds `blocks` blocks."""
        self.queue.remove(request)
        request.begin(self.kernel.now, blocks)
        self.prefilling.append(request)
        self._count_running(request, 1)
        self._tell(request)

    def preempt(self, request: SimRequest) -> None:
        """Throws a running request's KV away and puts it back into the queue (recompute)."""
        if request.state is DECODING:
            self.batch.leave(request, WAITING)
        else:
            self.prefilling.remove(request)
        self._count_running(request, -1)
        self.preemptions += 1
        request.preempted(self.kernel.now)
        self._free(request)
        self.queue.add(request)
        self._tell(request)

    # ------------------------------------------------------------------ inside

    def _look_again(self) -> None:
        """Memory came back from outside a step: perhaps the first in the queue fits now."""
        if self.waiting and self._scheduler.could_admit(self, self.waiting[0]):
            self.steps.plan_soon()

    def _count_running(self, request: SimRequest, change: int) -> None:
        if is_high(request.priority):
            self.high_running += change

    def _take_out(self, request: SimRequest) -> None:
        if request.batch is self.batch:
            self.batch.leave(request, ABORTED)
        else:
            self.prefilling.remove(request)

    def _free(self, request: SimRequest) -> None:
        self.pool.release(request.blocks, request.cached_units, request.hashes)
        request.blocks = request.cached_units = 0

    def _tell(self, request: SimRequest) -> None:
        if request.id in self.watched:
            self._listener.on_watched(request)

    def _taken_in_flight(self) -> int:
        return self.batch.blocks_for(self.steps_started()) if self._flight.steps else 0

    # ------------------------------------------------------------------ the owner of the steps

    def plan(self) -> Segment | None:
        return self._scheduler.plan(self)

    def landed(self) -> None:
        flight, batch = self._flight, self.batch
        steps, chunks = flight.steps, flight.chunks
        if steps:
            self.pool.take(batch.blocks_for(steps))
            computing_s = flight.end_s - flight.begin_s - steps * self.steps.overhead_s[len(batch.members)]
            batch.advance(steps, flight.first_end_s(), flight.step_s(steps), flight.end_s, computing_s)
            while (request := batch.pop_ended()) is not None:
                batch.leave(request, FINISHED)
                self._end(request)
        for request, tokens in chunks:
            self._computed(request, tokens)

    def went_on(self) -> None:
        self._listener.on_changed()

    def _computed(self, request: SimRequest, tokens: int) -> None:
        """A part of a prompt was computed in the step that ends now."""
        if request.state is not PREFILLING:
            return
        now = self.kernel.now
        request.prefilled += tokens
        self.computed_tokens += tokens
        request.exec_s += self._flight.end_s - self._flight.begin_s - self.steps.overhead_s[1]
        if request.prefilled < request.prompt_tokens + request.generated:
            return
        self.prefilling.remove(request)
        self.pool.publish(request)
        request.emit(now)
        if request.preempted_at_s is not None:
            step_s = self.steps.batch_s[min(len(self.batch.members) + 1, len(self.steps.batch_s) - 1)]
            request.lost_s += now - request.preempted_at_s - step_s - self.steps.token_s * self.batch.tokens
            request.preempted_at_s = None
        if request.generated >= request.output_tokens:
            request.state = FINISHED
            self._end(request)
        else:
            self.batch.join(request)
            self._tell(request)

    def _end(self, request: SimRequest) -> None:
        request.finish_s = self.kernel.now
        self._count_running(request, -1)
        self._free(request)
        self._tell(request)
        self._listener.on_finished(request)
