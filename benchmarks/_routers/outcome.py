"""What came of a load: figures of one run, and of a party over its seeds beside the others'."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec
import numpy as np
from frame.verdict import Figure, at_most, number
from rich.console import Console
from rich.table import Table

from _routers.faults import Fault
from _routers.loads import NOTICED_BY_NOBODY, Load
from _routers.parties import OURS, WITH_CLASSES
from llumnix.report.records import RequestRecord

SMALL = 1e-9


class Targets(msgspec.Struct, frozen=True):
    ttft_s: float
    tpot_s: float

    def met_by(self, record: RequestRecord) -> bool:
        in_time = record.ttft_s is not None and record.ttft_s <= self.ttft_s
        return in_time and not record.error and (record.tpot_s is None or record.tpot_s <= self.tpot_s)


class Setting(msgspec.Struct, frozen=True):
    """Only runs that have it in common are compared."""

    fault: Fault | None
    tries: int
    """So often a request is asked at most."""
    engines: int
    requests: int
    step_ms: float
    token_ms: float
    targets: Targets


class Run(msgspec.Struct, frozen=True):
    load: str
    seed: int
    party: str
    figures: dict[str, float]
    setting: Setting | None
    """None: kept before runs said theirs."""


_TIMES: dict[str, Callable[[RequestRecord], float | None]] = {
    "TTFT": lambda record: record.ttft_s,
    "TPOT": lambda record: record.tpot_s,
    "latency": lambda record: record.latency_s,
    "gap": lambda record: record.largest_gap_s,
}


def figures_of(
    records: Sequence[RequestRecord],
    targets: Targets,
    cpu_s: float,
    preemptions: int,
    asked_again: Collection[str] = (),
) -> dict[str, float]:
    """By name; times in seconds. Those of requests that came to nothing are in `failed` alone.

    `asked_again`: requests that failed, and were asked again. They are in `failed`, too; their times are those of a
    client that waits until it has more than it had. `unbroken gap` is that of all others.
    """
    done = [record for record in records if not record.error]
    found: dict[str, float] = {}
    for name, of in _TIMES.items():
        found |= _distribution(name, done, of)
    unbroken = [record for record in done if record.id not in asked_again]
    found |= _distribution("unbroken gap", unbroken, _TIMES["gap"])
    offered_s = max(record.arrival_s for record in records) - min(record.arrival_s for record in records)
    return found | {
        "goodput": sum(map(targets.met_by, records)) / offered_s,
        "failed": float(len(records) - len(unbroken)),
        "CPU s per request": cpu_s / len(records),
        "preemptions": float(preemptions),
    }


def _distribution(
    name: str, records: Sequence[RequestRecord], of: Callable[[RequestRecord], float | None]
) -> dict[str, float]:
    values = [value for record in records if (value := of(record)) is not None]
    told = (*np.percentile(values, [50, 99]), np.mean(values)) if values else (math.inf,) * 3
    return {f"{name} {which}": float(value) for which, value in zip(("P50", "P99", "mean"), told, strict=True)}


def geometric_mean(values: Iterable[float]) -> float:
    return statistics.geometric_mean(max(value, SMALL) for value in values)


_TOLD = ("TTFT mean", "TTFT P50", "TTFT P99", "TPOT P50", "TPOT P99", "latency mean", "latency P99")


def print_table(title: str, runs: Sequence[Run]) -> None:
    """Geometric means over seeds, a row for each party; counts are sums."""
    columns = (*_TOLD, "gap P99")
    rest = ("unbroken gap P99", "goodput", "CPU s per request")
    counts = ("failed", "preemptions")
    table = Table("", *columns, *rest, *counts, title=title)
    for party, mine in _by_party(runs).items():
        means = [number(geometric_mean(run.figures[name] for run in mine)) for name in (*columns, *rest)]
        sums = [number(sum(run.figures[name] for run in mine)) for name in counts]
        table.add_row(party, *means, *sums)
    Console(width=200).print(table)


def compared(title: str, load: Load, runs: Sequence[Run], fault: Fault | None = None) -> list[Figure]:
    """Each of ours over the best of theirs, each figure's best for itself. Only where both are there."""
    parties = _by_party(runs)
    theirs = {name: mine for name, mine in parties.items() if name not in (OURS, WITH_CLASSES)}
    figures = []
    usual = load.goals | (NOTICED_BY_NOBODY if fault in ("kill", "stop") else {})
    for ours, goals, failed in ((OURS, usual, at_most(0)), (WITH_CLASSES, load.goals_with_classes, None)):
        if ours not in parties or not theirs:
            continue
        for name, more_is_better in _COMPARED.items():
            ratios = {party: _ratio(parties[ours], mine, name) for party, mine in theirs.items()}
            best = (min if more_is_better else max)(ratios, key=lambda party: ratios[party])
            figures.append(Figure(f"{title}: {name}, {ours} / {best}", ratios[best], goals.get(name), "×"))
        count = sum(run.figures["failed"] for run in parties[ours])
        figures.append(Figure(f"{title}: failed, {ours}", count, failed))
    return figures


_COMPARED = dict.fromkeys(
    ("TTFT mean", "TTFT P99", "TPOT P50", "TPOT P99", "latency P50", "latency mean", "latency P99", "gap P99"), False
) | {"goodput": True}
"""Is more of it better?"""


def _ratio(ours: Sequence[Run], theirs: Sequence[Run], name: str) -> float:
    """Geometric mean over the seeds that both have had."""
    mine = {run.seed: run.figures[name] for run in ours}
    return geometric_mean(
        max(mine[run.seed], SMALL) / max(run.figures[name], SMALL) for run in theirs if run.seed in mine
    )


def _by_party(runs: Sequence[Run]) -> Mapping[str, list[Run]]:
    parties: dict[str, list[Run]] = {}
    for run in runs:
        parties.setdefault(run.party, []).append(run)
    return parties
