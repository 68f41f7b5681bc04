"""The local scheduler of vLLM V1: one token budget a step, shared by decoding and chunks of prompts.

Running requests come first (one token each, then the unfinished prompts), then the queue as long as
budget, blocks and sequences last. A request is admitted only if its whole sequence fits. When blocks run
out, the least important, newest running request is preempted, and nobody is admitted in that step.
Prefix-cached units are not computed again.
"""

from __future__ import annotations

from llumnix.sim.engine import Engine
from llumnix.sim.flight import Segment
from llumnix.sim.request import SimRequest


class TokenBudget:
    """Local scheduler `vllm-1`. Stateless: all state is the engine's."""

    def could_admit(self, engine: Engine, request: SimRequest) -> bool:
        if engine.running >= engine.profile.scheduler.max_num_seqs:
            return False
        units, idle = _hits(engine, request)
        return engine.pool.can_admit(engine.blocks_of(request.tokens) - units + idle)

    def plan(self, engine: Engine) -> Segment | None:
        batch = engine.batch
        quiet = not engine.prefilling and batch.members
        if quiet and not (engine.waiting and self.could_admit(engine, engine.waiting[0])):
            steps = batch.steps_within(engine.pool.free, batch.steps_to_next_end())
            if steps:
                return Segment(steps)
        chunks, preempted = self._continue_prompts(engine)
        budget = engine.profile.scheduler.max_num_batched_tokens - len(batch.members) - sum(n for _, n in chunks)
        if not preempted or not engine.running:
            chunks += self._admit(engine, budget)
        if not chunks and not batch.members:
            return None
        return Segment(1 if batch.members else 0, tuple(chunks))

    def _continue_prompts(self, engine: Engine) -> tuple[list[tuple[SimRequest, int]], bool]:
        """Chunks of the prompts begun earlier, after making room for what the batch takes."""
        batch, pool = engine.batch, engine.pool
        preempted = False
        while True:
            budget = engine.profile.scheduler.max_num_batched_tokens - len(batch.members)
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

    def _admit(self, engine: Engine, budget: int) -> list[tuple[SimRequest, int]]:
        limits, pool = engine.profile.scheduler, engine.pool
        chunks: list[tuple[SimRequest, int]] = []
        reserve = engine.batch.blocks_for(1) if engine.batch.members else 0
        while engine.waiting and budget > 0 and engine.running < limits.max_num_seqs:
            request = engine.waiting[0]
            units, idle = _hits(engine, request)
            if not pool.can_admit(engine.blocks_of(request.tokens) - units + idle + reserve):
                break
            cached_tokens = 0
            if units:
                cache = pool.cache
                assert cache is not None
                request.cached_units = units // cache.unit_blocks
                pool.take(cache.use(request.hashes[: request.cached_units]))
                cached_tokens = request.cached_units * cache.unit_tokens
            tokens = min(request.tokens - cached_tokens, budget)
            blocks = engine.blocks_of(cached_tokens + tokens)
            pool.take(blocks - units)
            request.prefilled = cached_tokens
            engine.start(request, blocks)
            chunks.append((request, tokens))
            budget -= tokens
        return chunks


def _hits(engine: Engine, request: SimRequest) -> tuple[int, int]:
    """Blocks of the request's prefix that are cached, and how many of those nobody uses now."""
    cache = engine.pool.cache
    if cache is None or not request.hashes:
        return 0, 0
    units = cache.hits(request.hashes, request.tokens)
    return units * cache.unit_blocks, cache.idle_among(request.hashes[:units]) * cache.unit_blocks
