"""Which requests of a front end go on elsewhere with their first token, and where: said with them when they are sent.

Whoever gets a prompt to compute asks the next instance for room as soon as it begins, and hands over with the token.
An order that waited for a report would come later than the token of a prompt that is computed in one step. Nothing
depends on it: if it does not come to that, the scheduler is asked by the reports, as for all others that decode there.
"""

from __future__ import annotations

from itertools import chain, islice

import msgspec
from msgspec.structs import replace

from llumnix.config import PolicyConfig
from llumnix.control.dispatcher import Dispatcher
from llumnix.control.front_end_events import (
    Aborted,
    Arrived,
    Broken,
    Finished,
    FrontEndEvent,
    Noticed,
    TurnedAway,
    Unsent,
)
from llumnix.control.moves import MOVE_DEADLINE_S, MovesInFlight
from llumnix.control.orders import Ends, MoveCause, MoveId, MoveOrder
from llumnix.policy.catalogue import find_policy
from llumnix.policy.demand import queued_demand_blocks
from llumnix.policy.roles import HomeTerms, find_homes
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.victim import Wanted
from llumnix.types import InstanceId, RequestId, Role

TAKERS_TRIED = 8
"""Instances for tokens that are looked at, and as many of all, by rank: bounds what a dispatch costs."""


class _Asked(msgspec.Struct, frozen=True):
    ends: Ends
    deadline_s: float


class Onward:
    """Requests count at the instance where they are to go until it has them, or they do not go there any more; or for
    `MOVE_DEADLINE_S`, as not everything that keeps them is told here. Tell it the time of each event first."""

    def __init__(self, config: PolicyConfig, dispatcher: Dispatcher) -> None:
        self._enabled = find_policy(config.policy).roles and config.migration
        self._dispatcher = dispatcher
        self._moves = MovesInFlight()
        self._asked: dict[RequestId, _Asked] = {}
        """The oldest first."""
        self._at_s = 0.0

    def order(self, asked: Arrived, source: InstanceId, avoid: frozenset[InstanceId]) -> MoveOrder | None:
        """Where a request that is sent to `source` now is to make its tokens; None: there, or nobody can take it yet.
        `avoid`: those that cannot have it."""
        giver = self._dispatcher.view(source)
        if not self._enabled or giver.role is not Role.PREFILL:
            return None
        blocks = queued_demand_blocks(asked.prompt_tokens, giver)
        takers = [self._with_those_to_come(each) for each in self._able(avoid)]
        terms = HomeTerms(moves=1, max_incoming=giver.max_running)
        homes = find_homes(replace(giver, to_decode=1, to_decode_blocks=blocks), takers, terms)
        if not homes:
            return None
        (home,) = homes
        ends, deadline_s = (source, home.target), self._at_s + MOVE_DEADLINE_S
        self._asked[asked.request] = _Asked(ends, deadline_s)
        self._moves.remember(ends, 1, deadline_s, blocks)
        return MoveOrder(
            move_id=MoveId(f"{asked.request}-onward"),
            target=home.target,
            cause=MoveCause.DECODE,
            reason=str(home),
            request=asked.request,
            wanted=Wanted(to_decode=True),
        )

    def _able(self, avoid: frozenset[InstanceId]) -> list[InstanceSnapshot]:
        """The first for tokens, which by rank may come after all that compute prompts, and the first of all."""
        ranked = (each for each in self._dispatcher.by_rank() if each.role is not Role.PREFILL)
        able = (each for each in chain(self._dispatcher.for_tokens(TAKERS_TRIED), ranked) if each.id not in avoid)
        return list({each.id: each for each in islice(able, 2 * TAKERS_TRIED)}.values())

    def expire(self, at_s: float) -> None:
        """It is that late by now: of what was asked too long ago nothing more is expected."""
        self._at_s = at_s
        while self._asked and self._asked[oldest := next(iter(self._asked))].deadline_s <= at_s:
            self.close(oldest)

    def happened(self, event: FrontEndEvent) -> None:
        """To a request: it went there, or stays, or is over."""
        if not self._asked:
            return
        if isinstance(event, Finished | Aborted | Broken | Unsent | TurnedAway):
            self.close(event.request)
        elif isinstance(event, Noticed):
            self.close(event.notice.request)

    def close(self, request: RequestId) -> None:
        """It goes nowhere with its first token, or went."""
        if (asked := self._asked.pop(request, None)) is not None:
            self._moves.end(asked.ends)

    def reported(self, snapshot: InstanceSnapshot) -> None:
        """Nobody leaves one that is not for prompts any more."""
        if snapshot.role is not Role.PREFILL and self._moves.outgoing(snapshot.id):
            self._close_all([name for name, asked in self._asked.items() if asked.ends[0] == snapshot.id])

    def gone(self, instance: InstanceId) -> None:
        self._close_all([name for name, asked in self._asked.items() if instance in asked.ends])

    def _close_all(self, requests: list[RequestId]) -> None:
        for request in requests:
            self.close(request)

    def _with_those_to_come(self, taker: InstanceSnapshot) -> InstanceSnapshot:
        """Those count once, though its report may count some of them already. What its steps cost it says itself:
        nobody is turned down for what they cost elsewhere."""
        taker = replace(taker, step_cost=self._dispatcher.reported(taker.id).step_cost)
        incoming = self._moves.incoming(taker.id)
        if not incoming:
            return taker
        return replace(self._moves.less_promised(taker, taker.incoming), incoming=max(taker.incoming, incoming))
