"""What an HTTP request says of itself for `--classes`, on its way from the door to the engine client, and back.

The front end's app calls vLLM's server, which calls our engine client. Only the first sees headers, only the last knows
how many tokens a request has and can hold it. So what the last decides is told to the first, which answers the client:
of a stream nothing has been sent then, as the door keeps the beginning of an answer back until there is more of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from math import ceil, floor
from typing import Any

from llumnix.control.tenant_account import Allowance
from llumnix.engine.vllm.front_end.retry_after import AsgiMessage, AsgiSend, Receive
from llumnix.policy.classes import CLASS_HEADER, Caller, Declined

_BEARER = "bearer "
_OF_THE_BODY = (b"content-type", b"content-length")

Header = tuple[bytes, bytes]


class Ticket:
    """One HTTP request: what it says, and what became of it."""

    def __init__(self, headers: list[Header], tenant_header: str) -> None:
        said: dict[bytes, str] = {}
        for given, value in headers:
            name = given.lower()
            if name != b"authorization" or name not in said:  # of several keys vLLM checks the first
                said[name] = value.decode("latin-1")
        authorization = said.get(b"authorization", "")
        is_key = authorization[: len(_BEARER)].lower() == _BEARER
        self._key = authorization[len(_BEARER) :] if is_key else ""
        self._tenant = said.get(tenant_header.lower().encode(), "") if tenant_header else ""
        self.cls = said.get(CLASS_HEADER.lower().encode(), "")
        self.service_tier = ""
        """Noted when the body has been read."""
        self.declined: Declined | None = None
        self.allowances: tuple[Allowance, ...] = ()

    @property
    def caller(self) -> Caller:
        return Caller(key=self._key, tenant=self._tenant, cls=self.cls, tier=self.service_tier)


current_ticket: ContextVar[Ticket | None] = ContextVar("current_ticket", default=None)


class Door:
    """ASGI middleware, outside of all others: gives each request its ticket, and answers those that were declined."""

    def __init__(self, app: Any, tenant_header: Callable[[], str]) -> None:
        self._app = app
        self._tenant_header = tenant_header

    async def __call__(self, scope: AsgiMessage, receive: Receive, send: AsgiSend) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        ticket = Ticket(scope["headers"], self._tenant_header())
        place = current_ticket.set(ticket)
        try:
            await self._app(scope, receive, _Answer(ticket, send) if scope["type"] == "http" else send)
        finally:
            current_ticket.reset(place)


class _Answer:
    """The answer to one request: as the app makes it, unless the request was declined before it had begun."""

    def __init__(self, ticket: Ticket, send: AsgiSend) -> None:
        self._ticket = ticket
        self._send = send
        self._start: AsgiMessage | None = None
        """Kept back until there is more."""
        self._declined = False

    async def __call__(self, message: AsgiMessage) -> None:
        if self._declined:
            return
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is not None:
            start, self._start = self._start, None
            headers = start.get("headers", ())
            if self._ticket.declined is not None:
                self._declined = True
                await self._decline(self._ticket.declined, headers)
                return
            await self._send({**start, "headers": [*headers, *rate_limits(self._ticket.allowances)]})
        await self._send(message)

    async def _decline(self, declined: Declined, headers: Iterable[Header]) -> None:
        error = {"message": declined.why, "type": declined.kind, "param": None, "code": declined.status}
        body = json.dumps({"error": error}).encode()
        kept = [header for header in headers if header[0].lower() not in (*_OF_THE_BODY, b"retry-after")]
        retry = [] if declined.retry_after_s is None else [(b"retry-after", b"%d" % ceil(declined.retry_after_s))]
        ours = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *retry]
        start = {"type": "http.response.start", "status": declined.status}
        await self._send({**start, "headers": [*kept, *ours, *rate_limits(self._ticket.allowances)]})
        await self._send({"type": "http.response.body", "body": body})


def rate_limits(allowances: tuple[Allowance, ...]) -> list[Header]:
    """As OpenAI's: so many a minute, so many of them left, all of them again in so many seconds."""
    headers: list[Header] = []
    for each in allowances:
        said = {"limit": f"{each.limit:.0f}", "remaining": str(floor(each.remaining)), "reset": f"{each.reset_s:.3f}s"}
        headers += [(f"x-ratelimit-{what}-{each.what}".encode(), value.encode()) for what, value in said.items()]
    return headers
