"""The live page over a cluster that is none (pretend.py), served by a thread of this process."""

from __future__ import annotations

import argparse
import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic, time

import uvicorn
from fastapi import FastAPI

from frame.pretend import PretendCluster
from frame.pretend_board import PretendBoard
from llumnix.api.frames import ServerFacts
from llumnix.engine.vllm.front_end import index
from llumnix.engine.vllm.front_end.admin import routes as admin
from llumnix.engine.vllm.front_end.page.page import Page

STEP_S = 0.1


@dataclass(eq=False)
class PageServer:
    cluster: PretendCluster
    board: PretendBoard
    page: Page
    url: str
    server: uvicorn.Server
    loop: asyncio.AbstractEventLoop
    """Of its thread."""


def page_of(cluster: PretendCluster, board: PretendBoard, server: uvicorn.Server, acts: bool, past_s: int) -> Page:
    """`past_s`: what it remembers, a step of the cluster each second."""
    facts = ServerFacts(
        version="0.0.0",
        vllm="0.32.0",
        model="tiny",
        policy="llumnix",
        migration=True,
        front_ends=1,
        front_end=0,
        since_s=time() - past_s,
        acts=acts,
        records=board.log.recorder is not None,
        example_path="/v1/completions",
    )
    page = Page(board, facts, lambda: server.should_exit)  # type: ignore[arg-type]
    for second in range(past_s, 0, -1):
        cluster.clock = partial(_ago, second)
        cluster.step()
        page.remember(cluster.clock(), monotonic() - second)
    cluster.clock = time
    return page


def _ago(seconds: float) -> float:
    return time() - seconds


@contextmanager
def page_server(
    cluster: PretendCluster,
    *,
    keys: list[str] | None = None,
    acts: bool = True,
    past_s: int = 0,
    steps: bool = True,
    port: int = 0,
    recorded: Path | None = None,
) -> Iterator[PageServer]:
    """`steps`: whether time goes on in the cluster by itself. `recorded`: what the server has recorded."""
    board = PretendBoard(cluster, recorded)
    sock = socket.create_server(("127.0.0.1", port))
    ready, made = threading.Event(), list[PageServer]()
    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="page server")

    async def serve() -> None:
        app = FastAPI()
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        page = page_of(cluster, board, server, acts, past_s)
        args = argparse.Namespace(api_key=keys, host="127.0.0.1", uds=None)
        admin.add_routes(app, board, args, page)  # type: ignore[arg-type]
        index.add_routes(app, openai=False, admin=True, page=True)
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        made.append(PageServer(cluster, board, page, url, server, asyncio.get_running_loop()))
        beside = [asyncio.create_task(page.run()), *([asyncio.create_task(_live(cluster))] if steps else [])]
        ready.set()
        await server.serve(sockets=[sock])
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)

    thread.start()
    try:
        assert ready.wait(30)
        yield made[0]
    finally:
        made[0].server.should_exit = True
        thread.join(30)
        sock.close()


async def _live(cluster: PretendCluster) -> None:
    while True:
        cluster.step()
        await asyncio.sleep(STEP_S)
