"""Ends of pulls for the contract suite: a transport, the memory it serves, what its pulls came to."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llumnix.transport.memory import MemoryPool
from llumnix.transport.port import BlockIds, Pool, PullInFlight, PullResult, Transport
from llumnix.transport.sockets import SocketOptions
from llumnix.transport.staging import StagedPool

SECRET = b"a secret of enough bytes"
BLOCKS = 64
CHUNK_SHAPES = ((4, 32), (2, 512), (4, 96))
PLENTY_S = 60.0


def no_release() -> None:
    raise AssertionError("sockets never quarantine")


@dataclass
class End:
    """A transport, the memory that it serves (one array per region, block first), and its results."""

    transport: Transport
    memory: list[np.ndarray]
    results: queue.SimpleQueue[PullResult] = field(default_factory=queue.SimpleQueue)

    def pull(
        self, source: str, source_blocks: BlockIds, target_blocks: BlockIds, timeout_s: float = PLENTY_S
    ) -> PullInFlight:
        return self.transport.pull(
            source, source_blocks, target_blocks, timeout_s, on_done=self.results.put, on_released=no_release
        )

    def pulled(self, *args: Any, **kwargs: Any) -> PullResult:
        self.pull(*args, **kwargs)
        return self.results.get(timeout=PLENTY_S)


def memory_of(seed: int, *, blocks: int = BLOCKS, scattered: bool = False) -> list[np.ndarray]:
    """Random bytes, one array per region; with `scattered`, a block is not contiguous."""
    draw = np.random.default_rng(seed)
    regions = []
    for rows, columns in CHUNK_SHAPES:
        shape = (rows, blocks, columns) if scattered else (blocks, rows, columns)
        array = draw.integers(0, 2**15, size=shape, dtype=np.int16)
        regions.append(array.transpose(1, 0, 2) if scattered else array)
    return regions


@dataclass(frozen=True)
class Kind:
    scheme: str
    staged: bool
    lanes: int = 1
    """Connections that a pull of several blocks takes."""

    def options(self, folder: Path, **rest: Any) -> SocketOptions:
        where: dict[str, Any] = {"folder": folder, "tcp_host": None} if self.scheme == "unix" else {}
        return SocketOptions(**where, **rest)

    def pool(self, memory: Sequence[np.ndarray], fingerprint: str) -> Pool:
        if self.staged:
            # A buffer of a few chunks, so that even these small pulls take many turns of the two buffers.
            tensors = [torch.from_numpy(array) for array in memory]
            return StagedPool(tensors, fingerprint=fingerprint, staging_bytes=9000)
        return MemoryPool.of_arrays(memory, fingerprint=fingerprint)


def finished(result: PullResult | None) -> PullResult:
    """What came of a pull that was waited for."""
    assert result is not None, "it is still going on"
    return result
