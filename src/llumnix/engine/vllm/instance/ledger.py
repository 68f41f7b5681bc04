"""How many requests of each front end have come here: what its ledger of dispatches under way is compared with."""

from __future__ import annotations


class Ledger:
    """Never reset: a front end that takes a dead one's place begins to count where it says hello."""

    def __init__(self, front_ends: int) -> None:
        self.added = [0] * front_ends
        """Counted on the main thread."""
        self.refused = [0] * front_ends
        """Those that never reached it; counted by vLLM's input thread alone."""

    def seen(self) -> tuple[int, ...]:
        return tuple(added + refused for added, refused in zip(self.added, self.refused, strict=True))
