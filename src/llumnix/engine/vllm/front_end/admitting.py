"""The engine client of a front end with `--classes`: a request is admitted, and has its turn, before it is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.engine import EngineCoreRequest

from llumnix.control.openings import DispatchOpenings
from llumnix.engine.port import FrontEndSpec
from llumnix.engine.vllm.front_end.class_metrics import ClassMetrics
from llumnix.engine.vllm.front_end.classes_in_force import ClassesInForce
from llumnix.engine.vllm.front_end.client import LlumnixClient
from llumnix.engine.vllm.front_end.client_access import Observer
from llumnix.engine.vllm.front_end.client_ids import BEAM
from llumnix.engine.vllm.front_end.desk import Desk, Unserved
from llumnix.engine.vllm.front_end.session import client_id_of
from llumnix.policy.classes import Classes
from llumnix.types import RequestId
from llumnix.wire.news import Report
from llumnix.wire.outbox import Mail

_NO_BEAMS = "Beam search is not served with --classes: each token of each beam would count as a request."


class AdmittingClient(LlumnixClient):
    def __init__(
        self,
        vllm_config: Any,
        spec: FrontEndSpec,
        post: Callable[[str, Mail], None],
        observer: Observer,
        classes: Classes,
    ) -> None:
        super().__init__(vllm_config, spec, post, observer)
        self.in_force = ClassesInForce(spec.book.run_dir)
        classes = self.in_force.read() or classes
        openings = DispatchOpenings(self.machine)
        self.desk = Desk(classes.shared_by(spec.book.front_ends), openings, ClassMetrics(), self.streams.arrival)
        self.streams.on_end = self.desk.ended

    @property
    def queued_requests(self) -> int:
        return super().queued_requests + self.desk.held

    def on_report(self, report: Report) -> None:
        super().on_report(report)
        self.desk.call()

    def change_classes(self) -> None:
        """Their file was read again."""
        classes = self.in_force.read()
        if classes is not None:
            self.desk.change(classes.shared_by(self.spec.book.front_ends))

    async def _begin(self, request: EngineCoreRequest) -> None:
        name = RequestId(request.request_id)
        if self._is_over(request) or not (request.abort_immediately or await self._admitted(request)):
            return
        try:
            await super()._begin(request)
        finally:
            if self.streams.session_of(name) is None:
                self.desk.gone(name)

    async def _admitted(self, request: EngineCoreRequest) -> bool:
        try:
            if BEAM.search(client_id_of(request)):
                self.desk.decline(_NO_BEAMS)
            return await self.desk.admit(request)
        except Unserved as refusal:
            self.streams.refused(client_id_of(request), str(refusal), refusal.http_status)
            raise

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self.desk.abort(RequestId(request_id))
        await super().abort_requests_async(request_ids)
