"""The target's end: pulls blocks into the pool, each pull in a thread of a bounded set, connections reused.

When a pull fails for whatever reason its connection is closed before the result is told. The kernel writes into the
blocks only while this end receives, so no byte lands after that. What a reader (reader.py) may still write is
quarantined.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from llumnix.transport.choose import PREFERENCE, Address, Way, choose
from llumnix.transport.connection import Connection, SourceRefused, greet_source
from llumnix.transport.fetching import Fetch, SocketPull, fetch
from llumnix.transport.lanes import lanes_of, pull_all
from llumnix.transport.port import Pool, PullResult, TransportError
from llumnix.transport.reader import CannotRead, LateBytes, NoConnection, Reader
from llumnix.transport.reading import Readers

log = logging.getLogger(__name__)

SCHEMES = ("unix", "tcp")
CONNECT_S = 5.0
"""A host that does not answer at all is given up after this, so that `close` never waits longer."""
NOT_SEEN_HERE = (FileNotFoundError, PermissionError)
"""A unix socket is there before anybody is told of it: one that is not found is in another container, or was closed."""
MAX_IDLE = 32
"""Idle connections kept, over all peers; the one that rested longest goes first."""


class Puller:
    """Pulls into `pool`. At most `max_pulls` at once; one more fails at once, and its caller can repeat it."""

    def __init__(self, pool: Pool, secret: bytes, host: str, max_pulls: int, readers: Sequence[Reader]) -> None:
        """`readers` of the pool's memory, the best first: they are tried before a socket is."""
        self._pool = pool
        self._readers = Readers(pool, host, readers, self._fetch_by, self._fetch_all)
        self._secret = secret
        self._host = host
        self._max_pulls = max_pulls
        self._lock = threading.Lock()
        self._in_flight: set[SocketPull] = set()
        self._idle: list[tuple[str, Connection]] = []
        self._closed = False
        self._threads = ThreadPoolExecutor(max_pulls, thread_name_prefix="kv-pull")
        self._lanes = ThreadPoolExecutor(max_pulls * pool.streams, thread_name_prefix="kv-lane")
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

    def forget(self, address: str) -> None:
        """See `Transport`."""
        try:
            source = Address.parse(address)
        except TransportError:
            return  # nobody was read there
        kinds = {_kind(scheme, source) for scheme in PREFERENCE}
        with self._lock:
            resting = [connection for kind, connection in self._idle if kind in kinds]
            self._idle = [entry for entry in self._idle if entry[0] not in kinds]
        for connection in resting:
            connection.close()
        self._readers.forget(source)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for pull in self._in_flight:
                pull.cancel("the transport was closed")
        self._threads.shutdown(wait=True)
        self._lanes.shutdown(wait=True)
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
            ok=not reason,
            reason=reason,
            bytes_read=pull.bytes_read,
            seconds=time.monotonic() - pull.started_s,
            quarantined=pull.late is not None,
        )
        try:
            on_done(result)
        finally:
            pull.end(result)
        if pull.late is not None:
            pull.late.when_over(pull.on_released)

    def _attempt(self, address: str, pull: SocketPull) -> str:
        """Carries the pull out; returns why it failed, or nothing."""
        try:
            source = Address.parse(address)
            if not self._readers.read(source, pull):
                self._fetch_all(source, pull)
        except SourceRefused as refused:
            return f"the source refused: {refused}"
        except TimeoutError:
            return pull.called_off or f"not complete within {pull.timeout_s:g} s"
        except LateBytes as late:
            pull.late = late
            return pull.called_off or str(late)
        except (OSError, EOFError, TransportError) as error:
            return pull.called_off or str(error)
        return ""

    def _fetch_all(self, source: Address, pull: SocketPull) -> None:
        def fetch_one(lane: SocketPull) -> None:
            self._fetch_by(SCHEMES, source, lane, partial(fetch, self._pool))

        lanes = lanes_of(pull, self._pool.shape.block_bytes, self._pool.streams)
        if lanes == [pull]:
            fetch_one(pull)
            return
        try:
            pull_all(lanes, fetch_one, self._lanes)
        finally:
            pull.bytes_read = sum(lane.bytes_read for lane in lanes)

    def _fetch_by(self, schemes: tuple[str, ...], source: Address, pull: SocketPull, fetch: Fetch) -> None:
        """Over a connection of these schemes; afterwards it rests among its like."""
        kind = _kind(schemes[0], source)
        if not self._fetch_over_idle(kind, pull, fetch):
            self._fetch_over(self._connect(source, pull, schemes), kind, pull, fetch)

    def _fetch_over_idle(self, kind: str, pull: SocketPull, fetch: Fetch) -> bool:
        """False if there is no connection to reuse. Also if the source closed it at this very moment, for it rested
        too long: that shows only when the request is sent, and a fresh connection puts it right."""
        connection = self._take_idle(kind)
        if connection is None:
            return False
        try:
            self._fetch_over(connection, kind, pull, fetch)
        except TimeoutError:
            raise
        except (OSError, EOFError):
            if pull.bytes_read or pull.called_off:
                raise
            return False
        return True

    def _fetch_over(self, connection: Connection, kind: str, pull: SocketPull, fetch: Fetch) -> None:
        healthy = False
        try:
            pull.use(connection)
            fetch(connection, pull)
            healthy = True
        except (SourceRefused, CannotRead):
            healthy = True
            raise
        finally:
            pull.let_go()
            self._put_away(kind, connection, healthy)

    def _connect(self, source: Address, pull: SocketPull, schemes: tuple[str, ...]) -> Connection:
        """Tries each way in turn. Raises NoConnection when none works now, CannotRead when none can, SourceRefused when
        the source says no."""
        choice = choose(source, self._host, schemes)
        failures = list(choice.passed_over)
        none_at_all: type[TransportError] = CannotRead
        for way in choice.ways:
            try:
                connection = _open(way, pull)
            except OSError as error:
                if pull.called_off:
                    raise
                failures.append(f"{way.scheme}: {error.strerror or error}")
                if not isinstance(error, NOT_SEEN_HERE):
                    none_at_all = NoConnection
                continue
            try:
                greet_source(connection, self._secret, source.incarnation, self._pool.shape)
            except BaseException:
                pull.let_go()
                connection.close()
                raise
            return connection
        raise none_at_all(f"the source cannot be reached ({'; '.join(failures) or 'it names no way'})")

    def _take_idle(self, kind: str) -> Connection | None:
        while True:
            with self._lock:
                found = next((entry for entry in reversed(self._idle) if entry[0] == kind), None)
                if found is None:
                    return None
                self._idle.remove(found)
            connection = found[1]
            if connection.is_quiet():
                return connection
            connection.close()  # the source closed it, or is gone

    def _put_away(self, kind: str, connection: Connection, healthy: bool) -> None:
        if not healthy:
            connection.close()
            return
        connection.until_s = math.inf
        with self._lock:
            self._idle.append((kind, connection))
            oldest = self._idle.pop(0)[1] if len(self._idle) > MAX_IDLE else None
        if oldest is not None:
            oldest.close()


def _kind(scheme: str, source: Address) -> str:
    """Of a connection that rests: whose, and for what it may be used again."""
    return f"{scheme} {source}"


def _open(way: Way, pull: SocketPull) -> Connection:
    """A connection over `way`, which a cancel of the pull ends. Raises OSError."""
    limit_s = min(max(pull.until_s - time.monotonic(), 0.001), CONNECT_S)
    if way.on_one_host:
        sock = socket.socket(socket.AF_UNIX)
    else:
        sock = socket.create_connection(way.host_and_port, timeout=limit_s)
    try:
        if way.on_one_host:
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
