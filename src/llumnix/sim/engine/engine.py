"""One inference engine, by arithmetic: continuous batching over an exact count of KV blocks.

Time passes in *segments*: either a run of decode steps in which nothing happens, skipped as one (see
sim/engine/batch.py), or one step that prefills. At the end of a segment the local scheduler (sim/engine/vllm01.py,
sim/engine/vllm1.py) plans the next. What comes from outside (a new request, a request to leave the batch)
cuts a run of steps at the end of the step in flight, which is where a real engine would notice it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from operator import attrgetter
from typing import Protocol

from llumnix.policy.relief import short_blocks
from llumnix.sim.engine.batch import DecodeBatch
from llumnix.sim.engine.blocks import BlockPool, PrefixCache
from llumnix.sim.engine.flight import Flight, Segment
from llumnix.sim.engine.request import Phase, SimRequest
from llumnix.sim.engine.waiting import WaitingQueue
from llumnix.sim.kernel import Kernel, Timer
from llumnix.sim.profiles.cost_model import Profile
from llumnix.types import is_high

_ORDER = attrgetter("order")


class Scheduler(Protocol):
    """The local scheduler: decides the next segment; admits, and preempts through `EngineModel.preempt`."""

    def plan(self, engine: EngineModel) -> Segment | None:
        """The next segment, None if there is nothing to run. Takes the blocks of admitted requests."""

    def could_admit(self, engine: EngineModel, request: SimRequest) -> bool:
        """False only if `request`, first in the queue, certainly cannot start at the next step."""


class Listener(Protocol):
    """Who is told what happens inside."""

    def on_queued(self) -> None:
        """A request came and waits."""

    def on_changed(self) -> None:
        """The load changed otherwise: a request started, ended, was preempted, or memory was given back."""

    def on_finished(self, request: SimRequest) -> None: ...

    def on_settled(self, request: SimRequest) -> None:
        """A request that somebody watches (`EngineModel.watched`) changed between computing, decoding, waiting."""


class EngineModel:
    """A local scheduler, its queue, batch and blocks, on a kernel. All methods act at `kernel.now`."""

    def __init__(self, kernel: Kernel, profile: Profile, scheduler: Scheduler, listener: Listener,
                 unit_tokens: int = 0) -> None:  # fmt: skip
        """`unit_tokens`: size of the prefix cache's units; 0 for no prefix cache."""
        self.kernel = kernel
        self.profile = profile
        block_tokens = profile.memory.block_tokens
        cache = PrefixCache(unit_tokens, block_tokens) if unit_tokens else None
        self.pool = BlockPool(profile.memory.total_blocks, profile.watermark_blocks, cache)
        self.batch = DecodeBatch(block_tokens)
        self.queue = WaitingQueue(block_tokens)
        self.waiting = self.queue.requests
        """Sorted: most important first, then oldest first."""
        self.prefilling: list[SimRequest] = []
        self.watched: set[str] = set()
        """Ids of requests whose changes the listener wants to hear of."""
        self.preemptions = 0
        self.high_running = 0
        self.slowdown = 0.0
        self.stalled_until_s = 0.0
        self.stopped = False
        self._scheduler = scheduler
        self._listener = listener
        self._at_boundary: list[Callable[[], object]] = []
        sizes = range(1, profile.scheduler.max_num_seqs + 1)
        self._overhead_s = [0.0, *(profile.host.overhead_s(size) for size in sizes)]
        self._batch_s = [0.0, *(profile.decode.batch_step_ms(size) / 1e3 + self._overhead_s[size] for size in sizes)]
        self._token_s = profile.decode.per_context_token_ms / 1e3
        self._busy = False
        self._timer: Timer | None = None
        self._flight = Flight()

    # ------------------------------------------------------------------ from outside

    @property
    def idle(self) -> bool:
        return self._timer is None

    def blocks_of(self, tokens: int) -> int:
        return -(-tokens // self.profile.memory.block_tokens)

    def add(self, request: SimRequest) -> None:
        """Puts a request into the queue (a new one, or one that moves without its KV)."""
        self.queue.add(request)
        if self._timer is None:
            self._boundary()
        elif self.waiting[0] is request and self._scheduler.could_admit(self, request):
            self._cut()
        self._listener.on_queued()

    def abort(self, request: SimRequest) -> None:
        """Ends a request at the next step boundary; a queued one at once."""
        if request.state is Phase.WAITING:
            self.abort_now(request)
        elif request.state in (Phase.DECODING, Phase.PREFILLING):
            self.at_boundary(lambda: self.abort_now(request))

    def abort_now(self, request: SimRequest) -> bool:
        """The same when no step is in flight; False if it is not here (any more)."""
        if request.state is Phase.WAITING and request in self.waiting:
            self.queue.remove(request)
        elif request.batch is self.batch or request in self.prefilling:
            self._take_out(request)
            self._count_running(request, -1)
            self._free(request)
        else:
            return False
        request.state = Phase.ABORTED
        request.prefilled = 0
        self._listener.on_changed()
        return True

    def at_boundary(self, action: Callable[[], object]) -> None:
        """Runs `action` when no step is in flight: now, or at the end of the one that is."""
        self._at_boundary.append(action)
        if self._timer is None:
            self._boundary()
        else:
            self._cut()

    def detach(self, request: SimRequest) -> bool:
        """At a boundary: takes a decoding request out of the batch; its blocks stay taken."""
        if request.batch is not self.batch:
            return False
        self.batch.leave(request, Phase.DETACHED)
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
        if request.state is not Phase.WAITING or request not in self.waiting:
            return False
        self.queue.remove(request)
        request.state = Phase.DETACHED
        self._listener.on_changed()
        return True

    def release(self, blocks: int, cached_units: int, hashes: tuple[int, ...]) -> None:
        """Gives back what a detached request held here: its blocks, the cached units of its prefix among them."""
        self._give_blocks_back(blocks, cached_units, hashes)
        self._listener.on_changed()
        self._look_again()

    def reserve(self, blocks: int) -> bool:
        """Takes blocks for a request that is moving in; False if that leaves less than the batch needs now."""
        spare = self.pool.free - self._taken_in_flight()
        if blocks + self.pool.watermark > spare:
            return False
        self._cut()
        self.pool.take(blocks)
        self._listener.on_changed()
        return True

    def give_back(self, blocks: int) -> None:
        """Undoes (a part of) a reservation."""
        self.pool.give_back(blocks)
        self._listener.on_changed()
        self._look_again()

    def set_slowdown(self, slowdown: float) -> None:
        """From the next step on, steps take (1 + slowdown) times as long (a copy runs)."""
        if slowdown != self.slowdown:
            self.slowdown = slowdown
            self._cut()

    def stall(self, seconds: float) -> None:
        """The engine does nothing for so long, from the end of the step in flight (a fault)."""
        self.stalled_until_s = max(self.stalled_until_s, self.kernel.now + seconds)
        self._cut()

    def crash(self) -> list[SimRequest]:
        """The engine is gone. Returns its queued and running requests with the tokens that had gone out by now."""
        if self._timer is not None:
            self.kernel.cancel(self._timer)
            self._timer = None
        flight = self._flight
        done = flight.steps_done(self.kernel.now)
        if done:
            end = flight.end_of_s(done)
            self.batch.advance(done, flight.first_end_s(), flight.step_s(done), end, end - flight.begin_s)
        self.stopped = True
        lost = [*self.batch.members, *self.prefilling, *self.waiting]
        for request in list(self.batch.members):
            self.batch.leave(request, Phase.NEW)
        for request in lost:
            request.state = Phase.NEW
            request.blocks = request.cached_units = request.prefilled = 0
        return lost

    # ------------------------------------------------------------------ what a report needs

    @property
    def running(self) -> int:
        return len(self.batch.members) + len(self.prefilling)

    def step_s(self) -> float:
        """Duration of a decode step of the batch as it is, between two steps."""
        return self._batch_s[len(self.batch.members)] + self._token_s * self.batch.tokens

    def step_end_s(self) -> float:
        """When the step in flight ends; now, if there is none."""
        if self._timer is None:
            return self.kernel.now
        flight, now = self._flight, self.kernel.now
        return flight.end_s if flight.steps <= 1 else max(flight.end_of_s(flight.steps_done(now) + 1), now)

    def steps_started(self) -> int:
        """Decode steps of the current segment that have begun."""
        return self._flight.steps_started(self.kernel.now)

    def free_blocks(self) -> int:
        """Free blocks now: what the step in flight took is gone."""
        return self.pool.free - self._taken_in_flight()

    def short_blocks(self, steps: int, taken: int = 0) -> int:
        """Blocks that the batch will take within `steps` more decode steps and that are not free now, as if nobody
        ended until then, and as if `taken` more were not free; 0 for no look ahead."""
        batch, free = self.batch, self.free_blocks() - taken
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
        request.state = Phase.PREFILLING
        request.blocks = blocks
        self.prefilling.append(request)
        self._count_running(request, 1)

    def preempt(self, request: SimRequest) -> None:
        """Throws a running request's KV away and puts it back into the queue (recompute)."""
        if request.state is Phase.DECODING:
            self.batch.leave(request, Phase.WAITING)
        else:
            self.prefilling.remove(request)
        self._count_running(request, -1)
        self.preemptions += 1
        request.preemptions += 1
        if request.generated:
            request.preempted_at_s = self.kernel.now
        request.prefilled = 0
        self._free(request)
        self.queue.add(request)
        self._tell(request)

    # ------------------------------------------------------------------ inside

    def _look_again(self) -> None:
        """Memory came back from outside a step: perhaps the first in the queue fits now."""
        if self.waiting and self._scheduler.could_admit(self, self.waiting[0]):
            if self._timer is None:
                self._boundary()
            else:
                self._cut()

    def _count_running(self, request: SimRequest, change: int) -> None:
        if is_high(request.priority):
            self.high_running += change

    def _take_out(self, request: SimRequest) -> None:
        if request.batch is self.batch:
            self.batch.leave(request, Phase.ABORTED)
        else:
            self.prefilling.remove(request)

    def _free(self, request: SimRequest) -> None:
        self._give_blocks_back(request.blocks, request.cached_units, request.hashes)
        request.blocks = request.cached_units = 0

    def _give_blocks_back(self, blocks: int, cached_units: int, hashes: tuple[int, ...]) -> None:
        pool = self.pool
        if cached_units:
            assert pool.cache is not None
            blocks += pool.cache.release(hashes[:cached_units]) - cached_units * pool.cache.unit_blocks
        pool.give_back(blocks)

    def _tell(self, request: SimRequest) -> None:
        if request.id in self.watched:
            self._listener.on_settled(request)

    def _taken_in_flight(self) -> int:
        return self.batch.blocks_for(self.steps_started()) if self._flight.steps else 0

    def _cut(self) -> None:
        """Ends a run of decode steps with the one in flight."""
        if self._timer is not None and self._flight.cut(self.kernel.now):
            self.kernel.cancel(self._timer)
            self._timer = self.kernel.at(self._flight.end_s, self._finish_segment)

    def _finish_segment(self) -> None:
        self._timer = None
        self._busy = True
        flight, batch = self._flight, self.batch
        steps, chunks = flight.steps, flight.chunks
        if steps:
            self.pool.free -= batch.blocks_for(steps)
            if self.pool.cache is not None:
                self.pool.cache.shrink_to(self.pool.free)
            computing_s = flight.end_s - flight.begin_s - steps * self._overhead_s[len(batch.members)]
            batch.advance(steps, flight.first_end_s(), flight.step_s(steps), flight.end_s, computing_s)
            while (request := batch.pop_ended()) is not None:
                batch.leave(request, Phase.FINISHED)
                self._end(request)
        for request, tokens in chunks:
            self._computed(request, tokens)
        flight.land()
        self._busy = False
        self._boundary()
        self._listener.on_changed()

    def _computed(self, request: SimRequest, tokens: int) -> None:
        """A part of a prompt was computed in the step that ends now."""
        if request.state is not Phase.PREFILLING:
            return
        now = self.kernel.now
        request.prefilled += tokens
        request.exec_s += self._flight.end_s - self._flight.begin_s - self._overhead_s[1]
        if request.prefilled < request.prompt_tokens + request.generated:
            return
        self.prefilling.remove(request)
        if self.pool.cache is not None and request.hashes:
            self._publish(request)
        request.generated += 1
        if request.first_token_s == inf:
            request.first_token_s = now
        else:
            request.largest_gap_s = max(request.largest_gap_s, now - request.last_token_s)
        if request.preempted_at_s is not None:
            step_s = self._batch_s[min(len(self.batch.members) + 1, len(self._batch_s) - 1)]
            request.lost_s += now - request.preempted_at_s - step_s - self._token_s * self.batch.tokens
            request.preempted_at_s = None
        request.last_token_s = now
        if request.generated >= request.output_tokens:
            request.state = Phase.FINISHED
            self._end(request)
        else:
            self.batch.join(request)
            self._tell(request)

    def _publish(self, request: SimRequest) -> None:
        """Lends the blocks of the prompt's units to the prefix cache."""
        cache = self.pool.cache
        assert cache is not None
        units = request.prompt_tokens // cache.unit_tokens
        request.cached_units += cache.publish(request.hashes[request.cached_units : units])

    def _end(self, request: SimRequest) -> None:
        request.finish_s = self.kernel.now
        self._count_running(request, -1)
        self._free(request)
        self._tell(request)
        self._listener.on_finished(request)

    def _boundary(self) -> None:
        """No step is in flight: carries out what waited for that, and begins the next segment."""
        if self._busy or self.stopped:
            return
        self._busy = True
        segment = None
        while segment is None:
            while self._at_boundary:
                actions, self._at_boundary = self._at_boundary, []
                for action in actions:
                    action()
            segment = self._scheduler.plan(self)
            if not self._at_boundary:
                break
        self._busy = False
        if segment is not None and not self.stopped:
            # A preemption may have made somebody ask for the next boundary.
            self._begin(Segment(1) if self._at_boundary and segment.steps > 1 else segment)

    def _begin(self, segment: Segment) -> None:
        now = self.kernel.now
        batch = self.batch
        pace = 1.0 + self.slowdown
        size = len(batch.members)
        chunk_s = self._chunks_s(segment.chunks, alone=not segment.steps) if segment.chunks else 0.0
        first_s, growth_s = chunk_s * pace, 0.0
        if segment.steps:
            first_s = (self._batch_s[size] + self._token_s * batch.tokens + chunk_s) * pace
            growth_s = self._token_s * size * pace
        self._flight.begin(segment, now, max(0.0, self.stalled_until_s - now), first_s, growth_s)
        self._timer = self.kernel.at(self._flight.end_s, self._finish_segment)

    def _chunks_s(self, chunks: tuple[tuple[SimRequest, int], ...], alone: bool) -> float:
        prefill = self.profile.prefill
        compute_ms = prefill.base_ms if alone else 0.0
        for request, tokens in chunks:
            compute_ms += prefill.compute_ms(tokens, request.prefilled)
        return compute_ms / 1e3 + (self._overhead_s[len(chunks)] if alone else 0.0)
