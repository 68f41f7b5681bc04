"""Which instances exchange a request: the least free with the freest (paper section 4.4.3).

De-fragmentation, load balance and priorities are not cases here. They are charges (`policy/virtual_usage.py`) that make
an instance look full; a round of pairing then takes load from instances that look full to instances that look free.

Ours tests each pair: the move must raise the lower of the two freeness values, the target must have room, and must not
become one that gives requests away itself. The paper's published experiments test nothing (`policy/pairing_paper.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Container
from enum import StrEnum
from itertools import islice

import msgspec
from msgspec.structs import replace

from llumnix.policy.roles import takes_prompts
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot
from llumnix.policy.victim import Wanted
from llumnix.policy.virtual_usage import migration_freeness, room_blocks
from llumnix.types import InstanceId, InstanceState, Role

TRIES_PER_SOURCE = 4
"""Targets that are tried for one source in one round: bounds a round's cost. What fails with the freest
four is tried again in the next round, on newer numbers."""


class PairingTerms(msgspec.Struct, frozen=True, kw_only=True):
    """The knobs of a round, and what must not be paired now."""

    migrate_out_freeness: float
    migrate_in_freeness: float
    max_migrations: int = 1
    """Migrations in flight per instance and direction."""
    priority_target_tokens: int | None = None
    backing_off: Container[tuple[InstanceId, InstanceId]] = frozenset()
    """(source, target) pairs that were refused a moment ago."""
    empty_handed: Container[InstanceId] = frozenset()
    """Instances that had nothing to give a moment ago."""
    newcomers: Container[InstanceId] = frozenset()
    """Instances that were added because the others are full."""
    pace_gain: float = 0.0
    """Who runs goes to where tokens come so many times faster (`policy/straggling.py`); 0: it stays."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Source gives one request to target. `str(pair)` is the reason; the `_after` values are None when the rule
    did not look ahead."""

    source: InstanceId
    target: InstanceId
    wanted: Wanted
    source_freeness: float
    target_freeness: float
    preempted: int = 0
    source_after: float | None = None
    target_after: float | None = None
    source_token_s: float | None = None
    """Between two tokens; None: the pair was not made for that."""
    target_token_s: float | None = None
    """The same, with the request there."""

    def __str__(self) -> str:
        if self.source_token_s is not None and self.target_token_s is not None:
            here_ms, there_ms = self.source_token_s * 1e3, self.target_token_s * 1e3
            return f"a token every {here_ms:.3g} ms, and every {there_ms:.3g} ms with it there"
        preempted = f", {self.preempted} preempted" if self.preempted else ""
        text = f"freeness {self.source_freeness:.4g}{preempted} against {self.target_freeness:.4g}"
        if self.wanted.at_least_blocks:
            missing = f"it lacks {self.wanted.at_least_blocks} blocks, the target spares {self.wanted.room_blocks}"
            return f"room for the first in the queue: {missing}; {text}"
        if self.source_after is None or self.target_after is None:
            return text
        return f"{text}; {self.source_after:.4g} and {self.target_after:.4g} after the move"


class Why(StrEnum):
    """Why a source, or a pair, was turned down."""

    NO_TARGET = "no instance is free enough"
    NO_PIECE = "no instance can spare what the first of its queue lacks"
    FOR_TOKENS = "the target is for tokens, and what would move waits for its prompt"
    ONLY_FOR_PROMPTS = "those that are free enough are for prompts"
    ALL_BUSY = "those that are free enough take no other request just now"
    STANDS_STILL = "its engine stands still"
    NOTHING_TO_GIVE = "it has no request that can move"
    EMPTY_HANDED = "it had nothing to give a moment ago"
    SOURCE_BUSY = "the source gives as many requests as it may"
    TARGET_BUSY = "the target takes as many requests as it may"
    BACKING_OFF = "this pair was refused a moment ago"
    NO_ROOM = "the target has no room for the request"
    NO_BENEFIT = "the lower freeness would not rise"
    NOT_FASTER = "with one more its tokens are no longer that much faster"
    WOULD_BOUNCE = "the target would have to give requests away itself"


class Rejection(msgspec.Struct, frozen=True):
    """A pair that was not made; `target` None: the source found none at all. `after` is the figure that decided."""

    source: InstanceId
    target: InstanceId | None
    why: Why
    before: float | None = None
    after: float | None = None
    by_pace: bool = False
    """The source was to give for the sake of pace, however much memory it has."""

    def __str__(self) -> str:
        pair = self.source if self.target is None else f"{self.source} to {self.target}"
        numbers = "" if self.before is None or self.after is None else f" ({self.before:.4g}, then {self.after:.4g})"
        return f"{pair}: {self.why}{numbers}"


class PairingRound(msgspec.Struct, frozen=True):
    pairs: tuple[Pair, ...]
    rejected: tuple[Rejection, ...]


PairingRule = Callable[[ClusterSnapshot, PairingTerms], PairingRound]


class Load(msgspec.Struct, frozen=True):
    """A request that may change places: `queued` ones hold nothing at the source yet."""

    blocks: int
    queued: bool


Ranked = tuple[float, InstanceSnapshot]


def pair_by_benefit(cluster: ClusterSnapshot, terms: PairingTerms) -> PairingRound:
    """Ours: the least free source first, with the freest target that the move does good with."""
    ranked = [(migration_freeness(instance, terms.priority_target_tokens), instance) for instance in serving(cluster)]
    sources = [entry for entry in ranked if gives(entry, terms)]
    if not sources:
        return PairingRound((), ())
    free = [entry for entry in ranked if entry[0] > terms.migrate_in_freeness]
    targets = [entry for entry in free if may_take(entry[1], terms)]
    sources.sort(key=least_free)
    targets.sort(key=freest)
    pairs: list[Pair] = []
    rejected: list[Rejection] = []
    for source in sources:
        pair = _first_good_pair(source, targets, terms, rejected, free)
        if pair is not None:
            pairs.append(pair)
    return PairingRound(tuple(pairs), tuple(rejected))


def _why_no_target(giver: InstanceSnapshot, free: list[Ranked]) -> Why:
    """Where none of those that are free enough is left for it."""
    others = [one for _, one in free if one.id != giver.id and not one.preempted]
    if not others:
        return Why.NO_TARGET
    return Why.ONLY_FOR_PROMPTS if all(one.role is Role.PREFILL for one in others) else Why.ALL_BUSY


def _first_good_pair(
    source: Ranked, targets: list[Ranked], terms: PairingTerms, rejected: list[Rejection], free: list[Ranked]
) -> Pair | None:
    """Takes the target of the pair off the list; notes why others were turned down. `free`: all that are free enough,
    if they can take one or not."""
    giver = source[1]
    if giver.stands_still:
        rejected.append(Rejection(giver.id, None, Why.STANDS_STILL))
    elif giver.outgoing >= terms.max_migrations:
        rejected.append(Rejection(giver.id, None, Why.SOURCE_BUSY))
    elif giver.id in terms.empty_handed:
        rejected.append(Rejection(giver.id, None, Why.EMPTY_HANDED))
    elif (loads := likely_victims(giver)) == ():
        rejected.append(Rejection(giver.id, None, Why.NOTHING_TO_GIVE))
    elif not targets:
        rejected.append(Rejection(giver.id, None, _why_no_target(giver, free)))
    elif not (able := _first_able(giver, targets, loads)):
        rejected.append(Rejection(giver.id, targets[0][1].id, Why.FOR_TOKENS))
    else:
        for target in able:
            verdict = _judge(source, target, loads, terms)
            if isinstance(verdict, Pair):
                targets.remove(target)
                return verdict
            rejected.append(verdict)
    return None


def _first_able(giver: InstanceSnapshot, targets: list[Ranked], loads: tuple[Load, ...]) -> list[Ranked]:
    able = (target for target in targets if any(_may_go(load, giver, target[1]) for load in loads))
    return list(islice(able, TRIES_PER_SOURCE))


def _may_go(load: Load, giver: InstanceSnapshot, taker: InstanceSnapshot) -> bool:
    """Whoever waits for its prompt goes to one that computes prompts."""
    return not load.queued or takes_prompts(taker) or not takes_prompts(giver)


def _judge(source: Ranked, target: Ranked, loads: tuple[Load, ...], terms: PairingTerms) -> Pair | Rejection:
    source_freeness, giver = source
    target_freeness, taker = target
    if (giver.id, taker.id) in terms.backing_off:
        return Rejection(giver.id, taker.id, Why.BACKING_OFF)
    room = room_blocks(taker)
    load = next((load for load in loads if load.blocks <= room and _may_go(load, giver, taker)), None)
    if load is None:
        least_blocks = min(load.blocks for load in loads if _may_go(load, giver, taker))
        return Rejection(giver.id, taker.id, Why.NO_ROOM, least_blocks, room)
    source_after = migration_freeness(without(giver, load), terms.priority_target_tokens)
    target_after = migration_freeness(with_added(taker, load), terms.priority_target_tokens)
    before, after = min(source_freeness, target_freeness), min(source_after, target_after)
    if load.queued and taker.id in terms.newcomers:
        # The source looks no better while others wait behind it, but this one runs at once.
        after = target_after
    if after <= before:
        return Rejection(giver.id, taker.id, Why.NO_BENEFIT, before, after)
    if target_after < terms.migrate_out_freeness:
        return Rejection(giver.id, taker.id, Why.WOULD_BOUNCE, target_freeness, target_after)
    return Pair(
        source=giver.id,
        target=taker.id,
        wanted=Wanted(room_blocks=room, running=takes_prompts(giver) and not takes_prompts(taker)),
        source_freeness=source_freeness,
        target_freeness=target_freeness,
        preempted=giver.preempted,
        source_after=source_after,
        target_after=target_after,
    )


def likely_victims(instance: InstanceSnapshot) -> tuple[Load, ...]:
    """What the victim rule would give away, best first, as far as a report tells: the first of the queue, whatever its
    priority, else the shortest running one."""
    loads: tuple[Load, ...] = ()
    if instance.pinned:
        return loads
    if instance.waiting:
        loads = (Load(instance.head_of_line_blocks, True),)
    if instance.running > instance.high_running and instance.smallest_running_blocks:
        loads += (Load(instance.smallest_running_blocks, False),)
    return loads


def without(instance: InstanceSnapshot, load: Load) -> InstanceSnapshot:
    """What the instance would report with the request gone."""
    if not load.queued:
        free = min(instance.total_blocks, instance.free_blocks + load.blocks)
        return replace(instance, free_blocks=free, running=instance.running - 1)
    waiting, queued = instance.waiting - 1, max(0, instance.queued_blocks - load.blocks)
    next_in_line = -(-queued // waiting) if waiting else 0
    return replace(instance, waiting=waiting, queued_blocks=queued, head_of_line_blocks=next_in_line)


def with_added(instance: InstanceSnapshot, load: Load) -> InstanceSnapshot:
    """What the instance would report with the request running there."""
    return replace(instance, free_blocks=instance.free_blocks - load.blocks, running=instance.running + 1)


def gives(entry: Ranked, terms: PairingTerms) -> bool:
    """It has preempted somebody, or is less free than it may be."""
    return entry[1].preempted > 0 or entry[0] < terms.migrate_out_freeness


def serving(cluster: ClusterSnapshot) -> list[InstanceSnapshot]:
    """Those that take requests."""
    return [instance for instance in cluster.instances if instance.state is InstanceState.RUNNING]


def may_take(instance: InstanceSnapshot, terms: PairingTerms) -> bool:
    """Not one for prompts, which would give it away again."""
    able = instance.role is not Role.PREFILL and not instance.preempted and not instance.stands_still
    return able and instance.incoming < terms.max_migrations


def least_free(entry: Ranked) -> tuple[float, InstanceId]:
    """Key of an order in which the source that needs it most comes first."""
    return entry[0], entry[1].id


def freest(entry: Ranked) -> tuple[float, InstanceId]:
    """Key of an order in which the best target comes first."""
    return -entry[0], entry[1].id
