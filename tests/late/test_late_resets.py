"""Caches that are reset while requests are on the move: what is under way ends first, and nothing new begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest

pytest.importorskip("vllm")

from late_pair import LatePair, Session, being_read


@pytest.fixture(params=["full", "windows", "snapshots"])
def pair(request: pytest.FixtureRequest) -> LatePair:
    return LatePair(request.param)


def all_is_well(pair: LatePair, session: Session) -> None:
    pair.settle()
    assert len(session.tokens) == 30
    assert (pair.wrong, pair.leftovers) == ([], [])


@pytest.mark.parametrize("at", [0, 1], ids=["source", "target"])
def test_reset_waits_for_the_move_and_is_whole(pair: LatePair, at: int) -> None:
    session = being_read(pair)
    core = pair.cores[at]
    answer = core.reset_prefix_cache(reset_running_requests=True)
    assert isinstance(answer, Future)
    assert not answer.done()
    all_is_well(pair, session)
    assert answer.result(0) is True
    assert pair.moved == 1


def test_nothing_begins_to_move_while_a_reset_waits(pair: LatePair) -> None:
    session = being_read(pair)
    other = pair.ask(1, list(range(40, 45)), 12)
    third = pair.ask(0, list(range(70, 75)), 12)
    pair.cores[1].reset_prefix_cache(reset_running_requests=True)
    for _ in range(4):
        for at in range(2):
            pair.step(at)
    pair.move(1, other.engine_id)
    pair.move(0, third.engine_id)
    all_is_well(pair, session)
    assert pair.moved == 1


def test_request_that_has_just_come_is_reset_before_its_first_step(pair: LatePair) -> None:
    session = being_read(pair)
    core = pair.cores[1]
    while session.engine_id not in core.scheduler.requests:
        pair.deliver()
        pair.copy(1)
        pair.read(0)
        pair.step(0)
    assert core.scheduler.kv_holding_waiting
    assert core.reset_prefix_cache(reset_running_requests=True) is True
    assert core.scheduler.requests[session.engine_id].num_computed_tokens == 0
    all_is_well(pair, session)


@pytest.mark.parametrize("seed", [None, 5])
def test_token_that_a_reset_throws_away_is_told_if_it_was_drawn_with_a_seed(pair: LatePair, seed: int | None) -> None:
    session = pair.ask(0, list(range(20)), 30)
    core = pair.cores[0]
    request = core.scheduler.requests[session.engine_id]
    assert request.sampling_params is not None
    request.sampling_params.seed = seed
    drawn, told = [0], [0]
    with counted(drawn, core.device, "_run", bool), counted(told, core, "_mark", lambda _: True):
        while request.num_output_tokens < 5:
            pair.step(0)
        assert request.num_in_flight_tokens == 1
        assert core.reset_prefix_cache(reset_running_requests=True) is True
        all_is_well(pair, session)
    assert drawn == [30 + 1]
    assert told == [1 if seed else 0]


@contextmanager
def counted(into: list[int], owner: Any, method: str, counts: Callable[[Any], bool]) -> Iterator[None]:
    """Calls whose result counts."""
    original = getattr(owner, method)

    def wrapped(*args: Any) -> Any:
        result = original(*args)
        into[0] += counts(result)
        return result

    with patch.object(owner, method, wrapped):
        yield


def test_reset_of_what_is_free_alone_waits_for_nobody(pair: LatePair) -> None:
    session = being_read(pair)
    assert pair.cores[1].reset_prefix_cache() is False
    all_is_well(pair, session)


@pytest.mark.parametrize("mode", ["abort", "keep"])
def test_pause_is_complete_once_nothing_is_on_the_move(pair: LatePair, mode: str) -> None:
    session = being_read(pair)
    core = pair.cores[1]
    answer = core.pause_scheduler(mode)  # type: ignore[arg-type]
    assert isinstance(answer, Future)
    for _ in range(60):
        pair.turn()
        core._notify_idle_state_callbacks()
    assert answer.result(0) is None
    core.resume_scheduler()
    all_is_well(pair, session)


def test_instance_that_has_paused_already_takes_nobody_who_moves_while_others_still_end_theirs() -> None:
    pair = LatePair("full")
    core = pair.cores[1]
    assert core.pause_scheduler("wait") is None
    session = pair.ask(0, list(range(10)), 30)
    while pair.cores[0].scheduler.requests[session.engine_id].num_output_tokens < 2:
        pair.step(0)
    pair.move(0, session.engine_id)
    for _ in range(8):
        pair.step(0)
        pair.fly()
        pair.step(1)
    assert not core.scheduler.requests
    assert pair.moved == 0
    core.resume_scheduler()
    pair.settle()
    assert (len(session.tokens), pair.wrong, pair.leftovers) == (30, [], [])
