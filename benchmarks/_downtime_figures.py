"""What migration_downtime.py measured, told: a table, the goals, and Figure 10 of the paper drawn and written."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from frame.verdict import Figure, at_most

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLAT, STEPS, SLOW_DOWN = 1.5, 1.5, 1.03
"""Goals: largest over smallest downtime; downtime in normal steps; neighbours' step, migration on over off."""
MOST_STEPS = 4
"""Of a neighbour, per move, at most."""


@dataclass(slots=True)
class Figures:
    """Of one length. Seconds."""

    migration: list[float] = field(default_factory=list)
    told: list[float] = field(default_factory=list)
    """Downtime of the same moves as the server measured it."""
    step: list[float] = field(default_factory=list)
    """Normal step of the moved stream, one median per move."""
    blocking: list[float] = field(default_factory=list)
    recompute: list[float] = field(default_factory=list)
    neighbours_off: list[float] = field(default_factory=list)
    neighbours_on: list[float] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)
    gb_per_s: list[float] = field(default_factory=list)
    """Of the same moves, from the order to the hand-over: asking, waiting and copying."""
    stages: list[int] = field(default_factory=list)


def p50_ms(values: Sequence[float]) -> float:
    return 1e3 * statistics.median(values)


def write_csv(figures: dict[int, Figures], path: Path) -> None:
    """Columns as in the paper's Figure 10 of `llumnix reproduce`; ms."""
    rows = ["figure,trace,metric,policy,x,y,y_low,y_high"]
    for length, mine in figures.items():
        series = (
            ("Downtime", "Migration", mine.migration),
            ("Downtime", "Blocking copy", mine.blocking),
            ("Downtime", "Recompute", mine.recompute),
            ("Decode latency", "Migration", mine.neighbours_on),
            ("Decode latency", "Normal", mine.neighbours_off),
        )
        for metric, policy, values in series:
            low, middle, high = (1e3 * float(value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
            rows.append(f"10,live,{metric},{policy},{length},{middle:.3f},{low:.3f},{high:.3f}")
    path.write_text("\n".join(rows) + "\n")


def spread(values: Sequence[float]) -> str:
    """P50 [P25-P75], ms."""
    low, middle, high = (1e3 * float(value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    digits = 0 if middle >= 100 else 1
    return f"{middle:.{digits}f} [{low:.{digits}f}-{high:.{digits}f}]"


def ratio(figures: Figures) -> float:
    return statistics.median(figures.neighbours_on) / statistics.median(figures.neighbours_off)


def print_table(figures: dict[int, Figures]) -> None:
    print("P50 [P25-P75] in ms; downtime is what the client waited beyond a normal step.\n")
    head = ("tokens", "downtime", "server's figure", "normal step", "blocking copy", "recompute")
    rows: list[tuple[str, ...]] = [(*head, "neighbours off", "on", "on/off", "MiB", "stages", "moves")]
    for length, mine in figures.items():
        columns = (mine.migration, mine.told, mine.step, mine.blocking, mine.recompute)
        rows.append(
            (
                *(str(length), *map(spread, columns)),
                *(f"{p50_ms(mine.neighbours_off):.2f}", f"{p50_ms(mine.neighbours_on):.2f}", f"{ratio(mine):.3f}"),
                *(f"{statistics.median(mine.mib):.1f}", f"{statistics.median(mine.stages):g}"),
                str(len(mine.migration)),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def judged(figures: dict[int, Figures]) -> tuple[Figure, ...]:
    downtimes = [statistics.median(mine.migration) for mine in figures.values()]
    flat = max(downtimes) / max(min(downtimes), 1e-6)
    steps = max(statistics.median(mine.migration) / statistics.median(mine.step) for mine in figures.values())
    off = [gap for mine in figures.values() for gap in normed(mine.neighbours_off, mine)]
    on = [gap for mine in figures.values() for gap in normed(mine.neighbours_on, mine)]
    slow_down = statistics.median(on) / statistics.median(off)
    return (
        Figure("downtime, largest over smallest length", flat, at_most(FLAT)),
        Figure("downtime in normal steps, worst length", steps, at_most(STEPS)),
        Figure("neighbours' step, on/off, median over all lengths", slow_down, at_most(SLOW_DOWN)),
        Figure(f"neighbours' means over up to {MOST_STEPS} steps that count", len(on)),
        Figure("copied at every length", state_mib(figures), unit="MiB"),
    )


def normed(gaps: list[float], mine: Figures) -> list[float]:
    """In units of the normal step at that length, so that lengths can be put together."""
    normal = statistics.median(mine.neighbours_off)
    return [gap / normal for gap in gaps]


def state_mib(figures: dict[int, Figures]) -> float:
    """What every move copied, whatever the length: a hybrid's state, and the free part of the last block."""
    if len(figures) < 2:
        return 0.0
    _, constant = np.polyfit(list(figures), [statistics.median(mine.mib) for mine in figures.values()], deg=1)
    return max(0.0, float(constant))


def check_copied(figures: dict[int, Figures]) -> None:
    """Raises SystemExit if moves skipped blocks."""
    if not unskipped(figures):
        raise SystemExit(
            f"moves did not copy everything: MiB per token by length {_per_token(figures)}, and "
            f"{state_mib(figures)} for each"
        )


def unskipped(figures: dict[int, Figures]) -> bool:
    """Whether moves skipped no blocks: bytes must grow as lengths do."""
    per_token = _per_token(figures)
    return min(per_token) >= 0.8 * max(per_token)


def _per_token(figures: dict[int, Figures]) -> list[float]:
    """MiB, by length."""
    constant = state_mib(figures)
    return [(statistics.median(mine.mib) - constant) / length for length, mine in figures.items()]


def draw(figures: dict[int, Figures], path: Path, title: str) -> None:
    from matplotlib import figure as pictures

    figure = pictures.Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_downtimes(left, figures)
    _draw_neighbours(right, figures)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e8eb")
        axes.set_axisbelow(True)
        axes.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)


def _draw_downtimes(axes: Axes, figures: dict[int, Figures]) -> None:
    from matplotlib.ticker import FuncFormatter

    lengths = list(figures)
    lines = (
        ("recompute", [mine.recompute for mine in figures.values()], "#d98e04", "s"),
        ("blocking copy", [mine.blocking for mine in figures.values()], "#d1373f", "^"),
        ("live migration", [mine.migration for mine in figures.values()], "#2f6fde", "o"),
        ("one normal step", [mine.step for mine in figures.values()], "#8b949e", "."),
    )
    for name, samples, color, marker in lines:
        low, middle, high = (
            [max(1e3 * float(np.quantile(values, q)), 0.05) for values in samples] for q in (0.25, 0.5, 0.75)
        )
        axes.plot(lengths, middle, marker=marker, color=color, label=name)
        axes.fill_between(lengths, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set(
        xscale="log", yscale="log", xlabel="sequence length (tokens)", ylabel="ms", title="Downtime (P50, quartiles)"
    )
    axes.set_xticks(lengths, [str(length) for length in lengths], minor=False)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_neighbours(axes: Axes, figures: dict[int, Figures]) -> None:
    lengths = list(figures)
    places = np.arange(len(lengths))
    axes.bar(
        places - 0.2, [p50_ms(mine.neighbours_off) for mine in figures.values()], 0.38, label="normal", color="#8b949e"
    )
    axes.bar(
        places + 0.2, [p50_ms(mine.neighbours_on) for mine in figures.values()], 0.38,
        label="while one is copied out", color="#2f6fde",
    )  # fmt: skip
    axes.set(
        xlabel="length of the sequence that moves (tokens)", ylabel="ms", title="Step of the others in its batch (P50)"
    )
    axes.set_xticks(places, [str(length) for length in lengths])
    axes.set_ylim(top=1.2 * axes.get_ylim()[1])
