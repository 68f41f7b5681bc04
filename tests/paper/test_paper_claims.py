"""Claims and points: the same arithmetic on the published numbers gives what is known of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from llumnix.paper.claims import claims, write_claims
from llumnix.paper.experiments import FIGURES, PAPER_RATES
from llumnix.paper.points import INFAAS, LLUMNIX, Point, curve, published_points, write_points
from llumnix.paper.ratios import equal_latency_saving, ratio
from llumnix.paper.runs import interval, points_of
from llumnix.paper.stall import batch_size, central_stall_s, report_stall_s
from llumnix.sim.profiles.cost_model import Profile
from llumnix.sim.profiles.file import load_profile


def test_the_papers_like_for_like_saving_is_about_21_percent() -> None:
    assert equal_latency_saving(published_points(15), LLUMNIX) == pytest.approx(0.208, abs=0.02)


def test_a_curve_that_is_the_same_saves_nothing_and_one_that_is_half_saves_half() -> None:
    base = [
        Point(figure=15, trace="T", metric="Prefill P99", policy=INFAAS, x=x, y=1000 / x) for x in (8.0, 12.0, 16.0)
    ]
    same = [Point(figure=15, trace="T", metric="Prefill P99", policy=LLUMNIX, x=p.x, y=p.y) for p in base]
    half = [Point(figure=15, trace="T", metric="Prefill P99", policy=LLUMNIX, x=p.x / 2, y=p.y) for p in base]
    assert equal_latency_saving([*base, *same], LLUMNIX) == pytest.approx(0.0)
    assert equal_latency_saving([*base, *half], LLUMNIX) == pytest.approx(0.5)
    assert equal_latency_saving(base, LLUMNIX) is None


def test_the_stated_maxima_follow_from_the_published_points() -> None:
    found = ratio(published_points(11), "Prefill P99", INFAAS, LLUMNIX, ["L-L"])
    assert found is not None
    assert found.most == pytest.approx(14.8, abs=0.05)
    assert found.improved == 1.0
    assert found.typical < found.most


@pytest.mark.parametrize("figure", [10, 11, 13, 14, 15])
def test_claims_can_be_made_from_the_papers_points_alone(figure: int) -> None:
    table = claims(figure, published_points(figure), published_points(figure))
    assert table
    for claim in table:
        assert claim.paper == claim.same_policy
    text = write_claims(table, "Title")
    assert text.count("\n|") == len(table) + 2


def test_points_are_rows_with_a_column_for_each_field(tmp_path: Path) -> None:
    of_one_run = Point(figure=13, trace="T", metric="M", policy="P", x=1.0, y=1 / 3)
    of_several = msgspec.structs.replace(of_one_run, y_low=0.25, y_high=3.0)
    write_points(tmp_path / "p.csv", [of_several, of_one_run])
    assert (tmp_path / "p.csv").read_text().splitlines() == [
        "figure,trace,metric,policy,x,y,y_low,y_high",
        "13,T,M,P,1,0.3333333,0.25,3",
        "13,T,M,P,1,0.3333333,,",
    ]


def test_every_published_point_of_figure_11_is_among_our_runs() -> None:
    runs = {(run.trace, run.policy, run.x) for run in FIGURES[11](0)}
    assert {(p.trace, p.policy, p.x) for p in published_points(11)} <= runs
    assert {run.trace for run in FIGURES[11](0)} == set(PAPER_RATES)


@pytest.mark.parametrize("figure", FIGURES)
def test_runs_of_a_figure_have_names_of_their_own(figure: int) -> None:
    keys = [run.key for seed in range(3) for run in FIGURES[figure](seed)]
    assert len(keys) == len(set(keys))
    assert all(key.replace("_", "").replace(".", "").replace("-", "").isalnum() for key in keys)


def test_seeds_are_averaged_with_the_interval_of_the_mean() -> None:
    runs = [run for seed in range(3) for run in FIGURES[13](seed) if run.x == 2.0 and run.policy == LLUMNIX]
    results = {run.key: [("Normal", "Prefill P99", 2.0, 1.0 + run.seed)] for run in runs}
    (point,) = points_of(runs, results)
    assert point.y == 2.0
    assert (point.y_low, point.y_high) == (pytest.approx(2 - 4.303 / 3**0.5), pytest.approx(2 + 4.303 / 3**0.5))  # type: ignore[comparison-overlap]
    assert interval([5.0]) == (None, None)


def test_the_published_points_of_a_trace_are_a_sorted_curve() -> None:
    line = curve(published_points(14), "Poisson", "Resource Cost", INFAAS)
    assert list(line) == [2, 2.2, 2.4, 2.6, 2.8, 3]


@pytest.fixture
def profile() -> Profile:
    return load_profile("a10-llama-7b")


def test_a_central_scheduler_stalls_more_the_more_it_has_to_do(profile: Profile) -> None:
    stalls = [central_stall_s(profile, rate, 64, 64) for rate in (100.0, 400.0)]
    assert 0 < stalls[0] < stalls[1]
    assert central_stall_s(profile, 800.0, 512, 64) > stalls[0], "as many requests each, more instances"


def test_a_report_costs_what_it_has_to_tell_and_steps_share_it(profile: Profile) -> None:
    size, step_s = batch_size(profile, 400.0, 64, 64, 0.0)
    assert report_stall_s(size, step_s, step_s) > report_stall_s(1, step_s, step_s)
    assert report_stall_s(size, step_s, 4 * step_s) == pytest.approx(report_stall_s(size, step_s, step_s) / 4)


def test_costs_of_different_work_stand_beside_each_other_and_are_not_divided() -> None:
    points = [
        Point(figure=16, trace="64 instances", metric="Scheduling Stall", policy=policy, x=x, y=y_ms)
        for policy, x, y_ms in [("Centralized", 1, 0.004), ("Centralized", 2, 0.008), (LLUMNIX, 1, 0.02)]
    ]
    (claim,) = claims(16, points, [])
    assert claim.what == "stall per decode step (centralised: 4.0 to 8.0 µs)"
    assert claim.ours == "20.0 to 20.0 µs"


def test_traces_of_which_no_points_are_published_are_in_rows_of_their_own() -> None:
    paper = published_points(11)
    ours = [*paper, *(msgspec.structs.replace(point, trace="M-M", y=9 * point.y) for point in paper)]
    for claim in claims(11, ours, paper):
        assert (claim.paper == claim.same_policy) != claim.what.startswith("M-M, S-L, L-S"), claim


def test_where_both_are_alike_neither_is_better() -> None:
    alike, better = (msgspec.structs.replace(POINT, x=x, y=2.0) for x in (1.0, 2.0))
    theirs = [msgspec.structs.replace(point, policy=INFAAS, y=y) for point, y in ((alike, 2.0), (better, 3.0))]
    found = ratio([alike, better, *theirs], "M", INFAAS, LLUMNIX, ["T"])
    assert found is not None
    assert found.improved == 0.5


POINT = Point(figure=11, trace="T", metric="M", policy=LLUMNIX, x=1.0, y=1.0)
