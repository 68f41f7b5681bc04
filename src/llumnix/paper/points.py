"""Points of a figure: what the paper published, and what we have to put beside it.

One schema for both: figure, trace, metric, policy, x, y, and for ours the interval `y_low`…`y_high` over seeds.
The published numbers were read off the vector graphics of the paper's figures (`paper/published/*.csv`); seconds,
but milliseconds in figure 10.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import msgspec

INFAAS, LLUMNIX, LLUMNIX_BASE, OURS, ROUND_ROBIN = (
    "INFaaS++",
    "Llumnix",
    "Llumnix-base",
    "Llumnix (ours)",
    "Round-Robin",
)
"""Policies as figures name them: `Llumnix` is the paper's, `Llumnix (ours)` is our default."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One value of one curve."""

    figure: int
    trace: str
    metric: str
    policy: str
    x: float
    y: float
    y_low: float | None = None
    """Ends of the interval over seeds; None where there is only one run."""
    y_high: float | None = None


def published_points(figure: int) -> list[Point]:
    """The paper's points of a figure; empty for those that have no published numbers."""
    file = resources.files("llumnix.paper") / "published" / f"figure{figure}.csv"
    if not file.is_file():
        return []
    rows = csv.DictReader(io.StringIO(file.read_text()))
    known = ({key: value for key, value in row.items() if value} for row in rows)
    return [msgspec.convert(values, Point, strict=False) for values in known]


def write_points(path: Path, points: Iterable[Point]) -> None:
    """One row per point, the columns in the order of the fields."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Point.__struct_fields__)
        for point in points:
            writer.writerow([_text(value) for value in msgspec.structs.astuple(point)])


def _text(value: object) -> str:
    return "" if value is None else f"{value:.7g}" if isinstance(value, float) else str(value)


Curve = dict[float, Point]
"""Points of one trace, metric and policy by x."""


def curve(points: Iterable[Point], trace: str, metric: str, policy: str) -> Curve:
    """One curve, sorted by x."""
    chosen = [p for p in points if (p.trace, p.metric, p.policy) == (trace, metric, policy)]
    return {point.x: point for point in sorted(chosen, key=lambda point: point.x)}


def in_order(points: Iterable[Point], field: str) -> list[str]:
    """The different values of `trace`, `metric` or `policy`, in order of first appearance."""
    return list(dict.fromkeys(getattr(point, field) for point in points))
