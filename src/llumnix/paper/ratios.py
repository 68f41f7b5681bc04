"""How much better one curve of a figure is than another: the arithmetic of the claims."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llumnix.paper.points import INFAAS, Point, curve

LEVELS = 64


@dataclass(frozen=True, slots=True)
class Ratio:
    """base / better over the points that both have."""

    values: tuple[float, ...]

    @property
    def most(self) -> float:
        return max(self.values)

    @property
    def typical(self) -> float:
        """Geometric mean."""
        return math.exp(sum(map(math.log, self.values)) / len(self.values))

    @property
    def improved(self) -> float:
        """Share of points at which the base is worse."""
        return sum(value > 1 for value in self.values) / len(self.values)


def ratio(points: Sequence[Point], metric: str, base: str, better: str, traces: Iterable[str]) -> Ratio | None:
    """base / better at each x of the traces; None if they share no point."""
    values = []
    for trace in traces:
        bases, betters = curve(points, trace, metric, base), curve(points, trace, metric, better)
        for x in bases:
            if x in betters and bases[x].y > 0 and betters[x].y > 0:
                values.append(bases[x].y / betters[x].y)
    return Ratio(tuple(values)) if values else None


def mean_reduction(
    points: Sequence[Point], metric: str, base: str, better: str, traces: Iterable[str]
) -> tuple[float, int] | None:
    """1 - better / base, averaged over the points of both, and how many those are; None if they share no point."""
    shares = []
    for trace in traces:
        bases = curve(points, trace, metric, base)
        betters = curve(points, trace, metric, better)
        shares += [1 - betters[x].y / bases[x].y for x in bases if x in betters and bases[x].y > 0]
    return (sum(shares) / len(shares), len(shares)) if shares else None


def equal_latency_saving(points: Sequence[Point], better: str) -> float | None:
    """Share of INFaaS++'s instances that the better policy saves at equal P99 prefill latency.

    Both curves (instances against the logarithm of the latency) are taken as straight between their points;
    the mean is over `LEVELS` latencies, evenly spaced on that scale, that both reach. None if they reach none.
    """
    lines = []
    for policy in (INFAAS, better):
        chosen = [p for p in points if p.policy == policy and p.metric == "Prefill P99"]
        lines.append(_frontier([(math.log(point.y), point.x) for point in chosen]))
    if min(map(len, lines)) < 2:
        return None
    low = max(line[0][0] for line in lines)
    high = min(line[-1][0] for line in lines)
    if low >= high:
        return None
    shares = []
    for level in range(LEVELS):
        at = low + (high - low) * level / (LEVELS - 1)
        costs = [_interpolate(line, at) for line in lines]
        shares.append(1 - costs[1] / costs[0])
    return sum(shares) / len(shares)


def _frontier(line: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no cheaper point beats, by latency: a cluster that is dearer and slower is not a choice."""
    kept: list[tuple[float, float]] = []
    for at, cost in sorted(line):
        if not kept or cost < kept[-1][1]:
            kept.append((at, cost))
    return kept


def _interpolate(line: Sequence[tuple[float, float]], at: float) -> float:
    for (left, left_cost), (right, right_cost) in pairwise(line):
        if left <= at <= right:
            return left_cost + (right_cost - left_cost) * (at - left) / (right - left)
    return line[-1][1]
