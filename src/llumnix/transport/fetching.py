"""What a pull does with a connection to its source: receives the bytes, or reads them itself where the source says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from llumnix.transport.connection import Connection, Mapping, ProtocolError, Reply, Request, SourceRefused
from llumnix.transport.pieces import total_bytes
from llumnix.transport.port import Pool, PullResult, TransportError
from llumnix.transport.reader import LateBytes, Reader

MAX_REPLY_BYTES = 64 * 1024


class SocketPull:
    """A pull in flight (`port.PullInFlight`)."""

    def __init__(
        self,
        blocks: NDArray[np.uint64],
        target_blocks: NDArray[np.uint64],
        timeout_s: float,
        on_released: Callable[[], None],
    ) -> None:
        self.on_released = on_released
        self.late: LateBytes | None = None
        self.source_blocks = blocks
        self.target_blocks = target_blocks
        self.started_s = time.monotonic()
        self.timeout_s = timeout_s
        self.until_s = self.started_s + timeout_s
        self.bytes_read = 0
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._called_off = ""
        self._result: PullResult | None = None
        self._ended = threading.Event()
        self._parts: list[SocketPull] = []

    def part(self, blocks: NDArray[np.uint64], target_blocks: NDArray[np.uint64]) -> SocketPull:
        """Of these blocks, with the time that is left. Called off with the whole."""
        part = SocketPull(blocks, target_blocks, max(self.until_s - time.monotonic(), 0.0), self.on_released)
        with self._lock:
            self._parts.append(part)
            why = self._called_off
        if why:
            part.cancel(why)
        return part

    def cancel(self, why: str = "the pull was cancelled") -> None:
        with self._lock:
            self._called_off = self._called_off or why
            if self._connection is not None:
                self._connection.shut()
            parts = list(self._parts)
        for part in parts:
            part.cancel(why)

    def wait(self, timeout_s: float) -> PullResult | None:
        self._ended.wait(timeout_s)
        return self._result

    @property
    def called_off(self) -> str:
        return self._called_off

    def use(self, connection: Connection) -> None:
        """From here on a cancel shuts `connection`. Raises ConnectionAbortedError when one came before."""
        with self._lock:
            if self._called_off:
                raise ConnectionAbortedError(self._called_off)
            self._connection = connection
        connection.until_s = self.until_s

    def let_go(self) -> None:
        """From here on a cancel leaves the connection alone: it may be closed, or another pull's."""
        with self._lock:
            self._connection = None

    def end(self, result: PullResult) -> None:
        self._result = result
        self._ended.set()


Fetch = Callable[[Connection, SocketPull], None]
"""Raises SourceRefused, OSError (a deadline that passed is one), EOFError when the source is gone, TransportError."""


def fetch(pool: Pool, connection: Connection, pull: SocketPull) -> None:
    with closing(pool.writing(pull.target_blocks, pull.until_s)) as batches:
        # The first batch before the request: a pool that stages takes its buffers here, and a source
        # never holds buffers of its own for a puller that still waits for some.
        batch = next(batches, None)
        expected = len(pull.target_blocks) * pool.shape.block_bytes
        offered = _ask(connection, pull, reads_by="").bytes
        if offered != expected:
            raise ProtocolError(f"the source offers {offered} bytes where {expected} were asked for")
        while batch is not None:
            size = total_bytes(batch)
            connection.receive_pieces(batch)
            pull.bytes_read += size
            batch = next(batches, None)


def read(pool: Pool, reader: Reader, source: str, connection: Connection, pull: SocketPull) -> None:
    """`source`: its incarnation. The source is asked before, so that one which has ended is not read; and again
    afterwards, since what was read of one that ended meanwhile does not count. Raises CannotRead and LateBytes, too."""
    mapping = _where(connection, pull, reader.scheme)
    if len(mapping.regions) != len(pool.shape.chunk_bytes):
        raise TransportError(f"the source names {len(mapping.regions)} regions, not {len(pool.shape.chunk_bytes)}")

    def go_on() -> None:
        if pull.called_off:
            raise ConnectionAbortedError(pull.called_off)
        if time.monotonic() >= pull.until_s:
            raise TimeoutError("the deadline passed")

    try:
        moved = reader.pull(source, mapping, pull.source_blocks, pull.target_blocks, go_on)
    except LateBytes:
        raise  # of one that may be there, but was slow or not wanted any more
    except TransportError:
        reader.forget(source)
        raise
    try:
        again = _where(connection, pull, reader.scheme)
    except (OSError, EOFError):
        reader.forget(source)
        raise
    if again != mapping or moved != len(pull.target_blocks) * pool.shape.block_bytes:
        raise ProtocolError("the source's memory is not what it was")
    pull.bytes_read = moved


def _where(connection: Connection, pull: SocketPull, scheme: str) -> Mapping:
    mapping = _ask(connection, pull, reads_by=scheme).mapping
    if mapping is None:
        raise ProtocolError("the source does not say where its blocks are")
    return mapping


def _ask(connection: Connection, pull: SocketPull, *, reads_by: str) -> Reply:
    connection.send(Request.of(pull.source_blocks, pull.until_s - time.monotonic(), reads_by))
    reply = connection.receive(Reply, MAX_REPLY_BYTES)
    if reply.refused:
        raise SourceRefused(reply.refused)
    return reply
