"""What is believed of a simulation, and what follows from it."""

from __future__ import annotations

from math import log

import pytest

from llumnix.whatif.metrics import ALL, FIRST, METRICS, SECOND, RunNumbers
from llumnix.whatif.prediction import GOOD, NOT, SO_SO, Credibility, judge, predict


def numbers(
    value: float, first: float | None = None, second: float | None = None, name: str = "TTFT P50"
) -> RunNumbers:
    return {ALL: {name: value}, FIRST: {name: first or value}, SECOND: {name: second or value}}


def judged(measured: RunNumbers, *runs: RunNumbers, name: str = "TTFT P50", requests: int = 1000) -> Credibility:
    return next(each for each in judge(measured, runs, requests) if each.metric.name == name)


def test_grades_follow_from_how_far_the_simulation_is_off() -> None:
    was = numbers(100.0)
    close = judged(was, numbers(105.0), numbers(108.0), numbers(109.0))
    assert (close.grade, close.simulated) == (GOOD, 108.0)
    assert close.error == pytest.approx(0.08)
    assert judged(was, numbers(150.0), numbers(151.0)).grade == SO_SO
    far = judged(was, numbers(250.0), numbers(252.0))
    assert (far.grade, far.why) == (NOT, "the simulation of what was is off by 2.5 times")
    assert judged(was, numbers(40.0)).grade == NOT, "in either direction"
    assert judged(was, numbers(90.0), numbers(250.0), numbers(260.0)).grade == SO_SO, "what was is one of the draws"


def test_tails_may_be_off_by_more_and_want_more_requests() -> None:
    name = "TTFT P99"
    was, run = numbers(100.0, name=name), numbers(120.0, name=name)
    assert judged(was, run, name=name).grade == GOOD
    few = judged(was, run, name=name, requests=499)
    assert (few.grade, few.why) == (NOT, "499 requests are too few for a P99, which takes 500")


def test_few_preemptions_more_or_less_are_nothing() -> None:
    name = "preemptions"
    assert judged(numbers(1.0, name=name), numbers(2.0, name=name), name=name).grade == GOOD
    assert judged(numbers(0.0, name=name), numbers(9.0, name=name), name=name).grade == NOT
    assert judged(numbers(100.0, name=name), numbers(118.0, name=name), name=name).grade == GOOD


def test_what_nobody_measured_is_not_credible() -> None:
    nothing: RunNumbers = {ALL: {}, FIRST: {}, SECOND: {}}
    assert judged(nothing, numbers(1.0)).why == "nothing was measured"
    assert len(judge(nothing, [nothing], 1000)) == len(METRICS)


def test_prediction_is_relative_to_the_simulation_of_what_was() -> None:
    """Which is a tenth too large, always: what is asked is by how much it differs from the alternative."""
    base = [numbers(110.0)] * 3
    found = judge(numbers(100.0), base, 1000)
    prediction = next(each for each in predict(found, base, [numbers(55.0)] * 3) if each.metric.name == "TTFT P50")
    assert prediction.value == pytest.approx(50.0)
    assert prediction.low == pytest.approx(50.0 / 1.05)
    assert prediction.high == pytest.approx(50.0 * 1.05), "two runs of the same requests differ by so much"


def test_bar_has_the_spread_of_both_and_what_may_not_be_the_same_elsewhere() -> None:
    base = [numbers(90.0), numbers(100.0), numbers(110.0)]
    steady = judged(numbers(100.0), *base)
    assert steady.doubt == pytest.approx(log(1.05))
    assert judged(numbers(120.0), *base).doubt == pytest.approx(log(1.2) / 2), "half of the bias"
    uneven = judged(numbers(100.0, first=100.0, second=200.0), *base)
    assert uneven.doubt == pytest.approx(log(2) / 2), "off by nothing in one half, and by two times in the other"
    found = judge(numbers(100.0), base, 1000)
    prediction = next(each for each in predict(found, base, base) if each.metric.name == "TTFT P50")
    assert prediction.value == pytest.approx(100.0)
    assert prediction.low is not None
    assert 70 < prediction.low < 90, "from 90/110 of it"


def test_what_is_not_credible_is_withheld_with_the_reason() -> None:
    base = [numbers(300.0)]
    (first, *_) = predict(judge(numbers(100.0), base, 1000), base, [numbers(50.0)])
    assert (first.value, first.low, first.high) == (None, None, None)
    assert first.why_withheld == "the simulation of what was is off by 3.0 times"


def test_counts_are_never_below_none() -> None:
    name = "moves"
    base = [numbers(50.0, name=name)]
    found = judge(numbers(40.0, name=name), base, 1000)
    prediction = next(each for each in predict(found, base, [numbers(0.0, name=name)]) if each.metric.name == name)
    assert (prediction.value, prediction.low) == (0, 0)


def test_counts_are_whole_and_so_are_their_bars() -> None:
    name = "moves"
    base = [numbers(10.0, name=name)]
    found = judge(numbers(10.0, name=name), base, 1000)
    prediction = next(each for each in predict(found, base, [numbers(7.0, name=name)]) if each.metric.name == name)
    assert (prediction.low, prediction.value, prediction.high) == (6, 7, 8)
