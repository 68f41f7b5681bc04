"""Who makes way, inside an instance, for a high-priority request that waits for memory or for a place in the batch.

vLLM orders the queue by priority and preempts the least important request when the batch outgrows the memory, but it
lets nobody who runs make way for somebody who waits: under load the most important request waits until others end.
Here requests of normal priority are preempted for it; their tokens are computed once more when they come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Occupant(NamedTuple):
    """A running request that may be preempted."""

    priority: int
    arrival_s: float
    blocks: int


def displaced(occupants: Sequence[Occupant], missing_blocks: int) -> tuple[int, ...]:
    """Positions of those who make way: the least important, and of these the last that came, until their blocks
    suffice. None who is not needed, so that none of them could come back at once; nobody if all together are not
    enough."""
    order = sorted(range(len(occupants)), key=lambda n: (-occupants[n].priority, -occupants[n].arrival_s, n))
    chosen: list[int] = []
    got = 0
    for position in order:
        if got >= missing_blocks:
            break
        chosen.append(position)
        got += occupants[position].blocks
    if got < missing_blocks:
        return ()
    for position in reversed(chosen[:-1]):
        if got - occupants[position].blocks >= missing_blocks:
            got -= occupants[position].blocks
            chosen.remove(position)
    return tuple(chosen)
