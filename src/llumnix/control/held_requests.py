"""Requests that wait for their call: by class and tenant, each tenant's by when they are due, each class's by age."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from math import inf

import msgspec

from llumnix.control.front_end_events import Arrived
from llumnix.types import RequestId


class QueueName(msgspec.Struct, frozen=True, order=True):
    cls: str
    tenant: str


class HeldRequest(msgspec.Struct, frozen=True, order=True, gc=False):
    """Sorted by when its first token is due, then by arrival."""

    due_s: float
    number: int
    at_s: float
    asked: Arrived
    expected_tokens: float

    @property
    def request(self) -> RequestId:
        return self.asked.request

    @property
    def prompt_tokens(self) -> int:
        return self.asked.prompt_tokens

    @property
    def tokens(self) -> float:
        return self.prompt_tokens + self.expected_tokens


class HeldRequests:
    """`queues` has only those in which somebody waits."""

    def __init__(self) -> None:
        self.queues: dict[QueueName, list[HeldRequest]] = {}
        self._tokens: dict[QueueName, int] = {}
        """Of the prompts in each queue."""
        self._by_age: dict[str, OrderedDict[RequestId, tuple[QueueName, HeldRequest]]] = {}
        self._class_of: dict[RequestId, str] = {}

    def __len__(self) -> int:
        return len(self._class_of)

    def __contains__(self, request: RequestId) -> bool:
        return request in self._class_of

    def count(self, cls: str) -> int:
        return len(self._by_age.get(cls, ()))

    def count_in(self, queue: QueueName) -> int:
        return len(self.queues.get(queue, ()))

    def tokens_of(self, queue: QueueName, most: float = inf) -> int:
        """Of the prompts in it; of `most` of them, which are taken to be alike."""
        tokens, count = self._tokens.get(queue, 0), self.count_in(queue)
        return tokens if most >= count else int(tokens * most) // count

    def able(self, places: dict[str, float]) -> tuple[int, int]:
        """Requests, and tokens of their prompts, of which each tenant may run so many more."""
        requests, tokens, left = 0, 0, dict(places)
        for queue, held in self.queues.items():
            able = int(min(len(held), left[queue.tenant]))
            left[queue.tenant] -= able
            requests += able
            tokens += self.tokens_of(queue, able)
        return requests, tokens

    def oldest(self) -> Iterator[tuple[QueueName, HeldRequest]]:
        """Of each class in which somebody waits."""
        return (next(iter(there.values())) for there in self._by_age.values() if there)

    def add(self, queue: QueueName, held: HeldRequest) -> None:
        """It came last of all."""
        insort(self.queues.setdefault(queue, []), held)
        self._by_age.setdefault(queue.cls, OrderedDict())[held.request] = (queue, held)
        self._class_of[held.request] = queue.cls
        self._tokens[queue] = self._tokens.get(queue, 0) + held.prompt_tokens

    def take(self, request: RequestId) -> tuple[QueueName, HeldRequest]:
        """Of one that is there."""
        queue, held = self._by_age[self._class_of.pop(request)].pop(request)
        there = self.queues[queue]
        del there[bisect_left(there, held)]
        self._tokens[queue] -= held.prompt_tokens
        if not there:
            del self.queues[queue], self._tokens[queue]
        return queue, held
