"""vLLM's `AsyncLLM` over our engine client."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import copy
from http import HTTPStatus
from time import monotonic, sleep
from typing import Any
from unittest import mock

from vllm.exceptions import GracefulHTTPError
from vllm.utils.async_utils import cancel_task_threadsafe
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.executor.abstract import Executor
from vllm.v1.metrics.loggers import StatLoggerManager

from llumnix.engine.port import FrontEndSpec
from llumnix.engine.vllm.client import LlumnixClient
from llumnix.wire.messages import Wire

_DRAIN_POLL_S = 0.05


class LlumnixLLM(AsyncLLM):
    """To be made on the running event loop. It can be used once `engine_core.members.joined` is set."""

    engine_core: LlumnixClient

    def __init__(
        self,
        vllm_config: Any,
        spec: FrontEndSpec,
        post: Callable[[str, Wire], None],
        args: argparse.Namespace,
        admitted: memoryview | None = None,
    ) -> None:
        """`args`: flags of `vllm serve`. `admitted`: vLLM's counters of unfinished requests, shared by all front ends
        (`SharedAdmissionStats`); None if there is one."""
        self._spec = spec
        self._args = args
        self._closing = False

        def make_client(**given: Any) -> LlumnixClient:
            return LlumnixClient(given["vllm_config"], spec, post)

        # `AsyncLLM.__init__` calls this static factory and has no other way to be given a client. It is
        # replaced while the constructor runs, and nowhere else.
        with mock.patch.object(EngineCoreClient, "make_async_mp_client", staticmethod(make_client)):
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

        self._count_places(spec.cluster.instances)

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Raises an error that becomes a 503: no instance runs, or too many requests wait already."""
        super().check_admission(n, request_id)
        if self._closing:
            raise GracefulHTTPError("The server is shutting down.", HTTPStatus.SERVICE_UNAVAILABLE)
        if not self.engine_core.members.running():
            raise GracefulHTTPError("No instance is running.", HTTPStatus.SERVICE_UNAVAILABLE)
        limit = self._spec.cluster.max_queued_requests
        if limit and self.engine_core.queued_requests + n > limit:
            raise GracefulHTTPError(
                f"{self.engine_core.queued_requests} requests wait already (limit {limit}); try again later.",
                HTTPStatus.SERVICE_UNAVAILABLE,
            )

    async def check_health(self) -> None:
        await super().check_health()
        if not self.engine_core.members.running():
            raise EngineDeadError

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

    async def _add_request(
        self, request: EngineCoreRequest, prompt: Any, parent_req: Any, index: int, queue: RequestOutputCollector
    ) -> None:
        """As vLLM's, which knows a request from before it is sent, and for ever when it cannot be."""
        known = self.output_processor.has_request(request.request_id)
        try:
            await super()._add_request(request, prompt, parent_req, index, queue)
        except BaseException:
            if not known:
                await self.abort(request.request_id, internal=True)
            raise

    def grow(self, slots: int) -> None:
        """More instances than there were places for."""
        self._count_places(slots)
        self._make_metrics_anew(slots)

    def _count_places(self, slots: int) -> None:
        """For the check of `X-data-parallel-rank` alone.

        vLLM compares that header with the number of its own engines. Here it names a place among the instances, which
        come and go: whether somebody is there is seen when the request is sent.
        """
        config = copy(self.vllm_config)
        config.parallel_config = copy(config.parallel_config)
        config.parallel_config.data_parallel_size = slots
        self.input_processor.vllm_config = config

    def _make_metrics_anew(self, slots: int) -> None:
        """As vLLM's own elastic scaling does, as its metrics have labels for so many instances.

        vLLM's counters start again from zero, as after a restart, which Prometheus knows how to read.
        """
        if self.logger_manager is None:
            return
        self.logger_manager = StatLoggerManager(
            vllm_config=self.vllm_config,
            engine_idxs=list(range(slots)),
            enable_default_loggers=True,
            aggregate_engine_logging=self._args.aggregate_engine_logging,
            client_count=self._spec.book.front_ends,
        )
        if hasattr(self, "_logger_ref"):  # set when the output handler started
            self._logger_ref[0] = self.logger_manager
