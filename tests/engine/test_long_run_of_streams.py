"""Twenty thousand streams through a front end whose instances come and go: what it holds in the end."""

from __future__ import annotations

import random

import msgspec
import pytest

pytest.importorskip("vllm")

from test_streams import FrontEnd, _token
from vllm.v1.engine import EngineCoreOutput, FinishReason

from containers import larger_than
from llumnix.control import gone, told_aborts
from llumnix.control.messages import Adopted, AnyNotice, Moved
from llumnix.engine.vllm.between import NOTICE
from llumnix.journal import journal, stories
from llumnix.types import Epoch, InstanceId
from llumnix.wire.outbox import Mail
from move_outcomes import outcome

FEW = 64
ALIVE = 4
INSTANCES = 2_000
STREAMS_EACH = 10
BOUNDS = {
    "GoneIds._ids": gone.REMEMBERED,
    "ToldAborts._outputs": told_aborts.ABORTS_REMEMBERED,
    "Journal._entries": journal.KEPT,
    "Stories._ended": stories.ENDED_KEPT,
}


def notice(request: str, what: AnyNotice) -> EngineCoreOutput:
    return EngineCoreOutput(
        request_id=request, new_token_ids=[], kv_transfer_params={NOTICE: msgspec.msgpack.encode(what)}
    )


class Arbiter(FrontEnd):
    def _post(self, address: str, message: Mail) -> None:
        """Verdicts go out, and nobody here needs them."""


class Life:
    """Of a front end whose oldest instance goes again and again, while streams end, move, are replayed or aborted."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.front = Arbiter()
        self.alive: list[InstanceId] = []

    def come_and_go(self, number: int) -> None:
        self.front.join(InstanceId(f"i{number}"))
        self.alive.append(InstanceId(f"i{number}"))
        if len(self.alive) > ALIVE:
            leaver = self.alive.pop(0)
            self.front.lose(leaver)
            self.front.streams.sort_out(leaver, [_token("unheard", 1)])

    def stream(self, name: str) -> None:
        """It says something, and is left open."""
        self.front.streams.sort_out(self.front.open(name), [_token(name, 7)])

    def go_on(self, name: str) -> None:
        """Whatever became of it since, it comes to its end."""
        streams = self.front.streams
        session = streams.session_of(name)
        assert session is not None
        engine_id, owner = session.engine_id, session.stream.owner
        if self.rng.random() < 0.3 and len(self.alive) > 1:
            target = self.rng.choice([each for each in self.alive if each != owner])
            header = {"request": engine_id, "epoch": Epoch(1)}
            tokens = session.stream.delivered_tokens
            adopted = Adopted(**header, sender=target, source=owner, output_tokens=tokens)  # type: ignore[arg-type]
            streams.sort_out(target, [notice(engine_id, adopted)])
            moved = Moved(**header, sender=owner, outcome=outcome(owner, target))  # type: ignore[arg-type]
            streams.sort_out(owner, [notice(engine_id, moved)])
            owner = target
        if self.rng.random() < 0.2:
            streams.abort(name)
        else:
            streams.sort_out(owner, [_token(engine_id, 8, finish_reason=FinishReason.LENGTH)])


def test_front_end_holds_the_streams_that_run_and_the_instances_that_are_there() -> None:
    life = Life(seed=1)
    last: list[str] = []
    for number in range(INSTANCES):
        life.come_and_go(number)
        for name in last:
            life.go_on(name)
        last = [f"r{number}-{each}" for each in range(STREAMS_EACH)]
        for name in last:
            life.stream(name)
        front = life.front
        for heard in (front.sent, front.emitted, front.given_up, front.resumed, front.last_words):
            heard.clear()  # what the test itself remembers
    for name in last:
        life.go_on(name)
    assert life.front.why_failed == []
    assert larger_than(FEW, BOUNDS, life.front.streams, life.front.members) == {}
    assert life.front.streams.sessions == {}
