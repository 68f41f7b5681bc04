"""Blocks between two processes on one machine without the host between them: the source's memory is mapped here, and
the device copies from there, in a stream of its own (CUDA IPC). Memory cannot be mapped from another container, or
where devices cannot reach each other.
"""

from __future__ import annotations

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

BATCH_BYTES = 256 << 20
"""Copied between two looks whether the pull is still wanted: under a millisecond within a device."""


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
        self._peers = Peers(self._open, self._close)

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
            try:
                done.wait()  # for those of a batch that could not be given whole, too
            finally:
                self._peers.give_back(source)
        return moved

    def forget(self, source: str) -> None:
        """See `Reader`."""
        self._peers.forget(source)

    def close(self) -> None:
        """See `Reader`."""
        self._peers.close()

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
        try:
            with self._side.running():
                return self._driver.open(handle)
        except TransportError as error:
            raise CannotRead(str(error)) from error

    def _close(self, base: int) -> None:
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
