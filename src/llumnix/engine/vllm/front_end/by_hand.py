"""Moves asked for by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from llumnix.control.orders import MoveCause, MoveId, MoveOrder, MoveOutcome, StayCause
from llumnix.engine.vllm.front_end.client import LlumnixClient
from llumnix.engine.vllm.front_end.loud_tasks import LoudTasks
from llumnix.engine.vllm.front_end.members import unless_gone
from llumnix.engine.vllm.front_end.numbers import numbers
from llumnix.engine.vllm.front_end.stream_log import StreamLog, record_of
from llumnix.report.records import MigrationRecord
from llumnix.types import InstanceId, RequestId
from llumnix.wire.outbox import Mail
from llumnix.wire.to_front_end import MigrateAnswer, MigrateByHand
from llumnix.wire.to_instance import MoveOut
from llumnix.wire.to_scheduler import MoveAnswer

BY_HAND = "by hand"
_ANSWER_TIMEOUT_S = 60.0
_FIRST_TOKEN_TIMEOUT_S = 10.0
"""How long an answer waits for the first token from the new owner, which ends the downtime."""

MOST_TRIED = 3
"""Instances, where the request may go wherever it had best go."""


class _Said(NamedTuple):
    """See `MigrateAnswer`."""

    status: int
    record: MigrationRecord | None = None
    why: str = ""
    refused: bool = False
    """By the target: another one may not."""
    began: bool = False
    """Its turn came while the target was asked, for no room. Now it runs, and room is asked for."""


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
        self._tasks = LoudTasks()

    def start(self, order: MigrateByHand) -> None:
        self._tasks.spawn(self._answer(order))

    def move_answered(self, answer: MoveAnswer) -> None:
        answered = self._orders.get(answer.outcome.order.move_id)
        if answered is not None and not answered.done():
            answered.set_result(answer.outcome)

    async def _answer(self, order: MigrateByHand) -> None:
        said = await self._carry_out(order)
        answer = MigrateAnswer(query=order.query, status=said.status, record=said.record, why=said.why)
        self._post(order.reply_to, answer)

    async def _carry_out(self, order: MigrateByHand) -> _Said:
        """To the target that was named; else to the best that does not refuse."""
        if order.request not in self._client.streams.sessions:
            return _Said(404, why="the request has ended")
        named = () if order.target is None else (order.target,)
        said = _Said(409, why="no other instance can take it")
        for target in named or self._client.machine.best_places(order.request, MOST_TRIED):
            said = await self._move(order.request, target)
            if said.began:
                said = await self._move(order.request, target)
            if not said.refused:
                break
        return said

    async def _move(self, request: RequestId, to: InstanceId) -> _Said:
        session = self._client.streams.sessions.get(request)
        target = self._client.members.by_id.get(to)
        if session is None:
            return _Said(404, why="the request has ended")
        if target is None:
            return _Said(409, why=f"instance {to} is not running", refused=True)
        if session.stream.owner == to:
            return _Said(409, why=f"the request is on {to} already")
        source = self._client.members.known.get(session.stream.owner)
        if source is None or session.moves or self._log.is_awaited(session.engine_id):
            return _Said(409, why="the request is moving already")
        move_id = MoveId(f"{self._address.rpartition('/')[2]}-{next(self._numbers)}")
        answered = self._orders[move_id] = asyncio.get_running_loop().create_future()
        move = MoveOrder(
            move_id=move_id,
            target=target.info.id,
            cause=MoveCause.BY_HAND,
            reason=BY_HAND,
            request=request,
        )
        try:
            with self._log.next_move(session.engine_id) as recorded:
                self._post(source.info.control, MoveOut(order=move, target=target.info, reply_to=self._address))
                async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                    outcome: MoveOutcome = await unless_gone(answered, source.gone)
                if outcome.why_not is not None:
                    refused = outcome.stayed in (StayCause.REFUSED, StayCause.NO_ADAPTER)
                    return _Said(409, why=outcome.why_not, refused=refused, began=outcome.stayed is StayCause.BEGAN)
                await asyncio.wait((recorded,), timeout=_FIRST_TOKEN_TIMEOUT_S)
                # If the stream made no token since (it waits in the target's queue), all but the downtime is known.
                return _Said(200, recorded.result() if recorded.done() else record_of(session, outcome))
        except ConnectionError:
            return _Said(409, why=f"{source.info.id} was lost meanwhile")
        except TimeoutError:
            return _Said(504, why=f"no answer from {source.info.id} within {_ANSWER_TIMEOUT_S:g} s")
        finally:
            del self._orders[move_id]
