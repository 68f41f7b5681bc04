"""Discrete-event kernel: a heap of (time, rank, sequence number). It knows nothing of what is simulated.

Two events at one time run in order of rank, then in the order in which they were asked for, so a run is
the same whatever the machine. There is no randomness and no wall clock in here.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any

Timer = list[Any]
"""A pending event, to be given back to `cancel`; its inside belongs to the kernel."""

_TIME, _RANK, _SEQ, _ACTION, _ARGS = range(5)


class Kernel:
    """Runs actions in virtual time. `now` may be read by anybody and is written here only."""

    __slots__ = ("_cancelled", "_heap", "_running", "_seq", "_stopping", "executed", "now")

    def __init__(self, start_s: float = 0.0) -> None:
        self.now = start_s
        self.executed = 0
        self._heap: list[Timer] = []
        self._seq = 0
        self._cancelled = 0
        self._running = False
        self._stopping = False

    def __len__(self) -> int:
        """How many events are pending."""
        return len(self._heap) - self._cancelled

    def at(self, time_s: float, action: Callable[..., None], *args: Any, rank: int = 0) -> Timer:
        """Runs `action(*args)` at `time_s`. Raises ValueError for the past, for NaN and for infinity."""
        if not self.now <= time_s < inf:
            raise ValueError(f"an event at {time_s!r} cannot be reached: it is {self.now!r} now")
        self._seq += 1
        timer: Timer = [time_s, rank, self._seq, action, args]
        heappush(self._heap, timer)
        return timer

    def after(self, delay_s: float, action: Callable[..., None], *args: Any, rank: int = 0) -> Timer:
        """Runs `action(*args)` `delay_s` from now; a negative delay raises ValueError."""
        return self.at(self.now + delay_s, action, *args, rank=rank)

    def cancel(self, timer: Timer) -> bool:
        """Takes an event back. False if it has run, runs now, or was cancelled before."""
        if timer[_ACTION] is None:
            return False
        timer[_ACTION] = timer[_ARGS] = None
        self._cancelled += 1
        if self._cancelled > 64 and self._cancelled * 2 > len(self._heap):
            self._heap[:] = [kept for kept in self._heap if kept[_ACTION] is not None]
            heapify(self._heap)
            self._cancelled = 0
        return True

    def run(self, until_s: float = inf) -> None:
        """Runs every event up to and including `until_s`, then sets `now` to it if it is finite.

        An action may ask for more events and cancel others; it must not call `run`. An exception in
        an action passes through, and the kernel can go on with the event after it.
        """
        if self._running:
            raise RuntimeError("run() was called by an action of the same kernel")
        if not until_s >= self.now:
            raise ValueError(f"cannot run until {until_s!r}: it is {self.now!r} already")
        self._running = True
        self._stopping = False
        heap = self._heap
        try:
            while heap and heap[0][_TIME] <= until_s and not self._stopping:
                timer = heappop(heap)
                action, args = timer[_ACTION], timer[_ARGS]
                if action is None:
                    self._cancelled -= 1
                    continue
                timer[_ACTION] = timer[_ARGS] = None
                self.now = timer[_TIME]
                self.executed += 1
                action(*args)
        finally:
            self._running = False
        if until_s < inf and not self._stopping:
            self.now = until_s

    def stop(self) -> None:
        """Makes `run` return after the action that called this; what is pending stays pending."""
        self._stopping = True
