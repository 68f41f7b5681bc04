"""The admin routes: `/llumnix/v1/…`. Under the API key when one is set; errors in OpenAI's shape."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from time import monotonic

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from starlette.convertors import StringConvertor, register_url_convertor
from vllm import envs

from llumnix.api import bodies
from llumnix.api.routes import OPENAPI, PREFIX
from llumnix.engine.vllm.front_end.admin import classes, looking, past, recording, sizing, staying
from llumnix.engine.vllm.front_end.admin.answers import (
    Bad,
    Guard,
    answer,
    body_of,
    count_of,
    listing,
    query_of,
    sentence,
    shown,
)
from llumnix.engine.vllm.front_end.admin.what_if import add_what_if
from llumnix.engine.vllm.front_end.client_ids import client_visible_id
from llumnix.engine.vllm.front_end.origin import KnownHosts, listening_host
from llumnix.engine.vllm.front_end.page import files, watching
from llumnix.engine.vllm.front_end.page.page import Page
from llumnix.engine.vllm.front_end.switchboard import Switchboard
from llumnix.report.records import MigrationRecord
from llumnix.types import InstanceId, InstanceState
from llumnix.wire.to_front_end import RequestRow

MIGRATE_TIMEOUT_S = 90.0
"""For all sequences of a request together."""
_MAX_LIMIT = 1_000_000
_KINDS = {409: "conflict_error", 504: "timeout_error"}


class _Text(StringConvertor):
    """Of any characters: a `path` has slashes, but no line feeds."""

    regex = r"[\s\S]*"


register_url_convertor("text", _Text())


def add_routes(app: FastAPI, board: Switchboard, args: argparse.Namespace, page: Page | None) -> None:
    """`page`: None without one."""
    keys = [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
    guard = Guard(keys, known_hosts(args, board))
    add_liveness(app)
    router = APIRouter(prefix=PREFIX)
    _add_past(router, guard, board)
    _add_looking(router, guard, board)
    _add_acting(router, guard, board)
    _add_switches(router, guard, board)
    add_what_if(router, guard, board)
    if page is not None:
        watching.add_streams(router, guard, page)
        files.add_files(app.router)
    app.include_router(router)


def add_liveness(app: FastAPI) -> None:
    """The one that every port has: whoever asks whether a server lives asks where it serves."""
    app.add_api_route(f"{PREFIX}/alive", _alive, include_in_schema=False)


def known_hosts(args: argparse.Namespace, board: Switchboard) -> KnownHosts:
    return KnownHosts.of(listening_host(args), board.spec.cluster.admin_allowed_hosts.split(","))


def _add_looking(router: APIRouter, guard: Guard, board: Switchboard) -> None:
    @router.get("/instances")
    async def instances(request: Request) -> Response:
        return await guard.answer(request, lambda: _instances(board))

    @router.get("/requests")
    async def requests(request: Request) -> Response:
        return await guard.answer(request, lambda: _requests(board))

    @router.get("/requests/{request_id:text}")  # clients may choose their ids
    async def one_request(request: Request, request_id: str) -> Response:
        return await guard.answer(request, lambda: _one_request(board, request_id))

    @router.get("/migrations")
    async def migrations(request: Request) -> Response:
        return await guard.answer(request, lambda: _migrations(board, query_of(request, "limit")))

    @router.get("/scaling")
    async def scaling(request: Request) -> Response:
        return await guard.answer(request, lambda: sizing.scaling(board))

    @router.get("/drains")
    async def drains(request: Request) -> Response:
        return await guard.answer(request, lambda: sizing.drains(board))

    @router.get("/classes")
    async def class_rows(request: Request) -> Response:
        return await guard.answer(request, lambda: classes.rows(board))

    @router.get("/openapi.json")
    async def openapi(request: Request) -> Response:
        return await guard.answer(request, _openapi)


def _add_past(router: APIRouter, guard: Guard, board: Switchboard) -> None:
    """Before those that look: the id of a request may be a whole path."""

    @router.get("/requests/{request_id:text}/story")
    async def story(request: Request, request_id: str) -> Response:
        return await guard.answer(request, lambda: past.story(board, request_id))

    @router.get("/journal")
    async def journal(request: Request) -> Response:
        return await guard.answer(
            request, lambda: past.journal(board, query_of(request, "after", "limit", "kind", "instance"))
        )

    @router.get("/why-not")
    async def why_not(request: Request) -> Response:
        return await guard.answer(request, lambda: staying.why_not(board))


def _add_acting(router: APIRouter, guard: Guard, board: Switchboard) -> None:
    @router.post("/migrations")
    async def migrate(request: Request) -> Response:
        async def act() -> Response:
            body = await body_of(request, {"request_id": str, "target": str | int | None})
            target = None if body["target"] is None else InstanceId(str(body["target"]))
            return await _migrate(board, body["request_id"], target)

        return await guard.answer(request, act)

    @router.post("/instances")
    async def add(request: Request) -> Response:
        async def act() -> Response:
            body = await body_of(request, {"count": int, "replaces": str | None})
            return await sizing.start(board, body["count"], body["replaces"])

        return await guard.answer(request, act)

    @router.post("/instances/{instance}/drain")
    async def drain(request: Request, instance: str) -> Response:
        return await guard.answer(
            request, lambda: sizing.drain(board, InstanceId(instance), query_of(request, "keep", "force", "timeout_s"))
        )

    @router.post("/instances/{instance}/role")
    async def role(request: Request, instance: str) -> Response:
        async def act() -> Response:
            return await sizing.role(board, InstanceId(instance), (await body_of(request, {"role": str}))["role"])

        return await guard.answer(request, act)

    @router.post("/instances/{instance}/undrain")
    async def undrain(request: Request, instance: str) -> Response:
        return await guard.answer(request, lambda: sizing.undrain(board, InstanceId(instance)))


def _add_switches(router: APIRouter, guard: Guard, board: Switchboard) -> None:
    """Of all front ends, and of no instance."""

    @router.post("/classes/reload")
    async def reload(request: Request) -> Response:
        return await guard.answer(request, lambda: classes.reload(board))

    @router.post("/record")
    async def record(request: Request) -> Response:
        async def act() -> Response:
            return await recording.record(board, (await body_of(request, {"on": bool}))["on"])

        return await guard.answer(request, act)


async def _alive() -> Response:
    """As the index: for everybody, by whatever name."""
    return answer(bodies.AliveAnswer())


async def _openapi() -> Response:
    return Response(OPENAPI.read_bytes(), media_type="application/json")


async def _instances(board: Switchboard) -> Response:
    return answer(await looking.instances(board))


async def _requests(board: Switchboard) -> Response:
    return listing("requests", await board.list_requests(), lambda found: looking.request(*found))


async def _one_request(board: Switchboard, request_id: str) -> Response:
    return listing("requests", await _sequences(board, request_id), lambda found: looking.request(*found))


async def _sequences(board: Switchboard, request_id: str) -> list[tuple[InstanceId, RequestRow]]:
    """One, unless n > 1 or several prompts."""
    rows = await board.list_requests(like=request_id)
    found = [each for each in rows if client_visible_id(each[1].client_id) == request_id]
    if not found:
        raise _unknown_request(request_id)
    return found


async def _migrations(board: Switchboard, params: Mapping[str, str]) -> Response:
    limit = count_of(params, "limit", 100, _MAX_LIMIT)
    return listing("migrations", await board.list_migrations(limit))


async def _migrate(board: Switchboard, request_id: str, target: InstanceId | None) -> Response:
    """Moves every sequence of the request (one, unless n > 1 or several prompts) that is not there yet; without a
    target each to where it had best go."""
    found = await _sequences(board, request_id)
    if target is not None:
        _check_target(board, target)
    elsewhere = [row for instance, row in found if instance != target]
    if not elsewhere:
        raise Bad(409, f"The request is on {target} already.", "conflict_error")
    moved: list[MigrationRecord] = []
    deadline_s = monotonic() + MIGRATE_TIMEOUT_S
    for row in sorted(elsewhere, key=lambda row: row.request):
        said = await board.migrate(row, target, max(0.0, deadline_s - monotonic()))
        if said.record is not None:
            moved.append(said.record)
        elif said.status != 404:  # else this sequence ended meanwhile
            before = f"{len(moved)} of {len(elsewhere)} sequences moved, then: " if moved else ""
            raise Bad(said.status, sentence(before + said.why), _KINDS[said.status])
    if not moved:
        raise _unknown_request(request_id)
    downtimes = [record.downtime_ms for record in moved if record.downtime_ms is not None]
    return answer(
        bodies.MovedAnswer(
            source=moved[0].source,
            target=moved[0].target,
            stages=max(record.stages for record in moved),
            bytes=sum(record.bytes for record in moved),
            blocks_skipped=sum(record.blocks_skipped for record in moved),
            copy_ms=sum(record.copy_ms or 0.0 for record in moved),
            handover_ms=max(record.handover_ms or 0.0 for record in moved),
            downtime_ms=max(downtimes, default=None),
        )
    )


def _check_target(board: Switchboard, target: InstanceId) -> None:
    member = board.client.members.by_id.get(target)
    if member is None:
        raise sizing.unknown_or_gone(board, target)
    if member.snapshot.state is not InstanceState.RUNNING:
        raise Bad(409, f"Instance {target} is {member.snapshot.state} and takes no requests.", "conflict_error")


def _unknown_request(request_id: str) -> Bad:
    return Bad(404, f"There is no request {shown(request_id)} that is running or queued.", "not_found_error")
