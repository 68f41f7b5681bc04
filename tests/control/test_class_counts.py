"""What is counted of each class and tenant: over a while, since the start, and of several front ends together."""

from __future__ import annotations

from waiting_people import People

from llumnix.control.class_counts import ATTAINED_S, NO_QUEUE, USED_S, ClassCounts, ClassRow, Standing, add_up
from llumnix.control.held_requests import QueueName
from llumnix.policy.classes import ServiceClass
from service_classes import classes_of, tenant

ALICE, BOB = QueueName("c", "alice"), QueueName("c", "bob")
PROMISED = ServiceClass(name="c", ttft_s=1.0, tpot_s=0.1)


def the_row(counts: ClassCounts, at_s: float) -> ClassRow:
    (row,) = counts.rows(at_s, {})
    return row


def test_tokens_count_for_a_minute() -> None:
    counts = ClassCounts()
    counts.came_in(0.0, ALICE, 100)
    counts.ended(30.0, ALICE, PROMISED, 7, 0.5, 0.05)
    assert the_row(counts, 31.0).tokens_per_minute == 107
    assert the_row(counts, USED_S + 5.0).tokens_per_minute == 7
    assert the_row(counts, 30.0 + USED_S + 5.0).tokens_per_minute == 0


def test_targets_are_counted_where_there_are_any_and_forgotten_after_a_while() -> None:
    counts = ClassCounts()
    assert counts.ended(0.0, ALICE, PROMISED, 7, 1.0, 0.2) == {"ttft": True, "tpot": False}
    assert counts.ended(0.0, ALICE, PROMISED, 1, 1.1, None) == {"ttft": False}
    assert counts.ended(0.0, ALICE, ServiceClass(name="c"), 7, 9.0, 9.0) == {}
    row = the_row(counts, ATTAINED_S / 2)
    assert (row.ttft_met, row.ttft_missed, row.tpot_met, row.tpot_missed) == (1, 1, 0, 1)
    row = the_row(counts, 2 * ATTAINED_S)
    assert (row.ttft_met, row.ttft_missed, row.tpot_met, row.tpot_missed) == (0, 0, 0, 0)


def test_refusals_are_counted_since_the_start_and_kept_as_long_as_their_tenant() -> None:
    counts = ClassCounts()
    for queue, status in ((ALICE, 429), (ALICE, 429), (ALICE, 503), (BOB, 429), (NO_QUEUE, 403)):
        counts.refused(queue, status)
    assert [row.refused for row in counts.rows(1e6, {})] == [{"403": 1}, {"429": 2, "503": 1}, {"429": 1}]
    counts.keep(classes_of(tenant("bob"), tenant("carol")))
    assert [row.tenant for row in counts.rows(1e6, {})] == ["", "bob"]


def test_however_long_it_goes_on_no_more_is_kept_than_a_few_slots() -> None:
    counts = ClassCounts()
    for second in range(10_000):
        counts.came_in(float(second), ALICE, 1)
    assert len(counts._of[ALICE].tokens._slots) <= 13
    assert the_row(counts, 10_000.0).tokens_per_minute <= USED_S


def test_room_says_who_waits_runs_and_had_how_much() -> None:
    people = People(classes_of(tenant("a"), tenant("b", weight=2.0)), free=1)
    for name, who in (("r0", "a"), ("r1", "a"), ("r2", "b")):
        people.ask(name, who)
        people.calls()
    a, b = ClassCounts().rows(0.0, people.room.standings())
    assert (a.tenant, a.held, a.running, b.held, b.running) == ("a", 1, 1, 1, 0)
    assert a.work == 100 + 2 * 100
    people.end("r0")
    people.calls(free=9)
    assert [(row.held, row.running) for row in ClassCounts().rows(0.0, people.room.standings())] == [(0, 1), (0, 1)]


def test_rows_of_several_front_ends_are_one_for_each_class_and_tenant() -> None:
    here = [ClassRow(cls="c", tenant="b", held=1, work=2.5, refused={"429": 1}), ClassRow(cls="a", tenant="z")]
    there = [ClassRow(cls="c", tenant="b", held=2, work=1.0, ttft_met=3, refused={"429": 2, "503": 1})]
    together = ClassRow(cls="c", tenant="b", held=3, work=3.5, ttft_met=3, refused={"429": 3, "503": 1})
    assert add_up([here, there]) == [ClassRow(cls="a", tenant="z"), together]


def test_a_row_for_all_that_waits_also_where_nothing_was_counted() -> None:
    (row,) = ClassCounts().rows(0.0, {ALICE: Standing(2, 1, 3.0)})
    assert (row.held, row.running, row.work, row.refused) == (2, 1, 3.0, {})
