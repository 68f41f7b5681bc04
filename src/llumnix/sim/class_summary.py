"""How the requests of each class and tenant fared in a run with `--classes`: `classes.json`, and a table."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import inf
from pathlib import Path

import msgspec
from rich.table import Table

from llumnix.policy.classes import Classes
from llumnix.report.summary import Distribution
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.outcome import mean_gap_s
from llumnix.status_table import add_row, console_here, met_share, refusals

CLASSES_JSON = "classes.json"


class ClassSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Of one class and one of its tenants. Times and tokens are those of requests that were served."""

    cls: str = msgspec.field(name="class")
    tenant: str
    requests: int
    refused: dict[str, int]
    """By the HTTP status that a server would have answered."""
    tokens: int
    """Of prompts and outputs."""
    ttft_s: Distribution | None
    tpot_s: Distribution | None
    ttft_met: int
    """Requests; none where there is no target. So are these."""
    ttft_missed: int
    tpot_met: int
    tpot_missed: int


def summarize_classes(requests: Sequence[SimRequest], classes: Classes) -> list[ClassSummary]:
    """By class and tenant."""
    found: defaultdict[tuple[str, str], list[SimRequest]] = defaultdict(list)
    for request in requests:
        found[request.service_class, request.tenant].append(request)
    return [_summary(cls, tenant, found[cls, tenant], classes) for cls, tenant in sorted(found)]


def write_class_summaries(directory: Path, summaries: Sequence[ClassSummary]) -> None:
    text = msgspec.json.format(msgspec.json.encode({"classes": summaries}), indent=2)
    (directory / CLASSES_JSON).write_bytes(text + b"\n")


def print_class_summaries(summaries: Sequence[ClassSummary]) -> None:
    names = ("class", "tenant", "requests", "refused", "TTFT mean", "TTFT P99", "TTFT met", "TPOT met")
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="left" if name in ("class", "tenant", "refused") else "right", overflow="fold")
    for each in summaries:
        ttft = ("–", "–") if each.ttft_s is None else (f"{each.ttft_s.mean:.3f} s", f"{each.ttft_s.p99:.3f} s")
        add_row(
            table,
            *(each.cls or "–", each.tenant or "–", f"{each.requests:,}", refusals(each.refused), *ttft),
            *(met_share(each.ttft_met, each.ttft_missed), met_share(each.tpot_met, each.tpot_missed)),
        )
    console_here().print(table)


def _summary(cls: str, tenant: str, requests: Sequence[SimRequest], classes: Classes) -> ClassSummary:
    served = [request for request in requests if request.finish_s < inf]
    ttfts = [request.first_token_s - request.arrival_s for request in served]
    tpots = [mean_gap_s(request) for request in served if request.output_tokens > 1]
    promised = classes.classes.get(cls)
    return ClassSummary(
        cls=cls,
        tenant=tenant,
        requests=len(requests),
        refused=dict(Counter(str(request.declined.status) for request in requests if request.declined is not None)),
        tokens=sum(request.tokens for request in served),
        ttft_s=Distribution.of(ttfts),
        tpot_s=Distribution.of(tpots),
        **_met("ttft", ttfts, None if promised is None else promised.ttft_s),
        **_met("tpot", tpots, None if promised is None else promised.tpot_s),
    )


def _met(what: str, times_s: Sequence[float], target_s: float | None) -> dict[str, int]:
    judged = [] if target_s is None else [time_s <= target_s for time_s in times_s]
    return {f"{what}_met": sum(judged), f"{what}_missed": len(judged) - sum(judged)}
