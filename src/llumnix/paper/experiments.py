"""The runs behind each figure of the paper: workloads, rates, thresholds, cluster sizes (paper section 6).

A `Run` is one simulation with one seed and says which points it gives. Parameters are those of the published
experiments: 16 LLaMA-7B instances on A10 GPUs, 10,000 requests, migration threshold 3 (10 for two traces), one
migration per instance at a time, pairing every four steps or so. `Llumnix (ours)` has none of these: it runs the
product's defaults everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llumnix.paper.points import INFAAS, LLUMNIX, LLUMNIX_BASE, OURS, ROUND_ROBIN

POLICY_OF = {
    ROUND_ROBIN: "round-robin",
    INFAAS: "infaas++",
    LLUMNIX_BASE: "llumnix-base",
    LLUMNIX: "llumnix-paper",
    OURS: "llumnix",
}
"""Names in figures to names of policies."""

PAPER_PAIRING_INTERVAL_S = 0.2
"""The artifact pairs every four engine steps or so."""

PAPER_RATES = {
    "ShareGPT": (7.0, 7.25, 7.5, 7.75, 8.0),
    "BurstGPT": (7.5, 7.75, 8.0, 8.25, 8.5),
    "S-S": (32.0, 33.0, 34.0, 35.0, 36.0),
    "M-M": (7.4, 7.5, 7.6, 7.7, 7.8),
    "L-L": (2.6, 2.7, 2.8, 2.9, 3.0),
    "S-L": (4.1, 4.15, 4.2, 4.25, 4.3),
    "L-S": (10.0, 12.0, 14.0, 16.0, 18.0),
}
"""Requests per second of figure 11, as plotted in the paper."""

PAPER_THRESHOLDS = {"M-M": 10.0, "S-L": 10.0}
"""Migration threshold (freeness) of the paper's runs where it is not 3."""

REAL_TRACES = ("ShareGPT", "BurstGPT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One simulation. Two runs that are equal give equal results."""

    figure: int
    kind: str
    """What is done and measured: serving, migration, fragmentation, stall."""
    trace: str
    policy: str
    """As the figure names it."""
    x: float
    seed: int
    workload: str = ""
    instances: int = 16
    options: dict[str, Any] = field(default_factory=dict)
    """What the kind of run needs besides."""

    @property
    def key(self) -> str:
        """A file name for its result: the same for the same figure, point and seed."""
        policy = self.policy.replace("+", "p").replace(" ", "-").replace("(", "").replace(")", "")
        trace = self.trace.replace(" ", "-")
        return f"figure{self.figure}_{trace}_{policy}_{self.x:g}_seed{self.seed}"


def figure_11(seed: int) -> list[Run]:
    """Serving: latencies and preemption loss by request rate, seven traces."""
    runs = []
    for trace, rates in PAPER_RATES.items():
        policies = (ROUND_ROBIN, INFAAS, LLUMNIX, OURS) if trace in REAL_TRACES else (INFAAS, LLUMNIX, OURS)
        for rate in rates:
            for policy in policies:
                options = {"threshold": PAPER_THRESHOLDS.get(trace, 3.0), "batched_tokens": 12800}
                runs.append(
                    Run(
                        figure=11,
                        kind="serving",
                        trace=trace,
                        policy=policy,
                        x=rate,
                        seed=seed,
                        workload=f"{trace}?rate={rate:g}&seed={seed}",
                        options=options,
                    )
                )
    return runs


def figure_13(seed: int) -> list[Run]:
    """Priorities: 10 % of the requests are high, arrivals get burstier."""
    return [
        Run(
            figure=13,
            kind="serving",
            trace="S-S",
            policy=policy,
            x=cv,
            seed=seed,
            workload=f"S-S?rate=26&cv={cv:g}&high=0.1&seed={seed}",
            options={"threshold": 3.0, "batched_tokens": 12000, "by_priority": True},
        )
        for cv in (2.0, 4.0, 6.0, 8.0)
        for policy in (LLUMNIX_BASE, LLUMNIX, OURS)
    ]


def figure_14(seed: int) -> list[Run]:
    """Auto-scaling: latencies and instances by rate (Poisson) and by burstiness (Gamma)."""
    arrivals = [("Poisson", rate, f"L-L?rate={rate:g}") for rate in (2.0, 2.2, 2.4, 2.6, 2.8, 3.0)]
    arrivals += [("Gamma", cv, f"L-L?rate=2&cv={cv:g}") for cv in (2.0, 3.0, 4.0, 5.0, 6.0)]
    return [
        _scaling_run((14, trace, policy, x), f"{workload}&seed={seed}", 10.0, seed)
        for trace, x, workload in arrivals
        for policy in (INFAAS, LLUMNIX, OURS)
    ]


def figure_15(seed: int) -> list[Run]:
    """Cost against latency: five scaling thresholds."""
    workload = f"L-L?rate=2&cv=2&seed={seed}"
    return [
        _scaling_run((15, "Threshold", policy, threshold), workload, threshold, seed)
        for threshold in (5.0, 25.0, 45.0, 65.0, 85.0)
        for policy in (INFAAS, LLUMNIX, OURS)
    ]


def _scaling_run(place: tuple[int, str, str, float], workload: str, out: float, seed: int) -> Run:
    """`place`: figure, trace, policy and x; `out`: the freeness below which instances are started."""
    figure, trace, policy, x = place
    options = {
        "threshold": 3.0,
        "batched_tokens": 12000,
        "scaling": {
            "scale_out_freeness": out,
            "scale_in_freeness": out + 50,
            "min_instances": 1,
            "max_instances": 16,
        },
    }
    return Run(
        figure=figure,
        kind="serving",
        trace=trace,
        policy=policy,
        x=x,
        seed=seed,
        workload=workload,
        instances=8,
        options=options,
    )


def figure_10(seed: int) -> list[Run]:
    """Migration itself: downtime and decode slow-down by sequence length, against blocking copy and recompute."""
    return [
        Run(
            figure=10,
            kind="migration",
            trace=model,
            policy=policy,
            x=float(length),
            seed=seed,
            instances=2,
            options={"profile": profile},
        )
        for model, profile in (("7B", "a10-llama-7b"), ("30B", "4xa10-llama-30b"))
        for length in (256, 512, 1024, 2048, 4096, 8192)
        for policy in ("Migration", "Blocking copy", "Recompute", "Normal")
    ]


def figure_12(seed: int) -> list[Run]:
    """Fragmentation over time."""
    return [
        Run(
            figure=12,
            kind="fragmentation",
            trace="M-M",
            policy=policy,
            x=7.6,
            seed=seed,
            workload=f"M-M?rate=7.6&requests=5000&seed={seed}",
            options={"threshold": 10.0, "batched_tokens": 12800},
        )
        for policy in (INFAAS, LLUMNIX, OURS)
    ]


def figure_16(seed: int) -> list[Run]:
    """Scheduling at scale: the stall per decode step at 64 instances."""
    return [
        Run(
            figure=16,
            kind="stall",
            trace="64 instances",
            policy=policy,
            x=rate,
            seed=seed,
            instances=64,
            options={"tokens": 64},
        )
        for rate in (100.0, 200.0, 300.0, 400.0, 500.0, 600.0)
        for policy in ("Centralized", LLUMNIX)
    ]


FIGURES = {
    10: figure_10,
    11: figure_11,
    12: figure_12,
    13: figure_13,
    14: figure_14,
    15: figure_15,
    16: figure_16,
}
