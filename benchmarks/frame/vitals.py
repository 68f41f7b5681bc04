"""What processes hold and use: memory, processor time."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import psutil

_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def pss_mib(processes: Iterable[psutil.Process]) -> float:
    """Memory, pages that processes share divided among them; those that have ended meanwhile are left out."""
    total_kib = 0
    for process in processes:
        try:
            found = _PSS.search(Path(f"/proc/{process.pid}/smaps_rollup").read_text())
        except OSError:
            continue
        total_kib += int(found[1]) if found else 0
    return total_kib / 1024


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """Processor time so far, user and system; those that have ended meanwhile are left out."""
    total_s = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total_s += times.user + times.system
    return total_s
