"""vLLM's engine client over many engines that come and go: dispatch, ownership of streams, token replay.

A subclass of `AsyncMPClient` (vllm/v1/engine/core_client.py), so vLLM's `AsyncLLM` and its whole server run
on top unchanged. Its hot path is `process_engine_outputs`, once per engine step.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from http import HTTPStatus
from time import monotonic
from typing import Any

import msgspec
from vllm.exceptions import GracefulHTTPError
from vllm.v1.engine import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    EngineCoreRequestType,
    FinishReason,
)
from vllm.v1.engine.core_client import AsyncMPClient

from llumnix.control import ownership as own
from llumnix.control.dispatcher import Dispatcher
from llumnix.control.messages import Adopted, AnyNotice, Doubt, Moved, Stayed
from llumnix.engine.port import FrontEndSpec
from llumnix.engine.vllm.client_setup import set_up_sockets
from llumnix.engine.vllm.driver import NOTICE
from llumnix.engine.vllm.resume import Resume
from llumnix.engine.vllm.session import Session
from llumnix.engine.vllm.state import Codec
from llumnix.policy.dispatch import DispatchRequest
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, InstanceState, Priority, RequestId
from llumnix.wire import messages as wire
from llumnix.wire.curve import Doorkeeper

log = logging.getLogger(__name__)

_FIRST_HELLO_INTERVAL_S = 0.05
_LONGEST_HELLO_INTERVAL_S = 2.0
_GONE = "the instance is gone"


@dataclass(slots=True, eq=False)
class Member:
    """An instance that answered the first call on vLLM's sockets and takes requests."""

    info: wire.InstanceInfo
    snapshot: InstanceSnapshot
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def identity(self) -> bytes:
        return identity_of(self.info.index)


def identity_of(index: int) -> bytes:
    """vLLM's ZMQ identity of an engine."""
    return index.to_bytes(2, "little")


class Observer:
    """What a front end wants to know of its client; all calls come on the event loop and must be quick."""

    def dispatched(self, instance: InstanceId) -> None: ...
    def replayed(self, request_id: str, why: str) -> None: ...
    def failed(self, session: Session, why: str) -> None: ...
    def stayed(self, session: Session, notice: Stayed) -> None: ...
    def moved(self, session: Session, notice: Moved, downtime_s: float | None) -> None: ...
    def slots_grew(self, slots: int) -> None: ...


class LlumnixClient(AsyncMPClient):
    """All methods run on the front end's event loop."""

    def __init__(self, vllm_config: Any, spec: FrontEndSpec, post: Callable[[str, wire.Wire], None]) -> None:
        # vLLM's own constructor starts engines or waits for a fixed set of them; see client_setup.py.
        self.doorkeeper: Doorkeeper | None = None
        set_up_sockets(self, vllm_config, spec)
        self.spec = spec
        self.members: dict[InstanceId, Member] = {}
        self.sessions: dict[str, Session] = {}
        """By engine id."""
        self.observer = Observer()
        self.joined = asyncio.Event()
        """Set while at least one instance takes requests."""
        self._post = post
        self._engine_ids: dict[str, str] = {}  # vLLM's request id -> engine id, only where they differ
        self._by_index: dict[int, Member] = {}
        self._courting: dict[InstanceId, asyncio.Event] = {}  # set when the instance is gone
        self._gone: set[InstanceId] = set()
        self._parked: list[tuple[Session, str]] = []
        self._dispatcher = Dispatcher(spec.policy, spec.index)
        self._ownership = own.Ownership()
        self._codec = Codec()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loras: dict[int, Any] = {}

    # -- membership

    def on_report(self, report: wire.Report) -> None:
        """A load report; the first one of an instance starts the acquaintance."""
        instance = report.info.id
        if instance in self._gone:
            return
        member = self.members.get(instance)
        if member is None:
            if instance not in self._courting:
                self._courting[instance] = asyncio.Event()
                self._spawn(self._court(report))
            return
        member.snapshot = report.snapshot
        self._dispatcher.on_report(report.snapshot)
        if self._parked:
            self._place_parked()

    async def _court(self, report: wire.Report) -> None:
        """Calls the instance on vLLM's sockets until it answers: only then does it take requests.

        A ROUTER socket drops what is sent to a peer that has not connected yet, hence the repetition; and a busy
        machine answers late, hence no call is given up before one is answered.
        """
        instance = report.info.id
        identity = identity_of(report.info.index)
        gone = self._courting[instance]
        try:
            self._apply_ready_response(await self._hello(identity, gone))
            for lora in list(self._loras.values()):
                await _unless_gone(super()._call_utility_async("add_lora", lora, engine=identity), gone)
        except ConnectionError:
            return
        self._admit(report)

    async def _hello(self, identity: bytes, gone: asyncio.Event) -> Any:
        """The answer to the first call that gets one. Raises ConnectionError if the instance goes before."""
        calls: set[asyncio.Task[Any]] = set()
        interval_s = _FIRST_HELLO_INTERVAL_S
        try:
            while not gone.is_set():
                call = super()._call_utility_async("llumnix_hello", engine=identity)
                calls.add(asyncio.get_running_loop().create_task(call))
                answered, _ = await asyncio.wait(calls, timeout=interval_s, return_when=asyncio.FIRST_COMPLETED)
                if answered:
                    return answered.pop().result()
                interval_s = min(2 * interval_s, _LONGEST_HELLO_INTERVAL_S)
            raise ConnectionError(_GONE)
        finally:
            for unanswered in calls:
                unanswered.cancel()

    def _admit(self, report: wire.Report) -> None:
        if report.info.slot >= len(self.engine_ranks_managed):
            self.engine_ranks_managed = list(range(report.info.slot + 1))
            self.observer.slots_grew(report.info.slot + 1)
        member = Member(report.info, report.snapshot)
        del self._courting[report.info.id]
        self.members[report.info.id] = self._by_index[report.info.index] = member
        self.core_engines.append(member.identity)
        self.core_engine = self.core_engines[0]
        self._dispatcher.on_report(report.snapshot)
        self.joined.set()
        self._place_parked()

    def on_gone(self, instance: InstanceId) -> None:
        """The instance will never speak again: what it owned goes on elsewhere."""
        self._gone.add(instance)
        if (courting := self._courting.pop(instance, None)) is not None:
            courting.set()
        member = self.members.pop(instance, None)
        if member is None:
            return
        self._by_index.pop(member.info.index, None)
        self.core_engines.remove(member.identity)
        if self.core_engines:
            self.core_engine = self.core_engines[0]
        else:
            self.joined.clear()
        self._dispatcher.on_removed(instance)
        member.gone.set()
        self._emit(self._obey(self._ownership.instance_gone(instance)))

    def drive_out(self, instance: InstanceId, why: str) -> int:
        """Starts what this front end has on a draining instance anew elsewhere, with the tokens so far; returns how
        many. What cannot be continued exactly, and everything if there is no place for it, stays and goes on."""
        if not any(m.snapshot.state is InstanceState.RUNNING for m in self.members.values() if m.info.id != instance):
            return 0
        there = [s for s in self.sessions.values() if s.stream.owner == instance and not s.why_not_replayable()]
        for session in there:
            self._emit(self._obey(self._ownership.driven_out(RequestId(session.engine_id), why)))
        return len(there)

    @property
    def serving(self) -> bool:
        return any(member.snapshot.state is InstanceState.RUNNING for member in self.members.values())

    @property
    def queued_requests(self) -> int:
        return sum(member.snapshot.waiting for member in self.members.values()) + len(self._parked)

    # -- requests

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        request.client_index = self.client_index
        known = self.sessions.get(self._engine_ids.get(request.request_id, request.request_id))
        if known is not None:  # a further chunk of a streaming input session
            await self._send_to(known.stream.owner, EngineCoreRequestType.ADD, request)
            return
        instance = self._choose(request, len(request.prompt_token_ids or ()))
        if instance is None:
            raise GracefulHTTPError("No instance can take the request now.", HTTPStatus.SERVICE_UNAVAILABLE)
        stream = self._ownership.opened(RequestId(request.request_id), instance)
        self.sessions[request.request_id] = Session(request, request.request_id, stream)
        await self._send_to(instance, EngineCoreRequestType.ADD, request)

    def _choose(self, request: EngineCoreRequest, tokens: int, anywhere: bool = False) -> InstanceId | None:
        """`anywhere`: also elsewhere than where the client wanted it, which may be gone for good."""
        avoid: frozenset[InstanceId] = frozenset()
        if request.data_parallel_rank is not None and not anywhere:  # the client names one (X-data-parallel-rank)
            avoid = frozenset(m.info.id for m in self.members.values() if m.info.slot != request.data_parallel_rank)
        asked = DispatchRequest(
            id=RequestId(request.request_id), prompt_tokens=tokens, priority=Priority(request.priority)
        )
        decision = self._dispatcher.dispatch(asked, avoid)
        if decision is None:
            return None
        log.debug("%s goes to %s", request.request_id, decision)
        self.observer.dispatched(decision.instance)
        return decision.instance

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            session = self.sessions.get(self._engine_ids.get(request_id, request_id))
            if session is None:
                self._engine_ids.pop(request_id, None)
                self._parked = [(waiting, why) for waiting, why in self._parked if waiting.id != request_id]
            else:
                self._forget(session)
                self._obey(self._ownership.aborted(RequestId(session.engine_id)))

    def _forget(self, session: Session) -> None:
        self.sessions.pop(session.engine_id, None)
        self._engine_ids.pop(session.id, None)

    # -- outputs: called by AsyncMPClient's socket task for every message of an engine

    @staticmethod
    async def process_engine_outputs(self: LlumnixClient, outputs: EngineCoreOutputs) -> None:  # noqa: PLW0211
        member = self._by_index.get(outputs.engine_index)
        if member is None:  # fenced: it counts as dead, whatever it says
            outputs.outputs = []
            outputs.scheduler_stats = None
            return
        outputs.engine_index = member.info.slot
        instance = member.info.id
        now = monotonic()
        kept: list[EngineCoreOutput] = []
        for output in outputs.outputs:
            session = self.sessions.get(output.request_id)
            if session is not None and session.stream.live == instance and output.kv_transfer_params is None:
                session.stream.delivered_tokens += len(output.new_token_ids)
                self._deliver(session, output, now, kept)
            else:
                kept += self._unusual(instance, output)
        outputs.outputs = kept

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
        notice = (output.kv_transfer_params or {}).get(NOTICE)
        if notice is not None:
            return self._take_notice(msgspec.msgpack.decode(notice, type=AnyNotice))
        request = RequestId(output.request_id)
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
        elif session is None and isinstance(notice, Adopted):
            # The client left while its request was on the way: nobody else will tell the new owner.
            self._send_soon(notice.sender, EngineCoreRequestType.ABORT, [notice.request])
        return self._obey(self._ownership.notice_arrived(notice))

    def on_doubt(self, doubt: Doubt) -> None:
        self._emit(self._obey(self._ownership.doubted(doubt)))

    def _record_move(self, session: Session, downtime_s: float | None) -> None:
        if session.move is not None:
            self.observer.moved(session, session.move, downtime_s)
            session.move = None

    # -- what ownership orders

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
                    member = self.members.get(order.to)
                    if member is not None:
                        self._post(member.info.control, wire.Arbitration(message=order.verdict))
                case own.Abort():
                    self._send_soon(order.to, EngineCoreRequestType.ABORT, [order.request])
                case own.Replay():
                    session = self.sessions.pop(order.request, None)
                    if session is not None:
                        self._replay(session, order.why, fruitless=not order.asked_for)
                case _:
                    raise TypeError(f"unknown order {order}")
        return outputs

    def _emit(self, outputs: list[EngineCoreOutput]) -> None:
        """For outputs that do not come in a message of an engine."""
        if outputs:
            self.outputs_queue.put_nowait(EngineCoreOutputs(outputs=outputs))

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
            self._spawn(self._resume(session, renamed, self.members[instance].identity))
        else:
            self._send_soon(instance, EngineCoreRequestType.ADD, renamed)

    async def _resume(self, session: Session, renamed: EngineCoreRequest, engine: bytes) -> None:
        resume = Resume(request=self._codec.encode_request(renamed), output_token_ids=list(session.tokens))
        try:
            await self._call_utility_async("llumnix_resume", msgspec.msgpack.encode(resume), engine=engine)
        except ConnectionError:
            return  # that one died, too: `on_gone` replays the stream once more
        except Exception as error:  # noqa: BLE001 vLLM turns whatever the engine raised into a bare Exception
            if self.sessions.pop(renamed.request_id, None) is not None:
                self._obey(self._ownership.aborted(RequestId(renamed.request_id)))
                self._fail(session, f"token replay failed: {error}")

    def _place_parked(self) -> None:
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
        self._emit([output])

    # -- talking to engines

    def _send_to(self, instance: InstanceId, kind: EngineCoreRequestType, what: Any) -> Awaitable[Any]:
        return self._send_input(kind, what, self.members[instance].identity)

    def _send_soon(self, instance: InstanceId, kind: EngineCoreRequestType, what: Any) -> None:
        """Sends if the instance is still there. ZMQ takes the message at once; nothing has to be awaited."""
        if instance in self.members:
            self._send_to(instance, kind, what)

    async def _call_utility_async(self, method: str, *args: Any, engine: bytes) -> Any:
        """As vLLM's, but a call to an instance that dies meanwhile raises ConnectionError instead of hanging."""
        member = self._by_index.get(int.from_bytes(engine, "little"))
        if member is None:
            raise ConnectionError(_GONE)
        return await _unless_gone(super()._call_utility_async(method, *args, engine=engine), member.gone)

    async def call_utility_async(self, method: str, *args: Any) -> Any:
        """Engine-wide calls (reset_prefix_cache, add_lora, sleep…) go to all; the first answer is returned."""
        if not self.core_engines:
            raise GracefulHTTPError("No instance is running.", HTTPStatus.SERVICE_UNAVAILABLE)
        return (await self.call_utility_all_async(method, *args))[0]

    async def add_lora_async(self, lora_request: Any) -> bool:
        loaded = await super().add_lora_async(lora_request)
        self._loras[lora_request.lora_int_id] = lora_request  # for instances that join later
        return loaded

    async def remove_lora_async(self, lora_id: int) -> bool:
        self._loras.pop(lora_id, None)
        return await super().remove_lora_async(lora_id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_raise_loudly)


async def _unless_gone(call: Coroutine[Any, Any, Any], gone: asyncio.Event) -> Any:
    """The answer to a call. Raises ConnectionError when its instance goes before it answers."""
    answer = asyncio.ensure_future(call)
    loss = asyncio.ensure_future(gone.wait())
    try:
        await asyncio.wait((answer, loss), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ConnectionError(_GONE)
        return answer.result()
    finally:
        loss.cancel()
        answer.cancel()


def _raise_loudly(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a background task of the engine client failed", exc_info=error)
