from __future__ import annotations

import numpy as np
import pytest

from llumnix.workload.arrivals import PROCESSES, burst, gamma, poisson, uniform


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_first_request_arrives_at_zero_and_times_never_go_back(name: str) -> None:
    times = PROCESSES[name](rng(), 500, 4.0, 3.0)
    assert len(times) == 500
    assert times[0] == 0
    assert (np.diff(times) >= 0).all()


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_no_requests_and_a_single_request_are_fine(name: str) -> None:
    assert PROCESSES[name](rng(), 0, 4.0, 1.0).tolist() == []
    assert PROCESSES[name](rng(), 1, 4.0, 1.0).tolist() == [0.0]


def test_poisson_gaps_have_the_mean_and_the_variation_of_an_exponential() -> None:
    gaps = np.diff(poisson(rng(), 100_000, 32.0))
    assert gaps.mean() == pytest.approx(1 / 32, rel=0.01)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.01)
    assert np.percentile(gaps, 50) == pytest.approx(np.log(2) / 32, rel=0.02)


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0, 4.0, 8.0])
def test_gamma_gaps_have_the_wanted_rate_and_coefficient_of_variation(cv: float) -> None:
    gaps = np.diff(gamma(rng(), 400_000, 26.0, cv))
    assert gaps.mean() == pytest.approx(1 / 26, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_uniform_arrivals_do_not_drift() -> None:
    times = uniform(rng(), 3_000_001, 4.0)
    assert times[-1] == 750_000.0


def test_burst_arrives_at_once() -> None:
    assert burst(rng(), 3, 1.0).tolist() == [0.0, 0.0, 0.0]


def test_times_are_whole_nanoseconds() -> None:
    times_ns = poisson(rng(), 1000, 3.0) * 1e9
    assert np.abs(times_ns - np.rint(times_ns)).max() < 1e-3
