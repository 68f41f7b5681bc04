"""An answer that goes on: server-sent events to one viewer, whatever becomes of it."""

from __future__ import annotations

import asyncio
from time import monotonic

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from llumnix.engine.vllm.front_end.page.feed import Feed

LONGEST_S = 3600.0
"""Then the page comes again by itself. What lies between us and it may have forgotten it by then."""
UNREAD_S = 30.0
"""For how long a viewer may read nothing, before it counts as gone."""


class Watching(StreamingResponse):
    def __init__(self, feed: Feed) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second: proxies pass it on at once
        super().__init__(feed.frames(), media_type="text/event-stream", headers=headers)
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._feed.viewer():
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Ends in the middle with one who does not read: its place is free. Its connection, with what is on the way in
        it, stays until that is read or the peer is gone: no ASGI server lets us cut it off."""
        until_s = monotonic() + LONGEST_S
        try:
            await _in_time(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for frame in self.body_iterator:
                await _in_time(send, {"type": "http.response.body", "body": frame, "more_body": True})
                if monotonic() > until_s:
                    break
            await _in_time(send, {"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            pass


async def _in_time(send: Send, message: dict[str, object]) -> None:
    async with asyncio.timeout(UNREAD_S):
        await send(message)
