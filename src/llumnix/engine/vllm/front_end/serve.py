"""A front end's process: vLLM's OpenAI app, its own routes included, served over our engine client."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Coroutine, Iterator
from time import monotonic
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from llumnix.decision_log import begin_journal
from llumnix.engine.port import FrontEndSpec
from llumnix.engine.vllm.front_end import index
from llumnix.engine.vllm.front_end.adapters import share_adapters, static_adapters_loaded_once
from llumnix.engine.vllm.front_end.admin import routes as admin
from llumnix.engine.vllm.front_end.admin.answers import refuse_in_our_shape
from llumnix.engine.vllm.front_end.admitting import AdmittingClient
from llumnix.engine.vllm.front_end.desk import Desk
from llumnix.engine.vllm.front_end.llm import LlumnixLLM
from llumnix.engine.vllm.front_end.others_logs import (
    keep_quiet_about_refusals,
    leave_out_of_access_log,
    warnings_still_told,
)
from llumnix.engine.vllm.front_end.page.page import Page, make_page
from llumnix.engine.vllm.front_end.priority import honour_service_tier
from llumnix.engine.vllm.front_end.recorder import make_recorder
from llumnix.engine.vllm.front_end.retry_after import RetryAfter
from llumnix.engine.vllm.front_end.silent_connections import HttpConnection
from llumnix.engine.vllm.front_end.stream_errors import tell_errors
from llumnix.engine.vllm.front_end.stream_log import StreamLog
from llumnix.engine.vllm.front_end.switchboard import Switchboard
from llumnix.engine.vllm.front_end.ticket import Door
from llumnix.engine.vllm.front_end.together import add_routes_of_all, connect_parts
from llumnix.engine.vllm.front_end.vllm_routes import undecided
from llumnix.engine.vllm.versions import accepted_in_turn
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.to_front_end import FRONT_END_MAIL, ToFrontEnd
from llumnix.wire.to_launcher import FrontEndLives
from llumnix.wire.to_scheduler import HeldHere

log = logging.getLogger(__name__)

_LAG_INTERVAL_S = 0.25
_LISTENS_INTERVAL_S = 0.05
_ALIVE_INTERVAL_S = 5.0
_WAITING_INTERVAL_S = 1.0
_LAST_BYTES_S = 5
"""For how long a client that does not read keeps a server that has no request left from ending."""


async def serve_front_end(
    args: argparse.Namespace,
    config: Any,
    spec: FrontEndSpec,
    sock: socket.socket,
    connections: memoryview | None,
    admitted: memoryview | None,
) -> None:
    """Serves from the moment when a first instance is ready until SIGTERM.

    `connections`, `admitted`: open connections and unfinished requests per front end, shared by all of them; None if
    nobody needs to know. With `connections` new ones are accepted one at a time.
    """

    def hear(message: ToFrontEnd) -> None:
        board.hear(message)

    mailbox = Mailbox(spec.book.front_end(spec.index), FRONT_END_MAIL, hear, spec.book.keys)
    log = StreamLog(*begin_journal(f"f{spec.index}", spec.cluster.decision_log))
    llm = LlumnixLLM(config, spec, mailbox.post, log, args, admitted)
    board = Switchboard(spec, mailbox, llm.engine_core, log)
    log.recorder = make_recorder(spec, llm.engine_core.members, board.strangers, args, config)
    connect_parts(board, llm)
    llm.engine_core.membership.on_more_slots = llm.grow
    mailbox.start()
    try:
        await llm.engine_core.members.joined.wait()
        llm.tell_of_instances()
        await llm.forget_dummies()
        page = make_page(board, args, llm.model_config, lambda: llm.is_closing)
        peer_loads = None if connections is None else (connections, spec.index)
        await _serve_all(args, llm, board, page, sock, peer_loads)
    finally:
        llm.shutdown()
        log.close()
        mailbox.close()
        sock.close()


async def _serve_all(
    args: argparse.Namespace,
    llm: LlumnixLLM,
    board: Switchboard,
    page: Page | None,
    sock: socket.socket,
    peer_loads: tuple[Any, int] | None,
) -> None:
    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(work) for work in _work_beside(args, board, page)]
        app = await _make_app(args, llm, board, page)
        beside.append(group.create_task(_tell_that_it_lives(board, sock)))
        await _serve_http(args, app, sock, peer_loads)
        for task in beside:
            task.cancel()


def _work_beside(
    args: argparse.Namespace, board: Switchboard, page: Page | None
) -> Iterator[Coroutine[Any, Any, None]]:
    """What goes on until the server ends."""
    yield _watch(board)
    if isinstance(board.client, AdmittingClient):
        yield _tell_what_waits(board, board.client.desk)
    if board.log.recorder is not None:
        yield board.log.recorder.run()
    if page is not None:
        yield page.run()
    if board.spec.admin_socket is not None:
        yield _serve_admin(args, board, page, board.spec.admin_socket)


async def _serve_http(
    args: argparse.Namespace, app: FastAPI, sock: socket.socket, peer_loads: tuple[Any, int] | None
) -> None:
    """As vLLM's `build_and_serve` (entrypoints/launchers/api_server/entry.py), with an app that has our routes, too."""
    from vllm.entrypoints.launchers.launcher import serve_http
    from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config

    leave_out_of_access_log(args.disable_access_log_for_endpoints)
    logging: dict[str, Any] = {}
    if (log_config := get_uvicorn_log_config(args)) is not None:
        logging["log_config"] = log_config
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # http_socket.py says why not before
    shutdown = await serve_http(
        app,
        sock=sock,
        enable_ssl_refresh=args.enable_ssl_refresh,
        **accepted_in_turn(peer_loads),
        host=args.host,
        port=args.port,
        log_level=args.uvicorn_log_level,
        access_log=not args.disable_uvicorn_access_log,
        **_connection_options(args),
        h11_max_incomplete_event_size=args.h11_max_incomplete_event_size,
        h11_max_header_count=args.h11_max_header_count,
        **logging,
    )
    with contextlib.suppress(asyncio.CancelledError):
        await shutdown


async def _make_app(args: argparse.Namespace, llm: LlumnixLLM, board: Switchboard, page: Page | None) -> FastAPI:
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    tasks = await llm.get_supported_tasks()
    with warnings_still_told():
        app = build_app(args, tasks, llm.model_config)
    app.title = "Llumnix"
    if unknown := undecided(app.routes):
        log.warning("routes that nobody has looked at for servers of several processes: %s", ", ".join(unknown))
    add_routes_of_all(app, board, llm)
    add_our_routes(app, args, board, page)
    shared_state = llm.engine_core.shared_state
    with static_adapters_loaded_once(shared_state):
        await init_app_state(llm, app.state, args, tasks)
    await share_adapters(app.state.openai_serving_models, shared_state)
    llm.follow(shared_state.file.read())
    honour_service_tier(app.state)
    tell_errors(app.state)
    keep_quiet_about_refusals()
    if isinstance(board.client, AdmittingClient):
        desk = board.client.desk
        # vLLM's app has its middleware together already (`sagemaker_standards_bootstrap`), and takes no more.
        app.middleware_stack = Door(app.middleware_stack or app.build_middleware_stack(), lambda: desk.tenant_header)
    return app


def add_our_routes(app: FastAPI, args: argparse.Namespace, board: Switchboard, page: Page | None) -> None:
    """Beside vLLM's."""
    has_admin = board.spec.admin_socket is None
    if has_admin:
        admin.add_routes(app, board, args, page)
    else:
        admin.add_liveness(app)
    index.add_routes(app, openai=True, admin=has_admin, page=has_admin and page is not None)


async def _serve_admin(args: argparse.Namespace, board: Switchboard, page: Page | None, sock: socket.socket) -> None:
    """The admin routes alone, on a port of their own; ends with the front end."""
    from vllm.entrypoints.launchers.launcher import NoSignalServer
    from vllm.entrypoints.launchers.utils.ssl import SSLCertRefresher

    options = _connection_options(args)
    # How uvicorn logs in this process is the other server's: it was not to be set up twice.
    config = uvicorn.Config(admin_app(args, board, page), log_level=args.uvicorn_log_level, log_config=None, **options)
    config.load()
    refresher = None
    if args.enable_ssl_refresh and config.ssl is not None:
        refresher = SSLCertRefresher(config.ssl, args.ssl_keyfile, args.ssl_certfile, args.ssl_ca_certs)
    server = NoSignalServer(config)
    try:
        await server.serve(sockets=[sock])
    except asyncio.CancelledError:
        await server.shutdown(sockets=[sock])
        raise
    finally:
        if refresher is not None:
            refresher.stop()


def admin_app(args: argparse.Namespace, board: Switchboard, page: Page | None) -> FastAPI:
    """A browser lets pages of allowed hosts call it; beside vLLM's routes `--allowed-origins` says whom."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(RetryAfter)
    if pages := admin.known_hosts(args, board).allowed_pages:
        app.add_middleware(CORSMiddleware, allow_origin_regex=pages, allow_methods=["*"], allow_headers=["*"])
    refuse_in_our_shape(app)
    admin.add_routes(app, board, args, page)
    index.add_routes(app, openai=False, admin=True, page=page is not None)
    return app


def _connection_options(args: argparse.Namespace) -> dict[str, Any]:
    """What holds on every port: the same certificates, the same patience."""
    import vllm.envs as envs

    return {
        "http": HttpConnection,
        "timeout_keep_alive": envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        "timeout_graceful_shutdown": _LAST_BYTES_S,
        "ssl_keyfile": args.ssl_keyfile,
        "ssl_certfile": args.ssl_certfile,
        "ssl_ca_certs": args.ssl_ca_certs,
        "ssl_cert_reqs": args.ssl_cert_reqs,
        "ssl_ciphers": args.ssl_ciphers,
    }


async def _tell_that_it_lives(board: Switchboard, sock: socket.socket) -> None:
    """At once when it listens, for a server whose front ends die before one ever did ends; from then on as long as
    this event loop turns. Else clients would wait for it for ever, and new ones with them."""
    alive = FrontEndLives(front_end=board.spec.index, pid=os.getpid())
    listened = False  # in the end the socket is closed while the last requests run
    while True:
        listened = listened or bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        if listened:
            board.post(board.spec.book.launcher, alive)
        await asyncio.sleep(_ALIVE_INTERVAL_S if listened else _LISTENS_INTERVAL_S)


async def _tell_what_waits(board: Switchboard, desk: Desk) -> None:
    """To whoever asks for metrics, and to the scheduler, for its auto-scaling."""
    told = 0
    while True:
        await asyncio.sleep(_WAITING_INTERVAL_S)
        desk.show()
        requests, tokens = desk.demand
        if requests or told:
            held = HeldHere(front_end=board.spec.index, requests=requests, tokens=tokens)
            board.post(board.spec.book.scheduler, held)
        told = requests


async def _watch(board: Switchboard) -> None:
    """Counts what no event tells of."""
    while True:
        due_s = monotonic() + _LAG_INTERVAL_S
        await asyncio.sleep(_LAG_INTERVAL_S)
        board.log.metrics.loop_lag.observe(max(0.0, monotonic() - due_s))
        board.log.metrics.stand_at(
            refused=board.refused,
            malformed=board.malformed,
            unsent=board.unsent,
            late_outputs=board.late_outputs,
        )
