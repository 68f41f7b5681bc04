"""Layers that keep one state which every token overwrites, and caches whose new blocks must be zeroed."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from late_device import BLOCK_TOKENS, BLOCKS
from late_engine import LateCore
from late_pair import LatePair, Session

WITH_STATES = ["states", "snapshots"]
with_states = pytest.mark.parametrize("layout", WITH_STATES)


def run_until(pair: LatePair, session: Session, tokens: int) -> None:
    request = pair.cores[0].scheduler.requests[session.engine_id]
    while request.num_output_tokens < tokens:
        pair.step(0)


def arrived_before_a_step(pair: LatePair) -> Session:
    """It moved from i0 to i1, which has made no step since."""
    session = pair.ask(0, list(range(10)), 30)
    run_until(pair, session, 2)
    pair.move(0, session.engine_id)
    while session.engine_id in pair.cores[0].scheduler.requests:
        pair.step(0)
        pair.fly()
    return session


def free_blocks(core: LateCore) -> int:
    return core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


def blocks_of_last_pull(pair: LatePair, prompt_tokens: int) -> int:
    """Runs while everything of it is copied at once; what was left when it stopped."""
    session = pair.ask(0, list(range(prompt_tokens)), 12)
    run_until(pair, session, 2)
    pair.move(0, session.engine_id)
    last = 0
    while not pair.moved:
        pair.step(0)
        while pair.wires.letters or pair.wires.pulls:
            last = len(pair.wires.pulls[0].left) if pair.wires.pulls else last
            pair.deliver()
            pair.copy(BLOCKS)
    pair.settle()
    assert (pair.wrong, pair.leftovers) == ([], [])
    return last


@pytest.mark.parametrize("layout", ["full", *WITH_STATES])
def test_what_is_copied_while_a_stream_stands_still_does_not_grow_with_its_length(layout: str) -> None:
    """However long vLLM's own blocks are, one of which a state has for the whole window."""
    assert blocks_of_last_pull(LatePair(layout), 20) == blocks_of_last_pull(LatePair(layout), 44)


@pytest.mark.parametrize("tokens", range(21, 21 + BLOCK_TOKENS))
@with_states
def test_state_stands_where_the_next_step_looks_however_full_the_last_block_is(layout: str, tokens: int) -> None:
    pair = LatePair(layout)
    session = pair.ask(0, list(range(20)), 24)
    run_until(pair, session, tokens - 20)
    pair.move(0, session.engine_id)
    pair.settle()
    assert pair.moved == 1
    assert (pair.wrong, pair.leftovers) == ([], [])


@with_states
def test_an_arrival_takes_one_block_for_its_state(layout: str) -> None:
    pair = LatePair(layout)
    session = pair.ask(0, list(range(30)), 12)
    core = pair.cores[1]
    scheduler = core.scheduler
    request, _ = core.preprocess_add_request(session.request)
    before = free_blocks(core)
    assert scheduler.reserve(request, 2) == 0
    assert before - free_blocks(core) == 2 + 1 + 1, "its blocks, a spare one, and the state"
    for blocks in (4, 7):
        assert scheduler.grow(request, blocks * BLOCK_TOKENS)
        assert before - free_blocks(core) == blocks + 1
    scheduler.release_reservation(request)
    assert free_blocks(core) == before


@with_states
def test_loads_count_the_state_of_each_request(layout: str) -> None:
    scheduler = LatePair(layout).cores[0].scheduler
    assert scheduler.block_tokens == BLOCK_TOKENS
    assert [scheduler.counts.to_hold(tokens) for tokens in (1, 4, 5, 40)] == [2, 2, 3, 11]
    alone = LatePair("states alone").cores[0].scheduler
    assert [alone.counts.to_hold(tokens) for tokens in (1, 40)] == [1, 1]


def test_snapshot_that_others_share_stays_what_it_is() -> None:
    """The target has the first tokens, with the state after them, from a request of its own."""
    prefix = list(range(16))
    pair = LatePair("snapshots")
    pair.ask(1, [*prefix, 50, 51, 52], 4)
    pair.settle()
    comes = pair.ask(0, [*prefix, 60, 61], 24)
    run_until(pair, comes, 3)
    pair.move(0, comes.engine_id)
    while not pair.wires.pulls:
        pair.turn_but_for_pulls()
    copied = [ours for _, ours in pair.wires.pulls[0].left]
    assert 0 < len(copied) < 4, "what is there is not copied"
    pair.settle()
    again = pair.ask(1, [*prefix, 70], 8)
    pair.settle()
    assert pair.moved == 1
    assert len(again.tokens) == 8
    assert (pair.wrong, pair.leftovers) == ([], [])


@pytest.mark.parametrize("tokens", range(1, 1 + 2 * BLOCK_TOKENS))
def test_state_moves_although_all_blocks_are_there(tokens: int) -> None:
    """An equal request ended there."""
    pair = LatePair("snapshots")
    pair.ask(1, list(range(16)), 24)
    pair.settle()
    session = pair.ask(0, list(range(16)), 24)
    run_until(pair, session, tokens)
    pair.move(0, session.engine_id)
    pair.fly()
    pair.settle()
    assert (pair.moved, pair.wrong, pair.leftovers) == (1, [], [])


@pytest.mark.parametrize("layout", ["two precisions", *WITH_STATES])
def test_steps_here_do_not_zero_what_is_being_copied(layout: str) -> None:
    pair = LatePair(layout)
    stays = pair.ask(1, list(range(60, 69)), 30)
    comes = pair.ask(0, list(range(26)), 20)
    run_until(pair, comes, 2)
    pair.move(0, comes.engine_id)
    while comes.engine_id in pair.cores[0].scheduler.requests:
        pair.fly()
        for _ in range(3):
            pair.step(1)
        pair.step(0)
    pair.settle()
    assert (len(stays.tokens), len(comes.tokens), pair.moved) == (30, 20, 1)
    assert (pair.wrong, pair.leftovers) == ([], [])


@pytest.mark.parametrize("layout", ["two precisions", *WITH_STATES])
def test_blocks_into_which_nothing_was_copied_are_zeroed_before_they_are_used(layout: str) -> None:
    pair = LatePair(layout)
    for core in pair.cores:
        core.device.kv[1:] = 7  # what somebody left
    session = pair.ask(0, list(range(10)), 30)
    run_until(pair, session, 2)
    pair.move(0, session.engine_id)
    pair.settle()
    assert pair.moved == 1
    assert (pair.wrong, pair.leftovers) == ([], [])


@with_states
def test_blocks_of_one_that_leaves_before_its_first_step_here_are_not_to_be_zeroed_any_more(layout: str) -> None:
    """The step that would do it may come when the next one that arrives has them."""
    pair = LatePair(layout)
    session = arrived_before_a_step(pair)
    managers = pair.cores[1].scheduler.kv_cache_manager.coordinator.single_type_managers
    assert any(each.new_block_ids for each in managers)
    pair.leave(session)
    pair.cores[1].abort(session.engine_id)
    assert not any(each.new_block_ids for each in managers)
    pair.settle()
    assert (pair.wrong, pair.leftovers) == ([], [])


@pytest.mark.parametrize("layout", ["two precisions", *WITH_STATES])
def test_blocks_that_a_step_in_flight_zeroes_are_not_read_into_before_it_is_over(layout: str) -> None:
    """They were of one that came, had no tokens in that step, and has left."""
    pair = LatePair(layout)
    core = pair.cores[1]
    session = arrived_before_a_step(pair)
    (arrived,) = core.scheduler.kv_holding_waiting
    core.scheduler.kv_holding_waiting.remove_requests([arrived])  # as where its adapter has no place in this step
    pair.ask(1, list(range(30, 39)), 4)
    core.step()
    zeroed = core.device.launched[-1].zeroed
    core.scheduler.kv_holding_waiting.prepend_request(arrived)
    pair.leave(session)
    core.abort(session.engine_id)
    freed = core.scheduler.kv_cache_manager.block_pool.get_new_blocks(6)
    assert {block.block_id for block in freed} & set(zeroed)
    assert core.scheduler.steps.may_touch(zeroed)
    core.scheduler.kv_cache_manager.block_pool.free_blocks(freed)
    pair.settle()
    assert (pair.wrong, pair.leftovers) == ([], [])
