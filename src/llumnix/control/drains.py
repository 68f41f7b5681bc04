"""All drains of a scheduler: which are under way, what each does next, and how the last ones went."""

from __future__ import annotations

from llumnix.control.cluster_view import ClusterView, Known
from llumnix.control.drain import Drain, DrainLimits, DrainOrder
from llumnix.control.freest import Freest
from llumnix.control.moves import BackOff, MovesInFlight
from llumnix.control.orders import MoveCause
from llumnix.control.scheduler_events import DrainFinished, DrainReport, RequestsReplayed, SchedulerCommand
from llumnix.policy.draining import DrainTerms, place_drained
from llumnix.policy.victim import Wanted
from llumnix.types import InstanceId, InstanceState, by_number

TARGETS_TRIED = 256
"""Instances, freest first, that are looked at for what leaves a draining one: bounds the cost in a large cluster."""

REMEMBERED_DRAINS = 256
"""Reports of drains that have ended."""


class Drains:
    """`moves_requests`: the policy moves requests; otherwise a draining instance empties by itself."""

    def __init__(
        self,
        view: ClusterView,
        moves: MovesInFlight,
        back_off: BackOff,
        freest: Freest,
        limits: DrainLimits,
        *,
        moves_requests: bool,
    ) -> None:
        self._view = view
        self._moves = moves
        self._back_off = back_off
        self._freest = freest
        self._limits = limits
        self._moves_requests = moves_requests
        self._ended: dict[InstanceId, DrainReport] = {}

    def begin(self, order: DrainOrder) -> list[SchedulerCommand]:
        """Empties the instance. One that drains already goes on; a new deadline counts."""
        known = self._view[order.instance]
        drain = known.drain
        if drain is None or drain.withdrawn or (drain.order.keep != order.keep and not drain.ends):
            known.drain = Drain(order, self._limits)
        elif order.timeout_s is not None:
            drain.set_deadline(order.at, order.timeout_s)
        if known.drain is not None and (order.firm or (drain is not None and drain.order.firm)):
            known.drain.make_firm()
        return self.go_on(order.at, order.instance)

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
        others_serve = known.drain.past_deadline(at) and self._view.others_serve(instance)
        commands = self._remember(known.drain.orders(at, known.snapshot, in_flight, others_serve))
        may_move = self._moves_requests and not known.drain.past_deadline(at) and not known.drain.withdrawn
        if known.snapshot is None or not may_move or instance in self._back_off.empty_handed(at):
            return commands
        return [*commands, *self._move_out(at, known, in_flight)]

    def replayed(self, event: RequestsReplayed) -> None:
        known = self._view.get(event.instance)
        if known is None or known.drain is None:
            self._view.ignore("replay of what drains no more")
        else:
            known.drain.replayed(event.count)

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
        snapshot = known.snapshot
        assert snapshot is not None
        left = snapshot.running + snapshot.waiting - known.given - in_flight
        terms = DrainTerms(
            moves=min(left, self._limits.moves - max(in_flight, snapshot.outgoing)),
            max_incoming=self._limits.moves,
            priority_target_tokens=self._freest.priority_target_tokens,
            backing_off=self._back_off.pairs(at),
        )
        places = place_drained(snapshot, self._freest.first(TARGETS_TRIED), terms) if terms.moves > 0 else ()
        return [
            self._moves.request(
                at,
                (snapshot.id, place.target),
                Wanted(count=place.count, room_blocks=place.promised_blocks),
                MoveCause.DRAIN,
                f"{snapshot.id} drains, {left} left; {place}",
                promises=True,
            )
            for place in places
        ]

    def _remember(self, commands: list[SchedulerCommand]) -> list[SchedulerCommand]:
        for command in commands:
            if isinstance(command, DrainFinished):
                self._ended.pop(command.report.instance, None)
                self._ended[command.report.instance] = command.report
                if len(self._ended) > REMEMBERED_DRAINS:
                    del self._ended[next(iter(self._ended))]
        return commands
