"""An outbox: posting to mailboxes without ever waiting for them."""

from __future__ import annotations

import threading

import zmq

from llumnix.wire.curve import CurveKeys
from llumnix.wire.messages import Wire, encode

_MAX_UNREAD = 10_000  # messages kept for a peer that does not read
_LINGER_MS = 500


class Outbox:
    """`post` may be called from any thread and returns at once.

    Messages to one address keep their order while the connection lives. A peer that is gone or does not
    read is not waited for: beyond a bound its messages are dropped and counted. Whoever needs an answer
    sets a deadline of its own.
    """

    def __init__(self, keys: CurveKeys | None = None) -> None:
        """`keys` prove who we are to mailboxes on other machines."""
        self.dropped = 0
        self._keys = keys
        self._context = zmq.Context()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._lock = threading.Lock()
        self._closed = False

    def post(self, address: str, message: Wire) -> None:
        frame = encode(message)
        with self._lock:
            if self._closed:
                return
            socket = self._sockets.get(address)
            if socket is None:
                socket = self._sockets[address] = self._context.socket(zmq.PUSH)
                socket.setsockopt(zmq.SNDHWM, _MAX_UNREAD)
                socket.setsockopt(zmq.LINGER, _LINGER_MS)
                allow_ipv6(socket, address)
                if self._keys is not None:
                    self._keys.connecting(socket)
                socket.connect(address)
            try:
                socket.send(frame, zmq.NOBLOCK)
            except zmq.Again:
                self.dropped += 1

    def forget(self, address: str) -> None:
        """Closes the way to a peer that is gone, with whatever it did not read."""
        with self._lock:
            socket = self._sockets.pop(address, None)
            if socket is not None:
                socket.close(linger=0)

    def close(self) -> None:
        """What was posted has half a second to leave."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for socket in self._sockets.values():
                socket.close()
            self._sockets.clear()
        self._context.term()


def allow_ipv6(socket: zmq.Socket[bytes], address: str) -> None:
    if address.startswith("tcp://["):
        socket.setsockopt(zmq.IPV6, 1)
