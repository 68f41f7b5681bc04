"""The folder of recorded runs: the oldest go, so that all together stay below a bound."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from time import time

from llumnix.record.form import ABOUT, INSTANCES, MOVES, REQUESTS, STEPS, parts_of

log = logging.getLogger(__name__)

IN_USE_S = 60.0
"""A run that was written to so short a time ago is another server's: its instances are looked at every second."""

_NAME = re.compile(r"\d{4}(-\d\d){2}T\d\d(-\d\d){2}-\d{3}")
_BLOCK_BYTES = 512
"""Of `st_blocks`, whatever the file system's are."""


def make_room(root: Path, most_bytes: int, current: Path) -> None:
    """Removes runs in `root`, the oldest first, until those beside `current` have at most `most_bytes` on the disk.
    Files in them that are no part of a recorded run stay."""
    named = (folder for folder in root.glob("*") if _NAME.fullmatch(folder.name) and not folder.is_symlink())
    runs = {folder: _files_of(folder) for folder in sorted(named) if folder != current}  # named by their times
    facts = {folder: _on_disk(files) for folder, files in runs.items()}
    total = sum(size for size, _ in facts.values())
    for folder, (size, written_at_s) in facts.items():
        if total <= most_bytes:
            return
        if size and time() - written_at_s > IN_USE_S:
            _remove(folder, runs[folder])
            total -= size


def _files_of(folder: Path) -> list[Path]:
    parts = (file for kind in (REQUESTS, MOVES, INSTANCES, STEPS) for file in parts_of(folder, kind))
    return [*folder.glob(f"{ABOUT}-f*.json"), *parts]


def _on_disk(files: Sequence[Path]) -> tuple[int, float]:
    """Bytes, and when one was last written to."""
    size, written_at_s = 0, 0.0
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # the oldest part of a run that is written makes room, too
            facts = file.stat()
            size += facts.st_blocks * _BLOCK_BYTES
            written_at_s = max(written_at_s, facts.st_mtime)
    return size, written_at_s


def _remove(folder: Path, files: Sequence[Path]) -> None:
    try:
        for file in files:
            file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove the recorded run %s: %s", folder, error.strerror or error)
        return
    with contextlib.suppress(OSError):  # somebody put something there
        folder.rmdir()
    log.info("removed the recorded run %s: it made room for newer ones (--record-keep-mb)", folder)
