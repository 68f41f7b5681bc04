"""The source's end: answers pulls from threads of its own, one per connection, so that the engine never waits.

Settled blocks do not change, and the blocks that a puller names are pinned by the migration protocol, so
the threads read the pool without asking anybody.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import closing
from dataclasses import dataclass

from llumnix.transport.connection import Connection, Mapping, Reply, Request, welcome_puller
from llumnix.transport.pieces import block_ids
from llumnix.transport.port import Pool, TransportError

log = logging.getLogger(__name__)

MAX_SERVING_S = 600.0
"""However long a puller says it will wait, the source gives up on it after this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    max_connections: int = 256
    """Of pullers that have proven themselves, each with a thread. One more is turned away."""
    max_strangers: int = 32
    """Connections of each listener that have not proven themselves. One more takes the place of the oldest: a puller
    proves itself within milliseconds, so whoever merely holds connections keeps nobody out."""
    handshake_s: float = 5.0
    """Seconds a stranger may hold a connection without proving itself."""
    idle_s: float = 10.0
    """Seconds a connection stays open without a request. Making a new one takes less than a millisecond."""


class BlockServer:
    """Serves the blocks of `pool` on `listeners` to whoever proves to know `secret`."""

    def __init__(
        self, pool: Pool, listeners: list[socket.socket], secret: bytes, incarnation: str, limits: ServerLimits
    ) -> None:
        self._pool = pool
        self._listeners = listeners
        self._secret = secret
        self._incarnation = incarnation
        self._limits = limits
        self.offers: dict[str, Mapping] = {}
        """Where pullers can read the pool themselves, by scheme. Set before anybody is told the address."""
        self._lock = threading.Lock()
        self._connections: dict[Connection, threading.Thread] = {}
        self._known: set[Connection] = set()
        """Those of `_connections` whose pullers have proven themselves."""
        self._closing = threading.Event()
        self._acceptors = [
            threading.Thread(target=self._accept, args=(listener,), name="kv-accept", daemon=True)
            for listener in listeners
        ]
        for acceptor in self._acceptors:
            acceptor.start()

    def close(self) -> None:
        """Ends every connection and joins every thread."""
        self._closing.set()
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept; Linux does so for unix and TCP sockets
        for acceptor in self._acceptors:
            acceptor.join()
        for listener in self._listeners:
            listener.close()
        with self._lock:
            open_now = list(self._connections.items())
            for connection, _ in open_now:
                connection.shut()
        for _, thread in open_now:
            thread.join()

    def _accept(self, listener: socket.socket) -> None:
        strangers: dict[Connection, None] = {}  # the oldest first
        while not self._closing.is_set():
            try:
                sock, _ = listener.accept()
            except OSError as error:
                if not self._closing.is_set():
                    log.warning("cannot take a connection now: %s", error)
                    self._closing.wait(0.1)  # out of descriptors: waiting is all that helps
                continue
            connection = Connection(sock)
            thread = threading.Thread(target=self._serve, args=(connection, strangers), name="kv-serve", daemon=True)
            with self._lock:
                if len(strangers) >= self._limits.max_strangers:
                    oldest = next(iter(strangers))
                    del strangers[oldest]
                    oldest.shut()
                strangers[connection] = None
                self._connections[connection] = thread
            try:
                thread.start()
            except RuntimeError as error:  # the system's limit of threads
                log.warning("cannot serve a connection now: %s", error)
                self._end(connection, strangers)

    def _serve(self, connection: Connection, strangers: dict[Connection, None]) -> None:
        try:
            connection.until_s = time.monotonic() + self._limits.handshake_s
            refused = welcome_puller(connection, self._secret, self._incarnation, self._pool.shape)
            if refused is not None:
                log.warning("refused a puller: %s", refused)
                return
            if not self._admit(connection, strangers):
                log.warning("turned a puller away: %d connections are open", self._limits.max_connections)
                return
            while not self._closing.is_set():
                self._answer_one(connection)
        except (OSError, EOFError) as end:
            # The puller's deadline, death or idleness: it knows, and nothing here depends on it.
            log.debug("a puller's connection ended: %s", end)
        except TransportError as error:
            log.warning("broke a pull off: %s", error)  # its bytes were promised: the end of the connection tells
        finally:
            self._end(connection, strangers)

    def _admit(self, connection: Connection, strangers: dict[Connection, None]) -> bool:
        """It has proven itself: no stranger any more."""
        with self._lock:
            strangers.pop(connection, None)
            if len(self._known) >= self._limits.max_connections:
                return False
            self._known.add(connection)
            return True

    def _end(self, connection: Connection, strangers: dict[Connection, None]) -> None:
        with self._lock:
            strangers.pop(connection, None)
            self._known.discard(connection)
            del self._connections[connection]
            connection.close()  # under the lock, so that nobody shuts a descriptor that was reused

    def _answer_one(self, connection: Connection) -> None:
        shape = self._pool.shape
        connection.until_s = time.monotonic() + self._limits.idle_s
        request = connection.receive(Request, max_bytes=4 * shape.num_blocks + 64)
        connection.until_s = until_s = time.monotonic() + min(request.time_left_s, MAX_SERVING_S)
        try:
            blocks = block_ids(request.block_ids, shape.num_blocks)
        except ValueError as error:
            connection.send(Reply(0, str(error)))
            return
        if request.reads_by:
            offer = self.offers.get(request.reads_by)
            connection.send(Reply(0, "" if offer else "its memory is not offered", offer))
            return
        with closing(self._pool.reading(blocks, until_s)) as batches:
            try:
                batch = next(batches, None)  # before the reply: what a device cannot do shows here
            except TransportError as error:
                log.warning("refused a pull of %d blocks: %s", len(blocks), error)
                connection.send(Reply(0, str(error)))
                return
            connection.send(Reply(len(blocks) * shape.block_bytes))
            while batch is not None:
                connection.send_pieces(batch)
                batch = next(batches, None)
