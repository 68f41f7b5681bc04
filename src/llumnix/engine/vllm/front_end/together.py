"""Routes of vLLM's that concern the requests of one server process: here they concern those of all front ends."""

from __future__ import annotations

import json
import re
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.routing import Mount
from vllm import envs

from llumnix.engine.vllm.front_end.admitting import AdmittingClient
from llumnix.engine.vllm.front_end.exposition import MetricsText
from llumnix.engine.vllm.front_end.gauges import seen_by
from llumnix.engine.vllm.front_end.llm import LlumnixLLM
from llumnix.engine.vllm.front_end.switchboard import Switchboard


def connect_parts(board: Switchboard, llm: LlumnixLLM) -> None:
    """What this front end does when another one asks, and the other way round. Before it hears anybody."""
    shared_state = llm.engine_core.shared_state

    async def follow(_request_ids: tuple[str, ...]) -> int:
        await shared_state.follow()
        return 0

    async def load(_request_ids: tuple[str, ...]) -> int:
        return board.load()

    async def classes(_request_ids: tuple[str, ...]) -> int:
        if isinstance(llm.engine_core, AdmittingClient):
            llm.engine_core.change_classes()
        return 0

    async def record(_request_ids: tuple[str, ...]) -> int:
        if board.log.recorder is not None:
            board.log.recorder.follow()
        return 0

    if isinstance(llm.engine_core, AdmittingClient):
        board.class_rows = llm.engine_core.desk.rows
    board.parts = {"follow": follow, "abort": llm.abort_here, "load": load, "classes": classes, "record": record}
    shared_state.tell_others = lambda: board.all_others("follow")
    llm.abort_elsewhere = lambda request_ids: board.all_others("abort", request_ids)


def add_routes_of_all(app: FastAPI, board: Switchboard, llm: LlumnixLLM) -> None:
    """Before vLLM's own of the same paths, where it has them."""
    board.load = lambda: int(getattr(app.state, "server_load_metrics", 0))

    async def server_load() -> JSONResponse:
        return JSONResponse({"server_load": board.load() + await board.all_others("load")})

    async def abort_requests(request: Request) -> JSONResponse:
        request_ids = _named_requests(await request.body())
        count = await llm.abort_here(request_ids) + await board.all_others("abort", request_ids)
        return JSONResponse({"status": "aborted", "aborted": len(request_ids) or count})

    before = len(app.router.routes)
    app.add_api_route("/load", server_load, methods=["GET"])
    app.router.routes.append(_metrics(MetricsText(lambda: seen_by(board))))
    if envs.VLLM_SERVER_DEV_MODE:
        app.add_api_route("/abort_requests", abort_requests, methods=["POST"])
    routes = app.router.routes
    routes[:] = routes[before:] + routes[:before]


def _metrics(text: MetricsText) -> Mount:
    """At all addresses where vLLM has its own, `/metrics/` among them, and for HEAD, too."""
    everywhere = Mount("/metrics", text)
    everywhere.path_regex = re.compile("^/metrics(?P<path>.*)$")
    return everywhere


def _named_requests(body: bytes) -> tuple[str, ...]:
    """None: all. Refuses what vLLM's own route refuses."""
    try:
        asked: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "Invalid JSON format") from error
    if not isinstance(asked, dict):
        raise HTTPException(400, "Request body must be a JSON object")
    request_ids = asked.get("request_ids") or ()
    if not isinstance(request_ids, list | tuple) or not all(isinstance(each, str) for each in request_ids):
        raise HTTPException(400, "request_ids must be a list of strings")
    return tuple(request_ids)
