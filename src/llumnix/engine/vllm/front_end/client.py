"""vLLM's engine client over many engines that come and go.

A subclass of `AsyncMPClient` (vllm/v1/engine/core_client.py), so vLLM's `AsyncLLM` and its whole server run on top
unchanged. It talks to engines; who these are is in membership.py, who owns a stream, and its replay, in streams.py.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from http import HTTPStatus
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, EngineCoreRequestType
from vllm.v1.engine.core_client import AsyncMPClient

from llumnix.control.front_end_events import GiveUp
from llumnix.control.replay import FrontEndBegin
from llumnix.control.server_state import Op
from llumnix.engine.port import FrontEndSpec
from llumnix.engine.vllm.between import FURTHER_CHUNK
from llumnix.engine.vllm.front_end.client_access import ClientAccess, Observer
from llumnix.engine.vllm.front_end.client_setup import set_up_sockets
from llumnix.engine.vllm.front_end.clocks import Clocks
from llumnix.engine.vllm.front_end.given_up import GivenUp, ToldError
from llumnix.engine.vllm.front_end.loud_tasks import LoudTasks
from llumnix.engine.vllm.front_end.members import GONE, Member, Members, of_the_living, unless_gone
from llumnix.engine.vllm.front_end.membership import Membership
from llumnix.engine.vllm.front_end.shared_state import SharedState
from llumnix.engine.vllm.front_end.state_file import StateFile
from llumnix.engine.vllm.front_end.streams import Streams
from llumnix.recording import recorder
from llumnix.types import InstanceId
from llumnix.wire.curve import Doorkeeper
from llumnix.wire.news import InstanceGone, Report
from llumnix.wire.outbox import Mail


class LlumnixClient(AsyncMPClient):
    """All methods run on the front end's event loop."""

    def __init__(
        self, vllm_config: Any, spec: FrontEndSpec, post: Callable[[str, Mail], None], observer: Observer
    ) -> None:
        # vLLM's own constructor starts engines or waits for a fixed set of them; see client_setup.py.
        self.doorkeeper: Doorkeeper | None = None
        set_up_sockets(self, vllm_config, spec)
        self.spec = spec
        self.members = Members()
        self._tasks = LoudTasks()
        access = ClientAccess(
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
        self.streams = Streams(self.members, self.machine, access, observer, spec.cluster.kept_media_mb << 20)
        self.on_given_up: Callable[[GivenUp], Awaitable[None]]
        """Ends the request for vLLM's front end; to be set by that."""
        self.traced: Callable[[EngineCoreRequest], AbstractContextManager[object]] = nullcontext
        """Around what takes a new request to an instance (`Tracing.asked`)."""
        self._given_up: set[str] = set()
        """Requests of which vLLM is still to hear that they are given up: it may send further chunks of them."""
        self.is_wanted: Callable[[str], bool] = lambda request_id: True
        """Whether vLLM waits for its outputs. Of n > 1 sequences it sends the rest when all were aborted meanwhile."""
        file, spawn = StateFile(spec.book.run_dir), self._tasks.spawn
        self.shared_state = SharedState(file, self.members, self._tell_state, spawn, self.streams.equipped)
        clocks = Clocks(one_machine=spec.cluster.launcher == "local")
        self.membership = Membership(self, self.streams, self.shared_state, access, clocks)

    # -- instances

    def on_report(self, report: Report) -> None:
        self.membership.reported(report)

    def on_gone(self, gone: InstanceGone) -> None:
        self.membership.ended(gone)

    def _last_word(self, instance: InstanceId) -> None:
        self.membership.last_word(instance)

    def _apply_ready_response(self, payload: bytes) -> None:
        """vLLM adds up the blocks of all engines that answer; all else about their caches it has from the first. Ours
        come and go, so the number of blocks stays the first one's, too."""
        cache = self.vllm_config.cache_config
        first = cache.num_gpu_blocks
        super()._apply_ready_response(payload)
        if first is not None:
            cache.num_gpu_blocks = first

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
            raise ToldError(answer.why, HTTPStatus.SERVICE_UNAVAILABLE)
        try:
            sent = self._send_to(answer.instance, EngineCoreRequestType.ADD, request)
        except BaseException:
            self.streams.unsent(request.request_id)
            raise
        self.streams.sent(request)
        await sent

    def _is_over(self, request: EngineCoreRequest) -> bool:
        """Before it was sent. What is to be aborted at once, to tell a connector, vLLM does not wait for either."""
        name = request.request_id
        return not request.abort_immediately and (name in self._given_up or not self.is_wanted(name))

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self.streams.abort(request_id)

    @staticmethod
    async def process_engine_outputs(self: LlumnixClient, outputs: EngineCoreOutputs) -> None:  # noqa: PLW0211
        """Called by AsyncMPClient's socket task for every message of an engine, once per engine step."""
        instance = self.membership.says(outputs)
        outputs.outputs = self.streams.sort_out(instance, outputs.outputs) if instance else []

    def _emit(self, outputs: list[EngineCoreOutput]) -> None:
        if outputs:
            self.outputs_queue.put_nowait(EngineCoreOutputs(outputs=outputs))

    def _give_up(self, end: GivenUp) -> None:
        """Behind the message of an engine that is being sorted out."""
        self._given_up.add(end.request_id)
        asyncio.get_running_loop().call_soon(self.outputs_queue.put_nowait, end)

    async def get_output_async(self) -> EngineCoreOutputs:
        while True:
            try:
                return await super().get_output_async()
            except GivenUp as end:
                try:
                    await self.on_given_up(end)
                finally:
                    self._given_up.discard(end.request_id)

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
        call = super()._call_utility_async("llumnix_follow", state, engine=member.identity)  # who may be no member yet
        answer: bytes = await unless_gone(call, member.gone)
        return answer

    # -- what is asked of engines beside requests: of one, or of all that there are

    async def _call_utility_async(self, method: str, *args: Any, engine: bytes) -> Any:
        """As vLLM's, but a call to an instance that dies meanwhile raises ConnectionError instead of hanging."""
        member = self.members.by_identity.get(engine)
        if member is None:
            raise ConnectionError(GONE)
        return await unless_gone(super()._call_utility_async(method, *args, engine=engine), member.gone)

    async def call_utility_async(self, method: str, *args: Any) -> Any:
        """Engine-wide calls (reset_prefix_cache, add_lora, sleep…) go to all; the first answer is returned."""
        return (await self.call_utility_all_async(method, *args))[0]

    async def call_utility_all_async(self, method: str, *args: Any) -> list[Any]:
        """What those answer that live to do so."""
        calls = [self._call_utility_async(method, *args, engine=engine) for engine in self.core_engines]
        return of_the_living(await asyncio.gather(*calls, return_exceptions=True))

    # -- the state of the server as a whole

    async def pause_scheduler_async(self, mode: Any = "abort", clear_cache: bool = True) -> None:
        await self.shared_state.do(Op("pause_scheduler", (mode, clear_cache)))

    # Since 0.33, where vLLM refuses new requests meanwhile; here they wait.
    pause_generation_async = pause_scheduler_async

    async def resume_scheduler_async(self) -> None:
        await self.shared_state.do(Op("resume_scheduler"))

    async def is_scheduler_paused_async(self) -> bool:
        return self.shared_state.file.read().paused

    async def sleep_async(self, level: int = 1, mode: Any = "abort") -> None:
        await self.shared_state.do(Op("sleep", (level, mode)))

    async def wake_up_async(self, tags: list[str] | None = None) -> bool:
        answers = await self.shared_state.do(Op("wake_up", (tags,)))
        return all(answers) if answers else not self.shared_state.file.read().asleep

    async def is_sleeping_async(self) -> bool:
        return self.shared_state.file.read().asleep

    async def release_kv_cache_memory_async(self) -> None:
        await self.shared_state.do(Op("release_kv_cache_memory"))

    async def profile_async(self, is_start: bool = True, *how: Any) -> None:
        await self.shared_state.do(Op("profile", (is_start, *how)))

    async def reset_prefix_cache_async(self, *how: Any) -> bool:
        return all(await self.shared_state.do(Op("reset_prefix_cache", how)))

    async def reset_mm_cache_async(self) -> None:
        await self.shared_state.do(Op("reset_mm_cache"))

    async def reset_encoder_cache_async(self) -> None:
        await self.shared_state.do(Op("reset_encoder_cache"))

    async def collective_rpc_async(self, *call: Any) -> list[Any]:
        """Of the workers of all instances that there are."""
        return [answer for answers in await self.call_utility_all_async("collective_rpc", *call) for answer in answers]

    async def compute_weight_checksums_async(self) -> list[dict[str, str]]:
        """All instances have the same weights, so one of them speaks for all. Raises RuntimeError if they have not."""
        sums, *others = map(_of_any_rank, await self.call_utility_all_async("compute_weight_checksums"))
        if any(other != sums for other in others):
            raise RuntimeError(f"The instances have different weights: {[sums, *others]}")
        return sums


def _of_any_rank(workers: list[dict[str, str]]) -> list[dict[str, str]]:
    """vLLM puts the rank before the name of each weight (`dp3:pp0:…`): that is the slot where it is set (apart.py)."""
    return [{re.sub(r"^dp\d+:", "dp0:", name): digest for name, digest in sums.items()} for sums in workers]
