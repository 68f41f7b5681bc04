"""The global scheduler: pairs instances for migration, drains them, notices the silent ones (paper section 4.3).

It is never on the path of a token or of a dispatch: when it is gone, serving goes on. It keeps nothing that the next
reports would not tell, so a restarted one needs no recovery.

One timer drives it. Each round, every `pairing_interval_s`, declares the silent instances lost, drops what was asked
too long ago, goes on with the drains, and pairs.
"""

from __future__ import annotations

from typing import assert_never

from msgspec.structs import replace

from llumnix.config import PolicyConfig
from llumnix.control.drain import Drain
from llumnix.control.moves import BackOff, MovesInFlight
from llumnix.control.scheduler_events import (
    Command,
    DeclareLost,
    DrainRequested,
    Event,
    InstanceLost,
    InstanceStarted,
    LoadReported,
    MigrationEnded,
    MoveRequest,
    StartInstances,
    StartRequested,
    TimerFired,
    WakeAt,
)
from llumnix.policy.catalogue import find_policy
from llumnix.policy.draining import DrainTerms, place_drained
from llumnix.policy.pairing import PairingRound
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot
from llumnix.types import InstanceId, InstanceState

REMEMBERED_LOSSES = 4096
"""Ids of lost instances that are kept, so that a late report does not bring one back."""


class _Known:
    """One instance: when it was last heard of, and what it said (None: nothing yet)."""

    __slots__ = ("drain", "given", "heard_s", "snapshot")

    def __init__(self, heard_s: float) -> None:
        self.heard_s = heard_s
        self.snapshot: InstanceSnapshot | None = None
        self.drain: Drain | None = None
        self.given = 0
        """Requests that it gave away since that report."""


class GlobalScheduler:
    """`handle(event)` returns what to do. `drain_moves`: requests that a draining instance gives away at once, and that
    one target takes from it."""

    def __init__(self, policy: PolicyConfig, instance_timeout_s: float, drain_moves: int = 4) -> None:
        self._config = policy
        self._policy = find_policy(policy.policy)
        self._terms = self._policy.pairing_terms(policy)
        self._instance_timeout_s = instance_timeout_s
        self._drain_moves = drain_moves
        self._known: dict[InstanceId, _Known] = {}
        self._lost: dict[InstanceId, None] = {}
        self._back_off = BackOff()
        self._wake_at_s: float | None = None
        self.moves = MovesInFlight()
        self.last_round = PairingRound((), ())
        """What the last round of pairing decided and why, for display."""
        self.ignored: dict[str, int] = {}
        """Events that came too late to matter, by kind."""

    def handle(self, event: Event) -> list[Command]:
        """Takes one event. Times must not go backwards."""
        match event:
            case LoadReported():
                self._on_report(event)
            case TimerFired():
                return self._on_timer(event.at)
            case MigrationEnded():
                return self._on_migration_ended(event)
            case InstanceStarted():
                self._hear(event.at, event.instance)
            case InstanceLost():
                self._forget(event.instance)
            case DrainRequested():
                return self._on_drain_requested(event)
            case StartRequested():
                return [StartInstances(count=event.count, reason=f"{event.count} more asked for")]
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

    def _on_report(self, event: LoadReported) -> None:
        known = self._hear(event.at, event.snapshot.id)
        if known is None:
            return
        if known.snapshot is not None and event.snapshot.seq <= known.snapshot.seq:
            self._ignore("report older than the known one")
            return
        known.snapshot = event.snapshot
        known.given = 0
        if event.snapshot.state is InstanceState.DRAINING and known.drain is None:
            known.drain = self._new_drain(event.snapshot.id, event.snapshot.drain_keep)

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
        if known.drain is None or known.drain.keep != event.keep:
            known.drain = self._new_drain(event.instance, event.keep)
        return self._go_on_draining(event.at, event.instance) + self._arm(event.at)

    def _forget(self, instance: InstanceId) -> None:
        self._known.pop(instance, None)
        self._lost[instance] = None
        if len(self._lost) > REMEMBERED_LOSSES:
            del self._lost[next(iter(self._lost))]
        self.moves.forget(instance)
        self._back_off.forget(instance)

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
                self._forget(instance)
                why = f"no heartbeat for {silent_s[instance]:.3g} s (limit {self._instance_timeout_s:g} s)"
                commands.append(DeclareLost(instance=instance, why=why))
        return commands

    def _pair(self, at: float) -> list[Command]:
        if self._policy.pairing is None or not self._config.migration:
            return []
        terms = replace(self._terms, backing_off=self._back_off.pairs(at), empty_handed=self._back_off.empty_handed(at))
        self.last_round = self._policy.pairing(self.snapshot(at), terms)
        return [
            self._ask(
                at,
                MoveRequest(source=pair.source, target=pair.target, room_blocks=pair.room_blocks, reason=str(pair)),
            )
            for pair in self.last_round.pairs
        ]

    def _go_on_draining(self, at: float, instance: InstanceId) -> list[Command]:
        """The next orders and moves of a drain; none for an instance that is not draining."""
        known = self._known.get(instance)
        if known is None or known.drain is None:
            return []
        in_flight = self.moves.outgoing(instance)
        commands = known.drain.orders(at, known.snapshot, in_flight)
        if known.snapshot is None or self._policy.pairing is None or instance in self._back_off.empty_handed(at):
            return commands
        left = known.snapshot.running + known.snapshot.waiting - known.given - in_flight
        terms = DrainTerms(
            moves=min(left, self._drain_moves - max(in_flight, known.snapshot.outgoing)),
            max_incoming=self._drain_moves,
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

    def _new_drain(self, instance: InstanceId, keep: bool) -> Drain:
        return Drain(instance, keep, repeat_s=self._instance_timeout_s)

    def _as_ordered(self, known: _Known, snapshot: InstanceSnapshot) -> InstanceSnapshot:
        """The report with what was ordered since: a drain, and moves."""
        drains = known.drain is not None and snapshot.state is InstanceState.RUNNING
        incoming = max(snapshot.incoming, self.moves.incoming(snapshot.id))
        outgoing = max(snapshot.outgoing, self.moves.outgoing(snapshot.id))
        if not drains and incoming == snapshot.incoming and outgoing == snapshot.outgoing:
            return snapshot
        state = InstanceState.DRAINING if drains else snapshot.state
        return replace(snapshot, state=state, incoming=incoming, outgoing=outgoing)
