"""Where a request stops on its way to an instance, with `--classes`: the body of the waiting room.

The mind is `control/waiting_room.py`. Here are the clock, the timer, and the tasks that wait for their turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import NoReturn, assert_never

import msgspec
from vllm.v1.engine import EngineCoreRequest

from llumnix.control.class_counts import NO_QUEUE, ClassCounts, ClassRow
from llumnix.control.front_end_events import Arrived
from llumnix.control.held_requests import QueueName
from llumnix.control.openings import Openings
from llumnix.control.waiting_room import Ask, Called, GaveUp, WaitingRoom
from llumnix.engine.vllm.front_end.class_metrics import ClassMetrics
from llumnix.engine.vllm.front_end.given_up import ToldError
from llumnix.engine.vllm.front_end.session import Session
from llumnix.engine.vllm.front_end.ticket import current_ticket
from llumnix.policy.classes import Caller, Classes, Declined, Seat, ServiceClass
from llumnix.types import RequestId

_ABORTED = False


class _Asked(msgspec.Struct, frozen=True):
    """One that waits for its turn, or had it and has not ended."""

    cls: ServiceClass
    queue: QueueName
    prompt_tokens: int
    at_s: float
    answer: asyncio.Future[bool | Declined]


class Unserved(ToldError):
    """A refusal."""

    def __init__(self, declined: Declined) -> None:
        super().__init__(declined.why, declined.status)


class Desk:
    """All methods run on the front end's event loop. Requests go by the ids that vLLM's front end knows."""

    def __init__(
        self,
        classes: Classes,
        openings: Openings,
        metrics: ClassMetrics,
        arrival: Callable[[EngineCoreRequest], Arrived],
    ) -> None:
        self._classes = classes
        self._room = WaitingRoom(classes, monotonic())
        self._openings = openings
        self._metrics = metrics
        self._arrival = arrival
        self._counts = ClassCounts()
        self._asked: dict[RequestId, _Asked] = {}
        self._inside: dict[RequestId, _Asked] = {}
        self._next: RequestId | None = None
        """Was called, and is not sent yet: until then nobody knows what room it leaves."""
        self._timer: asyncio.TimerHandle | None = None
        self._shown_waiting: set[str] = set()
        """Classes that were shown with somebody in them: also one that is no more is to be shown empty in the end."""

    @property
    def held(self) -> int:
        return self._room.held

    @property
    def demand(self) -> tuple[int, int]:
        """Requests and prompt tokens of those held that more instances could serve."""
        return self._room.demand

    def rows(self) -> tuple[ClassRow, ...]:
        """What became of the requests of each class and tenant here."""
        return self._counts.rows(monotonic(), self._room.standings())

    @property
    def tenant_header(self) -> str:
        """Names the tenant; empty: the API key does."""
        return self._classes.tenant_header

    def change(self, classes: Classes) -> None:
        """Other classes and limits from now on."""
        self._classes = classes
        self._room.change(classes, monotonic())
        self._counts.keep(classes)
        self.call()

    def check(self) -> None:
        """Raises an error that becomes a refusal, if that is clear before the request is read to its end."""
        ticket, seat = current_ticket.get(), self._seat()
        is_named = len(seat.tenant.classes) == 1 or (ticket is not None and ticket.cls)
        declined = self._room.at_the_door(monotonic(), seat.tenant.name, seat.cls.name if is_named else None)
        if declined is not None:
            self._refuse(declined, seat)

    def decline(self, why: str) -> NoReturn:
        """It is of a kind that is not served with classes."""
        self._refuse(Declined(400, "invalid_request_error", why), self._seat())

    async def admit(self, request: EngineCoreRequest) -> bool:
        """Returns when its turn has come: it is to be sent before the event loop turns again. False: it was aborted
        meanwhile. Raises an error that becomes its refusal."""
        seat, now, name = self._seat(), monotonic(), RequestId(request.request_id)
        request.priority = seat.cls.priority
        most = 0 if request.sampling_params is None else request.sampling_params.max_tokens or 0
        asked = self._arrival(request)
        ask = Ask(asked, seat.tenant.name, seat.cls.name, most)
        declined = self._room.ask(now, ask, self._openings)
        if declined is not None:
            self._refuse(declined, seat)
        self._show_limits(seat)
        answer_to_come = asyncio.get_running_loop().create_future()
        self._asked[name] = _Asked(seat.cls, _queue_of(seat), asked.prompt_tokens, now, answer_to_come)
        try:
            self.call()
            answer = await answer_to_come
        except asyncio.CancelledError:
            self._room.left(name)
            self.gone(name)
            raise
        finally:
            del self._asked[name]
            if self._next == name:
                self._next = None
                asyncio.get_running_loop().call_soon(self.call)
        if isinstance(answer, Declined):
            self._refuse(answer, seat)
        return answer

    def abort(self, name: RequestId) -> None:
        """Nothing happens if it does not wait here."""
        if name in self._asked and not self._asked[name].answer.done():
            self._room.left(name)
            self._asked[name].answer.set_result(_ABORTED)

    def gone(self, name: RequestId) -> None:
        """It had its turn, and no instance has it."""
        if self._inside.pop(name, None) is not None:
            self._room.unsent(name)
            self.call()

    def ended(self, session: Session) -> None:
        """Its stream is over, however it ended."""
        asked = self._inside.pop(RequestId(session.id), None)
        if asked is None:
            return
        tokens, first_s, last_s = len(session.tokens), session.first_token_s, session.last_token_s
        self._room.ended(RequestId(session.id), tokens)
        if first_s is not None and last_s is not None:
            times = first_s - asked.at_s, (last_s - first_s) / (tokens - 1) if tokens > 1 else None
            met = self._counts.ended(monotonic(), asked.queue, asked.cls, tokens, *times)
            self._metrics.targets_met(asked.cls, met)
        self.call()

    def call(self) -> None:
        """Something may have become free, or somebody's patience be over."""
        now = monotonic()
        while self._next is None and (answer := self._room.call(now, self._openings)) is not None:
            asked = self._asked[answer.request]
            match answer:
                case Called():
                    self._inside[answer.request] = asked
                    self._next = answer.request
                    self._metrics.came_in(asked.cls, answer.held_s)
                    self._counts.came_in(now, asked.queue, asked.prompt_tokens)
                    self._tell(asked, True)
                case GaveUp():
                    self._tell(asked, answer.declined)
                case _:
                    assert_never(answer)
        self._set_timer(now)

    def show(self) -> None:
        """How many wait, for the metrics."""
        names = self._shown_waiting | self._classes.classes.keys()
        for name in names:
            self._metrics.held.labels(name).set(self._room.held_of(name))
        self._shown_waiting = {name for name in names if self._room.held_of(name)}

    @staticmethod
    def _tell(asked: _Asked, answer: bool | Declined) -> None:
        if not asked.answer.done():  # else its client has just gone
            asked.answer.set_result(answer)

    def _set_timer(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wake_at_s = self._room.wake_at_s
        if wake_at_s < inf:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, wake_at_s - now), self.call)

    def _seat(self) -> Seat:
        ticket = current_ticket.get()
        seat = self._classes.seat(Caller() if ticket is None else ticket.caller)
        if isinstance(seat, Declined):
            self._refuse(seat, None)
        return seat

    def _show_limits(self, seat: Seat) -> None:
        ticket = current_ticket.get()
        if ticket is not None:
            ticket.allowances = self._room.allowances(monotonic(), seat.tenant.name)

    def _refuse(self, declined: Declined, seat: Seat | None) -> NoReturn:
        self._metrics.refused.labels("" if seat is None else seat.cls.name, declined.status).inc()
        self._counts.refused(NO_QUEUE if seat is None else _queue_of(seat), declined.status)
        ticket = current_ticket.get()
        if ticket is not None:
            ticket.declined = declined
        if seat is not None:
            self._show_limits(seat)
        raise Unserved(declined)


def _queue_of(seat: Seat) -> QueueName:
    return QueueName(seat.cls.name, seat.tenant.name)
