"""An outbox: posting to mailboxes without ever waiting for them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from queue import SimpleQueue

import zmq

from llumnix.wire.base import encode
from llumnix.wire.curve import CurveKeys
from llumnix.wire.to_front_end import ToFrontEnd
from llumnix.wire.to_instance import ToInstance
from llumnix.wire.to_launcher import ToLauncher
from llumnix.wire.to_scheduler import ToScheduler

Mail = ToInstance | ToScheduler | ToLauncher | ToFrontEnd
"""All that is ever posted."""

log = logging.getLogger(__name__)

_MAX_UNREAD = 10_000  # messages kept for a peer that does not read
_LINGER_MS = 500
_MAX_SOCKETS = 16_384  # ZeroMQ's own limit of 1,023 would be one of instances


class Outbox:
    """`post` and `post_soon` may be called from any thread and return at once.

    Messages to one address keep their order while the connection lives. A peer that is gone or does not
    read is not waited for: beyond a bound its messages are dropped and counted. Whoever needs an answer
    sets a deadline of its own.
    """

    def __init__(self, keys: CurveKeys | None = None) -> None:
        """`keys` prove who we are to mailboxes on other machines."""
        self.dropped = 0
        self._keys = keys
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._letters: SimpleQueue[tuple[Sequence[str], Mail] | None] = SimpleQueue()
        self._clerk: threading.Thread | None = None

    def post(self, address: str, message: Mail) -> None:
        self._send(address, encode(message))

    def post_soon(self, addresses: Sequence[str], message: Mail) -> None:
        """For what can wait until the caller's thread rests: a thread of ours encodes and sends it.

        A send wakes ZeroMQ's own thread, which costs the caller 50 to 200 microseconds on a busy virtual machine; a
        step of a small model takes some milliseconds. What is posted this way may be overtaken by what is not.
        """
        if self._clerk is None:
            with self._lock:
                if self._clerk is None:
                    self._clerk = threading.Thread(target=self._send_letters, name="outbox", daemon=True)
                    self._clerk.start()
        self._letters.put((addresses, message))

    def _send_letters(self) -> None:
        while (letter := self._letters.get()) is not None:
            addresses, message = letter
            frame = encode(message)
            for address in addresses:
                self._send(address, frame)

    def _send(self, address: str, frame: bytes) -> None:
        with self._lock:
            if self._closed:
                return
            try:
                socket = self._sockets.get(address)
                if socket is None:
                    socket = self._sockets[address] = self._connected(address)
                socket.send(frame, zmq.NOBLOCK)
            except zmq.Again:
                self.dropped += 1
            except zmq.ZMQError as error:  # whoever gave us such an address is wrong, and only he gets no answer
                self.dropped += 1
                log.error("cannot write to %r: %s", address, error)

    def _connected(self, address: str) -> zmq.Socket[bytes]:
        """Raises ZMQError if the address is none, or there can be no more sockets."""
        socket: zmq.Socket[bytes] = self._context.socket(zmq.PUSH)
        socket.setsockopt(zmq.SNDHWM, _MAX_UNREAD)
        socket.setsockopt(zmq.LINGER, _LINGER_MS)
        allow_ipv6(socket, address)
        if self._keys is not None:
            self._keys.connecting(socket)
        try:
            socket.connect(address)
        except zmq.ZMQError:
            socket.close(linger=0)
            raise
        return socket

    def forget(self, address: str) -> None:
        """Closes the way to a peer that is gone, with whatever it did not read."""
        with self._lock:
            socket = self._sockets.pop(address, None)
            if socket is not None:
                socket.close(linger=0)

    def close(self) -> None:
        """What was posted has half a second to leave."""
        if self._clerk is not None:
            self._letters.put(None)
            self._clerk.join(timeout=_LINGER_MS / 1e3)
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
