"""Nobody stands still for long: where memory is short, those that run and those that stand still change turns.

A stream that was preempted, or whose instance died, waits for memory, and that comes when another ends: after seconds,
while many beside it never wait. So when it has stood still for `LONGEST_PAUSE_S`, one that runs is preempted in its
place: of those that have had a turn and hold enough, the last that came, as where memory runs out.

Each change costs: all tokens of the one that gives way are computed once more. Changes take `SHARE` of an instance's
time at most; what it has not used it saves, up to `MOST_SAVED_S`. And nobody changes while more waits than will find
room soon. So a shortage of some seconds costs nobody a long pause, and one that lasts does not become worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from llumnix.policy.snapshot import StepCost

LONGEST_PAUSE_S = 1.5
"""Between two tokens, that somebody may have to wait for memory before another one makes way, where one can."""

LEAST_TURN_S = 1.0
"""Whoever has started runs for so long before it makes way."""

SHARE = 0.01
"""Of an instance's time, for computing anew what was given up."""

MOST_SAVED_S = 0.7
"""Of that, that may be spent at once; some fifteen changes on the devices that were measured."""

STOPPED_TRIED = 4
"""Of those that stand still, that are looked at for one whose turn can come: the one that has for longest may need more
than anybody who runs holds, and is not to keep the others waiting."""

MOST_WAITING = 0.5
"""Of an instance's memory, that all others who wait there may need: beyond, changes would only pass the pauses on."""


def may_pass(waiting_blocks: int, total_blocks: int) -> bool:
    """Whether a shortage is one of seconds, by what all others that wait there need."""
    return waiting_blocks <= MOST_WAITING * total_blocks


class Runner(NamedTuple):
    """A request that makes tokens, and would lose its KV."""

    priority: int
    arrival_s: float
    ran_s: float
    """Since it started here."""
    blocks: int
    tokens: int


class ChangesOfTurn:
    """Of one instance. Times are by any clock that goes on evenly, the same in all calls."""

    def __init__(self) -> None:
        self._paid_until_s = -inf
        """When all that was spent will have been saved again."""

    def wait_s(self, paused_s: float, at_s: float) -> float:
        """Until the turn of one that has stood still for `paused_s` may come; 0: now."""
        return max(0.0, LONGEST_PAUSE_S - paused_s, self._paid_until_s - MOST_SAVED_S / SHARE - at_s)

    def gives_way(
        self, runners: Sequence[Runner], missing_blocks: int, priority: int, cost: StepCost | None, at_s: float
    ) -> int | None:
        """Position of the one that is preempted for a request of this `priority` that lacks so many blocks; it is
        booked. None: nobody may be, or nobody's blocks are enough; or it is not known yet what that would cost."""
        if cost is None:
            return None
        able = [
            (-each.priority, -each.arrival_s, place)
            for place, each in enumerate(runners)
            if each.ran_s >= LEAST_TURN_S and each.blocks >= missing_blocks and each.priority >= priority
        ]
        if not able:
            return None
        chosen = min(able)[2]
        again_s = runners[chosen].tokens * cost.prefill_token_us / 1e6
        self._paid_until_s = max(self._paid_until_s, at_s) + again_s / SHARE
        return chosen
