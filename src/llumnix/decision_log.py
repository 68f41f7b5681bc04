"""The journal of a process that serves."""

from __future__ import annotations

import time

from llumnix.journal.journal import Journal


def begin_journal(by: str) -> Journal:
    """Of entries with times of this process's monotonic clock. Their numbers begin with the microseconds since 1970: a
    process that dies and is replaced cannot have come as far."""
    return Journal(by, first=time.time_ns() // 1000, since_s=time.time() - time.monotonic())
