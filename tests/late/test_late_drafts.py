"""Requests with drafts under way: they go without them, and KV of the drafter is copied once it is written."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from late_device import BLOCK_TOKENS, DRAFTS
from late_drafts import DraftingDevice
from late_pair import LatePair, Session, next_token

PROMPT = list(range(21))
LENGTH = 40


@pytest.fixture(params=["full", "windows"])
def pair(request: pytest.FixtureRequest) -> LatePair:
    return LatePair(request.param, drafts=True)


def devices(pair: LatePair) -> tuple[DraftingDevice, DraftingDevice]:
    first, second = (core.device for core in pair.cores)
    assert isinstance(first, DraftingDevice)
    assert isinstance(second, DraftingDevice)
    return first, second


def steps_until(pair: LatePair, at: int, session: Session, tokens: int) -> None:
    request = pair.cores[at].scheduler.requests[session.engine_id]
    while request.num_output_tokens < tokens:
        pair.step(at)


def move(pair: LatePair, session: Session) -> int:
    """From the first to the second, while both make steps; how many tokens were computed there."""
    request = pair.cores[0].scheduler.requests[session.engine_id]
    pair.move(0, session.engine_id)
    computed = 0
    while not pair.moved and not session.ended:
        pair.fly()
        if session.engine_id in pair.cores[0].scheduler.requests:
            computed = request.num_computed_tokens
        pair.step(0)
        pair.step(1)
        pair.read(0)
    assert pair.moved == 1
    return computed


def test_drafts_are_accepted_and_streams_are_right(pair: LatePair) -> None:
    sessions = [pair.ask(0, [*PROMPT, n], 30) for n in range(4)]
    pair.settle()
    assert [len(session.tokens) for session in sessions] == [30] * 4
    assert devices(pair)[0].accepted > 30
    assert pair.wrong == []
    assert devices(pair)[0].stale == set()
    assert pair.leftovers == []


@pytest.mark.parametrize("tokens", range(1, 20, 3))
def test_moved_stream_is_right_and_is_drafted_for_at_its_new_place(pair: LatePair, tokens: int) -> None:
    session = pair.ask(0, PROMPT, LENGTH)
    steps_until(pair, 0, session, tokens)
    move(pair, session)
    pair.settle()
    assert len(session.tokens) == LENGTH
    assert pair.wrong == []
    assert devices(pair)[1].accepted > 0
    assert pair.leftovers == []


@pytest.mark.parametrize("tokens", range(2, 14))
def test_only_rows_of_the_last_step_may_come_without_the_drafters_part(pair: LatePair, tokens: int) -> None:
    """Whoever waited for them would stand still a step longer, and they cost no token."""
    session = pair.ask(0, PROMPT, LENGTH)
    steps_until(pair, 0, session, tokens)
    computed = move(pair, session)
    pair.settle()
    late = [position for _, position in devices(pair)[1].stale]
    assert all(computed - 2 * (DRAFTS + 1) <= position < computed for position in late), (late, computed)


@pytest.mark.parametrize("tokens", [1, 3], ids=["nothing is in flight", "a step is in flight"])
def test_blocks_of_one_that_stopped_are_not_written_while_its_drafter_does(pair: LatePair, tokens: int) -> None:
    """Nothing else runs there, so no step comes after which it would be known."""
    comes = pair.ask(0, PROMPT, LENGTH)
    steps_until(pair, 0, comes, 2)
    core = pair.cores[1]
    pool = core.scheduler.kv_cache_manager.block_pool
    left = 17 if len(core.scheduler.kv_cache_config.kv_cache_groups) > 1 else 9
    taken = pool.get_new_blocks(pool.get_num_free_blocks() - left)  # so that who comes gets those of who goes
    goes = pair.ask(1, list(range(40, 61)), tokens)
    while core.busy:
        pair.step(1)
    assert goes.engine_id not in core.scheduler.requests
    late = devices(pair)[1]._to_draft
    assert late, "its last drafts are still to be made"
    pair.move(0, comes.engine_id)
    pair.fly()
    assert not late
    pool.free_blocks(taken)
    pair.settle()
    assert pair.wrong == []
    assert pair.leftovers == []


def test_blocks_of_one_that_stopped_may_be_written_once_the_step_after_has_ended(pair: LatePair) -> None:
    """Others go on there, and their steps say when its drafter has ended."""
    pair.ask(1, list(range(60, 70)), 40)
    goes = pair.ask(1, list(range(40, 61)), 6)
    scheduler = pair.cores[1].scheduler
    blocks: list[int] = []
    while goes.engine_id in scheduler.requests:
        blocks = [block.block_id for block in scheduler.tables.held(goes.engine_id)]
        pair.step(1)
    steps = 0
    while scheduler.steps.may_touch(blocks):
        pair.step(1)
        steps += 1
    assert 0 < steps < 4
    assert goes.engine_id not in {part.row.name for part, _, _ in devices(pair)[1]._to_draft}
    pair.settle()
    assert pair.wrong == []
    assert pair.leftovers == []


def test_one_that_comes_has_room_for_its_drafts(pair: LatePair) -> None:
    scheduler = pair.cores[1].scheduler
    assert scheduler.spare_tokens == 1 + 2 * DRAFTS > BLOCK_TOKENS
    session = pair.ask(0, PROMPT[:20], 1)
    request, _ = pair.cores[1].preprocess_add_request(session.request)
    assert scheduler.reserve(request, scheduler.blocks_for(20)) == 0
    full, *_ = scheduler.kv_cache_manager.get_block_ids(request.request_id)
    assert len(full) * BLOCK_TOKENS >= 20 + 1 + 2 * DRAFTS


def test_one_whose_move_fails_goes_on_where_it_is(pair: LatePair) -> None:
    session = pair.ask(0, PROMPT, LENGTH)
    steps_until(pair, 0, session, 3)
    pair.move(0, session.engine_id)
    while not pair.cores[0].scheduler.places.lent:
        pair.fly()
        pair.step(0)
    while not pair.wires.pulls:
        pair.deliver()
        pair.step(0)
    for pull in pair.wires.pulls:
        pull.cancel()
    pair.settle()
    assert pair.moved == 0
    assert len(session.tokens) == LENGTH
    assert pair.wrong == []
    assert pair.leftovers == []


def said(prompt: list[int], count: int) -> list[int]:
    """What a model makes of a prompt."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def test_stop_within_the_drafts_ends_the_stream_there(pair: LatePair) -> None:
    stop = said(PROMPT, 12)[-1]
    session = pair.ask(0, PROMPT, LENGTH, stops=(stop,))
    steps_until(pair, 0, session, 2)
    move(pair, session)
    pair.settle()
    assert session.tokens[-1] == stop
    assert session.tokens.count(stop) == 1
    assert pair.wrong == []
    assert pair.leftovers == []
