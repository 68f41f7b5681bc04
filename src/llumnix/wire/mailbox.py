"""A mailbox: the one address at which a process of ours receives control messages, and its outbox."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Generic

import msgspec
import zmq

from llumnix.wire.base import Frame, Kind, decode
from llumnix.wire.bell import Bell
from llumnix.wire.curve import CurveKeys, Doorkeeper, bound_address
from llumnix.wire.outbox import Outbox, allow_ipv6

log = logging.getLogger(__name__)


class Mailbox(Generic[Kind]):
    """Receives on `address` in a thread of its own, which calls `on_message` for each message.

    Only what `decoder` takes is heard: anything else is told in the log, counted, and dropped. `address` may leave the
    port open (`tcp://HOST:*`); afterwards `self.address` is the real one. With `keys` only holders of the same keys are
    heard.

    `on_message` must be quick and must not raise; an exception in it is our bug and ends the thread loudly. So must
    `on_freight`, which is told of messages that come with frames beside them; without it there may be none.
    `post`, `post_soon` and `ship` may be called from any thread.
    """

    def __init__(
        self,
        address: str,
        decoder: msgspec.msgpack.Decoder[Kind],
        on_message: Callable[[Kind], None],
        keys: CurveKeys | None = None,
        on_freight: Callable[[Kind, Sequence[Frame]], None] | None = None,
    ) -> None:
        self.malformed = 0
        """Messages that were none of ours, or not for this process."""
        self._decoder = decoder
        self.outbox = Outbox(keys)
        self.post = self.outbox.post
        self.post_soon = self.outbox.post_soon
        self.ship = self.outbox.ship
        self._on_message = on_message
        self._on_freight = on_freight
        self._context = zmq.Context()
        self._inbox = self._context.socket(zmq.PULL)
        self._inbox.setsockopt(zmq.RCVHWM, 0)
        allow_ipv6(self._inbox, address)
        self._doorkeeper: Doorkeeper | None = None
        if keys is not None:
            self._doorkeeper = Doorkeeper(self._context, keys)
            keys.accepting(self._inbox)
        self._inbox.bind(address)
        self.address = bound_address(self._inbox)
        if self._doorkeeper is not None:
            self._doorkeeper.watch(self._inbox)
        self._end = Bell(self._context)
        self._thread = threading.Thread(target=self._receive, name=f"mailbox {self.address}", daemon=True)

    @property
    def refused(self) -> int:
        """Attempts of strangers to connect."""
        return 0 if self._doorkeeper is None else self._doorkeeper.refused

    def start(self) -> None:
        self._thread.start()

    def forget(self, address: str) -> None:
        """Closes the way to a peer that is gone."""
        self.outbox.forget(address)

    def close(self, nobody_reads: bool = False) -> None:
        """Stops receiving; then as `Outbox.close`."""
        if self._thread.is_alive():
            self._end.ring()
            self._thread.join(timeout=5)
        self.outbox.close(nobody_reads)
        self._end.close()
        self._inbox.close(linger=0)
        if self._doorkeeper is not None:
            self._doorkeeper.close()
        self._context.term()

    def _receive(self) -> None:
        poller = zmq.Poller()
        for socket in (self._inbox, self._end.heard):
            poller.register(socket, zmq.POLLIN)
        while all(socket is not self._end.heard for socket, _ in poller.poll()):
            frame = self._inbox.recv()
            freight = self._inbox.recv_multipart(copy=False) if self._inbox.get(zmq.RCVMORE) else ()
            try:
                if freight and self._on_freight is None:
                    raise ValueError("nothing may come beside it")
                message = decode(frame, self._decoder)
            except ValueError as error:
                self.malformed += 1
                log.warning("dropped a malformed control message: %s", error)
                continue
            if freight and self._on_freight is not None:
                self._on_freight(message, [part.buffer for part in freight])
            else:
                self._on_message(message)
