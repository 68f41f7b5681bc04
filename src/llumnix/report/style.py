"""How all pictures of a run look: colours, fonts, and how a time is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

INK, FAINT, GRID = "#24292f", "#8b949e", "#e6e8eb"
BLUE, RED, GREEN, AMBER, PURPLE, TEAL = "#2f6fde", "#d1373f", "#2e8b57", "#d98e04", "#7d4cc2", "#1295a5"
CAUSE_COLORS = (BLUE, AMBER, GREEN, PURPLE, TEAL)
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


def legend(axes: Axes) -> None:
    """Beside the title, where it hides no data."""
    count = len(axes.get_legend_handles_labels()[0])
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=max(1, count), borderaxespad=0.0)


def name_rows(axes: Axes, names: Sequence[str], offset: float = 0.0) -> None:
    """Names the rows 0, 1, … (their middles with `offset` 0.5); only every so many of very many."""
    step = 1 + (len(names) - 1) // 24
    axes.set_yticks([index + offset for index in range(0, len(names), step)], names[::step])
    axes.tick_params(axis="y", length=0)


def duration(seconds: float) -> str:
    """A time as people say it: 12 ms, 0.8 s, 95 s."""
    if seconds == 0:
        return "0"
    if abs(seconds) < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if abs(seconds) < 1000 else f"{seconds:.0f} s"
