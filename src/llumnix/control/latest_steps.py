"""How fast an engine is just now: what its latest steps took, by themselves and over what they were expected to take.

What steps cost (`control/step_fit.py`) is fitted to the last hundred or so and does not believe single ones, so it is
seconds late, and never hears of an engine that stands still now and then. Here time itself is the measure. Of the last
seconds of steps, which share would have been enough, had all steps taken what was expected of them? Half of it: the
engine is twice as slow. Once the fit follows, both come together again.

And where a fit knows little (all batches were alike: then the split between what a step costs and what a request costs
is any), what was seen bounds what is believed: how long steps took, and how short the short ones were.
"""

from __future__ import annotations

from math import exp

OVER_S = 3.0
"""Seconds of steps that count: one that is over for so long counts for a third."""

NOTICED = 1.25
"""Up to so many times as slow, or as fast, is noise."""

MOST = 16.0
"""As slow, or as fast, as anything is said to be: beyond that a step has not been slow but an engine stood still, and
the longest step of all would be remembered for minutes."""

FORGOTTEN_S = 120.0
"""After so long without a step nothing is known: an engine that everybody leaves is to be tried again. Not soon, since
whoever comes then is slow for some seconds; where the others are full it gets requests anyway."""

SHORTER, LONGER = 0.2, 0.004
"""How far the time of a short step goes towards that of one that is shorter than that, or longer."""


class LatestSteps:
    """Of one engine. Times must not go backwards."""

    def __init__(self) -> None:
        self.shortest_s: float | None = None
        """About what the shortest of the last few hundred took; None before the first."""
        self._share = 1.0
        """Of the time that steps took, what was expected of them."""
        self._per_s: float | None = None
        """Steps in a second of steps."""
        self._ended_s = 0.0

    def add(self, at: float, took_s: float, expected_s: float | None) -> None:
        """A step ended, and took so long. `expected_s`: None while nothing is."""
        if at - took_s > self._ended_s + FORGOTTEN_S:
            self._share, self._per_s = 1.0, None
        self._ended_s = at
        if took_s <= 0:
            return
        kept = exp(-took_s / OVER_S)
        per_s = 1 / took_s if self._per_s is None else self._per_s
        self._per_s = kept * per_s + (1 - kept) / took_s
        shortest_s = took_s if self.shortest_s is None else self.shortest_s
        self.shortest_s = shortest_s + (SHORTER if took_s < shortest_s else LONGER) * (took_s - shortest_s)
        if expected_s:
            share = min(MOST, max(1 / MOST, expected_s / took_s))
            self._share = kept * self._share + (1 - kept) * share

    def slowdown(self, now: float) -> float:
        """How many times as long as expected steps take; 1 as long as that is within what is noise, or not known."""
        if now > self._ended_s + FORGOTTEN_S or 1 / NOTICED <= self._share <= NOTICED:
            return 1.0
        return 1 / self._share

    def mean_s(self, now: float) -> float | None:
        """Of the steps of the last seconds; None while there are none."""
        if self._per_s is None or now > self._ended_s + FORGOTTEN_S:
            return None
        return 1 / self._per_s
