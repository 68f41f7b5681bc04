"""The admin routes: `/llumnix/v1/…`. Under the API key when one is set; errors in OpenAI's shape."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from vllm import envs

from llumnix.engine.vllm.client import Member
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.virtual_usage import migration_freeness
from llumnix.server.client_ids import client_visible_id
from llumnix.server.switchboard import Switchboard
from llumnix.types import InstanceId, InstanceState
from llumnix.wire import messages as wire

_SCHEDULER_TIMEOUT_S = 5.0
_MIGRATE_TIMEOUT_S = 90.0
_MAX_LIMIT = 1_000_000
_COUNTS = (
    *("total_blocks", "free_blocks", "running", "waiting", "preemptions", "preemptions_avoided"),
    *("recompute_tokens_saved", "migrations_in", "migrations_out"),
)
_MAX_MORE_INSTANCES = 64  # as many as the scheduler starts by one request


@dataclass(frozen=True, slots=True)
class _Bad(Exception):
    """Becomes an answer in OpenAI's error shape."""

    status: int
    message: str
    kind: str = "invalid_request_error"


def freeness_of(load: InstanceSnapshot) -> float | None:
    """Without headroom for priorities: the plain number. None (JSON has no infinity) when it takes no requests."""
    freeness = migration_freeness(load, None)
    return freeness if isfinite(freeness) else None


def add_routes(app: FastAPI, board: Switchboard, args: argparse.Namespace) -> None:
    keys = [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
    app.include_router(_router(board, keys))


def _router(board: Switchboard, keys: list[str]) -> APIRouter:
    router = APIRouter(prefix="/llumnix/v1")
    guard = _Guard(keys)

    @router.get("/instances")
    async def instances(request: Request) -> JSONResponse:
        return await guard.answer(request, lambda: _instances(board))

    @router.get("/requests")
    async def requests(request: Request) -> JSONResponse:
        return await guard.answer(request, lambda: _requests(board))

    @router.get("/migrations")
    async def migrations(request: Request) -> JSONResponse:
        return await guard.answer(request, lambda: _migrations(board, request.query_params.get("limit", "100")))

    @router.post("/migrations")
    async def migrate(request: Request) -> JSONResponse:
        async def act() -> JSONResponse:
            body = await _body(request, {"request_id": str, "target": str | int})
            return await _migrate(board, body["request_id"], InstanceId(str(body["target"])))

        return await guard.answer(request, act)

    @router.post("/instances")
    async def add(request: Request) -> JSONResponse:
        async def act() -> JSONResponse:
            count = (await _body(request, {"count": int}))["count"]
            if isinstance(count, bool) or not 1 <= count <= _MAX_MORE_INSTANCES:
                raise _Bad(400, f"count must be a number from 1 to {_MAX_MORE_INSTANCES}, not {count}.")
            await _ask_scheduler(
                board, lambda query: wire.AddInstances(count=count, query=query, reply_to=board.address)
            )
            return JSONResponse({"ok": True, "starting": count}, 202)

        return await guard.answer(request, act)

    @router.get("/scaling")
    async def scaling(request: Request) -> JSONResponse:
        return await guard.answer(request, lambda: _scaling(board))

    @router.get("/drains")
    async def drains(request: Request) -> JSONResponse:
        return await guard.answer(request, lambda: _drains(board))

    @router.post("/instances/{instance}/drain")
    async def drain(request: Request, instance: str) -> JSONResponse:
        return await guard.answer(request, lambda: _drain(board, InstanceId(instance), request.query_params))

    return router


class _Guard:
    """Checks the key and turns `_Bad` into an answer."""

    def __init__(self, keys: list[str]) -> None:
        from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

        self._middleware = AuthenticationMiddleware(_no_app, keys) if keys else None

    async def answer(self, request: Request, act: Any) -> JSONResponse:
        if self._middleware is not None and not self._middleware.verify_token(request.headers):
            return _error(_Bad(401, "The admin routes need the API key.", "authentication_error"))
        try:
            answer: JSONResponse = await act()
        except _Bad as bad:
            return _error(bad)
        return answer


async def _no_app(*_: Any) -> None:
    raise AssertionError("only its check of the key is used")


def _error(bad: _Bad) -> JSONResponse:
    error = {"message": bad.message, "type": bad.kind, "param": None, "code": bad.status}
    return JSONResponse({"ok": False, "reason": bad.message, "error": error}, bad.status)


async def _body(request: Request, fields: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with exactly these fields, of these types."""
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise _Bad(400, f"The body is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise _Bad(400, "The body must be a JSON object.")
    for name, kind in fields.items():
        if name not in body:
            raise _Bad(400, f"The field {name!r} is missing.")
        if not isinstance(body[name], kind):
            raise _Bad(400, f"The field {name!r} has the wrong type.")
    if unknown := sorted(set(body) - set(fields)):
        raise _Bad(400, f"Unknown field {unknown[0]!r}; known are {', '.join(map(repr, fields))}.")
    return body


# -- answers


async def _instances(board: Switchboard) -> JSONResponse:
    rows = [_member_row(member) for _, member in sorted(board.client.members.items())]
    rows += [
        _empty_row(message.instance, InstanceState.STARTING, message.pid, message.node)
        for _, message in sorted(board.roster.starting.items())
    ]
    rows += [_empty_row(message.instance, state, None, None, message.why) for message, state in board.roster.gone]
    scheduler = {"pid": board.scheduler_pid, "state": board.scheduler_state}
    scaling = _scaling_row(board.scaling) if board.scheduler_state == "running" else None
    return JSONResponse({"instances": rows, "scheduler": scheduler, "scaling": scaling})


def _member_row(member: Member) -> dict[str, Any]:
    load = member.snapshot
    return {
        "id": member.info.id,
        "state": load.state,
        "pid": member.info.pid,
        "node": member.info.node,
        "total_blocks": load.total_blocks,
        "free_blocks": load.free_blocks,
        "running": load.running,
        "waiting": load.waiting,
        "preemptions": load.preemptions,
        "preemptions_avoided": load.preemptions_avoided,
        "recompute_tokens_saved": load.recompute_tokens_saved,
        "freeness": freeness_of(load),
        "migrations_in": load.migrations_in,
        "migrations_out": load.migrations_out,
    }


def _empty_row(
    instance: InstanceId, state: InstanceState, pid: int | None, node: str | None, why: str = ""
) -> dict[str, Any]:
    counts = dict.fromkeys(_COUNTS, 0)
    return {"id": instance, "state": state, "pid": pid, "node": node, **counts, "freeness": None, "why": why}


async def _requests(board: Switchboard) -> JSONResponse:
    rows = [
        {
            "id": client_visible_id(row.client_id),
            "instance": instance,
            "priority": "high" if row.priority < 0 else "normal",
            "prompt_tokens": row.prompt_tokens,
            "output_tokens": row.output_tokens,
            "state": row.state,
            "migrations": row.migrations,
            "movable": not row.why_pinned,
            "why_pinned": row.why_pinned or None,
        }
        for instance, row in await board.list_requests()
    ]
    return JSONResponse({"requests": rows})


async def _migrations(board: Switchboard, limit: str) -> JSONResponse:
    if not limit.isdecimal() or not 1 <= int(limit) <= _MAX_LIMIT:
        raise _Bad(400, f"limit must be a number from 1 to {_MAX_LIMIT}, not {limit!r}.")
    records = await board.list_migrations(int(limit))
    return JSONResponse({"migrations": [msgspec.to_builtins(record) for record in records]})


async def _migrate(board: Switchboard, request_id: str, target: InstanceId) -> JSONResponse:
    """Moves every sequence of the request (one, unless n > 1 or several prompts) that is not there yet."""
    found = [each for each in await board.list_requests() if client_visible_id(each[1].client_id) == request_id]
    if not found:
        raise _unknown_request(request_id)
    member = board.client.members.get(target)
    if member is None:
        raise _unknown_or_gone(board, target)
    if member.snapshot.state is not InstanceState.RUNNING:
        raise _Bad(409, f"Instance {target} is {member.snapshot.state} and takes no requests.", "conflict_error")
    elsewhere = [row for instance, row in found if instance != target]
    if not elsewhere:
        raise _Bad(409, f"The request is on {target} already.", "conflict_error")
    moved: list[wire.MigrationRecord] = []
    for row in sorted(elsewhere, key=lambda row: row.request):
        answer = await board.migrate(row, target, _MIGRATE_TIMEOUT_S)
        if answer.record is not None:
            moved.append(answer.record)
        elif answer.status != 404:  # else this sequence ended meanwhile
            before = f"{len(moved)} of {len(elsewhere)} sequences moved, then: " if moved else ""
            raise _Bad(answer.status, _sentence(before + answer.why), "conflict_error")
    if not moved:
        raise _unknown_request(request_id)
    downtimes = [record.downtime_ms for record in moved if record.downtime_ms is not None]
    return JSONResponse(
        {
            "ok": True,
            "source": moved[0].source,
            "target": target,
            "stages": max(record.stages for record in moved),
            "bytes": sum(record.bytes for record in moved),
            "blocks_skipped": sum(record.blocks_skipped for record in moved),
            "copy_ms": sum(record.copy_ms for record in moved),
            "handover_ms": max(record.handover_ms for record in moved),
            "downtime_ms": max(downtimes, default=None),
        }
    )


def _unknown_request(request_id: str) -> _Bad:
    return _Bad(404, f"There is no request {request_id!r} that is running or queued.", "not_found_error")


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _unknown_or_gone(board: Switchboard, instance: InstanceId) -> _Bad:
    if instance in board.roster.starting:
        return _Bad(409, f"Instance {instance} is still starting.", "conflict_error")
    for message, state in board.roster.gone:
        if message.instance == instance:
            return _Bad(409, f"Instance {instance} is {state}: {message.why}.", "conflict_error")
    return _Bad(404, f"There is no instance {instance!r}.", "not_found_error")


async def _scaling(board: Switchboard) -> JSONResponse:
    """Size of the cluster and what auto-scaling makes of it, as of half a second ago at most."""
    row = _scaling_row(board.scaling) if board.scheduler_state == "running" else None
    if row is None:
        raise _scheduler_silent()
    return JSONResponse(row)


def _scaling_row(status: wire.ScalingStatus | None) -> dict[str, Any] | None:
    if status is None:
        return None
    row: dict[str, Any] = msgspec.to_builtins(status)
    row["mean_instances"] = status.instance_seconds / status.watched_s if status.watched_s else None
    return row


async def _drains(board: Switchboard) -> JSONResponse:
    """Drains under way, and reports of those that ended."""
    answer = await board.ask_one(
        board.spec.book.scheduler,
        lambda query: wire.ListDrains(query=query, reply_to=board.address),
        _SCHEDULER_TIMEOUT_S,
    )
    if answer is None:
        raise _scheduler_silent()
    return JSONResponse({"drains": msgspec.to_builtins(answer.reports)})


async def _drain(board: Switchboard, instance: InstanceId, params: Mapping[str, str]) -> JSONResponse:
    keep, timeout = params.get("keep", "false"), params.get("timeout_s")
    if keep not in ("true", "false"):
        raise _Bad(400, f"keep must be true or false, not {keep!r}.")
    if instance not in board.client.members:
        raise _unknown_or_gone(board, instance)
    order = wire.DrainInstance(
        instance=instance,
        keep=keep == "true",
        query=0,
        reply_to=board.address,
        timeout_s=None if timeout is None else _seconds("timeout_s", timeout),
    )
    await _ask_scheduler(board, lambda query: msgspec.structs.replace(order, query=query))
    return JSONResponse({"ok": True, "id": instance, "state": InstanceState.DRAINING}, 202)


def _seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not isfinite(seconds) or seconds < 0:
        raise _Bad(400, f"{name} must be a number of seconds, not {text!r}.")
    return seconds


async def _ask_scheduler(board: Switchboard, make: Any) -> None:
    answer = await board.ask_one(board.spec.book.scheduler, make, _SCHEDULER_TIMEOUT_S)
    if answer is None:
        raise _scheduler_silent()
    if not answer.ok:
        raise _Bad(409, _sentence(answer.why), "conflict_error")


def _scheduler_silent() -> _Bad:
    return _Bad(503, "The scheduler does not answer; it is being restarted.", "service_unavailable_error")
