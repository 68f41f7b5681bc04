"""De-fragmentation: room for the first request of a queue (paper sections 3 and 4.4.1).

Memory that is free in sum is often free in pieces: a request waits at the head of its queue, with everybody behind it,
for a few blocks more than its instance has, while as many lie idle elsewhere, too few for whoever waits there. Pairing
by freeness (`policy/pairing.py`) does not see that: both instances look full, and neither looks better after a move.
So pieces are traded here: an instance whose head lacks d blocks gives away a running request that holds at least d to
an instance that has that much to spare, and the head starts at once.

An instance that waits itself gives its piece away only to one that lacks less than that: whoever is nearer to its goal
is not set back. The smallest shortage is mended first, with the largest piece. And whoever has been the first of its
queue for `HEAD_PATIENCE_S` is not set back at all: a request that needs most of an instance's memory would lack more
than all others, and wait for as long as there are any.
"""

from __future__ import annotations

from llumnix.policy.pairing import Pair, PairingRound, PairingTerms, Rejection, Why, pair_by_benefit
from llumnix.policy.priority import headroom_blocks
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot
from llumnix.policy.straggling import pair_by_pace
from llumnix.policy.victim import Wanted
from llumnix.policy.virtual_usage import migration_freeness
from llumnix.types import InstanceId, InstanceState, Role

TRIES_PER_GIVER = 32
"""Instances that are tried for one that makes room in one round, the largest piece first: bounds a round's cost."""


HEAD_PATIENCE_S = 10.0
"""From then on all that becomes free on its instance is kept for the first of the queue."""


def missing_blocks(instance: InstanceSnapshot) -> int:
    """What the first of the queue lacks to start now; 0 if nothing, or if nobody waits."""
    if not instance.waiting:
        return 0
    needed = instance.head_of_line_blocks + instance.watermark_blocks + instance.spared_blocks
    return max(0, needed - instance.free_blocks)


def spare_blocks(instance: InstanceSnapshot, priority_target_tokens: int | None) -> int:
    """A piece that the instance can do without: a block stays for each of its running requests, and what its queue can
    start with stays, too, and so does headroom. If its head cannot start anyway, what is free is of no use to it
    now, unless it has waited long: then it collects."""
    full = instance.running + instance.incoming >= instance.max_running
    if instance.role is Role.PREFILL or instance.stands_still or full:
        return 0
    lacks = missing_blocks(instance) > 0
    if lacks and instance.head_of_line_s >= HEAD_PATIENCE_S:
        return 0
    wanted = 0 if lacks else instance.queued_blocks
    kept = instance.watermark_blocks + instance.running + headroom_blocks(instance, priority_target_tokens)
    return max(0, instance.free_blocks - kept - wanted)


def pair_and_make_room(cluster: ClusterSnapshot, terms: PairingTerms) -> PairingRound:
    """Ours: pairs by benefit, then de-fragmentation between the instances that have no part in those, then stragglers
    between those that are left."""
    paired = pair_by_benefit(cluster, terms)
    room = _make_room(cluster, terms, _ends(paired))
    by_pace = pair_by_pace(cluster, terms, _ends(paired) | _ends(room))
    pairs = (*paired.pairs, *room.pairs, *by_pace.pairs)
    told = {no.source for no in paired.rejected}  # why they look full says enough of why their queue waits
    lacking = [no for no in room.rejected if no.source not in told]
    helped = {pair.source for pair in pairs}
    rejected = tuple(no for no in (*paired.rejected, *lacking, *by_pace.rejected) if no.source not in helped)
    return PairingRound(pairs, rejected)


def _ends(paired: PairingRound) -> set[InstanceId]:
    return {end for pair in paired.pairs for end in (pair.source, pair.target)}


def _make_room(cluster: ClusterSnapshot, terms: PairingTerms, busy: set[InstanceId]) -> PairingRound:
    """`busy`: instances that exchange requests already."""
    free = [one for one in cluster.instances if one.state is InstanceState.RUNNING and one.id not in busy]
    givers = [one for one in free if missing_blocks(one)]
    if not givers:
        return PairingRound((), ())
    target = terms.priority_target_tokens
    spare = ((spare_blocks(one, target), one) for one in free if one.incoming < terms.max_migrations)
    takers = sorted((entry for entry in spare if entry[0]), key=lambda entry: (-entry[0], entry[1].id))
    givers.sort(key=lambda one: (missing_blocks(one), one.id))
    pairs: list[Pair] = []
    rejected: list[Rejection] = []
    taken: set[InstanceId] = set()
    for giver in givers:
        if giver.id in taken:
            continue
        why = _why_it_gives_none(giver, terms)
        taker = None if why else _taker_for(giver, takers, terms, taken)
        if taker is None:
            rejected.append(Rejection(giver.id, None, why or Why.NO_PIECE))
        else:
            taken |= {giver.id, taker.id}
            pairs.append(_pair(giver, taker, terms))
    return PairingRound(tuple(pairs), tuple(rejected))


def _why_it_gives_none(giver: InstanceSnapshot, terms: PairingTerms) -> Why | None:
    if giver.stands_still:
        return Why.STANDS_STILL
    if giver.outgoing >= terms.max_migrations:
        return Why.SOURCE_BUSY
    if giver.id in terms.empty_handed:
        return Why.EMPTY_HANDED
    may_give = giver.running > giver.high_running and giver.smallest_running_blocks > 0
    return None if may_give else Why.NOTHING_TO_GIVE


def _taker_for(
    giver: InstanceSnapshot, takers: list[tuple[int, InstanceSnapshot]], terms: PairingTerms, taken: set[InstanceId]
) -> InstanceSnapshot | None:
    """Takes it off the list, which holds spare blocks and instances, the largest piece first. `taken`: those that have
    a part in this round already."""
    missing = missing_blocks(giver)
    tries = 0
    for place, (spare, taker) in enumerate(takers):
        if spare < missing or tries == TRIES_PER_GIVER:
            return None
        if taker.id in taken or taker.id == giver.id:
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
