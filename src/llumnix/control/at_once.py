"""What is not left waiting for the scheduler's round: it follows from a report by itself.

An instance that is about to run out of blocks has a request moved away before one is preempted, and one for prompts has
those moved away that are to make their tokens elsewhere.
"""

from __future__ import annotations

from msgspec.structs import replace

from llumnix.config import PolicyConfig
from llumnix.control.back_off import BackOff
from llumnix.control.cluster_view import ClusterView
from llumnix.control.freest import Freest
from llumnix.control.moves import MovesInFlight
from llumnix.control.orders import MoveCause
from llumnix.control.scheduler_events import SchedulerCommand
from llumnix.policy.catalogue import find_policy
from llumnix.policy.relief import find_relief
from llumnix.policy.roles import HomeTerms, find_homes
from llumnix.policy.snapshot import InstanceSnapshot

TARGETS_TRIED = 32
"""Instances, freest first, that are looked at for one that takes a request at once: bounds what a report costs."""


class AtOnce:
    """`most_moves`: how many may be on their way out of one instance, or into one."""

    def __init__(
        self,
        config: PolicyConfig,
        view: ClusterView,
        moves: MovesInFlight,
        back_off: BackOff,
        freest: Freest,
        most_moves: int,
    ) -> None:
        policy = find_policy(config.policy)
        self._relieves = policy.relief and config.migration
        self._relief_steps = config.relief_steps
        self._terms = policy.pairing_terms(config)
        self._view = view
        self._moves = moves
        self._back_off = back_off
        self._freest = freest
        self._most_moves = most_moves

    def reported(self, at: float, report: InstanceSnapshot) -> list[SchedulerCommand]:
        commands: list[SchedulerCommand] = []
        if report.short_blocks and self._relieves:
            commands += self._relieve(at, self._with_orders(report))
        if report.to_decode:
            commands += self._send_on(at, self._with_orders(report))
        return commands

    def _with_orders(self, report: InstanceSnapshot) -> InstanceSnapshot:
        """With what was ordered since, a moment ago also."""
        giver = self._view.look(report.id)
        assert giver is not None, "it has just reported"
        return giver

    def _relieve(self, at: float, giver: InstanceSnapshot) -> list[SchedulerCommand]:
        """A request leaves before one has to be preempted."""
        terms = replace(self._terms, backing_off=self._back_off.pairs(at), empty_handed=self._back_off.empty_handed(at))
        pair = find_relief(giver, self._freest.first(TARGETS_TRIED), terms)
        if pair is None:
            return []
        reason = f"{giver.short_blocks} blocks short within {self._relief_steps} steps; {pair}"
        return [self._moves.request(at, (giver.id, pair.target), pair.wanted, MoveCause.RELIEF, reason)]

    def _send_on(self, at: float, giver: InstanceSnapshot) -> list[SchedulerCommand]:
        terms = HomeTerms(
            moves=self._most_moves - giver.outgoing,
            max_incoming=self._most_moves,
            backing_off=self._back_off.pairs(at),
        )
        return [
            self._moves.request(at, (giver.id, home.target), home.wanted, MoveCause.DECODE, str(home))
            for home in find_homes(giver, self._freest.first(TARGETS_TRIED), terms)
        ]
