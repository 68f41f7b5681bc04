"""Which requests an instance gives away.

The paper takes the last that came (LCFS), and one of high priority only while somebody waits and no other can go: an
instance that is full of such requests overloads the very ones that it protects.

Ours takes a queued request before a running one (it has no KV cache to copy, and runs sooner elsewhere), who came first
before the others, and among running ones the shortest, whose copy is cheapest. A running request of high
priority stays where its headroom is.

Every rule passes over what cannot move, what moved a moment ago, and what the target has no room for.

A draining instance gives away everything that can move, whatever the rule: the important ones first, so that they need
not be replayed when time runs out; of these the queued, which move for nothing, and then those that would stay longest.
One that is about to run out of blocks gives away a running request, since a queued one holds none. One for prompts
gives away all that run, whatever the rule: first who has its first token already. And from a slow one the important
ones go, too, and first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf

import msgspec

from llumnix.policy.snapshot import RequestSnapshot
from llumnix.types import RequestId, RequestState, is_high

QUEUE_SHOWN = 64
"""Queued requests, from the front, among which a llumlet picks; all of a long queue would take milliseconds."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which requests are to go: up to `count` that fit into `room_blocks` together."""

    count: int = 1
    room_blocks: int | None = None
    """None: whatever the target takes."""
    urgent: bool = False
    """The source is about to run out of blocks: only a request that holds some helps."""
    running: bool = False
    """Only a running request: the target is for tokens."""
    at_least_blocks: int = 0
    """Only a running request that holds so many helps, and the smallest is best: the first of the queue starts in its
    place."""
    to_decode: bool = False
    """Running requests of an instance for prompts, which make their tokens elsewhere (`policy/roles.py`)."""
    by_pace: bool = False
    """Running requests of an instance where tokens come slowly (`policy/straggling.py`)."""
    without_adapter: bool = False
    """Only one without a LoRA adapter: the target had no place for one a moment ago."""


class VictimQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted, and how its source stands."""

    at: float
    cooldown_s: float
    wanted: Wanted
    draining: bool


class VictimChoice(msgspec.Struct, frozen=True):
    """The requests to move, in order."""

    victims: tuple[RequestId, ...]
    passed_over: tuple[tuple[str, int], ...]
    """(why, how many), in the order in which the reasons were met."""

    @property
    def why_no_more(self) -> str:
        """Why these, or none, are all."""
        passed = ", ".join(f"{count} {why}" for why, count in self.passed_over)
        return passed or f"no {'other ' if self.victims else ''}requests"


@dataclass(frozen=True, slots=True)
class VictimRule:
    """An order of preference (lowest first), and what is given away only when draining."""

    name: str
    order: Callable[[RequestSnapshot], tuple[float, ...]]
    keeps: Callable[[RequestSnapshot], str | None]
    """Why a request is not given away by this rule; None if it may be."""
    keeps_when_queued: Callable[[RequestSnapshot], str | None] | None = None
    """The same while somebody waits here, if that differs: then memory itself is short, not only headroom."""

    def keeps_now(self, queued: bool) -> Callable[[RequestSnapshot], str | None]:
        """`queued`: somebody waits here."""
        return self.keeps_when_queued if queued and self.keeps_when_queued else self.keeps


def choose_victims(rule: VictimRule, requests: Iterable[RequestSnapshot], query: VictimQuery) -> VictimChoice:
    """The first `query.wanted.count` requests by the rule's order that can and may move, and fit."""
    requests = tuple(requests)
    queued = any(request.state is RequestState.WAITING for request in requests)
    keeps = rule.keeps_now(queued)
    passed: dict[str, int] = {}
    may_move: list[tuple[tuple[float, ...], RequestId, RequestSnapshot]] = []
    order = _order(rule, query)
    for request in requests:
        why = _cannot_move(request, query.wanted) or _stays(request, query, keeps)
        if why is None:
            may_move.append((order(request), request.id, request))
        else:
            passed[why] = passed.get(why, 0) + 1
    may_move.sort(key=lambda entry: entry[:2])
    victims: list[RequestId] = []
    room = inf if query.wanted.room_blocks is None else query.wanted.room_blocks
    for _, _, request in may_move:
        if len(victims) == query.wanted.count:
            break
        if request.needed_blocks > room:
            passed["do not fit"] = passed.get("do not fit", 0) + 1
            continue
        room -= request.needed_blocks
        victims.append(request.id)
    return VictimChoice(tuple(victims), tuple(passed.items()))


def _order(rule: VictimRule, query: VictimQuery) -> Callable[[RequestSnapshot], tuple[float, ...]]:
    if query.draining:
        return _leaving
    if query.wanted.to_decode:
        return _decoding_first
    if query.wanted.by_pace:
        return _important_first
    return _smallest if query.wanted.at_least_blocks else rule.order


def why_not_to_decode(request: RequestSnapshot) -> str | None:
    """Why a request of an instance for prompts does not go on elsewhere now; None if it does."""
    if request.state is RequestState.WAITING:
        return "waiting, not computed yet"
    return "end with the next token" if request.remaining_tokens is not None and request.remaining_tokens <= 1 else None


def _cannot_move(request: RequestSnapshot, wanted: Wanted) -> str | None:
    if request.why_pinned:
        return "pinned"
    if request.state is RequestState.MIGRATING:
        return "already moving"
    return "have an adapter" if wanted.without_adapter and request.has_adapter else None


def _stays(request: RequestSnapshot, query: VictimQuery, keeps: Callable[[RequestSnapshot], str | None]) -> str | None:
    if query.draining:
        return None
    if query.wanted.to_decode:
        return why_not_to_decode(request)
    if request.state is RequestState.WAITING and (why := _only_running(query.wanted)):
        return f"waiting, {why}"
    if query.wanted.by_pace:
        return _too_soon(request, query)
    if request.held_blocks < query.wanted.at_least_blocks:
        return "too small to make room"
    return keeps(request) or _too_soon(request, query)


def _only_running(wanted: Wanted) -> str:
    """Why none that waits is to go; empty if it may."""
    if wanted.by_pace or wanted.running:
        return "make no tokens"
    return "hold no blocks" if wanted.urgent or wanted.at_least_blocks else ""


def _too_soon(request: RequestSnapshot, query: VictimQuery) -> str | None:
    if request.moved_s is not None and query.at < request.moved_s + query.cooldown_s:
        return "moved a moment ago"
    return None


def _cheapest(request: RequestSnapshot) -> tuple[float, ...]:
    if request.state is RequestState.WAITING:
        return 0, request.arrival_s
    return 1, -request.priority, request.needed_blocks, request.arrival_s


def _leaving(request: RequestSnapshot) -> tuple[float, ...]:
    remaining = request.remaining_tokens
    stays_tokens = inf if remaining is None else remaining
    return request.priority, request.state is not RequestState.WAITING, -stays_tokens, request.arrival_s


def _smallest(request: RequestSnapshot) -> tuple[float, ...]:
    return request.needed_blocks, request.arrival_s


def _important_first(request: RequestSnapshot) -> tuple[float, ...]:
    return request.priority, request.needed_blocks, request.arrival_s


def _decoding_first(request: RequestSnapshot) -> tuple[float, ...]:
    return request.output_tokens == 0, request.arrival_s


def _keeps_high(request: RequestSnapshot) -> str | None:
    return "of high priority" if is_high(request.priority) else None


def _last_come(request: RequestSnapshot) -> tuple[float, ...]:
    return (-request.arrival_s,)


def _last_come_normal_first(request: RequestSnapshot) -> tuple[float, ...]:
    return is_high(request.priority), -request.arrival_s


def _keeps_undecoded(request: RequestSnapshot) -> str | None:
    if request.state is not RequestState.RUNNING or request.output_tokens == 0:
        return "not decoding"
    return None


def _keeps_high_and_undecoded(request: RequestSnapshot) -> str | None:
    return _keeps_high(request) or _keeps_undecoded(request)


def _keeps_running_high(request: RequestSnapshot) -> str | None:
    return None if request.state is RequestState.WAITING else _keeps_high(request)


CHEAPEST = VictimRule("cheapest to move", _cheapest, _keeps_running_high)
LAST_COME = VictimRule(
    "last come, normal priority first", _last_come_normal_first, _keeps_high_and_undecoded, _keeps_undecoded
)
LAST_COME_OF_ALL = VictimRule("last come", _last_come, _keeps_undecoded)
