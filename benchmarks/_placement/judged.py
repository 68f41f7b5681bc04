"""What the runs of `placement.py` say beside what they are to show."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, geometric_mean

from frame.verdict import Figure, at_least, at_most

from _placement.loads import LOADS, PLAIN, rate_at
from _placement.runs import ARE_BLIND, BEFORE, ORACLE, OURS, Result

JUDGED_LOAD = 0.85
FEWEST_HITS, MOST_OF_BLIND, MOST_WITHOUT_PREFIXES = 0.95, 0.5, 1.02
MOST_WORSE = 1.05
PLAIN_METRICS = ("Prefill Mean", "Prefill P99", "Decode Mean", "Decode P99", "Request Mean")
FIRST_TOKENS = ("mean", "P90")
SHOWN = ("mean", "P50", "P90", "P99", "hits")


class Table:
    """Results by trace, rate, policy and seed."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._by_run = {(r.run.trace, r.run.rate, r.run.seed, r.run.policy): r.values for r in results}
        self.seeds = sorted({r.run.seed for r in results})

    def policies(self, trace: str, rate: float) -> list[str]:
        return list(dict.fromkeys(key[3] for key in self._by_run if key[:2] == (trace, rate)))

    def value(self, trace: str, rate: float, policy: str, name: str) -> float:
        return fmean(self._by_run[trace, rate, seed, policy][name] for seed in self.seeds)

    def ratio(self, trace: str, rate: float, other: str, name: str) -> float:
        pairs = [(self._by_run[trace, rate, s, OURS], self._by_run[trace, rate, s, other]) for s in self.seeds]
        return geometric_mean(ours[name] / theirs[name] for ours, theirs in pairs)

    def over_best(self, trace: str, rate: float, others: Sequence[str], name: str) -> float:
        """Ours over the best of the others by this measure."""
        return max(self.ratio(trace, rate, other, name) for other in others)


def judge_prefixed(table: Table, trace: str) -> list[Figure]:
    for share in LOADS:
        _show(table, trace, share)
    rates = [rate_at(trace, share) for share in LOADS]
    hits = min(table.value(trace, r, OURS, "hits") / table.value(trace, r, ORACLE, "hits") for r in rates)
    others = [policy for policy in table.policies(trace, rates[0]) if policy not in (OURS, ORACLE)]
    worst = max(table.over_best(trace, rate, others, "mean") for rate in rates)
    judged, where = rate_at(trace, JUDGED_LOAD), f"{trace} at {JUDGED_LOAD:.0%}"
    figures = [Figure(f"{trace}, hits, llumnix / oracle, at the worst load", hits, at_least(FEWEST_HITS))]
    for name in FIRST_TOKENS:
        over_best = table.over_best(trace, judged, ARE_BLIND, name)
        best_s = min(table.value(trace, judged, policy, name) for policy in ARE_BLIND)
        floor_s = table.value(trace, judged, OURS, f"floor {name}")
        figures.append(Figure(f"{where}, {name} TTFT, llumnix / best blind", over_best, at_most(MOST_OF_BLIND)))
        figures.append(Figure(f"{where}, {name} TTFT, floor / best blind", floor_s / best_s))
    return [
        *figures,
        Figure(f"{trace}, mean TTFT, llumnix / best other, at the worst load", worst, at_most(MOST_WORSE)),
    ]


def _show(table: Table, trace: str, share: float) -> None:
    rate = rate_at(trace, share)
    names = ("pooled", "boundless", "floor mean", "floor P90")
    bounds = ", ".join(f"{name} {table.value(trace, rate, OURS, name):.3f}" for name in names)
    print(f"\n{trace} at {share:.0%} ({rate:g}/s): TTFT in s, means over seeds; llumnix / other of mean, P90; {bounds}")
    for policy in table.policies(trace, rate):
        cells = "".join(f"{name} {table.value(trace, rate, policy, name):7.3f}  " for name in SHOWN)
        ratios = " ".join(f"{table.ratio(trace, rate, policy, name):.3f}" for name in FIRST_TOKENS)
        print(f"  {policy:14}{cells} {ratios}", flush=True)


def judge_plain(table: Table, traces: Sequence[str]) -> list[Figure]:
    """By first tokens beside the best rule that is blind, by all else beside the rule before. Where nothing has a
    prefix, `blind` is ours to the last digit, so it is not run again."""
    others = [policy for policy in ARE_BLIND if policy in table.policies(traces[0], PLAIN[traces[0]])]
    print("\nwithout prefixes: llumnix / best blind of mean, P90; llumnix / freeness of", ", ".join(PLAIN_METRICS))
    over_best: dict[str, list[float]] = {name: [] for name in FIRST_TOKENS}
    over_before: dict[str, list[float]] = {name: [] for name in PLAIN_METRICS}
    for trace in traces:
        for name, column in over_best.items():
            column.append(table.over_best(trace, PLAIN[trace], others, name))
        for name, column in over_before.items():
            column.append(table.ratio(trace, PLAIN[trace], BEFORE, name))
        row = [column[-1] for column in (*over_best.values(), *over_before.values())]
        print(f"  {trace:11}{PLAIN[trace]:5g}" + "".join(f"{ratio:8.3f}" for ratio in row), flush=True)
    what = "without prefixes"
    return [
        *(
            Figure(
                f"{what}, {name} TTFT, llumnix / best blind, worst trace", max(column), at_most(MOST_WITHOUT_PREFIXES)
            )
            for name, column in over_best.items()
        ),
        *(
            Figure(f"{what}, {name}, llumnix / before", geometric_mean(column), at_most(MOST_WORSE))
            for name, column in over_before.items()
        ),
    ]
