"""The file of a unix socket. The system leaves it where it is when nobody has the socket any more."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable


def remover(path: str | None) -> Callable[[], None]:
    """Removes the file that is there now, once it is called, unless another server's is there by then. Nothing without
    a path."""
    made = None if path is None else _identity(path)

    def remove() -> None:
        if path is not None and made is not None and _identity(path) == made:
            with contextlib.suppress(OSError):  # the folder is not ours to write to any more
                os.unlink(path)

    return remove


def _identity(path: str) -> tuple[int, int, int] | None:
    """With the time, for the number of a file that is gone may be given to the next one."""
    try:
        there = os.lstat(path)
    except OSError:
        return None
    return there.st_dev, there.st_ino, there.st_mtime_ns
