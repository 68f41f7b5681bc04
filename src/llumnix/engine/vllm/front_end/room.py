"""Requests beyond what this process may have open are refused, before the operating system refuses something inside."""

from __future__ import annotations

import json
import os
import resource
from typing import Any

from llumnix.engine.vllm.front_end.retry_after import AsgiMessage, AsgiSend, Receive

KEPT_FREE = 96
"""Descriptors for what is not a request: instances that join, connections that are about to be refused, files."""

PLENTY = 4096
"""Twice what the system holds ready for us to accept."""

_CONNECTIONS = ("http", "websocket")
_ALWAYS = ("/health", "/ping", "/metrics", "/llumnix")
"""Are answered also then: quickly done, and needed most when it is full."""


class Room:
    """ASGI middleware: answers 503 while as many requests run as there is room for connections.

    Each request keeps a descriptor of its own, its connection. Made when the app starts, before it serves.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._running = 0
        self._most = room_for_connections()

    async def __call__(self, scope: AsgiMessage, receive: Receive, send: AsgiSend) -> None:
        if scope["type"] not in _CONNECTIONS or scope["path"].startswith(_ALWAYS):
            await self._app(scope, receive, send)
        elif self._running >= self._most:
            await (_refuse if scope["type"] == "http" else _hang_up)(send, self._most)
        else:
            self._running += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._running -= 1


def room_for_connections() -> int:
    """How many more descriptors this process may open, less a reserve; at least 1."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, soft - len(os.listdir("/proc/self/fd")) - KEPT_FREE)


def is_scarce() -> bool:
    """Whether connections should be taken in one by one, so that those that are refused are gone before others come."""
    return room_for_connections() < PLENTY


async def _refuse(send: AsgiSend, most: int) -> None:
    message = f"This front end may have no more than {most} requests open (limit of open files, ulimit -n)."
    error = {"message": message, "type": "ServiceUnavailableError", "param": None, "code": 503}
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})


async def _hang_up(send: AsgiSend, most: int) -> None:
    """Before it is accepted: the client reads 403 from it, as ASGI has no other word."""
    await send({"type": "websocket.close", "code": 1013, "reason": f"no more than {most} requests may be open"})
