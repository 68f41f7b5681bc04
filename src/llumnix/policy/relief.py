"""Migrate instead of preempt: an instance that is about to run out of blocks gives a running request away in time.

vLLM makes room by preempting: the request loses its KV cache, and all its tokens are computed once more when it comes
back. A request that leaves a few steps earlier frees the same blocks and goes on elsewhere without a pause. Pairing
(`policy/pairing.py`) comes too late for that when it works by its rounds and its thresholds; here only this counts:
the target has room, does not run short itself by it, and is freer afterwards than the source was.
"""

from __future__ import annotations

from msgspec.structs import replace

from llumnix.policy.pairing import Load, Pair, PairingTerms, with_added, without
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot
from llumnix.policy.virtual_usage import migration_freeness, room_blocks
from llumnix.types import InstanceState

RELIEF_MOVES = 2
"""Requests that an instance gives away at once in its need, and that one takes."""


def short_blocks(growth_blocks: int, free_blocks: int) -> int:
    """What will be missing when the batch has grown by so many blocks. With `free_blocks` as they would be without a
    move that has just ended, this is also the test whether the move has avoided a preemption."""
    return max(0, growth_blocks - free_blocks)


def find_relief(giver: InstanceSnapshot, cluster: ClusterSnapshot, terms: PairingTerms) -> Pair | None:
    """Who takes a running request of `giver`: the freest instance that can, if any."""
    if giver.state is not InstanceState.RUNNING or giver.outgoing >= RELIEF_MOVES or giver.id in terms.empty_handed:
        return None
    if giver.running <= giver.high_running or not giver.smallest_running_blocks:
        return None
    load = Load(giver.smallest_running_blocks, queued=False)
    freeness = migration_freeness(giver, terms.priority_target_tokens)
    best: Pair | None = None
    for taker in cluster.instances:
        if taker.id == giver.id or (giver.id, taker.id) in terms.backing_off or not _can_take(taker, load):
            continue
        after = migration_freeness(with_added(taker, load), terms.priority_target_tokens)
        if after > freeness and (best is None or best.target_after is None or after > best.target_after):
            best = Pair(
                source=giver.id,
                target=taker.id,
                room_blocks=room_blocks(taker),
                source_freeness=freeness,
                target_freeness=migration_freeness(taker, terms.priority_target_tokens),
                source_after=migration_freeness(without(giver, load), terms.priority_target_tokens),
                target_after=after,
            )
    return best


def _can_take(taker: InstanceSnapshot, load: Load) -> bool:
    """With a block to spare for each request of its own, so that the shortage does not only change places."""
    if taker.state is not InstanceState.RUNNING or taker.preempted or taker.short_blocks:
        return False
    grown = replace(taker, free_blocks=max(0, taker.free_blocks - taker.running))
    return taker.incoming < RELIEF_MOVES and room_blocks(grown) >= load.blocks
