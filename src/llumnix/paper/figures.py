"""Pictures of the paper's figures: laid out as there, the paper's points beside ours.

Ours are lines with a band (95 % interval over seeds); the paper's are hollow markers of the same colour. A row is a
trace, a column a metric, named once each; latencies that span decades have a logarithmic axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from llumnix.paper.points import INFAAS, LLUMNIX, LLUMNIX_BASE, OURS, ROUND_ROBIN, Point, curve, in_order
from llumnix.report.style import AMBER, BLUE, FAINT, GREEN, INK, PURPLE, RED, STYLE

COLORS = {
    ROUND_ROBIN: FAINT,
    INFAAS: AMBER,
    LLUMNIX_BASE: PURPLE,
    LLUMNIX: BLUE,
    OURS: GREEN,
    "Migration": BLUE,
    "Blocking copy": AMBER,
    "Recompute": RED,
    "Normal": FAINT,
    "Centralized": AMBER,
}

X_LABELS = {
    10: "sequence length (tokens)",
    11: "requests/s",
    12: "time (s)",
    13: "CV of arrivals",
    14: "requests/s, or CV",
    15: "average instances",
    16: "requests/s",
}
TITLES = {
    10: "Figure 10: live migration against blocking copy and recompute",
    11: "Figure 11: serving on 16 instances",
    12: "Figure 12: fragmentation over time",
    13: "Figure 13: priorities",
    14: "Figure 14: auto-scaling",
    15: "Figure 15: cost against latency",
    16: "Figure 16: scheduling at 64 instances",
}

_STYLE: dict[Any, Any] = STYLE | {"font.size": 8.0, "axes.titlesize": 9.0, "axes.labelsize": 8.0}

_LOG = {"Prefill P99", "Prefill Mean", "Downtime"}


class _Scale(NamedTuple):
    """How a metric is shown: its unit, and by what the CSV's number is multiplied for that."""

    unit: str
    factor: float = 1.0


def _scale(figure: int, metric: str) -> _Scale:
    if figure == 10:
        return _Scale("ms")
    if figure == 12:
        return _Scale("% of all memory", 100.0)
    if figure == 16:
        return _Scale("µs", 1e3)
    if metric == "Resource Cost":
        return _Scale("instances")
    return _Scale("ms", 1e3) if metric in ("Decode P99", "Decode Mean") else _Scale("s")


def draw_figure(figure: int, ours: Sequence[Point], paper: Sequence[Point], path: Path) -> None:
    """Draws a figure into a PNG: one row a trace, one column a metric."""
    traces, metrics = in_order([*ours, *paper], "trace"), in_order([*ours, *paper], "metric")
    policies = in_order([*ours, *paper], "policy")
    with rc_context(_STYLE):
        size = (max(2.3 * len(metrics) + 0.8, 6.4), max(1.75 * len(traces) + 1.1, 4.0))
        picture = Figure(figsize=size, layout="constrained")
        grid = picture.subplots(len(traces), len(metrics), squeeze=False, sharex="row")
        for row, trace in enumerate(traces):
            for column, metric in enumerate(metrics):
                axes = grid[row][column]
                _panel(axes, figure, (trace, metric), ours, paper)
                if row == 0:
                    axes.set_title(f"{metric} ({_scale(figure, metric).unit})")
                if column == 0:
                    axes.set_ylabel(trace, fontweight="bold")
                if row == len(traces) - 1:
                    axes.set_xlabel(X_LABELS[figure])
        picture.suptitle(TITLES[figure], fontsize=12, fontweight="bold", x=0.01, ha="left")
        _legend(picture, policies, published=bool(paper))
        picture.savefig(path, dpi=110, metadata={"Software": None})


def _legend(picture: Figure, policies: Sequence[str], published: bool) -> None:
    """A line for each policy, and one hollow marker for all that the paper published."""
    lines = [Line2D([], [], color=_color(policy), marker="o", ms=3.5, lw=1.6, label=policy) for policy in policies]
    if published:
        hollow = {"marker": "o", "mfc": "none", "ms": 4.5, "lw": 0.8, "ls": ":"}
        lines.append(Line2D([], [], color=INK, label="as published, in the same colour", **hollow))  # type: ignore[arg-type]
    columns = len(lines) if picture.get_figwidth() > 1.6 * len(lines) else math.ceil(len(lines) / 2)
    picture.legend(handles=lines, loc="outside lower center", ncols=columns)


def _color(policy: str) -> str:
    return COLORS.get(policy, INK)


def _panel(axes: Axes, figure: int, place: tuple[str, str], ours: Sequence[Point], paper: Sequence[Point]) -> None:
    trace, metric = place
    factor = _scale(figure, metric).factor
    for policy in in_order([*ours, *paper], "policy"):
        published = list(curve(paper, trace, metric, policy).values())
        if published:
            x, y = [point.x for point in published], [point.y * factor for point in published]
            axes.plot(x, y, color=_color(policy), marker="o", mfc="none", ms=4.5, mew=0.8, lw=0.8, ls=":", alpha=0.8)
        line = list(curve(ours, trace, metric, policy).values())
        if line:
            _line(axes, line, factor, _color(policy), many=figure == 12)
    if metric in _LOG:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif figure != 10 and metric != "Resource Cost":
        axes.set_ylim(bottom=0)
    if figure == 10:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x < 1024 else f"{x / 1024:g}k"))


def _line(axes: Axes, line: Sequence[Point], factor: float, color: str, *, many: bool) -> None:
    """Our points with their interval; without markers where there are very many."""
    x, y = [point.x for point in line], [point.y * factor for point in line]
    axes.plot(x, y, color=color, marker="" if many else "o", ms=3.5, lw=1.0 if many else 1.6)
    if line[0].y_low is not None:
        low = [(point.y if point.y_low is None else point.y_low) * factor for point in line]
        high = [(point.y if point.y_high is None else point.y_high) * factor for point in line]
        # An interval may reach below zero, which no latency does, and which a logarithmic axis cannot show.
        axes.fill_between(x, np.maximum(low, min(y) / 10), high, color=color, alpha=0.15, lw=0)
