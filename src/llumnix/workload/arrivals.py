"""When requests arrive: four processes, in seconds from the start of the run.

Each function draws from the generator that it is given and from nothing else, and returns `count` ascending
times; the first is 0. Gaps are rounded to whole nanoseconds before they are added up, in integers: the last bit
of a logarithm, which differs between math libraries, cannot reach a result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Times: TypeAlias = NDArray[np.float64]

_NS_PER_S = 1_000_000_000


def poisson(rng: np.random.Generator, count: int, rate: float, cv: float = 1.0) -> Times:
    """Independent exponential gaps with a mean of 1/`rate` seconds. `cv` is 1 by nature and not read."""
    return _from_gaps(rng.exponential(1.0 / rate, count))


def gamma(rng: np.random.Generator, count: int, rate: float, cv: float = 1.0) -> Times:
    """Gamma gaps: mean 1/`rate` seconds, coefficient of variation `cv` (1: Poisson; above: bursts).

    Shape 1/cv², scale cv²/rate, as in the paper's section 6.4.
    """
    return _from_gaps(rng.gamma(1.0 / cv**2, cv**2 / rate, count))


def uniform(rng: np.random.Generator, count: int, rate: float, cv: float = 1.0) -> Times:
    """Evenly spaced, 1/`rate` seconds apart. Draws nothing."""
    return _from_gaps(np.full(count, 1.0 / rate))


def burst(rng: np.random.Generator, count: int, rate: float, cv: float = 1.0) -> Times:
    """All at time 0. Draws nothing."""
    return np.zeros(count)


ArrivalProcess: TypeAlias = Callable[[np.random.Generator, int, float, float], Times]

PROCESSES: dict[str, ArrivalProcess] = {"poisson": poisson, "gamma": gamma, "uniform": uniform, "burst": burst}


def _from_gaps(gaps_s: Times) -> Times:
    """Times that are all but the first gap apart: the first request starts the run."""
    gaps_ns = np.rint(gaps_s * _NS_PER_S).astype(np.int64)
    gaps_ns[:1] = 0
    return gaps_ns.cumsum().astype(np.float64) / _NS_PER_S
