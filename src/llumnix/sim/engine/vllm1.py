"""The local scheduler of vLLM V1: one token budget a step, shared by decoding and chunks of prompts.

Running requests come first (one token each, then the unfinished prompts), then the queue as long as
budget, blocks and sequences last. A request is admitted only if its whole sequence fits. When blocks run
out, the least important, newest running request is preempted, and nobody is admitted in that step.
Prefix-cached units are not computed again. Where the instances of ours displace, normal requests make way for an
important one at the head of the queue (`policy/displacing.py`), who needs little goes first in it and leaves those that
run room to grow (`policy/waiting_order.py`), nobody stands still for long (`control/changes_of_turn.py`), and prompts
leave the decoding requests their time between two tokens (`policy/step_cost.py`), as live.
"""

from __future__ import annotations

from llumnix.policy.displacing import Occupant, displaced
from llumnix.policy.step_cost import prompt_tokens
from llumnix.policy.waiting_order import GROWTH_STEPS
from llumnix.sim.engine.engine import EngineModel
from llumnix.sim.engine.flight import Segment
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.engine.turns import change_turns
from llumnix.types import is_high


class TokenBudget:
    """Local scheduler `vllm-1`. Stateless: all state is the engine's. `displaces`: normal requests make way."""

    def __init__(self, displaces: bool = False, small_first: bool = False) -> None:
        self._displaces = displaces
        self.small_first = small_first

    def could_admit(self, engine: EngineModel, request: SimRequest) -> bool:
        has_slot = engine.running < engine.profile.scheduler.max_num_seqs
        if has_slot and engine.pool.can_admit(_needs(engine, request)[0] + _kept(engine)):
            return True
        return bool(self._who_makes_way(engine, request))

    def plan(self, engine: EngineModel) -> Segment | None:
        batch = engine.batch
        looks_again = False
        if engine.waiting:
            for request in self._who_makes_way(engine, engine.waiting[0]):
                engine.preempt(request)
            looks_again = self._change_turns(engine)
        quiet = not engine.prefilling and batch.members
        if quiet and not (engine.waiting and self._may_start_soon(engine, engine.waiting[0])):
            steps = batch.steps_within(engine.pool.free, batch.steps_to_next_end())
            if steps:
                return Segment(1 if looks_again else steps)
        chunks, preempted = self._continue_prompts(engine)
        budget = step_tokens(engine) - len(batch.members) - sum(n for _, n in chunks)
        if not preempted or not engine.running:
            chunks += self._admit(engine, budget)
        if not chunks and not batch.members:
            return None
        return Segment(1 if batch.members else 0, tuple(chunks))

    def _may_start_soon(self, engine: EngineModel, head: SimRequest) -> bool:
        """Whether the first of the queue may get in before any running request ends."""
        return (self._displaces and is_high(head.priority)) or self.could_admit(engine, head)

    def _who_makes_way(self, engine: EngineModel, head: SimRequest) -> list[SimRequest]:
        """Whom to preempt so that the first of the queue can start in the next step."""
        if not self._displaces or not is_high(head.priority):
            return []
        missing = _missing(engine, head)
        if missing <= 0:
            return []
        normal = [request for request in engine.running_requests() if not is_high(request.priority)]
        occupants = [Occupant(each.priority, each.arrival_s, engine.held_blocks(each)) for each in normal]
        return [normal[position] for position in displaced(occupants, missing)]

    def _change_turns(self, engine: EngineModel) -> bool:
        """True: who has stood still for too long may find room before the next step."""
        return change_turns(engine, lambda stopped: _missing(engine, stopped))

    def _continue_prompts(self, engine: EngineModel) -> tuple[list[tuple[SimRequest, int]], bool]:
        """Chunks of the prompts begun earlier, after making room for what the batch takes."""
        batch, pool = engine.batch, engine.pool
        preempted = False
        while True:
            budget = step_tokens(engine) - len(batch.members)
            chunks: list[tuple[SimRequest, int]] = []
            growth: list[tuple[SimRequest, int]] = []
            need = batch.blocks_for(1) if batch.members else 0
            for request in engine.prefilling:
                tokens = min(request.tokens - request.prefilled, budget)
                if tokens <= 0:
                    break
                budget -= tokens
                blocks = engine.blocks_of(request.prefilled + tokens)
                growth.append((request, blocks))
                need += blocks - request.blocks
                chunks.append((request, tokens))
            if need <= pool.free:
                break
            engine.preempt(engine.running_requests()[-1])
            preempted = True
        for request, blocks in growth:
            pool.take(blocks - request.blocks)
            request.blocks = blocks
        return chunks, preempted

    def _admit(self, engine: EngineModel, budget: int) -> list[tuple[SimRequest, int]]:
        limits, pool = engine.profile.scheduler, engine.pool
        chunks: list[tuple[SimRequest, int]] = []
        while engine.waiting and budget > 0 and engine.running < limits.max_num_seqs:
            request = engine.waiting[0]
            needs, units = _needs(engine, request)
            if not pool.can_admit(needs + _kept(engine)):
                break
            cached_tokens = 0
            if units:
                cache = pool.cache
                assert cache is not None
                request.cached_units = units // cache.unit_blocks
                pool.share(request.hashes[: request.cached_units])
                cached_tokens = request.cached_units * cache.unit_tokens
            tokens = min(request.tokens - cached_tokens, budget)
            blocks = engine.blocks_of(cached_tokens + tokens)
            pool.take(blocks - units)
            request.prefilled = request.hit_tokens = cached_tokens
            engine.start(request, blocks)
            chunks.append((request, tokens))
            budget -= tokens
        return chunks


def step_tokens(engine: EngineModel) -> int:
    """Tokens that the next step computes at most, a token of each decoding request among them."""
    decoding = len(engine.batch.members)
    most = engine.profile.scheduler.max_num_batched_tokens - decoding
    return decoding + prompt_tokens(engine.step_cost, decoding, engine.batch.tokens, engine.tpot_target_s, most)


def _kept(engine: EngineModel) -> int:
    """Blocks that stay free when the first of the queue starts, since those that run take them soon."""
    return engine.batch.blocks_for(1) + spared_blocks(engine, 1, GROWTH_STEPS)


def spared_blocks(engine: EngineModel, after: int, until: int) -> int:
    """What the batch takes from one of the next steps to another, and prompts that were begun still take; 0 where the
    first of the queue does not leave it to them."""
    if not engine.queue.head_leaves_room():
        return 0
    rest = sum(engine.blocks_of(each.tokens) - each.blocks for each in engine.prefilling)
    return engine.batch.blocks_for(until) - engine.batch.blocks_for(after) + rest


def _missing(engine: EngineModel, request: SimRequest) -> int:
    """Blocks that a request from the queue lacks to start in the next step; at least one where the batch is full."""
    pool = engine.pool
    missing = _needs(engine, request)[0] + engine.batch.blocks_for(1) + pool.watermark - pool.free
    return max(missing, 1) if engine.running >= engine.profile.scheduler.max_num_seqs else missing


def _needs(engine: EngineModel, request: SimRequest) -> tuple[int, int]:
    """Free blocks that a request from the queue would use up, and how many more of its prefix are cached."""
    units, blocks = engine.pool.cached(request.hashes, request.tokens)
    return engine.blocks_of(request.tokens) - blocks + engine.pool.idle_blocks(request.hashes[:units]), blocks
