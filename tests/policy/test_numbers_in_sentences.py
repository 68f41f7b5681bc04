"""Numbers as they stand in sentences."""

from __future__ import annotations

from math import inf

import pytest

from llumnix.policy.figures import figures


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [(600.0, 2, "600"), (27_123.4, 3, "27100"), (0.00001, 2, "0.00001"), (0.25, 2, "0.25"), (inf, 2, "inf")],
)
def test_so_many_digits_count_and_there_is_no_exponent(number: float, digits: int, text: str) -> None:
    assert figures(number, digits) == text


def test_a_limit_is_said_as_it_was_configured() -> None:
    assert [figures(limit) for limit in (1_234_567.0, 0.1, 2.5)] == ["1234567", "0.1", "2.5"]
