"""A pool over torch tensors that the kernel cannot read where they lie: on a GPU, or with scattered blocks.

Blocks are gathered into a bounded buffer on the device, copied to one in host memory and sent from there; received
bytes are scattered the other way. Two buffers per stream of bytes take turns, so that gathering and sending overlap.
All are made with the pool: an engine leaves hardly any memory of its device free, and a pull takes none. A chunk
travels as the bytes of `tensor[block].contiguous()`, whatever its layout in memory, so engines with different layouts
interoperate, and so do a staged and a plain pool.

On a GPU the buffers are pinned and the copies run on a stream of their own. Two facts make that
safe without ordering against the engine's streams: a block is named for reading only when its tokens are settled,
which the engine learns from outputs that were computed after the block was written; and target blocks are read only
by work that is launched after `on_done`, which comes after the last copy's event. The tests run this code on
CPU tensors and on a double of the driver; the branches for a GPU (pinning, stream, events) have not been run on one.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llumnix.transport.memory import MemoryPool
from llumnix.transport.pieces import block_ids
from llumnix.transport.port import Batches, BlockIds, IoVecs, Pool, PoolShape, TransportError

if TYPE_CHECKING:
    import torch

STAGING_BYTES = 4 << 20
"""Size of one staging buffer (or of one chunk, where that is larger)."""
MAX_STREAMS = 4
"""Streams of bytes per direction that have buffers at once; more wait for theirs."""
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


@contextmanager
def _told() -> Generator[None]:
    """torch's errors (no memory left, a fault of the device) as ones of the transport: a pull ends, no engine."""
    try:
        yield
    except RuntimeError as error:
        first, *_ = str(error).split("\n")
        raise TransportError(f"torch cannot copy blocks: {first}") from error


class _Buffer:
    """Memory for one batch, on the device and on the host, and the event after which its copies are complete."""

    def __init__(self, size: int, device: torch.device) -> None:
        import torch

        on_gpu = device.type == "cuda"
        self.memory = torch.empty(size, dtype=torch.uint8, pin_memory=on_gpu)
        self.on_device = torch.empty(size, dtype=torch.uint8, device=device)
        # Blocking: else who waits keeps a core busy, and the driver's lock from those who launch.
        self._event: Any = torch.cuda.Event(blocking=True) if on_gpu else None  # type: ignore[no-untyped-call]

    def record(self) -> None:
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Returns when the copies before the last `record` are complete (with the GIL released)."""
        if self._event is not None:
            with _told():
                self._event.synchronize()

    def pieces(self, parts: Sequence[_Part]) -> IoVecs:
        base = self.memory.data_ptr()
        return np.array([(base + part.offset, part.size) for part in parts], dtype=np.uint64)


class _Stream:
    """What one stream of bytes needs: two buffers, and its block ids on both sides."""

    def __init__(self, size: int, num_blocks: int, device: torch.device) -> None:
        import torch

        self.buffers = _Buffer(size, device), _Buffer(size, device)
        self.host_ids = torch.empty(num_blocks, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.ids = torch.empty(num_blocks, dtype=torch.int64, device=device)


class StagedPool:
    """A `Pool` over torch tensors on one device, one per region, with the block as dimension 0."""

    def __init__(
        self, tensors: Sequence[torch.Tensor], *, fingerprint: str, staging_bytes: int = STAGING_BYTES
    ) -> None:
        """Raises TransportError when the tensors differ in device or number of blocks, or memory for buffers lacks.

        Nobody may use block 0 meanwhile: it is copied out and back once, so that no pull is the first to load what
        that takes."""
        import torch

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
        self._buffer_bytes = max(staging_bytes, *self.shape.chunk_bytes)
        on_gpu = self._device.type == "cuda"
        self._stream: Any = torch.cuda.Stream(self._device) if on_gpu else None  # type: ignore[no-untyped-call]
        # One bound per direction, and a puller takes its buffers before the source takes some for it
        # (see pulling.py): whoever holds buffers can go on, so no ring of instances waits for itself.
        self._readers_left = threading.BoundedSemaphore(MAX_STREAMS)
        self._writers_left = threading.BoundedSemaphore(MAX_STREAMS)
        with _told():
            self._free = [
                _Stream(self._buffer_bytes, self.shape.num_blocks, self._device) for _ in range(2 * MAX_STREAMS)
            ]
        self._warm_up()

    def _warm_up(self) -> None:
        stream = self._free[0]
        buffer = stream.buffers[0]
        self._name(np.zeros(1, np.int64), stream)
        for parts in self._batches(1):
            self._gather(stream.ids, parts, buffer)
            buffer.wait()
            self._scatter(stream.ids, parts, buffer)
            buffer.wait()

    def reading(self, blocks: BlockIds, until_s: float) -> Batches:
        """See `Pool`. Raises ValueError for ids that are not blocks of the pool, or more than it has."""
        numbers = self._numbers(blocks)
        with self._stream_of_bytes(self._readers_left, until_s) as stream:
            self._name(numbers, stream)
            ready: tuple[_Buffer, list[_Part]] | None = None
            for turn, parts in enumerate(self._batches(len(numbers))):
                buffer = stream.buffers[turn % 2]  # sent before: its batch was asked on from
                self._gather(stream.ids, parts, buffer)
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
                self._scatter(stream.ids, parts, buffer)

    def _numbers(self, blocks: BlockIds) -> NDArray[np.int64]:
        numbers = block_ids(blocks, self.shape.num_blocks).astype(np.int64)
        if len(numbers) > self.shape.num_blocks:
            raise ValueError(f"{len(numbers)} blocks are named, the pool has {self.shape.num_blocks}")
        return numbers

    def _name(self, numbers: NDArray[np.int64], stream: _Stream) -> None:
        """Puts the ids where the copies read them."""
        import torch

        with self._side_stream():
            stream.host_ids[: len(numbers)] = torch.from_numpy(numbers)
            stream.ids[: len(numbers)].copy_(stream.host_ids[: len(numbers)], non_blocking=True)
            stream.buffers[0].record()

    def _batches(self, count: int) -> Iterator[list[_Part]]:
        """All chunks of a request of `count` blocks in the order of the wire, as parts that fill a buffer each time."""
        parts: list[_Part] = []
        offset = 0
        for region, chunk in enumerate(self.shape.chunk_bytes):
            first = 0
            while first < count:
                room = (self._buffer_bytes - offset) // chunk
                if room == 0:
                    yield parts
                    parts, offset = [], 0
                    continue
                last = min(count, first + room)
                size = (last - first) * chunk
                parts.append(_Part(region, first, last, offset, size))
                offset = -(-(offset + size) // ALIGNMENT) * ALIGNMENT
                first = last
        if parts:
            yield parts

    # The mode and the stream below belong to the thread, so they are never held across a `yield`.

    def _gather(self, ids: torch.Tensor, parts: Sequence[_Part], buffer: _Buffer) -> None:
        import torch

        with self._side_stream():
            for part in parts:
                some = ids[part.first : part.last]
                torch.index_select(self._tensors[part.region], 0, some, out=self._staged(part, buffer))
            size = parts[-1].offset + parts[-1].size
            buffer.memory[:size].copy_(buffer.on_device[:size], non_blocking=True)
            buffer.record()

    def _scatter(self, ids: torch.Tensor, parts: Sequence[_Part], buffer: _Buffer) -> None:
        with self._side_stream():
            size = parts[-1].offset + parts[-1].size
            buffer.on_device[:size].copy_(buffer.memory[:size], non_blocking=True)
            for part in parts:
                some = ids[part.first : part.last]
                self._tensors[part.region].index_copy_(0, some, self._staged(part, buffer))
            buffer.record()

    def _staged(self, part: _Part, buffer: _Buffer) -> torch.Tensor:
        """The bytes of `part` in the buffer on the device, seen as chunks of its region."""
        tensor = self._tensors[part.region]
        flat = buffer.on_device[part.offset : part.offset + part.size].view(tensor.dtype)
        return flat.view(part.last - part.first, *tensor.shape[1:])

    @contextmanager
    def _side_stream(self) -> Generator[None]:
        import torch

        if self._stream is not None:  # else leaving the stream would make device 0 this thread's, and a context there
            torch.cuda.set_device(self._device)
        # vLLM makes its KV tensors in inference mode, and only there they may be written in place.
        stream = torch.cuda.stream(self._stream) if self._stream is not None else nullcontext()
        with _told(), torch.inference_mode(), stream:
            yield

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


def _sent(buffer: _Buffer, parts: Sequence[_Part]) -> Batches:
    buffer.wait()
    yield buffer.pieces(parts)
