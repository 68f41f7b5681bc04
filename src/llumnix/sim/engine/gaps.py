"""Largest gap between two tokens, for every request of a batch, without storing a token.

All requests of a batch get their tokens at the same moments, so the gaps are a property of the
batch: one growing sequence of numbers. A request's largest gap is the maximum of that sequence from
where it joined to where it left. A decreasing stack answers that in O(log n), and stays short.
"""

from __future__ import annotations

from bisect import bisect_left


class GapLog:
    """The gaps of one batch; positions count up from 0 and never restart."""

    __slots__ = ("_positions", "_values", "position")

    def __init__(self) -> None:
        self.position = 0
        self._positions: list[int] = []
        self._values: list[float] = []

    def push(self, gap_s: float) -> None:
        """Appends a gap; every entry that it outweighs is forgotten."""
        values, positions = self._values, self._positions
        while values and values[-1] <= gap_s:
            values.pop()
            positions.pop()
        values.append(gap_s)
        positions.append(self.position)
        self.position += 1

    def largest_since(self, position: int) -> float:
        """The largest gap at `position` or later; 0 if there was none."""
        index = bisect_left(self._positions, position)
        return self._values[index] if index < len(self._values) else 0.0
