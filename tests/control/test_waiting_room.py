"""Who is admitted, who is held, who is called next, and what those are told who are not taken."""

from __future__ import annotations

from math import inf

import pytest
from waiting_people import People

from llumnix.control.waiting_room import MOST_PASSED
from llumnix.policy.classes import Declined, ServiceClass
from llumnix.types import HIGH, RequestId
from service_classes import classes_of, tenant

URGENT = ServiceClass(name="urgent", priority=HIGH)
FAST = ServiceClass(name="fast", ttft_s=1.0, share=3.0, max_hold_s=0.5)
SLOW = ServiceClass(name="slow", max_hold_s=100.0)


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def test_with_room_somewhere_a_request_is_called_at_once() -> None:
    people = People(classes_of(tenant("t")))
    people.ask("a")
    assert people.calls(free=1) == ["a"]
    assert people.room.held == 0
    assert people.room.wake_at_s == inf


def test_while_all_instances_have_enough_requests_wait_in_order() -> None:
    people = People(classes_of(tenant("t")))
    for name in names("r", 5):
        people.ask(name)
    assert people.calls() == []
    assert people.calls(free=2) == ["r0", "r1"]
    assert people.room.demand == (3, 300)
    assert people.calls(free=9) == ["r2", "r3", "r4"]


def test_tenant_with_ten_times_the_requests_gets_no_more_than_the_other() -> None:
    people = People(classes_of(tenant("loud"), tenant("quiet")))
    for name in names("l", 20):
        people.ask(name, "loud")
    for name in names("q", 2):
        people.ask(name, "quiet")
    first = people.calls(free=4)
    assert sum(name.startswith("q") for name in first) == 2


def test_weights_and_shares_say_how_much_each_gets() -> None:
    people = People(classes_of(tenant("small"), tenant("large", weight=3.0)))
    for name in names("s", 20):
        people.ask(name, "small")
    for name in names("l", 20):
        people.ask(name, "large")
    assert sum(name.startswith("l") for name in people.calls(free=12)) == 9
    people = People(classes_of(tenant("t", "fast", "slow"), classes=(FAST, SLOW)))
    for name in names("f", 20):
        people.ask(name, cls="fast")
    for name in names("s", 20):
        people.ask(name, cls="slow")
    assert sum(name.startswith("f") for name in people.calls(free=12)) == 9


def test_a_class_of_high_priority_goes_first_whatever_was_served() -> None:
    people = People(classes_of(tenant("t", "urgent", "slow"), classes=(URGENT, SLOW)))
    for name in names("s", 3):
        people.ask(name, cls="slow")
    for name in names("u", 3):
        people.ask(name, cls="urgent")
    assert people.calls(free=4) == ["u0", "u1", "u2", "s0"]


def test_work_counts_and_not_requests() -> None:
    """One with prompts of 900 tokens gets one request for four of 100."""
    people = People(classes_of(tenant("long"), tenant("short")))
    for name in names("l", 10):
        people.ask(name, "long", prompt=900, output=50)
    for name in names("s", 20):
        people.ask(name, "short", prompt=150, output=50)
    first = people.calls(free=15)
    assert sum(name.startswith("l") for name in first) == 3


def test_outputs_that_were_longer_than_expected_are_charged_when_they_end() -> None:
    people = People(classes_of(tenant("a"), tenant("b")))
    for name in names("a", 6):
        people.ask(name, "a", output=4096)
    for name in names("b", 6):
        people.ask(name, "b", output=256)
    assert people.calls(free=2) == ["a0", "b0"]
    people.end("a0", "b0")
    assert people.calls(free=4) == ["b1", "b2", "b3", "b4"]


def test_high_priority_held_behind_its_tenants_limit_lets_the_others_by() -> None:
    people = People(classes_of(tenant("t", "urgent", concurrent=1), tenant("o", "slow"), classes=(URGENT, SLOW)))
    for name in names("u", 2):
        people.ask(name, cls="urgent")
    people.ask("s", "o", "slow")
    assert people.calls(free=3) == ["u0", "s"]
    people.end("u0")
    assert people.calls() == ["u1"]


def test_who_waits_too_long_is_told_so_and_is_charged_nothing() -> None:
    people = People(classes_of(tenant("t", "fast", tokens_per_minute=1000.0), classes=(FAST,)))
    people.ask("r", cls="fast")
    assert people.room.wake_at_s == 0.5
    people.now_s = 0.49
    assert people.calls() == []
    people.now_s = 0.5
    answer = people.room.call(0.5, people)
    assert answer is not None
    assert isinstance(answer.declined, Declined)  # type: ignore[union-attr]
    assert (answer.declined.status, answer.declined.retry_after_s) == (503, 1.0)  # type: ignore[union-attr]
    (tokens,) = people.room.allowances(0.5, "t")
    assert tokens.remaining == 1000.0


def test_who_waits_too_long_for_his_own_others_is_told_that_it_is_his_limit() -> None:
    people = People(classes_of(tenant("t", "fast", concurrent=1), classes=(FAST,)))
    people.ask("a", cls="fast")
    people.ask("b", cls="fast")
    assert people.calls(free=2) == ["a"]
    people.now_s = 1.0
    answer = people.room.call(1.0, people)
    assert answer is not None
    assert answer.declined.status == 429  # type: ignore[union-attr]
    assert answer.declined.why == "It waited for 0.5 s: its tenant may have 1 request at once."  # type: ignore[union-attr]


LARGE, MANY = 1234567.0, "1234567 tokens a minute (308642 at each front end)"


@pytest.mark.parametrize(
    ("limits", "asks", "why"),
    [
        (
            {"concurrent": 8},
            [100] * 3,
            "It waited for 600 s: its tenant may have 8 requests at once (2 at each front end).",
        ),
        ({}, [100] * 3, "It waited for 600 s, and no instance could begin it in time."),
        (
            {"tokens_per_minute": LARGE},
            [300_000, 100_000],
            f"The tenant t may have {MANY}; 8385 of them are left, 100256 needed.",
        ),
        (
            {"tokens_per_minute": LARGE},
            [2_000_000],
            f"The tenant t may have {MANY}, and this request needs 2000256.",
        ),
        (
            {"requests_per_minute": LARGE * 8, "tokens_per_minute": 0.0},
            [2],
            "The tenant t may have 0 tokens a minute (0 at each front end), and this request needs 258.",
        ),
    ],
)
def test_what_a_client_is_told_are_whole_limits_and_numbers_without_exponents(
    limits: dict[str, float], asks: list[int], why: str
) -> None:
    patient = ServiceClass(name="slow", max_hold_s=600.0)
    people = People(classes_of(tenant("t", "slow", **limits), classes=(patient,)).shared_by(4))
    declined = [people.ask(f"r{n}", cls="slow", prompt=prompt, output=256) for n, prompt in enumerate(asks)]
    people.calls(free=2 if limits else 0)
    people.now_s = 600.0
    late = people.room.call(600.0, people)
    told = [*declined, None if late is None else late.declined]  # type: ignore[union-attr]
    assert [one.why for one in told if one is not None] == [why]


def test_client_that_goes_while_it_waits_leaves_nothing() -> None:
    people = People(classes_of(tenant("t", requests_per_minute=60.0, tokens_per_minute=6000.0)))
    people.ask("r")
    people.room.left(RequestId("r"))
    people.room.left(RequestId("r"))
    assert people.calls(free=1) == []
    assert people.room.demand == (0, 0)
    assert [each.remaining for each in people.room.allowances(0.0, "t")] == [60.0, 6000.0]


def test_beyond_the_limit_of_requests_the_answer_says_when_to_come_back() -> None:
    people = People(classes_of(tenant("t", requests_per_minute=2.0)))
    assert people.ask("a") is people.ask("b") is None
    people.now_s = 10.0
    answer = people.ask("c")
    assert answer is not None
    assert (answer.status, answer.kind) == (429, "rate_limit_exceeded")
    assert answer.retry_after_s == pytest.approx(20.0)
    assert people.room.at_the_door(10.0, "t", "c") == answer
    people.now_s = 30.0
    assert people.ask("c") is None


def test_tokens_that_were_reserved_and_not_made_are_given_back() -> None:
    people = People(classes_of(tenant("t", tokens_per_minute=1000.0)))
    assert people.ask("a", prompt=400, output=500) is None  # 256 of these are expected
    answer = people.ask("b", prompt=400)
    assert answer is not None
    assert answer.retry_after_s == pytest.approx((500 - 344) * 60 / 1000)
    people.calls(free=1)
    people.outputs[RequestId("a")] = 6
    people.end("a")
    assert people.room.allowances(0.0, "t")[0].remaining == 594.0
    assert people.ask("b", prompt=400) is None


def test_a_request_that_is_larger_than_a_minutes_worth_is_never_taken() -> None:
    people = People(classes_of(tenant("t", tokens_per_minute=100.0)))
    answer = people.ask("a", prompt=101, output=0)
    assert answer is not None
    assert (answer.status, answer.retry_after_s) == (429, None)


@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_minute", "concurrent"])
def test_a_limit_of_zero_lets_nothing_through(limit: str) -> None:
    people = People(classes_of(tenant("t", **{limit: 0})))
    answer = people.ask("a")
    assert answer is not None
    assert (answer.status, answer.retry_after_s) == (429, None)
    assert people.calls(free=1) == []


def test_a_class_of_which_enough_wait_takes_no_more() -> None:
    people = People(classes_of(tenant("t"), classes=(ServiceClass(name="c", max_held=2),)))
    assert people.ask("a") is people.ask("b") is None
    answer = people.ask("c")
    assert answer is not None
    assert (answer.status, answer.kind) == (503, "overloaded")
    assert people.room.at_the_door(0.0, "t", "c") == answer
    people.calls(free=1)
    assert people.ask("c") is None


def test_retry_after_of_a_full_class_is_about_how_long_those_before_it_take() -> None:
    people = People(classes_of(tenant("t"), classes=(ServiceClass(name="c", max_held=8),)))
    for number in range(60):
        people.now_s = 1.0 * number
        people.ask(f"r{number}")
        people.calls(free=number > 8)
    people.ask("the last")
    answer = people.ask("one too many")
    assert answer is not None
    assert answer.retry_after_s == 8.0


def test_whose_first_token_would_come_too_late_is_not_taken_where_that_can_be_foreseen() -> None:
    people = People(classes_of(tenant("t", "fast"), classes=(FAST,)), foreseen_s=1.0)
    assert people.ask("a", cls="fast", prompt=900) is None
    answer = people.ask("b", cls="fast", prompt=3000)
    assert answer is not None
    assert (answer.status, answer.retry_after_s) == (503, 3.0)
    people.foreseen_s = None
    assert people.ask("b", cls="fast", prompt=3000) is None


def test_whose_turn_comes_too_late_for_its_prompt_makes_way_for_one_that_is_still_in_time() -> None:
    people = People(classes_of(tenant("t", "fast"), classes=(FAST,)), foreseen_s=1.0)
    people.ask("long", cls="fast", prompt=700)
    people.ask("short", cls="fast", prompt=200)
    people.now_s = 0.4
    assert people.calls(free=1) == ["long!", "short"]


def test_where_nothing_is_foreseen_half_of_the_target_is_kept_for_the_prompt() -> None:
    patient = ServiceClass(name="c", ttft_s=1.0, max_hold_s=1.0)
    people = People(classes_of(tenant("t"), classes=(patient,)))
    people.ask("a")
    people.now_s = 0.2
    people.ask("b")
    people.now_s = 0.6
    assert people.calls(free=2) == ["a!", "b"]


def test_class_that_rather_comes_late_than_not_at_all_says_how_long_it_waits() -> None:
    late = ServiceClass(name="c", ttft_s=1.0, max_hold_s=30.0)
    people = People(classes_of(tenant("t"), classes=(late,)), foreseen_s=1.0)
    people.ask("a", prompt=700)
    people.now_s = 20.0
    assert people.calls(free=1) == ["a"]


def test_only_what_goes_before_it_by_turns_is_foreseen() -> None:
    """A long queue of somebody else's does not keep out who has none."""
    people = People(classes_of(tenant("loud", "slow"), tenant("quiet", "slow"), classes=(SLOW,)), foreseen_s=30.0)
    for name in names("l", 30):
        people.ask(name, "loud", "slow")
    assert people.ask("more", "loud", "slow", prompt=400) is not None
    assert people.ask("q", "quiet", "slow", prompt=400) is None


def test_other_limits_keep_what_was_used_and_whoever_is_in() -> None:
    before = classes_of(tenant("t", requests_per_minute=10.0), tenant("gone"))
    people = People(before)
    for name in names("t", 4):
        people.ask(name)
    people.ask("g0", "gone")
    people.ask("g1", "gone")
    assert people.calls(free=2) == ["g0", "t0"]
    after = classes_of(tenant("t", "d", requests_per_minute=5.0), classes=(ServiceClass(name="d"),))
    people.room.change(after, 0.0)
    assert people.room.allowances(0.0, "t")[0].remaining == 1.0
    assert people.ask("t4", cls="d") is None
    assert people.ask("t5", cls="d") is not None
    assert sorted(people.calls(free=9)) == ["g1", "t1", "t2", "t3", "t4"]
    people.end("g0", "g1", "t0", "t1", "t2", "t3", "t4")
    people.room.change(after, 0.0)
    assert set(people.room._classes) == {"d"}
    assert set(people.room._accounts) == {"t"}


def test_one_tenants_long_queue_leaves_room_for_the_others_of_its_class() -> None:
    people = People(classes_of(tenant("loud"), tenant("quiet"), classes=(ServiceClass(name="c", max_held=4),)))
    assert [people.ask(name, "loud") for name in names("l", 4)] == [None] * 4
    assert people.ask("l4", "loud") is not None
    assert people.room.at_the_door(0.0, "quiet", "c") is None
    assert [people.ask(name, "quiet") is None for name in names("q", 3)] == [True, True, False]


def test_however_many_tenants_ask_no_more_than_twice_as_many_wait() -> None:
    crowd = [tenant(f"t{number}") for number in range(50)]
    people = People(classes_of(*crowd, classes=(ServiceClass(name="c", max_held=10),)))
    for number in range(50):
        for name in names(f"{number}-", 10):
            people.ask(name, f"t{number}")
    assert people.room.held == 20


def test_class_that_never_waits_is_served_at_once_or_told_no() -> None:
    people = People(classes_of(tenant("t"), classes=(ServiceClass(name="c", max_hold_s=0.0),)))
    people.ask("a")
    people.now_s = 0.001
    assert people.calls(free=1) == ["a"]
    people.ask("b")
    assert people.calls() == ["b!"]


@pytest.mark.parametrize("parts", [1, 8])
def test_one_request_can_come_however_few_are_allowed_and_however_many_front_ends_there_are(parts: int) -> None:
    people = People(classes_of(tenant("t", requests_per_minute=0.5)).shared_by(parts))
    assert people.ask("a") is None
    answer = people.ask("b")
    assert answer is not None
    assert answer.retry_after_s == pytest.approx(120.0 * parts)
    assert "may have 0.5 requests a minute" in answer.why


def test_a_request_within_the_tenants_limit_that_is_more_than_a_front_ends_part_of_it_leaves_a_debt() -> None:
    people = People(classes_of(tenant("t", tokens_per_minute=1000.0)).shared_by(4))
    assert people.ask("a", prompt=600, output=0) is None
    answer = people.ask("b", prompt=600, output=0)
    assert answer is not None
    assert answer.retry_after_s == pytest.approx(600 / 250 * 60)
    too_large = people.ask("c", prompt=1001, output=0)
    assert too_large is not None
    assert too_large.retry_after_s is None


def test_at_the_door_a_tenant_in_debt_is_told_when_a_usual_request_could_come() -> None:
    people = People(classes_of(tenant("t", tokens_per_minute=600.0)))
    people.ask("a", prompt=300, output=100)
    people.calls(free=1)
    people.outputs[RequestId("a")] = 400
    people.end("a")
    answer = people.room.at_the_door(0.0, "t", "c")
    assert answer is not None
    assert answer.retry_after_s == pytest.approx((100 + 400) / 10)


def test_who_waits_for_his_own_limit_is_no_measure_for_those_who_come_new() -> None:
    """b stood still while a was served for long: c begins where a is, and not where b is."""
    people = People(classes_of(tenant("a"), tenant("b", concurrent=1), tenant("c")))
    for name in names("b", 3):
        people.ask(name, "b")
    assert people.calls(free=1) == ["b0"]
    for name in names("a", 20):
        people.ask(name, "a")
    people.calls(free=10)
    for name in names("c", 10):
        people.ask(name, "c")
    assert sum(name.startswith("c") for name in people.calls(free=4)) == 2


def test_who_was_held_back_by_his_own_limit_has_saved_nothing_up() -> None:
    people = People(classes_of(tenant("a"), tenant("b", concurrent=1)))
    for name in names("b", 9):
        people.ask(name, "b")
    for name in names("a", 30):
        people.ask(name, "a")
    assert people.calls(free=16)[:2] == ["a0", "b0"]
    people.room.change(classes_of(tenant("a"), tenant("b", concurrent=100)), 0.0)
    assert sum(name.startswith("b") for name in people.calls(free=4)) == 2


def test_other_classes_counters_say_nothing_about_a_class_that_comes_back() -> None:
    """What the urgent ones had is no measure for the others, who never compete with them."""
    classes = (URGENT, ServiceClass(name="c"), ServiceClass(name="d"))
    people = People(classes_of(tenant("t", "urgent", "c", "d"), classes=classes))
    for name in names("u", 10):
        people.ask(name, cls="urgent")
    people.calls(free=10)
    people.ask("c0", cls="c")
    people.calls(free=1)
    for number in range(1, 9):
        people.ask(f"c{number}", cls="c")
        people.ask(f"d{number}", cls="d")
    assert sum(name.startswith("d") for name in people.calls(free=8)) == 4


def test_what_went_nowhere_is_as_if_it_had_not_come() -> None:
    people = People(classes_of(tenant("t", requests_per_minute=2.0, tokens_per_minute=1000.0, concurrent=1)))
    before = people.room.standings()
    people.ask("a", output=100)
    assert people.calls(free=1) == ["a"]
    people.room.unsent(RequestId("a"))
    assert [each.remaining for each in people.room.allowances(0.0, "t")] == [2.0, 1000.0]
    assert [each.work for each in people.room.standings().values()] == [0.0]
    assert not before
    assert people.room.account("t").expected_output(10**6) == 256.0
    people.ask("b")
    assert people.calls(free=1) == ["b"]


def test_whoever_goes_first_is_not_told_of_those_behind_it() -> None:
    urgent = ServiceClass(name="urgent", priority=HIGH, ttft_s=1.0, max_hold_s=1.0)
    crowd = [tenant(f"t{number}", "slow") for number in range(10)]
    people = People(classes_of(tenant("u", "urgent"), *crowd, classes=(urgent, SLOW)), foreseen_s=1.0)
    for number in range(10):
        people.ask(f"s{number}", f"t{number}", "slow", prompt=900)
    assert people.ask("u", "u", "urgent", prompt=900) is None


def test_whoever_goes_last_is_told_of_all_those_before_it() -> None:
    people = People(classes_of(tenant("u", "urgent"), tenant("t", "fast"), classes=(URGENT, FAST)), foreseen_s=1.0)
    for name in names("u", 5):
        people.ask(name, "u", "urgent", prompt=500)
    assert people.ask("f", "t", "fast", prompt=100) is not None


def test_of_a_class_with_many_tenants_no_more_is_before_another_than_its_share() -> None:
    """Four tokens for each of its own are due to the other class, whoever has them."""
    heavy, light = ServiceClass(name="heavy", share=4.0), ServiceClass(name="light", share=1.0, max_hold_s=1.0)
    crowd = [tenant(f"t{number}", "heavy") for number in range(10)]
    people = People(classes_of(tenant("l", "light"), *crowd, classes=(heavy, light)), foreseen_s=1.0)
    for number in range(10):
        people.ask(f"h{number}", f"t{number}", "heavy", prompt=900)
    assert people.ask("l0", "l", "light", prompt=190) is None
    assert people.ask("l1", "l", "light", prompt=190) is not None


@pytest.mark.parametrize(
    ("cls", "concurrent", "theirs", "own"),
    [(SLOW, 1, 900, 800), (URGENT, 2, 400, 100)],
    ids=["none may run", "one more may run"],
)
def test_of_those_who_wait_for_their_own_limit_only_so_many_as_may_run_are_before_others(
    cls: ServiceClass, concurrent: int, theirs: int, own: int
) -> None:
    limited = tenant("b", cls.name, concurrent=concurrent)
    people = People(classes_of(limited, tenant("t", "fast"), classes=(cls, FAST)), foreseen_s=1.0)
    for name in names("b", 10):
        people.ask(name, "b", cls.name, prompt=theirs)
    assert people.calls(free=1) == ["b0"]
    assert people.ask("f", "t", "fast", prompt=own) is None


def test_only_what_more_instances_could_serve_is_a_reason_for_more() -> None:
    people = People(classes_of(tenant("b", concurrent=3), tenant("t")))
    for name in names("b", 9):
        people.ask(name, "b", prompt=200)
    assert people.calls(free=1) == ["b0"]
    people.ask("t0", "t")
    assert people.room.held == 9
    assert people.room.demand == (3, 500)


def test_who_waits_for_an_instance_of_its_own_is_passed_by_those_who_do_not() -> None:
    people = People(classes_of(tenant("a"), tenant("b")))
    for name in names("a", 2):
        people.ask(name, "a", only_on="i1")
    for name in names("b", 2):
        people.ask(name, "b")
    assert people.calls(free=2) == ["b0", "b1"]
    people.free_there = True
    assert people.calls(free=2) == ["a0", "a1"]


def test_of_those_who_wait_for_instances_of_their_own_only_so_many_are_passed() -> None:
    crowd = [tenant(f"t{number:02}") for number in range(MOST_PASSED + 2)]
    people = People(classes_of(*crowd))
    for each in crowd[:-1]:
        people.ask(each.name, each.name, only_on="i1")
    people.ask("last", crowd[-1].name)
    assert people.calls(free=9) == []


def test_class_that_never_waits_is_not_told_of_others_that_do() -> None:
    at_once = ServiceClass(name="c", max_hold_s=0.0, priority=HIGH)
    people = People(classes_of(tenant("t"), tenant("o", "slow"), classes=(at_once, SLOW)), foreseen_s=1.0)
    people.ask("s", "o", "slow", prompt=900)
    assert people.ask("a") is None
    assert people.calls(free=1) == ["a"]


def test_whose_queues_come_back_together_do_not_lend_each_other_what_they_saved() -> None:
    both = (ServiceClass(name="c"), ServiceClass(name="d"))
    people = People(
        classes_of(tenant("t", "c", "d", concurrent=1), tenant("o", "e"), classes=(*both, ServiceClass(name="e")))
    )
    for cls in "cd":
        for name in names(cls, 9):
            people.ask(name, "t", cls)
    assert people.calls(free=1) == ["c0"]
    for name in names("e", 30):
        people.ask(name, "o", "e")
    people.calls(free=16)
    more = classes_of(tenant("t", "c", "d"), tenant("o", "e"), classes=(*both, ServiceClass(name="e")))
    people.room.change(more, 0.0)
    assert sum(name.startswith("e") for name in people.calls(free=6)) == 2


def test_nobody_takes_what_becomes_free_where_one_before_it_waits() -> None:
    people = People(classes_of(tenant("a"), tenant("b")))
    people.ask("a0", "a", only_on="i0")
    people.ask("b0", "b")
    assert people.calls(free=2) == []
    people.free_there = True
    assert people.calls() == ["a0", "b0"]
