"""vLLM's queue of waiting requests, counted as it changes: a load report must not walk ten thousand of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request, RequestStatus

from llumnix.types import is_high


class CountedQueue(RequestQueue):
    """Does what `queue` does. Each request counts as it was when it came: what an asynchronous step may still add to a
    preempted one, a token or two, is seen when it is queued again.

    Relies on `Scheduler.waiting` holding requests without KV only, and being changed by these methods alone.
    """

    def __init__(
        self, queue: RequestQueue, blocks_for: Callable[[int], int], hit_tokens: Callable[[Request], int]
    ) -> None:
        """`hit_tokens`: of the request, that will need no computing; the same as long as it is queued."""
        self.blocks = 0
        """Needed by all of them."""
        self.tokens = 0
        """Of all of them, without those that need no computing."""
        self.preempted = 0
        self.high = 0
        self.on_look: Callable[[Request], None] | None = None
        """Told of the first one when somebody looks at it."""
        self._queue = queue
        self._blocks_for = blocks_for
        self._hit_tokens = hit_tokens
        self._counted: dict[str, tuple[int, int, bool, bool]] = {}

    def first(self, count: int) -> list[Request]:
        """The first ones, in order."""
        return list(islice(self._queue, count))

    # -- as vLLM's

    def add_request(self, request: Request) -> None:
        self._queue.add_request(request)
        self._count(request)

    def pop_request(self) -> Request:
        request = self._queue.pop_request()
        self._forget(request)
        return request

    def peek_request(self) -> Request:
        first = self._queue.peek_request()
        if self.on_look is not None:
            self.on_look(first)
        return first

    def prepend_request(self, request: Request) -> None:
        self._queue.prepend_request(request)
        self._count(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        requests = list(requests)
        self._queue.prepend_requests(requests)
        for request in requests:
            self._count(request)

    def remove_request(self, request: Request) -> None:
        self._queue.remove_request(request)
        self._forget(request)

    def remove_requests(self, requests: Iterable[Request]) -> None:
        mine = [request for request in requests if request.request_id in self._counted]
        if mine:
            self._queue.remove_requests(mine)
            for request in mine:
                self._forget(request)

    def __bool__(self) -> bool:
        return bool(self._counted)

    def __len__(self) -> int:
        return len(self._counted)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._queue)

    # -- counting

    def _count(self, request: Request) -> None:
        tokens, blocks = request.num_tokens - self._hit_tokens(request), self._blocks_for(request.num_tokens)
        preempted, high = request.status == RequestStatus.PREEMPTED, is_high(request.priority)
        self._counted[request.request_id] = tokens, blocks, preempted, high
        self.tokens += tokens
        self.blocks += blocks
        self.preempted += preempted
        self.high += high

    def _forget(self, request: Request) -> None:
        tokens, blocks, preempted, high = self._counted.pop(request.request_id)
        self.tokens -= tokens
        self.blocks -= blocks
        self.preempted -= preempted
        self.high -= high
