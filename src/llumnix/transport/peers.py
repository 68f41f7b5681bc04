"""What a reader keeps open of its peers: opened once for each, and no longer than the peer is there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from llumnix.transport.port import TransportError

log = logging.getLogger(__name__)

MOST = 64
"""Peers that are kept open; the one that rested longest goes first. Those that are read just now are not counted."""

OpenedT = TypeVar("OpenedT")


@dataclass(slots=True)
class _Peer(Generic[OpenedT]):
    opened: OpenedT
    readers: int = 0
    gone: bool = False
    """Closed as soon as nobody reads there: of one that is dead, its memory is held until then."""


class Peers(Generic[OpenedT]):
    """By the incarnations of their transports. Used by several threads at once."""

    def __init__(self, opens: Callable[[bytes], OpenedT], closes: Callable[[OpenedT], None]) -> None:
        """Of a handle that a peer offered. Either may raise TransportError."""
        self._opens = opens
        self._closes = closes
        self._lock = threading.Lock()
        self._known: dict[str, _Peer[OpenedT]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def take(self, source: str, handle: bytes) -> OpenedT:
        """Until it is given back. Raises what opening raises."""
        with self._lock:
            peer = self._known.pop(source, None)
            if peer is None:
                self._make_room()
                peer = _Peer(self._opens(handle))
            self._known[source] = peer  # the last one in line to go
            peer.readers += 1
            return peer.opened

    def give_back(self, source: str) -> None:
        with self._lock:
            peer = self._known[source]
            peer.readers -= 1
            if peer.gone and not peer.readers:
                self._close(source)

    def forget(self, source: str) -> None:
        """It is gone, or reading there failed; one that is there after all is opened anew."""
        with self._lock:
            peer = self._known.get(source)
            if peer is None:
                return
            peer.gone = True
            if not peer.readers:
                self._close(source)

    def close(self) -> None:
        """All that nobody reads."""
        with self._lock:
            for source in [source for source, peer in self._known.items() if not peer.readers]:
                self._close(source)

    def _make_room(self) -> None:
        resting = [source for source, peer in self._known.items() if not peer.readers]
        if len(self._known) >= MOST and resting:
            self._close(resting[0])

    def _close(self, source: str) -> None:
        try:
            self._closes(self._known.pop(source).opened)
        except TransportError as error:
            log.warning("what was open of a peer cannot be closed: %s", error)
