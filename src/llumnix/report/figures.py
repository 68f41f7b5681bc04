"""Pictures of a run, drawn from its records and from nothing else.

| file | shows |
|---|---|
| `latency.png` | distribution of latency, TTFT, TPOT and largest gap, by priority |
| `timeline.png` | instances, requests, memory and freeness of each instance, preemptions, over time |
| `migrations.png` | every attempt from source to target over time, and the downtime that clients saw |

A picture whose records are missing is not drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from llumnix.report.records import MOVED, MigrationRecord, Records, RequestRecord
from llumnix.report.style import BLUE, CAUSE_COLORS, FAINT, RED, STYLE, duration, legend, name_rows
from llumnix.report.summary import existing
from llumnix.report.timeline import draw_timeline
from llumnix.types import by_number, is_high


def draw(records: Records, directory: Path, title: str = "") -> list[Path]:
    """Draws every picture that `records` have data for into `directory`; the files, in order of the table above."""
    pictures: list[tuple[str, bool, Callable[[Records], Figure]]] = [
        ("latency.png", any(r.latency_s is not None for r in records.requests), draw_latency),
        ("timeline.png", len({row.at_s for row in records.instances}) > 1, draw_timeline),
        ("migrations.png", bool(records.migrations), draw_migrations),
    ]
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, has_data, picture in pictures:
        if not has_data:
            continue
        with rc_context(STYLE):
            figure = picture(records)
            if title:
                figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
            # Without the program's version in it, the same records give the same file.
            figure.savefig(directory / name, dpi=150, metadata={"Software": None})
        paths.append(directory / name)
    return paths


def draw_latency(records: Records) -> Figure:
    """Four cumulative distributions, P50 and P99 marked."""
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    done = [r for r in records.requests if not r.error]
    high = [r for r in done if is_high(r.priority)]
    normal = [r for r in done if not is_high(r.priority)]
    classes = [(name, color, rows) for name, color, rows in (("normal", BLUE, normal), ("high", RED, high)) if rows]
    panels: list[tuple[str, Callable[[RequestRecord], float | None]]] = [
        ("Request latency", lambda r: r.latency_s),
        ("Time to first token", lambda r: r.ttft_s),
        ("Time per output token", lambda r: r.tpot_s),
        ("Largest gap between two tokens", lambda r: r.largest_gap_s),
    ]
    for axes, (title, read) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        axes.set_title(title)
        for name, color, rows in classes:
            values = np.sort([value for row in rows if (value := read(row)) is not None])
            if len(values):
                _distribution(axes, values, name if len(classes) > 1 else "", color)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: duration(x)))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower right")
    return figure


def _distribution(axes: Axes, values: NDArray[np.float64], name: str, color: str) -> None:
    p50, p99 = np.percentile(values, [50, 99])
    share = np.arange(1, len(values) + 1) / len(values)
    axes.step(values, share, where="post", color=color, lw=1.6)
    axes.plot([p50, p99], [0.5, 0.99], "o", ms=4, color=color)
    label = f"{name}  P50 {duration(p50)}  P99 {duration(p99)}".strip()
    axes.plot([], [], color=color, label=label)
    # A tail of many times the median would squeeze everything else against the axis.
    if values[0] > 0 and values[-1] > 10 * p50:
        axes.set_xscale("log")


def draw_migrations(records: Records) -> Figure:
    """Attempts as arrows between the rows of their instances; below, the downtimes of those that completed."""
    names = list(existing(records.instances))
    names += sorted({n for m in records.migrations for n in (m.source, m.target)} - set(names), key=by_number)
    rows = {name: index for index, name in enumerate(names)}
    downtimes = [m.downtime_ms for m in records.migrations if m.outcome == MOVED and m.downtime_ms is not None]
    height = min(7.0, 1.4 + 0.3 * len(names))
    heights = [height, 1.8] if downtimes else [height]
    figure = Figure(figsize=(11, sum(heights) + 1.4), layout="constrained")
    panels = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _arrows(panels[0], records.migrations, rows)
    if downtimes:
        _downtimes(panels[1], np.array(downtimes))
    return figure


def _arrows(axes: Axes, migrations: Sequence[MigrationRecord], rows: dict[str, int]) -> None:
    moved = [m for m in migrations if m.outcome == MOVED]
    others = [m for m in migrations if m.outcome != MOVED]
    axes.set_title(f"Migrations: {len(moved):,} completed, {len(others):,} not (dot: target)")
    for index, cause in enumerate(sorted({_cause(m) for m in moved})):
        color = CAUSE_COLORS[index % len(CAUSE_COLORS)]
        same = [m for m in moved if _cause(m) == cause]
        lines = [[(m.at_s, rows[m.source]), (m.at_s, rows[m.target])] for m in same]
        axes.add_collection(LineCollection(lines, colors=color, linewidths=1.0, alpha=0.55))
        x, y = [m.at_s for m in same], [rows[m.target] for m in same]
        axes.scatter(x, y, s=16, color=color, zorder=3, label=f"{cause} ({len(same):,})")
    if others:
        x, y = [m.at_s for m in others], [rows[m.source] for m in others]
        axes.scatter(x, y, s=22, marker="x", lw=1.1, color=FAINT, zorder=2, label=f"stayed ({len(others):,})")
    name_rows(axes, list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("seconds")
    axes.xaxis.grid(False)
    legend(axes)


def _cause(migration: MigrationRecord) -> str:
    return "moved" if migration.cause is None else migration.cause.replace("_", " ")


def _downtimes(axes: Axes, downtimes_ms: NDArray[np.float64]) -> None:
    p50, p99 = np.percentile(downtimes_ms, [50, 99])
    axes.set_title("Downtime that the client saw")
    axes.hist(downtimes_ms, bins=min(60, 10 + len(downtimes_ms) // 5), color=BLUE, alpha=0.75)
    for value, name in ((p50, "P50"), (p99, "P99")):
        axes.axvline(value, color=RED, lw=1.2)
        axes.annotate(
            f" {name} {duration(value / 1000)}", (value, 0.98), xycoords=("data", "axes fraction"), color=RED, va="top"
        )
    axes.set_xlim(left=min(0.0, float(downtimes_ms.min())))
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("moves")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
