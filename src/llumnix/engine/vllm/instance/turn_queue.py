"""The waiting requests of an instance whose engine knows priorities, in the order in which they are to start."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Collection, Iterable, Iterator
from math import inf
from time import monotonic, time

from vllm.v1.core.sched.request_queue import PriorityRequestQueue, RequestQueue
from vllm.v1.request import Request

from llumnix.control.changes_of_turn import STOPPED_TRIED
from llumnix.engine.vllm.instance.state import passport_of
from llumnix.policy.waiting_order import turn_s


class TurnQueue(RequestQueue):
    """In place of vLLM's queue by priority and arrival: the same order, or, where `small_first`, within a priority that
    of `policy/waiting_order.py`. Each request stands by what it needed when it came."""

    def __init__(self, held_by: Callable[[int], int], total_blocks: int) -> None:
        """`held_by`: blocks of a request of so many tokens."""
        self.small_first = False
        self._held_by = held_by
        self._total_blocks = total_blocks
        self._waiting: list[tuple[tuple[int, float], Request]] = []
        """Sorted; vLLM's own order of requests tells equal turns apart."""
        self._stopped: list[tuple[float, Request]] = []
        """Those that have made tokens, and since when they make none; sorted."""
        self.called: Request | None = None
        """It goes first among those as important: its turn has come."""

    def longest_stopped(self) -> list[tuple[float, Request]]:
        """Of those that have made tokens, `STOPPED_TRIED` at most, and since when each makes none, by the clock of
        `arrival_time`."""
        return self._stopped[:STOPPED_TRIED]

    def call(self, request: Request) -> None:
        """Its turn has come, and nobody else's is to come before it."""
        assert self.called is None, "one at a time"
        self.remove_request(request)
        self.called = request
        self.add_request(request)

    def _turn(self, request: Request) -> tuple[int, float]:
        if not self.small_first:
            return request.priority, request.arrival_time
        if request is self.called:
            return request.priority, -inf
        passport = passport_of(request)
        turn = turn_s(
            request.arrival_time,
            self._held_by(request.num_tokens - passport.cached_tokens),
            self._total_blocks,
            preempted_s=passport.preempted_s,
            made_tokens=request.num_output_tokens,
        )
        return request.priority, turn

    def add_request(self, request: Request) -> None:
        insort(self._waiting, (self._turn(request), request))
        if request.num_output_tokens or passport_of(request).preempted_s is not None:
            insort(self._stopped, (_stopped_s(request), request))

    def pop_request(self) -> Request:
        _, request = self._waiting.pop(0)
        self._left((request,))
        passport_of(request).began_s = monotonic()
        return request

    def peek_request(self) -> Request:
        return self._waiting[0][1]

    def prepend_request(self, request: Request) -> None:
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.add_request(request)

    def remove_request(self, request: Request) -> None:
        self.remove_requests((request,))

    def remove_requests(self, requests: Iterable[Request]) -> None:
        gone: Collection[Request] = set(requests)
        self._waiting = [each for each in self._waiting if each[1] not in gone]
        self._left(gone)

    def _left(self, gone: Collection[Request]) -> None:
        if self.called in gone:
            self.called = None
        if self._stopped:
            self._stopped = [each for each in self._stopped if each[1] not in gone]

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Request]:
        return (request for _, request in self._waiting)


def _stopped_s(request: Request) -> float:
    passport = passport_of(request)
    if passport.preempted_s is not None:
        return passport.preempted_s
    if passport.robbed_s is None:
        passport.robbed_s = time()
    return passport.robbed_s


def in_turn(queue: RequestQueue, turns: TurnQueue) -> RequestQueue:
    """`turns` for vLLM's queue by priority; one in order of arrival stays."""
    return turns if isinstance(queue, PriorityRequestQueue) else queue
