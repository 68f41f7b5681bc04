"""Parts of recorded traces: each seed has one of its own, and none is simulated twice as if it were news."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import cache

import msgspec

from llumnix.workload.workload import WorkloadRequest, load_workload

_FEWEST_PARTS = 3
_MOST_TOKENS = {"azure-conv": 12_000, "azure-code": 12_000, "mooncake-conv": 120_000}
"""Of a request: longer ones are left out."""


def is_recorded(trace: str) -> bool:
    return trace in _MOST_TOKENS


@cache
def _rows(trace: str) -> tuple[WorkloadRequest, ...]:
    return load_workload(f"{trace}?total={_MOST_TOKENS[trace]}").requests


def part_of(trace: str, seed: int, requests: int, rate: float) -> tuple[WorkloadRequest, ...]:
    """The `seed`-th part of so many requests (a third of the trace at most), in its own time, squeezed to the rate.
    Raises ValueError if the trace has no such part."""
    rows, size = _rows(trace), _size(trace, requests)
    if seed >= len(rows) // size:
        raise ValueError(f"{trace} has {len(rows) // size} parts of {size} requests, and none for seed {seed}")
    part = rows[seed * size : (seed + 1) * size]
    factor = (size - 1) / rate / (part[-1].arrival_s - part[0].arrival_s)
    return tuple(
        msgspec.structs.replace(row, arrival_s=round((row.arrival_s - part[0].arrival_s) * factor, 9)) for row in part
    )


def refuse_repeats(parser: argparse.ArgumentParser, traces: Iterable[str], requests: int, seeds: int) -> None:
    """Says that it is too many seeds if one of these traces, where it is recorded, has fewer parts."""
    for trace in filter(is_recorded, traces):
        if requests < 2:
            parser.error(f"{trace}: one request has no rate")
        parts = len(_rows(trace)) // _size(trace, requests)
        if seeds > parts:
            parser.error(f"--seeds {seeds}: {trace} has {parts} parts of {_size(trace, requests)} requests")


def _size(trace: str, requests: int) -> int:
    return min(requests, len(_rows(trace)) // _FEWEST_PARTS)
