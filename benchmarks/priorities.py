"""What high priority is worth when memory is short, and what the others pay.

    python benchmarks/priorities.py --rounds 2

One load that makes instances preempt; one request in ten is important. A round sends it twice to the same server: with
the priorities, and with every request the same. Compared are the same requests in both. Exit code 1 if a request
failed or a goal is missed: P99 of the time to the first token of the important ones at most a third, mean latency of
the others at most 5 % longer.

Each step lasts as if every instance had a device of its own (--step-ms, --token-ms; with zeros they share the cores).
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from frame.models import paced_engine_flags, rounds_of_paced_load
from frame.server import llumnix_server
from frame.verdict import Figure, at_least, at_most, conclude
from rich.console import Console
from rich.table import Table

from llumnix.bench.client import BenchConfig, bench
from llumnix.report.records import RequestRecord
from llumnix.report.summary import summarize
from llumnix.types import NORMAL, is_high
from llumnix.workload.workload import Workload, WorkloadRequest, load_workload

WORKLOAD = "gamma:rate=3,cv=3,prompt=zipf128,output=zipf256,cap=600,requests=250,high=0.1"
KV_MIB = 12  # 96 blocks of 32 tokens
TARGET_TOKENS = 2560
"""Headroom: a sixth of the memory of an instance. Displacing makes room for the first token; this is for the others."""

Value = Callable[[RequestRecord], float | None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run, split by the class that a request has when priorities count."""

    high: list[RequestRecord]
    normal: list[RequestRecord]
    preemptions: int
    avoided: int
    moved: int

    @property
    def failed(self) -> int:
        return sum(bool(row.error) for row in [*self.high, *self.normal])


def main() -> int:
    arguments = rounds_of_paced_load(__doc__ or "", WORKLOAD)
    pairs: list[tuple[Outcome, Outcome]] = []
    flags = ("--priority-target-tokens", str(TARGET_TOKENS), "--max-num-seqs", "64")
    pace = paced_engine_flags(arguments.step_ms, arguments.token_ms, max_model_len=2048, kv_mib=KV_MIB)
    with pace as engine_flags, llumnix_server(engine_flags, *flags, instances=2) as server:
        _run(server.url, load_workload("poisson:rate=8,requests=16,output=50"), set())
        for number in range(arguments.rounds):
            workload = load_workload(arguments.workload, seed=arguments.seed + number)
            important = {request.id for request in workload.requests if is_high(request.priority)}
            equal = replace(workload, requests=tuple(_made_normal(one) for one in workload.requests))
            order = (workload, equal) if number % 2 == 0 else (equal, workload)
            outcomes = {id(one): _run(server.url, one, important) for one in order}
            pairs.append((outcomes[id(workload)], outcomes[id(equal)]))
    return _compare(pairs)


def _made_normal(request: WorkloadRequest) -> WorkloadRequest:
    return msgspec.structs.replace(request, priority=NORMAL)


def _run(url: str, workload: Workload, important: set[str]) -> Outcome:
    records = asyncio.run(bench(workload, BenchConfig(url=url), Console(stderr=True))).records
    high = [row for row in records.requests if row.id in important]
    normal = [row for row in records.requests if row.id not in important]
    summary = summarize(records)
    counts = (summary.preemptions, summary.preemptions_avoided, summary.migrations.get("moved"))
    return Outcome(high, normal, *(count or 0 for count in counts))


def _compare(pairs: Sequence[tuple[Outcome, Outcome]]) -> int:
    table = Table("", "with priorities", "without", "with / without, all rounds together [lowest-highest round]")
    ratios: dict[str, float] = {}
    for name, rows, value, measure in (
        ("high: TTFT P99, s", _high, _ttft, _p99),
        ("high: TTFT mean, s", _high, _ttft, statistics.fmean),
        ("high: latency mean, s", _high, _latency, statistics.fmean),
        ("normal: TTFT P99, s", _normal, _ttft, _p99),
        ("normal: latency mean, s", _normal, _latency, statistics.fmean),
    ):
        values = [[_values(rows(outcome), value) for outcome in column] for column in zip(*pairs, strict=True)]
        columns = [[measure(one) for one in column] for column in values]
        each = [a / b for a, b in zip(*columns, strict=True)]
        with_them, without = (measure([one for some in column for one in some]) for column in values)
        ratios[name] = with_them / without
        cells = (" ".join(f"{figure:.3g}" for figure in column) for column in columns)
        table.add_row(name, *cells, f"{ratios[name]:.2f} [{min(each):.2f}-{max(each):.2f}]")
    counts = (("preemptions", _preempted), ("preemptions avoided", _avoided), ("moves", _moved), ("failed", _failed))
    for name, count in counts:
        table.add_row(
            name, *(" ".join(str(count(outcome)) for outcome in column) for column in zip(*pairs, strict=True))
        )
    Console().print(table)
    return conclude(
        Figure("TTFT P99 of the high ones, without / with", 1 / ratios["high: TTFT P99, s"], at_least(3)),
        Figure("mean latency of the rest, with / without", ratios["normal: latency mean, s"], at_most(1.05)),
        Figure("failed", sum(outcome.failed for pair in pairs for outcome in pair), at_most(0)),
    )


def _high(outcome: Outcome) -> list[RequestRecord]:
    return outcome.high


def _normal(outcome: Outcome) -> list[RequestRecord]:
    return outcome.normal


def _preempted(outcome: Outcome) -> int:
    return outcome.preemptions


def _avoided(outcome: Outcome) -> int:
    return outcome.avoided


def _moved(outcome: Outcome) -> int:
    return outcome.moved


def _failed(outcome: Outcome) -> int:
    return outcome.failed


def _ttft(row: RequestRecord) -> float | None:
    return row.ttft_s


def _latency(row: RequestRecord) -> float | None:
    return row.latency_s


def _values(rows: Sequence[RequestRecord], value: Value) -> list[float]:
    return [number for row in rows if (number := value(row)) is not None]


def _p99(values: Sequence[float]) -> float:
    return float(np.percentile(values, 99))


if __name__ == "__main__":
    sys.exit(main())
