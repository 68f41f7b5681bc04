"""A front end's view of the cluster, and its choice of an instance for each new request (paper section 4.3).

A report is always a little old. So the dispatcher keeps a ledger of what it sent to each instance since: requests that
the report does not count yet are charged as if they waited there, and a burst is spread instead of herded onto the
instance that looked freest a moment ago. Requests of one front end reach an instance in the order in which they were
sent, so one number per front end in the report (`dispatches_seen`) says exactly which are counted.

Instances are kept sorted by rank (ranks.py), so that a decision reads the first few only.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from heapq import nsmallest

import msgspec
from msgspec.structs import replace

from llumnix.config import PolicyConfig
from llumnix.control.gone import GoneIds
from llumnix.control.known_instance import KnownInstance, Sent
from llumnix.control.prefix_index import PrefixIndex
from llumnix.control.prefix_table import PrefixNews
from llumnix.control.ranks import Ranks
from llumnix.control.weighed import first_with_room, weighed
from llumnix.policy.catalogue import find_policy
from llumnix.policy.demand import longest_prompt_tokens, queued_demand_blocks
from llumnix.policy.dispatch import (
    MOST_SHOWN,
    Candidate,
    DispatchReason,
    DispatchRequest,
    Judged,
    Judgement,
)
from llumnix.policy.priority import headroom_blocks
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot, StepCost
from llumnix.policy.straggling import stragglers
from llumnix.policy.virtual_usage import room_blocks
from llumnix.types import InstanceId, RequestId, Role, is_high

NONE_AVOIDED: frozenset[InstanceId] = frozenset()


class Dispatch(msgspec.Struct, frozen=True, gc=False):
    """The instance that takes the request, and why. Already booked."""

    request: RequestId
    instance: InstanceId
    reason: DispatchReason


class Dispatcher:
    """`front_end` is this front end's index in `InstanceSnapshot.dispatches_seen`."""

    def __init__(self, config: PolicyConfig, front_end: int = 0) -> None:
        policy = find_policy(config.policy)
        self._wanted = policy.dispatch
        self._step_cost: StepCost | None = None
        """The latest that was heard: an instance that has not measured its own yet is taken to be like that one."""
        self._target_tokens = policy.priority_target_tokens(config)
        self._ranks = Ranks(policy.dispatch.fallback or policy.dispatch, self._target_tokens)
        self._pace_gain = config.pace_gain if policy.pace else 0.0
        self._front_end = front_end
        self._entries: dict[InstanceId, KnownInstance] = {}
        self._removed = GoneIds()
        self._turn = 0
        self._by_priority = policy.dispatch.by_priority and self._target_tokens is not None
        self._prefixes = PrefixIndex()
        self._looks_at_prefixes = policy.looks_at_prefixes(config)
        self.prefix_chunk_tokens = 0
        """As the instances tell of their prefixes; 0 if they do not, or nobody asks."""
        self._standing: frozenset[InstanceId] = NONE_AVOIDED
        self._for_tokens, self._longest_tokens = set[InstanceId](), 0

    def on_report(self, snapshot: InstanceSnapshot) -> bool:
        """Takes a newer report and closes the ledger's entries that it counts. Older ones, and those of a removed
        instance, change nothing; of one that is repeated (a heartbeat) only whether its engine stands still is read.
        True: the instance is new here, and is to be asked which prefixes it holds."""
        entry = self._entries.get(snapshot.id)
        if entry is None and snapshot.id in self._removed:
            return False
        if entry is not None and snapshot.seq < entry.reported.seq:
            return False
        is_new, counted = entry is None, self._counted(snapshot)
        if snapshot.stands_still != (snapshot.id in self._standing):
            self._standing ^= {snapshot.id}
        if entry is None:
            # What an earlier front end of this index sent before is not ours to wait for. So the first report must be
            # one that was made when all of that was counted, and none of ours.
            entry = self._entries[snapshot.id] = KnownInstance(snapshot, counted)
        elif snapshot.seq == entry.reported.seq:
            return False
        entry.reported = snapshot
        (self._for_tokens.add if snapshot.role is Role.DECODE else self._for_tokens.discard)(snapshot.id)
        entry.most_tokens = longest_prompt_tokens(snapshot.total_blocks, snapshot)  # no watermark if alone
        self._longest_tokens = max(self._longest_tokens, entry.most_tokens)
        if self._looks_at_prefixes:
            self.prefix_chunk_tokens = snapshot.prefix_chunk_tokens
        if snapshot.step_cost is not None:
            self._hear_of(snapshot.step_cost)
        under_way = max(0, entry.dispatched - counted)
        while len(entry.under_way) > under_way:
            self._close(entry, entry.under_way[0])
        self._refresh(entry)
        return is_new and self.prefix_chunk_tokens > 0

    def on_removed(self, instance: InstanceId) -> None:
        """The instance is gone for good. Its requests are the caller's to place anew."""
        entry = self._entries.pop(instance, None)
        self._removed.add(instance)
        self._standing -= {instance}
        self._for_tokens.discard(instance)
        self._prefixes.remove(instance)
        if entry is not None:
            self._ranks.remove(entry)

    def on_prefixes(self, instance: InstanceId, news: PrefixNews) -> bool:
        """False: it is to be asked for everything, since something of its news was lost."""
        return instance not in self._entries or self._prefixes.hear(instance, news)

    def dispatch(self, request: DispatchRequest, avoid: frozenset[InstanceId] = NONE_AVOIDED) -> Dispatch | None:
        """Chooses and books. None if no running instance outside `avoid` is large enough for the request."""
        reason = self.weigh(request, avoid)
        if reason is None:
            return None
        best = reason.candidates[0]
        self._book(self._entries[best.instance], request, is_high(request.priority), best.cached_tokens)
        return Dispatch(request.id, best.instance, reason)

    def weigh(self, request: DispatchRequest, avoid: frozenset[InstanceId]) -> DispatchReason | None:
        """What would be chosen, and why; nothing is booked. None: no instance could ever have it."""
        high = is_high(request.priority)
        if self._standing and self._ranks.rule.standing_last:
            reason = self._choose(request, high, avoid | self._standing)
            if reason is not None:
                return reason
        return self._choose(request, high, avoid)

    def _choose(self, request: DispatchRequest, high: bool, avoid: frozenset[InstanceId]) -> DispatchReason | None:
        by_rank, rule = self._by_priority and high, self._ranks.rule
        rule = (rule.fallback or rule) if by_rank else rule
        order = self._ranks.high(self._entries.values()) if by_rank else self._ranks.normal
        judge = None if by_rank else rule.judge
        holders = self._prefixes.depths(request.chunks) if judge is not None and request.chunks else {}
        keys, candidates = weighed(order, self._entries, request, avoid, holders, rule)
        if not keys:
            return None
        slow = stragglers([each.instance for each in candidates], self._pace_gain) if by_rank else set()
        if judge is None:
            costs = [place + len(keys) * (key[2] in slow) for place, key in enumerate(keys)]
            judged = [rule.by_rank(cost, key[:2]) for cost, key in zip(costs, keys, strict=True)]
        else:
            judged = judge(request, candidates)
        places = sorted(range(len(keys)), key=[each.cost for each in judged].__getitem__)
        roomy = first_with_room(places, candidates, judged)
        if judge is not None and rule.fallback is not None and roomy is None:
            rule = rule.fallback
            ranks = [rule.rank(each.instance, high, 0, self._target_tokens) for each in candidates]
            judged = [rule.by_rank(place, rank) for place, rank in enumerate(ranks)]
            places.sort(key=ranks.__getitem__)
        passed_over = roomy or 0
        chosen = places.pop(passed_over)
        shown = [_shown(candidates[place], judged[place]) for place in (chosen, *places[: MOST_SHOWN - 1])]
        return DispatchReason(
            rule.measure,
            tuple(shown),
            len(order) - (sum(key[2] in avoid for key in order) if avoid else 0),
            passed_over,
            sum(key[2] in self._standing for key in order) if self._standing and self._standing <= avoid else 0,
            rule.unit,
            len(slow),
        )

    def view(self, instance: InstanceId) -> InstanceSnapshot:
        """A known one, with what is on its way there."""
        return self._entries[instance].view

    def reported(self, instance: InstanceId) -> InstanceSnapshot:
        """What a known one said last."""
        return self._entries[instance].reported

    def by_rank(self) -> Iterator[InstanceSnapshot]:
        """Those that take requests and do not stand still, the first for a normal one first, with what is on its way
        there."""
        return (self._entries[key[2]].view for key in self._ranks.normal if key[2] not in self._standing)

    def for_tokens(self, most: int) -> list[InstanceSnapshot]:
        """The first by rank of those that take requests, are for tokens and do not stand still."""
        keys = [self._entries[instance].keys[0] for instance in self._for_tokens - self._standing]
        return [self._entries[key[2]].view for key in nsmallest(most, [key for key in keys if key is not None])]

    @property
    def serving(self) -> int:
        """Instances that take requests."""
        return len(self._ranks.normal)

    def has_place(self, tokens: int, avoid: frozenset[InstanceId]) -> bool:
        """Whether any that takes requests, outside `avoid`, is large enough for a prompt of so many tokens."""
        return any(tokens <= self._entries[key[2]].most_tokens and key[2] not in avoid for key in self._ranks.normal)

    def is_too_long(self, tokens: int) -> bool:
        """A prompt of so many tokens could begin on no instance that there ever was, were it empty."""
        return tokens > self._longest_tokens > 0

    def is_removed(self, instance: InstanceId) -> bool:
        return instance in self._removed

    def all_but(self, instances: Container[InstanceId]) -> frozenset[InstanceId]:
        """The known instances, these left out."""
        return frozenset(known for known in self._entries if known not in instances)

    def for_prompts(self) -> frozenset[InstanceId]:
        """The instances that give away whoever decodes (`policy/roles.py`)."""
        return frozenset(known for known, entry in self._entries.items() if entry.view.role is Role.PREFILL)

    def forget(self, request: RequestId, instance: InstanceId) -> None:
        """The request was booked but never sent, so the instance will never count it."""
        entry = self._entries.get(instance)
        if entry is None:
            return
        sent = next((sent for sent in entry.under_way if sent.request == request), None)
        if sent is not None:
            self._close(entry, sent)
            entry.dispatched -= 1
            self._refresh(entry)

    def snapshot(self, at: float) -> ClusterSnapshot:
        """The cluster as dispatch sees it: reports plus ledger."""
        return ClusterSnapshot(at=at, instances=tuple(self._entries[known].view for known in sorted(self._entries)))

    def _counted(self, snapshot: InstanceSnapshot) -> int:
        seen = snapshot.dispatches_seen
        return seen[self._front_end] if self._front_end < len(seen) else 0

    def _hear_of(self, step_cost: StepCost) -> None:
        is_first, self._step_cost = self._step_cost is None, step_cost
        if is_first and self._ranks.rule is not self._wanted:
            self._ranks.rule = self._wanted
            for entry in self._entries.values():
                self._refresh(entry)

    def _book(self, entry: KnownInstance, request: DispatchRequest, high: bool, cached: int) -> None:
        reported = entry.reported
        blocks = queued_demand_blocks(request.prompt_tokens, reported)
        entry.add(Sent(request.id, blocks, request.prompt_tokens - cached, high, request.chunks))
        self._prefixes.sent(reported.id, request.chunks)
        self._turn += 1
        entry.last_turn = self._turn
        self._refresh(entry)

    def _close(self, entry: KnownInstance, sent: Sent) -> None:
        entry.close(sent)
        self._prefixes.counted(entry.reported.id, sent.chunks)

    def _refresh(self, entry: KnownInstance) -> None:
        """Recomputes the view and the rank of one instance after its report or its ledger changed."""
        view = entry.with_ledger()
        if view.step_cost is None and self._step_cost is not None:
            view = replace(view, step_cost=self._step_cost)
        entry.view = view
        room = room_blocks(view) - headroom_blocks(view, self._target_tokens)
        entry.room_tokens = longest_prompt_tokens(room, view)
        self._ranks.place(entry)


def _shown(one: Candidate, judged: Judgement) -> Judged:
    return Judged(one.instance.id, judged.number, one.has_room, one.cached_tokens, judged.for_tokens)
