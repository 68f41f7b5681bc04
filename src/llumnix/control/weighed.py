"""Which instances are weighed for a request: the first by rank, and those that hold most of its prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llumnix.control.known_instance import KnownInstance, RankKey
from llumnix.policy.dispatch import Candidate, DispatchRequest, DispatchRule, queued_demand_blocks
from llumnix.policy.prefix import cached_tokens
from llumnix.types import InstanceId, is_high

ROOM_TRIES = 32
"""Instances that are looked at for one with room for a request; bounds a decision's cost in a large full cluster."""

MOST_HOLDERS = 4
"""Instances that are looked at because they hold some of the request's prefix."""


def weighed(
    order: Sequence[RankKey],
    entries: Mapping[InstanceId, KnownInstance],
    request: DispatchRequest,
    avoid: frozenset[InstanceId],
    holders: Mapping[InstanceId, int],
    rule: DispatchRule,
) -> tuple[list[RankKey], list[Candidate]]:
    """By rank: the first of `order`, up to one that has room if room counts, and the deepest of `holders`."""
    keys: list[RankKey] = []
    candidates: list[Candidate] = []
    tokens, room_first = request.prompt_tokens, rule.room_first and not is_high(request.priority)

    def look(key: RankKey) -> bool:
        name = key[2]
        entry = entries[name]
        if name in avoid or tokens > entry.most_tokens:
            return False
        view = entry.view
        demand_blocks = queued_demand_blocks(tokens, view.block_tokens, view.state_blocks)
        has_room = not room_first or demand_blocks <= entry.room_blocks
        depth = holders.get(name)
        cached = cached_tokens(depth, view.prefix_chunk_tokens, tokens) if depth else 0
        keys.append(key)
        candidates.append(Candidate(view, has_room, cached))
        return has_room

    is_roomy = False
    for key in order:
        if len(keys) >= (rule.first_by_rank if is_roomy or not room_first else ROOM_TRIES):
            break
        is_roomy |= look(key)
    if holders:
        for key in _deepest(holders, entries, {key[2] for key in keys}):
            look(key)
        by_rank = sorted(range(len(keys)), key=keys.__getitem__)
        return [keys[place] for place in by_rank], [candidates[place] for place in by_rank]
    return keys, candidates


def _deepest(
    holders: Mapping[InstanceId, int], entries: Mapping[InstanceId, KnownInstance], seen: set[InstanceId]
) -> list[RankKey]:
    """The few others that hold most; of those that hold as much the first by rank."""
    known: list[tuple[int, RankKey]] = []
    for name in reversed([*holders]):
        if len(known) >= MOST_HOLDERS and holders[name] < -known[-1][0]:
            break
        entry = None if name in seen else entries.get(name)
        if entry is not None and (key := entry.keys[0]) is not None:
            known.append((-holders[name], key))
    return [key for _, key in sorted(known)[:MOST_HOLDERS]]
