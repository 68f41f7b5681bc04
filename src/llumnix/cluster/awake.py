"""A clock for whoever watches others: it goes only while the process that looks at it runs.

A whole server may stand still for a while: stopped in a shell, frozen by its container, on a virtual machine that is
paused or moved. Linux's monotonic clock goes on meanwhile (not while the machine itself sleeps), and all deadlines of
a watcher would be over at once, before anybody can say that he lives.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

LOOK_S = 1.0
"""So often, at least, whoever runs looks at it."""

_LONGEST_S = 3.0  # between two looks, with what happens in between


class AwakeClock:
    """Seconds of `time.monotonic` less those in which this process stood still. For one thread."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._looked_s = self._now_s = clock()

    def now(self) -> float:
        looked_s = self._clock()
        self._now_s += min(looked_s - self._looked_s, _LONGEST_S)
        self._looked_s = looked_s
        return self._now_s
