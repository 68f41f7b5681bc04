"""Shared memory of instances with several workers: a file below /dev/shm outlives processes that are killed.

Each worker notes in the instance's temporary folder what it has mapped; whoever removes that folder removes this, too.
What was there before the instance was is another's: weights that a user keeps in memory, say.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from pathlib import Path

_SHARED = Path("/dev/shm")
_NOTE = "shared-memory."
_OF_OTHERS = "shared-memory-of-others"
_ANY = "surrogateescape"
"""A name may be any bytes."""
_NAME = re.compile(r"[^/\s\0]+")
_MAPPED = re.compile(r"/dev/shm/([^/\s]+)$", re.MULTILINE)  # a file that is deleted already has that said behind it


def note_what_others_share(folder: Path) -> None:
    """Before an instance whose temporary folder this is shares anything."""
    names = os.listdir(_SHARED) if _SHARED.is_dir() else []
    (folder / _OF_OTHERS).write_text("\n".join(names), errors=_ANY)


def note_shared_memory() -> None:
    """Of this process, as it is now. Nothing where nobody knows what was there before."""
    folder = Path(tempfile.gettempdir())
    others = folder / _OF_OTHERS
    if not others.exists():
        return
    mapped = set(_MAPPED.findall(Path("/proc/self/maps").read_text(errors=_ANY)))
    names = sorted(mapped - set(others.read_text(errors=_ANY).splitlines()))
    if names:
        (folder / f"{_NOTE}{os.getpid()}").write_text("\n".join(names), errors=_ANY)


def remove_shared_memory(folder: Path) -> None:
    """What was noted in this folder or below it. A note counts as what a killed process wrote: it may be cut off."""
    for note in folder.glob(f"**/{_NOTE}*"):
        if not stat.S_ISREG(note.lstat().st_mode):
            continue
        for name in note.read_text(errors=_ANY).splitlines():
            if _NAME.fullmatch(name):
                with contextlib.suppress(OSError):
                    (_SHARED / name).unlink()
