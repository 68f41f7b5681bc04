"""Appending to files that others read line by line: a disk that is full for a while leaves no half line in them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


def size_of(path: Path) -> int:
    """0 for a file that there is not."""
    return path.stat().st_size if path.exists() else 0


def private(path: str, flags: int) -> int:
    """The `opener` of a file that no other user may read."""
    return os.open(path, flags, 0o600)


def append_whole(path: Path, content: bytes, opener: Callable[[str, int], int] | None = None) -> int:
    """Returns how large the file is then. Raises OSError if it cannot be written, and leaves it as large as it was."""
    size = size_of(path)
    try:
        with open(path, "ab", opener=opener) as file:
            file.write(content)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise
    return size + len(content)
