"""Moves asked for by hand, told without engines."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from llumnix.control.messages import Moved
from llumnix.control.orders import MoveOutcome, StayCause
from llumnix.engine.vllm.front_end import stream_log
from llumnix.engine.vllm.front_end.by_hand import ByHand
from llumnix.engine.vllm.front_end.members import Member
from llumnix.engine.vllm.front_end.stream_log import StreamLog
from llumnix.journal.journal import Journal
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import Epoch, InstanceId, RequestId
from llumnix.wire.base import InstanceInfo
from llumnix.wire.outbox import Mail
from llumnix.wire.to_front_end import MigrateAnswer, MigrateByHand
from llumnix.wire.to_instance import MoveOut
from llumnix.wire.to_scheduler import MoveAnswer

A, B, C, R = InstanceId("a"), InstanceId("b"), InstanceId("c"), RequestId("r")


def member(instance: InstanceId) -> Member:
    info = InstanceInfo(id=instance, index=0, slot=0, pid=1, node="", control=instance, data="")
    return Member(info, InstanceSnapshot(id=instance, seq=1, at=0.0, total_blocks=9, free_blocks=9))


class Hand:
    """Of a front end with one stream, on A."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *best: InstanceId) -> None:
        nothing = SimpleNamespace(migration=lambda outcome, downtime_s: None)
        monkeypatch.setattr(stream_log, "Metrics", lambda: nothing)
        self.posted: list[Mail] = []
        members = {name: member(name) for name in (A, B, C)}
        self.session = SimpleNamespace(stream=SimpleNamespace(owner=A), moves=False, engine_id=R, client_id=R)
        client = SimpleNamespace(
            streams=SimpleNamespace(sessions={R: self.session}),
            members=SimpleNamespace(by_id=members, known=members),
            machine=SimpleNamespace(best_places=lambda request, most: best[:most]),
        )
        self.log = StreamLog(Journal("f0"))
        self.hand = ByHand(client, self.log, lambda _, message: self.posted.append(message), "me")  # type: ignore[arg-type]

    async def order(self, *targets: InstanceId | None) -> None:
        for query, target in enumerate(targets, 1):
            self.hand.start(MigrateByHand(query=query, request=R, target=target, reply_to="x"))
        await asyncio.sleep(0.01)

    async def answer(self, why_not: str | None = None, stayed: StayCause | None = None) -> MoveOutcome:
        order = self.posted[-1]
        assert isinstance(order, MoveOut)
        outcome = MoveOutcome(order=order.order, source=A, request=R, why_not=why_not, stayed=stayed)
        self.hand.move_answered(MoveAnswer(outcome=outcome))
        await asyncio.sleep(0.01)
        return outcome

    async def token(self, outcome: MoveOutcome) -> MigrateAnswer:
        moved = Moved(request=R, epoch=Epoch(1), sender=A, outcome=outcome)
        self.log.moved(self.session, moved, 0.003, 0.0)  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        return self.last()

    def last(self) -> MigrateAnswer:
        answer = self.posted[-1]
        assert isinstance(answer, MigrateAnswer)
        return answer


async def test_second_order_for_a_request_is_refused_and_does_not_disturb_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hand = Hand(monkeypatch)
    await hand.order(B, B)
    refusal = hand.last()
    assert (refusal.query, refusal.status, refusal.why) == (2, 409, "the request is moving already")
    del hand.posted[-1]
    outcome = await hand.answer()
    answer = await hand.token(outcome)
    assert answer.record is not None
    assert (answer.query, answer.status, answer.record.downtime_ms) == (1, 200, 3.0)
    assert answer.record.move_id == outcome.order.move_id


async def test_request_goes_to_the_best_that_does_not_refuse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hand = Hand(monkeypatch, InstanceId("gone"), B, C)
    await hand.order(None)
    refused = await hand.answer("refused: no room", StayCause.REFUSED)
    moved = await hand.answer()
    assert (refused.order.target, moved.order.target) == (B, C)
    answer = await hand.token(moved)
    assert answer.record is not None
    assert (answer.status, answer.record.target) == (200, C)


async def test_queued_request_whose_turn_comes_meanwhile_is_asked_for_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hand = Hand(monkeypatch, B, C)
    await hand.order(None)
    first = await hand.answer("it has begun here meanwhile", StayCause.BEGAN)
    again = await hand.answer()
    assert (first.order.target, again.order.target) == (B, B)
    assert (await hand.token(again)).status == 200


async def test_request_that_cannot_move_is_not_tried_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    hand = Hand(monkeypatch, B, C)
    await hand.order(None)
    await hand.answer("nothing to give: 1 pinned", StayCause.NOT_STARTED)
    assert (hand.last().status, hand.last().why) == (409, "nothing to give: 1 pinned")


async def test_named_target_that_refuses_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hand = Hand(monkeypatch, C)
    await hand.order(B)
    await hand.answer("refused: no room", StayCause.REFUSED)
    assert (hand.last().status, hand.last().why) == (409, "refused: no room")


async def test_without_another_instance_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    hand = Hand(monkeypatch)
    await hand.order(None)
    assert (hand.last().status, hand.last().why) == (409, "no other instance can take it")
