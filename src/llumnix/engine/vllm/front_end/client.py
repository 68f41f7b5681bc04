"""vLLM's engine client over many engines that come and go.

A subclass of `AsyncMPClient` (vllm/v1/engine/core_client.py), so vLLM's `AsyncLLM` and its whole server run on top
unchanged. It knows sockets and engines (members.py); who owns a stream, and its replay, is in streams.py.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from http import HTTPStatus
from time import monotonic
from typing import Any

import msgspec
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, EngineCoreRequestType

from llumnix.control.front_end_events import GiveUp
from llumnix.control.hearing import Hearing
from llumnix.control.replay import FrontEndBegin
from llumnix.engine.port import FrontEndSpec
from llumnix.engine.vllm.between import FURTHER_CHUNK, Introduction
from llumnix.engine.vllm.front_end.calls_of_all import CallsOfAll
from llumnix.engine.vllm.front_end.client_setup import set_up_sockets
from llumnix.engine.vllm.front_end.clocks import Clocks
from llumnix.engine.vllm.front_end.given_up import GivenUp
from llumnix.engine.vllm.front_end.loud_tasks import LoudTasks
from llumnix.engine.vllm.front_end.members import GONE, Member, Members, first_answer, unless_gone
from llumnix.engine.vllm.front_end.state_file import StateFile
from llumnix.engine.vllm.front_end.streams import Streams
from llumnix.engine.vllm.front_end.ways import Observer, Ways
from llumnix.engine.vllm.front_end.whole import Whole
from llumnix.recording import recorder
from llumnix.types import InstanceId
from llumnix.wire.curve import Doorkeeper
from llumnix.wire.news import InstanceGone, Report
from llumnix.wire.outbox import Mail

_LAST_WORD_TIMEOUT_S = 2.0
"""How long the stream of an instance that ended as it was asked to is read for its last word. A killed one has none."""


class LlumnixClient(CallsOfAll):
    """All methods run on the front end's event loop."""

    def __init__(
        self, vllm_config: Any, spec: FrontEndSpec, post: Callable[[str, Mail], None], observer: Observer
    ) -> None:
        # vLLM's own constructor starts engines or waits for a fixed set of them; see client_setup.py.
        self.doorkeeper: Doorkeeper | None = None
        set_up_sockets(self, vllm_config, spec)
        self.spec = spec
        self.members = Members()
        self._hearing: Hearing[list[EngineCoreOutput]] = Hearing()
        self._clocks = Clocks(one_machine=spec.cluster.launcher == "local")
        self._tasks = LoudTasks()
        ways = Ways(
            send=self._send_soon,
            give_up=self._give_up,
            resume=self._resume,
            post=post,
            emit=self._emit,
            spawn=self._tasks.spawn,
            last_word=self._last_word,
        )
        begin = FrontEndBegin(policy=spec.policy, index=spec.index)
        self.machine = begin.make(recorder(f"front-end-{spec.index}-{os.getpid()}", begin))
        self.streams = Streams(self.members, self.machine, ways, observer, spec.cluster.kept_media_mb << 20)
        self.on_more_slots: Callable[[int], None] = lambda slots: None
        """Told when there are more slots than ever before."""
        self.on_given_up: Callable[[GivenUp], Awaitable[None]]
        """Ends the request for vLLM's front end; to be set by that."""
        self.traced: Callable[[EngineCoreRequest], AbstractContextManager[object]] = nullcontext
        """Around what takes a new request to an instance (`Tracing.asked`)."""
        self.is_wanted: Callable[[str], bool] = lambda request_id: True
        """Whether vLLM waits for its outputs. Of n > 1 sequences it sends the rest when all were aborted meanwhile."""
        file, spawn = StateFile(spec.book.run_dir), self._tasks.spawn
        self.whole = Whole(file, self.members, self._tell_state, spawn, self.streams.equipped)

    # -- membership

    def on_report(self, report: Report) -> None:
        """A load report; the first one of an instance starts the acquaintance."""
        instance = report.info.id
        member = self.members.known.get(instance)
        if member is not None:
            self._clocks.heard(instance, report.snapshot.at, monotonic())
            member.hear(report.snapshot)
            if instance in self.members.by_id:
                self.streams.reported(report.snapshot)
        elif self.members.is_unknown(instance):
            member = self.members.call(report)
            self._clocks.heard(instance, report.snapshot.at, monotonic())
            self._make_room_for(report.info.slot)
            self._introduce(report.info.index, instance)
            self._tasks.spawn(self._court(member))

    def _introduce(self, index: int, instance: InstanceId) -> None:
        for outputs in self._hearing.introduced(index, instance):
            self._clocks.put_events_right(instance, outputs)
            self._emit(self.streams.sort_out(instance, outputs))

    async def _court(self, member: Member) -> None:
        """Calls the instance on vLLM's sockets until it answers: only then does it take requests."""
        try:
            called = partial(self._call_known, "llumnix_hello", engine=member.identity)
            hello = msgspec.msgpack.decode(await first_answer(called, member.gone), type=Introduction)
            self._apply_ready_response(hello.ready)
            await self.whole.bring(member)
        except ConnectionError:
            return
        if not member.gone.is_set():
            self._admit(member, hello)

    def _make_room_for(self, slot: int) -> None:
        """vLLM's metrics need a place for whoever is heard."""
        if slot >= len(self.engine_ranks_managed):
            self.engine_ranks_managed = list(range(slot + 1))
            self.on_more_slots(slot + 1)

    def _admit(self, member: Member, hello: Introduction) -> None:
        self.members.admit(member)
        self.streams.seeds_lost = hello.seeds_lost
        self.core_engines.append(member.identity)
        self.core_engine = self.core_engines[0]
        self.streams.reported(hello.snapshot)  # the first one: what it counts, an earlier front end sent
        self.streams.reported(member.snapshot)

    def on_gone(self, gone: InstanceGone) -> None:
        """It takes no more requests, and what it owned goes on elsewhere: at once if it was lost, else after its last
        word, which may still have to be read."""
        instance = gone.instance
        self._kv_event_sources.pop(gone.index, None)
        self._introduce(gone.index, instance)
        member = self.members.remove(instance)
        if member is not None:
            self.core_engines.remove(member.identity)
            if self.core_engines:
                self.core_engine = self.core_engines[0]
        self.streams.closed(instance)
        if self._hearing.ended(instance, gone.expected):
            self._bury(instance)
        else:
            asyncio.get_running_loop().call_later(_LAST_WORD_TIMEOUT_S, self._bury, instance)

    def _last_word(self, instance: InstanceId) -> None:
        if self._hearing.last_word(instance):
            self._bury(instance)

    def _bury(self, instance: InstanceId) -> None:
        self.streams.departed(instance, complete=self._hearing.gone(instance))
        self._clocks.forget(instance)

    @property
    def queued_requests(self) -> int:
        return sum(member.snapshot.waiting for member in self.members.by_id.values()) + self.streams.parked

    # -- requests and their outputs

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        request.client_index = self.client_index
        known = self.streams.session_of(request.request_id)
        if known is not None:  # a further chunk of a streaming input session
            request.current_wave = FURTHER_CHUNK
            if known.stream.owner in self.members.known:  # else the session is about to end, and says why
                sent = self._send_to(known.stream.owner, EngineCoreRequestType.ADD, request)
                self.streams.sent_more(known, request)
                await sent
            return
        with self.traced(request):
            await self._begin(request)

    async def _begin(self, request: EngineCoreRequest) -> None:
        """Sends a new request, or none that is aborted already."""
        if self._is_over(request):
            return
        answer = self.streams.open(request)
        if isinstance(answer, GiveUp):
            raise GracefulHTTPError(answer.why, HTTPStatus.SERVICE_UNAVAILABLE)
        try:
            sent = self._send_to(answer.instance, EngineCoreRequestType.ADD, request)
        except BaseException:
            self.streams.unsent(request.request_id)
            raise
        self.streams.sent(request)
        await sent

    def _is_over(self, request: EngineCoreRequest) -> bool:
        """Before it was sent. What is to be aborted at once, to tell a connector, vLLM does not wait for either."""
        return not request.abort_immediately and not self.is_wanted(request.request_id)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self.streams.abort(request_id)

    @staticmethod
    async def process_engine_outputs(self: LlumnixClient, outputs: EngineCoreOutputs) -> None:  # noqa: PLW0211
        """Called by AsyncMPClient's socket task for every message of an engine, once per engine step."""
        instance = self._hearing.says(outputs.engine_index, outputs.outputs)
        member = None if instance is None else self.members.known.get(instance)
        if member is None:
            outputs.scheduler_stats = None
        outputs.engine_index = 0 if member is None else member.info.slot
        if instance is not None:
            self._clocks.put_right(instance, outputs, monotonic())
        outputs.outputs = self.streams.sort_out(instance, outputs.outputs) if instance else []

    def _emit(self, outputs: list[EngineCoreOutput]) -> None:
        if outputs:
            self.outputs_queue.put_nowait(EngineCoreOutputs(outputs=outputs))

    def _give_up(self, end: GivenUp) -> None:
        """Behind the message of an engine that is being sorted out."""
        asyncio.get_running_loop().call_soon(self.outputs_queue.put_nowait, end)

    async def get_output_async(self) -> EngineCoreOutputs:
        while True:
            try:
                return await super().get_output_async()
            except GivenUp as end:
                await self.on_given_up(end)

    # -- talking to engines

    def _send_to(self, instance: InstanceId, kind: EngineCoreRequestType, what: Any) -> Awaitable[Any]:
        """Raises a validation error (status 400) if there is no way to write it down."""
        try:
            return self._send_input(kind, what, self.members.known[instance].identity)
        except (OverflowError, TypeError, ValueError) as error:  # 2**70 for an integer, half a character in a string
            raise VLLMValidationError(f"The request has a value that cannot be sent to an engine: {error}.") from error

    def _send_soon(self, instance: InstanceId, kind: EngineCoreRequestType, what: Any) -> None:
        """Sends if the instance is still there. ZMQ takes the message at once; nothing has to be awaited.

        It drops it if the instance has not connected yet: an abort is sent again as long as the request goes on.
        """
        if instance in self.members.known:
            self._send_to(instance, kind, what)

    async def _resume(self, instance: InstanceId, resume: bytes) -> None:
        member = self.members.by_id.get(instance)
        if member is None:
            raise ConnectionError(GONE)
        await self._call_utility_async("llumnix_resume", resume, engine=member.identity)

    async def _tell_state(self, member: Member, state: bytes) -> bytes:
        call = self._call_known("llumnix_follow", state, engine=member.identity)
        answer: bytes = await unless_gone(call, member.gone)
        return answer
