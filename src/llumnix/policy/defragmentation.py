"""De-fragmentation: room for the first request of a queue (paper sections 3 and 4.4.1).

Memory that is free in sum is often free in pieces: a request waits at the head of its queue, with everybody behind it,
for a few blocks more than its instance has, while as many lie idle elsewhere, too few for whoever waits there. Pairing
by freeness (`policy/pairing.py`) does not see that: both instances look full, and neither looks better after a move.
So pieces are traded here: an instance whose head lacks d blocks gives away a running request that holds at least d to
an instance that has that much to spare, and the head starts at once.

An instance that waits itself gives its piece away only to one that lacks more than that: whoever is nearer to its goal
is not set back. The smallest shortage is mended first, with the largest piece.
"""

from __future__ import annotations

from llumnix.policy.pairing import Pair, PairingRound, PairingTerms, pair_by_benefit
from llumnix.policy.priority import headroom_blocks
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot
from llumnix.policy.straggling import pair_by_pace
from llumnix.policy.victim import Wanted
from llumnix.policy.virtual_usage import migration_freeness
from llumnix.types import InstanceId, InstanceState, Role

TRIES_PER_GIVER = 32
"""Instances that are tried for one that makes room in one round, the largest piece first: bounds a round's cost."""


def missing_blocks(instance: InstanceSnapshot) -> int:
    """What the first of the queue lacks to start now; 0 if nothing, or if nobody waits."""
    if not instance.waiting:
        return 0
    needed = instance.head_of_line_blocks + instance.watermark_blocks + instance.spared_blocks
    return max(0, needed - instance.free_blocks)


def spare_blocks(instance: InstanceSnapshot, priority_target_tokens: int | None) -> int:
    """A piece that the instance can do without: a block stays for each of its running requests, and what its queue can
    start with stays, too, and so does headroom. If its head cannot start anyway, what is free is of no use to it
    now."""
    if instance.role is Role.PREFILL or instance.running + instance.incoming >= instance.max_running:
        return 0
    wanted = 0 if missing_blocks(instance) else instance.queued_blocks
    kept = instance.watermark_blocks + instance.running + headroom_blocks(instance, priority_target_tokens)
    return max(0, instance.free_blocks - kept - wanted)


def pair_and_make_room(cluster: ClusterSnapshot, terms: PairingTerms) -> PairingRound:
    """Ours: pairs by benefit, then de-fragmentation between the instances that have no part in those, then stragglers
    between those that are left."""
    paired = pair_by_benefit(cluster, terms)
    busy = {end for pair in paired.pairs for end in (pair.source, pair.target)}
    more = _make_room(cluster, terms, busy)
    by_pace = pair_by_pace(cluster, terms, busy)
    pairs = (*paired.pairs, *more, *by_pace.pairs)
    helped = {pair.source for pair in pairs}
    rejected = tuple(no for no in (*paired.rejected, *by_pace.rejected) if no.source not in helped)
    return PairingRound(pairs, rejected)


def _make_room(cluster: ClusterSnapshot, terms: PairingTerms, busy: set[InstanceId]) -> list[Pair]:
    free = [one for one in cluster.instances if one.state is InstanceState.RUNNING and one.id not in busy]
    givers = [one for one in free if missing_blocks(one) and _may_give(one, terms)]
    if not givers:
        return []
    target = terms.priority_target_tokens
    spare = ((spare_blocks(one, target), one) for one in free if one.incoming < terms.max_migrations)
    takers = sorted((entry for entry in spare if entry[0]), key=lambda entry: (-entry[0], entry[1].id))
    givers.sort(key=lambda one: (missing_blocks(one), one.id))
    pairs: list[Pair] = []
    for giver in givers:
        taker = None if giver.id in busy else _taker_for(giver, takers, terms, busy)
        if taker is not None:
            busy |= {giver.id, taker.id}
            pairs.append(_pair(giver, taker, terms))
    return pairs


def _may_give(giver: InstanceSnapshot, terms: PairingTerms) -> bool:
    return (
        giver.outgoing < terms.max_migrations
        and giver.id not in terms.empty_handed
        and giver.running > giver.high_running
        and giver.smallest_running_blocks > 0
    )


def _taker_for(
    giver: InstanceSnapshot, takers: list[tuple[int, InstanceSnapshot]], terms: PairingTerms, busy: set[InstanceId]
) -> InstanceSnapshot | None:
    """Takes it off the list, which holds spare blocks and instances, the largest piece first."""
    missing = missing_blocks(giver)
    tries = 0
    for place, (spare, taker) in enumerate(takers):
        if spare < missing or tries == TRIES_PER_GIVER:
            return None
        if taker.id in busy or taker.id == giver.id:
            continue
        tries += 1
        nearer = 0 < missing_blocks(taker) < missing
        if not nearer and (giver.id, taker.id) not in terms.backing_off:
            del takers[place]
            return taker
    return None


def _pair(giver: InstanceSnapshot, taker: InstanceSnapshot, terms: PairingTerms) -> Pair:
    return Pair(
        source=giver.id,
        target=taker.id,
        wanted=Wanted(
            room_blocks=spare_blocks(taker, terms.priority_target_tokens), at_least_blocks=missing_blocks(giver)
        ),
        source_freeness=migration_freeness(giver, terms.priority_target_tokens),
        target_freeness=migration_freeness(taker, terms.priority_target_tokens),
        preempted=giver.preempted,
    )
