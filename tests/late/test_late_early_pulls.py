"""Blocks that are read while the engine that they are for is in a step, before it has looked at the letter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("vllm")

from late_device import BLOCKS
from late_pair import LatePair, Session

from llumnix.control.messages import AnyMessage, Commit, Copy
from llumnix.wire.to_instance import Peer


@pytest.fixture(params=["full", "windows", "states"])
def pair(request: pytest.FixtureRequest) -> Iterator[LatePair]:
    pair = LatePair(request.param)
    yield pair
    pair.settle()
    assert pair.wrong == []
    assert pair.leftovers == []


def one_that_moves(pair: LatePair) -> Session:
    session = pair.ask(0, list(range(20)), 30)
    while pair.cores[0].scheduler.requests[session.engine_id].num_output_tokens < 2:
        pair.step(0)
    pair.move(0, session.engine_id)
    return session


def fly_until(pair: LatePair, kind: type[AnyMessage]) -> None:
    """Such a letter is on its way."""
    for _ in range(100):
        letter = pair.wires.letters[0][1] if pair.wires.letters else None
        if isinstance(letter, Peer) and isinstance(letter.message, kind):
            return
        pair.deliver()
        pair.copy(BLOCKS)
        pair.step(0)
    raise AssertionError(f"no {kind.__name__}")


@pytest.mark.parametrize("kind", [Copy, Commit])
def test_blocks_come_while_the_engine_is_in_its_step(pair: LatePair, kind: type[AnyMessage]) -> None:
    session = one_that_moves(pair)
    fly_until(pair, kind)
    pair.deliver(in_step=True)
    (pull,) = pair.wires.pulls
    pair.copy(BLOCKS)
    assert pull.over
    pair.cores[1].read_mail()
    assert pair.wires.pulls == [], "the same blocks are not read again"
    pair.settle()
    assert pair.moved == 1
    assert len(session.tokens) == 30


@pytest.mark.parametrize("ends_first", [True, False])
def test_target_that_gives_up_while_blocks_come_keeps_theirs_until_they_have(pair: LatePair, ends_first: bool) -> None:
    """Its clock has run out before it comes to the letter."""
    one_that_moves(pair)
    fly_until(pair, Commit)
    pair.deliver(in_step=True)
    (pull,) = pair.wires.pulls
    if ends_first:
        pair.copy(BLOCKS)  # and its end is read after the letter, as ever
    free = pair.cores[1].scheduler.kv_cache_manager.block_pool.get_num_free_blocks
    before = free()
    pair.pass_time(60.0)
    if not ends_first:
        assert pull.why == "it was cancelled"
        assert free() == before
    pair.copy(BLOCKS)
    pair.fly()
    assert free() > before


@pytest.mark.parametrize("pair", ["full"], indirect=True)
def test_nothing_is_read_into_blocks_that_a_step_in_flight_uses(pair: LatePair) -> None:
    """Somebody has just left there, and the device has not come to its last step."""
    core = pair.cores[1]
    leaves, stays = (pair.ask(1, list(range(n, n + 54)), 9) for n in (30, 40))
    while any(core.scheduler.requests[each.engine_id].num_output_tokens < 2 for each in (leaves, stays)):
        pair.step(1)
    moves = one_that_moves(pair)
    pair.leave(leaves)
    assert leaves.engine_id in {part.row.name for step in core.device.launched for part in step.parts}
    fly_until(pair, Copy)
    blocks = core.scheduler.tables.layout(moves.engine_id).after(0)
    assert core.scheduler.steps.may_touch(blocks), "there was little else"
    pair.deliver(in_step=True)
    assert pair.wires.pulls == []
    pair.settle()
    assert pair.moved == 1
