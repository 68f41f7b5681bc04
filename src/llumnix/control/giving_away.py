"""What a llumlet makes of an order to give requests away: which of them begin to move, and why others do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from llumnix.config import MigrationConfig
from llumnix.control.attempts import Attempts
from llumnix.control.commands import AnswerMove, AnyCommand
from llumnix.control.events import MoveOrdered
from llumnix.control.migration_source import MigrationSource
from llumnix.control.orders import MoveOrder, MoveOutcome, StayCause
from llumnix.policy.snapshot import RequestSnapshot
from llumnix.policy.victim import VictimChoice, VictimQuery
from llumnix.types import Epoch, InstanceId, RequestState

ChooseVictims = Callable[[Iterable[RequestSnapshot], VictimQuery], VictimChoice]


class GivingAway:
    """Starts an attempt in `attempts` for each request that goes. The rest is as `Llumlet` has it."""

    def __init__(
        self,
        instance: InstanceId,
        config: MigrationConfig,
        attempts: Attempts,
        choose_victims: ChooseVictims,
        cooldown_s: float,
    ) -> None:
        self._instance = instance
        self._config = config
        self._attempts = attempts
        self._choose_victims = choose_victims
        self._cooldown_s = cooldown_s

    def obey(self, move: MoveOrdered) -> list[AnyCommand]:
        """The commands that begin the moves, and an answer to the order for whatever does not begin one."""
        return self._give_named(move) if move.order.request is not None else self._give_chosen(move)

    def _give_named(self, move: MoveOrdered) -> list[AnyCommand]:
        order = move.order
        snapshot = next((each for each in move.candidates if each.id == order.request), None)
        why_not = self._why_not(order, snapshot)
        if snapshot is None or why_not:
            return [self._cannot(order, why_not)]
        return self._start(move.at, order, snapshot)

    def _give_chosen(self, move: MoveOrdered) -> list[AnyCommand]:
        order, asked, out = move.order, move.order.wanted.count, self._attempts.outgoing
        count = min(asked, self._config.max_outgoing - out)
        if count <= 0:
            return [self._cannot(order, f"{out} migrations out already", asked)]
        free = {each.id: each for each in move.candidates if not self._attempts.is_moving(each.id)}
        query = VictimQuery(
            at=move.at,
            cooldown_s=self._cooldown_s,
            wanted=replace(order.wanted, count=count),
            draining=self._attempts.draining,
        )
        choice = self._choose_victims(free.values(), query)
        commands = [command for victim in choice.victims for command in self._start(move.at, order, free[victim])]
        started = len(choice.victims)
        if started < asked:
            why = f"{self._attempts.outgoing} migrations out now" if started == count else choice.why_no_more
            why = f"only {started} of {asked}: {why}" if started else f"nothing to give: {why}"
            commands.append(self._cannot(order, why, asked - started))
        return commands

    def _cannot(self, order: MoveOrder, why: str, missing: int | None = None) -> AnswerMove:
        outcome = MoveOutcome(
            order=order,
            source=self._instance,
            request=order.request,
            not_started=missing,
            why_not=why,
            stayed=StayCause.NOT_STARTED,
        )
        return AnswerMove(outcome)

    def _why_not(self, order: MoveOrder, snapshot: RequestSnapshot | None) -> str:
        """Why the request that was named cannot be moved there; empty if it can."""
        if snapshot is None:
            return "no such request here"
        if order.target == self._instance:
            return "it is there already"
        if self._attempts.is_moving(snapshot.id) or snapshot.state is RequestState.MIGRATING:
            return "it is on the move already, or its last move is not confirmed yet"
        if snapshot.why_pinned:
            return f"it is pinned to its instance: {snapshot.why_pinned}"
        if self._attempts.outgoing >= self._config.max_outgoing:
            return f"{self._attempts.outgoing} migrations out already"
        return ""

    def _start(self, at: float, order: MoveOrder, snapshot: RequestSnapshot) -> list[AnyCommand]:
        self._attempts.epoch = Epoch(self._attempts.epoch + 1)
        queued = snapshot.state is RequestState.WAITING
        source = MigrationSource(
            me=self._instance,
            order=order,
            request=snapshot.id,
            epoch=self._attempts.epoch,
            config=self._config,
            queued=queued,
            at_first_token=order.wanted.to_decode and not snapshot.output_tokens,
        )
        self._attempts.sources[snapshot.id] = source
        return source.start(at, 0 if queued else snapshot.length_blocks)
