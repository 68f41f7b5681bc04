"""A token bucket: filled continuously, so much a minute, and never beyond what it holds."""

from __future__ import annotations

from math import inf


class TokenBucket:
    """Full at first. What is taken may be settled later, also below zero: a debt that is paid before more is given.

    A clock that goes back gives nothing, nor what it then makes good; one that jumps forward fills the bucket at most.
    """

    def __init__(self, per_minute: float, at_s: float, most: float | None = None) -> None:
        """`most`: that it holds; a minute's worth, if nothing else is said."""
        self.capacity = per_minute if most is None else most
        self._rate = per_minute / 60
        self._level = self.capacity
        self._at_s = at_s

    def level(self, at_s: float) -> float:
        """What could be taken now; below zero: a debt."""
        if at_s > self._at_s:
            self._level = min(self.capacity, self._level + (at_s - self._at_s) * self._rate)
            self._at_s = at_s
        return self._level

    def wait_s(self, amount: float, at_s: float) -> float:
        """Until so much can be taken, if nobody takes any before; inf: never."""
        missing = amount - self.level(at_s)
        if amount > self.capacity or (missing > 0 and not self._rate):
            return inf
        return max(0.0, missing / self._rate) if missing > 0 else 0.0

    def full_in_s(self, at_s: float) -> float:
        """Until it is full again; 0 for one that never holds anything."""
        return (self.capacity - self.level(at_s)) / self._rate if self._rate else 0.0

    def take(self, amount: float) -> None:
        """Whether it is there or not; a negative amount gives back. Nothing is lost: what was taken and given back
        leaves the bucket as if neither had been, unless it was full meanwhile."""
        self._level = min(self.capacity, self._level - amount)
