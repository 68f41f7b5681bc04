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
from typing import Any, TypeAlias

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from llumnix.report.records import MOVED, InstanceRecord, MigrationRecord, Records, RequestRecord
from llumnix.report.summary import by_instance, exists
from llumnix.types import InstanceState, is_high

INK, FAINT, GRID = "#24292f", "#8b949e", "#e6e8eb"
BLUE, RED, GREEN, AMBER, PURPLE, TEAL = "#2f6fde", "#d1373f", "#2e8b57", "#d98e04", "#7d4cc2", "#1295a5"
REASON_COLORS = (BLUE, AMBER, GREEN, PURPLE, TEAL)
MEMORY = LinearSegmentedColormap.from_list(
    "memory", [(0.0, "#f4f7fb"), (0.5, "#b4cff2"), (0.9, "#2f6fde"), (0.96, "#1b2f6b"), (1.0, "#d1373f")]
)
FREENESS = LinearSegmentedColormap.from_list("freeness", ["#d1373f", "#f6b26b", "#f3f4e8", "#8cc6a0", "#2e8b57"])

MOST_MOMENTS = 1200
"""Columns of a heat map at most."""

_STYLE: dict[Any, Any] = {
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
        with rc_context(_STYLE):
            figure = picture(records)
            if title:
                figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
            # Without the program's version in it, the same records give the same file.
            figure.savefig(directory / name, dpi=150, metadata={"Software": None})
        paths.append(directory / name)
    return paths


# Latency


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
        for index, (name, color, rows) in enumerate(classes):
            values = np.sort([value for row in rows if (value := read(row)) is not None])
            if len(values):
                _distribution(axes, values, name if len(classes) > 1 else "", color, index)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _duration(x)))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower right")
    return figure


def _distribution(axes: Axes, values: NDArray[np.float64], name: str, color: str, index: int) -> None:
    p50, p99 = np.percentile(values, [50, 99])
    share = np.arange(1, len(values) + 1) / len(values)
    axes.step(values, share, where="post", color=color, lw=1.6)
    axes.plot([p50, p99], [0.5, 0.99], "o", ms=4, color=color)
    label = f"{name}  P50 {_duration(p50)}  P99 {_duration(p99)}".strip()
    axes.plot([], [], color=color, label=label)
    # A tail of many times the median would squeeze everything else against the axis.
    if values[0] > 0 and values[-1] > 10 * p50:
        axes.set_xscale("log")


# Timeline


Series: TypeAlias = dict[str, list[InstanceRecord]]


def draw_timeline(records: Records) -> Figure:
    """Everything over time: counts above, one row per instance below."""
    series = by_instance(records.instances)
    height = min(3.0, 0.7 + 0.22 * len(series))
    heights = [1.0, 1.0, height, height, 0.9]
    figure = Figure(figsize=(11, sum(heights) + 2.2), layout="constrained")
    counts, load, memory, freeness, preemptions = figure.subplots(5, 1, sharex=True, height_ratios=heights)
    moments = _moments(records.instances)

    alive = _total(series, moments, lambda row: float(exists(row.state)))
    serving = _total(series, moments, lambda row: float(row.state == InstanceState.RUNNING))
    counts.set_title("Instances")
    counts.fill_between(moments, alive, step="post", color=BLUE, alpha=0.15, lw=0, label="existing")
    counts.step(moments, serving, where="post", color=BLUE, lw=1.6, label="taking requests")
    counts.set_ylim(0, max(alive.max() * 1.25, 1))
    _legend(counts)

    load.set_title("Requests")
    load.step(
        moments, _total(series, moments, lambda row: row.running), where="post", color=BLUE, lw=1.4, label="running"
    )
    load.step(
        moments, _total(series, moments, lambda row: row.waiting), where="post", color=RED, lw=1.4, label="waiting"
    )
    load.set_ylim(bottom=0)
    _legend(load)

    _heat_map(memory, "KV cache in use", series, moments, _used_share, (MEMORY, 0.0, 1.0, "{:.0%}"))
    limit = _typical_freeness(records.instances)
    _heat_map(
        freeness,
        "Freeness (blocks per running request; lowest while draining)",
        series,
        moments,
        _freeness,
        (FREENESS, -limit / 3, limit, "{:.0f}"),
    )

    preemptions.set_title("Preemptions so far")
    grown = np.zeros(len(moments))
    for rows in series.values():
        # An instance that is gone keeps its preemptions.
        grown += _sampled(rows, moments, lambda row: row.preemptions, before=rows[0].preemptions) - rows[0].preemptions
    preemptions.fill_between(moments, grown, step="post", color=RED, alpha=0.2, lw=0)
    preemptions.step(moments, grown, where="post", color=RED, lw=1.4)
    preemptions.set_ylim(0, max(1.0, grown[-1] * 1.15))
    preemptions.set_xlabel("seconds")
    for axes in (counts, load, preemptions):
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    counts.set_xlim(moments[0], moments[-1])
    return figure


def _moments(rows: Sequence[InstanceRecord]) -> NDArray[np.float64]:
    """When to draw: at every record, or evenly if those are more than a picture can show."""
    moments = np.array(sorted({row.at_s for row in rows}))
    return moments if len(moments) <= MOST_MOMENTS else np.linspace(moments[0], moments[-1], MOST_MOMENTS)


def _sampled(
    rows: Sequence[InstanceRecord],
    moments: NDArray[np.float64],
    read: Callable[[InstanceRecord], float],
    before: float = 0.0,
) -> NDArray[np.float64]:
    """The last value known at each moment; `before` the first row."""
    index = np.searchsorted(np.array([row.at_s for row in rows]), moments, side="right") - 1
    values = np.array([read(row) for row in rows], dtype=np.float64)
    return np.where(index >= 0, values[np.maximum(index, 0)], before)


def _total(
    series: Series, moments: NDArray[np.float64], read: Callable[[InstanceRecord], float]
) -> NDArray[np.float64]:
    """The sum over all instances that exist."""
    total = np.zeros(len(moments))
    for rows in series.values():
        total += _sampled(rows, moments, lambda row: read(row) if exists(row.state) else 0.0)
    return total


def _used_share(row: InstanceRecord) -> float:
    return 1.0 - row.free_blocks / row.total_blocks if row.total_blocks and exists(row.state) else np.nan


def _freeness(row: InstanceRecord) -> float:
    return row.freeness if exists(row.state) else np.nan


def _typical_freeness(rows: Sequence[InstanceRecord]) -> float:
    """Where the colours end: an idle instance's freeness is huge and would make all others look alike."""
    busy = [row.freeness for row in rows if row.running and np.isfinite(row.freeness)]
    return max(10.0, float(np.percentile(busy, 90))) if busy else 10.0


def _heat_map(
    axes: Axes,
    title: str,
    series: Series,
    moments: NDArray[np.float64],
    read: Callable[[InstanceRecord], float],
    look: tuple[LinearSegmentedColormap, float, float, str],
) -> None:
    """One row per instance, time to the right, colour for the value; a draining instance's −inf is the lowest."""
    colors, low, high, form = look
    cells = np.vstack([_sampled(rows, moments, read, before=np.nan) for rows in series.values()])
    edges = np.append(moments, moments[-1] + (moments[-1] - moments[-2]))
    mesh = axes.pcolormesh(
        edges, np.arange(len(series) + 1), np.clip(cells, low, high), cmap=colors, vmin=low, vmax=high, rasterized=True
    )
    axes.set_title(title)
    axes.grid(False)
    _name_rows(axes, list(series), offset=0.5)
    axes.set_ylim(len(series), 0)
    figure = axes.get_figure(root=True)
    if figure is not None:
        bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=12, format=FuncFormatter(lambda v, _: form.format(v)))
        bar.outline.set_visible(False)


def _legend(axes: Axes) -> None:
    """Beside the title, where it hides no data."""
    count = len(axes.get_legend_handles_labels()[0])
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=max(1, count), borderaxespad=0.0)


def _name_rows(axes: Axes, names: Sequence[str], offset: float = 0.0) -> None:
    step = 1 + (len(names) - 1) // 24
    axes.set_yticks([index + offset for index in range(0, len(names), step)], names[::step])
    axes.tick_params(axis="y", length=0)


# Migrations


def draw_migrations(records: Records) -> Figure:
    """Attempts as arrows between the rows of their instances; below, the downtimes of those that completed."""
    names = list(by_instance(records.instances))
    names += sorted({n for m in records.migrations for n in (m.source, m.target)} - set(names))
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
    reasons = sorted({m.reason for m in moved})
    for index, reason in enumerate(reasons):
        color = REASON_COLORS[index % len(REASON_COLORS)]
        same = [m for m in moved if m.reason == reason]
        lines = [[(m.at_s, rows[m.source]), (m.at_s, rows[m.target])] for m in same]
        axes.add_collection(LineCollection(lines, colors=color, linewidths=1.0, alpha=0.55))
        x, y = [m.at_s for m in same], [rows[m.target] for m in same]
        axes.scatter(x, y, s=16, color=color, zorder=3, label=f"{reason or 'moved'} ({len(same):,})")
    if others:
        x, y = [m.at_s for m in others], [rows[m.source] for m in others]
        axes.scatter(x, y, s=22, marker="x", lw=1.1, color=FAINT, zorder=2, label=f"stayed ({len(others):,})")
    _name_rows(axes, list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("seconds")
    axes.xaxis.grid(False)
    _legend(axes)


def _downtimes(axes: Axes, downtimes_ms: NDArray[np.float64]) -> None:
    p50, p99 = np.percentile(downtimes_ms, [50, 99])
    axes.set_title("Downtime that the client saw")
    axes.hist(downtimes_ms, bins=min(60, 10 + len(downtimes_ms) // 5), color=BLUE, alpha=0.75)
    for value, name in ((p50, "P50"), (p99, "P99")):
        axes.axvline(value, color=RED, lw=1.2)
        axes.annotate(
            f" {name} {_duration(value / 1000)}", (value, 0.98), xycoords=("data", "axes fraction"), color=RED, va="top"
        )
    axes.set_xlim(left=min(0.0, float(downtimes_ms.min())))
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("moves")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _duration(seconds: float) -> str:
    """A time as people say it: 12 ms, 0.8 s, 95 s."""
    if seconds == 0:
        return "0"
    if abs(seconds) < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if abs(seconds) < 1000 else f"{seconds:.0f} s"
