"""A switchboard over a cluster that is none (pretend.py): for what is about the admin routes or the live page alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from frame.pretend import PretendCluster, PretendRequest
from llumnix.config import ClusterConfig, PolicyConfig, ScalingConfig
from llumnix.control.orders import MoveCause
from llumnix.control.scaling import ScalingMode
from llumnix.control.scheduler_events import DrainOutcome, DrainReport
from llumnix.journal.journal import EntryFilter, Reading, read_together
from llumnix.journal.stories import RequestStories
from llumnix.policy.autoscaling import ScalingState, scale
from llumnix.policy.snapshot import ClusterSnapshot
from llumnix.report.records import MigrationRecord
from llumnix.types import InstanceId, InstanceState, RequestId
from llumnix.wire.news import ReadJournal
from llumnix.wire.outbox import Mail
from llumnix.wire.to_front_end import Answer, DrainReports, JournalRead, MigrateAnswer, RequestRow, ScalingStatus
from llumnix.wire.to_scheduler import AddInstances, DrainInstance, ListDrains, UndrainInstance


class PretendBoard:
    """As much of a switchboard (front_end/switchboard.py) as the admin routes and the page need."""

    def __init__(self, cluster: PretendCluster, recorded: Path | None = None) -> None:
        """`recorded`: a recorded run, as of a server with `--record`."""
        self.address = "inproc://pretend"
        self.scheduler_pid: int | None = 4711
        self.scheduler_state = "running"
        self.client = SimpleNamespace(members=cluster.members)
        self.strangers = SimpleNamespace(starting=cluster.starting, gone=cluster.gone)
        run_dir = None if recorded is None else str(recorded.parent)
        book = SimpleNamespace(scheduler="inproc://scheduler", front_ends=1, run_dir=run_dir)
        self.log = SimpleNamespace(recorder=None if recorded is None else SimpleNamespace(folder=recorded))
        knobs: dict[str, Any] = {"cluster": ClusterConfig(), "policy": PolicyConfig()}
        self.spec = SimpleNamespace(index=0, book=book, admin_socket=None, **knobs)
        self.asked: list[Mail] = []
        self._cluster = cluster
        self._drains: list[DrainReport] = []
        self._seen = ScalingState()

    @property
    def scaling(self) -> ScalingStatus:
        states = [one.state for one in self._cluster.all.values()]
        config, starting = ScalingConfig(max_instances=len(states) + 2), len(self._cluster.starting)
        at_s = 0.1 * self._cluster.steps
        there = ClusterSnapshot(at=at_s, instances=tuple(one.snapshot() for one in self._cluster.all.values()))
        decision, self._seen = scale(there, starting, self._seen, config)
        return ScalingStatus(
            mode=ScalingMode.ADVISE,
            min_instances=config.min_instances,
            max_instances=config.max_instances,
            serving=states.count(InstanceState.RUNNING),
            draining=states.count(InstanceState.DRAINING),
            starting=starting,
            failing=0,
            now=decision.reason,
            last=None,
            starts=0,
            drains=0,
            instance_seconds=at_s * len(states),
            watched_s=at_s,
        )

    async def list_requests(self, like: str = "", timeout_s: float = 2.0) -> list[tuple[InstanceId, RequestRow]]:
        return [
            (one.info.id, _row(request, state))
            for one in self._cluster.all.values()
            for state, requests in (("running", one.running), ("waiting", one.waiting))
            for request in requests
            if like in request.id
        ]

    async def list_migrations(self, limit: int, timeout_s: float = 2.0) -> list[MigrationRecord]:
        return list(self._cluster.records)[-limit:][::-1]

    async def tell_story(self, request: str) -> RequestStories:
        return self._cluster.stories.tell(request, self._cluster.clock())

    async def read_journals(self, places: dict[str, int] | None, limit: int, wanted: EntryFilter) -> Reading:
        return read_together(places, [self._cluster.stories.journal.read(places, limit, wanted)], limit)

    async def migrate(self, row: RequestRow, target: InstanceId, timeout_s: float) -> MigrateAnswer:
        for one in self._cluster.all.values():
            for request in one.running:
                if request.id == row.request:
                    record = self._cluster.move(one, self._cluster.all[target], request, MoveCause.BY_HAND, "by hand")
                    return MigrateAnswer(query=1, status=200, record=record)
        return MigrateAnswer(query=1, status=404, why="the request has ended")

    async def ask_one(self, address: str, order: Any, timeout_s: float) -> Answer | DrainReports | JournalRead | None:
        if isinstance(order, ReadJournal):
            part = self._cluster.stories.journal.read(order.places, order.limit, order.wanted)
            return JournalRead(query=1, part=part)
        self.asked.append(order)
        if self.scheduler_state != "running":
            return None
        match order:
            case ListDrains():
                return DrainReports(query=1, reports=tuple(self._drains))
            case DrainInstance():
                self._drain(order)
            case UndrainInstance():
                one = self._cluster.all[order.instance]
                one.state, one.keep = InstanceState.RUNNING, False
            case AddInstances():
                self._cluster.start(order.count)
        return Answer(query=1, ok=True)

    def _drain(self, order: DrainInstance) -> None:
        one = self._cluster.all[order.instance]
        one.state, one.keep = InstanceState.DRAINING, order.keep
        requests = len(one.running) + len(one.waiting)
        report = DrainReport(
            instance=order.instance,
            keep=order.keep,
            why=order.why,
            outcome=DrainOutcome.DRAINING,
            requests=requests,
            moved=0,
            replayed=0,
            finished=0,
            left=requests,
            seconds=0.1,
        )
        self._drains.append(report)


def _row(request: PretendRequest, state: str) -> RequestRow:
    return RequestRow(
        request=RequestId(request.id),
        client_id=f"{request.id}-0",
        front_end=0,
        priority=-1 if request.high else 0,
        prompt_tokens=request.prompt,
        output_tokens=request.output,
        state=state,
        migrations=request.moves,
        why_pinned=request.why_pinned,
    )
