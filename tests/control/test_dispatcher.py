"""The dispatcher: choice, ledger, late and early news."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from llumnix.config import PolicyConfig
from llumnix.control.dispatcher import Dispatcher
from llumnix.control.gone import REMEMBERED
from llumnix.policy.dispatch import DispatchRequest
from llumnix.policy.snapshot import STANDING_S, InstanceSnapshot, StepCost
from llumnix.types import HIGH, NORMAL, InstanceId, InstanceState, RequestId


def report(id: str, seq: int = 1, **facts: object) -> InstanceSnapshot:
    usual = {"at": 0.0, "total_blocks": 1000, "free_blocks": 1000}
    return InstanceSnapshot(id=InstanceId(id), seq=seq, **{**usual, **facts})  # type: ignore[arg-type]


def request(id: str = "r", tokens: int = 160, priority: int = NORMAL) -> DispatchRequest:
    return DispatchRequest(RequestId(id), tokens, priority)  # type: ignore[arg-type]


def dispatcher(*reports: InstanceSnapshot, policy: str = "llumnix", front_end: int = 0) -> Dispatcher:
    made = Dispatcher(PolicyConfig(policy=policy), front_end)
    for one in reports:
        made.on_report(one)
    return made


def placed(dispatcher: Dispatcher, count: int, **facts: Any) -> list[str]:
    chosen = [dispatcher.dispatch(request(f"r{k}", **facts)) for k in range(count)]
    return [one.instance if one else "none" for one in chosen]


def waiting(dispatcher: Dispatcher) -> dict[str, tuple[int, int]]:
    return {one.id: (one.waiting, one.queued_blocks) for one in dispatcher.snapshot(0.0).instances}


def test_nobody_to_take_it() -> None:
    assert dispatcher().dispatch(request()) is None


def test_burst_is_spread_though_no_report_comes() -> None:
    d = dispatcher(report("a"), report("b"), report("c"))
    assert placed(d, 6) == ["a", "b", "c", "a", "b", "c"]
    assert waiting(d) == {"a": (2, 20), "b": (2, 20), "c": (2, 20)}


def test_decision_says_why() -> None:
    d = dispatcher(report("a", free_blocks=500, running=10), report("b", free_blocks=900, running=10))
    dispatch = d.dispatch(request())
    assert dispatch is not None
    assert str(dispatch.reason) == "b has the best freeness of 2: 90 (next a: 50)"


def test_decision_names_the_next_best_with_their_numbers() -> None:
    loads = {"a": 900, "b": 100, "c": 800, "d": 700, "e": 600, "f": 500, "g": 400}
    d = dispatcher(*(report(name, free_blocks=free, running=10) for name, free in loads.items()))
    dispatch = d.dispatch(request(tokens=13_000))
    assert dispatch is not None
    told = [(one.instance, one.number, one.has_room) for one in dispatch.reason.candidates]
    assert told == [("a", 90, True), ("c", 80, False), ("d", 70, False), ("e", 60, False), ("f", 50, False)]


def test_tokens_under_way_count_until_a_report_does() -> None:
    d = dispatcher(report("a", prefill_tokens=50))
    placed(d, 2, tokens=300)
    assert d.snapshot(0.0).instances[0].prefill_tokens == 650
    d.on_report(report("a", 2, prefill_tokens=350, dispatches_seen=(1,)))
    assert d.snapshot(0.0).instances[0].prefill_tokens == 650
    d.on_report(report("a", 3, prefill_tokens=120, dispatches_seen=(2,)))
    assert d.snapshot(0.0).instances[0].prefill_tokens == 120


def test_instance_that_knows_no_costs_yet_is_taken_to_be_like_the_last_that_told_its_own() -> None:
    known = StepCost(fixed_ms=5.0, prefill_token_us=100.0, request_us=50.0, context_token_us=0.5)
    d = dispatcher(report("a"), report("b"))
    assert [one.step_cost for one in d.snapshot(0.0).instances] == [None, None]
    d.on_report(report("b", 2, step_cost=known))
    d.on_report(report("c"))
    assert [one.step_cost for one in d.snapshot(0.0).instances] == [known, known, known]
    own = StepCost(fixed_ms=50.0, prefill_token_us=900.0, request_us=50.0, context_token_us=0.5)
    d.on_report(report("a", 2, step_cost=own))
    assert [one.step_cost for one in d.snapshot(0.0).instances] == [own, known, known]


def test_report_closes_exactly_the_dispatches_that_it_counts() -> None:
    d = dispatcher(report("a"))
    placed(d, 3)
    d.on_report(report("a", 2, waiting=1, queued_blocks=10, head_of_line_blocks=10, dispatches_seen=(1,)))
    assert waiting(d) == {"a": (3, 30)}
    d.on_report(report("a", 3, running=3, free_blocks=970, dispatches_seen=(3,)))
    assert waiting(d) == {"a": (0, 0)}


def test_each_front_end_has_its_own_count() -> None:
    d = dispatcher(report("a", dispatches_seen=(9, 4)), front_end=1)
    placed(d, 2)
    d.on_report(report("a", 2, dispatches_seen=(20, 5)))
    assert waiting(d)["a"] == (1, 10)


def test_report_that_does_not_know_this_front_end_yet_counts_nothing() -> None:
    d = dispatcher(report("a"), front_end=3)
    placed(d, 2)
    d.on_report(report("a", 2, dispatches_seen=(7,)))
    assert waiting(d)["a"] == (2, 20)


def test_restarted_front_end_starts_from_the_count_that_it_finds() -> None:
    d = dispatcher(report("a", dispatches_seen=(50,)))
    placed(d, 2)
    d.on_report(report("a", 2, dispatches_seen=(51,)))
    assert waiting(d)["a"] == (1, 10)


def test_older_report_that_comes_late_changes_nothing() -> None:
    d = dispatcher(report("a", 5, running=7))
    d.on_report(report("a", 5, running=1))
    d.on_report(report("a", 4, running=2))
    assert d.snapshot(0.0).instances[0].running == 7


def test_request_that_was_never_sent_is_forgotten_and_the_count_stays_exact() -> None:
    d = dispatcher(report("a"))
    first, second = d.dispatch(request("x", 160)), d.dispatch(request("y", 320))
    assert first is not None
    assert second is not None
    d.forget(first.request, first.instance)
    d.forget(first.request, first.instance)
    assert waiting(d)["a"] == (1, 20)
    d.on_report(report("a", 2, dispatches_seen=(1,)))
    assert waiting(d)["a"] == (0, 0)


@pytest.mark.parametrize("state", [state for state in InstanceState if state is not InstanceState.RUNNING])
def test_only_running_instances_are_chosen(state: InstanceState) -> None:
    d = dispatcher(report("a", state=state), report("b", running=200, free_blocks=0))
    assert placed(d, 3) == ["b", "b", "b"]


def test_instance_that_begins_to_drain_gets_no_more() -> None:
    d = dispatcher(report("a"), report("b", running=200, free_blocks=0))
    assert placed(d, 1) == ["a"]
    d.on_report(report("a", 2, state=InstanceState.DRAINING))
    assert placed(d, 1) == ["b"]
    d.on_report(report("a", 3, dispatches_seen=(1,)))
    assert placed(d, 1) == ["a"]


def test_removed_instance_is_gone_for_good() -> None:
    d = dispatcher(report("a"), report("b"))
    placed(d, 2)
    d.on_removed(InstanceId("a"))
    d.on_removed(InstanceId("a"))
    d.on_report(report("a", 9))
    assert placed(d, 2) == ["b", "b"]
    dispatch = d.dispatch(request())
    assert dispatch is not None
    d.on_removed(InstanceId("b"))
    d.forget(dispatch.request, dispatch.instance)
    assert d.dispatch(request()) is None


def test_memory_of_removed_instances_is_bounded() -> None:
    d = dispatcher()
    for k in range(REMEMBERED + 1):
        d.on_removed(InstanceId(f"gone-{k}"))
    d.on_report(report("gone-1"))
    assert d.snapshot(0.0).instances == ()
    d.on_report(report("gone-0"))
    assert len(d.snapshot(0.0).instances) == 1


def test_replay_avoids_the_instance_that_failed() -> None:
    d = dispatcher(report("a"), report("b", running=100, free_blocks=10), report("c", running=100, free_blocks=5))
    dispatch = d.dispatch(request(), avoid=frozenset({InstanceId("a"), InstanceId("unknown")}))
    assert dispatch is not None
    assert str(dispatch.reason) == "b has the best freeness of 2: 0.1 (next c: 0.05)"
    assert d.dispatch(request(), avoid=frozenset({InstanceId("a"), InstanceId("b"), InstanceId("c")})) is None


def test_request_goes_only_where_it_could_ever_run() -> None:
    d = dispatcher(report("small", total_blocks=10, free_blocks=10), report("big", running=30))
    assert placed(d, 1, tokens=161) == ["big"]
    alone = report("small", total_blocks=10, free_blocks=10, watermark_blocks=1)
    assert placed(dispatcher(alone), 1, tokens=160) == ["small"], "the watermark is for those that begin beside others"
    assert placed(dispatcher(report("small", total_blocks=10, free_blocks=10)), 1, tokens=161) == ["none"]
    assert placed(dispatcher(report("small", total_blocks=10, free_blocks=10)), 1, tokens=160) == ["small"]


@pytest.mark.parametrize(
    ("kinds", "longest"),
    [
        ({"state_blocks": 2}, 18 * 16),
        ({"kv_groups": ((16, 0), (16, 0))}, 10 * 16),
        ({"kv_groups": ((16, 0), (16, 8))}, 12 * 16),
    ],
)
def test_request_goes_only_where_it_could_ever_run_by_all_kinds_of_blocks(kinds: dict[str, Any], longest: int) -> None:
    known = report("a", total_blocks=20, free_blocks=20, **kinds)
    assert placed(dispatcher(known), 1, tokens=longest) == ["a"]
    assert placed(dispatcher(known), 1, tokens=longest + 1) == ["none"]


def test_prompt_of_windows_alone_may_be_longer_than_all_blocks_hold() -> None:
    window = report("a", total_blocks=20, free_blocks=20, kv_groups=((16, 20),))
    assert placed(dispatcher(window), 1, tokens=32_000) == ["a"]
    full = report("b", total_blocks=2000, free_blocks=400, running=5)
    assert placed(dispatcher(window, full), 1, tokens=16_000) == ["a"], "it has room there at once"
    too_large = report("a", total_blocks=19, free_blocks=19, kv_groups=((16, 20),))
    assert placed(dispatcher(too_large), 1, tokens=32_000) == ["none"]
    assert placed(dispatcher(too_large), 1, tokens=19 * 16) == ["a"]


def test_high_requests_share_an_instance_and_normals_keep_away() -> None:
    d = dispatcher(*(report(name, free_blocks=500, running=5) for name in "abc"))
    assert placed(d, 2, priority=HIGH) == ["a", "a"]
    assert "a" not in placed(d, 4)


def test_first_high_request_finds_instances_ranked_by_all_that_came_before_it() -> None:
    d = dispatcher(*(report(name, free_blocks=500, running=5) for name in "abcd"))
    placed(d, 2)
    d.on_report(report("c", 2, free_blocks=400, running=5, high_running=1))
    d.on_report(report("d", 2, free_blocks=500, running=5, high_running=1, state=InstanceState.DRAINING))
    assert placed(d, 1, priority=HIGH) == ["c"]
    d.on_report(report("d", 3, free_blocks=500, running=5, high_running=1))
    assert placed(d, 1, priority=HIGH) == ["d"]
    d.on_removed(InstanceId("d"))
    assert placed(d, 1, priority=HIGH) == ["c"]


def test_important_requests_pass_over_an_engine_that_is_slow_however_free_it_is() -> None:
    cost = StepCost(fixed_ms=20.0, prefill_token_us=100.0, request_us=200.0, context_token_us=0.0)
    left = report("left", slowdown=2.0, step_cost=cost)
    d = dispatcher(left, *(report(name, free_blocks=500, running=5, step_cost=cost) for name in "bc"))
    sent = d.dispatch(request(priority=HIGH))
    assert sent is not None
    assert str(sent.reason) == "b has the best freeness of 3, 1 of them too slow: -400 (next c: -400)"
    only = dispatcher(left).dispatch(request(priority=HIGH))
    assert only is not None
    assert only.instance == "left"


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ("round-robin", ["a", "b", "c", "a", "b", "c"]),
        ("least-requests", ["b", "b", "b", "c", "b", "c"]),
        ("vllm-dp", ["b", "c", "b", "a", "c", "b"]),
    ],
)
def test_baselines_place_a_burst(policy: str, chosen: list[str]) -> None:
    d = dispatcher(report("a", running=7), report("b", running=1), report("c", running=3), policy=policy)
    assert placed(d, 6) == chosen


def test_round_robin_gives_a_new_instance_one_turn_not_a_flood() -> None:
    d = dispatcher(report("a"), report("b"), policy="round-robin")
    placed(d, 4)
    d.on_report(report("c"))
    assert placed(d, 4) == ["c", "a", "b", "c"]


def test_display_is_sorted_by_id() -> None:
    assert [one.id for one in dispatcher(report("b"), report("c"), report("a")).snapshot(4.0).instances] == list("abc")


def test_a_long_prompt_goes_where_it_fits_though_a_small_batch_is_freer_per_request() -> None:
    chooser = dispatcher(report("few", free_blocks=50, running=1), report("many", free_blocks=400, running=20))
    sent = chooser.dispatch(request("long", tokens=1600))
    assert sent is not None
    assert str(sent.reason) == "many has the best freeness of 2: 20 (but for 1 without room for it now)"
    sent = chooser.dispatch(request("short", tokens=16))
    assert sent is not None
    assert (sent.instance, sent.reason.passed_over) == ("few", 0)


def test_a_prompt_that_fits_nowhere_now_goes_to_the_freest() -> None:
    chooser = dispatcher(report("a", free_blocks=50, running=10), report("b", free_blocks=60, running=10))
    sent = chooser.dispatch(request("long", tokens=3200))
    assert sent is not None
    assert (sent.instance, sent.reason.passed_over) == ("b", 0)


def beat(said: InstanceSnapshot, standing_s: float) -> InstanceSnapshot:
    return replace(said, standing_s=standing_s)


def test_engine_that_stands_still_is_the_last_choice_until_it_goes_on() -> None:
    hung, slow = report("a", running=1), report("b", running=40, free_blocks=400)
    d = dispatcher(hung, slow)
    for standing_s in (1.0, 1.9):
        d.on_report(beat(hung, standing_s))
        assert placed(d, 1) == ["a"]
    d.on_report(beat(hung, STANDING_S))
    dispatch = d.dispatch(request())
    assert dispatch is not None
    assert (
        str(dispatch.reason)
        == "b has the best freeness of 1, 1 more standing still: 10 (the only one that can take it)"
    )
    dispatch = d.dispatch(request(), frozenset({InstanceId("b")}))
    assert dispatch is not None
    assert dispatch.instance == "a", "better than nobody"
    d.on_report(report("a", 2, running=1))
    assert placed(d, 1) == ["a"]


def test_engine_that_stood_still_before_this_front_end_began_is_the_last_choice_at_once() -> None:
    d = dispatcher(beat(report("a", running=1), 60.0), report("b", running=40, free_blocks=400))
    assert placed(d, 1) == ["b"]


def test_report_that_comes_late_does_not_say_whether_an_engine_stands_still() -> None:
    d = dispatcher(report("a", 2, running=1), report("b", 2, running=40, free_blocks=400))
    d.on_report(beat(report("a", 1, running=1), STANDING_S))
    assert placed(d, 1) == ["a"]


def test_where_all_engines_stand_still_the_freest_is_taken() -> None:
    both = [report("a", running=1), report("b", running=1, free_blocks=900)]
    d = dispatcher(*(beat(one, 5.0) for one in both))
    assert placed(d, 1) == ["a"]
    d.on_removed(InstanceId("a"))
    assert placed(d, 1) == ["b"]


def test_the_papers_dispatch_does_not_look_whether_an_engine_stands_still() -> None:
    hung = beat(report("a", running=1), 100.0)
    d = dispatcher(hung, report("b", running=40, free_blocks=400), policy="llumnix-paper")
    assert placed(d, 1) == ["a"]
