"""What a benchmark measured beside what it is to reach: printed, kept in `out/results.jsonl`, and its exit code."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "out" / "results.jsonl"

_LOAD = os.getloadavg()
"""Before this run began to work: what else the machine did. Over 1, 5 and 15 minutes."""


_DRAWS = 1000

RoundT = TypeVar("RoundT")


class Goal(msgspec.Struct, frozen=True):
    limit: float
    at_least: bool = False

    def met_by(self, measured: float) -> bool:
        return measured >= self.limit if self.at_least else measured <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


def at_most(limit: float) -> Goal:
    return Goal(limit)


def at_least(limit: float) -> Goal:
    return Goal(limit, at_least=True)


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """`measured` is None where there was nothing to measure: no goal is met by that."""

    name: str
    measured: float | None
    goal: Goal | None = None
    unit: str = ""
    lowest: float | None = None
    highest: float | None = None

    @property
    def missed(self) -> bool:
        return self.goal is not None and (self.measured is None or not self.goal.met_by(self.measured))

    @property
    def text(self) -> str:
        """As it is printed, here and in the lab log."""
        if self.measured is None:
            return "–"
        spread = "" if self.lowest is None else f" [{number(self.lowest)}-{number(self.highest or 0.0)}]"
        return f"{number(self.measured)}{spread} {self.unit}".rstrip()


def median(name: str, values: Sequence[float], goal: Goal | None = None, unit: str = "") -> Figure:
    """The median of several rounds, with the lowest and the highest."""
    if not values:
        return Figure(name, None, goal, unit)
    return Figure(name, statistics.median(values), goal, unit, min(values), max(values))


def likely(
    name: str,
    rounds: Sequence[RoundT],
    what: Callable[[Sequence[RoundT]], float],
    goal: Goal | None = None,
    unit: str = "",
) -> Figure:
    """What many rounds say together, with the interval in which it lies in 95 of 100 cases: of rounds that are drawn
    from them again and again."""
    rng = random.Random(1)
    drawn = sorted(what(rng.choices(rounds, k=len(rounds))) for _ in range(_DRAWS))
    edge = _DRAWS * 25 // 1000
    return Figure(name, what(rounds), goal, unit, drawn[edge], drawn[-1 - edge])


def number(value: float) -> str:
    """Four digits that count, and none behind the point of a larger number."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class Run(msgspec.Struct, frozen=True):
    """A line of the results."""

    at: str
    commit: str
    command: str
    machine: str
    load: tuple[float, float, float]
    figures: tuple[Figure, ...]


def conclude(*figures: Figure) -> int:
    """Prints the figures and keeps them. Returns the exit code: 1 if a goal is missed."""
    table = Table("", "measured", "goal", "")
    for figure in figures:
        judged = "" if figure.goal is None else "MISSED" if figure.missed else "reached"
        table.add_row(figure.name, figure.text, str(figure.goal or ""), judged)
    Console(width=140).print(table)
    run = Run(
        at=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        commit=_commit(),
        command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        machine=_machine(),
        load=_LOAD,
        figures=figures,
    )
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("ab") as file:
        file.write(msgspec.json.encode(run, enc_hook=float) + b"\n")
    return int(any(figure.missed for figure in figures))


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{os.cpu_count()} × {model}, {psutil.virtual_memory().total / 2**30:.0f} GiB"
