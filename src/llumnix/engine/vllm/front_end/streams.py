"""The token streams of a front end: where each was sent, who owns it, and its replay when its owner is lost.

`sort_out` is the front end's hot path, once per engine step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol, assert_never

import msgspec
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, EngineCoreRequestType, FinishReason

from llumnix.control import ownership as own
from llumnix.control.dispatcher import Dispatcher
from llumnix.control.messages import AnyNotice, Doubt, Moved, Stayed
from llumnix.engine.vllm.between import LAST_WORD, NOTICE, TURNED_AWAY, RequestCodec, Resume
from llumnix.engine.vllm.front_end.members import Members
from llumnix.engine.vllm.front_end.session import Session
from llumnix.policy.dispatch import DispatchRequest
from llumnix.types import InstanceId, Priority, RequestId
from llumnix.wire.outbox import Mail

log = logging.getLogger(__name__)

ENGINE_ENDS = "Server shutting down"
"""What vLLM answers calls with once its engine is told to end (`EngineCoreProc._reject_utility_in_shutdown`)."""


class Observer(Protocol):
    """What a front end wants to know of its streams; all calls come on the event loop and must be quick."""

    def replayed(self, request_id: str, why: str) -> None: ...
    def failed(self, session: Session, why: str) -> None: ...
    def stayed(self, session: Session, notice: Stayed) -> None: ...
    def moved(self, session: Session, notice: Moved, downtime_s: float | None) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """What the streams use of the engine client that they live in."""

    send: Callable[[InstanceId, EngineCoreRequestType, Any], None]
    """To an engine, if it is still there; returns at once."""
    resume: Callable[[InstanceId, bytes], Coroutine[Any, Any, Any]]
    """Has an engine take up a `Resume`. Raises ConnectionError if it is lost meanwhile."""
    post: Callable[[str, Mail], None]
    emit: Callable[[list[EngineCoreOutput]], None]
    """For outputs that do not come in a message of an engine."""
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    last_word: Callable[[InstanceId], None]
    """Told when the stream of an instance is over."""


class Streams:
    """All methods run on the front end's event loop."""

    observer: Observer
    """To be set before the first instance is admitted."""

    def __init__(self, members: Members, dispatcher: Dispatcher, ways: Ways) -> None:
        self.sessions: dict[str, Session] = {}
        """By engine id."""
        self._members = members
        self._dispatcher = dispatcher
        self._ways = ways
        self._engine_ids: dict[str, str] = {}  # vLLM's request id -> engine id, only where they differ
        self._parked: list[tuple[Session, str]] = []
        self._ownership = own.Ownership()
        self._codec = RequestCodec()

    # -- requests

    def session_of(self, request_id: str) -> Session | None:
        """`request_id`: as vLLM's front end knows it."""
        return self.sessions.get(self._engine_ids.get(request_id, request_id))

    @property
    def parked(self) -> int:
        """Requests that wait for an instance to be replayed on."""
        return len(self._parked)

    def open(self, request: EngineCoreRequest) -> InstanceId | None:
        """Where the new request is to be sent; None if no instance can take it."""
        instance = self._choose(request, len(request.prompt_token_ids or ()))
        if instance is not None:
            stream = self._ownership.opened(RequestId(request.request_id), instance)
            self.sessions[request.request_id] = Session(request, request.request_id, stream)
        return instance

    def never_sent(self, request_id: str) -> None:
        """It was opened just now, and then could not be sent."""
        session = self.sessions.pop(request_id)
        self._dispatcher.forget(RequestId(request_id), session.stream.owner)
        self._ownership.never_sent(RequestId(request_id))

    def abort(self, request_id: str) -> None:
        session = self.session_of(request_id)
        if session is None:
            self._engine_ids.pop(request_id, None)
            self._parked = [(waiting, why) for waiting, why in self._parked if waiting.id != request_id]
        else:
            self._forget(session)
            self._obey(self._ownership.aborted(RequestId(session.engine_id)))

    def _choose(self, request: EngineCoreRequest, tokens: int, anywhere: bool = False) -> InstanceId | None:
        """`anywhere`: also elsewhere than where the client wanted it, which may be gone for good."""
        avoid = self._members.lacking(request.lora_request)
        wanted = request.data_parallel_rank  # the client may name a slot (X-data-parallel-rank)
        if wanted is not None and not anywhere:
            avoid |= {i for i, member in self._members.by_id.items() if member.info.slot != wanted}
        asked = DispatchRequest(
            id=RequestId(request.request_id), prompt_tokens=tokens, priority=Priority(request.priority)
        )
        decision = self._dispatcher.dispatch(asked, avoid)
        if decision is None:
            return None
        log.debug("%s goes to %s", request.request_id, decision)
        return decision.instance

    def _forget(self, session: Session) -> None:
        self.sessions.pop(session.engine_id, None)
        self._engine_ids.pop(session.id, None)

    # -- what instances say

    def sort_out(self, instance: InstanceId, outputs: list[EngineCoreOutput]) -> list[EngineCoreOutput]:
        """Those of an instance's outputs that go to clients now, with what they set free."""
        now = monotonic()
        kept: list[EngineCoreOutput] = []
        for output in outputs:
            session = self.sessions.get(output.request_id)
            if session is not None and session.stream.live == instance and output.kv_transfer_params is None:
                session.stream.delivered_tokens += len(output.new_token_ids)
                self._deliver(session, output, now, kept)
            else:
                kept += self._unusual(instance, output)
        return kept

    def _deliver(self, session: Session, output: EngineCoreOutput, now: float, to: list[EngineCoreOutput]) -> None:
        if output.new_token_ids:
            downtime_s = session.tokens_delivered(output.new_token_ids, now)
            if downtime_s is not None:
                self._record_move(session, downtime_s)
        if session.replays:
            output.request_id = session.id
            output.prefill_stats = None  # of the replay; the client's prefill was reported long ago
        if output.finish_reason is not None:
            self._record_move(session, None)
            self._forget(session)
            self._obey(self._ownership.finished(RequestId(session.engine_id)))
        to.append(output)

    def _unusual(self, instance: InstanceId, output: EngineCoreOutput) -> list[EngineCoreOutput]:
        """Notices, and outputs of an instance that is not (or not yet) the owner."""
        params = output.kv_transfer_params or {}
        if NOTICE in params:
            return self._take_notice(msgspec.msgpack.decode(params[NOTICE], type=AnyNotice))
        request = RequestId(output.request_id)
        if TURNED_AWAY in params:
            return self._turned_away(request, instance)
        if LAST_WORD in params:
            self._ways.last_word(instance)
            return []
        session = self.sessions.get(request)
        if session is not None and session.stream.live == instance:  # vLLM's own use of the field
            session.stream.delivered_tokens += len(output.new_token_ids)
            delivered: list[EngineCoreOutput] = []
            self._deliver(session, output, monotonic(), delivered)
            return delivered
        orders = self._ownership.outputs_arrived(request, instance, (output,), len(output.new_token_ids))
        return self._obey(orders)

    def _take_notice(self, notice: AnyNotice) -> list[EngineCoreOutput]:
        session = self.sessions.get(notice.request)
        if session is not None and isinstance(notice, Moved):
            self._record_move(session, None)  # an earlier one whose first token never came
            session.moved(notice)
            if session.before_move_s is None:  # it has said nothing yet: no gap to wait for
                self._record_move(session, None)
        elif session is not None and isinstance(notice, Stayed):
            self.observer.stayed(session, notice)
        return self._obey(self._ownership.notice_arrived(notice))

    def _turned_away(self, request: RequestId, instance: InstanceId) -> list[EngineCoreOutput]:
        self._dispatcher.on_removed(instance)  # nor will it take another one
        return self._obey(self._ownership.turned_away(request, instance))

    def doubted(self, doubt: Doubt) -> None:
        self._ways.emit(self._obey(self._ownership.doubted(doubt)))

    def _record_move(self, session: Session, downtime_s: float | None) -> None:
        if session.move is not None:
            self.observer.moved(session, session.move, downtime_s)
            session.move = None

    # -- instances that go

    def instance_gone(self, instance: InstanceId, complete: bool = False) -> None:
        """What it owned goes on elsewhere. `complete`: all that it said was read."""
        self._ways.emit(self._obey(self._ownership.instance_gone(instance, complete)))

    def drive_out(self, instance: InstanceId, why: str) -> int:
        """Starts what is on a draining instance anew elsewhere, with the tokens so far; returns how many. What cannot
        be continued exactly, and everything if there is no place for it, stays and goes on."""
        if not self._members.running(other_than=instance):
            return 0
        there = [s for s in self.sessions.values() if s.stream.owner == instance and not s.why_not_replayable()]
        for session in there:
            self._ways.emit(self._obey(self._ownership.driven_out(RequestId(session.engine_id), why)))
        return len(there)

    def _obey(self, orders: list[own.Order]) -> list[EngineCoreOutput]:
        """Carries orders out; returns the outputs that go to the client now."""
        outputs: list[EngineCoreOutput] = []
        for order in orders:
            match order:
                case own.Deliver():
                    session = self.sessions.get(order.request)
                    for output in order.outputs:
                        if session is not None:
                            self._deliver(session, output, monotonic(), outputs)  # type: ignore[arg-type]
                case own.Tell():
                    member = self._members.known.get(order.to)
                    if member is not None:  # else it is asked for again, or nobody is there to ask
                        self._ways.post(member.info.control, order.verdict)
                case own.Abort():
                    self._ways.send(order.to, EngineCoreRequestType.ABORT, [order.request])
                case own.Replay():
                    session = self.sessions.pop(order.request, None)
                    if session is not None:
                        self._replay(session, order.why, fruitless=not order.asked_for)
                case _:
                    assert_never(order)
        return outputs

    # -- token replay

    def _replay(self, session: Session, why: str, fruitless: bool = True) -> None:
        """Starts the request anew elsewhere, where it left off; parks it while there is no room anywhere. `fruitless`
        until its next token: it may be what ends instances."""
        problem = session.why_not_replayable()
        if problem:
            self._fail(session, f"{why}; the stream cannot be continued exactly: {problem}")
            return
        request = session.request
        tokens = len(request.prompt_token_ids or ()) + len(session.tokens)
        instance = self._choose(request, tokens, anywhere=True)
        if instance is None:
            lora = request.lora_request
            if lora is not None and self._members.all_lack(lora):
                self._fail(session, f"{why}; no instance can load its adapter {lora.lora_name!r}")
            else:
                self._parked.append((session, why))
            return
        session.replays += 1
        session.fruitless_replays += fruitless
        session.engine_id = f"{session.id}~{session.replays}"
        session.stream = self._ownership.opened(RequestId(session.engine_id), instance)
        session.stream.delivered_tokens = len(session.tokens)
        self.sessions[session.engine_id] = session
        self._engine_ids[session.id] = session.engine_id
        renamed = msgspec.structs.replace(request, request_id=session.engine_id)
        self.observer.replayed(session.client_id, why)
        if session.tokens:
            self._ways.spawn(self._resume(session, renamed, instance))
        else:
            self._ways.send(instance, EngineCoreRequestType.ADD, renamed)

    async def _resume(self, session: Session, renamed: EngineCoreRequest, instance: InstanceId) -> None:
        resume = Resume(
            request_id=renamed.request_id,
            front_end=renamed.client_index,
            request=self._codec.encode(renamed),
            output_token_ids=list(session.tokens),
        )
        try:
            await self._ways.resume(instance, msgspec.msgpack.encode(resume))
        except ConnectionError:
            return  # that one died, too: `instance_gone` replays the stream once more
        except Exception as error:  # noqa: BLE001 vLLM turns whatever the engine raised into a bare Exception
            if str(error) == ENGINE_ENDS:
                self._ways.emit(self._turned_away(RequestId(renamed.request_id), instance))
            elif self.sessions.pop(renamed.request_id, None) is not None:
                self._obey(self._ownership.aborted(RequestId(renamed.request_id)))
                self._fail(session, f"token replay failed: {error}")

    def place_parked(self) -> None:
        """There may be room again."""
        parked, self._parked = self._parked, []
        for session, why in parked:
            self._replay(session, why)

    def _fail(self, session: Session, why: str) -> None:
        log.error("request %s ends: %s", session.client_id, why)
        self.observer.failed(session, why)
        self._engine_ids.pop(session.id, None)
        output = EngineCoreOutput(
            request_id=session.id, new_token_ids=[], finish_reason=FinishReason.ERROR, stop_reason=why
        )
        self._ways.emit([output])
