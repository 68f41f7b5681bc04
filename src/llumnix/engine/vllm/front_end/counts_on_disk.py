"""Metrics of several front ends: each counts into files that all read (prometheus_client's multi-process mode).

They are mapped, and made without any room on the disk. Whoever then touches a page for which a full disk has none is
killed (SIGBUS), and so would be the front end that takes its place.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

_FIRST_BYTES = 1 << 16
"""As large as prometheus_client makes a new file."""
_BESIDE_A_NAME = 4 + 8 + 16
"""Bytes at most: its length, padding, value and time."""


class CountsOnDisk(MmapedDict):
    """A file that has its room before it is written to. Where there is none, memory takes its place: then this front
    end goes on, and what it counts from then on is seen by nobody."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        super().__init__(filename if read_mode else _with_room(filename), read_mode)

    def _init_value(self, key: str) -> None:
        """vLLM's names have labels that come while it serves. Relies on `_f`, `_m`, `_used` and `_capacity`."""
        size = self._capacity
        while self._used + len(key.encode()) + _BESIDE_A_NAME > size:
            size *= 2
        if size > self._capacity:
            try:
                os.posix_fallocate(self._f.fileno(), 0, size)
            except OSError:
                self._move_to_memory()
        super()._init_value(key)

    def _move_to_memory(self) -> None:
        memory = os.fdopen(_memory(), "r+b")
        memory.truncate(self._capacity)
        kept = mmap.mmap(memory.fileno(), self._capacity)
        kept[: self._used] = self._m[: self._used]
        self._f.close()
        self._f, self._m = memory, kept


def count_into_files_with_room() -> None:
    """In a front end, before it counts anything. There is no other way to say so."""
    values.MmapedDict = CountsOnDisk  # type: ignore[attr-defined]


def _with_room(path: str) -> str:
    """Names a file that can be written to: this one, or one in memory."""
    try:
        with open(path, "ab") as file:
            os.posix_fallocate(file.fileno(), 0, max(_FIRST_BYTES, file.tell()))
    except OSError:
        with suppress(OSError):
            os.unlink(path)  # who reads all of them could make nothing of an empty one
        return f"/proc/self/fd/{_memory()}"
    return path


def _memory() -> int:
    return os.memfd_create("counts")
