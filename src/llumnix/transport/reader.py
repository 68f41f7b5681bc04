"""A puller that reads blocks where its peer has them, over something faster than a socket: what such a way has to do.

The two ends still have a connection (fetching.py): it proves both, shows each other's death, and over it the source
says, before every read and after it, where its blocks are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llumnix.transport.connection import Mapping
from llumnix.transport.port import TransportError


class CannotRead(TransportError):
    """It never can: nothing was copied, another way may do, and this one is not tried again with this source."""


class NoConnection(TransportError):
    """There is none to the source just now: nothing was copied, another way may do, and this one the next time."""


class LateBytes(TransportError):
    """The read was given up, and bytes may still land in the target blocks: until `over`."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self._lock = threading.Lock()
        self._over = False
        self._told: Callable[[], None] | None = None

    def over(self) -> None:
        with self._lock:
            self._over, told = True, self._told
        if told is not None:
            told()

    def when_over(self, told: Callable[[], None]) -> None:
        """Called once, from whatever thread finds out."""
        with self._lock:
            self._told, over = told, self._over
        if over:
            told()


class Reader(Protocol):
    """A pool's memory: offered to others, and filled from theirs. Used by several threads at once."""

    @property
    def scheme(self) -> str:
        """In addresses (choose.py)."""

    @property
    def between_machines(self) -> bool:
        """Whether it also reads from, and is read by, others than this one."""

    @property
    def gpu(self) -> str:
        """The UUID of the GPU whose memory it is; empty if it is none, or nobody can tell."""

    @property
    def between_gpus(self) -> bool:
        """Whether it also reads from, and is read by, others than on that GPU."""

    @property
    def offer(self) -> Mapping: ...

    def pull(
        self,
        source: str,
        mapping: Mapping,
        sources: NDArray[np.uint64],
        targets: NDArray[np.uint64],
        go_on: Callable[[], None],
    ) -> int:
        """Copies chunks from there, of as many regions, into ours; how many bytes. `source`: its incarnation. `go_on`
        is called every few milliseconds: what it raises ends the read, and comes out of here, or LateBytes does because
        of it. Raises CannotRead, and TransportError when the read fails."""

    def forget(self, source: str) -> None:
        """It is gone, or reading there failed: what is open of it is closed as soon as nobody reads there."""

    def close(self) -> None:
        """After the last pull."""
