"""Lines for the user of `llumnix serve`. A console that went away must not end a server."""

from __future__ import annotations

import contextlib
import sys
import time

from llumnix.cluster.json_logs import json_line
from llumnix.cluster.service_manager import ServiceManager


class Voice:
    """The launcher's: what it says is on the console, and is the status that the service manager shows."""

    def __init__(self, log_format: str, manager: ServiceManager) -> None:
        self._as_json = log_format == "json"
        self._manager = manager

    def say(self, text: str, warning: bool = False) -> None:
        """Progress on stdout; warnings, marked as ours, on stderr."""
        stream = sys.stderr if warning else sys.stdout
        if self._as_json:
            level = "WARNING" if warning else "INFO"
            line = json_line(time.time(), level, text, process="launcher", name="llumnix")
        else:
            line = f"llumnix: {text}" if warning else text
        with contextlib.suppress(OSError):  # a closed pipe or terminal
            print(line, file=stream, flush=True)
        self._manager.status(text)
