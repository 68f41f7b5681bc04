"""Two ends whose pools can be read where they are (CUDA IPC), on a stand-in for its driver over mapped files."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transport_ends import PLENTY_S, SECRET, finished

from llumnix.transport.cuda import CudaDriver
from llumnix.transport.mapped import MappedMemory
from llumnix.transport.memory import MemoryPool
from llumnix.transport.port import BlockIds, PullResult, TransportError
from llumnix.transport.sockets import SocketOptions, SocketTransport

BLOCKS, WORDS, LAYERS = 8, 32, 3


class Driver(CudaDriver):
    """Calls `copied` after each batch."""

    def __init__(self, library: str) -> None:
        super().__init__(library)
        self.fake: Any = ctypes.CDLL(library)
        self.copied: Callable[[], None] = lambda: None
        for counter in ("fake_opened", "fake_copies", "fake_batches"):
            ctypes.c_int.in_dll(self.fake, counter).value = 0

    def count(self, what: str) -> int:
        return ctypes.c_int.in_dll(self.fake, f"fake_{what}").value

    def copy(self, targets: Any, sources: Any, sizes: Any, stream: int) -> None:
        super().copy(targets, sources, sizes, stream)
        self.copied()

    def allocate(self, path: Path, words: int) -> torch.Tensor:
        self.fake.fake_allocate.restype = ctypes.c_void_p
        address = self.fake.fake_allocate(str(path).encode(), ctypes.c_size_t(8 * words))
        return torch.frombuffer((ctypes.c_char * (8 * words)).from_address(address), dtype=torch.int64)


class UnreadPool(MemoryPool):
    """Nothing of it may go through a socket."""

    def reading(self, blocks: BlockIds, until_s: float) -> Any:
        raise AssertionError("its bytes were sent")


class SentPool(MemoryPool):
    """Notes what goes through a socket, or is looked at."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.sent: list[list[int]] = []
        self.is_broken = False

    def reading(self, blocks: BlockIds, until_s: float) -> Any:
        self.sent.append([int(block) for block in blocks])
        if self.is_broken:
            raise TransportError("no memory left")
        yield from super().reading(blocks, until_s)

    writing = MemoryPool.reading


class MappedEnd:
    """Regions one after the other in one piece of device memory, as vLLM has layers."""

    def __init__(
        self,
        driver: Driver,
        folder: Path,
        fill: int,
        pool: type[MemoryPool] = UnreadPool,
        gpu: str = "GPU-1",
        named: bool = False,
        **options: Any,
    ) -> None:
        """`named`: between any two GPUs."""
        self.path = Path(f"/dev/shm/{folder.name[-20:]}-{fill}")
        self.memory = driver.allocate(self.path, LAYERS * BLOCKS * WORDS).view(LAYERS, BLOCKS, WORDS)
        self.memory[:] = torch.arange(LAYERS * BLOCKS * WORDS).view(LAYERS, BLOCKS, WORDS) + fill
        self.views = list(self.memory)
        self.pool: Any = pool.of_arrays(self.views, fingerprint="x")
        readers = [MappedMemory(self.views, driver, gpu=gpu, between_gpus=named)] if gpu or named else []
        where = SocketOptions(**{"folder": folder, "tcp_host": None} | options)
        self.transport = SocketTransport(self.pool, SECRET, where, readers)

    def pull(self, source: MappedEnd, sources: list[int], targets: list[int]) -> PullResult:
        pull = self.transport.pull(
            source.transport.address, sources, targets, PLENTY_S, on_done=lambda _: None, on_released=lambda: None
        )
        return finished(pull.wait(PLENTY_S))

    def has(self, source: MappedEnd, sources: list[int], targets: list[int]) -> bool:
        return torch.equal(self.memory[:, targets], source.memory[:, sources])
