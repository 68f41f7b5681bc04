"""All drains of a scheduler: which are under way, what each does next, and how the last ones went."""

from __future__ import annotations

from msgspec.structs import replace

from llumnix.config import PolicyConfig
from llumnix.control.back_off import BackOff
from llumnix.control.cluster_view import ClusterView, Known
from llumnix.control.drain import Drain, DrainLimits
from llumnix.control.freest import Freest
from llumnix.control.latest import Latest
from llumnix.control.moves import MovesInFlight
from llumnix.control.orders import MoveCause
from llumnix.control.scheduler_events import (
    AskWhereCached,
    CachedElsewhere,
    DrainFinished,
    DrainReport,
    DrainRequested,
    MoveRequest,
    RequestsReplayed,
    SchedulerCommand,
)
from llumnix.policy.catalogue import find_policy
from llumnix.policy.draining import DrainTerms, Placement, place_drained, place_where_cached
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.victim import Wanted
from llumnix.types import InstanceId, InstanceState, by_number

TARGETS_TRIED = 256
"""Instances, freest first, that are looked at for what leaves a draining one: bounds the cost in a large cluster."""

ANSWER_S = 0.5
"""In which all front ends are to have said whose prompts other instances have cached, before the others leave."""

REMEMBERED_DRAINS = 256
"""Reports of drains that have ended."""


class Drains:
    """Where the policy moves no requests, a draining instance empties by itself."""

    def __init__(
        self,
        view: ClusterView,
        moves: MovesInFlight,
        back_off: BackOff,
        freest: Freest,
        limits: DrainLimits,
        config: PolicyConfig,
    ) -> None:
        self._view = view
        self._moves = moves
        self._back_off = back_off
        self._freest = freest
        self._limits = limits
        policy = find_policy(config.policy)
        self._moves_requests = policy.pairing is not None
        self._asks_where_cached = self._moves_requests and policy.looks_at_prefixes(config)
        self._ended: Latest[InstanceId, DrainReport] = Latest(REMEMBERED_DRAINS)

    def begin(self, order: DrainRequested) -> list[SchedulerCommand]:
        """Empties the instance. One that drains already goes on; a new deadline counts."""
        known = self._view[order.instance]
        drain = known.drain
        commands: list[SchedulerCommand] = []
        if drain is None or drain.withdrawn or (drain.order.keep != order.keep and not drain.ends):
            known.drain = Drain(order, self._limits)
            if self._asks_where_cached and known.snapshot is not None and known.snapshot.prefix_chunk_tokens:
                known.drain.any_from_s = order.at + ANSWER_S
                commands.append(AskWhereCached(instance=order.instance))
        elif order.timeout_s is not None:
            drain.hurry(order.at, order.timeout_s)
        if known.drain is not None and (order.firm or (drain is not None and drain.order.firm)):
            known.drain.make_firm()
        return commands + self.go_on(order.at, order.instance)

    def why_not_withdrawn(self, instance: InstanceId) -> str:
        """Why the instance cannot be told to take requests again; empty if it can."""
        known = self._view.get(instance)
        if known is None:
            return f"there is no instance {instance}"
        if known.drain is None:
            return f"{instance} does not drain"
        why = known.drain.why_not_withdrawn(known.snapshot)
        return why and f"{instance} cannot come back: {why}"

    def withdraw(self, at: float, instance: InstanceId) -> list[SchedulerCommand]:
        """The instance takes requests again. Moves that are under way end as they do."""
        known = self._view.get(instance)
        if known is None or known.drain is None or known.drain.why_not_withdrawn(known.snapshot):
            self._view.ignore("withdrawal of a drain that is over")
            return []
        if not known.drain.withdrawn:
            known.drain.withdraw(at)
        return self.go_on(at, instance)

    def go_on(self, at: float, instance: InstanceId) -> list[SchedulerCommand]:
        """The next orders and moves; none for an instance that is not draining."""
        known = self._view.get(instance)
        if known is None or known.drain is None:
            return []
        if known.drain.withdrawn and known.snapshot is not None and known.snapshot.state is InstanceState.RUNNING:
            return self._end_withdrawn(at, known)
        in_flight = self._moves.outgoing(instance)
        others_serve = self._view.others_serve(instance)
        known.drain.time_passes(at, others_serve)
        commands = self._remember(known.drain.orders(at, known.snapshot, in_flight, others_serve))
        may_move = self._moves_requests and not known.drain.past_deadline(at) and not known.drain.withdrawn
        if known.snapshot is None or known.snapshot.stands_still or not may_move:
            return commands
        if instance in self._back_off.empty_handed(at):
            return commands
        return [*commands, *self._move_out(at, known, in_flight)]

    def stood_still(self, seconds: float) -> None:
        """We did, and perhaps everybody: in that time nothing could be moved."""
        for instance in self._view.ids:
            if (drain := self._view[instance].drain) is not None:
                drain.stood_still(seconds)

    def replayed(self, event: RequestsReplayed) -> None:
        known = self._view.get(event.instance)
        if known is None or known.drain is None:
            self._view.ignore("replay of what drains no more")
        else:
            known.drain.replayed(event.count)

    def cached_elsewhere(self, event: CachedElsewhere) -> list[SchedulerCommand]:
        known = self._view.get(event.instance)
        if known is None or known.drain is None:
            self._view.ignore("word of prompts of what drains no more")
            return []
        known.drain.said_where_cached(event.at, event.where, event.front_ends)
        return self.go_on(event.at, event.instance)

    def lost(self, at: float, known: Known) -> list[SchedulerCommand]:
        """The instance is gone, on purpose or not."""
        return [] if known.drain is None else self._remember(known.drain.lost(at))

    def reports(self, at: float) -> list[DrainReport]:
        """How every drain goes that is under way, and how the last ones went, by instance."""
        known = {instance: self._view[instance].drain for instance in self._view.ids}
        reports = self._ended | {i: drain.report(at) for i, drain in known.items() if drain is not None}
        return [reports[instance] for instance in sorted(reports, key=by_number)]

    def _end_withdrawn(self, at: float, known: Known) -> list[SchedulerCommand]:
        assert known.drain is not None
        report, known.drain = known.drain.report(at), None
        return self._remember([DrainFinished(report=report, reason=f"{report.instance} takes requests again")])

    def _move_out(self, at: float, known: Known, in_flight: int) -> list[SchedulerCommand]:
        snapshot, drain = known.snapshot, known.drain
        assert snapshot is not None
        assert drain is not None
        left = snapshot.running + snapshot.waiting - known.given - in_flight
        terms = DrainTerms(
            moves=min(left, self._limits.moves - max(in_flight, snapshot.outgoing)),
            max_incoming=self._limits.moves,
            priority_target_tokens=self._freest.priority_target_tokens,
            backing_off=self._back_off.pairs(at),
        )
        drains = f"{snapshot.id} drains, {left} left"
        cached = self._place_where_cached(snapshot, drain, terms)
        orders = [self._order(at, snapshot.id, f"{drains}; {place}", place) for place in cached]
        rest = replace(terms, moves=terms.moves - len(orders))
        if at >= drain.any_from_s and rest.moves > 0:  # with what those were promised out of the way
            others = place_drained(snapshot, self._freest.first(TARGETS_TRIED), rest)
            orders += [self._order(at, snapshot.id, f"{drains}; {place}", place) for place in others]
        return [*orders]

    def _place_where_cached(self, source: InstanceSnapshot, drain: Drain, terms: DrainTerms) -> tuple[Placement, ...]:
        if not drain.where_cached or terms.moves <= 0:
            return ()
        places = place_where_cached(source, drain.where_cached, self._freest.first(TARGETS_TRIED), terms)
        gone = {place.request for place in places}
        drain.where_cached = {request: there for request, there in drain.where_cached.items() if request not in gone}
        return places

    def _order(self, at: float, source: InstanceId, why: str, place: Placement) -> MoveRequest:
        ends = (source, place.target)
        wanted = Wanted(count=place.count, room_blocks=place.promised_blocks)
        return self._moves.request(at, ends, wanted, MoveCause.DRAIN, why, place.request)

    def _remember(self, commands: list[SchedulerCommand]) -> list[SchedulerCommand]:
        for command in commands:
            if isinstance(command, DrainFinished):
                self._ended.pop(command.report.instance, None)
                self._ended[command.report.instance] = command.report
        return commands
