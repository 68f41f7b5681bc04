"""The text of `GET /metrics`: vLLM's own metrics and ours, without keeping the streams of clients waiting.

With sixteen instances it takes tens of milliseconds to write. So it is written on a thread, which lets go of Python's
lock often, and rests longer than it worked, however many ask.
"""

from __future__ import annotations

import asyncio
import gzip
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import NamedTuple

from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, disable_created_metrics, generate_latest
from prometheus_client.registry import CollectorRegistry
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send
from vllm.v1.metrics.prometheus import get_prometheus_registry

from llumnix.engine.vllm.front_end.gauges import ServerMetrics, ServerSeen

_REST = 9.0
"""A text is told for so many times as long as it took to write: a tenth of a core at most goes there."""
_TURN_S = 0.0002
"""For how long the thread may keep the event loop from its turn."""


def exposition(seen: ServerSeen) -> bytes:
    """All metrics of the server, as Prometheus reads them.

    With several front ends vLLM's come from files that all of them count into. Those are never forgotten there, so what
    is told of instances is not counted that way: each front end knows all of them, and the one that is asked tells.
    """
    ours = CollectorRegistry(auto_describe=False)
    ours.register(ServerMetrics(seen))
    return generate_latest(get_prometheus_registry()) + generate_latest(ours)


_NEVER = re.compile(r"q *= *0(\.0*)?")


class _Written(NamedTuple):
    plain: bytes
    zipped: bytes
    """A twentieth, which takes the event loop less time to send than it takes the thread to make."""


class MetricsText:
    """To be used on the event loop. `look`: the server as it is now."""

    def __init__(self, look: Callable[[], ServerSeen]) -> None:
        disable_created_metrics()  # a series more for each counter and histogram, which nobody reads
        self._look = look
        self._one_at_a_time = asyncio.Lock()
        self._written, self._stale_at_s = _Written(b"", b""), 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application, whatever the method is, as vLLM's."""
        answer = await self.answer(Headers(scope=scope).get("accept-encoding", ""))
        await answer(scope, receive, send)

    async def answer(self, encodings: str) -> Response:
        """`encodings`: the header Accept-Encoding of who asks. Prometheus wants gzip."""
        written = await self._read()
        if _takes_gzip(encodings):
            headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
            return Response(written.zipped, headers=headers, media_type=CONTENT_TYPE_LATEST)
        return Response(written.plain, headers={"Vary": "Accept-Encoding"}, media_type=CONTENT_TYPE_LATEST)

    async def _read(self) -> _Written:
        async with self._one_at_a_time:
            if monotonic() >= self._stale_at_s:
                began_s = monotonic()
                self._written = await asyncio.to_thread(_written_aside, self._look())
                ended_s = monotonic()
                self._stale_at_s = ended_s + _REST * (ended_s - began_s)
            return self._written


def _takes_gzip(encodings: str) -> bool:
    """By a header Accept-Encoding; a weight of 0 says that it does not."""
    for each in encodings.lower().split(","):
        name, _, weight = each.partition(";")
        if name.strip() == "gzip":
            return _NEVER.fullmatch(weight.strip()) is None
    return False


def _written_aside(seen: ServerSeen) -> _Written:
    with _short_turns():
        plain = exposition(seen)
        return _Written(plain, gzip.compress(plain, compresslevel=1))


@contextmanager
def _short_turns() -> Iterator[None]:
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(usual_s)
