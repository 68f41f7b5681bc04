"""Steps that an engine's workers were given and whose output is not here yet: with asynchronous scheduling there is one
nearly always."""

from __future__ import annotations

from collections.abc import Iterable


class StepsInFlight:
    """Counts steps that have something to compute. They end in the order in which they began, and follow each other on
    the device; bytes from another instance keep no order with them."""

    def __init__(self) -> None:
        self.begun = 0
        self.done = 0
        self._used_until: dict[int, int] = {}  # block -> the last step that may still write or read it

    def begins(self) -> None:
        self.begun += 1

    def ends(self) -> None:
        """The output of the oldest one is here."""
        self.done += 1
        if self._used_until:
            self._used_until = {block: step for block, step in self._used_until.items() if step > self.done}

    def still_use(self, blocks: Iterable[int]) -> None:
        """Blocks that have just been freed by a request of a step in flight."""
        for block in blocks:
            self._used_until[block] = self.begun

    def may_touch(self, blocks: Iterable[int]) -> bool:
        """Whether a step in flight may still write or read one of these, for a request that had it before."""
        return bool(self._used_until) and any(block in self._used_until for block in blocks)
