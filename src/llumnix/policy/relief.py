"""Migrate instead of preempt: an instance that is about to run out of blocks gives a running request away in time.

vLLM makes room by preempting: the request loses its KV cache, and all its tokens are computed once more when it comes
back. A request that leaves a few steps earlier frees the same blocks and goes on elsewhere without a pause. Pairing
(`policy/pairing.py`) comes too late for that when it works by its rounds and its thresholds; here only this counts:
the target has room, does not run short itself by it, and is freer afterwards than the source was.
"""

from __future__ import annotations

from collections.abc import Iterable

from llumnix.policy.pairing import Load, Pair, PairingTerms, with_added, without
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.victim import Wanted
from llumnix.policy.virtual_usage import migration_freeness, room_blocks
from llumnix.types import InstanceState, Role

RELIEF_MOVES = 2
"""Requests that an instance gives away at once in its need, and that one takes."""


def short_blocks(growth_blocks: int, free_blocks: int) -> int:
    """What will be missing when the batch has grown by so many blocks. With `free_blocks` as they would be without a
    move that has just ended, this is also the test whether the move has avoided a preemption."""
    return max(0, growth_blocks - free_blocks)


def find_relief(giver: InstanceSnapshot, takers: Iterable[InstanceSnapshot], terms: PairingTerms) -> Pair | None:
    """Who takes a running request of `giver`: of `takers`, in whatever order they come, the one that is freest
    with it, if any can."""
    if giver.state is not InstanceState.RUNNING or giver.outgoing >= RELIEF_MOVES or giver.id in terms.empty_handed:
        return None
    if giver.running <= giver.high_running or not giver.smallest_running_blocks:
        return None
    load = Load(giver.smallest_running_blocks, queued=False)
    target_tokens = terms.priority_target_tokens
    freeness = migration_freeness(giver, target_tokens)
    best, best_after = None, freeness
    for taker in takers:
        if taker.state is not InstanceState.RUNNING or taker.role is Role.PREFILL or taker.id == giver.id:
            continue
        if (giver.id, taker.id) in terms.backing_off or not _can_take(taker, load):
            continue
        after = migration_freeness(with_added(taker, load), target_tokens)
        if after > best_after or (best is not None and after == best_after and taker.id < best.id):
            best, best_after = taker, after
    if best is None:
        return None
    return Pair(
        source=giver.id,
        target=best.id,
        wanted=Wanted(room_blocks=room_blocks(best), urgent=True),
        source_freeness=freeness,
        target_freeness=migration_freeness(best, target_tokens),
        source_after=migration_freeness(without(giver, load), target_tokens),
        target_after=best_after,
    )


def _can_take(taker: InstanceSnapshot, load: Load) -> bool:
    """With a block to spare for each request of its own, so that the shortage does not only change places."""
    if taker.preempted or taker.short_blocks or taker.stands_still:
        return False
    return taker.incoming < RELIEF_MOVES and room_blocks(taker) - taker.running >= load.blocks
