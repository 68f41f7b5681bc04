"""Writing beside the work: a thread of its own, and a bounded queue that nobody waits at."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from time import monotonic
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

Item = TypeVar("Item")


class BackgroundWriter(Generic[Item]):
    """Has `write` called in its thread with what came since, in order. A slow disk keeps nobody waiting: what does not
    fit into the queue, and what `write` cannot write, is dropped and counted, and the log tells how much so far: once,
    and again when it is more than twice as much."""

    def __init__(self, name: str, write: Callable[[list[Item]], None], most_waiting: int) -> None:
        self.dropped = 0
        self._told = 0
        self._name = name
        self._write = write
        self._waiting: queue.Queue[Item | None] = queue.Queue(most_waiting)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Returns at once."""
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            self.dropped += 1

    def close(self, timeout_s: float = 2.0) -> None:
        """Waits until all is written, or for so long."""
        until_s = monotonic() + timeout_s
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=timeout_s)
        self._thread.join(max(0.0, until_s - monotonic()))

    def _run(self) -> None:
        last = False
        while not last:
            taken = [self._waiting.get()]
            while len(taken) < self._waiting.maxsize and not self._waiting.empty():
                taken.append(self._waiting.get_nowait())
            last = None in taken
            items = [item for item in taken if item is not None]
            try:
                self._write(items)
            except OSError:
                self.dropped += len(items)
            except Exception:  # outermost: one that cannot be written must not cost all that come later
                self.dropped += len(items)
                log.exception("%s: %d of its entries cannot be written", self._name, len(items))
            self._tell_of_loss()

    def _tell_of_loss(self) -> None:
        if (dropped := self.dropped) > 2 * self._told:
            self._told = dropped
            log.warning(
                "%s: entries that were not written so far: %d (the disk is full, or too slow)", self._name, dropped
            )
