"""What the instances would do with a request, by what a front end's dispatcher knows of them."""

from __future__ import annotations

from llumnix.control.dispatcher import Dispatcher
from llumnix.policy.dispatch import DispatchRequest
from llumnix.types import Priority, RequestId

AHEAD = 2
"""Requests that may wait in the queue of an instance: it does not run dry while a report is on its way, and what is
behind them is still ours to order."""

_NOBODY = RequestId("")


class DispatchOpenings:
    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def takes(self, prompt_tokens: int, priority: Priority) -> bool:
        there = self._dispatcher.would_go_to(DispatchRequest(_NOBODY, prompt_tokens, priority))
        return there is None or there.waiting < AHEAD

    def first_token_s(self, prompt_tokens: int, ahead_tokens: float) -> float | None:
        return None
