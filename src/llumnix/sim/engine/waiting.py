"""The queue of one engine: who waits, and how much memory they need."""

from __future__ import annotations

from bisect import insort
from operator import attrgetter

from llumnix.policy.waiting_order import turn_s
from llumnix.sim.engine.request import WAITING, SimRequest
from llumnix.types import is_high

_ORDER = attrgetter("order")


class WaitingQueue:
    """`requests` is sorted: most important first, then who came first, or whose turn is first by what it needs. The
    sums are what a load report says."""

    __slots__ = (
        "_block_tokens", "_order", "_state_blocks", "_total_blocks", "blocks", "high", "preempted", "requests",
        "tokens",
    )  # fmt: skip

    def __init__(self, block_tokens: int, state_blocks: int = 0, total_blocks: int = 0) -> None:
        """`total_blocks`: of the instance, where those that need little of them go first; 0: the first to come does."""
        self.requests: list[SimRequest] = []
        self.blocks = 0
        """Needed by all of them."""
        self.tokens = 0
        """Of all of them, without those that need no computing."""
        self.preempted = 0
        self.high = 0
        self._block_tokens = block_tokens
        self._state_blocks = state_blocks
        self._total_blocks = total_blocks
        self._order = self._turn if total_blocks else _ORDER

    def add(self, request: SimRequest) -> None:
        request.state = WAITING
        requests = self.requests
        if requests and self._order(requests[-1]) > self._order(request):
            insort(requests, request, key=self._order)
        else:
            requests.append(request)
        self._count(request, 1)

    def remove(self, request: SimRequest) -> None:
        self.requests.remove(request)
        self._count(request, -1)

    def head_blocks(self) -> int:
        """Needed by the first; 0 if nobody waits."""
        return self._blocks_of(self.requests[0].tokens) if self.requests else 0

    def _turn(self, request: SimRequest) -> tuple[int, float, int]:
        priority, arrival_s, index = request.order
        turn = turn_s(
            arrival_s,
            self._blocks_of(request.tokens),
            self._total_blocks,
            preempted_s=request.preempted_at_s,
            made_tokens=request.generated,
        )
        return priority, turn, index

    def _count(self, request: SimRequest, sign: int) -> None:
        self.blocks += sign * self._blocks_of(request.tokens)
        self.tokens += sign * (request.tokens - request.expected_hit_tokens)
        if request.preemptions:
            self.preempted += sign
        if is_high(request.priority):
            self.high += sign

    def _blocks_of(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens) + self._state_blocks
