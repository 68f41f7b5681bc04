"""The instances a front end knows: those it calls until they answer, those that take requests, those that are gone."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from http import HTTPStatus
from time import monotonic
from typing import Any

from vllm.exceptions import GracefulHTTPError

from llumnix.control.gone import GoneIds
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, InstanceState
from llumnix.wire.base import InstanceInfo
from llumnix.wire.news import InstanceGone, InstanceStarting, Report

GONE = "the instance is gone"

_GONE_REMEMBERED = 100
_FIRST_CALL_INTERVAL_S = 0.05
_LONGEST_CALL_INTERVAL_S = 2.0


@dataclass(slots=True, eq=False)
class Member:
    """An instance that reports, and what it said last."""

    info: InstanceInfo
    snapshot: InstanceSnapshot
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    lacks: frozenset[int] = frozenset()
    """Adapters that could not be loaded there; they are tried again from time to time."""
    tries_again: bool = False
    heard_s: float = field(default_factory=monotonic)
    """When it reported last."""

    def hear(self, snapshot: InstanceSnapshot) -> None:
        self.snapshot, self.heard_s = snapshot, monotonic()

    @property
    def identity(self) -> bytes:
        return identity_of(self.info.index)


def identity_of(index: int) -> bytes:
    """vLLM's ZMQ identity of an engine."""
    return index.to_bytes(2, "little")


@dataclass(slots=True)
class Strangers:
    """Instances that are not (or no longer) members: those that start, and the last ones that ended."""

    starting: dict[InstanceId, InstanceStarting] = field(default_factory=dict)
    gone: deque[tuple[InstanceGone, InstanceState]] = field(default_factory=lambda: deque(maxlen=_GONE_REMEMBERED))

    def ended(self, message: InstanceGone, state: InstanceState) -> None:
        """The scheduler and the launcher both tell of one that fell silent, and the launcher how that went on."""
        for place, (known, as_known) in enumerate(self.gone):
            if known.instance == message.instance:
                if as_known is state:
                    self.gone[place] = (message, state)
                return
        self.gone.append((message, state))


class Members:
    """An instance passes through: unknown, called (`call`), member (`admit`), gone for good (`remove`).

    Members take requests. But requests move to whoever reports: what has to do with a request that an instance has
    already goes by `known`.
    """

    def __init__(self) -> None:
        self.by_id: dict[InstanceId, Member] = {}
        self.by_identity: dict[bytes, Member] = {}
        self.known: dict[InstanceId, Member] = {}
        """Those that are called, and the members."""
        self.joined = asyncio.Event()
        """Set while at least one instance takes requests."""
        self._gone = GoneIds()

    def is_unknown(self, instance: InstanceId) -> bool:
        return not (instance in self.known or instance in self._gone)

    @property
    def courted(self) -> dict[InstanceId, Member]:
        """Those that are called, and take no requests yet."""
        return {instance: member for instance, member in self.known.items() if instance not in self.by_id}

    def call(self, report: Report) -> Member:
        """From now on it is called."""
        member = self.known[report.info.id] = Member(report.info, report.snapshot)
        return member

    def admit(self, member: Member) -> None:
        self.by_id[member.info.id] = self.by_identity[member.identity] = member
        self.joined.set()

    def remove(self, instance: InstanceId) -> Member | None:
        """For good: its ids do not come back. Returns the member that it was, if it was one."""
        self._gone.add(instance)
        if (known := self.known.pop(instance, None)) is not None:
            known.gone.set()
        member = self.by_id.pop(instance, None)
        if member is not None:
            del self.by_identity[member.identity]
        if not self.by_id:
            self.joined.clear()
        return member

    def in_slot(self, slot: int) -> tuple[InstanceId, ...]:
        return tuple(instance for instance, member in self.by_id.items() if member.info.slot == slot)

    def running(self) -> bool:
        """Whether an instance takes new requests."""
        return any(member.snapshot.state is InstanceState.RUNNING for member in self.by_id.values())


async def first_answer(call: Callable[[], Coroutine[Any, Any, Any]], gone: asyncio.Event) -> Any:
    """Calls until a call is answered. Raises ConnectionError if the instance goes before.

    A ROUTER socket drops what is sent to a peer that has not connected yet, hence the repetition; and a busy
    machine answers late, hence no call is given up before one is answered.
    """
    calls: set[asyncio.Task[Any]] = set()
    interval_s = _FIRST_CALL_INTERVAL_S
    try:
        while not gone.is_set():
            calls.add(asyncio.get_running_loop().create_task(call()))
            answered, _ = await asyncio.wait(calls, timeout=interval_s, return_when=asyncio.FIRST_COMPLETED)
            if answered:
                return answered.pop().result()
            interval_s = min(2 * interval_s, _LONGEST_CALL_INTERVAL_S)
        raise ConnectionError(GONE)
    finally:
        for unanswered in calls:
            unanswered.cancel()


async def unless_gone(call: Awaitable[Any], gone: asyncio.Event) -> Any:
    """The answer to a call. Raises ConnectionError when its instance goes before it answers."""
    answer = asyncio.ensure_future(call)
    loss = asyncio.ensure_future(gone.wait())
    try:
        await asyncio.wait((answer, loss), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ConnectionError(GONE)
        return answer.result()
    finally:
        loss.cancel()
        answer.cancel()


def no_instance() -> GracefulHTTPError:
    return GracefulHTTPError("No instance is running.", HTTPStatus.SERVICE_UNAVAILABLE)


def of_the_living(answers: list[Any]) -> list[Any]:
    """Without those of instances that are gone. Raises what any other call failed with, and a 503 if none is left."""
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, ConnectionError):
            raise answer
    lived = [answer for answer in answers if not isinstance(answer, BaseException)]
    if not lived:
        raise no_instance()
    return lived
