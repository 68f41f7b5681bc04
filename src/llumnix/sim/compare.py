"""Predicted beside measured: the records of a live run against those of its simulation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from llumnix.errors import UsageError
from llumnix.report.records import MOVED, Records, RequestRecord
from llumnix.report.summary import summarize


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity. `error` is relative to what was measured; None where that is 0 or not known."""

    name: str
    unit: str
    measured: float | None
    predicted: float | None

    @property
    def error(self) -> float | None:
        if self.measured is None or self.predicted is None or self.measured == 0:
            return None
        return self.predicted / self.measured - 1


def compare(measured: Records, predicted: Records) -> list[Comparison]:
    """TTFT, TPOT and latency at P50 and P99 over the requests that finished in both, preemptions, migrations.

    Raises UsageError if the two have no finished request in common.
    """
    theirs = {record.id: record for record in measured.requests if not record.error}
    ours = {record.id: record for record in predicted.requests if not record.error}
    both = [name for name in theirs if name in ours]
    if not both:
        raise UsageError("The two runs have no finished request in common: simulate the records' own requests.csv.")
    rows = []
    for title, attribute, unit, factor in (
        ("TTFT", "ttft_s", "ms", 1e3),
        ("TPOT", "tpot_s", "ms", 1e3),
        ("latency", "latency_s", "s", 1.0),
    ):
        pairs = [(getattr(theirs[name], attribute), getattr(ours[name], attribute)) for name in both]
        known = [pair for pair in pairs if None not in pair]
        for percentile in (50, 99):
            values = [
                float(np.percentile([pair[side] for pair in known], percentile)) * factor if known else None
                for side in (0, 1)
            ]
            rows.append(Comparison(f"{title} P{percentile}", unit, *values))
    rows.append(Comparison("preemptions", "", summarize(measured).preemptions, summarize(predicted).preemptions))
    rows.append(Comparison("migrations", "", _migrations(measured), _migrations(predicted)))
    return rows


def _migrations(records: Records) -> float | None:
    if records.migrations:
        return float(sum(row.outcome == MOVED for row in records.migrations))
    known: list[RequestRecord] = [record for record in records.requests if record.migrations is not None]
    return float(sum(record.migrations or 0 for record in known)) if known else None


def _cells(row: Comparison) -> tuple[str, str, str, str]:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:,.4g} {row.unit}".strip()

    error = "–" if row.error is None else f"{row.error:+.1%}"
    return row.name, number(row.measured), number(row.predicted), error


def print_comparison(rows: list[Comparison]) -> None:
    table = Table(title="predicted beside measured", title_justify="left")
    for column in ("", "measured", "predicted", "error"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(*_cells(row))
    Console().print(table)


def write_comparison(path: Path, rows: list[Comparison]) -> None:
    """Writes the table as Markdown."""
    lines = ["| | measured | predicted | error |", "|---|---:|---:|---:|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    path.write_text("\n".join(lines) + "\n")
