"""The numbers that are predicted: of what clients see, and of what the policy does."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llumnix.report.records import RequestRecord

P99_NEEDS = 500
"""Requests: below, a P99 is the two or three that chance has hit."""


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    field: str
    """Of `RequestRecord`."""
    percentile: int | None = None
    """None: the sum over all requests."""
    unit: str = "ms"

    @property
    def counts(self) -> bool:
        return self.percentile is None

    def of(self, requests: Sequence[RequestRecord]) -> float | None:
        """In `unit`; None if no request knows."""
        values = [value for request in requests if (value := getattr(request, self.field)) is not None]
        if not values:
            return None
        if self.percentile is None:
            return float(sum(values))
        return float(np.percentile(values, self.percentile)) * (1e3 if self.unit == "ms" else 1.0)


METRICS = (
    Metric("TTFT P50", "ttft_s", 50),
    Metric("TTFT P99", "ttft_s", 99),
    Metric("TPOT P50", "tpot_s", 50),
    Metric("TPOT P99", "tpot_s", 99),
    Metric("latency P50", "latency_s", 50, "s"),
    Metric("latency P99", "latency_s", 99, "s"),
    Metric("largest gap P99", "largest_gap_s", 99),
    Metric("preemptions", "preemptions", unit=""),
    Metric("moves", "migrations", unit=""),
)

ALL, FIRST, SECOND = "all", "first half", "second half"

RunNumbers = dict[str, dict[str, float]]
"""By part of the run (`ALL`, and its halves by arrival) and metric; what is not known is not there."""


def numbers_of(requests: Sequence[RequestRecord], kept: Collection[str]) -> RunNumbers:
    """Of the requests with ids among `kept`."""
    known = [request for request in sorted(requests, key=lambda each: (each.arrival_s, each.id)) if request.id in kept]
    middle = len(known) // 2
    parts: Mapping[str, Sequence[RequestRecord]] = {ALL: known, FIRST: known[:middle], SECOND: known[middle:]}
    return {
        part: {metric.name: value for metric in METRICS if (value := metric.of(rows)) is not None}
        for part, rows in parts.items()
    }
