"""A front end's view of the cluster, and its choice of an instance for each new request (paper section 4.3).

A report is always a little old. So the dispatcher keeps a ledger of what it sent to each instance since: requests that
the report does not count yet are charged as if they waited there, and a burst is spread instead of herded onto the
instance that looked freest a moment ago. Requests of one front end reach an instance in the order in which they were
sent, so one number per front end in the report (`dispatches_seen`) says exactly which are counted.

Instances are kept sorted by the rank that the policy gives them. A report or a dispatch moves one entry (O(log n)
comparisons), a decision reads the first two.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Container
from itertools import chain, islice

import msgspec
from msgspec.structs import replace

from llumnix.config import PolicyConfig
from llumnix.control.gone import GoneIds
from llumnix.policy.catalogue import find_policy
from llumnix.policy.dispatch import STANDING_S, DispatchReason, DispatchRequest, queued_demand_blocks
from llumnix.policy.priority import headroom_blocks
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot
from llumnix.policy.virtual_usage import room_blocks
from llumnix.types import InstanceId, InstanceState, RequestId, is_high

ROOM_TRIES = 32
"""Instances that are looked at for one with room for a request; bounds a decision's cost in a large full cluster."""

NONE_AVOIDED: frozenset[InstanceId] = frozenset()

_Key = tuple[float, int, InstanceId]


class Dispatch(msgspec.Struct, frozen=True, gc=False):
    """The instance that takes the request, and why. Already booked."""

    request: RequestId
    instance: InstanceId
    reason: DispatchReason


class _Sent(msgspec.Struct, frozen=True, gc=False):
    """A dispatch that the instance's reports do not count yet."""

    request: RequestId
    blocks: int
    high: bool


class _Entry:
    """One instance: what it reported, and the ledger."""

    __slots__ = (
        "dispatched",
        "keys",
        "last_turn",
        "reported",
        "under_way",
        "under_way_blocks",
        "under_way_high",
        "view",
    )

    def __init__(self, reported: InstanceSnapshot, dispatched: int) -> None:
        self.reported = reported
        self.view = reported
        """`reported` with the dispatches under way counted as waiting."""
        self.dispatched = dispatched
        """All dispatches of this front end to it, counted as its reports count them."""
        self.under_way: deque[_Sent] = deque()
        self.under_way_blocks = 0
        self.under_way_high = 0
        self.last_turn = 0
        self.keys: list[_Key | None] = [None, None]
        """Where it stands in the order for normal and for high requests; None if it takes none."""

    def add(self, sent: _Sent) -> None:
        self.under_way.append(sent)
        self.under_way_blocks += sent.blocks
        self.under_way_high += sent.high
        self.dispatched += 1

    def close(self, sent: _Sent) -> None:
        """The first of the ledger, or one that was never sent, is charged no more."""
        self.under_way.remove(sent)
        self.under_way_blocks -= sent.blocks
        self.under_way_high -= sent.high


class Dispatcher:
    """`front_end` is this front end's index in `InstanceSnapshot.dispatches_seen`."""

    def __init__(self, config: PolicyConfig, front_end: int = 0) -> None:
        policy = find_policy(config.policy)
        self._rule = policy.dispatch
        self._target_tokens = policy.priority_target_tokens(config)
        self._front_end = front_end
        self._entries: dict[InstanceId, _Entry] = {}
        self._removed = GoneIds()
        self._turn = 0
        by_priority = self._rule.by_priority and self._target_tokens is not None
        self._orders: list[list[_Key]] = [[], []] if by_priority else [[]]
        self._standing: frozenset[InstanceId] = NONE_AVOIDED

    def on_report(self, snapshot: InstanceSnapshot) -> None:
        """Takes a newer report and closes the ledger's entries that it counts. Reports that are older than the known
        one, or of a removed instance, change nothing; heartbeats only tell whether its engine stands still."""
        entry = self._entries.get(snapshot.id)
        if entry is None and snapshot.id in self._removed:
            return
        counted = self._counted(snapshot)
        if (snapshot.standing_s >= STANDING_S) != (snapshot.id in self._standing):
            self._standing ^= {snapshot.id}
        if entry is None:
            # What an earlier front end of this index sent before is not ours to wait for. So the first report must be
            # one that was made when all of that was counted, and none of ours.
            entry = self._entries[snapshot.id] = _Entry(snapshot, counted)
        elif snapshot.seq <= entry.reported.seq:
            return
        entry.reported = snapshot
        under_way = max(0, entry.dispatched - counted)
        while len(entry.under_way) > under_way:
            entry.close(entry.under_way[0])
        self._refresh(entry)

    def on_removed(self, instance: InstanceId) -> None:
        """The instance is gone for good. Its requests are the caller's to place anew."""
        entry = self._entries.pop(instance, None)
        self._removed.add(instance)
        self._standing -= {instance}
        if entry is not None:
            self._place(entry, [None, None])

    def dispatch(self, request: DispatchRequest, avoid: frozenset[InstanceId] = NONE_AVOIDED) -> Dispatch | None:
        """Chooses and books. None if no running instance outside `avoid` is large enough for the request."""
        high = is_high(request.priority)
        reason = None
        if self._standing and self._rule.standing_last:
            reason = self._choose(request, high, avoid | self._standing)
        if reason is None:
            reason = self._choose(request, high, avoid)
        if reason is None:
            return None
        self._book(self._entries[reason.chosen], request, high)
        return Dispatch(request.id, reason.chosen, reason)

    def _choose(self, request: DispatchRequest, high: bool, avoid: frozenset[InstanceId]) -> DispatchReason | None:
        order = self._orders[high if len(self._orders) > 1 else 0]
        able = (key for key in order if key[2] not in avoid and self._could_ever_hold(key[2], request))
        chosen, runner_up = next(able, None), next(able, None)
        if chosen is None:
            return None
        passed_over = 0
        if self._rule.room_first and not high and runner_up is not None and not self._has_room(chosen, request):
            for place, key in enumerate(islice(chain((runner_up,), able), ROOM_TRIES), start=1):
                if self._has_room(key, request):
                    chosen, passed_over = key, place
                    break
        return DispatchReason(
            self._rule.measure,
            chosen[2],
            self._rule.number(chosen[:2]),
            runner_up[2] if runner_up else None,
            self._rule.number(runner_up[:2]) if runner_up else None,
            len(order) - (sum(key[2] in avoid for key in order) if avoid else 0),
            passed_over,
            sum(key[2] in self._standing for key in order) if self._standing and self._standing <= avoid else 0,
        )

    def takes_requests(self, other_than: InstanceId) -> bool:
        """Whether another instance takes new requests."""
        return any(key[2] != other_than for key in self._orders[0])

    def is_removed(self, instance: InstanceId) -> bool:
        return instance in self._removed

    def all_but(self, instances: Container[InstanceId]) -> frozenset[InstanceId]:
        """The known instances, these left out."""
        return frozenset(known for known in self._entries if known not in instances)

    def forget(self, request: RequestId, instance: InstanceId) -> None:
        """The request was booked but never sent, so the instance will never count it."""
        entry = self._entries.get(instance)
        if entry is None:
            return
        sent = next((sent for sent in entry.under_way if sent.request == request), None)
        if sent is not None:
            entry.close(sent)
            entry.dispatched -= 1
            self._refresh(entry)

    def snapshot(self, at: float) -> ClusterSnapshot:
        """The cluster as dispatch sees it: reports plus ledger."""
        return ClusterSnapshot(at=at, instances=tuple(self._entries[known].view for known in sorted(self._entries)))

    def _counted(self, snapshot: InstanceSnapshot) -> int:
        seen = snapshot.dispatches_seen
        return seen[self._front_end] if self._front_end < len(seen) else 0

    def _could_ever_hold(self, instance: InstanceId, request: DispatchRequest) -> bool:
        reported = self._entries[instance].reported
        room_tokens = (reported.total_blocks - reported.watermark_blocks) * reported.block_tokens
        return request.prompt_tokens <= room_tokens

    def _has_room(self, key: _Key, request: DispatchRequest) -> bool:
        """A normal request can start there at once, behind whoever waits and whatever is on its way, and takes nothing
        of the headroom."""
        view = self._entries[key[2]].view
        room = room_blocks(view) - headroom_blocks(view, self._target_tokens)
        return queued_demand_blocks(request.prompt_tokens, view.block_tokens, view.state_blocks) <= room

    def _book(self, entry: _Entry, request: DispatchRequest, high: bool) -> None:
        reported = entry.reported
        blocks = queued_demand_blocks(request.prompt_tokens, reported.block_tokens, reported.state_blocks)
        entry.add(_Sent(request.id, blocks, high))
        self._turn += 1
        entry.last_turn = self._turn
        self._refresh(entry)

    def _refresh(self, entry: _Entry) -> None:
        """Recomputes the view and the ranks of one instance after its report or its ledger changed."""
        entry.view = view = _with_ledger(entry)
        if view.state is not InstanceState.RUNNING:
            self._place(entry, [None, None])
            return
        rank, turn, target = self._rule.rank, entry.last_turn, self._target_tokens
        self._place(entry, [(*rank(view, high > 0, turn, target), view.id) for high in range(len(self._orders))])

    def _place(self, entry: _Entry, keys: list[_Key] | list[None]) -> None:
        for order, old, new in zip(self._orders, entry.keys, keys, strict=False):
            if old == new:
                continue
            if old is not None:
                del order[bisect_left(order, old)]
            if new is not None:
                insort(order, new)
        entry.keys = [*keys]


def _with_ledger(entry: _Entry) -> InstanceSnapshot:
    if not entry.under_way:
        return entry.reported
    reported = entry.reported
    return replace(
        reported,
        waiting=reported.waiting + len(entry.under_way),
        queued_blocks=reported.queued_blocks + entry.under_way_blocks,
        high_waiting=reported.high_waiting + entry.under_way_high,
        head_of_line_blocks=reported.head_of_line_blocks or entry.under_way[0].blocks,
    )
