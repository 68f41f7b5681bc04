"""Blocks between two processes on one machine without the host between them: the source's memory is mapped here, and
the device copies from there, in a stream of its own (CUDA IPC). Memory cannot be mapped from another container, or
where devices cannot reach each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llumnix.transport.connection import Mapping
from llumnix.transport.cuda import CudaDriver
from llumnix.transport.device import Moment, SideStream
from llumnix.transport.memory import Region
from llumnix.transport.peers import Peers
from llumnix.transport.port import TransportError
from llumnix.transport.reader import CannotRead

if TYPE_CHECKING:
    import torch

    from llumnix.transport.copy_kernel import CopyKernel

BATCH_BYTES = 256 << 20
"""Copied between two looks whether the pull is still wanted, and one run more at most: under a millisecond within a
device."""
RUN_BYTES = 64 << 20
"""A longer one is several: no launch of our kernel takes more than 1 GiB of a run, and each run of a launch is given as
many programs as the longest."""
BATCH_RUNS = 1 << 14
"""Copies in a batch."""
SMALL_BYTES = 4 << 20
"""Runs below this, on the mean of a batch, are copied by a kernel of ours: the driver takes its time for each."""

_Batch = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]
"""Addresses to copy to and from, and how many bytes."""


class MappedMemory:
    """A `Reader` between devices of one machine, or within one."""

    scheme = "cuda"
    between_machines = False

    def __init__(
        self, tensors: Sequence[torch.Tensor], driver: CudaDriver, *, gpu: str = "", between_gpus: bool
    ) -> None:
        """Tensors with the block as dimension 0, all in one allocation on that GPU, as its UUID says. Raises
        TransportError when that cannot be offered, blocks are no runs of bytes, or it would read nobody."""
        if not (gpu or between_gpus):
            raise TransportError("which GPU this is cannot be told, or it is divided (MIG)")
        self.gpu, self.between_gpus = gpu, between_gpus
        self._driver = driver
        self._device = tensors[0].device
        self._side = SideStream(self._device)
        self._regions = [Region.of_array(tensor) for tensor in tensors]
        with self._side.running():
            shared = [driver.share(region.base) for region in self._regions]
        if len({handle for handle, _ in shared}) != 1:
            raise TransportError("the regions of the pool are not in one piece of memory")
        places = tuple((offset, region.stride) for (_, offset), region in zip(shared, self._regions, strict=True))
        self.offer = Mapping(shared[0][0], places)
        columns = zip(*((each.base, each.stride, each.chunk_bytes) for each in self._regions), strict=True)
        self._bases, self._strides, self._chunks = (np.array(column, dtype=np.uint64) for column in columns)
        self._peers = Peers(self._open, self._close)
        self._kernel = _kernel(self._device, self._side)
        self._turn = threading.Lock()
        """A batch at a time: they share the kernel's list of copies, and the moment when it is done."""
        self._done = Moment(self._device)

    def pull(
        self,
        source: str,
        mapping: Mapping,
        sources: NDArray[np.uint64],
        targets: NDArray[np.uint64],
        go_on: Callable[[], None],
    ) -> int:
        """See `Reader`. All is over when it returns or raises."""
        base = self._peers.take(source, mapping.handle)
        moved = 0
        try:
            for batch in self._batches(base, mapping, sources, targets):
                go_on()
                self._copy(batch)
                moved += int(batch[2].sum())
        finally:
            self._peers.give_back(source)
        return moved

    def _copy(self, batch: _Batch) -> None:
        """Also when it fails, what the device was given of it is over."""
        with self._turn:
            try:
                with self._side.running():
                    try:
                        self._give(batch)
                    finally:
                        self._done.record()
            finally:
                self._done.wait()

    def _give(self, batch: _Batch) -> None:
        kernel, (_, _, sizes) = self._kernel, batch
        if kernel is not None and sizes.mean() < SMALL_BYTES and kernel.takes(*batch):
            kernel.copy(*batch)
        else:
            self._driver.copy(*batch, self._side.handle)

    def forget(self, source: str) -> None:
        """See `Reader`."""
        self._peers.forget(source)

    def close(self) -> None:
        """See `Reader`."""
        self._peers.close()

    def _batches(
        self, base: int, mapping: Mapping, sources: NDArray[np.uint64], targets: NDArray[np.uint64]
    ) -> list[_Batch]:
        all_to, all_from, sizes = self._runs(base, mapping, sources, targets)
        turns = np.searchsorted(np.cumsum(sizes), np.arange(BATCH_BYTES, int(sizes.sum()), BATCH_BYTES))
        cuts = np.union1d(turns + 1, np.arange(BATCH_RUNS, len(sizes), BATCH_RUNS))
        split = (np.split(each, cuts) for each in (all_to, all_from, sizes))
        return [batch for batch in zip(*split, strict=True) if len(batch[0])]

    def _runs(self, base: int, mapping: Mapping, sources: NDArray[np.uint64], targets: NDArray[np.uint64]) -> _Batch:
        """Of all regions at once, since a request stands still meanwhile: a row each, a column for each block. What are
        neighbours at both ends is one copy."""
        starts, strides = np.array(mapping.regions, dtype=np.uint64).T
        chunks = self._chunks[:, None]
        to = self._bases[:, None] + targets * self._strides[:, None]
        of = np.uint64(base) + starts[:, None] + sources * strides[:, None]
        begins = np.ones(to.shape, dtype=bool)
        begins[:, 1:] = (to[:, 1:] != to[:, :-1] + chunks) | (of[:, 1:] != of[:, :-1] + chunks)
        first = np.flatnonzero(begins)
        counts = np.diff(np.append(first, begins.size)).astype(np.uint64)
        return _cut(to.ravel()[first], of.ravel()[first], counts * self._chunks[first // len(targets)])

    def _open(self, handle: bytes) -> int:
        try:
            with self._side.running():
                return self._driver.open(handle)
        except TransportError as error:
            raise CannotRead(str(error)) from error

    def _close(self, base: int) -> None:
        with self._side.running():
            self._driver.close(base)


def _cut(to: NDArray[np.uint64], of: NDArray[np.uint64], sizes: NDArray[np.uint64]) -> _Batch:
    """The same copies, none longer than RUN_BYTES."""
    longest = np.uint64(RUN_BYTES)
    parts = -(-sizes.astype(np.int64) // RUN_BYTES)
    run = np.repeat(np.arange(len(sizes)), parts)
    begins = (np.arange(len(run)) - np.repeat(np.cumsum(parts) - parts, parts)).astype(np.uint64) * longest
    return to[run] + begins, of[run] + begins, np.minimum(sizes[run] - begins, longest)


def _kernel(device: torch.device, side: SideStream) -> CopyKernel | None:
    """None without Triton, and on a CPU."""
    if device.type != "cuda":
        return None
    try:
        from llumnix.transport.copy_kernel import CopyKernel
    except ImportError:
        return None
    with side.running():
        return CopyKernel(device, BATCH_RUNS)
