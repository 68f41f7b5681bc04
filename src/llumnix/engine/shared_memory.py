"""Shared memory of instances with several workers: a file below /dev/shm outlives processes that are killed.

Each worker notes in the instance's temporary folder what it has mapped; whoever removes that folder removes this, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from pathlib import Path

_NOTE = "shared-memory."
_NAME = re.compile(r"[^/\s\0]+")
_MAPPED = re.compile(r"/dev/shm/([^/\s]+)$", re.MULTILINE)  # a file that is deleted already has that said behind it


def note_shared_memory() -> None:
    """Of this process, as it is now."""
    names = sorted(set(_MAPPED.findall(Path("/proc/self/maps").read_text())))
    if names:
        Path(tempfile.gettempdir(), f"{_NOTE}{os.getpid()}").write_text("\n".join(names))


def remove_shared_memory(folder: Path) -> None:
    """What was noted in this folder or below it. A note counts as what a killed process wrote: it may be cut off."""
    for note in folder.glob(f"**/{_NOTE}*"):
        if not stat.S_ISREG(note.lstat().st_mode):
            continue
        for name in note.read_text(errors="replace").splitlines():
            if _NAME.fullmatch(name):
                with contextlib.suppress(OSError):
                    Path("/dev/shm", name).unlink()
