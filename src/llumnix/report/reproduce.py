"""Pictures of the paper's figures: laid out as there, the paper's points beside ours.

Ours are lines with a band (95 % interval over seeds); the paper's are hollow markers of the same colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llumnix.report.points import INFAAS, LLUMNIX, LLUMNIX_BASE, OURS, ROUND_ROBIN, Point, curve, in_order

COLORS = {
    ROUND_ROBIN: "#8b949e",
    INFAAS: "#d98e04",
    LLUMNIX_BASE: "#7d4cc2",
    LLUMNIX: "#2f6fde",
    OURS: "#2e8b57",
    "Migration": "#2f6fde",
    "Blocking copy": "#d98e04",
    "Recompute": "#d1373f",
    "Normal": "#8b949e",
    "Centralized": "#d98e04",
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

_STYLE: dict[Any, Any] = {
    "font.size": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
}

_LOG = {"Prefill P99", "Prefill Mean", "Downtime"}
_MILLISECONDS = {"Decode P99", "Decode Mean"}


def draw_figure(figure: int, ours: Sequence[Point], paper: Sequence[Point], path: Path) -> None:
    """Draws a figure into a PNG: one row a trace, one column a metric."""
    traces, metrics = in_order([*ours, *paper], "trace"), in_order([*ours, *paper], "metric")
    with rc_context(_STYLE):
        size = (2.6 * len(metrics) + 0.6, 2.0 * len(traces) + 1.0)
        picture = Figure(figsize=(max(size[0], 6.4), max(size[1], 4.0)), layout="constrained")
        grid = picture.subplots(len(traces), len(metrics), squeeze=False)
        for row, trace in enumerate(traces):
            for column, metric in enumerate(metrics):
                _panel(grid[row][column], figure, (trace, metric), ours, paper)
        picture.suptitle(TITLES[figure], fontweight="bold", x=0.01, ha="left")
        entries: dict[str, Any] = {}
        for axes in grid.flat:
            handles, labels = axes.get_legend_handles_labels()
            entries |= dict(zip(labels, handles, strict=True))
        picture.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=6, frameon=False)
        picture.savefig(path, dpi=110, metadata={"Software": None})


def _panel(axes: Axes, figure: int, place: tuple[str, str], ours: Sequence[Point], paper: Sequence[Point]) -> None:
    trace, metric = place
    factor = 1e3 if metric in _MILLISECONDS else 1.0
    for policy in in_order([*ours, *paper], "policy"):
        color = COLORS.get(policy, "#24292f")
        line = list(curve(ours, trace, metric, policy).values())
        if line:
            x = [point.x for point in line]
            axes.plot(x, [point.y * factor for point in line], color=color, marker=".", lw=1.3, label=policy)
            if line[0].y_low is not None:
                low = [(point.y if point.y_low is None else point.y_low) * factor for point in line]
                high = [(point.y if point.y_high is None else point.y_high) * factor for point in line]
                floor = min(point.y for point in line) * factor / 10 if metric in _LOG else -np.inf
                axes.fill_between(x, np.maximum(low, floor), high, color=color, alpha=0.15, lw=0)
        published = list(curve(paper, trace, metric, policy).values())
        if published:
            axes.plot(
                [point.x for point in published],
                [point.y * factor for point in published],
                color=color,
                marker="o",
                mfc="none",
                ms=4,
                lw=0.6,
                ls=":",
                label=f"{policy}, published",
            )
    if metric in _LOG:
        axes.set_yscale("log")
    if figure == 10:
        axes.set_xscale("log", base=2)
    unit = " (ms)" if metric in _MILLISECONDS or figure in (10, 16) else "" if figure == 12 else " (s)"
    axes.set_title(f"{trace}: {metric}{'' if metric == 'Resource Cost' else unit}", fontsize=8, loc="left")
    axes.set_xlabel(X_LABELS[figure], fontsize=7)
