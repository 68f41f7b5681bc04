"""Letters that nobody can have meant: the move that they belong to ends, and everything else goes on."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest

pytest.importorskip("vllm")

from late_device import BLOCKS
from late_pair import NAMES, LatePair, Session
from vllm.v1.request import RequestStatus

from llumnix.control.messages import AnyMessage, Commit, Committed, Copied, Copy, Prepare, Prepared
from llumnix.engine.vllm.instance.early_pulls import Origin, Refusal
from llumnix.engine.vllm.instance.state import Identity, passport_of
from llumnix.types import Epoch, InstanceId, RequestId
from llumnix.wire.to_instance import Peer

NONSENSE = b"\xc1"  # a byte that msgpack never uses


@pytest.fixture
def pair() -> LatePair:
    return LatePair()


def two_that_decode(pair: LatePair) -> tuple[Session, Session]:
    """One that is to move from i0, and one that runs at i1."""
    moves, stays = pair.ask(0, list(range(20)), 30), pair.ask(1, list(range(30, 50)), 30)
    for at, session in ((0, moves), (1, stays)):
        request = pair.cores[at].scheduler.requests[session.engine_id]
        while request.num_output_tokens < 2:
            pair.step(at)
    return moves, stays


def fly_until(pair: LatePair, kind: type[AnyMessage]) -> int:
    """Everything arrives and both engines run until such a letter is on its way; returns its place."""
    for _ in range(300):
        for place, (_, letter) in enumerate(pair.wires.letters):
            if isinstance(letter, Peer) and isinstance(letter.message, kind):
                return place
        pair.turn()
    raise AssertionError(f"no {kind.__name__}")


def alter(pair: LatePair, place: int, **fields: Any) -> None:
    to, letter = pair.wires.letters[place]
    assert isinstance(letter, Peer)
    message = msgspec.structs.replace(letter.message, **fields)
    pair.wires.letters[place] = to, msgspec.structs.replace(letter, message=message)


def nothing_moved(pair: LatePair, *sessions: Session) -> None:
    pair.settle()
    assert pair.moved == 0
    assert [len(session.tokens) for session in sessions] == [30] * len(sessions)
    assert (pair.wrong, pair.leftovers) == ([], [])


def test_description_of_a_request_that_cannot_be_read(pair: LatePair) -> None:
    sessions = two_that_decode(pair)
    pair.move(0, sessions[0].engine_id)
    alter(pair, fly_until(pair, Prepare), payload=NONSENSE)
    nothing_moved(pair, *sessions)


def test_request_that_cannot_be_made(pair: LatePair) -> None:
    sessions = two_that_decode(pair)
    pair.move(0, sessions[0].engine_id)
    nonsense = Identity(request=NONSENSE, output_token_ids=[], longest_tokens=0)
    alter(pair, fly_until(pair, Prepare), payload=msgspec.msgpack.encode(nonsense))
    nothing_moved(pair, *sessions)


def test_description_of_another_request(pair: LatePair) -> None:
    moves, stays = two_that_decode(pair)
    other = pair.ask(0, list(range(60, 70)), 30)
    pair.step(0)
    pair.move(0, other.engine_id)
    place = fly_until(pair, Prepare)
    _, letter = pair.wires.letters[place]
    assert isinstance(letter, Peer)
    assert isinstance(letter.message, Prepare)
    payload = letter.message.payload
    pair.move(0, moves.engine_id)
    for place, (_, letter) in enumerate(pair.wires.letters):
        assert isinstance(letter, Peer)
        if letter.message.request == moves.engine_id:
            alter(pair, place, payload=payload)
        else:
            alter(pair, place, payload=NONSENSE)
    nothing_moved(pair, moves, stays, other)


def test_blocks_that_cannot_be(pair: LatePair) -> None:
    sessions = two_that_decode(pair)
    pair.move(0, sessions[0].engine_id)
    place = fly_until(pair, Copy | Commit)  # type: ignore[arg-type]
    _, letter = pair.wires.letters[place]
    assert isinstance(letter, Peer)
    assert isinstance(letter.message, Copy | Commit)
    alter(pair, place, block_ids=(-1,) * len(letter.message.block_ids))
    nothing_moved(pair, *sessions)


def test_state_that_cannot_be_read(pair: LatePair) -> None:
    sessions = two_that_decode(pair)
    pair.move(0, sessions[0].engine_id)
    alter(pair, fly_until(pair, Commit), payload=NONSENSE)
    nothing_moved(pair, *sessions)


def test_sender_whose_blocks_are_nowhere(pair: LatePair) -> None:
    sessions = two_that_decode(pair)
    pair.move(0, sessions[0].engine_id)
    place = fly_until(pair, Prepare)
    to, letter = pair.wires.letters[place]
    assert isinstance(letter, Peer)
    lost = msgspec.structs.replace(letter.sender, data="nowhere")
    pair.wires.letters[place] = to, msgspec.structs.replace(letter, sender=lost)
    nothing_moved(pair, *sessions)


@pytest.mark.parametrize(
    "wrong",
    [{"kind": Committed, "bytes_read": 0}, {"kind": Copied, "stage": 99, "bytes_read": 0}],
    ids=["taken", "read"],
)
def test_answer_to_what_was_not_said_is_ignored_and_the_move_goes_on(
    pair: LatePair, wrong: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    sessions = two_that_decode(pair)
    pair.move(0, sessions[0].engine_id)
    fly_until(pair, Prepared)
    kind, fields = wrong["kind"], {name: value for name, value in wrong.items() if name != "kind"}
    answer = kind(request=sessions[0].engine_id, epoch=Epoch(1), sender=InstanceId("i1"), **fields)
    with caplog.at_level(logging.ERROR):
        pair.cores[0].mail(Peer(sender=pair.cores[1]._info, message=answer))
    assert "cannot have meant" in caplog.text
    pair.settle()
    assert pair.moved == 1
    assert [len(session.tokens) for session in sessions] == [30, 30]
    assert (pair.wrong, pair.leftovers) == ([], [])


def test_letter_to_an_engine_that_has_just_aborted_all_of_its_requests(pair: LatePair) -> None:
    """As one does that is told to end, before it takes up what it was sent."""
    moves, stays = two_that_decode(pair)
    pair.move(0, moves.engine_id)
    fly_until(pair, Prepared)
    core = pair.cores[0]
    core.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    pair.deliver()
    while pair.wires.letters or pair.wires.pulls:
        pair.deliver()
        pair.copy(BLOCKS)
    pair.leave(moves)
    pair.settle()
    assert (pair.moved, len(stays.tokens)) == (0, 30)
    assert (pair.wrong, pair.leftovers) == ([], [])


def test_request_comes_back_before_the_workers_have_forgotten_it(pair: LatePair) -> None:
    """The V1 runner forgets what has left with the next step, after it was told of what came meanwhile."""
    core = pair.cores[1]
    session = pair.ask(1, list(range(20)), 30)
    pair.step(1)
    request = core.scheduler.requests[session.engine_id]
    core.abort(session.engine_id)
    again, _ = core.preprocess_add_request(passport_of(request).original)
    incoming = core.office.driver.incoming
    key = RequestId(session.engine_id), Epoch(1)
    origin = Origin(InstanceId(NAMES[0]), (NAMES[0],), 5.0)
    with pytest.raises(Refusal, match="a copy of the request is still here"):
        incoming.reserve(key, again, 1, origin)
    while core.busy:
        core.step()
    incoming.reserve(key, again, 1, origin)
    incoming.drop(key)
    assert pair.leftovers == []
