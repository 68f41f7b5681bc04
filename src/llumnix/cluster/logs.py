"""Log files of the processes: opened by each process for itself, bounded and read by the launcher.

A server does not end for its logs: where they cannot be written they are not. Only that they could not be written from
the beginning is told, before anything starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from llumnix.cluster.json_logs import words_of
from llumnix.config import ClusterConfig
from llumnix.errors import UsageError, in_a_clause

HOUSEKEEPING_INTERVAL_S = 30.0
"""So often whoever writes logs calls `keep_small`."""

_LARGEST = 64 * 1024 * 1024  # bytes of one file; one older file of that size is kept beside it
_TAIL = 16 * 1024  # bytes read to find the last words
_KEPT = 100  # instances that ended whose logs stay; one that never starts is tried some 3,000 times a day

_INSTANCE = re.compile(r"i\d+")
_PREFIX = re.compile(r"^(\([^)]*pid=\d+\)\s*)?((DEBUG|INFO|WARNING|ERROR|CRITICAL)\s+\S+ \S+ \[[^\]]*\]\s*)?")
_FRAME = re.compile(r"^ *(\| ?|\+(-\+)?-{4,}( [\d.]+ -{4,})?$)")  # which Python draws around a group of exceptions
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Mismatch|IllegalEvent)\b(: .*)?$")


def _written_for(instance: str) -> tuple[str, str]:
    """Its process, and its nursery's where Ray has put both into the launcher's folder."""
    return instance, f"nursery-{instance}"


def log_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.log"


class LogFolder:
    """Where the processes of this machine write."""

    def __init__(self, cluster: ClusterConfig, run_dir: Path, alone: bool = True) -> None:
        """Makes it. `alone`: no other server may write there; only what the launcher starts itself is beside others on
        its machine. Raises UsageError."""
        self.path = None if cluster.verbose else _made(cluster, run_dir)
        """None: on the console."""
        self._is_kept = bool(cluster.log_dir)
        self._ended: deque[str] = deque()
        if self.path is not None and self._is_kept and alone:
            _take(self.path)

    def file(self, process: str) -> Path | None:
        return None if self.path is None else log_file(self.path, process)

    def end_of(self, process: str, how: str) -> str:
        """How it ended, and what it said last if it ended by itself. Logs of instances that ended long before go."""
        path = self.file(process)
        words = last_words(path) if path is not None and how.startswith("exit code") else ""
        if path is not None and _INSTANCE.fullmatch(process):
            self._ended.append(process)
            if len(self._ended) > _KEPT:
                for name in _written_for(self._ended.popleft()):
                    _remove(log_file(path.parent, name))
        return words if words and how != "exit code 0" else how

    def keep_small(self, processes: Iterable[str]) -> None:
        """The logs of these, which run: the folder may have files of others in it."""
        if self.path is not None:
            for process in processes:
                rotate(log_file(self.path, process))

    @property
    def where_to_look(self) -> str:
        if self.path is None:
            return ""
        return f" (logs: {self.path})" if self._is_kept else " (--verbose shows more)"


def _made(cluster: ClusterConfig, run_dir: Path) -> Path:
    folder = Path(cluster.log_dir) if cluster.log_dir else run_dir / "logs"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The folder for logs {folder} cannot be made: {in_a_clause(error)}.") from error
    return folder.absolute()


def _take(folder: Path) -> None:
    """Until the end of this process. Raises UsageError when another server writes there, or we cannot."""
    try:
        os.close(_open(log_file(folder, "nursery")))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"--log-dir {folder} cannot be written: {in_a_clause(error)} ({error.filename}).") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(
            f"--log-dir {folder} is another server's, which may just be ending: each needs a folder of its own."
        ) from error
    except OSError:  # a file system that knows no locks
        os.close(lock)


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def open_log(path: Path) -> int:
    """To write at its end. If the folder is gone, it is made anew; what cannot be written at all goes nowhere."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        return _open(path)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


def write_to(path: Path) -> None:
    """Sends stdout and stderr of this process to the end of `path`, whoever writes to them."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = open_log(path)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def last_words(path: Path) -> str:
    """Why the process that wrote `path` ended: its last exception, else its last line; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            text = file.read(_TAIL).decode(errors="replace")
    except OSError:
        return ""
    said = [_FRAME.sub("", _PREFIX.sub("", words_of(raw))).strip() for raw in text.splitlines()]
    lines = [line for line in said if line]
    exceptions = [line for line in lines if _EXCEPTION.match(line)]
    return (exceptions or lines or [""])[-1].rstrip(".")


def rotate(path: Path, largest: int = _LARGEST) -> None:
    """Moves what a too large log holds to one older file. Writers append, so they go on at the new beginning.

    On a full disk the log is emptied all the same: a server does not end for its logs.
    """
    with contextlib.suppress(OSError):
        if path.stat().st_size <= largest:
            return
        try:
            shutil.copyfile(path, _older(path))
        except OSError:
            _older(path).unlink()
        finally:
            os.truncate(path, 0)


def _older(path: Path) -> Path:
    return path.with_suffix(".log.1")


def _remove(path: Path) -> None:
    for each in (path, _older(path)):
        with contextlib.suppress(OSError):
            each.unlink()
