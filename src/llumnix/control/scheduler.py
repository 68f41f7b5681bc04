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

from llumnix.config import ClusterConfig, PolicyConfig
from llumnix.control.at_once import AtOnce
from llumnix.control.back_off import BackOff
from llumnix.control.cluster_view import ClusterView
from llumnix.control.drain import DrainLimits
from llumnix.control.drains import Drains
from llumnix.control.fleet import FleetView
from llumnix.control.freest import Freest
from llumnix.control.moves import MovesInFlight
from llumnix.control.orders import MoveCause
from llumnix.control.role_keeper import RoleKeeper
from llumnix.control.scaling import Autoscaler, ScalingMode
from llumnix.control.scheduler_events import (
    CachedElsewhere,
    DeclareLost,
    DemandHeld,
    DrainRequested,
    DrainWithdrawn,
    FleetReported,
    InstanceLost,
    InstanceStarted,
    LoadReported,
    MigrationEnded,
    MoveRequest,
    RequestsReplayed,
    RoleWanted,
    RoundAt,
    RoundDue,
    ScalingDecided,
    SchedulerCommand,
    SchedulerEvent,
    SetRole,
    StartInstances,
    StartRequested,
)
from llumnix.policy.catalogue import find_policy
from llumnix.policy.pairing import Pair, PairingRound, PairingTerms
from llumnix.policy.snapshot import ClusterSnapshot
from llumnix.types import InstanceId, InstanceState

NEWCOMER_MOVES = 4
"""Requests that a new instance takes at once, and that one instance gives it at once."""


class GlobalScheduler:
    """`handle(event)` returns what to do. Without an autoscaler the cluster keeps its size. The ids of
    its orders begin with `name`, so that no other scheduler of the server gives the same."""

    def __init__(
        self,
        policy: PolicyConfig,
        instance_timeout_s: float,
        drain_limits: DrainLimits | None = None,
        autoscaler: Autoscaler | None = None,
        step_timeout_s: float = ClusterConfig().step_timeout_s,
        name: str = "scheduler",
    ) -> None:
        self._config = policy
        self._policy = find_policy(policy.policy)
        self._terms = self._policy.pairing_terms(policy)
        self._instance_timeout_s = instance_timeout_s
        self._step_timeout_s = step_timeout_s
        self._back_off = BackOff()
        self._wake_at_s: float | None = None
        self.autoscaler = autoscaler
        self.fleet = FleetView()
        self.moves = MovesInFlight(name, self._back_off)
        self.ignored: dict[str, int] = {}
        """Events that came too late to matter, by kind."""
        self._view = ClusterView(self.moves, self.ignored)
        self._freest = Freest(self._view, self._terms.priority_target_tokens)
        limits = drain_limits or DrainLimits()
        self._at_once = AtOnce(policy, self._view, self.moves, self._back_off, self._freest, limits.moves)
        self.drains = Drains(self._view, self.moves, self._back_off, self._freest, limits, policy)
        self._roles = None if policy.roles.roles == "static" else RoleKeeper(policy.roles)
        self.last_round = PairingRound((), ())
        """What the last round of pairing decided and why, for display."""

    def handle(self, event: SchedulerEvent) -> list[SchedulerCommand]:
        """Takes one event. Times must not go backwards."""
        match event:
            case LoadReported():
                return self._on_report(event) + self._arm(event.at)
            case RoundDue():
                return self._on_timer(event.at)
            case MigrationEnded():
                return self._on_migration_ended(event)
            case InstanceStarted():
                self._view.hear(event.at, event.instance)
            case InstanceLost():
                return self._forget(event.at, event.instance) + self._arm(event.at)
            case DrainRequested() | DrainWithdrawn() | RoleWanted():
                return self._on_wish(event) + self._arm(event.at)
            case RequestsReplayed():
                self.drains.replayed(event)
            case CachedElsewhere():
                return self.drains.cached_elsewhere(event)
            case DemandHeld():
                self._view.holds(event)
            case StartRequested():
                instead = "" if event.replaces is None else f", with the role of {event.replaces}"
                return [self._start(event.at, event.count, f"{event.count} more asked for{instead}", event.replaces)]
            case FleetReported():
                self.fleet.tell(event.at, event.fleet)
            case _:
                assert_never(event)
        return self._arm(event.at)

    def snapshot(self, at: float) -> ClusterSnapshot:
        """The cluster by the last reports and the orders that went out since."""
        return self._view.snapshot(at)

    @property
    def knows_roles(self) -> bool:
        """Instances may be preferred for prompts, or for tokens."""
        return self._policy.roles and self._config.migration and self._config.roles.roles != "adaptive"

    def is_last(self, instance: InstanceId) -> bool:
        """It takes requests, and nobody else does."""
        known = self._view.get(instance)
        return known is not None and known.serves and not self._view.others_serve(instance)

    # what is heard

    def _on_report(self, event: LoadReported) -> list[SchedulerCommand]:
        report = event.snapshot
        known = self._view.read(event.at, report)
        if known is None:
            return []
        self._freest.read(report)
        if known.drain is not None and known.drain.withdrawn:
            return self.drains.go_on(event.at, report.id)
        if report.state is InstanceState.DRAINING:
            if known.drain is not None:
                return []
            # Its process was asked to end, or it was the will of a scheduler before us.
            firm = report.asked_to_end
            return self.drains.begin(DrainRequested(at=event.at, instance=report.id, keep=report.drain_keep, firm=firm))
        return self._at_once.reported(event.at, report)

    def _on_migration_ended(self, event: MigrationEnded) -> list[SchedulerCommand]:
        outcome = event.outcome
        source, target = outcome.source, outcome.order.target
        ended = 1 if outcome.request is not None else outcome.not_started
        if not self.moves.end((source, target), ended, with_promise=not outcome.some_started):
            self._view.ignore("answer to a move that is not in flight")
            return []
        known = self._view.get(source)
        if outcome.ok and known is not None:
            known.given += 1
        if outcome.ok:
            self._back_off.succeeded(source, target)
        elif not outcome.came_late and not outcome.some_started:
            self._back_off.refused(event.at, outcome)
        return self.drains.go_on(event.at, source)

    def _on_wish(self, event: DrainRequested | DrainWithdrawn | RoleWanted) -> list[SchedulerCommand]:
        if self._view.get(event.instance) is None and not isinstance(event, DrainWithdrawn):
            self._view.ignore(f"{'drain' if isinstance(event, DrainRequested) else 'role'} of an unknown instance")
            return []
        match event:
            case DrainRequested():
                return self.drains.begin(event)
            case DrainWithdrawn():
                return self.drains.withdraw(event.at, event.instance)
            case RoleWanted():
                return [SetRole(instance=event.instance, role=event.role, reason=event.why)]
            case _:
                assert_never(event)

    def _start(self, at: float, count: int, reason: str, replaces: InstanceId | None = None) -> StartInstances:
        return StartInstances(count=count, reason=reason, order=self.fleet.order(at, count), replaces=replaces)

    def _forget(self, at: float, instance: InstanceId) -> list[SchedulerCommand]:
        known = self._view.forget(instance)
        self._freest.forget(instance)
        self.moves.forget(instance)
        self._back_off.forget(instance)
        return [] if known is None else self.drains.lost(at, known)

    # the round

    def _arm(self, at: float) -> list[SchedulerCommand]:
        """Sets the timer if it is not set and there is anything to watch."""
        if self._wake_at_s is not None or not self._view:
            return []
        self._wake_at_s = at + self._config.pairing_interval_s
        return [RoundAt(at=self._wake_at_s)]

    def _on_timer(self, at: float) -> list[SchedulerCommand]:
        if self._wake_at_s is None:
            return []
        if at < self._wake_at_s:
            self._view.ignore("timer before its time")
            return [RoundAt(at=self._wake_at_s)]
        late_s, self._wake_at_s = at - self._wake_at_s, None
        commands = self._declare_lost(at, late_s)
        for ends in self.moves.expire(at):
            self._back_off.unanswered(at, ends)
        self._back_off.expire(at)
        self.fleet.expire(at)
        commands += self._scale(at)
        if self._roles is not None and self._roles.is_due(at):
            commands += self._roles.look(self.snapshot(at))
        for instance in self._view.ids:
            commands += self.drains.go_on(at, instance)
        commands += self._pair(at)
        return commands + self._arm(at)

    def _declare_lost(self, at: float, late_s: float) -> list[SchedulerCommand]:
        """Whoever was silent, or got nothing done, for too long. After a pause of our own (a stopped process, a long
        swap) nobody is: their reports wait in our queue behind the timer, or they stood still with us."""
        if late_s > self._instance_timeout_s / 2:
            self._view.excuse_silence(at)
            self.drains.stood_still(late_s)
        commands: list[SchedulerCommand] = []
        for instance, why in self._view.lost(at, self._instance_timeout_s, self._step_timeout_s).items():
            commands += self._forget(at, instance)
            commands.append(DeclareLost(instance=instance, why=why))
        return commands

    def _scale(self, at: float) -> list[SchedulerCommand]:
        if self.autoscaler is None or self.autoscaler.mode is ScalingMode.OFF:
            return []
        step = self.autoscaler.look(self.snapshot(at), self.fleet)
        if step is None:
            return []
        commands: list[SchedulerCommand] = [ScalingDecided(step=step)]
        if step.carried_out and step.start:
            commands.append(self._start(at, step.start, f"auto-scaling: {step.reason}"))
        elif step.carried_out and step.drain is not None:
            why = f"by auto-scaling: {step.reason}"
            commands += self.drains.begin(DrainRequested(at=at, instance=step.drain, why=why))
        return commands

    def _pair(self, at: float) -> list[SchedulerCommand]:
        if self._policy.pairing is None or not self._config.migration:
            return []
        newcomers = self._newcomers(at)
        self.last_round = self._policy.pairing(self.snapshot(at), self._terms_at(at, newcomers))
        return [self._ask_pair(at, pair, pair.target in newcomers) for pair in self.last_round.pairs]

    def _terms_at(self, at: float, newcomers: frozenset[InstanceId]) -> PairingTerms:
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
        return self._view.newcomers(at)

    def _ask_pair(self, at: float, pair: Pair, newcomer: bool) -> MoveRequest:
        giver = self._view[pair.source].snapshot
        queued = 0 if giver is None else giver.waiting
        wanted = pair.wanted
        if newcomer and not wanted.at_least_blocks:
            wanted = replace(wanted, count=max(1, min(queued, NEWCOMER_MOVES)))
        return self.moves.request(at, (pair.source, pair.target), wanted, _cause_of(pair), str(pair))


def _cause_of(pair: Pair) -> MoveCause:
    if pair.wanted.by_pace:
        return MoveCause.PACE
    return MoveCause.ROOM if pair.wanted.at_least_blocks else MoveCause.BALANCE
