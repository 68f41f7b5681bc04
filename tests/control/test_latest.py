"""So many entries are remembered: a new one makes the oldest go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llumnix.control.latest import Latest

KEYS = st.integers(0, 9)
STEPS = st.lists(st.tuples(st.sampled_from(("set", "pop")), KEYS, st.integers()), max_size=60)


@given(st.integers(1, 6), STEPS)
def test_it_holds_the_last_ones_that_came_and_were_not_taken_out(most: int, steps: list[tuple[str, int, int]]) -> None:
    latest: Latest[int, int] = Latest(most)
    came: list[tuple[int, int]] = []
    for step, key, value in steps:
        there = [known for known, _ in came]
        if step == "pop":
            assert latest.pop(key, None) == dict(came).get(key)
            came = [entry for entry in came if entry[0] != key]
        elif key in there:
            latest[key] = value
            came[there.index(key)] = (key, value)
        else:
            latest[key] = value
            came = [*came, (key, value)][-most:]
        assert list(latest.items()) == came


def test_one_that_is_set_again_is_as_old_as_before_and_a_new_one_if_it_was_taken_out() -> None:
    latest: Latest[str, int] = Latest(2)
    latest["a"], latest["b"], latest["a"] = 1, 2, 3
    latest["c"] = 4
    assert latest == {"b": 2, "c": 4}
    latest.pop("b")
    latest["b"], latest["d"] = 5, 6
    assert latest == {"b": 5, "d": 6}
