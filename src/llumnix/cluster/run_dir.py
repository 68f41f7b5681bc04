"""The private folder of one server: its sockets, its lock, and the logs that nobody asked to keep.

The lock tells a folder in use from one that a killed launcher left behind; the next start removes the latter.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llumnix.engine.shared_memory import remove_shared_memory
from llumnix.errors import UsageError

_PREFIX = "llumnix-"
_LOCK = "lock"
_LONGEST_BASE = 40  # bytes; a socket's whole path may have 107, and engines make some with long names


@contextmanager
def private_run_dir(longest_base: int = _LONGEST_BASE) -> Iterator[Path]:
    """A fresh folder with mode 0700 and a short path; it and all that is in it goes at the end."""
    base = _base(longest_base)
    _sweep(base)
    path, lock = _create_locked(base)
    try:
        yield path
    finally:
        remove(path)
        os.close(lock)


def remove(folder: Path) -> None:
    """The folder, and the shared memory of the instances whose it was."""
    remove_shared_memory(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _base(longest: int) -> Path:
    for candidate in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        if candidate and len(candidate.encode()) <= longest and os.access(candidate, os.W_OK | os.X_OK):
            return Path(candidate)
    raise UsageError("No folder for sockets can be written to; set TMPDIR to one with a short path.")


def _create_locked(base: Path) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        try:
            lock = _lock(path)
        except FileNotFoundError:
            continue  # another launcher swept the folder before it was locked
        if lock is not None:
            return path, lock


def _lock(path: Path) -> int | None:
    """The descriptor of the held lock; None if somebody else holds it."""
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path / _LOCK).st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except BlockingIOError:
        pass
    except FileNotFoundError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _sweep(base: Path) -> None:
    """Removes the folders of launchers that were killed."""
    for path in base.glob(_PREFIX + "*"):
        try:
            if path.stat().st_uid != os.getuid() or not (path / _LOCK).exists():
                continue
            lock = _lock(path)
        except OSError:
            continue  # somebody else swept it at the same moment
        if lock is not None:
            remove(path)
            os.close(lock)
