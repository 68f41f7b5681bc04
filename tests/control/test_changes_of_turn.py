"""Who makes way for a stream that has stood still for long, and how often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.control.changes_of_turn import (
    LEAST_TURN_S,
    LONGEST_PAUSE_S,
    MOST_SAVED_S,
    SHARE,
    ChangesOfTurn,
    Runner,
    may_pass,
)
from llumnix.policy.snapshot import StepCost

COST = StepCost(fixed_ms=20.0, prefill_token_us=200.0, request_us=200.0, context_token_us=0.0)


def runner(
    arrival_s: float = 0.0, ran_s: float = 9.0, blocks: int = 10, tokens: int = 300, priority: int = 0
) -> Runner:
    return Runner(priority, arrival_s, ran_s, blocks, tokens)


def chosen(*runners: Runner, missing_blocks: int = 8, priority: int = 0) -> int | None:
    return ChangesOfTurn().gives_way(runners, missing_blocks, priority, COST, 100.0)


def test_turn_comes_after_the_longest_pause() -> None:
    changes = ChangesOfTurn()
    assert changes.wait_s(LONGEST_PAUSE_S / 2, 100.0) == pytest.approx(LONGEST_PAUSE_S / 2)
    assert changes.wait_s(LONGEST_PAUSE_S, 100.0) == 0.0


def test_nobody_changes_turns_where_more_waits_than_finds_room_soon() -> None:
    assert may_pass(48, 96)
    assert not may_pass(49, 96)


def test_last_that_came_makes_way_if_it_holds_enough() -> None:
    assert chosen(runner(1.0), runner(3.0), runner(2.0)) == 1
    assert chosen(runner(1.0), runner(3.0, blocks=7), runner(2.0)) == 2


def test_less_important_one_makes_way_first_and_a_more_important_one_never() -> None:
    assert chosen(runner(1.0, priority=2), runner(3.0)) == 0
    assert chosen(runner(1.0, priority=-1), runner(3.0, priority=-1)) is None


def test_who_has_just_started_keeps_its_turn() -> None:
    assert chosen(runner(1.0), runner(3.0, ran_s=LEAST_TURN_S / 2)) == 0
    assert chosen(runner(3.0, ran_s=LEAST_TURN_S / 2)) is None


def test_nobody_makes_way_where_no_one_of_them_would_be_enough() -> None:
    assert chosen(runner(blocks=5), runner(blocks=5)) is None


def test_nobody_makes_way_before_it_is_known_what_that_costs() -> None:
    assert ChangesOfTurn().gives_way([runner()], 1, 0, None, 0.0) is None


def test_clock_that_jumps_gives_no_more_than_what_is_saved() -> None:
    changes = ChangesOfTurn()
    spend_all(changes, 1000.0)
    assert changes.wait_s(9.0, 10.0) > 0
    assert spend_all(changes, 1e9) <= MOST_SAVED_S / 0.06 + 1


def spend_all(changes: ChangesOfTurn, at_s: float) -> int:
    count = 0
    while not changes.wait_s(9.0, at_s):
        assert changes.gives_way([runner(tokens=300)], 1, 0, COST, at_s) == 0
        count += 1
    return count


@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(1, 4000)), min_size=1, max_size=200))
def test_what_is_computed_anew_never_exceeds_the_share_and_what_was_saved(looks: list[tuple[float, int]]) -> None:
    changes, at_s, spent_s, largest_s = ChangesOfTurn(), 50.0, 0.0, 0.0
    for after_s, tokens in looks:
        at_s += after_s
        if changes.wait_s(9.0, at_s):
            continue
        assert changes.gives_way([runner(tokens=tokens)], 1, 0, COST, at_s) == 0
        spent_s += tokens * 200e-6
        largest_s = max(largest_s, tokens * 200e-6)
        assert spent_s <= MOST_SAVED_S + SHARE * (at_s - 50.0) + largest_s + 1e-6


@given(st.integers(1, 4000), st.floats(0.0, 1e6))
def test_who_stands_still_is_never_held_back_for_good(tokens: int, at_s: float) -> None:
    changes = ChangesOfTurn()
    changes.gives_way([runner(tokens=tokens)], 1, 0, COST, at_s)
    wait_s = changes.wait_s(LONGEST_PAUSE_S, at_s)
    assert changes.wait_s(LONGEST_PAUSE_S, at_s + wait_s + 1e-3) == 0.0
