"""What a service manager is told, in the words of sd_notify(3): ready, how it goes, the end."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import MutableMapping


class ServiceManager:
    """Takes its words out of the environment, as they are meant for this process alone. Silent where nobody listens;
    it never blocks, and a manager that is gone or slow changes nothing."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        patience_us = environment.pop("WATCHDOG_USEC", "")
        environment.pop("WATCHDOG_PID", None)
        self._interval_s = int(patience_us) / 2e6 if address and patience_us.isdecimal() else None
        self.next_beat_s = None if self._interval_s is None else time.monotonic()
        """When it wants to hear again that this process lives; None: it does not. By its own clock, `time.monotonic`,
        which goes on while this process stands still."""

    @property
    def rest_s(self) -> float:
        """Seconds until then."""
        return math.inf if self.next_beat_s is None else self.next_beat_s - time.monotonic()

    def ready(self) -> None:
        self._tell("READY=1")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def status(self, text: str) -> None:
        self._tell(f"STATUS={text.partition(chr(10))[0]}")

    def beat(self, now_s: float) -> None:
        """To be called in each turn of the loop whose life is watched."""
        if self._interval_s is not None and self.next_beat_s is not None and now_s >= self.next_beat_s:
            self.next_beat_s = now_s + self._interval_s
            self._tell("WATCHDOG=1")

    def _tell(self, words: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(words.encode(), self._address)
