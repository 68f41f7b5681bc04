"""503 answers say when to come back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

_SECONDS = b"1"

AsgiMessage = MutableMapping[str, Any]
AsgiSend = Callable[[AsgiMessage], Awaitable[None]]
Receive = Callable[[], Awaitable[AsgiMessage]]


class RetryAfter:
    """ASGI middleware: adds `Retry-After` to every 503 that has none."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: AsgiMessage, receive: Receive, send: AsgiSend) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_hint(message: AsgiMessage) -> None:
            if message["type"] == "http.response.start" and message["status"] == 503:
                headers = list(message.get("headers", ()))
                if not any(name.lower() == b"retry-after" for name, _ in headers):
                    message = {**message, "headers": [*headers, (b"retry-after", _SECONDS)]}
            await send(message)

        await self._app(scope, receive, send_with_hint)
