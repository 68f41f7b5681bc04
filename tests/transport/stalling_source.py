"""A source process for the tests: serves blocks, but stops half-way through each.

After the first half of a pull it says "half" and waits for a line before it goes on.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llumnix.transport.memory import MemoryPool
from llumnix.transport.port import Batches, BlockIds
from llumnix.transport.sockets import SocketOptions, SocketTransport

FINGERPRINT = "stalling"
CHUNK_BYTES = 64 * 1024
BLOCKS = 32


class StallingPool(MemoryPool):
    """Calls `on_half` after the first half of a pull and then waits for `go_on`."""

    on_half: Callable[[], object]
    go_on: threading.Event

    @classmethod
    def filled(cls, on_half: Callable[[], object]) -> StallingPool:
        pool = cls.of_arrays([np.full((BLOCKS, CHUNK_BYTES), 7, dtype=np.uint8)], fingerprint=FINGERPRINT)
        pool.on_half = on_half
        pool.go_on = threading.Event()
        return pool

    def reading(self, blocks: BlockIds, until: float) -> Batches:
        half = len(blocks) // 2
        yield from super().reading(blocks[:half], until)
        self.on_half()
        self.go_on.wait()
        yield from super().reading(blocks[half:], until)


def main(secret_hex: str, folder: str) -> None:
    pool = StallingPool.filled(on_half=lambda: os.write(1, b"half\n"))  # in one piece: lanes say it at the same time
    options = SocketOptions(folder=Path(folder)) if folder else SocketOptions()
    transport = SocketTransport(pool, bytes.fromhex(secret_hex), options)
    print(transport.address, flush=True)
    sys.stdin.readline()
    pool.go_on.set()
    sys.stdin.readline()
    transport.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
