"""Which instances are weighed for a request: the first by rank, holders of most of its prefix; and which has room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llumnix.control.known_instance import KnownInstance, RankKey
from llumnix.policy.dispatch import Candidate, DispatchRequest, DispatchRule, Judgement
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
    holders: dict[InstanceId, int],
    rule: DispatchRule,
) -> tuple[list[RankKey], list[Candidate]]:
    """By rank: the first of `order`, up to one that has room if room counts, and the deepest of `holders`."""
    tokens, room_first = request.prompt_tokens, rule.room_first and not is_high(request.priority)
    keys: list[RankKey] = []
    enough = ROOM_TRIES if room_first else rule.first_by_rank
    for key in order:
        if len(keys) >= enough:
            break
        entry = entries[key[2]]
        if tokens <= entry.most_tokens and key[2] not in avoid:
            keys.append(key)
            if tokens <= entry.room_tokens:
                enough = rule.first_by_rank
    if holders:
        for key in _deepest(holders, entries, {key[2] for key in keys}):
            if tokens <= entries[key[2]].most_tokens and key[2] not in avoid:
                keys.append(key)
        keys.sort()
    candidates: list[Candidate] = []
    for key in keys:
        entry, depth = entries[key[2]], holders.get(key[2])
        cached = cached_tokens(depth, entry.view.prefix_chunk_tokens, tokens) if depth else 0
        candidates.append(Candidate(entry.view, not room_first or tokens <= entry.room_tokens, cached))
    return keys, candidates


def first_with_room(places: Sequence[int], candidates: Sequence[Candidate], judged: Sequence[Judgement]) -> int | None:
    """Which of these places has it, from 0 on; None: none. One for tokens does not count behind others, as it takes
    prompts only where no other can, and those without room can later."""
    for number, place in enumerate(places):
        if judged[place].for_tokens and not judged[places[0]].for_tokens:
            return None
        if candidates[place].has_room:
            return number
    return None


def _deepest(
    holders: dict[InstanceId, int], entries: Mapping[InstanceId, KnownInstance], seen: set[InstanceId]
) -> list[RankKey]:
    """The few others that hold most; of those that hold as much the first by rank."""
    known: list[tuple[int, RankKey]] = []
    for name in reversed(holders):
        depth = holders[name]
        if len(known) >= MOST_HOLDERS and depth < -known[-1][0]:
            break
        entry = None if name in seen else entries.get(name)
        if entry is not None and (key := entry.keys[0]) is not None:
            known.append((-depth, key))
    return [key for _, key in sorted(known)[:MOST_HOLDERS]]
