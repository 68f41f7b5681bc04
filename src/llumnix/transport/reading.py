"""Which of a pool's readers (reader.py) reads from which source: never one that cannot, and between two devices only
one that has shown there that it brings what the source has.

Between two GPUs a machine can be set up so that copies end well and bring something else (an IOMMU in between may do
it). So the first pull from such a source is a trial: some of its blocks come through a socket, too, and are compared.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

import numpy as np

from llumnix.transport.choose import Address, choose, shares_gpu
from llumnix.transport.fetching import Fetch, SocketPull, read
from llumnix.transport.port import Pool
from llumnix.transport.reader import CannotRead, NoConnection, Reader

log = logging.getLogger(__name__)

TRIAL_BYTES = 4 << 20
"""Of blocks that are compared, if there are so many in a pull; at least one block."""
MAX_REMEMBERED = 1024
"""Sources that are known not to be read, and such that are."""

_WRONG = (
    "WRONG BYTES: blocks of %s that were read by %s differ from those that came through a socket. None is used, and "
    "from now on all of its blocks come so. Leave %s out of --transports on this machine."
)

_Over = Callable[[tuple[str, ...], Address, SocketPull, Fetch], None]
_Send = Callable[[Address, SocketPull], None]
_Pair = tuple[str, str]
"""A reader's scheme, and a source's address."""


class Readers:
    """Used by several threads at once."""

    def __init__(self, pool: Pool, host: str, readers: Sequence[Reader], over: _Over, send: _Send) -> None:
        """`readers` of the pool's memory, the best first. `over` carries a fetch out over a connection of one of these
        schemes, `send` has all blocks of a pull sent through sockets."""
        self._pool = pool
        self._host = host
        self._readers = readers
        self._over = over
        self._send = send
        self._lock = threading.Lock()
        self._unreadable: dict[_Pair, None] = {}
        self._proven: dict[_Pair, None] = {}

    def read(self, source: Address, pull: SocketPull) -> bool:
        """False if no reader can do it: then what is in the target blocks does not count."""
        return any(self._read_by(reader, source, pull) for reader in self._readers)

    def forget(self, source: Address) -> None:
        """It is gone."""
        with self._lock:
            for reader in self._readers:
                for known in (self._unreadable, self._proven):
                    known.pop((reader.scheme, str(source)), None)
        for reader in self._readers:
            reader.forget(source.incarnation)

    def _read_by(self, reader: Reader, source: Address, pull: SocketPull) -> bool:
        pair = (reader.scheme, str(source))
        if pair in self._unreadable or not _may_read(reader, source, self._host):
            return False
        if pair in self._proven or shares_gpu(source, self._host, reader.gpu):
            return self._can_read(reader, source, pull)
        return self._try(reader, source, pull)

    def _can_read(self, reader: Reader, source: Address, pull: SocketPull) -> bool:
        """False if nothing was copied; told once if it never can."""
        try:
            self._over((reader.scheme,), source, pull, partial(read, self._pool, reader, source.incarnation))
        except CannotRead as error:
            log.warning("blocks of %s are not read by %s: %s", source, reader.scheme, error)
            self._remember(self._unreadable, (reader.scheme, str(source)))
            return False
        except NoConnection as error:
            log.info("blocks of %s come another way this time: %s", source, error)
            return False
        return True

    def _try(self, reader: Reader, source: Address, pull: SocketPull) -> bool:
        """False, too, if it brought something else than the source has. What a socket brings goes to the same blocks,
        after it: whatever comes of the comparison, these are right."""
        some, pair = _some_of(pull, self._pool.shape.block_bytes), (reader.scheme, str(source))
        before = self._bytes_in(some)
        if not self._can_read(reader, source, pull):
            return False
        brought = self._bytes_in(some)
        self._send(source, some)
        if brought != self._bytes_in(some):
            log.error(_WRONG, source, reader.scheme, reader.scheme)
            self._remember(self._unreadable, pair)
            pull.bytes_read = 0
            return False
        if brought != before:  # else perhaps nothing was copied at all
            self._remember(self._proven, pair)
        return True

    def _bytes_in(self, pull: SocketPull) -> list[bytes]:
        """What its target blocks hold, in the same pieces each time."""
        pieces: list[bytes] = []
        with closing(self._pool.reading(pull.target_blocks, pull.until_s)) as batches:
            for batch in batches:
                pieces += [ctypes.string_at(address, size) for address, size in batch.tolist()]
        return pieces

    def _remember(self, known: dict[_Pair, None], pair: _Pair) -> None:
        with self._lock:
            known[pair] = None
            if len(known) > MAX_REMEMBERED:
                del known[next(iter(known))]


def _may_read(reader: Reader, source: Address, host: str) -> bool:
    if source.host != host and not reader.between_machines:
        return False
    if not reader.between_gpus and not shares_gpu(source, host, reader.gpu):
        return False
    return bool(choose(source, host, (reader.scheme,)).ways)


def _some_of(pull: SocketPull, block_bytes: int) -> SocketPull:
    """A part of it, from its whole length."""
    blocks = len(pull.source_blocks)
    count = min(blocks, max(1, TRIAL_BYTES // block_bytes))
    chosen = np.linspace(0, blocks - 1, count, dtype=np.int64)
    return pull.part(pull.source_blocks[chosen], pull.target_blocks[chosen])
