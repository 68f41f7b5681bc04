"""Where requests that came to an instance for prompts make their tokens, as whoever sent them said (`onward.py`).

An order is acted on when the request's prompt begins to be computed, as if it came then. Before that the request holds
nothing that could be handed over, and is free to go where it starts sooner.
"""

from __future__ import annotations

from llumnix.control.events import MoveOrdered
from llumnix.control.latest import Latest
from llumnix.control.orders import MoveOrder
from llumnix.policy.snapshot import RequestSnapshot
from llumnix.policy.victim import why_not_to_decode
from llumnix.types import InstanceId, RequestId, Role

FOR_PROMPTS = "it is for prompts itself by now"
"""Why a target refuses a request that is to make its tokens there."""

REMEMBERED = 4096
"""Orders, the oldest goes first: some of their requests never come, or have left while they waited."""


class Homes:
    def __init__(self) -> None:
        self._orders: Latest[RequestId, MoveOrder] = Latest(REMEMBERED)

    def __contains__(self, request: object) -> bool:
        return request in self._orders

    def told(self, order: MoveOrder) -> RequestId:
        """Of a request that is on its way here, or has just come; returns its name."""
        assert order.request is not None
        self._orders[order.request] = order
        return order.request

    def begins(self, at: float, request: RequestSnapshot, role: Role) -> MoveOrdered | None:
        """Its prompt begins to be computed here: what the llumlet hears; None: nothing. `role`: of this instance, by
        now."""
        order = self._orders.pop(request.id, None)
        if order is None or role is not Role.PREFILL or why_not_to_decode(request):
            return None
        return MoveOrdered(at, order, (request,))

    def forget(self, request: RequestId) -> None:
        """It has ended."""
        self._orders.pop(request, None)

    def lost(self, instance: InstanceId) -> None:
        """Nobody can go there any more."""
        for request in [name for name, order in self._orders.items() if order.target == instance]:
            del self._orders[request]
