"""What children of the nursery leave running when they end; time is an argument."""

from __future__ import annotations

from signal import SIGKILL, SIGTERM

from llumnix.cluster.leftovers import DEADLINE_S, GRACE_S, Leftovers


def test_child_that_leaves_nothing_is_cleared_at_once() -> None:
    leftovers = Leftovers()
    steps = leftovers.look(["i0"], set(), 5.0)
    assert steps.cleared == {"i0": ()}
    assert steps.signals == ()
    assert leftovers.next_look_s is None


def test_what_a_child_leaves_is_asked_to_end_and_then_killed() -> None:
    leftovers = Leftovers()
    steps = leftovers.look(["i0"], {7, 8}, 5.0)
    assert steps.signals == ((7, SIGTERM), (8, SIGTERM))
    assert steps.cleared == {}
    assert leftovers.next_look_s == 5.0 + GRACE_S
    assert leftovers.look([], {8}, 5.1).signals == ()
    steps = leftovers.look([], {8}, 5.0 + GRACE_S)
    assert steps.signals == ((8, SIGKILL),)
    assert steps.cleared == {}
    assert leftovers.look([], set(), 6.5).cleared == {"i0": ()}
    assert leftovers.next_look_s is None


def test_what_comes_to_light_when_its_parent_was_killed_is_awaited_too() -> None:
    leftovers = Leftovers()
    leftovers.look(["i0"], {7}, 5.0)
    steps = leftovers.look([], {9}, 5.2)  # 7 ended, and its child 9 was adopted
    assert steps.signals == ((9, SIGTERM),)
    assert steps.cleared == {}
    assert leftovers.look([], set(), 5.3).cleared == {"i0": ()}


def test_process_that_cannot_be_killed_holds_the_place_until_the_deadline_and_is_named() -> None:
    leftovers = Leftovers()
    leftovers.look(["i0"], {7}, 5.0)
    leftovers.look([], {7}, 5.0 + GRACE_S)
    assert leftovers.next_look_s == 5.0 + DEADLINE_S
    assert leftovers.look([], {7}, 5.0 + DEADLINE_S).cleared == {"i0": (7,)}
    assert leftovers.next_look_s is None, "it is waited for no longer"


def test_process_that_had_its_time_holds_up_nobody_who_ends_later() -> None:
    leftovers = Leftovers()
    leftovers.look(["i0"], {7}, 5.0)
    leftovers.look([], {7}, 5.0 + GRACE_S)
    leftovers.look([], {7}, 5.0 + DEADLINE_S)
    assert leftovers.look(["i1"], {7}, 5.0 + DEADLINE_S).cleared == {"i1": ()}


def test_two_that_end_at_once_wait_for_what_either_left() -> None:
    leftovers = Leftovers()
    assert leftovers.look(["i0"], {7, 8}, 5.0).cleared == {}  # 8 may be the other's, whose end is not seen yet
    assert leftovers.look(["i1"], {8}, 5.01).cleared == {}
    assert leftovers.look([], set(), 5.02).cleared == {"i0": (), "i1": ()}


def test_number_of_a_process_that_is_used_again_begins_anew() -> None:
    leftovers = Leftovers()
    leftovers.look(["i0"], {7}, 5.0)
    leftovers.look([], {7}, 5.0 + GRACE_S)
    leftovers.look([], set(), 7.0)
    assert leftovers.look(["i1"], {7}, 60.0).signals == ((7, SIGTERM),)
