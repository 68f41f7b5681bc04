"""The same work for many tasks, in several processes."""

from __future__ import annotations

from math import sqrt

import pytest

from llumnix.processes import results_of

pytestmark = pytest.mark.io


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_with_the_numbers_of_their_tasks(jobs: int) -> None:
    assert dict(results_of(sqrt, [1.0, 4.0, 9.0], jobs)) == {0: 1.0, 1: 2.0, 2: 3.0}


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_that_fails_ends_the_rest(jobs: int) -> None:
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        list(results_of(sqrt, [-1.0, *[4.0] * 20], jobs))
