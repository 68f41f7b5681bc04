"""How credible a simulation of what was is, and what follows for what was not. Pure.

The run is simulated several times as it was, with arrivals a little earlier or later: how much these differ is how
chaotic that time was. Beside what was measured they give the *bias* of each number, and by that its grade. Of an
alternative, simulated with the same arrivals, the number is taken relative to the simulation of what was:

    predicted = measured · alternative / as it was

for all pairs of runs, since a live run is one draw as well; the bar is from the 10th to the 90th percentile of these,
widened by what need not be the same elsewhere: half of the bias, or half of what it differs by between the two halves
of the run, whichever is larger, and a little in any case. A number without credibility is withheld, with the reason.
Counts are compared with a handful added to each: three preemptions more or less are nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, exp, floor, log
from statistics import median

import numpy as np

from llumnix.whatif.metrics import ALL, FIRST, METRICS, P99_NEEDS, SECOND, Metric, RunNumbers

LEAST_WIDENING = 0.05
"""Medians of two live runs of the same requests differ by so much (docs/understand/inside-the-simulator.md)."""

HANDFUL = 5.0

FAIR = 2.0
"""The largest factor between simulated and measured that says something."""

GOOD, SO_SO, NOT = "good", "fair", "not credible"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credibility:
    """Of one number, simulated as it was."""

    metric: Metric
    measured: float | None
    simulated: float | None
    """Median of the runs."""
    lowest: float | None = None
    highest: float | None = None
    error: float | None = None
    """Simulated / measured − 1, of counts with a handful added."""
    grade: str
    why: str = ""
    """It is not credible."""
    doubt: float = 0.0
    """Logarithm of the factor by which bars are widened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Of one number, of one alternative."""

    metric: Metric
    value: float | None
    low: float | None = None
    high: float | None = None
    why_withheld: str = ""


def judge(measured: RunNumbers, as_it_was: Sequence[RunNumbers], requests: int) -> list[Credibility]:
    """`as_it_was`: of each simulated run. `requests`: how many both were measured of."""
    return [_judge(metric, measured, as_it_was, requests) for metric in METRICS]


def _judge(metric: Metric, measured: RunNumbers, as_it_was: Sequence[RunNumbers], requests: int) -> Credibility:
    was = measured[ALL].get(metric.name)
    runs = _of(metric, as_it_was)
    if was is None or not runs:
        return Credibility(metric=metric, measured=was, simulated=None, grade=NOT, why="nothing was measured")
    simulated = median(runs)
    off = _log(metric, simulated) - _log(metric, was)
    found = Credibility(
        metric=metric,
        measured=was,
        simulated=simulated,
        lowest=min(runs),
        highest=max(runs),
        error=exp(off) - 1,
        grade=NOT,
    )
    if metric.percentile == 99 and requests < P99_NEEDS:
        return replace(found, why=f"{requests} requests are too few for a P99, which takes {P99_NEEDS}")
    if abs(off) > log(FAIR) and not min(runs) <= was <= max(runs):
        return replace(found, why=f"the simulation of what was is off by {exp(abs(off)):.1f} times")
    halves = [_bias(metric, measured, as_it_was, part) for part in (FIRST, SECOND)]
    differ = abs(halves[0] - halves[1]) / 2 if halves[0] is not None and halves[1] is not None else 0.0
    return replace(
        found,
        grade=GOOD if abs(exp(off) - 1) <= _aim(metric) else SO_SO,
        doubt=max(abs(off) / 2, differ, log(1 + LEAST_WIDENING)),
    )


def _aim(metric: Metric) -> float:
    """As docs/understand/inside-the-simulator.md has it."""
    return {50: 0.10, 99: 0.25}.get(metric.percentile or 0, 0.20)


def _bias(metric: Metric, measured: RunNumbers, as_it_was: Sequence[RunNumbers], part: str) -> float | None:
    was = measured[part].get(metric.name)
    runs = _of(metric, as_it_was, part)
    return None if was is None or not runs else _log(metric, median(runs)) - _log(metric, was)


def predict(
    credible: Sequence[Credibility], as_it_was: Sequence[RunNumbers], other: Sequence[RunNumbers]
) -> list[Prediction]:
    """`other`: of each simulated run of the alternative."""
    return [_predict(each, as_it_was, other) for each in credible]


def _predict(known: Credibility, as_it_was: Sequence[RunNumbers], other: Sequence[RunNumbers]) -> Prediction:
    metric = known.metric
    if known.grade == NOT or known.measured is None:
        return Prediction(metric=metric, value=None, why_withheld=known.why)
    before, after = _of(metric, as_it_was), _of(metric, other)
    if not after:
        return Prediction(metric=metric, value=None, why_withheld="no request of the alternative has it")
    was = _log(metric, known.measured)
    draws = [was + _log(metric, one) - _log(metric, base) for one in after for base in before]
    low, middle, high = np.percentile(draws, [10, 50, 90])
    value, lower, upper = (_back(metric, float(each)) for each in (middle, low - known.doubt, high + known.doubt))
    if metric.counts:  # they are whole
        value, lower, upper = round(value), floor(lower), ceil(upper)
    return Prediction(metric=metric, value=value, low=lower, high=upper)


def _of(metric: Metric, runs: Sequence[RunNumbers], part: str = ALL) -> list[float]:
    """Of the runs that know it."""
    return [run[part][metric.name] for run in runs if metric.name in run[part]]


def _log(metric: Metric, value: float) -> float:
    return log(value + HANDFUL if metric.counts else max(value, 1e-6))


def _back(metric: Metric, value: float) -> float:
    return max(0.0, exp(value) - HANDFUL) if metric.counts else exp(value)
