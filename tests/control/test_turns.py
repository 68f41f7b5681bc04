"""Fair service by virtual token counters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llumnix.control.turns import Turns

COSTS = st.lists(st.floats(1.0, 1000.0), min_size=1, max_size=8)


@given(st.lists(COSTS, min_size=2, max_size=5), st.data())
def test_whoever_waits_all_the_time_gets_his_weight_within_twice_the_largest_request(
    requests: list[list[float]], data: st.DataObject
) -> None:
    weights = [data.draw(st.sampled_from([1.0, 2.0, 5.0])) for _ in requests]
    turns: Turns[int] = Turns()
    everyone = range(len(requests))
    for who in everyone:
        turns.comes(who, range(who))
    served = [0.0] * len(requests)
    largest = max(max(costs) / weight for costs, weight in zip(requests, weights, strict=True))
    for number in range(200):
        who = turns.next(everyone)
        work = requests[who][number % len(requests[who])] / weights[who]
        served[who] += work
        turns.serve(who, work)
        assert max(served) - min(served) <= 2 * largest + 1e-6


def test_who_wanted_nothing_for_long_does_not_take_all_when_he_comes_back() -> None:
    turns: Turns[str] = Turns()
    turns.comes("a", [])
    for _ in range(100):
        turns.serve("a", 1.0)
    turns.comes("b", ["a"])
    order = []
    for _ in range(6):
        order.append(turns.next(["a", "b"]))
        turns.serve(order[-1], 1.0)
    assert order == ["a", "b", "a", "b", "a", "b"]


def test_also_when_nobody_waits_at_that_moment() -> None:
    turns: Turns[str] = Turns()
    turns.comes("a", [])
    turns.serve("a", 100.0)
    turns.comes("b", [])
    turns.comes("a", ["b"])
    turns.serve("b", 10.0)
    assert turns.next(["a", "b"]) == "a"


def test_what_was_charged_too_much_is_made_good() -> None:
    turns: Turns[str] = Turns()
    turns.comes("a", [])
    turns.comes("b", ["a"])
    turns.serve("a", 10.0)
    turns.serve("b", 10.0)
    turns.settle("b", -5.0)
    assert turns.next(["a", "b"]) == "b"


def test_what_an_old_turn_took_in_the_end_does_not_say_where_newcomers_begin() -> None:
    turns: Turns[str] = Turns()
    for name in "ab":
        turns.comes(name, [])
    turns.serve("a", 10.0)
    turns.serve("b", 100.0)
    turns.settle("a", 5.0)
    turns.comes("c", [])
    assert turns.counters["c"] == 100.0


def test_counters_of_those_who_are_no_more_are_dropped() -> None:
    turns: Turns[str] = Turns()
    turns.comes("a", [])
    turns.comes("b", [])
    turns.keep(["b", "c"])
    assert turns._served == {"b": 0.0}
