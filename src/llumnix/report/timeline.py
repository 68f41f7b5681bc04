"""The picture of a run over time: counts above, one row per instance below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from llumnix.report.records import InstanceRecord, Records
from llumnix.report.style import BLUE, RED, legend, name_rows
from llumnix.report.summary import by_instance, existing, exists
from llumnix.types import InstanceState

MEMORY = LinearSegmentedColormap.from_list(
    "memory", [(0.0, "#f4f7fb"), (0.5, "#b4cff2"), (0.9, "#2f6fde"), (0.96, "#1b2f6b"), (1.0, "#d1373f")]
)
FREENESS = LinearSegmentedColormap.from_list("freeness", ["#d1373f", "#f6b26b", "#f3f4e8", "#8cc6a0", "#2e8b57"])


MOST_MOMENTS = 1200
"""Columns of a heat map at most."""

Series: TypeAlias = dict[str, list[InstanceRecord]]


def draw_timeline(records: Records) -> Figure:
    """Everything over time: counts above, one row per instance below."""
    series = existing(records.instances) or by_instance(records.instances)
    height = min(3.0, 0.7 + 0.22 * len(series))
    heights = [1.0, 1.0, height, height, 0.9]
    figure = Figure(figsize=(11, sum(heights) + 2.2), layout="constrained")
    counts, load, memory, freeness, preemptions = figure.subplots(5, 1, sharex=True, height_ratios=heights)
    moments = _moments(records.instances)

    _draw_counts(counts, series, moments)
    _draw_load(load, series, moments)
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

    _draw_preemptions(preemptions, series, moments)
    for axes in (counts, load, preemptions):
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    counts.set_xlim(moments[0], moments[-1])
    return figure


def _draw_counts(axes: Axes, series: Series, moments: NDArray[np.float64]) -> None:
    alive = _total(series, moments, lambda row: float(exists(row.state)))
    serving = _total(series, moments, lambda row: float(row.state == InstanceState.RUNNING))
    axes.set_title("Instances")
    axes.fill_between(moments, alive, step="post", color=BLUE, alpha=0.15, lw=0, label="existing")
    axes.step(moments, serving, where="post", color=BLUE, lw=1.6, label="taking requests")
    axes.set_ylim(0, max(alive.max() * 1.25, 1))
    legend(axes)


def _draw_load(axes: Axes, series: Series, moments: NDArray[np.float64]) -> None:
    axes.set_title("Requests")
    running, waiting = (_total(series, moments, read) for read in (lambda row: row.running, lambda row: row.waiting))
    axes.step(moments, running, where="post", color=BLUE, lw=1.4, label="running")
    axes.step(moments, waiting, where="post", color=RED, lw=1.4, label="waiting")
    axes.set_ylim(bottom=0)
    legend(axes)


def _draw_preemptions(axes: Axes, series: Series, moments: NDArray[np.float64]) -> None:
    axes.set_title("Preemptions so far")
    grown = np.zeros(len(moments))
    for rows in series.values():
        # One that is gone has no counters any more; one that was not there in the beginning began at 0.
        counted = np.maximum.accumulate([row.preemptions for row in rows])
        before = counted[0] if rows[0].at_s == moments[0] else 0
        grown += _held(rows, moments, counted, before) - before
    axes.fill_between(moments, grown, step="post", color=RED, alpha=0.2, lw=0)
    axes.step(moments, grown, where="post", color=RED, lw=1.4)
    axes.set_ylim(0, max(1.0, grown[-1] * 1.15))
    axes.set_xlabel("seconds")


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
    return _held(rows, moments, np.array([read(row) for row in rows], dtype=np.float64), before)


def _held(
    rows: Sequence[InstanceRecord], moments: NDArray[np.float64], values: NDArray[np.float64], before: float
) -> NDArray[np.float64]:
    """One value for each row."""
    index = np.searchsorted(np.array([row.at_s for row in rows]), moments, side="right") - 1
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
    name_rows(axes, list(series), offset=0.5)
    axes.set_ylim(len(series), 0)
    figure = axes.get_figure(root=True)
    if figure is not None:
        bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=12, format=FuncFormatter(lambda v, _: form.format(v)))
        bar.outline.set_visible(False)
