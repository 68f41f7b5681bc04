"""Gap log, batch and prefix cache against what they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.sim.engine.batch import DecodeBatch
from llumnix.sim.engine.blocks import BlockPool, PrefixCache
from llumnix.sim.engine.gaps import GapLog
from llumnix.sim.engine.request import FINISHED, SimRequest


@given(st.lists(st.integers(0, 9), max_size=40))
def test_largest_gap_since_any_position_is_the_maximum_from_there(values: list[int]) -> None:
    log = GapLog()
    for value in values:
        log.push(float(value))
    for position in range(len(values) + 2):
        assert log.largest_since(position) == max(values[position:], default=0)


LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=12)


@given(lengths=LENGTHS, before=st.integers(0, 20), steps=st.integers(0, 70))
def test_blocks_of_many_steps_are_the_sum_of_single_steps(
    lengths: list[tuple[int, int]], before: int, steps: int
) -> None:
    batch = DecodeBatch(16)
    batch.steps = before
    members = []
    for index, (prompt, generated) in enumerate(lengths):
        request = SimRequest(index, 0.0, prompt, 1000)
        request.generated = generated
        batch.join(request)
        members.append(request)
    counted = sum(
        -(-(request.prompt_tokens + request.generated + steps - 1) // 16)
        - -(-(request.prompt_tokens + request.generated - 1) // 16)
        for request in members
    )
    assert batch.blocks_for(steps) == counted
    most = batch.steps_within(counted, 10_000)
    assert batch.blocks_for(most) <= counted < batch.blocks_for(most + 1)


@given(lengths=LENGTHS, steps=st.integers(1, 30))
def test_a_member_that_leaves_knows_its_length_blocks_and_gap(lengths: list[tuple[int, int]], steps: int) -> None:
    batch = DecodeBatch(16)
    for index, (prompt, generated) in enumerate(lengths):
        request = SimRequest(index, 0.0, prompt, 1000)
        request.generated, request.last_token_s = generated, 1.0
        batch.join(request)
    batch.advance(steps, 3.0, 0.5, 3.0 + 0.5 * (steps - 1), 0.5 * steps)
    for request, (prompt, generated) in zip(list(batch.members), lengths, strict=True):
        batch.leave(request, FINISHED)
        assert request.generated == generated + steps
        assert request.blocks == -(-(prompt + generated + steps - 1) // 16)
        assert request.largest_gap_s == 2.0
        assert request.exec_s == 0.5 * steps
    assert (batch.tokens, batch.members, sum(batch._phase)) == (0, [], 0)


def test_the_shortest_member_and_the_next_end_forget_who_left() -> None:
    batch = DecodeBatch(16)
    short, long = SimRequest(0, 0.0, 10, 5), SimRequest(1, 0.0, 500, 90)
    for request in (short, long):
        request.generated = 1
        batch.join(request)
    assert (batch.shortest_tokens(), batch.steps_to_next_end()) == (11, 4)
    batch.leave(short, FINISHED)
    assert (batch.shortest_tokens(), batch.steps_to_next_end()) == (501, 89)


def test_one_of_high_priority_is_not_the_shortest_that_may_go() -> None:
    batch = DecodeBatch(16)
    for request in (SimRequest(0, 0.0, 10, 5, priority=-1), SimRequest(1, 0.0, 500, 90)):
        request.generated = 1
        batch.join(request)
    assert batch.shortest_tokens() == 501


def test_a_request_that_moved_to_another_batch_is_not_taken_for_a_member() -> None:
    here, there = DecodeBatch(16), DecodeBatch(16)
    request, other = SimRequest(0, 0.0, 10, 5), SimRequest(1, 0.0, 20, 9)
    for one in (request, other):
        one.generated = 1
        here.join(one)
    here.leave(request, FINISHED)
    there.join(request)
    assert here.steps_to_next_end() == 8
    assert here.shortest_tokens() == 21


def test_a_cached_prefix_is_shared_and_counted_once() -> None:
    cache = PrefixCache(32, 16)
    assert cache.publish((1, 2, 3)) == 3
    assert cache.hits((1, 2, 9), 200) == 2
    assert cache.hits((1, 2, 3), 96) == 2, "one token always has to be computed"
    assert cache.use((1, 2)) == 0
    assert cache.release((1, 2, 3)) == 2
    assert cache.release((1, 2)) == 4
    assert cache.idle_among((1, 2, 3)) == 3


def test_the_least_recently_used_prefix_goes_first_and_its_tail_before_its_head() -> None:
    cache = PrefixCache(32, 16)
    pool = BlockPool(10, cache=cache)
    for units in ((1, 2), (3, 4)):
        cache.publish(units)
        cache.release(units)
    pool.take(3)
    assert [cache.hits((1, 2), 999), cache.hits((3, 4), 999)] == [1, 2]
    pool.take(3)
    assert [cache.hits((1, 2), 999), cache.hits((3, 4), 999)] == [0, 2]


def test_taking_more_blocks_than_there_are_is_a_bug_and_says_so() -> None:
    with pytest.raises(AssertionError, match="5 blocks were taken, 4 are free"):
        BlockPool(4).take(5)
