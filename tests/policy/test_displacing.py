"""Who makes way for a high-priority request."""

from __future__ import annotations

import pytest

from llumnix.policy.displacing import Occupant, displaced

OLD, NEW, BATCH = Occupant(0, 1.0, 10), Occupant(0, 9.0, 10), Occupant(5, 1.0, 10)
SMALL_BATCH = Occupant(5, 2.0, 3)


@pytest.mark.parametrize(
    ("situation", "occupants", "missing", "chosen"),
    [
        ("the last that came", [OLD, NEW], 4, [1]),
        ("the least important first", [NEW, BATCH, OLD], 4, [1]),
        ("as many as it takes", [OLD, NEW, BATCH], 15, [2, 1]),
        ("none who is not needed", [SMALL_BATCH, NEW], 8, [1]),
        ("none if all are not enough", [OLD, NEW], 21, []),
        ("nobody there", [], 1, []),
        ("nothing is missing", [OLD], 0, []),
    ],
)
def test_displaced_when(situation: str, occupants: list[Occupant], missing: int, chosen: list[int]) -> None:
    assert list(displaced(occupants, missing)) == chosen, situation
