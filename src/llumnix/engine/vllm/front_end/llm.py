"""vLLM's `AsyncLLM` over our engine client."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from http import HTTPStatus
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any
from unittest import mock

from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.multimodal.cache.factories import processor_only_cache_from_config
from vllm.renderers import base as renderers
from vllm.utils.async_utils import cancel_task_threadsafe
from vllm.v1.engine import EngineCoreRequest, async_llm
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.executor.abstract import Executor

from llumnix.control.server_state import ServerState
from llumnix.engine.port import FrontEndSpec
from llumnix.engine.vllm.front_end.admitting import AdmittingClient
from llumnix.engine.vllm.front_end.client import LlumnixClient
from llumnix.engine.vllm.front_end.client_access import Observer
from llumnix.engine.vllm.front_end.given_up import end_request
from llumnix.engine.vllm.front_end.loud_tasks import LoudTasks
from llumnix.engine.vllm.front_end.members import no_instance
from llumnix.engine.vllm.front_end.slot_metrics import SlotMetrics
from llumnix.wire.outbox import Mail

if TYPE_CHECKING:
    from llumnix.engine.vllm.front_end.tracing import Tracing

LONGEST_ID = 1024
"""Characters of a request's id, with what vLLM puts around the one that a client chose."""

_DRAIN_POLL_S = 0.05
_CHANGE_WEIGHTS = frozenset(
    {
        *("init_weight_transfer_engine", "shutdown_weight_transfer_engine", "start_weight_update", "update_weights"),
        *("start_draft_weight_update", "finish_weight_update", "reset_weights"),
    }
)
"""Methods of vLLM's workers."""
_CLEAR_PROCESSED_MEDIA = frozenset({"pause_scheduler", "sleep", "release_kv_cache_memory", "reset_mm_cache"})
"""With what vLLM clears the front end's cache of processed images, too."""


class LlumnixLLM(AsyncLLM):
    """To be made on the running event loop. It can be used once `engine_core.members.joined` is set."""

    engine_core: LlumnixClient
    logger_manager: SlotMetrics | None
    _tracing: Tracing | None = None
    """Of its requests, where somebody wants that."""

    def __init__(
        self,
        vllm_config: Any,
        spec: FrontEndSpec,
        post: Callable[[str, Mail], None],
        observer: Observer,
        args: argparse.Namespace,
        admitted: memoryview | None,
    ) -> None:
        """`args`: flags of `vllm serve`. `admitted`: vLLM's counters of unfinished requests, shared by all front ends
        (`SharedAdmissionStats`); None if there is one."""
        self._spec = spec
        self._closing = False
        self._tasks = LoudTasks()
        self.abort_elsewhere: Callable[[tuple[str, ...]], Awaitable[Any]] = _nowhere
        """Has all other front ends `abort_here`; to be set by whoever knows them."""

        with _made_with(lambda **given: _client(given["vllm_config"], spec, post, observer)):
            super().__init__(
                vllm_config,
                Executor.get_class(vllm_config),
                log_stats=not args.disable_log_stats,
                log_requests=args.enable_log_requests,
                aggregate_engine_logging=args.aggregate_engine_logging,
                client_addresses=None if admitted is None else {"mp_admission_counters": admitted},
                client_count=spec.book.front_ends,
                client_index=spec.index,
            )

        self._accompany_requests(observer)
        self._count_places(spec.cluster.instances)
        self._profile_session_guard_enabled = True  # vLLM's is off where front ends know nothing of each other
        self._profile_session_active = False  # 0.31 has neither
        self.engine_core.shared_state.followers.append(self.follow)

    def _accompany_requests(self, observer: Observer) -> None:
        """On their way through the client, who knows nothing of vLLM's part of them."""
        self.engine_core.is_wanted = self.output_processor.has_request
        self.engine_core.on_given_up = partial(end_request, requests=self.output_processor, client=self.engine_core)
        if self.observability_config.otlp_traces_endpoint is None:
            return
        from llumnix.engine.vllm.front_end.tracing import Tracing  # OpenTelemetry need not be there otherwise

        self._tracing = Tracing(self._spec.index)
        self.engine_core.traced = partial(self._tracing.asked, self.engine_core.streams.session_of)
        observer.stories.listener = self._tracing.ended

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Raises an error that becomes a 503: no instance runs, or too many requests wait already; or a 400: its id,
        which is remembered in many places when the request is long over, is too long."""
        if request_id is not None and len(request_id) > LONGEST_ID:
            raise VLLMValidationError(f"A request's id has at most {LONGEST_ID} characters, not {len(request_id)}.")
        try:
            self._check_admission(n, request_id)
        except GracefulHTTPError as refusal:
            self.engine_core.streams.refused(request_id, str(refusal), refusal.http_status)
            raise

    def _check_admission(self, n: int, request_id: str | None) -> None:
        super().check_admission(n, request_id)
        if self._closing:
            raise GracefulHTTPError("The server is shutting down.", HTTPStatus.SERVICE_UNAVAILABLE)
        if not self.engine_core.members.running():
            raise no_instance()
        limit = self._spec.cluster.max_queued_requests
        if limit and self.engine_core.queued_requests + n > limit:
            raise GracefulHTTPError(
                f"{self.engine_core.queued_requests} requests wait already (limit {limit}); try again later.",
                HTTPStatus.SERVICE_UNAVAILABLE,
            )
        if isinstance(self.engine_core, AdmittingClient):
            self.engine_core.desk.check()

    async def check_health(self) -> None:
        await super().check_health()
        if not self.engine_core.members.running():
            raise EngineDeadError

    @property
    def is_closing(self) -> bool:
        return self._closing

    def shutdown(self, timeout: float | None = None) -> None:
        """Takes no new requests, lets the running ones finish (up to `shutdown_timeout_s`), then closes.

        vLLM calls it on SIGTERM, in a thread beside the event loop, with a timeout that is meant for engines.
        """
        if not self._closing:
            self._closing = True
            deadline = monotonic() + self._spec.cluster.shutdown_timeout_s
            while timeout is not None and self.get_num_unfinished_requests() and monotonic() < deadline:
                sleep(_DRAIN_POLL_S)
            if self.output_handler is not None:
                cancel_task_threadsafe(self.output_handler)  # before its queue ends, which it would call a failure
        super().shutdown(timeout)
        if self._tracing is not None:
            self._tracing.close()

    async def _add_request(
        self, request: EngineCoreRequest, prompt: Any, parent_req: Any, index: int, queue: RequestOutputCollector
    ) -> None:
        """As vLLM's, which takes note of a request before it is sent, and never forgets it if it cannot be. (Sequences
        of n > 1 do not come by here; of those vLLM forgets all.)"""
        known = self.output_processor.has_request(request.request_id)
        try:
            await super()._add_request(request, prompt, parent_req, index, queue)
        except BaseException:
            if not known:
                await self.abort(request.request_id, internal=True)
            raise

    # -- the state of the server as a whole

    def follow(self, state: ServerState) -> None:
        """Another front end has changed it, or this one has just been started: what vLLM keeps of it in each."""
        profiled = state.profile is not None
        if self.profiler is not None and profiled != self._profile_session_active:
            self._tasks.spawn(asyncio.to_thread(self.profiler.start if profiled else self.profiler.stop))
        self._profile_session_active = profiled
        if self.logger_manager is not None:
            level = state.sleep_level
            self.logger_manager.record_sleep_state(level is not None, level or 0)
        if state.op is not None and state.op.name in _CLEAR_PROCESSED_MEDIA:
            self._tasks.spawn(self.renderer.clear_mm_cache_async())

    async def forget_dummies(self) -> None:
        """Drops what the renderer's warm-up has left in its cache of processed images. vLLM's server calls
        `reset_mm_cache` for that, which here would concern the whole server."""
        self.renderer._join_mm_warmup()
        await self.renderer.clear_mm_cache_async()

    async def abort(self, request_id: str | Iterable[str], internal: bool = False) -> None:
        """By the id that a client knows, wherever the request came in."""
        request_ids = (request_id,) if isinstance(request_id, str) else tuple(request_id)
        await super().abort(request_ids, internal)
        if request_ids and not internal:  # elsewhere none would mean all
            await self.abort_elsewhere(request_ids)

    async def abort_here(self, request_ids: tuple[str, ...]) -> int:
        """Those that came in here (none: all); how many there were."""
        requests = self.output_processor
        if request_ids:
            await super().abort(request_ids)
            return len(request_ids)
        everything = [*requests.request_states, *requests.parent_requests]
        await super().abort(everything, internal=True)
        return len(everything)

    async def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """On the instances that there are; one that starts later has not been asked."""
        if method in _CHANGE_WEIGHTS or (method == "reload_weights" and (args or kwargs)):
            raise _instances_to_come()
        return await super().collective_rpc(method, timeout, args, kwargs)

    async def update_weight_version(self, new_version: str) -> None:
        raise _instances_to_come()

    async def scale_elastic_ep(self, new_data_parallel_size: int, drain_timeout: int = 300) -> None:
        raise ValueError("Instances are started by POST /llumnix/v1/instances, and stopped by draining them.")

    async def handle_fault(self, fault_tolerance_request: Any) -> Any:
        raise _no_fault_tolerance()

    async def get_status(self) -> Any:
        raise _no_fault_tolerance()

    # -- metrics

    def tell_of_instances(self) -> None:
        """The first one has joined."""
        if self.logger_manager is not None:
            self.logger_manager.log_engine_initialized()

    def grow(self, slots: int) -> None:
        """More instances than there were places for."""
        self._count_places(slots)
        if self.logger_manager is not None:
            self.logger_manager.grow(slots)

    def _count_places(self, slots: int) -> None:
        """For the check of `X-data-parallel-rank` alone.

        vLLM compares that header with the number of its own engines. Here it names a place among the instances, which
        come and go: whether somebody is there is seen when the request is sent.
        """
        config = copy(self.vllm_config)
        config.parallel_config = copy(config.parallel_config)
        config.parallel_config.data_parallel_size = slots
        self.input_processor.vllm_config = config


def _client(
    vllm_config: Any, spec: FrontEndSpec, post: Callable[[str, Mail], None], observer: Observer
) -> LlumnixClient:
    """One that holds requests back, if there are classes to do it by."""
    if spec.classes is None:
        return LlumnixClient(vllm_config, spec, post, observer)
    return AdmittingClient(vllm_config, spec, post, observer, spec.classes)


@contextmanager
def _made_with(make_client: Callable[..., LlumnixClient]) -> Iterator[None]:
    """`AsyncLLM.__init__` calls these factories and cannot be given what they make in another way: an engine client, a
    cache of processed images (vLLM's believes that its one engine has what was sent there before), and metrics of
    engines that come and go. They are replaced while the constructor runs, and nowhere else."""
    with (
        mock.patch.object(EngineCoreClient, "make_async_mp_client", staticmethod(make_client)),
        mock.patch.object(renderers, "processor_cache_from_config", processor_only_cache_from_config),
        mock.patch.object(async_llm, "StatLoggerManager", SlotMetrics),
    ):
        yield


async def _nowhere(_request_ids: tuple[str, ...]) -> None:
    """There are no other front ends."""


def _instances_to_come() -> GracefulHTTPError:
    return GracefulHTTPError(
        "The weights of a running server stay as they are: instances that start later would not have the new ones.",
        HTTPStatus.NOT_IMPLEMENTED,
    )


def _no_fault_tolerance() -> GracefulHTTPError:
    why = "Instances that fail are replaced; GET /llumnix/v1/instances tells of them."
    return GracefulHTTPError(why, HTTPStatus.NOT_IMPLEMENTED)
