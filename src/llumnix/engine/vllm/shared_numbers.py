"""Numbers of each front end, in memory that forks share."""

from __future__ import annotations

import mmap
from array import array

NOT_ACCEPTING = 2**31 - 1
"""Of connections, as in vLLM (entrypoints/launchers/launcher.py): more than anybody has, else others wait for it."""


def shared_numbers(count: int, value: int = 0) -> memoryview:
    numbers = memoryview(mmap.mmap(-1, 8 * count)).cast("q")
    numbers[:] = memoryview(array("q", [value] * count))
    return numbers
