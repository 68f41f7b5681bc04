"""Who runs where tokens come slowly goes to where they come clearly faster.

Freeness asks whether memory lasts; it does not see that an engine is slow: because its device is throttled, or a
smaller one, because somebody else uses its host, or because its batch is large where there is memory for all of it. New
requests avoid such an instance (`policy/soonest.py`), those that run there would be slow until they end. So, beside the
pairs of a round (`policy/pairing.py`), an instance gives a running request to the one on which, with this request, a
token takes least, if what it takes here is `pace_gain` times as long at least. No move for the sake of pace calls for
its way back: what came would have to be as much slower there as here. For want of memory it may go back.

What steps cost is fitted, and where an engine has only had batches that were alike the fit may say anything of others.
So what was seen counts, too: here a token takes no more than steps took, there no less than the shortest of them.

Memory comes first: the target has room, and does not become one that gives requests away for want of it. Important
requests leave first, and new ones, which go where their headroom is, pass over stragglers: once everybody has left, one
looks freest of all.
"""

from __future__ import annotations

from collections.abc import Sequence

from llumnix.policy.demand import tokens_in
from llumnix.policy.pairing import (
    TRIES_PER_SOURCE,
    Load,
    Pair,
    PairingRound,
    PairingTerms,
    Rejection,
    Why,
    may_take,
    with_added,
)
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot
from llumnix.policy.step_cost import token_s
from llumnix.policy.victim import Wanted
from llumnix.policy.virtual_usage import held_blocks, migration_freeness, room_blocks
from llumnix.types import InstanceId, InstanceState, Role

_RUNNING = InstanceState.RUNNING
"""By itself: reading a member of an enum costs a call on Python 3.11."""

Paced = tuple[float, InstanceId, InstanceSnapshot]
"""Seconds between two tokens there."""


def pair_by_pace(cluster: ClusterSnapshot, terms: PairingTerms, busy: set[InstanceId]) -> PairingRound:
    """The slowest first, each with the fastest that can take one from it. `busy`: instances that exchange requests
    already."""
    known = [one for one in cluster.instances if one.state is _RUNNING and one.step_cost is not None]
    if not _differ(known, terms.pace_gain):
        return PairingRound((), ())
    takers = sorted(
        ((_there_s(one), one.id, one) for one in known if one.id not in busy and may_take(one, terms)), key=_by_pace
    )
    givers = ((_here_s(one), one.id, one) for one in known if _may_give(one, terms, busy))
    slow = [each for each in givers if takers and each[0] > terms.pace_gain * takers[0][0]]
    pairs: list[Pair] = []
    rejected: list[Rejection] = []
    for giver in sorted(slow, key=_by_slowness):
        if any(pair.target == giver[1] for pair in pairs):
            continue  # it takes one from a slower one in this round
        pair = _first_faster(giver, takers, terms, rejected)
        if pair is not None:
            pairs.append(pair)
    return PairingRound(tuple(pairs), tuple(rejected))


def _differ(instances: Sequence[InstanceSnapshot], pace_gain: float) -> bool:
    """Whether it is worth a closer look: most rounds end here, whatever the size of the cluster."""
    expected_s = [token_s(one) or 0.0 for one in instances]
    return bool(pace_gain and expected_s) and max(expected_s) > pace_gain * min(expected_s)


def _first_faster(giver: Paced, takers: list[Paced], terms: PairingTerms, rejected: list[Rejection]) -> Pair | None:
    """Takes the target of the pair off the list; notes why others were turned down."""
    for place, taker in enumerate(takers[:TRIES_PER_SOURCE]):
        if taker[0] * terms.pace_gain > giver[0]:
            break  # nor are those behind it faster
        verdict = _judge(giver, taker[2], terms)
        if isinstance(verdict, Pair):
            del takers[place]
            return verdict
        rejected.append(verdict)
    return None


def _judge(giver: Paced, taker: InstanceSnapshot, terms: PairingTerms) -> Pair | Rejection:
    here_s, _, source = giver
    load = Load(_blocks_of_one(source), queued=False)
    if (source.id, taker.id) in terms.backing_off:
        return Rejection(source.id, taker.id, Why.BACKING_OFF, by_pace=True)
    room = room_blocks(taker)
    if load.blocks > room:
        return Rejection(source.id, taker.id, Why.NO_ROOM, load.blocks, room, by_pace=True)
    there_s = _there_s(taker, more=1, tokens=tokens_in(load.blocks, taker))
    if here_s < terms.pace_gain * there_s:
        return Rejection(source.id, taker.id, Why.NOT_FASTER, here_s, there_s, by_pace=True)
    freeness = migration_freeness(taker, terms.priority_target_tokens)
    after = migration_freeness(with_added(taker, load), terms.priority_target_tokens)
    if after < terms.migrate_out_freeness:
        return Rejection(source.id, taker.id, Why.WOULD_BOUNCE, freeness, after, by_pace=True)
    return Pair(
        source=source.id,
        target=taker.id,
        wanted=Wanted(room_blocks=room, by_pace=True),
        source_freeness=migration_freeness(source, terms.priority_target_tokens),
        target_freeness=freeness,
        source_token_s=here_s,
        target_token_s=there_s,
    )


def _here_s(giver: InstanceSnapshot) -> float:
    expected_s = token_s(giver)
    assert expected_s is not None, "what its steps cost is known"
    return expected_s if giver.step_s is None else min(expected_s, giver.step_s)


def _there_s(taker: InstanceSnapshot, more: int = 0, tokens: int = 0) -> float:
    """With so many requests more, of `tokens` tokens in all."""
    expected_s = token_s(taker, more, tokens)
    assert expected_s is not None, "what its steps cost is known"
    return expected_s if taker.shortest_step_s is None else max(expected_s, taker.shortest_step_s)


def _by_pace(each: Paced) -> tuple[float, InstanceId]:
    return each[:2]


def _by_slowness(each: Paced) -> tuple[float, InstanceId]:
    return -each[0], each[1]


def _blocks_of_one(giver: InstanceSnapshot) -> int:
    """That goes: the important ones first, of which no more is told than what all hold."""
    if giver.high_running:
        return -(-held_blocks(giver) // giver.running)
    return giver.smallest_running_blocks


def stragglers(instances: Sequence[InstanceSnapshot], pace_gain: float) -> set[InstanceId]:
    """Those on which a token of one request more would take `pace_gain` times as long as on another one; none of 0."""
    there_s = {one.id: _there_s(one, more=1) for one in instances if one.step_cost is not None}
    fastest_s = min(there_s.values(), default=0.0)
    return {name for name, seconds in there_s.items() if seconds > pace_gain * fastest_s > 0}


def _may_give(instance: InstanceSnapshot, terms: PairingTerms, busy: set[InstanceId]) -> bool:
    """Not one for prompts: who makes tokens leaves that anyway."""
    return (
        instance.id not in busy
        and instance.role is not Role.PREFILL
        and not instance.stands_still
        and not instance.pinned
        and (instance.smallest_running_blocks > 0 or instance.high_running > 0)
        and instance.outgoing < terms.max_migrations
        and instance.id not in terms.empty_handed
    )
