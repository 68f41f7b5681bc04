"""Blocks that a step in flight still reads or writes, or has not written yet, while requests come and go."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("vllm")

from late_device import BLOCK_TOKENS, SPECS, WINDOW
from late_pair import LatePair, Session, next_token

from llumnix.engine.vllm.instance.state import passport_of


@pytest.fixture(params=list(SPECS))
def pair(request: pytest.FixtureRequest) -> LatePair:
    return LatePair(request.param)


def said(prompt: list[int], count: int) -> list[int]:
    """What a model makes of a prompt."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def run_until_decoding(pair: LatePair, at: int, session: Session, tokens: int = 2) -> None:
    request = pair.cores[at].scheduler.requests[session.engine_id]
    while request.num_output_tokens < tokens:
        pair.step(at)


def _under_way(pair: LatePair) -> set[str]:
    return {part.row.name for step in pair.cores[0].device.launched for part in step.parts}


def one_that_stops_with_a_step_in_flight(pair: LatePair, at: int) -> Session:
    """Its blocks are given back, and a step that writes its next token is still to run."""
    prompt = list(range(40, 49))
    stop = said(prompt, 6)[-1]
    session = pair.ask(at, prompt, 30, stops=(stop,))
    core = pair.cores[at]
    while session.engine_id in core.scheduler.requests:
        pair.step(at)
    in_flight = [part.row.name for step in core.device.launched for part in step.parts]
    assert in_flight == [session.engine_id]
    return session


def test_streams_of_a_late_engine_are_right(pair: LatePair) -> None:
    sessions = [pair.ask(0, list(range(n, n + 9)), 20) for n in range(4)]
    pair.settle()
    assert [len(session.tokens) for session in sessions] == [20] * 4
    assert pair.wrong == []
    assert pair.leftovers == []


def test_moved_stream_is_right(pair: LatePair) -> None:
    session = pair.ask(0, list(range(20)), 30)
    run_until_decoding(pair, 0, session)
    pair.move(0, session.engine_id)
    pair.settle()
    assert pair.moved == 1
    assert len(session.tokens) == 30
    assert pair.wrong == []
    assert pair.leftovers == []


def test_stream_that_has_come_and_not_run_yet_goes_on_to_the_next(pair: LatePair) -> None:
    """It has its KV, and is copied like one that runs: nobody waits for what will not come."""
    session = pair.ask(0, list(range(20)), 30)
    run_until_decoding(pair, 0, session)
    pair.move(0, session.engine_id)
    there = pair.cores[1].scheduler
    rest_at_target(pair, until=lambda: pair.moved == 1 and session.engine_id not in there.tables.unconfirmed)
    assert [each.request_id for each in there.kv_holding_waiting] == [session.engine_id]
    pair.move(1, session.engine_id)
    rest_at_target(pair, until=lambda: pair.moved == 2)
    assert session.engine_id in pair.cores[0].scheduler.requests
    pair.settle()
    assert len(session.tokens) == 30
    assert (pair.wrong, pair.leftovers) == ([], [])


def rest_at_target(pair: LatePair, until: Callable[[], bool]) -> None:
    """All goes on but i1's steps."""
    for _ in range(100):
        if until():
            return
        pair.deliver()
        pair.copy(1)
        pair.read(0)
        pair.read(1)
        pair.step(0)
    raise AssertionError("that does not happen")


@pytest.mark.parametrize("tokens", range(20, 20 + BLOCK_TOKENS))
@pytest.mark.parametrize("pair", ["windows"], indirect=True)
def test_room_for_an_arrival_has_all_blocks_that_its_window_is_still_in(pair: LatePair, tokens: int) -> None:
    """However full its last block is."""
    session = pair.ask(0, list(range(tokens)), 1)
    scheduler = pair.cores[1].scheduler
    request, _ = pair.cores[1].preprocess_add_request(session.request)
    assert scheduler.reserve(request, scheduler.blocks_for(tokens)) == 0
    window_begins = tokens - 1 - (WINDOW - 1)  # for the token that is computed next
    _, behind_window = scheduler.kv_cache_manager.get_block_ids(request.request_id)
    assert all(behind_window[window_begins // BLOCK_TOKENS :])


def test_blocks_of_one_that_just_stopped_are_reserved_while_its_last_step_writes(pair: LatePair) -> None:
    comes = pair.ask(0, list(range(20)), 30)
    run_until_decoding(pair, 0, comes)
    one_that_stops_with_a_step_in_flight(pair, at=1)
    pair.move(0, comes.engine_id)
    pair.fly()
    pair.settle()
    assert pair.moved == 1
    assert pair.wrong == []
    assert pair.leftovers == []


def test_preempted_one_reads_its_blocks_in_a_step_in_flight_while_they_are_reserved(pair: LatePair) -> None:
    comes = pair.ask(0, list(range(20)), 30)
    run_until_decoding(pair, 0, comes)
    stays = pair.ask(1, list(range(40, 57)), 30)
    run_until_decoding(pair, 1, stays)
    core = pair.cores[1]
    assert core.device.launched, "a step in flight reads its blocks"
    assert core.scheduler.reset_prefix_cache(reset_running_requests=True)
    pair.move(0, comes.engine_id)
    pair.fly()
    pair.settle()
    assert pair.moved == 1
    assert pair.wrong == []
    assert pair.leftovers == []


def test_prefix_of_another_is_not_copied_before_it_is_computed(pair: LatePair) -> None:
    """vLLM shares blocks when it schedules them: the step that computes them has not run yet."""
    prefix = list(range(4 * BLOCK_TOKENS))
    pair.ask(0, prefix, 20)
    second = pair.ask(0, [*prefix, 50, 51, 52], 20)
    pair.step(0)
    if second.engine_id not in _under_way(pair):  # a snapshot of a state is shared one step later
        pair.step(0)
    assert second.engine_id in _under_way(pair)
    pair.move(0, second.engine_id)
    pair.fly()
    pair.settle()
    assert pair.wrong == []
    assert pair.leftovers == []


def test_prefix_that_is_being_computed_where_a_request_arrives_is_not_moved_on_before(pair: LatePair) -> None:
    """What it found there was not settled when it came."""
    prefix = list(range(16))
    comes = pair.ask(0, [*prefix, 50, 51, 52], 24)
    run_until_decoding(pair, 0, comes)
    pair.ask(1, [*prefix, 70], 10)
    pair.step(1)
    assert pair.cores[1].device.launched, "its prefix is still to be computed there"
    pair.move(0, comes.engine_id)
    pair.fly()
    for _ in range(12):
        pair.step(0)
        pair.fly()
        if comes.engine_id in pair.cores[1].scheduler.requests:
            break
    for _ in range(12):
        pair.read(0)
        pair.read(1)
    pair.fly()
    pair.move(1, comes.engine_id)
    pair.fly()
    pair.settle()
    assert pair.wrong == []
    assert pair.leftovers == []


def test_one_that_was_preempted_after_it_had_asked_for_room_begins_anew_where_it_comes(pair: LatePair) -> None:
    """Where its first tokens are known, too."""
    prompt = list(range(13))
    comes = pair.ask(0, [*prompt, 7], 11)
    for _ in range(3):
        pair.step(0)
    pair.ask(1, [*prompt, 7], 2)
    pair.move(0, comes.engine_id)
    pair.step(1)
    pair.ask(0, [7], 2)
    assert pair.cores[0].reset_prefix_cache(reset_running_requests=True)
    pair.fly()
    pair.settle()
    assert len(comes.tokens) == 11
    assert (pair.wrong, pair.leftovers) == ([], [])


@pytest.mark.parametrize("pair", ["full"], indirect=True)
def test_prompt_of_one_that_was_preempted_before_its_first_token_and_moves_is_told_whole(pair: LatePair) -> None:
    """With what was cached of it where it began. While a prompt is computed, its request does not move."""
    prefix = list(range(2 * BLOCK_TOKENS))
    pair.ask(0, [*prefix, 7], 1)
    pair.settle()
    comes = pair.ask(0, [*prefix, *range(40)], 5)
    pair.step(0)
    assert pair.cores[0].reset_prefix_cache(reset_running_requests=True)
    pair.move(0, comes.engine_id)
    pair.fly()
    pair.settle()
    assert pair.moved == 1
    assert comes.prefill is not None
    assert (comes.prefill.num_prompt_tokens, comes.prefill.num_cached_tokens) == (len(prefix) + 40, len(prefix))
    assert (pair.wrong, pair.leftovers) == ([], [])


@pytest.mark.parametrize("pair", ["full"], indirect=True)
def test_one_whose_instance_died_waits_since_then_wherever_it_goes(pair: LatePair) -> None:
    session = pair.ask(0, list(range(20)), 30)
    run_until_decoding(pair, 0, session)
    for _ in range(2):
        pair.read(0)
    pair.drive_out(session)
    waits = pair.cores[1].scheduler.requests[session.engine_id]
    since_s = passport_of(waits).robbed_s
    assert since_s is not None
    assert waits.num_output_tokens > 0
    pair.move(1, session.engine_id)
    pair.fly()
    assert passport_of(pair.cores[0].scheduler.requests[session.engine_id]).robbed_s == since_s
    pair.settle()
    assert (pair.moved, len(session.tokens)) == (1, 30)
    assert (pair.wrong, pair.leftovers) == ([], [])


@pytest.mark.parametrize("pair", ["full"], indirect=True)
@pytest.mark.parametrize(("max_tokens", "moves"), [(20, True), (21, False)])
def test_none_moves_to_where_the_window_would_cut_it_short(pair: LatePair, max_tokens: int, moves: bool) -> None:
    pair.cores[1].scheduler.max_model_len = 40
    session = pair.ask(0, list(range(20)), max_tokens)
    run_until_decoding(pair, 0, session)
    pair.move(0, session.engine_id)
    pair.settle()
    assert (pair.moved, len(session.tokens)) == (moves, max_tokens)
    assert (pair.wrong, pair.leftovers) == ([], [])
