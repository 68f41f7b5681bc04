"""Shared memory of instances with several workers: a file below /dev/shm outlives processes that are killed.

Each worker notes in the instance's temporary folder what it has mapped; whoever removes that folder removes this, too.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

_NOTE = "shared-memory."
_MAPPED = re.compile(r"/dev/shm/([^/\s]+)$", re.MULTILINE)  # a file that is deleted already has that said behind it


def note_shared_memory() -> None:
    """Of this process, as it is now."""
    names = sorted(set(_MAPPED.findall(Path("/proc/self/maps").read_text())))
    if names:
        Path(tempfile.gettempdir(), f"{_NOTE}{os.getpid()}").write_text("\n".join(names))


def remove_shared_memory(folder: Path) -> None:
    """What was noted in this folder or below it."""
    for note in folder.glob(f"**/{_NOTE}*"):
        for name in note.read_text().splitlines():
            Path("/dev/shm", name).unlink(missing_ok=True)
