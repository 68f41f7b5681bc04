"""One that is sent with where it goes with its first token: room is asked for in the very step that computes it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("vllm")

from late_pair import LatePair

from llumnix.control.messages import Commit, Prepare
from llumnix.types import Role
from llumnix.wire.to_instance import Peer

PROMPT = list(range(20))


@pytest.fixture
def pair() -> Iterator[LatePair]:
    pair = LatePair()
    yield pair
    pair.settle()
    assert pair.wrong == []
    assert pair.leftovers == []


def asked(pair: LatePair, kind: type) -> list[str]:
    """Messages of that kind that are on their way, by their requests."""
    letters = [letter.message for _, letter in pair.wires.letters if isinstance(letter, Peer)]
    return [letter.request for letter in letters if isinstance(letter, kind)]


def test_room_is_asked_for_before_its_first_step_is_over_and_it_goes_with_its_first_token(pair: LatePair) -> None:
    session = pair.ask(0, PROMPT, 30, onward=True)
    assert asked(pair, Prepare) == [], "it waits, and may go wherever it starts sooner"
    pair.step(0)
    assert pair.cores[0].device.launched, "its step is in flight"
    assert asked(pair, Prepare) == [session.engine_id]
    pair.fly()
    request = pair.cores[0].scheduler.requests[session.engine_id]
    while not asked(pair, Commit):
        pair.step(0)
    assert request.num_output_tokens <= 2, "a step was in flight when its first token came"
    pair.settle()
    assert len(session.tokens) == 30


def test_word_of_it_that_comes_after_its_first_step_began_is_followed_at_once(pair: LatePair) -> None:
    session = pair.ask(0, PROMPT, 30)
    pair.step(0)
    pair.cores[0].office.driver.role = Role.PREFILL
    pair.move(0, session.engine_id, pair.ONWARD)
    assert asked(pair, Prepare) == [session.engine_id]


def test_it_stays_where_prompts_do_not_come_first_any_more(pair: LatePair) -> None:
    session = pair.ask(0, PROMPT, 30, onward=True)
    pair.cores[0].office.driver.role = Role.MIXED
    pair.step(0)
    assert asked(pair, Prepare) == []
    pair.settle()
    assert len(session.tokens) == 30


def test_instance_that_is_for_prompts_by_now_does_not_take_it(pair: LatePair) -> None:
    session = pair.ask(0, PROMPT, 30, onward=True)
    pair.cores[1].office.driver.role = Role.PREFILL
    pair.step(0)
    pair.fly()
    assert asked(pair, Prepare) == []
    pair.settle()
    assert pair.cores[1].office.driver.counters["migrations_in"] == 0
    assert len(session.tokens) == 30
