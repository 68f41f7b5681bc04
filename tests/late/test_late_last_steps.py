"""States that follow drafts: a request leaves after a step without a right one, when its state is where others look."""

from __future__ import annotations

from functools import partial

import pytest

pytest.importorskip("vllm")

from late_drafts import DraftingDevice
from late_pair import LatePair, Session
from vllm.v1.request import RequestStatus

from llumnix.control.messages import Commit
from llumnix.wire.to_instance import Peer

PROMPT = list(range(21))
LENGTH = 40


@pytest.fixture
def pair() -> LatePair:
    return LatePair("states of drafts", drafts=True)


def begin(pair: LatePair, tokens: int = 3) -> Session:
    session = pair.ask(0, PROMPT, LENGTH)
    request = pair.cores[0].scheduler.requests[session.engine_id]
    while request.num_output_tokens < tokens:
        pair.step(0)
    return session


def until_it_is_to_leave(pair: LatePair, session: Session) -> None:
    """Looked for after each event: the last step may begin at once."""
    pair.move(0, session.engine_id)
    events = (pair.fly, partial(pair.step, 1), partial(pair.step, 0))
    for number in range(60):
        if session.engine_id in pair.cores[0].scheduler.last_steps:
            return
        events[number % len(events)]()
    raise AssertionError("it was not told to leave")


def all_is_well(pair: LatePair, session: Session) -> bool:
    pair.settle()
    assert (pair.wrong, pair.leftovers) == ([], [])
    return len(session.tokens) == LENGTH


@pytest.mark.parametrize("tokens", range(1, 20))
def test_moved_stream_is_right_and_is_drafted_for_at_its_new_place(pair: LatePair, tokens: int) -> None:
    session = begin(pair, tokens)
    until_it_is_to_leave(pair, session)
    assert all_is_well(pair, session)
    assert pair.moved == 1
    device = pair.cores[1].device
    assert isinstance(device, DraftingDevice)
    assert device.accepted > 0


def test_last_step_is_one_without_drafts_and_its_token_goes_out(pair: LatePair) -> None:
    session = begin(pair)
    until_it_is_to_leave(pair, session)
    core = pair.cores[0]
    while not core.scheduler.places.lent:
        pair.step(0)
    assert [(part.count, part.drafts) for part in core.device.launched[-1].parts] == [(1, 0)]
    assert all_is_well(pair, session)
    assert pair.moved == 1


def test_one_that_is_to_leave_and_is_refused_stays_in_the_batch(pair: LatePair) -> None:
    session = begin(pair)
    until_it_is_to_leave(pair, session)
    scheduler = pair.cores[0].scheduler
    request = scheduler.requests[session.engine_id]
    pair.pass_time(60.0)
    assert session.engine_id not in scheduler.last_steps
    assert scheduler.running == [request]
    assert all_is_well(pair, session)
    assert pair.moved == 0


def test_one_that_is_preempted_instead_of_its_last_step_comes_without_kv(pair: LatePair) -> None:
    session = begin(pair)
    until_it_is_to_leave(pair, session)
    scheduler = pair.cores[0].scheduler
    request = scheduler.requests[session.engine_id]
    scheduler.running.remove(request)
    scheduler._preempt_request(request, 0.0)
    assert request.status == RequestStatus.PREEMPTED
    assert all_is_well(pair, session)
    assert pair.moved == 1


def test_one_that_ends_in_its_last_step_is_not_waited_for(pair: LatePair) -> None:
    session = begin(pair)
    until_it_is_to_leave(pair, session)
    pair.leave(session)
    assert session.engine_id not in pair.cores[0].scheduler.last_steps
    pair.settle()
    assert (pair.wrong, pair.leftovers) == ([], [])


def test_loads_count_the_places_of_states(pair: LatePair) -> None:
    scheduler = pair.cores[0].scheduler
    assert [scheduler.counts.to_hold(tokens) for tokens in (1, 4, 5)] == [5, 5, 6]


def test_one_that_all_are_preempted_with_before_its_last_step_leaves_without_its_kv(pair: LatePair) -> None:
    """Scheduled again it would be in the middle of its prompt, of which its target has what was copied before."""
    session = begin(pair)
    until_it_is_to_leave(pair, session)
    pair.cores[0].reset_prefix_cache(reset_running_requests=True)
    commits: list[Commit] = []
    for _ in range(60):
        pair.step(0)
        letters = [letter.message for _, letter in pair.wires.letters if isinstance(letter, Peer)]
        commits = [each for each in letters if isinstance(each, Commit)]
        if commits:
            break
    assert [(each.blocks, each.state_blocks) for each in commits] == [(0, 0)]
    assert all_is_well(pair, session)
    assert pair.moved == 1


@pytest.mark.parametrize("chunks_before", [0, 1])
def test_who_has_come_makes_a_token_in_each_step_beside_a_prompt_that_takes_whole_ones(
    chunks_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = LatePair("full")
    core = pair.cores[1]
    monkeypatch.setattr(core.scheduler, "max_num_scheduled_tokens", 12)
    session = pair.ask(0, list(range(10)), 30)
    while pair.cores[0].scheduler.requests[session.engine_id].num_output_tokens < 2:
        pair.step(0)
    prompt = pair.ask(1, list(range(30, 90)), 2)
    for _ in range(chunks_before):
        pair.step(1)
    pair.move(0, session.engine_id)
    while session.engine_id in pair.cores[0].scheduler.requests:
        pair.step(0)
        pair.fly()
    for _ in range(4):
        pair.step(1)
        given = {part.row.name: part.count for part in core.device.launched[-1].parts}
        assert given == {session.engine_id: 1, prompt.engine_id: 11}
    pair.settle()
    assert (len(session.tokens), pair.wrong, pair.leftovers) == (30, [], [])


def test_who_is_put_back_into_the_batch_does_not_stand_behind_a_prompt_either() -> None:
    pair = LatePair("full")
    scheduler = pair.cores[0].scheduler
    session = pair.ask(0, list(range(10)), 30)
    request = scheduler.requests[session.engine_id]
    while request.num_output_tokens < 2:
        pair.step(0)
    pair.ask(0, list(range(30, 86)), 4)
    pair.step(0)
    scheduler.running.remove(request)
    scheduler.places.lent[request.request_id] = request
    scheduler.take_back(request)
    assert scheduler.running[0] is request
    pair.settle()
    assert (len(session.tokens), pair.wrong, pair.leftovers) == (30, [], [])
