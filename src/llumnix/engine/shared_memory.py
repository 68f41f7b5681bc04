"""Shared memory of instances with several workers: a file below /dev/shm outlives processes that are killed.

Each worker notes in the instance's temporary folder what it has mapped, and while they start somebody does it for all
of them; whoever removes that folder removes this, too. What was there before the instance was is another's: weights
that a user keeps in memory, say.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

import psutil

from llumnix import linux

_SHARED = Path("/dev/shm")
_LOOK_S = 0.05
_REST = 4.0
"""A watcher rests for so many times as long as it looked, which with thousands of processes takes a while."""
_NOTE = "shared-memory."
_OF_OTHERS = "shared-memory-of-others"
_ANY = "surrogateescape"
"""A name may be any bytes."""
_NAME = re.compile(r"[^/\s\0]+")
_MAPPED = re.compile(r"/dev/shm/([^/\s]+)$", re.MULTILINE)  # a file that is deleted already has that said behind it


def note_what_others_share(folder: Path) -> None:
    """Before an instance whose temporary folder this is shares anything."""
    (folder / _OF_OTHERS).write_text("\n".join(_all_names()), errors=_ANY)


def note_shared_memory() -> None:
    """Of this process, as it is now. Nothing where nobody knows what was there before."""
    _note(_mapped_by([os.getpid()]))


@contextlib.contextmanager
def noted_meanwhile() -> Iterator[None]:
    """What this process and those below it share, while the workers of an instance start: who is killed then, which may
    be all of them, can note nothing. So a process of its own looks again and again. To be called before there are
    threads."""
    instance = os.getpid()
    watcher = os.fork()
    if watcher == 0:
        _watch(instance)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(watcher, signal.SIGKILL)
            os.waitpid(watcher, 0)
        with contextlib.suppress(OSError):  # a full disk
            _note(_mapped_by(_family(instance)))


def _watch(instance: int) -> NoReturn:
    try:
        linux.die_with_parent(instance)
        found: set[str] = set()
        while True:
            began_s = time.monotonic()
            with contextlib.suppress(OSError):
                if not found.issuperset(_all_names()):
                    known = found | _mapped_by(_family(instance)) | (_of_others() or set())
                    _note(known)
                    found = known
            time.sleep(max(_LOOK_S, _REST * (time.monotonic() - began_s)))
    finally:
        os._exit(0)


def _family(instance: int) -> list[int]:
    return [instance, *(child.pid for child in psutil.Process(instance).children(recursive=True))]


def _note(mapped: set[str]) -> None:
    others = _of_others()
    if others is not None and mapped - others:
        names = "\n".join(sorted(mapped - others))
        (Path(tempfile.gettempdir()) / f"{_NOTE}{os.getpid()}").write_text(names, errors=_ANY)


def _mapped_by(pids: Iterable[int]) -> set[str]:
    names: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            names.update(_MAPPED.findall(Path(f"/proc/{pid}/maps").read_text(errors=_ANY)))
    return names


def _of_others() -> set[str] | None:
    """None: nobody knows what was there before."""
    try:
        return set((Path(tempfile.gettempdir()) / _OF_OTHERS).read_text(errors=_ANY).splitlines())
    except FileNotFoundError:
        return None


def _all_names() -> list[str]:
    return os.listdir(_SHARED) if _SHARED.is_dir() else []


def remove_shared_memory(folder: Path) -> None:
    """What was noted in this folder or below it. A note counts as what a killed process wrote: it may be cut off."""
    for note in folder.glob(f"**/{_NOTE}*"):
        if not stat.S_ISREG(note.lstat().st_mode):
            continue
        for name in note.read_text(errors=_ANY).splitlines():
            if _NAME.fullmatch(name):
                with contextlib.suppress(OSError):
                    (_SHARED / name).unlink()
