"""The admin routes over a switchboard that is none."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import httpx
import msgspec
from fastapi import FastAPI

from llumnix.api.frames import ServerFacts
from llumnix.config import ClusterConfig, PolicyConfig
from llumnix.control.class_counts import ClassRow
from llumnix.engine.vllm.front_end.admin.routes import add_routes
from llumnix.engine.vllm.front_end.admitting import AdmittingClient
from llumnix.engine.vllm.front_end.classes_in_force import ClassesInForce
from llumnix.engine.vllm.front_end.page.page import Page
from llumnix.engine.vllm.front_end.recorder import Recorder
from llumnix.journal.journal import EntryFilter, Journal, Reading, read_together
from llumnix.journal.stories import RequestStories, Stories
from llumnix.report.records import MigrationRecord
from llumnix.types import InstanceId, InstanceState
from llumnix.wire.news import InstanceGone, ReadJournal
from llumnix.wire.outbox import Mail
from llumnix.wire.to_front_end import Answer, JournalRead, MigrateAnswer, RequestRow, ScalingStatus


class Board:
    """As much of a switchboard as the routes need."""

    address = "inproc://board"
    scheduler_pid = 1
    scheduler_late_messages = 0
    scheduler_state = "running"
    scaling: ScalingStatus | None = None

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.class_rows: list[ClassRow] = []
        self.rows: list[tuple[InstanceId, RequestRow]] = []
        self.answers: dict[str, MigrateAnswer] = {}
        self.asked: list[Mail] = []
        self.targets: list[InstanceId | None] = []
        self.records: list[MigrationRecord] = []
        self.stories = Stories(Journal("f0"))
        self.scheduler_answer: Answer | None = Answer(query=1, ok=True)
        self.spec = SimpleNamespace(
            book=SimpleNamespace(scheduler="inproc://scheduler"),
            cluster=ClusterConfig(),
            policy=PolicyConfig(),
            admin_socket=None,
        )
        states = {"i0": InstanceState.RUNNING, "i1": InstanceState.RUNNING, "i2": InstanceState.DRAINING}
        by_id = {name: SimpleNamespace(snapshot=SimpleNamespace(state=state)) for name, state in states.items()}
        courted = {"i6": SimpleNamespace(info=SimpleNamespace(pid=7, node="here"))}
        self.client = SimpleNamespace(members=SimpleNamespace(by_id=by_id, courted=courted))
        gone = InstanceGone(instance=InstanceId("i9"), index=9, why="killed by SIGKILL", expected=False)
        self.log = SimpleNamespace(recorder=None)
        self.strangers = SimpleNamespace(starting={"i8": None}, gone=[(gone, InstanceState.LOST)])

    def have_classes(self, path: Path) -> None:
        """As a server that was started with `--classes`."""
        self.spec.cluster = ClusterConfig(classes=str(path))
        self.client = mock.Mock(spec=AdmittingClient)
        self.client.in_force = self.in_force = mock.Mock(spec=ClassesInForce)

    def have_recorder(self, folder: Path) -> None:
        """As a server that was started with `--record`, and with a private folder beside what it has recorded."""
        self.log.recorder = mock.Mock(spec=Recorder, folder=folder)
        self.spec.book.run_dir = str(folder.parent)
        self.log.recorder.switch = lambda on: "/runs/first" if on else ""

    async def all_others(self, part: str) -> int:
        self.parts.append(part)
        return 0

    async def list_classes(self) -> list[ClassRow]:
        return self.class_rows

    async def list_requests(self, like: str = "") -> list[tuple[InstanceId, RequestRow]]:
        return self.rows

    async def list_migrations(self, limit: int) -> list[MigrationRecord]:
        return self.records[:limit]

    async def read_journals(self, places: dict[str, int] | None, limit: int, wanted: EntryFilter) -> Reading:
        return read_together(places, [self.stories.journal.read(places, limit, wanted)], limit)

    async def tell_story(self, request: str) -> RequestStories:
        return msgspec.structs.replace(self.stories.tell(request, 100.0), kept=20_000)

    async def migrate(self, row: RequestRow, target: InstanceId | None, timeout_s: float) -> MigrateAnswer:
        self.targets.append(target)
        return self.answers[row.request]

    async def ask_one(self, address: str, question: Any, timeout_s: float) -> Answer | JournalRead | None:
        if isinstance(question, ReadJournal):
            part = self.stories.journal.read(question.places, question.limit, question.wanted)
            return JournalRead(query=1, part=part)
        self.asked.append(msgspec.structs.replace(question, query=1, reply_to=self.address))
        return self.scheduler_answer


SERVER = ServerFacts(
    version="0",
    vllm="0",
    model="tiny",
    policy="llumnix",
    migration=True,
    front_ends=1,
    front_end=0,
    since_s=0.0,
    acts=True,
    example_path=None,
)


def app_of(board: Board, keys: list[str] | None = None) -> FastAPI:
    """Its streams end before they begin."""
    app = FastAPI()
    page = Page(board, SERVER, lambda: True)  # type: ignore[arg-type]
    args = argparse.Namespace(api_key=keys, host="127.0.0.1", uds=None)
    add_routes(app, board, args, page)  # type: ignore[arg-type]
    return app


async def ask(board: Board, method: str, path: str, *, keys: list[str] | None = None, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app_of(board, keys))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000/llumnix/v1") as client:
        return await client.request(method, path, **options)
