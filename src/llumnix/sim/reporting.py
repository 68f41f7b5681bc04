"""The load report of a simulated instance: what it says, and when it goes out."""

from __future__ import annotations

from typing import TypedDict, cast

from msgspec.structs import replace

from llumnix.control.llumlet import Llumlet
from llumnix.control.pace import ReportPace
from llumnix.control.prefix_table import SWEEP_S, Chunk, PrefixTable
from llumnix.policy.prefix import cached_tokens
from llumnix.policy.snapshot import InstanceSnapshot, RequestSnapshot, StepCost
from llumnix.policy.victim import QUEUE_SHOWN, why_not_to_decode
from llumnix.policy.waiting_order import GROWTH_STEPS
from llumnix.sim.account import Account
from llumnix.sim.engine.engine import EngineModel
from llumnix.sim.engine.request import PREFILLING, WAITING, SimRequest
from llumnix.sim.engine.vllm1 import spared_blocks, step_tokens
from llumnix.sim.kernel import Timer
from llumnix.sim.world import World
from llumnix.types import Priority, RequestId, RequestState, Role

DRIFT_REPORT_S = 0.4
"""A busy instance looks at least this often. Live it is at every step, but between two events only the blocks of
the batch grow: in this time by half a block per request, which is noise against any threshold."""

IDLE_REPORT_S = 2.0
"""An idle instance reports at least this often: a sign of life."""


class Reporter:
    """Reports of one instance: when its load changes, at most one per `report_interval_s`, and as many as the size of
    the cluster allows (control/pace.py)."""

    def __init__(self, account: Account, engine: EngineModel, world: World, prefixes: PrefixTable | None) -> None:
        self._account = account
        self._engine = engine
        self._world = world
        self._prefixes = prefixes
        self._swept_s = 0.0
        self._kernel = world.kernel
        self._seq = 0
        self._timer: Timer | None = None
        self._due_s = 0.0
        self._looked_s = -1.0
        cluster, self._each_step = world.cluster, world.looks_each_step
        quiet_s = cluster.quiet_report_interval_s if self._each_step else 0.0
        self._pace = ReportPace(cluster, world.size, quiet_s)
        self._drift_s = cluster.report_interval_s if self._each_step else DRIFT_REPORT_S
        self._beats = False
        """It repeats its last report while its engine stands still."""
        self._last: InstanceSnapshot | None = None
        self._progress_s = 0.0
        """When the engine last did something, or had nothing to do, as far as its reports and heartbeats told."""

    def soon(self) -> None:
        """The load changed: a report may go out now, or when the shortest interval since the last look is over."""
        self.not_after(max(self._kernel.now, self._looked_s + self._world.cluster.report_interval_s))

    def not_after(self, due_s: float) -> None:
        """A look at the load at `due_s` at the latest."""
        if self._timer is None or due_s < self._due_s:
            self._set(due_s)

    def beat(self) -> None:
        """The engine hangs: until it goes on, the last report is repeated."""
        self._beats = True
        self.soon()

    def stop(self) -> None:
        """No report any more."""
        if self._timer is not None:
            self._kernel.cancel(self._timer)

    def look(self) -> InstanceSnapshot:
        """The load now, for display: not a report, so not numbered as one."""
        return self._describe()

    def snapshot(self) -> InstanceSnapshot:
        """The load now, as a numbered report."""
        self._seq += 1
        self._progress_s = self._kernel.now
        self._engine.queue.looked_at(self._kernel.now)
        self._last = self._describe()
        return self._last

    def _describe(self) -> InstanceSnapshot:
        account, engine = self._account, self._engine
        queue = engine.queue
        started = engine.steps_started()
        free_blocks = engine.pool.free - engine.batch.blocks_for(started)
        moving = account.llumlet
        return InstanceSnapshot(
            id=account.id,
            at=self._kernel.now,
            seq=self._seq,
            state=account.state,
            total_blocks=engine.pool.total,
            watermark_blocks=engine.pool.watermark,
            free_blocks=free_blocks,
            block_tokens=engine.batch.block_tokens,
            state_blocks=engine.state_blocks,
            max_running=engine.profile.scheduler.max_num_seqs,
            running=engine.running,
            waiting=len(queue.requests),
            preempted=queue.preempted,
            head_of_line_blocks=queue.head_blocks(),
            head_of_line_s=queue.head_s(self._kernel.now),
            queued_blocks=queue.blocks,
            **_ahead(engine, started),
            **self._roles(),
            high_running=engine.high_running,
            high_waiting=queue.high,
            incoming=moving.incoming if moving is not None else 0,
            outgoing=moving.outgoing if moving is not None else 0,
            short_blocks=engine.short_blocks(self._world.relief_steps, free_blocks),
            preemptions=engine.preemptions,
            preemptions_avoided=account.preemptions_avoided,
            recompute_tokens_saved=account.recompute_tokens_saved,
            migrations_in=account.migrations_in,
            migrations_out=account.migrations_out,
            ended=account.ended,
            smallest_running_blocks=_smallest_running_blocks(engine, started),
            dispatches_seen=(account.dispatches_seen,),
            drain_keep=account.drain_keep,
        )

    def _roles(self) -> _Roles:
        account, to_decode, blocks = self._account, 0, 0
        if account.role is Role.PREFILL:
            running = [each for each in candidates(account, self._engine, tells_rest=True) if not each.why_pinned]
            leaving = [each for each in running if why_not_to_decode(each) is None]
            to_decode, blocks = len(leaving), sum(each.needed_blocks for each in leaving)
        return _Roles(
            role=account.role,
            tpot_target_s=self._engine.tpot_target_s,
            to_decode=to_decode,
            to_decode_blocks=blocks,
        )

    def _set(self, due_s: float) -> None:
        if self._timer is not None:
            self._kernel.cancel(self._timer)
        self._due_s = due_s
        self._timer = self._kernel.at(due_s, self._report, rank=1)

    def _report(self) -> None:
        now, engine = self._kernel.now, self._engine
        self._timer = None
        if self._world.reads_between_steps and not engine.steps.idle:
            engine.steps.at_boundary(self._report)
            return
        self._looked_s = now
        stalled_s = engine.steps.stalled_until_s
        next_s: float | None = None
        if stalled_s <= now:
            self._beats = False
            self._pace.set_size(self._world.size)
            load = self.snapshot()
            if not self._pace.sends(now, load):
                next_s = now + self._drift_s if self._each_step else self._pace.next_s(load)
            else:
                late_s = engine.steps.end_s() - now if self._world.paper_body else 0.0
                self._tell_prefixes()
                self._world.reported(load, late_s)
        elif self._beats and self._last is not None:
            unread = self._account.dispatches_seen - self._last.dispatches_seen[0]
            if not (self._last.running or self._last.waiting or unread):
                self._progress_s = now
            self._world.reported(replace(self._last, unread=unread, standing_s=now - self._progress_s), 0.0)
        if self._timer is None:
            self._set(self._next_s(now, stalled_s) if next_s is None else next_s)

    def _tell_prefixes(self) -> None:
        if self._prefixes is None:
            return
        if self._kernel.now >= self._swept_s + SWEEP_S:
            self._swept_s = self._kernel.now
            self._prefixes.sweep(self._is_coming)
        if (news := self._prefixes.news()) is not None:
            self._world.prefixes_told(self._account.id, news)

    def _is_coming(self, name: RequestId) -> bool:
        request = self._world.request(name)
        here = request.id == name and request.is_on(self._account.id)
        return here and request.state in (WAITING, PREFILLING)

    def _next_s(self, now: float, stalled_s: float) -> float:
        if stalled_s <= now:
            return now + (IDLE_REPORT_S if self._engine.steps.idle else self._drift_s)
        return min(stalled_s, now + self._world.cluster.heartbeat_interval_s) if self._beats else stalled_s


def prefix_table(engine: EngineModel) -> PrefixTable | None:
    """Of an engine that keeps prefixes; its units are the chunks."""
    cache = engine.pool.cache
    return None if cache is None else PrefixTable(lambda unit: cache.has(cast("int", unit)))


def chunks_of(request: SimRequest) -> list[Chunk]:
    """Of its prompt."""
    return [Chunk(unit, unit) for unit in request.hashes]


def comes(prefixes: PrefixTable | None, engine: EngineModel, request: SimRequest) -> None:
    """It is about to be queued there; what of it is cached, and what it will find computed, is noted."""
    cache = engine.pool.cache
    if prefixes is not None and cache is not None:
        depths = prefixes.comes(RequestId(request.id), chunks_of(request))
        request.cached_tokens = cached_tokens(depths.cached, cache.unit_tokens, request.prompt_tokens)
        request.expected_hit_tokens = cached_tokens(max(depths), cache.unit_tokens, request.prompt_tokens)


class _Ahead(TypedDict):
    """What a report says of the steps that come."""

    spared_blocks: int
    prefill_tokens: int
    decoding: int
    context_tokens: int
    prefix_chunk_tokens: int
    step_tokens: int
    step_cost: StepCost | None
    slowdown: float
    computed_tokens: int
    made_tokens: int


def _smallest_running_blocks(engine: EngineModel, steps_started: int) -> int:
    shortest = engine.batch.shortest_tokens(steps_started)
    return -(-(shortest - 1) // engine.batch.block_tokens) + engine.state_blocks if shortest else 0


class _Roles(TypedDict):
    """What a report says of the instance's role, and of who leaves it for that."""

    role: Role
    tpot_target_s: float
    to_decode: int
    to_decode_blocks: int


def _ahead(engine: EngineModel, steps_started: int) -> _Ahead:
    decoding = len(engine.batch.members)
    return _Ahead(
        spared_blocks=spared_blocks(engine, steps_started, steps_started + GROWTH_STEPS),
        prefill_tokens=engine.queue.tokens + sum(each.tokens - each.prefilled for each in engine.prefilling),
        decoding=decoding,
        context_tokens=engine.batch.tokens + steps_started * decoding,
        prefix_chunk_tokens=engine.pool.cache.unit_tokens if engine.pool.cache is not None else 0,
        step_tokens=step_tokens(engine),
        step_cost=engine.step_cost,
        slowdown=engine.steps.lateness(),
        computed_tokens=engine.computed_tokens,
        made_tokens=engine.batch.made_tokens + steps_started * decoding,
    )


def candidates(account: Account, engine: EngineModel, tells_rest: bool) -> tuple[RequestSnapshot, ...]:
    """Running requests, and the front of the queue, for the choice of a victim. `tells_rest`: with what each has still
    to make, as live, where it follows from `max_tokens` (in a simulated workload all ask for exactly what they get)."""
    return tuple(
        describe(request, account.llumlet, engine, tells_rest)
        for request in [*engine.running_requests(), *engine.waiting[:QUEUE_SHOWN]]
    )


def describe(request: SimRequest, llumlet: Llumlet | None, engine: EngineModel, tells_rest: bool) -> RequestSnapshot:
    """As `candidates`, one that is here."""
    name, tokens = RequestId(request.id), engine.tokens_of(request)
    return RequestSnapshot(
        id=name,
        state=RequestState.WAITING if request.state is WAITING else RequestState.RUNNING,
        priority=Priority(request.priority),
        arrival_s=request.arrival_s,
        output_tokens=tokens - request.prompt_tokens,
        held_blocks=engine.held_blocks(request),
        needed_blocks=engine.blocks_of(tokens),
        length_blocks=engine.blocks_of(tokens) - engine.state_blocks,
        why_pinned="its last move is not over" if llumlet is not None and llumlet.is_moving(name) else "",
        remaining_tokens=request.prompt_tokens + request.output_tokens - tokens if tells_rest else None,
        moved_s=request.moved_s,
    )
