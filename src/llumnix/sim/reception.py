"""The waiting room of a simulated front end: the live one (`control/waiting_room.py`), in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import assert_never

from llumnix.control.front_end_events import Arrived
from llumnix.control.openings import Openings
from llumnix.control.waiting_room import Ask, Called, GaveUp, WaitingRoom
from llumnix.policy.classes import Classes, Declined
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.kernel import Kernel, Timer
from llumnix.types import RequestId


def take_seat(request: SimRequest, classes: Classes) -> None:
    """Finds out its tenant, its class, and so its priority; or why it will be declined."""
    seat = classes.seat_by_name(request.tenant, request.service_class)
    if isinstance(seat, Declined):
        request.declined = seat
    else:
        request.tenant, request.service_class = seat.tenant.name, seat.cls.name
        request.priority = seat.cls.priority


class Reception:
    """`send` is told of each request whose turn it is, `over` that one was declined."""

    def __init__(
        self,
        classes: Classes,
        kernel: Kernel,
        openings: Openings,
        send: Callable[[SimRequest], None],
        over: Callable[[], None],
    ) -> None:
        self.room = WaitingRoom(classes, kernel.now)
        self._kernel = kernel
        self._openings = openings
        self._send = send
        self._over = over
        self._held: dict[RequestId, SimRequest] = {}
        self._timer: Timer | None = None

    def arrives(self, request: SimRequest, arrived: Arrived) -> None:
        """It has taken its seat."""
        if request.declined is not None:
            self._decline(request, request.declined)
            return
        name = RequestId(request.client_id)
        ask = Ask(arrived, request.tenant, request.service_class, request.output_tokens)
        declined = self.room.ask(self._kernel.now, ask, self._openings)
        if declined is not None:
            self._decline(request, declined)
            return
        self._held[name] = request
        self.call()

    def call(self) -> None:
        """Something may have become free, or somebody's patience be over."""
        while (answer := self.room.call(self._kernel.now, self._openings)) is not None:
            request = self._held.pop(answer.request)
            match answer:
                case Called():
                    self._send(request)
                case GaveUp():
                    self._decline(request, answer.declined)
                case _:
                    assert_never(answer)
        self._wake()

    def ended(self, request: SimRequest) -> None:
        self.room.ended(RequestId(request.client_id), request.generated)
        self.call()

    def _decline(self, request: SimRequest, declined: Declined) -> None:
        request.decline(self._kernel.now, declined)
        self._over()

    def _wake(self) -> None:
        if self._timer is not None:
            self._kernel.cancel(self._timer)
        wake_at_s = self.room.wake_at_s
        self._timer = None if wake_at_s == inf else self._kernel.at(wake_at_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.call()
