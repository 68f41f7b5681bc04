"""The private folder of one server: its sockets, its lock, and the logs that nobody asked to keep.

The lock tells a folder in use from one that a killed launcher left behind. A janitor, a small process that sees its
owner end, removes the latter; should it be killed, too, the next start does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from llumnix.engine.shared_memory import remove_shared_memory
from llumnix.errors import UsageError, in_a_clause

_PREFIX = "llumnix-"
_LOCK = "lock"
_JANITOR_S = 10.0
_JANITOR_PAUSE_S = 0.3
_LONGEST_BASE = 40  # bytes; a socket's whole path may have 107, and engines make some with long names


@contextmanager
def private_run_dir(longest_base: int = _LONGEST_BASE) -> Iterator[Path]:
    """A fresh folder with mode 0700 and a short path; it and all that is in it goes at the end. Raises UsageError."""
    base = _base(longest_base)
    _sweep(base)
    try:
        path, lock = _create_locked(base)
        young = _keep_young(path)
        janitor = _hire_janitor(path)
    except OSError as error:
        raise UsageError(f"No folder for sockets can be made in {base}: {in_a_clause(error)}.") from error
    try:
        yield path
    finally:
        remove(path)
        os.close(young)
        os.close(lock)
        janitor.close()


def remove(folder: Path) -> None:
    """The folder, and the shared memory of the instances whose it was."""
    remove_shared_memory(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _base(longest: int) -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and _is_somebody_elses(runtime):
        runtime = None
    for candidate in (runtime, os.environ.get("TMPDIR"), "/tmp", "/var/tmp"):
        if candidate and len(candidate.encode()) <= longest and os.access(candidate, os.W_OK | os.X_OK):
            return Path(candidate)
    raise UsageError("No folder for sockets can be written to; set TMPDIR to one with a short path.")


def _is_somebody_elses(folder: str) -> bool:
    """After `su` the variable names the folder of who said it: root may write there, and all of it goes when that user
    logs out."""
    try:
        found = os.stat(folder)
    except OSError:
        return False
    return found.st_uid != os.getuid() and not found.st_mode & stat.S_ISVTX


def _create_locked(base: Path) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        try:
            lock = _lock(path)
        except FileNotFoundError:
            continue  # another launcher swept the folder before it was locked
        if lock is not None:
            return path, lock


def _keep_young(path: Path) -> int:
    """`systemd-tmpfiles` removes what is old in /tmp, but nothing in a folder that is locked itself."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # a file system that knows no locks
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return folder


def _lock(path: Path) -> int | None:
    """The descriptor of the held lock; None if somebody else holds it."""
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
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
        with contextlib.suppress(OSError):  # somebody else swept it at the same moment
            if _is_ours(path):
                _remove_if_unused(path)


def _is_ours(path: Path) -> bool:
    """Made by `private_run_dir`, for this user. A link is none of ours, nor is a folder that others may look into."""
    found = path.lstat()
    private = stat.S_ISDIR(found.st_mode) and found.st_mode & 0o777 == 0o700
    return private and found.st_uid == os.getuid() and (path / _LOCK).exists()


def _remove_if_unused(path: Path) -> None:
    lock = _lock(path)
    if lock is not None:
        remove(path)
        os.close(lock)


def _hire_janitor(path: Path) -> IO[bytes]:
    """Removes the folder once this process has ended without doing so, which shows in what is returned here."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    process.wait()  # the janitor is its child, and so nobody's: nobody ends it by mistake
    assert process.stdin is not None
    return process.stdin


def main(path: Path) -> None:
    """The janitor: `python -m llumnix.cluster.run_dir PATH`."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # may be meant for its owner, who then cleans up
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    deadline_s = time.monotonic() + _JANITOR_S
    while path.exists() and time.monotonic() < deadline_s:
        time.sleep(_JANITOR_PAUSE_S)  # what its owner started is being killed just now, and may still be busy there
        with contextlib.suppress(OSError):
            _remove_if_unused(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
