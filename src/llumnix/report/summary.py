"""The few numbers that a run comes down to, from its records.

Percentiles are interpolated linearly between the two nearest values (NumPy's default, the paper's too). Times of
requests are over those that finished; a failed request counts in `failed` and `errors` and nowhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from llumnix.plain import plain
from llumnix.report.records import MOVED, InstanceRecord, Records, RequestRecord
from llumnix.types import InstanceState, is_high

SUMMARY_JSON = "summary.json"

Fact = str | int | float | bool | None
"""One fact about how a run was made: workload, policy, seed, …"""


class Distribution(msgspec.Struct, frozen=True):
    """Of a list of values: how many, mean, percentiles, largest."""

    count: int
    mean: float
    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Distribution | None:
        """Of the values that are known; None if there are none."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        p50, p99 = np.percentile(known, [50, 99])
        return cls(len(known), *(_rounded(float(x)) for x in (np.mean(known), p50, p99, max(known))))


class RequestSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of a run, or of one of its priority classes."""

    requests: int
    failed: int
    latency_s: Distribution | None
    ttft_s: Distribution | None
    tpot_s: Distribution | None
    largest_gap_s: Distribution | None
    preemptions: int | None
    """None where no request knows: a client cannot see them."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A run. `run` says how it was made; `summary.json` is this struct."""

    run: dict[str, Fact]
    duration_s: float
    """First arrival to the end of the last that finished; of what failed nobody noted an end."""
    requests: RequestSummary
    by_priority: dict[str, RequestSummary]
    """`high` and `normal`, where both exist."""
    errors: dict[str, int]
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    """Prompt and output tokens of the finished requests."""
    preemptions: int | None
    preemptions_avoided: int | None = None
    """By requests that left in time; None where no instance tells."""
    recompute_tokens_saved: int | None = None
    """Their tokens."""
    migrations: dict[str, int]
    """Attempts by outcome."""
    downtime_ms: Distribution | None
    mean_instances: float | None
    """Instances that existed (starting, running or draining), averaged over time."""


def summarize(records: Records, run: Mapping[str, Fact] | None = None) -> Summary:
    """The summary of `records`. `run` is kept as it is."""
    requests = records.requests
    done = [r for r in requests if not r.error]
    start_s = min((r.arrival_s for r in requests), default=0.0)
    duration_s = max((r.arrival_s + (r.latency_s or 0.0) for r in requests), default=0.0) - start_s
    span_s = duration_s or 1.0
    classes = {
        "high": [r for r in requests if is_high(r.priority)],
        "normal": [r for r in requests if not is_high(r.priority)],
    }
    output_tokens = sum(r.output_tokens for r in done)
    whole = _summarize_requests(requests)
    return Summary(
        run=dict(run or {}),
        duration_s=_rounded(duration_s),
        requests=whole,
        by_priority={name: _summarize_requests(rows) for name, rows in classes.items()}
        if all(classes.values())
        else {},
        errors=_count(r.error for r in requests if r.error),
        requests_per_s=_rounded(len(done) / span_s),
        output_tokens_per_s=_rounded(output_tokens / span_s),
        total_tokens_per_s=_rounded((output_tokens + sum(r.prompt_tokens for r in done)) / span_s),
        preemptions=whole.preemptions if whole.preemptions is not None else _grown(records.instances, "preemptions"),
        preemptions_avoided=_grown(records.instances, "preemptions_avoided"),
        recompute_tokens_saved=_grown(records.instances, "recompute_tokens_saved"),
        migrations=_count(m.outcome for m in records.migrations),
        downtime_ms=Distribution.of(m.downtime_ms for m in records.migrations if m.outcome == MOVED),
        mean_instances=mean_instances(records.instances),
    )


def mean_instances(rows: Sequence[InstanceRecord]) -> float | None:
    """Time-weighted mean number of instances; None with less than two moments of rows.

    A row holds until the next row of the same instance; the last one holds until the next moment at which
    anything was recorded, and to the end if that is where it is.
    """
    moments = sorted({row.at_s for row in rows})
    if len(moments) < 2:
        return None
    following = dict(zip(moments, [*moments[1:], moments[-1]], strict=True))
    alive_s = 0.0
    for series in by_instance(rows).values():
        ends = [row.at_s for row in series[1:]] + [following[series[-1].at_s]]
        alive_s += sum(end - row.at_s for row, end in zip(series, ends, strict=True) if exists(row.state))
    return _rounded(alive_s / (moments[-1] - moments[0]))


def by_instance(rows: Iterable[InstanceRecord]) -> dict[str, list[InstanceRecord]]:
    """The time series of each instance, instances in order of their first row."""
    series: dict[str, list[InstanceRecord]] = {}
    for row in sorted(rows, key=lambda row: row.at_s):
        series.setdefault(row.instance, []).append(row)
    return series


def existing(rows: Iterable[InstanceRecord]) -> dict[str, list[InstanceRecord]]:
    """The same without those that were gone all the time: servers tell of some that went long before."""
    return {name: series for name, series in by_instance(rows).items() if any(exists(row.state) for row in series)}


def exists(state: InstanceState) -> bool:
    """Whether an instance in this state holds its machine."""
    return state not in (InstanceState.STOPPED, InstanceState.LOST)


def write_summary(path: Path, summary: Summary) -> None:
    """Writes `summary` as indented JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Prints the summary as a table of latencies and a few lines of counts."""
    console = console or Console()
    title = " · ".join(f"{key} {value}" for key, value in summary.run.items() if value not in (None, ""))
    if title:
        console.print(Text(plain(title), style="bold"), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD)
    for column in ("", "requests", "mean", "P50", "P99", "max"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, group in {"": summary.requests, **summary.by_priority}.items():
        for label, distribution, factor, unit in (
            ("latency", group.latency_s, 1.0, "s"),
            ("TTFT", group.ttft_s, 1.0, "s"),
            ("TPOT", group.tpot_s, 1000.0, "ms"),
            ("largest gap", group.largest_gap_s, 1000.0, "ms"),
        ):
            table.add_row(f"{name} {label}".strip(), *_cells(distribution, factor, unit))
        table.add_section()
    if summary.downtime_ms:
        table.add_row("migration downtime", *_cells(summary.downtime_ms, 1.0, "ms"))
    console.print(table)
    console.print(_counts(summary), emoji=False, highlight=False, soft_wrap=True)


def _counts(summary: Summary) -> str:
    requests = summary.requests
    finished = requests.requests - requests.failed
    rates = f"{summary.requests_per_s:.2f} requests/s, {summary.output_tokens_per_s:,.0f} output tokens/s"
    lines = [f"{finished:,} of {requests.requests:,} requests finished in {summary.duration_s:,.1f} s: {rates}"]
    if summary.migrations:
        lines.append("migrations: " + ", ".join(f"{n:,} {escape(plain(how))}" for how, n in summary.migrations.items()))
    if summary.preemptions is not None:
        avoided = f", {summary.preemptions_avoided:,} avoided" if summary.preemptions_avoided else ""
        lines.append(f"preemptions: {summary.preemptions:,}{avoided}")
    if summary.mean_instances is not None:
        lines.append(f"instances: {summary.mean_instances:.2f} on average")
    if requests.failed:
        kinds = ", ".join(f"{count:,} × {escape(plain(error))}" for error, count in summary.errors.items())
        lines.append(f"[bold red]{requests.failed:,} requests failed:[/] {kinds}")
    return "\n".join(lines)


def _cells(distribution: Distribution | None, factor: float, unit: str) -> list[str]:
    if distribution is None:
        return ["0"] + ["–"] * 4
    d = distribution
    return [
        f"{d.count:,}",
        *(f"{value * factor:,.{_decimals(value * factor)}f} {unit}" for value in (d.mean, d.p50, d.p99, d.max)),
    ]


def _decimals(value: float) -> int:
    return 3 if abs(value) < 1 else 2 if abs(value) < 100 else 0


def _summarize_requests(rows: Sequence[RequestRecord]) -> RequestSummary:
    done = [r for r in rows if not r.error]
    known = [r.preemptions for r in rows if r.preemptions is not None]
    return RequestSummary(
        requests=len(rows),
        failed=len(rows) - len(done),
        latency_s=Distribution.of(r.latency_s for r in done),
        ttft_s=Distribution.of(r.ttft_s for r in done),
        tpot_s=Distribution.of(r.tpot_s for r in done),
        largest_gap_s=Distribution.of(r.largest_gap_s for r in done),
        preemptions=sum(known) if known else None,
    )


def _grown(rows: Sequence[InstanceRecord], counter: str) -> int | None:
    """What a counter of the instances grew by, all together. One that ended has no counters any more in its last row;
    one that was not there in the beginning began at 0."""
    if not rows:
        return None
    start_s = min(row.at_s for row in rows)
    grown = 0
    for series in by_instance(rows).values():
        values = [getattr(row, counter) for row in series]
        grown += max(values) - (values[0] if series[0].at_s == start_s else 0)
    return grown


def _count(values: Iterable[str]) -> dict[str, int]:
    """How often each occurs, most frequent first, then by name."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _rounded(value: float) -> float:
    """As records are: 6 decimals, so that equal records give equal bytes."""
    return round(value, 6)
