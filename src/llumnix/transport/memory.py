"""A pool in host memory whose chunks the kernel can read and write where they are: no copy on either end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from llumnix.transport.pieces import block_ids, pieces_of
from llumnix.transport.port import Batches, BlockIds, PoolShape, TransportError

PIECES_AT_ONCE = 16 * 1024
"""Bound of one batch of pieces (256 KiB of iovecs), so that a huge request takes no huge array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Equally sized chunks of host memory: chunk `b` is `chunk_bytes` bytes at `base + b * stride`.

    `keep` is whatever owns the memory; holding it keeps the addresses valid.
    """

    base: int
    stride: int
    chunk_bytes: int
    keep: object

    @classmethod
    def of_array(cls, array: Any) -> Region:
        """The region of a numpy array or a CPU torch tensor of at least two dimensions, whose dimension 0 is the block.

        Raises TransportError when a block is not one contiguous piece of memory (see `staging` for those).
        """
        if isinstance(array, np.ndarray):
            base, stride, item = array.ctypes.data, array.strides[0], array.itemsize
            contiguous = array[0].flags.c_contiguous
        else:
            base, item = array.data_ptr(), array.element_size()
            stride, contiguous = array.stride(0) * item, array[0].is_contiguous()
        if not contiguous:
            raise TransportError("a block of this array is not contiguous in memory, so it cannot be sent as it lies")
        return cls(base=base, stride=stride, chunk_bytes=item * int(np.prod(array.shape[1:])), keep=array)


class MemoryPool:
    """A `Pool` over regions of host memory."""

    streams = 1
    """The engine computes on the processors that would copy."""

    def __init__(self, regions: Sequence[Region], *, num_blocks: int, fingerprint: str) -> None:
        self.regions = tuple(regions)
        self.shape = PoolShape(
            fingerprint=fingerprint,
            num_blocks=num_blocks,
            chunk_bytes=tuple(region.chunk_bytes for region in self.regions),
        )
        self._bases = np.array([region.base for region in self.regions], dtype=np.uint64)
        self._strides = np.array([region.stride for region in self.regions], dtype=np.uint64)
        self._lengths = np.array(self.shape.chunk_bytes, dtype=np.uint64)

    @classmethod
    def of_arrays(cls, arrays: Sequence[Any], *, fingerprint: str) -> Self:
        """The pool of numpy arrays or CPU tensors, one per region, with the block as dimension 0.

        Raises TransportError when they differ in the number of blocks, or a block is not contiguous.
        """
        counts = {int(array.shape[0]) for array in arrays}
        if len(counts) != 1:
            raise TransportError(f"the regions of a pool need one number of blocks, not {sorted(counts)}")
        return cls([Region.of_array(array) for array in arrays], num_blocks=counts.pop(), fingerprint=fingerprint)

    def reading(self, blocks: BlockIds, until_s: float) -> Batches:
        """See `Pool`. Raises ValueError for ids that are not blocks of the pool."""
        ids = block_ids(blocks, self.shape.num_blocks)
        if not len(ids):
            return
        regions_at_once = max(1, PIECES_AT_ONCE // len(ids))
        for first in range(0, len(self.regions), regions_at_once):
            part = slice(first, first + regions_at_once)
            addresses = (self._bases[part, None] + self._strides[part, None] * ids).ravel()
            yield pieces_of(addresses, np.repeat(self._lengths[part], len(ids)))

    writing = reading  # the kernel writes into the blocks themselves: nothing is left to do after a batch
