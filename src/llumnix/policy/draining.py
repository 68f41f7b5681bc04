"""Where the requests of a draining instance go: to the freest instances that have room, several at once.

Unlike pairing this needs no thresholds and no benefit: a draining instance is charged infinitely much, so every
move raises the lower of the two freeness values. What finds no room stays, goes on, and is tried again later. Who runs
goes to an instance for prompts last: there it would soon move once more. Whose prompt another instance has cached goes
there before, for that need not be copied, if it is about as free as the freest.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import islice

import msgspec
from msgspec.structs import replace

from llumnix.policy.pairing import Load, with_added
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.virtual_usage import held_blocks, migration_freeness, room_blocks
from llumnix.types import InstanceId, InstanceState, RequestId, Role

ABOUT_AS_FREE = 0.25
"""So much less free than the freest, in proportion, an instance may be that has the prompt cached."""


class DrainTerms(msgspec.Struct, frozen=True, kw_only=True):
    moves: int
    """How many requests may be sent off now."""
    max_incoming: int
    """Migrations that a target may have coming in."""
    priority_target_tokens: int | None = None
    backing_off: Container[tuple[InstanceId, InstanceId]] = frozenset()


class Placement(msgspec.Struct, frozen=True):
    """`count` requests of at most `promised_blocks` together may go to `target`; `str(placement)` is the reason."""

    target: InstanceId
    count: int
    promised_blocks: int
    room_blocks: int
    freeness: float
    request: RequestId | None = None
    """This one, whose prompt is cached there; None: the source picks."""

    def __str__(self) -> str:
        cached = "" if self.request is None else "its prompt is cached there; "
        return f"{cached}freeness {self.freeness:.4g}, room for {self.room_blocks} blocks"


def place_where_cached(
    source: InstanceSnapshot,
    where: Mapping[RequestId, InstanceId],
    targets: Iterable[InstanceSnapshot],
    terms: DrainTerms,
) -> tuple[Placement, ...]:
    """Those of `where` that can go now to the instance that has their prompt, one by one."""
    typical = Load(_typical_blocks(source), queued=False)
    able = {each.id: each for each in targets if _may_take(source, each, typical.blocks, terms)}
    freeness = {name: migration_freeness(each, terms.priority_target_tokens) for name, each in able.items()}
    places: list[Placement] = []
    for request, name in where.items():
        if len(places) >= terms.moves or not able:
            break
        best = max(freeness.values())
        target = able.get(name)
        if target is None or freeness[name] < best - ABOUT_AS_FREE * abs(best) or _comes_last(source, target):
            continue
        room = room_blocks(target)
        places.append(Placement(name, 1, min(typical.blocks, room), room, freeness[name], request))
        able[name] = after = replace(with_added(target, typical), incoming=target.incoming + 1)
        freeness[name] = migration_freeness(after, terms.priority_target_tokens)
        if not _may_take(source, after, typical.blocks, terms):
            del able[name], freeness[name]
    return tuple(places)


def place_drained(
    source: InstanceSnapshot, targets: Iterable[InstanceSnapshot], terms: DrainTerms
) -> tuple[Placement, ...]:
    """Deals the requests out one by one, each to the instance that is freest with those dealt before. `targets` come
    with the freest first; no more of them are read than there are moves to make."""
    typical = Load(_typical_blocks(source), queued=False)
    smallest = min(source.smallest_running_blocks or typical.blocks, typical.blocks)
    able = (
        (
            _comes_last(source, target),
            -migration_freeness(target, terms.priority_target_tokens),
            target.id,
            target,
        )
        for target in targets
        if _may_take(source, target, smallest, terms)
    )
    freest = list(islice(able, terms.moves))
    heapify(freest)
    first_look: dict[InstanceId, tuple[int, float]] = {}
    dealt: dict[InstanceId, int] = {}
    while freest and sum(dealt.values()) < terms.moves:
        comes_last, negated, _, target = heappop(freest)
        first_look.setdefault(target.id, (room_blocks(target), -negated))
        dealt[target.id] = dealt.get(target.id, 0) + 1
        after = replace(with_added(target, typical), incoming=target.incoming + 1)
        if _may_take(source, after, smallest, terms):
            freeness = migration_freeness(after, terms.priority_target_tokens)
            heappush(freest, (comes_last, -freeness, after.id, after))
    most = held_blocks(source) + source.running + source.queued_blocks  # who runs may be about to take one more
    return tuple(
        Placement(target, count, min(most, first_look[target][0]), *first_look[target])
        for target, count in dealt.items()
    )


def _may_take(source: InstanceSnapshot, target: InstanceSnapshot, blocks: int, terms: DrainTerms) -> bool:
    return (
        target.state is InstanceState.RUNNING
        and not target.stands_still
        and (source.id, target.id) not in terms.backing_off
        and target.incoming < terms.max_incoming
        and room_blocks(target) >= blocks
    )


def _comes_last(source: InstanceSnapshot, target: InstanceSnapshot) -> bool:
    return source.running > 0 and target.role is Role.PREFILL


def _typical_blocks(source: InstanceSnapshot) -> int:
    if source.running:
        return max(1, -(-held_blocks(source) // source.running))
    return max(1, -(-source.queued_blocks // max(1, source.waiting)))
