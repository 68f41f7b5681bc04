"""The queue of one engine: who waits, and how much memory they need."""

from __future__ import annotations

from bisect import insort
from math import inf
from operator import attrgetter

from llumnix.control.changes_of_turn import STOPPED_TRIED, ChangesOfTurn
from llumnix.policy.waiting_order import turn_s
from llumnix.sim.engine.request import WAITING, SimRequest
from llumnix.types import is_high

_ORDER = attrgetter("order")


class WaitingQueue:
    """`requests` is sorted: most important first, then who came first, or whose turn is first by what it needs. The
    sums are what a load report says."""

    __slots__ = (
        "_block_tokens", "_order", "_state_blocks", "_stopped", "_total_blocks", "blocks", "called", "changes", "high",
        "preempted", "requests", "tokens",
    )  # fmt: skip

    def __init__(self, block_tokens: int, state_blocks: int, total_blocks: int) -> None:
        """`total_blocks`: of the instance, where those that need little of them go first; 0: the first to come does."""
        self.requests: list[SimRequest] = []
        self.blocks = 0
        """Needed by all of them."""
        self.tokens = 0
        """Of all of them, without those that need no computing."""
        self.preempted = 0
        self.high = 0
        self.changes = ChangesOfTurn()
        """How often who waits may take the place of one that runs."""
        self.called: SimRequest | None = None
        """It goes first among those as important: its turn has come."""
        self._stopped: list[tuple[float, int, SimRequest]] = []
        """Those that have made tokens, and since when they make none; sorted."""
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
        if self._total_blocks and request.generated:
            insort(self._stopped, _stopped(request))

    def remove(self, request: SimRequest) -> None:
        self.requests.remove(request)
        request.headed_s = None
        self._count(request, -1)
        if request is self.called:
            self.called = None
        if self._total_blocks and request.generated:
            self._stopped.remove(_stopped(request))

    def longest_stopped(self) -> list[SimRequest]:
        """Of those that have made tokens, `STOPPED_TRIED` at most; nobody where the first to come goes first."""
        return [request for _, _, request in self._stopped[:STOPPED_TRIED]]

    def call(self, request: SimRequest) -> None:
        """Its turn has come, and nobody else's is to come before it."""
        assert self.called is None, "one at a time"
        headed_s = request.headed_s
        self.remove(request)
        self.called = request
        self.add(request)
        request.headed_s = headed_s

    def head_blocks(self) -> int:
        """Needed by the first; 0 if nobody waits."""
        return self.blocks_of(self.requests[0].tokens) if self.requests else 0

    def looked_at(self, now_s: float) -> None:
        """For a report: whoever is the first now is that since now, if no look before found it there."""
        if self.requests and self.requests[0].headed_s is None:
            self.requests[0].headed_s = now_s

    def head_s(self, now_s: float) -> float:
        """Since a look first found the first there; 0 if none did."""
        headed_s = self.requests[0].headed_s if self.requests else None
        return 0.0 if headed_s is None else now_s - headed_s

    def head_leaves_room(self) -> bool:
        """Somebody waits, and the first does not start before those that run have room to grow."""
        head = self.requests[0] if self.requests and self._total_blocks else None
        return head is not None and head is not self.called and not is_high(head.priority)

    def _turn(self, request: SimRequest) -> tuple[int, float, int]:
        priority, arrival_s, index = request.order
        if request is self.called:
            return priority, -inf, index
        turn = turn_s(
            arrival_s,
            self.blocks_of(request.tokens - request.cached_tokens),
            self._total_blocks,
            preempted_s=request.preempted_at_s,
            made_tokens=request.generated,
        )
        return priority, turn, index

    def _count(self, request: SimRequest, sign: int) -> None:
        self.blocks += sign * self.blocks_of(request.tokens)
        self.tokens += sign * (request.tokens - request.expected_hit_tokens)
        if request.preemptions:
            self.preempted += sign
        if is_high(request.priority):
            self.high += sign

    def blocks_of(self, tokens: int) -> int:
        """That a request of so many tokens counts here."""
        return -(-tokens // self._block_tokens) + self._state_blocks


def _stopped(request: SimRequest) -> tuple[float, int, SimRequest]:
    return request.last_token_s, request.index, request
