"""What the launcher says about its instances, put together with orders that cross its word."""

from __future__ import annotations

from llumnix.control.fleet import ORDER_DEADLINE_S, Fleet, FleetView


def test_nothing_is_known_before_the_launcher_spoke() -> None:
    view = FleetView()
    assert not view.known
    assert view.starting(heard=0) == 0


def test_an_order_counts_as_starting_until_the_launcher_counts_it() -> None:
    view = FleetView()
    view.tell(0.0, Fleet(serving=1, starting=0))
    assert view.order(1.0, 2) == 1
    assert view.order(1.1, 1) == 2
    assert view.starting(heard=1) == 3
    view.tell(1.2, Fleet(serving=1, starting=2, last_order=1))
    assert view.starting(heard=1) == 3
    view.tell(1.3, Fleet(serving=1, starting=3, last_order=2))
    assert view.starting(heard=1) == 3


def test_one_that_serves_and_was_not_heard_yet_is_coming() -> None:
    view = FleetView()
    view.tell(0.0, Fleet(serving=3, starting=1))
    assert view.starting(heard=2) == 2
    assert view.starting(heard=4) == 1, "its report was faster than the launcher's word"


def test_an_order_that_got_lost_is_forgotten() -> None:
    view = FleetView()
    view.tell(0.0, Fleet(serving=1, starting=0))
    view.order(0.0, 1)
    view.expire(ORDER_DEADLINE_S - 1)
    assert view.starting(heard=1) == 1
    view.expire(ORDER_DEADLINE_S)
    assert view.starting(heard=1) == 0


def test_instance_seconds_are_the_time_that_each_existed() -> None:
    view = FleetView()
    assert view.instance_seconds(0.0) == 0
    view.tell(10.0, Fleet(serving=1, starting=1))
    view.tell(12.0, Fleet(serving=2, starting=0, failing=1))
    view.tell(15.0, Fleet(serving=1, starting=0))
    assert view.instance_seconds(20.0) == 2 * 2 + 3 * 2 + 5 * 1


def test_room_is_what_the_launcher_says_less_what_was_ordered_since() -> None:
    view = FleetView()
    assert view.room is None
    view.tell(0.0, Fleet(serving=1, starting=0))
    assert view.room is None, "nobody knows: on CPUs"
    view.tell(0.0, Fleet(serving=1, starting=0, room=3))
    view.order(1.0, 2)
    assert view.room == 1
    view.tell(1.1, Fleet(serving=1, starting=2, room=1, last_order=1))
    assert view.room == 1
