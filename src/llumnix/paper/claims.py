"""The claims of a figure: what the paper says, what its points say, and what ours say, like for like.

The paper states maxima over points. Beside them stands the geometric mean over all points, and where its
comparison was not like for like (figure 15 compares unequal latencies) the one that is. The same function
computes both columns, from the published points and from ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llumnix.paper.points import INFAAS, LLUMNIX, LLUMNIX_BASE, OURS, ROUND_ROBIN, Point, in_order
from llumnix.paper.ratios import Ratio, equal_latency_saving, mean_reduction, ratio


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of the table; values as text, `–` where there is nothing to compute it from."""

    what: str
    stated: str
    paper: str
    same_policy: str
    ours: str


def _most(found: Ratio | None) -> str:
    return "–" if found is None else f"up to {found.most:.3g}×"


def _typical(found: Ratio | None) -> str:
    return "–" if found is None else f"{found.typical:.3g}× (better at {found.improved:.0%} of {len(found.values)})"


SIX = ("Request Mean", "Request P99", "Prefill Mean", "Prefill P99", "Decode Mean", "Decode P99")


def claims(figure: int, ours: Sequence[Point], paper: Sequence[Point]) -> list[Claim]:
    """The table of one figure."""
    return _CLAIMS[figure](ours, paper) if figure in _CLAIMS else []


def _both(
    what: str,
    stated: str,
    metric: str,
    base: str,
    traces: Sequence[str],
    points: tuple[Sequence[Point], Sequence[Point]],
) -> list[Claim]:
    """Two lines: the maximum, as stated, and the geometric mean."""
    ours, paper = points
    found = [
        ratio(paper, metric, base, LLUMNIX, traces),
        ratio(ours, metric, base, LLUMNIX, traces),
        ratio(ours, metric, base, OURS, traces),
    ]
    return [
        Claim(what, stated, *(_most(one) for one in found)),
        Claim(f"{what}, geometric mean", "not stated", *(_typical(one) for one in found)),
    ]


REAL = ("ShareGPT", "BurstGPT")
GENERATED, GENERATED_TOO = ("S-S", "L-L"), ("M-M", "S-L", "L-S")
"""Those of which the paper's points are published, and those of which they are not."""

STATED_REAL = {
    (ROUND_ROBIN, "Request Mean"): "2×",
    (ROUND_ROBIN, "Request P99"): "2.9×",
    (ROUND_ROBIN, "Prefill Mean"): "26.6×",
    (ROUND_ROBIN, "Prefill P99"): "34.4×",
    (ROUND_ROBIN, "Decode P99"): "2×",
    (INFAAS, "Prefill Mean"): "2.2×",
    (INFAAS, "Prefill P99"): "5.5×",
    (INFAAS, "Decode P99"): "1.3×",
}
STATED_GENERATED = {
    "Request Mean": "1.5×",
    "Request P99": "1.6×",
    "Prefill Mean": "7.7×",
    "Prefill P99": "14.8×",
    "Decode P99": "2×",
}


def _figure_11(ours: Sequence[Point], paper: Sequence[Point]) -> list[Claim]:
    points = (ours, paper)
    table = []
    for base in (ROUND_ROBIN, INFAAS):
        for metric in SIX:
            said = STATED_REAL.get((base, metric), "not stated")
            table += _both(f"real traces, {metric}, {base} / Llumnix", said, metric, base, REAL, points)
    for metric in SIX:
        said = STATED_GENERATED.get(metric, "not stated")
        for traces in (GENERATED, GENERATED_TOO):
            table += _both(f"{', '.join(traces)}, {metric}, {INFAAS} / Llumnix", said, metric, INFAAS, traces, points)
    for name, base, traces, said in (
        ("real traces", ROUND_ROBIN, REAL, "−84 %"),
        *((", ".join(traces), INFAAS, traces, "−70.4 %") for traces in (GENERATED, GENERATED_TOO)),
    ):
        found = [
            mean_reduction(points, "Preemption Loss", base, policy, traces)
            for points, policy in ((paper, LLUMNIX), (ours, LLUMNIX), (ours, OURS))
        ]
        what = f"{name}, preemption loss against {base}, mean reduction"
        table.append(Claim(what, said, *map(_reduction, found)))
    return table


def _reduction(found: tuple[float, int] | None) -> str:
    return "–" if found is None else f"−{found[0]:.1%} over {found[1]} points"


def _figure_13(ours: Sequence[Point], paper: Sequence[Point]) -> list[Claim]:
    table = []
    stated = {
        "Request Mean": "1.2×–1.5×",
        "Prefill Mean": "2.9×–8.6×",
        "Prefill P99": "3.6×–10×",
        "Decode Mean": "1.2×–1.5×",
        "Decode P99": "1.3×–2.2×",
    }
    for metric in (*SIX, "Decode Execution Time"):
        found = [
            ratio(points, metric, LLUMNIX_BASE, policy, ("High Priority",))
            for points, policy in ((paper, LLUMNIX), (ours, LLUMNIX), (ours, OURS))
        ]
        table.append(
            Claim(f"high priority, {metric}, base / Llumnix", stated.get(metric, "not stated"), *map(_band, found))
        )
    cost = {"Request Mean": "up to 4.5 %", "Prefill Mean": "up to 13 %", "Decode Mean": "up to 2 %"}
    for metric in SIX:
        found = [
            ratio(points, metric, policy, LLUMNIX_BASE, ("Normal",))
            for points, policy in ((paper, LLUMNIX), (ours, LLUMNIX), (ours, OURS))
        ]
        table.append(
            Claim(
                f"normal, {metric}, what they pay",
                cost.get(metric, "not stated"),
                *("–" if one is None else f"up to {one.most - 1:+.1%}, mean {one.typical - 1:+.1%}" for one in found),
            )
        )
    return table


def _band(found: Ratio | None) -> str:
    return "–" if found is None else f"{min(found.values):.3g}×–{found.most:.3g}×"


def _figure_14(ours: Sequence[Point], paper: Sequence[Point]) -> list[Claim]:
    table = []
    for trace, p99, saving in (("Poisson", "12.2×", "16 %"), ("Gamma", "11×", "18 %")):
        table += _both(f"{trace}, P99 prefill, {INFAAS} / Llumnix", p99, "Prefill P99", INFAAS, [trace], (ours, paper))
        found = [
            ratio(points, "Resource Cost", INFAAS, policy, (trace,))
            for points, policy in ((paper, LLUMNIX), (ours, LLUMNIX), (ours, OURS))
        ]
        # The paper divides by the smaller number; the share of the baseline's instances that is saved is less.
        table.append(
            Claim(
                f"{trace}, instances, {INFAAS} / Llumnix − 1",
                f"up to {saving}",
                *("–" if one is None else f"up to {one.most - 1:.1%}" for one in found),
            )
        )
        table.append(
            Claim(
                f"{trace}, share of the baseline's instances saved, mean",
                "not stated",
                *("–" if one is None else f"{1 - 1 / one.typical:.1%}" for one in found),
            )
        )
    return table


def _figure_15(ours: Sequence[Point], paper: Sequence[Point]) -> list[Claim]:
    saved = [
        equal_latency_saving(points, better) for points, better in ((paper, LLUMNIX), (ours, LLUMNIX), (ours, OURS))
    ]
    return [
        Claim(
            "instances saved at the same P99 prefill, mean over the latencies that both reach",
            "36.49 % (compares 11.4 s with 4.6 s)",
            *("–" if share is None else f"{share:.1%}" for share in saved),
        )
    ]


def _figure_10(ours: Sequence[Point], paper: Sequence[Point]) -> list[Claim]:
    table = []
    for trace in ("7B", "30B"):
        for base in ("Blocking copy", "Recompute"):
            found = [ratio(points, "Downtime", base, "Migration", (trace,)) for points in (paper, ours)]
            stated = "up to 111× (not at one length and model)" if base == "Blocking copy" else "not stated"
            what = f"{trace}, downtime, {base} / migration, same length"
            table.append(Claim(what, stated, _most(found[0]), _most(found[1]), _most(found[1])))
        found = [ratio(points, "Decode Latency", "Migration", "Normal", (trace,)) for points in (paper, ours)]
        published, simulated = ("–" if one is None else f"up to {one.most - 1:.1%}" for one in found)
        what = f"{trace}, decode slow-down while migrating"
        table.append(Claim(what, "up to 1 %", published, simulated, simulated))
    return table


def _figure_12(ours: Sequence[Point], paper: Sequence[Point]) -> list[Claim]:
    means = {}
    for policy in in_order(ours, "policy"):
        values = [point.y for point in ours if point.policy == policy]
        means[policy] = sum(values) / len(values)
    texts = [f"{means[policy]:.2%}" if policy in means else "–" for policy in (INFAAS, LLUMNIX, OURS)]
    return [Claim(f"mean fragmentation ({INFAAS}: {texts[0]})", "not published as numbers", "–", texts[1], texts[2])]


def _figure_16(ours: Sequence[Point], paper: Sequence[Point]) -> list[Claim]:
    """No ratio: the two costs are not of the same work (`stall.py`)."""
    central, report = (
        _least_and_most([1e3 * point.y for point in ours if point.policy == policy])
        for policy in ("Centralized", LLUMNIX)
    )
    what = f"stall per decode step (centralised: {central})"
    return [Claim(what, "not published as numbers", "–", report, report)]


def _least_and_most(stalls_us: Sequence[float]) -> str:
    return f"{min(stalls_us):.1f} to {max(stalls_us):.1f} µs" if stalls_us else "–"


_CLAIMS = {
    10: _figure_10,
    11: _figure_11,
    12: _figure_12,
    13: _figure_13,
    14: _figure_14,
    15: _figure_15,
    16: _figure_16,
}


def write_claims(table: Sequence[Claim], title: str, notes: str = "") -> str:
    """The table as Markdown."""
    lines = [f"# {title}", ""]
    lines += [
        "| claim | the paper states | from its points | Llumnix, simulated | Llumnix (ours), simulated |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {c.what} | {c.stated} | {c.paper} | {c.same_policy} | {c.ours} |" for c in table]
    return "\n".join([*lines, "", notes]) + "\n"
