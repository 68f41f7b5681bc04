"""Blocks that a request brought, and others with its prompt: they begin with these once it is confirmed."""

from __future__ import annotations

import msgspec
import pytest

pytest.importorskip("vllm")

from late_device import BLOCKS
from late_pair import LatePair, Session, next_token

from llumnix.control.messages import Commit, Verdict
from llumnix.wire.to_instance import Peer

PROMPT = list(range(21))


@pytest.fixture
def pair() -> LatePair:
    return LatePair()


def one_whose_last_blocks_are_named(pair: LatePair) -> Session:
    """And not read yet."""
    session = pair.ask(0, PROMPT, 60)
    while pair.cores[0].scheduler.requests[session.engine_id].num_output_tokens < 2:
        pair.step(0)
    pair.move(0, session.engine_id)
    for _ in range(100):
        letter = pair.wires.letters[0][1] if pair.wires.letters else None
        pair.deliver()
        if isinstance(letter, Peer) and isinstance(letter.message, Commit):
            return session
        pair.copy(BLOCKS)
        pair.step(0)
    raise AssertionError("no commit")


def said_so_far(tokens: int) -> list[int]:
    """The prompt, and what a model makes of it."""
    said = list(PROMPT)
    while len(said) < tokens:
        said.append(next_token(said))
    return said


def cached_tokens(pair: LatePair, session: Session) -> int:
    """With how many its next turn would begin at the second one."""
    core = pair.cores[1]
    asked = msgspec.structs.replace(session.request, request_id="next", prompt_token_ids=said_so_far(30))
    request, _ = core.preprocess_add_request(asked)
    _, tokens, _ = core.scheduler.kv_cache_manager.get_computed_blocks(request)
    return tokens


def test_stream_that_ends_while_its_last_blocks_are_read_spoils_no_other_with_its_prompt(pair: LatePair) -> None:
    ends = one_whose_last_blocks_are_named(pair)
    pair.leave(ends)
    for number in range(3):  # they get its blocks, and its target does not hear that it is over
        pair.ask(0, list(range(40 + number, 80 + number)), 20)
    for _ in range(20):
        pair.step(0)
        pair.read(0)
    pair.copy(BLOCKS)
    pair.deliver(len(pair.wires.letters) - 1)
    assert ends.engine_id in pair.cores[1].scheduler.requests, "it runs, on blocks of others"
    for _ in range(6):
        pair.step(1)
    follows = pair.ask(1, said_so_far(34), 30)
    pair.settle()
    assert [fault for fault in pair.wrong if not fault.startswith(f"{ends.engine_id}:")] == []
    assert len(follows.tokens) == 30
    assert pair.leftovers == []


def test_once_the_front_end_has_confirmed_it_others_begin_with_what_it_brought(pair: LatePair) -> None:
    comes = one_whose_last_blocks_are_named(pair)
    pair.copy(BLOCKS)
    while not any(isinstance(letter, Verdict) for _, letter in pair.wires.letters):
        assert not cached_tokens(pair, comes)
        pair.deliver()
        for at in range(2):
            pair.step(at)
            pair.read(at)
    while pair.wires.letters:
        pair.deliver()
    assert comes.engine_id in pair.cores[1].scheduler.requests
    assert cached_tokens(pair, comes) > len(PROMPT)
    pair.settle()
    assert pair.wrong == []
    assert pair.leftovers == []
