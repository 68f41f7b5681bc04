"""What the instances would do with a request, by what a front end's dispatcher knows of them."""

from __future__ import annotations

from typing import Protocol

import msgspec

from llumnix.control.dispatcher import Dispatcher
from llumnix.policy.dispatch import DispatchRequest, queued_demand_blocks
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.step_cost import first_token_s
from llumnix.policy.virtual_usage import room_blocks
from llumnix.types import Priority, RequestId, is_high

AHEAD = 2
"""Requests that may wait in the queue of an instance: it does not run dry while a report is on its way, and what is
behind them is still ours to order."""

ROOM_STEPS = 8
"""For so many steps of all that run or wait there, and of the request, must memory last: an engine lets in whatever
fits this very moment, and preempts soon after. The more steps, the fewer preemptions and the more memory that nobody
uses."""

_NOBODY = RequestId("")


class Opening(msgspec.Struct, frozen=True, gc=False):
    """What a request would meet where it would be sent now."""

    begins_soon: bool
    """Also if no instance can ever have it: then it is told so at once."""
    first_token_s: float | None = None
    """Seconds until its first token; None: nobody knows."""


class Openings(Protocol):
    def look(self, prompt_tokens: int, priority: Priority, ahead_tokens: float) -> Opening:
        """`ahead_tokens`: of prompts that are held, and called before it."""


class DispatchOpenings:
    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def look(self, prompt_tokens: int, priority: Priority, ahead_tokens: float) -> Opening:
        """As if the one where it would go now had its part of what is held before it."""
        there = self._dispatcher.would_go_to(DispatchRequest(_NOBODY, prompt_tokens, priority))
        if there is None:
            return Opening(begins_soon=True)
        ahead = round(ahead_tokens / self._dispatcher.serving) if ahead_tokens else 0
        begins_soon = there.waiting < AHEAD and (is_high(priority) or _lets_in(there, prompt_tokens))
        return Opening(begins_soon, first_token_s(there, prompt_tokens + ahead))


def _lets_in(instance: InstanceSnapshot, prompt_tokens: int) -> bool:
    """It has memory for the request. One that needs half of it all is not held for that: what becomes free goes to
    smaller ones, which other front ends send."""
    prompt_blocks = queued_demand_blocks(prompt_tokens, instance)
    growth_tokens = ROOM_STEPS * (instance.running + instance.waiting + 1)
    growth_blocks = -(-growth_tokens // instance.block_tokens)
    return prompt_blocks + growth_blocks <= room_blocks(instance) or 2 * prompt_blocks > instance.total_blocks
