"""An outbox: posting to mailboxes without ever waiting for them."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from queue import SimpleQueue
from socket import AF_UNIX
from socket import socket as unix_socket

import zmq

from llumnix.wire.base import Frame, encode
from llumnix.wire.curve import CurveKeys
from llumnix.wire.to_front_end import ToFrontEnd
from llumnix.wire.to_instance import ToInstance
from llumnix.wire.to_launcher import ToLauncher
from llumnix.wire.to_scheduler import ToScheduler
from llumnix.wire.to_worker import ToWorker

Mail = ToInstance | ToScheduler | ToLauncher | ToFrontEnd | ToWorker
"""All that is ever posted."""

_Letter = tuple[Sequence[str], Mail, Sequence[Frame]]

log = logging.getLogger(__name__)

_MAX_UNREAD = 10_000  # messages kept for a peer that does not read
_MAX_UNREAD_FREIGHT = 64
_LINGER_MS = 500
_IPC = "ipc://"
_MAX_SOCKETS = 16_384  # ZeroMQ's own limit of 1,023 would be one of instances


class Outbox:
    """`post`, `post_soon` and `ship` may be called from any thread and return at once.

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
        self._docks: dict[str, zmq.Socket[bytes]] = {}  # likewise, for what has freight
        self._lock = threading.Lock()
        self._closed = False
        self._letters: SimpleQueue[_Letter | str | None] = SimpleQueue()
        """For the clerk. An address: here it was forgotten, and what stands before is not sent there."""
        self._forgotten: Counter[str] = Counter()
        """Such marks that the clerk has before him."""
        self._clerk: threading.Thread | None = None

    def post(self, address: str, message: Mail) -> None:
        self._send(address, encode(message))

    def post_soon(self, addresses: Sequence[str], message: Mail) -> None:
        """For what can wait until the caller's thread rests: a thread of ours encodes and sends it.

        A send wakes ZeroMQ's own thread, which costs the caller 50 to 200 microseconds on a busy virtual machine; a
        step of a small model takes some milliseconds. What is posted this way may be overtaken by what is not.
        """
        self._have_sent(addresses, message)

    def ship(self, address: str, message: Mail, freight: Sequence[Frame]) -> None:
        """As `post_soon`, with megabytes beside it, which are not copied: they must stay as they are.

        They have a connection of their own, and mailboxes read from all connections in turn. So what is posted
        meanwhile does not wait for them, and overtakes them.
        """
        self._have_sent((address,), message, freight)

    def _have_sent(self, addresses: Sequence[str], message: Mail, freight: Sequence[Frame] = ()) -> None:
        if self._clerk is None:
            with self._lock:
                if self._clerk is None:
                    self._clerk = threading.Thread(target=self._send_letters, name="outbox", daemon=True)
                    self._clerk.start()
        self._letters.put((addresses, message, freight))

    def _send_letters(self) -> None:
        while (letter := self._letters.get()) is not None:
            if isinstance(letter, str):
                with self._lock:
                    self._forgotten -= Counter((letter,))
                continue
            addresses, message, freight = letter
            frame = encode(message)
            for address in addresses:
                self._send(address, frame, freight, soon=True)

    def _send(self, address: str, frame: bytes, freight: Sequence[Frame] = (), *, soon: bool = False) -> None:
        with self._lock:
            if self._closed or (soon and address in self._forgotten):
                return
            sockets, bound = (self._docks, _MAX_UNREAD_FREIGHT) if freight else (self._sockets, _MAX_UNREAD)
            try:
                socket = sockets.get(address)
                if socket is None:
                    socket = sockets[address] = self._connected(address, bound)
                if freight:
                    socket.send_multipart((frame, *freight), zmq.NOBLOCK, copy=False)
                else:
                    socket.send(frame, zmq.NOBLOCK)
            except zmq.Again:
                self.dropped += 1
            except zmq.ZMQError as error:  # whoever gave us such an address is wrong, and only he gets no answer
                self.dropped += 1
                log.error("cannot write to %r: %s", address, error)

    def _connected(self, address: str, max_unread: int) -> zmq.Socket[bytes]:
        """Raises ZMQError if the address is none, or there can be no more sockets."""
        socket: zmq.Socket[bytes] = self._context.socket(zmq.PUSH)
        socket.setsockopt(zmq.SNDHWM, max_unread)
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
        """Closes the way to a peer that is gone, with whatever it did not read, or was to be sent soon. What is posted
        there from now on is for another one."""
        with self._lock:
            if self._clerk is not None:
                self._forgotten[address] += 1
                self._letters.put(address)
            for sockets in (self._sockets, self._docks):
                socket = sockets.pop(address, None)
                if socket is not None:
                    socket.close(linger=0)

    def close(self, nobody_reads: bool = False) -> None:
        """What was posted has half a second to leave, unless `nobody_reads` it any more, or its reader has ended."""
        if self._clerk is not None:
            self._letters.put(None)
            self._clerk.join(timeout=_LINGER_MS / 1e3)
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for sockets in (self._sockets, self._docks):
                for address, socket in sockets.items():
                    socket.close(linger=0 if nobody_reads or has_ended(address) else None)
                sockets.clear()
        self._context.term()


def has_ended(address: str) -> bool:
    """Whether certainly nobody reads there: of sockets that are files of this machine one can know."""
    if not address.startswith(_IPC):
        return False
    with unix_socket(AF_UNIX) as probe:
        probe.setblocking(False)  # who has no time to answer has not ended
        try:
            probe.connect(address.removeprefix(_IPC))
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        except OSError:
            return False
    return False


def allow_ipv6(socket: zmq.Socket[bytes], address: str) -> None:
    if address.startswith("tcp://["):
        socket.setsockopt(zmq.IPV6, 1)
