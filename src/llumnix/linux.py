"""The few calls to Linux that Python does not offer: no process of ours outlives its parent."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MANY_FILES = 65_536

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def die_with_parent(parent: int) -> None:
    """The kernel kills this process when `parent` (which must be the parent's pid) ends, however it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


def die_with_the_thread(death: threading.ExceptHookArgs) -> None:
    """A `threading.excepthook`: a process that lives on without its mailbox or its transport helps nobody. It would be
    deaf, not dead."""
    threading.__excepthook__(death)
    if death.exc_type is not SystemExit:
        sys.stderr.flush()
        os._exit(1)


def adopt_orphans() -> None:
    """Descendants whose parent ends become children of this process, so that it can see and end them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def allow_many_files() -> None:
    """For this process and its children: a socket per instance and per stream soon is more than the usual 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MANY_FILES if hard == resource.RLIM_INFINITY else min(_MANY_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def describe_exit(status: int) -> str:
    """A wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}"
