from __future__ import annotations

from llumnix.types import by_number


def test_names_are_sorted_as_people_count() -> None:
    names = ["i10", "i2", "front-11", "i1", "front-3", "a", "", "i2b", "7"]
    assert sorted(names, key=by_number) == ["", "7", "a", "front-3", "front-11", "i1", "i2", "i2b", "i10"]
