"""Scattered copies within what a device reaches, all in one launch.

The driver's own copies take a device some six microseconds each, however small (an H200): in chunks of 256 KiB, as a
layer of LLaMA-7B has them, that is 50 GB/s where its memory does 2,000.

Importing this needs Triton, which a GPU build of PyTorch brings.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

ALIGNMENT = 16
"""Of addresses and sizes, in bytes: what a thread moves at once."""
_PROGRAM_WORDS = 2048
"""Of 8 bytes, that one program copies."""
_WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]
def _copy(runs: tl.tensor, WORDS: tl.constexpr) -> None:  # noqa: N803 as Triton has them
    """`runs` has a row of three words for each: the address to write to, the one to read from, how many words."""
    row = runs + tl.program_id(0) * 3
    words = tl.multiple_of(tl.load(row + 2), 2)
    at = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    there = at < words
    target = tl.multiple_of(tl.load(row).to(tl.pointer_type(tl.int64)), 16)
    source = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(tl.int64)), 16)
    tl.store(target + at, tl.load(source + at, mask=there), mask=there)


class CopyKernel:
    """For one copy after the other: `copy` may be called again when what it gave the stream before is over."""

    def __init__(self, device: torch.device, most_runs: int) -> None:
        """Compiles it, in the current stream of the device. `most_runs`: in one go."""
        on_host = torch.zeros(most_runs, 3, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._runs_on_host = on_host
        self._runs = torch.zeros(most_runs, 3, dtype=torch.int64, device=device)
        self._rows: NDArray[np.uint64] = on_host.numpy().view(np.uint64)
        place = np.array([self._runs.data_ptr()], dtype=np.uint64)
        self.copy(place, place, np.array([ALIGNMENT], dtype=np.uint64))

    @staticmethod
    def takes(targets: NDArray[np.uint64], sources: NDArray[np.uint64], sizes: NDArray[np.uint64]) -> bool:
        """Whether these begin and end where it can copy them."""
        return not np.bitwise_or.reduce(targets | sources | sizes) % ALIGNMENT

    def copy(self, targets: NDArray[np.uint64], sources: NDArray[np.uint64], sizes: NDArray[np.uint64]) -> None:
        """Gives the current stream these copies, of `sizes` bytes from addresses to addresses."""
        words = sizes // 8
        count = len(words)
        self._rows[:count] = np.stack((targets, sources, words), axis=1)
        self._runs[:count].copy_(self._runs_on_host[:count], non_blocking=True)
        programs = (count, -(-int(words.max()) // _PROGRAM_WORDS))
        _copy[programs](self._runs, WORDS=_PROGRAM_WORDS, num_warps=_WARPS)
