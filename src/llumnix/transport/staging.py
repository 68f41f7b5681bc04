"""A pool over torch tensors that the kernel cannot read where they lie: on a GPU, or with scattered blocks.

Blocks are gathered into a bounded buffer on the device, copied to one in host memory and sent from there; received
bytes are scattered the other way. Large chunks that are one run of bytes each are copied to the host at once, by the
device's copy engines and without its processors. Two buffers per stream of bytes take turns, so that copying and
sending overlap. All are made with the pool: an engine leaves hardly any memory of its device free, and a pull takes
none. A chunk travels as the bytes of `tensor[block].contiguous()`, whatever its layout in memory, so a staged and a
plain pool interoperate.

On a GPU the buffers are pinned and the copies run on a stream of their own. Two facts make that
safe without ordering against the engine's streams: a block is named for reading only when its tokens are settled,
which the engine learns from outputs that were computed after the block was written; and target blocks are read only
by work that is launched after `on_done`, which comes after the last copy's event. The tests run this code on
CPU tensors and on a double of the driver; `benchmarks/gpu_kv.py` runs it on a GPU (docs/measure/gpu.md).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llumnix.transport.device import Moment, SideStream, told
from llumnix.transport.memory import MemoryPool
from llumnix.transport.pieces import block_ids
from llumnix.transport.port import Batches, BlockIds, IoVecs, Pool, PoolShape, TransportError

if TYPE_CHECKING:
    import torch

STAGING_BYTES = 16 << 20
"""Size of one staging buffer (or of one chunk, where that is larger). With fewer turns a pull waits less often for the
GIL, which an engine's main thread hardly leaves."""
MAX_STREAMS = 2
"""Streams of bytes per direction that have buffers at once; more wait for theirs."""
TURNS = 4
"""Of a small pull, so that copying and sending overlap in it, too."""
TURN_BYTES = 1 << 20
"""At least, of a turn."""
DIRECT_BYTES = 1 << 20
"""Chunks from this size on are worth a copy of their own."""
ALIGNMENT = 64
"""Of a part in a staging buffer: enough for a view as any data type."""


def pool_of(tensors: Sequence[torch.Tensor], *, fingerprint: str) -> Pool:
    """The pool for tensors with the block as dimension 0: served in place where the kernel can do so, else staged."""
    if all(tensor.device.type == "cpu" and tensor[0].is_contiguous() for tensor in tensors):
        return MemoryPool.of_arrays(tensors, fingerprint=fingerprint)
    return StagedPool(tensors, fingerprint=fingerprint)


class _Part(NamedTuple):
    """Some consecutive ids of a request, of one region, at `offset` of a staging buffer."""

    region: int
    first: int
    last: int
    offset: int
    size: int


class _Buffer:
    """Memory for one batch, on the device and on the host, and the moment from which on its copies are complete."""

    def __init__(self, memory: torch.Tensor, on_device: torch.Tensor, device: torch.device) -> None:
        self.memory = memory
        self.on_device = on_device
        copied = Moment(device)
        self.record = copied.record
        self.wait = copied.wait
        """Returns when the copies before the last `record` are complete."""

    def pieces(self, parts: Sequence[_Part]) -> IoVecs:
        base = self.memory.data_ptr()
        return np.array([(base + part.offset, part.size) for part in parts], dtype=np.uint64)


class _Stream:
    """What one stream of bytes needs: two buffers, and its block ids on both sides."""

    def __init__(self, buffers: tuple[_Buffer, _Buffer], num_blocks: int, device: torch.device) -> None:
        import torch

        self.buffers = buffers
        self.host_ids = torch.empty(num_blocks, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.ids = torch.empty(num_blocks, dtype=torch.int64, device=device)


class StagedPool:
    """A `Pool` over torch tensors on one device, one per region, with the block as dimension 0."""

    streams = MAX_STREAMS

    def __init__(
        self, tensors: Sequence[torch.Tensor], *, fingerprint: str, staging_bytes: int = STAGING_BYTES
    ) -> None:
        """Raises TransportError when the tensors differ in device or number of blocks, or memory for buffers lacks.

        Nobody may use block 0 meanwhile: it is copied out and back once, so that no pull is the first to load what
        that takes."""

        devices = {tensor.device for tensor in tensors}
        counts = {tensor.shape[0] for tensor in tensors}
        if len(devices) != 1 or len(counts) != 1:
            raise TransportError("the tensors of a pool need one device and one number of blocks")
        self._tensors = tuple(tensors)
        self._device = devices.pop()
        self.shape = PoolShape(
            fingerprint=fingerprint,
            num_blocks=counts.pop(),
            chunk_bytes=tuple(tensor.element_size() * math.prod(tensor.shape[1:]) for tensor in tensors),
        )
        self._buffer_bytes = _aligned(max(staging_bytes, *self.shape.chunk_bytes))
        self._side = SideStream(self._device)
        # One bound per direction, and a puller takes its buffers before the source takes some for it
        # (see pulling.py): whoever holds buffers can go on, so no ring of instances waits for itself.
        self._readers_left = threading.BoundedSemaphore(MAX_STREAMS)
        self._writers_left = threading.BoundedSemaphore(MAX_STREAMS)
        self._direct = all(tensor[0].is_contiguous() for tensor in tensors) and (
            min(self.shape.chunk_bytes) >= DIRECT_BYTES
        )
        self.bytes_on_device = 0
        """Set aside for buffers."""
        with told():
            self._free = self._make_streams()
        self._warm_up()

    def _make_streams(self) -> list[_Stream]:
        """Of one piece of memory on each side."""
        import torch

        size, count = self._buffer_bytes, 2 * 2 * MAX_STREAMS
        on_host = torch.empty(count, size, dtype=torch.uint8, pin_memory=self._device.type == "cuda").unbind()
        size = 0 if self._direct else size
        self.bytes_on_device = count * size
        on_device = torch.empty(count, size, dtype=torch.uint8, device=self._device).unbind()
        buffers = [_Buffer(*memory, self._device) for memory in zip(on_host, on_device, strict=True)]
        pairs = zip(buffers[::2], buffers[1::2], strict=True)
        return [_Stream(pair, self.shape.num_blocks, self._device) for pair in pairs]

    def _warm_up(self) -> None:
        stream = self._free[0]
        buffer = stream.buffers[0]
        self._name(np.zeros(1, np.int64), stream)
        for parts in self._batches(1):
            self._gather(stream, parts, buffer)
            buffer.wait()
            self._scatter(stream, parts, buffer)
            buffer.wait()

    def reading(self, blocks: BlockIds, until_s: float) -> Batches:
        """See `Pool`. Raises ValueError for ids that are not blocks of the pool, or more than it has."""
        numbers = self._numbers(blocks)
        with self._stream_of_bytes(self._readers_left, until_s) as stream:
            self._name(numbers, stream)
            ready: tuple[_Buffer, list[_Part]] | None = None
            for turn, parts in enumerate(self._batches(len(numbers))):
                buffer = stream.buffers[turn % 2]  # sent before: its batch was asked on from
                self._gather(stream, parts, buffer)
                if ready is not None:
                    yield from _sent(*ready)
                ready = buffer, parts
            if ready is not None:
                yield from _sent(*ready)

    def writing(self, blocks: BlockIds, until_s: float) -> Batches:
        """See `Pool`. Raises ValueError for ids that are not blocks of the pool, or more than it has."""
        numbers = self._numbers(blocks)
        with self._stream_of_bytes(self._writers_left, until_s) as stream:
            self._name(numbers, stream)
            for turn, parts in enumerate(self._batches(len(numbers))):
                buffer = stream.buffers[turn % 2]
                buffer.wait()
                yield buffer.pieces(parts)
                self._scatter(stream, parts, buffer)

    def _numbers(self, blocks: BlockIds) -> NDArray[np.int64]:
        numbers = block_ids(blocks, self.shape.num_blocks).astype(np.int64)
        if len(numbers) > self.shape.num_blocks:
            raise ValueError(f"{len(numbers)} blocks are named, the pool has {self.shape.num_blocks}")
        return numbers

    def _name(self, numbers: NDArray[np.int64], stream: _Stream) -> None:
        """Puts the ids where the copies read them."""
        import torch

        with self._side.running():
            stream.host_ids[: len(numbers)] = torch.from_numpy(numbers)
            stream.ids[: len(numbers)].copy_(stream.host_ids[: len(numbers)], non_blocking=True)
            stream.buffers[0].record()

    def _batches(self, count: int) -> Iterator[list[_Part]]:
        """All chunks of a request of `count` blocks in the order of the wire, as parts that each time fill a buffer, or
        as much of it as a turn takes."""
        turn = max(TURN_BYTES, *self.shape.chunk_bytes, count * self.shape.block_bytes // TURNS)
        size_of_turn = min(self._buffer_bytes, _aligned(turn))
        parts: list[_Part] = []
        offset = 0
        for region, chunk in enumerate(self.shape.chunk_bytes):
            first = 0
            while first < count:
                room = (size_of_turn - offset) // chunk
                if room == 0:
                    yield parts
                    parts, offset = [], 0
                    continue
                last = min(count, first + room)
                size = (last - first) * chunk
                parts.append(_Part(region, first, last, offset, size))
                offset = _aligned(offset + size)
                first = last
        if parts:
            yield parts

    def _gather(self, stream: _Stream, parts: Sequence[_Part], buffer: _Buffer) -> None:
        import torch

        with self._side.running():
            if self._direct:
                for chunk, staged in self._chunks(stream, parts, buffer):
                    staged.copy_(chunk, non_blocking=True)
            else:
                for part in parts:
                    some, tensor = stream.ids[part.first : part.last], self._tensors[part.region]
                    torch.index_select(tensor, 0, some, out=self._staged(part, buffer.on_device))
                size = parts[-1].offset + parts[-1].size
                buffer.memory[:size].copy_(buffer.on_device[:size], non_blocking=True)
            buffer.record()

    def _scatter(self, stream: _Stream, parts: Sequence[_Part], buffer: _Buffer) -> None:
        with self._side.running():
            if self._direct:
                for chunk, staged in self._chunks(stream, parts, buffer):
                    chunk.copy_(staged, non_blocking=True)
            else:
                size = parts[-1].offset + parts[-1].size
                buffer.on_device[:size].copy_(buffer.memory[:size], non_blocking=True)
                for part in parts:
                    some, tensor = stream.ids[part.first : part.last], self._tensors[part.region]
                    tensor.index_copy_(0, some, self._staged(part, buffer.on_device))
            buffer.record()

    def _chunks(
        self, stream: _Stream, parts: Sequence[_Part], buffer: _Buffer
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Each chunk of a batch, and its place in the buffer on the host."""
        for part in parts:
            blocks = stream.host_ids[part.first : part.last].tolist()
            for block, staged in zip(blocks, self._staged(part, buffer.memory), strict=True):
                yield self._tensors[part.region][block], staged

    def _staged(self, part: _Part, memory: torch.Tensor) -> torch.Tensor:
        """The bytes of `part` in a buffer, seen as chunks of its region."""
        tensor = self._tensors[part.region]
        flat = memory[part.offset : part.offset + part.size].view(tensor.dtype)
        return flat.view(part.last - part.first, *tensor.shape[1:])

    @contextmanager
    def _stream_of_bytes(self, left: threading.BoundedSemaphore, until_s: float) -> Generator[_Stream]:
        """Lends two buffers; no copy from or to them is under way when they come back."""
        if not left.acquire(timeout=max(until_s - time.monotonic(), 0)):
            raise TimeoutError("no staging buffer came free in time")
        stream = self._free.pop()
        try:
            yield stream
        finally:
            try:
                for buffer in stream.buffers:
                    buffer.wait()
            finally:
                self._free.append(stream)
                left.release()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _sent(buffer: _Buffer, parts: Sequence[_Part]) -> Batches:
    buffer.wait()
    yield buffer.pieces(parts)
