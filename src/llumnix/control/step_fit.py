"""What an engine's steps cost, fitted to them as they end.

Least squares over (1, prompt tokens, decoding requests, their length) → seconds, in which a step counts for less with
each one that follows it, so that what the engine did once, or a device that has slowed down since, is forgotten.
Errors are relative, and a step counts for less the more it was off what was expected, in either direction: one that
stood still for a hundred times as long as usual hardly moves the fit.

The sums of squares are kept, and one sweep of coordinate descent over them follows each step: none of the coefficients
is ever negative, and together with the sweeps before it comes to the exact solution. Where steps do not tell two of
them apart (a batch that never changes), the sum is right and the split is what it was.
"""

from __future__ import annotations

from typing import NamedTuple

from llumnix.policy.snapshot import StepCost

FORGET = 0.99
"""Weight of a step when the next one has come: the last hundred or so count."""

FEWEST_STEPS = 64
"""Before anything is said."""

MOST_ALIKE = 0.95
"""Squared correlation of prompt tokens with the constant: while all steps compute nearly the same number of them,
nothing tells what one costs, and nothing is said."""

SHORTEST_STEP_S = 1e-5
"""A shorter one is a clock that did not move."""

_NOTHING = 1e-200


class StepLoad(NamedTuple):
    """What one step computes."""

    prefill_tokens: int
    decoding: int
    context_tokens: int


class StepFit:
    """Of one engine. `cost` is what it said last; None at first."""

    def __init__(self) -> None:
        self.cost: StepCost | None = None
        self._steps = 0
        self._s = [0.0] * 4
        """Seconds for each unit of a step's features."""
        self._squares = [[0.0] * 4 for _ in range(4)]
        self._targets = [0.0] * 4

    def expected_s(self, load: StepLoad) -> float | None:
        """Of a step of this load; None as long as nothing is said."""
        return None if self.cost is None else max(self._by_now(1.0, *load), SHORTEST_STEP_S)

    def _by_now(self, *features: float) -> float:
        return sum(a * b for a, b in zip(self._s, features, strict=True))

    def add(self, load: StepLoad, took_s: float) -> None:
        """A step of this load ended, and took so long."""
        features = (1.0, *map(float, load))
        took_s = max(took_s, SHORTEST_STEP_S)
        scale = 1 / took_s
        expected_s = self.expected_s(load)
        if expected_s is not None:
            scale = min(scale, took_s / expected_s**2)
        row = [feature * scale for feature in features]
        target = took_s * scale
        for j, value in enumerate(row):
            squares = self._squares[j]
            for k, other in enumerate(row):
                squares[k] = FORGET * squares[k] + value * other
            self._targets[j] = FORGET * self._targets[j] + value * target
        self._sweep()
        self._steps += 1
        if self.cost is not None or (self._steps >= FEWEST_STEPS and self._tells_prompts_apart()):
            fixed, prefill, request, context = self._s
            self.cost = StepCost(
                fixed_ms=fixed * 1e3,
                prefill_token_us=prefill * 1e6,
                request_us=request * 1e6,
                context_token_us=context * 1e6,
            )

    def _sweep(self) -> None:
        seconds = self._s
        for j, squares in enumerate(self._squares):
            if squares[j] > _NOTHING:  # else all that told something of it is forgotten
                error = self._targets[j] - sum(a * b for a, b in zip(squares, seconds, strict=True))
                seconds[j] = max(0.0, seconds[j] + error / squares[j])

    def _tells_prompts_apart(self) -> bool:
        (fixed, both, *_), (_, prompts, *_), *_ = self._squares
        return both * both < MOST_ALIKE * fixed * prompts
