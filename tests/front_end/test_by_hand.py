"""Moves asked for by hand, told without engines."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from llumnix.control.messages import Moved
from llumnix.control.orders import MoveOutcome
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

A, B, R = InstanceId("a"), InstanceId("b"), RequestId("r")


def member(instance: InstanceId) -> Member:
    info = InstanceInfo(id=instance, index=0, slot=0, pid=1, node="", control=instance, data="")
    return Member(info, InstanceSnapshot(id=instance, seq=1, at=0.0, total_blocks=9, free_blocks=9))


async def test_second_order_for_a_request_is_refused_and_does_not_disturb_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_log, "Metrics", lambda: SimpleNamespace(migration=lambda outcome, downtime_s: None))
    posted: list[Mail] = []
    members = {A: member(A), B: member(B)}
    session = SimpleNamespace(stream=SimpleNamespace(owner=A), move=None, engine_id=R, client_id=R)
    client = SimpleNamespace(
        streams=SimpleNamespace(sessions={R: session}), members=SimpleNamespace(by_id=members, known=members)
    )
    log = StreamLog(Journal("f0"))
    hand = ByHand(client, log, lambda _, message: posted.append(message), "me")  # type: ignore[arg-type]
    for query in (1, 2):
        hand.start(MigrateByHand(query=query, request=R, target=B, reply_to="x"))
    await asyncio.sleep(0.01)
    order, refusal = posted
    assert isinstance(order, MoveOut)
    assert isinstance(refusal, MigrateAnswer)
    assert (refusal.query, refusal.status, refusal.why) == (2, 409, "the request is moving already")
    outcome = MoveOutcome(order=order.order, source=A, request=R)
    hand.move_answered(MoveAnswer(outcome=outcome))
    await asyncio.sleep(0.01)
    log.moved(session, Moved(request=R, epoch=Epoch(1), sender=A, outcome=outcome), 0.003)  # type: ignore[arg-type]
    await asyncio.sleep(0.01)
    answer = posted[-1]
    assert isinstance(answer, MigrateAnswer)
    assert answer.record is not None
    assert (answer.query, answer.status, answer.record.downtime_ms) == (1, 200, 3.0)
    assert answer.record.move_id == order.order.move_id
