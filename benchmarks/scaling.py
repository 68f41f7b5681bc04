"""Auto-scaling under bursts: with live migration, and the same scaler without.

    python benchmarks/scaling.py --rounds 2

Gamma arrivals (CV 4) on 1 to 4 instances of the tiny model with little memory. Both servers have the same scaler and
the same flags; one moves requests (policy `llumnix`), one never does (`infaas++`, as in the paper's comparison). A
round serves the same requests to both. Compared are the P99 of the time to the first token and the time-weighted number
of instances, over the same stretch of time: who is through earlier counts with one instance until the other is. Exit
code 1 if a request failed or the goal is missed: P99 TTFT at least halved, or 20 % fewer instances, at no loss of the
other.

Each step lasts as if every instance had a device of its own (--step-ms, --token-ms). With zeros the instances share
the cores as they come: the more of them are at work, the slower is each.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from frame.models import paced_engine_flags, rounds_of_paced_load
from frame.server import llumnix_server
from frame.verdict import Figure, at_most, conclude, median
from rich.console import Console
from rich.table import Table

from llumnix.bench.client import BenchConfig, bench
from llumnix.report.summary import Summary, summarize
from llumnix.workload.workload import load_workload

WORKLOAD = "gamma:rate=2.5,cv=4,prompt=exp100,output=300,cap=600,requests=150"
KV_MIB = 12  # 96 blocks of 32 tokens: about eight requests
SCALING = (
    *("--scaling", "on", "--min-instances", "1", "--max-instances", "4"),
    *("--scale-out-freeness", "4", "--scale-in-freeness", "20", "--scale-window-s", "1"),
)
POLICIES = ("llumnix", "infaas++")
HALVED, FEWER, NO_LOSS = 0.5, 0.8, 1.02
"""Goals, as ratios; within two per cent nothing is lost."""


@dataclass(frozen=True, slots=True)
class Figures:
    ttft_p99_s: float
    ttft_mean_s: float
    latency_mean_s: float
    duration_s: float
    instance_s: float
    """Σ of the times that instances existed."""
    moved: int
    preemptions: int
    failed: int


def main() -> int:
    arguments = rounds_of_paced_load(__doc__ or "", WORKLOAD)
    rounds: dict[str, list[Figures]] = {policy: [] for policy in POLICIES}
    for number in range(arguments.rounds):
        order = POLICIES if number % 2 == 0 else POLICIES[::-1]
        for policy in order:
            rounds[policy].append(_run(policy, arguments, arguments.seed + number))
            _tell(policy, number, rounds[policy][-1])
    return _compare(rounds["llumnix"], rounds["infaas++"])


def _run(policy: str, arguments: argparse.Namespace, seed: int) -> Figures:
    workload = load_workload(arguments.workload, seed=seed)
    flags = ("--policy", policy, *SCALING, "--max-num-seqs", "64")
    pace = paced_engine_flags(arguments.step_ms, arguments.token_ms, max_model_len=2048, kv_mib=KV_MIB)
    with pace as engine_flags, llumnix_server(engine_flags, *flags, instances=1) as server:
        result = asyncio.run(bench(workload, BenchConfig(url=server.url), Console(stderr=True)))
    return _figures(summarize(result.records, result.facts))


def _figures(summary: Summary) -> Figures:
    requests = summary.requests
    assert requests.ttft_s is not None
    assert requests.latency_s is not None
    assert summary.mean_instances is not None
    return Figures(
        ttft_p99_s=requests.ttft_s.p99,
        ttft_mean_s=requests.ttft_s.mean,
        latency_mean_s=requests.latency_s.mean,
        duration_s=summary.duration_s,
        instance_s=summary.mean_instances * summary.duration_s,
        moved=summary.migrations.get("moved", 0),
        preemptions=summary.preemptions or 0,
        failed=requests.failed,
    )


def _instances(figures: Figures, until_s: float) -> float:
    """Time-weighted until then; after its own end it has the least number, one."""
    return (figures.instance_s + until_s - figures.duration_s) / until_s


def _tell(policy: str, number: int, figures: Figures) -> None:
    print(f"round {number}, {policy}: {figures}", flush=True)


def _compare(ours: Sequence[Figures], theirs: Sequence[Figures]) -> int:
    table = Table("", "with migration", "without", "with / without, median [lowest-highest]")
    spans = [max(a.duration_s, b.duration_s) for a, b in zip(ours, theirs, strict=True)]
    machines_of = [
        [_instances(one, span) for one, span in zip(column, spans, strict=True)] for column in (ours, theirs)
    ]
    table.add_row("instances, time-weighted", *map(_cell, machines_of), _ratio_cell(*machines_of))
    values: tuple[tuple[str, Callable[[Figures], float]], ...] = (
        ("TTFT P99, s", lambda figures: figures.ttft_p99_s),
        ("TTFT mean, s", lambda figures: figures.ttft_mean_s),
        ("latency mean, s", lambda figures: figures.latency_mean_s),
        ("until the last answer, s", lambda figures: figures.duration_s),
        ("moves", lambda figures: figures.moved),
        ("preemptions", lambda figures: figures.preemptions),
        ("failed", lambda figures: figures.failed),
    )
    for name, value in values:
        mine, others = [value(one) for one in ours], [value(one) for one in theirs]
        table.add_row(name, _cell(mine), _cell(others), _ratio_cell(mine, others))
    Console().print(table)
    ttft = _ratios([one.ttft_p99_s for one in ours], [one.ttft_p99_s for one in theirs])
    machines = _ratios(*machines_of)
    # Either goal will do: the one that is nearer.
    fewer = statistics.median(machines) <= FEWER
    return conclude(
        median("TTFT P99, with / without migration", ttft, at_most(NO_LOSS if fewer else HALVED)),
        median("instances, with / without migration", machines, at_most(FEWER if fewer else NO_LOSS)),
        Figure("failed", sum(one.failed for one in [*ours, *theirs]), at_most(0)),
    )


def _ratios(mine: Sequence[float], others: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(mine, others, strict=True)]


def _cell(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def _ratio_cell(mine: Sequence[float], others: Sequence[float]) -> str:
    if not all(others):
        return ""
    ratios = _ratios(mine, others)
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"


if __name__ == "__main__":
    sys.exit(main())
