"""A mailbox: one address to receive at, and a way to post to others. Posting never blocks.

Messages between two mailboxes keep their order while the connection lives. A peer that is gone or does
not read is not waited for: its messages are dropped beyond a bound and counted. Whoever needs an answer
sets its own deadline.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import zmq

from llumnix.wire.messages import Wire, decode, encode

log = logging.getLogger(__name__)

_MAX_UNREAD = 10_000  # messages kept for a peer that does not read
_POLL_MS = 200


class Mailbox:
    """Receives on `address` in a thread of its own, which calls `on_message` for each message.

    `on_message` must be quick and must not raise; an exception in it is our bug and ends the thread loudly.
    `post` may be called from any thread.
    """

    def __init__(self, address: str, on_message: Callable[[Wire], None]) -> None:
        self.address = address
        self.dropped = 0
        self.malformed = 0
        self._on_message = on_message
        self._context = zmq.Context()
        self._inbox = self._context.socket(zmq.PULL)
        self._inbox.setsockopt(zmq.RCVHWM, 0)
        self._inbox.bind(address)
        self._outboxes: dict[str, zmq.Socket[bytes]] = {}
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._receive, name=f"mailbox {address}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def post(self, address: str, message: Wire) -> None:
        """Sends without waiting; drops (and counts) when the peer has not read for too long."""
        frame = encode(message)
        with self._lock:
            if self._closing:
                return
            outbox = self._outboxes.get(address)
            if outbox is None:
                outbox = self._outboxes[address] = self._context.socket(zmq.PUSH)
                outbox.setsockopt(zmq.SNDHWM, _MAX_UNREAD)
                outbox.setsockopt(zmq.LINGER, 500)
                outbox.connect(address)
            try:
                outbox.send(frame, zmq.NOBLOCK)
            except zmq.Again:
                self.dropped += 1

    def forget(self, address: str) -> None:
        """Closes the way to a peer that is gone, with whatever was not read."""
        with self._lock:
            outbox = self._outboxes.pop(address, None)
            if outbox is not None:
                outbox.close(linger=0)

    def close(self) -> None:
        """Stops receiving; what was posted has half a second to leave."""
        with self._lock:
            self._closing = True
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)
        with self._lock:
            for outbox in self._outboxes.values():
                outbox.close()
            self._outboxes.clear()
        self._inbox.close(linger=0)
        self._context.term()

    def _receive(self) -> None:
        while not self._closing:
            if not self._inbox.poll(_POLL_MS):
                continue
            frame = self._inbox.recv()
            try:
                message = decode(frame)
            except ValueError as error:
                self.malformed += 1
                log.warning("dropped a malformed control message: %s", error)
                continue
            self._on_message(message)
