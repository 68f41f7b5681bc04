"""What the streams of a front end notice when Prometheus asks for `/metrics`.

    python benchmarks/scrape.py

One process serves vLLM's metrics for sixteen engines and ours for as many instances: as a front end does (written on a
thread, see front_end/exposition.py), and, beside it, on the event loop that passes on the tokens. Another process asks
as Prometheus does, each time for a text that has not been written yet. Meanwhile a task is due every millisecond on the
event loop, as a token might be. Quiet times, and both ways of asking, take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np
import uvicorn
import uvloop
from fastapi import FastAPI, Request, Response
from frame.arguments import at_least_one
from frame.server import free_port
from frame.verdict import Figure, at_most, conclude, median
from prometheus_client import CONTENT_TYPE_LATEST
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.metrics.loggers import StatLoggerManager

from llumnix import tiny_model
from llumnix.engine.vllm.front_end import exposition
from llumnix.engine.vllm.front_end.gauges import InstanceSeen, ServerSeen
from llumnix.engine.vllm.front_end.metrics import Metrics
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId
from llumnix.wire.base import InstanceInfo

INSTANCES = 16
GOAL_BUSY_MS = 1.0
_TICK_S = 0.001
_EVERY_S = 0.2
_CLIENT = """
import sys, time, urllib.request
for _ in range(int(sys.argv[2])):
    began = time.monotonic()
    asked = urllib.request.Request(sys.argv[1], headers={"Accept-Encoding": "gzip"})
    urllib.request.urlopen(asked).read()
    time.sleep(max(0.0, float(sys.argv[3]) - (time.monotonic() - began)))
"""


@dataclass(frozen=True, slots=True)
class Window:
    """Some seconds of an event loop."""

    busy_s: float
    """Processor time of its thread."""
    late_s: list[float]
    """How late the task was, each time that it was due."""


def seen() -> ServerSeen:
    def instance(number: int) -> InstanceSeen:
        name = InstanceId(f"i{number}")
        load = InstanceSnapshot(id=name, at=0.0, seq=1, total_blocks=8192, free_blocks=4000, running=20)
        info = InstanceInfo(id=name, index=number, slot=number, pid=1, node="here", control="", data="")
        return InstanceSeen(info=info, load=load, report_age_s=0.1)

    return ServerSeen(instances=tuple(map(instance, range(INSTANCES))))


def make_app() -> FastAPI:
    app = FastAPI()
    text = exposition.MetricsText(seen)

    @app.get("/ours")
    async def ours(request: Request) -> Response:
        return await text.answer(request.headers.get("accept-encoding", ""))

    @app.get("/on-the-loop")
    async def on_the_loop() -> Response:
        return Response(exposition.exposition(seen()), media_type=CONTENT_TYPE_LATEST)

    return app


async def window(url: str, scrapes: int) -> Window:
    """While somebody asks `url` so many times; without `url`, while nobody does."""
    late_s: list[float] = []
    command = [sys.executable, "-c", _CLIENT, url, str(scrapes), str(_EVERY_S)]
    client = await asyncio.create_subprocess_exec(*command) if url else None
    busy_s, until_s = time.thread_time(), time.monotonic() + scrapes * _EVERY_S  # without the start of who asks
    ends = asyncio.create_task(asyncio.sleep(scrapes * _EVERY_S) if client is None else client.wait())
    while not ends.done():
        due_s = time.monotonic() + _TICK_S
        await asyncio.sleep(_TICK_S)
        late_s.append(time.monotonic() - due_s)
    if client is not None and client.returncode:
        raise RuntimeError("nobody answered")
    # A window with slow answers is longer, and the task was due more often: what that costs is not the scrapes' cost.
    stretch = max(1.0, 1 + (time.monotonic() - until_s) / (scrapes * _EVERY_S))
    return Window((time.thread_time() - busy_s) / stretch, late_s)


async def measure(rounds: int, scrapes: int) -> dict[str, list[Window]]:
    exposition._REST = 0.0  # each scrape gets a text of its own
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(make_app(), port=port, log_level="error", access_log=False))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 uvicorn has no event for it
        await asyncio.sleep(0.01)
    windows: dict[str, list[Window]] = {"": [], "/ours": [], "/on-the-loop": []}
    for _ in range(rounds):
        for path, of_path in windows.items():
            of_path.append(await window(path and f"http://127.0.0.1:{port}{path}", scrapes))
    server.should_exit = True
    await serving
    return windows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=at_least_one, default=5, metavar="N")
    parser.add_argument("--scrapes", type=at_least_one, default=20, metavar="N", help="in each window (default: 20)")
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    config = EngineArgs(model=str(tiny_model.ensure()), enforce_eager=True, max_model_len=2048).create_engine_config()
    StatLoggerManager(config, engine_idxs=list(range(INSTANCES)))
    Metrics()
    windows = uvloop.run(measure(arguments.rounds, arguments.scrapes))
    text = exposition.exposition(seen())
    start_s = time.perf_counter()
    exposition.exposition(seen())
    written_s = time.perf_counter() - start_s

    def busy_ms(path: str) -> list[float]:
        quiet = statistics.median(each.busy_s for each in windows[""])
        return [1e3 * (each.busy_s - quiet) / arguments.scrapes for each in windows[path]]

    def late_ms(path: str, percentile: float) -> list[float]:
        return [1e3 * float(np.percentile(each.late_s, percentile)) for each in windows[path]]

    return conclude(
        Figure("size of the text", len(text) / 1e3, unit="kB"),
        Figure("time to write it", 1e3 * written_s, unit="ms"),
        median("event loop busy per scrape", busy_ms("/ours"), at_most(GOAL_BUSY_MS), "ms"),
        median("… written on the event loop", busy_ms("/on-the-loop"), unit="ms"),
        median("task late, P99, nobody asks", late_ms("", 99), unit="ms"),
        median("… while Prometheus asks", late_ms("/ours", 99), unit="ms"),
        median("… written on the event loop", late_ms("/on-the-loop", 99), unit="ms"),
        median("task late, worst, nobody asks", late_ms("", 100), unit="ms"),
        median("… while Prometheus asks", late_ms("/ours", 100), unit="ms"),
        median("… written on the event loop", late_ms("/on-the-loop", 100), unit="ms"),
    )


if __name__ == "__main__":
    sys.exit(main())
