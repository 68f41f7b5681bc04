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
from llumnix.transport.port import TransportError
from llumnix.transport.reader import CannotRead

if TYPE_CHECKING:
    import torch

BATCH_BYTES = 256 << 20
"""Copied between two looks whether the pull is still wanted: under a millisecond within a device."""
MAX_MAPPED = 64
"""Peers whose memory is mapped; the one that rested longest goes first."""


class MappedMemory:
    """A `Reader` between devices of one machine, or within one."""

    scheme = "cuda"
    between_machines = False

    def __init__(self, tensors: Sequence[torch.Tensor], driver: CudaDriver) -> None:
        """Tensors with the block as dimension 0, all in one allocation. Raises TransportError when that cannot be
        offered, or blocks are no runs of bytes."""
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
        self._lock = threading.Lock()
        self._opened: dict[bytes, int] = {}
        self._in_use: dict[bytes, int] = {}

    def pull(
        self, mapping: Mapping, sources: NDArray[np.uint64], targets: NDArray[np.uint64], go_on: Callable[[], None]
    ) -> int:
        """See `Reader`. All is over when it returns or raises."""
        base = self._open(mapping.handle)
        done = Moment(self._device)
        moved = 0
        try:
            for batch in self._batches(base, mapping, sources, targets):
                go_on()
                with self._side.running():
                    try:
                        self._driver.copy(*batch, self._side.handle)
                    finally:
                        done.record()
                done.wait()
                moved += int(batch[2].sum())
        finally:
            done.wait()  # for those of a batch that could not be given whole, too
            self._release(mapping.handle)
        return moved

    def forget(self, handle: bytes) -> None:
        """See `Reader`. Unmaps it, unless it is being read."""
        with self._lock:
            if handle in self._opened and not self._in_use.get(handle):
                self._close(handle)

    def close(self) -> None:
        """See `Reader`."""
        with self._lock:
            for handle in list(self._opened):
                self._close(handle)

    def _batches(
        self, base: int, mapping: Mapping, sources: NDArray[np.uint64], targets: NDArray[np.uint64]
    ) -> list[tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]]:
        places = zip(self._regions, mapping.regions, strict=True)
        runs = [
            _runs(region.base + targets * region.stride, base + start + sources * stride, region.chunk_bytes)
            for region, (start, stride) in places
        ]
        all_to, all_from, sizes = (np.concatenate(each) for each in zip(*runs, strict=True))
        turns = np.searchsorted(np.cumsum(sizes), np.arange(BATCH_BYTES, int(sizes.sum()), BATCH_BYTES))
        cuts = np.unique(turns + 1)
        split = (np.split(each, cuts) for each in (all_to, all_from, sizes))
        return [batch for batch in zip(*split, strict=True) if len(batch[0])]

    def _open(self, handle: bytes) -> int:
        with self._lock:
            if handle not in self._opened:
                self._make_room()
                try:
                    with self._side.running():
                        self._opened[handle] = self._driver.open(handle)
                except TransportError as error:
                    raise CannotRead(str(error)) from error
            self._opened[handle] = self._opened.pop(handle)  # the last one in line to go
            self._in_use[handle] = self._in_use.get(handle, 0) + 1
            return self._opened[handle]

    def _release(self, handle: bytes) -> None:
        with self._lock:
            self._in_use[handle] -= 1
            if not self._in_use[handle]:
                del self._in_use[handle]

    def _make_room(self) -> None:
        resting = [handle for handle in self._opened if handle not in self._in_use]
        if len(self._opened) >= MAX_MAPPED and resting:
            self._close(resting[0])

    def _close(self, handle: bytes) -> None:
        base = self._opened.pop(handle)
        with self._side.running():
            self._driver.close(base)


def _runs(
    targets: NDArray[np.uint64], sources: NDArray[np.uint64], size: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """Copies of a region, with neighbours at both ends as one."""
    step = np.uint64(size)
    begins = np.ones(len(targets), dtype=bool)
    begins[1:] = (targets[1:] != targets[:-1] + step) | (sources[1:] != sources[:-1] + step)
    first = np.flatnonzero(begins)
    counts = np.diff(np.append(first, len(targets)))
    return targets[first], sources[first], counts.astype(np.uint64) * step
