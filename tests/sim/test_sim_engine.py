"""The engine by arithmetic: skipping steps changes nothing, blocks are exact, the paper's scheduler is the paper's."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_engines import new_engine, run_engine, small_profile
from sim_reference import reference_run

from llumnix.control.changes_of_turn import LONGEST_PAUSE_S, MOST_SAVED_S, SHARE
from llumnix.sim.engine.request import DETACHED, FINISHED, WAITING, SimRequest

ROWS = st.lists(
    st.tuples(st.floats(0, 20, allow_nan=False).map(lambda x: round(x, 3)), st.integers(1, 150), st.integers(1, 150)),
    min_size=1,
    max_size=25,
    unique_by=lambda row: row[0],
).map(sorted)


def facts(request: SimRequest) -> tuple[float, ...]:
    return (
        request.first_token_s,
        request.finish_s,
        request.largest_gap_s,
        request.last_token_s,
        request.exec_s,
        request.lost_s,
        request.preemptions,
        request.generated,
    )


@pytest.mark.parametrize("kind", ["vllm-0.1", "vllm-1"])
@given(rows=ROWS)
@settings(max_examples=60)
def test_skipping_steps_changes_nothing(kind: str, rows: list[tuple[float, int, int]]) -> None:
    profile = small_profile(kind, blocks=30, watermark=0.01 if kind == "vllm-0.1" else 0.0, max_num_batched_tokens=64)
    skipped, stepped = run_engine(profile, rows), run_engine(profile, rows, skip=False)
    for fast, slow in zip(skipped, stepped, strict=True):
        assert facts(fast) == pytest.approx(facts(slow), rel=1e-9, abs=1e-9)


@given(rows=ROWS, high=st.sets(st.integers(0, 24)))
@settings(max_examples=60)
def test_skipping_steps_changes_nothing_where_normal_requests_make_way(
    rows: list[tuple[float, int, int]], high: set[int]
) -> None:
    profile = small_profile("vllm-1", blocks=30, max_num_batched_tokens=64, max_num_seqs=4)
    mixed = [(*row, -1 if n in high else 0) for n, row in enumerate(rows)]
    skipped = run_engine(profile, mixed, displaces=True)
    stepped = run_engine(profile, mixed, skip=False, displaces=True)
    for fast, slow in zip(skipped, stepped, strict=True):
        assert facts(fast) == pytest.approx(facts(slow), rel=1e-9, abs=1e-9)


@given(rows=ROWS, target_s=st.floats(0.01, 0.1))
@settings(max_examples=60)
def test_skipping_steps_changes_nothing_where_prompts_are_held_back(
    rows: list[tuple[float, int, int]], target_s: float
) -> None:
    profile = small_profile("vllm-1", blocks=30, max_num_batched_tokens=256)
    skipped = run_engine(profile, rows, target_s=target_s)
    stepped = run_engine(profile, rows, skip=False, target_s=target_s)
    for fast, slow in zip(skipped, stepped, strict=True):
        assert facts(fast) == pytest.approx(facts(slow), rel=1e-9, abs=1e-9)


def test_tokens_come_in_time_beside_a_long_prompt_and_the_prompt_pays() -> None:
    profile = small_profile("vllm-1", blocks=2000, max_num_batched_tokens=2048)
    rows = [*((0.0, 100, 300) for _ in range(8)), (2.0, 6000, 20)]
    *free, late = run_engine(profile, rows)
    *held_back, later = run_engine(profile, rows, target_s=0.060)
    assert max(request.largest_gap_s for request in free) > 0.4
    assert max(request.largest_gap_s for request in held_back) < 0.070, "long prompts cost a little more than is fitted"
    assert later.first_token_s > late.first_token_s


@given(rows=ROWS)
@settings(max_examples=60)
def test_the_papers_scheduler_agrees_with_a_naive_one_that_lists_every_block(
    rows: list[tuple[float, int, int]],
) -> None:
    profile = small_profile("vllm-0.1", blocks=30, max_num_batched_tokens=200, max_num_seqs=8)
    for fast, slow in zip(run_engine(profile, rows), reference_run(profile, rows), strict=True):
        assert fast.preemptions == slow.preemptions
        assert fast.first_token_s == pytest.approx(slow.token_times[0], abs=1e-9)
        assert fast.finish_s == pytest.approx(slow.token_times[-1], abs=1e-9)
        gaps = [b - a for a, b in zip(slow.token_times, slow.token_times[1:], strict=False)]
        assert fast.largest_gap_s == pytest.approx(max(gaps, default=0.0), abs=1e-9)


def test_a_prompt_makes_the_running_ones_stand_still_under_the_papers_scheduler() -> None:
    profile = small_profile("vllm-0.1", blocks=792)
    first, second = run_engine(profile, [(0.0, 16, 100), (1.0, 4000, 2)])
    prefill_s = (profile.prefill.step_ms(4000) + profile.host.step_overhead_ms) / 1e3
    assert first.largest_gap_s > prefill_s
    assert second.first_token_s - second.arrival_s < prefill_s + 0.1


def test_chunks_let_the_running_ones_go_on() -> None:
    whole = small_profile("vllm-1", blocks=792, max_num_batched_tokens=8192)
    chunked = small_profile("vllm-1", blocks=792, max_num_batched_tokens=256)
    rows = [(0.0, 16, 100), (1.0, 4000, 2)]
    assert run_engine(chunked, rows)[0].largest_gap_s < 0.2 * run_engine(whole, rows)[0].largest_gap_s


@pytest.mark.parametrize("kind", ["vllm-0.1", "vllm-1"])
def test_the_newest_is_preempted_and_loses_time_and_no_token(kind: str) -> None:
    profile = small_profile(kind, blocks=20, max_num_batched_tokens=4096)
    old, new = run_engine(profile, [(0.0, 100, 200), (0.1, 100, 100)])
    assert old.preemptions == 0
    assert new.preemptions >= 1
    assert new.generated == 100
    assert new.largest_gap_s > 1.0
    assert 1.0 < new.lost_s < new.finish_s - new.arrival_s


@pytest.mark.parametrize("kind", ["vllm-0.1", "vllm-1"])
def test_an_important_request_overtakes_the_queue(kind: str) -> None:
    kernel, engine, _ = new_engine(small_profile(kind, blocks=18))
    rows = [SimRequest(0, 0.0, 200, 100), SimRequest(1, 0.1, 100, 5), SimRequest(2, 0.2, 100, 5, priority=-1)]
    for request in rows:
        request.order = (request.priority, request.arrival_s, request.index)
        kernel.at(request.arrival_s, engine.add, request)
    kernel.run()
    assert rows[2].first_token_s < rows[1].first_token_s


def test_small_request_does_not_wait_behind_a_large_one_that_finds_no_room() -> None:
    profile = small_profile("vllm-1", blocks=20)
    rows = [(0.0, 150, 100), (0.1, 250, 5), (0.2, 20, 5), (25.0, 20, 5)]
    by_arrival, small_first = run_engine(profile, rows), run_engine(profile, rows, small_first=True)
    assert by_arrival[2].first_token_s > by_arrival[0].finish_s > 1.0
    assert small_first[2].first_token_s < 0.4
    assert small_first[1].first_token_s < by_arrival[1].first_token_s + 0.01


def test_one_that_was_preempted_has_had_its_turn() -> None:
    profile = small_profile("vllm-1", blocks=20, max_num_batched_tokens=4096)
    rows = [(0.0, 100, 200), (0.1, 100, 100), (3.0, 40, 50)]
    by_arrival, small_first = run_engine(profile, rows), run_engine(profile, rows, small_first=True)
    assert by_arrival[1].preemptions == small_first[1].preemptions == 1
    assert by_arrival[2].first_token_s > by_arrival[0].finish_s
    assert small_first[2].first_token_s < small_first[0].finish_s / 2


def test_whoever_waits_leaves_those_that_run_room_to_grow() -> None:
    profile = small_profile("vllm-1", blocks=20, max_num_batched_tokens=4096)
    rows = [(0.0, 150, 60), (0.05, 150, 60)]
    at_once, later = run_engine(profile, rows), run_engine(profile, rows, small_first=True)
    assert (at_once[1].preemptions, later[1].preemptions) == (1, 0)
    assert max(each.largest_gap_s for each in at_once) > 10 * max(each.largest_gap_s for each in later)


@given(rows=ROWS)
@settings(max_examples=60)
def test_skipping_steps_changes_nothing_where_small_requests_go_first(rows: list[tuple[float, int, int]]) -> None:
    profile = small_profile("vllm-1", blocks=30, max_num_batched_tokens=64, max_num_seqs=4)
    skipped = run_engine(profile, rows, small_first=True)
    stepped = run_engine(profile, rows, skip=False, small_first=True)
    for fast, slow in zip(skipped, stepped, strict=True):
        assert facts(fast) == pytest.approx(facts(slow), rel=1e-9, abs=1e-9)


def test_nobody_stands_still_for_long_while_others_go_on() -> None:
    profile = small_profile("vllm-1", blocks=20, max_num_batched_tokens=4096)
    rows = [(0.0, 100, 200), (0.1, 100, 200)]
    stays, changes = run_engine(profile, rows), run_engine(profile, rows, small_first=True)
    assert max(each.largest_gap_s for each in stays) > 2 * LONGEST_PAUSE_S
    assert all(each.largest_gap_s < LONGEST_PAUSE_S + 0.3 for each in changes)
    assert all(each.preemptions and each.generated == 200 for each in changes), "both had to wait"


def test_turns_change_less_often_where_each_change_costs_much() -> None:
    profile = small_profile("vllm-1", blocks=250, max_num_batched_tokens=4096, max_num_seqs=4)
    rows = [(0.0, 1900, 400), (0.1, 1900, 400)]
    changes = run_engine(profile, rows, small_first=True)
    lost_s = sum(each.preemptions for each in changes) * profile.prefill.step_ms(1900) / 1e3
    assert 0 < lost_s < MOST_SAVED_S + SHARE * changes[0].finish_s + 2 * profile.prefill.step_ms(2300) / 1e3


def test_turns_do_not_change_where_an_important_one_waits_for_the_memory() -> None:
    profile = small_profile("vllm-1", blocks=20, max_num_batched_tokens=4096)
    rows = [(0.0, 100, 200), (0.1, 100, 200), (4.0, 300, 5, -1)]
    old, new, important = run_engine(profile, rows, small_first=True)
    assert (old.preemptions, new.preemptions, important.preemptions) == (1, 1, 0), "one change before it came"
    assert new.finish_s < important.first_token_s < old.finish_s


def test_normal_requests_make_way_for_an_important_one() -> None:
    profile = small_profile("vllm-1", blocks=30)
    rows = [(0.0, 150, 150), (0.1, 150, 150), (1.0, 150, 20, -1)]
    waits, makes_way = run_engine(profile, rows), run_engine(profile, rows, displaces=True)
    assert [request.preemptions > 0 for request in makes_way] == [False, True, False], "the last that came"
    assert makes_way[2].first_token_s - 1.0 < 0.3 < waits[2].first_token_s - 1.0
    assert [request.generated for request in makes_way] == [150, 150, 20]


def test_nobody_makes_way_for_an_equal_or_where_it_would_not_be_enough() -> None:
    profile = small_profile("vllm-1", blocks=30)
    equals = run_engine(profile, [(0.0, 150, 150, -1), (0.1, 150, 150, -1), (1.0, 150, 20, -1)], displaces=True)
    assert equals[1].first_token_s < 1.0 < equals[0].finish_s < equals[2].first_token_s
    rows = [(0.0, 300, 100, -1), (0.1, 100, 30), (1.0, 300, 20, -1)]
    assert run_engine(profile, rows, displaces=True)[1].preemptions == 0


def test_free_blocks_in_the_middle_of_a_run_of_steps_are_exact() -> None:
    profile = small_profile("vllm-0.1", blocks=100)
    kernel, engine, _ = new_engine(profile)
    stepped_kernel, stepped, _ = new_engine(profile, skip=False)
    for one_kernel, one_engine in ((kernel, engine), (stepped_kernel, stepped)):
        one_kernel.at(0.0, one_engine.add, SimRequest(0, 0.0, 33, 400))
        one_kernel.at(0.5, one_engine.add, SimRequest(1, 0.5, 47, 300))
    for tenths in range(1, 150):
        kernel.run(until_s=tenths / 10)
        stepped_kernel.run(until_s=tenths / 10)
        assert engine.free_blocks() == stepped.free_blocks()
        assert engine.batch.shortest_tokens(engine.steps_started()) == stepped.batch.shortest_tokens(
            stepped.steps_started()
        )


def test_a_detached_request_keeps_its_blocks_until_they_are_released() -> None:
    kernel, engine, _ = new_engine(small_profile("vllm-0.1", blocks=100))
    stays, leaves = SimRequest(0, 0.0, 32, 50), SimRequest(1, 0.0, 64, 50)
    for request in (stays, leaves):
        kernel.at(0.0, engine.add, request)
    kernel.at(1.0, engine.steps.at_boundary, lambda: engine.detach(leaves))
    kernel.run()
    assert (stays.state, leaves.state) == (FINISHED, DETACHED)
    assert engine.pool.total - engine.pool.free == leaves.blocks >= 4
    engine.release(leaves.blocks)
    assert engine.pool.free == engine.pool.total


def test_a_detached_request_that_comes_back_goes_on_where_it_was() -> None:
    kernel, engine, _ = new_engine(small_profile("vllm-0.1", blocks=100))
    request = SimRequest(0, 0.0, 32, 50)
    kernel.at(0.0, engine.add, request)
    kernel.at(1.0, engine.steps.at_boundary, lambda: engine.detach(request))
    kernel.at(3.0, engine.steps.at_boundary, lambda: engine.attach(request))
    kernel.run()
    assert request.generated == 50
    assert request.largest_gap_s == pytest.approx(2.0, abs=0.1)


def test_a_stalled_engine_loses_the_time_and_nothing_else() -> None:
    profile = small_profile("vllm-0.1", blocks=100)
    (plain,) = run_engine(profile, [(0.0, 32, 50)])
    kernel, engine, _ = new_engine(profile)
    request = SimRequest(0, 0.0, 32, 50)
    kernel.at(0.0, engine.add, request)
    kernel.at(1.0, engine.steps.stall, 5.0)
    kernel.run()
    assert request.finish_s - plain.finish_s == pytest.approx(5.0, abs=0.1)


def test_a_crash_keeps_the_tokens_that_had_gone_out() -> None:
    kernel, engine, _ = new_engine(small_profile("vllm-0.1", blocks=100))
    running, queued = SimRequest(0, 0.0, 32, 500), SimRequest(1, 0.5, 1590, 5)
    for request in (running, queued):
        kernel.at(request.arrival_s, engine.add, request)
    kernel.run(until_s=3.0)
    before = engine.generated_of(running)
    assert engine.crash() == [running, queued]
    assert running.generated == before > 20
    kernel.run()
    assert running.generated == before


def test_a_reservation_is_refused_when_it_would_touch_the_watermark() -> None:
    kernel, engine, _ = new_engine(small_profile("vllm-0.1", blocks=100, watermark=0.05))
    kernel.at(0.0, engine.add, SimRequest(0, 0.0, 32, 50))
    kernel.run(until_s=0.5)
    free = engine.free_blocks()
    assert not engine.reserve(free - 4)
    assert engine.reserve(free - 5)
    engine.release(free - 5)
    kernel.run()
    assert engine.pool.free == 100


def test_memory_that_comes_back_lets_the_queue_in() -> None:
    kernel, engine, _ = new_engine(small_profile("vllm-0.1", blocks=100))
    assert engine.reserve(95)
    request = SimRequest(0, 0.0, 160, 2)
    kernel.at(0.0, engine.add, request)
    kernel.run()
    assert request.state is WAITING
    kernel.at(5.0, engine.release, 95)
    kernel.run()
    assert request.state is FINISHED
    assert request.first_token_s > 5.0
