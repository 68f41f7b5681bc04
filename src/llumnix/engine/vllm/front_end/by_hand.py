"""Moves asked for by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llumnix.control.orders import MoveCause, MoveId, MoveOrder, MoveOutcome
from llumnix.engine.vllm.front_end.client import LlumnixClient
from llumnix.engine.vllm.front_end.members import Member
from llumnix.engine.vllm.front_end.numbers import numbers
from llumnix.engine.vllm.front_end.stream_log import StreamLog, record_of
from llumnix.report.records import MigrationRecord
from llumnix.wire.outbox import Mail
from llumnix.wire.to_front_end import MigrateAnswer, MigrateByHand
from llumnix.wire.to_instance import MoveOut
from llumnix.wire.to_scheduler import MoveAnswer

BY_HAND = "by hand"
_ANSWER_TIMEOUT_S = 60.0
_FIRST_TOKEN_TIMEOUT_S = 10.0
"""How long an answer waits for the first token from the new owner, which ends the downtime."""


class ByHand:
    """Moves of this front end's streams that somebody asked for."""

    def __init__(self, client: LlumnixClient, log: StreamLog, post: Callable[[str, Mail], None], address: str) -> None:
        self._client = client
        self._log = log
        self._post = post
        self._address = address
        self._numbers = numbers()
        self._orders: dict[MoveId, asyncio.Future[MoveOutcome]] = {}
        """Their answers."""
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, order: MigrateByHand) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(order))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def move_answered(self, answer: MoveAnswer) -> None:
        answered = self._orders.get(answer.outcome.order.move_id)
        if answered is not None and not answered.done():
            answered.set_result(answer.outcome)

    async def _answer(self, order: MigrateByHand) -> None:
        status, record, why = await self._carry_out(order)
        answer = MigrateAnswer(query=order.query, status=status, record=record, why=why)
        self._post(order.reply_to, answer)

    async def _carry_out(self, order: MigrateByHand) -> tuple[int, MigrationRecord | None, str]:
        """(status, record, why): see `MigrateAnswer`."""
        session = self._client.streams.sessions.get(order.request)
        target = self._client.members.by_id.get(order.target)
        if session is None:
            return 404, None, "the request has ended"
        if target is None:
            return 409, None, f"instance {order.target} is not running"
        if session.stream.owner == order.target:
            return 409, None, f"the request is on {order.target} already"
        source = self._client.members.known.get(session.stream.owner)
        if source is None or session.move is not None or self._log.is_awaited(session.engine_id):
            return 409, None, "the request is moving already"
        move_id = MoveId(f"{self._address.rpartition('/')[2]}-{next(self._numbers)}")
        answered = self._orders[move_id] = asyncio.get_running_loop().create_future()
        move = MoveOrder(
            move_id=move_id,
            target=target.info.id,
            cause=MoveCause.BY_HAND,
            reason=BY_HAND,
            request=order.request,
        )
        try:
            with self._log.next_move(session.engine_id) as recorded:
                self._post(source.info.control, MoveOut(order=move, target=target.info, reply_to=self._address))
                outcome = await _outcome_or_loss(answered, source)
                if outcome is None and source.gone.is_set():
                    return 409, None, f"{source.info.id} was lost meanwhile"
                if outcome is None:
                    return 504, None, f"no answer from {source.info.id} within {_ANSWER_TIMEOUT_S:g} s"
                if outcome.why_not is not None:
                    return 409, None, outcome.why_not
                await asyncio.wait((recorded,), timeout=_FIRST_TOKEN_TIMEOUT_S)
                # If the stream made no token since (it waits in the target's queue), all but the downtime is known.
                return 200, recorded.result() if recorded.done() else record_of(session, outcome), ""
        finally:
            del self._orders[move_id]


async def _outcome_or_loss(answered: asyncio.Future[MoveOutcome], source: Member) -> MoveOutcome | None:
    """None when the source was lost, or did not answer in time."""
    gone = asyncio.ensure_future(source.gone.wait())
    try:
        await asyncio.wait((answered, gone), timeout=_ANSWER_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
    return answered.result() if answered.done() else None
