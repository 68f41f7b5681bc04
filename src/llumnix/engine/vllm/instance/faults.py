"""An instance that fails on purpose: for tests only."""

from __future__ import annotations

import os
import signal
import time

from llumnix.engine.vllm.instance.incoming import IncomingRequests

FAULT = "LLUMNIX_FAULT"
"""An environment variable. `zero-arrivals`: KV that a migration copied is overwritten with zeros, so that streams that
move must go wrong; without it, a test of their equality proves nothing. `hang`: at `HANG` the main thread stands still
for ever, while all others go on."""

HANG = signal.SIGUSR2


def inject_fault(incoming: IncomingRequests) -> None:
    """On the main thread. Raises ValueError for an unknown one."""
    fault = os.environ.get(FAULT, "")
    if fault not in ("", "zero-arrivals", "hang"):
        raise ValueError(f"unknown fault {fault!r}")
    incoming.zero_arrivals = fault == "zero-arrivals"
    if fault == "hang":
        signal.signal(HANG, _hang)


def _hang(*_: object) -> None:
    while True:
        time.sleep(3600)
