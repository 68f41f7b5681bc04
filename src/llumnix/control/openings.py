"""What the instances would do with a request, by what a front end knows of them."""

from __future__ import annotations

from typing import Protocol

import msgspec

from llumnix.control.front_end import FrontEndMachine
from llumnix.control.front_end_events import Arrived
from llumnix.policy.demand import queued_demand_blocks
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.step_cost import first_token_s
from llumnix.policy.virtual_usage import room_blocks
from llumnix.policy.waiting_order import GROWTH_STEPS
from llumnix.types import InstanceId, is_high

AHEAD = 2
"""Requests that may wait in the queue of an instance: it does not run dry while a report is on its way, and what is
behind them is still ours to order."""

ROOM_STEPS = 2 * GROWTH_STEPS
"""For so many steps of all that run or wait there, and of the request, must memory last. The instance starts nobody
before it lasts for half of them, and what is called earlier waits there, out of our order; with none of that rule it
would be preempted soon after. The more steps, the fewer of both, and the more memory that nobody uses."""


class Opening(msgspec.Struct, frozen=True, gc=False):
    """What a request would meet where it would be sent now."""

    begins_soon: bool
    """Also if there are instances, and none can ever have it: then it is told so at once."""
    first_token_s: float | None = None
    """Seconds until its first token; None: nobody knows."""
    where: InstanceId | None = None
    """There; None: nowhere."""
    is_particular: bool = False
    """It does not go where just any other would: others may begin elsewhere although it has to wait."""


class Openings(Protocol):
    def look(self, asked: Arrived, ahead_tokens: float) -> Opening:
        """`ahead_tokens`: of prompts that are held, and called before it."""


class DispatchOpenings:
    def __init__(self, machine: FrontEndMachine) -> None:
        self._machine = machine

    def look(self, asked: Arrived, ahead_tokens: float) -> Opening:
        """As if the one where it would go now had its part of what is held before it. Without any instance it waits for
        the next one."""
        serving = self._machine.dispatcher.serving
        if not serving:
            return Opening(begins_soon=False)
        taker = self._machine.taker(asked)
        if taker is None:
            return Opening(begins_soon=True)
        there = taker.instance
        begins_soon = there.waiting < AHEAD and (is_high(asked.priority) or _lets_in(there, asked.prompt_tokens))
        to_compute = asked.prompt_tokens - taker.cached_tokens + round(ahead_tokens / serving)
        is_particular = taker.cached_tokens > 0 or asked.only_on is not None or asked.adapter is not None
        return Opening(begins_soon, first_token_s(there, to_compute), there.id, is_particular)


def _lets_in(instance: InstanceSnapshot, prompt_tokens: int) -> bool:
    """It has memory for the request. One that needs half of it all is not held for that: what becomes free goes to
    smaller ones, which other front ends send."""
    prompt_blocks = queued_demand_blocks(prompt_tokens, instance)
    requests = instance.running + instance.waiting + 1
    kinds = instance.kv_groups or ((instance.block_tokens, 0),)
    growth_blocks = sum(min(-(-ROOM_STEPS * requests // size), requests * (most or ROOM_STEPS)) for size, most in kinds)
    return prompt_blocks + growth_blocks <= room_blocks(instance) or 2 * prompt_blocks > instance.total_blocks
