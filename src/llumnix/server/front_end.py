"""A front end's process: vLLM's OpenAI app, its own routes included, served over our engine client."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
from typing import Any

from llumnix.engine.port import FrontEndSpec
from llumnix.engine.vllm.llm import LlumnixLLM
from llumnix.server import admin
from llumnix.server.priority import honour_service_tier
from llumnix.server.switchboard import Switchboard

_METRICS_INTERVAL_S = 1.0


async def serve_front_end(args: argparse.Namespace, config: Any, spec: FrontEndSpec, sock: socket.socket) -> None:
    """Serves from the moment when a first instance is ready until SIGTERM."""
    board = Switchboard(spec)
    llm = LlumnixLLM(config, spec, board.post, log_requests=args.enable_log_requests)
    board.connect(llm.engine_core)
    board.on_slots_grew(llm.grow_metrics)
    try:
        await llm.engine_core.joined.wait()
        await llm.reset_mm_cache()
        async with asyncio.TaskGroup() as group:
            gauges = group.create_task(_keep_gauges(board))
            await _serve_http(args, llm, board, sock)
            gauges.cancel()
    finally:
        llm.shutdown()
        board.close()
        sock.close()


async def _serve_http(args: argparse.Namespace, llm: LlumnixLLM, board: Switchboard, sock: socket.socket) -> None:
    """As vLLM's `build_and_serve` (entrypoints/launchers/api_server/entry.py), with our routes added."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.launcher import serve_http
    from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config

    tasks = await llm.get_supported_tasks()
    app = build_app(args, tasks, llm.model_config)
    admin.add_routes(app, board, args)
    await init_app_state(llm, app.state, args, tasks)
    honour_service_tier(app.state)
    uvicorn: dict[str, Any] = {}
    if (log_config := get_uvicorn_log_config(args)) is not None:
        uvicorn["log_config"] = log_config
    shutdown = await serve_http(
        app,
        sock=sock,
        enable_ssl_refresh=args.enable_ssl_refresh,
        host=args.host,
        port=args.port,
        log_level=args.uvicorn_log_level,
        access_log=not args.disable_uvicorn_access_log,
        timeout_keep_alive=_keep_alive_s(),
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        ssl_ciphers=args.ssl_ciphers,
        h11_max_incomplete_event_size=args.h11_max_incomplete_event_size,
        h11_max_header_count=args.h11_max_header_count,
        **uvicorn,
    )
    with contextlib.suppress(asyncio.CancelledError):
        await shutdown


def _keep_alive_s() -> int:
    import vllm.envs as envs

    seconds: int = envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE
    return seconds


async def _keep_gauges(board: Switchboard) -> None:
    """Keeps the per-instance gauges near the last reports; not worth an update per report."""
    shown: set[str] = set()
    while True:
        metrics = board.metrics
        gauges = (metrics.freeness, metrics.waiting, metrics.running, metrics.preemptions)
        members = dict(board.client.members)
        for instance in shown - set(members):
            for gauge in gauges:
                with contextlib.suppress(KeyError):
                    gauge.remove(instance)
        shown = set(members)
        for instance, member in members.items():
            load = member.snapshot
            metrics.freeness.labels(instance=instance).set(admin.freeness_of(load) or 0.0)
            metrics.waiting.labels(instance=instance).set(load.waiting)
            metrics.running.labels(instance=instance).set(load.running)
            metrics.preemptions.labels(instance=instance).set(load.preemptions)
        await asyncio.sleep(_METRICS_INTERVAL_S)
