"""The target's end: pulls blocks into the pool, each pull in a thread of a bounded set, connections reused.

When a pull fails for whatever reason its connection is closed before the result is told. The kernel
writes into the blocks only while this end receives, so no byte lands after that: no quarantine.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from llumnix.transport.choose import Address, Way, choose
from llumnix.transport.connection import Connection, ProtocolError, Reply, Request, SourceRefused, greet_source
from llumnix.transport.pieces import total_bytes
from llumnix.transport.port import Pool, PullResult, TransportError

log = logging.getLogger(__name__)

SCHEMES = ("unix", "tcp")
CONNECT_S = 5.0
"""A host that does not answer at all is given up after this, so that `close` never waits longer."""
MAX_REPLY_BYTES = 64 * 1024
MAX_IDLE = 32
"""Idle connections kept, over all peers; the one that rested longest goes first."""


class SocketPull:
    """A pull in flight (`port.PullInFlight`)."""

    def __init__(self, blocks: NDArray[np.uint64], target_blocks: NDArray[np.uint64], timeout_s: float) -> None:
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

    def cancel(self, why: str = "the pull was cancelled") -> None:
        with self._lock:
            self._called_off = self._called_off or why
            if self._connection is not None:
                self._connection.shut()

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


class Puller:
    """Pulls into `pool`. At most `max_pulls` at once; one more fails at once, and its caller can repeat it."""

    def __init__(self, pool: Pool, secret: bytes, host: str, max_pulls: int) -> None:
        self._pool = pool
        self._secret = secret
        self._host = host
        self._max_pulls = max_pulls
        self._lock = threading.Lock()
        self._in_flight: set[SocketPull] = set()
        self._idle: list[tuple[str, Connection]] = []
        self._closed = False
        self._threads = ThreadPoolExecutor(max_pulls, thread_name_prefix="kv-pull")
        self._refusals = ThreadPoolExecutor(1, thread_name_prefix="kv-refuse")

    def start(self, address: str, pull: SocketPull, on_done: Callable[[PullResult], None]) -> None:
        """Raises TransportError after `close`."""
        with self._lock:
            if self._closed:
                raise TransportError("the transport is closed")
            if len(self._in_flight) < self._max_pulls:
                self._in_flight.add(pull)
                future = self._threads.submit(self._run, address, pull, on_done)
            else:
                why = f"{self._max_pulls} pulls are in flight already"
                future = self._refusals.submit(self._finish, pull, why, on_done)
        future.add_done_callback(_log_bug)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for pull in self._in_flight:
                pull.cancel("the transport was closed")
        self._threads.shutdown(wait=True)
        self._refusals.shutdown(wait=True)
        for _, connection in self._idle:
            connection.close()
        self._idle.clear()

    def _run(self, address: str, pull: SocketPull, on_done: Callable[[PullResult], None]) -> None:
        reason = "this end failed, see its log"  # stands only when `_attempt` raises, which is a bug and logged
        try:
            reason = self._attempt(address, pull)
        finally:
            self._finish(pull, reason, on_done)

    def _finish(self, pull: SocketPull, reason: str, on_done: Callable[[PullResult], None]) -> None:
        with self._lock:
            self._in_flight.discard(pull)
        result = PullResult(
            ok=not reason, reason=reason, bytes_read=pull.bytes_read, seconds=time.monotonic() - pull.started_s
        )
        try:
            on_done(result)
        finally:
            pull.end(result)

    def _attempt(self, address: str, pull: SocketPull) -> str:
        """Carries the pull out; returns why it failed, or nothing."""
        try:
            if not self._fetch_over_idle(address, pull):
                self._fetch_over(self._connect(Address.parse(address), pull), address, pull)
        except SourceRefused as refused:
            return f"the source refused: {refused}"
        except TimeoutError:
            return pull.called_off or f"not complete within {pull.timeout_s:g} s"
        except (OSError, EOFError, TransportError) as error:
            return pull.called_off or str(error)
        return ""

    def _fetch_over_idle(self, address: str, pull: SocketPull) -> bool:
        """False if there is no connection to reuse. Also if the source closed it at this very moment, for it rested
        too long: that shows only when the request is sent, and a fresh connection puts it right."""
        connection = self._take_idle(address)
        if connection is None:
            return False
        try:
            self._fetch_over(connection, address, pull)
        except TimeoutError:
            raise
        except (OSError, EOFError):
            if pull.bytes_read or pull.called_off:
                raise
            return False
        return True

    def _fetch_over(self, connection: Connection, address: str, pull: SocketPull) -> None:
        healthy = False
        try:
            pull.use(connection)
            self._fetch(connection, pull)
            healthy = True
        except SourceRefused:
            healthy = True
            raise
        finally:
            pull.let_go()
            self._put_away(address, connection, healthy)

    def _fetch(self, connection: Connection, pull: SocketPull) -> None:
        with closing(self._pool.writing(pull.target_blocks, pull.until_s)) as batches:
            # The first batch before the request: a pool that stages takes its buffers here, and a source
            # never holds buffers of its own for a puller that still waits for some.
            batch = next(batches, None)
            connection.send(Request.of(pull.source_blocks, pull.until_s - time.monotonic()))
            reply = connection.receive(Reply, MAX_REPLY_BYTES)
            if reply.refused:
                raise SourceRefused(reply.refused)
            expected = len(pull.target_blocks) * self._pool.shape.block_bytes
            if reply.bytes != expected:
                raise ProtocolError(f"the source offers {reply.bytes} bytes where {expected} were asked for")
            while batch is not None:
                size = total_bytes(batch)
                connection.receive_pieces(batch)
                pull.bytes_read += size
                batch = next(batches, None)

    def _connect(self, source: Address, pull: SocketPull) -> Connection:
        """Tries each way in turn. Raises TransportError when none works, SourceRefused when the source says no."""
        choice = choose(source, self._host, SCHEMES)
        failures = list(choice.passed_over)
        for way in choice.ways:
            try:
                connection = _open(way, pull)
            except OSError as error:
                if pull.called_off:
                    raise
                failures.append(f"{way.scheme}: {error.strerror or error}")
                continue
            try:
                greet_source(connection, self._secret, source.incarnation, self._pool.shape)
            except BaseException:
                pull.let_go()
                connection.close()
                raise
            return connection
        raise TransportError(f"the source cannot be reached ({'; '.join(failures) or 'it names no way'})")

    def _take_idle(self, address: str) -> Connection | None:
        while True:
            with self._lock:
                found = next((entry for entry in reversed(self._idle) if entry[0] == address), None)
                if found is None:
                    return None
                self._idle.remove(found)
            connection = found[1]
            if connection.is_quiet():
                return connection
            connection.close()  # the source closed it, or is gone

    def _put_away(self, address: str, connection: Connection, healthy: bool) -> None:
        if not healthy:
            connection.close()
            return
        connection.until_s = math.inf
        with self._lock:
            self._idle.append((address, connection))
            oldest = self._idle.pop(0)[1] if len(self._idle) > MAX_IDLE else None
        if oldest is not None:
            oldest.close()


def _open(way: Way, pull: SocketPull) -> Connection:
    """A connection over `way`, which a cancel of the pull ends. Raises OSError."""
    limit_s = min(max(pull.until_s - time.monotonic(), 0.001), CONNECT_S)
    if way.scheme == "unix":
        sock = socket.socket(socket.AF_UNIX)
    else:
        sock = socket.create_connection(way.host_and_port, timeout=limit_s)
    try:
        if way.scheme == "unix":
            sock.settimeout(limit_s)
            sock.connect(way.where)
        connection = Connection(sock)
        pull.use(connection)
    except OSError:
        sock.close()
        raise
    return connection


def _log_bug(future: Future[None]) -> None:
    error = future.exception()
    if error is not None:
        log.error("a pull failed by an error of this end", exc_info=error)
