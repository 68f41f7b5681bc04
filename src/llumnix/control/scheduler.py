"""The global scheduler: pairs instances for migration, drains them, notices the silent ones (paper section 4.3).

It is never on the path of a token or of a dispatch: when it is gone, serving goes on. It keeps nothing that the next
reports would not tell, so a restarted one needs no recovery.

One timer drives it. Each round, every `pairing_interval_s`, declares the silent instances lost, drops what was asked
too long ago, changes the size of the cluster if auto-scaling says so, goes on with the drains, and pairs. Only who is
about to run out of blocks is not left waiting for the round.
"""

from __future__ import annotations

from typing import assert_never

from msgspec.structs import replace

from llumnix.config import PolicyConfig
from llumnix.control.drain import Drain, DrainLimits, DrainOrder
from llumnix.control.fleet import FleetView
from llumnix.control.moves import BackOff, MovesInFlight
from llumnix.control.scaling import Autoscaler, ScalingMode
from llumnix.control.scheduler_events import (
    Command,
    DeclareLost,
    DrainFinished,
    DrainReport,
    DrainRequested,
    Event,
    FleetReported,
    InstanceLost,
    InstanceStarted,
    LoadReported,
    MigrationEnded,
    MoveRequest,
    RequestsReplayed,
    ScalingDecided,
    StartInstances,
    StartRequested,
    TimerFired,
    WakeAt,
)
from llumnix.policy.catalogue import find_policy
from llumnix.policy.draining import DrainTerms, place_drained
from llumnix.policy.pairing import Pair, PairingRound, PairingTerms
from llumnix.policy.relief import find_relief
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot
from llumnix.types import InstanceId, InstanceState

REMEMBERED_LOSSES = 4096
"""Ids of lost instances that are kept, so that a late report does not bring one back."""

REMEMBERED_DRAINS = 256
"""Reports of drains that have ended."""

NEWCOMER_S = 10.0
"""An instance counts as new for this long: requests are moved to it more eagerly and several at once."""

NEWCOMER_MOVES = 4
"""Requests that a new instance takes at once, and that one instance gives it at once."""


class _Known:
    """One instance: when it was last heard of, and what it said (None: nothing yet)."""

    __slots__ = ("drain", "given", "heard_s", "new_until_s", "snapshot")

    def __init__(self, heard_s: float) -> None:
        self.heard_s = heard_s
        self.new_until_s = heard_s + NEWCOMER_S
        self.snapshot: InstanceSnapshot | None = None
        self.drain: Drain | None = None
        self.given = 0
        """Requests that it gave away since that report."""


class GlobalScheduler:
    """`handle(event)` returns what to do. Without an autoscaler the cluster keeps its size."""

    def __init__(
        self,
        policy: PolicyConfig,
        instance_timeout_s: float,
        drain_limits: DrainLimits | None = None,
        autoscaler: Autoscaler | None = None,
    ) -> None:
        self._config = policy
        self._policy = find_policy(policy.policy)
        self._terms = self._policy.pairing_terms(policy)
        self._instance_timeout_s = instance_timeout_s
        self._drain_limits = drain_limits or DrainLimits()
        self._ended_drains: dict[InstanceId, DrainReport] = {}
        self._known: dict[InstanceId, _Known] = {}
        self._lost: dict[InstanceId, None] = {}
        self._back_off = BackOff()
        self._wake_at_s: float | None = None
        self.autoscaler = autoscaler
        self.fleet = FleetView()
        self.moves = MovesInFlight()
        self.last_round = PairingRound((), ())
        """What the last round of pairing decided and why, for display."""
        self.ignored: dict[str, int] = {}
        """Events that came too late to matter, by kind."""

    def handle(self, event: Event) -> list[Command]:
        """Takes one event. Times must not go backwards."""
        match event:
            case LoadReported():
                return self._on_report(event) + self._arm(event.at)
            case TimerFired():
                return self._on_timer(event.at)
            case MigrationEnded():
                return self._on_migration_ended(event)
            case InstanceStarted():
                self._hear(event.at, event.instance)
            case InstanceLost():
                return self._forget(event.at, event.instance) + self._arm(event.at)
            case DrainRequested():
                return self._on_drain_requested(event)
            case RequestsReplayed():
                self._on_replayed(event)
            case StartRequested():
                return [self._start(event.at, event.count, f"{event.count} more asked for")]
            case FleetReported():
                self.fleet.tell(event.at, event.fleet)
            case _:
                assert_never(event)
        return self._arm(event.at)

    def snapshot(self, at: float) -> ClusterSnapshot:
        """The cluster by the last reports and the orders that went out since."""
        known = (self._known[instance] for instance in sorted(self._known))
        return ClusterSnapshot(
            at=at, instances=tuple(self._as_ordered(one, one.snapshot) for one in known if one.snapshot is not None)
        )

    # what is heard

    def _hear(self, at: float, instance: InstanceId) -> _Known | None:
        """A sign of life; None if the instance is lost already, and what it says does not count."""
        if instance in self._lost:
            self._ignore("word of a lost instance")
            return None
        known = self._known.setdefault(instance, _Known(at))
        known.heard_s = at
        return known

    def drains(self, at: float) -> list[DrainReport]:
        """How every drain goes that is under way, and how the last ones went, by instance."""
        under_way = [known.drain.report(at) for known in self._known.values() if known.drain is not None]
        reports = self._ended_drains | {report.instance: report for report in under_way}
        return [reports[instance] for instance in sorted(reports)]

    def _on_report(self, event: LoadReported) -> list[Command]:
        report = event.snapshot
        known = self._hear(event.at, report.id)
        if known is None:
            return []
        if known.snapshot is not None and report.seq <= known.snapshot.seq:
            self._ignore("report older than the known one")
            return []
        known.snapshot = report
        known.given = 0
        if report.state is InstanceState.DRAINING:
            if known.drain is None:  # by its own will, or by that of a scheduler before us
                known.drain = self._new_drain(DrainOrder(at=event.at, instance=report.id, keep=report.drain_keep))
                return self._go_on_draining(event.at, report.id)
            return []
        return self._relieve(event.at, report.id) if report.short_blocks else []

    def _on_migration_ended(self, event: MigrationEnded) -> list[Command]:
        if not self.moves.end((event.source, event.target), whole=event.request is None):
            self._ignore("answer to a move that is not in flight")
            return []
        if event.ok and event.source in self._known:
            self._known[event.source].given += 1
        if event.ok:
            self._back_off.succeeded(event.source, event.target)
        else:
            self._back_off.refused(event.at, event.source, event.target if event.request is not None else None)
        return self._go_on_draining(event.at, event.source)

    def _on_drain_requested(self, event: DrainRequested) -> list[Command]:
        known = self._known.get(event.instance)
        if known is None:
            self._ignore("drain of an unknown instance")
            return []
        order = DrainOrder(at=event.at, instance=event.instance, keep=event.keep, timeout_s=event.timeout_s)
        return self._drain(known, order) + self._arm(event.at)

    def _drain(self, known: _Known, order: DrainOrder) -> list[Command]:
        if known.drain is None or known.drain.order.keep != order.keep:
            known.drain = self._new_drain(order)
        return self._go_on_draining(order.at, order.instance)

    def _on_replayed(self, event: RequestsReplayed) -> None:
        known = self._known.get(event.instance)
        if known is None or known.drain is None:
            self._ignore("replay of what drains no more")
        else:
            known.drain.replayed(event.count)

    def _start(self, at: float, count: int, reason: str) -> StartInstances:
        return StartInstances(count=count, reason=reason, order=self.fleet.order(at, count))

    def _forget(self, at: float, instance: InstanceId) -> list[Command]:
        known = self._known.pop(instance, None)
        self._lost[instance] = None
        if len(self._lost) > REMEMBERED_LOSSES:
            del self._lost[next(iter(self._lost))]
        self.moves.forget(instance)
        self._back_off.forget(instance)
        return [] if known is None or known.drain is None else self._remember_drains(known.drain.lost(at))

    def _remember_drains(self, commands: list[Command]) -> list[Command]:
        for command in commands:
            if isinstance(command, DrainFinished):
                self._ended_drains.pop(command.report.instance, None)
                self._ended_drains[command.report.instance] = command.report
                if len(self._ended_drains) > REMEMBERED_DRAINS:
                    del self._ended_drains[next(iter(self._ended_drains))]
        return commands

    def _ignore(self, what: str) -> None:
        self.ignored[what] = self.ignored.get(what, 0) + 1

    # the round

    def _arm(self, at: float) -> list[Command]:
        """Sets the timer if it is not set and there is anything to watch."""
        if self._wake_at_s is not None or not self._known:
            return []
        self._wake_at_s = at + self._config.pairing_interval_s
        return [WakeAt(at=self._wake_at_s)]

    def _on_timer(self, at: float) -> list[Command]:
        if self._wake_at_s is None:
            return []
        if at < self._wake_at_s:
            self._ignore("timer before its time")
            return [WakeAt(at=self._wake_at_s)]
        late_s, self._wake_at_s = at - self._wake_at_s, None
        commands = self._declare_lost(at, late_s)
        self.moves.expire(at)
        self._back_off.expire(at)
        self.fleet.expire(at)
        commands += self._scale(at)
        for instance in sorted(self._known):
            commands += self._go_on_draining(at, instance)
        commands += self._pair(at)
        return commands + self._arm(at)

    def _declare_lost(self, at: float, late_s: float) -> list[Command]:
        """Whoever was silent for too long. After a pause of our own (a stopped process, a long swap) nobody is: their
        reports wait in our queue behind the timer."""
        if late_s > self._instance_timeout_s / 2:
            for known in self._known.values():
                known.heard_s = at
        silent_s = {instance: at - known.heard_s for instance, known in self._known.items()}
        commands: list[Command] = []
        for instance in sorted(silent_s):
            if silent_s[instance] > self._instance_timeout_s:
                commands += self._forget(at, instance)
                why = f"no heartbeat for {silent_s[instance]:.3g} s (limit {self._instance_timeout_s:g} s)"
                commands.append(DeclareLost(instance=instance, why=why))
        return commands

    def _scale(self, at: float) -> list[Command]:
        step = None if self.autoscaler is None else self.autoscaler.look(self.snapshot(at), self.fleet)
        if step is None:
            return []
        commands: list[Command] = [ScalingDecided(step=step)]
        if step.carried_out and step.start:
            commands.append(self._start(at, step.start, f"auto-scaling: {step.reason}"))
        elif step.carried_out and step.drain is not None:
            order = DrainOrder(at=at, instance=step.drain, keep=False, why=f"by auto-scaling: {step.reason}")
            commands += self._drain(self._known[step.drain], order)
        return commands

    def _pair(self, at: float) -> list[Command]:
        if self._policy.pairing is None or not self._config.migration:
            return []
        newcomers = self._newcomers(at)
        self.last_round = self._policy.pairing(self.snapshot(at), self._terms_at(at, newcomers))
        return [self._ask_pair(at, pair, pair.target in newcomers) for pair in self.last_round.pairs]

    def _terms_at(self, at: float, newcomers: frozenset[InstanceId] = frozenset()) -> PairingTerms:
        """New instances are to be used at once: whoever is below the freeness that calls for them gives to them, though
        that would be no reason to move anything otherwise."""
        terms = replace(self._terms, backing_off=self._back_off.pairs(at), empty_handed=self._back_off.empty_handed(at))
        if not newcomers or self.autoscaler is None:
            return terms
        threshold = max(terms.migrate_in_freeness, self.autoscaler.config.scale_out_freeness)
        return replace(
            terms,
            migrate_out_freeness=threshold,
            migrate_in_freeness=threshold,
            max_migrations=max(terms.max_migrations, NEWCOMER_MOVES),
            newcomers=newcomers,
        )

    def _newcomers(self, at: float) -> frozenset[InstanceId]:
        if self.autoscaler is None or self.autoscaler.mode is not ScalingMode.ON:
            return frozenset()
        return frozenset(instance for instance, known in self._known.items() if at < known.new_until_s)

    def _ask_pair(self, at: float, pair: Pair, newcomer: bool) -> MoveRequest:
        giver = self._known[pair.source].snapshot
        queued = 0 if giver is None else giver.waiting
        count = max(1, min(queued, NEWCOMER_MOVES)) if newcomer else 1
        return self._ask(
            at,
            MoveRequest(
                source=pair.source, target=pair.target, room_blocks=pair.room_blocks, count=count, reason=str(pair)
            ),
        )

    def _relieve(self, at: float, instance: InstanceId) -> list[Command]:
        """A request leaves before one has to be preempted."""
        giver = self._known[instance].snapshot
        if self._policy.pairing is None or not self._config.migration or giver is None:
            return []
        cluster = self.snapshot(at)
        giver = next(one for one in cluster.instances if one.id == instance)
        pair = find_relief(giver, cluster, self._terms_at(at))
        if pair is None:
            return []
        move = MoveRequest(
            source=pair.source,
            target=pair.target,
            room_blocks=pair.room_blocks,
            urgent=True,
            reason=f"{giver.short_blocks} blocks short within {self._config.relief_steps} steps; {pair}",
        )
        return [self._ask(at, move)]

    def _go_on_draining(self, at: float, instance: InstanceId) -> list[Command]:
        """The next orders and moves of a drain; none for an instance that is not draining."""
        known = self._known.get(instance)
        if known is None or known.drain is None:
            return []
        in_flight = self.moves.outgoing(instance)
        commands = self._remember_drains(
            known.drain.orders(at, known.snapshot, in_flight, others_serve=self._others_serve(instance))
        )
        if known.snapshot is None or self._policy.pairing is None or instance in self._back_off.empty_handed(at):
            return commands
        if known.drain.past_deadline(at):
            return commands
        left = known.snapshot.running + known.snapshot.waiting - known.given - in_flight
        terms = DrainTerms(
            moves=min(left, self._drain_limits.moves - max(in_flight, known.snapshot.outgoing)),
            max_incoming=self._drain_limits.moves,
            priority_target_tokens=self._terms.priority_target_tokens,
            backing_off=self._back_off.pairs(at),
        )
        if terms.moves > 0:
            for place in place_drained(known.snapshot, self.snapshot(at), terms):
                move = MoveRequest(
                    source=instance,
                    target=place.target,
                    count=place.count,
                    room_blocks=place.room_blocks,
                    reason=f"{instance} drains, {left} left; {place}",
                )
                commands.append(self._ask(at, move))
        return commands

    def _ask(self, at: float, move: MoveRequest) -> MoveRequest:
        """Remembers a move as in flight."""
        self.moves.ask(at, (move.source, move.target), move.count)
        return move

    def _new_drain(self, order: DrainOrder) -> Drain:
        return Drain(order, self._drain_limits, repeat_s=self._instance_timeout_s)

    def _others_serve(self, instance: InstanceId) -> bool:
        return any(
            known.snapshot is not None and known.drain is None and known.snapshot.state is InstanceState.RUNNING
            for other, known in self._known.items()
            if other != instance
        )

    def _as_ordered(self, known: _Known, snapshot: InstanceSnapshot) -> InstanceSnapshot:
        """The report with what was ordered since: a drain, and moves."""
        drains = known.drain is not None and snapshot.state is InstanceState.RUNNING
        incoming = max(snapshot.incoming, self.moves.incoming(snapshot.id))
        outgoing = max(snapshot.outgoing, self.moves.outgoing(snapshot.id))
        if not drains and incoming == snapshot.incoming and outgoing == snapshot.outgoing:
            return snapshot
        state = InstanceState.DRAINING if drains else snapshot.state
        return replace(snapshot, state=state, incoming=incoming, outgoing=outgoing)
