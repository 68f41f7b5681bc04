"""Log files of the processes: opened by each process for itself, bounded and read by the launcher."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from pathlib import Path

from llumnix.cluster.json_logs import words_of
from llumnix.config import ClusterConfig
from llumnix.errors import UsageError

_LARGEST = 64 * 1024 * 1024  # bytes of one file; one older file of that size is kept beside it
_TAIL = 16 * 1024  # bytes read to find the last words

_PREFIX = re.compile(r"^(\([^)]*pid=\d+\)\s*)?((DEBUG|INFO|WARNING|ERROR|CRITICAL)\s+\S+ \S+ \[[^\]]*\]\s*)?")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Mismatch|IllegalEvent)\b(: .*)?$")


def log_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.log"


class LogFolder:
    """Where the processes of this machine write."""

    def __init__(self, cluster: ClusterConfig, run_dir: Path) -> None:
        """Makes it. Raises UsageError."""
        self.path = None if cluster.verbose else _made(cluster, run_dir)
        """None: on the console."""
        self._is_kept = bool(cluster.log_dir)

    def file(self, process: str) -> Path | None:
        return None if self.path is None else log_file(self.path, process)

    def why_it_ended(self, process: str, how: str) -> str:
        """How it ended, and what it said last if it ended by itself."""
        path = self.file(process)
        words = last_words(path) if path is not None and how.startswith("exit code") else ""
        return words if words and how != "exit code 0" else how

    def keep_small(self) -> None:
        if self.path is not None:
            rotate(self.path)

    @property
    def where_to_look(self) -> str:
        if self.path is None:
            return ""
        return f" (logs: {self.path})" if self._is_kept else " (--verbose shows more)"


def _made(cluster: ClusterConfig, run_dir: Path) -> Path:
    folder = Path(cluster.log_dir).expanduser() if cluster.log_dir else run_dir / "logs"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--log-dir {folder} cannot be made: {error.strerror}.") from error
    return folder.absolute()


def write_to(path: Path) -> None:
    """Sends stdout and stderr of this process to the end of `path`, whoever writes to them."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
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
    lines = [line for raw in text.splitlines() if (line := _PREFIX.sub("", words_of(raw)).strip())]
    exceptions = [line for line in lines if _EXCEPTION.match(line)]
    return (exceptions or lines or [""])[-1].rstrip(".")


def rotate(folder: Path, largest: int = _LARGEST) -> None:
    """Moves what a too large log holds to one older file. Writers append, so they go on at the new beginning.

    On a full disk the log is emptied all the same: a server does not end for its logs.
    """
    for path in folder.glob("*.log"):
        older = path.with_suffix(".log.1")
        with contextlib.suppress(OSError):
            if path.stat().st_size <= largest:
                continue
            try:
                shutil.copyfile(path, older)
            except OSError:
                older.unlink()
            finally:
                os.truncate(path, 0)
