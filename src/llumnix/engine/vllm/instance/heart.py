"""The heart of an instance: repeats the last load report as a heartbeat, and rings when a deadline comes.

A thread of its own, because the engine's main thread may sleep on its queue (idle) or sit in a long step.
That it beats tells that the process lives; since when the engine makes no progress is said in the beat (reports.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic


class Heart:
    """`beat()` and `ring()` are called from the heart's thread and must not block."""

    def __init__(self, interval_s: float, beat: Callable[[], None], ring: Callable[[], None]) -> None:
        self.interval_s = interval_s
        """May change; the next beat is the first after a new one."""
        self._beat = beat
        self._ring = ring
        self._wake_at: float | None = None
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake_at(self, at: float) -> None:
        """Rings once at `at` (monotonic seconds); replaces an earlier wish."""
        with self._changed:
            self._wake_at = at
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        next_beat = monotonic()
        while True:
            with self._changed:
                if self._stopped:
                    return
                due = next_beat if self._wake_at is None else min(next_beat, self._wake_at)
                self._changed.wait(max(0.0, due - monotonic()))
                if self._stopped:
                    return
                now = monotonic()
                rings = self._wake_at is not None and now >= self._wake_at
                if rings:
                    self._wake_at = None
            if rings:
                self._ring()
            if now >= next_beat:
                self._beat()
                next_beat = now + self.interval_s
