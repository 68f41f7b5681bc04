"""Lines for the user of `llumnix serve`. A console that went away, or stands still, must not end or stop a server."""

from __future__ import annotations

import contextlib
import os
import time

from llumnix.background import BackgroundWriter
from llumnix.cluster.json_logs import json_line
from llumnix.cluster.service_manager import ServiceManager
from llumnix.plain import plain_lines

_MOST_WAITING = 1000  # lines; what comes while so many wait is not shown


class Voice:
    """The launcher's: what it says is on the console, and is the status that the service manager shows."""

    def __init__(self, log_format: str, manager: ServiceManager) -> None:
        self._as_json = log_format == "json"
        self._manager = manager
        self._console = BackgroundWriter("console", _write, _MOST_WAITING)

    def say(self, text: str, warning: bool = False) -> None:
        """Progress on stdout; warnings, marked as ours, on stderr. Returns at once."""
        if self._as_json:
            level = "WARNING" if warning else "INFO"
            line = json_line(time.time(), level, text, process="launcher", name="llumnix")
        else:
            line = plain_lines(f"llumnix: {text}" if warning else text)
        self._console.put((2 if warning else 1, line))
        self._manager.status(text)

    def close(self) -> None:
        """What was said is out, unless the console stands still."""
        self._console.close()


def _write(lines: list[tuple[int, str]]) -> None:
    """Each to its descriptor. Not by `print`: the interpreter waits in its end for who holds a stream's lock."""
    for stream, line in lines:
        left = f"{line}\n".encode(errors="replace")
        with contextlib.suppress(OSError):  # a closed pipe or terminal
            while left:
                left = left[os.write(stream, left) :]
