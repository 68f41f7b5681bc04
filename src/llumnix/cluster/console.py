"""Lines for the user of `llumnix serve`. A console that went away must not end a server."""

from __future__ import annotations

import contextlib
import sys


def say(text: str, warning: bool = False) -> None:
    """Progress on stdout; warnings, marked as ours, on stderr."""
    stream = sys.stderr if warning else sys.stdout
    with contextlib.suppress(OSError):  # a closed pipe or terminal
        print(f"llumnix: {text}" if warning else text, file=stream, flush=True)
