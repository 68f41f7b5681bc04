"""What the instances would do with a request, by what a front end's dispatcher knows of them."""

from __future__ import annotations

from llumnix.control.dispatcher import Dispatcher
from llumnix.control.waiting_room import Opening
from llumnix.policy.dispatch import DispatchRequest
from llumnix.policy.step_cost import first_token_s
from llumnix.types import Priority, RequestId

AHEAD = 2
"""Requests that may wait in the queue of an instance: it does not run dry while a report is on its way, and what is
behind them is still ours to order."""

_NOBODY = RequestId("")


class DispatchOpenings:
    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def look(self, prompt_tokens: int, priority: Priority, ahead_tokens: float) -> Opening:
        """As if the one where it would go now had its part of what is held before it."""
        there = self._dispatcher.would_go_to(DispatchRequest(_NOBODY, prompt_tokens, priority))
        if there is None:
            return Opening(begins_soon=True)
        ahead = round(ahead_tokens / self._dispatcher.serving) if ahead_tokens else 0
        return Opening(there.waiting < AHEAD, first_token_s(there, prompt_tokens + ahead))
