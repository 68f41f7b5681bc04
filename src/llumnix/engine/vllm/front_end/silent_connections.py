"""Connections on which nobody has asked for anything yet: they are closed after a while, or sooner where they would
take the descriptors that others need.

uvicorn counts its patience from the end of an answer only, and no limit of its own sees a connection without a request.
With TLS nobody tells us of a connection before its handshake: those are closed by the event loop, after 60 s.
"""

from __future__ import annotations

import asyncio
import resource
from time import monotonic
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from llumnix.engine.vllm.front_end.room import KEPT_FREE, PLENTY, is_scarce

FIRST_REQUEST_S = 60.0
"""In which the head of a first request has to come."""

_PATIENCE_S = 1.0  # where descriptors are short: who has just come may be about to ask
_LAST_FREE = 16  # those that no connection gets
_READ_S = 0.1  # in which what was sent before a deadline is read, where this process stood still beyond it

_Base: Any = AutoHTTPProtocol


class SilentConnections:
    """Those of one process, on all its ports. Linux gives out the lowest descriptor that is free: so that of a new
    connection says how many are left."""

    def __init__(self, most_files: int, kept_free: int) -> None:
        """`kept_free`: descriptors that these make room for; those who have asked may take them."""
        self._scarce_from = most_files - kept_free
        self._full_from = most_files - _LAST_FREE
        self._since_s: dict[Any, float] = {}
        """Oldest first. Some may have asked since."""

    def came(self, connection: Any, descriptor: int) -> None:
        now = monotonic()
        self._since_s[connection] = now
        if descriptor >= self._scarce_from and not self._close_oldest(now) and descriptor >= self._full_from:
            connection.transport.abort()

    def went(self, connection: Any) -> None:
        self._since_s.pop(connection, None)

    def _close_oldest(self, now: float) -> bool:
        """False: all have asked, or have just come."""
        while self._since_s:
            oldest, since_s = next(iter(self._since_s.items()))
            if not oldest.has_asked and now < since_s + _PATIENCE_S:
                return False
            del self._since_s[oldest]
            if not oldest.has_asked:
                oldest.transport.abort()
                return True
        return False


def _of_this_process() -> SilentConnections:
    most_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return SilentConnections(most_files, KEPT_FREE // 2 if is_scarce() else PLENTY)


class HttpConnection(_Base):  # type: ignore[misc]
    """uvicorn's own, made by it (`uvicorn.Config.http`)."""

    silent: SilentConnections | None = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if HttpConnection.silent is None:
            HttpConnection.silent = _of_this_process()
        HttpConnection.silent.came(self, transport.get_extra_info("socket").fileno())
        self._timer = self.loop.call_later(FIRST_REQUEST_S, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, *event: Any) -> None:
        """Another kind of connection takes its place."""
        self._forget()
        super().handle_websocket_upgrade(*event)

    @property
    def has_asked(self) -> bool:
        """The head of a request has come."""
        return self.cycle is not None

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if HttpConnection.silent is not None:
            HttpConnection.silent.went(self)

    def _close_if_silent(self, in_the_end: bool = False) -> None:
        if self.has_asked:
            return
        if in_the_end:
            self.transport.close()
        else:
            self._timer = self.loop.call_later(_READ_S, self._close_if_silent, True)

    def timeout_keep_alive_handler(self) -> None:
        """Between two requests. uvicorn takes the timer away when something comes."""
        self.timeout_keep_alive_task = self.loop.call_later(_READ_S, super().timeout_keep_alive_handler)
