"""The local scheduler of the paper's engine (vLLM 0.1): whole prompts first, decoding stands still meanwhile.

If anybody waits and fits, the next step prefills whole prompts, as many as fit below the watermark, the
token limit and the sequence limit. Otherwise everybody decodes. When a sequence finds no free block, the
newest running one is preempted and computed again later.
"""

from __future__ import annotations

from llumnix.sim.engine.engine import EngineModel
from llumnix.sim.engine.flight import Segment
from llumnix.sim.engine.request import SimRequest


class PrefillFirst:
    """Local scheduler `vllm-0.1`. Stateless: all state is the engine's."""

    small_first = False

    def could_admit(self, engine: EngineModel, request: SimRequest) -> bool:
        return (
            engine.pool.can_admit(engine.blocks_of(request.tokens))
            and engine.running < engine.profile.scheduler.max_num_seqs
        )

    def plan(self, engine: EngineModel) -> Segment | None:
        if engine.waiting:
            chunks = self._admit(engine)
            if chunks:
                return Segment(0, tuple(chunks))
        batch, pool = engine.batch, engine.pool
        if not batch.members:
            return None
        # A step needs one free block at each sequence's turn, even if that sequence takes none.
        quiet = batch.steps_within(pool.free - 1, batch.steps_to_next_end())
        if quiet:
            return Segment(quiet)
        self._make_room(engine)
        return Segment(1) if batch.members else self.plan(engine)

    def _admit(self, engine: EngineModel) -> list[tuple[SimRequest, int]]:
        limits, pool = engine.profile.scheduler, engine.pool
        chunks: list[tuple[SimRequest, int]] = []
        tokens = 0
        while engine.waiting and engine.running < limits.max_num_seqs:
            request = engine.waiting[0]
            blocks = engine.blocks_of(request.tokens)
            if (tokens and tokens + request.tokens > limits.max_num_batched_tokens) or not pool.can_admit(blocks):
                break
            pool.take(blocks)
            engine.start(request, blocks)
            chunks.append((request, request.tokens))
            tokens += request.tokens
        return chunks

    def _make_room(self, engine: EngineModel) -> None:
        """Goes through the batch as the next step would, preempting from its end when nothing is free."""
        batch = engine.batch
        taken = turn = 0
        while turn < len(batch.members):
            while engine.pool.free - taken < 1:
                engine.preempt(batch.members[-1])
                if turn >= len(batch.members):
                    return
            taken += batch.takes_block(batch.members[turn])
            turn += 1
