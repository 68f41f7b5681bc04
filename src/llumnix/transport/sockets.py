"""Blocks over sockets: a unix socket on one host, TCP between hosts and when the unix socket cannot be reached.

The default way on CPUs, and the one that always works. Needs nothing but the kernel; a dead peer is
seen at once (end of file), a hung one at the deadline, and closing the socket stops late bytes.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llumnix.hosts import bracketed
from llumnix.transport.choose import Address, Way
from llumnix.transport.fetching import SocketPull
from llumnix.transport.pieces import block_ids
from llumnix.transport.port import BlockIds, Pool, PullResult, TransportError
from llumnix.transport.pulling import Puller
from llumnix.transport.reader import Reader
from llumnix.transport.serving import BlockServer, ServerLimits

UNIX_PATH_BYTES = 107
"""Longest path of a unix socket (Linux, `man 7 unix`, without the final zero)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    folder: Path | None = None
    """Where the unix socket lives: a folder that only this user can enter. None: no unix socket."""
    tcp_host: str | None = "127.0.0.1"
    """Interface to listen on. None: no TCP."""
    tcp_port: int = 0
    """0: any free port."""
    advertised_host: str | None = None
    """What peers connect to, where it is not `tcp_host` (which may be 0.0.0.0). Better a number than a name: the
    time that resolving a name takes is the resolver's, not the pull's deadline."""
    max_pulls: int = 16
    """Pulls in flight at once; one more fails at once. Each has a thread, made when it is first needed."""
    server: ServerLimits = field(default_factory=ServerLimits)


class SocketTransport:
    """`port.Transport` over sockets. `secret` is made by the launcher and known to all instances."""

    def __init__(self, pool: Pool, secret: bytes, options: SocketOptions, readers: Sequence[Reader] = ()) -> None:
        """Starts to serve at once. `readers` of the pool's memory, the best first: peers may read it by them, and
        theirs is read so. Raises TransportError when it cannot listen as asked."""
        if len(secret) < 16:
            raise TransportError("the secret of a transport needs at least 16 bytes")
        self._pool = pool
        incarnation = uuid.uuid4().hex
        self._path: Path | None = None
        listeners: list[socket.socket] = []
        ways: list[Way] = []
        try:
            if options.folder is not None:
                self._path = options.folder / f"kv-{incarnation[:16]}.sock"
                listeners.append(_listen_unix(self._path))
                ways += [Way(scheme, str(self._path)) for scheme in (*(each.scheme for each in readers), "unix")]
            if options.tcp_host is not None:
                listener, way = _listen_tcp(options.tcp_host, options.tcp_port, options.advertised_host)
                listeners.append(listener)
                ways += [Way(each.scheme, way.where) for each in readers if each.between_machines]
                ways.append(way)
            if not ways:
                raise TransportError("a transport needs a folder for a unix socket, a TCP host, or both")
        except TransportError:
            self._abandon(listeners)
            raise
        host, gpu = host_id(), next((each.gpu for each in readers if each.gpu), "")
        self._address = str(Address(incarnation=incarnation, host=host, ways=tuple(ways), gpu=gpu))
        self._readers = readers
        self._puller = Puller(pool, secret, host, options.max_pulls, readers)
        self._server = BlockServer(pool, listeners, secret, incarnation, options.server)
        self._server.offers = {each.scheme: each.offer for each in readers}
        self._closed = False

    @property
    def address(self) -> str:
        """See `Transport`."""
        return self._address

    def pull(
        self,
        source_address: str,
        source_blocks: BlockIds,
        target_blocks: BlockIds,
        timeout_s: float,
        *,
        on_done: Callable[[PullResult], None],
        on_released: Callable[[], None],
    ) -> SocketPull:
        """See `Transport`. Over sockets nothing is ever quarantined."""
        targets = block_ids(target_blocks, self._pool.shape.num_blocks)
        sources = block_ids(source_blocks, 1 << 32)
        if len(sources) != len(targets):
            raise ValueError(f"{len(sources)} source blocks do not fit {len(targets)} target blocks")
        if len(np.unique(targets)) != len(targets):
            raise ValueError("a target block is named twice")
        pull = SocketPull(sources, targets, timeout_s, on_released)
        self._puller.start(source_address, pull, on_done)
        return pull

    def forget(self, source_address: str) -> None:
        """See `Transport`."""
        self._puller.forget(source_address)

    def close(self) -> None:
        """See `Transport`."""
        if self._closed:
            return
        self._closed = True
        self._puller.close()
        self._server.close()
        for reader in self._readers:
            reader.close()
        self._abandon([])

    def _abandon(self, listeners: list[socket.socket]) -> None:
        for listener in listeners:
            listener.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def host_id() -> str:
    """Equal for two processes exactly when they run under one kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _listen_unix(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > UNIX_PATH_BYTES:
        raise TransportError(f"the path of the unix socket is longer than {UNIX_PATH_BYTES} bytes: {path}")
    if "," in str(path):
        raise TransportError(f"the path of the unix socket may not have a comma: {path}")
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise TransportError(f"cannot listen on {path}: {error.strerror}") from error
    return listener


def _listen_tcp(host: str, port: int, advertised: str | None) -> tuple[socket.socket, Way]:
    if advertised is None and host in ("", "0.0.0.0", "::"):
        raise TransportError("listening on every interface needs an advertised host that peers can connect to")
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(where[:2], family=family, backlog=128)
    except OSError as error:
        raise TransportError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    shown = advertised or host
    return listener, Way("tcp", f"{bracketed(shown)}:{listener.getsockname()[1]}")
